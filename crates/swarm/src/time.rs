//! Moments as the engine keeps them: half the size of a `Duration`.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds since the driver's origin; good for five centuries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Time(u64);

impl Time {
    pub(crate) const ZERO: Time = Time(0);
    /// Never.
    pub(crate) const MAX: Time = Time(u64::MAX);

    pub(crate) fn duration(self) -> Duration {
        if self == Time::MAX { Duration::MAX } else { Duration::from_nanos(self.0) }
    }
}

impl From<Duration> for Time {
    fn from(since: Duration) -> Time {
        Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, wait: Duration) -> Time {
        Time(self.0.saturating_add(Time::from(wait).0))
    }
}

/// What lies between, or nothing.
impl Sub for Time {
    type Output = Duration;

    fn sub(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// How long so many bytes take at this rate, in bytes per second. A rate of 0
/// is unknown and takes no time.
pub(crate) fn time_for(bytes: u64, rate: u64) -> Duration {
    if rate == 0 {
        return Duration::ZERO;
    }
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How many bytes go through in this time.
pub(crate) fn bytes_in(time: Duration, rate: u64) -> u64 {
    let bytes = time.as_nanos() * u128::from(rate) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_neither_overflow_nor_go_negative() {
        assert_eq!(Time::MAX + Duration::from_secs(1), Time::MAX);
        assert_eq!(Time::ZERO - Time::from(Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(Time::from(Duration::MAX), Time::MAX);
        assert_eq!(Time::MAX.duration(), Duration::MAX);
    }

    #[test]
    fn rates_turn_bytes_into_time_and_back() {
        assert_eq!(time_for(500, 1000), Duration::from_millis(500));
        assert_eq!(bytes_in(Duration::from_millis(500), 1000), 500);
        assert_eq!(time_for(500, 0), Duration::ZERO);
    }
}
