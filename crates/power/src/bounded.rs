//! The deadline around every operation of every driver.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{BootDevice, Error, NextBoot, Outcome, PowerDriver, Result, State};

pub(crate) struct Bounded {
    inner: Box<dyn PowerDriver>,
    address: String,
    limit: Duration,
}

impl Bounded {
    pub(crate) fn new(inner: Box<dyn PowerDriver>, address: &str, limit: Duration) -> Bounded {
        Bounded { inner, address: address.to_owned(), limit }
    }

    async fn within<T>(&self, operation: &'static str, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Deadline { operation, address: self.address.clone(), limit: self.limit }),
        }
    }
}

impl PowerDriver for Bounded {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(self.within("state", self.inner.state()))
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.within("on", self.inner.on()))
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.within("off", self.inner.off()))
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.within("cycle", self.inner.cycle()))
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.within("boot_next", self.inner.boot_next(device)))
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(self.within("next_boot", self.inner.next_boot()))
    }
}
