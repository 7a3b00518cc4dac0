//! Our uplink: what is handed to the driver next, and when it is about to run
//! dry. Among our own kind one piece goes to one peer before the next begins;
//! a peer that takes less than the uplink gives has others served beside it.

use std::time::Duration;

use wire::peer::{BLOCK_BYTES, Block};

use crate::links::Links;
use crate::peer::Link;
use crate::policy::Policy;
use crate::rates::Rates;
use crate::time::{Time, bytes_in, time_for};

/// Transfers to slow peers beside the others. More would feed on themselves:
/// each makes others slow.
const MAX_SLOW: usize = 2;

/// What is handed to the driver before it is done with the last, at least.
const AHEAD_BYTES: u64 = 64 << 10;

/// And in time.
const AHEAD_TIME: Duration = Duration::from_millis(1);

/// Most that is promised ahead, however long answers take.
const MAX_LEAD_BYTES: u64 = 16 << 20;

/// A transfer by itself is judged after as much.
const JUDGED_BYTES: u64 = 96 << 10;
const JUDGED_TIME: Duration = Duration::from_millis(20);

/// Of so many transfers one is used to try more of them side by side than
/// fill the uplink as far as we know, and one to try fewer.
const TRIAL: u64 = 64;

/// Shortest and longest silence of a transfer after which others begin beside
/// it.
const STALL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A foreign client's claim on the uplink does not grow beyond this, in bytes.
const MAX_CREDIT: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Uplink {
    rates: Rates,
    /// From a suggestion to its answer.
    latency: Duration,
    /// Bytes requested by kin and not handed over; handed over and not sent,
    /// slow peers not counted; suggested and not answered.
    queued: u64,
    handed: u64,
    offered: u64,
    /// Kin being served, and how many of them are slow.
    transfers: usize,
    slow: usize,
    begun: u64,
    /// The transfer that has the uplink for itself.
    alone: Option<Alone>,
    /// Bytes of the last report.
    part: u32,
    /// What foreign clients may be sent beside kin, in bytes.
    credit: u64,
    served: u64,
    lead: u64,
    foreign_share: u64,
    foreign_limit: u32,
}

#[derive(Debug, Clone, Copy)]
struct Alone {
    since: Time,
    bytes: u64,
}

impl Uplink {
    pub(crate) fn new(policy: &Policy) -> Uplink {
        Uplink {
            rates: Rates::default(),
            latency: Duration::from_millis(1),
            queued: 0,
            handed: 0,
            offered: 0,
            transfers: 0,
            slow: 0,
            begun: 0,
            alone: None,
            part: 0,
            credit: 0,
            served: 0,
            lead: policy.lead_bytes,
            foreign_share: u64::from(policy.foreign_share.max(2)),
            foreign_limit: u32::try_from(policy.peer_uplink_blocks.max(1)).unwrap_or(u32::MAX) * BLOCK_BYTES,
        }
    }

    /// Bytes per second; 0 while unknown.
    pub(crate) fn rate(&self) -> u64 {
        self.rates.full()
    }

    /// How long this many bytes take; nothing while the rate is unknown.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        time_for(bytes, self.rate())
    }

    /// How long an answer to a suggestion may take.
    pub(crate) fn patience(&self) -> Duration {
        (self.latency * 8).clamp(Duration::from_millis(100), Duration::from_secs(1))
    }

    /// From a suggestion to its answer, as it usually is.
    pub(crate) fn latency(&self) -> Duration {
        self.latency
    }

    /// Bytes to send below which the next piece is offered.
    pub(crate) fn lead(&self) -> u64 {
        let product = 2 * bytes_in(self.latency, self.rate());
        product.max(self.lead).min(MAX_LEAD_BYTES).max(2 * u64::from(self.part))
    }

    /// The uplink is about to go idle.
    pub(crate) fn wants_offer(&self, links: &Links) -> bool {
        if self.queued + self.handed + self.offered < self.lead() {
            return true;
        }
        let target = self.target();
        let engaged = |link: &&Link| {
            link.is_kin() && !link.slow && (link.offer.is_some() || link.in_flight > 0 || !link.queue.is_empty())
        };
        target > 1 && links.iter().filter(engaged).count() < target
    }

    /// Transfers that shall run side by side.
    fn target(&self) -> usize {
        let filling = self.rates.filling();
        match self.begun % TRIAL {
            3 => filling + 1,
            11 => (filling - 1).max(1),
            _ => filling,
        }
    }

    /// What is handed over before the last is sent.
    fn ahead(&self) -> u64 {
        AHEAD_BYTES.max(bytes_in(AHEAD_TIME, self.rate()))
    }

    pub(crate) fn offer(&mut self, bytes: u32) {
        self.offered += u64::from(bytes);
    }

    /// A suggestion was answered, or nobody waits for the answer any more.
    pub(crate) fn answered(&mut self, bytes: u32, took: Duration) {
        self.offered = self.offered.saturating_sub(bytes.into());
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

    /// Takes the next range to send out of its queue.
    pub(crate) fn next(&mut self, links: &mut Links, now: Time) -> Option<(usize, Block)> {
        let at = self.next_kin(links).or_else(|| self.next_foreign(links))?;
        let link = &mut links[at];
        let block = link.queue.pop_front()?;
        self.served += 1;
        link.served = self.served;
        if link.is_kin() {
            self.queued -= u64::from(block.length);
            if link.in_flight == 0 {
                self.begin(now);
            }
            if !link.slow {
                self.handed += u64::from(block.length);
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

    /// A transfer that goes on comes first; else the next begins if there is
    /// room, in the order of requests.
    fn next_kin(&self, links: &Links) -> Option<usize> {
        if self.queued == 0 {
            return None;
        }
        let waits = |link: &Link| link.is_kin() && !link.queue.is_empty();
        let ahead = self.ahead();
        let goes_on = |link: &Link| waits(link) && link.in_flight > 0 && u64::from(link.in_flight) <= ahead;
        if let Some(at) = links.iter().position(goes_on) {
            return Some(at);
        }
        let brisk = self.transfers - self.slow;
        let target = self.target();
        if brisk > target || (brisk == target && self.handed > ahead) {
            return None;
        }
        let next = links.iter().enumerate().filter(|(_, link)| waits(link) && link.in_flight == 0);
        next.min_by_key(|(_, link)| (link.sending_since, link.served)).map(|(at, _)| at)
    }

    /// Every unchoked foreign client in turn, block by block, with what kin
    /// leaves them.
    fn next_foreign(&self, links: &Links) -> Option<usize> {
        let kin_waits = self.queued > 0 || self.handed > 0;
        let can_take = |link: &Link| {
            !link.is_kin()
                && link.in_flight < self.foreign_limit
                && link.queue.front().is_some_and(|block| !kin_waits || u64::from(block.length) <= self.credit)
        };
        let takers = links.iter().enumerate().filter(|(_, link)| can_take(link));
        takers.min_by_key(|(_, link)| link.served).map(|(at, _)| at)
    }

    fn begin(&mut self, now: Time) {
        self.begun += 1;
        self.transfers += 1;
        self.transfers_changed(now);
    }

    fn transfers_changed(&mut self, now: Time) {
        // With a slow peer among them rates tell nothing about the uplink.
        let level = if self.slow == 0 { self.transfers } else { 0 };
        self.rates.shared_by(level, now);
        self.alone = (self.transfers == self.slow + 1).then_some(Alone { since: now, bytes: 0 });
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
        if !link.slow {
            self.handed -= u64::from(bytes);
            self.rates.moved(bytes, now);
            self.judge(link, bytes, now);
        }
        if link.in_flight == 0 {
            self.end(link, now);
        }
    }

    fn end(&mut self, link: &mut Link, now: Time) {
        self.transfers -= 1;
        self.slow -= usize::from(link.slow);
        link.slow = false;
        self.transfers_changed(now);
    }

    /// A peer that has the uplink for itself and takes clearly less than
    /// others do is slow, until this piece is sent.
    fn judge(&mut self, link: &mut Link, bytes: u32, now: Time) {
        let Some(alone) = &mut self.alone else { return };
        alone.bytes += u64::from(bytes);
        let took = now - alone.since;
        if alone.bytes >= JUDGED_BYTES && took >= JUDGED_TIME {
            let usual = bytes_in(took, self.rates.full());
            let is_slow = alone.bytes * 3 < usual;
            *alone = Alone { since: now, bytes: 0 };
            if is_slow {
                self.is_slow(link, now);
            }
        }
    }

    fn is_slow(&mut self, link: &mut Link, now: Time) {
        if self.slow < MAX_SLOW && link.in_flight > 0 && !link.slow {
            link.slow = true;
            self.slow += 1;
            self.handed -= u64::from(link.in_flight);
            self.transfers_changed(now);
        }
    }

    /// When a transfer counts as stalled unless something is sent before.
    pub(crate) fn stalls_at(&self, link: &Link) -> Time {
        if link.in_flight == 0 || link.slow || !link.is_kin() {
            return Time::MAX;
        }
        // A driver that reports a range at once shall not look stalled.
        let report = self.time_for(u64::from(link.in_flight.max(self.part)));
        link.sending_since + (3 * report).clamp(STALL.0, STALL.1)
    }

    pub(crate) fn stalled(&mut self, link: &mut Link, now: Time) {
        // If others stall already it has to wait.
        link.sending_since = now;
        self.is_slow(link, now);
    }

    pub(crate) fn gone(&mut self, link: &mut Link, now: Time) {
        if !link.is_kin() {
            return;
        }
        self.queued -= link.queue.iter().map(|block| u64::from(block.length)).sum::<u64>();
        if link.in_flight > 0 {
            if !link.slow {
                self.handed -= u64::from(link.in_flight);
            }
            self.end(link, now);
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
        uplink.next(links, now).map(|(at, block)| (at, block.piece))
    }

    #[test]
    fn kin_get_one_piece_after_the_other() {
        let mut uplink = Uplink::new(&Policy::default());
        let mut links = links(&[Kind::Kin, Kind::Kin]);
        assert!(uplink.wants_offer(&links));
        uplink.requested(&mut links[1], piece(1), at(0));
        uplink.requested(&mut links[0], piece(0), at(1));
        assert!(!uplink.wants_offer(&links));
        assert_eq!(next(&mut uplink, &mut links, at(1)), Some((1, 1)), "who asked first");
        assert_eq!(next(&mut uplink, &mut links, at(1)), None);
        uplink.sent(&mut links[1], PIECE - AHEAD_BYTES as u32, at(2));
        assert_eq!(next(&mut uplink, &mut links, at(2)), Some((0, 0)), "shortly before the end");
        uplink.sent(&mut links[1], AHEAD_BYTES as u32, at(3));
        uplink.sent(&mut links[0], PIECE, at(4));
        assert_eq!((uplink.handed, uplink.queued, uplink.transfers), (0, 0, 0));
    }

    #[test]
    fn beside_a_slow_receiver_others_are_served() {
        let mut uplink = Uplink::new(&Policy::default());
        let mut links = links(&[Kind::Kin, Kind::Kin]);
        let mut now = 0;
        let mut transfer = |uplink: &mut Uplink, links: &mut Links, parts: u32, millis: u64| {
            for _ in 0..parts {
                if links[0].in_flight == 0 {
                    uplink.requested(&mut links[0], piece(0), at(now));
                    next(uplink, links, at(now));
                }
                now += millis;
                uplink.sent(&mut links[0], BLOCK_BYTES, at(now));
            }
            at(now)
        };
        transfer(&mut uplink, &mut links, 160, 2);
        assert!((7_000_000..9_000_000).contains(&uplink.rate()), "{}", uplink.rate());
        let now = transfer(&mut uplink, &mut links, 8, 8);
        assert!(links[0].slow && uplink.wants_offer(&links));
        uplink.requested(&mut links[1], piece(1), now);
        assert_eq!(next(&mut uplink, &mut links, now), Some((1, 1)));
        uplink.gone(&mut links[0], now);
        assert_eq!((uplink.transfers, uplink.slow, uplink.handed), (1, 0, u64::from(PIECE)));
    }

    #[test]
    fn a_stalled_transfer_lets_others_by() {
        let mut uplink = Uplink::new(&Policy::default());
        let mut links = links(&[Kind::Kin, Kind::Kin]);
        uplink.requested(&mut links[0], piece(0), at(0));
        uplink.requested(&mut links[1], piece(1), at(0));
        next(&mut uplink, &mut links, at(0)).unwrap();
        assert_eq!(uplink.stalls_at(&links[0]), at(0) + STALL.0);
        uplink.stalled(&mut links[0], at(100));
        assert_eq!(next(&mut uplink, &mut links, at(100)), Some((1, 1)));
    }

    #[test]
    fn foreign_clients_take_turns_and_a_share_beside_kin() {
        let mut uplink = Uplink::new(&Policy::default());
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
        let mut uplink = Uplink::new(&Policy::default());
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
        let mut uplink = Uplink::new(&Policy::default());
        assert_eq!(uplink.lead(), 32 << 10);
        uplink.rates.shared_by(1, at(0));
        (1..=100).for_each(|step| uplink.rates.moved(1_000_000, at(step * 4)));
        for _ in 0..100 {
            uplink.offer(PIECE);
            uplink.answered(PIECE, Duration::from_millis(10));
        }
        let lead = uplink.lead();
        assert!((4_900_000..5_100_000).contains(&lead), "{lead}");
        assert_eq!(uplink.patience(), Duration::from_millis(100));
    }
}
