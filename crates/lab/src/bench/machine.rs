//! The machine that measures: is anybody else using it?

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// `/proc` counts CPU time in this many ticks a second on every Linux that has a `/proc/stat` for users.
const TICKS: f64 = 100.0;
/// Others may use this share of the cores, and this many seconds beside, before a run counts as disturbed.
const FOREIGN_SHARE: f64 = 0.03;
const FOREIGN_SECONDS: f64 = 0.3;
/// Kernel threads have this flag (PF_KTHREAD).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// CPU seconds of all cores since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// Working, but not at low priority.
    pub busy: f64,
    /// Doing nothing.
    pub idle: f64,
    /// Working at low priority: it gives way to us.
    pub nice: f64,
    /// Taken by the host of this virtual machine.
    pub steal: f64,
}

impl Times {
    /// Now.
    #[must_use]
    pub fn now() -> Times {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0.0) / TICKS;
        Times { busy: at(0) + at(2) + at(5) + at(6), idle: at(3) + at(4), nice: at(1), steal: at(7) }
    }

    /// Since an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Times) -> Times {
        Times {
            busy: self.busy - before.busy,
            idle: self.idle - before.idle,
            nice: self.nice - before.nice,
            steal: self.steal - before.steal,
        }
    }

    /// Share of all cores that was free for us.
    #[must_use]
    pub fn free_share(&self) -> f64 {
        (self.idle + self.nice) / (self.busy + self.idle + self.nice + self.steal).max(1e-9)
    }
}

/// CPU seconds used until now by all user processes that are not in `ours`, with their children that have ended.
fn foreign_cpu_seconds(ours: &BTreeSet<u32>) -> f64 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0.0 };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| !ours.contains(pid)).filter_map(cpu_ticks_of).sum::<f64>() / TICKS
}

/// CPU seconds that a process has used, with its children that have ended.
pub(super) fn cpu_seconds_of(pid: u32) -> Option<f64> {
    cpu_ticks_of(pid).map(|ticks| ticks / TICKS)
}

/// CPU seconds that this process has used, without its children.
pub(super) fn own_cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// proc(5), fields 3, 9 and 14 to 17 of `stat`.
fn cpu_ticks_of(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    if fields.first() == Some(&"Z") || flags & KERNEL_THREAD != 0 {
        return None;
    }
    Some(fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum())
}

/// A stretch of time in which something is measured.
#[derive(Debug)]
pub struct Watch {
    begun: Instant,
    times: Times,
    foreign: f64,
}

/// Who used the cores in it.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// CPU seconds of everybody who did not give way.
    pub busy: f64,
    /// Share of the cores that nobody used.
    pub idle_share: f64,
    /// CPU seconds of others that did not give way.
    pub foreign: f64,
    /// CPU seconds that the host of this virtual machine took.
    pub steal: f64,
    /// That was too much.
    pub noisy: bool,
}

impl Watch {
    /// Begins. `ours` are the processes that are measured; this one belongs to them in any case.
    #[must_use]
    pub fn begin(ours: impl IntoIterator<Item = u32>) -> Watch {
        let foreign = foreign_cpu_seconds(&with_us(ours));
        Watch { foreign, times: Times::now(), begun: Instant::now() }
    }

    /// Ends. Where others give way to us, they do not disturb.
    #[must_use]
    pub fn end(&self, ours: impl IntoIterator<Item = u32>, others_give_way: bool) -> Used {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let times = Times::now().since(&self.times);
        let foreign = (foreign_cpu_seconds(&with_us(ours)) - self.foreign - times.nice).max(0.0);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let disturbed = foreign + times.steal > FOREIGN_SHARE * cpus * elapsed + FOREIGN_SECONDS;
        Used {
            busy: times.busy,
            idle_share: times.free_share(),
            foreign,
            steal: times.steal,
            noisy: disturbed && !others_give_way,
        }
    }
}

fn with_us(ours: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    ours.into_iter().chain([std::process::id()]).collect()
}

/// Waits until nobody else works, or the limit is over; the share of the cores that is free then.
#[must_use]
pub fn wait_until_idle(limit: Duration) -> f64 {
    const WINDOW: Duration = Duration::from_secs(2);
    const ENOUGH: f64 = 0.92;
    let end = Instant::now() + limit;
    loop {
        let before = Times::now();
        std::thread::sleep(if limit.is_zero() { WINDOW / 4 } else { WINDOW });
        let free = Times::now().since(&before).free_share();
        if free >= ENOUGH || Instant::now() >= end {
            return free;
        }
    }
}

/// One line about hardware and kernel.
#[must_use]
pub fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    format!("{cpus} x {}, {} GiB", model.unwrap_or("unknown processor"), kibibytes >> 20)
}

/// The kernel's release.
#[must_use]
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_times_and_a_name() {
        let now = Times::now();
        assert!(now.busy > 0.0 && (0.0..=1.0).contains(&now.free_share()));
        assert!(foreign_cpu_seconds(&BTreeSet::new()) > 0.0);
        let used = Watch::begin([]).end([], true);
        assert!(!used.noisy && used.foreign >= 0.0);
        assert!(!kernel().is_empty() && describe().contains(" x "));
    }
}
