//! What happens because time passes.

use std::time::Duration;

use wire::peer::Message;

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::peer::Link;

/// With fewer neighbours than this we ask the tracker before its interval is
/// over.
const HUNGRY_PEERS: usize = 5;

impl Engine {
    pub(super) fn wake(&mut self, at: Duration) {
        self.due = self.due.min(at);
    }

    pub(super) fn housekeep(&mut self, out: &mut Vec<Output>) {
        // Everything below may set an earlier time again.
        self.due = Duration::MAX;
        let peers: Vec<Peer> = self.links.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.check_peer(peer, out));
        self.choke_round(out);
        self.announce(out);
        self.dial(out);
        self.due = self.next_due();
    }

    fn check_peer(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.heard + self.policy.silence <= self.now {
            return self.drop_peer(peer, Why::Silent, out);
        }
        if self.uplink.stalls_at(link).is_some_and(|at| at <= self.now) {
            self.uplink.stalled(link);
            self.feed_uplink(out);
        }
        self.check_debts(peer, out);
        let said = self.links.get(&peer).map(|link| link.said);
        if said.is_some_and(|said| said + self.policy.keep_alive <= self.now) {
            self.say(peer, Message::KeepAlive, out);
        }
    }

    /// A peer that owes us and does not answer loses its requests, and is
    /// asked for one block now and then until it sends something.
    fn check_debts(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if !link.owes() || link.owed_since + self.policy.request_timeout > self.now {
            return;
        }
        if !link.snubbed {
            link.snubbed = true;
            self.cancel_all_of(peer, out);
            self.refill_all(out);
        }
        self.probe(peer, out);
    }

    fn choke_round(&mut self, out: &mut Vec<Output>) {
        if self.choker.deadline().is_none_or(|due| due > self.now) {
            return;
        }
        let new_for = 3 * self.policy.choke_round;
        let standings: Vec<_> =
            self.links.iter_mut().map(|(peer, link)| link.standing(*peer, self.now, new_for)).collect();
        let unchoked = self.choker.round(self.now, &standings, self.have.is_full(), &mut self.chance);
        for standing in standings {
            self.set_choke(standing.peer, unchoked.binary_search(&standing.peer).is_err(), out);
        }
        self.feed_uplink(out);
    }

    fn set_choke(&mut self, peer: Peer, choke: bool, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.we_choke == choke {
            return;
        }
        link.we_choke = choke;
        if choke {
            link.queue.clear();
        }
        self.say(peer, if choke { Message::Choke } else { Message::Unchoke }, out);
    }

    fn announce(&mut self, out: &mut Vec<Output>) {
        if let Some(event) = self.herald.due(self.now, self.is_hungry()) {
            out.push(Output::Announce(self.progress(event)));
        }
    }

    fn is_hungry(&self) -> bool {
        !self.have.is_full() && self.links.len() + self.book.dialling() < HUNGRY_PEERS
    }

    fn dial(&mut self, out: &mut Vec<Output>) {
        self.book.expire(self.now, &mut self.chance);
        while self.may_dial() {
            let ids = &self.ids;
            let address = self.book.dial(self.now, |id| ids.contains_key(id), &mut self.chance);
            let Some(address) = address else { break };
            out.push(Output::Dial(address));
        }
    }

    /// A complete peer is found by those who need it.
    fn may_dial(&self) -> bool {
        !self.have.is_full() && self.links.len() + self.book.dialling() < self.policy.dial_peers
    }

    fn next_due(&self) -> Duration {
        let links = self.links.values().map(|link| self.link_due(link));
        let others = [
            self.choker.deadline(),
            self.herald.deadline(self.is_hungry()),
            self.book.deadline(self.now, self.may_dial()),
        ];
        links.chain(others.into_iter().flatten()).min().unwrap_or(Duration::MAX)
    }

    fn link_due(&self, link: &Link) -> Duration {
        let debts =
            if link.outstanding.is_empty() { Duration::MAX } else { link.owed_since + self.policy.request_timeout };
        let stall = self.uplink.stalls_at(link).unwrap_or(Duration::MAX);
        let silence = (link.heard + self.policy.silence).min(link.said + self.policy.keep_alive);
        debts.min(stall).min(silence)
    }
}
