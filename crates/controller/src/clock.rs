//! The controller's clock: it never goes backwards.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fleet::ids::Millis;

/// Tells moments that only grow, also over restarts.
///
/// The wall clock is read once; from then on the monotonic clock counts, so a
/// clock that is set back or forth while nodes are under way neither freezes
/// deadlines nor lets all of them pass at once.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Millis,
    began: Instant,
}

impl Clock {
    /// A clock that begins now, or at `newest`, the latest moment that is on
    /// record, if the wall clock is behind it.
    #[must_use]
    pub fn start(newest: Millis) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let wall = Millis(u64::try_from(wall).unwrap_or(u64::MAX));
        if newest.since(wall) > 60_000 {
            tracing::warn!(
                behind_seconds = newest.since(wall) / 1000,
                "this machine's clock is behind what is on record; going on from there, set the clock and restart"
            );
        }
        Self { start: wall.max(newest), began: Instant::now() }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.start.plus(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_was_set_back_does_not_turn_time_back() {
        let future = Millis(Clock::start(Millis(0)).now().0 + 3_600_000);
        assert!(Clock::start(future).now() >= future);
        assert!(Clock::start(Millis(0)).now() < future);
    }
}
