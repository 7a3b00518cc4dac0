//! A node: its engine or ordinary client, what it truly has, and its
//! connections.

use std::collections::VecDeque;
use std::time::Duration;

use swarm::{Engine, Input, Output, Peer, PieceSet};
use wire::peer::{Block, Message, PeerId};

use crate::foreign::Foreign;
use crate::scenario::Nature;
use crate::units::Nanos;

/// What decides for a node.
pub(crate) enum Brain {
    Ours(Box<Engine>),
    Foreign(Box<Foreign>),
}

impl Brain {
    pub(crate) fn step(&mut self, now: Nanos, input: Input, out: &mut Vec<Output>) {
        match self {
            Brain::Ours(engine) => engine.step(Duration::from_nanos(now), input, out),
            Brain::Foreign(client) => client.step(now, input, out),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        match self {
            Brain::Ours(engine) => engine.deadline().map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)),
            Brain::Foreign(client) => client.deadline(),
        }
    }

    /// Reads what a step will need first, and what it will need of this peer.
    pub(crate) fn look(&self) -> usize {
        match self {
            Brain::Ours(engine) => engine.look(),
            Brain::Foreign(_) => 0,
        }
    }

    pub(crate) fn look_at(&self, peer: Peer) -> usize {
        match self {
            Brain::Ours(engine) => engine.look_at(peer),
            Brain::Foreign(_) => 0,
        }
    }

    pub(crate) fn have(&self) -> &PieceSet {
        match self {
            Brain::Ours(engine) => engine.have(),
            Brain::Foreign(client) => client.have(),
        }
    }
}

/// A piece of which bytes are kept.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) piece: u32,
    pub(crate) bytes: u32,
    /// Blocks whose bytes are wrong.
    pub(crate) bad: Vec<u32>,
}

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct Owed {
    peer: u32,
    block: Block,
}

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It will start, or start again.
    Waiting,
    Running,
    /// It is gone for good.
    Dead,
}

pub(crate) struct Node {
    pub(crate) brain: Brain,
    pub(crate) nature: Nature,
    pub(crate) id: PeerId,
    pub(crate) life: Life,
    /// How often it was started; what belongs to an older life is ignored.
    pub(crate) lives: u32,
    /// What is verified, as the driver knows.
    pub(crate) truth: PieceSet,
    pub(crate) active: Vec<Active>,
    pub(crate) active_bytes: u64,
    /// The connection of every peer key of this life.
    pub(crate) links: Vec<u32>,
    owed: Vec<Owed>,
    pub(crate) tick_at: Nanos,
    /// Ticks in a row after which the engine wanted another at once.
    pub(crate) restless: u32,
    pub(crate) frozen_until: Nanos,
    /// Pieces to be hashed and written; the first is under way.
    pub(crate) to_write: VecDeque<u32>,
    pub(crate) disk_bits: u64,
    pub(crate) started: Nanos,
    pub(crate) finished: Option<Nanos>,
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    pub(crate) kept: u64,
    /// Bytes that it brought into its rack.
    pub(crate) carried: u64,
}

/// Why a request may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadAsk {
    HasIt,
    AskedTwice,
}

impl Node {
    pub(crate) fn new(brain: Brain, nature: Nature, id: PeerId, disk_bits: u64) -> Node {
        Node {
            truth: brain.have().clone(),
            brain,
            nature,
            id,
            life: Life::Waiting,
            lives: 0,
            active: Vec::new(),
            active_bytes: 0,
            links: Vec::new(),
            owed: Vec::new(),
            tick_at: Nanos::MAX,
            restless: 0,
            frozen_until: 0,
            to_write: VecDeque::new(),
            disk_bits,
            started: 0,
            finished: None,
            sent: 0,
            arrived: 0,
            kept: 0,
            carried: 0,
        }
    }

    /// Reads what a step will need of the node itself.
    pub(crate) fn look(&self) -> usize {
        self.lives as usize ^ self.tick_at as usize ^ self.links.len() ^ self.owed.len() ^ self.truth.count() as usize
    }

    /// It keeps the rules, so it must not be punished and must finish.
    pub(crate) fn is_honest(&self) -> bool {
        matches!(self.nature, Nature::Honest | Nature::Foreign)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.nature == Nature::Honest
    }

    pub(crate) fn is_running(&self) -> bool {
        self.life == Life::Running
    }

    /// It is to be waited for.
    pub(crate) fn is_expected(&self) -> bool {
        self.is_honest() && self.finished.is_none() && self.life != Life::Dead
    }

    /// Keeps account of requests in what this node says.
    pub(crate) fn said(&mut self, peer: u32, message: &Message) -> Result<(), BadAsk> {
        match message {
            Message::Request(block) => {
                let twice = self.owed.iter().any(|owed| owed.peer == peer && overlap(owed.block, *block));
                self.owed.push(Owed { peer, block: *block });
                if self.truth.contains(block.piece) {
                    return Err(BadAsk::HasIt);
                }
                if twice {
                    return Err(BadAsk::AskedTwice);
                }
            }
            Message::Cancel(block) => self.settle(peer, *block),
            _ => {}
        }
        Ok(())
    }

    /// Keeps account of answers in what this node hears.
    pub(crate) fn heard(&mut self, peer: u32, message: &Message, fast: bool) {
        match message {
            Message::Reject(block) => self.settle(peer, *block),
            Message::Choke if !fast => self.forget_owed(peer),
            _ => {}
        }
    }

    /// A part of a range, or a whole one, is answered.
    pub(crate) fn settle(&mut self, peer: u32, block: Block) {
        let Some(at) = self.owed.iter().position(|owed| owed.peer == peer && overlap(owed.block, block)) else {
            return;
        };
        let owed = &mut self.owed[at].block;
        let answered = (block.offset + block.length).min(owed.offset + owed.length);
        if answered >= owed.offset + owed.length {
            self.owed.swap_remove(at);
        } else {
            owed.length -= answered - owed.offset;
            owed.offset = answered;
        }
    }

    pub(crate) fn forget_owed(&mut self, peer: u32) {
        self.owed.retain(|owed| owed.peer != peer);
    }

    /// Requests without an answer: the peer keys.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = (u32, Block)> + '_ {
        self.owed.iter().map(|owed| (owed.peer, owed.block))
    }

    /// Takes bytes into a piece; false when there are more than it has.
    pub(crate) fn keep(&mut self, block: Block, bad: Vec<u32>, piece_bytes: u32) -> bool {
        self.kept += u64::from(block.length);
        self.active_bytes += u64::from(block.length);
        let at = self.active.iter().position(|active| active.piece == block.piece).unwrap_or_else(|| {
            self.active.push(Active { piece: block.piece, bytes: 0, bad: Vec::new() });
            self.active.len() - 1
        });
        let active = &mut self.active[at];
        active.bytes += block.length;
        active.bad.extend(bad);
        active.bytes <= piece_bytes
    }

    /// Gives up what was kept of a piece.
    pub(crate) fn forget(&mut self, piece: u32) {
        if let Some(at) = self.active.iter().position(|active| active.piece == piece) {
            self.active_bytes -= u64::from(self.active.swap_remove(at).bytes);
        }
    }

    /// Everything in memory is lost.
    pub(crate) fn lose_memory(&mut self) {
        self.active.clear();
        self.active_bytes = 0;
        self.links.clear();
        self.owed.clear();
        self.tick_at = Nanos::MAX;
        self.frozen_until = 0;
        self.to_write.clear();
    }
}

fn overlap(a: Block, b: Block) -> bool {
    a.piece == b.piece && a.offset < b.offset + b.length && b.offset < a.offset + a.length
}
