//! Pieces at a node: kept, hashed, written, judged.

use swarm::{Input, Verdict};
use wire::peer::{BLOCK_BYTES, Block};

use super::World;
use super::node::Brain;
use crate::agenda::Event;
use crate::net::Network;
use crate::units::{Nanos, SECOND};

impl<N: Network> World<N> {
    pub(super) fn keep(&mut self, number: u32, block: Block, arrived: Option<&(Block, Vec<u32>)>) {
        let within = |(came, _): &&(Block, Vec<u32>)| {
            let end = |block: &Block| block.offset + block.length;
            came.piece == block.piece && came.offset <= block.offset && end(&block) <= end(came)
        };
        let Some((_, bad)) = arrived.filter(within) else {
            return self.violation(|| format!("node {number} keeps {block:?}, which did not arrive just now"));
        };
        let kept = block.offset / BLOCK_BYTES..(block.offset + block.length).div_ceil(BLOCK_BYTES);
        let bad = bad.iter().copied().filter(|index| kept.contains(index)).collect();
        let piece_bytes = self.shape.piece_bytes(block.piece);
        let node = &mut self.nodes[number as usize];
        if !node.keep(block, bad, piece_bytes) {
            self.violation(|| format!("node {number} keeps more of piece {} than it has", block.piece));
        }
        let node = &self.nodes[number as usize];
        let budget = self.policy.active_bytes.max(2 * u64::from(self.shape.piece_length()));
        let used = node.active_bytes;
        self.peak_active = self.peak_active.max(used);
        if used > budget && node.is_ours() {
            self.violation(|| format!("node {number} holds {used} unverified bytes, more than {budget}"));
        }
    }

    /// Hashing and then writing, one piece at a time.
    pub(super) fn verify(&mut self, number: u32, piece: u32) {
        let bytes = self.shape.piece_bytes(piece);
        let node = &mut self.nodes[number as usize];
        if !node.active.iter().any(|active| active.piece == piece && active.bytes == bytes) {
            return self.violation(|| format!("node {number} verifies piece {piece}, of which bytes are missing"));
        }
        node.to_write.push_back(piece);
        if node.to_write.len() == 1 {
            self.write_next(number);
        }
    }

    fn write_next(&mut self, number: u32) {
        let node = &self.nodes[number as usize];
        let Some(&piece) = node.to_write.front() else { return };
        let bits = u128::from(self.shape.piece_bytes(piece)) * 8 * u128::from(SECOND);
        let hashing = (bits / u128::from(self.scenario.fabric.hashing.0)) as Nanos;
        let writing = (bits / u128::from(node.disk_bits)) as Nanos;
        let life = node.lives;
        self.agenda.after(hashing + writing, Event::Stored(number, piece, life));
    }

    pub(super) fn stored(&mut self, number: u32, piece: u32, life: u32) {
        let now = self.now();
        let node = &mut self.nodes[number as usize];
        if node.lives != life || !node.is_running() {
            return;
        }
        if node.frozen_until > now {
            return self.agenda.at(node.frozen_until, Event::Stored(number, piece, life));
        }
        node.to_write.pop_front();
        self.write_next(number);
        let node = &mut self.nodes[number as usize];
        let Some(at) = node.active.iter().position(|active| active.piece == piece) else { return };
        let bad = std::mem::take(&mut node.active[at].bad);
        if bad.is_empty() {
            node.forget(piece);
            self.good(number, piece);
            let twins = self.twins.get(&piece).cloned().unwrap_or_default();
            let fresh = twins.into_iter().filter(|twin| !self.nodes[number as usize].truth.contains(*twin));
            fresh.collect::<Vec<u32>>().into_iter().for_each(|twin| self.good(number, twin));
        } else {
            self.corrupt(number, piece, bad);
        }
    }

    fn good(&mut self, number: u32, piece: u32) {
        if self.nodes[number as usize].truth.insert(piece) {
            self.copies[piece as usize] += 1;
            if self.copies[piece as usize] == 1 {
                self.lost -= 1;
            }
            self.pieces_had += 1;
        }
        self.step(number, Input::Verified(piece, Verdict::Good), None);
        let node = &self.nodes[number as usize];
        if node.is_ours() && node.brain.have().count() != node.truth.count() {
            let (says, has) = (node.brain.have().count(), node.truth.count());
            self.violation(|| format!("node {number} counts {says} pieces and has {has}"));
        }
    }

    /// Ours know which blocks are wrong; an ordinary client of BEP 3 does not.
    fn corrupt(&mut self, number: u32, piece: u32, mut bad: Vec<u32>) {
        let ours = matches!(self.nodes[number as usize].brain, Brain::Ours(_));
        if !ours || !self.scenario.image.leaves {
            self.nodes[number as usize].forget(piece);
            return self.step(number, Input::Verified(piece, Verdict::Corrupt), None);
        }
        bad.sort_unstable();
        bad.dedup();
        let bytes: u32 = bad.iter().map(|index| self.shape.block(piece, *index).length).sum();
        let node = &mut self.nodes[number as usize];
        if let Some(active) = node.active.iter_mut().find(|active| active.piece == piece) {
            active.bytes -= bytes;
            node.active_bytes -= u64::from(bytes);
        }
        self.step(number, Input::Verified(piece, Verdict::CorruptBlocks(bad)), None);
    }

    pub(super) fn complete(&mut self, number: u32) {
        let now = self.now();
        let node = &mut self.nodes[number as usize];
        if !node.truth.is_full() {
            self.violation(|| format!("node {number} says that it is complete and is not"));
        } else if node.finished.is_some() {
            // After a crash that cost the disk it completes again.
            if node.lives < 2 {
                self.violation(|| format!("node {number} completes twice"));
            }
        } else {
            let was_expected = node.is_expected();
            node.finished = Some(now);
            self.expected -= u32::from(was_expected);
            self.finished += 1;
        }
    }
}
