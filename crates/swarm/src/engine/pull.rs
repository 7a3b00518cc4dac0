//! Asking kin without an offer: for what a dead or lying peer left undone,
//! when nothing has been coming for too long, and at the very end.

use wire::peer::Block;

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::peer::Link;
use crate::picker::rotated;

/// Refusals in a row that a foreign client is allowed: a choke may cross our
/// requests.
const FOREIGN_STRIKES: u8 = 16;

/// The same of kin, who never choke.
const KIN_STRIKES: u8 = 2;

impl Engine {
    /// Pieces that were begun and that nobody is finishing are asked for at
    /// once: they take memory and will not be offered soon.
    pub(super) fn pull_orphans(&mut self, out: &mut Vec<Output>) {
        if self.kin == 0 {
            return;
        }
        while let Some(piece) = self.picker.orphan(|piece| self.best_source(piece).is_some()) {
            let Some(peer) = self.best_source(piece) else { return };
            if !self.fetch(peer, piece, out) {
                return;
            }
        }
    }

    /// Who can send us this piece: near before far, the idle before the busy.
    fn best_source(&self, piece: u32) -> Option<Peer> {
        let sources = self.links.iter().filter(|link| self.may_ask(link) && link.has.contains(piece));
        let rank = |link: &&Link| (!self.is_near(link), link.owes_blocks(), link.strikes, link.owed_since);
        sources.min_by_key(rank).map(|link| link.peer)
    }

    fn may_ask(&self, link: &Link) -> bool {
        link.is_kin() && !link.snubbed && !link.on_parole && link.wanted > 0
    }

    /// Nothing has been coming for too long.
    pub(super) fn starve(&mut self, out: &mut Vec<Output>) {
        if self.starves_at() > self.now {
            return;
        }
        self.pull_orphans(out);
        let found = self.forage();
        if !found.is_some_and(|(peer, piece)| self.fetch(peer, piece, out)) {
            self.pull_twice(out);
        }
        // However it went, look again after as long.
        self.hungry_since = self.now;
    }

    /// A piece to ask for, and whom: the rarest that a rack mate has, else,
    /// across racks, one that no mate has.
    fn forage(&mut self) -> Option<(Peer, u32)> {
        let near = self.links.peers(|link| self.may_ask(link) && self.is_near(link) && link.outstanding.is_empty());
        let start = self.chance.index(near.len());
        for turn in 0..near.len() {
            let peer = near[(start + turn) % near.len()];
            let Some(link) = self.links.get(peer) else { continue };
            if let Some(piece) = self.picker.rarest(&link.has, &mut self.chance) {
                return Some((peer, piece));
            }
        }
        self.forage_far()
    }

    /// Across racks, in an order of our own, so that mates ask for others.
    fn forage_far(&mut self) -> Option<(Peer, u32)> {
        let (idle, racks, mine) = (self.picker.idle_words(), &self.racks, self.racks.mine);
        let missing = |at: usize| idle[at] & !racks.seen_word(mine, at);
        let far = |link: &&Link| self.may_ask(link) && !self.is_near(link) && link.outstanding.is_empty();
        let has = |piece: u32| self.links.iter().filter(far).find(|link| link.has.contains(piece));
        let mut chance = self.chance.clone();
        let mut candidates = rotated(self.shape.pieces(), &mut chance, missing);
        let found = candidates.find_map(|piece| Some((has(piece)?.peer, piece)));
        drop(candidates);
        self.chance = chance;
        found
    }

    /// Everything missing is owed by somebody who does not send: an idle
    /// neighbour is asked for the same.
    fn pull_twice(&mut self, out: &mut Vec<Output>) {
        let late: Vec<u32> = self.flows().flat_map(|link| link.outstanding.iter().map(|run| run.piece)).collect();
        for piece in late {
            let idle = |link: &&Link| {
                self.may_ask(link) && link.has.contains(piece) && link.outstanding.is_empty() && self.is_near(link)
            };
            let Some(peer) = self.links.iter().find(idle).map(|link| link.peer) else { continue };
            let Some(link) = self.links.get(peer) else { continue };
            if let Some(run) = self.picker.take_twice(&link.asker(), piece) {
                self.request_run(peer, run, out);
                return;
            }
        }
    }

    /// The peer will not send this: a lie, if it says it has it.
    pub(super) fn rejected(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer).filter(|link| link.speaks.fast) else { return };
        let Some(run) = crate::picker::Run::of(block, &self.shape) else {
            return self.drop_peer(peer, Why::BadRequest(block), out);
        };
        // Answers come in order, so the first is to a request taken back.
        if link.was_forgiven(run) || !link.settle(run) {
            return;
        }
        let limit = if link.is_kin() { KIN_STRIKES } else { FOREIGN_STRIKES };
        if !link.chokes_us {
            link.strikes = link.strikes.saturating_add(1);
        }
        let lies = link.strikes >= limit;
        self.release(peer, &[run], out);
        if lies {
            return self.drop_peer(peer, Why::Refuses(block.piece), out);
        }
        self.flows_changed();
        self.pull_orphans(out);
        if self.kin == 0 || !self.links.get(peer).is_some_and(Link::is_kin) {
            self.refill_all(out);
        }
    }
}
