//! Nodes, racks, sets and images, as operators add, change and remove them.

use crate::change::{Change, Snapshot};
use crate::deployment::Outcome;
use crate::event::NodeEdit;
use crate::ids::{DeploymentId, ImageName, Millis, NodeName, RackName, SetName};
use crate::intake::draft::{Draft, settle};
use crate::intake::{Refused, find};
use crate::node::Node;
use crate::rollout::waits_in;
use crate::set::MachineSet;

pub(super) fn add_node(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    edit: &NodeEdit,
) -> Result<Vec<Change>, Refused> {
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
            let mut same = snapshot.with_uuid(uuid);
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

pub(super) fn edit_node(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    edit: &NodeEdit,
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::any_attempt(snapshot, now, name)?;
    change_node(snapshot, &mut draft.node, edit)?;
    draft.note("changed", "settings changed by an operator");
    // A stranger that showed itself through one of these MACs is this node.
    let strangers = draft.node.macs.iter().filter_map(|m| snapshot.node_of(*m)).filter(|o| o.name != *name);
    let mut changes: Vec<Change> = strangers.map(|o| Change::DropNode(o.name.clone())).collect();
    changes.extend(draft.finish());
    Ok(changes)
}

pub(super) fn change_node(snapshot: &Snapshot, node: &mut Node, edit: &NodeEdit) -> Result<(), Refused> {
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
    if let Some(gib) = edit.memory_gib {
        node.memory_gib = (gib > 0).then_some(gib);
    }
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

pub(super) fn approve(snapshot: &Snapshot, now: Millis, name: &NodeName) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::any_attempt(snapshot, now, name)?;
    if !draft.node.approved {
        draft.node.approved = true;
        draft.node.boot_token = None;
        draft.note("approved", "approved by an operator");
    } else if let Some(inventory) = &mut draft.node.inventory
        && inventory.failed_checks().next().is_some()
    {
        // Somebody has mended it, which the next agent is to find out.
        inventory.findings.checks.clear();
        draft.note("checks_forgotten", "its failed checks are forgotten and made again before it is written");
    }
    Ok(draft.finish())
}

pub(super) fn release(snapshot: &Snapshot, now: Millis, name: &NodeName) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::any_attempt(snapshot, now, name)?;
    draft.let_go("released", "released by an operator; its disk is left as it is");
    let mut changes = Vec::new();
    if let Some(waits_in) = waits_in(snapshot, name) {
        draft.note("taken_out", &format!("taken out of {}, in which it waited for its turn", waits_in.id));
        changes.extend(settle(snapshot, waits_in, name, Outcome::LetGo, now));
    }
    changes.extend(draft.finish());
    Ok(changes)
}

pub(super) fn remove_node(snapshot: &Snapshot, name: &NodeName) -> Result<Vec<Change>, Refused> {
    let node = find(snapshot, name)?;
    if node.stage.is_under_way() {
        return Err(Refused::Conflict(format!(
            "node `{name}` is being deployed; `rackswarm node release {name}` first"
        )));
    }
    if let Some(deployment) = waits_in(snapshot, name) {
        return Err(Refused::Conflict(format!(
            "node `{name}` waits for its turn in {}; `rackswarm node release {name}` first",
            deployment.id
        )));
    }
    Ok(vec![Change::DropNode(name.clone())])
}

pub(super) fn remove_rack(snapshot: &Snapshot, name: &RackName) -> Result<Vec<Change>, Refused> {
    if !snapshot.racks.contains_key(name) {
        return Err(Refused::NotFound { what: "rack", name: name.to_string() });
    }
    let inside = snapshot.in_rack(name).count();
    if inside > 0 {
        return Err(Refused::Conflict(format!("rack `{name}` holds {inside} nodes; move or remove them first")));
    }
    Ok(vec![Change::DropRack(name.clone())])
}

pub(super) fn remove_image(snapshot: &Snapshot, name: &ImageName) -> Result<Vec<Change>, Refused> {
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
    let wanted = |id: &&DeploymentId| snapshot.deployments.get(id).is_some_and(|d| &d.image == name);
    snapshot.standings.keys().find(wanted).copied()
}

pub(super) fn find_set<'a>(snapshot: &'a Snapshot, name: &SetName) -> Result<&'a MachineSet, Refused> {
    snapshot.sets.get(name).ok_or_else(|| Refused::NotFound { what: "set", name: name.to_string() })
}

pub(super) fn put_set(snapshot: &Snapshot, set: &MachineSet) -> Result<Vec<Change>, Refused> {
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

pub(super) fn remove_set(snapshot: &Snapshot, name: &SetName, configured: bool) -> Result<Vec<Change>, Refused> {
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
