//! What ends an attempt, as sentences that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use fleet::disk::Refusal;
use thiserror::Error;

use crate::command::CommandError;

/// Every failure of the agent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel's command line is not usable.
    #[error("the kernel line cannot be used: {0}")]
    KernelLine(String),
    /// The command line is not usable.
    #[error("{0}; `rackswarm-agent --help` shows what there is")]
    Usage(String),
    /// The interface to use is not there.
    #[error("the machine has no network interface {wanted} (it has {seen}); the boot environment may lack its driver")]
    NoInterface {
        /// Which one was looked for.
        wanted: String,
        /// Those that are there.
        seen: String,
    },
    /// The interface has no link.
    #[error("{interface} has no link after {seconds} s; check the cable and the switch port")]
    NoCarrier {
        /// The interface.
        interface: String,
        /// How long was waited.
        seconds: u64,
    },
    /// No address was had.
    #[error("no DHCP server gave {interface} an address within {seconds} s; check the DHCP service and its pool")]
    NoLease {
        /// The interface.
        interface: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The controller could not be asked.
    #[error("{url} did not answer for {minutes} min ({cause}); check that the controller runs and can be reached")]
    Silent {
        /// Base URL of the controller.
        url: String,
        /// How long was waited.
        minutes: u64,
        /// The last failure.
        cause: String,
    },
    /// The controller does not want this machine; nobody to report to.
    #[error("the controller refused this machine: {0}")]
    Refused(String),
    /// The attempt is over; everything stops and nobody is told.
    #[error("{0}")]
    AttemptOver(String),
    /// The controller contradicts itself.
    #[error("the assignment cannot be carried out: {0}")]
    Assignment(String),
    /// No disk may be written.
    #[error(transparent)]
    Interlock(#[from] Refusal),
    /// The image or the disk.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Pieces do not arrive.
    #[error("the image could not be fetched: {0}")]
    Fetch(String),
    /// The disk does not get into the registry.
    #[error("the disk could not be captured: {0}")]
    Capture(String),
    /// A disk is not wiped as it should be.
    #[error("the wipe failed: {0}; do not let the disk out of your hands")]
    Wipe(String),
    /// A layout is not built.
    #[error("the layout is not built: {0}")]
    Layout(String),
    /// A layout that cannot be built on this machine; nothing was written.
    #[error("the layout cannot be built here: {0}; nothing was written")]
    LayoutWrong(#[from] fleet::layout::Wrong),
    /// A post action failed.
    #[error("post action {action}: {why}")]
    Post {
        /// Which one.
        action: &'static str,
        /// Why, and what to do.
        why: String,
        /// False where it would fail alike again.
        retry: bool,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// An operating system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A defect of this program.
    #[error("the agent itself failed ({0}); please report this")]
    Defect(String),
}

impl Error {
    /// Whether another attempt may go better.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::Interlock(_)
            | Self::Capture(_)
            | Self::Wipe(_)
            | Self::LayoutWrong(_)
            | Self::Image(image::Error::TooSmall { .. }) => false,
            Self::Post { retry, .. } => *retry,
            _ => true,
        }
    }

    /// Whether the controller should hear of it as the end of the attempt.
    #[must_use]
    pub fn is_to_be_reported(&self) -> bool {
        !matches!(self, Self::AttemptOver(_) | Self::Refused(_) | Self::Silent { .. })
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn sys(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let wrap = Self::io(action, path);
        move |errno| wrap(errno.into())
    }
}
