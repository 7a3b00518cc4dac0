//! `fake:NAME` is a machine in this process's memory: for trials, tests and demonstrations of failures.
//!
//! What goes wrong is said in the address and counted per machine, so it is the same in every run. [`Rules`] and
//! [`Machine`] are pure: time and the number of the call are arguments, so a simulator can run ten thousand of them.
//!
//! | rule | what happens |
//! |---|---|
//! | `latency_ms=N` | every call takes that long |
//! | `hang=N` | the first N calls never answer |
//! | `fail=N` | the N calls after those fail |
//! | `loss=N` | N per cent of the calls get no answer, chosen by the machine's name and the number of the call |
//! | `drop=N` | every N-th call fails because the controller dropped the session |
//! | `late_ms=N` | a switched machine reports its new state that much later |
//! | `lie=on,off,boot` | these operations say "done" and do nothing |
//! | `lie=state` | it says "on" whatever is so |
//! | `lie=order` | it reports the network boot that it was told, and boots from its disk |
//! | `login=wrong` | the password is wrong |
//! | `lockout=N` | the account is locked after N wrong logins, for everybody |
//! | `boot=kernel` | it takes our kernel from the driver, as a virtual machine does, and no network boot |
//! | `readback=yes` | the driver reads back what it did, as the real ones do, and so finds out some of the lies |

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::gate::{Budget, Gate};
use crate::secret::Secret;
use crate::{Address, BootDevice, Driver, Error, Kernel, NextBoot, Outcome, PowerDriver, Result, State, settle};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "fake",
    help: "a machine in memory, with faults on demand: latency_ms=N hang=N fail=N loss=PERCENT drop=N late_ms=N \
           lie=on,off,boot,state,order login=wrong lockout=N readback=yes|no boot=network|kernel login_attempts=1..5 \
           login_window_seconds=1..86400",
    example: "fake:node1?latency_ms=50&fail=2",
    limit: Duration::from_secs(10),
    controller: |address| address.place().to_owned(),
    at_once: 1,
    network_boot: true,
    by_hand: false,
    parse,
};

/// How long a driver that reads back waits for the state.
const SETTLE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// What goes wrong with a machine's controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Every call takes that long.
    pub latency: Duration,
    /// The first calls that never answer.
    pub hang: u64,
    /// The calls after those that fail.
    pub fail: u64,
    /// Per cent of the calls that get no answer, 0 to 100.
    pub loss: u64,
    /// Every so many calls the session is dropped; 0 is never.
    pub drop: u64,
    /// How much later a switched machine reports its new state.
    pub late: Duration,
    /// Operations that say "done" and do nothing, and reports that are not true.
    pub lies: Lies,
    /// Whether the password is wrong.
    pub wrong_login: bool,
    /// Wrong logins until the account is locked; 0 is never.
    pub lockout: u32,
}

/// What a controller lies about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lies {
    /// "On" does nothing.
    pub on: bool,
    /// "Off" does nothing.
    pub off: bool,
    /// The boot order is not kept.
    pub boot: bool,
    /// It always reports "on".
    pub state: bool,
    /// It reports the boot order that it was told, and boots from the disk.
    pub order: bool,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is answered after the latency.
    Answered,
    /// It is never answered.
    Silent,
    /// It fails after the latency, and may work later; the sentence says why.
    Fails(&'static str),
    /// The login is refused.
    WrongLogin,
    /// The account is locked.
    Locked,
}

/// What is asked of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Power on.
    On,
    /// Power off.
    Off,
    /// Off and on.
    Cycle,
    /// The device of the next start.
    BootNext(BootDevice),
}

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
    /// Logins that were refused.
    pub wrong_logins: u32,
    /// Whether its account is locked.
    pub locked: bool,
    /// What it was handed last in place of a network boot.
    pub kernel: Option<Kernel>,
    /// The state that it reports until that moment, on the caller's clock.
    reports: Option<(bool, Duration)>,
}

impl Machine {
    /// Counts a call and decides what becomes of it. `name` makes the losses of two machines differ.
    pub fn call(&mut self, name: &str, rules: &Rules) -> Fate {
        self.calls += 1;
        let call = self.calls;
        if call <= rules.hang || mix(name, call) % 100 < rules.loss {
            return Fate::Silent;
        }
        if self.locked {
            return Fate::Locked;
        }
        if rules.wrong_login {
            self.wrong_logins += 1;
            self.locked = rules.lockout > 0 && self.wrong_logins >= rules.lockout;
            return Fate::WrongLogin;
        }
        if call <= rules.hang.saturating_add(rules.fail) {
            return Fate::Fails("the call fails, as its address asks");
        }
        if rules.drop > 0 && call.is_multiple_of(rules.drop) {
            return Fate::Fails("the controller dropped the session, as its address asks");
        }
        Fate::Answered
    }

    /// Does what is asked, as honestly as the rules let it. `now` is any clock that does not go back.
    pub fn act(&mut self, rules: &Rules, ask: Ask, now: Duration) {
        let (was, lies) = (self.on, rules.lies);
        match ask {
            Ask::On if !self.on && !lies.on => self.start(lies),
            Ask::Off => self.on &= lies.off,
            Ask::Cycle if !lies.on && !lies.off => self.start(lies),
            Ask::BootNext(device) if !lies.boot => self.next_boot = Some(device),
            Ask::On | Ask::Cycle | Ask::BootNext(_) => {}
        }
        if was != self.on && !rules.late.is_zero() {
            self.reports = Some((was, now + rules.late));
        }
    }

    /// What it reports of its power.
    pub fn state(&self, rules: &Rules, now: Duration) -> State {
        let on = match self.reports {
            Some((before, until)) if now < until => before,
            _ => self.on,
        };
        if on || rules.lies.state { State::On } else { State::Off }
    }

    fn start(&mut self, lies: Lies) {
        self.on = true;
        self.starts += 1;
        let ordered = self.next_boot.take().unwrap_or(BootDevice::Disk);
        self.booted_from = Some(if lies.order { BootDevice::Disk } else { ordered });
    }
}

/// A number that depends on all bits of both and on nothing else (SplitMix64 over FNV-1a).
pub(crate) fn mix(name: &str, call: u64) -> u64 {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut z = seed.wrapping_add(call.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The fake machine called `name`, if any driver ever touched it.
pub fn machine(name: &str) -> Option<Machine> {
    table().get(name).cloned()
}

/// Forgets the fake machine called `name`, as a made one that is given back.
pub(crate) fn forget(name: &str) {
    table().remove(name);
}

fn table() -> MutexGuard<'static, BTreeMap<String, Machine>> {
    static TABLE: OnceLock<Mutex<BTreeMap<String, Machine>>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

struct Fake {
    name: String,
    rules: Rules,
    readback: bool,
    hands_kernel: bool,
    budget: Budget,
    born: Instant,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let name = address.place().to_owned();
    if name.is_empty() {
        return Err(address.wrong("a fake machine needs a name"));
    }
    let budget = Budget::take(address)?;
    let readback = address.flag("readback")?;
    let hands_kernel = address.word("boot", &[("network", false), ("kernel", true)])?.unwrap_or(false);
    Ok(Box::new(Fake { name, rules: Rules::take(address)?, readback, hands_kernel, budget, born: epoch() }))
}

/// One clock for all drivers, because each action opens its own.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

impl Rules {
    /// Takes the rules out of an address.
    ///
    /// # Errors
    /// When a rule's value is wrong.
    pub fn take(address: &mut Address) -> Result<Rules> {
        let mut lies = Lies::default();
        for lie in address.take("lie").iter().flat_map(|list| list.split(',')) {
            match lie {
                "on" => lies.on = true,
                "off" => lies.off = true,
                "boot" => lies.boot = true,
                "state" => lies.state = true,
                "order" => lies.order = true,
                other => return Err(address.wrong(format!("`lie={other}` is none of on, off, boot, state, order"))),
            }
        }
        Ok(Rules {
            latency: Duration::from_millis(address.number("latency_ms", 0..=600_000)?.unwrap_or(0)),
            hang: address.number("hang", 0..=u64::MAX)?.unwrap_or(0),
            fail: address.number("fail", 0..=u64::MAX)?.unwrap_or(0),
            loss: address.number("loss", 0..=100)?.unwrap_or(0),
            drop: address.number("drop", 0..=u64::MAX)?.unwrap_or(0),
            late: Duration::from_millis(address.number("late_ms", 0..=600_000)?.unwrap_or(0)),
            lies,
            wrong_login: address.word("login", &[("right", false), ("wrong", true)])?.unwrap_or(false),
            lockout: address.number("lockout", 0..=1_000)?.unwrap_or(0),
        })
    }
}

impl Fake {
    fn target(&self) -> String {
        format!("fake machine {}", self.name)
    }

    /// Counts the call, then does what the rules say before `act` may touch the machine.
    async fn call<T>(&self, act: impl FnOnce(&mut Machine, Duration) -> T) -> Result<T> {
        let gate = Gate::of(&format!("fake {}", self.name));
        let secret = Secret::new(if self.rules.wrong_login { "wrong" } else { "right" });
        gate.may_log_in(&self.target(), &secret, self.budget)?;
        let fate = table().entry(self.name.clone()).or_default().call(&self.name, &self.rules);
        tokio::time::sleep(self.rules.latency).await;
        match fate {
            Fate::Answered => {}
            Fate::Silent => std::future::pending::<()>().await,
            Fate::Fails(why) => return Err(Error::transient(&self.target(), why)),
            Fate::WrongLogin => {
                gate.login_refused(&secret);
                return Err(Error::refused(&self.target(), "it refuses the password, as its address asks"));
            }
            Fate::Locked => {
                return Err(Error::refused(&self.target(), "its account is locked after too many wrong passwords"));
            }
        }
        let now = self.born.elapsed();
        Ok(act(table().entry(self.name.clone()).or_default(), now))
    }

    async fn state_now(&self) -> Result<State> {
        self.call(|machine, now| machine.state(&self.rules, now)).await
    }

    /// One command, and what it should have come to.
    async fn command(&self, ask: Ask, wanted: Option<State>) -> Result<Outcome> {
        self.call(|machine, now| machine.act(&self.rules, ask, now)).await?;
        let Some(wanted) = wanted.filter(|_| self.readback) else { return Ok(Outcome::Done) };
        let asked = || async { Ok((self.state_now().await? == wanted).then_some(())) };
        match settle::until(SETTLE, POLL, asked).await? {
            Some(()) => Ok(Outcome::Done),
            None => Err(Error::transient(
                &self.target(),
                format!("it accepted the command, but does not report `{wanted}`"),
            )),
        }
    }

    async fn order(&self, device: BootDevice) -> Result<Outcome> {
        self.command(Ask::BootNext(device), None).await?;
        if self.readback && self.told().await? != NextBoot::Once(device) {
            return Err(Error::transient(&self.target(), "it accepted the boot order, but does not report it"));
        }
        Ok(Outcome::Done)
    }

    async fn told(&self) -> Result<NextBoot> {
        self.call(|machine, _| machine.next_boot.map_or(NextBoot::Standing, NextBoot::Once)).await
    }
}

impl PowerDriver for Fake {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(self.state_now())
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.command(Ask::On, Some(State::On)))
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.command(Ask::Off, Some(State::Off)))
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.command(Ask::Cycle, Some(State::On)))
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.order(device))
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(self.told())
    }

    fn hands_kernel(&self) -> bool {
        self.hands_kernel
    }

    fn start_kernel<'a>(&'a self, kernel: &'a Kernel) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            self.call(|machine, _| machine.kernel = Some(kernel.clone())).await?;
            self.command(Ask::Cycle, Some(State::On)).await
        })
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
            Machine { on: true, starts: 1, calls: 3, booted_from: Some(BootDevice::Disk), ..Machine::default() }
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

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_reads_back_finds_out_the_lies_that_can_be_found_out() {
        for (rule, found) in [("on", true), ("boot", true), ("order", false)] {
            let driver = open(&format!("fake:found-{rule}?lie={rule}&readback=yes")).unwrap();
            let booted = driver.boot_next(BootDevice::Network).await;
            let on = driver.on().await;
            assert_eq!(booted.is_err() || on.is_err(), found, "{rule}");
        }
        assert_eq!(machine("found-order").unwrap().booted_from, Some(BootDevice::Disk));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_controller_is_waited_for_by_a_driver_that_reads_back() {
        let driver = open("fake:late?late_ms=2000").unwrap();
        driver.on().await.unwrap();
        assert_eq!(driver.state().await.unwrap(), State::Off);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(driver.state().await.unwrap(), State::On);
        let patient = open("fake:late?late_ms=2000&readback=yes").unwrap();
        patient.off().await.unwrap();
        assert_eq!(driver.state().await.unwrap(), State::Off);
    }

    #[tokio::test]
    async fn the_budget_keeps_an_account_from_being_locked() {
        for _ in 0..10 {
            let error = open("fake:guarded?login=wrong&lockout=3").unwrap().on().await.unwrap_err();
            assert_eq!(error.advice(), Advice::Refuse);
        }
        let guarded = machine("guarded").unwrap();
        assert_eq!((guarded.wrong_logins, guarded.locked), (1, false));
        open("fake:guarded").unwrap().on().await.unwrap();
    }

    #[test]
    fn an_account_without_a_budget_is_locked_for_everybody() {
        let (wrong, right) = (Rules { wrong_login: true, lockout: 3, ..Rules::default() }, Rules::default());
        let mut machine = Machine::default();
        for _ in 0..3 {
            assert_eq!(machine.call("m", &wrong), Fate::WrongLogin);
        }
        assert_eq!(machine.call("m", &right), Fate::Locked);
    }

    #[test]
    fn losses_are_as_many_as_said_and_the_same_in_every_run() {
        let rules = Rules { loss: 20, ..Rules::default() };
        let lost = |name: &str| {
            let mut machine = Machine::default();
            (0..1000).filter(|_| machine.call(name, &rules) == Fate::Silent).count()
        };
        assert!((150..250).contains(&lost("node1")), "{}", lost("node1"));
        assert_eq!(lost("node1"), lost("node1"));
        let dropping = Rules { drop: 3, ..Rules::default() };
        let mut machine = Machine::default();
        let fates: Vec<bool> = (0..6).map(|_| machine.call("m", &dropping) == Fate::Answered).collect();
        assert_eq!(fates, [true, true, false, true, true, false]);
    }
}
