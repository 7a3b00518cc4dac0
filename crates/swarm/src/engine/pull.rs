//! What we ask of kin: pieces of rack mates, always several at once and each of
//! the less busy of a few drawn by lot; of other racks what our lanes bring in.
//! Besides: what a dead or lying peer left undone, what nobody sends although
//! we starve, and the very end.

use wire::peer::Block;

use super::Engine;
use super::racks::lane_mask;
use crate::io::{Output, Peer, Why};
use crate::lanes::lane_of;
use crate::peer::Link;
use crate::picker::{least, rotated};

/// Refusals in a row that a foreign client is allowed: a choke may cross our
/// requests.
const FOREIGN_STRIKES: u8 = 16;

/// The same of kin, who never choke.
const KIN_STRIKES: u8 = 2;

/// Mates drawn by lot, of whom the least busy is asked. To ask the least busy
/// of all would send everybody to the same.
const DRAWN: usize = 3;

/// Pieces asked of one mate at once when there are few mates.
const MOST_OF_ONE: usize = 4;

/// Seeds are spared until this part of the pieces is there.
const FIRST_PART: u32 = 8;

/// So few of our own kind may all be seeds.
const SEEDS_ALONE: usize = 2;

impl Engine {
    /// Something that was asked came, or will not come: asks for more.
    pub(super) fn pull(&mut self, out: &mut Vec<Output>) {
        if !std::mem::take(&mut self.has_room) || self.kin == 0 || self.have.is_full() {
            return;
        }
        self.pull_far(out);
        self.pull_near(out);
    }

    fn pull_near(&mut self, out: &mut Vec<Output>) {
        let mut mates = std::mem::take(&mut self.mates);
        mates.clear();
        let near = self.links.iter().enumerate().filter(|(_, link)| self.may_pull(link) && self.is_near(link));
        mates.extend(near.map(|(at, _)| at as u32));
        let fewest = self.policy.pull_pieces;
        let most = (mates.len() / 2).clamp(fewest, fewest + fewest / 2);
        let of_one = (most / mates.len().max(1)).clamp(1, MOST_OF_ONE);
        mates.retain(|at| self.links[*at as usize].owes_pieces() < of_one);
        while self.owed_near < most && !mates.is_empty() {
            let drawn: [usize; DRAWN] = std::array::from_fn(|_| self.chance.index(mates.len()));
            let busy = |place: &usize| self.links[mates[*place] as usize].free_at.max(self.now);
            let Some(place) = drawn.into_iter().min_by_key(busy) else { break };
            let at = mates[place] as usize;
            let (peer, piece) = (self.links[at].peer, self.picker.rarest(&self.links[at].has, &mut self.chance));
            let asked = piece.is_some_and(|piece| self.fetch(peer, piece, out));
            if !asked || self.links[at].owes_pieces() >= of_one {
                mates.swap_remove(place);
            }
        }
        self.mates = mates;
    }

    /// What our lanes bring in and no mate has, of anybody in other racks.
    fn pull_far(&mut self, out: &mut Vec<Output>) {
        if self.racks.claimed == 0 {
            return;
        }
        for at in 0..self.links.len() {
            if self.owed_far >= self.policy.far_pieces {
                return;
            }
            let link = &self.links[at];
            if self.is_near(link) || !self.may_pull(link) || !link.outstanding.is_empty() {
                continue;
            }
            if let Some(piece) = self.rarest_across(at) {
                let peer = self.links[at].peer;
                self.fetch(peer, piece, out);
            }
        }
    }

    fn rarest_across(&mut self, at: usize) -> Option<u32> {
        let (has, idle, racks) = (&self.links[at].has, self.picker.idle_words(), &self.racks);
        let word =
            |at: usize| has.word(at) & idle[at] & lane_mask(racks.claimed, at) & !racks.seen_word(racks.mine, at);
        let candidates = rotated(self.shape.pieces(), &mut self.chance, word);
        least(candidates, |piece| u32::from(self.picker.holders(piece)), &mut self.chance)
    }

    /// A neighbour got this piece: if we look for work it is asked for it.
    pub(super) fn pull_news(&mut self, at: usize, piece: u32, out: &mut Vec<Output>) {
        let link = &self.links[at];
        if !self.picker.is_idle(piece) || !link.outstanding.is_empty() || !self.may_pull(link) {
            return;
        }
        let wanted = if self.is_near(link) {
            self.owed_near < self.policy.pull_pieces
        } else {
            let ours = self.racks.claimed & (1 << lane_of(piece)) != 0;
            ours && self.owed_far < self.policy.far_pieces && !self.racks.has_seen(self.racks.mine, piece)
        };
        if wanted {
            self.fetch(link.peer, piece, out);
        }
    }

    /// It waits to be asked: whoever offers comes by itself.
    fn may_pull(&self, link: &Link) -> bool {
        self.may_ask(link) && !link.offers
    }

    /// Pieces that were begun and that nobody is finishing are asked for at
    /// once: they take memory and will not be offered soon.
    pub(super) fn pull_orphans(&mut self, out: &mut Vec<Output>) {
        if self.kin == 0 {
            return;
        }
        let spares_seeds = self.spares_seeds();
        while let Some(piece) = self.picker.orphan(|piece| self.best_source(piece, spares_seeds).is_some()) {
            let Some(peer) = self.best_source(piece, spares_seeds) else { return };
            if !self.fetch(peer, piece, out) {
                return;
            }
        }
    }

    /// Who can send us this piece: near before far, the idle before the busy,
    /// and last a seed that chooses what it sends.
    fn best_source(&self, piece: u32, spares_seeds: bool) -> Option<Peer> {
        let may_send = |link: &&Link| self.may_send(link, piece) && !(spares_seeds && link.offers);
        let rank = |link: &&Link| (link.offers, !self.is_near(link), link.owes_blocks(), link.strikes, link.owed_since);
        self.links.iter().filter(may_send).min_by_key(rank).map(|link| link.peer)
    }

    /// At first all have the same few pieces, wait long for them and give up
    /// some. If a seed had to send those again, it would have nothing new for
    /// anybody: it is asked when we starve.
    fn spares_seeds(&self) -> bool {
        let has_little = self.have.count() < self.shape.pieces() / FIRST_PART;
        let is_fed = self.starves_at() > self.now;
        has_little && is_fed && self.kin > SEEDS_ALONE && !self.everybody_offers
    }

    fn may_ask(&self, link: &Link) -> bool {
        link.is_kin() && !link.snubbed && !link.on_parole && link.wanted > 0
    }

    fn may_send(&self, link: &Link, piece: u32) -> bool {
        self.may_ask(link) && link.has.contains(piece) && !link.leaves_open_of(piece)
    }

    /// Nothing has been coming for too long.
    pub(super) fn starve(&mut self, out: &mut Vec<Output>) {
        if self.starves_at() > self.now {
            return;
        }
        self.pull_orphans(out);
        // Several, or a rack that nobody brings a lane into would wait for each.
        let mut asked = 0;
        while asked < self.policy.far_pieces {
            let Some((peer, piece)) = self.forage() else { break };
            if !self.fetch(peer, piece, out) {
                break;
            }
            asked += 1;
        }
        if asked == 0 && !self.pull_twice(out) {
            self.ask_around(out);
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
    fn pull_twice(&mut self, out: &mut Vec<Output>) -> bool {
        let late: Vec<u32> = self.flows().flat_map(|link| link.outstanding.iter().map(|run| run.piece)).collect();
        for piece in late {
            let idle = |link: &&Link| self.may_send(link, piece) && link.outstanding.is_empty() && self.is_near(link);
            let Some(peer) = self.links.iter().find(idle).map(|link| link.peer) else { continue };
            let Some(link) = self.links.get(peer) else { continue };
            if let Some(run) = self.picker.take_twice(&link.asker(), piece) {
                self.request_run(peer, run, out);
                return true;
            }
        }
        false
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
