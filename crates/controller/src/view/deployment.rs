//! A deployment as operators see it.

use std::collections::BTreeMap;

use api::operator::{Counts, DeploymentView, RackProgress, WaveView};
use fleet::change::Snapshot;
use fleet::deployment::{Deployment, Outcome};
use fleet::ids::{Millis, NodeName, RackName};
use fleet::plan::Policy;
use fleet::rollout::{Place, admit};

/// A deployment with how far its waves and racks are, and what it waits for.
#[must_use]
pub fn deployment(snapshot: &Snapshot, policy: &Policy, deployment: &Deployment, now: Millis) -> DeploymentView {
    let admission = admit(snapshot, policy, deployment, now);
    let count = |counts: &mut Counts, name: &NodeName| {
        counts.nodes += 1;
        let outcome = deployment.outcomes.get(name).unwrap_or(&Outcome::LetGo);
        *match Place::of(deployment, name, outcome, snapshot.nodes.get(name)) {
            Place::Waiting => &mut counts.waiting,
            Place::UnderWay => &mut counts.under_way,
            Place::Running => &mut counts.running,
            Place::Failed { .. } => &mut counts.failed,
            Place::LetGo { .. } => &mut counts.let_go,
        } += 1;
    };
    let mut waves = Vec::new();
    let mut racks: BTreeMap<Option<RackName>, Counts> = BTreeMap::new();
    for wave in &deployment.waves {
        let mut counts = Counts::default();
        for (rack, name) in wave.nodes() {
            count(&mut counts, name);
            count(racks.entry(rack.cloned()).or_default(), name);
        }
        waves.push(WaveView { kind: wave.kind, counts });
    }
    let paused_rack =
        |rack: &Option<RackName>| rack.as_ref().and_then(|rack| deployment.course.paused_racks.get(rack)).cloned();
    DeploymentView {
        id: deployment.id,
        image: deployment.image.clone(),
        digest: deployment.digest,
        created_at: deployment.created_at,
        finished_at: deployment.course.finished_at,
        state: deployment.course.state,
        outcomes: deployment.outcomes.clone(),
        rollout: deployment.rollout.clone(),
        paused: deployment.course.paused.clone(),
        waits_for: admission.waits_for,
        goes_on_at: admission.wake_at,
        waves,
        racks: racks
            .into_iter()
            .map(|(rack, counts)| RackProgress { paused: paused_rack(&rack), rack, counts })
            .collect(),
        log: deployment.course.log.clone(),
    }
}
