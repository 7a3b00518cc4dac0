//! Moments as the engine keeps them: half the size of a `Duration`.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Of a second. Almost everything fits into 64 bits, and dividing more takes
/// many times as long; the rest is reckoned in 128.
const NANOS: u64 = 1_000_000_000;

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
        let seconds = since.as_secs().saturating_mul(NANOS);
        Time(seconds.saturating_add(since.subsec_nanos().into()))
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
    let nanos = match bytes.checked_mul(NANOS) {
        Some(bytes) => bytes / rate,
        None => u64::try_from(u128::from(bytes) * u128::from(NANOS) / u128::from(rate)).unwrap_or(u64::MAX),
    };
    Duration::from_nanos(nanos)
}

/// How many bytes go through in this time.
pub(crate) fn bytes_in(time: Duration, rate: u64) -> u64 {
    match Time::from(time).0.checked_mul(rate) {
        Some(bytes) => bytes / NANOS,
        None => u64::try_from(time.as_nanos() * u128::from(rate) / u128::from(NANOS)).unwrap_or(u64::MAX),
    }
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
        assert_eq!(time_for(u64::MAX, u64::MAX / 3), Duration::from_secs(3), "more than 64 bits in between");
        assert_eq!(bytes_in(Duration::from_secs(30), u64::MAX / 30), u64::MAX / 30 * 30);
        assert_eq!(bytes_in(Duration::MAX, 1 << 20), u64::MAX);
    }
}
