//! What is known of a deployment while it is watched. Pure: events in, news out.

use std::collections::BTreeMap;

use api::operator::{DeploymentView, NodeView, RackProgress, StreamEvent};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::NodeName;
use fleet::life::Stage;

use crate::output::{bytes, outcome, percent, rate};

/// A deployment and its nodes.
#[derive(Debug)]
pub(super) struct Board {
    deployment: DeploymentView,
    nodes: BTreeMap<NodeName, NodeView>,
}

/// One node's line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) node: NodeName,
    /// Bytes on the disk and in all; drawn as a bar.
    pub(super) done: (u64, u64),
    pub(super) text: String,
}

impl Board {
    /// Of all `nodes`, those of the deployment are kept.
    pub(super) fn new(deployment: DeploymentView, nodes: Vec<NodeView>) -> Self {
        let mut board = Self { deployment, nodes: BTreeMap::new() };
        for node in nodes {
            if board.is_ours(&node) {
                board.nodes.insert(node.name.clone(), node);
            }
        }
        board
    }

    pub(super) fn deployment(&self) -> &DeploymentView {
        &self.deployment
    }

    pub(super) fn has_ended(&self) -> bool {
        self.deployment.state != DeploymentState::Active
    }

    /// True where nothing is under way and nothing starts by itself: an operator must decide.
    pub(super) fn is_stuck(&self) -> bool {
        let racks = &self.deployment.racks;
        let held = |rack: &RackProgress| rack.paused.is_some() || self.deployment.paused.is_some();
        !self.has_ended()
            && racks.iter().any(|rack| rack.counts.waiting > 0)
            && racks.iter().all(|rack| rack.counts.under_way == 0 && (rack.counts.waiting == 0 || held(rack)))
    }

    /// Why it is stuck.
    pub(super) fn pauses(&self) -> Vec<String> {
        let of_racks = self.deployment.racks.iter().filter_map(|rack| rack.paused.as_ref().zip(rack.rack.as_ref()));
        let racks = of_racks.map(|(pause, rack)| format!("rack {rack} is paused: {}", pause.reason));
        let whole = self.deployment.paused.iter().map(|pause| format!("paused: {}", pause.reason));
        whole.chain(racks).collect()
    }

    /// Takes an event and says, in sentences, what is new for a reader of a log.
    pub(super) fn take(&mut self, event: StreamEvent) -> Vec<String> {
        match event {
            StreamEvent::Node(node) if self.is_ours(&node) => {
                let before = self.nodes.get(&node.name);
                let news = self.news_of_node(before, &node);
                self.nodes.insert(node.name.clone(), *node);
                news.into_iter().collect()
            }
            StreamEvent::Deployment(deployment) if deployment.id == self.deployment.id => {
                let mut news = self.news_of_outcomes(&deployment);
                news.extend(self.news_of_log(&deployment));
                self.deployment = *deployment;
                news
            }
            StreamEvent::NodeGone { name } => {
                self.nodes.remove(&name).map(|_| format!("{name}: was removed")).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// A node of this deployment that no later one has taken.
    fn is_ours(&self, node: &NodeView) -> bool {
        self.deployment.outcomes.contains_key(&node.name) && node.deployment == Some(self.deployment.id)
    }

    fn news_of_node(&self, before: Option<&NodeView>, node: &NodeView) -> Option<String> {
        if self.deployment.outcomes.get(&node.name) != Some(&Outcome::Pending) {
            return None;
        }
        let is_retry = before.is_some_and(|before| before.attempt != node.attempt && before.tries < node.tries);
        let is_same = before.is_some_and(|before| before.stage == node.stage && before.attempt == node.attempt);
        match (&node.reason, is_same) {
            (_, true) => None,
            (Some(reason), _) if is_retry => Some(format!("{}: attempt {} after: {reason}", node.name, node.tries)),
            _ => Some(format!("{}: {}", node.name, node.stage)),
        }
    }

    fn news_of_outcomes(&self, now: &DeploymentView) -> Vec<String> {
        let changed = now.outcomes.iter().filter(|(node, outcome)| {
            **outcome != Outcome::Pending && self.deployment.outcomes.get(*node) != Some(outcome)
        });
        changed
            .map(|(node, settled)| match outcome(settled) {
                (word, note, _) if note.is_empty() => format!("{node}: {word}"),
                (word, note, _) => format!("{node}: {word}, {note}"),
            })
            .collect()
    }

    fn news_of_log(&self, now: &DeploymentView) -> Vec<String> {
        // The oldest lines may be gone.
        let last = self.deployment.log.last();
        let known = last.and_then(|last| now.log.iter().rposition(|line| line == last)).map_or(0, |at| at + 1);
        now.log[known..].iter().map(|line| format!("{}: {}", now.id, line.text)).collect()
    }

    /// A line for each node, in the order of their names.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.deployment.outcomes.iter().map(|(name, outcome)| self.row(name, outcome)).collect()
    }

    fn row(&self, name: &NodeName, settled: &Outcome) -> Row {
        let node = self.nodes.get(name);
        let done = match (settled, node.and_then(|node| node.progress)) {
            (Outcome::Running { .. }, _) => (1, 1),
            (_, Some(progress)) => (progress.done_bytes, progress.total_bytes.max(1)),
            (_, None) if node.is_some_and(|node| node.stage > Stage::Fetching && node.stage < Stage::Failed) => (1, 1),
            (_, None) => (0, 1),
        };
        let text = match (settled, node) {
            (Outcome::Pending, Some(node)) => under_way(node),
            (Outcome::Pending, None) => "waits for its turn".to_owned(),
            (settled, _) => {
                let (word, note, _) = outcome(settled);
                format!("{word:<18} {note}").trim_end().to_owned()
            }
        };
        Row { node: name.clone(), done, text }
    }

    /// How many are where, and how fast the whole is.
    pub(super) fn summary(&self) -> String {
        let count = |wanted: fn(&Outcome) -> bool| self.deployment.outcomes.values().filter(|o| wanted(o)).count();
        let running = count(|o| matches!(o, Outcome::Running { .. }));
        let failed = count(|o| matches!(o, Outcome::Failed { .. }));
        let let_go = count(|o| matches!(o, Outcome::LetGo));
        let fetching = self.nodes.values().filter(|node| node.stage == Stage::Fetching);
        let speed: u64 = fetching.filter_map(|node| node.progress).map(|p| p.down_bytes_per_second).sum();
        let mut text = format!("{running} of {} running", self.deployment.outcomes.len());
        let waiting: u32 = self.deployment.racks.iter().map(|rack| rack.counts.waiting).sum();
        for (number, word) in [(waiting as usize, "waiting"), (failed, "failed"), (let_go, "let go")] {
            if number > 0 {
                text.push_str(&format!(", {number} {word}"));
            }
        }
        if speed > 0 {
            text.push_str(&format!(", {} in all", rate(speed)));
        }
        text
    }

    /// Nodes without a proof at the end, and why.
    pub(super) fn losses(&self) -> Vec<(NodeName, String)> {
        let lost = self.deployment.outcomes.iter().filter(|(_, settled)| !matches!(settled, Outcome::Running { .. }));
        lost.map(|(node, settled)| {
            let (word, note, _) = outcome(settled);
            (node.clone(), if note.is_empty() { word.to_owned() } else { note })
        })
        .collect()
    }
}

fn under_way(node: &NodeView) -> String {
    let stage = node.stage.as_str();
    let again = if node.tries > 1 { format!("  (attempt {})", node.tries) } else { String::new() };
    match (node.stage, node.progress) {
        (Stage::Fetching, Some(progress)) => format!(
            "{stage:<18} {:>3} % of {}  {}  {} peers{again}",
            percent(progress.done_bytes, progress.total_bytes),
            bytes(progress.total_bytes),
            rate(progress.down_bytes_per_second),
            progress.peers
        ),
        _ => format!("{stage:<18} waits for {}{again}", node.waits_for),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use api::operator::Counts;
    use fleet::deployment::Line;
    use fleet::ids::{Digest, Millis};
    use fleet::node::Progress;
    use fleet::rollout::{Pause, PausedBy, Rollout};

    use super::*;

    fn deployment(outcomes: &[(&str, Outcome)]) -> DeploymentView {
        DeploymentView {
            id: "d-1".parse().unwrap(),
            image: "debian".parse().unwrap(),
            digest: Digest([0; 32]),
            created_at: Millis(0),
            finished_at: None,
            state: DeploymentState::Active,
            outcomes: outcomes.iter().map(|(n, o)| (n.parse().unwrap(), o.clone())).collect(),
            rollout: Rollout::default(),
            paused: None,
            waits_for: None,
            goes_on_at: None,
            waves: Vec::new(),
            racks: Vec::new(),
            log: Vec::new(),
        }
    }

    fn node(name: &str, stage: Stage, attempt: u32, reason: Option<&str>) -> NodeView {
        let mut view: NodeView = serde_json::from_value(serde_json::json!({
            "name": name, "rack": null, "macs": [], "uuid": null, "approved": true, "power": "manual:", "address": null,
            "disk": {}, "post": {}, "firmware": null, "stage": stage, "stage_since": 0, "waits_for": stage.waits_for(),
            "deadline": null, "attempt": attempt, "tries": attempt, "reason": reason, "deployment": "d-1", "deployed": null,
            "progress": null, "beat": null, "heard": null, "unexpected_total": 0
        }))
        .unwrap();
        view.progress =
            (stage == Stage::Fetching).then(|| Progress { done_bytes: 1, total_bytes: 4, ..Progress::default() });
        view
    }

    fn event(node: NodeView) -> StreamEvent {
        StreamEvent::Node(Box::new(node))
    }

    #[test]
    fn stages_and_retries_are_told_once() {
        let mut board = Board::new(deployment(&[("n1", Outcome::Pending)]), vec![node("n1", Stage::Leasing, 1, None)]);
        assert!(board.take(event(node("n1", Stage::Leasing, 1, None))).is_empty());
        assert_eq!(board.take(event(node("n1", Stage::Fetching, 1, None))), ["n1: fetching"]);
        assert_eq!(
            board.take(event(node("n1", Stage::PoweringOn, 2, Some("the disk is gone")))),
            ["n1: attempt 2 after: the disk is gone"]
        );
        assert_eq!(board.take(event(node("n1", Stage::Leasing, 2, Some("the disk is gone")))), ["n1: leasing"]);
    }

    #[test]
    fn nodes_of_other_deployments_are_no_news() {
        let mut board = Board::new(deployment(&[("n1", Outcome::Pending)]), Vec::new());
        assert!(board.take(event(node("n2", Stage::Leasing, 1, None))).is_empty());
        let mut taken = node("n1", Stage::Leasing, 1, None);
        taken.deployment = Some("d-2".parse().unwrap());
        assert!(board.take(event(taken)).is_empty());
        assert_eq!(board.rows()[0].text, "waits for its turn");
    }

    #[test]
    fn only_proved_nodes_are_no_losses() {
        let failed = Outcome::Failed { reason: "two disks".into() };
        let mut board = Board::new(deployment(&[("n1", Outcome::Pending), ("n2", Outcome::Pending)]), Vec::new());
        let mut end = deployment(&[("n1", Outcome::Running { milliseconds: 65_000 }), ("n2", failed)]);
        end.state = DeploymentState::Done;
        let news = board.take(StreamEvent::Deployment(Box::new(end)));
        assert_eq!(news, ["n1: running, after 1 min 5 s", "n2: failed, two disks"]);
        assert!(board.has_ended());
        assert_eq!(board.losses(), [("n2".parse().unwrap(), "two disks".to_owned())]);
        assert_eq!(board.summary(), "1 of 2 running, 1 failed");
    }

    #[test]
    fn bars_follow_the_disk() {
        let board = Board::new(deployment(&[("n1", Outcome::Pending)]), vec![node("n1", Stage::Fetching, 1, None)]);
        let row = &board.rows()[0];
        assert_eq!(row.done, (1, 4));
        assert!(row.text.contains(" 25 % of 4"), "{}", row.text);
    }

    #[test]
    fn a_pause_is_told_and_with_nothing_under_way_it_is_not_waited_for() {
        let mut board = Board::new(deployment(&[("n1", Outcome::Pending), ("n2", Outcome::Pending)]), Vec::new());
        let mut now = board.deployment().clone();
        let reason = "an operator asked for it".to_owned();
        now.paused = Some(Pause { at: Millis(5), by: PausedBy::Operator, reason: reason.clone() });
        now.log = vec![Line { at: Millis(5), kind: "paused".into(), text: format!("paused: {reason}") }];
        let counts = Counts { nodes: 2, waiting: 1, under_way: 1, ..Counts::default() };
        now.racks = vec![RackProgress { rack: None, counts, paused: None }];
        assert_eq!(
            board.take(StreamEvent::Deployment(Box::new(now.clone()))),
            ["d-1: paused: an operator asked for it"]
        );
        assert!(board.take(StreamEvent::Deployment(Box::new(now.clone()))).is_empty(), "told once");
        assert!(!board.is_stuck(), "one goes on to its end");
        assert_eq!(board.summary(), "0 of 2 running, 1 waiting");
        now.racks[0].counts.under_way = 0;
        board.take(StreamEvent::Deployment(Box::new(now)));
        assert!(board.is_stuck() && board.pauses() == ["paused: an operator asked for it"]);
    }
}
