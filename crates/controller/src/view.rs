//! The state as operators see it.

mod deployment;

use std::collections::BTreeMap;

use api::operator::{DeployedView, NodeView, RackView, SetView, TimelineLine};
use fleet::change::Note;
use fleet::discovery::Inventory;
use fleet::life::Stage;
use fleet::node::{Node, Rack};
use fleet::plan::{Policy, deadline};
use fleet::set::MachineSet;

use crate::state::State;
use crate::switchboard;
pub use deployment::deployment;

/// A node with all that is known of it.
#[must_use]
pub fn node(state: &State, policy: &Policy, node: &Node) -> NodeView {
    let live = state.snapshot().live.get(&node.name);
    let waits_for = match node.stage {
        Stage::Enrolled if !node.approved => "an operator to approve it",
        Stage::PoweringOn if live.is_none_or(|live| live.switching.is_none()) => "its turn at its power controller",
        stage => stage.waits_for(),
    };
    NodeView {
        name: node.name.clone(),
        rack: node.rack.clone(),
        macs: node.macs.clone(),
        uuid: node.uuid,
        approved: node.approved,
        power: node.power.clone(),
        power_state: live.and_then(|live| live.power).map(|(power, _)| power),
        power_read_at: live.and_then(|live| live.power).map(|(_, at)| at),
        inventory: told_inventory(node).cloned(),
        member: node.member.clone(),
        memory_gib: node.memory_gib,
        address: state.address_of(node),
        disk: node.disk.clone(),
        post: node.post.clone(),
        firmware: node.firmware,
        stage: node.stage,
        stage_since: node.stage_since,
        waits_for: waits_for.to_owned(),
        deadline: deadline(state.snapshot(), policy, &switchboard::driver, node),
        attempt: node.attempt.0,
        tries: node.tries,
        reason: node.reason.clone(),
        deployment: node.deployment,
        deployed: node.deployed.as_ref().map(|deployed| DeployedView {
            image: deployed.image.clone(),
            digest: deployed.digest,
            disk: deployed.disk.clone(),
            attempt: deployed.attempt.0,
            proved_at: deployed.proved_at,
        }),
        progress: live.and_then(|live| live.progress),
        beat: live.and_then(|live| live.beat.clone()),
        heard: live.and_then(|live| live.heard),
        unexpected_total: node.unexpected_total,
    }
}

/// Of all nodes it would be a long list; one that waits is judged by it.
fn told_inventory(node: &Node) -> Option<&Inventory> {
    node.inventory.as_ref().filter(|told| !node.approved || told.failed_checks().next().is_some())
}

/// A line of a timeline.
#[must_use]
pub fn line(note: &Note) -> TimelineLine {
    TimelineLine {
        node: note.node.clone(),
        at: note.at,
        attempt: note.attempt.0,
        stage: note.stage,
        kind: note.kind.clone(),
        text: note.text.clone(),
    }
}

/// A rack, with how many of its nodes are in each stage.
#[must_use]
pub fn rack(state: &State, rack: &Rack) -> RackView {
    RackView { name: rack.name.clone(), post: rack.post.clone(), stages: stages(state.snapshot().in_rack(&rack.name)) }
}

/// A set, with how many nodes belong to it.
#[must_use]
pub fn set(state: &State, set: &MachineSet) -> SetView {
    let nodes = state.snapshot().nodes.values();
    let members = || nodes.clone().filter_map(|node| node.member.as_ref()).filter(|member| member.set == set.name);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    SetView {
        name: set.name.clone(),
        address: set.address.clone(),
        rack: set.rack.clone(),
        configured: set.configured,
        nodes: count(members().count()),
        missing: count(members().filter(|member| member.missing_since.is_some()).count()),
        synced_at: set.synced.as_ref().map(|synced| synced.at),
        synced: set.synced.as_ref().map(|synced| synced.text.clone()),
        listed: None,
    }
}

/// How many of these nodes are in each stage; stages without nodes are left out.
#[must_use]
pub fn stages<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<String, u32> {
    let mut stages = BTreeMap::new();
    for node in nodes {
        *stages.entry(node.stage.as_str().to_owned()).or_default() += 1;
    }
    stages
}
