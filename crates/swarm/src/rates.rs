//! What a link of ours carries, by how many transfers share it. From this we
//! learn how many it takes to fill it.

use std::time::Duration;

use crate::time::Time;

/// Transfers side by side that are told apart.
const LEVELS: usize = 8;

/// A sample spans at least this much time and so many reports, so that the
/// bursts of socket buffers even out.
const SAMPLE_TIME: Duration = Duration::from_millis(20);
const SAMPLE_REPORTS: u16 = 4;

/// A sample may also be this long with few reports.
const LONG_SAMPLE: Duration = Duration::from_millis(100);

/// Bytes per second at one transfer, at two, and so on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    levels: [Level; LEVELS],
    /// How many transfers run, and since when that is counted.
    level: u8,
    since: Time,
}

/// So many transfers side by side: what is known and what is being sampled.
/// A sample goes on when the level comes again.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    rate: u32,
    reports: u16,
    bytes: u32,
    took: Duration,
}

impl Rates {
    /// From now on this many transfers share the link.
    pub(crate) fn shared_by(&mut self, transfers: usize, now: Time) {
        self.count(now);
        self.level = transfers.min(LEVELS) as u8;
    }

    /// Bytes went through.
    pub(crate) fn moved(&mut self, bytes: u32, now: Time) {
        self.count(now);
        if let Some(level) = self.running() {
            level.bytes = level.bytes.saturating_add(bytes);
            level.reports = level.reports.saturating_add(1);
            level.close();
        }
    }

    fn count(&mut self, now: Time) {
        let passed = now - self.since;
        self.since = now;
        if let Some(level) = self.running() {
            level.took += passed;
        }
    }

    fn running(&mut self) -> Option<&mut Level> {
        usize::from(self.level).checked_sub(1).map(|at| &mut self.levels[at])
    }

    /// How many transfers fill the link: one more would bring less than a
    /// quarter of a fair share.
    pub(crate) fn filling(&self) -> usize {
        let brings = |level: &usize| {
            let (with, without) = (u64::from(self.levels[*level].rate), u64::from(self.levels[*level - 1].rate));
            with * 2 * *level as u64 > without * (2 * *level as u64 + 1)
        };
        1 + (1..LEVELS).take_while(brings).count()
    }

    /// Bytes per second of the filled link; 0 while unknown.
    pub(crate) fn full(&self) -> u64 {
        let known = self.levels[self.filling() - 1].rate;
        u64::from(if known == 0 { self.levels.iter().map(|level| level.rate).max().unwrap_or(0) } else { known })
    }
}

impl Level {
    fn close(&mut self) {
        let enough = self.took >= SAMPLE_TIME && (self.reports >= SAMPLE_REPORTS || self.took >= LONG_SAMPLE);
        if !enough {
            return;
        }
        let sample = u128::from(self.bytes) * 1_000_000_000 / self.took.as_nanos().max(1);
        let sample = u32::try_from(sample).unwrap_or(u32::MAX);
        self.rate = if self.rate == 0 { sample } else { (u64::from(self.rate) * 3 / 4 + u64::from(sample) / 4) as u32 };
        (self.reports, self.bytes, self.took) = (0, 0, Duration::ZERO);
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
