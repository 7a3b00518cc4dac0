//! A node being changed by an event, with what is said about it on the way.

use crate::change::{Change, Note, Snapshot};
use crate::deployment::{Deployment, Outcome};
use crate::ids::{Attempt, Millis, NodeName};
use crate::intake::{Refused, find};
use crate::life::{self, Cause, Stage};
use crate::node::{Live, Node};
use crate::plan::Policy;
use crate::rollout::{Outlook, Place, book};

/// A node being changed.
pub(super) struct Draft<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) now: Millis,
    before: Option<&'a Node>,
    pub(super) node: Node,
    pub(super) live: Live,
    notes: Vec<Note>,
    settled: Option<Outcome>,
    run_ended: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, now: Millis, node: Node) -> Self {
        let before = snapshot.nodes.get(&node.name);
        let live = snapshot.live.get(&node.name).cloned().unwrap_or_default();
        Self { snapshot, now, before, node, live, notes: Vec::new(), settled: None, run_ended: false }
    }

    pub(super) fn any_attempt(snapshot: &'a Snapshot, now: Millis, name: &NodeName) -> Result<Self, Refused> {
        let node = find(snapshot, name)?;
        Ok(Self::new(snapshot, now, node.clone()))
    }

    pub(super) fn of(snapshot: &'a Snapshot, now: Millis, name: &NodeName, attempt: Attempt) -> Result<Self, Refused> {
        let draft = Self::any_attempt(snapshot, now, name)?;
        is_present(&draft.node, attempt)?;
        Ok(draft)
    }

    pub(super) fn heard(&mut self) {
        self.live.heard = Some(self.now);
    }

    pub(super) fn note(&mut self, kind: &str, text: &str) {
        self.notes.push(Note {
            node: self.node.name.clone(),
            at: self.now,
            attempt: self.node.attempt,
            stage: self.node.stage,
            kind: kind.to_owned(),
            text: text.to_owned(),
        });
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        if self.node.stage != stage {
            self.leave();
            self.node.stage = stage;
            self.node.stage_since = self.now;
            self.live.advanced = None;
            self.live.switching = None;
        }
    }

    /// Adds the stage that it leaves to its run.
    fn leave(&mut self) {
        let (stage, milliseconds) = (self.node.stage, self.now.since(self.node.stage_since));
        if let Some(run) = self.node.run.as_mut().filter(|_| stage.is_under_way()) {
            run.left(stage, milliseconds);
        }
    }

    /// A new attempt at something else: whatever was ordered before is over, and the answers to it are refused.
    pub(super) fn begin(&mut self) {
        let node = &mut self.node;
        node.attempt = node.attempt.next();
        node.tries = 1;
        (node.capture, node.wipe, node.deployment, node.run) = (None, None, None, None);
        (node.boot_token, node.pending_token) = (None, None);
        (node.reason, node.not_before, node.target) = (None, None, None);
        self.live = Live { beat: self.live.beat.clone(), power: self.live.power, ..Live::default() };
    }

    /// Nobody works on it any more.
    pub(super) fn rest(&mut self) {
        self.node.reason = None;
        self.node.boot_token = None;
        self.node.pending_token = None;
        self.live.progress = None;
        self.live.heard = None;
    }

    /// Another try begins after the last one broke off.
    pub(super) fn try_again(&mut self, attempt: Attempt, reason: &str) {
        self.node.attempt = attempt;
        self.node.tries += 1;
        self.node.reason = Some(reason.to_owned());
        if let Some(run) = &mut self.node.run {
            run.broke_off(reason);
            run.try_again(attempt, self.now);
        }
    }

    /// Keeps how many bytes the agent has told of, which a restart of the controller would forget.
    pub(super) fn keep_bytes(&mut self) {
        if let (Some(run), Some(progress)) = (&mut self.node.run, self.live.progress) {
            run.moved(progress.received_bytes, progress.sent_bytes);
        }
    }

    /// What became of it in its deployment.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        if let Some(run) = &mut self.node.run {
            run.ended_at = Some(self.now);
            run.outcome = outcome.clone();
            self.run_ended = true;
        }
        self.settled = Some(outcome);
    }

    /// The deployment is changed as a whole, elsewhere.
    pub(super) fn leave_deployment_alone(&mut self) {
        self.settled = None;
    }

    /// Steps the life table; a pair that it does not know is counted and kept
    /// in the timeline.
    pub(super) fn advance(&mut self, cause: Cause, kind: &str, text: &str) -> bool {
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

    pub(super) fn end_attempt(&mut self, policy: &Policy, kind: &str, reason: &str, retry: bool) {
        if !self.node.stage.is_under_way() {
            self.note("unexpected", reason);
            return;
        }
        self.node.reason = Some(reason.to_owned());
        self.node.boot_token = None;
        self.keep_bytes();
        self.live.progress = None;
        self.live.heard = None;
        self.live.switching = None;
        if retry && self.node.tries < policy.attempts {
            let pause = policy.pause_milliseconds(&self.node.name, self.node.tries);
            let at = book(self.snapshot, policy, &self.node, self.now.plus(pause));
            let seconds = at.since(self.now).div_ceil(1000);
            let next = self.node.tries + 1;
            let text = format!("{reason}; attempt {next} of {} begins in {seconds} s", policy.attempts);
            if self.node.stage == Stage::PoweringOn {
                self.leave();
            }
            self.advance(Cause::Retried, kind, &text);
            self.node.not_before = Some(at);
            self.try_again(self.node.attempt.next(), reason);
            self.node.stage_since = self.now;
        } else {
            let text = if retry {
                format!("{reason}; that was attempt {} of {}", self.node.tries, policy.attempts)
            } else {
                format!("{reason}; another attempt would fail alike")
            };
            self.advance(Cause::GaveUp, kind, &text);
            if let Some(run) = &mut self.node.run {
                run.broke_off(reason);
            }
            self.settle(Outcome::Failed { reason: reason.to_owned() });
        }
    }

    pub(super) fn let_go(&mut self, kind: &str, text: &str) {
        let was_under_way = self.node.stage.is_under_way();
        self.keep_bytes();
        self.advance(Cause::Released, kind, text);
        if was_under_way {
            if let Some(run) = &mut self.node.run {
                run.broke_off(text);
            }
            self.settle(Outcome::LetGo);
        }
        // Whatever still runs on the machine for the old attempt is refused from now on.
        self.node.attempt = self.node.attempt.next();
        self.node.tries = 0;
        self.node.not_before = None;
        self.node.target = None;
        self.rest();
    }

    pub(super) fn finish(self) -> Vec<Change> {
        let mut changes = Vec::new();
        if let (Some(outcome), Some(deployment)) = (self.settled, self.snapshot.deployment_of(&self.node)) {
            changes.extend(settle(self.snapshot, deployment, &self.node.name, outcome, self.now));
        }
        if let Some(run) = self.node.run.clone().filter(|_| self.run_ended) {
            changes.push(Change::PutRun(run));
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

/// Refuses what belongs to an attempt that is over.
pub(super) fn is_present(node: &Node, attempt: Attempt) -> Result<(), Refused> {
    if node.attempt == attempt {
        return Ok(());
    }
    Err(Refused::OldAttempt { node: node.name.clone(), got: attempt, present: node.attempt })
}

/// A node has said something that is kept in memory alone. Thousands do so every second, so the node itself is not copied.
pub(super) fn heard(snapshot: &Snapshot, now: Millis, node: &Node, change: impl FnOnce(&mut Live)) -> Vec<Change> {
    let mut live = snapshot.live.get(&node.name).cloned().unwrap_or_default();
    live.heard = Some(now);
    change(&mut live);
    vec![Change::PutLive(node.name.clone(), live)]
}

/// What became of a node in a deployment, and what follows for the others. Nothing where it takes no part in it.
pub(super) fn settle(
    snapshot: &Snapshot,
    deployment: &Deployment,
    name: &NodeName,
    outcome: Outcome,
    now: Millis,
) -> Vec<Change> {
    if !deployment.outcomes.contains_key(name) {
        return Vec::new();
    }
    let mut changes = Vec::new();
    if let Some(standing) = snapshot.standings.get(&deployment.id) {
        let mut outlook = Outlook::new(standing);
        outlook.put(name, Place::of(deployment, name, &outcome, None));
        let mut course = deployment.course.clone();
        course.settle(deployment, &outlook, name, &outcome, now);
        if course != deployment.course {
            changes.push(Change::PutCourse(deployment.id, Box::new(course)));
        }
    }
    changes.insert(0, Change::PutOutcome(deployment.id, name.clone(), outcome));
    changes
}
