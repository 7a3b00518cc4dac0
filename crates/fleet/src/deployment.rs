//! A deployment: one image on its way to some nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{DeploymentId, Digest, ImageName, Millis, NodeName};

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
        /// Milliseconds from assignment to proof.
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
}

impl Deployment {
    /// Notes what became of `node`, and the end of the deployment if it was the
    /// last. A node that is not part of it changes nothing.
    pub fn settle(&mut self, node: &NodeName, outcome: Outcome, now: Millis) {
        let Some(slot) = self.outcomes.get_mut(node) else { return };
        *slot = outcome;
        if self.state == DeploymentState::Active && self.outcomes.values().all(|o| *o != Outcome::Pending) {
            self.state = DeploymentState::Done;
            self.finished_at = Some(now);
        }
    }
}
