//! The one writer of the state: takes events in, stores what they change, and
//! tells everybody.
//!
//! event -> intake -> changes -> store -> state -> subscribers, and a nudge to
//! [`crate::reconcile`]. What is queued while the store is busy goes into the
//! next transaction together, so a burst costs few of them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use api::operator::StreamEvent;
use boot::director::Lease;
use fleet::agenda::Touched;
use fleet::change::{Change, Note, Snapshot};
use fleet::deployment::Deployment;
use fleet::event::Event;
use fleet::ids::{DeploymentId, Mac, Millis, NodeName};
use fleet::intake::{Refused, intake};
use fleet::plan::Policy;
use fleet::run::Run;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::Error;
use crate::state::State;
use crate::store::{Revision, Store};
use crate::view;

/// Events that may wait; more are refused, so that a flood cannot take all memory.
const QUEUE: usize = 8_192;
/// Events that share one transaction.
const BATCH: usize = 256;
/// Events of the stream that a slow reader may be behind by.
const STREAM: usize = 4_096;
/// How often a batch is tried when another writer was faster.
const TRIES: u32 = 8;
/// Deployments of more nodes than this are large events of the stream.
const LARGE: usize = 100;
/// Between two of them, in milliseconds.
const PAUSE_MILLISECONDS: u64 = 1_000;
/// How long an event may wait for its turn and its transaction.
const LIMIT: Duration = Duration::from_secs(60);

/// A handle to the keeper; cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    queue: mpsc::Sender<Told>,
    /// Readers hold this for a look-up or a view and never across an await, so
    /// nobody waits long; a snapshot copied for each change would cost every
    /// node's text each time.
    state: RwLock<State>,
    stream: broadcast::Sender<Arc<StreamEvent>>,
    changed: Notify,
    /// What has changed since [`crate::reconcile`] looked last.
    touched: Mutex<Touched>,
    lost: AtomicU64,
    store: Arc<dyn Store>,
    clock: Clock,
    policy: Policy,
}

/// What is in the queue.
struct Told {
    what: What,
    reply: Option<oneshot::Sender<Result<Vec<Change>, Error>>>,
}

enum What {
    Event(Box<Event>),
    /// A remark for a machine's timeline that changes nothing.
    Remark {
        mac: Mac,
        kind: &'static str,
        text: String,
    },
}

impl Keeper {
    /// Loads the state and begins to keep it until `stop`.
    ///
    /// # Errors
    /// When the state cannot be loaded.
    pub async fn start(
        store: Arc<dyn Store>,
        policy: Policy,
        stop: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), Error> {
        let (mut snapshot, revision) = store.load().await?;
        let leases = store.load_leases().await?;
        let clock = Clock::start(newest(&snapshot));
        snapshot.started_at = clock.now();
        tracing::info!(revision = revision.0, nodes = snapshot.nodes.len(), "state loaded");
        let (queue, told) = mpsc::channel(QUEUE);
        let ahead = snapshot.clone();
        let touched = Mutex::new(Touched::everything(&snapshot));
        let shared = Arc::new(Shared {
            queue,
            state: RwLock::new(State::new(snapshot, leases)),
            stream: broadcast::channel(STREAM).0,
            changed: Notify::new(),
            touched,
            lost: AtomicU64::new(0),
            store,
            clock,
            policy,
        });
        let told_of = DeploymentsTold::default();
        let writer = Writer { shared: Arc::clone(&shared), ahead, revision, unsure: false, told: told_of };
        let task = tokio::spawn(writer.run(told, stop));
        Ok((Self { shared }, task))
    }

    /// Takes an event in; returns when what it changed is stored and visible.
    ///
    /// # Errors
    /// [`Error::Refused`] when it must change nothing, [`Error::NotStored`]
    /// when the store failed, [`Error::Stopping`] at the end.
    pub async fn tell(&self, event: Event) -> Result<Vec<Change>, Error> {
        let (reply, answer) = oneshot::channel();
        let told = Told { what: What::Event(Box::new(event)), reply: Some(reply) };
        let both = async {
            self.shared.queue.send(told).await.map_err(|_| Error::Stopping)?;
            answer.await.map_err(|_| Error::Stopping)?
        };
        let late = || Error::NotStored(format!("it was not the event's turn within {} s", LIMIT.as_secs()));
        tokio::time::timeout(LIMIT, both).await.unwrap_or_else(|_| Err(late()))
    }

    /// Takes an event in without waiting, for callers on a packet path. An
    /// event that finds the queue full is dropped and counted: the machine
    /// will ask again.
    pub fn report(&self, event: Event) {
        self.enqueue(What::Event(Box::new(event)));
    }

    /// Adds a remark to the timeline of the node that owns `mac`, if one does.
    pub fn remark(&self, mac: Mac, kind: &'static str, text: String) {
        self.enqueue(What::Remark { mac, kind, text });
    }

    fn enqueue(&self, what: What) {
        if self.shared.queue.try_send(Told { what, reply: None }).is_err() {
            let lost = self.shared.lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                tracing::warn!(lost, "events were dropped because the queue is full");
            }
        }
    }

    /// Looks at the state. `look` must be short: the writer waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stores leases; returns when they are durable.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn save_leases(&self, leases: &[Lease]) -> Result<(), Error> {
        self.shared.store.save_leases(leases).await?;
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner).put_leases(leases);
        Ok(())
    }

    /// All stored leases.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load_leases(&self) -> Result<Vec<Lease>, Error> {
        self.shared.store.load_leases().await
    }

    /// A node's timeline, oldest line first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn timeline(&self, node: &NodeName) -> Result<Vec<Note>, Error> {
        self.shared.store.timeline(node).await
    }

    /// What each node did in a deployment, of those that have come to its end.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn runs(&self, deployment: DeploymentId) -> Result<Vec<Run>, Error> {
        self.shared.store.runs(deployment).await
    }

    /// Everything that changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<StreamEvent>> {
        self.shared.stream.subscribe()
    }

    /// Returns when something has changed since the last call.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// What has changed since the last call; at first, everything.
    #[must_use]
    pub fn take_touched(&self) -> Touched {
        std::mem::take(&mut *self.shared.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Events that found the queue full and were dropped.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.shared.clock.now()
    }

    /// Attempts, deadlines and pauses.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.shared.policy
    }
}

/// The latest moment that the state knows of.
fn newest(snapshot: &Snapshot) -> Millis {
    let nodes = snapshot.nodes.values().map(|node| node.stage_since);
    let deployments = snapshot.deployments.values().map(|d| d.course.finished_at.unwrap_or(d.created_at));
    nodes.chain(deployments).max().unwrap_or_default()
}

struct Writer {
    shared: Arc<Shared>,
    /// The state with what is being stored at the moment.
    ahead: Snapshot,
    revision: Revision,
    /// A transaction ended without an answer; the store must be asked what it holds.
    unsure: bool,
    told: DeploymentsTold,
}

/// What a batch of events comes to: all changes, and which of them, or which
/// refusal, belongs to each event.
struct Taken {
    changes: Vec<Change>,
    outcomes: Vec<Result<Range<usize>, Refused>>,
}

impl Writer {
    async fn run(mut self, mut told: mpsc::Receiver<Told>, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                first = told.recv() => first,
                () = self.until_due() => {
                    self.publish(&[]);
                    continue;
                }
                () = stop.cancelled() => {
                    // What was said before the end is still taken in.
                    told.close();
                    told.recv().await
                }
            };
            let Some(first) = first else { return };
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = told.try_recv()
            {
                batch.push(next);
            }
            self.serve(batch).await;
        }
    }

    /// Returns when listeners are to hear of a deployment that has changed.
    async fn until_due(&self) {
        match self.told.wait(self.shared.clock.now()) {
            Some(wait) => tokio::time::sleep(wait).await,
            None if self.told.changed.is_empty() => std::future::pending().await,
            None => {}
        }
    }

    async fn serve(&mut self, batch: Vec<Told>) {
        let mut trouble = Error::Stopping;
        for _ in 0..TRIES {
            if self.unsure
                && let Err(error) = self.catch_up().await
            {
                trouble = error;
                break;
            }
            let taken = self.take_in(&batch);
            match self.store(&taken.changes).await {
                Ok(()) => {
                    self.publish(&taken.changes);
                    return answer(batch, taken);
                }
                Err(error) => {
                    self.unsure = true;
                    let again = matches!(error, Error::Conflict { .. });
                    trouble = error;
                    if !again {
                        break;
                    }
                }
            }
        }
        tracing::error!(error = %trouble, events = batch.len(), "events were not taken in");
        let why = trouble.to_string();
        for reply in batch.into_iter().filter_map(|told| told.reply) {
            // Nobody has to wait for the answer.
            let _ = reply.send(Err(Error::NotStored(why.clone())));
        }
    }

    /// Decides for each event in turn, each on the state that the ones before leave.
    fn take_in(&mut self, batch: &[Told]) -> Taken {
        let mut taken = Taken { changes: Vec::new(), outcomes: Vec::with_capacity(batch.len()) };
        for told in batch {
            let now = self.shared.clock.now();
            let decided = match &told.what {
                What::Event(event) => intake(&self.ahead, &self.shared.policy, now, event),
                What::Remark { mac, kind, text } => Ok(remark(&self.ahead, now, *mac, kind, text)),
            };
            taken.outcomes.push(decided.map(|changes| {
                changes.iter().for_each(|change| self.ahead.apply(change));
                let from = taken.changes.len();
                taken.changes.extend(changes);
                from..taken.changes.len()
            }));
        }
        taken
    }

    async fn store(&mut self, changes: &[Change]) -> Result<(), Error> {
        if changes.iter().any(Change::is_stored) {
            self.revision = self.shared.store.apply(self.revision, changes).await?;
        }
        Ok(())
    }

    /// Learns what the store holds, whoever put it there.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let (changes, revision) = self.shared.store.since(self.revision).await?;
        tracing::info!(from = self.revision.0, to = revision.0, "state read again");
        self.publish(&changes);
        self.revision = revision;
        self.ahead = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).snapshot().clone();
        self.unsure = false;
        Ok(())
    }

    /// Makes stored changes visible, then tells.
    fn publish(&mut self, changes: &[Change]) {
        let listened = self.shared.stream.receiver_count() > 0;
        let events = {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            let mut touched = self.shared.touched.lock().unwrap_or_else(PoisonError::into_inner);
            for change in changes {
                touched.add(state.snapshot(), change);
                state.apply(change);
            }
            drop(touched);
            let now = self.shared.clock.now();
            if listened {
                stream_events(&state, &self.shared.policy, changes, &mut self.told, now)
            } else {
                self.told = DeploymentsTold::default();
                Vec::new()
            }
        };
        for event in events {
            // The last listener may just have gone.
            let _ = self.shared.stream.send(Arc::new(event));
        }
        if changes.iter().any(Change::is_stored) {
            self.shared.changed.notify_one();
        }
    }
}

fn answer(batch: Vec<Told>, taken: Taken) {
    let mut changes = taken.changes.into_iter();
    for (told, outcome) in batch.into_iter().zip(taken.outcomes) {
        let mine = outcome.map(|range| changes.by_ref().take(range.len()).collect::<Vec<_>>()).map_err(Error::Refused);
        match (told.reply, mine) {
            (Some(reply), mine) => {
                // The asker may have given up; what happened stays.
                let _ = reply.send(mine);
            }
            (None, Err(error)) => tracing::debug!(%error, "an event was refused"),
            (None, Ok(_)) => {}
        }
    }
}

fn remark(snapshot: &Snapshot, now: Millis, mac: Mac, kind: &str, text: &str) -> Vec<Change> {
    let Some(node) = snapshot.node_of(mac) else { return Vec::new() };
    vec![Change::Note(Note {
        node: node.name.clone(),
        at: now,
        attempt: node.attempt,
        stage: node.stage,
        kind: kind.to_owned(),
        text: text.to_owned(),
    })]
}

fn stream_events(
    state: &State,
    policy: &Policy,
    changes: &[Change],
    told: &mut DeploymentsTold,
    now: Millis,
) -> Vec<StreamEvent> {
    let mut events = Vec::new();
    let mut touched = BTreeSet::new();
    for change in changes {
        match change {
            Change::PutNode(node) => {
                touched.insert(&node.name);
            }
            Change::PutLive(name, _) => {
                touched.insert(name);
            }
            Change::DropNode(name) => events.push(StreamEvent::NodeGone { name: name.clone() }),
            Change::Note(note) => events.push(StreamEvent::Timeline(view::line(note))),
            Change::PutDeployment(Deployment { id, .. }) | Change::PutOutcome(id, ..) | Change::PutCourse(id, _) => {
                told.changed.insert(*id);
            }
            Change::PutRack(_)
            | Change::DropRack(_)
            | Change::PutRun(_)
            | Change::PutSet(_)
            | Change::DropSet(_)
            | Change::PutImage(_)
            | Change::DropImage(_) => {}
        }
    }
    events.extend(told.due(state, policy, now));
    let nodes = touched.into_iter().filter_map(|name| state.snapshot().nodes.get(name));
    events.extend(nodes.map(|node| StreamEvent::Node(Box::new(view::node(state, policy, node)))));
    events
}

/// Deployments that have changed and of which listeners do not know it yet. One of thousands of nodes is a large event and
/// changes many times a second, so it is told of at most once in [`PAUSE_MILLISECONDS`], with all that has changed by then.
#[derive(Default)]
struct DeploymentsTold {
    changed: BTreeSet<DeploymentId>,
    last: Option<Millis>,
}

impl DeploymentsTold {
    fn due(&mut self, state: &State, policy: &Policy, now: Millis) -> Vec<StreamEvent> {
        let snapshot = state.snapshot();
        let found = |id: &DeploymentId| snapshot.deployments.get(id);
        let is_large = self.changed.iter().filter_map(found).any(|deployment| deployment.outcomes.len() > LARGE);
        if self.changed.is_empty() || is_large && self.wait(now).is_some() {
            return Vec::new();
        }
        self.last = Some(now);
        let changed = std::mem::take(&mut self.changed);
        let views =
            changed.iter().filter_map(found).map(|deployment| view::deployment(snapshot, policy, deployment, now));
        views.map(|view| StreamEvent::Deployment(Box::new(view))).collect()
    }

    /// How long what has changed must wait.
    fn wait(&self, now: Millis) -> Option<Duration> {
        let last = self.last.filter(|_| !self.changed.is_empty())?;
        let over = last.plus(PAUSE_MILLISECONDS).since(now);
        (over > 0).then(|| Duration::from_millis(over))
    }
}
