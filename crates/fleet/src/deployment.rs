//! A deployment: one image on its way to some nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{DeploymentId, Digest, ImageName, Millis, NodeName, RackName};
use crate::rollout::{FAILED_LEADERS, Order, Pause, PausedBy, Rollout, Wave, WaveKind};

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
    /// When its last node got its outcome, or when it was cancelled.
    pub finished_at: Option<Millis>,
    /// Whether it goes on.
    pub state: DeploymentState,
    /// Its nodes and what became of them.
    pub outcomes: BTreeMap<NodeName, Outcome>,
    /// How it goes on.
    #[serde(default)]
    pub rollout: Rollout,
    /// Its nodes in the order in which they start. Empty only for those of earlier versions, whose nodes have started.
    #[serde(default)]
    pub waves: Vec<Wave>,
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
        let mut deployment = Self {
            id,
            image: image.name.clone(),
            digest: image.digest,
            size_bytes: image.size_bytes,
            created_at: now,
            finished_at: None,
            state: DeploymentState::Active,
            outcomes,
            rollout,
            waves,
            begun: 0,
            paused: None,
            paused_racks: BTreeMap::new(),
            forgiven: BTreeSet::new(),
            log: Vec::new(),
        };
        let text = format!("image {} ({}) for {} nodes", image.name, image.digest, deployment.outcomes.len());
        deployment.tell(now, "asked", &text);
        deployment
    }

    /// Notes what became of `node`, what follows for the others, and the end of the deployment if it was the last. A node
    /// that is not part of it changes nothing.
    pub fn settle(&mut self, node: &NodeName, outcome: Outcome, now: Millis) {
        let Some(slot) = self.outcomes.get_mut(node) else { return };
        *slot = outcome.clone();
        if self.state != DeploymentState::Active {
            return;
        }
        if self.outcomes.values().all(|o| *o != Outcome::Pending) {
            self.state = DeploymentState::Done;
            self.finished_at = Some(now);
            self.tell(now, "done", &self.summary());
            return;
        }
        match &outcome {
            Outcome::Pending => {}
            Outcome::Running { .. } => self.tell_of_canaries(node, now),
            Outcome::Failed { reason } => self.judge(node, &format!("it failed: {reason}"), now),
            Outcome::LetGo => self.judge_canary(node, "it was let go", now),
        }
    }

    /// Adds a line to what happened to it.
    pub fn tell(&mut self, at: Millis, kind: &str, text: &str) {
        self.log.push(Line { at, kind: kind.to_owned(), text: text.to_owned() });
        if self.log.len() > LINES {
            self.log.remove(0);
        }
    }

    /// The rack that a node stood in when the deployment was asked for.
    #[must_use]
    pub fn rack_of(&self, node: &NodeName) -> Option<&RackName> {
        let groups = self.waves.iter().flat_map(|wave| &wave.groups);
        groups.filter(|group| group.nodes.contains(node)).find_map(|group| group.rack.as_ref())
    }

    /// How many nodes have each outcome, as a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |wanted: fn(&Outcome) -> bool| self.outcomes.values().filter(|o| wanted(o)).count();
        format!(
            "of {} nodes {} run and have proved it, {} failed, {} were let go",
            self.outcomes.len(),
            count(|o| matches!(o, Outcome::Running { .. })),
            count(|o| matches!(o, Outcome::Failed { .. })),
            count(|o| *o == Outcome::LetGo),
        )
    }

    /// What one more failed node means for the others.
    fn judge(&mut self, node: &NodeName, why: &str, now: Millis) {
        self.judge_canary(node, why, now);
        let last = format!("the last was {node}: {}", why.trim_start_matches("it failed: "));
        if let Some(rack) = self.rack_of(node).cloned() {
            let of_rack: Vec<&NodeName> = self.nodes_of(&rack).collect();
            let failed = of_rack.iter().filter(|name| self.counts(name)).count();
            let budget = self.rollout.failure_budget_per_rack.map(|budget| (budget, budget.of(of_rack.len())));
            let nobody_runs =
                !of_rack.iter().any(|name| matches!(self.outcomes.get(*name), Some(Outcome::Running { .. })));
            let led_in_vain = self.rollout.order == Order::Leaders && nobody_runs && failed >= FAILED_LEADERS;
            let reason = match budget {
                Some((budget, limit)) if failed >= limit => Some(format!(
                    "{failed} of {} nodes of rack {rack} failed, which uses up its failure budget ({budget}); {last}",
                    of_rack.len()
                )),
                _ if led_in_vain => Some(format!("{failed} leaders of rack {rack} failed and none is proved; {last}")),
                _ => None,
            };
            if let Some(reason) = reason {
                self.pause(Some(rack), PausedBy::Failures, &reason, now);
            }
        }
        let failed = self.outcomes.keys().filter(|name| self.counts(name)).count();
        if let Some(budget) = self.rollout.failure_budget.filter(|budget| failed >= budget.of(self.outcomes.len())) {
            let all = self.outcomes.len();
            let reason = format!("{failed} of {all} nodes failed, which uses up the failure budget ({budget}); {last}");
            self.pause(None, PausedBy::Failures, &reason, now);
        }
    }

    /// A canary that is not proved holds up everybody else.
    fn judge_canary(&mut self, node: &NodeName, why: &str, now: Millis) {
        if self.is_canary(node) && self.waves.len() > 1 {
            self.pause(None, PausedBy::Failures, &format!("canary {node} is not proved, {why}"), now);
        }
    }

    fn tell_of_canaries(&mut self, node: &NodeName, now: Millis) {
        let proved = |name: &NodeName| matches!(self.outcomes.get(name), Some(Outcome::Running { .. }));
        if self.is_canary(node) && self.waves.first().is_some_and(|wave| wave.nodes().all(|(_, name)| proved(name))) {
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

    /// True for a node whose failure counts for budgets.
    fn counts(&self, name: &NodeName) -> bool {
        matches!(self.outcomes.get(name), Some(Outcome::Failed { .. })) && !self.forgiven.contains(name)
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
