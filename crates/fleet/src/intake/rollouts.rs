//! Deployments, as operators ask for them, pause, resume, retry and cancel them, and as they proceed.

use std::collections::BTreeMap;

use crate::change::{Change, Snapshot};
use crate::deployment::{Deployment, DeploymentState, Outcome};
use crate::ids::{DeploymentId, ImageName, Millis, NodeName, RackName};
use crate::intake::draft::Draft;
use crate::intake::{Refused, find};
use crate::life::Cause;
use crate::node::{Live, Node};
use crate::plan::Policy;
use crate::rollout::{Admission, PausedBy, Rollout, Window, admit, check_windows, fitness, waits_in, waves};
use crate::run::Run;

pub(super) fn deploy(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    image: &ImageName,
    nodes: &[NodeName],
    rollout: &Rollout,
) -> Result<Vec<Change>, Refused> {
    let deployment = draw_up(snapshot, now, image, nodes, rollout)?;
    for name in nodes {
        check_free(snapshot, name)?;
    }
    let admission = admit(snapshot, policy, &deployment, now);
    // A rollout whose window is closed starts nobody, and is there nevertheless.
    let mut changes = vec![Change::PutDeployment(deployment.clone())];
    changes.extend(apply(snapshot, now, deployment, &admission));
    Ok(changes)
}

/// A deployment as it would be, of which no node has started.
///
/// # Errors
/// [`Refused`] where image, nodes or settings will not do; whether each node is free is another question ([`check_free`]).
pub fn draw_up(
    snapshot: &Snapshot,
    now: Millis,
    image: &ImageName,
    nodes: &[NodeName],
    rollout: &Rollout,
) -> Result<Deployment, Refused> {
    let info =
        snapshot.images.get(image).ok_or_else(|| Refused::NotFound { what: "image", name: image.to_string() })?;
    if nodes.is_empty() {
        return Err(Refused::Invalid("no nodes were named; use --nodes or --rack".to_owned()));
    }
    rollout.check(now).map_err(Refused::Invalid)?;
    let mut racks: BTreeMap<NodeName, Option<RackName>> = BTreeMap::new();
    for name in nodes {
        racks.insert(name.clone(), find(snapshot, name)?.rack.clone());
    }
    let waves = waves(rollout, &racks).map_err(Refused::Invalid)?;
    Ok(Deployment::new(snapshot.next_deployment(), info, rollout.clone(), waves, now))
}

/// Refuses a node that cannot be deployed, or that another deployment has.
///
/// # Errors
/// [`Refused`] with what to do.
pub fn check_free(snapshot: &Snapshot, name: &NodeName) -> Result<(), Refused> {
    let node = find(snapshot, name)?;
    if node.stage.is_under_way() {
        return Err(Refused::Conflict(format!(
            "node `{name}` is being deployed ({}); cancel that deployment or release the node first",
            node.stage
        )));
    }
    if let Some(other) = waits_in(snapshot, name) {
        return Err(Refused::Conflict(format!(
            "node `{name}` waits for its turn in {}; cancel that deployment or release the node first",
            other.id
        )));
    }
    fitness(node).map_err(Refused::Conflict)
}

pub(super) fn proceed(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    id: DeploymentId,
) -> Result<Vec<Change>, Refused> {
    let deployment = find_deployment(snapshot, id)?.clone();
    let admission = admit(snapshot, policy, &deployment, now);
    Ok(apply(snapshot, now, deployment, &admission))
}

/// Does what was admitted.
fn apply(snapshot: &Snapshot, now: Millis, mut deployment: Deployment, admission: &Admission) -> Vec<Change> {
    let before = deployment.clone();
    if admission.windows_over {
        let reason = format!(
            "its last maintenance window is over and some nodes have not started; \
             `rackswarm deploy resume {} --window` gives it another",
            deployment.id
        );
        deployment.pause(None, PausedBy::Windows, &reason, now);
    }
    for (name, reason) in &admission.unfit {
        deployment.settle(name, Outcome::Failed { reason: reason.clone() }, now);
    }
    // What failed may have used up a budget, so the others are asked about again.
    let starts = if admission.unfit.is_empty() { &admission.start[..] } else { &[] };
    let mut drafts = Vec::new();
    for name in starts {
        tell_of_wave(&mut deployment, name, now);
        if let Some(node) = snapshot.nodes.get(name) {
            drafts.push(start(snapshot, now, &deployment, node));
        }
    }
    let mut changes = Vec::new();
    if deployment != before {
        changes.push(Change::PutDeployment(deployment));
    }
    changes.extend(drafts.into_iter().flat_map(Draft::finish));
    changes
}

fn start<'a>(snapshot: &'a Snapshot, now: Millis, deployment: &Deployment, node: &Node) -> Draft<'a> {
    let Deployment { id, image, digest, .. } = deployment;
    let mut draft = Draft::new(snapshot, now, node.clone());
    draft.node.attempt = node.attempt.next();
    draft.node.tries = 1;
    draft.node.deployment = Some(*id);
    draft.node.reason = None;
    draft.node.not_before = Some(now);
    draft.node.boot_token = None;
    draft.node.pending_token = None;
    draft.node.target = None;
    let rack = deployment.rack_of(&node.name).cloned();
    draft.node.run = Some(Run::begin(node.run.clone(), *id, &node.name, rack, draft.node.attempt, now));
    draft.live = Live { beat: draft.live.beat.clone(), power: draft.live.power, ..Live::default() };
    draft.advance(Cause::Assigned, "assigned", &format!("image {image} ({digest}) assigned by {id}"));
    draft
}

/// The first node of a wave is worth a line.
fn tell_of_wave(deployment: &mut Deployment, name: &NodeName, now: Millis) {
    let Some(index) = deployment.waves.iter().position(|wave| wave.nodes().any(|(_, node)| node == name)) else {
        return;
    };
    if index < deployment.begun {
        return;
    }
    let wave = &deployment.waves[index];
    let count = wave.nodes().count();
    let racks = wave.groups.len();
    let text = format!(
        "wave {} begins: {count} node{} in {racks} rack{}",
        wave.kind.as_str(),
        if count == 1 { "" } else { "s" },
        if racks == 1 { "" } else { "s" }
    );
    deployment.begun = index + 1;
    deployment.tell(now, "wave_begun", &text);
}

pub(super) fn pause(
    snapshot: &Snapshot,
    now: Millis,
    id: DeploymentId,
    rack: Option<&RackName>,
) -> Result<Vec<Change>, Refused> {
    let mut deployment = active(snapshot, id)?.clone();
    if let Some(rack) = rack {
        check_rack(&deployment, rack)?;
    }
    let is_paused = match rack {
        Some(rack) => deployment.paused_racks.contains_key(rack),
        None => deployment.paused.is_some(),
    };
    if is_paused {
        let what = rack.map_or_else(|| id.to_string(), |rack| format!("rack {rack} of {id}"));
        return Err(Refused::Conflict(format!("{what} is paused already")));
    }
    deployment.pause(rack.cloned(), PausedBy::Operator, "an operator asked for it", now);
    Ok(vec![Change::PutDeployment(deployment)])
}

pub(super) fn resume(
    snapshot: &Snapshot,
    now: Millis,
    id: DeploymentId,
    rack: Option<&RackName>,
    windows: Option<&[Window]>,
) -> Result<Vec<Change>, Refused> {
    let mut deployment = active(snapshot, id)?.clone();
    if let Some(windows) = windows {
        check_windows(windows, now).map_err(Refused::Invalid)?;
        deployment.rollout.windows = windows.to_vec();
    }
    let passed_over: Vec<NodeName> = match rack {
        Some(rack) => {
            check_rack(&deployment, rack)?;
            if deployment.paused_racks.remove(rack).is_none() {
                return Err(Refused::Conflict(format!("rack {rack} of {id} is not paused")));
            }
            deployment.tell(now, "rack_resumed", &format!("rack {rack} goes on; an operator asked for it"));
            deployment.nodes_of(rack).cloned().collect()
        }
        None => {
            let was_paused = deployment.paused.take().is_some() || !deployment.paused_racks.is_empty();
            if !was_paused && windows.is_none() {
                return Err(Refused::Conflict(format!("{id} is not paused")));
            }
            deployment.paused_racks.clear();
            deployment.tell(now, "resumed", "it goes on; an operator asked for it");
            deployment.outcomes.keys().cloned().collect()
        }
    };
    let lost = |name: &NodeName| matches!(deployment.outcomes.get(name), Some(Outcome::Failed { .. } | Outcome::LetGo));
    let forgiven: Vec<NodeName> = passed_over.into_iter().filter(lost).collect();
    deployment.forgiven.extend(forgiven);
    Ok(vec![Change::PutDeployment(deployment)])
}

/// Failed nodes wait for another turn; all of them where none are named.
pub(super) fn retry(
    snapshot: &Snapshot,
    now: Millis,
    id: DeploymentId,
    nodes: &[NodeName],
) -> Result<Vec<Change>, Refused> {
    let mut deployment = find_deployment(snapshot, id)?.clone();
    if deployment.state == DeploymentState::Cancelled {
        return Err(Refused::Conflict(format!("{id} was cancelled; deploy to these nodes anew")));
    }
    let image = snapshot.images.get(&deployment.image).filter(|image| image.digest == deployment.digest);
    if image.is_none() {
        return Err(Refused::Conflict(format!(
            "image `{}` ({}) is not in the registry any more; deploy another one to these nodes",
            deployment.image, deployment.digest
        )));
    }
    let failed = |name: &NodeName| matches!(deployment.outcomes.get(name), Some(Outcome::Failed { .. }));
    let chosen: Vec<NodeName> = if nodes.is_empty() {
        // A node that another deployment has taken since is left to that one.
        let mut all = deployment.outcomes.keys().filter(|name| failed(name)).cloned().collect::<Vec<_>>();
        all.retain(|name| check_free(snapshot, name).is_ok());
        all
    } else {
        if let Some(other) = nodes.iter().find(|name| !failed(name)) {
            return Err(Refused::Conflict(format!("node `{other}` has not failed in {id}")));
        }
        nodes.iter().try_for_each(|name| check_free(snapshot, name))?;
        nodes.to_vec()
    };
    if chosen.is_empty() {
        return Err(Refused::Conflict(format!("{id} has no failed nodes that could be tried again")));
    }
    if deployment.waves.is_empty() {
        let rack = |name: &NodeName| snapshot.nodes.get(name).and_then(|node| node.rack.clone());
        let racks = deployment.outcomes.keys().map(|name| (name.clone(), rack(name))).collect();
        deployment.waves = waves(&deployment.rollout, &racks).map_err(Refused::Invalid)?;
    }
    for name in &chosen {
        deployment.outcomes.insert(name.clone(), Outcome::Pending);
        deployment.forgiven.remove(name);
    }
    deployment.state = DeploymentState::Active;
    deployment.finished_at = None;
    // What paused it is being tried again; an operator's own pause stays.
    deployment.paused.take_if(|pause| pause.by == PausedBy::Failures);
    deployment.paused_racks.retain(|_, pause| pause.by != PausedBy::Failures);
    deployment.tell(
        now,
        "retried",
        &format!("{} failed nodes are tried again; an operator asked for it", chosen.len()),
    );
    Ok(vec![Change::PutDeployment(deployment)])
}

pub(super) fn cancel(snapshot: &Snapshot, now: Millis, id: DeploymentId) -> Result<Vec<Change>, Refused> {
    let mut ended = active(snapshot, id)?.clone();
    let mut changes = Vec::new();
    for (name, outcome) in &mut ended.outcomes {
        if *outcome != Outcome::Pending {
            continue;
        }
        *outcome = Outcome::LetGo;
        // One that has not started stays as it is.
        let started = |node: &&Node| node.deployment == Some(id) && node.stage.is_under_way();
        if let Some(node) = snapshot.nodes.get(name).filter(started) {
            let mut draft = Draft::new(snapshot, now, node.clone());
            draft.let_go("cancelled", &format!("{id} was cancelled by an operator; the disk may be half written"));
            draft.leave_deployment_alone();
            changes.extend(draft.finish());
        }
    }
    ended.state = DeploymentState::Cancelled;
    ended.finished_at = Some(now);
    let text = format!("cancelled by an operator; {}", ended.summary());
    ended.tell(now, "cancelled", &text);
    changes.insert(0, Change::PutDeployment(ended));
    Ok(changes)
}

fn find_deployment(snapshot: &Snapshot, id: DeploymentId) -> Result<&Deployment, Refused> {
    snapshot.deployments.get(&id).ok_or_else(|| Refused::NotFound { what: "deployment", name: id.to_string() })
}

fn active(snapshot: &Snapshot, id: DeploymentId) -> Result<&Deployment, Refused> {
    let deployment = find_deployment(snapshot, id)?;
    if deployment.state != DeploymentState::Active {
        return Err(Refused::Conflict(format!("{id} has ended already")));
    }
    Ok(deployment)
}

fn check_rack(deployment: &Deployment, rack: &RackName) -> Result<(), Refused> {
    match deployment.nodes_of(rack).next() {
        Some(_) => Ok(()),
        None => Err(Refused::Conflict(format!("{} has no nodes in rack {rack}", deployment.id))),
    }
}
