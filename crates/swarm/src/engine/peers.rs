//! Peers come and go.

use std::net::SocketAddr;
use std::time::Duration;

use wire::peer::{Message, PeerId};

use super::Engine;
use crate::io::{Output, Peer, Side, Why};
use crate::peer::Link;

/// A connection this young is not displaced: it had no time to say what it
/// wants.
const SETTLING: Duration = Duration::from_secs(10);

/// Departed peers whose names are kept, to name a liar that left before the
/// hash was known.
const DEPARTED: usize = 64;

impl Engine {
    pub(super) fn found(&mut self, peers: &[SocketAddr]) {
        self.book.found(peers, self.now);
        self.due = self.now;
    }

    pub(super) fn connected(&mut self, peer: Peer, side: Side, address: SocketAddr, id: PeerId, out: &mut Vec<Output>) {
        if side == Side::Outbound {
            self.book.connected(address, id);
        }
        if let Some(why) = self.refusal(side, id, out) {
            if side == Side::Outbound {
                match why {
                    Why::Ourselves | Why::Banned => self.book.bar(address),
                    _ => self.book.failed(address, self.now, &mut self.chance),
                }
            }
            self.due = self.now;
            return out.push(Output::Drop(peer, why));
        }
        self.ids.insert(id, peer);
        self.links.insert(peer, Link::new(id, address, side, self.shape.pieces(), self.now));
        if !self.have.is_empty() {
            self.say(peer, Message::Bitfield(self.have.to_bitfield()), out);
        }
        self.wake(self.now + self.policy.keep_alive.min(self.policy.silence));
    }

    /// Why a new connection cannot stay. Makes room for it if that is all
    /// that is missing.
    fn refusal(&mut self, side: Side, id: PeerId, out: &mut Vec<Output>) -> Option<Why> {
        if id == self.me {
            return Some(Why::Ourselves);
        }
        if self.banned.contains(&id) {
            return Some(Why::Banned);
        }
        if let Some(&other) = self.ids.get(&id) {
            let other_side = self.links.get(&other).map_or(side, |link| link.side);
            if !self.outlives(side, other_side, id) {
                return Some(Why::Duplicate);
            }
            self.drop_peer(other, Why::Duplicate, out);
        }
        if self.links.len() >= self.policy.max_peers {
            let settled = |link: &Link| link.is_idle() && link.since + SETTLING <= self.now;
            let Some(idle) = self.links.iter().find(|(_, link)| settled(link)).map(|(peer, _)| *peer) else {
                return Some(Why::Full);
            };
            self.drop_peer(idle, Why::Displaced, out);
        }
        None
    }

    /// Two peers that dial each other at once see two connections. Both keep
    /// the one that the larger id opened, so both keep the same.
    fn outlives(&self, new: Side, old: Side, id: PeerId) -> bool {
        let stronger = if self.me > id { Side::Outbound } else { Side::Inbound };
        new == stronger && old != stronger
    }

    pub(super) fn drop_peer(&mut self, peer: Peer, why: Why, out: &mut Vec<Output>) {
        if self.remove(peer, out) {
            out.push(Output::Drop(peer, why));
        }
    }

    /// Forgets a connection; what it owed is asked of others.
    pub(super) fn remove(&mut self, peer: Peer, out: &mut Vec<Output>) -> bool {
        let Some(mut link) = self.links.remove(&peer) else { return false };
        self.ids.remove(&link.id);
        if self.departed.len() == DEPARTED {
            self.departed.pop_front();
        }
        self.departed.push_back((peer, link.id, link.address));
        self.picker.remove_holders(&link.has);
        self.uplink.gone(&link);
        if link.side == Side::Outbound {
            self.book.failed(link.address, self.now, &mut self.chance);
        }
        let owed = std::mem::take(&mut link.outstanding);
        self.release(peer, &owed, out);
        self.refill_all(out);
        self.feed_uplink(out);
        self.due = self.now;
        true
    }

    pub(super) fn ban(&mut self, id: PeerId, address: SocketAddr) {
        self.banned.insert(id);
        self.book.bar(address);
    }

    /// Who a connection is or was.
    pub(super) fn identity(&self, peer: Peer) -> Option<(PeerId, SocketAddr)> {
        let gone = || self.departed.iter().find(|(key, _, _)| *key == peer).map(|(_, id, at)| (*id, *at));
        self.links.get(&peer).map(|link| (link.id, link.address)).or_else(gone)
    }
}
