//! What peers say.

use wire::peer::{Extended, Message, RackMessage};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::peer::Kind;
use crate::pieceset::PieceSet;

impl Engine {
    pub(super) fn said(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        link.heard = self.now;
        if link.is_kin() && link.snubbed {
            // It lives. Whether it delivers is another matter: strikes stay.
            link.snubbed = false;
            self.has_room = true;
        }
        match message {
            Message::Have(piece) => self.peer_has(peer, piece, None, out),
            Message::Bitfield(bitfield) => self.peer_has_all_of(peer, &PieceSet::from(&bitfield), out),
            Message::HaveAll if link.is_kin() => self.kin_completed(peer, out),
            Message::HaveAll => self.peer_has_all_of(peer, &PieceSet::full(self.shape.pieces()), out),
            Message::HaveNone => self.peer_has_all_of(peer, &PieceSet::empty(self.shape.pieces()), out),
            Message::Choke => self.choked(peer, out),
            Message::Unchoke => self.unchoked(peer, out),
            Message::Interested => self.interested(peer, out),
            Message::NotInterested => link.wants_us = false,
            Message::Request(block) => self.requested(peer, block, out),
            Message::Cancel(block) => self.cancelled(peer, block, out),
            Message::Reject(block) => self.rejected(peer, block, out),
            Message::Suggest(piece) => self.suggested(peer, piece, out),
            Message::AllowedFast(piece) => self.allowed_fast(peer, piece, out),
            Message::Extended(extended) => self.said_extended(peer, extended, out),
            Message::KeepAlive
            | Message::Port(_)
            | Message::HashRequest(_)
            | Message::Hashes(..)
            | Message::HashReject(_)
            | Message::Unknown { .. } => {}
        }
    }

    fn said_extended(&mut self, peer: Peer, extended: Extended, out: &mut Vec<Output>) {
        match extended {
            Extended::Handshake(handshake) => self.greeted(peer, *handshake, out),
            Extended::Pex(pex) => self.heard_of(peer, &pex),
            Extended::Rack(RackMessage::Have { piece, backlog }) => self.peer_has(peer, piece, Some(backlog), out),
            Extended::Rack(RackMessage::Decline { piece, needless, backlog }) => {
                self.declined(peer, piece, needless, backlog, out);
            }
            Extended::Rack(RackMessage::Lanes { claimed }) => self.claims_lanes(peer, claimed, out),
            Extended::Metadata(_) | Extended::Unknown { .. } => {}
        }
    }

    pub(super) fn say(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(peer) {
            link.said = self.now;
            out.push(Output::Say(peer, message));
        }
    }

    /// Without the fast extension a choke takes every request back, but blocks
    /// may still be under way. With it each is still answered or rejected.
    fn choked(&mut self, peer: Peer, out: &mut Vec<Output>) {
        self.is_foreign(peer, out);
        let Some(link) = self.links.get_mut(peer) else { return };
        link.chokes_us = true;
        if let Some(foreign) = &mut link.foreign {
            foreign.probe = None;
        }
        if !link.speaks.fast {
            self.take_back(peer, out);
            self.refill_all(out);
            self.pull_orphans(out);
        }
    }

    fn unchoked(&mut self, peer: Peer, out: &mut Vec<Output>) {
        self.is_foreign(peer, out);
        let Some(link) = self.links.get_mut(peer) else { return };
        link.chokes_us = false;
        let probed = link.foreign.as_ref().is_some_and(|foreign| foreign.probe.is_some());
        if link.snubbed && !probed {
            self.probe(peer, out);
        } else {
            self.refill(peer, out);
        }
    }

    fn interested(&mut self, peer: Peer, out: &mut Vec<Output>) {
        self.is_foreign(peer, out);
        let unchoked =
            self.links.iter().filter(|link| link.kind == Kind::Foreign && link.wants_us && !link.we_choke).count();
        let Some(link) = self.links.get_mut(peer) else { return };
        link.wants_us = true;
        self.wake(self.choker.deadline().into());
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.we_choke && self.choker.admits(unchoked) {
            link.we_choke = false;
            self.say(peer, Message::Unchoke, out);
        }
    }

    /// A piece more; kin say besides how many they have to send.
    fn peer_has(&mut self, peer: Peer, piece: u32, backlog: Option<u8>, out: &mut Vec<Output>) {
        if piece >= self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        let Some(at) = self.links.find(peer) else { return };
        if self.links[at].has.insert(piece) {
            self.picker.add_holder(piece);
            let wanted = self.wants(piece);
            let useful = self.have.contains(piece);
            let link = &mut self.links[at];
            link.wanted += u32::from(wanted);
            link.useful -= u32::from(useful);
            if link.is_kin() {
                let rack = link.rack;
                self.seen_in_rack(rack, piece);
            } else if wanted {
                self.want(peer, out);
                self.refill(peer, out);
            }
            if self.have.is_full() && self.links.get(peer).is_some_and(|link| link.has.is_full()) {
                return self.drop_peer(peer, Why::BothComplete, out);
            }
        }
        if let (Some(backlog), Some(at)) = (backlog, self.links.find(peer).filter(|at| self.links[*at].is_kin())) {
            self.has_news(at, piece, backlog, out);
        }
    }

    fn peer_has_all_of(&mut self, peer: Peer, pieces: &PieceSet, out: &mut Vec<Output>) {
        let Some(at) = self.links.find(peer) else { return };
        if self.links[at].map_seen || pieces.capacity() != self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        self.links[at].map_seen = true;
        for piece in pieces.iter() {
            let (wanted, useful) = (self.wants(piece), self.have.contains(piece));
            let link = &mut self.links[at];
            if link.has.insert(piece) {
                self.picker.add_holder(piece);
                link.wanted += u32::from(wanted);
                link.useful -= u32::from(useful);
            }
        }
        if self.links[at].has.is_full() && self.have.is_full() {
            return self.drop_peer(peer, Why::BothComplete, out);
        }
        if self.links[at].is_kin() {
            let rack = self.links[at].rack;
            self.members_changed(rack);
            self.has_room = true;
            return self.offer_anew(out);
        }
        self.want(peer, out);
        self.refill(peer, out);
    }

    /// It told us of some pieces only while it got them.
    fn kin_completed(&mut self, peer: Peer, out: &mut Vec<Output>) {
        for piece in 0..self.shape.pieces() {
            self.peer_has(peer, piece, None, out);
        }
        if let Some(link) = self.links.get_mut(peer) {
            link.map_seen = true;
            self.has_room = true;
        }
    }

    /// Whether this piece is to be fetched.
    pub(super) fn wants(&self, piece: u32) -> bool {
        !self.have.contains(piece) && !self.twins.contains(piece)
    }

    /// Says to a foreign client whether we want something, when that changed.
    pub(super) fn want(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer).filter(|link| link.kind == Kind::Foreign) else { return };
        let want = link.wanted > 0;
        if link.we_want != want {
            link.we_want = want;
            let message = if want { Message::Interested } else { Message::NotInterested };
            self.say(peer, message, out);
        }
    }
}
