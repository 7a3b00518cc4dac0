//! How fast a link of ours is, as it shows while it is busy.

use std::time::Duration;

use crate::time::Time;

/// A sample spans at least this much time, so that the bursts of socket
/// buffers even out.
const SAMPLE: Duration = Duration::from_millis(50);

/// Nobody sends nothing for so long on a busy link: it was idle.
const PAUSE: Duration = Duration::from_secs(1);

/// A shorter gap lies between two transfers of a busy link.
const GAP: Duration = Duration::from_millis(2);

/// Bytes per second, in steps of a sample.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    known: u64,
    bytes: u64,
    since: Time,
    last: Time,
}

impl Rate {
    /// The link was idle and is busy from now on.
    pub(crate) fn begins(&mut self, now: Time) {
        if now - self.last > GAP || self.since == Time::ZERO {
            (self.bytes, self.since) = (0, now);
        }
    }

    /// Bytes went through.
    pub(crate) fn moved(&mut self, bytes: u32, now: Time) {
        self.bytes += u64::from(bytes);
        self.last = now;
        let took = now - self.since;
        if took < SAMPLE {
            return;
        }
        let sample = u128::from(self.bytes) * 1_000_000_000 / took.as_nanos();
        let sample = u64::try_from(sample).unwrap_or(u64::MAX);
        if took < PAUSE {
            self.known = if self.known == 0 { sample } else { self.known / 4 * 3 + sample / 4 };
        }
        (self.bytes, self.since) = (0, now);
    }

    /// Bytes per second; 0 while unknown.
    pub(crate) fn known(&self) -> u64 {
        self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_do_not_count() {
        let at = |millis| Time::from(Duration::from_millis(millis));
        let mut rate = Rate::default();
        rate.begins(at(0));
        (1..=50).for_each(|step| rate.moved(40_000, at(step * 4)));
        assert!((9_900_000..10_100_000).contains(&rate.known()), "{}", rate.known());
        rate.moved(40_000, at(5000));
        rate.begins(at(9000));
        (1..=50).for_each(|step| rate.moved(40_000, at(9000 + step * 4)));
        assert!((9_900_000..10_100_000).contains(&rate.known()), "{}", rate.known());
    }
}
