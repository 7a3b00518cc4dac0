//! A node: one machine, what it is, where it is in its life, what it runs.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::capture::Order;
use crate::discovery::Inventory;
use crate::disk::DiskRule;
use crate::ids::{Attempt, DeploymentId, Digest, ImageName, Mac, Millis, NodeName, RackName};
use crate::life::Stage;
use crate::post::PostSettings;
use crate::run::Run;
use crate::set::Member;
use crate::wipe::{self, Certificate};

/// How a machine's firmware network-boots, read from DHCP options 60, 77, 93
/// and 175 (RFC 4578; iPXE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// PC BIOS, PXE.
    Bios,
    /// UEFI x86-64, PXE through TFTP.
    UefiX64,
    /// UEFI x86-64, HTTP boot.
    UefiX64Http,
    /// UEFI arm64, PXE through TFTP.
    UefiArm64,
    /// UEFI arm64, HTTP boot.
    UefiArm64Http,
}

impl Firmware {
    /// True where the machine boots by UEFI.
    #[must_use]
    pub fn is_uefi(self) -> bool {
        !matches!(self, Self::Bios)
    }

    /// The name used in the CLI, the API and the logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios-pxe",
            Self::UefiX64 => "uefi-pxe",
            Self::UefiX64Http => "uefi-http",
            Self::UefiArm64 => "uefi-arm64-pxe",
            Self::UefiArm64Http => "uefi-arm64-http",
        }
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// SHA-256 of a bearer token; the token itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(pub String);

/// What a node's disk holds and its booted system has proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The deployment that put it there.
    pub deployment: DeploymentId,
    /// The image's name at that time.
    pub image: ImageName,
    /// The image's digest, as reported by the booted system.
    pub digest: Digest,
    /// Identity of the disk that it runs from ([`crate::disk::Disk::identity`]).
    pub disk: String,
    /// The attempt that succeeded.
    pub attempt: Attempt,
    /// When the proof arrived.
    pub proved_at: Millis,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name; never changes.
    pub name: NodeName,
    /// The rack that it stands in.
    pub rack: Option<RackName>,
    /// The addresses of its network interfaces that may boot. Empty only where a set knows nothing but the UUID, until
    /// the machine shows itself.
    pub macs: Vec<Mac>,
    /// SMBIOS system UUID, once seen or given.
    pub uuid: Option<Uuid>,
    /// False for a machine that showed itself and waits for an operator.
    pub approved: bool,
    /// Address of its power driver, such as `ipmi://admin@bmc7?password_file=…`.
    pub power: String,
    /// What it told of itself when its agent last registered.
    #[serde(default)]
    pub inventory: Option<Inventory>,
    /// How often it was asked for that while it waits for approval.
    #[serde(default)]
    pub inventory_tries: u32,
    /// The set that it belongs to.
    #[serde(default)]
    pub member: Option<Member>,
    /// Memory that an operator expects it to have, in GiB.
    #[serde(default)]
    pub memory_gib: Option<u32>,
    /// Fixed address to lease to its first MAC.
    pub address: Option<std::net::Ipv4Addr>,
    /// Which disk may be written; the default rule is "the only disk".
    #[serde(default)]
    pub disk: DiskRule,
    /// Post actions of this node's own.
    #[serde(default)]
    pub post: PostSettings,
    /// How its firmware last network-booted.
    pub firmware: Option<Firmware>,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when.
    pub stage_since: Millis,
    /// Which attempt this is.
    pub attempt: Attempt,
    /// How many attempts the present deployment has used, the present included.
    pub tries: u32,
    /// Why it failed, or why the last attempt ended; a sentence.
    pub reason: Option<String>,
    /// When the power of the present attempt is due: at its start, or after a pause.
    pub not_before: Option<Millis>,
    /// The deployment that it takes or took part in.
    pub deployment: Option<DeploymentId>,
    /// What it has done in the present or last deployment.
    #[serde(default)]
    pub run: Option<Run>,
    /// The capture that is under way, or was when it failed.
    #[serde(default)]
    pub capture: Option<Order>,
    /// The wipe that is under way, or was when it failed.
    #[serde(default)]
    pub wipe: Option<wipe::Wipe>,
    /// What was certified of its disks, the oldest first.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// Hash of the token that this attempt's kernel line carries.
    pub boot_token: Option<TokenHash>,
    /// Hash of the token for the system being written; becomes
    /// [`Node::node_token`] with the proof.
    pub pending_token: Option<TokenHash>,
    /// Hash of the running system's token.
    pub node_token: Option<TokenHash>,
    /// The disks that the present attempt writes ([`crate::disk::identities`]).
    pub target: Option<String>,
    /// Some attempt has begun to write a disk, so the disk may hold pieces.
    pub written_before: bool,
    /// The disks that were last written ([`crate::disk::identities`]), whatever came of it.
    #[serde(default)]
    pub written_disk: Option<String>,
    /// What is deployed and proved.
    pub deployed: Option<Deployed>,
    /// Unexpected events so far; each is in the timeline.
    #[serde(default)]
    pub unexpected_total: u32,
}

/// The one of a UUID's two byte orders by which boards are told apart. SMBIOS left the order open until version 2.6, so the
/// same board may tell its firmware, its system and its controller the one and the other.
#[must_use]
pub fn either_order(uuid: Uuid) -> Uuid {
    uuid.min(Uuid::from_bytes_le(*uuid.as_bytes()))
}

impl Node {
    /// A node as an operator adds it or as it shows itself.
    #[must_use]
    pub fn new(name: NodeName, macs: Vec<Mac>, approved: bool, now: Millis) -> Self {
        Self {
            name,
            rack: None,
            macs,
            uuid: None,
            approved,
            power: "manual:".to_owned(),
            inventory: None,
            inventory_tries: 0,
            member: None,
            memory_gib: None,
            address: None,
            disk: DiskRule::default(),
            post: PostSettings::default(),
            firmware: None,
            stage: Stage::Enrolled,
            stage_since: now,
            attempt: Attempt::default(),
            tries: 0,
            reason: None,
            not_before: None,
            deployment: None,
            run: None,
            capture: None,
            wipe: None,
            certificates: Vec::new(),
            boot_token: None,
            pending_token: None,
            node_token: None,
            target: None,
            written_before: false,
            written_disk: None,
            deployed: None,
            unexpected_total: 0,
        }
    }
}

impl Node {
    /// What the node's agent is to do with its disk, where that is a capture.
    #[must_use]
    pub fn captured(&self) -> Option<&Order> {
        self.capture.as_ref().filter(|_| self.stage.is_under_way() && self.deployment.is_none())
    }

    /// What the node's agent is to do with its disks, where that is a wipe.
    #[must_use]
    pub fn wiped(&self) -> Option<&wipe::Wipe> {
        self.wipe.as_ref().filter(|_| self.stage.is_under_way() && self.deployment.is_none())
    }

    /// The disks whose content came from us ([`crate::disk::identities`]).
    #[must_use]
    pub fn own_disk(&self) -> Option<&str> {
        let deployed = self.deployed.as_ref().map(|deployed| &deployed.disk);
        self.written_disk.as_ref().or(deployed).map(String::as_str)
    }
}

/// A rack and what its nodes have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rack {
    /// Its name.
    pub name: RackName,
    /// Post actions of the rack's nodes.
    #[serde(default)]
    pub post: PostSettings,
}

/// How far a node's image has come. Kept in memory, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Bytes of the image that are on the disk, verified.
    pub done_bytes: u64,
    /// Bytes of the image.
    pub total_bytes: u64,
    /// Payload received so far, in bytes.
    pub received_bytes: u64,
    /// Payload sent so far, in bytes.
    pub sent_bytes: u64,
    /// Present rate in, bytes per second.
    pub down_bytes_per_second: u64,
    /// Present rate out, bytes per second.
    pub up_bytes_per_second: u64,
    /// Connected peers.
    pub peers: u32,
}

/// What the monitoring daemon of a running node tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Beat {
    /// Seconds since the system booted.
    pub uptime_seconds: u64,
    /// Load average over one minute.
    pub load1: f64,
    /// Memory in use, bytes.
    pub memory_used_bytes: u64,
    /// Memory in all, bytes.
    pub memory_total_bytes: u64,
    /// Root file system in use, bytes.
    pub disk_used_bytes: u64,
    /// Root file system in all, bytes.
    pub disk_total_bytes: u64,
    /// Bytes received by the provisioning interface since boot.
    pub network_received_bytes: u64,
    /// Bytes sent by the provisioning interface since boot.
    pub network_sent_bytes: u64,
    /// Watched process names that are not running.
    pub processes_missing: Vec<String>,
}

/// A machine's power, as its driver read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It has power.
    On,
    /// It has none.
    Off,
    /// Nobody can say.
    Unknown,
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Unknown => "unknown",
        })
    }
}

/// What is known of a node only while the controller runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Live {
    /// When the node last said anything as an agent or daemon.
    pub heard: Option<Millis>,
    /// When its progress last advanced.
    pub advanced: Option<Millis>,
    /// Its progress.
    pub progress: Option<Progress>,
    /// Its last heartbeat.
    pub beat: Option<Beat>,
    /// Since when its power driver is at work for the present attempt.
    pub switching: Option<Millis>,
    /// Its power when it was last read, and when that was.
    pub power: Option<(Power, Millis)>,
}
