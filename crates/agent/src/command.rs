//! Runs other programs: in a process group of their own, with a time limit,
//! with the end of what they print kept.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

use crate::Stop;

/// Where programs are looked for, in the boot environment and on any system.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The end of what a program prints that is kept, in bytes.
pub const TAIL_BYTES: usize = 4096;

/// Two looks at whether everything is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// After a program's end its output is read for this long: something that it
/// left running may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// A program did not do what was asked.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It is not there, or cannot be run.
    #[error("cannot run {program}: {source}")]
    NotStarted {
        /// The program.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It took too long and was ended with all that it started.
    #[error("{program} was ended after {seconds} s, its time limit; it printed: {output}")]
    TimedOut {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
        /// The end of what it printed.
        output: String,
    },
    /// Everything is to stop; it was ended.
    #[error("{program} was ended: {reason}")]
    Stopped {
        /// The program.
        program: String,
        /// Why everything stops.
        reason: String,
    },
    /// It ended with a failure.
    #[error("{program} {how}; it printed: {output}")]
    Failed {
        /// The program.
        program: String,
        /// Its status or signal.
        how: String,
        /// Its exit status, if it ended by itself.
        code: Option<i32>,
        /// The end of what it printed.
        output: String,
    },
}

/// A program to run, with its time limit.
#[derive(Debug)]
pub struct Run {
    name: String,
    command: std::process::Command,
    limit: Duration,
    fine: &'static [i32],
    input: Option<Vec<u8>>,
}

impl Run {
    /// Runs `program` from the search path, with no environment but `PATH`, `HOME`
    /// and `LANG`, for at most `limit`.
    #[must_use]
    pub fn new(program: &str, limit: Duration) -> Self {
        let mut command = std::process::Command::new(find(program).unwrap_or_else(|| program.into()));
        command.env_clear().env("PATH", SEARCH_PATH).env("HOME", "/root").env("LANG", "C");
        Self { name: program.to_owned(), command, limit, fine: &[0], input: None }
    }

    /// Runs `program` inside the file tree at `root`.
    #[must_use]
    pub fn inside(root: &Path, program: &str, limit: Duration) -> Self {
        let mut run = Self::new("chroot", limit);
        run.command.arg(root).arg(program);
        run.name = program.to_owned();
        run
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it something to read; nothing otherwise.
    #[must_use]
    pub fn input(mut self, bytes: Vec<u8>) -> Self {
        self.input = Some(bytes);
        self
    }

    /// Exit statuses that are no failure; 0 alone otherwise.
    #[must_use]
    pub fn fine(mut self, statuses: &'static [i32]) -> Self {
        self.fine = statuses;
        self
    }

    /// Runs it to its end and gives the end of what it printed.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn text(self, stop: &Stop) -> Result<String, CommandError> {
        self.run(stop).map(|(output, _)| output)
    }

    /// Runs it to its end; gives the end of what it printed and its status.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn run(mut self, stop: &Stop) -> Result<(String, i32), CommandError> {
        let program = self.name;
        let not_started = |source| CommandError::NotStarted { program: program.clone(), source };
        let (reader, writer) = io::pipe().map_err(not_started)?;
        let errors = writer.try_clone().map_err(not_started)?;
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(stdin).stdout(writer).stderr(errors).process_group(0);
        let mut child = self.command.spawn().map_err(not_started)?;
        if let (Some(bytes), Some(mut pipe)) = (self.input, child.stdin.take()) {
            // Off this thread: a program that does not read would hold us up. One that has ended needs nothing more.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        // The command holds our ends of the pipe, which would never end then.
        drop(self.command);
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (end_sender, end) = mpsc::channel();
        thread::spawn(move || end_sender.send(child.wait()));
        let (tail_sender, tail) = mpsc::channel();
        thread::spawn(move || tail_sender.send(read_tail(reader)));

        let ended = wait(&end, self.limit, stop);
        // Also after a good end: what it left running would keep files of the disk open.
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let output = tail.recv_timeout(DRAIN).unwrap_or_default();
        match ended {
            Ended::By(status) => {
                let status = status.map_err(not_started)?;
                judge(program, &status, self.fine, output)
            }
            Ended::Limit => Err(CommandError::TimedOut { program, seconds: self.limit.as_secs(), output }),
            Ended::Stop(reason) => Err(CommandError::Stopped { program, reason }),
        }
    }
}

enum Ended {
    By(io::Result<ExitStatus>),
    Limit,
    Stop(String),
}

fn wait(end: &mpsc::Receiver<io::Result<ExitStatus>>, limit: Duration, stop: &Stop) -> Ended {
    let deadline = Instant::now() + limit;
    loop {
        match end.recv_timeout(LOOK.min(deadline.saturating_duration_since(Instant::now()))) {
            Ok(status) => return Ended::By(status),
            Err(RecvTimeoutError::Disconnected) => return Ended::By(Err(io::Error::other("nobody waited for it"))),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(reason) = stop.reason() {
            return Ended::Stop(reason);
        }
        if Instant::now() >= deadline {
            return Ended::Limit;
        }
    }
}

fn judge(program: String, status: &ExitStatus, fine: &[i32], output: String) -> Result<(String, i32), CommandError> {
    match (status.code(), status.signal()) {
        (Some(code), _) if fine.contains(&code) => Ok((output, code)),
        (Some(code), _) => {
            Err(CommandError::Failed { program, how: format!("ended with status {code}"), code: Some(code), output })
        }
        (None, signal) => {
            let how = format!("was ended by signal {}", signal.unwrap_or_default());
            Err(CommandError::Failed { program, how, code: None, output })
        }
    }
}

fn read_tail(mut reader: PipeReader) -> String {
    let mut tail = VecDeque::with_capacity(TAIL_BYTES);
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        tail.extend(&buffer[..count]);
        tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
    }
    let bytes: Vec<u8> = tail.into();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// The program's file in [`SEARCH_PATH`].
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    SEARCH_PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, limit: Duration) -> Run {
        Run::new("sh", limit).args(["-c", script])
    }

    #[test]
    fn what_is_given_is_read_whole() {
        let stop = Stop::default();
        let much = vec![b'x'; 1 << 20];
        assert_eq!(sh("wc -c", LONG).input(much.clone()).text(&stop).unwrap(), "1048576");
        assert_eq!(sh("echo no thanks", LONG).input(much).text(&stop).unwrap(), "no thanks");
        assert_eq!(sh("wc -c", LONG).text(&stop).unwrap(), "0");
    }

    #[test]
    fn both_outputs_are_kept_and_statuses_judged() {
        let stop = Stop::default();
        assert_eq!(sh("echo out; echo err >&2", LONG).text(&stop).unwrap(), "out\nerr");
        assert_eq!(sh("exit 1", LONG).fine(&[0, 1]).run(&stop).unwrap().1, 1);
        let error = sh("echo why; exit 3", LONG).text(&stop).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with status 3; it printed: why");
        let error = sh("kill -9 $$", LONG).text(&stop).unwrap_err();
        assert!(error.to_string().contains("signal 9"), "{error}");
        let error = Run::new("no-such-program", LONG).text(&stop).unwrap_err();
        assert!(error.to_string().starts_with("cannot run no-such-program: "), "{error}");
    }

    #[test]
    fn only_the_end_of_long_output_is_kept() {
        let text = sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done", LONG).text(&Stop::default());
        let text = text.unwrap();
        assert!(text.len() <= TAIL_BYTES && text.ends_with("line 2999"), "{} {text}", text.len());
    }

    #[test]
    fn at_the_limit_the_whole_group_is_ended() {
        let started = Instant::now();
        let error = sh("sleep 300 & echo $!; wait", Duration::from_millis(300)).text(&Stop::default()).unwrap_err();
        assert!(started.elapsed() < LONG);
        let CommandError::TimedOut { output, .. } = error else { panic!("{error}") };
        assert_gone(output.trim());
    }

    #[test]
    fn what_a_program_leaves_running_is_ended_with_it() {
        let child = sh("sleep 300 & echo $!", LONG).text(&Stop::default()).unwrap();
        assert_gone(&child);
    }

    #[test]
    fn stop_ends_a_program() {
        let stop = Stop::default();
        thread::spawn({
            let stop = stop.clone();
            move || stop.set("attempt 1 is over")
        });
        let error = sh("sleep 300", LONG).text(&stop).unwrap_err();
        assert_eq!(error.to_string(), "sh was ended: attempt 1 is over");
    }

    fn assert_gone(process: &str) {
        let deadline = Instant::now() + LONG;
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // An ended process that its new parent has not waited for yet is in state Z.
            stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
        };
        while alive() {
            assert!(Instant::now() < deadline, "{process} still runs");
            thread::yield_now();
        }
    }
}
