//! A small data centre in virtual time: real engines, a real tracker, links
//! with a rate, and nodes that lie or die. Every output passes through here,
//! so the rules that must always hold are checked here too.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rackswarm_swarm::tracker::{Tracker, TrackerPolicy};
use rackswarm_swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Setup, Shape, Side, Speaks, Verdict, Why};
use wire::announce::AnnounceRequest;
use wire::metainfo::InfoHash;
use wire::peer::{Block, Message, PeerId};

const IMAGE: InfoHash = InfoHash([7; 20]);
const LATENCY: Duration = Duration::from_micros(200);
const HASHING: Duration = Duration::from_millis(1);
const PORT: u16 = 6881;
/// Ethernet, IP and TCP headers of a full-size frame.
const HEADER_TAX: f64 = 1514.0 / 1448.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Honest,
    /// Sends corrupt bytes for one block in `one_in`.
    Liar {
        one_in: u32,
    },
    /// Takes requests and never answers.
    Mute,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) nature: Nature,
    pub(crate) alive: bool,
    pub(crate) finished: Option<Duration>,
    pub(crate) dropped: Vec<(usize, Why)>,
    links: BTreeMap<Peer, usize>,
    next_peer: u32,
    /// Blocks kept of pieces not yet verified: whether the bytes are right.
    kept: BTreeMap<u32, BTreeMap<u32, bool>>,
    owed: BTreeSet<(Peer, Block)>,
    tick_at: Option<Duration>,
    up_free: Duration,
    down_free: Duration,
    rng: u64,
    /// Blocks that a mute node was told to send and did not.
    withheld: Vec<(Peer, Block)>,
}

struct Link {
    ends: [(usize, Peer); 2],
    open: bool,
}

#[derive(Debug)]
enum Event {
    Tick,
    Dialled(SocketAddr),
    Step(Input),
    /// A message or closing under way on a link, to this node.
    Message(usize, Message),
    Closed(usize),
    LeftUplink(usize, Block),
    Block(usize, Block, bool),
    Kill,
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) now: Duration,
    pub(crate) trace: u64,
    pub(crate) steps: u64,
    shape: Shape,
    block_time: f64,
    links: Vec<Link>,
    tracker: Tracker,
    tracker_alive: bool,
    queue: BinaryHeap<Reverse<(Duration, u64, usize, usize)>>,
    events: Vec<Option<Event>>,
    free_events: Vec<usize>,
    sequence: u64,
    out: Vec<Output>,
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::from([10, 0, (node >> 8) as u8, node as u8]), PORT)
}

fn peer_id(node: usize, seed: u64) -> PeerId {
    let mut id = *b"-RS0100-............";
    // Mixed, so that the order of ids says nothing about roles.
    let mixed = (node as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    id[8..16].copy_from_slice(&mixed);
    id[16..20].copy_from_slice(&(node as u32).to_be_bytes());
    PeerId(id)
}

impl World {
    /// Node 0 is the seed; `leechers` nodes start empty at time zero. Links
    /// carry `rate` bytes per second each way.
    pub(crate) fn new(shape: Shape, leechers: usize, rate: f64, policy: &Policy, seed: u64) -> World {
        let haves = (0..=leechers).map(|node| match node {
            0 => PieceSet::full(shape.pieces()),
            _ => PieceSet::empty(shape.pieces()),
        });
        World::with(shape, haves.collect(), rate, policy, seed)
    }

    pub(crate) fn with(shape: Shape, haves: Vec<PieceSet>, rate: f64, policy: &Policy, seed: u64) -> World {
        let mut tracker = Tracker::new(TrackerPolicy::default(), seed);
        tracker.register(IMAGE);
        let node = |(number, have): (usize, PieceSet)| Node {
            finished: have.is_full().then_some(Duration::ZERO),
            engine: Engine::new(
                peer_id(number, seed),
                Setup::new(shape, have),
                policy.clone(),
                seed.wrapping_mul(1000) + number as u64,
            ),
            nature: Nature::Honest,
            alive: true,
            dropped: Vec::new(),
            links: BTreeMap::new(),
            next_peer: 0,
            kept: BTreeMap::new(),
            owed: BTreeSet::new(),
            tick_at: None,
            up_free: Duration::ZERO,
            down_free: Duration::ZERO,
            rng: seed ^ number as u64,
            withheld: Vec::new(),
        };
        let mut world = World {
            nodes: haves.into_iter().enumerate().map(node).collect(),
            now: Duration::ZERO,
            trace: 0,
            steps: 0,
            shape,
            block_time: HEADER_TAX / rate,
            links: Vec::new(),
            tracker,
            tracker_alive: true,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free_events: Vec::new(),
            sequence: 0,
            out: Vec::new(),
        };
        for number in 0..world.nodes.len() {
            world.after(Duration::from_micros(number as u64), number, Event::Tick);
        }
        world
    }

    /// The bound of p2p.md 1.1 for this many leechers, in seconds.
    pub(crate) fn limit(&self, leechers: usize) -> f64 {
        let rounds = f64::from(leechers.ilog2()) / f64::from(self.shape.pieces());
        self.shape.length() as f64 * self.block_time * (1.0 + rounds)
    }

    pub(crate) fn kill_at(&mut self, at: Duration, node: usize) {
        self.at(at, node, Event::Kill);
    }

    pub(crate) fn kill_tracker(&mut self) {
        self.tracker_alive = false;
    }

    pub(crate) fn revive_tracker(&mut self) {
        self.tracker_alive = true;
    }

    /// A mute node speaks again, beginning with what it held back.
    pub(crate) fn thaw(&mut self, node: usize) {
        self.nodes[node].nature = Nature::Honest;
        for (peer, block) in std::mem::take(&mut self.nodes[node].withheld) {
            if self.nodes[node].links.contains_key(&peer) {
                self.send(node, peer, block);
            }
        }
    }

    pub(crate) fn kill_now(&mut self, node: usize) {
        self.kill(node);
    }

    /// Runs until nothing is missing anywhere alive; panics after `until`.
    pub(crate) fn run(&mut self, until: Duration) {
        self.run_while(until, |world| !world.is_finished());
        assert!(self.is_finished(), "not finished after {until:?}:\n{}", self.describe());
    }

    pub(crate) fn run_while(&mut self, until: Duration, go_on: impl Fn(&World) -> bool) {
        while go_on(self) && self.now < until {
            if !self.advance() {
                break;
            }
        }
    }

    /// Lets what is under way arrive: `for_` more seconds of virtual time.
    pub(crate) fn settle(&mut self, for_: Duration) {
        let until = self.now + for_;
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= until) {
            self.advance();
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        let done = |node: &Node| !node.alive || node.finished.is_some() || node.nature != Nature::Honest;
        self.nodes.iter().all(done)
    }

    pub(crate) fn makespan(&self) -> f64 {
        let honest = self.nodes.iter().filter(|node| node.alive);
        honest.filter_map(|node| node.finished).max().unwrap_or_default().as_secs_f64()
    }

    /// Requests that honest living nodes were neither answered nor refused.
    pub(crate) fn unanswered(&self) -> usize {
        self.nodes.iter().filter(|node| node.alive).map(|node| node.owed.len()).sum()
    }

    fn describe(&self) -> String {
        let line = |(number, node): (usize, &Node)| {
            let view = node.engine.view();
            format!(
                "node {number}: alive {} {}/{} pieces, {} active, peers {:?}\n",
                node.alive,
                view.pieces,
                view.pieces_total,
                view.active_pieces,
                view.peers
                    .iter()
                    .map(|p| (p.address, p.pieces, p.chokes_us, p.outstanding, p.queued))
                    .collect::<Vec<_>>()
            )
        };
        self.nodes.iter().enumerate().filter(|(_, node)| node.finished.is_none()).take(4).map(line).collect()
    }

    fn after(&mut self, wait: Duration, node: usize, event: Event) {
        self.at(self.now + wait, node, event);
    }

    fn at(&mut self, at: Duration, node: usize, event: Event) {
        let slot = match self.free_events.pop() {
            Some(slot) => slot,
            None => {
                self.events.push(None);
                self.events.len() - 1
            }
        };
        self.events[slot] = Some(event);
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, node, slot)));
    }

    fn advance(&mut self) -> bool {
        let Some(Reverse((at, _, node, slot))) = self.queue.pop() else { return false };
        let event = self.events[slot].take().expect("a queued event is there");
        self.free_events.push(slot);
        self.now = at;
        if self.nodes[node].alive {
            self.happen(node, event);
        }
        true
    }

    fn happen(&mut self, node: usize, event: Event) {
        match event {
            Event::Tick => {
                if self.nodes[node].tick_at.is_none_or(|at| at == self.now) {
                    self.nodes[node].tick_at = None;
                    self.step(node, Input::Tick);
                }
            }
            Event::Dialled(to) => self.dialled(node, to),
            Event::Step(input) => self.step(node, input),
            Event::Message(link, message) => {
                if let Some(peer) = self.end(link, node) {
                    if let Message::Choke = message {
                        self.nodes[node].owed.retain(|(owing, _)| *owing != peer);
                    }
                    self.step(node, Input::Said(peer, message));
                }
            }
            Event::Closed(link) => {
                let peer = self.forget(link, node);
                self.step(node, Input::Gone(peer));
            }
            Event::LeftUplink(link, block) => {
                if let Some(peer) = self.end(link, node) {
                    self.step(node, Input::Sent(peer, block));
                }
            }
            Event::Block(link, block, good) => {
                if let Some(peer) = self.end(link, node) {
                    self.nodes[node].owed.remove(&(peer, block));
                    self.arrive(node, peer, block, good);
                }
            }
            Event::Kill => self.kill(node),
        }
    }

    /// The key of this node's end of an open link.
    fn end(&self, link: usize, node: usize) -> Option<Peer> {
        let link = &self.links[link];
        link.open.then(|| if link.ends[0].0 == node { link.ends[0].1 } else { link.ends[1].1 })
    }

    fn other(&self, link: usize, node: usize) -> usize {
        let ends = &self.links[link].ends;
        if ends[0].0 == node { ends[1].0 } else { ends[0].0 }
    }

    fn forget(&mut self, link: usize, node: usize) -> Peer {
        let ends = &self.links[link].ends;
        let peer = if ends[0].0 == node { ends[0].1 } else { ends[1].1 };
        self.nodes[node].links.remove(&peer);
        self.nodes[node].owed.retain(|(owing, _)| *owing != peer);
        peer
    }

    fn dialled(&mut self, node: usize, to: SocketAddr) {
        let target = (0..self.nodes.len()).find(|&other| address(other) == to);
        let Some(target) = target.filter(|&target| self.nodes[target].alive) else {
            return self.step(node, Input::DialFailed(to));
        };
        let mut key = |of: usize| {
            self.nodes[of].next_peer += 1;
            Peer(self.nodes[of].next_peer)
        };
        let (here, there) = (key(node), key(target));
        let link = self.links.len();
        self.links.push(Link { ends: [(node, here), (target, there)], open: true });
        self.nodes[node].links.insert(here, link);
        self.nodes[target].links.insert(there, link);
        let from = SocketAddr::new(address(node).ip(), 40_000 + here.0 as u16);
        let (near, far) = (self.nodes[node].engine_id(), self.nodes[target].engine_id());
        self.step(
            node,
            Input::Connected { peer: here, side: Side::Outbound, address: to, id: far, speaks: Speaks::default() },
        );
        if self.links[link].open {
            self.step(
                target,
                Input::Connected {
                    peer: there,
                    side: Side::Inbound,
                    address: from,
                    id: near,
                    speaks: Speaks::default(),
                },
            );
        }
    }

    fn arrive(&mut self, node: usize, peer: Peer, block: Block, good: bool) {
        let kept = (block, good);
        self.step_holding(node, Input::Arrived(peer, block), Some(kept));
    }

    fn kill(&mut self, node: usize) {
        let links: Vec<usize> = self.nodes[node].links.values().copied().collect();
        for link in links {
            self.close(link, node);
        }
        self.nodes[node].alive = false;
    }

    fn close(&mut self, link: usize, by: usize) {
        self.links[link].open = false;
        let other = self.other(link, by);
        self.forget(link, by);
        self.after(LATENCY, other, Event::Closed(link));
    }

    fn step(&mut self, node: usize, input: Input) {
        self.step_holding(node, input, None);
    }

    fn step_holding(&mut self, node: usize, input: Input, mut arrived: Option<(Block, bool)>) {
        let mut out = std::mem::take(&mut self.out);
        self.steps += 1;
        self.nodes[node].engine.step(self.now, input, &mut out);
        for output in out.drain(..) {
            let mut hasher = DefaultHasher::new();
            (self.trace, self.now, node, format!("{output:?}")).hash(&mut hasher);
            self.trace = hasher.finish();
            self.perform(node, output, &mut arrived);
        }
        self.out = out;
        let deadline = self.nodes[node].engine.deadline().map(|at| at.max(self.now + Duration::from_nanos(1)));
        if let Some(at) = deadline.filter(|at| self.nodes[node].tick_at.is_none_or(|set| *at < set)) {
            self.nodes[node].tick_at = Some(at);
            self.at(at, node, Event::Tick);
        }
    }

    fn perform(&mut self, node: usize, output: Output, arrived: &mut Option<(Block, bool)>) {
        match output {
            Output::Dial(to) => self.after(2 * LATENCY, node, Event::Dialled(to)),
            Output::Say(peer, message) => self.say(node, peer, message),
            Output::Send(peer, block) => self.send(node, peer, block),
            Output::Keep(_, block) => {
                let (held, good) = arrived.take().expect("Keep is about the block that arrived");
                assert_eq!(held, block);
                let piece = self.nodes[node].kept.entry(block.piece).or_default();
                assert!(piece.insert(block.offset, good).is_none(), "a block was kept twice");
            }
            Output::Verify(piece) => {
                let blocks = self.nodes[node].kept.remove(&piece).expect("blocks were kept");
                assert_eq!(blocks.len() as u32, self.shape.blocks(piece), "the piece is whole");
                let verdict = if blocks.values().all(|good| *good) { Verdict::Good } else { Verdict::Corrupt };
                self.after(HASHING, node, Event::Step(Input::Verified(piece, verdict)));
            }
            Output::Forget(piece) => {
                self.nodes[node].kept.remove(&piece);
            }
            Output::Announce(progress) => self.announce(node, progress),
            Output::Drop(peer, why) => {
                let link = self.nodes[node].links[&peer];
                let other = self.other(link, node);
                self.nodes[node].dropped.push((other, why));
                self.close(link, node);
            }
            Output::Complete => {
                assert!(self.nodes[node].finished.is_none(), "complete comes once");
                assert!(self.nodes[node].engine.have().is_full());
                self.nodes[node].finished = Some(self.now);
            }
        }
    }

    fn say(&mut self, node: usize, peer: Peer, message: Message) {
        let here = &mut self.nodes[node];
        match &message {
            Message::Request(block) => {
                assert!(!here.engine.have().contains(block.piece), "node {node} asks for what it has");
                let kept = here.kept.get(&block.piece).is_some_and(|kept| kept.contains_key(&block.offset));
                assert!(!kept, "node {node} asks for a block it holds");
                assert!(here.owed.insert((peer, *block)), "node {node} asks one peer twice for a block");
            }
            Message::Cancel(block) => {
                here.owed.remove(&(peer, *block));
            }
            _ => {}
        }
        let link = here.links[&peer];
        let other = self.other(link, node);
        self.after(LATENCY, other, Event::Message(link, message));
    }

    /// The uplink is a queue; the downlink is one too, and blocks cut through
    /// from one to the other.
    fn send(&mut self, node: usize, peer: Peer, block: Block) {
        assert!(self.nodes[node].engine.have().contains(block.piece), "an unverified piece is served");
        let link = self.nodes[node].links[&peer];
        let other = self.other(link, node);
        if self.nodes[node].nature == Nature::Mute {
            return self.nodes[node].withheld.push((peer, block));
        }
        let took = Duration::from_secs_f64(f64::from(block.length) * self.block_time);
        let left = self.nodes[node].up_free.max(self.now) + took;
        self.nodes[node].up_free = left;
        let there = left.max(self.nodes[other].down_free + took);
        self.nodes[other].down_free = there;
        let good = !self.nodes[node].lies();
        self.at(left, node, Event::LeftUplink(link, block));
        self.at(there + LATENCY, other, Event::Block(link, block, good));
    }

    fn announce(&mut self, node: usize, progress: rackswarm_swarm::Progress) {
        let request = AnnounceRequest {
            info_hash: IMAGE,
            peer_id: self.nodes[node].engine_id(),
            port: PORT,
            uploaded: progress.uploaded,
            downloaded: progress.downloaded,
            left: progress.left,
            event: progress.event,
            num_want: Some(progress.num_want),
            compact: true,
            own_kind: false,
            rack: None,
        };
        if !self.tracker_alive {
            return self.after(LATENCY, node, Event::Step(Input::AnnounceFailed));
        }
        let answer = self.tracker.announce(self.now, &request, address(node).ip()).expect("registered");
        let peers = answer.peers.iter().map(|peer| peer.address).collect();
        let interval = Duration::from_secs(answer.interval_seconds.into());
        self.after(2 * LATENCY, node, Event::Step(Input::Announced { interval, peers, guidance: None }));
    }
}

impl Node {
    fn engine_id(&self) -> PeerId {
        self.engine.id()
    }

    fn lies(&mut self) -> bool {
        let Nature::Liar { one_in } = self.nature else { return false };
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.rng >> 33) as u32).is_multiple_of(one_in)
    }
}
