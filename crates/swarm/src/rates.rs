//! What a link of ours carries, by how many transfers share it. From this we
//! learn how many it takes to fill it.

use std::time::Duration;

use crate::time::Time;

/// Transfers side by side that are told apart.
const LEVELS: usize = 8;

/// A sample spans at least this much time and this many reports, so that the
/// bursts of socket buffers even out.
const SAMPLE_TIME: Duration = Duration::from_millis(20);
const SAMPLE_REPORTS: u32 = 8;

/// Bytes per second at one transfer, at two, and so on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    by_level: [u32; LEVELS],
    /// The running sample: with how many transfers, since when, what came.
    level: u8,
    since: Time,
    bytes: u64,
    reports: u32,
}

impl Rates {
    /// From now on this many transfers share the link. A sample that was too
    /// short to count is lost.
    pub(crate) fn shared_by(&mut self, transfers: usize, now: Time) {
        let level = transfers.min(LEVELS) as u8;
        if level != self.level {
            self.close(now);
            (self.level, self.since, self.bytes, self.reports) = (level, now, 0, 0);
        }
    }

    /// Bytes went through.
    pub(crate) fn moved(&mut self, bytes: u32, now: Time) {
        self.bytes += u64::from(bytes);
        self.reports += 1;
        if self.reports >= SAMPLE_REPORTS && now - self.since >= SAMPLE_TIME {
            self.close(now);
            (self.since, self.bytes, self.reports) = (now, 0, 0);
        }
    }

    fn close(&mut self, now: Time) {
        let took = now - self.since;
        // One report of a whole piece is a sample too, if it took its time.
        let enough = took >= SAMPLE_TIME && (self.reports >= SAMPLE_REPORTS || took >= 5 * SAMPLE_TIME);
        let (Some(level), true) = (usize::from(self.level).checked_sub(1), enough && self.bytes > 0) else { return };
        let sample = u128::from(self.bytes) * 1_000_000_000 / took.as_nanos().max(1);
        let sample = u32::try_from(sample).unwrap_or(u32::MAX);
        let known = &mut self.by_level[level];
        *known = if *known == 0 { sample } else { (u64::from(*known) * 3 / 4 + u64::from(sample) / 4) as u32 };
    }

    /// How many transfers fill the link: one more would bring less than a
    /// quarter of a fair share.
    pub(crate) fn filling(&self) -> usize {
        let brings = |level: &usize| {
            let (with, without) = (u64::from(self.by_level[*level]), u64::from(self.by_level[*level - 1]));
            with * 4 * *level as u64 > without * (4 * *level as u64 + 1)
        };
        1 + (1..LEVELS).take_while(brings).count()
    }

    /// Bytes per second of the filled link; 0 while unknown.
    pub(crate) fn full(&self) -> u64 {
        let known = self.by_level[self.filling() - 1];
        u64::from(if known == 0 { self.by_level.iter().copied().max().unwrap_or(0) } else { known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rates: &mut Rates, at: &mut Time, transfers: usize, rate: u64) {
        rates.shared_by(transfers, *at);
        for _ in 0..400 {
            *at = *at + Duration::from_millis(4);
            rates.moved((rate * 4 / 1000) as u32, *at);
        }
    }

    #[test]
    fn a_link_that_one_transfer_fills_needs_no_other() {
        let (mut rates, mut at) = (Rates::default(), Time::ZERO);
        assert_eq!((rates.filling(), rates.full()), (1, 0));
        for transfers in [1, 2, 1] {
            run(&mut rates, &mut at, transfers, 10_000_000);
        }
        assert_eq!(rates.filling(), 1);
        assert!((9_900_000..10_100_000).contains(&rates.full()), "{}", rates.full());
    }

    #[test]
    fn slow_receivers_need_several_side_by_side() {
        let (mut rates, mut at) = (Rates::default(), Time::ZERO);
        for transfers in [1, 2, 3, 4, 5] {
            run(&mut rates, &mut at, transfers, 1_000_000 * transfers.min(4) as u64);
        }
        assert_eq!(rates.filling(), 4);
        assert!(rates.full() > 3_900_000);
        for transfers in [2, 1] {
            run(&mut rates, &mut at, transfers, 4_000_000);
        }
        assert_eq!(rates.filling(), 1, "and fewer when they became faster");
    }
}
