//! What happens: everything that operators ask, machines show and time brings.

use uuid::Uuid;

use crate::capture::Order;
use crate::deployment::ImageInfo;
use crate::discovery::{Card, Inventory};
use crate::disk::DiskRule;
use crate::ids::{Attempt, DeploymentId, Digest, ImageName, Mac, NodeName, RackName, SetName};
use crate::ledger::Ledger;
use crate::life::Stage;
use crate::node::{Beat, Firmware, Power, Progress, Rack, TokenHash};
use crate::post::PostSettings;
use crate::rollout::{Rollout, Window};
use crate::set::{Listed, MachineSet};
use crate::wipe::{self, Certificate};

/// What an operator may set of a node; `None` leaves it as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeEdit {
    /// The rack that it stands in.
    pub rack: Option<RackName>,
    /// MAC addresses of the interfaces that may boot.
    pub macs: Option<Vec<Mac>>,
    /// SMBIOS system UUID.
    pub uuid: Option<Uuid>,
    /// Address of the power driver, already checked by the power drivers' table.
    pub power: Option<String>,
    /// Fixed address for its first MAC.
    pub address: Option<std::net::Ipv4Addr>,
    /// Memory that it is expected to have, in GiB; 0 expects nothing.
    pub memory_gib: Option<u32>,
    /// Which disk may be written.
    pub disk: Option<DiskRule>,
    /// Post actions of its own.
    pub post: Option<PostSettings>,
}

/// Something that happened. Events only report; what follows from them is
/// decided in [`crate::intake`] and [`crate::plan`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An operator adds a node; `edit.macs` must name at least one MAC.
    AddNode {
        /// Its name.
        node: NodeName,
        /// What is known of it.
        edit: NodeEdit,
    },
    /// An operator changes what is known of a node.
    EditNode {
        /// The node.
        node: NodeName,
        /// What changes.
        edit: NodeEdit,
    },
    /// An operator approves a machine that showed itself.
    Approve {
        /// The node.
        node: NodeName,
    },
    /// An operator lets a node go: whatever is under way ends here.
    Release {
        /// The node.
        node: NodeName,
    },
    /// An operator removes a node.
    RemoveNode {
        /// The node.
        node: NodeName,
    },
    /// An operator adds a rack or changes its settings.
    PutRack(Rack),
    /// An operator removes a rack that holds no nodes.
    RemoveRack(RackName),
    /// A set of machines is added, or stands in the configuration.
    PutSet(MachineSet),
    /// A set is removed; its nodes stay.
    RemoveSet {
        /// The set.
        set: SetName,
        /// True where it has gone from the configuration.
        configured: bool,
    },
    /// An agent has heard from the switches that its machine is plugged into.
    SwitchesHeard {
        /// The node.
        node: NodeName,
        /// The attempt whose agent reports.
        attempt: Attempt,
        /// Its network cards.
        cards: Vec<Card>,
    },
    /// A set was asked for its machines.
    SetListed {
        /// The set.
        set: SetName,
        /// All of its machines.
        listed: Vec<Listed>,
        /// Whether more than half of its nodes may be gone at once.
        force: bool,
    },
    /// An operator deploys an image.
    Deploy {
        /// The image.
        image: ImageName,
        /// The nodes, at least one.
        nodes: Vec<NodeName>,
        /// How it goes on.
        rollout: Rollout,
    },
    /// The time has come for a deployment to start more nodes, or to stop waiting for that.
    Proceed(DeploymentId),
    /// An operator lets nothing new start; what has started goes on to its end.
    Pause {
        /// The deployment.
        deployment: DeploymentId,
        /// Only this rack of it.
        rack: Option<RackName>,
    },
    /// An operator lets a paused deployment go on, in spite of the failures so far.
    Resume {
        /// The deployment.
        deployment: DeploymentId,
        /// Only this rack of it.
        rack: Option<RackName>,
        /// Maintenance windows instead of those that it has.
        windows: Option<Vec<Window>>,
    },
    /// An operator has failed nodes tried again.
    Retry {
        /// The deployment.
        deployment: DeploymentId,
        /// Which; all that failed where none are named.
        nodes: Vec<NodeName>,
    },
    /// An operator ends a deployment; nodes that are proved stay as they are.
    Cancel(DeploymentId),
    /// An image was sealed, or found in the registry at the start.
    ImageSealed(ImageInfo),
    /// An image was removed from the registry.
    ImageRemoved(ImageName),

    /// A machine asked for an address.
    Sighted {
        /// Its MAC address.
        mac: Mac,
        /// Its firmware class; `None` for an operating system's request.
        firmware: Option<Firmware>,
        /// Its SMBIOS UUID, from DHCP option 97 (RFC 4578).
        uuid: Option<Uuid>,
    },
    /// A first loader was sent whole.
    BootloaderSent {
        /// The MAC address that it was sent to.
        mac: Mac,
        /// The file.
        file: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A machine asked for its boot script.
    ScriptAsked {
        /// The MAC address that it boots through.
        mac: Mac,
        /// Its SMBIOS UUID, as its loader tells it.
        uuid: Option<Uuid>,
        /// Hash of the token that the script carries if it boots our kernel.
        token: TokenHash,
    },
    /// Kernel or initramfs was sent whole.
    KernelSent {
        /// The MAC address that it was sent to.
        mac: Mac,
        /// The file.
        file: String,
        /// Its size in bytes.
        bytes: u64,
    },

    /// The power driver's turn has come for an attempt.
    PowerBegun {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
    },
    /// A node's power was switched or read for an operator.
    PowerRead {
        /// The node.
        node: NodeName,
        /// What was read.
        power: Power,
        /// What was done, as a sentence; nothing where it was only read.
        text: Option<String>,
    },
    /// The power driver switched a node on.
    PoweredOn {
        /// The node.
        node: NodeName,
        /// The attempt that it was for.
        attempt: Attempt,
        /// What was done, as a sentence.
        text: String,
    },
    /// The boot token of an attempt was made, before the machine's platform hands it our kernel.
    BootTokenMade {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Hash of the token that the kernel line carries.
        token: TokenHash,
    },
    /// The machine's platform has started it with our kernel.
    KernelHanded {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
    },
    /// The power driver failed.
    PowerFailed {
        /// The node.
        node: NodeName,
        /// The attempt that it was for.
        attempt: Attempt,
        /// Why, as a sentence.
        reason: String,
    },

    /// An agent registered with its boot token.
    Registered {
        /// The node.
        node: NodeName,
        /// The attempt that its token belongs to.
        attempt: Attempt,
        /// The machine's SMBIOS UUID.
        uuid: Option<Uuid>,
        /// Hash of the token that the system being written will carry.
        token: TokenHash,
        /// The machine in a sentence: memory, processors, disks.
        text: String,
    },
    /// A machine told what it is.
    Inventoried {
        /// The node.
        node: NodeName,
        /// The attempt that its token belongs to.
        attempt: Attempt,
        /// The machine's SMBIOS UUID.
        uuid: Option<Uuid>,
        /// What it told.
        inventory: Box<Inventory>,
        /// The same in a sentence.
        text: String,
    },
    /// An operator has a node's disk captured.
    Capture {
        /// The node.
        node: NodeName,
        /// What it becomes, and how.
        order: Order,
    },
    /// The disk was chosen and is being read.
    CaptureStarted {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Which disk, and what of it is used, as a sentence.
        text: String,
    },
    /// All that is used of the disk has been sent.
    Captured {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Bytes moved and times, as a sentence.
        text: String,
    },
    /// An operator has disks of a node wiped.
    Wipe {
        /// The node.
        node: NodeName,
        /// Which disks, and how.
        order: wipe::Wipe,
    },
    /// The disks were found and are being wiped.
    WipeStarted {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Which disks, and what is lost on them, as a sentence.
        text: String,
    },
    /// One disk was wiped, or was to be, and read back.
    DiskWiped {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// What that is worth.
        certificate: Box<Certificate>,
    },
    /// All disks are wiped.
    Wiped {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// A sentence.
        text: String,
    },
    /// The disk was chosen and fetching began.
    FetchStarted {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// The disk's identity.
        disk: String,
        /// Which disk, and what is lost on it, as a sentence.
        text: String,
    },
    /// Fetching goes on.
    Progressed {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// How far it has come.
        progress: Progress,
    },
    /// The agent told with whom it has exchanged how many bytes.
    Booked {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// The bytes.
        ledger: Ledger,
    },
    /// Every byte is on the disk and verified.
    ImageVerified {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Bytes moved and times, as a sentence.
        text: String,
    },
    /// One post action ended well; its output is kept.
    PostActionDone {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Which, how long, and what it printed.
        text: String,
    },
    /// Post actions are done and the machine is about to reboot.
    PostActionsDone {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// A sentence.
        text: String,
    },
    /// Something on the node failed and ends this attempt.
    StageFailed {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// Why, as a sentence that says what to do.
        reason: String,
        /// False where another attempt would fail alike: a refused disk, an
        /// image that is too large.
        retry: bool,
    },
    /// The booted system says what it is.
    Proved {
        /// The node.
        node: NodeName,
        /// The attempt that wrote it.
        attempt: Attempt,
        /// Digest of the image that it was written from.
        digest: Digest,
        /// Identity of the disk that its root file system is on.
        disk: String,
    },
    /// The monitoring daemon of a running node reports.
    Beaten {
        /// The node.
        node: NodeName,
        /// What it reports.
        beat: Beat,
    },
    /// A node stood in a stage for longer than it may.
    DeadlinePassed {
        /// The node.
        node: NodeName,
        /// The attempt.
        attempt: Attempt,
        /// The stage.
        stage: Stage,
        /// Which deadline, as a sentence.
        reason: String,
    },
}
