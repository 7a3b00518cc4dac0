//! Pieces on their way to us from kin: what was offered, what was asked, and
//! when nothing comes any more.

use std::time::Duration;

use wire::peer::{BLOCK_BYTES, Block, Message, RackMessage};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::peer::Link;
use crate::picker::Run;
use crate::time::Time;

/// Before its first piece a node does not know how long pieces take, and all
/// wait for the first copies: it is this much more patient.
const FIRST_PIECE: u32 = 4;

/// Times that first bytes usually take: after so many the request is taken
/// back.
const PATIENCE: u32 = 4;

/// The same, at most.
const PATIENCE_MOST: Duration = Duration::from_secs(20);

/// Where everybody offers, a node that receives nothing for so many times the
/// time that a piece takes asks for itself.
const UNOFFERED: u32 = 6;

/// Where everybody offers, a piece is taken when no more than this is on its
/// way: with less, uplinks find nobody who takes theirs; with more, pieces wait
/// for each other and are late for the next.
pub(super) const ROOM: u8 = 3;

/// Parts of a piece in which that is counted.
const QUARTERS: usize = 4;

impl Engine {
    pub(super) fn suggested(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) {
        if piece >= self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        let Some(link) = self.links.get(peer).filter(|link| link.is_kin()) else { return };
        let mut wanted = self.usable(link, piece).then_some(piece);
        let mut backlog = 0;
        if self.everybody_offers {
            // The uplink is offered rather than the piece; of a seed only what it chose.
            if wanted.is_none() && !link.has.is_full() {
                wanted = self.picker.rarest(&link.has, &mut self.chance);
            }
            backlog = self.inbound();
        }
        let taken = backlog <= ROOM && wanted.is_some_and(|piece| self.fetch(peer, piece, out));
        if !taken {
            self.say(peer, RackMessage::Decline { piece, needless: wanted.is_none(), backlog }.into(), out);
        }
    }

    fn usable(&self, link: &Link, piece: u32) -> bool {
        self.wants(piece) && self.picker.can_take(&link.asker(), piece)
    }

    /// What is on its way to us, in quarters of a piece.
    pub(super) fn inbound(&self) -> u8 {
        let blocks: usize = self.flows().map(Link::owes_blocks).sum();
        u8::try_from((QUARTERS * blocks).div_ceil(self.shape.blocks(0).max(1) as usize)).unwrap_or(u8::MAX)
    }

    /// The time that so many quarters of a piece take.
    pub(super) fn time_for_quarters(&self, quarters: u32) -> Duration {
        self.uplink.time_for(u64::from(self.shape.piece_length())) / QUARTERS as u32 * quarters
    }

    /// Requests all of a piece that is missing; false when that is nothing.
    pub(super) fn fetch(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) -> bool {
        let mut forgotten = Vec::new();
        let Some(link) = self.links.get(peer).filter(|link| !link.leaves_open_of(piece)) else { return false };
        let runs = self.picker.take(&link.asker(), piece, &mut forgotten);
        self.forget(&mut forgotten, out);
        let any = !runs.is_empty();
        runs.into_iter().for_each(|run| self.request_run(peer, run, out));
        self.flows_changed();
        any
    }

    pub(super) fn request_run(&mut self, peer: Peer, run: Run, out: &mut Vec<Output>) {
        let wait = self.uplink.time_for(u64::from(self.shape.piece_length()));
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.outstanding.is_empty() {
            link.owed_since = self.now;
            link.asked_at = self.now;
            link.comes = false;
        }
        link.outstanding.push(run);
        link.free_at = link.free_at.max(self.now) + wait;
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

    /// What was asked and has not come, in pieces, of rack mates and of others.
    fn count_owed(&mut self) {
        let (mut near, mut far) = (0, 0);
        for link in self.links.iter().filter(|link| link.is_kin()) {
            *(if self.is_near(link) { &mut near } else { &mut far }) += link.owes_pieces();
        }
        (self.owed_near, self.owed_far) = (near, far);
    }

    /// A transfer began or ended.
    pub(super) fn flows_changed(&mut self) {
        let before = self.owed_near + self.owed_far;
        self.count_owed();
        let after = self.owed_near + self.owed_far;
        self.has_room |= after < before;
        if before > 0 && after == 0 {
            self.hungry_since = self.now;
        }
        self.wake(self.starves_at());
    }

    /// A transfer from kin went on, or ended; `gap` is the time since it last
    /// did, or since we asked.
    pub(super) fn flow_moved(&mut self, peer: Peer, gap: Duration, piece: u32) {
        let Some(link) = self.links.get_mut(peer) else { return };
        if !std::mem::replace(&mut link.comes, true) {
            self.wait = gap.max(self.wait / 16 * 15);
        }
        if link.outstanding.iter().any(|run| run.piece == piece) {
            return;
        }
        let took = self.now - link.asked_at;
        link.asked_at = self.now;
        self.piece_time = if self.piece_time.is_zero() { took } else { self.piece_time / 4 * 3 + took / 4 };
        self.flows_changed();
    }

    /// How long one of our own kind may owe us without sending anything. It
    /// serves several at once, and us when it is our turn.
    pub(super) fn kin_patience(&self) -> Duration {
        let (shortest, usual) = (self.policy.kin_timeout, self.wait.max(self.piece_time) * PATIENCE);
        let shortest = if self.piece_time.is_zero() { FIRST_PIECE * shortest } else { shortest };
        usual.clamp(shortest, PATIENCE_MOST.max(shortest))
    }

    /// When we ask whoever we can because nothing comes.
    pub(super) fn starves_at(&self) -> Time {
        let patience = if self.piece_time.is_zero() {
            FIRST_PIECE * self.policy.starving
        } else if self.everybody_offers {
            self.policy.starving.min(UNOFFERED * self.piece_time)
        } else {
            self.policy.starving.max(PATIENCE * self.piece_time)
        };
        if self.have.is_full() || self.kin == 0 {
            return Time::MAX;
        }
        let fed = self.flows().map(|link| link.owed_since).max();
        fed.map_or(self.hungry_since, |fed| fed.max(self.hungry_since)) + patience
    }

    /// A neighbour has a piece more, and told how many it has to send, or, where
    /// everybody offers, what is on its way to it. What it has may be just what
    /// we are looking for.
    pub(super) fn has_news(&mut self, at: usize, piece: u32, backlog: u8, out: &mut Vec<Output>) {
        let quarters = u32::from(backlog) * if self.everybody_offers { 1 } else { QUARTERS as u32 };
        let wait = self.time_for_quarters(quarters);
        let link = &mut self.links[at];
        link.free_at = self.now + wait;
        link.declines = 0;
        self.may_take_again(at);
        self.make_offers(out);
        self.pull_news(at, piece, out);
    }
}
