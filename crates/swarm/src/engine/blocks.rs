//! Blocks are asked for and come; pieces are judged.

use wire::peer::{BLOCK_BYTES, Block, Message};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::picker::{Arrival, Forgotten, Place, Supply};

impl Engine {
    /// Asks a peer for as much as its window allows.
    pub(super) fn refill(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let was_endgame = self.picker.is_endgame();
        self.request_more(peer, out);
        if !was_endgame && self.picker.is_endgame() {
            self.refill_all(out);
        }
    }

    /// Something may have become available to anybody. Those that delivered
    /// before go first, lest one mute peer's work falls to the next.
    pub(super) fn refill_all(&mut self, out: &mut Vec<Output>) {
        for proven in [true, false] {
            let alike = self.links.iter().filter(|(_, link)| link.is_proven() == proven);
            let peers: Vec<Peer> = alike.map(|(peer, _)| *peer).collect();
            peers.into_iter().for_each(|peer| self.request_more(peer, out));
        }
    }

    fn request_more(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let mut forgotten = Vec::new();
        while let Some(link) = self.links.get_mut(&peer) {
            let window = link.window(self.policy.pipeline_blocks, self.picker.memory_blocks());
            if link.wanted == 0 || link.outstanding.len() >= window {
                break;
            }
            let place = self.picker.pick(&link.asker(peer), &mut self.chance, &mut forgotten);
            if let Some(place) = place {
                if link.outstanding.is_empty() {
                    link.owed_since = self.now;
                }
                link.outstanding.push(place);
            }
            self.forget(&mut forgotten, out);
            let Some(place) = place else { break };
            self.wake(self.now + self.policy.request_timeout);
            self.say(peer, Message::Request(self.shape.block(place.piece, place.index)), out);
        }
    }

    /// What was kept of pieces given up was received for nothing.
    fn forget(&mut self, forgotten: &mut Vec<Forgotten>, out: &mut Vec<Output>) {
        for Forgotten { piece, supply } in forgotten.drain(..) {
            self.spoil(&supply);
            out.push(Output::Forget(piece));
        }
    }

    fn spoil(&mut self, supply: &Supply) {
        for (&peer, &bytes) in &supply.contributors {
            if let Some((id, address)) = self.identity(peer) {
                self.ledger.spoiled(id, address.ip(), bytes);
            }
        }
    }

    pub(super) fn arrived(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let place = Place { piece: block.piece, index: block.offset / BLOCK_BYTES };
        let Some(link) = self.links.get_mut(&peer) else { return };
        let (id, ip) = (link.id, link.address.ip());
        link.heard = self.now;
        let is_ours = self.shape.contains(block) && self.shape.block(place.piece, place.index) == block;
        let asked = is_ours && link.settle(place);
        let expected = asked || (is_ours && link.was_forgiven(place));
        if !expected {
            self.ledger.wasted(id, ip, block.length);
            return self.drop_peer(peer, Why::Unsolicited(block), out);
        }
        link.owed_since = self.now;
        link.snubbed = false;
        let probe = link.probe.take().filter(|probe| *probe != place);
        // On parole only pieces of its own count, and those are still asked.
        let arrival = if link.on_parole && !asked { Arrival::Wasted } else { self.picker.arrived(peer, place, asked) };
        match arrival {
            Arrival::Wasted => self.ledger.wasted(id, ip, block.length),
            Arrival::Kept { also_asked, completes } => {
                link.count_received(block.length);
                self.ledger.kept(id, ip, block.length);
                out.push(Output::Keep(peer, block));
                if also_asked {
                    self.cancel_everywhere(|owed| *owed == place, out);
                }
                if completes {
                    out.push(Output::Verify(place.piece));
                }
            }
        }
        if let Some(probe) = probe {
            self.say(peer, Message::Cancel(self.shape.block(probe.piece, probe.index)), out);
        }
        self.refill(peer, out);
    }

    /// Asks a snubbed peer for one block, as a request already forgiven: the
    /// block may come, and nobody counts on it.
    pub(super) fn probe(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.owed_since = self.now;
        self.wake(self.now + self.policy.request_timeout);
        let Some(link) = self.links.get_mut(&peer).filter(|link| !link.chokes_us && link.wanted > 0) else { return };
        let Some(place) = self.picker.probe(&link.asker(peer)) else { return };
        let earlier = link.probe.replace(place);
        link.forgive(place);
        if let Some(earlier) = earlier {
            self.say(peer, Message::Cancel(self.shape.block(earlier.piece, earlier.index)), out);
        }
        self.say(peer, Message::Request(self.shape.block(place.piece, place.index)), out);
    }

    /// Takes requests back that are no longer needed from anybody, and gives
    /// those peers something else to do.
    fn cancel_everywhere(&mut self, unneeded: impl Fn(&Place) -> bool, out: &mut Vec<Output>) {
        let mut free = Vec::new();
        for (peer, link) in &mut self.links {
            let cancelled: Vec<Place> = link.outstanding.extract_if(.., |owed| unneeded(owed)).collect();
            for place in cancelled {
                link.forgive(place);
                link.said = self.now;
                out.push(Output::Say(*peer, Message::Cancel(self.shape.block(place.piece, place.index))));
                free.push(*peer);
            }
        }
        free.dedup();
        free.into_iter().for_each(|peer| self.request_more(peer, out));
    }

    /// Forgets what a peer owes us; it may still send it.
    pub(super) fn take_back(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let owed = std::mem::take(&mut link.outstanding);
        owed.iter().for_each(|&place| link.forgive(place));
        self.release(peer, &owed, out);
    }

    pub(super) fn release(&mut self, peer: Peer, owed: &[Place], out: &mut Vec<Output>) {
        owed.iter().for_each(|&place| self.picker.released(place));
        let mut forgotten = self.picker.disowned(peer);
        self.forget(&mut forgotten, out);
    }

    pub(super) fn verified(&mut self, piece: u32, out: &mut Vec<Output>) {
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
            self.cancel_everywhere(|owed| owed.piece == piece, out);
        }
        self.tell_everybody(piece, out);
        if self.have.is_full() {
            self.completed(out);
        } else if was_full {
            self.refill_all(out);
        }
    }

    fn praise(&mut self, contributors: Vec<Peer>) {
        let alone = contributors.len() == 1;
        for peer in contributors {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            self.book.praise(link.address);
            if alone {
                link.on_parole = false;
            }
        }
    }

    /// Peers that have the piece need not be told that we have it too.
    fn tell_everybody(&mut self, piece: u32, out: &mut Vec<Output>) {
        let peers: Vec<Peer> = self.links.keys().copied().collect();
        for peer in peers {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            if link.has.contains(piece) {
                link.wanted -= 1;
                self.want(peer, out);
            } else {
                self.say(peer, Message::Have(piece), out);
            }
        }
    }

    fn completed(&mut self, out: &mut Vec<Output>) {
        self.herald.complete(self.now);
        self.due = self.now;
        out.push(Output::Complete);
        let full: Vec<Peer> = self.links.iter().filter(|(_, link)| link.has.is_full()).map(|(peer, _)| *peer).collect();
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
        let mut contributors = supply.contributors.into_keys();
        match (contributors.next(), contributors.next()) {
            (Some(liar), None) => self.expose(liar, piece, out),
            (first, second) => first.into_iter().chain(second).chain(contributors).for_each(|peer| {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.on_parole = true;
                    self.cancel_all_of(peer, out);
                }
            }),
        }
        self.refill_all(out);
    }

    fn expose(&mut self, liar: Peer, piece: u32, out: &mut Vec<Output>) {
        if let Some((id, address)) = self.identity(liar) {
            self.drop_peer(liar, Why::CorruptPiece(piece), out);
            self.ban(id, address);
        }
    }

    pub(super) fn cancel_all_of(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let owed = self.links.get(&peer).map(|link| link.outstanding.clone()).unwrap_or_default();
        self.take_back(peer, out);
        for place in owed {
            self.say(peer, Message::Cancel(self.shape.block(place.piece, place.index)), out);
        }
    }
}
