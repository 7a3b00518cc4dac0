//! What one node did in one deployment: each try with its stages, bytes and end. Reports are made of these.

use serde::{Deserialize, Serialize};

use crate::deployment::Outcome;
use crate::ids::{Attempt, DeploymentId, Millis, NodeName, RackName};
use crate::ledger::Ledger;
use crate::life::Stage;

/// Tries that are kept; the oldest go first.
const TRIES: usize = 30;

/// A stage that a node has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Passed {
    /// The stage.
    pub stage: Stage,
    /// How long the node stood in it, in milliseconds.
    pub milliseconds: u64,
}

/// One attempt of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Try {
    /// Its number, over the node's whole life.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// When it began, a pause before it included; in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub began_at: Millis,
    /// The stages that it has left, in order.
    pub stages: Vec<Passed>,
    /// Payload that the agent received, in bytes, as it last reported.
    pub received_bytes: u64,
    /// Payload that the agent sent to others, in bytes, as it last reported.
    pub sent_bytes: u64,
    /// With whom, as the agent told when the image was complete and again when it left the swarm.
    #[serde(default, skip_serializing_if = "Ledger::is_empty")]
    pub ledger: Ledger,
    /// Why it ended without a proof, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What one node did in one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Run {
    /// The deployment.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub deployment: DeploymentId,
    /// The node.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// The rack that it stood in.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// When its first try began, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub started_at: Millis,
    /// When it got its outcome.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub ended_at: Option<Millis>,
    /// What became of it.
    pub outcome: Outcome,
    /// Its tries, in order.
    pub tries: Vec<Try>,
}

impl Run {
    /// A run that begins now, or goes on after `before` where that was of the same deployment.
    #[must_use]
    pub fn begin(
        before: Option<Self>,
        deployment: DeploymentId,
        node: &NodeName,
        rack: Option<RackName>,
        attempt: Attempt,
        now: Millis,
    ) -> Self {
        let mut run = before.filter(|run| run.deployment == deployment).unwrap_or_else(|| Self {
            deployment,
            node: node.clone(),
            rack,
            started_at: now,
            ended_at: None,
            outcome: Outcome::Pending,
            tries: Vec::new(),
        });
        run.ended_at = None;
        run.outcome = Outcome::Pending;
        run.try_again(attempt, now);
        run
    }

    /// Another try begins.
    pub fn try_again(&mut self, attempt: Attempt, now: Millis) {
        if self.tries.len() >= TRIES {
            self.tries.remove(0);
        }
        self.tries.push(Try {
            attempt,
            began_at: now,
            stages: Vec::new(),
            received_bytes: 0,
            sent_bytes: 0,
            ledger: Ledger::default(),
            reason: None,
        });
    }

    /// The node has left a stage of its present try.
    pub fn left(&mut self, stage: Stage, milliseconds: u64) {
        if let Some(last) = self.tries.last_mut() {
            last.stages.push(Passed { stage, milliseconds });
        }
    }

    /// The agent has reported so many bytes in its present try. Reports that come late are smaller and change nothing.
    pub fn moved(&mut self, received_bytes: u64, sent_bytes: u64) {
        if let Some(last) = self.tries.last_mut() {
            last.received_bytes = last.received_bytes.max(received_bytes);
            last.sent_bytes = last.sent_bytes.max(sent_bytes);
        }
    }

    /// The agent has told with whom it exchanged what in its present try.
    pub fn booked(&mut self, ledger: Ledger) {
        if let Some(last) = self.tries.last_mut() {
            last.ledger = ledger.bounded();
        }
    }

    /// The present try ended without a proof.
    pub fn broke_off(&mut self, reason: &str) {
        if let Some(last) = self.tries.last_mut() {
            last.reason = Some(reason.to_owned());
        }
    }
}
