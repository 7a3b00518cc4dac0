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
use fleet::plan::Action;
use futures_util::{StreamExt, stream};
use power::{BootDevice, Outcome};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::keeper::Keeper;
use crate::switchboard::{End, Switchboard, driver};

/// Between two plans, so that a storm of events costs few of them.
const PACE: Duration = Duration::from_millis(50);
/// Passed deadlines that are told at the same time; the keeper puts them into one transaction.
const AT_ONCE: usize = 256;
/// A result that could not be stored is told again so many times, a second apart.
const TELL_TRIES: u32 = 30;

/// Plans and acts until `stop`; then waits for nothing, because whatever was
/// begun is planned again at the next start.
pub async fn run(keeper: Keeper, switchboard: Arc<Switchboard>, stop: CancellationToken) {
    let mut at_work = AtWork::new(switchboard);
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
    /// Told when a job's turn has come.
    begun: Arc<Notify>,
}

impl AtWork {
    fn new(switchboard: Arc<Switchboard>) -> Self {
        Self {
            jobs: JoinSet::new(),
            nodes: BTreeMap::new(),
            ids: HashMap::new(),
            ended: Touched::default(),
            switchboard,
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
        self.nodes.insert(node.clone(), attempt);
        let (keeper, switchboard, begun) = (keeper.clone(), Arc::clone(&self.switchboard), Arc::clone(&self.begun));
        let name = node.clone();
        let job = self.jobs.spawn(async move {
            let about = match power::about(&power) {
                Ok(about) => about,
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
            let event = network_boot(&keeper, node, attempt, &power).await;
            drop(turn);
            if let Some(event) = event {
                let end = if matches!(event, Event::PoweredOn { .. }) { End::Done } else { End::Failed };
                switchboard.count(about.scheme, "network_boot", &end);
                tell(&keeper, event).await;
            }
        });
        self.ids.insert(job.id(), name);
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
async fn network_boot(keeper: &Keeper, node: NodeName, attempt: Attempt, power: &str) -> Option<Event> {
    tracing::info!(%node, %attempt, stage = Stage::PoweringOn.as_str(), "booting it from the network");
    let failed = |reason: String| Some(Event::PowerFailed { node: node.clone(), attempt, reason });
    let driver = match power::open(power) {
        Ok(driver) => driver,
        Err(error) => return failed(error.to_string()),
    };
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
    let scheme = power.split(':').next().unwrap_or(power);
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
