//! What machines show on their way: from the first address to the proof.

use uuid::Uuid;

use crate::change::{Change, Snapshot};
use crate::deployment::Outcome;
use crate::discovery::{Card, Check, Inventory, memory_check};
use crate::disk::are_among;
use crate::ids::{Attempt, Digest, Mac, Millis, NodeName, RackName};
use crate::intake::draft::Draft;
use crate::intake::{BootWish, Refused, boot_wish};
use crate::life::{self, Cause, Stage};
use crate::node::{Deployed, Firmware, Live, Node, Rack, TokenHash, either_order};
use crate::plan::Policy;

pub(super) fn sighted(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    mac: Mac,
    firmware: Option<Firmware>,
    uuid: Option<Uuid>,
) -> Result<Vec<Change>, Refused> {
    let awaited = || firmware.and(uuid).and_then(|uuid| snapshot.awaited(uuid));
    let Some(known) = snapshot.node_of(mac).or_else(awaited) else {
        return Ok(stranger(snapshot, policy, now, mac, firmware, uuid));
    };
    let mut draft = Draft::new(snapshot, now, known.clone());
    if draft.node.macs.is_empty() {
        draft.node.macs.push(mac);
        draft.note("recognised", &format!("recognised by its SMBIOS UUID; it boots through {mac}"));
    }
    draft.node.firmware = firmware.or(draft.node.firmware);
    match firmware {
        // The agent's and the deployed system's own requests say nothing about the boot.
        None => {}
        Some(_) if matches!(draft.node.stage, Stage::PoweringOn | Stage::Leasing) => {
            let what = firmware.map_or("", Firmware::as_str);
            draft.advance(
                Cause::AddressAsked,
                "address_asked",
                &format!("its firmware ({what}) asks for an address through {mac}"),
            );
        }
        Some(_) => {
            draft.node.stage = life::step(draft.node.stage, Cause::AddressAsked).unwrap_or(draft.node.stage);
        }
    }
    learn_uuid(&mut draft, uuid);
    Ok(draft.finish())
}

/// A machine that nobody has named and that network-boots waits for approval.
pub(super) fn stranger(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    mac: Mac,
    firmware: Option<Firmware>,
    uuid: Option<Uuid>,
) -> Vec<Change> {
    if firmware.is_none() {
        return Vec::new();
    }
    let mut node = Node::new(NodeName::of_stranger(mac), vec![mac], false, now);
    node.firmware = firmware;
    node.uuid = uuid;
    let mut draft = Draft::new(snapshot, now, node);
    draft.note("sighted", &format!("a machine nobody has named network-boots through {mac}; approve or add it"));
    let mut changes = approve_by_rule(&mut draft, policy);
    changes.extend(draft.finish());
    changes
}

/// Approves a machine that fits a rule, and makes the rule's rack where there is none.
pub(super) fn approve_by_rule(draft: &mut Draft<'_>, policy: &Policy) -> Vec<Change> {
    let rules = &policy.discovery.approve;
    let Some(rule) = rules.iter().find(|rule| !draft.node.approved && rule.fits(&draft.node)) else {
        return Vec::new();
    };
    draft.node.approved = true;
    draft.note("approved", &format!("approved by rule `{}`", rule.name));
    let rack = rule.rack_for(draft.node.inventory.as_ref());
    stand_in(draft, rack)
}

/// Puts a machine that stands nowhere into the rack that its switch is named after, by the first rule that fits.
fn rack_by_switch(draft: &mut Draft<'_>, policy: &Policy) -> Vec<Change> {
    let rules = policy.discovery.approve.iter().filter(|rule| rule.switch.is_some());
    let Some(rule) = rules.into_iter().find(|rule| draft.node.rack.is_none() && rule.fits(&draft.node)) else {
        return Vec::new();
    };
    let rack = rule.rack_for(draft.node.inventory.as_ref());
    if let Some(rack) = &rack {
        draft.note("rack_found", &format!("its switch stands in rack {rack}, by rule `{}`", rule.name));
    }
    stand_in(draft, rack)
}

fn stand_in(draft: &mut Draft<'_>, rack: Option<RackName>) -> Vec<Change> {
    let Some(rack) = rack.filter(|_| draft.node.rack.is_none()) else { return Vec::new() };
    draft.node.rack = Some(rack.clone());
    if draft.snapshot.racks.contains_key(&rack) {
        return Vec::new();
    }
    vec![Change::PutRack(Rack { name: rack, post: Default::default() })]
}

/// Takes over what an agent has heard on its way.
pub(super) fn switches_heard(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    node: &NodeName,
    attempt: Attempt,
    cards: &[Card],
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::of(snapshot, now, node, attempt)?;
    draft.heard();
    if let Some(inventory) = &mut draft.node.inventory {
        inventory.findings.cards = cards.to_vec();
    }
    let mut changes = rack_by_switch(&mut draft, policy);
    changes.extend(draft.finish());
    Ok(changes)
}

/// What is kept: a check that was not made this time stands as it was, as does a switch that was not heard.
fn taken_over(before: Option<&Inventory>, told: &Inventory, expected_gib: Option<u32>) -> Inventory {
    let mut inventory = told.clone();
    let findings = &mut inventory.findings;
    let before = before.map(|before| &before.findings);
    if findings.checks.is_empty() {
        findings.checks = before.map(|before| before.checks.clone()).unwrap_or_default();
    } else if let Some(gib) = expected_gib {
        findings.checks.insert(0, memory_check(told.memory_bytes, gib.into()));
    }
    for card in findings.cards.iter_mut().filter(|card| card.switch.is_none() && card.link) {
        let known = before.and_then(|before| before.cards.iter().find(|known| known.mac == card.mac));
        card.switch = known.and_then(|known| known.switch.clone());
    }
    inventory
}

#[allow(clippy::too_many_arguments)]
pub(super) fn inventoried(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    node: &NodeName,
    attempt: Attempt,
    uuid: Option<Uuid>,
    inventory: &Inventory,
    text: &str,
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::of(snapshot, now, node, attempt)?;
    draft.node.inventory = Some(taken_over(draft.node.inventory.as_ref(), inventory, draft.node.memory_gib));
    let failed: Vec<Check> = draft.node.inventory.iter().flat_map(Inventory::failed_checks).cloned().collect();
    for check in failed.iter().filter(|_| !inventory.findings.checks.is_empty()) {
        draft.note("check_failed", &format!("{}: {}", check.name, check.text));
    }
    if draft.node.approved {
        let mut changes = rack_by_switch(&mut draft, policy);
        changes.extend(draft.finish());
        return Ok(changes);
    }
    learn_uuid(&mut draft, uuid);
    draft.note("inventoried", text);
    // Its token was for this only.
    draft.node.boot_token = None;
    let mut changes = approve_by_rule(&mut draft, policy);
    changes.extend(draft.finish());
    Ok(changes)
}

pub(super) fn learn_uuid(draft: &mut Draft<'_>, uuid: Option<Uuid>) {
    let Some(seen) = uuid else { return };
    match draft.node.uuid {
        None => draft.node.uuid = Some(seen),
        Some(known) if either_order(known) != either_order(seen) => {
            draft.node.unexpected_total = draft.node.unexpected_total.saturating_add(1);
            draft.note(
                "unexpected",
                &format!("SMBIOS UUID {seen} was seen, {known} is expected: another machine, or a changed board"),
            );
        }
        Some(_) => {}
    }
}

pub(super) fn by_mac(
    snapshot: &Snapshot,
    now: Millis,
    mac: Mac,
    cause: Cause,
    kind: &str,
    text: &str,
) -> Result<Vec<Change>, Refused> {
    let Some(node) = snapshot.node_of(mac) else { return Ok(Vec::new()) };
    let mut draft = Draft::new(snapshot, now, node.clone());
    draft.advance(cause, kind, text);
    Ok(draft.finish())
}

pub(super) fn script_asked(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    mac: Mac,
    uuid: Option<Uuid>,
    token: &TokenHash,
) -> Result<Vec<Change>, Refused> {
    let Some(node) = snapshot.node_of(mac) else { return Ok(Vec::new()) };
    let mut draft = Draft::new(snapshot, now, node.clone());
    learn_uuid(&mut draft, uuid);
    match boot_wish(snapshot, policy, mac) {
        BootWish::Inventory { .. } => {
            draft.node.inventory_tries += 1;
            draft.node.boot_token = Some(token.clone());
            draft.note("inventory_asked", "it boots into memory once, to tell what it is; nothing is written to it");
        }
        BootWish::Agent { attempt, .. } if attempt == node.attempt => {
            draft.advance(Cause::ScriptSent, "script_sent", "its boot script leads to our kernel");
            draft.node.boot_token = Some(token.clone());
        }
        BootWish::Agent { attempt, .. } if node.tries < policy.attempts => {
            let reason = "the machine restarted by itself";
            let text = format!("{reason}; attempt {} of {} begins", node.tries + 1, policy.attempts);
            draft.keep_bytes();
            draft.advance(Cause::Restarted, "restarted", &text);
            draft.try_again(attempt, reason);
            draft.node.boot_token = Some(token.clone());
            draft.live = Live::default();
        }
        BootWish::Agent { .. } => {
            draft.end_attempt(policy, "restarted", "the machine restarted by itself", true);
        }
        BootWish::LocalDisk { why } => {
            draft.advance(Cause::BootedNetworkAgain, "sent_to_disk", &format!("asked for a boot script; {why}"));
        }
    }
    Ok(draft.finish())
}

pub(super) fn registered(
    snapshot: &Snapshot,
    now: Millis,
    node: &NodeName,
    attempt: Attempt,
    uuid: Option<Uuid>,
    token: &TokenHash,
    text: &str,
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::of(snapshot, now, node, attempt)?;
    learn_uuid(&mut draft, uuid);
    if draft.advance(Cause::AgentRegistered, "agent_registered", text) {
        draft.node.pending_token = Some(token.clone());
        draft.heard();
    }
    Ok(draft.finish())
}

pub(super) fn proved(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
    digest: &Digest,
    disk: &str,
) -> Result<Vec<Change>, Refused> {
    if still_runs(snapshot, name, attempt, digest, disk) {
        let mut draft = Draft::any_attempt(snapshot, now, name)?;
        draft.heard();
        draft.note("proved", &format!("the system that was deployed before still runs: image {digest}, disk {disk}"));
        return Ok(draft.finish());
    }
    let mut draft = Draft::of(snapshot, now, name, attempt)?;
    let Some(deployment) = snapshot.deployment_of(&draft.node) else {
        return Err(Refused::Conflict(format!("nothing was deployed to `{name}`")));
    };
    if *digest != deployment.digest {
        return Err(Refused::Conflict(format!("`{name}` reports image {digest}, {} was deployed", deployment.digest)));
    }
    // A member of a mirror may have failed meanwhile: what runs must lie on disks that were written, and on no other.
    if !draft.node.target.as_deref().is_some_and(|written| are_among(disk, written)) {
        let target = draft.node.target.as_deref().unwrap_or("no disk");
        return Err(Refused::Conflict(format!("`{name}` runs from disk {disk}, {target} was written")));
    }
    draft.heard();
    let again = draft.node.stage == Stage::Running;
    let text = format!("the booted system runs image {digest} from disk {disk}, attempt {attempt}");
    if draft.advance(Cause::Proved, "proved", &text) && !again {
        draft.node.deployed = Some(Deployed {
            deployment: deployment.id,
            image: deployment.image.clone(),
            digest: *digest,
            disk: disk.to_owned(),
            attempt,
            proved_at: now,
        });
        if let Some(pending) = draft.node.pending_token.take() {
            draft.node.node_token = Some(pending);
        }
        draft.node.reason = None;
        draft.node.boot_token = None;
        draft.keep_bytes();
        let began = draft.node.run.as_ref().filter(|run| run.deployment == deployment.id).map(|run| run.started_at);
        draft.settle(Outcome::Running { milliseconds: now.since(began.unwrap_or(deployment.created_at)) });
    }
    Ok(draft.finish())
}

/// Whether this is the proof of what was deployed before a capture, which left the disk as it was.
fn still_runs(snapshot: &Snapshot, name: &NodeName, attempt: Attempt, digest: &Digest, disk: &str) -> bool {
    let idle = snapshot.nodes.get(name).filter(|node| !node.stage.is_under_way() && node.deployment.is_none());
    let deployed = idle.and_then(|node| node.deployed.as_ref());
    deployed.is_some_and(|known| known.attempt == attempt && known.digest == *digest && known.disk == disk)
}
