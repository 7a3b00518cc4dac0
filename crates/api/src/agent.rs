//! What agents and deployed systems say, and what they are told.

use std::fmt;

use fleet::capture::Order;
use fleet::discovery::{Card, Findings};
use fleet::disk::{Disk, DiskRule};
use fleet::ids::{Attempt, Digest, ImageName, NodeName};
use fleet::layout::Layout;
use fleet::ledger::Ledger;
use fleet::node::{Beat, Progress};
use fleet::post::{Network, Script};
use fleet::wipe::{self, Certificate};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where agents read the programs that they need for layouts, with the boot token: a cpio archive (newc) packed by zstd.
pub const LAYOUT_TOOLS: &str = "/api/v1/agent/layout-tools";

/// A bearer token. Prints as `…` so that it does not end up in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// `POST /api/v1/agent/register`: the agent is up. Sent again until answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Register {
    /// SMBIOS system UUID.
    pub uuid: Option<Uuid>,
    /// MAC addresses of all its interfaces.
    pub macs: Vec<String>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Logical processors.
    pub processors: u32,
    /// Vendor and product from SMBIOS.
    pub product: String,
    /// Disks, with what they hold now.
    pub disks: Vec<Disk>,
    /// Version of the agent.
    pub agent_version: String,
    /// What it found out with some effort.
    #[serde(default)]
    pub findings: Findings,
}

/// What the agent is to do: the answer to [`Register`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Assignment {
    /// Who the agent is.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// The attempt that every report must name.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// The image's name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// The image's digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Path on the controller of the image's manifest (JSON), read with the boot token.
    pub manifest_path: String,
    /// Announce URLs of the tracker.
    pub trackers: Vec<String>,
    /// Which disk may be written.
    pub disk: DiskRule,
    /// How its disks are divided, where the image is a tree of files and no disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub layout: Option<Layout>,
    /// True where an earlier attempt or deployment wrote the disk: what it
    /// holds is hashed first and kept where it is right.
    pub keep_what_is_right: bool,
    /// The disks that an earlier attempt or deployment wrote ([`fleet::disk::identities`]): marks of RAID or LVM on them
    /// came with our own images.
    #[serde(default)]
    pub own_disk: Option<String>,
    /// Memory for pieces in flight, in bytes.
    pub memory_budget_bytes: u64,
    /// How long to go on seeding after the image is complete while others
    /// still fetch, in seconds.
    pub linger_seconds: u32,
    /// Seconds between two reports of progress, at least 1. The more nodes are provisioned together, the less often each tells.
    #[serde(default = "each_second")]
    pub report_seconds: u32,
    /// What makes the image this node's own.
    pub post: PostPlan,
}

fn each_second() -> u32 {
    1
}

/// What a registered agent is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Orders {
    /// Send what is used of a disk.
    Capture(CaptureOrder),
    /// Wipe disks.
    Wipe(WipeOrder),
    /// Write an image to a disk.
    Install(Box<Assignment>),
}

/// The disk is to be sent, and nothing written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CaptureOrder {
    /// Who the agent is.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// The attempt that every report must name.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// What the disk becomes.
    pub capture: Order,
    /// Which disk is read.
    pub disk: DiskRule,
}

/// Disks are to be wiped, and nothing installed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WipeOrder {
    /// Who the agent is.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// The attempt that every report must name.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// Which disks, and how.
    pub wipe: wipe::Wipe,
}

/// Post actions for one node, everything resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PostPlan {
    /// Host name to set.
    pub host_name: String,
    /// Lines for root's `authorized_keys`; empty leaves the file as it is.
    pub authorized_keys: Vec<String>,
    /// Network configuration.
    pub network: Network,
    /// cloud-init NoCloud user-data, where a seed is wanted.
    pub user_data: Option<String>,
    /// Grow the root partition and its file system to the disk.
    pub grow_root: bool,
    /// The operator's own script.
    pub script: Option<Script>,
    /// Start the deployed kernel without going through the firmware.
    #[serde(default)]
    pub kexec: bool,
    /// Time limit of each built-in action, in seconds.
    pub action_limit_seconds: u32,
    /// Base URL of the controller for the monitoring daemon.
    pub controller_url: String,
    /// Token that the deployed system proves itself with.
    pub node_token: Token,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u32,
    /// Process names that the daemon watches.
    pub watch_processes: Vec<String>,
}

/// `POST /api/v1/agent/report`: something happened on the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Report {
    /// The attempt that the agent was given.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// What happened.
    pub what: ReportKind,
}

/// What happened on the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ReportKind {
    /// The agent is at work and has nothing else to say.
    Alive,
    /// The disk was chosen; it is being read.
    CaptureStarted {
        /// Which disk, and what of it is used.
        text: String,
    },
    /// All that is used of the disk was sent; the machine reboots to it.
    Captured {
        /// Bytes moved and times, as a sentence.
        text: String,
    },
    /// The disks were found; they are being wiped.
    WipeStarted {
        /// Which disks, and what is lost on them.
        text: String,
    },
    /// One disk was wiped, or was to be, and read back.
    DiskWiped {
        /// What that is worth.
        certificate: Box<Certificate>,
    },
    /// All disks are wiped; the machine starts again.
    Wiped {
        /// A sentence.
        text: String,
    },
    /// The disk was chosen; fetching begins.
    FetchStarted {
        /// The disk, or the disks of a layout ([`fleet::disk::identities`]).
        disk: String,
        /// Which disk, and what is lost on it.
        text: String,
    },
    /// Fetching goes on; sent every second or two.
    Progress(Progress),
    /// With whom the agent has exchanged how many bytes, all of the attempt: told when the image is complete, and
    /// again when it leaves the swarm.
    Ledger(Ledger),
    /// Every byte is on the disk and verified.
    ImageVerified {
        /// Bytes moved and times, as a sentence.
        text: String,
    },
    /// Switches were heard on the way.
    SwitchesHeard {
        /// Its network cards.
        cards: Vec<Card>,
    },
    /// One post action ended well.
    PostActionDone {
        /// Its name.
        action: String,
        /// How long it took.
        milliseconds: u64,
        /// What it printed, the last 4 KiB.
        output: String,
    },
    /// All is done; the machine reboots to its disk.
    PostActionsDone,
    /// Something failed; the attempt ends.
    Failed {
        /// Why, as a sentence that says what to do.
        reason: String,
        /// False where another attempt would fail alike.
        retry: bool,
    },
}

/// `POST /api/v1/agent/proof`, by the booted system with its node token: what
/// it is. Sent again until it is accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Proof {
    /// Digest of the image that was verified when it was written.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// The disk that the root file system is on, or the disks ([`fleet::disk::identities`]), read now.
    pub disk: String,
    /// The attempt that wrote it.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// The kernel's boot id; differs with every boot.
    pub boot_id: String,
    /// Kernel release of the booted system.
    pub kernel: String,
}

/// `POST /api/v1/agent/beat`, with the node token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Heartbeat {
    /// What the daemon sees.
    pub beat: Beat,
}

/// Written to `/etc/rackswarm/agent.json` of the deployed system, readable by
/// root only: all that the monitoring daemon needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeployedConfig {
    /// Who the node is.
    pub node: NodeName,
    /// Base URL of the controller.
    pub controller_url: String,
    /// Token for proof and heartbeats.
    pub node_token: Token,
    /// Digest of the image that was verified when it was written.
    pub digest: Digest,
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u32,
    /// Process names to watch.
    pub watch_processes: Vec<String>,
}

impl DeployedConfig {
    /// What the system needs that this assignment writes.
    #[must_use]
    pub fn of(assignment: &Assignment) -> Self {
        let plan = &assignment.post;
        Self {
            node: assignment.node.clone(),
            controller_url: plan.controller_url.clone(),
            node_token: plan.node_token.clone(),
            digest: assignment.digest,
            attempt: assignment.attempt,
            heartbeat_seconds: plan.heartbeat_seconds,
            watch_processes: plan.watch_processes.clone(),
        }
    }
}
