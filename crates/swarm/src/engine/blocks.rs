//! Blocks are asked for, of foreign clients one by one, and come; pieces are
//! judged.

use wire::peer::{BLOCK_BYTES, Block, Message};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::peer::Kind;
use crate::picker::{Arrival, Forgotten, Run, Supply};

/// Places for pieces that foreign clients leave to kin.
const KIN_PLACES: usize = 2;

impl Engine {
    /// Asks a foreign client for as much as its window allows.
    pub(super) fn refill(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let was_endgame = self.picker.is_endgame();
        self.request_more(peer, out);
        if !was_endgame && self.picker.is_endgame() {
            self.refill_all(out);
        }
    }

    /// Something may have become available to any foreign client. Those that
    /// delivered before go first, lest one mute peer's work falls to the next.
    pub(super) fn refill_all(&mut self, out: &mut Vec<Output>) {
        if self.kin == self.links.len() {
            return;
        }
        for proven in [true, false] {
            let peers = self.links.peers(|link| link.kind == Kind::Foreign && link.is_proven() == proven);
            peers.into_iter().for_each(|peer| self.request_more(peer, out));
        }
    }

    fn request_more(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let mut forgotten = Vec::new();
        let spare = if self.kin > 0 { KIN_PLACES } else { 0 };
        while let Some(link) = self.links.get_mut(peer).filter(|link| link.kind == Kind::Foreign) {
            if link.chokes_us {
                return self.request_allowed(peer, out);
            }
            let window = link.window(self.policy.pipeline_blocks, self.picker.memory_blocks(), BLOCK_BYTES);
            if link.wanted == 0 || link.owes_blocks() >= window {
                break;
            }
            let run = self.picker.pick(&link.asker(), spare, &mut self.chance, &mut forgotten);
            self.forget(&mut forgotten, out);
            let Some(run) = run else { break };
            self.request(peer, run, out);
        }
    }

    fn request(&mut self, peer: Peer, run: Run, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.outstanding.is_empty() {
            link.owed_since = self.now;
        }
        link.outstanding.push(run);
        link.clock_request(run, self.now);
        self.wake(self.now + self.policy.request_timeout);
        self.say(peer, Message::Request(run.place(&self.shape)), out);
    }

    /// It chokes us, but some pieces it serves all the same (BEP 6).
    fn request_allowed(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get(peer).filter(|link| link.outstanding.is_empty() && !link.snubbed) else {
            return;
        };
        let allowed = link.foreign.as_ref().map(|foreign| foreign.allowed_to_us.clone()).unwrap_or_default();
        let wanted = |piece: &u32| link.has.contains(*piece) && self.picker.can_take(&link.asker(), *piece);
        let Some(piece) = allowed.into_iter().find(wanted) else { return };
        let mut forgotten = Vec::new();
        let runs = self.picker.take(&link.asker(), piece, &mut forgotten);
        self.forget(&mut forgotten, out);
        for run in runs {
            (run.first..run.first + run.count).for_each(|index| self.request(peer, Run::one(piece, index), out));
        }
    }

    pub(super) fn allowed_fast(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) {
        /// More than any client allows.
        const MOST: usize = 64;
        let Some(link) = self.links.get_mut(peer).filter(|link| link.speaks.fast) else { return };
        if piece >= self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        let Some(foreign) = &mut link.foreign else { return };
        if foreign.allowed_to_us.len() < MOST && !foreign.allowed_to_us.contains(&piece) {
            foreign.allowed_to_us.push(piece);
            self.refill(peer, out);
        }
    }

    /// What was kept of pieces given up was received for nothing.
    pub(super) fn forget(&mut self, forgotten: &mut Vec<Forgotten>, out: &mut Vec<Output>) {
        for Forgotten { piece, supply } in forgotten.drain(..) {
            self.spoil(&supply);
            out.push(Output::Forget(piece));
        }
    }

    fn spoil(&mut self, supply: &Supply) {
        for (&peer, &bytes) in &supply.contributors {
            if let Some((party, _)) = self.identity(peer) {
                self.ledger.spoiled(&party, bytes);
            }
        }
    }

    pub(super) fn arrived(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let Some(at) = self.links.find(peer) else { return };
        let party = self.party_of(&self.links[at]);
        let run = Run::of(block, &self.shape);
        let link = &mut self.links[at];
        link.heard = self.now;
        let asked = run.is_some_and(|run| link.settle(run));
        let Some(run) = run.filter(|run| asked || link.was_forgiven(*run)) else {
            self.ledger.wasted(&party, block.length);
            return self.drop_peer(peer, Why::Unsolicited(block), out);
        };
        let gap = self.now - link.owed_since;
        link.owed_since = self.now;
        link.snubbed = false;
        let probe = link.foreign.as_mut().and_then(|foreign| foreign.probe.take()).filter(|probe| *probe != run);
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.clear();
        // On parole only pieces of its own count, and those are still asked.
        let arrival = if link.on_parole && !asked {
            Arrival::default()
        } else {
            self.picker.arrived(peer, run, asked, &mut fresh)
        };
        link.count_received(run, block.length, self.now);
        let is_kin = link.is_kin();
        if is_kin && asked {
            self.flow_moved(peer, gap, block.piece);
        }
        let kept: u32 = fresh.iter().map(|run| run.place(&self.shape).length).sum();
        self.ledger.kept(&party, kept);
        self.ledger.wasted(&party, block.length - kept);
        out.extend(fresh.iter().map(|run| Output::Keep(peer, run.place(&self.shape))));
        if arrival.also_asked {
            fresh.iter().for_each(|run| self.cancel_everywhere(*run, out));
        }
        self.fresh = fresh;
        if arrival.completes {
            // Of a request only parts of which were needed twice the rest is left.
            let whole = Run { piece: run.piece, first: 0, count: self.shape.blocks(run.piece) };
            self.cancel_everywhere(whole, out);
            out.push(Output::Verify(run.piece));
        }
        if let Some(probe) = probe {
            self.say(peer, Message::Cancel(probe.place(&self.shape)), out);
        }
        if !is_kin {
            self.refill(peer, out);
        }
    }

    /// Asks a snubbed peer for one block, as a request already forgiven: the
    /// block may come, and nobody counts on it.
    pub(super) fn probe(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        link.owed_since = self.now;
        self.wake(self.now + self.policy.request_timeout);
        let Some(link) = self.links.get_mut(peer).filter(|link| !link.chokes_us && link.wanted > 0) else { return };
        let Some(run) = self.picker.probe(&link.asker()) else { return };
        let Some(foreign) = &mut link.foreign else { return };
        let earlier = foreign.probe.replace(run);
        link.forgive(run);
        if let Some(earlier) = earlier {
            self.say(peer, Message::Cancel(earlier.place(&self.shape)), out);
        }
        self.say(peer, Message::Request(run.place(&self.shape)), out);
    }

    /// Takes requests back that are no longer needed from anybody, and gives
    /// those peers something else to do.
    fn cancel_everywhere(&mut self, unneeded: Run, out: &mut Vec<Output>) {
        let mut free = Vec::new();
        for link in self.links.iter_mut() {
            let part_of = |owed: &mut Run| unneeded.covers(*owed);
            let cancelled: Vec<Run> = link.outstanding.extract_if(.., part_of).collect();
            for run in cancelled {
                link.forgive(run);
                link.said = self.now;
                out.push(Output::Say(link.peer, Message::Cancel(run.place(&self.shape))));
                free.push(link.peer);
            }
        }
        free.dedup();
        self.flows_changed();
        free.into_iter().for_each(|peer| self.request_more(peer, out));
    }

    /// Forgets what a peer owes us; it may still send it.
    pub(super) fn take_back(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let owed = std::mem::take(&mut link.outstanding);
        owed.iter().for_each(|&run| link.forgive(run));
        self.release(peer, &owed, out);
        self.flows_changed();
    }

    pub(super) fn release(&mut self, peer: Peer, owed: &[Run], out: &mut Vec<Output>) {
        owed.iter().for_each(|&run| self.picker.released(run));
        let mut forgotten = self.picker.disowned(peer);
        self.forget(&mut forgotten, out);
    }

    pub(super) fn cancel_all_of(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let owed = self.links.get(peer).map(|link| link.outstanding.clone()).unwrap_or_default();
        self.take_back(peer, out);
        for run in owed {
            self.say(peer, Message::Cancel(run.place(&self.shape)), out);
        }
    }

    pub(super) fn verified(&mut self, piece: u32, out: &mut Vec<Output>) {
        self.tell_lanes(self.racks.claimed, out);
        if !self.have.insert(piece) {
            return;
        }
        // A piece may also come another way, multicast for one.
        let came_otherwise = !self.picker.awaits_verdict(piece);
        let was_full = self.picker.is_full();
        self.left -= u64::from(self.shape.piece_bytes(piece));
        let supply = self.picker.succeeded(piece);
        self.praise(supply.contributors.keys().copied().collect());
        if came_otherwise {
            let whole = Run { piece, first: 0, count: self.shape.blocks(piece) };
            self.cancel_everywhere(whole, out);
        }
        self.tell_everybody(piece, out);
        if self.have.is_full() {
            self.completed(out);
        } else if was_full {
            self.has_room = true;
            self.refill_all(out);
        }
        self.offer_anew(out);
    }

    fn praise(&mut self, contributors: Vec<Peer>) {
        let alone = contributors.len() == 1;
        for peer in contributors {
            let Some(link) = self.links.get_mut(peer) else { continue };
            self.book.praise(link.address);
            if alone {
                link.on_parole = false;
            }
        }
    }

    /// Foreign clients are told at once, kin soon.
    fn tell_everybody(&mut self, piece: u32, out: &mut Vec<Output>) {
        let is_twin = self.twins.contains(piece);
        let mut sated = Vec::new();
        let mut is_new = true;
        for link in self.links.iter_mut() {
            let has = link.has.contains(piece);
            is_new &= !has || link.has.is_full();
            if !has {
                link.useful += 1;
            } else if !is_twin {
                link.wanted -= 1;
            }
            match link.kind {
                Kind::Kin => {}
                Kind::Foreign | Kind::Unknown if !has => {
                    link.said = self.now;
                    out.push(Output::Say(link.peer, Message::Have(piece)));
                }
                Kind::Foreign | Kind::Unknown => sated.extend((link.wanted == 0).then_some(link.peer)),
            }
        }
        sated.into_iter().for_each(|peer| self.want(peer, out));
        if is_twin || self.kin == 0 {
            return;
        }
        self.report(piece, is_new);
    }

    fn completed(&mut self, out: &mut Vec<Output>) {
        self.herald.complete(self.now.duration());
        self.due = self.now;
        self.tell_all_news(out);
        // They heard of their lanes only.
        let far = self.links.peers(|link| link.is_kin() && link.rack != self.racks.mine);
        far.into_iter().for_each(|peer| self.say(peer, Message::HaveAll, out));
        self.flows_changed();
        out.push(Output::Complete);
        let full = self.links.peers(|link| link.has.is_full());
        full.into_iter().for_each(|peer| self.drop_peer(peer, Why::BothComplete, out));
    }

    /// One contributor is a liar by itself. Of several we know only that one
    /// is; each then gets whole pieces of its own until one proves it.
    pub(super) fn corrupt(&mut self, piece: u32, out: &mut Vec<Output>) {
        if !self.picker.awaits_verdict(piece) {
            return;
        }
        self.failed_pieces += 1;
        let supply = self.picker.failed(piece);
        self.spoil(&supply);
        let contributors: Vec<Peer> = supply.contributors.into_keys().collect();
        match contributors[..] {
            [liar] => self.expose(liar, piece, out),
            _ => contributors.into_iter().for_each(|peer| {
                if let Some(link) = self.links.get_mut(peer) {
                    link.on_parole = true;
                    self.cancel_all_of(peer, out);
                }
            }),
        }
        self.refill_all(out);
        self.pull_orphans(out);
    }

    /// The hashes of blocks are known: only who sent the wrong ones is guilty,
    /// and only those are fetched again.
    pub(super) fn corrupt_blocks(&mut self, piece: u32, blocks: &[u32], out: &mut Vec<Output>) {
        if !self.picker.awaits_verdict(piece) {
            return;
        }
        self.failed_pieces += 1;
        let count = self.shape.blocks(piece);
        for &index in blocks.iter().filter(|index| **index < count) {
            let supply = self.picker.failed_blocks(piece, &[index]);
            self.spoil(&supply);
            let block = self.shape.block(piece, index);
            for liar in supply.contributors.into_keys() {
                self.convict(liar, Why::CorruptBlock(block), out);
            }
        }
        if self.picker.awaits_verdict(piece) {
            // No block was named, or none that came from anybody.
            let supply = self.picker.failed(piece);
            self.spoil(&supply);
            out.push(Output::Forget(piece));
        }
        self.refill_all(out);
        self.pull_orphans(out);
    }

    fn expose(&mut self, liar: Peer, piece: u32, out: &mut Vec<Output>) {
        let others = self.links.iter().any(|link| link.peer != liar && link.has.contains(piece));
        let why = if others { Why::CorruptPiece(piece) } else { Why::CorruptSource(piece) };
        self.convict(liar, why, out);
    }

    fn convict(&mut self, liar: Peer, why: Why, out: &mut Vec<Output>) {
        if let Some((party, address)) = self.identity(liar) {
            self.drop_peer(liar, why, out);
            self.ban(party.id, address);
        }
    }
}
