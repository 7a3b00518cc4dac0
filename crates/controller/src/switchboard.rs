//! Power drivers at work: each when its turn at its controller has come, read back, and counted.
//!
//! What several machines share, a chassis' controller or a cloud, takes only so many operations at a time; the others
//! wait here, outside of the driver, so that its deadline counts its own work only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fleet::node::Power;
use fleet::plan::Driver;
use power::{About, Advice, Outcome, PowerDriver, State};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Power drivers at work at the same time. Each may be a process of its own.
const JOBS: usize = 128;
/// How long a switched machine may take to report it, after the driver itself was content.
const SETTLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);
/// Between two tries of an operation.
const PAUSE: Duration = Duration::from_secs(1);
/// Controllers remembered before those that nobody waits for are forgotten.
const REMEMBERED: usize = 1_024;

/// What an operator may ask of a machine's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Say whether it has power.
    Status,
    /// Give it power.
    On,
    /// Take its power.
    Off,
    /// Take it and give it again.
    Cycle,
    /// Start it anew.
    Reset,
}

impl Operation {
    /// The word for commands, metrics and timelines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::On => "on",
            Self::Off => "off",
            Self::Cycle => "cycle",
            Self::Reset => "reset",
        }
    }

    fn leads_to(self) -> Option<State> {
        match self {
            Self::Status => None,
            Self::Off => Some(State::Off),
            Self::On | Self::Cycle | Self::Reset => Some(State::On),
        }
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is done and read back, as far as somebody can say.
    Done,
    /// A person has to do it.
    Asked,
    /// It failed.
    Failed,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// The machine's power afterwards.
    pub power: Power,
    /// What was done or why not, as a sentence.
    pub text: String,
    /// How often it was tried.
    pub tries: u32,
}

/// How many operations ended how: driver, operation, outcome.
pub type Counts = BTreeMap<(&'static str, &'static str, &'static str), u64>;

/// The turns at all controllers, and what was counted.
#[derive(Debug)]
pub struct Switchboard {
    all: Arc<Semaphore>,
    controllers: Mutex<BTreeMap<String, Weak<Semaphore>>>,
    counts: Mutex<Counts>,
    at_work: AtomicI64,
}

impl Default for Switchboard {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(JOBS)),
            controllers: Mutex::default(),
            counts: Mutex::default(),
            at_work: AtomicI64::new(0),
        }
    }
}

/// A turn at a controller; ends when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    board: &'a Switchboard,
    _controller: Option<OwnedSemaphorePermit>,
    _one_of_all: Option<OwnedSemaphorePermit>,
    // Keeps the controller's turns known while one is taken.
    _turns: Arc<Semaphore>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.board.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Switchboard {
    /// Waits for a turn at this controller. It ends in time, because everybody before has a deadline.
    pub async fn turn(&self, about: &About) -> Turn<'_> {
        let turns = self.turns(about);
        // Neither is ever closed. First the controller: who waits for a slow one must not hold a place of all.
        let controller = Arc::clone(&turns).acquire_owned().await.ok();
        let one_of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        self.at_work.fetch_add(1, Ordering::Relaxed);
        Turn { board: self, _controller: controller, _one_of_all: one_of_all, _turns: turns }
    }

    fn turns(&self, about: &About) -> Arc<Semaphore> {
        let mut controllers = lock(&self.controllers);
        if let Some(turns) = controllers.get(&about.controller).and_then(Weak::upgrade) {
            return turns;
        }
        if controllers.len() >= REMEMBERED {
            controllers.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(about.at_once.max(1)));
        controllers.insert(about.controller.clone(), Arc::downgrade(&turns));
        turns
    }

    /// Does one operation of an operator when its turn comes, tries it again where that may help, and reads back what it
    /// came to.
    pub async fn perform(&self, address: &str, operation: Operation, attempts: u32) -> Report {
        let opened = power::about(address).and_then(|about| Ok((about, power::open(address)?)));
        let (about, driver) = match opened {
            Ok(opened) => opened,
            Err(error) => return Report::failed(error.to_string(), 0),
        };
        let _turn = self.turn(&about).await;
        let mut tries = 1;
        loop {
            let report = match once(driver.as_ref(), operation, tries).await {
                Err(error) if error.advice() == Advice::Retry && tries < attempts => {
                    tracing::debug!(address, %error, tries, "a power operation is tried again");
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => Report::failed(error.to_string(), tries),
                Ok(report) => report,
            };
            self.count(about.scheme, operation.as_str(), &report.end);
            return report;
        }
    }

    /// Counts how an operation ended.
    pub fn count(&self, driver: &'static str, operation: &'static str, end: &End) {
        let outcome = match end {
            End::Done => "done",
            End::Asked => "asked",
            End::Failed => "failed",
        };
        *lock(&self.counts).entry((driver, operation, outcome)).or_default() += 1;
    }

    /// How many operations ended how.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Operations under way.
    #[must_use]
    pub fn at_work(&self) -> i64 {
        self.at_work.load(Ordering::Relaxed)
    }
}

impl Report {
    fn failed(text: String, tries: u32) -> Self {
        Self { end: End::Failed, power: Power::Unknown, text, tries }
    }
}

async fn once(driver: &dyn PowerDriver, operation: Operation, tries: u32) -> power::Result<Report> {
    let outcome = match operation {
        Operation::Status => {
            let power = power_of(driver.state().await?);
            return Ok(Report { end: End::Done, power, text: power.to_string(), tries });
        }
        Operation::On => driver.on().await?,
        Operation::Off => driver.off().await?,
        Operation::Cycle => driver.cycle().await?,
        Operation::Reset => driver.reset().await?,
    };
    if let Outcome::AskOperator(text) = outcome {
        return Ok(Report { end: End::Asked, power: Power::Unknown, text, tries });
    }
    let Some(wanted) = operation.leads_to() else { return Ok(Report::failed(String::new(), tries)) };
    let told = read_back(driver, wanted).await?;
    let word = operation.as_str();
    let (end, text) = if told == wanted {
        (End::Done, format!("{word} is done; it reports {told}"))
    } else if told == State::Unknown {
        (End::Done, format!("{word} is done as far as its driver can say; its power cannot be read"))
    } else {
        (
            End::Failed,
            format!(
                "its driver says that {word} is done, but {} s later it still reports {told}; look at the machine",
                SETTLE.as_secs()
            ),
        )
    };
    Ok(Report { end, power: power_of(told), text, tries })
}

/// Asks until the machine is as wanted, or nobody can say, and answers what it reported last.
async fn read_back(driver: &dyn PowerDriver, wanted: State) -> power::Result<State> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let told = driver.state().await?;
        if told == wanted || (told == State::Unknown && Instant::now() >= deadline) || Instant::now() >= deadline {
            return Ok(told);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The driver of a power address, as the plan wants to know it.
#[must_use]
pub fn driver(address: &str) -> Driver {
    match power::about(address) {
        Ok(about) => Driver {
            limit_seconds: u32::try_from(about.limit.as_secs()).unwrap_or(u32::MAX),
            network_boot: about.network_boot,
            by_hand: about.by_hand,
        },
        // The job itself will say what is wrong with it.
        Err(_) => Driver { limit_seconds: 0, network_boot: true, by_hand: false },
    }
}

fn power_of(state: State) -> Power {
    match state {
        State::On => Power::On,
        State::Off => Power::Off,
        State::Unknown => Power::Unknown,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_asked_is_done_and_read_back() {
        let board = Switchboard::default();
        let on = board.perform("fake:board-1", Operation::On, 1).await;
        assert_eq!((on.end, on.power), (End::Done, Power::On));
        let status = board.perform("fake:board-1", Operation::Status, 1).await;
        assert_eq!((status.text.as_str(), status.tries), ("on", 1));
        let asked = board.perform("manual:rack 3", Operation::Off, 1).await;
        assert!(asked.end == End::Asked && asked.text.contains("rack 3"), "{asked:?}");
        assert_eq!(board.counts().get(&("fake", "on", "done")), Some(&1));
        assert_eq!(board.at_work(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lie_is_found_out_and_a_passing_trouble_is_tried_again() {
        let board = Switchboard::default();
        let lie = board.perform("fake:board-liar?lie=off", Operation::On, 1).await;
        assert_eq!(lie.end, End::Done);
        let lie = board.perform("fake:board-liar?lie=off", Operation::Off, 1).await;
        assert!(lie.end == End::Failed && lie.power == Power::On && lie.text.contains("still reports on"), "{lie:?}");
        let late = board.perform("fake:board-late?late_ms=3000", Operation::On, 1).await;
        assert_eq!((late.end, late.power), (End::Done, Power::On));
        let again = board.perform("fake:board-fails?fail=1", Operation::Cycle, 2).await;
        assert_eq!((again.end, again.tries), (End::Done, 2));
        let spent = board.perform("fake:board-fails-more?fail=2", Operation::Cycle, 2).await;
        assert_eq!((spent.end, spent.tries), (End::Failed, 2));
        let unknown = board.perform("pigeon:x", Operation::On, 3).await;
        assert!(unknown.end == End::Failed && unknown.tries == 0, "{unknown:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_controller_takes_one_at_a_time_and_others_do_not_wait_for_it() {
        let board = Switchboard::default();
        let (mine, other) = (power::about("fake:chassis").unwrap(), power::about("fake:other").unwrap());
        let first = board.turn(&mine).await;
        let second = tokio::time::timeout(Duration::from_secs(60), board.turn(&mine)).await;
        assert!(second.is_err(), "two at one controller");
        let elsewhere = board.turn(&other).await;
        assert_eq!(board.at_work(), 2);
        drop(first);
        let second = board.turn(&mine).await;
        drop((second, elsewhere));
        assert_eq!(board.at_work(), 0);
    }
}
