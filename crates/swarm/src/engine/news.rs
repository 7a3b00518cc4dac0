//! Which kin hear of a new piece, and when: several pieces in one packet, and
//! only those whom it helps, or announcements would take more than acknowledgements do.

use std::time::Duration;

use wire::peer::RackMessage;

use super::Engine;
use crate::io::Output;
use crate::peer::Link;
use crate::time::Time;

/// Those who ask for pieces hear of one within half the time that one takes,
/// and within this.
const WAIT: Duration = Duration::from_millis(250);

/// Seeds hear of pieces within so many times the time that one takes, and
/// within a second: what was never sent comes first, whoever has what.
const SEEDS_WAIT: (u32, Duration) = (16, Duration::from_secs(1));

/// Pieces to tell of, and when.
#[derive(Debug)]
pub(super) struct News {
    pieces: Vec<u32>,
    pub(super) due: Time,
}

impl News {
    pub(super) fn none() -> News {
        News { pieces: Vec::new(), due: Time::MAX }
    }

    fn add(&mut self, piece: u32, by: Time) {
        self.pieces.push(piece);
        self.due = self.due.min(by);
    }

    fn take_due(&mut self, now: Time) -> Vec<u32> {
        if self.due > now {
            return Vec::new();
        }
        self.due = Time::MAX;
        std::mem::take(&mut self.pieces)
    }
}

impl Engine {
    /// Kin will hear of this piece: at the end of this step if none of them
    /// has it.
    pub(super) fn report(&mut self, piece: u32, is_new: bool) {
        let at_once = self.picker.is_almost_done();
        let wait = |wait: Duration| if at_once { Duration::ZERO } else { wait };
        let soon = if is_new { Duration::ZERO } else { wait((self.piece_time / 2).min(WAIT)) };
        self.news.add(piece, self.now + soon);
        let (times, most) = SEEDS_WAIT;
        self.seeds_news.add(piece, self.now + wait((self.piece_time * times).min(most)));
        self.wake(self.news.due.min(self.seeds_news.due));
    }

    /// Tells what is due.
    pub(super) fn tell_news(&mut self, out: &mut Vec<Output>) {
        let (due, seeds_due) = (self.news.due, self.seeds_news.due);
        if due.min(seeds_due) > self.now {
            return;
        }
        let (news, seeds_news) = (self.news.take_due(self.now), self.seeds_news.take_due(self.now));
        let backlog = if self.everybody_offers { self.inbound() } else { self.to_send() };
        for at in 0..self.links.len() {
            let link = &self.links[at];
            let is_seed = link.offers && (link.has.is_full() || !self.everybody_offers);
            let news = if is_seed { &seeds_news } else { &news };
            let heard = news.iter().filter(|piece| self.helps(link, **piece));
            let said = out.len();
            out.extend(heard.map(|piece| Output::Say(link.peer, RackMessage::Have { piece: *piece, backlog }.into())));
            if out.len() > said {
                self.links[at].said = self.now;
            }
        }
    }

    /// What others wait for, in pieces.
    fn to_send(&self) -> u8 {
        let pieces = self.uplink.backlog() / u64::from(self.shape.piece_length());
        u8::try_from(pieces).unwrap_or(u8::MAX)
    }

    /// A rack mate that misses the piece; in another rack whoever may let it
    /// in; a seed once for each rack, so that it knows what came in.
    fn helps(&self, link: &Link, piece: u32) -> bool {
        if !link.is_kin() {
            return false;
        }
        let lets_in = |lanes: u64| lanes & (1 << crate::lanes::lane_of(piece)) != 0;
        if link.offers {
            return self.is_near(link) || self.racks.others() == 1 || lets_in(self.racks.claimed);
        }
        !link.has.contains(piece) && (self.is_near(link) || lets_in(link.lanes))
    }

    /// Nothing more will come.
    pub(super) fn tell_all_news(&mut self, out: &mut Vec<Output>) {
        (self.news.due, self.seeds_news.due) = (self.now, self.now);
        self.tell_news(out);
    }
}
