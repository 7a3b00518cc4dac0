//! Running programs: each has a name and a time that is printed, some have a deadline, and Ctrl-C is theirs to answer.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const SIGNALS: [i32; 3] = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP];
/// How often a running program is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// What a program gets to clean up after it was told to end.
const GRACE: Duration = Duration::from_secs(60);

/// The last signal that this process received, 0 for none.
static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on signals no longer end this process: they are passed to the program that runs, which is waited for.
pub(crate) fn catch_signals() -> Result<()> {
    let cell = RECEIVED.get_or_init(Arc::default);
    for signal in SIGNALS {
        signal_hook::flag::register_usize(signal, Arc::clone(cell), usize::try_from(signal)?)
            .context("cannot catch signals")?;
    }
    Ok(())
}

/// The signal that this process was told to end with.
pub(crate) fn received() -> Option<i32> {
    let signal = RECEIVED.get()?.load(Ordering::SeqCst);
    i32::try_from(signal).ok().filter(|signal| *signal != 0)
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal, or after this process received it.
    Signalled(i32),
    /// It was told to end because its time was over.
    OutOfTime(Duration),
}

impl Ended {
    pub(crate) const SUCCESS: Self = Self::Exited(0);
    pub(crate) const FAILURE: Self = Self::Exited(1);

    pub(crate) fn is_success(self) -> bool {
        self == Self::SUCCESS
    }

    /// A signal's exit status is 128 and its number, as in a shell.
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Exited(code) => ExitCode::from(code),
            Self::Signalled(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
            Self::OutOfTime(_) => ExitCode::from(124),
        }
    }

    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(u8::try_from(code).unwrap_or(1)),
            (None, Some(signal)) => Self::Signalled(signal),
            (None, None) => Self::FAILURE,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("passed"),
            Self::Exited(code) => write!(f, "failed with exit status {code}"),
            Self::Signalled(signal) => write!(f, "ended by signal {signal}"),
            Self::OutOfTime(limit) => write!(f, "did not finish within {}", Seconds(*limit)),
        }
    }
}

/// A duration as people say it.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..10 => write!(f, "{seconds}.{} s", self.0.subsec_millis() / 100),
            seconds @ 10..100 => write!(f, "{seconds} s"),
            seconds => write!(f, "{} min {} s", seconds / 60, seconds % 60),
        }
    }
}

/// Prints a headline, runs `work`, prints its time.
pub(crate) fn step<T>(headline: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {headline}");
    let start = Instant::now();
    let result = work()?;
    println!("    done in {}", Seconds(start.elapsed()));
    Ok(result)
}

/// Runs a program to its end, with this process's own input and output.
///
/// Its deadline ends it with SIGTERM; so does a signal that this process alone receives. A Ctrl-C at the terminal
/// reaches the program without our help, since it is in the same process group.
pub(crate) fn wait(command: &mut Command, limit: Option<Duration>) -> Result<Ended> {
    if let Some(signal) = received() {
        return Ok(Ended::Signalled(signal));
    }
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
    let start = Instant::now();
    let mut told: Option<(Instant, Ended)> = None;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for `{name}`"))? {
            let own = Ended::of(status);
            return Ok(told.map_or(own, |(_, why)| why));
        }
        match (told, received(), limit) {
            (None, Some(signal), _) => {
                let at_terminal = signal == signal_hook::consts::SIGINT && std::io::stdin().is_terminal();
                if !at_terminal {
                    tell(&child, signal);
                }
                told = Some((Instant::now(), Ended::Signalled(signal)));
            }
            (None, None, Some(limit)) if start.elapsed() > limit => {
                eprintln!("xtask: `{name}` did not finish within {}; it is told to end", Seconds(limit));
                tell(&child, signal_hook::consts::SIGTERM);
                told = Some((Instant::now(), Ended::OutOfTime(limit)));
            }
            (Some((since, _)), _, _) if since.elapsed() > GRACE => {
                eprintln!("xtask: `{name}` does not end; it is killed");
                child.kill().with_context(|| format!("cannot kill `{name}`"))?;
            }
            _ => {}
        }
        thread::sleep(GLANCE);
    }
}

/// Sends a signal by way of the shell, whose `kill` is always there.
fn tell(child: &Child, signal: i32) {
    let script = format!("kill -{signal} {}", child.id());
    // It fails only when the program has just ended, which the next glance sees.
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
}

/// As [`wait`], and anything but success is an error that names the program.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    match wait(command, None)? {
        Ended::Exited(0) => Ok(()),
        ended => bail!("`{}` {ended}", line(command)),
    }
}

/// The program's output, without surrounding white space; its messages go to our standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = line(command);
    let result = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !result.status.success() {
        bail!("`{shown}` {}", Ended::of(result.status));
    }
    Ok(String::from_utf8_lossy(&result.stdout).trim().to_owned())
}

/// The command as it would be typed.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// True where the program can be started from the search path.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// True for the superuser.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    effective == Some("0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn exit_statuses_are_passed_on() {
        assert_eq!(wait(&mut shell("exit 0"), None).unwrap(), Ended::SUCCESS);
        assert_eq!(wait(&mut shell("exit 7"), None).unwrap(), Ended::Exited(7));
        assert_eq!(wait(&mut shell("kill -9 $$"), None).unwrap(), Ended::Signalled(9));
    }

    #[test]
    fn a_deadline_lets_the_program_clean_up() {
        let folder = std::env::temp_dir().join(format!("xtask-{}-cleaned", std::process::id()));
        let script = format!("trap 'touch {}; exit 0' TERM; while :; do sleep 0.05; done", folder.display());
        let limit = Duration::from_millis(300);
        assert_eq!(wait(&mut shell(&script), Some(limit)).unwrap(), Ended::OutOfTime(limit));
        std::fs::remove_file(folder).unwrap();
    }

    #[test]
    fn times_read_well() {
        assert_eq!(Seconds(Duration::from_millis(1_250)).to_string(), "1.2 s");
        assert_eq!(Seconds(Duration::from_secs(42)).to_string(), "42 s");
        assert_eq!(Seconds(Duration::from_secs(605)).to_string(), "10 min 5 s");
    }
}
