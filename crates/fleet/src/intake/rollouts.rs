//! Deployments, as operators ask for them, pause, resume, retry and cancel them, and as they proceed.

use std::collections::BTreeMap;

use crate::change::{Change, Snapshot};
use crate::deployment::{Course, Deployment, DeploymentState, Outcome};
use crate::discovery::Inventory;
use crate::ids::{DeploymentId, ImageName, Millis, NodeName, RackName};
use crate::intake::draft::Draft;
use crate::intake::{Refused, find};
use crate::life::Cause;
use crate::node::Node;
use crate::plan::Policy;
use crate::rollout::{
    Admission, Outlook, PausedBy, Place, Rollout, Standing, Window, admit, check_windows, fitness, waits_in, waves,
};
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
        check_hardware(snapshot, name, rollout)?;
    }
    let admission = admit(snapshot, policy, &deployment, now);
    // A rollout whose window is closed starts nobody, and is there nevertheless.
    let mut changes = vec![Change::PutDeployment(deployment.clone())];
    let standing = Standing::of(&deployment, &snapshot.nodes);
    changes.extend(apply(snapshot, now, &deployment, &standing, &admission));
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

/// Refuses a node whose hardware failed a check, unless the deployment passes over that.
///
/// # Errors
/// [`Refused`] with what was found and what to do.
pub fn check_hardware(snapshot: &Snapshot, name: &NodeName, rollout: &Rollout) -> Result<(), Refused> {
    let node = find(snapshot, name)?;
    match failed_checks(node) {
        Some(found) if !rollout.despite_checks => Err(Refused::Conflict(found)),
        _ => Ok(()),
    }
}

/// What a machine's hardware failed in, and what to do, as a sentence.
#[must_use]
pub fn failed_checks(node: &Node) -> Option<String> {
    let failed = node.inventory.iter().flat_map(Inventory::failed_checks);
    let failed: Vec<String> = failed.map(|check| format!("{} ({})", check.name, check.text)).collect();
    (!failed.is_empty()).then(|| {
        format!(
            "the hardware of node `{0}` failed a check: {1}; mend it and say so with `rackswarm node approve {0}`, or \
             pass over it with --despite-checks",
            node.name,
            failed.join("; ")
        )
    })
}

pub(super) fn proceed(
    snapshot: &Snapshot,
    policy: &Policy,
    now: Millis,
    id: DeploymentId,
) -> Result<Vec<Change>, Refused> {
    let deployment = find_deployment(snapshot, id)?;
    let Some(standing) = snapshot.standings.get(&id) else { return Ok(Vec::new()) };
    Ok(apply(snapshot, now, deployment, standing, &admit(snapshot, policy, deployment, now)))
}

/// Does what was admitted.
fn apply(
    snapshot: &Snapshot,
    now: Millis,
    deployment: &Deployment,
    standing: &Standing,
    admission: &Admission,
) -> Vec<Change> {
    let id = deployment.id;
    let mut course = deployment.course.clone();
    if admission.windows_over {
        let reason = format!(
            "its last maintenance window is over and some nodes have not started; \
             `rackswarm deploy resume {id} --window` gives it another"
        );
        course.pause(None, PausedBy::Windows, &reason, now);
    }
    let mut changes = Vec::new();
    let mut outlook = Outlook::new(standing);
    for (name, reason) in &admission.unfit {
        let outcome = Outcome::Failed { reason: reason.clone() };
        outlook.put(name, Place::of(deployment, name, &outcome, None));
        course.settle(deployment, &outlook, name, &outcome, now);
        changes.push(Change::PutOutcome(id, name.clone(), outcome));
    }
    // What failed may have used up a budget, so the others are asked about again.
    let starts = if admission.unfit.is_empty() { &admission.start[..] } else { &[] };
    let mut drafts = Vec::new();
    for name in starts {
        tell_of_wave(&mut course, deployment, standing.wave_of(name), now);
        if let Some(node) = snapshot.nodes.get(name) {
            drafts.push(start(snapshot, now, deployment, standing.rack_of(name), node));
        }
    }
    if course != deployment.course {
        changes.push(Change::PutCourse(id, Box::new(course)));
    }
    changes.extend(drafts.into_iter().flat_map(Draft::finish));
    changes
}

fn start<'a>(
    snapshot: &'a Snapshot,
    now: Millis,
    deployment: &Deployment,
    rack: Option<&RackName>,
    node: &Node,
) -> Draft<'a> {
    let Deployment { id, image, digest, .. } = deployment;
    let mut draft = Draft::new(snapshot, now, node.clone());
    draft.begin();
    draft.node.deployment = Some(*id);
    draft.node.not_before = Some(now);
    draft.node.run = Some(Run::begin(node.run.clone(), *id, &node.name, rack.cloned(), draft.node.attempt, now));
    draft.advance(Cause::Assigned, "assigned", &format!("image {image} ({digest}) assigned by {id}"));
    draft
}

/// The first node of a wave is worth a line.
fn tell_of_wave(course: &mut Course, deployment: &Deployment, wave: Option<usize>, now: Millis) {
    let Some(index) = wave.filter(|index| *index >= course.begun) else { return };
    let wave = &deployment.waves[index];
    let count = wave.nodes().count();
    let racks = wave.groups.len();
    let text = format!(
        "wave {} begins: {count} node{} in {racks} rack{}",
        wave.kind.as_str(),
        if count == 1 { "" } else { "s" },
        if racks == 1 { "" } else { "s" }
    );
    course.begun = index + 1;
    course.tell(now, "wave_begun", &text);
}

pub(super) fn pause(
    snapshot: &Snapshot,
    now: Millis,
    id: DeploymentId,
    rack: Option<&RackName>,
) -> Result<Vec<Change>, Refused> {
    let deployment = active(snapshot, id)?;
    if let Some(rack) = rack {
        check_rack(deployment, rack)?;
    }
    let mut course = deployment.course.clone();
    let is_paused = match rack {
        Some(rack) => course.paused_racks.contains_key(rack),
        None => course.paused.is_some(),
    };
    if is_paused {
        let what = rack.map_or_else(|| id.to_string(), |rack| format!("rack {rack} of {id}"));
        return Err(Refused::Conflict(format!("{what} is paused already")));
    }
    course.pause(rack.cloned(), PausedBy::Operator, "an operator asked for it", now);
    Ok(vec![Change::PutCourse(id, Box::new(course))])
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
    let mut course = deployment.course.clone();
    let passed_over: Vec<NodeName> = match rack {
        Some(rack) => {
            check_rack(&deployment, rack)?;
            if course.paused_racks.remove(rack).is_none() {
                return Err(Refused::Conflict(format!("rack {rack} of {id} is not paused")));
            }
            course.tell(now, "rack_resumed", &format!("rack {rack} goes on; an operator asked for it"));
            deployment.nodes_of(rack).cloned().collect()
        }
        None => {
            let was_paused = course.paused.take().is_some() || !course.paused_racks.is_empty();
            if !was_paused && windows.is_none() {
                return Err(Refused::Conflict(format!("{id} is not paused")));
            }
            course.paused_racks.clear();
            course.tell(now, "resumed", "it goes on; an operator asked for it");
            deployment.outcomes.keys().cloned().collect()
        }
    };
    let lost = |name: &NodeName| matches!(deployment.outcomes.get(name), Some(Outcome::Failed { .. } | Outcome::LetGo));
    course.forgiven.extend(passed_over.into_iter().filter(lost));
    deployment.course = course;
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
    if deployment.course.state == DeploymentState::Cancelled {
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
        deployment.course.forgiven.remove(name);
    }
    let course = &mut deployment.course;
    course.state = DeploymentState::Active;
    course.finished_at = None;
    // What paused it is being tried again; an operator's own pause stays.
    course.paused.take_if(|pause| pause.by == PausedBy::Failures);
    course.paused_racks.retain(|_, pause| pause.by != PausedBy::Failures);
    course.tell(now, "retried", &format!("{} failed nodes are tried again; an operator asked for it", chosen.len()));
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
    let text = format!("cancelled by an operator; {}", ended.summary());
    ended.course.state = DeploymentState::Cancelled;
    ended.course.finished_at = Some(now);
    ended.course.tell(now, "cancelled", &text);
    changes.insert(0, Change::PutDeployment(ended));
    Ok(changes)
}

fn find_deployment(snapshot: &Snapshot, id: DeploymentId) -> Result<&Deployment, Refused> {
    snapshot.deployments.get(&id).ok_or_else(|| Refused::NotFound { what: "deployment", name: id.to_string() })
}

fn active(snapshot: &Snapshot, id: DeploymentId) -> Result<&Deployment, Refused> {
    let deployment = find_deployment(snapshot, id)?;
    if deployment.course.state != DeploymentState::Active {
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
