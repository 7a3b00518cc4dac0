//! A seed schedules what it sends: nobody else has its pieces yet, so each
//! goes out once before any goes out twice. Who has been served least recently
//! is offered the piece that was sent least often (a Suggest Piece of BEP 6)
//! and requests or declines it.

use std::time::Duration;

use wire::peer::Message;

use super::Engine;
use super::intake::ROOM;
use super::racks::lane_mask;
use crate::io::{Output, Peer};
use crate::peer::{Link, Offer};
use crate::picker::{least, rotated};
use crate::time::Time;

/// After a first copy of everything is out a seed rests for this part of the
/// time that took: by then others have finished the rest, if they are not
/// much slower than the seed.
const REST: u32 = 12;

/// An offer is answered within this time, or the peer is left alone for as
/// long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who declined is asked again after this, and after twice as long each time
/// that it declines once more.
const DECLINED: Duration = Duration::from_millis(2);

/// What somebody declined is offered to it again after this: it may have been
/// on its way from another, or there was no room.
const DECLINED_PIECE: Duration = Duration::from_millis(100);

/// Where everybody offers, who needs nothing of ours is offered something again
/// after a quarter of the time that a piece takes, and after this.
const MOST_SATED: Duration = Duration::from_millis(250);

/// Who has room within so long of another has it at the same time.
const ABOUT_AS_SOON_NANOS: u64 = 1 << 20;

/// Any odd number of 32 bits without a pattern.
const SCATTER: u32 = 0x9E37_79B9;

/// Doublings of the first.
const MOST_DOUBLINGS: u32 = 7;

/// A seed begins with whom it served least lately, others with who has room
/// first, in an order drawn by lot.
type Preference = (u64, u32);

/// What is remembered of offers.
#[derive(Debug)]
pub(super) struct Offering {
    /// How often each piece was offered and taken; nothing but of a seed.
    sent: Box<[u16]>,
    /// Pieces that were never sent.
    unsent: u32,
    began: Option<Time>,
    /// Nothing is offered a second time before.
    rests_until: Option<Time>,
    /// Nobody was found; nobody is looked for before, or before news come.
    barren_until: Time,
    /// Offers that are not answered.
    open: usize,
    /// Neighbours in the order of preference. Kept for its memory.
    ranked: Vec<(Preference, u32)>,
}

impl Offering {
    pub(super) fn new(is_seed: bool, pieces: u32) -> Offering {
        Offering {
            sent: vec![0; if is_seed { pieces as usize } else { 0 }].into(),
            unsent: pieces,
            began: None,
            rests_until: None,
            barren_until: Time::ZERO,
            open: 0,
            ranked: Vec::new(),
        }
    }

    fn times_sent(&self, piece: u32) -> u16 {
        self.sent.get(piece as usize).copied().unwrap_or(0)
    }

    fn is_seed(&self) -> bool {
        !self.sent.is_empty()
    }

    fn sends(&mut self, piece: u32, now: Time) {
        let Some(count) = self.sent.get_mut(piece as usize) else { return };
        let began = *self.began.get_or_insert(now);
        self.unsent -= u32::from(*count == 0);
        *count = count.saturating_add(1);
        if self.unsent == 0 && self.rests_until.is_none() {
            self.rests_until = Some(now + (now - began) / REST);
        }
    }

    fn sends_not(&mut self, piece: u32) {
        let Some(count) = self.sent.get_mut(piece as usize) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.unsent += 1;
            self.rests_until = None;
        }
    }

    fn closes(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    fn rests(&self, now: Time) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

impl Engine {
    /// Offers pieces until the uplink has enough before it, or nobody is left.
    pub(super) fn make_offers(&mut self, out: &mut Vec<Output>) {
        let Some(mut offering) = self.offering.take() else { return };
        while self.kin > 0 && offering.barren_until <= self.now && self.uplink.wants_offer(&self.links, offering.open) {
            if !self.offer_one(&mut offering, out) {
                break;
            }
        }
        self.offering = Some(offering);
    }

    /// Something changed: those that were of no use before may be of use now.
    pub(super) fn offer_anew(&mut self, out: &mut Vec<Output>) {
        if let Some(offering) = &mut self.offering {
            offering.barren_until = Time::ZERO;
            self.make_offers(out);
        }
    }

    fn offer_one(&mut self, offering: &mut Offering, out: &mut Vec<Output>) -> bool {
        let next = self.rank_neighbours(offering);
        let ranked = std::mem::take(&mut offering.ranked);
        let found = ranked.iter().find_map(|(_, at)| Some((*at as usize, self.choose(offering, *at as usize)?)));
        offering.ranked = ranked;
        let Some((at, piece)) = found else {
            let rested = offering.rests_until.filter(|until| *until > self.now);
            offering.barren_until = rested.map_or(next, |until| next.min(until));
            self.wake(offering.barren_until);
            return false;
        };
        let link = &mut self.links[at];
        link.offer = Some(Offer { piece, at: self.now });
        offering.open += 1;
        let peer = link.peer;
        offering.sends(piece, self.now);
        self.say(peer, Message::Suggest(piece), out);
        self.wake(self.now + PATIENCE);
        true
    }

    /// Finds those that may take a piece now; says when to look again if there is
    /// none for them.
    fn rank_neighbours(&mut self, offering: &mut Offering) -> Time {
        let mut next = self.now + PATIENCE;
        let (lead, turn) = (self.uplink.lead(), self.turn(offering));
        let busy_until = self.now + self.time_for_quarters(ROOM.into());
        offering.ranked.clear();
        for (at, link) in self.links.iter().enumerate() {
            if !self.could_take(link, lead) {
                continue;
            }
            if link.rests_until > self.now {
                next = next.min(link.rests_until);
                continue;
            }
            if self.everybody_offers && link.free_at > busy_until {
                next = next.min(self.now + (link.free_at - busy_until));
                continue;
            }
            let Some(turn) = turn else {
                offering.ranked.push(((link.served, 0), at as u32));
                continue;
            };
            let room_in = (link.free_at - self.now).as_nanos() as u64 / ABOUT_AS_SOON_NANOS;
            let lot = (at as u32 ^ turn).wrapping_mul(SCATTER);
            offering.ranked.push(((room_in, lot), at as u32));
        }
        offering.ranked.sort_unstable();
        if offering.ranked.is_empty() { next } else { next.min(self.now + DECLINED_PIECE) }
    }

    /// What neighbours that have room are shuffled with; seeds keep an order.
    fn turn(&mut self, offering: &Offering) -> Option<u32> {
        (!offering.is_seed()).then(|| self.chance.below(u32::MAX))
    }

    fn could_take(&self, link: &Link, lead: u64) -> bool {
        let served_last = link.queue.is_empty() && u64::from(link.in_flight) <= lead;
        let open = link.is_kin() && !link.snubbed && link.offer.is_none() && served_last;
        open && link.useful > 0 && (link.lanes != 0 || self.enters_anywhere(link))
    }

    /// A rack mate, or a member of the only other rack: nobody else brings
    /// pieces in there.
    fn enters_anywhere(&self, link: &Link) -> bool {
        self.is_near(link) || self.racks.others() == 1
    }

    /// The piece to offer this neighbour: the one sent least often, then the
    /// one that fewest neighbours have.
    fn choose(&mut self, offering: &Offering, at: usize) -> Option<u32> {
        let link = &self.links[at];
        let (near, anywhere) = (self.is_near(link), self.enters_anywhere(link));
        let (have, racks, rack) = (self.have.bits().as_slice(), &self.racks, link.rack);
        let word = |at: usize| {
            let enters = if anywhere { usize::MAX } else { lane_mask(link.lanes, at) };
            let enters = if near { usize::MAX } else { enters & !racks.seen_word(rack, at) };
            have[at] & !link.has.word(at) & enters
        };
        let rests = offering.rests(self.now);
        let remembers = self.now < link.rests_until + DECLINED_PIECE;
        let candidates = rotated(self.shape.pieces(), &mut self.chance, word);
        let offered = candidates
            .filter(|piece| !(remembers && link.has_declined(*piece)) && (!rests || offering.times_sent(*piece) == 0));
        let rank = |piece: u32| (offering.times_sent(piece), self.picker.holders(piece));
        least(offered, rank, &mut self.chance)
    }

    /// The peer requests; if that is what we suggested, the offer is taken.
    pub(super) fn accepted_offer(&mut self, peer: Peer, piece: u32) {
        let now = self.now;
        let Some(link) = self.links.get_mut(peer) else { return };
        let other_will_do = self.everybody_offers;
        let Some(offer) = link.offer.take_if(|offer| other_will_do || offer.piece == piece) else { return };
        self.uplink.answered(now - offer.at);
        link.declines = 0;
        if let Some(offering) = &mut self.offering {
            offering.closes();
            if offer.piece != piece {
                offering.sends_not(offer.piece);
                offering.sends(piece, now);
            }
        }
        if self.everybody_offers {
            link.free_at = link.free_at.max(now) + self.uplink.time_for(self.shape.piece_length().into());
        }
        let rack = link.rack;
        if rack != self.racks.mine {
            self.seen_in_rack(rack, piece);
        }
    }

    pub(super) fn declined(&mut self, peer: Peer, piece: u32, needless: bool, backlog: u8, out: &mut Vec<Output>) {
        let now = self.now;
        let (wait, sated) = (self.time_for_quarters(backlog.into()), (self.piece_time / 4).min(MOST_SATED));
        let says_when = self.everybody_offers && !needless && !wait.is_zero();
        let Some(link) = self.links.get_mut(peer).filter(|link| link.is_kin()) else { return };
        let Some(offer) = link.offer.take_if(|offer| offer.piece == piece) else { return };
        if link.rests_until + DECLINED_PIECE <= now {
            link.forget_declined();
        }
        if says_when {
            link.free_at = now + wait;
        } else if self.everybody_offers && needless && !sated.is_zero() {
            link.rests_until = now + sated;
        } else {
            link.decline(piece);
            link.rests_until = now + DECLINED * (1 << u32::from(link.declines).min(MOST_DOUBLINGS));
            link.declines = link.declines.saturating_add(1);
        }
        self.uplink.answered(now - offer.at);
        self.sends_not(piece);
        self.offer_anew(out);
    }

    /// An offer came to nothing.
    fn sends_not(&mut self, piece: u32) {
        if let Some(offering) = &mut self.offering {
            offering.closes();
            offering.sends_not(piece);
        }
    }

    /// Who has nearly all that it asked for may be offered the next piece, and
    /// who has a piece more another one.
    pub(super) fn may_take_again(&mut self, at: usize) {
        // For every part sent and every piece of news: most nodes are no seeds.
        if self.offering.is_none() || !self.could_take(&self.links[at], self.uplink.lead()) {
            return;
        }
        if let Some(offering) = &mut self.offering {
            offering.barren_until = Time::ZERO;
        }
    }

    /// An offer that nobody answered: the peer is left alone for a while.
    pub(super) fn expire_offer(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let now = self.now;
        let Some(link) = self.links.get_mut(peer) else { return };
        let Some(offer) = link.offer.take_if(|offer| offer.at + PATIENCE <= now) else { return };
        link.rests_until = now + PATIENCE;
        link.snubbed = link.heard + PATIENCE * 2 <= now;
        self.sends_not(offer.piece);
        self.offer_anew(out);
    }

    pub(super) fn offer_expires(link: &Link) -> Time {
        link.offer.map_or(Time::MAX, |offer| offer.at + PATIENCE)
    }

    /// The peer is gone, and with it what we offered it.
    pub(super) fn withdraw_offer(&mut self, link: &mut Link) {
        if let Some(offer) = link.offer.take() {
            self.sends_not(offer.piece);
        }
    }

    /// When somebody may have room again, or the seed has rested.
    pub(super) fn offers_due(&self) -> Time {
        let barren = self.offering.as_ref().map_or(Time::ZERO, |offering| offering.barren_until);
        if self.kin > 0 && barren > self.now { barren } else { Time::MAX }
    }
}
