//! Peers come and go.

use std::net::SocketAddr;
use std::time::Duration;

use wire::peer::{Message, PeerId};

use super::{Departed, Engine};
use crate::io::{Output, Peer, Side, Speaks, Why};
use crate::ledger::Party;
use crate::peer::Link;

/// A connection this young is not displaced: it had no time to say what it
/// wants.
const SETTLING: Duration = Duration::from_secs(10);

/// Dials of each other that are less apart than this cross.
const CROSSING: Duration = Duration::from_secs(5);

/// Departed peers whose names are kept.
const DEPARTED: usize = 64;

impl Engine {
    /// `chosen` when a tracker of our own kind named them for us.
    pub(super) fn found(&mut self, peers: &[SocketAddr], chosen: bool) {
        self.book.found(peers, chosen, self.now.duration());
        let connected = self.links.iter().filter_map(|link| Some((link.listens_at()?, link.id)));
        connected.for_each(|(address, id)| self.book.met(address, id));
        self.due = self.now;
    }

    pub(super) fn connected(
        &mut self,
        peer: Peer,
        side: Side,
        address: SocketAddr,
        id: PeerId,
        speaks: Speaks,
        out: &mut Vec<Output>,
    ) {
        if side == Side::Outbound {
            self.book.connected(address, id);
        }
        if let Some(why) = self.refusal(side, id, out) {
            if side == Side::Outbound {
                match why {
                    Why::Ourselves | Why::Banned => self.book.bar(address),
                    _ => self.book.failed(address, self.now.duration(), &mut self.chance),
                }
            }
            self.due = self.now;
            return out.push(Output::Drop(peer, why));
        }
        let mut link = Link::new(peer, id, address, side, speaks, self.shape.pieces(), self.now);
        link.useful = self.have.count();
        self.links.insert(link);
        self.introduce_ourselves(peer, speaks, out);
        self.wake(self.now + self.policy.kin_keep_alive.min(self.policy.silence));
    }

    /// What we have comes first (BEP 3, BEP 6), then what we are.
    fn introduce_ourselves(&mut self, peer: Peer, speaks: Speaks, out: &mut Vec<Output>) {
        if speaks.fast && self.have.is_full() {
            self.say(peer, Message::HaveAll, out);
        } else if !self.have.is_empty() {
            self.say(peer, Message::Bitfield(self.have.to_bitfield()), out);
        } else if speaks.fast {
            self.say(peer, Message::HaveNone, out);
        }
        if speaks.extended {
            self.greet(peer, out);
        } else {
            self.allow_fast(peer, out);
        }
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
        if let Some(other) = self.links.iter().find(|link| link.id == id) {
            if !self.outlives(side, other) {
                return Some(Why::Duplicate);
            }
            self.drop_peer(other.peer, Why::Duplicate, out);
        }
        if self.links.len() >= self.policy.max_peers {
            let settled = |link: &&Link| link.is_idle() && link.since + SETTLING <= self.now;
            let Some(idle) = self.links.iter().find(settled).map(|link| link.peer) else {
                return Some(Why::Full);
            };
            self.drop_peer(idle, Why::Displaced, out);
        }
        None
    }

    /// Two peers that dial each other at once see two connections. Both keep
    /// the one that the larger id opened, so both keep the same. What is older
    /// carries transfers, and stays.
    fn outlives(&self, new: Side, old: &Link) -> bool {
        let stronger = if self.me > old.id { Side::Outbound } else { Side::Inbound };
        new == stronger && old.side != stronger && self.now < old.since + CROSSING
    }

    pub(super) fn drop_peer(&mut self, peer: Peer, why: Why, out: &mut Vec<Output>) {
        if self.remove(peer, out) {
            out.push(Output::Drop(peer, why));
        }
    }

    /// Forgets a connection; what it owed is asked of others.
    pub(super) fn remove(&mut self, peer: Peer, out: &mut Vec<Output>) -> bool {
        let Some(mut link) = self.links.remove(peer) else { return false };
        self.departs(&link);
        self.picker.remove_holders(&link.has);
        self.withdraw_offer(&mut link);
        self.uplink.gone(&mut link);
        if self.is_needless(&link) {
            self.book.forget(link.address);
        } else if link.side == Side::Outbound {
            self.book.failed(link.address, self.now.duration(), &mut self.chance);
        }
        if link.is_kin() {
            self.kin -= 1;
            self.members_changed(link.rack);
        }
        let owed = std::mem::take(&mut link.outstanding);
        self.release(peer, &owed, out);
        self.flows_changed();
        self.has_room = true;
        self.refill_all(out);
        self.pull_orphans(out);
        self.feed_uplink(out);
        self.due = self.now;
        true
    }

    fn departs(&mut self, link: &Link) {
        self.wake_for_exchange();
        if self.departed.len() == DEPARTED {
            self.departed.pop_front();
        }
        self.departed.push_back(Departed {
            peer: link.peer,
            address: link.address,
            listened_at: link.listens_at(),
            at: self.now,
            party: self.party_of(link),
        });
    }

    pub(super) fn ban(&mut self, id: PeerId, address: SocketAddr) {
        self.banned.insert(id);
        self.book.bar(address);
    }

    /// Who a connection is, for the ledger.
    pub(super) fn party_of(&self, link: &Link) -> Party {
        Party { id: link.id, ip: link.ip(), rack: self.racks.name(link.rack).filter(|_| link.is_kin()).cloned() }
    }

    /// Who a connection is or was.
    pub(super) fn identity(&self, peer: Peer) -> Option<(Party, SocketAddr)> {
        let gone = || self.departed.iter().find(|gone| gone.peer == peer);
        let here = self.links.get(peer).map(|link| (self.party_of(link), link.address));
        here.or_else(|| gone().map(|gone| (gone.party.clone(), gone.address)))
    }
}
