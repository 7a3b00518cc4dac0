//! What a world is made of.

use std::time::Duration;

use rackswarm_swarm::lanes::holders;
use rackswarm_swarm::policy::ChokerKind;
use rackswarm_swarm::{PieceSet, Policy, Setup, Shape, Speaks};
use wire::peer::{PeerId, RackName};

use super::{Nature, peer_id};

/// Ethernet, IP and TCP headers of a full-size frame.
const HEADER_TAX: f64 = 1514.0 / 1448.0;

/// Neighbours near and far that a tracker would name to a member of a rack.
const NEAR: usize = 24;

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) nodes: Vec<NodePlan>,
    /// Bytes per second of each rack's uplink and downlink.
    pub(crate) rack_rate: Option<f64>,
    /// Of a message, one way.
    pub(crate) latency: Duration,
    /// Bytes of one connection that can be under way in the network.
    pub(crate) window: u64,
    pub(crate) seed: u64,
    pub(crate) traced: bool,
    /// The hashes of blocks are known.
    pub(crate) leaves: bool,
    /// The tracker says that the swarm is cooperative.
    pub(crate) guided: bool,
    /// Pieces from this one on repeat the first ones.
    pub(crate) twins_from: Option<u32>,
    pub(crate) base_rate: f64,
}

#[derive(Clone)]
pub(crate) struct NodePlan {
    pub(crate) have: PieceSet,
    pub(crate) policy: Policy,
    pub(crate) nature: Nature,
    pub(crate) speaks: Speaks,
    pub(crate) rack: Option<usize>,
    /// Payload bytes per second.
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) starts: Duration,
}

impl Plan {
    /// Node 0 is the seed, the others begin empty. `rate` is that of the wire.
    pub(crate) fn new(shape: Shape, leechers: usize, rate: f64, policy: &Policy, seed: u64) -> Plan {
        let rate = rate / HEADER_TAX;
        let node = |number| NodePlan {
            have: if number == 0 { PieceSet::full(shape.pieces()) } else { PieceSet::empty(shape.pieces()) },
            policy: policy.clone(),
            nature: Nature::Honest,
            speaks: Speaks { fast: true, extended: true },
            rack: None,
            up: rate,
            down: rate,
            starts: Duration::ZERO,
        };
        Plan {
            shape,
            nodes: (0..=leechers).map(node).collect(),
            rack_rate: None,
            latency: Duration::from_micros(200),
            window: 1 << 20,
            seed,
            traced: false,
            leaves: false,
            guided: false,
            twins_from: None,
            base_rate: rate,
        }
    }

    /// Racks of `size` nodes each, whose uplinks carry as much as `links`
    /// nodes; the seed stands outside.
    pub(crate) fn racked(mut self, size: usize, links: f64) -> Plan {
        for (number, node) in self.nodes.iter_mut().enumerate().skip(1) {
            node.rack = Some((number - 1) / size);
        }
        self.rack_rate = Some(self.base_rate * links);
        self
    }

    /// These nodes do not cooperate: they are other clients.
    pub(crate) fn foreign(mut self, is_foreign: impl Fn(usize) -> bool) -> Plan {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            if is_foreign(number) {
                node.policy.choker = ChokerKind::TitForTat;
            }
        }
        self
    }

    fn racks(&self) -> usize {
        self.nodes.iter().filter_map(|node| node.rack).max().map_or(0, |last| last + 1)
    }

    pub(crate) fn setup(&self, number: usize) -> Setup {
        let node = &self.nodes[number];
        let mut twins = PieceSet::empty(self.shape.pieces());
        (self.twins_from.unwrap_or(u32::MAX)..self.shape.pieces()).for_each(|piece| {
            twins.insert(piece);
        });
        let rack = node.rack.map(|rack| RackName::new(&format!("rack-{rack}")).expect("a plain name"));
        Setup { twins, rack, ..Setup::new(self.shape, node.have.clone()) }
    }

    pub(crate) fn twins_of(&self, piece: u32) -> Vec<u32> {
        let Some(from) = self.twins_from else { return Vec::new() };
        if piece >= from {
            Vec::new()
        } else {
            (from..self.shape.pieces()).filter(|twin| twin % from == piece).collect()
        }
    }

    fn members(&self, rack: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| self.nodes[*number].rack == Some(rack)).collect()
    }

    fn id(&self, number: usize) -> PeerId {
        peer_id(number, self.seed)
    }

    /// Whom a tracker that knows the racks would name; without racks nobody,
    /// the tracker is asked.
    pub(crate) fn acquaintances(&self, number: usize) -> Option<Vec<usize>> {
        self.rack_rate?;
        let mine = self.nodes[number].rack;
        let mut named: Vec<usize> = Vec::new();
        let mut lanes: Vec<usize> = (0..32).collect();
        if let Some(mine) = mine {
            let mates = self.members(mine);
            let at = mates.iter().position(|mate| *mate == number)?;
            named.extend((1..mates.len().min(NEAR)).map(|step| mates[(at + step) % mates.len()]));
            let held = holders(&mates.iter().map(|mate| self.id(*mate)).collect::<Vec<_>>());
            lanes.retain(|lane| held[*lane] == Some(at));
            // The source is asked by those of every rack in turn.
            named.extend(lanes.iter().any(|lane| lane % self.racks() == mine || self.nodes.len() < 80).then_some(0));
        }
        for rack in (0..self.racks()).filter(|rack| Some(*rack) != mine && mine.is_some()) {
            let members = self.members(rack);
            let held = holders(&members.iter().map(|mate| self.id(*mate)).collect::<Vec<_>>());
            named.extend(lanes.iter().filter_map(|lane| held[*lane]).map(|at| members[at]));
        }
        named.retain(|other| *other != number);
        Some(named)
    }

    /// Formulas (3) and (4) of p2p.md for this many leechers, in seconds.
    pub(crate) fn limit(&self, leechers: usize) -> f64 {
        let bytes = self.shape.length() as f64;
        let piece = f64::from(self.shape.piece_length());
        let slots = f64::from(leechers.ilog2()) * piece;
        let fastest = self.nodes[1..].iter().map(|node| node.up).fold(0.0, f64::max);
        let slowest = self.nodes[1..].iter().map(|node| node.down).fold(f64::INFINITY, f64::min);
        let uplinks: f64 = self.nodes.iter().map(|node| node.up).sum();
        let mut limit = (bytes / self.nodes[0].up + slots / fastest).max(bytes / slowest);
        limit = limit.max(leechers as f64 * bytes / uplinks);
        if let Some(rack) = self.rack_rate {
            limit = limit.max(bytes / rack);
        }
        limit
    }
}
