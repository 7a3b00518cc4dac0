//! What is said about captures: disks on their way into the registry.

use fleet::capture::Original;
use fleet::ids::{ImageName, NodeName};
use serde::{Deserialize, Serialize};

/// Most chunks whose hashes are asked for at once: 2 MiB of them.
pub const MOST_HASHES: u32 = 65_536;

/// A capture that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CaptureView {
    /// The image that it becomes.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// The node whose disk it is; none for one that an operator sends.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub node: Option<NodeName>,
    /// The disk.
    pub original: Original,
    /// Chunks that have arrived.
    pub held_chunks: u64,
    /// Chunks that are to arrive.
    pub wanted_chunks: u64,
    /// How far it is.
    pub state: CaptureState,
}

/// How far a capture is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum CaptureState {
    /// Chunks arrive, or are waited for.
    Receiving,
    /// All have arrived; the copy is generalised.
    Generalising,
    /// The copy is hashed.
    Sealing {
        /// Bytes that are hashed.
        done_bytes: u64,
        /// All bytes.
        total_bytes: u64,
    },
    /// It could not be published.
    Failed {
        /// Why, as a sentence that says what to do.
        reason: String,
    },
}
