//! The deadline around every operation of every driver and every set.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{BootDevice, Error, Kernel, NextBoot, Outcome, PowerDriver, Result, State};

/// How long an operation may take, and whose it is.
pub(crate) struct Deadline {
    /// For the sentence, without a password.
    pub(crate) address: String,
    pub(crate) limit: Duration,
}

impl Deadline {
    pub(crate) async fn within<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Deadline { operation, address: self.address.clone(), limit: self.limit }),
        }
    }
}

pub(crate) struct Bounded {
    pub(crate) inner: Box<dyn PowerDriver>,
    pub(crate) deadline: Deadline,
}

impl PowerDriver for Bounded {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(self.deadline.within("state", self.inner.state()))
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.deadline.within("on", self.inner.on()))
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.deadline.within("off", self.inner.off()))
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.deadline.within("cycle", self.inner.cycle()))
    }

    fn reset(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.deadline.within("reset", self.inner.reset()))
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.deadline.within("boot_next", self.inner.boot_next(device)))
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(self.deadline.within("next_boot", self.inner.next_boot()))
    }

    fn hands_kernel(&self) -> bool {
        self.inner.hands_kernel()
    }

    fn start_kernel<'a>(&'a self, kernel: &'a Kernel) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.deadline.within("start_kernel", self.inner.start_kernel(kernel)))
    }
}
