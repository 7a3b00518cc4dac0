//! A network namespace with one switch (a bridge) and a tap per machine.
//!
//! The host's own network is not touched. Code that has to speak to the namespace runs in it ([`Namespace::inside`]).

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::{scratch, tool};

/// The switch's name inside the namespace.
pub const BRIDGE: &str = "br0";
/// The server's address on the switch.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The network's prefix length.
pub const PREFIX_LENGTH: u8 = 24;
/// Unique local address of the switch (RFC 4193), so that router advertisements have a prefix to stand on.
pub const SERVER_V6: &str = "fd77::1/64";
/// Most machines on one switch: addresses .10 to .209 belong to them.
pub const TAPS_MAX: usize = 200;

/// How a network is built.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// One tap per machine, `tap0` and so on; at most [`TAPS_MAX`].
    pub taps: usize,
    /// Limit of what each machine receives, in Mbit/s.
    pub rate_mbit: Option<u32>,
}

/// A namespace; it goes with its value.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    removed: bool,
}

impl Namespace {
    /// Builds the namespace, its switch and its taps.
    ///
    /// # Errors
    /// When this process is not root or a tool refuses.
    pub fn new(plan: &Plan) -> Result<Namespace> {
        tool::need_root()?;
        tool::need(&["ip", "tc"])?;
        if plan.taps > TAPS_MAX {
            bail!("{} machines do not fit on one switch; at most {TAPS_MAX} do", plan.taps);
        }
        let name = scratch::unique_name();
        tool::run("ip", ["netns", "add", &name])?;
        let namespace = Namespace { name, removed: false };
        tool::feed("ip", &["-n", &namespace.name, "-batch", "-"], &links(plan.taps))?;
        if let Some(mbit) = plan.rate_mbit {
            tool::feed("tc", &["-n", &namespace.name, "-batch", "-"], &limits(plan.taps, mbit))?;
        }
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. Threads and processes that it starts are in the namespace too, so an
    /// async runtime that is built there lives there as a whole.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = path_of(&self.name);
        let file = File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || -> Result<T> {
                setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                Ok(work())
            });
            worker
                .join()
                .unwrap_or_else(|panic| Err(anyhow!("the work in the namespace panicked: {}", words_of(&*panic))))
        })
    }

    /// Ends what still runs in it and removes it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        remove(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = remove(&self.name)
        {
            tracing::warn!(%error, "a namespace of the lab is left over");
        }
    }
}

/// The file that stands for a namespace.
fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Ends every process in the namespace called `name` and removes it.
pub(crate) fn remove(name: &str) -> Result<()> {
    let inside = tool::run("ip", ["netns", "pids", name])?;
    for pid in inside.split_whitespace().filter_map(|word| word.parse().ok()).filter_map(rustix::process::Pid::from_raw)
    {
        // A thread of this very process may be in it; ours ends by itself.
        if pid != rustix::process::getpid() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    tool::run("ip", ["netns", "del", name]).map(drop)
}

/// Names of all namespaces that a lab made, this one's and others'.
pub(crate) fn all() -> Result<Vec<String>> {
    let list = tool::run("ip", ["netns", "list"])?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| scratch::owner_of(name).is_some()).map(str::to_owned).collect())
}

/// Without spanning tree and its delay the first DHCP packets would be lost; without snooping, multicast reaches all. The
/// broadcast address matters too: some tools send to 0.0.0.0 without one.
fn links(taps: usize) -> String {
    let mut text = format!(
        "link set lo up\n\
         link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
         addr add {SERVER}/{PREFIX_LENGTH} brd + dev {BRIDGE}\n\
         addr add {SERVER_V6} dev {BRIDGE} nodad\n\
         link set {BRIDGE} up\n"
    );
    for number in 0..taps {
        text.push_str(&format!("tuntap add dev tap{number} mode tap\nlink set tap{number} master {BRIDGE} up\n"));
    }
    text
}

/// A queue of 1 MiB keeps a local sender from drowning in retransmissions, which a 50 ms one did.
fn limits(taps: usize, mbit: u32) -> String {
    (0..taps)
        .map(|number| format!("qdisc add dev tap{number} root tbf rate {mbit}mbit burst 128kb limit 1mb\n"))
        .collect()
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no words")
}
