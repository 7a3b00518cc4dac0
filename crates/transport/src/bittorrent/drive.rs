//! The one task of a swarm: the world's events go into the engine, what it
//! decides is done. It waits for nothing but events, so it never holds up a
//! peer: disk, hashing, dialling and trackers have tasks of their own.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::{Manifest, PieceSink, PieceSource};
use swarm::ledger::Ledger;
use swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Setup, Shape, Side, Speaks, Verdict, Why};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wire::announce::Event as AnnounceEvent;
use wire::metainfo::InfoHash;
use wire::peer::{Block, Handshake, Message, PeerId};

use super::announcer::{Announced, Announcer};
use super::connection::{self, Link, ORDERS, Order};
use super::listener::{Listener, Membership};
use super::new_peer_id;
use super::progress::{Cause, Dropped, Meter, Progress};
use super::store::{Budget, Store};
use crate::Error;

/// How often progress is told.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Events handled before the clock is looked at again.
const BATCH: usize = 64;

/// Dropped peers that are remembered for the operator.
const REMEMBERED_DROPS: usize = 64;

/// Announces that may wait for a tracker; the engine asks one at a time.
const ANNOUNCES: usize = 4;

/// What the tasks of a swarm report.
pub(super) enum Event {
    /// A peer connected and named this swarm.
    Accepted { address: SocketAddr, link: Link },
    /// A dial ended.
    Dialled { address: SocketAddr, outcome: io::Result<Link> },
    /// A message came.
    Said(Peer, Message),
    /// A block came whole.
    Block(Peer, Block, Bytes),
    /// A block was handed to the network.
    Sent(Peer, Block),
    /// A connection ended.
    Closed(Peer, io::Error),
    /// A piece was hashed and, when right, written.
    Checked(u32, Checked),
    /// A tracker answered, or none did.
    Announced(Option<Announced>),
    /// Somebody wants to look.
    Look(Look),
}

/// What is done with the engine and the peers it dropped, between two events.
type Look = Box<dyn FnOnce(&Engine, &VecDeque<Dropped>) + Send>;

/// How a piece came out.
pub(super) enum Checked {
    /// Right and on the disk; its bytes.
    Written(Vec<u8>),
    /// Wrong; nothing was written.
    Corrupt,
    /// The disk failed.
    Failed(Error),
}

/// What a swarm needs to start.
pub(super) struct Job {
    pub(super) manifest: Arc<Manifest>,
    pub(super) info_hash: InfoHash,
    /// Where pieces are read for others.
    pub(super) source: Arc<dyn PieceSource>,
    /// Where pieces are written; none for a seed.
    pub(super) sink: Option<Arc<dyn PieceSink>>,
    pub(super) have: PieceSet,
    pub(super) trackers: Vec<String>,
    pub(super) peers: Vec<SocketAddr>,
    pub(super) policy: Policy,
    pub(super) memory_bytes: u64,
    pub(super) seed: u64,
}

/// A running swarm. It ends in an orderly way when this is dropped.
pub(super) struct Handle {
    pub(super) me: PeerId,
    pub(super) progress: watch::Receiver<Progress>,
    /// None once its outcome was taken.
    task: Option<JoinHandle<Result<Ledger, Error>>>,
    events: mpsc::Sender<Event>,
    stop: Option<DropGuard>,
}

impl Handle {
    /// Says goodbye to trackers and peers, waits for writes that are under way.
    pub(super) async fn stop(mut self) -> Result<Ledger, Error> {
        drop(self.stop.take());
        self.ended().await
    }

    /// Waits for the end; its outcome is told once. Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Ledger, Error> {
        let Some(task) = &mut self.task else { return Err(Error::Stopped) };
        let outcome = task.await;
        self.task = None;
        outcome.unwrap_or(Err(Error::Defect))
    }

    /// Asks without holding the swarm.
    pub(super) fn asker(&self) -> Asker {
        Asker { events: self.events.clone() }
    }
}

/// Looks at a swarm's engine.
pub(super) struct Asker {
    events: mpsc::Sender<Event>,
}

impl Asker {
    /// Lets a function look at the engine between two events; none when the
    /// swarm has ended.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Engine, &VecDeque<Dropped>) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, question) = tokio::sync::oneshot::channel();
        let look = Event::Look(Box::new(move |engine, dropped| {
            // Whoever asked may have gone; then nobody misses the answer.
            let _ = answer.send(look(engine, dropped));
        }));
        self.events.send(look).await.ok()?;
        question.await.ok()
    }
}

/// Starts the task of a swarm.
pub(super) fn start(listener: &Listener, job: Job) -> Result<Handle, Error> {
    let shape = Shape::new(job.manifest.size_bytes(), job.manifest.piece_size_bytes())?;
    let budget = Budget::of(job.memory_bytes);
    let me = new_peer_id();
    let (events_in, events) = mpsc::channel(budget.blocks_in_flight);
    let membership = listener.join(job.info_hash, me, events_in.clone())?;
    let announcer = Announcer::new(&job.trackers, job.info_hash, me, listener.address())?;
    let policy = Policy { active_bytes: job.policy.active_bytes.min(budget.active_bytes), ..job.policy };
    let engine = Engine::new(me, Setup::new(shape, job.have), policy, job.seed);
    let now = Instant::now();
    let meter = Meter::new(&job.manifest, &engine, now);
    let (progress_in, progress) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let mut drive = Drive {
        engine,
        started: now,
        shape,
        me,
        info_hash: job.info_hash,
        manifest: job.manifest,
        sink: job.sink,
        store: Arc::new(Store::new(job.source, shape, budget.cache_bytes)),
        listener: listener.clone(),
        connections: HashMap::new(),
        next_peer: 0,
        pieces: HashMap::new(),
        piece_bytes: 0,
        arrived: None,
        waiting: VecDeque::new(),
        out: Vec::new(),
        dropped: VecDeque::new(),
        hashing: Arc::new(Semaphore::new(thread::available_parallelism().map_or(2, NonZero::get))),
        tasks: TaskTracker::new(),
        ending: CancellationToken::new(),
        announces: None,
        events_in: events_in.clone(),
        meter,
        progress: progress_in,
    };
    drive.report();
    let task = tokio::spawn(drive.run(events, announcer, membership, job.peers, stop.clone()));
    Ok(Handle { me, progress, task: Some(task), events: events_in, stop: Some(stop.drop_guard()) })
}

struct Drive {
    engine: Engine,
    started: Instant,
    shape: Shape,
    me: PeerId,
    info_hash: InfoHash,
    manifest: Arc<Manifest>,
    sink: Option<Arc<dyn PieceSink>>,
    store: Arc<Store>,
    listener: Listener,
    connections: HashMap<Peer, Connection>,
    next_peer: u32,
    /// Pieces with at least one block, not verified.
    pieces: HashMap<u32, Vec<u8>>,
    /// Bytes of these and of pieces being hashed or written.
    piece_bytes: u64,
    /// The block that the engine is deciding about.
    arrived: Option<(Block, Bytes)>,
    /// Inputs that acting on outputs gave rise to.
    waiting: VecDeque<Input>,
    out: Vec<Output>,
    dropped: VecDeque<Dropped>,
    hashing: Arc<Semaphore>,
    tasks: TaskTracker,
    ending: CancellationToken,
    announces: Option<mpsc::Sender<swarm::Progress>>,
    events_in: mpsc::Sender<Event>,
    meter: Meter,
    progress: watch::Sender<Progress>,
}

/// The swarm's end of a connection; closes it when dropped.
struct Connection {
    address: SocketAddr,
    id: PeerId,
    orders: mpsc::Sender<Order>,
    _close: DropGuard,
}

impl Drive {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        announcer: Announcer,
        membership: Membership,
        peers: Vec<SocketAddr>,
        stop: CancellationToken,
    ) -> Result<Ledger, Error> {
        let (announces, requests) = mpsc::channel(ANNOUNCES);
        self.announces = Some(announces);
        self.spawn(announcer.clone().run(requests, self.events_in.clone()));
        let outcome = self.serve(&mut events, peers, &stop).await;
        drop(membership);
        self.connections.clear();
        self.ending.cancel();
        // Tasks that are writing a piece finish; their reports go nowhere.
        events.close();
        self.tasks.close();
        self.tasks.wait().await;
        announcer.farewell(self.engine.progress(Some(AnnounceEvent::Stopped))).await;
        outcome.map(|()| self.engine.ledger().clone())
    }

    /// Until told to stop or the disk fails.
    async fn serve(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        peers: Vec<SocketAddr>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut report = interval(REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.step(Input::Found(peers));
        loop {
            let deadline = self.engine.deadline().map(|after| tokio::time::Instant::from_std(self.started + after));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(event) = events.recv() => {
                    self.handle(event)?;
                    for _ in 1..BATCH {
                        let Ok(event) = events.try_recv() else { break };
                        self.handle(event)?;
                    }
                }
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    self.step(Input::Tick);
                }
                _ = report.tick() => self.report(),
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Accepted { address, link } => self.connected(address, link, Side::Inbound),
            Event::Dialled { address, outcome } => match outcome {
                Ok(link) => self.connected(address, link, Side::Outbound),
                Err(error) => {
                    tracing::debug!(%address, %error, "a peer cannot be reached");
                    self.step(Input::DialFailed(address));
                }
            },
            Event::Said(peer, message) if self.connections.contains_key(&peer) => {
                self.step(Input::Said(peer, message));
            }
            Event::Block(peer, block, bytes) if self.connections.contains_key(&peer) => {
                self.arrived = Some((block, bytes));
                self.step(Input::Arrived(peer, block));
                self.arrived = None;
            }
            Event::Sent(peer, block) if self.connections.contains_key(&peer) => self.step(Input::Sent(peer, block)),
            Event::Closed(peer, error) => self.closed(peer, &error),
            Event::Checked(piece, checked) => return self.checked(piece, checked),
            Event::Announced(Some(Announced { interval, peers })) => {
                self.step(Input::Announced { interval, peers, guidance: None })
            }
            Event::Announced(None) => self.step(Input::AnnounceFailed),
            Event::Look(look) => look(&self.engine, &self.dropped),
            // From a connection that the engine dropped.
            Event::Said(..) | Event::Block(..) | Event::Sent(..) => {}
        }
        Ok(())
    }

    /// The engine's one door, and everything that comes out of it.
    fn step(&mut self, input: Input) {
        self.waiting.push_back(input);
        while let Some(input) = self.waiting.pop_front() {
            let mut out = std::mem::take(&mut self.out);
            self.engine.step(self.started.elapsed(), input, &mut out);
            for output in out.drain(..) {
                self.act(output);
            }
            self.out = out;
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Dial(address) => self.dial(address),
            Output::Say(peer, message) => self.order(peer, Order::Say(message)),
            Output::Send(peer, block) => self.order(peer, Order::Send(block)),
            Output::Keep(_, block) => self.keep(block),
            Output::Verify(piece) => self.verify(piece),
            Output::Forget(piece) => self.forget(piece),
            Output::Announce(progress) => {
                if self.announces.as_ref().is_none_or(|announces| announces.try_send(progress).is_err()) {
                    self.waiting.push_back(Input::AnnounceFailed);
                }
            }
            Output::Drop(peer, why) => self.dropped(peer, why),
            Output::Complete => {
                tracing::info!(info_hash = %self.info_hash, image = self.manifest.name(), "complete");
                self.report();
            }
        }
    }

    fn dial(&mut self, address: SocketAddr) {
        let Some(place) = self.listener.place() else {
            self.waiting.push_back(Input::DialFailed(address));
            return;
        };
        let (from, ours) = (self.listener.address(), Handshake::new(self.info_hash, self.me));
        let events = self.events_in.clone();
        self.spawn(async move {
            let outcome = connection::dial(address, from, ours, place).await;
            // A swarm that has ended does not care.
            let _ = events.send(Event::Dialled { address, outcome }).await;
        });
    }

    fn connected(&mut self, address: SocketAddr, link: Link, side: Side) {
        let peer = Peer(self.next_peer);
        self.next_peer = self.next_peer.wrapping_add(1);
        let id = link.id;
        let close = self.ending.child_token();
        let (orders, queue) = mpsc::channel(ORDERS);
        let (read, write) = link.stream.into_split();
        let reading = hold(link.place, connection::read(peer, read, self.shape, self.events_in.clone()));
        let writing = connection::write(peer, write, queue, Arc::clone(&self.store), self.events_in.clone());
        self.tasks.spawn(close.clone().run_until_cancelled_owned(reading));
        self.tasks.spawn(close.clone().run_until_cancelled_owned(writing));
        self.connections.insert(peer, Connection { address, id, orders, _close: close.drop_guard() });
        self.step(Input::Connected { peer, side, address, id, speaks: Speaks::default() });
    }

    fn order(&mut self, peer: Peer, order: Order) {
        let Some(connection) = self.connections.get(&peer) else { return };
        match connection.orders.try_send(order) {
            // Its writing task ended and has reported so.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::info!(address = %connection.address, "closing a connection: the peer takes nothing");
                self.connections.remove(&peer);
                self.waiting.push_back(Input::Gone(peer));
            }
        }
    }

    fn keep(&mut self, block: Block) {
        let Some((arrived, bytes)) = self.arrived.take() else { return };
        debug_assert_eq!(arrived, block);
        let length = self.shape.piece_bytes(block.piece) as usize;
        let piece = self.pieces.entry(block.piece).or_insert_with(|| {
            self.piece_bytes += length as u64;
            vec![0; length]
        });
        let start = block.offset as usize;
        if let Some(place) = piece.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }

    fn forget(&mut self, piece: u32) {
        if let Some(bytes) = self.pieces.remove(&piece) {
            self.piece_bytes -= bytes.len() as u64;
        }
    }

    /// Hashes and writes on a blocking thread, as many at once as there are
    /// cores. Not ended with the swarm: a write that began is finished.
    fn verify(&mut self, piece: u32) {
        let (Some(bytes), Some(sink)) = (self.pieces.remove(&piece), self.sink.clone()) else {
            self.waiting.push_back(Input::Verified(piece, Verdict::Corrupt));
            return;
        };
        let (manifest, hashing, events) =
            (Arc::clone(&self.manifest), Arc::clone(&self.hashing), self.events_in.clone());
        self.tasks.spawn(async move {
            let turn = hashing.acquire_owned().await;
            let work = spawn_blocking(move || check(&manifest, &*sink, piece, bytes));
            let checked = work.await.unwrap_or(Checked::Failed(Error::Defect));
            drop(turn);
            // After the swarm's end the piece is on the disk all the same.
            let _ = events.send(Event::Checked(piece, checked)).await;
        });
    }

    fn checked(&mut self, piece: u32, checked: Checked) -> Result<(), Error> {
        self.piece_bytes -= u64::from(self.shape.piece_bytes(piece));
        match checked {
            Checked::Written(bytes) => {
                self.store.remember(piece, bytes);
                self.step(Input::Verified(piece, Verdict::Good));
            }
            Checked::Corrupt => {
                tracing::warn!(piece, image = self.manifest.name(), "a piece came corrupt and was thrown away");
                self.step(Input::Verified(piece, Verdict::Corrupt));
            }
            Checked::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// The engine has forgotten this peer.
    fn dropped(&mut self, peer: Peer, why: Why) {
        let Some(connection) = self.connections.remove(&peer) else { return };
        if is_ordinary(why) {
            tracing::debug!(address = %connection.address, %why, "closed a connection");
        } else {
            self.blame(&connection, Cause::Swarm(why));
        }
    }

    fn closed(&mut self, peer: Peer, error: &io::Error) {
        let Some(connection) = self.connections.remove(&peer) else { return };
        match error.kind() {
            io::ErrorKind::InvalidData => self.blame(&connection, Cause::Protocol(error.to_string())),
            _ => tracing::debug!(address = %connection.address, %error, "a connection ended"),
        }
        self.step(Input::Gone(peer));
    }

    /// For the operator: who misbehaved, and how.
    fn blame(&mut self, connection: &Connection, cause: Cause) {
        let Connection { address, id, .. } = *connection;
        tracing::warn!(%address, peer = %id, %cause, "dropped a peer");
        if self.dropped.len() == REMEMBERED_DROPS {
            self.dropped.pop_front();
        }
        self.dropped.push_back(Dropped { address, id, cause });
    }

    fn report(&mut self) {
        let memory_bytes = self.piece_bytes + self.store.cached_bytes();
        self.progress.send_replace(self.meter.read(&self.engine, memory_bytes, Instant::now()));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.ending.clone().run_until_cancelled_owned(task));
    }
}

/// Only a verified piece comes to the sink; see `image::VerifiedPiece`.
fn check(manifest: &Manifest, sink: &dyn PieceSink, piece: u32, bytes: Vec<u8>) -> Checked {
    match manifest.verify(piece, bytes) {
        Err(_) => Checked::Corrupt,
        Ok(verified) => match sink.put(&verified) {
            Ok(()) => Checked::Written(verified.into_bytes()),
            Err(error) => Checked::Failed(error.into()),
        },
    }
}

async fn hold(place: OwnedSemaphorePermit, task: impl Future<Output = ()>) {
    task.await;
    drop(place);
}

/// Reasons that say nothing against the peer.
fn is_ordinary(why: Why) -> bool {
    matches!(why, Why::Ourselves | Why::Duplicate | Why::Full | Why::Displaced | Why::BothComplete)
}
