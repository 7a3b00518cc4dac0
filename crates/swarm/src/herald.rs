//! When to tell the tracker.

use std::collections::VecDeque;
use std::time::Duration;

use wire::announce::Event;

use crate::policy::Policy;

/// The state of our conversation with the tracker.
#[derive(Debug)]
pub(crate) struct Herald {
    /// Events not yet heard by the tracker, in order.
    events: VecDeque<Event>,
    /// The announce whose answer is awaited.
    pending: Option<Option<Event>>,
    last: Duration,
    next: Duration,
    interval: Duration,
    /// A tracker of our own kind told us whom to meet.
    guided: bool,
    failures: u32,
    retry: Duration,
    hungry: Duration,
}

impl Herald {
    pub(crate) fn new(policy: &Policy) -> Herald {
        Herald {
            events: VecDeque::from([Event::Started]),
            pending: None,
            last: Duration::ZERO,
            next: Duration::ZERO,
            interval: policy.announce_interval,
            guided: false,
            failures: 0,
            retry: policy.announce_retry,
            hungry: policy.announce_hungry,
        }
    }

    /// What to announce now: `Some(None)` is a regular announce.
    pub(crate) fn due(&mut self, now: Duration, is_hungry: bool) -> Option<Option<Event>> {
        self.deadline(is_hungry).filter(|due| *due <= now)?;
        self.last = now;
        self.pending = Some(self.events.front().copied());
        self.pending
    }

    /// When an announce is due; `None` while an answer is awaited, which the
    /// driver always gives. Hunger shortens the interval, not a back-off.
    pub(crate) fn deadline(&self, is_hungry: bool) -> Option<Duration> {
        let hungry = if is_hungry && self.failures == 0 { self.last + self.hungry } else { Duration::MAX };
        self.pending.is_none().then_some(self.next.min(hungry))
    }

    /// The download became complete.
    pub(crate) fn complete(&mut self, now: Duration) {
        self.events.push_back(Event::Completed);
        if self.failures == 0 {
            self.next = now;
        }
    }

    pub(crate) fn answered(&mut self, now: Duration, interval: Duration) {
        let Some(told) = self.pending.take() else { return };
        self.failures = 0;
        self.interval = interval.max(Duration::from_secs(1));
        if told.is_some() {
            self.events.pop_front();
        }
        self.next = if self.events.is_empty() { now + self.interval } else { now };
    }

    /// The answer came from a tracker of our own kind.
    pub(crate) fn guided(&mut self) {
        self.guided = true;
    }

    /// Such a tracker answers us.
    pub(crate) fn is_guided(&self) -> bool {
        self.guided && self.failures == 0
    }

    pub(crate) fn failed(&mut self, now: Duration) {
        if self.pending.take().is_none() {
            return;
        }
        let wait = self.retry.saturating_mul(1 << self.failures.min(16));
        self.next = now + wait.min(self.interval);
        self.failures += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn started_then_regular_then_completed() {
        let mut herald = Herald::new(&Policy::default());
        assert_eq!(herald.due(at(0), false), Some(Some(Event::Started)));
        assert_eq!(herald.due(at(500), false), None, "an answer is awaited");
        herald.answered(at(1), at(30));
        assert_eq!((herald.due(at(30), false), herald.due(at(31), false)), (None, Some(None)));
        herald.complete(at(32));
        herald.answered(at(33), at(30));
        assert_eq!(herald.due(at(33), false), Some(Some(Event::Completed)), "the answer was to the regular one");
    }

    #[test]
    fn failures_back_off_and_lose_no_event() {
        let mut herald = Herald::new(&Policy::default());
        let mut now = at(0);
        for wait in [2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(herald.due(now, true), Some(Some(Event::Started)));
            herald.failed(now);
            assert_eq!(herald.deadline(true), Some(now + at(wait)));
            now += at(wait);
        }
        herald.complete(now);
        assert_eq!(herald.due(now, false), Some(Some(Event::Started)));
        herald.answered(now, at(60));
        assert_eq!(herald.due(now, false), Some(Some(Event::Completed)));
    }

    #[test]
    fn hunger_shortens_the_interval() {
        let mut herald = Herald::new(&Policy::default());
        herald.due(at(0), false);
        herald.answered(at(0), at(1800));
        assert_eq!((herald.deadline(false), herald.deadline(true)), (Some(at(1800)), Some(at(10))));
    }
}
