//! What peers are told of us and of each other: the extension handshake
//! (BEP 10), which makes kin of our own kind, and peer exchange (BEP 11).

use std::net::SocketAddr;
use std::time::Duration;

use wire::announce::Guidance;
use wire::peer::{ExtensionHandshake, ExtensionIds, MAX_PEX_PEERS, Pex, PexPeer, RackHello, RackMessage};

use super::Engine;
use super::upkeep::HUNGRY_PEERS;
use crate::io::{Output, Peer};
use crate::peer::Kind;
use crate::policy::ChokerKind;
use crate::time::Time;

/// BEP 11: a peer is told of others no more often than this.
const EXCHANGE_EVERY: Duration = Duration::from_secs(60);

/// Neighbours come and go in bursts: they are told of together, after this and
/// up to as long again. Each node has its own time, or a hall that is switched
/// on at once would tell all at once.
const EXCHANGE_SETTLES: Duration = Duration::from_secs(1);

impl Engine {
    /// A tracker of our own kind told us where we stand.
    pub(super) fn guided(&mut self, guidance: Guidance, out: &mut Vec<Output>) {
        self.herald.guided();
        if let Some(rack) = &guidance.rack {
            self.stand_in(Some(rack), out);
        }
        if guidance.cooperative && !self.cooperative && self.policy.choker == ChokerKind::Auto {
            self.cooperative = true;
            let peers = self.links.peers(|link| link.speaks.extended);
            peers.into_iter().for_each(|peer| self.greet(peer, out));
        }
    }

    /// What we are and which extensions we speak. May be said again.
    pub(super) fn greet(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let rack = self.cooperative.then(|| RackHello {
            rack: self.racks.name(self.racks.mine).cloned(),
            max_request_bytes: self.policy.max_request_bytes,
            offers: self.offering.is_some(),
            zstd: false,
        });
        let ids = ExtensionIds { rack: rack.as_ref().and(ExtensionIds::OURS.rack), ..ExtensionIds::OURS };
        let ids = if self.private && !self.cooperative { ExtensionIds { pex: None, ..ids } } else { ids };
        let request_queue = u32::try_from(self.policy.max_queued_requests).ok();
        let hello = ExtensionHandshake { ids, request_queue, rack, ..ExtensionHandshake::default() };
        self.say(peer, hello.into(), out);
        if let Some(link) = self.links.get(peer).and_then(|link| link.hello.clone()) {
            self.consider_kin(peer, &link, out);
        }
    }

    /// The peer said what it is.
    pub(super) fn greeted(&mut self, peer: Peer, handshake: ExtensionHandshake, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let was_nameless = link.listens_at().is_none();
        link.listen_port = handshake.listen_port.or(link.listen_port);
        if was_nameless && link.listens_at().is_some() {
            // Nobody could be told of it before.
            link.since = self.now;
        }
        if let Some(address) = link.listens_at() {
            self.book.met(address, link.id);
        }
        link.exchanges |= handshake.ids.pex.is_some();
        if let (Some(foreign), Some(queue)) = (&mut link.foreign, handshake.request_queue) {
            foreign.request_queue = Some(queue);
        }
        match handshake.rack {
            Some(hello) if self.cooperative => self.consider_kin(peer, &hello, out),
            hello => {
                if let Some(link) = self.links.get_mut(peer).filter(|link| !link.is_kin()) {
                    link.hello = hello.map(Box::new).or(link.hello.take());
                    self.is_foreign(peer, out);
                }
            }
        }
        self.wake_for_exchange();
    }

    /// It is one of ours; so it is kin when we cooperate as well.
    fn consider_kin(&mut self, peer: Peer, hello: &RackHello, out: &mut Vec<Output>) {
        if !self.cooperative {
            return;
        }
        let rack = self.racks.index(hello.rack.as_ref());
        let Some(link) = self.links.get_mut(peer) else { return };
        link.max_request = hello.max_request_bytes;
        link.offers = hello.offers;
        link.hello = None;
        let (was_kin, was_in) = (link.is_kin(), link.rack);
        link.rack = rack;
        if was_kin && was_in == rack {
            return;
        }
        if was_kin {
            self.members_changed(was_in);
        } else {
            self.becomes_kin(peer, out);
        }
        self.members_changed(rack);
        self.wake_for_exchange();
        self.has_room = true;
        let claimed = self.racks.told;
        if rack != self.racks.mine && claimed != 0 {
            self.say(peer, RackMessage::Lanes { claimed }.into(), out);
        }
        self.offer_anew(out);
    }

    fn becomes_kin(&mut self, peer: Peer, out: &mut Vec<Output>) {
        // What we asked of it in small requests it answers as a stranger would.
        self.cancel_all_of(peer, out);
        let Some(link) = self.links.get_mut(peer) else { return };
        self.uplink.adopt(link);
        link.kind = Kind::Kin;
        link.foreign = None;
        (link.we_choke, link.chokes_us) = (false, false);
        (link.we_want, link.wants_us) = (false, false);
        if self.kin == 0 {
            self.hungry_since = self.now;
        }
        self.kin += 1;
        // Our own kind has no need to be told of twins, nor to send them.
        for piece in self.twins.iter() {
            if link.has.insert(piece) {
                self.picker.add_holder(piece);
                if self.have.contains(piece) {
                    link.useful = link.useful.saturating_sub(1);
                }
            }
        }
        if link.has.is_full() && self.have.is_full() {
            return self.drop_peer(peer, crate::io::Why::BothComplete, out);
        }
        self.pull_orphans(out);
    }

    /// Nothing more is waited for: it is dealt with as any other client.
    pub(super) fn is_foreign(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer).filter(|link| link.kind == Kind::Unknown) else { return };
        link.kind = Kind::Foreign;
        self.allow_fast(peer, out);
        self.want(peer, out);
        self.refill(peer, out);
    }

    /// Others that the peer met. In a private swarm only kin are believed.
    pub(super) fn heard_of(&mut self, peer: Peer, pex: &Pex) {
        if !self.links.get(peer).is_some_and(|link| link.is_kin() || !self.private) {
            return;
        }
        let is_met = |address: &SocketAddr| self.links.iter().any(|link| link.listens_at() == Some(*address));
        let added = pex.added.iter().map(|peer| peer.address);
        let addresses: Vec<SocketAddr> = added.filter(|address| !is_met(address)).collect();
        if self.cooperative {
            self.book.rumoured(&addresses, &mut self.chance);
            self.due = self.now;
        } else {
            self.found(&addresses, false);
        }
    }

    /// How many more neighbours we look for by hearsay: a tracker of ours draws
    /// a better graph while it answers, and neighbours beyond the needed ones
    /// only cost announcements.
    pub(super) fn lacks_neighbours(&self) -> usize {
        let enough = if self.herald.is_guided() { HUNGRY_PEERS } else { self.policy.dial_peers / 2 };
        if self.have.is_full() { 0 } else { enough.saturating_sub(self.links.len() + self.book.dialling()) }
    }

    /// Somebody came, went, or may be told of others now.
    pub(super) fn wake_for_exchange(&mut self) {
        let chance = self.me.0.iter().fold(0, |all, byte| all ^ byte);
        let spread = EXCHANGE_SETTLES * u32::from(chance) / 256;
        let at = self.now + EXCHANGE_SETTLES + spread;
        if at < self.next_exchange {
            self.next_exchange = at;
            self.wake(at);
        }
    }

    /// Tells everybody who may know whom we met and lost since we told it last.
    /// Each has its own minute; for whom there is nothing new, none begins.
    pub(super) fn exchange(&mut self, out: &mut Vec<Output>) {
        if self.next_exchange > self.now {
            return;
        }
        self.next_exchange = Time::MAX;
        for peer in self.links.peers(|link| link.exchanges && (link.is_kin() || !self.private)) {
            let Some(last) = self.links.get(peer).map(|link| link.exchanged) else { continue };
            if last == Time::ZERO || last + EXCHANGE_EVERY <= self.now {
                let pex = self.news_since(last, peer);
                if pex.added.is_empty() && pex.dropped.is_empty() {
                    continue;
                }
                if let Some(link) = self.links.get_mut(peer) {
                    link.exchanged = self.now;
                }
                self.say(peer, pex.into(), out);
            }
            let again = self.links.get(peer).map_or(Time::MAX, |link| link.exchanged + EXCHANGE_EVERY);
            self.next_exchange = self.next_exchange.min(again);
        }
    }

    fn news_since(&self, last: Time, listener: Peer) -> Pex {
        let news = self.links.iter().filter(|link| link.peer != listener && (last == Time::ZERO || link.since > last));
        let added = news.filter_map(|link| {
            let seed = if link.has.is_full() { PexPeer::SEED } else { 0 };
            let reachable = if link.side == crate::io::Side::Outbound { PexPeer::REACHABLE } else { 0 };
            Some(PexPeer { address: link.listens_at()?, flags: seed | reachable })
        });
        let lost = self.departed.iter().filter(|gone| last != Time::ZERO && gone.at > last);
        let is_back = |address: &SocketAddr| self.links.iter().any(|link| link.listens_at() == Some(*address));
        let dropped = lost.filter_map(|gone| gone.listened_at).filter(|address| !is_back(address));
        Pex { added: added.take(MAX_PEX_PEERS).collect(), dropped: dropped.take(MAX_PEX_PEERS).collect() }
    }
}
