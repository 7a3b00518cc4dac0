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
const SOON: Duration = Duration::from_millis(250);

/// The others hear within so many times the time that a piece takes, and within
/// this; so do seeds: what was never sent comes first, whoever has what.
const LATER: (u32, Duration) = (32, Duration::from_secs(2));

/// About so many neighbours hear of a piece soon; with each piece others do.
/// Who asks knows of enough, and what the rest hears later fits into fewer packets.
const HEAR_SOON: usize = 24;

/// A piece, and one in how many neighbours hears of it soon.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    piece: u32,
    groups: u32,
}

/// Pieces to tell of, and when.
#[derive(Debug)]
pub(super) struct News {
    arrivals: Vec<Arrival>,
    pub(super) due: Time,
}

impl News {
    pub(super) fn none() -> News {
        News { arrivals: Vec::new(), due: Time::MAX }
    }

    pub(super) fn len(&self) -> usize {
        self.arrivals.len()
    }

    fn add(&mut self, arrival: Arrival, by: Time) {
        self.arrivals.push(arrival);
        self.due = self.due.min(by);
    }

    fn take_due(&mut self, now: Time) -> Vec<Arrival> {
        if self.due > now {
            return Vec::new();
        }
        self.due = Time::MAX;
        std::mem::take(&mut self.arrivals)
    }
}

impl Arrival {
    fn is_soon_for(self, link: &Link) -> bool {
        self.piece.wrapping_add(link.peer.0).is_multiple_of(self.groups)
    }
}

impl Engine {
    /// Kin will hear of this piece: at the end of this step if none of them
    /// has it.
    pub(super) fn report(&mut self, piece: u32, is_new: bool) {
        // Offers that are made in ignorance cost more than announcements.
        let hearers = if self.everybody_offers { 1 } else { self.links.len() };
        let groups = u32::try_from(hearers / HEAR_SOON).unwrap_or(u32::MAX).max(1);
        let arrival = Arrival { piece, groups };
        let at_once = self.picker.is_almost_done();
        let wait = |wait: Duration| if at_once { Duration::ZERO } else { wait };
        let soon = if is_new { Duration::ZERO } else { wait((self.piece_time / 2).min(SOON)) };
        self.news.add(arrival, self.now + soon);
        let (times, most) = LATER;
        self.later_news.add(arrival, self.now + wait((self.piece_time * times).min(most)));
        self.wake(self.news.due.min(self.later_news.due));
    }

    /// Tells what is due.
    pub(super) fn tell_news(&mut self, out: &mut Vec<Output>) {
        if self.news.due.min(self.later_news.due) > self.now {
            return;
        }
        let (soon, later) = (self.news.take_due(self.now), self.later_news.take_due(self.now));
        let backlog = if self.everybody_offers { self.inbound() } else { self.to_send() };
        for at in 0..self.links.len() {
            let link = &self.links[at];
            let is_seed = link.offers && (link.has.is_full() || !self.everybody_offers);
            let hears_soon = |arrival: &&Arrival| !is_seed && arrival.is_soon_for(link);
            let heard = soon.iter().filter(hears_soon).chain(later.iter().filter(|arrival| !hears_soon(arrival)));
            let helping = heard.map(|arrival| arrival.piece).filter(|piece| self.helps(link, *piece));
            let said = out.len();
            out.extend(helping.map(|piece| Output::Say(link.peer, RackMessage::Have { piece, backlog }.into())));
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
        (self.news.due, self.later_news.due) = (self.now, self.now);
        self.tell_news(out);
    }
}
