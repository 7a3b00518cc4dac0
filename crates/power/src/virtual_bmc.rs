//! A management controller that speaks Redfish, before any machine that a [`crate::PowerDriver`] can switch.
//!
//! It is stricter than most emulators, so that what works with it has a chance with iron: it insists on `If-Match`, limits
//! sessions, locks the account after wrong passwords, refuses unknown and read-only properties, refuses to switch on what
//! is on, runs resets as tasks, and keeps a one-time boot order for one start. And it can be told to misbehave ([`Rules`]):
//! answer late, be busy, drop sessions, lie about power or boot order.
//!
//! Before a `qemu:` machine it makes a whole server out of it, for tests and for trying Rackswarm without iron.

mod answer;
mod serve;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{Address, PowerDriver, Result, State};

/// How strict the controller is, and what goes wrong with it. [`Rules::default`] is strict and honest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Sessions at a time; another one is refused with 503.
    pub sessions: usize,
    /// Wrong passwords until the account is locked; 0 is never.
    pub lockout: u32,
    /// How long it stays locked.
    pub lock: Duration,
    /// Whether the password may come with every request.
    pub basic: bool,
    /// What is expected of `If-Match`.
    pub etag: Etag,
    /// How long a reset's task takes; zero is a reset without a task.
    pub task: Duration,
    /// Every request takes that long.
    pub latency: Duration,
    /// How much later a switched machine reports its new state.
    pub late: Duration,
    /// How long after a start the boot order cannot be changed.
    pub post: Duration,
    /// So many requests are answered with 503 first.
    pub busy: u32,
    /// A session is forgotten after so many requests; 0 is never.
    pub drop: u32,
    /// Per cent of the requests that are never answered, 0 to 100; which ones is the same in every run.
    pub loss: u64,
    /// What becomes of a one-time boot order.
    pub once: Once,
    /// It says that it switched, and does not.
    pub lie_power: bool,
    /// It says "On" whatever is so.
    pub lie_state: bool,
    /// The boot order is changed in a settings resource.
    pub settings: bool,
    /// The allowed resets stand in an action info resource.
    pub action_info: bool,
    /// `Vendor` of the service root.
    pub vendor: String,
}

/// What is expected of `If-Match` at a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Etag {
    /// Nothing, and there is no `ETag`.
    None,
    /// It may be left out, and must fit when it is there.
    Optional,
    /// It must be there and fit.
    Required,
    /// It must be there and fit without the `W/` in front.
    Strong,
}

/// What becomes of a one-time boot order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// It is kept for one start.
    Kept,
    /// It becomes a lasting one.
    Continuous,
    /// It is accepted and not stored.
    Ignored,
    /// It is stored and shown, and the machine boots from its disk.
    Forgotten,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            sessions: 4,
            lockout: 3,
            lock: Duration::from_secs(300),
            basic: true,
            etag: Etag::Required,
            task: Duration::from_millis(200),
            latency: Duration::ZERO,
            late: Duration::ZERO,
            post: Duration::ZERO,
            busy: 0,
            drop: 0,
            loss: 0,
            once: Once::Kept,
            lie_power: false,
            lie_state: false,
            settings: false,
            action_info: false,
            vendor: "Rackswarm".to_owned(),
        }
    }
}

impl Rules {
    /// Reads rules as an address writes its options: `sessions=2&lockout=3&lie=power`.
    ///
    /// The words: `sessions=1..64 lockout=0..100 lock_seconds=0..86400 basic=yes|no etag=none|optional|required|strong
    /// task_ms=N latency_ms=N late_ms=N post_ms=N busy=N drop=N loss=PERCENT once=kept|continuous|ignored|forgotten lie=power,state
    /// settings=yes|no action_info=yes|no vendor=WORD`.
    ///
    /// # Errors
    /// Names the word that is wrong.
    pub fn parse(text: &str) -> Result<Rules> {
        let mut words = Address::parse(&format!("bmc:?{text}"))?;
        words.set_example("sessions=2&lockout=3&lie=power");
        let otherwise = Rules::default();
        let mut millis = |name: &str, otherwise: Duration| {
            Ok::<_, crate::Error>(words.number(name, 0..=600_000)?.map_or(otherwise, Duration::from_millis))
        };
        let (task, latency) = (millis("task_ms", otherwise.task)?, millis("latency_ms", otherwise.latency)?);
        let (late, post) = (millis("late_ms", otherwise.late)?, millis("post_ms", otherwise.post)?);
        let lies = words.take("lie").unwrap_or_default();
        if let Some(other) = lies.split(',').find(|lie| !matches!(*lie, "" | "power" | "state")) {
            return Err(words.wrong(format!("`lie={other}` is none of power, state")));
        }
        let etags = [
            ("none", Etag::None),
            ("optional", Etag::Optional),
            ("required", Etag::Required),
            ("strong", Etag::Strong),
        ];
        let onces = [
            ("kept", Once::Kept),
            ("continuous", Once::Continuous),
            ("ignored", Once::Ignored),
            ("forgotten", Once::Forgotten),
        ];
        let yes = [("yes", true), ("no", false)];
        let rules = Rules {
            sessions: words.number("sessions", 1..=64)?.unwrap_or(otherwise.sessions),
            lockout: words.number("lockout", 0..=100)?.unwrap_or(otherwise.lockout),
            lock: words.number("lock_seconds", 0..=86_400)?.map_or(otherwise.lock, Duration::from_secs),
            basic: words.word("basic", &yes)?.unwrap_or(otherwise.basic),
            etag: words.word("etag", &etags)?.unwrap_or(otherwise.etag),
            task,
            latency,
            late,
            post,
            busy: words.number("busy", 0..=1_000_000)?.unwrap_or(otherwise.busy),
            drop: words.number("drop", 0..=1_000_000)?.unwrap_or(otherwise.drop),
            loss: words.number("loss", 0..=100)?.unwrap_or(otherwise.loss),
            once: words.word("once", &onces)?.unwrap_or(otherwise.once),
            lie_power: lies.split(',').any(|lie| lie == "power"),
            lie_state: lies.split(',').any(|lie| lie == "state"),
            settings: words.flag("settings")?,
            action_info: words.flag("action_info")?,
            vendor: words.take("vendor").unwrap_or(otherwise.vendor),
        };
        words.finish()?;
        Ok(rules)
    }
}

/// What the controller has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests.
    pub requests: u64,
    /// Sessions that are open.
    pub sessions: usize,
    /// Most sessions that were open at a time.
    pub most_sessions: usize,
    /// Sessions that were ever opened.
    pub logins: u64,
    /// Logins that were refused.
    pub refused: u64,
    /// Whether the account is locked.
    pub locked: bool,
    /// Resets that were carried out.
    pub resets: u64,
    /// Changes that were refused because of `If-Match`.
    pub conflicts: u64,
}

/// What a system tells about the machine behind it, by which a booting machine is recognised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// MAC addresses of its network cards, lower case.
    pub macs: Vec<String>,
    /// SMBIOS system UUID.
    pub uuid: Option<String>,
}

impl Identity {
    /// An identity that follows from a name, so that it is the same in every run.
    pub fn of(name: &str) -> Identity {
        let (mac, uuid) = crate::set::identity(name);
        Identity { macs: vec![mac], uuid: Some(uuid) }
    }
}

/// A system before it is served: its id, the machine that it switches, and what it tells about it.
pub type Front = (String, Box<dyn PowerDriver>, Identity);

/// A controller that is served until it is dropped.
pub struct VirtualBmc {
    service: Arc<Service>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl VirtualBmc {
    /// Serves a controller on `listener` with one account, before these systems: an id and the driver behind each.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(
        listener: TcpListener,
        user: &str,
        password: &str,
        rules: Rules,
        systems: Vec<(String, Box<dyn PowerDriver>)>,
    ) -> std::io::Result<VirtualBmc> {
        let address = listener.local_addr()?;
        let known = |(id, machine): (String, Box<dyn PowerDriver>)| {
            let identity = Identity::of(&format!("{address} {id}"));
            (id, machine, identity)
        };
        VirtualBmc::start_known(listener, user, password, rules, systems.into_iter().map(known).collect())
    }

    /// As [`VirtualBmc::start`], for machines whose identity is known.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start_known(
        listener: TcpListener,
        user: &str,
        password: &str,
        rules: Rules,
        systems: Vec<Front>,
    ) -> std::io::Result<VirtualBmc> {
        let address = listener.local_addr()?;
        let system = |(id, machine, identity)| {
            (id, System { machine, identity, boot: Mutex::default(), turn: tokio::sync::Mutex::default() })
        };
        let systems = systems.into_iter().map(system).collect();
        let service = Arc::new(Service {
            login: (user.to_owned(), password.to_owned()),
            busy: Mutex::new(rules.busy),
            rules,
            systems,
            book: Mutex::default(),
        });
        let app = serve::router(Arc::clone(&service));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the virtual controller ended");
            }
        });
        Ok(VirtualBmc { service, address, server })
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen.
    pub fn seen(&self) -> Seen {
        let book = self.service.book();
        Seen { sessions: book.sessions.len(), locked: self.service.is_locked(&book), ..book.seen }
    }

    /// Ends every session, as a restart of the controller does.
    pub fn forget_sessions(&self) {
        self.service.book().sessions.clear();
    }
}

impl Drop for VirtualBmc {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    login: (String, String),
    rules: Rules,
    systems: BTreeMap<String, System>,
    book: Mutex<Book>,
    busy: Mutex<u32>,
}

#[derive(Default)]
struct Book {
    seen: Seen,
    /// Token, id and the requests it was used for.
    sessions: BTreeMap<String, (u64, u32)>,
    wrong: u32,
    locked_at: Option<Instant>,
    tasks: BTreeMap<u64, Option<std::result::Result<(), String>>>,
    numbers: u64,
}

struct System {
    machine: Box<dyn PowerDriver>,
    identity: Identity,
    boot: Mutex<Boot>,
    turn: tokio::sync::Mutex<()>,
}

/// The boot order and what is to be shown of the power.
struct Boot {
    enabled: String,
    target: String,
    mode: String,
    revision: u64,
    started: Option<Instant>,
    shown_before: Option<(State, Instant)>,
}

impl Default for Boot {
    fn default() -> Self {
        Boot {
            enabled: "Disabled".into(),
            target: "None".into(),
            mode: "UEFI".into(),
            revision: 1,
            started: None,
            shown_before: None,
        }
    }
}

impl Service {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_locked(&self, book: &Book) -> bool {
        book.locked_at.is_some_and(|at| at.elapsed() < self.rules.lock)
    }
}

impl System {
    fn boot(&self) -> MutexGuard<'_, Boot> {
        self.boot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_wrong_ones_named() {
        assert_eq!(Rules::parse("").unwrap(), Rules::default());
        let rules = Rules::parse("sessions=1&lie=power,state&once=forgotten&latency_ms=20&basic=no").unwrap();
        assert_eq!((rules.sessions, rules.lie_power, rules.lie_state, rules.once), (1, true, true, Once::Forgotten));
        assert_eq!((rules.latency, rules.basic), (Duration::from_millis(20), false));
        for (text, part) in
            [("lie=moon", "moon"), ("once=twice", "twice"), ("speed=9", "speed"), ("sessions=0", "sessions")]
        {
            assert!(Rules::parse(text).unwrap_err().to_string().contains(part));
        }
    }
}
