//! What happens because time passes.

use std::time::Duration;

use wire::peer::Message;

use super::Engine;
use crate::book::Room;
use crate::io::{Output, Peer, Why};
use crate::peer::{Kind, Link};
use crate::time::Time;

/// Time-outs are not looked at more often than this: whatever is overdue and
/// cannot be helped shall not keep a processor busy.
const SHORTEST_TICK: Duration = Duration::from_micros(500);

/// With fewer neighbours than this we ask the tracker before its interval is
/// over.
pub(super) const HUNGRY_PEERS: usize = 5;

/// Members of a rack come and go in bursts; claims follow after this.
pub(super) const ROSTER_SETTLES: Duration = Duration::from_millis(20);

/// A peer that says it speaks the extension protocol says what it is within
/// this time, or is taken for a foreign client.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// Transfers in a row that kin may fail to answer, while they do speak.
const KIN_STRIKES: u8 = 2;

/// The same for foreign clients; after the first they are only probed.
const FOREIGN_STRIKES: u8 = 4;

impl Engine {
    pub(super) fn wake(&mut self, at: Time) {
        self.due = self.due.min(at);
    }

    pub(super) fn housekeep(&mut self, out: &mut Vec<Output>) {
        // Everything below may set an earlier time again.
        self.due = Time::MAX;
        let mut at = 0;
        while at < self.links.len() {
            let peer = self.links[at].peer;
            if self.link_due(&self.links[at]) <= self.now {
                self.check_peer(peer, out);
            }
            at += usize::from(self.links.find(peer) == Some(at));
        }
        self.claim_lanes(out);
        self.starve(out);
        self.make_offers(out);
        self.choke_round(out);
        self.exchange(out);
        self.announce(out);
        self.dial(out);
        self.due = self.next_due().max(self.now + SHORTEST_TICK);
    }

    fn check_peer(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        if self.policy.silent_after(link) <= self.now {
            return self.drop_peer(peer, Why::Silent, out);
        }
        if link.kind == Kind::Unknown && link.since + INTRODUCTION <= self.now {
            self.is_foreign(peer, out);
        }
        self.check_uplink(peer, out);
        self.expire_offer(peer, out);
        self.check_debts(peer, out);
        let Some(link) = self.links.get(peer) else { return };
        if self.policy.speaks_at(link) <= self.now {
            self.say(peer, Message::KeepAlive, out);
        }
    }

    fn check_uplink(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        if self.uplink.stalls_at(link) <= self.now {
            self.uplink.stalls(link);
            self.feed_uplink(out);
        }
    }

    fn check_debts(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get(peer) else { return };
        if self.debts_due(link) > self.now {
            return;
        }
        if link.is_kin() { self.kin_owes(peer, out) } else { self.foreign_owes(peer, out) }
    }

    /// Kin that do not send what they promised are left alone until they
    /// speak; who speaks and still does not send is a liar.
    fn kin_owes(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let Some(piece) = link.outstanding.first().map(|run| run.piece) else {
            return self.kin_leave_open(peer, out);
        };
        link.strikes = link.strikes.saturating_add(1);
        link.snubbed = true;
        if link.strikes >= KIN_STRIKES && link.heard > link.asked_at {
            return self.drop_peer(peer, Why::NeverAnswers(piece), out);
        }
        self.cancel_all_of(peer, out);
        self.pull_orphans(out);
        self.refill_all(out);
    }

    /// What is taken back is answered too (BEP 6).
    fn kin_leave_open(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let Some(piece) = link.leaves_open() else { return };
        if link.heard > link.owed_since {
            return self.drop_peer(peer, Why::NeverAnswers(piece), out);
        }
        link.owed_since = self.now;
    }

    /// A foreign client that owes us and does not answer loses its requests,
    /// and is asked for one block now and then until it sends something.
    fn foreign_owes(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let owed = link.outstanding.first().map(|run| run.piece);
        if !link.chokes_us {
            link.strikes = link.strikes.saturating_add(1);
        }
        if link.strikes >= FOREIGN_STRIKES {
            let probe = link.foreign.as_ref().and_then(|foreign| foreign.probe.map(|run| run.piece));
            return self.drop_peer(peer, Why::NeverAnswers(owed.or(probe).unwrap_or(0)), out);
        }
        if !link.snubbed {
            link.snubbed = true;
            self.cancel_all_of(peer, out);
            self.refill_all(out);
        }
        self.probe(peer, out);
    }

    fn choke_round(&mut self, out: &mut Vec<Output>) {
        let any = self.links.iter().any(|link| link.kind == Kind::Foreign);
        if !any || self.choker.deadline() > self.now.duration() {
            return;
        }
        let (now, new_for) = (self.now, 3 * self.policy.choke_round);
        let foreign = self.links.iter_mut().filter(|link| link.kind == Kind::Foreign);
        let standings: Vec<_> = foreign.filter_map(|link| link.standing(now, new_for)).collect();
        let unchoked = self.choker.round(now.duration(), &standings, self.have.is_full(), &mut self.chance);
        for standing in standings {
            self.set_choke(standing.peer, unchoked.binary_search(&standing.peer).is_err(), out);
        }
        self.feed_uplink(out);
    }

    fn announce(&mut self, out: &mut Vec<Output>) {
        if let Some(event) = self.herald.due(self.now.duration(), self.is_hungry()) {
            out.push(crate::io::Output::Announce(self.progress(event)));
        }
    }

    fn is_hungry(&self) -> bool {
        !self.have.is_full() && self.links.len() + self.book.dialling() < HUNGRY_PEERS
    }

    fn dial(&mut self, out: &mut Vec<Output>) {
        self.book.expire(self.now.duration(), &mut self.chance);
        self.book.believe(self.lacks_neighbours(), self.now.duration());
        loop {
            let (links, room) = (&self.links, self.room());
            let is_connected = |id: &_| links.iter().any(|link| link.id == *id);
            let address = self.book.dial(self.now.duration(), room, is_connected, &mut self.chance);
            let Some(address) = address else { break };
            out.push(Output::Dial(address));
        }
    }

    /// Whom we may dial. A complete peer is found by those who need it.
    fn room(&self) -> Room {
        let taken = self.links.len() + self.book.dialling();
        match () {
            () if self.have.is_full() || taken >= self.policy.max_peers => Room::Nobody,
            () if taken >= self.policy.dial_peers => Room::Chosen,
            () => Room::Anybody,
        }
    }

    fn next_due(&self) -> Time {
        let foreign = self.links.iter().any(|link| link.kind == Kind::Foreign);
        let links = self.links.iter().map(|link| self.link_due(link)).min().unwrap_or(Time::MAX);
        let herald = self.herald.deadline(self.is_hungry()).map_or(Time::MAX, Time::from);
        let book = self.book.deadline(self.now.duration(), self.room()).map_or(Time::MAX, Time::from);
        let choker = if foreign { self.choker.deadline().into() } else { Time::MAX };
        let roster = if self.racks.changed && self.kin > 0 { self.now + ROSTER_SETTLES } else { Time::MAX };
        let sooner = links.min(herald).min(book).min(choker).min(roster);
        sooner
            .min(self.next_exchange)
            .min(self.news.due)
            .min(self.later_news.due)
            .min(self.starves_at())
            .min(self.offers_due())
    }

    fn link_due(&self, link: &Link) -> Time {
        let introduction = if link.kind == Kind::Unknown { link.since + INTRODUCTION } else { Time::MAX };
        let silence = self.policy.silent_after(link).min(self.policy.speaks_at(link)).min(introduction);
        self.debts_due(link).min(self.uplink.stalls_at(link)).min(Self::offer_expires(link)).min(silence)
    }

    fn debts_due(&self, link: &Link) -> Time {
        if link.is_kin() {
            return match (link.outstanding.is_empty(), link.leaves_open()) {
                (false, _) => link.owed_since + self.kin_patience(),
                (true, Some(_)) => link.owed_since + 2 * self.kin_patience(),
                (true, None) => Time::MAX,
            };
        }
        if link.owes() { link.owed_since + self.policy.request_timeout } else { Time::MAX }
    }
}

impl crate::policy::Policy {
    fn silent_after(&self, link: &Link) -> Time {
        link.heard + if link.is_kin() { self.kin_silence } else { self.silence }
    }

    fn speaks_at(&self, link: &Link) -> Time {
        link.said + if link.is_kin() { self.kin_keep_alive } else { self.keep_alive }
    }
}
