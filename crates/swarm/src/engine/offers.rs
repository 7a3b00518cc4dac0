//! We schedule what we send: when our uplink is about to run dry, the kin
//! neighbour that has least on its way is offered the rarest piece that it
//! misses (a Suggest Piece of BEP 6). It requests or declines.

use std::time::Duration;

use wire::peer::Message;

use super::Engine;
use super::racks::lane_mask;
use crate::io::{Output, Peer};
use crate::peer::{Link, Offer};
use crate::picker::{least, rotated};
use crate::time::Time;

/// Kin tell what is on its way to them in sixteenths of a piece.
pub(super) const SIXTEENTHS: u32 = 16;

/// After a first copy of everything is out a seed rests for this part of the
/// time that took: by then others have finished the rest, if they are not
/// much slower than the seed.
const REST: u32 = 12;

/// What an engine remembers of its offers.
#[derive(Debug)]
pub(super) struct Offering {
    /// How often each piece was offered and taken; kept by seeds only.
    sent: Option<Box<[u16]>>,
    /// Pieces that were never sent.
    unsent: u32,
    began: Option<Time>,
    /// A seed offers nothing a second time before.
    rests_until: Option<Time>,
    /// Nobody was found; nobody is looked for before, or before news come.
    barren_until: Time,
    /// Neighbours in the order of preference: by when they have room, then by
    /// what they have. Kept for its memory.
    ranked: Vec<(Time, u32, u32)>,
}

impl Offering {
    pub(super) fn new(seed: bool, pieces: u32) -> Offering {
        Offering {
            sent: seed.then(|| vec![0; pieces as usize].into()),
            unsent: pieces,
            began: None,
            rests_until: None,
            barren_until: Time::ZERO,
            ranked: Vec::new(),
        }
    }

    fn times_sent(&self, piece: u32) -> u16 {
        self.sent.as_ref().map_or(0, |sent| sent[piece as usize])
    }

    /// A piece is offered by a seed.
    fn sends(&mut self, piece: u32, now: Time) {
        let Some(sent) = &mut self.sent else { return };
        let began = *self.began.get_or_insert(now);
        let count = &mut sent[piece as usize];
        self.unsent -= u32::from(*count == 0);
        *count = count.saturating_add(1);
        if self.unsent == 0 && self.rests_until.is_none() {
            self.rests_until = Some(now + (now - began) / REST);
        }
    }

    fn sends_not(&mut self, piece: u32) {
        let Some(sent) = &mut self.sent else { return };
        let count = &mut sent[piece as usize];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.unsent += 1;
            self.rests_until = None;
        }
    }

    fn rests(&self, now: Time) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

impl Engine {
    /// Offers pieces until the uplink has enough before it, or nobody is left.
    pub(super) fn make_offers(&mut self, out: &mut Vec<Output>) {
        if self.kin == 0 || self.have.is_empty() {
            return;
        }
        while self.offering.barren_until <= self.now && self.uplink.wants_offer(&self.links) {
            if !self.offer_one(out) {
                break;
            }
        }
    }

    /// Something changed: those that were of no use before may be of use now.
    pub(super) fn offer_anew(&mut self, out: &mut Vec<Output>) {
        self.offering.barren_until = Time::ZERO;
        self.make_offers(out);
    }

    fn offer_one(&mut self, out: &mut Vec<Output>) -> bool {
        self.rank_neighbours();
        let ranked = std::mem::take(&mut self.offering.ranked);
        let found = ranked.iter().find_map(|(.., at)| Some((*at as usize, self.choose(*at as usize)?)));
        self.offering.ranked = ranked;
        let Some((at, piece)) = found else {
            return false;
        };
        let link = &mut self.links[at];
        link.offer = Some(Offer { piece, at: self.now });
        let peer = link.peer;
        self.uplink.offer(self.shape.piece_bytes(piece));
        self.offering.sends(piece, self.now);
        self.say(peer, Message::Suggest(piece), out);
        self.wake(self.now + self.uplink.patience());
        true
    }

    /// Those that may take a piece now, first who has room, then who is furthest
    /// behind; also when to look again if nobody is found. To prefer other racks
    /// here would clog the cables between them (simulated).
    fn rank_neighbours(&mut self) {
        let horizon = self.now + self.horizon();
        let mut next = self.now + Duration::from_secs(1);
        let turn = self.chance.below(u32::MAX);
        let lead = self.uplink.lead();
        self.offering.ranked.clear();
        for (at, link) in self.links.iter().enumerate() {
            if !self.could_take(link, lead) {
                continue;
            }
            if link.free_at > horizon {
                next = next.min(self.now + (link.free_at - horizon));
                continue;
            }
            let lot = (at as u32 ^ turn).wrapping_mul(0x9E37_79B9);
            self.offering.ranked.push((link.free_at.max(self.now), lot, at as u32));
        }
        self.offering.ranked.sort_unstable();
        if let Some(until) = self.offering.rests_until.filter(|until| *until > self.now) {
            next = next.min(until);
        }
        self.offering.barren_until = if self.offering.ranked.is_empty() { next } else { Time::ZERO };
        if self.offering.ranked.is_empty() {
            self.wake(next);
        }
    }

    /// How far ahead of its having room a neighbour is asked: an answer's time.
    fn horizon(&self) -> Duration {
        self.uplink.latency()
    }

    fn could_take(&self, link: &Link, lead: u64) -> bool {
        let served_last = link.queue.is_empty() && u64::from(link.in_flight) <= lead;
        let open = link.is_kin() && !link.snubbed && link.offer.is_none() && served_last;
        open && link.useful > 0 && (self.is_near(link) || link.lanes != 0)
    }

    /// The piece to offer this neighbour: of a seed the one sent least often,
    /// of all the one that fewest neighbours have.
    fn choose(&mut self, at: usize) -> Option<u32> {
        let link = &self.links[at];
        let near = self.is_near(link);
        let mask = if near { usize::MAX } else { lane_mask(link.lanes) };
        let (have, racks, rack) = (self.have.bits().as_slice(), &self.racks, link.rack);
        let word = |at: usize| {
            let seen = if near { 0 } else { racks.seen_word(rack, at) };
            have[at] & !link.has.word(at) & !seen & mask
        };
        let rests = self.offering.rests(self.now);
        let candidates = rotated(self.shape.pieces(), &mut self.chance, word);
        let offered =
            candidates.filter(|piece| !link.has_declined(*piece) && (!rests || self.offering.times_sent(*piece) == 0));
        let rank = |piece: u32| (self.offering.times_sent(piece), self.picker.holders(piece));
        least(offered, rank, &mut self.chance)
    }

    /// The peer requests; if that is what we suggested, the offer is taken.
    pub(super) fn accepted_offer(&mut self, peer: Peer, piece: u32) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let Some(offer) = link.offer.take_if(|offer| offer.piece == piece) else { return };
        let bytes = self.shape.piece_bytes(piece);
        self.uplink.answered(bytes, self.now - offer.at);
        link.free_at = link.free_at.max(self.now) + self.uplink.time_for(bytes.into());
        link.declines = 0;
        let rack = link.rack;
        if rack != self.racks.mine {
            self.seen_in_rack(rack, piece);
        }
    }

    pub(super) fn declined(&mut self, peer: Peer, piece: u32, inbound: u8, out: &mut Vec<Output>) {
        let patience = self.piece_patience();
        let Some(link) = self.links.get_mut(peer).filter(|link| link.is_kin()) else { return };
        if let Some(offer) = link.offer.take_if(|offer| offer.piece == piece) {
            self.uplink.answered(self.shape.piece_bytes(piece), self.now - offer.at);
            self.offering.sends_not(piece);
            if link.free_at + patience < self.now {
                link.forget_declined();
            }
            link.decline(piece);
        }
        self.has_room_after(peer, inbound);
        self.rest_after_declines(peer);
        self.make_offers(out);
    }

    /// Who declines again and again is asked less and less often.
    fn rest_after_declines(&mut self, peer: Peer) {
        let pause = self.uplink.time_for(u64::from(self.shape.piece_length())).max(Duration::from_millis(2)) / 32;
        let Some(link) = self.links.get_mut(peer) else { return };
        let declines = link.declines.saturating_sub(1).min(5);
        link.declines = link.declines.saturating_add(1);
        if declines > 0 {
            link.free_at = link.free_at.max(self.now + pause * (1 << declines));
        }
    }

    fn piece_patience(&self) -> Duration {
        4 * self.uplink.time_for(self.shape.piece_length().into())
    }

    /// A neighbour has a piece more, and told how much is on its way to it.
    pub(super) fn has_news(&mut self, peer: Peer, inbound: u8, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(peer) {
            link.declines = 0;
        }
        self.has_room_after(peer, inbound);
        self.make_offers(out);
    }

    fn has_room_after(&mut self, peer: Peer, inbound: u8) {
        let sixteenth = u64::from(self.shape.piece_length() / SIXTEENTHS);
        let wait = self.uplink.time_for(u64::from(inbound) * sixteenth);
        let Some(link) = self.links.get_mut(peer).filter(|link| link.is_kin()) else { return };
        link.free_at = self.now + wait;
        if self.offering.barren_until > self.now {
            let lead = self.uplink.lead();
            let useful = self.links.get(peer).is_some_and(|link| self.could_take(link, lead));
            if useful {
                self.offering.barren_until = Time::ZERO;
            }
        }
    }

    /// Who has nearly all that it asked for may be offered the next piece.
    pub(super) fn nearly_served(&mut self, at: usize) {
        if self.offering.barren_until > self.now && self.could_take(&self.links[at], self.uplink.lead()) {
            self.offering.barren_until = Time::ZERO;
        }
    }

    /// An offer that nobody answered: the peer is left alone until it speaks.
    pub(super) fn expire_offer(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let patience = self.uplink.patience();
        let now = self.now;
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.offer.is_some_and(|offer| offer.at + patience <= now) {
            let mut offer = std::mem::take(&mut link.offer);
            link.free_at = now + Duration::from_secs(1);
            link.snubbed = link.heard + patience * 2 <= now;
            if let Some(offer) = offer.take() {
                self.uplink.answered(self.shape.piece_bytes(offer.piece), Duration::ZERO);
                self.offering.sends_not(offer.piece);
            }
            self.offer_anew(out);
        }
    }

    pub(super) fn offer_expires(&self, link: &Link) -> Time {
        link.offer.map_or(Time::MAX, |offer| offer.at + self.uplink.patience())
    }

    /// The peer is gone, and with it what we offered it.
    pub(super) fn withdraw_offer(&mut self, link: &mut Link) {
        if let Some(offer) = link.offer.take() {
            self.uplink.answered(self.shape.piece_bytes(offer.piece), Duration::ZERO);
            self.offering.sends_not(offer.piece);
        }
    }

    /// When somebody may have room again, or a seed has rested.
    pub(super) fn offers_due(&self) -> Time {
        if self.kin > 0 && self.offering.barren_until > self.now { self.offering.barren_until } else { Time::MAX }
    }
}
