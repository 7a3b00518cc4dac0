//! The QEMU process of a machine, told from any other by its command line.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use super::{Machine, POLL};

/// A handle that stays with the process: a reused process id can never be hit.
pub(super) struct Process {
    pid: Pid,
    handle: OwnedFd,
    pid_file: std::path::PathBuf,
}

impl Process {
    /// The machine's process, if it is alive.
    pub(super) fn find(machine: &Machine) -> Option<Process> {
        let pid_file = machine.pid_file();
        let text = std::fs::read_to_string(&pid_file).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The command line is read after the handle was opened, so it belongs to the process behind the handle.
        runs(pid, &pid_file).then_some(Process { pid, handle, pid_file })
    }

    pub(super) fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) fn kill(&self) -> rustix::io::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    /// Waits until it has ended; false when it still runs at the deadline.
    pub(super) async fn wait(&self, deadline: Instant) -> bool {
        while runs(self.pid, &self.pid_file) {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }
}

/// Whether process `pid` is the QEMU that was given `pid_file`. A process that has ended and waits for its parent has an
/// empty command line.
fn runs(pid: Pid, pid_file: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return false };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair[0] == b"-pidfile" && pair[1] == pid_file.as_os_str().as_bytes())
}
