//! The monitoring daemon of a deployed system: proves what was booted until it
//! is accepted, then beats. Whatever the controller does, the system is not
//! disturbed: nothing waits for this daemon, and it only listens to itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use api::agent::{DeployedConfig, Heartbeat, Token};
use api::client::{Client, ClientError};
use fleet::node::Beat;
use procfs::{Current, LoadAverage, Meminfo, Uptime};
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::report::Pauses;
use crate::{Error, proof};

/// Where post actions put the daemon's configuration.
pub const CONFIG: &str = "/etc/rackswarm/agent.json";
/// The longest pause between two tries to prove.
const PROVE_PAUSE: Duration = Duration::from_secs(60);
/// A controller that has refused is asked again after this long: its operator
/// may have restored it or taken the node back.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);
/// Names of processes as the kernel keeps them have at most 15 bytes (TASK_COMM_LEN).
const KERNEL_NAME_BYTES: usize = 15;

/// Reads the daemon's configuration.
///
/// # Errors
/// When there is none that can be used.
pub fn read_config(path: &Path) -> Result<DeployedConfig, Error> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|error| Error::io("understand", path)(error.into()))
}

/// Proves and beats, for ever.
///
/// # Errors
/// Only when no HTTP client can be made.
pub async fn run(config: DeployedConfig) -> Result<(), Error> {
    let client = Client::new(&config.controller_url, Token(config.node_token.0.clone()))
        .map_err(|error| Error::Usage(error.to_string()))?;
    // An error: not started by systemd.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut voice = Voice::default();
    loop {
        prove(&client, &config, &mut voice).await;
        voice.say(State::Proved, || format!("this is {}, proved to {}", config.node, config.controller_url));
        beat_while_accepted(&client, &config, &mut voice).await;
        // The controller knows this system no more; it may again after another proof.
        time::sleep(REFUSED_PAUSE.mul_f64(1.0 + rand::random_range(0.0..0.5))).await;
    }
}

/// Proves until it is accepted.
async fn prove(client: &Client, config: &DeployedConfig, voice: &mut Voice) {
    let mut pauses = Pauses::up_to(PROVE_PAUSE);
    loop {
        let answer = match proof::of_running_system(config) {
            Ok(proof) => client.prove(&proof).await,
            Err(error) => {
                voice.say(State::Refused, || error.to_string());
                pauses.wait().await;
                continue;
            }
        };
        match answer {
            Ok(()) => return,
            Err(error @ ClientError::Refused { .. }) => {
                voice.say(State::Refused, || format!("the proof was refused: {error}"));
                time::sleep(REFUSED_PAUSE.mul_f64(1.0 + rand::random_range(0.0..0.5))).await;
            }
            Err(error) => {
                voice.say(State::Away, || format!("{error}; trying again quietly"));
                pauses.wait().await;
            }
        }
    }
}

/// Beats until the controller refuses a beat.
async fn beat_while_accepted(client: &Client, config: &DeployedConfig, voice: &mut Voice) {
    let period = Duration::from_secs(config.heartbeat_seconds.max(1).into());
    // Machines that were switched on together do not beat together.
    let first = Instant::now() + period.mul_f64(rand::random_range(0.0..1.0));
    let mut ticks = time::interval_at(first, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let watch = config.watch_processes.clone();
        let seen = tokio::task::spawn_blocking(move || look(&watch)).await;
        if let Ok(beat) = seen {
            match client.beat(&Heartbeat { beat }).await {
                Ok(()) => voice.say(State::Proved, || "the controller answers again".to_owned()),
                Err(error @ ClientError::Refused { .. }) => {
                    voice.say(State::Refused, || format!("a heartbeat was refused: {error}"));
                    return;
                }
                Err(error) => voice.say(State::Away, || format!("{error}; trying again quietly")),
            }
        }
        ticks.tick().await;
    }
}

/// How the controller is towards us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Proved,
    Away,
    Refused,
}

/// One line for each change of state, however long it lasts.
#[derive(Debug, Default)]
struct Voice {
    last: Option<State>,
}

impl Voice {
    fn say(&mut self, state: State, text: impl FnOnce() -> String) {
        if self.last.replace(state) != Some(state) {
            match state {
                State::Proved => tracing::info!("{}", text()),
                State::Away | State::Refused => tracing::warn!("{}", text()),
            }
        }
    }
}

/// What the daemon sees now. What cannot be read counts as zero.
#[must_use]
pub fn look(watch: &[String]) -> Beat {
    let memory = Meminfo::current().ok();
    let total = memory.as_ref().map_or(0, |memory| memory.mem_total);
    let free = memory.as_ref().and_then(|memory| memory.mem_available.or(Some(memory.mem_free))).unwrap_or(0);
    let disk = rustix::fs::statvfs("/").ok();
    let (received, sent) = network();
    Beat {
        uptime_seconds: Uptime::current().map_or(0, |uptime| uptime.uptime as u64),
        load1: LoadAverage::current().map_or(0.0, |load| f64::from(load.one)),
        memory_used_bytes: total.saturating_sub(free),
        memory_total_bytes: total,
        disk_used_bytes: disk.as_ref().map_or(0, |fs| fs.f_blocks.saturating_sub(fs.f_bfree) * fs.f_frsize),
        disk_total_bytes: disk.as_ref().map_or(0, |fs| fs.f_blocks * fs.f_frsize),
        network_received_bytes: received,
        network_sent_bytes: sent,
        processes_missing: missing(watch),
    }
}

/// Bytes in and out of the interface with the default route; where there is
/// none, of all but loopback.
fn network() -> (u64, u64) {
    let routes = procfs::net::route().unwrap_or_default();
    let interface = routes.into_iter().find(|route| route.destination.is_unspecified() && route.mask.is_unspecified());
    let counters = procfs::net::dev_status().unwrap_or_default();
    let counted = counters.values().filter(|counter| match &interface {
        Some(route) => counter.name == route.iface,
        None => counter.name != "lo",
    });
    counted.fold((0, 0), |(received, sent), counter| (received + counter.recv_bytes, sent + counter.sent_bytes))
}

/// Those of the watched names that no process has, neither as its own name nor
/// as its program's file name.
fn missing(watch: &[String]) -> Vec<String> {
    if watch.is_empty() {
        return Vec::new();
    }
    let running = names_of_processes();
    let is_running = |name: &String| {
        let kernel_name = String::from_utf8_lossy(&name.as_bytes()[..name.len().min(KERNEL_NAME_BYTES)]).into_owned();
        running.contains(name) || running.contains(&kernel_name)
    };
    watch.iter().filter(|name| !is_running(name)).cloned().collect()
}

fn names_of_processes() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let Ok(processes) = procfs::process::all_processes() else { return names };
    // Processes come and go while they are listed.
    for process in processes.flatten() {
        if let Ok(stat) = process.stat() {
            // Ended, but not waited for: it does nothing any more.
            if stat.state == 'Z' {
                continue;
            }
            names.insert(stat.comm);
        }
        if let Some(file) = process.exe().ok().and_then(|path| path.file_name().map(ToOwned::to_owned)) {
            names.insert(file.to_string_lossy().into_owned());
        }
    }
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_has_real_numbers() {
        let beat = look(&[]);
        assert!(beat.memory_total_bytes > beat.memory_used_bytes && beat.memory_used_bytes > 0, "{beat:?}");
        assert!(beat.disk_total_bytes >= beat.disk_used_bytes && beat.disk_total_bytes > 0, "{beat:?}");
        assert!(beat.uptime_seconds > 0, "{beat:?}");
    }

    #[test]
    fn missing_processes_are_named() {
        let own = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert!(own.len() > KERNEL_NAME_BYTES, "a long name is the interesting case");
        assert_eq!(missing(&[own, "no-such-daemon".into()]), ["no-such-daemon"]);
    }

    #[test]
    fn one_line_for_each_change() {
        let mut voice = Voice::default();
        let mut said = Vec::new();
        for state in [State::Away, State::Away, State::Proved, State::Proved, State::Away] {
            voice.say(state, || {
                said.push(state);
                String::new()
            });
        }
        // Nobody listens in this test, so texts are not made; the state is what counts.
        assert_eq!(voice.last, Some(State::Away));
    }
}
