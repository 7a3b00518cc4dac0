//! A small data centre in virtual time: real engines, a real tracker, links
//! with a rate, racks with an uplink, and nodes that lie or die. Every output
//! passes through here, so the rules that must always hold are checked here
//! too.

#![allow(dead_code)]

mod net;
mod plan;

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rackswarm_swarm::tracker::{Tracker, TrackerPolicy};
use rackswarm_swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Shape, Side, Speaks, Verdict, Why};
use wire::announce::{AnnounceRequest, Guidance};
use wire::metainfo::InfoHash;
use wire::peer::{BLOCK_BYTES, Block, Message, PeerId};

use net::Net;
pub(crate) use plan::Plan;

const IMAGE: InfoHash = InfoHash([7; 20]);
const HASHING: Duration = Duration::from_millis(1);
const PORT: u16 = 6881;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Honest,
    /// Sends corrupt bytes for one block in `one_in`.
    Liar {
        one_in: u32,
    },
    /// Takes requests and never answers.
    Mute,
    /// Refuses every request.
    Refuser,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) nature: Nature,
    pub(crate) speaks: Speaks,
    pub(crate) alive: bool,
    pub(crate) started: Duration,
    pub(crate) finished: Option<Duration>,
    pub(crate) dropped: Vec<(usize, Why)>,
    /// Payload bytes that came from other racks.
    pub(crate) crossed: u64,
    pub(crate) received: u64,
    places: usize,
    links: BTreeMap<Peer, usize>,
    next_peer: u32,
    /// Blocks kept of pieces not yet verified: whether the bytes are right.
    kept: BTreeMap<u32, BTreeMap<u32, bool>>,
    /// Blocks requested and not called off; requested and not answered.
    asked: BTreeSet<(Peer, u32, u32)>,
    owed: BTreeMap<(Peer, u32, u32), u32>,
    tick_at: Option<Duration>,
    rng: u64,
    frozen: bool,
    waiting: Vec<Event>,
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
    /// The uplink is done with a part of what was to be sent.
    LeftUplink(usize, Block),
    Part(usize, Block, Vec<u32>),
    Start,
    Kill,
    Vanish,
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) now: Duration,
    /// Changes with every output; 0 unless the plan says `traced`.
    pub(crate) trace: u64,
    pub(crate) steps: u64,
    pub(crate) messages: u64,
    plan: Plan,
    net: Net,
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

pub(crate) fn peer_id(node: usize, seed: u64) -> PeerId {
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
        World::planned(Plan::new(shape, leechers, rate, policy, seed))
    }

    pub(crate) fn with(shape: Shape, haves: Vec<PieceSet>, rate: f64, policy: &Policy, seed: u64) -> World {
        let mut plan = Plan::new(shape, haves.len() - 1, rate, policy, seed);
        for (node, have) in plan.nodes.iter_mut().zip(haves) {
            node.have = have;
        }
        World::planned(plan)
    }

    pub(crate) fn planned(plan: Plan) -> World {
        let mut tracker = Tracker::new(TrackerPolicy::default(), plan.seed);
        tracker.register(IMAGE);
        let nodes = (0..plan.nodes.len()).map(|number| Node::new(number, &plan)).collect();
        let mut world = World {
            nodes,
            now: Duration::ZERO,
            trace: 0,
            steps: 0,
            messages: 0,
            net: Net::new(&plan),
            links: Vec::new(),
            tracker,
            tracker_alive: true,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free_events: Vec::new(),
            sequence: 0,
            out: Vec::new(),
            plan,
        };
        for number in 0..world.nodes.len() {
            let start = world.plan.nodes[number].starts + Duration::from_micros(number as u64);
            world.nodes[number].started = start;
            world.after(start, number, Event::Start);
        }
        world
    }

    /// The bound of p2p.md 1.1 and 1.3 for this many leechers, in seconds.
    pub(crate) fn limit(&self, leechers: usize) -> f64 {
        self.plan.limit(leechers)
    }

    pub(crate) fn kill_at(&mut self, at: Duration, node: usize) {
        self.at(at, node, Event::Kill);
    }

    /// Without a word: its connections stay open, nothing comes out of them.
    pub(crate) fn vanish_at(&mut self, at: Duration, node: usize) {
        self.at(at, node, Event::Vanish);
    }

    pub(crate) fn kill_tracker(&mut self) {
        self.tracker_alive = false;
    }

    pub(crate) fn revive_tracker(&mut self) {
        self.tracker_alive = true;
    }

    /// From now on nothing happens in this node, until it thaws.
    pub(crate) fn freeze(&mut self, node: usize) {
        self.nodes[node].frozen = true;
    }

    /// All that waited happens now.
    pub(crate) fn thaw(&mut self, node: usize) {
        self.nodes[node].frozen = false;
        for event in std::mem::take(&mut self.nodes[node].waiting) {
            self.after(Duration::ZERO, node, event);
        }
    }

    pub(crate) fn kill_now(&mut self, node: usize) {
        self.kill(node);
    }

    /// Runs until nothing is missing anywhere alive; panics after `until`.
    pub(crate) fn run(&mut self, until: Duration) {
        self.run_while(until, |world| !world.is_finished());
        assert!(self.is_finished(), "seed {}: not finished after {until:?}:\n{}", self.plan.seed, self.describe());
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

    /// From each node's start to its end, ascending, in seconds.
    pub(crate) fn finishes(&self) -> Vec<f64> {
        let done = |node: &Node| node.finished.map(|at| at.saturating_sub(node.started).as_secs_f64());
        let mut all: Vec<f64> = self.nodes[1..].iter().filter(|node| node.alive).filter_map(done).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    pub(crate) fn makespan(&self) -> f64 {
        let honest = self.nodes.iter().filter(|node| node.alive);
        honest.filter_map(|node| node.finished).max().unwrap_or_default().as_secs_f64()
    }

    /// Images that this node sent.
    pub(crate) fn egress(&self, node: usize) -> f64 {
        self.nodes[node].engine.ledger().total().sent as f64 / self.plan.shape.length() as f64
    }

    /// Bytes received for nothing, in parts of what was needed.
    pub(crate) fn waste(&self) -> f64 {
        let total = |node: &Node| node.engine.ledger().total();
        let wasted: u64 = self.nodes.iter().map(|node| total(node).wasted).sum();
        wasted as f64 / self.nodes.iter().map(|node| total(node).received).sum::<u64>() as f64
    }

    /// Images that crossed into a rack.
    pub(crate) fn crossed(&self, rack: usize) -> f64 {
        let members = self.nodes.iter().zip(&self.plan.nodes).filter(|(_, plan)| plan.rack == Some(rack));
        members.map(|(node, _)| node.crossed).sum::<u64>() as f64 / self.plan.shape.length() as f64
    }

    /// Requests that honest living nodes were neither answered nor refused.
    pub(crate) fn unanswered(&self) -> usize {
        self.nodes.iter().filter(|node| node.alive).map(|node| node.owed.len()).sum()
    }

    /// Which honest living nodes owe whom an answer.
    pub(crate) fn debts(&self, guilty: &[usize]) -> String {
        let owed = |(number, node): (usize, &Node)| {
            let debts = node.owed.keys().filter_map(|(peer, piece, block)| {
                let debtor = self.other(*node.links.get(peer)?, number);
                let line = format!("node {number} waits for {debtor} to answer for block {block} of piece {piece}\n");
                (!guilty.contains(&debtor)).then_some(line)
            });
            debts.collect::<String>()
        };
        self.nodes.iter().enumerate().filter(|(_, node)| node.alive).map(owed).collect()
    }

    pub(crate) fn describe(&self) -> String {
        let line = |(number, node): (usize, &Node)| {
            let view = node.engine.view();
            let missing: Vec<u32> =
                (0..view.pieces_total).filter(|piece| !node.engine.have().contains(*piece)).take(8).collect();
            format!(
                "node {number}: alive {} {}/{} pieces, {} active, missing {missing:?}, deadline {:?} at {:?}, peers {:?}\n",
                node.alive,
                view.pieces,
                view.pieces_total,
                view.active_pieces,
                node.engine.deadline(),
                self.now,
                view.peers
                    .iter()
                    .map(|p| (p.address, p.kin, p.pieces, p.snubbed, p.outstanding, p.queued))
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
        if self.nodes[node].frozen {
            self.nodes[node].waiting.push(event);
        } else if self.nodes[node].alive {
            self.happen(node, event);
        }
        true
    }

    fn happen(&mut self, node: usize, event: Event) {
        match event {
            Event::Start => {
                self.step(node, Input::Tick);
                // A driver writes the twins of what it finds.
                for piece in self.plan.nodes[node].have.clone().iter() {
                    for twin in self.plan.twins_of(piece) {
                        self.step(node, Input::Verified(twin, Verdict::Good));
                    }
                }
                if let Some(peers) = self.plan.acquaintances(node) {
                    self.step(node, Input::Found(peers.into_iter().map(address).collect()));
                }
            }
            Event::Tick => {
                if self.nodes[node].tick_at.is_none_or(|at| at == self.now) {
                    self.nodes[node].tick_at = None;
                    self.step(node, Input::Tick);
                }
            }
            Event::Dialled(to) => self.dialled(node, to),
            Event::Step(input) => self.step(node, input),
            Event::Message(link, message) => self.message(node, link, message),
            Event::Closed(link) => {
                let peer = self.forget(link, node);
                self.step(node, Input::Gone(peer));
            }
            Event::LeftUplink(link, block) => self.left_uplink(node, link, block),
            Event::Part(link, block, bad) => self.part(node, link, block, &bad),
            Event::Kill => self.kill(node),
            Event::Vanish => self.nodes[node].alive = false,
        }
    }

    fn message(&mut self, node: usize, link: usize, message: Message) {
        let Some(peer) = self.end(link, node) else { return };
        let fast = self.both_fast(link);
        match &message {
            Message::Choke if !fast => {
                self.nodes[node].owed.retain(|(owing, ..), _| *owing != peer);
                self.nodes[node].asked.retain(|(owing, ..)| *owing != peer);
            }
            Message::Reject(block) => {
                assert!(fast || self.nodes[self.other(link, node)].nature == Nature::Refuser, "a reject needs BEP 6");
                self.answered(node, peer, *block, false);
            }
            _ => {}
        }
        self.step(node, Input::Said(peer, message));
    }

    fn both_fast(&self, link: usize) -> bool {
        self.links[link].ends.iter().all(|(node, _)| self.nodes[*node].speaks.fast)
    }

    fn left_uplink(&mut self, node: usize, link: usize, block: Block) {
        let other = self.other(link, node);
        let bad = self.nodes[node].spoils(block);
        let there = self.net.deliver(self.now, node, other, block.length);
        self.at(there + self.plan.latency, other, Event::Part(link, block, bad));
        self.pump(node);
        if let Some(peer) = self.end(link, node) {
            self.step(node, Input::Sent(peer, block));
        }
    }

    /// A part arrived; its window opens for more.
    fn part(&mut self, node: usize, link: usize, block: Block, bad: &[u32]) {
        let from = self.other(link, node);
        self.net.arrived(from, link, block.length);
        self.pump(from);
        let Some(peer) = self.end(link, node) else { return };
        self.nodes[node].received += u64::from(block.length);
        if self.plan.nodes[node].rack != self.plan.nodes[from].rack {
            self.nodes[node].crossed += u64::from(block.length);
        }
        self.answered(node, peer, block, true);
        self.step_holding(node, Input::Arrived(peer, block), Some((block, bad)));
    }

    fn answered(&mut self, node: usize, peer: Peer, block: Block, sent: bool) {
        for index in blocks(block) {
            let key = (peer, block.piece, index);
            let here = &mut self.nodes[node];
            if let Some(count) = here.owed.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    here.owed.remove(&key);
                }
            }
            // A refusal may be the answer to a request that was called off.
            if sent || !here.owed.contains_key(&key) {
                here.asked.remove(&key);
            }
        }
    }

    /// Lets the uplink take the next part, if it is free.
    fn pump(&mut self, node: usize) {
        if let Some((at, link, block)) = self.net.next(self.now, node) {
            self.at(at, node, Event::LeftUplink(link, block));
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
        let here = &mut self.nodes[node];
        here.links.remove(&peer);
        here.owed.retain(|(owing, ..), _| *owing != peer);
        here.asked.retain(|(owing, ..)| *owing != peer);
        self.net.closed(node, link);
        peer
    }

    fn dialled(&mut self, node: usize, to: SocketAddr) {
        let target = (0..self.nodes.len()).find(|&other| address(other) == to);
        let there = |target: &usize| self.nodes[*target].alive && self.nodes[*target].started <= self.now;
        let Some(target) = target.filter(there) else {
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
        let (near, far) = (self.nodes[node].engine.id(), self.nodes[target].engine.id());
        let both = |a: Speaks, b: Speaks| Speaks { fast: a.fast && b.fast, extended: a.extended && b.extended };
        let speaks = both(self.nodes[node].speaks, self.nodes[target].speaks);
        self.step(node, Input::Connected { peer: here, side: Side::Outbound, address: to, id: far, speaks });
        if self.links[link].open {
            self.step(target, Input::Connected { peer: there, side: Side::Inbound, address: from, id: near, speaks });
        }
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
        self.after(self.plan.latency, other, Event::Closed(link));
    }

    fn step(&mut self, node: usize, input: Input) {
        self.step_holding(node, input, None);
    }

    fn step_holding(&mut self, node: usize, input: Input, arrived: Option<(Block, &[u32])>) {
        let mut out = std::mem::take(&mut self.out);
        self.steps += 1;
        self.nodes[node].engine.step(self.now, input, &mut out);
        for output in out.drain(..) {
            if self.plan.traced {
                let mut hasher = DefaultHasher::new();
                (self.trace, self.now, node, format!("{output:?}")).hash(&mut hasher);
                self.trace = hasher.finish();
            }
            self.perform(node, output, arrived);
        }
        self.out = out;
        let deadline = self.nodes[node].engine.deadline().map(|at| at.max(self.now + Duration::from_nanos(1)));
        if let Some(at) = deadline.filter(|at| self.nodes[node].tick_at.is_none_or(|set| *at < set)) {
            self.nodes[node].tick_at = Some(at);
            self.at(at, node, Event::Tick);
        }
    }

    fn perform(&mut self, node: usize, output: Output, arrived: Option<(Block, &[u32])>) {
        match output {
            Output::Dial(to) => self.after(2 * self.plan.latency, node, Event::Dialled(to)),
            Output::Say(peer, message) => self.say(node, peer, message),
            Output::Send(peer, block) => self.send(node, peer, block),
            Output::Keep(_, block) => self.keep(node, block, arrived),
            Output::Verify(piece) => self.verify(node, piece),
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

    fn keep(&mut self, node: usize, block: Block, arrived: Option<(Block, &[u32])>) {
        let (held, bad) = arrived.expect("Keep is about what arrived");
        let end = |block: Block| block.offset + block.length;
        assert!(block.piece == held.piece && held.offset <= block.offset && end(block) <= end(held));
        let here = &mut self.nodes[node];
        let piece = here.kept.entry(block.piece).or_default();
        for index in blocks(block) {
            assert!(piece.insert(index, !bad.contains(&index)).is_none(), "a block was kept twice");
        }
        assert!(here.kept.len() <= here.places, "node {node} exceeds its memory");
    }

    fn verify(&mut self, node: usize, piece: u32) {
        let kept = self.nodes[node].kept.get_mut(&piece).expect("blocks were kept");
        assert_eq!(kept.len() as u32, self.plan.shape.blocks(piece), "the piece is whole");
        let bad: Vec<u32> = kept.iter().filter(|(_, good)| !**good).map(|(index, _)| *index).collect();
        let verdict = if bad.is_empty() {
            Verdict::Good
        } else if self.plan.leaves {
            kept.retain(|_, good| *good);
            return self.after(HASHING, node, Event::Step(Input::Verified(piece, Verdict::CorruptBlocks(bad))));
        } else {
            Verdict::Corrupt
        };
        self.nodes[node].kept.remove(&piece);
        self.after(HASHING, node, Event::Step(Input::Verified(piece, verdict)));
        if bad.is_empty() {
            for twin in self.plan.twins_of(piece) {
                self.after(HASHING, node, Event::Step(Input::Verified(twin, Verdict::Good)));
            }
        }
    }

    fn say(&mut self, node: usize, peer: Peer, message: Message) {
        self.messages += 1;
        let link = self.nodes[node].links[&peer];
        let fast = self.both_fast(link);
        let here = &mut self.nodes[node];
        match &message {
            Message::Request(block) => {
                assert!(!here.engine.have().contains(block.piece), "node {node} asks for what it has");
                for index in blocks(*block) {
                    let kept = here.kept.get(&block.piece).is_some_and(|kept| kept.contains_key(&index));
                    assert!(!kept, "node {node} asks for a block it holds");
                    let key = (peer, block.piece, index);
                    assert!(
                        here.asked.insert(key),
                        "node {node} asks {peer:?} twice for {block:?} at {:?}, seed {}",
                        self.now,
                        self.plan.seed
                    );
                    *here.owed.entry(key).or_default() += 1;
                }
            }
            Message::Cancel(block) => {
                for index in blocks(*block) {
                    let key = (peer, block.piece, index);
                    here.asked.remove(&key);
                    if !fast {
                        here.owed.remove(&key);
                    }
                }
            }
            _ => {}
        }
        let other = self.other(link, node);
        self.after(self.plan.latency, other, Event::Message(link, message));
    }

    fn send(&mut self, node: usize, peer: Peer, block: Block) {
        assert!(self.nodes[node].engine.have().contains(block.piece), "an unverified piece is served");
        let link = self.nodes[node].links[&peer];
        match self.nodes[node].nature {
            Nature::Mute => return,
            Nature::Refuser => {
                let other = self.other(link, node);
                self.after(self.plan.latency, other, Event::Message(link, Message::Reject(block)));
                return self.after(Duration::ZERO, node, Event::Step(Input::Sent(peer, block)));
            }
            Nature::Honest | Nature::Liar { .. } => {}
        }
        self.net.queue(node, link, block);
        self.pump(node);
    }

    fn announce(&mut self, node: usize, progress: rackswarm_swarm::Progress) {
        let request = AnnounceRequest {
            info_hash: IMAGE,
            peer_id: self.nodes[node].engine.id(),
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
            return self.after(self.plan.latency, node, Event::Step(Input::AnnounceFailed));
        }
        let interval = Duration::from_secs(30);
        let guidance = self.plan.guided.then_some(Guidance { cooperative: true, rack: None });
        let peers = if self.plan.acquaintances(node).is_some() {
            Vec::new()
        } else {
            let answer = self.tracker.announce(self.now, &request, address(node).ip()).expect("registered");
            answer.peers.iter().map(|peer| peer.address).collect()
        };
        let input = Input::Announced { interval, peers, guidance };
        self.after(2 * self.plan.latency, node, Event::Step(input));
    }
}

/// The numbers of the blocks that a range covers.
fn blocks(range: Block) -> std::ops::Range<u32> {
    let first = range.offset / BLOCK_BYTES;
    first..first + range.length.div_ceil(BLOCK_BYTES)
}

impl Node {
    fn new(number: usize, plan: &Plan) -> Node {
        let node = &plan.nodes[number];
        let fitting = node.policy.active_bytes / u64::from(plan.shape.piece_length());
        Node {
            finished: node.have.is_full().then_some(Duration::ZERO),
            engine: Engine::new(
                peer_id(number, plan.seed),
                plan.setup(number),
                node.policy.clone(),
                plan.seed.wrapping_mul(1000) + number as u64,
            ),
            nature: node.nature,
            speaks: node.speaks,
            alive: true,
            started: Duration::ZERO,
            dropped: Vec::new(),
            crossed: 0,
            received: 0,
            places: usize::try_from(fitting).unwrap_or(usize::MAX).max(2),
            links: BTreeMap::new(),
            next_peer: 0,
            kept: BTreeMap::new(),
            asked: BTreeSet::new(),
            owed: BTreeMap::new(),
            tick_at: None,
            rng: plan.seed ^ number as u64,
            frozen: false,
            waiting: Vec::new(),
        }
    }

    /// The blocks of a part that a liar sends wrong.
    fn spoils(&mut self, block: Block) -> Vec<u32> {
        let Nature::Liar { one_in } = self.nature else { return Vec::new() };
        blocks(block).filter(|_| self.lot().is_multiple_of(one_in)).collect()
    }

    fn lot(&mut self) -> u32 {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.rng >> 33) as u32
    }
}
