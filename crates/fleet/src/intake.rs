//! Takes events in: what each one changes, or why it is refused.

use thiserror::Error;
use uuid::Uuid;

use crate::change::{Change, Note, Snapshot};
use crate::deployment::{Deployment, DeploymentState, Outcome};
use crate::discovery::{INVENTORY_TRIES, Inventory};
use crate::event::{Event, NodeEdit};
use crate::ids::{Attempt, BadId, DeploymentId, Digest, ImageName, Mac, Millis, NodeName, RackName, SetName};
use crate::life::{self, Cause, Stage};
use crate::node::{Deployed, Firmware, Live, Node, Rack, TokenHash};
use crate::plan::Policy;
use crate::set::{MachineSet, compare};

/// Why an event changes nothing. Grouped by what the sender should do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// It names something that does not exist.
    #[error("there is no {what} `{name}`; `rackswarm {what} list` shows what there is")]
    NotFound {
        /// node, rack, set, image or deployment.
        what: &'static str,
        /// What was named.
        name: String,
    },
    /// It contradicts the present state.
    #[error("{0}")]
    Conflict(String),
    /// It belongs to an attempt that is over; the sender must stop.
    #[error("attempt {got} of {node} is over (the present one is {present}); stop and reboot")]
    OldAttempt {
        /// The node.
        node: NodeName,
        /// The attempt that the sender named.
        got: Attempt,
        /// The attempt that counts.
        present: Attempt,
    },
    /// It is not a valid request.
    #[error("{0}")]
    Invalid(String),
}

impl From<BadId> for Refused {
    fn from(bad: BadId) -> Self {
        Self::Invalid(bad.to_string())
    }
}

/// What a network-booting machine is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootWish {
    /// Our kernel and agent, for this node and attempt.
    Agent {
        /// The node.
        node: NodeName,
        /// The attempt that the script's token will belong to.
        attempt: Attempt,
    },
    /// Our kernel and agent, only to tell what the machine is.
    Inventory {
        /// The node, which waits for approval.
        node: NodeName,
    },
    /// Its own disk.
    LocalDisk {
        /// Why, as a sentence for the machine's console.
        why: String,
    },
}

/// What the machine behind `mac` is to boot now.
#[must_use]
pub fn boot_wish(snapshot: &Snapshot, policy: &Policy, mac: Mac) -> BootWish {
    let local = |why: String| BootWish::LocalDisk { why };
    let Some(node) = snapshot.node_of(mac) else {
        return local(format!("{mac} is not known here; it waits for approval"));
    };
    let name = &node.name;
    match node.stage {
        Stage::PoweringOn | Stage::Leasing | Stage::LoadingBootloader | Stage::LoadingKernel => {
            BootWish::Agent { node: name.clone(), attempt: node.attempt }
        }
        // A machine that asks again while its agent should be at work has restarted.
        Stage::AgentUp | Stage::Fetching | Stage::PostActions => {
            BootWish::Agent { node: name.clone(), attempt: node.attempt.next() }
        }
        Stage::Enrolled if is_to_tell(policy, node) => BootWish::Inventory { node: name.clone() },
        Stage::Enrolled if !node.approved => local(format!("{name} waits for approval")),
        Stage::Enrolled => local(format!("nothing is assigned to {name}")),
        Stage::Rebooting => local(format!("{name} has been written and boots its own disk")),
        Stage::Running => local(format!("{name} is deployed and boots its own disk")),
        Stage::Failed => local(format!("the last deployment of {name} failed")),
    }
}

/// Whether this machine is to tell what it is before anybody decides about it.
fn is_to_tell(policy: &Policy, node: &Node) -> bool {
    policy.discovery.inventory && !node.approved && node.inventory.is_none() && node.inventory_tries < INVENTORY_TRIES
}

/// What `event` changes.
///
/// # Errors
/// [`Refused`] where it must change nothing; the sentence is for its sender.
pub fn intake(snapshot: &Snapshot, policy: &Policy, now: Millis, event: &Event) -> Result<Vec<Change>, Refused> {
    match event {
        Event::AddNode { node, edit } => add_node(snapshot, now, node, edit),
        Event::EditNode { node, edit } => edit_node(snapshot, now, node, edit),
        Event::Approve { node } => approve(snapshot, now, node),
        Event::Release { node } => release(snapshot, now, node),
        Event::RemoveNode { node } => remove_node(snapshot, node),
        Event::PutRack(rack) => Ok(vec![Change::PutRack(rack.clone())]),
        Event::RemoveRack(rack) => remove_rack(snapshot, rack),
        Event::PutSet(set) => put_set(snapshot, set),
        Event::RemoveSet { set, configured } => remove_set(snapshot, set, *configured),
        Event::SetListed { set, listed, force } => {
            Ok(compare(snapshot, now, find_set(snapshot, set)?, listed, *force)?.changes)
        }
        Event::Deploy { image, nodes } => deploy(snapshot, now, image, nodes),
        Event::Cancel(id) => cancel(snapshot, now, *id),
        Event::ImageSealed(image) => Ok(vec![Change::PutImage(image.clone())]),
        Event::ImageRemoved(name) => remove_image(snapshot, name),
        Event::Sighted { mac, firmware, uuid } => sighted(snapshot, policy, now, *mac, *firmware, *uuid),
        Event::BootloaderSent { mac, file, bytes } => by_mac(
            snapshot,
            now,
            *mac,
            Cause::BootloaderSent,
            "bootloader_sent",
            &format!("{file} sent, {bytes} bytes"),
        ),
        Event::KernelSent { mac, file, bytes } => {
            by_mac(snapshot, now, *mac, Cause::KernelSent, "kernel_sent", &format!("{file} sent, {bytes} bytes"))
        }
        Event::ScriptAsked { mac, uuid, token } => script_asked(snapshot, policy, now, *mac, *uuid, token),
        Event::PowerBegun { node, attempt } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage == Stage::PoweringOn {
                draft.live.switching = Some(now);
            }
            Ok(draft.finish())
        }
        Event::PowerRead { node, power, text } => {
            let mut draft = Draft::any_attempt(snapshot, now, node)?;
            draft.live.power = Some((*power, now));
            if let Some(text) = text {
                draft.note("power", text);
            }
            Ok(draft.finish())
        }
        Event::PoweredOn { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::PoweredOn, "powered_on", text);
            Ok(draft.finish())
        }
        Event::PowerFailed { node, attempt, reason } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage == Stage::PoweringOn {
                draft.end_attempt(policy, "power_failed", reason, true);
            } else {
                draft.note("power_failed", reason);
            }
            Ok(draft.finish())
        }
        Event::Registered { node, attempt, uuid, token, text } => {
            registered(snapshot, now, node, *attempt, *uuid, token, text)
        }
        Event::Inventoried { node, attempt, uuid, inventory, text } => {
            inventoried(snapshot, policy, now, node, *attempt, *uuid, inventory, text)
        }
        Event::FetchStarted { node, attempt, disk, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::FetchStarted, "fetch_started", text);
            draft.node.target = Some(disk.clone());
            draft.node.written_before = true;
            // What ran there before is being overwritten.
            draft.node.deployed = None;
            draft.node.node_token = None;
            draft.heard();
            Ok(draft.finish())
        }
        Event::Progressed { node, attempt, progress } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.heard();
            if draft.live.progress.is_none_or(|p| p.done_bytes != progress.done_bytes) {
                draft.live.advanced = Some(now);
            }
            draft.live.progress = Some(*progress);
            Ok(draft.finish())
        }
        Event::ImageVerified { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::ImageVerified, "image_verified", text);
            draft.heard();
            Ok(draft.finish())
        }
        Event::PostActionDone { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.note("post_action_done", text);
            draft.heard();
            Ok(draft.finish())
        }
        Event::PostActionsDone { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::PostActionsDone, "post_actions_done", text);
            draft.heard();
            Ok(draft.finish())
        }
        Event::StageFailed { node, attempt, reason, retry } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.end_attempt(policy, "stage_failed", reason, *retry);
            Ok(draft.finish())
        }
        Event::Proved { node, attempt, digest, disk } => proved(snapshot, now, node, *attempt, digest, disk),
        Event::Beaten { node, beat } => {
            let mut draft = Draft::any_attempt(snapshot, now, node)?;
            draft.heard();
            draft.live.beat = Some(beat.clone());
            Ok(draft.finish())
        }
        Event::DeadlinePassed { node, attempt, stage, reason } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage == *stage {
                draft.end_attempt(policy, "deadline_passed", reason, true);
            }
            Ok(draft.finish())
        }
    }
}

/// A node being changed, with what is said about it on the way.
struct Draft<'a> {
    snapshot: &'a Snapshot,
    now: Millis,
    before: Option<&'a Node>,
    node: Node,
    live: Live,
    notes: Vec<Note>,
    settled: Option<Outcome>,
}

impl<'a> Draft<'a> {
    fn new(snapshot: &'a Snapshot, now: Millis, node: Node) -> Self {
        let before = snapshot.nodes.get(&node.name);
        let live = snapshot.live.get(&node.name).cloned().unwrap_or_default();
        Self { snapshot, now, before, node, live, notes: Vec::new(), settled: None }
    }

    fn any_attempt(snapshot: &'a Snapshot, now: Millis, name: &NodeName) -> Result<Self, Refused> {
        let node = find(snapshot, name)?;
        Ok(Self::new(snapshot, now, node.clone()))
    }

    fn of(snapshot: &'a Snapshot, now: Millis, name: &NodeName, attempt: Attempt) -> Result<Self, Refused> {
        let draft = Self::any_attempt(snapshot, now, name)?;
        if draft.node.attempt == attempt {
            Ok(draft)
        } else {
            Err(Refused::OldAttempt { node: name.clone(), got: attempt, present: draft.node.attempt })
        }
    }

    fn heard(&mut self) {
        self.live.heard = Some(self.now);
    }

    fn note(&mut self, kind: &str, text: &str) {
        self.notes.push(Note {
            node: self.node.name.clone(),
            at: self.now,
            attempt: self.node.attempt,
            stage: self.node.stage,
            kind: kind.to_owned(),
            text: text.to_owned(),
        });
    }

    fn enter(&mut self, stage: Stage) {
        if self.node.stage != stage {
            self.node.stage = stage;
            self.node.stage_since = self.now;
            self.live.advanced = None;
            self.live.switching = None;
        }
    }

    /// Steps the life table; a pair that it does not know is counted and kept
    /// in the timeline.
    fn advance(&mut self, cause: Cause, kind: &str, text: &str) -> bool {
        match life::step(self.node.stage, cause) {
            Ok(stage) => {
                self.enter(stage);
                self.note(kind, text);
                true
            }
            Err(unexpected) => {
                self.node.unexpected_total = self.node.unexpected_total.saturating_add(1);
                self.note("unexpected", &format!("{unexpected}: {text}"));
                false
            }
        }
    }

    fn end_attempt(&mut self, policy: &Policy, kind: &str, reason: &str, retry: bool) {
        if !self.node.stage.is_under_way() {
            self.note("unexpected", reason);
            return;
        }
        self.node.reason = Some(reason.to_owned());
        self.node.boot_token = None;
        self.live.progress = None;
        self.live.heard = None;
        self.live.switching = None;
        if retry && self.node.tries < policy.attempts {
            let pause = policy.pause_milliseconds(&self.node.name, self.node.tries);
            let next = self.node.tries + 1;
            let text = format!("{reason}; attempt {next} of {} begins in {} s", policy.attempts, pause.div_ceil(1000));
            self.advance(Cause::Retried, kind, &text);
            self.node.not_before = Some(self.now.plus(pause));
            self.node.attempt = self.node.attempt.next();
            self.node.tries = next;
            self.node.stage_since = self.now;
        } else {
            let text = if retry {
                format!("{reason}; that was attempt {} of {}", self.node.tries, policy.attempts)
            } else {
                format!("{reason}; another attempt would fail alike")
            };
            self.advance(Cause::GaveUp, kind, &text);
            self.settled = Some(Outcome::Failed { reason: reason.to_owned() });
        }
    }

    fn let_go(&mut self, kind: &str, text: &str) {
        if self.node.stage.is_under_way() {
            self.settled = Some(Outcome::LetGo);
        }
        self.advance(Cause::Released, kind, text);
        // Whatever still runs on the machine for the old attempt is refused from now on.
        self.node.attempt = self.node.attempt.next();
        self.node.tries = 0;
        self.node.boot_token = None;
        self.node.pending_token = None;
        self.node.not_before = None;
        self.node.reason = None;
        self.node.target = None;
        self.live.progress = None;
        self.live.heard = None;
    }

    fn finish(self) -> Vec<Change> {
        let mut changes = Vec::new();
        if let (Some(outcome), Some(deployment)) = (self.settled, self.snapshot.deployment_of(&self.node)) {
            let mut deployment = deployment.clone();
            deployment.settle(&self.node.name, outcome, self.now);
            changes.push(Change::PutDeployment(deployment));
        }
        let name = self.node.name.clone();
        if self.before != Some(&self.node) {
            changes.push(Change::PutNode(Box::new(self.node)));
        }
        let nothing = Live::default();
        if *self.snapshot.live.get(&name).unwrap_or(&nothing) != self.live {
            changes.push(Change::PutLive(name, self.live));
        }
        changes.extend(self.notes.into_iter().map(Change::Note));
        changes
    }
}

fn find<'a>(snapshot: &'a Snapshot, name: &NodeName) -> Result<&'a Node, Refused> {
    snapshot.nodes.get(name).ok_or_else(|| Refused::NotFound { what: "node", name: name.to_string() })
}

fn add_node(snapshot: &Snapshot, now: Millis, name: &NodeName, edit: &NodeEdit) -> Result<Vec<Change>, Refused> {
    if snapshot.nodes.contains_key(name) {
        return Err(Refused::Conflict(format!("there is a node `{name}` already; `rackswarm node set` changes it")));
    }
    let macs = match (edit.macs.clone().unwrap_or_default(), edit.uuid) {
        (macs, _) if !macs.is_empty() => macs,
        (_, None) => {
            return Err(Refused::Invalid(format!("node `{name}` needs at least one MAC address, or its UUID")));
        }
        // By its UUID alone: it may be one that waits for approval, else it is recognised when it boots.
        (_, Some(uuid)) => {
            let mut same = snapshot.nodes.values().filter(|node| node.uuid == Some(uuid));
            match (same.next(), same.next()) {
                (None, _) => Vec::new(),
                (Some(stranger), None) if !stranger.approved => stranger.macs.clone(),
                (Some(other), _) => {
                    return Err(Refused::Conflict(format!(
                        "the UUID is that of node `{}` already; name a MAC address",
                        other.name
                    )));
                }
            }
        }
    };
    // A machine may have shown itself before it was added: the stranger becomes this node.
    let mut changes = Vec::new();
    let mut node = Node::new(name.clone(), macs.clone(), true, now);
    for mac in &macs {
        if let Some(owner) = snapshot.node_of(*mac) {
            if owner.approved {
                return Err(Refused::Conflict(format!("{mac} belongs to node `{}` already", owner.name)));
            }
            node.uuid = node.uuid.or(owner.uuid);
            node.firmware = node.firmware.or(owner.firmware);
            node.inventory = node.inventory.or_else(|| owner.inventory.clone());
            changes.push(Change::DropNode(owner.name.clone()));
        }
    }
    let mut draft = Draft::new(snapshot, now, node);
    change_node(snapshot, &mut draft.node, edit)?;
    draft.note("added", "added by an operator");
    changes.extend(draft.finish());
    Ok(changes)
}

fn edit_node(snapshot: &Snapshot, now: Millis, name: &NodeName, edit: &NodeEdit) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::any_attempt(snapshot, now, name)?;
    change_node(snapshot, &mut draft.node, edit)?;
    draft.note("changed", "settings changed by an operator");
    // A stranger that showed itself through one of these MACs is this node.
    let strangers = draft.node.macs.iter().filter_map(|m| snapshot.node_of(*m)).filter(|o| o.name != *name);
    let mut changes: Vec<Change> = strangers.map(|o| Change::DropNode(o.name.clone())).collect();
    changes.extend(draft.finish());
    Ok(changes)
}

fn change_node(snapshot: &Snapshot, node: &mut Node, edit: &NodeEdit) -> Result<(), Refused> {
    if let Some(rack) = &edit.rack {
        if !snapshot.racks.contains_key(rack) {
            return Err(Refused::NotFound { what: "rack", name: rack.to_string() });
        }
        node.rack = Some(rack.clone());
    }
    if let Some(macs) = &edit.macs {
        if macs.is_empty() {
            return Err(Refused::Invalid(format!("node `{}` needs at least one MAC address", node.name)));
        }
        if let Some(owner) =
            macs.iter().find_map(|m| snapshot.node_of(*m).filter(|o| o.name != node.name && o.approved))
        {
            return Err(Refused::Conflict(format!("one of these MAC addresses belongs to node `{}`", owner.name)));
        }
        node.macs.clone_from(macs);
    }
    if let Some(address) = edit.address {
        if let Some(other) = snapshot.nodes.values().find(|o| o.name != node.name && o.address == Some(address)) {
            return Err(Refused::Conflict(format!("{address} is reserved for node `{}`", other.name)));
        }
        node.address = Some(address);
    }
    node.uuid = edit.uuid.or(node.uuid);
    if let Some(power) = &edit.power {
        node.power.clone_from(power);
    }
    if let Some(disk) = &edit.disk {
        node.disk = disk.clone();
    }
    if let Some(post) = &edit.post {
        node.post = post.clone();
    }
    Ok(())
}

fn approve(snapshot: &Snapshot, now: Millis, name: &NodeName) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::any_attempt(snapshot, now, name)?;
    if !draft.node.approved {
        draft.node.approved = true;
        draft.node.boot_token = None;
        draft.note("approved", "approved by an operator");
    }
    Ok(draft.finish())
}

fn release(snapshot: &Snapshot, now: Millis, name: &NodeName) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::any_attempt(snapshot, now, name)?;
    draft.let_go("released", "released by an operator; its disk is left as it is");
    Ok(draft.finish())
}

fn remove_node(snapshot: &Snapshot, name: &NodeName) -> Result<Vec<Change>, Refused> {
    let node = find(snapshot, name)?;
    if node.stage.is_under_way() {
        return Err(Refused::Conflict(format!(
            "node `{name}` is being deployed; `rackswarm node release {name}` first"
        )));
    }
    Ok(vec![Change::DropNode(name.clone())])
}

fn remove_rack(snapshot: &Snapshot, name: &RackName) -> Result<Vec<Change>, Refused> {
    if !snapshot.racks.contains_key(name) {
        return Err(Refused::NotFound { what: "rack", name: name.to_string() });
    }
    let inside = snapshot.nodes.values().filter(|n| n.rack.as_ref() == Some(name)).count();
    if inside > 0 {
        return Err(Refused::Conflict(format!("rack `{name}` holds {inside} nodes; move or remove them first")));
    }
    Ok(vec![Change::DropRack(name.clone())])
}

fn remove_image(snapshot: &Snapshot, name: &ImageName) -> Result<Vec<Change>, Refused> {
    if !snapshot.images.contains_key(name) {
        return Err(Refused::NotFound { what: "image", name: name.to_string() });
    }
    match image_user(snapshot, name) {
        Some(id) => Err(Refused::Conflict(format!("image `{name}` is being deployed by {id}; cancel that first"))),
        None => Ok(vec![Change::DropImage(name.clone())]),
    }
}

/// The active deployment that needs this image, if one does.
#[must_use]
pub fn image_user(snapshot: &Snapshot, name: &ImageName) -> Option<DeploymentId> {
    let active = |d: &&Deployment| d.state == DeploymentState::Active && &d.image == name;
    snapshot.deployments.values().find(active).map(|d| d.id)
}

fn deploy(snapshot: &Snapshot, now: Millis, image: &ImageName, nodes: &[NodeName]) -> Result<Vec<Change>, Refused> {
    let info =
        snapshot.images.get(image).ok_or_else(|| Refused::NotFound { what: "image", name: image.to_string() })?;
    if nodes.is_empty() {
        return Err(Refused::Invalid("no nodes were named; use --nodes or --rack".to_owned()));
    }
    let id = snapshot.next_deployment();
    let mut outcomes = std::collections::BTreeMap::new();
    let mut drafts = Vec::new();
    for name in nodes {
        let node = find(snapshot, name)?;
        if !node.approved {
            return Err(Refused::Conflict(format!(
                "node `{name}` is not approved; `rackswarm node approve {name}` first"
            )));
        }
        if node.stage.is_under_way() {
            return Err(Refused::Conflict(format!(
                "node `{name}` is being deployed ({}); cancel that deployment or release the node first",
                node.stage
            )));
        }
        check_machine(node)?;
        if outcomes.insert(name.clone(), Outcome::Pending).is_some() {
            continue;
        }
        let mut draft = Draft::new(snapshot, now, node.clone());
        draft.node.attempt = node.attempt.next();
        draft.node.tries = 1;
        draft.node.deployment = Some(id);
        draft.node.reason = None;
        draft.node.not_before = None;
        draft.node.boot_token = None;
        draft.node.pending_token = None;
        draft.node.target = None;
        draft.live = Live { beat: draft.live.beat.clone(), power: draft.live.power, ..Live::default() };
        draft.advance(Cause::Assigned, "assigned", &format!("image {image} ({}) assigned by {id}", info.digest));
        drafts.push(draft);
    }
    let mut changes = vec![Change::PutDeployment(Deployment {
        id,
        image: image.clone(),
        digest: info.digest,
        size_bytes: info.size_bytes,
        created_at: now,
        finished_at: None,
        state: DeploymentState::Active,
        outcomes,
    })];
    changes.extend(drafts.into_iter().flat_map(Draft::finish));
    Ok(changes)
}

/// Refuses a machine that is gone, or that could not be recognised when it boots.
fn check_machine(node: &Node) -> Result<(), Refused> {
    let name = &node.name;
    if let Some(member) = node.member.as_ref().filter(|member| member.missing_since.is_some()) {
        return Err(Refused::Conflict(format!(
            "set `{0}` does not list node `{name}` any more; `rackswarm set sync {0}` when it is back",
            member.set
        )));
    }
    if node.macs.is_empty() && node.uuid.is_none() {
        return Err(Refused::Conflict(format!(
            "node `{name}` could not be recognised when it boots; `rackswarm node set {name} --mac` first"
        )));
    }
    Ok(())
}

fn find_set<'a>(snapshot: &'a Snapshot, name: &SetName) -> Result<&'a MachineSet, Refused> {
    snapshot.sets.get(name).ok_or_else(|| Refused::NotFound { what: "set", name: name.to_string() })
}

fn put_set(snapshot: &Snapshot, set: &MachineSet) -> Result<Vec<Change>, Refused> {
    let before = snapshot.sets.get(&set.name);
    if before.is_some() && !set.configured {
        return Err(Refused::Conflict(format!(
            "there is a set `{0}` already; `rackswarm set remove {0}` first, its nodes stay",
            set.name
        )));
    }
    if let Some(other) = snapshot.sets.values().find(|other| other.name != set.name && other.address == set.address) {
        return Err(Refused::Conflict(format!("set `{}` has this address already", other.name)));
    }
    let set = MachineSet { synced: before.and_then(|set| set.synced.clone()), ..set.clone() };
    Ok(if before == Some(&set) { Vec::new() } else { vec![Change::PutSet(set)] })
}

fn remove_set(snapshot: &Snapshot, name: &SetName, configured: bool) -> Result<Vec<Change>, Refused> {
    let set = find_set(snapshot, name)?;
    if set.configured && !configured {
        return Err(Refused::Conflict(format!(
            "set `{name}` stands in the controller's configuration; remove it there and restart the controller"
        )));
    }
    let mine = |node: &&Node| node.member.as_ref().is_some_and(|member| member.set == *name);
    let nodes = snapshot.nodes.values().filter(mine).cloned();
    let mut changes: Vec<Change> = nodes.map(|node| Change::PutNode(Box::new(Node { member: None, ..node }))).collect();
    changes.push(Change::DropSet(name.clone()));
    Ok(changes)
}

fn cancel(snapshot: &Snapshot, now: Millis, id: DeploymentId) -> Result<Vec<Change>, Refused> {
    let deployment =
        snapshot.deployments.get(&id).ok_or_else(|| Refused::NotFound { what: "deployment", name: id.to_string() })?;
    if deployment.state != DeploymentState::Active {
        return Err(Refused::Conflict(format!("{id} has ended already")));
    }
    let mut ended = deployment.clone();
    let mut changes = Vec::new();
    for (name, outcome) in &mut ended.outcomes {
        if *outcome != Outcome::Pending {
            continue;
        }
        *outcome = Outcome::LetGo;
        if let Some(node) = snapshot.nodes.get(name).filter(|n| n.deployment == Some(id)) {
            let mut draft = Draft::new(snapshot, now, node.clone());
            draft.let_go("cancelled", &format!("{id} was cancelled by an operator; the disk may be half written"));
            draft.settled = None;
            changes.extend(draft.finish());
        }
    }
    ended.state = DeploymentState::Cancelled;
    ended.finished_at = Some(now);
    changes.insert(0, Change::PutDeployment(ended));
    Ok(changes)
}

fn sighted(
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
fn stranger(
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
fn approve_by_rule(draft: &mut Draft<'_>, policy: &Policy) -> Vec<Change> {
    let rules = &policy.discovery.approve;
    let Some(rule) = rules.iter().find(|rule| !draft.node.approved && rule.fits(&draft.node)) else {
        return Vec::new();
    };
    draft.node.approved = true;
    draft.note("approved", &format!("approved by rule `{}`", rule.name));
    let Some(rack) = rule.rack.clone().filter(|_| draft.node.rack.is_none()) else { return Vec::new() };
    draft.node.rack = Some(rack.clone());
    if draft.snapshot.racks.contains_key(&rack) {
        return Vec::new();
    }
    vec![Change::PutRack(Rack { name: rack, post: Default::default() })]
}

#[allow(clippy::too_many_arguments)]
fn inventoried(
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
    draft.node.inventory = Some(inventory.clone());
    if draft.node.approved {
        return Ok(draft.finish());
    }
    learn_uuid(&mut draft, uuid);
    draft.note("inventoried", text);
    // Its token was for this only.
    draft.node.boot_token = None;
    let mut changes = approve_by_rule(&mut draft, policy);
    changes.extend(draft.finish());
    Ok(changes)
}

fn learn_uuid(draft: &mut Draft<'_>, uuid: Option<Uuid>) {
    let Some(seen) = uuid else { return };
    match draft.node.uuid {
        None => draft.node.uuid = Some(seen),
        Some(known) if known != seen => {
            draft.node.unexpected_total = draft.node.unexpected_total.saturating_add(1);
            draft.note(
                "unexpected",
                &format!("SMBIOS UUID {seen} was seen, {known} is expected: another machine, or a changed board"),
            );
        }
        Some(_) => {}
    }
}

fn by_mac(
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

fn script_asked(
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
            draft.node.attempt = attempt;
            draft.node.tries += 1;
            let text =
                format!("the machine restarted by itself; attempt {} of {} begins", draft.node.tries, policy.attempts);
            draft.node.reason = Some("the machine restarted by itself".to_owned());
            draft.advance(Cause::Restarted, "restarted", &text);
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

fn registered(
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

fn proved(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
    digest: &Digest,
    disk: &str,
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::of(snapshot, now, name, attempt)?;
    let Some(deployment) = snapshot.deployment_of(&draft.node) else {
        return Err(Refused::Conflict(format!("nothing was deployed to `{name}`")));
    };
    if *digest != deployment.digest {
        return Err(Refused::Conflict(format!("`{name}` reports image {digest}, {} was deployed", deployment.digest)));
    }
    if draft.node.target.as_deref() != Some(disk) {
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
        draft.settled = Some(Outcome::Running { milliseconds: now.since(deployment.created_at) });
    }
    Ok(draft.finish())
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
