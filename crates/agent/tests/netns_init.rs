//! The agent as process 1, in a PID namespace: there, restarting the machine
//! ends the namespace (reboot(2)) and nothing else. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_kernel_line_that_lacks_something_is_told_and_the_machine_starts_again() {
    let mut machine = Machine::start("console=ttyS0 rackswarm.server=http://10.0.0.1:8080");
    machine.says("agent 0.1.0 starts");
    machine.says("the kernel line cannot be used: it has no rackswarm.token=");
    machine.says("the machine starts again in 10 s");
    machine.restarts();
}

#[test]
fn an_agent_that_is_killed_is_noticed_and_the_machine_starts_again() {
    let mut machine =
        Machine::start("rackswarm.server=http://10.0.0.1:8080 rackswarm.token=t rackswarm.mac=52:54:00:00:00:01");
    machine.says("agent 0.1.0 starts");
    kill(machine.agent(), Signal::SIGABRT).unwrap();
    machine.says("the agent ended unexpectedly, it was ended by signal 6");
    machine.restarts();
}

/// A PID, mount and network namespace whose first process is the agent.
struct Machine {
    outside: Child,
    console: Receiver<String>,
    heard: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Machine {
    fn start(kernel_line: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces: run `cargo xtask test` as root");
        let folder = tempfile::tempdir().unwrap();
        let line = folder.path().join("cmdline");
        fs::write(&line, format!("{kernel_line}\n")).unwrap();
        let script =
            format!("mount --bind {} /proc/cmdline && exec {}", line.display(), env!("CARGO_BIN_EXE_rackswarm-agent"));
        let mut outside = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare is missing: run `cargo xtask test`, which installs util-linux");
        let lines = BufReader::new(outside.stderr.take().unwrap()).lines();
        let (sender, console) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { outside, console, heard: Vec::new(), _folder: folder }
    }

    /// Waits for a line of the console with these words.
    fn says(&mut self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(words) => {
                    assert!(line.starts_with("rackswarm: "), "{line}");
                    return;
                }
                Ok(line) => self.heard.push(line),
                Err(_) => panic!("`{words}` was never said, only {:?}", self.heard),
            }
        }
    }

    /// The agent proper: the child of the namespace's first process.
    fn agent(&self) -> Pid {
        let deadline = Instant::now() + LIMIT;
        loop {
            let outside = i32::try_from(self.outside.id()).unwrap();
            if let Some(agent) = child_of(outside).and_then(child_of) {
                return Pid::from_raw(agent);
            }
            assert!(Instant::now() < deadline, "the agent was never started");
            thread::yield_now();
        }
    }

    /// In a namespace a restart ends the first process by SIGHUP (reboot(2)),
    /// which unshare passes on.
    fn restarts(mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.outside.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it did not start again");
            thread::sleep(Duration::from_millis(20));
        }
        let status = self.outside.wait().unwrap();
        let hung_up = status.signal() == Some(1) || status.code() == Some(128 + 1);
        assert!(hung_up, "{status:?}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The namespace goes with it.
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

fn child_of(parent: i32) -> Option<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut found = processes.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in parentheses may hold anything; behind it come state and parent.
        let its_parent: i32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        (its_parent == parent).then_some(pid)
    });
    found.next()
}
