//! Requests of others, and what we send them.

use wire::peer::{BLOCK_BYTES, Block, Message};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::peer::Kind;
use crate::picker::Run;

/// Pieces that a foreign client may have from us while choked (BEP 6).
const ALLOWED_FAST: u32 = 10;

impl Engine {
    pub(super) fn requested(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        self.is_foreign(peer, out);
        let Some(link) = self.links.get(peer) else { return };
        let longest = if link.is_kin() { self.policy.max_request_bytes } else { BLOCK_BYTES };
        let aligned = !link.is_kin() || Run::of(block, &self.shape).is_some();
        if !self.shape.contains(block) || block.length > longest || !aligned {
            return self.drop_peer(peer, Why::BadRequest(block), out);
        }
        if !self.have.contains(block.piece) {
            return self.drop_peer(peer, Why::NotOffered(block.piece), out);
        }
        let allowed = link.foreign.as_ref().is_some_and(|foreign| foreign.allowed_to_it.contains(&block.piece));
        if link.we_choke && !allowed {
            // Without BEP 6 the choke that refuses it is on its way already.
            return self.reject(peer, block, out);
        }
        if link.queue.contains(&block) {
            return;
        }
        if link.queue.len() >= self.policy.max_queued_requests {
            return self.drop_peer(peer, Why::TooManyRequests, out);
        }
        self.accepted_offer(peer, block.piece);
        if let Some(link) = self.links.get_mut(peer) {
            self.uplink.requested(link, block, self.now);
        }
        self.feed_uplink(out);
    }

    /// Every request is answered: this one with a refusal.
    fn reject(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        if self.links.get(peer).is_some_and(|link| link.speaks.fast) {
            self.say(peer, Message::Reject(block), out);
        }
    }

    pub(super) fn cancelled(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let cancelled = self.uplink.cancelled(link, block);
        let any = !cancelled.is_empty();
        cancelled.into_iter().for_each(|block| self.reject(peer, block, out));
        if any {
            self.make_offers(out);
        }
    }

    pub(super) fn set_choke(&mut self, peer: Peer, choke: bool, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer).filter(|link| link.kind != Kind::Kin) else { return };
        if link.we_choke == choke {
            return;
        }
        link.we_choke = choke;
        self.say(peer, if choke { Message::Choke } else { Message::Unchoke }, out);
        if choke {
            self.reject_queue(peer, out);
        }
    }

    /// After a choke only what is allowed fast is still served.
    fn reject_queue(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let allowed = link.foreign.as_ref().map(|foreign| foreign.allowed_to_it.as_slice()).unwrap_or_default();
        let (served, refused): (Vec<Block>, Vec<Block>) =
            link.queue.drain(..).partition(|block| allowed.contains(&block.piece));
        link.queue = served.into();
        refused.into_iter().for_each(|block| self.reject(peer, block, out));
    }

    pub(super) fn feed_uplink(&mut self, out: &mut Vec<Output>) {
        while let Some((at, block)) = self.uplink.next(&mut self.links, self.racks.mine, self.now) {
            let link = &self.links[at];
            out.push(Output::Send(link.peer, block));
            let stall = self.uplink.stalls_at(link);
            self.wake(stall);
        }
        self.make_offers(out);
    }

    pub(super) fn sent(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let Some(at) = self.links.find(peer) else {
            // Who has all it wants may close before we hear that the last of it was sent.
            if let Some((party, _)) = self.identity(peer) {
                self.ledger.sent(&party, block.length);
            }
            return;
        };
        let party = self.party_of(&self.links[at]);
        let link = &mut self.links[at];
        link.said = self.now;
        link.count_sent(block.length);
        self.uplink.sent(link, block.length, self.now);
        self.ledger.sent(&party, block.length);
        self.may_take_again(at);
        self.feed_uplink(out);
    }

    /// A few pieces that a newcomer may request while choked, so that it has
    /// something to give. BEP 6 derives them from its address, so that coming
    /// again gains nothing; so do we, though not with its hash.
    pub(super) fn allow_fast(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let pieces = self.shape.pieces();
        let Some(link) = self.links.get(peer).filter(|link| link.kind == Kind::Foreign && link.speaks.fast) else {
            return;
        };
        if self.have.is_empty() || link.has.count() >= ALLOWED_FAST {
            return;
        }
        let mut number = address_digest(link.ip());
        let mut allowed: Vec<u32> = Vec::new();
        while (allowed.len() as u32) < ALLOWED_FAST.min(pieces) {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let piece = ((number >> 33) % u64::from(pieces)) as u32;
            if !allowed.contains(&piece) {
                allowed.push(piece);
            }
        }
        allowed.retain(|piece| self.have.contains(*piece));
        for &piece in &allowed {
            self.say(peer, Message::AllowedFast(piece), out);
        }
        if let Some(foreign) = self.links.get_mut(peer).and_then(|link| link.foreign.as_mut()) {
            foreign.allowed_to_it = allowed;
        }
    }
}

/// Of the network, not the host: 24 bits of IPv4, 64 of IPv6.
fn address_digest(ip: std::net::IpAddr) -> u64 {
    let network: [u8; 8] = match ip {
        std::net::IpAddr::V4(ip) => [ip.octets()[0], ip.octets()[1], ip.octets()[2], 0, 0, 0, 0, 4],
        std::net::IpAddr::V6(ip) => {
            let mut network = [0; 8];
            network.copy_from_slice(&ip.octets()[..8]);
            network
        }
    };
    u64::from_be_bytes(network) ^ 0x9E37_79B9_7F4A_7C15
}
