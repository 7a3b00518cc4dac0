//! How a world begins: who is where, who has what, and when nodes start.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm::tracker::{Tracker, TrackerPolicy};
use swarm::{Engine, PieceSet, Setup, Shape};
use wire::peer::{PeerId, RackName};

use super::node::{Brain, Node};
use super::{IMAGE, KINDS, World, engine_seed};
use crate::agenda::{Agenda, Event, Slab};
use crate::chance::{Stream, below, draw};
use crate::foreign::Foreign;
use crate::net::Network;
use crate::plan::bound;
use crate::scenario::{Fault, Nature, Scenario, ScenarioError, Who};
use crate::trace::Trace;
use crate::units::{Nanos, SECOND, When};

/// A run without a deadline of its own may take so many bounds and seconds.
const PATIENCE: (u64, Nanos) = (40, 1200 * SECOND);

/// What is in the image.
struct Content {
    twin_set: PieceSet,
    twins: BTreeMap<u32, Vec<u32>>,
    kept: PieceSet,
}

impl<N: Network> World<N> {
    pub(crate) fn new(scenario: &Scenario, seed: u64) -> Result<World<N>, ScenarioError> {
        let shape = scenario.shape()?;
        let content = content(scenario, shape, seed);
        let bound = bound::of_scenario(scenario, &fetched(shape, &content));
        let mut tracker = Tracker::new(tracker_policy(scenario), draw(seed, 0, Stream::Choice, u64::MAX));
        tracker.register(IMAGE);
        let mut world = World {
            policy: scenario.policy(),
            bound,
            deadline: 0,
            nodes: Vec::with_capacity(scenario.everybody() as usize),
            links: Vec::new(),
            tracker,
            tracker_dead: false,
            tracker_stale: false,
            tracker_by: 0,
            net: N::new(scenario, shape),
            agenda: Agenda::default(),
            due: Slab::default(),
            dials: Slab::default(),
            out: Vec::new(),
            deliveries: Vec::new(),
            concerned: Vec::new(),
            soon: Vec::new(),
            rack_names: (0..scenario.fabric.racks).filter_map(|rack| RackName::new(&format!("r{rack}")).ok()).collect(),
            twins: content.twins,
            twin_set: content.twin_set,
            kept_before: content.kept,
            copies: vec![0; shape.pieces() as usize],
            lost: shape.pieces(),
            expected: 0,
            returning: scenario.everybody(),
            trace: Trace::new(),
            events: 0,
            steps: 0,
            payload_sent: 0,
            payload_arrived: 0,
            payload_lost: 0,
            seed_sent: 0,
            seed_limit: None,
            rack_in: vec![0; scenario.fabric.racks as usize],
            pieces_had: 0,
            finished: 0,
            samples: Vec::new(),
            drops: BTreeMap::new(),
            said: [0; KINDS.len()],
            unfair: 0,
            violations: Vec::new(),
            violation_count: 0,
            peak_active: 0,
            scenario: scenario.clone(),
            seed,
            shape,
        };
        world.people();
        world.slow_down();
        world.arrange();
        Ok(world)
    }

    fn people(&mut self) {
        let mut natures = vec![Nature::Honest; self.scenario.everybody() as usize];
        for (number, odd) in self.scenario.peers.clone().iter().enumerate() {
            for node in self.chosen(&odd.who, 1000 + number as u64) {
                natures[node as usize] = odd.nature;
            }
        }
        let disk = self.scenario.fabric.disk.0;
        for (number, nature) in natures.into_iter().enumerate() {
            let number = number as u32;
            let is_seed = number < self.scenario.fabric.seeds;
            let has_all = is_seed || nature == Nature::FalseHaves;
            let have = if has_all { PieceSet::full(self.shape.pieces()) } else { self.kept_before.clone() };
            let id = match nature {
                Nature::Twin { of } => peer_id(self.seed, of),
                _ => peer_id(self.seed, number),
            };
            let placeholder = Brain::Foreign(Box::new(Foreign::new(self.shape, have.clone(), number, self.seed)));
            self.nodes.push(Node::new(placeholder, nature, id, disk));
            let node = &mut self.nodes[number as usize];
            if has_all {
                node.finished = Some(0);
            }
            let expected = node.is_expected() && !have.is_full();
            self.expected += u32::from(expected);
            let brain = self.brain(number, have);
            self.nodes[number as usize].brain = brain;
        }
    }

    fn slow_down(&mut self) {
        for (number, slow) in self.scenario.slow.clone().iter().enumerate() {
            for node in self.chosen(&slow.who, 2000 + number as u64) {
                if let Some(rate) = slow.rate {
                    self.net.ports().set_node_rate(node, rate);
                }
                if let Some(disk) = slow.disk {
                    self.nodes[node as usize].disk_bits = disk.0;
                }
            }
        }
    }

    /// Starts, faults and samples.
    fn arrange(&mut self) {
        let seeds = self.scenario.fabric.seeds;
        let arrival = self.scenario.arrival;
        let late = self.chosen(&Who::Share(arrival.late), 3000);
        let late_after = arrival.late_after.map_or(0, |when| self.moment(when));
        let mut last = 0;
        for number in 0..self.scenario.everybody() {
            let over = arrival.over.map_or(0, |span| span.0);
            let mut at = if number < seeds { 0 } else { below(self.seed, number, Stream::Arrival, 0, over + 1) };
            if late.binary_search(&number).is_ok() {
                at += late_after;
            }
            last = last.max(at);
            self.agenda.at(at, Event::Start(number));
        }
        for number in 0..self.scenario.faults.len() as u32 {
            last = last.max(self.arrange_fault(number));
        }
        self.agenda.at(0, Event::Sample);
        let patience = last + PATIENCE.0.saturating_mul(self.bound) + PATIENCE.1;
        self.deadline = self.scenario.limits.deadline.map_or(patience, |when| self.moment(when));
    }

    /// Arranges a fault and says when it is over.
    fn arrange_fault(&mut self, number: u32) -> Nanos {
        let fault = &self.scenario.faults[number as usize];
        if let Fault::SeedDies { after_copies, .. } = fault {
            let bytes = (*after_copies * self.shape.length() as f64).round() as u64;
            self.seed_limit = Some((number, bytes));
            return fault.lasts().unwrap_or(0);
        }
        let lasts = fault.lasts();
        let at = fault.at().map_or(0, |when| self.moment(when));
        self.agenda.at(at, Event::Fault(number));
        at + lasts.unwrap_or(0)
    }

    pub(super) fn moment(&self, when: When) -> Nanos {
        match when {
            When::After(nanos) => nanos,
            When::Share(millionths) => (u128::from(self.bound) * u128::from(millionths) / 1_000_000) as Nanos,
        }
    }

    /// The nodes that are meant, ascending. `number` tells several choices
    /// of one scenario apart.
    pub(super) fn chosen(&self, who: &Who, number: u64) -> Vec<u32> {
        let (seeds, everybody) = (self.scenario.fabric.seeds, self.scenario.everybody());
        let some = |count: u32| {
            let mut order: Vec<(u64, u32)> =
                (seeds..everybody).map(|node| (draw(self.seed, node, Stream::Choice, number), node)).collect();
            order.sort_unstable();
            let mut nodes: Vec<u32> = order.into_iter().take(count as usize).map(|(_, node)| node).collect();
            nodes.sort_unstable();
            nodes
        };
        match who {
            Who::All => (seeds..everybody).collect(),
            Who::Seeds => (0..seeds).collect(),
            Who::Nodes(nodes) => nodes.clone(),
            Who::Count(count) => some(*count),
            Who::Share(share) => some((share * f64::from(self.scenario.fabric.nodes)).round() as u32),
            Who::Rack(rack) => (0..everybody).filter(|node| self.scenario.rack_of(*node) == Some(*rack)).collect(),
        }
    }
}

/// The engine or client of a node in this life of it.
pub(super) fn brain<N: Network>(world: &World<N>, number: u32, life: u32, have: PieceSet) -> Brain {
    let node = &world.nodes[number as usize];
    if node.nature == Nature::Foreign {
        return Brain::Foreign(Box::new(Foreign::new(world.shape, have, number, world.seed)));
    }
    let mut setup = Setup::new(world.shape, have);
    setup.twins = world.twin_set.clone();
    (setup.private, setup.ours) = (true, true);
    setup.rack = world.rack_name(number);
    let engine = Engine::new(node.id, setup, world.policy.clone(), engine_seed(world.seed, number, life));
    Brain::Ours(Box::new(engine))
}

fn content(scenario: &Scenario, shape: Shape, seed: u64) -> Content {
    let pieces = shape.pieces();
    let mut content =
        Content { twin_set: PieceSet::empty(pieces), twins: BTreeMap::new(), kept: PieceSet::empty(pieces) };
    let image = &scenario.image;
    let mut firsts = Vec::new();
    for piece in 0..pieces {
        let dice = below(seed, piece, Stream::Arrival, 1, 1_000_000) as f64 / 1e6;
        if dice < image.zero {
            content.twin_set.insert(piece);
            content.kept.insert(piece);
        } else if dice < image.zero + image.repeated && !firsts.is_empty() {
            let first = firsts[below(seed, piece, Stream::Arrival, 2, firsts.len() as u64) as usize];
            content.twins.entry(first).or_default().push(piece);
            content.twin_set.insert(piece);
        } else {
            firsts.push(piece);
        }
    }
    for first in firsts {
        if (below(seed, first, Stream::Arrival, 3, 1_000_000) as f64) < image.kept * 1e6 {
            content.kept.insert(first);
            for twin in content.twins.get(&first).into_iter().flatten() {
                content.kept.insert(*twin);
            }
        }
    }
    content
}

/// Bytes and pieces that a node has to fetch.
fn fetched(shape: Shape, content: &Content) -> bound::Fetched {
    let needed = |piece: &u32| !content.twin_set.contains(*piece) && !content.kept.contains(*piece);
    let pieces: Vec<u32> = (0..shape.pieces()).filter(needed).collect();
    bound::Fetched {
        bytes: pieces.iter().map(|piece| u64::from(shape.piece_bytes(*piece))).sum(),
        pieces: pieces.len() as u32,
    }
}

fn tracker_policy(scenario: &Scenario) -> TrackerPolicy {
    let mut policy = TrackerPolicy::default();
    if let Some(interval) = scenario.tracker.interval {
        policy.interval = Duration::from_nanos(interval.0);
    }
    if let Some(peers) = scenario.tracker.peers {
        policy.peers = peers;
    }
    policy
}

/// Mixed, so that the order of ids says nothing about roles.
fn peer_id(seed: u64, node: u32) -> PeerId {
    let mut id = *b"-RS0100-............";
    id[8..16].copy_from_slice(&draw(seed, node, Stream::Identity, 0).to_be_bytes());
    id[16..20].copy_from_slice(&node.to_be_bytes());
    PeerId(id)
}
