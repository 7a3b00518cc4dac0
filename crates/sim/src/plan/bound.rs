//! Lower bounds: formulas (1) to (4). Nobody can be faster than these with
//! whole pieces and without multicast.

use crate::scenario::{Scenario, Who};
use crate::units::Nanos;

/// Payload of a full packet over its bytes on the wire.
pub const PAYLOAD_SHARE: f64 = 1448.0 / 1514.0;

/// What a node has to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u32,
}

/// Payload bytes per second of a link of so many bits per second.
pub fn payload_rate(bits_per_second: u64) -> f64 {
    bits_per_second as f64 / 8.0 * PAYLOAD_SHARE
}

/// The largest whole logarithm to base 2 that is not above; 0 for 0.
pub fn floor_log2(n: u64) -> u32 {
    n.checked_ilog2().unwrap_or(0)
}

/// Formula (1) in seconds: `bytes` to `nodes` with uplinks of `rate` payload
/// bytes per second each, in pieces, from one source.
pub fn t_star(bytes: f64, rate: f64, nodes: u64, pieces: u32) -> f64 {
    bytes / rate * (1.0 + f64::from(floor_log2(nodes)) / f64::from(pieces.max(1)))
}

/// Rates of the swarm as formula (2) and (3) see them, payload bytes per
/// second.
#[derive(Debug, Clone, PartialEq)]
pub struct Swarm {
    /// Bytes of the image.
    pub bytes: f64,
    /// Pieces.
    pub pieces: u32,
    /// All seeds together.
    pub seeds_up: f64,
    /// Each node: up, down.
    pub nodes: Vec<(f64, f64)>,
}

impl Swarm {
    /// Formula (2): fluid, any rates.
    pub fn t_fluid(&self) -> f64 {
        let slowest = self.nodes.iter().map(|(_, down)| *down).fold(f64::INFINITY, f64::min);
        let up: f64 = self.nodes.iter().map(|(up, _)| *up).sum();
        let all = self.nodes.len() as f64 * self.bytes / (self.seeds_up + up);
        (self.bytes / self.seeds_up).max(self.bytes / slowest).max(all)
    }

    /// Formula (3): with whole pieces.
    pub fn t_pieces(&self) -> f64 {
        let fastest = self.nodes.iter().map(|(up, _)| *up).fold(self.seeds_up, f64::max);
        let piece = self.bytes / f64::from(self.pieces.max(1));
        let spread = piece * f64::from(floor_log2(self.nodes.len() as u64)) / fastest;
        (self.bytes / self.seeds_up + spread).max(self.t_fluid())
    }
}

/// The racks of formula (4), payload bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Racks {
    /// How many.
    pub racks: u32,
    /// Uplink of one, each way.
    pub uplink: f64,
    /// The source stands in one of them.
    pub source_inside: bool,
}

impl Racks {
    /// The terms of formula (4) that racks add: into a rack, out of the
    /// source's, and all copies that must cross.
    pub fn terms(&self, bytes: f64) -> [f64; 3] {
        if self.racks <= 1 {
            return [0.0; 3];
        }
        let into = bytes / self.uplink;
        let out = if self.source_inside { bytes / self.uplink } else { 0.0 };
        let crossing = if self.source_inside { f64::from(self.racks - 1) } else { 0.0 };
        [into, out, crossing * bytes / (f64::from(self.racks) * self.uplink)]
    }

    /// The longest of them.
    pub fn t_racks(&self, bytes: f64) -> f64 {
        self.terms(bytes).into_iter().fold(0.0, f64::max)
    }
}

/// Formula (1) for a scenario.
pub(crate) fn t_star_of(scenario: &Scenario, bytes: u64) -> Nanos {
    let pieces = bytes.div_ceil(scenario.image.piece.0.max(1)) as u32;
    let rate = payload_rate(scenario.fabric.rate.0);
    nanos(t_star(bytes as f64, rate, scenario.fabric.nodes.into(), pieces))
}

/// Formula (4) for a scenario.
pub(crate) fn of_scenario(scenario: &Scenario, fetched: &Fetched) -> Nanos {
    let fabric = &scenario.fabric;
    let up = payload_rate(fabric.rate.0);
    let down = payload_rate(fabric.rate_down.unwrap_or(fabric.rate).0);
    let mut nodes = vec![(up, down); fabric.nodes as usize];
    for slow in &scenario.slow {
        let Some(rate) = slow.rate.map(|rate| payload_rate(rate.0)) else { continue };
        let count = match &slow.who {
            Who::All => nodes.len(),
            Who::Nodes(nodes) => nodes.len(),
            Who::Count(count) => *count as usize,
            Who::Share(share) => (share * nodes.len() as f64).round() as usize,
            Who::Rack(_) => scenario.per_rack() as usize,
            Who::Seeds => 0,
        };
        nodes.iter_mut().rev().take(count).for_each(|node| *node = (rate, rate));
    }
    let seed = payload_rate(fabric.seed_rate.unwrap_or(fabric.rate).0);
    let swarm =
        Swarm { bytes: fetched.bytes as f64, pieces: fetched.pieces, seeds_up: seed * f64::from(fabric.seeds), nodes };
    let racks = scenario.uplink().map_or(0.0, |uplink| {
        let uplink = payload_rate(uplink.0);
        Racks { racks: fabric.racks, uplink, source_inside: fabric.seed_rack.is_some() }.t_racks(swarm.bytes)
    });
    let disk = swarm.bytes * 8.0 / fabric.disk.0 as f64;
    nanos(swarm.t_pieces().max(racks).max(disk)).max(1)
}

fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).round() as Nanos
}
