//! Switches and links: one namespace with the bridges, one for the server and one for each node, veth pairs between
//! them, shaped by token buckets in both directions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::{netns, scratch, tool};

/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PREFIX_LENGTH: u8 = 16;
const MTU: u32 = 1500;
/// A token bucket's depth in bytes: one large segment, so that it does not throttle what the kernel sends at once.
const BURST: u64 = 70_000;
/// Queue of a port, in time at its rate, but never less than this many bytes.
const QUEUE_MS: u64 = 50;
const QUEUE_MIN_BYTES: u64 = 256 << 10;
/// Ethernet, IPv4 and TCP with time stamps, in front of every packet's payload.
const TCP_HEAD_BYTES: u64 = 14 + 20 + 32;
/// Neighbour entries are counted over all namespaces of the machine.
const NEIGHBOURS: [(&str, u64); 3] = [("gc_thresh3", 400_000), ("gc_thresh2", 300_000), ("gc_thresh1", 200_000)];
/// Addresses 10.77.R.1 and on are rack R's.
const NODES_PER_RACK_MAX: usize = 250;

/// How the fabric is built. Rates in bit/s, 0 is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// With one rack, the server is in it; with more, it is at the core.
    pub racks: usize,
    /// Nodes of each rack.
    pub nodes_per_rack: usize,
    /// Of each node, both directions.
    pub link: u64,
    /// Of the server, both directions.
    pub server_link: u64,
    /// Between a rack and the core, both directions.
    pub uplink: u64,
    /// The last so many nodes have half the rate.
    pub slow_nodes: usize,
}

impl Plan {
    /// Nodes of all racks.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.racks * self.nodes_per_rack
    }

    /// The rack of a node, counted from 0.
    #[must_use]
    pub fn rack_of(&self, node: usize) -> usize {
        node / self.nodes_per_rack
    }

    /// The address of a node.
    #[must_use]
    pub fn address_of(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 1 + self.rack_of(node) as u8, 1 + (node % self.nodes_per_rack) as u8)
    }

    /// The rate of a node.
    #[must_use]
    pub fn link_of(&self, node: usize) -> u64 {
        if node + self.slow_nodes >= self.nodes() { self.link / 2 } else { self.link }
    }
}

/// Who is at the end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Has the file.
    Server,
    /// Wants it.
    Node(usize),
}

/// What passed a port one way since it was made. The kernel hands large segments on in one piece, so a packet may
/// be longer than a link's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    bytes: u64,
    packets: u64,
}

impl Passed {
    /// What TCP carried: everything but the head of each packet. An acknowledgement is nothing but its head.
    #[must_use]
    pub fn payload(&self) -> u64 {
        self.bytes.saturating_sub(self.packets * TCP_HEAD_BYTES)
    }

    fn since(&self, before: &Passed) -> Passed {
        Passed { bytes: self.bytes.saturating_sub(before.bytes), packets: self.packets.saturating_sub(before.packets) }
    }
}

/// Both ways of a port, as the switch sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Port {
    /// Into the switch: what the port's owner sent.
    pub sent: Passed,
    /// Out of the switch.
    pub received: Passed,
}

/// Counters of all ports at one moment.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    ports: BTreeMap<String, Port>,
    /// Packets that a shaper threw away.
    pub drops: u64,
}

/// The fabric; it goes with its value.
#[derive(Debug)]
pub struct Fabric {
    plan: Plan,
    name: String,
    namespaces: Vec<String>,
    neighbours_before: Vec<(&'static str, String)>,
}

impl Fabric {
    /// Builds everything.
    ///
    /// # Errors
    /// When this process is not root, a tool refuses, or the plan does not fit the addresses.
    pub fn build(plan: Plan) -> Result<Fabric> {
        tool::need_root()?;
        tool::need(&["ip", "tc"])?;
        if plan.racks == 0 || plan.racks > 250 || !(1..=NODES_PER_RACK_MAX).contains(&plan.nodes_per_rack) {
            bail!("1 to 250 racks of 1 to {NODES_PER_RACK_MAX} nodes have addresses; this is {plan:?}");
        }
        // The value exists before the first namespace does, so that a failure half-way leaves nothing behind.
        let mut fabric = Fabric {
            plan,
            name: scratch::unique_name(),
            namespaces: Vec::new(),
            neighbours_before: raise_neighbours(),
        };
        let mut names = vec![fabric.name.clone(), fabric.namespace(Place::Server)];
        names.extend((0..plan.nodes()).map(|node| fabric.namespace(Place::Node(node))));
        let adds: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        fabric.namespaces = names;
        tool::feed("ip", &["-batch", "-"], &adds)?;
        fabric.switches()?;
        fabric.ends()?;
        Ok(fabric)
    }

    /// How it was built.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The address at a place.
    #[must_use]
    pub fn address(&self, place: Place) -> Ipv4Addr {
        match place {
            Place::Server => SERVER,
            Place::Node(node) => self.plan.address_of(node),
        }
    }

    /// Runs `work` on a thread inside a place's namespace; processes that it starts are there too.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` returns.
    pub fn inside<T: Send>(&self, place: Place, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.namespace(place), work)
    }

    /// Gives a rack's uplink another rate, in bit/s each way.
    ///
    /// # Errors
    /// When a tool refuses, or the rack has no uplink.
    pub fn set_uplink(&self, rack: usize, rate: u64) -> Result<()> {
        let shapes = [format!("up{rack}"), format!("dn{rack}")].map(|device| shape(&device, rate)).concat();
        tool::feed("tc", &["-n", &self.name, "-batch", "-"], &shapes).map(drop)
    }

    /// Bytes over all ports, and drops.
    ///
    /// # Errors
    /// When a tool refuses.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = self.ports()?;
        let queues = tool::run("tc", ["-n", &self.name, "-s", "-j", "qdisc", "show"])?;
        let queues: Vec<Value> = serde_json::from_str(&queues).unwrap_or_default();
        counters.drops = queues.iter().filter_map(|queue| queue["drops"].as_u64()).sum();
        Ok(counters)
    }

    /// Bytes over all ports, drops not counted: cheap enough for many looks at a run under way.
    ///
    /// # Errors
    /// When the switches' namespace cannot be entered.
    pub fn ports(&self) -> Result<Counters> {
        let text = inside(&self.name, || {
            std::fs::read_to_string("/proc/thread-self/net/dev").context("cannot read the ports' counters")
        })?;
        Ok(Counters { ports: text.lines().filter_map(port).collect(), drops: 0 })
    }

    /// Bridges, ports and uplinks, all in one namespace.
    fn switches(&self) -> Result<()> {
        let plan = &self.plan;
        let mut links = "link set lo up\n".to_owned();
        let mut shapes = String::new();
        let several = plan.racks > 1;
        let bridges = (0..plan.racks).map(|rack| format!("r{rack}")).chain(several.then(|| "core".to_owned()));
        for bridge in bridges {
            let _ = writeln!(links, "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
            let _ = writeln!(links, "link set {bridge} mtu {MTU} up");
        }
        for rack in (0..plan.racks).filter(|_| several) {
            let _ = writeln!(links, "link add up{rack} mtu {MTU} type veth peer name dn{rack} mtu {MTU}");
            let _ = writeln!(links, "link set up{rack} master r{rack} up\nlink set dn{rack} master core up");
            shapes += &shape(&format!("up{rack}"), plan.uplink);
            shapes += &shape(&format!("dn{rack}"), plan.uplink);
        }
        for place in self.places() {
            let (port, bridge) = match place {
                Place::Server => ("psrv".to_owned(), if several { "core".to_owned() } else { "r0".to_owned() }),
                Place::Node(node) => (format!("p{node}"), format!("r{}", plan.rack_of(node))),
            };
            let end = self.namespace(place);
            let _ = writeln!(links, "link add {port} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {end}");
            let _ = writeln!(links, "link set {port} master {bridge} up");
            shapes += &shape(&port, self.rate(place));
        }
        tool::feed("ip", &["-n", &self.name, "-batch", "-"], &links)?;
        if !shapes.is_empty() {
            tool::feed("tc", &["-n", &self.name, "-batch", "-"], &shapes)?;
        }
        inside(&self.name, || {
            set("ipv4/ip_forward", "0");
            set("bridge/bridge-nf-call-iptables", "0");
            Ok(())
        })
    }

    /// Addresses and settings of everybody.
    fn ends(&self) -> Result<()> {
        for place in self.places() {
            let name = self.namespace(place);
            // Some multicast tools need the broadcast address.
            let text = format!(
                "link set lo up\naddr add {}/{PREFIX_LENGTH} brd + dev eth0\nlink set eth0 up\nroute add default dev eth0\n",
                self.address(place)
            );
            tool::feed("ip", &["-n", &name, "-batch", "-"], &text)?;
            let shapes = shape("eth0", self.rate(place));
            if !shapes.is_empty() {
                tool::feed("tc", &["-n", &name, "-batch", "-"], &shapes)?;
            }
            inside(&name, || {
                set("ipv4/tcp_congestion_control", "cubic");
                set("ipv4/tcp_no_metrics_save", "1");
                set("ipv6/conf/all/disable_ipv6", "1");
                set("bridge/bridge-nf-call-iptables", "0");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        std::iter::once(Place::Server).chain((0..self.plan.nodes()).map(Place::Node))
    }

    fn rate(&self, place: Place) -> u64 {
        match place {
            Place::Server => self.plan.server_link,
            Place::Node(node) => self.plan.link_of(node),
        }
    }

    /// The name of a place's namespace, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self, place: Place) -> String {
        match place {
            Place::Server => format!("{}-srv", self.name),
            Place::Node(node) => format!("{}-n{node:03}", self.name),
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for name in &self.namespaces {
            if Path::new("/run/netns").join(name).exists()
                && let Err(error) = netns::remove(name)
            {
                tracing::warn!(%error, name, "a namespace of the bench is left over");
            }
        }
        for (key, value) in &self.neighbours_before {
            set(&format!("ipv4/neigh/default/{key}"), value);
        }
    }
}

impl Counters {
    /// Payload that the server sent between two moments.
    #[must_use]
    pub fn server_sent_since(&self, before: &Counters) -> u64 {
        self.since(before, "psrv").sent.payload()
    }

    /// Payload that a node received between two moments, whatever for.
    #[must_use]
    pub fn node_received_since(&self, before: &Counters, node: usize) -> u64 {
        self.since(before, &format!("p{node}")).received.payload()
    }

    /// Payload that a node sent between two moments.
    #[must_use]
    pub fn node_sent_since(&self, before: &Counters, node: usize) -> u64 {
        self.since(before, &format!("p{node}")).sent.payload()
    }

    /// Payload that entered a rack over its uplink between two moments.
    #[must_use]
    pub fn into_rack_since(&self, before: &Counters, rack: usize) -> u64 {
        self.since(before, &format!("up{rack}")).sent.payload()
    }

    fn since(&self, before: &Counters, port: &str) -> Port {
        let at = |counters: &Counters| counters.ports.get(port).copied().unwrap_or_default();
        let (now, then) = (at(self), at(before));
        Port { sent: now.sent.since(&then.sent), received: now.received.since(&then.received) }
    }
}

/// proc_net(5), a line of `dev`: bytes and packets received are fields 1 and 2, sent 9 and 10.
fn port(line: &str) -> Option<(String, Port)> {
    let (name, rest) = line.split_once(':')?;
    let fields: Vec<u64> = rest.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let way = |at: usize| Some(Passed { bytes: *fields.get(at)?, packets: *fields.get(at + 1)? });
    Some((name.trim().to_owned(), Port { sent: way(0)?, received: way(8)? }))
}

fn shape(device: &str, rate: u64) -> String {
    if rate == 0 {
        return String::new();
    }
    let queue = QUEUE_MIN_BYTES.max(rate / 8 * QUEUE_MS / 1000);
    format!("qdisc replace dev {device} root tbf rate {rate}bit burst {BURST} limit {}\n", queue + BURST)
}

/// Runs `work` on a thread inside the namespace called `name`.
fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = Path::new("/run/netns").join(name);
    let file = File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            work()
        });
        worker.join().unwrap_or_else(|_| Err(anyhow!("the work in the namespace panicked")))
    })
}

/// Settings that this kernel does not have are passed over.
fn set(key: &str, value: &str) {
    let path = Path::new("/proc/sys/net").join(key);
    if let Err(error) = std::fs::write(&path, value) {
        tracing::debug!(%error, path = %path.display(), "not set");
    }
}

fn raise_neighbours() -> Vec<(&'static str, String)> {
    let mut before = Vec::new();
    for (key, wanted) in NEIGHBOURS {
        let name = format!("ipv4/neigh/default/{key}");
        let Ok(text) = std::fs::read_to_string(Path::new("/proc/sys/net").join(&name)) else { continue };
        if text.trim().parse::<u64>().is_ok_and(|now| now < wanted) {
            set(&name, &wanted.to_string());
            before.insert(0, (key, text.trim().to_owned()));
        }
    }
    before
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_counted_whatever_the_packets_length() {
        let head = "Inter-|   Receive                                                |  Transmit";
        assert_eq!(port(head), None);
        // 100 full packets; or four of 25 segments each, and 50 acknowledgements the other way.
        let line = format!("  up3: {} 100 0 0 0 0 0 0 {} 54 0 0 0 0 0 0", 151_400, 4 * (66 + 25 * 1448) + 50 * 66);
        let (name, port) = port(&line).unwrap();
        assert_eq!((name.as_str(), port.sent.payload(), port.received.payload()), ("up3", 144_800, 144_800));
        let mut before = Counters::default();
        let mut now = Counters::default();
        before.ports.insert(name.clone(), Port::default());
        now.ports.insert(name, port);
        assert_eq!((now.into_rack_since(&before, 3), now.into_rack_since(&before, 2)), (144_800, 0));
    }
}
