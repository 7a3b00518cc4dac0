//! `fake:NAME` is a machine in this process's memory: for trials, tests and demonstrations of failures.
//!
//! What goes wrong is said in the address and counted per machine, so it is the same in every run:
//! `latency_ms=N` every call takes that long; `hang=N` the first N calls never answer; `fail=N` the N calls after those
//! fail; `lie=on,off,boot` these operations say "done" and do nothing; `lie=state` says "on" whatever is so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{Address, BootDevice, Driver, Error, Outcome, PowerDriver, Result, State};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "fake",
    help: "a machine in memory, with faults on demand: latency_ms=N hang=N fail=N lie=on,off,boot,state",
    example: "fake:node1?latency_ms=50&fail=2",
    limit: Duration::from_secs(10),
    parse,
};

/// What a fake machine looks like from outside of its driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Whether it has power.
    pub on: bool,
    /// What the next start boots from, if it was chosen.
    pub next_boot: Option<BootDevice>,
    /// What the latest start booted from.
    pub booted_from: Option<BootDevice>,
    /// How often it was started.
    pub starts: u64,
    /// How many calls it has had, failed ones included.
    pub calls: u64,
}

/// The fake machine called `name`, if any driver ever touched it.
pub fn machine(name: &str) -> Option<Machine> {
    table().get(name).cloned()
}

fn table() -> MutexGuard<'static, BTreeMap<String, Machine>> {
    static TABLE: OnceLock<Mutex<BTreeMap<String, Machine>>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

struct Fake {
    name: String,
    latency: Duration,
    hang: u64,
    fail: u64,
    lies: Lies,
}

#[derive(Default)]
struct Lies {
    on: bool,
    off: bool,
    boot: bool,
    state: bool,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let name = address.place().to_owned();
    if name.is_empty() {
        return Err(address.wrong("a fake machine needs a name"));
    }
    let mut lies = Lies::default();
    for lie in address.take("lie").iter().flat_map(|list| list.split(',')) {
        match lie {
            "on" => lies.on = true,
            "off" => lies.off = true,
            "boot" => lies.boot = true,
            "state" => lies.state = true,
            other => return Err(address.wrong(format!("`lie={other}` is none of on, off, boot, state"))),
        }
    }
    Ok(Box::new(Fake {
        name,
        latency: Duration::from_millis(address.number("latency_ms", 0..=600_000)?.unwrap_or(0)),
        hang: address.number("hang", 0..=u64::MAX)?.unwrap_or(0),
        fail: address.number("fail", 0..=u64::MAX)?.unwrap_or(0),
        lies,
    }))
}

impl Fake {
    /// Counts the call, then does what the rules say before `act` may touch the machine.
    async fn call<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> Result<T> {
        let call = {
            let mut table = table();
            let machine = table.entry(self.name.clone()).or_default();
            machine.calls += 1;
            machine.calls
        };
        tokio::time::sleep(self.latency).await;
        if call <= self.hang {
            std::future::pending::<()>().await;
        }
        if call <= self.hang.saturating_add(self.fail) {
            return Err(Error::transient(
                &format!("fake machine {}", self.name),
                format!("call {call} fails, as its address asks"),
            ));
        }
        Ok(act(table().entry(self.name.clone()).or_default()))
    }
}

impl Machine {
    fn start(&mut self) {
        self.on = true;
        self.starts += 1;
        self.booted_from = Some(self.next_boot.take().unwrap_or(BootDevice::Disk));
    }
}

impl PowerDriver for Fake {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(self.call(|machine| if machine.on || self.lies.state { State::On } else { State::Off }))
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.call(|machine| {
            if !machine.on && !self.lies.on {
                machine.start();
            }
            Outcome::Done
        }))
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.call(|machine| {
            machine.on &= self.lies.off;
            Outcome::Done
        }))
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.call(|machine| {
            if !self.lies.on && !self.lies.off {
                machine.start();
            }
            Outcome::Done
        }))
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.call(move |machine| {
            if !self.lies.boot {
                machine.next_boot = Some(device);
            }
            Outcome::Done
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::{Advice, open};

    #[tokio::test]
    async fn a_network_boot_is_for_one_start_only() {
        let driver = open("fake:one-start").unwrap();
        driver.boot_next(BootDevice::Network).await.unwrap();
        driver.on().await.unwrap();
        assert_eq!(machine("one-start").unwrap().booted_from, Some(BootDevice::Network));
        driver.cycle().await.unwrap();
        assert_eq!(machine("one-start").unwrap().booted_from, Some(BootDevice::Disk));
    }

    #[tokio::test]
    async fn it_fails_as_often_as_asked_and_then_works() {
        let driver = open("fake:fails?fail=2").unwrap();
        for _ in 0..2 {
            assert_eq!(driver.on().await.unwrap_err().advice(), Advice::Retry);
        }
        driver.on().await.unwrap();
        assert_eq!(
            machine("fails").unwrap(),
            Machine { on: true, starts: 1, calls: 3, booted_from: Some(BootDevice::Disk), next_boot: None }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_call_ends_at_its_deadline() {
        let driver = open("fake:hangs?hang=1&limit_seconds=3").unwrap();
        let error = driver.state().await.unwrap_err();
        assert!(matches!(error, Error::Deadline { operation: "state", .. }), "{error}");
        assert_eq!(driver.state().await.unwrap(), State::Off);
    }

    #[tokio::test]
    async fn it_lies_as_asked() {
        let driver = open("fake:liar?lie=on,boot").unwrap();
        driver.boot_next(BootDevice::Network).await.unwrap();
        assert_eq!(driver.on().await.unwrap(), Outcome::Done);
        assert_eq!(driver.state().await.unwrap(), State::Off);
        assert_eq!(machine("liar").unwrap().next_boot, None);
        let other = open("fake:liar2?lie=state").unwrap();
        assert_eq!(other.state().await.unwrap(), State::On);
    }
}
