//! What peers say, and what we answer.

use wire::peer::{BLOCK_BYTES, Block, Message};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::pieceset::PieceSet;

impl Engine {
    pub(super) fn said(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.heard = self.now;
        match message {
            Message::HaveAll => self.peer_has_all_of(peer, &PieceSet::full(self.shape.pieces()), out),
            Message::KeepAlive
            | Message::HaveNone
            | Message::Port(_)
            | Message::Suggest(_)
            | Message::Reject(_)
            | Message::AllowedFast(_)
            | Message::HashRequest(_)
            | Message::Hashes(..)
            | Message::HashReject(_)
            | Message::Extended(_)
            | Message::Unknown { .. } => {}
            Message::Choke => self.choked(peer, out),
            Message::Unchoke => self.unchoked(peer, out),
            Message::Interested => self.interested(peer, out),
            Message::NotInterested => link.wants_us = false,
            Message::Have(piece) => self.peer_has(peer, piece, out),
            Message::Bitfield(bitfield) => self.peer_has_all_of(peer, &PieceSet::from(&bitfield), out),
            Message::Request(block) => self.requested(peer, block, out),
            Message::Cancel(block) => link.queue.retain(|queued| *queued != block),
        }
    }

    pub(super) fn say(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.said = self.now;
            out.push(Output::Say(peer, message));
        }
    }

    /// Without the fast extension a choke takes every request back, but blocks
    /// may still be under way.
    fn choked(&mut self, peer: Peer, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.chokes_us = true;
            link.probe = None;
            self.take_back(peer, out);
            self.refill_all(out);
        }
    }

    fn unchoked(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.chokes_us = false;
        if link.snubbed && link.probe.is_none() {
            self.probe(peer, out);
        } else {
            self.refill(peer, out);
        }
    }

    fn interested(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let unchoked = self.links.values().filter(|link| link.wants_us && !link.we_choke).count();
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.wants_us = true;
        if link.we_choke && self.choker.admits(unchoked) {
            link.we_choke = false;
            self.say(peer, Message::Unchoke, out);
        }
    }

    fn peer_has(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) {
        if piece >= self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        let Some(link) = self.links.get_mut(&peer) else { return };
        if !link.has.insert(piece) {
            return;
        }
        self.picker.add_holder(piece);
        if !self.have.contains(piece) {
            link.wanted += 1;
            self.want(peer, out);
            self.refill(peer, out);
        }
    }

    fn peer_has_all_of(&mut self, peer: Peer, bitfield: &PieceSet, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.bitfield_seen || bitfield.capacity() != self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        link.bitfield_seen = true;
        for piece in bitfield.iter().filter(|&piece| link.has.insert(piece)) {
            self.picker.add_holder(piece);
            link.wanted += u32::from(!self.have.contains(piece));
        }
        if link.has.is_full() && self.have.is_full() {
            return self.drop_peer(peer, Why::BothComplete, out);
        }
        self.want(peer, out);
        self.refill(peer, out);
    }

    /// Says whether we want something, when that changed.
    pub(super) fn want(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let want = link.wanted > 0;
        if link.we_want != want {
            link.we_want = want;
            let message = if want { Message::Interested } else { Message::NotInterested };
            self.say(peer, message, out);
        }
    }

    fn requested(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        if !self.shape.contains(block) || block.length > BLOCK_BYTES {
            return self.drop_peer(peer, Why::BadRequest(block), out);
        }
        if !self.have.contains(block.piece) {
            return self.drop_peer(peer, Why::NotOffered(block.piece), out);
        }
        let Some(link) = self.links.get_mut(&peer) else { return };
        // The choke that refuses it is on its way already.
        if link.we_choke || link.queue.contains(&block) {
            return;
        }
        if link.queue.len() >= self.policy.max_queued_requests {
            return self.drop_peer(peer, Why::TooManyRequests, out);
        }
        if link.queue.is_empty() {
            link.waiting_since = self.now;
        }
        link.queue.push_back(block);
        self.feed_uplink(out);
    }

    pub(super) fn feed_uplink(&mut self, out: &mut Vec<Output>) {
        while let Some((peer, block)) = self.uplink.next(&mut self.links, self.now) {
            out.push(Output::Send(peer, block));
            self.wake(self.now + self.policy.uplink_stall);
        }
    }

    pub(super) fn sent(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.said = self.now;
        link.count_sent(block.length);
        self.ledger.sent(link.id, link.address.ip(), block.length);
        self.uplink.sent(link, self.now);
        self.feed_uplink(out);
    }
}
