//! Process 1 of the boot environment. It starts the agent proper as its child
//! and stands over it: whatever becomes of the child, also a crash, the
//! controller is told and the machine starts again. It reaps every orphan.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use api::agent::{Report, ReportKind, Token};
use api::client::Client;
use fleet::ids::Attempt;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, getpid, wait};
use rustix::system::{RebootCommand, reboot};

use crate::command::{SEARCH_PATH, find};
use crate::kernel_line::wants_shell;
use crate::{Error, console, post};

/// Time to read the console before a machine that failed starts again.
const PAUSE: Duration = Duration::from_secs(10);
/// How long telling the controller of a crash may take.
const CRASH_REPORT_LIMIT: Duration = Duration::from_secs(60);
/// Time to read the console where the agent cannot even be started.
const BROKEN_PAUSE: Duration = Duration::from_secs(60);

/// Exit status of an agent whose end process 1 must report; 0 and 1 are ends
/// that it has reported itself.
const GAVE_UP: i32 = 3;
/// Which attempt runs, for the report of a crash.
const ATTEMPT: &str = "/run/rackswarm/attempt.json";
/// What a panic said.
const PANIC: &str = "/run/rackswarm/panic";

/// What the kernel provides; in this order, the first that others lie in first.
const MOUNTS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("devpts", "/dev/pts", "devpts"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),
];

/// Whether this process is the first of the machine.
#[must_use]
pub fn is_first_process() -> bool {
    getpid().is_init()
}

/// Runs the machine from here to its restart.
pub fn supervise() -> ! {
    console::open();
    for (source, target, kind) in MOUNTS {
        if let Err(errno) = mount_one(source, target, kind) {
            tracing::warn!("cannot mount {target}: {}", std::io::Error::from(errno));
        }
    }
    tracing::info!("agent {} starts", crate::VERSION);
    match start_agent() {
        Ok(agent) => {
            let ended = watch(agent);
            after(&ended);
            if ended == Ended::Well && post::kernel_is_loaded() {
                start_loaded_kernel();
            }
        }
        Err(error) => {
            tracing::error!("the agent does not start: {error}");
            thread::sleep(BROKEN_PAUSE);
        }
    }
    restart()
}

/// Keeps what a crash report needs. Without it a crash is only seen as silence.
pub(crate) fn remember(server: &str, token: &Token, attempt: Attempt) {
    let facts = serde_json::json!([server, token, attempt]);
    if let Err(error) = write_secret(Path::new(ATTEMPT), facts.to_string().as_bytes()) {
        tracing::warn!("cannot write {ATTEMPT}: {error}");
    }
}

/// Ends the agent in the middle of whatever it does; process 1 tells why.
pub fn give_up(reason: &str) -> ! {
    let _ = write_secret(Path::new(PANIC), reason.as_bytes());
    std::process::exit(GAVE_UP)
}

/// Keeps what a panic says for the report, besides printing it.
pub fn keep_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = write_secret(Path::new(PANIC), panic.to_string().as_bytes());
        print(panic);
    }));
}

fn mount_one(source: &str, target: &str, kind: &str) -> Result<(), Errno> {
    let _ = fs::create_dir_all(target);
    if is_mount_point(Path::new(target)) {
        return Ok(());
    }
    mount(source, target, kind, MountFlags::empty(), None)
}

/// Something may be there already: the kernel can mount /dev by itself.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    path.parent().is_some_and(|above| device(above) != device(path))
}

fn start_agent() -> Result<Pid, Error> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("run").env("PATH", SEARCH_PATH).env("HOME", "/root").env("TERM", "linux").stdin(Stdio::null());
    let child = command.spawn().map_err(Error::io("run", "/proc/self/exe"))?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| Error::Defect("no process id".into()))
}

/// Reaps whatever ends until it is the agent.
fn watch(agent: Pid) -> Ended {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                return Ended::of(status.exit_status(), status.terminating_signal());
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Ended::Crashed(format!("it was lost: {}", std::io::Error::from(errno))),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Well,
    /// It has said why, to the controller and on the console.
    Failed,
    Crashed(String),
}

impl Ended {
    fn of(exit_status: Option<i32>, signal: Option<i32>) -> Self {
        match (exit_status, signal) {
            (Some(0), _) => Self::Well,
            (Some(1), _) => Self::Failed,
            (Some(code), _) => Self::Crashed(format!("it ended with status {code}")),
            (None, signal) => Self::Crashed(format!("it was ended by signal {}", signal.unwrap_or_default())),
        }
    }
}

fn after(ended: &Ended) {
    if let Ended::Crashed(how) = ended {
        let panic = fs::read_to_string(PANIC).unwrap_or_default();
        let reason = format!("the agent ended unexpectedly, {how}: {}", panic.trim());
        let reason = reason.trim_end_matches([':', ' ']).to_owned();
        tracing::error!("{reason}");
        report_crash(&reason);
    }
    if *ended != Ended::Well {
        if fs::read_to_string("/proc/cmdline").is_ok_and(|line| wants_shell(&line)) {
            shell();
        } else {
            tracing::info!("the machine starts again in {} s", PAUSE.as_secs());
            thread::sleep(PAUSE);
        }
    }
}

fn report_crash(reason: &str) {
    let Ok(facts) = fs::read(ATTEMPT) else { return };
    let Ok((server, token, attempt)) = serde_json::from_slice::<(String, Token, Attempt)>(&facts) else { return };
    let what = ReportKind::Failed { reason: reason.to_owned(), retry: true };
    let report = Report { attempt, what };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let told = runtime.block_on(tokio::time::timeout(CRASH_REPORT_LIMIT, async {
        let client = Client::new(&server, token)?;
        let mut pauses = crate::report::Pauses::default();
        loop {
            match client.report(&report).await {
                Err(error) if error.may_pass() => pauses.wait().await,
                other => return other,
            }
        }
    }));
    if !matches!(told, Ok(Ok(()))) {
        tracing::warn!("the controller could not be told");
    }
}

fn shell() {
    tracing::info!("rackswarm.debug=shell: the machine starts again when this shell ends");
    let program = find("sh").unwrap_or_else(|| "/bin/sh".into());
    let ended = Command::new(program).arg("-l").env("PATH", SEARCH_PATH).env("TERM", "linux").status();
    if let Err(error) = ended {
        tracing::warn!("no shell: {error}");
        thread::sleep(PAUSE);
    }
}

/// Comes back only where the kernel refuses.
fn start_loaded_kernel() {
    tracing::info!("the deployed kernel is started without the firmware");
    rustix::fs::sync();
    if let Err(errno) = reboot(RebootCommand::Kexec) {
        tracing::error!("it cannot be started, the machine restarts: {}", std::io::Error::from(errno));
    }
}

fn restart() -> ! {
    rustix::fs::sync();
    if let Err(errno) = reboot(RebootCommand::Restart) {
        tracing::error!("the machine does not restart: {}", std::io::Error::from(errno));
    }
    // Without its first process the kernel panics, and `panic=1` on its line restarts it.
    std::process::exit(GAVE_UP)
}

fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_the_agent_is_told_apart() {
        assert_eq!(Ended::of(Some(0), None), Ended::Well);
        assert_eq!(Ended::of(Some(1), None), Ended::Failed);
        assert_eq!(Ended::of(Some(101), None), Ended::Crashed("it ended with status 101".into()));
        assert_eq!(Ended::of(None, Some(6)), Ended::Crashed("it was ended by signal 6".into()));
    }
}
