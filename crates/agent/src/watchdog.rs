//! An overall guard: something must go forward, or the machine starts again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Counts how long nothing went forward. Clones share the count.
#[derive(Debug, Clone)]
pub struct Watchdog {
    started: Instant,
    fed_at_milliseconds: Arc<AtomicU64>,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self { started: Instant::now(), fed_at_milliseconds: Arc::default() }
    }
}

impl Watchdog {
    /// Something went forward.
    pub fn feed(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.fed_at_milliseconds.store(now, Ordering::Relaxed);
    }

    /// How long nothing went forward.
    #[must_use]
    pub fn hungry(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.fed_at_milliseconds.load(Ordering::Relaxed)))
    }

    /// Calls `bite` once if nothing goes forward for `limit`. Its thread is not
    /// the runtime's, so a blocked runtime is noticed too.
    pub fn guard(&self, limit: Duration, bite: impl FnOnce() + Send + 'static) {
        let dog = self.clone();
        thread::spawn(move || {
            while let Some(left) = limit.checked_sub(dog.hungry()).filter(|left| !left.is_zero()) {
                thread::sleep(left);
            }
            bite();
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn it_bites_only_when_nobody_feeds_it() {
        let (sender, receiver) = mpsc::channel();
        let dog = Watchdog::default();
        dog.guard(Duration::from_secs(3600), || unreachable!("an hour has not passed"));
        dog.guard(Duration::from_millis(50), move || sender.send(()).unwrap());
        receiver.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(dog.hungry() >= Duration::from_millis(50));
        dog.feed();
        assert!(dog.hungry() < Duration::from_secs(30));
    }
}
