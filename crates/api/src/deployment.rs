//! Deployments as operators ask for them and see them.

use std::collections::BTreeMap;

use fleet::deployment::{DeploymentState, Line, Outcome};
use fleet::ids::{DeploymentId, Digest, ImageName, Millis, NodeName, RackName};
use fleet::rollout::{Pause, Rollout, WaveKind, Window};
use serde::{Deserialize, Serialize};

/// A deployment that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewDeployment {
    /// The image's name.
    pub image: String,
    /// Nodes by name.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub nodes: Vec<NodeName>,
    /// Racks, all approved nodes of each.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub racks: Vec<RackName>,
    /// How it goes on. By default all nodes start at once.
    #[serde(default)]
    pub rollout: Rollout,
}

/// How many nodes are how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Counts {
    /// All of them.
    pub nodes: u32,
    /// Those whose turn is still to come.
    pub waiting: u32,
    /// Those that have started and have no outcome yet.
    pub under_way: u32,
    /// Those that are proved.
    pub running: u32,
    /// Those of which all attempts failed.
    pub failed: u32,
    /// Those that were let go.
    pub let_go: u32,
}

/// A wave of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaveView {
    /// What its nodes are.
    pub kind: WaveKind,
    /// How far they are.
    #[serde(flatten)]
    pub counts: Counts,
}

/// The nodes of a deployment in one rack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RackProgress {
    /// The rack; nothing for nodes that stand in none.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// How far they are.
    #[serde(flatten)]
    pub counts: Counts,
    /// Why nothing new starts in it.
    pub paused: Option<Pause>,
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeploymentView {
    /// Its number, such as `d-12`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: DeploymentId,
    /// The image's name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// The image's digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// When it was asked for.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub created_at: Millis,
    /// When it ended.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub finished_at: Option<Millis>,
    /// Whether it goes on.
    pub state: DeploymentState,
    /// Its nodes and what became of them.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, Outcome>))]
    pub outcomes: BTreeMap<NodeName, Outcome>,
    /// How it goes on.
    #[serde(default)]
    pub rollout: Rollout,
    /// Why nothing new starts.
    #[serde(default)]
    pub paused: Option<Pause>,
    /// What the nodes that have not started wait for; ends the sentence "waits for …".
    #[serde(default)]
    pub waits_for: Option<String>,
    /// When more nodes may start, where time alone decides; in milliseconds since the Unix epoch.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub goes_on_at: Option<Millis>,
    /// Its waves, in order.
    #[serde(default)]
    pub waves: Vec<WaveView>,
    /// Its racks.
    #[serde(default)]
    pub racks: Vec<RackProgress>,
    /// What happened to it as a whole, oldest line first.
    #[serde(default)]
    pub log: Vec<Line>,
}

/// Nothing new is to start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// Only in this rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
}

/// A paused deployment is to go on, in spite of the failures so far: they count for no budget any more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ResumeRequest {
    /// Only in this rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// Maintenance windows instead of those that it has; an empty list lets it start nodes at any time.
    pub windows: Option<Vec<Window>>,
}

/// Failed nodes are to be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RetryRequest {
    /// Which; all that failed where none are named.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub nodes: Vec<NodeName>,
}
