//! The end of a run: what must hold then, and the figures.

use super::node::{Brain, Life, Node};
use super::{KINDS, SETTLED_NODES, World};
use crate::net::Network;
use crate::plan::bound;
use crate::report::{NodeReport, Report, Sample};
use crate::scenario::Fault;
use crate::units::{Nanos, SECOND};
use swarm::Peer;

/// A request of a finished node that is older than this is not under way.
const ANSWER: Nanos = 30 * SECOND;

impl<N: Network> World<N> {
    pub(super) fn conclude(mut self) -> Report {
        self.check_the_end();
        self.samples.push(Sample {
            at: self.now(),
            pieces: self.pieces_had,
            finished: self.finished,
            seed_sent: self.seed_sent,
            payload: self.payload_arrived,
        });
        self.report()
    }

    fn check_the_end(&mut self) {
        if self.expected > 0 && self.lost == 0 {
            let text = self.describe_stuck();
            let expected = self.expected;
            self.violation(|| format!("{expected} nodes have not finished though every piece is there: {text}"));
        }
        self.check_answers();
        self.check_accounts();
        self.check_limits();
    }

    /// Between honest nodes every request is answered or refused in the end,
    /// or the connection is gone. What was asked just now may be under way.
    fn check_answers(&mut self) {
        let mut open = Vec::new();
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_ours() && node.is_running()) {
            for (peer, block) in node.unanswered() {
                let Some((link, end)) = self.link_of(number as u32, Peer(peer)) else { continue };
                let other = &self.nodes[self.links[link as usize].nodes[1 - end] as usize];
                if other.is_honest() && other.is_running() && node.finished.is_some_and(|at| at + ANSWER < self.now()) {
                    open.push((number, block));
                }
            }
        }
        if let Some((number, block)) = open.first().copied() {
            let count = open.len();
            self.violation(|| format!("{count} requests were never answered, such as node {number}'s {block:?}"));
        }
    }

    /// Bytes neither appear nor vanish: what was sent arrived, or its receiver
    /// was gone. Where ways were closed something may still be held up.
    fn check_accounts(&mut self) {
        let held_up = |fault: &Fault| matches!(fault, Fault::Partition { .. } | Fault::RackUplink { .. });
        let (sent, arrived, lost) = (self.payload_sent, self.payload_arrived, self.payload_lost);
        let settled = self.nodes.len() <= SETTLED_NODES && !self.scenario.faults.iter().any(held_up);
        if sent < arrived + lost || (settled && self.expected == 0 && sent > arrived + lost) {
            self.violation(|| format!("{sent} bytes were sent, {arrived} arrived and {lost} were lost"));
        }
    }

    fn describe_stuck(&self) -> String {
        let stuck = self.nodes.iter().enumerate().filter(|(_, node)| node.is_expected());
        let line = |(number, node): (usize, &Node)| {
            let mut text = format!("node {number} has {} of {}", node.truth.count(), self.shape.pieces());
            if let Brain::Ours(engine) = &node.brain {
                let view = engine.view();
                let peers: Vec<String> = view
                    .peers
                    .iter()
                    .map(|peer| format!("{}:{}/{}/{}", peer.address, peer.pieces, peer.outstanding, peer.queued))
                    .collect();
                text.push_str(&format!(", {} active, peers {}", view.active_pieces, peers.join(" ")));
            }
            text
        };
        stuck.take(3).map(line).collect::<Vec<_>>().join("; ")
    }

    fn check_limits(&mut self) {
        let limits = self.scenario.limits;
        let image = self.fetched_bytes() as f64;
        let harmless = !self.scenario.faults.iter().any(Fault::loses_copies);
        if let Some(limit) = limits.seed_copies.filter(|_| harmless) {
            let copies = self.seed_sent as f64 / image;
            if copies > limit {
                self.violation(|| format!("the seeds sent {copies:.4} copies, more than {limit}"));
            }
        }
        if let Some(limit) = limits.rack_copies {
            let worst = self.rack_in.iter().copied().max().unwrap_or(0) as f64 / image;
            if worst > limit {
                self.violation(|| format!("{worst:.4} copies entered a rack, more than {limit}"));
            }
        }
        if let Some(limit) = limits.ratio {
            let makespan = self.nodes.iter().filter_map(|node| node.finished).max().unwrap_or(0);
            let ratio = makespan as f64 / self.bound as f64;
            if ratio > limit {
                self.violation(|| format!("the makespan is {ratio:.4} of the bound, more than {limit}"));
            }
        }
        let wasted = self.wasted();
        if let Some(limit) = limits.wasted {
            let share = wasted as f64 / self.payload_arrived.max(1) as f64;
            if share > limit {
                self.violation(|| format!("{share:.5} of the payload was wasted, more than {limit}"));
            }
        }
    }

    /// Bytes that a node has to fetch.
    fn fetched_bytes(&self) -> u64 {
        let needed = |piece: &u32| !self.twin_set.contains(*piece) && !self.kept_before.contains(*piece);
        (0..self.shape.pieces()).filter(needed).map(|piece| u64::from(self.shape.piece_bytes(piece))).sum()
    }

    fn wasted(&self) -> u64 {
        self.nodes.iter().map(|node| node.arrived - node.kept).sum()
    }

    fn report(self) -> Report {
        let world = self;
        let per_node: Vec<NodeReport> =
            world.nodes.iter().enumerate().map(|(number, node)| world.node_report(number as u32, node)).collect();
        let fabric = &world.scenario.fabric;
        let wanted = &per_node[fabric.seeds as usize..];
        let living = wanted.iter().zip(&world.nodes[fabric.seeds as usize..]);
        let mut times: Vec<Nanos> = living
            .filter(|(report, node)| node.is_honest() && report.alive)
            .filter_map(|(report, _)| report.finished)
            .collect();
        times.sort_unstable();
        let passed = world.net.passed();
        Report {
            title: world.scenario.title.clone(),
            seed: world.seed,
            nodes: fabric.nodes,
            racks: fabric.racks,
            image_bytes: world.fetched_bytes(),
            pieces: world.shape.pieces(),
            fetched_pieces: world.shape.pieces() - world.kept_before.count(),
            t_star: bound::t_star_of(&world.scenario, world.fetched_bytes()),
            bound: world.bound,
            makespan: times.last().copied().unwrap_or(0),
            median: times.get(times.len() / 2).copied().unwrap_or(0),
            finished: times.len() as u32,
            unfinished: world.nodes.iter().filter(|node| node.is_expected()).count() as u32,
            seed_sent: world.seed_sent,
            rack_in_most: world.rack_in.iter().copied().max().unwrap_or(0),
            rack_in_mean: world.rack_in.iter().sum::<u64>() / (world.rack_in.len() as u64).max(1),
            payload: world.payload_arrived,
            wasted: world.wasted(),
            messages: passed.messages,
            messages_by_kind: messages_by_kind(&world.said),
            message_bytes: passed.message_bytes,
            peak_active_bytes: world.peak_active,
            events: world.events,
            steps: world.steps,
            drops: world.drops.into_iter().collect(),
            violations: world.violations,
            violation_count: world.violation_count,
            trace: world.trace.finish().to_string(),
            per_node,
            samples: world.samples,
        }
    }

    fn node_report(&self, number: u32, node: &Node) -> NodeReport {
        NodeReport {
            node: number,
            rack: self.scenario.rack_of(number),
            started: node.started,
            finished: node.finished,
            alive: node.life == Life::Running,
            ours: node.is_ours(),
            sent: node.sent,
            received: node.arrived,
            wasted: node.arrived.saturating_sub(node.kept),
        }
    }
}

fn messages_by_kind(counts: &[u64; KINDS.len()]) -> Vec<(String, u64)> {
    let said = KINDS.iter().zip(counts).filter(|(_, count)| **count > 0);
    said.map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}
