//! What a peer uses, however it forks: a control group's CPU time and the memory of its processes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Where groups are made; both generations of control groups count CPU time.
const V1: &str = "/sys/fs/cgroup/cpuacct";
const V2: &str = "/sys/fs/cgroup";

/// The processes of one peer.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    /// CPU time when the measurement began.
    base: Duration,
    resident_peak: BTreeMap<u32, u64>,
    anonymous_peak: BTreeMap<u32, u64>,
}

impl Group {
    /// Makes an empty group; `name` is unique on this machine.
    ///
    /// # Errors
    /// When this machine has no control groups that count CPU time, or refuses.
    pub fn new(name: &str) -> Result<Group> {
        let parent = if Path::new(V1).join("cpuacct.usage").exists() { V1 } else { V2 };
        let path = Path::new(parent).join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(Group { path, base: Duration::ZERO, resident_peak: BTreeMap::new(), anonymous_peak: BTreeMap::new() })
    }

    /// The file that takes the id of a process which is to belong to the group.
    fn door(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// A command that a shell runs: it puts itself into the group, waits for a line on its standard input where there
    /// is a gate, and then the program takes its place, so that its first instruction is counted and timed. Words of
    /// that line are words of the program's.
    #[must_use]
    pub fn command(&self, line: &[String], gated: bool) -> Command {
        let script = match gated {
            true => "echo $$ >\"$0\" && read -r words && set -f && exec \"$@\" $words </dev/null",
            false => "echo $$ >\"$0\" && exec \"$@\"",
        };
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(self.door()).args(line).process_group(0);
        command.stdin(if gated { Stdio::piped() } else { Stdio::null() });
        command
    }

    /// The processes in it.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.door()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// CPU time counts from now on.
    pub fn begin(&mut self) {
        self.base = self.total();
    }

    /// User and system time since [`Group::begin`], of processes that have ended too.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        self.total().saturating_sub(self.base).as_secs_f64()
    }

    /// Looks at the memory of everybody in it.
    pub fn sample(&mut self) {
        for pid in self.pids() {
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            for (key, peaks) in [("VmHWM:", &mut self.resident_peak), ("RssAnon:", &mut self.anonymous_peak)] {
                let kibibytes =
                    status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
                let peak = peaks.entry(pid).or_default();
                *peak = (*peak).max(kibibytes.unwrap_or(0) << 10);
            }
        }
    }

    /// Most resident bytes seen, summed over its processes.
    #[must_use]
    pub fn resident_peak(&self) -> u64 {
        self.resident_peak.values().sum()
    }

    /// The same without what comes from files, such as the program itself.
    #[must_use]
    pub fn anonymous_peak(&self) -> u64 {
        self.anonymous_peak.values().sum()
    }

    /// Sends a signal to every process in it.
    pub fn signal(&self, signal: Signal) {
        for pid in self.pids() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended by itself since the list was read.
                let _ = kill_process(pid, signal);
            }
        }
    }

    fn total(&self) -> Duration {
        if let Ok(nanoseconds) = fs::read_to_string(self.path.join("cpuacct.usage")) {
            return Duration::from_nanos(nanoseconds.trim().parse().unwrap_or(0));
        }
        let text = fs::read_to_string(self.path.join("cpu.stat")).unwrap_or_default();
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Duration::from_micros(usage.unwrap_or(0))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let start = Instant::now();
        while !self.pids().is_empty() && start.elapsed() < KILL_LIMIT {
            self.signal(Signal::KILL);
            std::thread::sleep(Duration::from_millis(5));
        }
        // The group outlives its last process by a moment.
        while fs::remove_dir(&self.path).is_err() && self.path.exists() {
            if start.elapsed() > KILL_LIMIT {
                tracing::warn!(path = %self.path.display(), "a control group of the bench is left over");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
