//! One shared word that ends everything: the attempt is over.

use std::sync::Arc;

use tokio::sync::watch;

/// Set once, with the sentence that says why; all work looks at it. Clones
/// share it.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<Option<String>>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Stop {
    /// Says stop. The first reason stays.
    pub fn set(&self, reason: &str) {
        self.0.send_if_modified(|old| {
            let first = old.is_none();
            if first {
                *old = Some(reason.to_owned());
            }
            first
        });
    }

    /// Why to stop, if so.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Whether to stop; cheap.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until somebody says stop, and gives the reason.
    pub async fn wait(&self) -> String {
        let mut receiver = self.0.subscribe();
        let found = receiver.wait_for(Option::is_some).await.map(|reason| reason.clone());
        // The sender lives as long as `self`, so there is a reason.
        found.ok().flatten().unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_stays_and_wakes_whoever_waits() {
        let stop = Stop::default();
        let waiting = tokio::spawn({
            let stop = stop.clone();
            async move { stop.wait().await }
        });
        assert!(!stop.is_set());
        stop.set("attempt 1 is over");
        stop.set("something later");
        assert_eq!(waiting.await.unwrap(), "attempt 1 is over");
        assert_eq!(stop.reason().unwrap(), "attempt 1 is over");
    }
}
