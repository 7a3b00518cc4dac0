//! Runs the programs that know file systems: with a deadline, line by line, a failure in their own words.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// Lines that may wait for their reader.
const LINES: usize = 256;
/// Longest line, in bytes: the free blocks of one block group.
const LINE_BYTES: u64 = 4 << 20;
/// What is kept of a failing program's words.
const MESSAGE_BYTES: u64 = 4096;

/// A program of a Debian package.
pub(super) struct Tool<'a> {
    pub(super) program: &'static str,
    pub(super) package: &'static str,
    /// How long it may take.
    pub(super) limit: Duration,
    /// Exit statuses that are no failure.
    pub(super) fine: &'a [i32],
}

impl Tool<'_> {
    /// Runs it and shows each line of its output; gives what it wrote to its error output.
    ///
    /// # Errors
    /// [`Error::NoTool`] when it is not installed, [`Error::Tool`] when it fails or is not done in time.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        each: &mut dyn FnMut(&str),
    ) -> Result<String, Error> {
        let mut command = Command::new(self.program);
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoTool { program: self.program, package: self.package },
            _ => self.failed(&format!("it cannot be started: {error}")),
        })?;
        let mut running = Running(child);
        let words = running.0.stderr.take().map(|stderr| thread::spawn(move || read_words(stderr)));
        let deadline = Instant::now() + self.limit;
        if let Some(stdout) = running.0.stdout.take() {
            let (sender, lines) = sync_channel(LINES);
            thread::spawn(move || {
                let mut reader = BufReader::new(stdout);
                let mut line = Vec::new();
                while let Ok(1..) = reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
            loop {
                match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(line) => each(line.trim_end()),
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => return Err(self.late()),
                }
            }
        }
        let status = loop {
            match running.0.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() > deadline => return Err(self.late()),
                // Its output has ended, so it is about to end itself.
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(self.failed(&error.to_string())),
            }
        };
        let words = words.and_then(|thread| thread.join().ok()).unwrap_or_default();
        match status.code() {
            Some(code) if self.fine.contains(&code) => Ok(words),
            _ if words.is_empty() => Err(self.failed(&format!("it ended with {status} and without a word"))),
            _ => Err(self.failed(&words)),
        }
    }

    pub(super) fn failed(&self, message: &str) -> Error {
        Error::Tool { program: self.program, message: message.to_owned() }
    }

    fn late(&self) -> Error {
        self.failed(&format!("it was not done within {} s and was ended", self.limit.as_secs()))
    }
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_words(mut stderr: impl Read) -> String {
    let mut words = Vec::new();
    let _ = stderr.by_ref().take(MESSAGE_BYTES).read_to_end(&mut words);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&words).trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> (Result<String, Error>, Vec<String>) {
        let mut lines = Vec::new();
        let tool = Tool { program: "sh", package: "dash", limit, fine: &[0, 4] };
        let outcome = tool.run(["-c", script], &mut |line| lines.push(line.to_owned()));
        (outcome, lines)
    }

    #[test]
    fn lines_words_and_statuses_are_told_apart() {
        let long = Duration::from_secs(60);
        let (words, lines) = sh("echo one; echo oops >&2; echo two; exit 4", long);
        assert_eq!((words.unwrap().as_str(), lines), ("oops", vec!["one".to_owned(), "two".to_owned()]));
        let error = sh("echo why >&2; exit 1", long).0.unwrap_err().to_string();
        assert!(error.contains("sh") && error.contains("why"), "{error}");
        let error = sh("sleep 600", Duration::from_millis(200)).0.unwrap_err().to_string();
        assert!(error.contains("not done within"), "{error}");
        let none = Tool { program: "no-such-program", package: "none", limit: long, fine: &[0] };
        assert!(matches!(none.run(["x"], &mut |_| ()), Err(Error::NoTool { .. })));
    }
}
