//! Ports: every node has one each way, every rack has one each way. What is
//! between them is fast.

use crate::scenario::Scenario;
use crate::units::{Nanos, Rate};

/// Wire bytes of a full packet and the payload in it.
const PACKET_BYTES: (u64, u64) = (1514, 1448);

/// Wire bytes of an acknowledgement.
const ACKNOWLEDGEMENT_BYTES: u64 = 66;

/// Headers of a packet.
pub(crate) const HEADER_BYTES: u64 = PACKET_BYTES.0 - PACKET_BYTES.1;

/// One direction of a cable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Port {
    /// Femtoseconds for a byte on the wire.
    femtos: u64,
    /// When all that was given to it has left.
    pub(crate) free: Nanos,
    /// Wire bytes of small messages that share the port with the next
    /// transfer.
    pub(crate) debt: u32,
    /// Nothing passes before this.
    blocked: Nanos,
}

/// The ports that lie between two nodes, in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    ports: [u32; 4],
    length: u8,
}

impl Path {
    pub(crate) fn ports(&self) -> &[u32] {
        &self.ports[..usize::from(self.length)]
    }
}

/// Some cannot reach others for a time.
#[derive(Debug, Clone)]
struct Partition {
    from: Vec<bool>,
    to: Vec<bool>,
    until: Nanos,
}

/// All ports, and how long messages take between them.
#[derive(Debug)]
pub(crate) struct Ports {
    ports: Vec<Port>,
    racks: Vec<u32>,
    rack_base: Option<u32>,
    delay: Nanos,
    delay_between_racks: Nanos,
    packets_per_acknowledgement: u64,
    partitions: Vec<Partition>,
    /// (until, how much longer)
    spikes: Vec<(Nanos, Nanos)>,
    any_blocked: bool,
    any_slow: bool,
    /// Last arrival per direction of a connection, kept only where delays
    /// change: a stream does not overtake itself.
    order: Vec<Nanos>,
}

const NOWHERE: u32 = u32::MAX;

impl Port {
    fn new(rate: Rate) -> Port {
        Port { femtos: femtos(rate), free: 0, debt: 0, blocked: 0 }
    }

    /// The time that wire bytes take.
    pub(crate) fn time(&self, wire_bytes: u64) -> Nanos {
        match wire_bytes.checked_mul(self.femtos) {
            Some(femtos) => femtos / 1_000_000,
            None => (u128::from(wire_bytes) * u128::from(self.femtos) / 1_000_000) as u64,
        }
    }

    /// Payload bytes that pass in so long.
    pub(crate) fn payload_in(&self, nanos: Nanos) -> u64 {
        let wire = u128::from(nanos) * 1_000_000 / u128::from(self.femtos);
        wire as u64 * PACKET_BYTES.1 / PACKET_BYTES.0
    }

    /// When the port passes again.
    pub(crate) fn opens(&self) -> Nanos {
        self.blocked
    }
}

fn femtos(rate: Rate) -> u64 {
    (8_000_000_000_000_000 / rate.0).max(1)
}

/// Payload with its headers.
pub(crate) fn wire_bytes(payload: u32) -> u64 {
    u64::from(payload) * PACKET_BYTES.0 / PACKET_BYTES.1
}

impl Ports {
    pub(crate) fn new(scenario: &Scenario) -> Ports {
        let fabric = &scenario.fabric;
        let everybody = scenario.everybody();
        let mut ports = Vec::new();
        for node in 0..everybody {
            let is_seed = node < fabric.seeds;
            let up = fabric.seed_rate.filter(|_| is_seed).unwrap_or(fabric.rate);
            let down = fabric.rate_down.filter(|_| !is_seed).unwrap_or(up);
            ports.extend([Port::new(up), Port::new(down)]);
        }
        let rack_base = scenario.uplink().map(|uplink| {
            let base = ports.len() as u32;
            (0..fabric.racks).for_each(|_| ports.extend([Port::new(uplink), Port::new(uplink)]));
            base
        });
        Ports {
            ports,
            racks: (0..everybody).map(|node| scenario.rack_of(node).unwrap_or(NOWHERE)).collect(),
            rack_base,
            delay: fabric.delay.0,
            delay_between_racks: fabric.delay_between_racks.0,
            packets_per_acknowledgement: scenario.network.packets_per_acknowledgement.into(),
            partitions: Vec::new(),
            spikes: Vec::new(),
            any_blocked: false,
            any_slow: scenario.faults.iter().any(|fault| {
                matches!(
                    fault,
                    crate::scenario::Fault::Delay { .. }
                        | crate::scenario::Fault::Partition { .. }
                        | crate::scenario::Fault::RackUplink { .. }
                )
            }),
            order: Vec::new(),
        }
    }

    pub(crate) fn port(&mut self, port: u32) -> &mut Port {
        &mut self.ports[port as usize]
    }

    /// The port out of a node.
    pub(crate) fn up(node: u32) -> u32 {
        2 * node
    }

    /// The port into a node.
    pub(crate) fn down(node: u32) -> u32 {
        2 * node + 1
    }

    pub(crate) fn is_between_racks(&self, from: u32, to: u32) -> bool {
        self.racks[from as usize] != self.racks[to as usize]
    }

    pub(crate) fn path(&self, from: u32, to: u32) -> Path {
        let mut path = Path { ports: [Ports::up(from), 0, 0, 0], length: 1 };
        let mut push = |port| {
            path.ports[usize::from(path.length)] = port;
            path.length += 1;
        };
        if let Some(base) = self.rack_base.filter(|_| self.is_between_racks(from, to)) {
            let (here, there) = (self.racks[from as usize], self.racks[to as usize]);
            if here != NOWHERE {
                push(base + 2 * here);
            }
            if there != NOWHERE {
                push(base + 2 * there + 1);
            }
        }
        push(Ports::down(to));
        path
    }

    /// How long a message takes when nothing is in its way.
    pub(crate) fn delay_between(&self, from: u32, to: u32) -> Nanos {
        self.delay + if self.is_between_racks(from, to) { self.delay_between_racks } else { 0 }
    }

    /// When a message that leaves now arrives, and in which order.
    pub(crate) fn arrival(&mut self, now: Nanos, from: u32, to: u32, direction: usize) -> Nanos {
        let mut arrival = now + self.delay_between(from, to);
        if self.any_slow {
            arrival = self.opens(now, from, to).saturating_add(arrival - now);
            let longer = self.spikes.iter().filter(|(until, _)| now < *until).map(|(_, longer)| *longer).max();
            arrival = arrival.saturating_add(longer.unwrap_or(0));
            if self.order.len() <= direction {
                self.order.resize(direction + 1, 0);
            }
            arrival = arrival.max(self.order[direction]);
            self.order[direction] = arrival;
        }
        arrival
    }

    /// From when on something passes from one node to another.
    pub(crate) fn opens(&self, now: Nanos, from: u32, to: u32) -> Nanos {
        if !self.any_slow {
            return now;
        }
        let blocked = |partition: &&Partition| partition.from[from as usize] && partition.to[to as usize];
        let partitions = self.partitions.iter().filter(blocked).map(|partition| partition.until);
        let mut opens = partitions.max().unwrap_or(now).max(now);
        if self.any_blocked {
            let ports = self.path(from, to);
            opens = ports.ports().iter().map(|&port| self.ports[port as usize].opens()).fold(opens, Nanos::max);
        }
        opens
    }

    /// A small message is charged to the ports at the edge.
    pub(crate) fn charge(&mut self, from: u32, to: u32, wire_bytes: u32) {
        for port in [Ports::up(from), Ports::down(to)] {
            let port = &mut self.ports[port as usize];
            port.debt = port.debt.saturating_add(wire_bytes);
        }
    }

    /// Wire bytes of what acknowledges this payload.
    pub(crate) fn acknowledgements(&self, payload: u32) -> u64 {
        if self.packets_per_acknowledgement == 0 {
            return 0;
        }
        let packets = u64::from(payload).div_ceil(PACKET_BYTES.1);
        packets.div_ceil(self.packets_per_acknowledgement) * ACKNOWLEDGEMENT_BYTES
    }

    pub(crate) fn set_node_rate(&mut self, node: u32, rate: Rate) {
        self.ports[Ports::up(node) as usize].femtos = femtos(rate);
        self.ports[Ports::down(node) as usize].femtos = femtos(rate);
    }

    /// Sets a rack's uplink both ways to `millionths` of its rate; 0 blocks
    /// it until the given time.
    pub(crate) fn set_uplink(&mut self, rack: u32, full: Rate, millionths: u64, until: Nanos) {
        let Some(base) = self.rack_base else { return };
        for port in [base + 2 * rack, base + 2 * rack + 1] {
            let port = &mut self.ports[port as usize];
            if millionths == 0 {
                port.blocked = until;
                port.free = port.free.max(until);
                self.any_blocked = true;
            } else {
                let rate = u128::from(full.0) * u128::from(millionths) / 1_000_000;
                port.femtos = femtos(Rate((rate as u64).max(1)));
            }
        }
    }

    pub(crate) fn partition(&mut self, from: &[u32], to: &[u32], until: Nanos) {
        let set = |nodes: &[u32]| {
            let mut set = vec![false; self.racks.len()];
            nodes.iter().for_each(|node| set[*node as usize] = true);
            set
        };
        let partition = Partition { from: set(from), to: set(to), until };
        self.partitions.push(partition);
    }

    pub(crate) fn delay(&mut self, by: Nanos, until: Nanos) {
        self.spikes.push((until, by));
    }

    /// Partitions and spikes that are over.
    pub(crate) fn sweep(&mut self, now: Nanos) {
        self.partitions.retain(|partition| partition.until > now);
        self.spikes.retain(|(until, _)| *until > now);
    }
}
