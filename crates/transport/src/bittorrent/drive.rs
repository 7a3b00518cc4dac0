//! The one task of a swarm: the world's events go into the engine, what it
//! decides is done. It waits for nothing but events, so it never holds up a
//! peer: disk, hashing, dialling and trackers have tasks of their own.

mod links;
mod pieces;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::{Manifest, PieceSink, PieceSource};
use swarm::ledger::Ledger;
use swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Setup, Shape, Side};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wire::announce::Event as AnnounceEvent;
use wire::metainfo::InfoHash;
use wire::peer::{Block, Extended, Message, PeerId, RackName};

use super::announcer::{Announced, Announcer, Speaker};
use super::checking::{self, Checked};
use super::connection::Link;
use super::doubts::Doubts;
use super::listener::{Listener, Membership};
use super::new_peer_id;
use super::packing::Unpacker;
use super::pool::{Pool, Yard};
use super::progress::{Dropped, Meter, Progress};
use super::reading::Chunk;
use super::services::Services;
use super::store::{Budget, Store};
use super::writing::Order;
use crate::Error;
use links::Connection;

/// How often progress is told.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Events handled before the clock is looked at again.
const BATCH: usize = 64;

/// Announcements of pieces wait for company this share of the time in which a
/// piece comes, and never longer than `MOST_PATIENCE`.
const PATIENCE_SHARE: f64 = 32.0;
const MOST_PATIENCE: Duration = Duration::from_millis(50);

/// The alarm when nothing is due.
const FAR_AWAY: Duration = Duration::from_secs(3600);

/// Buffers for pieces that are kept while idle.
const IDLE_BUFFERS: usize = 4;

/// How long writes that are under way may take at the end.
const WRITES_DEADLINE: Duration = Duration::from_secs(5);

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
    /// A payload came whole.
    Chunk(Peer, Chunk),
    /// A payload was handed to the network.
    Sent(Peer, Block),
    /// A message for a peer, worked out aside.
    Answer(Peer, Message),
    /// A connection ended.
    Closed(Peer, io::Error),
    /// A piece was hashed and, when right, written.
    Checked(u32, Checked),
    /// A piece that we gave cannot be read, and why.
    Unreadable(u32, Error),
    /// Pieces that cannot be read any more, and why the first cannot.
    Lost(Vec<u32>, Error),
    /// A tracker answered, or none did.
    Announced(Option<Announced>),
    /// Peers called in the local network.
    Found(Vec<SocketAddr>),
    /// Somebody wants to look.
    Look(Look),
}

/// What is done with the engine and the peers it dropped, between two events.
type Look = Box<dyn FnOnce(&Engine, &VecDeque<Dropped>) + Send>;

/// What a swarm needs to start.
pub(super) struct Job {
    pub(super) manifest: Arc<Manifest>,
    /// The info dictionary, for those who come with a magnet link (BEP 9).
    pub(super) info: Option<Bytes>,
    pub(super) rack: Option<RackName>,
    /// We made the torrent.
    pub(super) ours: bool,
    pub(super) private: bool,
    /// Where pieces are read for others.
    pub(super) source: Arc<dyn PieceSource>,
    /// Where pieces are written; none for a seed.
    pub(super) sink: Option<Arc<dyn PieceSink>>,
    pub(super) have: PieceSet,
    pub(super) trackers: Vec<String>,
    pub(super) local_discovery: bool,
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
    let names = names(&job.manifest)?;
    let v2 = job.manifest.infohash_v2().is_some();
    let (events_in, events) = mpsc::channel(budget.events);
    let membership = listener.join(&names, me, v2, &events_in)?;
    let speaker = Speaker {
        names: names.clone(),
        me,
        listen: listener.address(),
        rack: job.rack.clone(),
        local_discovery: job.local_discovery,
    };
    let announcer = Announcer::new(&job.trackers, speaker)?;
    let policy = Policy { active_bytes: job.policy.active_bytes.min(budget.active_bytes), ..job.policy };
    let mut twins = PieceSet::empty(shape.pieces());
    for piece in job.manifest.twins().ones() {
        twins.insert(piece as u32);
    }
    let unwritten = checking::unwritten(&job.manifest, &job.have);
    let setup = Setup { shape, have: job.have, twins, rack: job.rack, ours: job.ours, private: job.private };
    let engine = Engine::new(me, setup, policy, job.seed);
    let now = Instant::now();
    let meter = Meter::new(&job.manifest, &engine, now);
    let (progress_in, progress) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let pool = Arc::new(Pool::new(shape.piece_bytes(0) as usize, IDLE_BUFFERS));
    let store = Arc::new(Store::new(job.source, shape, budget.cache_bytes));
    let mut drive = Drive {
        engine,
        started: now,
        shape,
        me,
        names,
        v2,
        services: Services::new(Arc::clone(&job.manifest), Arc::clone(&store), job.info, events_in.clone()),
        doubts: Doubts::default(),
        manifest: job.manifest,
        sink: job.sink,
        store,
        listener: listener.clone(),
        connections: HashMap::new(),
        next_peer: 0,
        yard: Arc::new(Yard::new(shape, Arc::clone(&pool))),
        pool,
        unpacker: Arc::default(),
        arrived: None,
        looking: false,
        waiting: VecDeque::new(),
        out: Vec::new(),
        dropped: VecDeque::new(),
        hashing: Arc::new(Semaphore::new(thread::available_parallelism().map_or(2, NonZero::get))),
        patience: Duration::ZERO,
        flush_at: None,
        received: Arc::default(),
        sent: Arc::default(),
        tasks: TaskTracker::new(),
        ending: CancellationToken::new(),
        announces: None,
        events_in: events_in.clone(),
        meter,
        progress: progress_in,
    };
    drive.report();
    drive.write_known(unwritten);
    let task = tokio::spawn(drive.run(events, announcer, membership, job.peers, stop.clone()));
    Ok(Handle { me, progress, task: Some(task), events: events_in, stop: Some(stop.drop_guard()) })
}

/// The info-hashes of a swarm, version 1's first.
pub(super) fn names(manifest: &Manifest) -> Result<Vec<InfoHash>, Error> {
    let v2 = manifest.infohash_v2().map(|v2| v2.truncated());
    let names: Vec<InfoHash> = manifest.infohash_v1().into_iter().chain(v2).collect();
    if names.is_empty() { Err(Error::NoInfoHash(manifest.name().to_owned())) } else { Ok(names) }
}

struct Drive {
    engine: Engine,
    started: Instant,
    shape: Shape,
    me: PeerId,
    /// One, or two of a hybrid torrent.
    names: Vec<InfoHash>,
    v2: bool,
    services: Services,
    doubts: Doubts,
    manifest: Arc<Manifest>,
    sink: Option<Arc<dyn PieceSink>>,
    store: Arc<Store>,
    listener: Listener,
    connections: HashMap<Peer, Connection>,
    next_peer: u32,
    /// Pieces that come, and the memory for them.
    yard: Arc<Yard>,
    pool: Arc<Pool>,
    unpacker: Arc<Unpacker>,
    /// The payload that the engine is deciding about.
    arrived: Option<Chunk>,
    /// Lost pieces are being looked for.
    looking: bool,
    /// Inputs that acting on outputs gave rise to.
    waiting: VecDeque<Input>,
    out: Vec<Output>,
    dropped: VecDeque<Dropped>,
    hashing: Arc<Semaphore>,
    /// How long announcements of pieces may wait for company, and until when
    /// those that wait now may.
    patience: Duration,
    flush_at: Option<Instant>,
    /// All bytes of all connections.
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    tasks: TaskTracker,
    ending: CancellationToken,
    announces: Option<mpsc::Sender<swarm::Progress>>,
    events_in: mpsc::Sender<Event>,
    meter: Meter,
    progress: watch::Sender<Progress>,
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
        if timeout(WRITES_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!(image = self.manifest.name(), "the disk did not take the last pieces in time");
        }
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
        let stopped = stop.cancelled();
        let alarm = sleep_until(tokio::time::Instant::now());
        tokio::pin!(stopped, alarm);
        self.step(Input::Found(peers));
        loop {
            // A timer that moves forward is a system call: one that rings too
            // early is left alone, and only looks at the clock.
            let wanted = self.next_alarm();
            if wanted < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(wanted);
            }
            tokio::select! {
                () = &mut stopped => return Ok(()),
                Some(event) = events.recv() => {
                    self.handle(event)?;
                    for _ in 1..BATCH {
                        let Ok(event) = events.try_recv() else { break };
                        self.handle(event)?;
                    }
                }
                () = &mut alarm => self.rang(),
                _ = report.tick() => {
                    self.report();
                    self.settle_doubts();
                }
            }
        }
    }

    /// When something has to be done though nothing happens; far away when
    /// there is nothing.
    fn next_alarm(&self) -> tokio::time::Instant {
        let engine = self.engine.deadline().map(|after| self.started + after);
        let next = engine.into_iter().chain(self.flush_at).min();
        tokio::time::Instant::from_std(next.unwrap_or_else(|| Instant::now() + FAR_AWAY))
    }

    fn rang(&mut self) {
        let now = Instant::now();
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_all();
        }
        if self.engine.deadline().is_some_and(|after| self.started + after <= now) {
            self.step(Input::Tick);
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
            Event::Said(peer, message) if self.connections.contains_key(&peer) => self.said(peer, message),
            Event::Chunk(peer, chunk) if self.connections.contains_key(&peer) => self.arrived(peer, chunk),
            Event::Sent(peer, block) => {
                if let Some(inspection) = self.services.served(block) {
                    self.tasks.spawn(inspection);
                }
                self.step(Input::Sent(peer, block));
            }
            Event::Answer(peer, message) => self.order(peer, Order::Say(message)),
            Event::Closed(peer, error) => self.closed(peer, &error),
            Event::Checked(piece, checked) => return self.checked(piece, checked),
            Event::Unreadable(piece, error) => self.unreadable(piece, error),
            Event::Lost(pieces, error) => return self.lost(pieces, error),
            Event::Announced(Some(Announced { interval, peers, guidance })) => {
                self.step(Input::Announced { interval, peers, guidance });
            }
            Event::Announced(None) => self.step(Input::AnnounceFailed),
            Event::Found(peers) => self.step(Input::Found(peers)),
            Event::Look(look) => {
                self.report();
                look(&self.engine, &self.dropped);
            }
            // From a connection that the engine dropped.
            Event::Chunk(..) | Event::Said(..) => {}
        }
        Ok(())
    }

    /// Some messages are the driver's own business.
    fn said(&mut self, peer: Peer, message: Message) {
        match &message {
            Message::Extended(Extended::Handshake(handshake)) => self.order(peer, Order::Met(handshake.clone())),
            Message::Extended(Extended::Metadata(asked)) => {
                if let Some(answer) = self.services.metadata(asked) {
                    self.order(peer, Order::Say(answer.into()));
                }
                return;
            }
            Message::HashRequest(range) => {
                let Some(connection) = self.connections.get(&peer) else { return };
                match self.services.hashes(peer, &connection.hash_places, **range) {
                    Ok(work) => drop(self.tasks.spawn(work)),
                    Err(refusal) => self.order(peer, Order::Say(refusal)),
                }
                return;
            }
            Message::Hashes(range, hashes) => {
                let settled = self.doubts.heard(&self.manifest, peer, range, Some(hashes));
                return self.check_again(settled);
            }
            Message::HashReject(range) => {
                let settled = self.doubts.heard(&self.manifest, peer, range, None);
                return self.check_again(settled);
            }
            _ => {}
        }
        self.step(Input::Said(peer, message));
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
            Output::Say(peer, message) => self.say(peer, message),
            Output::Send(peer, block) => self.order(peer, Order::Send(block)),
            Output::Keep(_, block) => self.keep(block),
            Output::Verify(piece) => self.verify(piece),
            Output::Forget(piece) => self.yard.forget(piece),
            Output::Announce(progress) => {
                if self.announces.as_ref().is_none_or(|announces| announces.try_send(progress).is_err()) {
                    self.waiting.push_back(Input::AnnounceFailed);
                }
            }
            Output::Drop(peer, why) => self.dropped(peer, why),
            Output::Complete => {
                tracing::info!(info_hash = %self.names[0], image = self.manifest.name(), "complete");
                self.report();
            }
        }
    }
    fn report(&mut self) {
        let memory_bytes = self.pool.bytes() + self.store.cached_bytes();
        let mut progress = self.meter.read(&self.engine, memory_bytes, Instant::now());
        progress.wire_bytes_down = self.received.load(Ordering::Relaxed);
        progress.wire_bytes_up = self.sent.load(Ordering::Relaxed);
        progress.corrupt_on_disk = self.services.corrupt_on_disk();
        let piece_seconds = f64::from(self.shape.piece_length()) / progress.down_bytes_per_second.max(1) as f64;
        self.patience = MOST_PATIENCE.min(Duration::from_secs_f64(piece_seconds / PATIENCE_SHARE));
        self.progress.send_replace(progress);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.ending.clone().run_until_cancelled_owned(task));
    }
}
