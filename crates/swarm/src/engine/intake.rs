//! What kin offer us: one transfer at a time fills our downlink, or as many
//! as it takes, and the next is accepted when one is about to end.

use std::time::Duration;

use wire::peer::{BLOCK_BYTES, Block, Message, RackMessage};

use super::Engine;
use super::offers::SIXTEENTHS;
use crate::io::{Output, Peer, Why};
use crate::peer::Link;
use crate::picker::Run;
use crate::time::{Time, bytes_in};

/// Transfers from kin at once, whatever the downlink takes.
const MAX_FLOWS: usize = 8;

/// Before its first piece a node does not know how long pieces take, and all
/// wait for the first copies: it is this much more patient.
const FIRST_PIECE: u32 = 4;

/// A transfer that brings nothing for this long does not count as filling the
/// downlink, and others are accepted beside it.
const STALE: Duration = Duration::from_millis(250);

impl Engine {
    pub(super) fn suggested(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) {
        if piece >= self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        let Some(link) = self.links.get(peer).filter(|link| link.is_kin()) else { return };
        let willing =
            self.wants(piece) && self.has_room(self.is_near(link)) && self.picker.can_take(&link.asker(), piece);
        if !willing || !self.fetch(peer, piece, out) {
            let inbound = self.inbound();
            self.say(peer, RackMessage::Decline { piece, inbound }.into(), out);
        }
    }

    /// Requests all of a piece that is missing; false when that is nothing.
    pub(super) fn fetch(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) -> bool {
        let mut forgotten = Vec::new();
        let Some(link) = self.links.get(peer) else { return false };
        let runs = self.picker.take(&link.asker(), piece, &mut forgotten);
        self.forget(&mut forgotten, out);
        let any = !runs.is_empty();
        runs.into_iter().for_each(|run| self.request_run(peer, run, out));
        self.flows_changed();
        any
    }

    pub(super) fn request_run(&mut self, peer: Peer, run: Run, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.outstanding.is_empty() {
            link.owed_since = self.now;
            link.asked_at = self.now;
            link.comes = false;
        }
        link.outstanding.push(run);
        let longest = (link.max_request / BLOCK_BYTES).max(1);
        self.wake(self.now + self.kin_patience());
        for first in (run.first..run.first + run.count).step_by(longest as usize) {
            let count = longest.min(run.first + run.count - first);
            let block: Block = Run { first, count, ..run }.place(&self.shape);
            self.say(peer, Message::Request(block), out);
        }
    }

    /// Kin that are sending to us.
    pub(super) fn flows(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.is_kin() && !link.outstanding.is_empty())
    }

    fn is_stale(&self, link: &Link) -> bool {
        link.owed_since + self.stale_after() <= self.now
    }

    fn stale_after(&self) -> Duration {
        STALE.max(2 * self.gap)
    }

    fn bytes_left(link: &Link) -> u64 {
        link.owes_blocks() as u64 * u64::from(BLOCK_BYTES)
    }

    /// What may still be on its way to us when the next piece is accepted: as
    /// much as comes until that piece begins to.
    fn slack(&self) -> u64 {
        let least =
            u64::from(self.shape.piece_length()) * u64::from(self.policy.accept_sixteenths) / u64::from(SIXTEENTHS);
        least.max(bytes_in(self.answer, self.downlink.full()))
    }

    /// Bytes on their way to us that can be counted on, from how many, and how
    /// many transfers there are in all.
    fn expected(&self) -> (u64, usize, usize) {
        let (mut bytes, mut busy, mut all) = (0, 0, 0);
        for link in self.flows() {
            all += 1;
            if !self.is_stale(link) {
                bytes += self.still_to_come(link);
                busy += 1;
            }
        }
        (bytes, busy, all)
    }

    /// What a transfer has still to bring. The driver tells of whole chunks;
    /// what came since the last is judged by the time.
    fn still_to_come(&self, link: &Link) -> u64 {
        let left = Self::bytes_left(link);
        let since = if link.comes { bytes_in(self.now - link.owed_since, self.downlink.full()) } else { 0 };
        left.saturating_sub(since).max(left / 4)
    }

    /// What comes from another rack, or from a source outside of all, is let in
    /// beside the rest: the whole rack waits for it.
    fn has_room(&self, near: bool) -> bool {
        let (bytes, busy, all) = self.expected();
        let filling = self.downlink.filling();
        let beside = if near { 0 } else { u64::from(self.shape.piece_length()) };
        all < MAX_FLOWS && (busy < filling || bytes <= self.slack() * filling as u64 + beside)
    }

    /// How much is on its way to us before the next piece can begin, in
    /// sixteenths of a piece; 0 when nothing is.
    pub(super) fn inbound(&self) -> u8 {
        let (bytes, busy, all) = self.expected();
        if all == 0 {
            return 0;
        }
        let filling = self.downlink.filling();
        if busy < filling {
            return 1;
        }
        let sixteenth = u64::from(self.shape.piece_length() / SIXTEENTHS).max(1);
        let before = (bytes / filling as u64).saturating_sub(self.slack());
        u8::try_from(before / sixteenth + 1).unwrap_or(u8::MAX)
    }

    /// A transfer began or ended.
    pub(super) fn flows_changed(&mut self) {
        let flows = self.flows().count();
        let coming = self.flows().filter(|link| link.comes).count();
        self.downlink.shared_by(coming, self.now);
        let was_fed = std::mem::replace(&mut self.is_fed, flows > 0);
        if was_fed && flows == 0 {
            self.hungry_since = self.now;
        }
        self.wake(self.starves_at());
    }

    /// How long one of our own kind may owe us without sending anything.
    pub(super) fn kin_patience(&self) -> Duration {
        self.policy.kin_timeout.max(3 * self.piece_time).max(4 * self.gap)
    }

    /// When we ask for ourselves because nobody offers.
    pub(super) fn starves_at(&self) -> Time {
        let patience = if self.piece_time.is_zero() {
            FIRST_PIECE * self.policy.starving
        } else {
            self.policy.starving.min((4 * self.piece_time).max(Duration::from_millis(50)))
        };
        if self.have.is_full() || self.kin == 0 {
            return Time::MAX;
        }
        // What is owed but does not come feeds nobody either.
        let stale = self.stale_after();
        let fed = self.flows().map(|link| link.owed_since + stale).max();
        fed.map_or(self.hungry_since, |fed| fed.max(self.hungry_since)) + patience
    }
}
