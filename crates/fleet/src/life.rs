//! A node's life: a flat set of stages and a table of rows.
//!
//! Diagrams, documents and metric labels come out of [`LIFE`].

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where a node is in its life, in the order of Figure 2 of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Known; nothing is under way.
    Enrolled,
    /// Its power is about to be switched.
    PoweringOn,
    /// Switched on; its firmware has not asked for an address yet.
    Leasing,
    /// It has an address and loads our first loader.
    LoadingBootloader,
    /// It has its script and loads kernel and initramfs.
    LoadingKernel,
    /// The agent has registered.
    AgentUp,
    /// Its disk is read and sent; nothing is written.
    Capturing,
    /// Its disks are wiped.
    Wiping,
    /// Pieces arrive and are written.
    Fetching,
    /// The image is verified on the disk; post actions run.
    PostActions,
    /// It boots from its own disk.
    Rebooting,
    /// The booted system has proved what it runs.
    Running,
    /// Every attempt failed; the reason is kept.
    Failed,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 13] = [
        Stage::Enrolled,
        Stage::PoweringOn,
        Stage::Leasing,
        Stage::LoadingBootloader,
        Stage::LoadingKernel,
        Stage::AgentUp,
        Stage::Capturing,
        Stage::Wiping,
        Stage::Fetching,
        Stage::PostActions,
        Stage::Rebooting,
        Stage::Running,
        Stage::Failed,
    ];

    /// The stage's name in the CLI, the API, the console, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::PoweringOn => "powering_on",
            Self::Leasing => "leasing",
            Self::LoadingBootloader => "loading_bootloader",
            Self::LoadingKernel => "loading_kernel",
            Self::AgentUp => "agent_up",
            Self::Capturing => "capturing",
            Self::Wiping => "wiping",
            Self::Fetching => "fetching",
            Self::PostActions => "post_actions",
            Self::Rebooting => "rebooting",
            Self::Running => "running",
            Self::Failed => "failed",
        }
    }

    /// What a node in this stage waits for; ends the sentence "waits for …".
    #[must_use]
    pub fn waits_for(self) -> &'static str {
        match self {
            Self::Enrolled => "an image to be deployed",
            Self::PoweringOn => "its power driver to switch it on",
            Self::Leasing => "its firmware to ask for an address by DHCP",
            Self::LoadingBootloader => "its firmware to fetch the loader and ask for its boot script",
            Self::LoadingKernel => "the kernel to start and the agent to register",
            Self::AgentUp => "the agent to choose the disk and begin",
            Self::Capturing => "the rest of its disk to be sent",
            Self::Wiping => "its disks to be wiped and read back",
            Self::Fetching => "the rest of the image",
            Self::PostActions => "post actions to finish",
            Self::Rebooting => "the deployed system to boot from its disk and report",
            Self::Running => "nothing",
            Self::Failed => "an operator: deploy again, or release the node",
        }
    }

    /// True between assignment and outcome.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        !matches!(self, Self::Enrolled | Self::Running | Self::Failed)
    }

    /// True while the agent in memory is expected to report every few seconds.
    #[must_use]
    pub fn has_agent(self) -> bool {
        WITH_AGENT.contains(&self)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What moves a node from stage to stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A deployment took the node in.
    Assigned,
    /// The power driver has switched it on.
    PoweredOn,
    /// Its firmware, loader or agent asked for an address.
    AddressAsked,
    /// The first loader was sent.
    BootloaderSent,
    /// Its boot script with our kernel was sent.
    ScriptSent,
    /// Kernel or initramfs was sent whole.
    KernelSent,
    /// The agent registered with this attempt's token.
    AgentRegistered,
    /// The disk was chosen and is being read.
    CaptureStarted,
    /// All that is used of the disk has been sent.
    Captured,
    /// The disks were found and are being wiped.
    WipeStarted,
    /// The disks are wiped and certified.
    Wiped,
    /// The disk was chosen and fetching began.
    FetchStarted,
    /// Every byte of the image is verified on the disk.
    ImageVerified,
    /// Post actions are done.
    PostActionsDone,
    /// The machine network-booted although it is to boot its disk.
    BootedNetworkAgain,
    /// The booted system proved digest, disk and attempt.
    Proved,
    /// This attempt is over; another follows.
    Retried,
    /// The machine restarted by itself during an attempt and asks for its script again.
    Restarted,
    /// The last attempt is over.
    GaveUp,
    /// An operator cancelled the deployment or released the node.
    Released,
}

/// A row of the life table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Stages that this row applies to.
    pub from: &'static [Stage],
    /// The cause.
    pub cause: Cause,
    /// The stage that follows; `None` leaves the stage as it is.
    pub to: Option<Stage>,
}

use Stage::{
    AgentUp, Capturing, Enrolled, Failed, Fetching, Leasing, LoadingBootloader, LoadingKernel, PostActions, PoweringOn,
    Rebooting, Running, Wiping,
};

const WITH_AGENT: &[Stage] = &[AgentUp, Capturing, Wiping, Fetching, PostActions];

const UNDER_WAY: &[Stage] = &[
    PoweringOn,
    Leasing,
    LoadingBootloader,
    LoadingKernel,
    AgentUp,
    Capturing,
    Wiping,
    Fetching,
    PostActions,
    Rebooting,
];
const BOOTING: &[Stage] = &[PoweringOn, Leasing, LoadingBootloader, LoadingKernel];
/// Loader, agent and the deployed system ask again, each for itself.
const ASKING_AGAIN: &[Stage] = &[
    Enrolled,
    LoadingBootloader,
    LoadingKernel,
    AgentUp,
    Capturing,
    Wiping,
    Fetching,
    PostActions,
    Rebooting,
    Running,
    Failed,
];

/// Every transition there is. A pair that stands in no row is unexpected.
///
/// Firmware is not obliged to show every step (its own iPXE skips our loader,
/// a foreign DHCP server hides the lease), so the boot stages may be skipped
/// forwards, never backwards.
pub const LIFE: &[Row] = &[
    Row { from: &[Enrolled, Running, Failed], cause: Cause::Assigned, to: Some(PoweringOn) },
    Row { from: &[PoweringOn], cause: Cause::PoweredOn, to: Some(Leasing) },
    // The machine may be faster than the answer of its BMC.
    Row { from: &[Leasing, LoadingBootloader, LoadingKernel], cause: Cause::PoweredOn, to: None },
    Row { from: &[PoweringOn, Leasing], cause: Cause::AddressAsked, to: Some(LoadingBootloader) },
    Row { from: ASKING_AGAIN, cause: Cause::AddressAsked, to: None },
    Row { from: &[PoweringOn, Leasing], cause: Cause::BootloaderSent, to: Some(LoadingBootloader) },
    Row { from: ASKING_AGAIN, cause: Cause::BootloaderSent, to: None },
    Row { from: BOOTING, cause: Cause::ScriptSent, to: Some(LoadingKernel) },
    Row { from: WITH_AGENT, cause: Cause::Restarted, to: Some(LoadingKernel) },
    // A machine that is to tell what it is boots our kernel as well.
    Row { from: &[Enrolled, LoadingKernel], cause: Cause::KernelSent, to: None },
    Row { from: BOOTING, cause: Cause::AgentRegistered, to: Some(AgentUp) },
    // An agent that lost its answer registers again.
    Row { from: WITH_AGENT, cause: Cause::AgentRegistered, to: None },
    // A capture leaves the disk as it was, so the node is where it was before: nothing is assigned to it.
    Row { from: &[AgentUp], cause: Cause::CaptureStarted, to: Some(Capturing) },
    Row { from: &[Capturing], cause: Cause::CaptureStarted, to: None },
    Row { from: &[Capturing], cause: Cause::Captured, to: Some(Enrolled) },
    // Whatever was deployed is gone with the first block, so a wipe ends with nothing assigned.
    Row { from: &[AgentUp], cause: Cause::WipeStarted, to: Some(Wiping) },
    Row { from: &[Wiping], cause: Cause::WipeStarted, to: None },
    Row { from: &[Wiping], cause: Cause::Wiped, to: Some(Enrolled) },
    Row { from: &[AgentUp], cause: Cause::FetchStarted, to: Some(Fetching) },
    Row { from: &[Fetching], cause: Cause::FetchStarted, to: None },
    Row { from: &[AgentUp, Fetching], cause: Cause::ImageVerified, to: Some(PostActions) },
    Row { from: &[PostActions], cause: Cause::ImageVerified, to: None },
    Row { from: &[PostActions], cause: Cause::PostActionsDone, to: Some(Rebooting) },
    Row { from: &[Rebooting], cause: Cause::PostActionsDone, to: None },
    Row { from: &[Enrolled, Rebooting, Running, Failed], cause: Cause::BootedNetworkAgain, to: None },
    // The report of finished post actions may be lost; the proof is stronger.
    Row { from: &[PostActions, Rebooting], cause: Cause::Proved, to: Some(Running) },
    Row { from: &[Running], cause: Cause::Proved, to: None },
    Row { from: UNDER_WAY, cause: Cause::Retried, to: Some(PoweringOn) },
    Row { from: UNDER_WAY, cause: Cause::GaveUp, to: Some(Failed) },
    Row {
        from: &[
            PoweringOn,
            Leasing,
            LoadingBootloader,
            LoadingKernel,
            AgentUp,
            Capturing,
            Wiping,
            Fetching,
            PostActions,
            Rebooting,
            Running,
            Failed,
        ],
        cause: Cause::Released,
        to: Some(Enrolled),
    },
    Row { from: &[Enrolled], cause: Cause::Released, to: None },
];

/// A cause that the present stage does not provide for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("unexpected in stage {stage}: {cause:?}")]
pub struct Unexpected {
    /// The stage.
    pub stage: Stage,
    /// The cause.
    pub cause: Cause,
}

/// The stage after `cause` in `stage`.
///
/// # Errors
/// [`Unexpected`] where the table has no row.
pub fn step(stage: Stage, cause: Cause) -> Result<Stage, Unexpected> {
    LIFE.iter()
        .find(|row| row.cause == cause && row.from.contains(&stage))
        .map(|row| row.to.unwrap_or(stage))
        .ok_or(Unexpected { stage, cause })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_pair_stands_in_two_rows() {
        for stage in Stage::ALL {
            for row in LIFE {
                let same = LIFE.iter().filter(|r| r.cause == row.cause && r.from.contains(&stage)).count();
                assert!(same <= 1, "{stage} {:?}", row.cause);
            }
        }
    }

    #[test]
    fn the_main_path_leads_from_enrolled_to_running() {
        use Cause::*;
        let path = [
            (Assigned, PoweringOn),
            (PoweredOn, Leasing),
            (AddressAsked, LoadingBootloader),
            (BootloaderSent, LoadingBootloader),
            (AddressAsked, LoadingBootloader),
            (ScriptSent, LoadingKernel),
            (KernelSent, LoadingKernel),
            (AgentRegistered, AgentUp),
            (FetchStarted, Fetching),
            (ImageVerified, PostActions),
            (PostActionsDone, Rebooting),
            (Proved, Running),
        ];
        let mut stage = Enrolled;
        for (cause, to) in path {
            stage = step(stage, cause).unwrap();
            assert_eq!(stage, to, "{cause:?}");
        }
    }

    #[test]
    fn a_capture_ends_where_it_began_and_never_writes() {
        let sent = step(step(AgentUp, Cause::CaptureStarted).unwrap(), Cause::Captured).unwrap();
        assert_eq!(sent, Enrolled);
        for cause in [Cause::FetchStarted, Cause::ImageVerified, Cause::PostActionsDone, Cause::Proved] {
            assert!(step(Capturing, cause).is_err(), "{cause:?}");
        }
    }

    #[test]
    fn a_wipe_ends_with_nothing_assigned_and_never_deploys() {
        let wiped = step(step(AgentUp, Cause::WipeStarted).unwrap(), Cause::Wiped).unwrap();
        assert_eq!(wiped, Enrolled);
        for cause in [Cause::FetchStarted, Cause::ImageVerified, Cause::PostActionsDone, Cause::Proved, Cause::Captured]
        {
            assert!(step(Wiping, cause).is_err(), "{cause:?}");
        }
        assert!(step(Fetching, Cause::WipeStarted).is_err() && step(Running, Cause::WipeStarted).is_err());
    }

    #[test]
    fn nothing_leads_to_running_but_the_proof() {
        for row in LIFE.iter().filter(|r| r.to == Some(Running)) {
            assert_eq!(row.cause, Cause::Proved);
        }
        let others =
            [Enrolled, PoweringOn, Leasing, LoadingBootloader, LoadingKernel, AgentUp, Capturing, Fetching, Failed];
        for stage in others {
            assert!(step(stage, Cause::Proved).is_err(), "{stage}");
        }
    }

    #[test]
    fn every_stage_under_way_can_be_let_go_and_given_up() {
        for stage in Stage::ALL {
            assert_eq!(step(stage, Cause::Released).unwrap(), Enrolled);
            assert_eq!(step(stage, Cause::GaveUp).is_ok(), stage.is_under_way(), "{stage}");
        }
    }
}
