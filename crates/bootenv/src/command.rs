//! Running other programs: with a deadline, their words passed on, their failure in a sentence.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// How many of a program's last lines an error repeats.
const TAIL_LINES: usize = 12;
/// The longest line of a program that is kept, in bytes.
const LINE_BYTES: usize = 4096;
/// The most that a program may print as its result, in bytes.
const OUTPUT_BYTES: u64 = 64 << 20;
/// How long a program has when nobody says otherwise.
const DEADLINE: Duration = Duration::from_secs(300);

/// A program to run, with what a person needs to know when it fails.
pub struct Run<'a> {
    command: Command,
    what: String,
    package: &'static str,
    hint: &'static str,
    deadline: Duration,
    progress: &'a dyn Fn(&str),
}

impl<'a> Run<'a> {
    /// `program`, which the Debian package `package` holds. It gets five minutes, the C locale and no input.
    pub fn new(program: &str, package: &'static str) -> Self {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("LANGUAGE", "C");
        Run { command, what: program.to_owned(), package, hint: "", deadline: DEADLINE, progress: &|_| () }
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets its working folder.
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Says what it is run for; errors name it so.
    pub fn to(mut self, purpose: &str) -> Self {
        self.what = format!("{} (to {purpose})", self.what);
        self
    }

    /// Says what to try when it fails.
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    /// Sets how long it may run.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Passes on each line that it writes to its error output.
    pub fn lines_to(mut self, progress: &'a dyn Fn(&str)) -> Self {
        self.progress = progress;
        self
    }

    /// Runs it to its end and gives what it printed.
    ///
    /// # Errors
    /// When it is not installed, fails, prints more than 64 MiB or outlives its deadline; then it is killed.
    pub fn output(mut self) -> Result<Vec<u8>, Error> {
        let program = self.command.get_program().to_string_lossy().into_owned();
        let spawned = self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::NoProgram { program: program.clone(), package: self.package },
            _ => Error::File { action: "start", path: program.clone().into(), source },
        })?;
        let end = Instant::now() + self.deadline;
        let (lines_in, lines) = sync_channel(64);
        let reader = child.stdout.take().map(|stdout| thread::spawn(move || read_all(stdout)));
        let listener = child.stderr.take().map(|stderr| thread::spawn(move || read_lines(stderr, &lines_in)));

        let mut tail = VecDeque::new();
        let status = match self.follow(&lines, end, &mut tail) {
            Follow::Closed => wait_until(&mut child, end),
            Follow::Late => None,
        };
        let Some(status) = status else {
            // Killing may lose the race with the program's own end; waiting then only collects it.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Deadline { program: self.what, seconds: self.deadline.as_secs(), tail: join(&tail) });
        };
        let output = reader.map(thread::JoinHandle::join);
        drop(listener.map(thread::JoinHandle::join));
        if !status.success() {
            return Err(self.failed(&status, &tail));
        }
        match output {
            Some(Ok(Ok(bytes))) => Ok(bytes),
            Some(Ok(Err(source))) => Err(Error::File { action: "read the output of", path: program.into(), source }),
            Some(Err(_)) | None => Ok(Vec::new()),
        }
    }

    /// Runs it and gives what it printed as text, damaged characters replaced.
    ///
    /// # Errors
    /// As [`Run::output`].
    pub fn text(self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.output()?).into_owned())
    }

    fn follow(&self, lines: &Receiver<String>, end: Instant, tail: &mut VecDeque<String>) -> Follow {
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    (self.progress)(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                Err(RecvTimeoutError::Disconnected) => return Follow::Closed,
                Err(RecvTimeoutError::Timeout) => return Follow::Late,
            }
        }
    }

    fn failed(self, status: &ExitStatus, tail: &VecDeque<String>) -> Error {
        Error::Program { program: self.what, status: status.to_string(), hint: self.hint, tail: join(tail) }
    }
}

enum Follow {
    Closed,
    Late,
}

fn join(tail: &VecDeque<String>) -> String {
    tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
}

fn read_all(stream: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(OUTPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Carriage returns end lines too: progress meters use them.
fn read_lines(stream: impl Read, lines: &SyncSender<String>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while let Ok(chunk) = stream.fill_buf() {
        if chunk.is_empty() {
            break;
        }
        let taken = chunk.len();
        for &byte in chunk {
            if byte == b'\n' || byte == b'\r' {
                if !line.is_empty() && lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            } else if line.len() < LINE_BYTES {
                line.push(byte);
            }
        }
        stream.consume(taken);
    }
    if !line.is_empty() {
        // Nobody listening any more is no reason to fail.
        let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
    }
}

/// A program may close its error output long before it ends, so its end is asked for until the deadline.
fn wait_until(child: &mut Child, end: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => thread::sleep(pause),
            Ok(None) | Err(_) => return None,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn output_and_lines_arrive_apart() {
        let seen = RefCell::new(Vec::new());
        let progress = |line: &str| seen.borrow_mut().push(line.to_owned());
        let run = Run::new("sh", "dash").args(["-c", "echo result; echo one >&2; printf '10%%\\r20%%' >&2"]);
        assert_eq!(run.lines_to(&progress).text().unwrap(), "result\n");
        assert_eq!(*seen.borrow(), ["one", "10%", "20%"]);
    }

    #[test]
    fn failure_repeats_the_last_words() {
        let error = Run::new("sh", "dash").args(["-c", "echo no such release >&2; exit 3"]).to("try").output();
        let sentence = error.unwrap_err().to_string();
        assert!(sentence.contains("sh (to try)") && sentence.contains("no such release"), "{sentence}");
    }

    #[test]
    fn a_hanging_program_is_ended() {
        let run = Run::new("sh", "dash").args(["-c", "echo started >&2; exec sleep 60"]);
        let error = run.deadline(Duration::from_millis(200)).output().unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Run::new("rackswarm-no-such-program", "gdisk").output().unwrap_err();
        assert!(error.to_string().contains("apt-get install gdisk"), "{error}");
    }
}
