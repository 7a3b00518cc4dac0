//! What operators ask and see.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fleet::deployment::ImageInfo;
use fleet::discovery::Inventory;
use fleet::disk::DiskRule;
use fleet::ids::{DeploymentId, Digest, ImageName, Mac, Millis, NodeName, RackName, SetName};
use fleet::layout::Layout;
use fleet::life::Stage;
use fleet::node::{Beat, Firmware, Power, Progress};
use fleet::post::PostSettings;
use fleet::set::{Member, Row};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::deployment::{
    Counts, DeploymentView, NewDeployment, PauseRequest, RackProgress, ResumeRequest, RetryRequest, WaveView,
};

/// A node to be added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewNode {
    /// Its name, 1 to 63 of a-z, 0-9, `-` and `.`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: NodeName,
    /// Everything else.
    #[serde(flatten)]
    pub settings: NodeSettings,
}

/// What may be set of a node; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeSettings {
    /// The rack that it stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// MAC addresses of the interfaces that may boot; at least one for a new node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub macs: Option<Vec<Mac>>,
    /// SMBIOS system UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Address of its power driver, such as `ipmi://admin@10.0.0.7?password_file=/etc/bmc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<String>,
    /// Memory that it is expected to have, in GiB; one that has less is not deployed. 0 expects nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gib: Option<u32>,
    /// Fixed address for its first MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<std::net::Ipv4Addr>,
    /// Which disk may be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskRule>,
    /// Post actions of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post: Option<PostSettings>,
}

/// A node as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeView {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: NodeName,
    /// Its rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// Its MAC addresses.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub macs: Vec<Mac>,
    /// SMBIOS system UUID.
    pub uuid: Option<Uuid>,
    /// False while it waits for approval.
    pub approved: bool,
    /// Address of its power driver.
    pub power: String,
    /// Its power when an operator last switched or read it since the controller started.
    #[serde(default)]
    pub power_state: Option<Power>,
    /// When that was, in milliseconds since the Unix epoch.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub power_read_at: Option<Millis>,
    /// What it told of itself when its agent last registered. In lists only of nodes that wait for approval.
    #[serde(default)]
    pub inventory: Option<Inventory>,
    /// The set that it belongs to.
    #[serde(default)]
    pub member: Option<Member>,
    /// Memory that it is expected to have, in GiB.
    #[serde(default)]
    pub memory_gib: Option<u32>,
    /// The address that it has or had last.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<std::net::Ipv4Addr>,
    /// Which disk may be written.
    pub disk: DiskRule,
    /// Post actions of its own.
    pub post: PostSettings,
    /// How its firmware last network-booted.
    pub firmware: Option<Firmware>,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub stage_since: Millis,
    /// What it waits for.
    pub waits_for: String,
    /// When it stops waiting, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub deadline: Option<Millis>,
    /// Which attempt this is, over its whole life.
    pub attempt: u32,
    /// How many attempts the present deployment has used.
    pub tries: u32,
    /// Why it failed, or why the last attempt ended.
    pub reason: Option<String>,
    /// The deployment that it takes or took part in.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub deployment: Option<DeploymentId>,
    /// What its booted system has proved to run.
    pub deployed: Option<DeployedView>,
    /// How far its image has come.
    pub progress: Option<Progress>,
    /// Its last heartbeat.
    pub beat: Option<Beat>,
    /// When its agent or daemon last said anything.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub heard: Option<Millis>,
    /// Unexpected events so far; each is in the timeline.
    pub unexpected_total: u32,
}

/// What a booted system has proved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeployedView {
    /// The image's name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// The image's digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Identity of the disk that it runs from.
    pub disk: String,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// When the proof arrived.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub proved_at: Millis,
}

/// A line of a node's timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineLine {
    /// The node.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// When, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub at: Millis,
    /// In which attempt.
    pub attempt: u32,
    /// The stage after it.
    pub stage: Stage,
    /// What happened, in one word; stable.
    pub kind: String,
    /// What happened, as a sentence.
    pub text: String,
}

/// A rack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RackView {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: RackName,
    /// Post actions of its nodes.
    pub post: PostSettings,
    /// How many of its nodes are in each stage.
    pub stages: BTreeMap<String, u32>,
}

/// What may be set of a rack.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RackSettings {
    /// Post actions of its nodes.
    #[serde(default)]
    pub post: PostSettings,
}

/// An image in the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageView {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: ImageName,
    /// SHA-256 of its raw content.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Size in bytes of the disk that it describes.
    pub size_bytes: u64,
    /// Bytes that are not in all-zero pieces: what travels.
    pub used_bytes: u64,
    /// Bytes per piece.
    pub piece_size: u32,
    /// SHA-1 infohash of its torrent, hexadecimal.
    pub infohash: String,
    /// When it was sealed, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub sealed_at: Millis,
    /// How nodes divide their disks, where it is a tree of files and no disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub layout: Option<Layout>,
}

impl From<&ImageInfo> for ImageView {
    fn from(image: &ImageInfo) -> Self {
        Self {
            name: image.name.clone(),
            digest: image.digest,
            size_bytes: image.size_bytes,
            used_bytes: image.used_bytes,
            piece_size: image.piece_size,
            infohash: image.infohash.clone(),
            sealed_at: image.sealed_at,
            layout: image.layout.clone(),
        }
    }
}

/// A set of machines to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewSet {
    /// Its name, 1 to 63 of a-z, 0-9, `-` and `.`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: SetName,
    /// Its address, such as `redfish+http://admin@10.9.1.7` or `machines:/etc/rackswarm/machines.toml`.
    pub address: String,
    /// File on the controller that holds its secret, where its kind has one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub credentials_file: Option<PathBuf>,
    /// Rack of its machines where it does not tell one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// Add it although it does not answer now.
    #[serde(default)]
    pub unchecked: bool,
}

/// A set of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetView {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: SetName,
    /// Its address.
    pub address: String,
    /// Rack of its machines where it does not tell one.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// True where it stands in the controller's configuration.
    pub configured: bool,
    /// How many nodes belong to it.
    pub nodes: u32,
    /// How many of those it does not list any more.
    pub missing: u32,
    /// When its listing was last taken in, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub synced_at: Option<Millis>,
    /// What that came to, as a sentence.
    pub synced: Option<String>,
    /// How many machines it listed when it was added; nothing in other answers.
    #[serde(default)]
    pub listed: Option<u32>,
}

/// How a set is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SyncOptions {
    /// Only say what would change.
    pub dry_run: bool,
    /// Take it as it is when more than half of the set's nodes are gone.
    pub force: bool,
}

/// Machines to be taken of a set, or made there. The same token always means the same machines: asked again, what it holds
/// already is answered and what is missing is added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AcquireRequest {
    /// Who asks: 1 to 64 letters, digits, `-`, `_` and `.`.
    pub token: String,
    /// How many machines this token shall hold in all, 1 to 1000.
    pub count: u32,
    /// The image of the platform that made machines start from; without one they boot from the network.
    #[serde(default)]
    pub image: Option<String>,
    /// Virtual processors of made machines.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Memory of made machines in MiB.
    #[serde(default)]
    pub memory_mib: Option<u32>,
    /// Disk of made machines in GiB.
    #[serde(default)]
    pub disk_gib: Option<u32>,
    /// The platform's own name for a size, such as `t3.small`.
    #[serde(default)]
    pub instance_type: Option<String>,
    /// Only machines of this rack, where the set knows racks.
    #[serde(default)]
    pub rack: Option<String>,
}

/// Machines to be given back to their set. One that the set has made ceases to exist, with its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GiveBackRequest {
    /// Nodes of this set on which nothing is under way.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub nodes: Vec<NodeName>,
}

/// What a set's listing came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncReport {
    /// The set.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub set: SetName,
    /// True where nothing was changed.
    pub dry_run: bool,
    /// How many machines of each kind of row, as a sentence.
    pub summary: String,
    /// A row for each machine that is listed, then one for each that no longer is.
    pub rows: Vec<Row>,
}

/// What may be asked of a machine's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Say whether it has power.
    Status,
    /// Give it power.
    On,
    /// Take its power at once, without asking its operating system.
    Off,
    /// Take its power and give it again.
    Cycle,
    /// Start it anew without taking its power, where its controller can do that; otherwise as `cycle`.
    Reset,
}

/// Power to be switched or read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What to do.
    pub action: PowerAction,
    /// Nodes by name.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub nodes: Vec<NodeName>,
    /// Racks, all nodes of each.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub racks: Vec<RackName>,
    /// Switch nodes that are being deployed as well.
    #[serde(default)]
    pub force: bool,
    /// How often each is tried where that may help, 1 to 5.
    #[serde(default = "PowerRequest::usual_attempts")]
    pub attempts: u32,
}

impl PowerRequest {
    /// Attempts where nothing is said.
    pub const ATTEMPTS: u32 = 2;

    fn usual_attempts() -> u32 {
        Self::ATTEMPTS
    }
}

/// How a power operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PowerOutcome {
    /// It is done and read back, as far as its driver can say.
    Done,
    /// A person has to do it; the sentence says what.
    Asked,
    /// It was not tried, because the node is being deployed.
    Refused,
    /// It failed.
    Failed,
}

/// What came of a power operation on one node; a line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PowerResult {
    /// The node.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// How it ended.
    pub outcome: PowerOutcome,
    /// The machine's power afterwards, as it was read.
    pub power: Power,
    /// What was done or why not, as a sentence.
    pub text: String,
    /// How often it was tried.
    pub tries: u32,
    /// From the request to this answer, in milliseconds; waiting for the controller's turn included.
    pub milliseconds: u64,
}

/// How the controller is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// Version of the controller.
    pub version: String,
    /// Since when it runs, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub started_at: Millis,
    /// Its clock, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub now: Millis,
    /// How many nodes are in each stage.
    pub stages: BTreeMap<String, u32>,
    /// Payload that the seeder has sent since the start, in bytes, by image name.
    pub seeded_bytes: BTreeMap<String, u64>,
    /// What the configuration says of DHCP: full, proxy or off.
    pub dhcp_mode: String,
}

/// An event of the stream `GET /api/v1/events` (server-sent events); the
/// stream's `event:` field carries the variant's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum StreamEvent {
    /// A line was added to a node's timeline.
    Timeline(TimelineLine),
    /// A node changed, in its settings, stage, progress or health.
    Node(Box<NodeView>),
    /// A node is gone.
    NodeGone {
        /// Its name.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        name: NodeName,
    },
    /// A deployment changed.
    Deployment(Box<DeploymentView>),
    /// The reader was too slow and has missed events; it must read anew.
    Missed,
}
