//! Our uplink: what is handed to the driver next. Several transfers run side by
//! side, since receivers choose their senders without knowing of each other:
//! while some share a busy downlink, others keep our uplink full.

use std::time::Duration;

use wire::peer::{BLOCK_BYTES, Block};

use crate::links::Links;
use crate::peer::Link;
use crate::policy::Policy;
use crate::rate::Rate;
use crate::time::{Time, bytes_in, time_for};

/// What one connection has handed to the driver before its next request is,
/// in bytes and in time.
const AHEAD_BYTES: u64 = 64 << 10;
const AHEAD_TIME: Duration = Duration::from_millis(1);

/// Most that is promised ahead, however long answers take.
const MAX_LEAD_BYTES: u64 = 16 << 20;

/// Shortest and longest silence of a transfer after which it takes no place
/// any more.
const STALL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// A foreign client's claim on the uplink does not grow beyond this, in bytes.
const MAX_CREDIT: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Uplink {
    rate: Rate,
    /// From a suggestion to its answer.
    latency: Duration,
    /// Bytes requested by kin and not handed over; handed over and not sent.
    queued: u64,
    handed: u64,
    /// Kin being served, and how many of them take nothing.
    transfers: usize,
    stalled: usize,
    /// A foreign client may have a request in its queue.
    foreign_waits: bool,
    /// Bytes of the last report.
    part: u32,
    /// What foreign clients may be sent beside kin, in bytes.
    credit: u64,
    served: u64,
    most: usize,
    foreign_share: u64,
    foreign_limit: u32,
}

impl Uplink {
    /// `most` transfers to kin run side by side.
    pub(crate) fn new(policy: &Policy, most: usize) -> Uplink {
        Uplink {
            rate: Rate::default(),
            latency: Duration::from_millis(1),
            queued: 0,
            handed: 0,
            transfers: 0,
            stalled: 0,
            foreign_waits: false,
            part: 0,
            credit: 0,
            served: 0,
            most: most.max(1),
            foreign_share: u64::from(policy.foreign_share.max(2)),
            foreign_limit: u32::try_from(policy.peer_uplink_blocks.max(1)).unwrap_or(u32::MAX) * BLOCK_BYTES,
        }
    }

    /// How long this many bytes take; nothing while the rate is unknown.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        time_for(bytes, self.rate.known())
    }

    /// Bytes that kin asked for and that are not sent.
    pub(crate) fn backlog(&self) -> u64 {
        self.queued + self.handed
    }

    /// Bytes still to be sent to one peer below which it is offered the next
    /// piece: what goes out while it answers.
    pub(crate) fn lead(&self) -> u64 {
        let product = 2 * bytes_in(self.latency, self.rate.known());
        product.clamp(AHEAD_BYTES, MAX_LEAD_BYTES).max(2 * u64::from(self.part))
    }

    /// Fewer are served, or about to be, than may be side by side.
    /// `open` offers wait for an answer.
    pub(crate) fn wants_offer(&self, links: &Links, open: usize) -> bool {
        let lead = self.lead();
        if self.most == 1 && self.stalled == 0 {
            // Asked after every message: connections are many and long.
            return self.queued == 0 && self.handed <= lead && open == 0;
        }
        let engaged = |link: &&Link| {
            let served = !link.queue.is_empty() || u64::from(link.in_flight) > lead;
            link.is_kin() && !link.stalled && (link.offer.is_some() || served)
        };
        links.iter().filter(engaged).take(self.most).count() < self.most
    }

    /// A suggestion was answered.
    pub(crate) fn answered(&mut self, took: Duration) {
        let took = took.min(Duration::from_secs(1));
        self.latency =
            if took < self.latency { self.latency * 3 / 4 + took / 4 } else { self.latency * 7 / 8 + took / 8 };
    }

    pub(crate) fn requested(&mut self, link: &mut Link, block: Block, now: Time) {
        if link.queue.is_empty() && link.in_flight == 0 {
            link.sending_since = now;
        }
        if link.is_kin() {
            self.queued += u64::from(block.length);
        } else {
            self.foreign_waits = true;
        }
        link.queue.push_back(block);
    }

    /// Takes back what waits within this range: one cancel may call off several
    /// requests.
    pub(crate) fn cancelled(&mut self, link: &mut Link, range: Block) -> Vec<Block> {
        let within = |block: &Block| {
            let end = |block: &Block| u64::from(block.offset) + u64::from(block.length);
            block.piece == range.piece && range.offset <= block.offset && end(block) <= end(&range)
        };
        if !link.queue.iter().any(within) {
            return Vec::new();
        }
        let (cancelled, kept): (Vec<Block>, Vec<Block>) = link.queue.drain(..).partition(within);
        link.queue = kept.into();
        if link.is_kin() {
            self.queued -= cancelled.iter().map(|block| u64::from(block.length)).sum::<u64>();
        }
        cancelled
    }

    /// The peer turned out to be kin.
    pub(crate) fn adopt(&mut self, link: &Link) {
        self.queued += link.queue.iter().map(|block| u64::from(block.length)).sum::<u64>();
        if link.in_flight > 0 {
            self.handed += u64::from(link.in_flight);
            self.transfers += 1;
        }
    }

    /// Takes the next range to send out of its queue. `rack` is ours.
    pub(crate) fn next(&mut self, links: &mut Links, rack: u16, now: Time) -> Option<(usize, Block)> {
        let at = self.next_kin(links, rack).or_else(|| self.next_foreign(links))?;
        let link = &mut links[at];
        let block = link.queue.pop_front()?;
        link.sending = link.queue.front().is_some_and(|next| next.piece == block.piece).then_some(block.piece);
        self.served += 1;
        link.served = self.served;
        if link.is_kin() {
            self.queued -= u64::from(block.length);
            self.handed += u64::from(block.length);
            if link.in_flight == 0 {
                self.begin(now);
            }
        } else {
            self.credit = self.credit.saturating_sub(block.length.into());
        }
        if link.in_flight == 0 {
            link.sending_since = now;
        }
        link.in_flight += block.length;
        Some((at, block))
    }

    /// A piece that was begun comes first; else the next begins if there is a
    /// place, in the order of requests. What another rack waits for has places
    /// of its own and comes before the rest: all there wait for it.
    fn next_kin(&self, links: &Links, rack: u16) -> Option<usize> {
        if self.queued == 0 {
            return None;
        }
        let ahead = AHEAD_BYTES.max(bytes_in(AHEAD_TIME, self.rate.known()));
        let brisk = self.transfers - self.stalled;
        let mut next = None;
        for (at, link) in links.iter().enumerate() {
            let Some(block) = link.queue.front().filter(|_| link.is_kin()) else { continue };
            let is_idle = link.in_flight == 0;
            if u64::from(link.in_flight) <= ahead && (!is_idle || link.sending == Some(block.piece)) {
                return Some(at);
            }
            let is_far = link.rack != rack;
            if is_idle && brisk < self.most + if is_far { self.most.div_ceil(2) } else { 0 } {
                let order = (!is_far, link.sending_since, link.served);
                if next.is_none_or(|(first, _)| order < first) {
                    next = Some((order, at));
                }
            }
        }
        next.map(|(_, at)| at)
    }

    /// Every unchoked foreign client in turn, block by block, with what kin
    /// leaves them.
    fn next_foreign(&mut self, links: &Links) -> Option<usize> {
        if !self.foreign_waits {
            return None;
        }
        let kin_waits = self.backlog() > 0;
        let can_take = |link: &Link| {
            !link.is_kin()
                && link.in_flight < self.foreign_limit
                && link.queue.front().is_some_and(|block| !kin_waits || u64::from(block.length) <= self.credit)
        };
        let takers = links.iter().enumerate().filter(|(_, link)| can_take(link));
        let next = takers.min_by_key(|(_, link)| link.served).map(|(at, _)| at);
        self.foreign_waits = next.is_some() || links.iter().any(|link| !link.is_kin() && !link.queue.is_empty());
        next
    }

    fn begin(&mut self, now: Time) {
        if self.transfers == 0 {
            self.rate.begins(now);
        }
        self.transfers += 1;
    }

    /// The driver sent a part.
    pub(crate) fn sent(&mut self, link: &mut Link, bytes: u32, now: Time) {
        let bytes = bytes.min(link.in_flight);
        if bytes == 0 {
            return;
        }
        link.in_flight -= bytes;
        link.sending_since = now;
        if !link.is_kin() {
            return;
        }
        self.part = bytes;
        self.credit = (self.credit + u64::from(bytes) / (self.foreign_share - 1)).min(MAX_CREDIT);
        self.handed -= u64::from(bytes);
        self.rate.moved(bytes, now);
        self.stalled -= usize::from(std::mem::take(&mut link.stalled));
        if link.in_flight == 0 {
            self.transfers -= 1;
        }
    }

    /// When a transfer counts as stalled unless something is sent before.
    pub(crate) fn stalls_at(&self, link: &Link) -> Time {
        if link.in_flight == 0 || link.stalled || !link.is_kin() {
            return Time::MAX;
        }
        // All of them share the uplink, and a driver that reports a range at
        // once shall not look stalled.
        let report = self.time_for(u64::from(link.in_flight.max(self.part)) * self.transfers as u64);
        link.sending_since + (3 * report).clamp(STALL.0, STALL.1)
    }

    /// Nothing went out for long: others begin beside it.
    pub(crate) fn stalls(&mut self, link: &mut Link) {
        if link.in_flight > 0 && !link.stalled {
            link.stalled = true;
            self.stalled += 1;
        }
    }

    pub(crate) fn gone(&mut self, link: &mut Link) {
        if !link.is_kin() {
            return;
        }
        self.queued -= link.queue.iter().map(|block| u64::from(block.length)).sum::<u64>();
        if link.in_flight > 0 {
            self.handed -= u64::from(link.in_flight);
            self.transfers -= 1;
            self.stalled -= usize::from(link.stalled);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use wire::peer::PeerId;

    use super::*;
    use crate::io::{Peer, Side, Speaks};
    use crate::peer::Kind;

    const PIECE: u32 = 256 << 10;

    fn at(millis: u64) -> Time {
        Time::from(Duration::from_secs(100) + Duration::from_millis(millis))
    }

    fn piece(piece: u32) -> Block {
        Block { piece, offset: 0, length: PIECE }
    }

    fn block(piece: u32, index: u32) -> Block {
        Block { piece, offset: index * BLOCK_BYTES, length: BLOCK_BYTES }
    }

    fn uplink(most: usize) -> Uplink {
        Uplink::new(&Policy::default(), most)
    }

    fn links(kinds: &[Kind]) -> Links {
        let mut links = Links::default();
        for (number, kind) in kinds.iter().enumerate() {
            let address = "10.0.0.1:1".parse().unwrap();
            let id = PeerId([number as u8; 20]);
            let peer = Peer(number as u32);
            let mut link = Link::new(peer, id, address, Side::Inbound, Speaks::default(), 4, at(0));
            link.kind = *kind;
            links.insert(link);
        }
        links
    }

    fn next(uplink: &mut Uplink, links: &mut Links, now: Time) -> Option<(usize, u32)> {
        uplink.next(links, 0, now).map(|(at, block)| (at, block.piece))
    }

    #[test]
    fn so_many_kin_are_served_side_by_side_in_the_order_of_requests() {
        let mut uplink = uplink(2);
        let mut links = links(&[Kind::Kin; 3]);
        assert!(uplink.wants_offer(&links, 0));
        for (millis, at_link) in [(0, 1), (1, 0), (2, 2)] {
            uplink.requested(&mut links[at_link], piece(at_link as u32), at(millis));
        }
        assert!(!uplink.wants_offer(&links, 0));
        assert_eq!(next(&mut uplink, &mut links, at(2)), Some((1, 1)), "who asked first");
        assert_eq!(next(&mut uplink, &mut links, at(2)), Some((0, 0)));
        assert_eq!(next(&mut uplink, &mut links, at(2)), None);
        uplink.sent(&mut links[1], PIECE, at(4));
        assert_eq!(next(&mut uplink, &mut links, at(4)), Some((2, 2)));
        uplink.sent(&mut links[0], PIECE, at(5));
        uplink.sent(&mut links[2], PIECE, at(6));
        assert_eq!((uplink.backlog(), uplink.transfers), (0, 0));
    }

    #[test]
    fn a_connection_is_kept_busy_until_nothing_is_asked_there() {
        let mut uplink = uplink(1);
        let mut links = links(&[Kind::Kin, Kind::Kin]);
        uplink.requested(&mut links[0], piece(0), at(0));
        uplink.requested(&mut links[0], piece(1), at(0));
        uplink.requested(&mut links[1], piece(2), at(0));
        assert_eq!(next(&mut uplink, &mut links, at(0)), Some((0, 0)));
        assert_eq!(next(&mut uplink, &mut links, at(0)), None);
        uplink.sent(&mut links[0], PIECE - AHEAD_BYTES as u32, at(2));
        assert_eq!(next(&mut uplink, &mut links, at(2)), Some((0, 1)), "shortly before the end");
    }

    #[test]
    fn a_long_piece_is_sent_to_its_end_before_others_are_served() {
        let mut uplink = uplink(1);
        let mut links = links(&[Kind::Kin, Kind::Kin]);
        for part in [block(0, 0), block(0, 1), block(1, 0)] {
            uplink.requested(&mut links[1], part, at(0));
        }
        uplink.requested(&mut links[0], piece(2), at(1));
        let mut served = Vec::new();
        while let Some((at_link, piece)) = next(&mut uplink, &mut links, at(2)) {
            served.push((at_link, piece));
            uplink.sent(
                &mut links[at_link],
                if at_link == 1 { BLOCK_BYTES } else { PIECE },
                at(2 + served.len() as u64),
            );
        }
        assert_eq!(served, [(1, 0), (1, 0), (0, 2), (1, 1)]);
    }

    #[test]
    fn what_another_rack_waits_for_has_places_of_its_own() {
        let mut uplink = uplink(1);
        let mut links = links(&[Kind::Kin; 4]);
        (links[2].rack, links[3].rack) = (7, 7);
        for link in 0..4 {
            uplink.requested(&mut links[link], piece(link as u32), at(link as u64));
        }
        let served: Vec<usize> =
            std::iter::from_fn(|| next(&mut uplink, &mut links, at(9))).map(|(at, _)| at).collect();
        assert_eq!(served, [2, 3]);
    }

    #[test]
    fn a_stalled_transfer_lets_others_by_until_it_goes_on() {
        let mut uplink = uplink(1);
        let mut links = links(&[Kind::Kin, Kind::Kin]);
        uplink.requested(&mut links[0], piece(0), at(0));
        uplink.requested(&mut links[1], piece(1), at(0));
        next(&mut uplink, &mut links, at(0)).unwrap();
        assert_eq!(uplink.stalls_at(&links[0]), at(0) + STALL.0);
        uplink.stalls(&mut links[0]);
        assert_eq!(next(&mut uplink, &mut links, at(250)), Some((1, 1)));
        uplink.sent(&mut links[0], BLOCK_BYTES, at(260));
        assert_eq!((uplink.transfers, uplink.stalled), (2, 0));
        uplink.gone(&mut links[0]);
        assert_eq!((uplink.transfers, uplink.backlog()), (1, u64::from(PIECE)));
    }

    #[test]
    fn foreign_clients_take_turns_and_a_share_beside_kin() {
        let mut uplink = uplink(8);
        let mut links = links(&[Kind::Foreign, Kind::Foreign, Kind::Kin]);
        for index in 0..20 {
            uplink.requested(&mut links[0], block(0, index), at(0));
            uplink.requested(&mut links[1], block(1, index), at(0));
        }
        let alone: Vec<usize> = std::iter::from_fn(|| next(&mut uplink, &mut links, at(0))).map(|(at, _)| at).collect();
        assert_eq!(alone, [0, 1, 0, 1, 0, 1, 0, 1], "four blocks each");
        uplink.requested(&mut links[2], piece(2), at(0));
        assert_eq!(next(&mut uplink, &mut links, at(0)), Some((2, 2)));
        uplink.sent(&mut links[0], BLOCK_BYTES, at(1));
        assert_eq!(next(&mut uplink, &mut links, at(1)), None, "kin come first");
        uplink.sent(&mut links[2], 3 * BLOCK_BYTES, at(1));
        assert_eq!(next(&mut uplink, &mut links, at(1)), Some((0, 0)), "one block in four");
        assert_eq!(next(&mut uplink, &mut links, at(1)), None);
    }

    #[test]
    fn a_cancel_takes_back_all_that_waits_within_it() {
        let mut uplink = uplink(8);
        let mut links = links(&[Kind::Kin]);
        for index in 0..3 {
            uplink.requested(&mut links[0], block(1, index), at(0));
        }
        let range = Block { length: 2 * BLOCK_BYTES, ..block(1, 1) };
        assert_eq!(uplink.cancelled(&mut links[0], range), [block(1, 1), block(1, 2)]);
        assert_eq!(uplink.queued, u64::from(BLOCK_BYTES));
        assert_eq!(uplink.cancelled(&mut links[0], range), []);
    }

    #[test]
    fn the_lead_follows_rate_and_latency() {
        let mut uplink = uplink(1);
        assert_eq!(uplink.lead(), 64 << 10);
        uplink.rate.begins(at(0));
        (1..=100).for_each(|step| uplink.rate.moved(1_000_000, at(step * 4)));
        (0..100).for_each(|_| uplink.answered(Duration::from_millis(10)));
        let lead = uplink.lead();
        assert!((4_900_000..5_100_000).contains(&lead), "{lead}");
    }
}
