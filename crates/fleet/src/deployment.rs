//! A deployment: one image on its way to some nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{DeploymentId, Digest, ImageName, Millis, NodeName, RackName};
use crate::layout::Layout;
use crate::rollout::{FAILED_LEADERS, Order, Outlook, Pause, PausedBy, Place, Rollout, Tally, Wave, WaveKind};

/// An image that can be deployed, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: ImageName,
    /// SHA-256 of its raw content.
    pub digest: Digest,
    /// Size in bytes of the disk that it describes.
    pub size_bytes: u64,
    /// Bytes of it that are not in all-zero pieces.
    pub used_bytes: u64,
    /// Bytes per piece.
    pub piece_size: u32,
    /// SHA-1 infohash of its torrent (BEP 3), hexadecimal.
    pub infohash: String,
    /// When it was sealed.
    pub sealed_at: Millis,
    /// How the nodes divide their disks, where the image is a tree of files and no disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
}

/// Whether a deployment goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// Some node has no outcome yet.
    Active,
    /// Every node has an outcome.
    Done,
    /// An operator ended it.
    Cancelled,
}

/// What became of one node in a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Not decided yet.
    Pending,
    /// Proved and running.
    Running {
        /// Milliseconds from the start of its first attempt to the proof.
        milliseconds: u64,
    },
    /// All attempts failed.
    Failed {
        /// Why; a sentence.
        reason: String,
    },
    /// Cancelled, released or taken by a later deployment before an outcome.
    LetGo,
}

/// Something that happened to a deployment as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Line {
    /// When, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub at: Millis,
    /// What happened, in one word; stable.
    pub kind: String,
    /// What happened, as a sentence.
    pub text: String,
}

/// Lines that are kept of one deployment; the oldest go first.
const LINES: usize = 500;

/// One image on its way to some nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its number.
    pub id: DeploymentId,
    /// The image's name.
    pub image: ImageName,
    /// The image's digest at the time; a later image of that name is another.
    pub digest: Digest,
    /// The image's size in bytes.
    pub size_bytes: u64,
    /// When it was asked for.
    pub created_at: Millis,
    /// Its nodes and what became of them.
    pub outcomes: BTreeMap<NodeName, Outcome>,
    /// How it goes on.
    #[serde(default)]
    pub rollout: Rollout,
    /// Its nodes in the order in which they start. Empty only for those of earlier versions, whose nodes have started.
    #[serde(default)]
    pub waves: Vec<Wave>,
    /// How far it is as a whole.
    #[serde(flatten)]
    pub course: Course,
}

/// How far a deployment is as a whole: what changes beside its nodes' outcomes, and is small.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// Whether it goes on.
    pub state: DeploymentState,
    /// When its last node got its outcome, or when it was cancelled.
    #[serde(default)]
    pub finished_at: Option<Millis>,
    /// How many waves have begun.
    #[serde(default)]
    pub begun: usize,
    /// Why nothing new starts.
    #[serde(default)]
    pub paused: Option<Pause>,
    /// Why nothing new starts in a rack.
    #[serde(default)]
    pub paused_racks: BTreeMap<RackName, Pause>,
    /// Nodes without a proof that an operator has passed over by going on. They count for no budget any more.
    #[serde(default)]
    pub forgiven: BTreeSet<NodeName>,
    /// What happened to it as a whole.
    #[serde(default)]
    pub log: Vec<Line>,
}

impl Deployment {
    /// A deployment to the nodes of these waves, of which none has started.
    #[must_use]
    pub fn new(id: DeploymentId, image: &ImageInfo, rollout: Rollout, waves: Vec<Wave>, now: Millis) -> Self {
        let nodes = waves.iter().flat_map(Wave::nodes).map(|(_, name)| name.clone());
        let outcomes: BTreeMap<NodeName, Outcome> = nodes.map(|name| (name, Outcome::Pending)).collect();
        let mut course = Course {
            state: DeploymentState::Active,
            finished_at: None,
            begun: 0,
            paused: None,
            paused_racks: BTreeMap::new(),
            forgiven: BTreeSet::new(),
            log: Vec::new(),
        };
        let text = format!("image {} ({}) for {} nodes", image.name, image.digest, outcomes.len());
        course.tell(now, "asked", &text);
        Self {
            id,
            image: image.name.clone(),
            digest: image.digest,
            size_bytes: image.size_bytes,
            created_at: now,
            outcomes,
            rollout,
            waves,
            course,
        }
    }

    /// How many nodes have each outcome, as a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut tally = Tally::default();
        self.outcomes.iter().for_each(|(name, outcome)| tally.add(Place::of(self, name, outcome, None)));
        tally.summary()
    }

    fn is_canary(&self, node: &NodeName) -> bool {
        let first = self.waves.first().filter(|wave| wave.kind == WaveKind::Canary);
        first.is_some_and(|wave| wave.nodes().any(|(_, name)| name == node))
    }

    /// Its nodes in this rack.
    pub fn nodes_of<'a>(&'a self, rack: &'a RackName) -> impl Iterator<Item = &'a NodeName> {
        let all = self.waves.iter().flat_map(Wave::nodes);
        all.filter(move |(stands_in, _)| *stands_in == Some(rack)).map(|(_, name)| name)
    }
}

impl Course {
    /// What the outcome of a node, which the outlook has already, means for the others; and the end of the deployment if it
    /// was the last.
    pub fn settle(
        &mut self,
        deployment: &Deployment,
        outlook: &Outlook<'_>,
        node: &NodeName,
        outcome: &Outcome,
        now: Millis,
    ) {
        if self.state != DeploymentState::Active || outlook.place(node).is_none() {
            return;
        }
        let Tally { nodes, counting, .. } = outlook.all();
        if outlook.all().open() == 0 {
            self.state = DeploymentState::Done;
            self.finished_at = Some(now);
            self.tell(now, "done", &outlook.all().summary());
            return;
        }
        match outcome {
            Outcome::Pending => {}
            Outcome::Running { .. } => self.tell_of_canaries(deployment, outlook, node, now),
            Outcome::Failed { reason } => {
                self.judge_canary(deployment, node, &format!("it failed: {reason}"), now);
                let last = format!("the last was {node}: {reason}");
                self.judge_rack(deployment, outlook, node, &last, now);
                if let Some(budget) = deployment.rollout.failure_budget.filter(|budget| counting >= budget.of(nodes)) {
                    let reason = format!(
                        "{counting} of {nodes} nodes failed, which uses up the failure budget ({budget}); {last}"
                    );
                    self.pause(None, PausedBy::Failures, &reason, now);
                }
            }
            Outcome::LetGo => self.judge_canary(deployment, node, "it was let go", now),
        }
    }

    fn judge_rack(&mut self, deployment: &Deployment, outlook: &Outlook<'_>, node: &NodeName, last: &str, now: Millis) {
        let Some((rack, Tally { nodes, running, counting: failed, .. })) = outlook.rack_of(node) else { return };
        let Rollout { failure_budget_per_rack, order, .. } = &deployment.rollout;
        let reason = match failure_budget_per_rack {
            Some(budget) if failed >= budget.of(nodes) => {
                format!(
                    "{failed} of {nodes} nodes of rack {rack} failed, which uses up its failure budget ({budget}); {last}"
                )
            }
            _ if *order == Order::Leaders && running == 0 && failed >= FAILED_LEADERS => {
                format!("{failed} leaders of rack {rack} failed and none is proved; {last}")
            }
            _ => return,
        };
        self.pause(Some(rack.clone()), PausedBy::Failures, &reason, now);
    }

    /// A canary that is not proved holds up everybody else.
    fn judge_canary(&mut self, deployment: &Deployment, node: &NodeName, why: &str, now: Millis) {
        if deployment.is_canary(node) && deployment.waves.len() > 1 {
            self.pause(None, PausedBy::Failures, &format!("canary {node} is not proved, {why}"), now);
        }
    }

    fn tell_of_canaries(&mut self, deployment: &Deployment, outlook: &Outlook<'_>, node: &NodeName, now: Millis) {
        let proved = |name: &NodeName| outlook.place(name) == Some(Place::Running);
        let first = deployment.waves.first().filter(|_| deployment.is_canary(node));
        if first.is_some_and(|wave| wave.nodes().all(|(_, name)| proved(name))) {
            self.tell(now, "canaries_proved", "all canaries are proved");
        }
    }

    /// Lets nothing new start, in one rack or at all. The first reason stays.
    pub fn pause(&mut self, rack: Option<RackName>, by: PausedBy, reason: &str, now: Millis) {
        let pause = Pause { at: now, by, reason: reason.to_owned() };
        match rack {
            None if self.paused.is_none() => {
                self.paused = Some(pause);
                self.tell(now, "paused", &format!("paused: {reason}"));
            }
            Some(rack) if !self.paused_racks.contains_key(&rack) => {
                self.tell(now, "rack_paused", &format!("rack {rack} is paused: {reason}"));
                self.paused_racks.insert(rack, pause);
            }
            _ => {}
        }
    }

    /// Adds a line to what happened to it.
    pub fn tell(&mut self, at: Millis, kind: &str, text: &str) {
        self.log.push(Line { at, kind: kind.to_owned(), text: text.to_owned() });
        if self.log.len() > LINES {
            self.log.remove(0);
        }
    }
}
