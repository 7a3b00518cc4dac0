//! The one task of a swarm: the world's events go into the engine, what it
//! decides is done. It waits for nothing but events, so it never holds up a
//! peer: disk, hashing, dialling and trackers have tasks of their own.

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
use swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Setup, Shape, Side, Verdict, Why};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wire::announce::Event as AnnounceEvent;
use wire::metainfo::InfoHash;
use wire::peer::{Block, Extended, Message, PeerId, RackMessage, RackName};

use super::announcer::{Announced, Announcer, Speaker};
use super::checking::{self, Checked};
use super::connection::{self, Link, ORDERS};
use super::doubts::Doubts;
use super::listener::{Listener, Membership, our_handshake};
use super::new_peer_id;
use super::packing::Unpacker;
use super::pool::{Landing, Pool, Yard};
use super::progress::{Cause, Dropped, Meter, Progress};
use super::reading::{self, Chunk, Reading};
use super::services::{HashPlaces, Services};
use super::store::{Budget, Store};
use super::writing::{self, Order, Writing};
use crate::Error;

/// How often progress is told.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Events handled before the clock is looked at again.
const BATCH: usize = 64;

/// Dropped peers that are remembered for the operator.
const REMEMBERED_DROPS: usize = 64;

/// Announcements of pieces wait for company this share of the time in which a
/// piece comes, and never longer than `MOST_PATIENCE`.
const PATIENCE_SHARE: f64 = 32.0;
const MOST_PATIENCE: Duration = Duration::from_millis(50);

/// Less is not worth a timer.
const SHORTEST_PATIENCE: Duration = Duration::from_micros(500);

/// The alarm when nothing is due.
const FAR_AWAY: Duration = Duration::from_secs(3600);

/// Buffers for pieces that are kept while idle.
const IDLE_BUFFERS: usize = 4;

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

/// The swarm's end of a connection; closes it when dropped.
struct Connection {
    address: SocketAddr,
    id: PeerId,
    speaks_v2: bool,
    orders: mpsc::Sender<Order>,
    /// Announcements that wait for company.
    waiting: Vec<Message>,
    /// What was requested of it.
    _requests: Requests,
    hash_places: HashPlaces,
    tasks: [AbortHandle; 2],
}

/// What was requested of a peer; nothing more once this is dropped.
struct Requests {
    yard: Arc<Yard>,
    peer: Peer,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.yard.gone(self.peer);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
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
            Event::Sent(peer, block) if self.connections.contains_key(&peer) => {
                if let Some(inspection) = self.services.served(block) {
                    self.tasks.spawn(inspection);
                }
                self.step(Input::Sent(peer, block));
            }
            Event::Answer(peer, message) => self.order(peer, Order::Say(message)),
            Event::Closed(peer, error) => self.closed(peer, &error),
            Event::Checked(piece, checked) => return self.checked(piece, checked),
            Event::Announced(Some(Announced { interval, peers, guidance })) => {
                self.step(Input::Announced { interval, peers, guidance });
            }
            Event::Announced(None) => self.step(Input::AnnounceFailed),
            Event::Found(peers) => self.step(Input::Found(peers)),
            Event::Look(look) => look(&self.engine, &self.dropped),
            // From a connection that the engine dropped.
            Event::Chunk(..) | Event::Said(..) | Event::Sent(..) => {}
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

    fn arrived(&mut self, peer: Peer, chunk: Chunk) {
        let block = chunk.block;
        self.arrived = Some(chunk);
        self.step(Input::Arrived(peer, block));
        // What the engine does not want.
        self.arrived = None;
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

    fn dial(&mut self, address: SocketAddr) {
        let Some(place) = self.listener.place() else {
            self.waiting.push_back(Input::DialFailed(address));
            return;
        };
        let (from, names) = (self.listener.address(), self.names.clone());
        let ours = our_handshake(names[0], self.me, self.v2);
        let events = self.events_in.clone();
        self.spawn(async move {
            let outcome = connection::dial(address, from, ours, &names, place).await;
            // A swarm that has ended does not care.
            let _ = events.send(Event::Dialled { address, outcome }).await;
        });
    }

    fn connected(&mut self, address: SocketAddr, link: Link, side: Side) {
        let peer = Peer(self.next_peer);
        self.next_peer = self.next_peer.wrapping_add(1);
        let Link { stream, id, speaks, speaks_v2, place } = link;
        let (orders, queue) = mpsc::channel(ORDERS);
        let (read, write) = stream.into_split();
        let reading = Reading {
            peer,
            shape: self.shape,
            yard: Arc::clone(&self.yard),
            pool: Arc::clone(&self.pool),
            unpacker: Arc::clone(&self.unpacker),
            events: self.events_in.clone(),
            received: Arc::clone(&self.received),
        };
        let writing = Writing {
            peer,
            store: Arc::clone(&self.store),
            events: self.events_in.clone(),
            sent: Arc::clone(&self.sent),
        };
        let reading = hold(place, reading::read(read, reading));
        let tasks = [self.tasks.spawn(reading), self.tasks.spawn(writing::write(write, queue, writing))];
        let tasks = tasks.map(|task| task.abort_handle());
        let connection = Connection {
            address,
            id,
            speaks_v2,
            orders,
            waiting: Vec::new(),
            _requests: Requests { yard: Arc::clone(&self.yard), peer },
            hash_places: HashPlaces::default(),
            tasks,
        };
        self.connections.insert(peer, connection);
        self.step(Input::Connected { peer, side, address, id, speaks });
    }

    /// What the engine says, with what only the driver knows.
    fn say(&mut self, peer: Peer, mut message: Message) {
        match &mut message {
            Message::Request(block) => self.yard.expect(peer, *block),
            Message::Extended(Extended::Handshake(handshake)) => {
                self.services.introduce(handshake, self.listener.address().port());
            }
            _ => {}
        }
        if self.patience > SHORTEST_PATIENCE && can_wait(&message) {
            if let Some(connection) = self.connections.get_mut(&peer) {
                connection.waiting.push(message);
                self.flush_at.get_or_insert_with(|| Instant::now() + self.patience);
            }
            return;
        }
        self.order(peer, Order::Say(message));
    }

    /// Announcements have waited enough.
    fn flush_all(&mut self) {
        self.flush_at = None;
        let waiting = self.connections.iter().filter(|(_, connection)| !connection.waiting.is_empty());
        for peer in waiting.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.flush(peer);
        }
    }

    fn flush(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        for message in std::mem::take(&mut connection.waiting) {
            self.hand_over(peer, Order::Say(message));
        }
    }

    /// What waits goes along.
    fn order(&mut self, peer: Peer, order: Order) {
        self.flush(peer);
        self.hand_over(peer, order);
    }

    fn hand_over(&mut self, peer: Peer, order: Order) {
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
        let Some(Chunk { block: whole, landed }) = self.arrived.take() else { return };
        match landed {
            Landing::Place(claim) if block == whole => claim.keep(),
            Landing::Aside(bytes) if block == whole => self.yard.put(block, &bytes),
            Landing::Nowhere => {}
            mut landed => {
                let begin = block.offset.saturating_sub(whole.offset) as usize;
                let put = |bytes: &mut [u8]| {
                    let end = begin + block.length as usize;
                    bytes.get(begin..end).map(<[u8]>::to_vec)
                };
                let part = match &mut landed {
                    Landing::Place(claim) => claim.with(put),
                    Landing::Aside(bytes) => put(bytes),
                    Landing::Nowhere => None,
                };
                if let Some(part) = part {
                    self.yard.put(block, &part);
                }
                self.arrived = Some(Chunk { block: whole, landed });
            }
        }
    }

    /// Hashes and writes on a blocking thread, as many at once as there are
    /// cores. Not ended with the swarm: a write that began is finished.
    fn verify(&mut self, piece: u32) {
        match self.yard.take(piece) {
            Some(bytes) => self.check(piece, bytes),
            None => self.waiting.push_back(Input::Verified(piece, Verdict::Corrupt)),
        }
    }

    fn check(&mut self, piece: u32, bytes: Vec<u8>) {
        let Some(sink) = self.sink.clone() else {
            self.pool.give(bytes);
            self.waiting.push_back(Input::Verified(piece, Verdict::Corrupt));
            return;
        };
        let (manifest, hashing, events) =
            (Arc::clone(&self.manifest), Arc::clone(&self.hashing), self.events_in.clone());
        self.tasks.spawn(async move {
            let turn = hashing.acquire_owned().await;
            let work = spawn_blocking(move || checking::check(&manifest, &*sink, piece, bytes));
            let checked = work.await.unwrap_or(Checked::Failed(Error::Defect));
            drop(turn);
            // After the swarm's end the piece is on the disk all the same.
            let _ = events.send(Event::Checked(piece, checked)).await;
        });
    }

    fn checked(&mut self, piece: u32, checked: Checked) -> Result<(), Error> {
        match checked {
            Checked::Written { bytes, twins } => {
                if let Some(bytes) = bytes {
                    let length = bytes.len();
                    match self.store.remember(piece, bytes) {
                        Some(bytes) => self.pool.give(bytes),
                        None => self.pool.lose(length),
                    }
                }
                self.yard.done(piece);
                self.services.known_good(piece);
                self.step(Input::Verified(piece, Verdict::Good));
                for twin in twins {
                    self.services.known_good(twin);
                    self.step(Input::Verified(twin, Verdict::Good));
                }
            }
            Checked::Known { twins } => {
                for twin in twins {
                    self.step(Input::Verified(twin, Verdict::Good));
                }
            }
            Checked::Corrupt { bytes, blocks } => self.corrupt(piece, bytes, blocks),
            Checked::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// Names the bad blocks, and with them the sender, if anybody can say which
    /// they are.
    fn corrupt(&mut self, piece: u32, bytes: Vec<u8>, blocks: Vec<u32>) {
        tracing::warn!(piece, image = self.manifest.name(), "a piece came corrupt and was thrown away");
        if !blocks.is_empty() {
            self.yard.restore(piece, bytes, &blocks);
            return self.step(Input::Verified(piece, Verdict::CorruptBlocks(blocks)));
        }
        let mut able: Vec<Peer> =
            self.connections.iter().filter(|(_, connection)| connection.speaks_v2).map(|(peer, _)| *peer).collect();
        able.sort_unstable();
        match self.doubts.raise(&self.manifest, piece, bytes, able) {
            Ok(questions) => {
                for (peer, question) in questions {
                    self.order(peer, Order::Say(question));
                }
            }
            Err(bytes) => {
                self.pool.give(bytes);
                self.step(Input::Verified(piece, Verdict::Corrupt));
            }
        }
    }

    /// Doubts that nobody resolved in time end as plain corruption.
    fn settle_doubts(&mut self) {
        let settled = self.doubts.overdue(Instant::now());
        self.check_again(settled);
    }

    fn check_again(&mut self, settled: Vec<(u32, Vec<u8>, bool)>) {
        for (piece, bytes, leaves_known) in settled {
            if leaves_known {
                self.check(piece, bytes);
            } else {
                self.pool.give(bytes);
                self.step(Input::Verified(piece, Verdict::Corrupt));
            }
        }
    }

    /// Zeros, and twins of pieces that are there, need nobody.
    fn write_known(&self, unwritten: Vec<(u32, Vec<u32>)>) {
        let Some(sink) = self.sink.clone().filter(|_| !unwritten.is_empty()) else { return };
        let (manifest, store, events) = (Arc::clone(&self.manifest), Arc::clone(&self.store), self.events_in.clone());
        self.tasks.spawn(async move {
            for (first, twins) in unwritten {
                let (manifest, store, sink) = (Arc::clone(&manifest), Arc::clone(&store), Arc::clone(&sink));
                let work = spawn_blocking(move || checking::write_twins(&manifest, &store, &*sink, first, &twins));
                let checked = work.await.unwrap_or(Checked::Failed(Error::Defect));
                if events.send(Event::Checked(first, checked)).await.is_err() {
                    return;
                }
            }
        });
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

async fn hold(place: OwnedSemaphorePermit, task: impl Future<Output = ()>) {
    task.await;
    drop(place);
}

/// Announcements of pieces are many and not urgent.
fn can_wait(message: &Message) -> bool {
    matches!(message, Message::Have(_) | Message::Extended(Extended::Rack(RackMessage::Have { .. })))
}

/// Reasons that say nothing against the peer.
fn is_ordinary(why: Why) -> bool {
    matches!(why, Why::Ourselves | Why::Duplicate | Why::Full | Why::Displaced | Why::BothComplete)
}
