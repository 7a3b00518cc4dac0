//! Does what follows from the state, again and again. Events only wake it and say
//! what they touched; what is to be done always comes from the state
//! ([`fleet::agenda`]), so a controller that was restarted in the middle of a job
//! does not notice the difference.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fleet::agenda::{Agenda, Touched};
use fleet::event::Event;
use fleet::ids::{Attempt, Millis, NodeName};
use fleet::life::Stage;
use fleet::node::{Node, Power};
use fleet::plan::Action;
use futures_util::{StreamExt, stream};
use power::{About, BootDevice, Outcome, PowerDriver, State};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::keeper::Keeper;
use crate::kernels::Kernels;
use crate::switchboard::{End, Switchboard, driver};
use crate::token;

/// Between two plans, so that a storm of events costs few of them.
const PACE: Duration = Duration::from_millis(50);
/// Passed deadlines that are told at the same time; the keeper puts them into one transaction.
const AT_ONCE: usize = 256;
/// How often a machine is looked at that goes off by itself, and how long that may take when nothing else waits for it.
const LOOK: Duration = Duration::from_secs(1);
const LEAVE_LIMIT: Duration = Duration::from_secs(300);
/// Between two tries to switch it on again.
const PAUSE: Duration = Duration::from_secs(10);
/// A result that could not be stored is told again so many times, a second apart.
const TELL_TRIES: u32 = 30;

/// Plans and acts until `stop`; then waits for nothing, because whatever was
/// begun is planned again at the next start.
pub async fn run(keeper: Keeper, switchboard: Arc<Switchboard>, kernels: Kernels, stop: CancellationToken) {
    let mut at_work = AtWork::new(switchboard, kernels);
    at_work.resume(&keeper);
    let begun = Arc::clone(&at_work.begun);
    let mut agenda = Agenda::default();
    loop {
        let now = keeper.now();
        agenda.touch(keeper.take_touched());
        agenda.touch(at_work.take_ended());
        let next = keeper.read(|state| agenda.plan(state.snapshot(), keeper.policy(), &driver, now));
        // Together, so that a rack that lost its power costs few transactions.
        let told = stream::iter(next.overdue).for_each_concurrent(AT_ONCE, |event| tell_overdue(&keeper, event));
        told.await;
        for action in next.actions {
            at_work.begin(&keeper, action);
        }
        tokio::time::sleep(PACE).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = keeper.changed() => {}
            () = at_work.ended() => {}
            // A deadline counts from now on.
            () = begun.notified() => {}
            () = sleep_until(&keeper, next.wake_at) => {}
        }
    }
}

/// The agenda asks again for what comes to nothing.
async fn tell_overdue(keeper: &Keeper, event: Event) {
    if let Err(error) = keeper.tell(event).await {
        tracing::warn!(%error, "a passed deadline was not taken in");
    }
}

async fn sleep_until(keeper: &Keeper, moment: Option<Millis>) {
    match moment {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.since(keeper.now()))).await,
        None => std::future::pending().await,
    }
}

/// Actions that have begun and not ended, one for each node at most.
struct AtWork {
    jobs: JoinSet<()>,
    nodes: BTreeMap<NodeName, Attempt>,
    ids: HashMap<Id, NodeName>,
    /// Nodes whose actions have ended since the last plan.
    ended: Touched,
    switchboard: Arc<Switchboard>,
    kernels: Arc<Kernels>,
    /// Told when a job's turn has come.
    begun: Arc<Notify>,
}

impl AtWork {
    fn new(switchboard: Arc<Switchboard>, kernels: Kernels) -> Self {
        Self {
            jobs: JoinSet::new(),
            nodes: BTreeMap::new(),
            ids: HashMap::new(),
            ended: Touched::default(),
            switchboard,
            kernels: Arc::new(kernels),
            begun: Arc::default(),
        }
    }

    /// Begins an action unless the node has one. One for an older attempt must
    /// end first: two drivers at one switch would undo each other's work.
    fn begin(&mut self, keeper: &Keeper, action: Action) {
        let Action::NetworkBoot { node, attempt, power } = action;
        if self.nodes.contains_key(&node) {
            return;
        }
        let (keeper, switchboard, kernels) = (keeper.clone(), Arc::clone(&self.switchboard), Arc::clone(&self.kernels));
        let begun = Arc::clone(&self.begun);
        self.spawn(node.clone(), attempt, async move {
            let opened = power::about(&power).and_then(|about| Ok((about, power::open(&power)?)));
            let (about, driver) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    return tell(&keeper, Event::PowerFailed { node, attempt, reason: error.to_string() }).await;
                }
            };
            let turn = switchboard.turn(&about).await;
            if !wanted(&keeper, &node, attempt) {
                return;
            }
            tell(&keeper, Event::PowerBegun { node: node.clone(), attempt }).await;
            begun.notify_one();
            let (operation, event) = if driver.hands_kernel() {
                ("start_kernel", hand_kernel(&keeper, &kernels, node.clone(), attempt, driver.as_ref()).await)
            } else {
                ("network_boot", network_boot(&keeper, node.clone(), attempt, about.scheme, driver.as_ref()).await)
            };
            drop(turn);
            let Some(event) = event else { return };
            let done = !matches!(event, Event::PowerFailed { .. });
            switchboard.count(about.scheme, operation, &if done { End::Done } else { End::Failed });
            tell(&keeper, event).await;
            if done && driver.hands_kernel() {
                boot_disk_afterwards(&keeper, &switchboard, &about, &node, attempt, driver.as_ref()).await;
            }
        });
    }

    /// Watches over machines that were handed our kernel before this server started.
    fn resume(&mut self, keeper: &Keeper) {
        let under_way: Vec<_> = keeper.read(|state| {
            let nodes = state.snapshot().nodes.values();
            let nodes = nodes.filter(|node| node.stage.is_under_way() && node.stage != Stage::PoweringOn);
            nodes.map(|node| (node.name.clone(), node.attempt, node.power.clone())).collect()
        });
        for (node, attempt, power) in under_way {
            let Ok(about) = power::about(&power) else { continue };
            let Ok(driver) = power::open(&power) else { continue };
            if !driver.hands_kernel() {
                continue;
            }
            let (keeper, switchboard) = (keeper.clone(), Arc::clone(&self.switchboard));
            self.spawn(node.clone(), attempt, async move {
                boot_disk_afterwards(&keeper, &switchboard, &about, &node, attempt, driver.as_ref()).await;
            });
        }
    }

    fn spawn(&mut self, node: NodeName, attempt: Attempt, job: impl Future<Output = ()> + Send + 'static) {
        self.nodes.insert(node.clone(), attempt);
        let job = self.jobs.spawn(job);
        self.ids.insert(job.id(), node);
    }

    fn take_ended(&mut self) -> Touched {
        std::mem::take(&mut self.ended)
    }

    /// Returns when an action has ended; never, while there is none. The node is looked at again: it may want another one.
    async fn ended(&mut self) {
        let id = match self.jobs.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => crashed(&error),
        };
        if let Some(node) = self.ids.remove(&id) {
            self.nodes.remove(&node);
            self.ended.node(&node);
        }
    }
}

fn crashed(error: &JoinError) -> Id {
    tracing::error!(%error, "a power job crashed; this is a defect, please report it");
    error.id()
}

/// Boots a node from the network once. What comes of it is an event, or nothing
/// when nobody wants it any more.
async fn network_boot(
    keeper: &Keeper,
    node: NodeName,
    attempt: Attempt,
    scheme: &str,
    driver: &dyn PowerDriver,
) -> Option<Event> {
    tracing::info!(%node, %attempt, stage = Stage::PoweringOn.as_str(), "booting it from the network");
    let failed = |reason: String| Some(Event::PowerFailed { node: node.clone(), attempt, reason });
    let armed = match driver.boot_next(BootDevice::Network).await {
        Ok(outcome) => outcome,
        Err(error) => return failed(error.to_string()),
    };
    // An operator may have let it go, or it may have started by itself.
    if !wanted(keeper, &node, attempt) {
        return None;
    }
    let cycled = match driver.cycle().await {
        Ok(outcome) => outcome,
        Err(error) => return failed(error.to_string()),
    };
    let asked: Vec<String> = [armed, cycled]
        .into_iter()
        .filter_map(|outcome| match outcome {
            Outcome::Done => None,
            Outcome::AskOperator(sentence) => Some(sentence),
        })
        .collect();
    let text = if asked.is_empty() {
        format!("set to boot from the network once and switched on by its power driver ({scheme})")
    } else {
        format!("an operator is needed: {}", asked.join(" "))
    };
    Some(Event::PoweredOn { node, attempt, text })
}

/// Has a node's platform hand our kernel to it, in place of a network boot.
async fn hand_kernel(
    keeper: &Keeper,
    kernels: &Kernels,
    node: NodeName,
    attempt: Attempt,
    driver: &dyn PowerDriver,
) -> Option<Event> {
    tracing::info!(%node, %attempt, stage = Stage::PoweringOn.as_str(), "its platform hands it our kernel");
    let failed = |reason: String| Some(Event::PowerFailed { node: node.clone(), attempt, reason });
    let mac = keeper.read(|state| state.snapshot().nodes.get(&node).and_then(|node| node.macs.first().copied()));
    let Some(mac) = mac else {
        return failed(format!(
            "no network card of it is known, through which its agent would report; give it one and `rackswarm node set {node} --mac`"
        ));
    };
    if let Some(lack) = kernels.lack().await {
        return failed(lack);
    }
    let token = match token::mint() {
        Ok(token) => token,
        Err(error) => return failed(error.to_string()),
    };
    // Known before the machine runs, for its agent may be fast.
    let made = Event::BootTokenMade { node: node.clone(), attempt, token: token::hash(&token.0) };
    match keeper.tell(made).await {
        Ok(_) => {}
        // An operator has let it go.
        Err(Error::Refused(_) | Error::Stopping) => return None,
        Err(error) => return failed(error.to_string()),
    }
    match driver.start_kernel(&kernels.whole(keeper, mac, &token.0)).await {
        Ok(_) => Some(Event::KernelHanded { node, attempt }),
        Err(error) => failed(error.to_string()),
    }
}

/// A machine that was handed our kernel goes off when the agent is done with it; it boots its disk then.
async fn boot_disk_afterwards(
    keeper: &Keeper,
    switchboard: &Switchboard,
    about: &About,
    node: &NodeName,
    attempt: Attempt,
    driver: &dyn PowerDriver,
) {
    let mut left_since = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let of_attempt = |known: &&Node| known.attempt == attempt;
        let stage = keeper.read(|state| state.snapshot().nodes.get(node).filter(of_attempt).map(|node| node.stage));
        match stage {
            // What went wrong stays off, for somebody to look at; another attempt starts it itself.
            None | Some(Stage::PoweringOn | Stage::Running | Stage::Failed) => return,
            // After a capture or a wipe nothing is assigned to it, and nobody watches how long it takes.
            Some(Stage::Enrolled) if left_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_LIMIT => return,
            Some(Stage::Rebooting | Stage::Enrolled) => {}
            Some(_) => continue,
        }
        if !matches!(driver.state().await, Ok(State::Off)) {
            continue;
        }
        let turn = switchboard.turn(about).await;
        let outcome = driver.on().await;
        drop(turn);
        switchboard.count(about.scheme, "on", &if outcome.is_ok() { End::Done } else { End::Failed });
        match outcome {
            Ok(_) => {
                let text = Some("its agent is done; it was switched on to boot its own disk".to_owned());
                return tell(keeper, Event::PowerRead { node: node.clone(), power: Power::On, text }).await;
            }
            Err(error) => {
                let reason = format!("it cannot be switched on to boot its own disk: {error}");
                tell(keeper, Event::PowerFailed { node: node.clone(), attempt, reason }).await;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn wanted(keeper: &Keeper, node: &NodeName, attempt: Attempt) -> bool {
    keeper.read(|state| {
        let node = state.snapshot().nodes.get(node);
        node.is_some_and(|n| n.attempt == attempt && n.stage == Stage::PoweringOn)
    })
}

/// The result of a power job must not get lost, or the machine would be
/// switched once more while it boots.
async fn tell(keeper: &Keeper, event: Event) {
    for _ in 0..TELL_TRIES {
        match keeper.tell(event.clone()).await {
            Ok(_) => return,
            Err(error @ (Error::Refused(_) | Error::Stopping)) => {
                tracing::debug!(%error, "the result of a power job is not wanted any more");
                return;
            }
            Err(error) => tracing::warn!(%error, "the result of a power job waits to be stored"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
