//! A data centre in virtual time: production engines, the production
//! tracker, a model of the network, and what goes wrong. Every output of an
//! engine passes through here, so what must always hold is checked here.

mod announcing;
mod ending;
mod faults;
pub(crate) mod node;
mod pieces;
mod setup;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use swarm::tracker::Tracker;
use swarm::{Input, Output, Peer, PieceSet, Policy, Shape, Side, Speaks, Why};
use wire::metainfo::InfoHash;
use wire::peer::{BLOCK_BYTES, Block, Extended, Message, RackMessage, RackName};

use crate::agenda::{Agenda, Event, Slab};
use crate::chance::{Stream, below, draw};
use crate::net::{Delivery, Network, Party, Route};
use crate::report::{Report, Sample};
use crate::scenario::{Nature, Scenario};
use crate::trace::Trace;
use crate::units::{Nanos, SECOND};
use node::{BadAsk, Brain, Life, Node};

const IMAGE: InfoHash = InfoHash([7; 20]);
const PORT: u16 = 6881;
/// A dial of a machine that is off ends after this, as ARP does.
const NOBODY: Nanos = 3 * SECOND;
/// A dial of a program that does not answer ends after this.
const NO_ANSWER: Nanos = 30 * SECOND;
/// Swarms up to this size are followed a little longer than their download.
const SETTLED_NODES: usize = 2000;
/// For so long.
const SETTLING: Nanos = 40 * SECOND;
/// So often an engine may ask to be woken at once.
const RESTLESS: u32 = 100;
/// Violations that are described; more are only counted.
const DESCRIBED: usize = 20;
/// Samples of progress until the bound.
const SAMPLES: u64 = 100;

/// A connection between two nodes.
#[derive(Debug, Clone, Copy)]
struct Link {
    nodes: [u32; 2],
    peers: [u32; 2],
    open: [bool; 2],
    fast: bool,
}

/// What is due at a node later.
#[derive(Debug)]
enum Due {
    Input(u32, Input),
    Delivery(Delivery),
}

/// The whole.
pub(crate) struct World<N> {
    scenario: Scenario,
    seed: u64,
    shape: Shape,
    policy: Policy,
    bound: Nanos,
    deadline: Nanos,
    nodes: Vec<Node>,
    links: Vec<Link>,
    tracker: Tracker,
    tracker_dead: bool,
    tracker_stale: bool,
    tracker_by: Nanos,
    net: N,
    agenda: Agenda,
    due: Slab<Due>,
    dials: Slab<SocketAddr>,
    out: Vec<Output>,
    deliveries: Vec<Delivery>,
    /// Kept for their memory: whom the next events concern.
    concerned: Vec<(Route, Party)>,
    soon: Vec<(u32, Peer)>,
    rack_names: Vec<RackName>,
    /// The later pieces that equal a first one.
    twins: BTreeMap<u32, Vec<u32>>,
    twin_set: PieceSet,
    kept_before: PieceSet,
    /// Living holders of every piece, and how many pieces have none.
    copies: Vec<u32>,
    lost: u32,
    /// Nodes that are waited for.
    expected: u32,
    /// Nodes that will start, for the first time or again.
    returning: u32,
    trace: Trace,
    events: u64,
    steps: u64,
    payload_sent: u64,
    payload_arrived: u64,
    /// Payload whose receiver was gone.
    payload_lost: u64,
    seed_sent: u64,
    seed_limit: Option<(u32, u64)>,
    rack_in: Vec<u64>,
    pieces_had: u64,
    finished: u32,
    samples: Vec<Sample>,
    drops: BTreeMap<String, u64>,
    /// Messages by kind.
    said: [u64; KINDS.len()],
    unfair: u64,
    violations: Vec<String>,
    violation_count: u64,
    peak_active: u64,
}

impl<N: Network> World<N> {
    /// Runs until nothing is left to wait for, or the deadline.
    pub(crate) fn run(mut self, progress: &mut dyn FnMut(&Sample) -> bool) -> Report {
        let mut sampled = 0;
        while !self.is_over() {
            match self.agenda.peek() {
                Some(at) if at <= self.deadline => {}
                _ => break,
            }
            self.look_ahead();
            let Some(event) = self.agenda.next() else { break };
            self.events += 1;
            self.happen(event);
            if self.samples.len() > sampled {
                sampled = self.samples.len();
                if self.samples.last().is_some_and(|sample| !progress(sample)) {
                    break;
                }
            }
        }
        self.settle();
        self.conclude()
    }

    /// Reads what the events of the next microseconds will need. Each concerns
    /// another node, and what one needs lies in no cache: a step would wait for
    /// it piece by piece. Many reads that do not depend on each other wait
    /// together, so it is done in rounds, each one pointer further.
    fn look_ahead(&mut self) {
        let mut concerned = std::mem::take(&mut self.concerned);
        let mut soon = std::mem::take(&mut self.soon);
        for event in self.agenda.turned() {
            match event {
                Event::Tick(node) | Event::Stored(node, ..) => soon.push((node, Peer(u32::MAX))),
                event => self.net.concerns(event, &mut concerned),
            }
        }
        soon.extend(concerned.drain(..).map(|(route, party)| {
            let receives = party == Party::Receiver;
            let end = usize::from(route.end) ^ usize::from(receives);
            let node = if receives { route.to } else { route.from };
            (node, Peer(self.links[route.link as usize].peers[end]))
        }));
        let nodes = &self.nodes;
        let mut seen = soon.iter().fold(0, |seen, (node, _)| seen ^ nodes[*node as usize].look());
        seen ^= soon.iter().fold(0, |seen, (node, _)| seen ^ nodes[*node as usize].brain.look());
        seen ^= soon.iter().fold(0, |seen, (node, peer)| seen ^ nodes[*node as usize].brain.look_at(*peer));
        std::hint::black_box(seen);
        soon.clear();
        (self.concerned, self.soon) = (concerned, soon);
    }

    /// Lets what is under way arrive, so that the accounts can be closed.
    fn settle(&mut self) {
        if self.nodes.len() > SETTLED_NODES {
            return;
        }
        let until = self.now().saturating_add(SETTLING);
        while self.agenda.peek().is_some_and(|at| at <= until) {
            match self.agenda.next() {
                Some(Event::Sample) | None => {}
                Some(event) => self.happen(event),
            }
        }
    }

    fn is_over(&self) -> bool {
        if self.expected == 0 {
            return true;
        }
        if self.lost == 0 || self.returning > 0 {
            return false;
        }
        // What nobody has, nobody can get.
        let stuck = |node: &Node| {
            !node.is_expected()
                || (0..self.shape.pieces()).all(|piece| node.truth.contains(piece) || self.copies[piece as usize] == 0)
        };
        self.nodes.iter().all(stuck)
    }

    fn now(&self) -> Nanos {
        self.agenda.now()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(node) => self.tick(node),
            Event::Start(node) => self.start(node),
            Event::Dialled(node, number) => self.dialled(node, number),
            Event::Input(node, number) => match self.due.take(number) {
                Some(Due::Input(life, input)) => self.input(node, life, input),
                Some(Due::Delivery(delivery)) => self.deliver(delivery),
                None => {}
            },
            Event::Stored(node, piece, life) => self.stored(node, piece, life),
            Event::Closed(link, end) => self.closed(link, usize::from(end)),
            Event::Fault(number) => self.fault(number),
            Event::Mended(number) => self.mended(number),
            Event::Sample => self.sample(),
            Event::Messages(_) | Event::Network(..) => {
                let mut deliveries = std::mem::take(&mut self.deliveries);
                self.net.happen(event, &mut self.agenda, &mut deliveries);
                deliveries.drain(..).for_each(|delivery| self.deliver(delivery));
                self.deliveries = deliveries;
            }
        }
    }

    fn sample(&mut self) {
        self.samples.push(Sample {
            at: self.now(),
            pieces: self.pieces_had,
            finished: self.finished,
            seed_sent: self.seed_sent,
            payload: self.payload_arrived,
        });
        self.agenda.after((self.bound / SAMPLES).max(1), Event::Sample);
    }

    // -- a node's life ----------------------------------------------------

    fn start(&mut self, number: u32) {
        let at = number as usize;
        if self.nodes[at].life != Life::Waiting {
            return;
        }
        self.returning -= 1;
        let again = self.nodes[at].lives > 0;
        if again {
            self.reboot(number);
        }
        let now = self.now();
        let node = &mut self.nodes[at];
        node.life = Life::Running;
        node.lives += 1;
        node.started = if again { node.started } else { now };
        for piece in self.nodes[at].truth.iter() {
            self.copies[piece as usize] += 1;
            if self.copies[piece as usize] == 1 {
                self.lost -= 1;
            }
        }
        self.step(number, Input::Tick, None);
    }

    /// A new engine with what is on the disk.
    fn reboot(&mut self, number: u32) {
        let have = self.nodes[number as usize].truth.clone();
        let brain = self.brain(number, have);
        let node = &mut self.nodes[number as usize];
        node.lose_memory();
        node.brain = brain;
    }

    fn brain(&self, number: u32, have: PieceSet) -> Brain {
        let node = self.nodes.get(number as usize);
        setup::brain(self, number, node.map_or(0, |node| node.lives), have)
    }

    /// It loses power, or its program ends; `silent` when nobody is told.
    fn crash(&mut self, number: u32, returns: bool, keeps_disk: bool, silent: bool) {
        let at = number as usize;
        if self.nodes[at].life != Life::Running {
            return;
        }
        for link in std::mem::take(&mut self.nodes[at].links) {
            let end = self.end_of(link, number);
            if self.links[link as usize].open[end] {
                self.hang_up(link, end, silent);
            }
        }
        for piece in self.nodes[at].truth.iter() {
            self.copies[piece as usize] -= 1;
            if self.copies[piece as usize] == 0 {
                self.lost += 1;
            }
        }
        let was_expected = self.nodes[at].is_expected();
        let node = &mut self.nodes[at];
        node.lose_memory();
        node.life = if returns { Life::Waiting } else { Life::Dead };
        if !keeps_disk {
            let empty = self.kept_before.clone();
            self.nodes[at].truth = empty;
        }
        self.returning += u32::from(returns);
        if was_expected && !returns {
            self.expected -= 1;
        }
    }

    fn tick(&mut self, number: u32) {
        let now = self.now();
        let node = &mut self.nodes[number as usize];
        if node.tick_at > now || !node.is_running() {
            return;
        }
        node.tick_at = Nanos::MAX;
        if node.frozen_until > now {
            let until = node.frozen_until;
            node.tick_at = until;
            return self.agenda.at(until, Event::Tick(number));
        }
        if node.brain.deadline().is_some_and(|at| at <= now) {
            self.step(number, Input::Tick, None);
            self.check_rest(number);
        } else {
            self.arm(number);
        }
    }

    /// An engine that is ticked at its deadline has its next deadline later.
    /// One that has not would never sleep.
    fn check_rest(&mut self, number: u32) {
        let now = self.now();
        let node = &mut self.nodes[number as usize];
        let restless = node.brain.deadline().is_some_and(|at| at <= now);
        node.restless = if restless { node.restless + 1 } else { 0 };
        if node.restless > RESTLESS {
            node.restless = 0;
            node.tick_at = now + SECOND / 1000;
            self.agenda.at(now + SECOND / 1000, Event::Tick(number));
            self.violation(|| format!("node {number} asks to be woken again and again"));
        }
    }

    fn arm(&mut self, number: u32) {
        let now = self.now();
        let node = &mut self.nodes[number as usize];
        let Some(deadline) = node.brain.deadline() else { return };
        if deadline < node.tick_at {
            node.tick_at = deadline.max(now + 1);
            self.agenda.at(node.tick_at, Event::Tick(number));
        }
    }

    // -- stepping ---------------------------------------------------------

    fn input(&mut self, number: u32, life: u32, input: Input) {
        let node = &self.nodes[number as usize];
        if !node.is_running() || node.lives != life {
            return;
        }
        if node.frozen_until > self.now() {
            return self.later(number, node.frozen_until, Due::Input(life, input));
        }
        self.step(number, input, None);
    }

    fn later(&mut self, number: u32, at: Nanos, due: Due) {
        let due = self.due.put(due);
        self.agenda.at(at, Event::Input(number, due));
    }

    /// `arrived` is the block of an `Arrived`, and which of its blocks are
    /// wrong.
    fn step(&mut self, number: u32, input: Input, arrived: Option<(Block, Vec<u32>)>) {
        let mut out = std::mem::take(&mut self.out);
        self.steps += 1;
        let now = self.now();
        self.trace.step(now, number);
        self.nodes[number as usize].brain.step(now, input, &mut out);
        for output in out.drain(..) {
            self.trace.output(&output);
            self.perform(number, output, arrived.as_ref());
        }
        self.out = out;
        self.arm(number);
    }

    fn perform(&mut self, number: u32, output: Output, arrived: Option<&(Block, Vec<u32>)>) {
        match output {
            Output::Dial(to) => self.dial(number, to),
            Output::Say(peer, message) => self.say(number, peer, message),
            Output::Send(peer, block) => self.send(number, peer, block),
            Output::Keep(_, block) => self.keep(number, block, arrived),
            Output::Verify(piece) => self.verify(number, piece),
            Output::Forget(piece) => self.nodes[number as usize].forget(piece),
            Output::Announce(progress) => self.announce(number, &progress),
            Output::Drop(peer, why) => self.dropped(number, peer, why),
            Output::Complete => self.complete(number),
        }
    }

    fn violation(&mut self, sentence: impl FnOnce() -> String) {
        self.violation_count += 1;
        if self.violations.len() < DESCRIBED {
            let at = self.now() as f64 / 1e9;
            self.violations.push(format!("{at:.6} s: {}", sentence()));
        }
    }

    // -- connections ------------------------------------------------------

    fn dial(&mut self, number: u32, to: SocketAddr) {
        let now = self.now();
        let target = node_at(to).filter(|target| (*target as usize) < self.nodes.len());
        let running = target.filter(|target| self.nodes[*target as usize].is_running());
        let wait = match running {
            None => NOBODY,
            Some(target) if self.nodes[target as usize].frozen_until > now => NO_ANSWER,
            Some(target) => {
                let there = self.way(number, target);
                there.saturating_add(self.way(target, number)).min(NO_ANSWER)
            }
        };
        let dial = self.dials.put(to);
        self.agenda.after(wait, Event::Dialled(number, dial));
    }

    /// How long a message takes that does not wait behind others.
    fn way(&mut self, from: u32, to: u32) -> Nanos {
        let now = self.now();
        let opens = self.net.ports().opens(now, from, to);
        self.net.ports().delay_between(from, to).saturating_add(opens - now)
    }

    fn dialled(&mut self, number: u32, dial: u32) {
        let Some(to) = self.dials.take(dial) else { return };
        let life = self.nodes[number as usize].lives;
        if !self.nodes[number as usize].is_running() {
            return;
        }
        let now = self.now();
        let target = node_at(to).filter(|target| {
            let there = self.nodes.get(*target as usize);
            there.is_some_and(|node| node.is_running() && node.frozen_until <= now)
        });
        let open = target.filter(|target| {
            let ports = self.net.ports();
            ports.opens(now, number, *target) <= now && ports.opens(now, *target, number) <= now
        });
        let Some(target) = open else { return self.input(number, life, Input::DialFailed(to)) };
        self.connect(number, target, to);
    }

    fn connect(&mut self, number: u32, target: u32, to: SocketAddr) {
        let link = self.links.len() as u32;
        let mut key = |node: u32| {
            let links = &mut self.nodes[node as usize].links;
            links.push(link);
            (links.len() - 1) as u32
        };
        let peers = [key(number), key(target)];
        let ours = |node: u32| !matches!(self.nodes[node as usize].brain, Brain::Foreign(_));
        let speaks = Speaks { fast: ours(number) && ours(target), extended: ours(number) && ours(target) };
        self.links.push(Link { nodes: [number, target], peers, open: [true; 2], fast: speaks.fast });
        let (near, far) = (self.nodes[number as usize].id, self.nodes[target as usize].id);
        let from = SocketAddr::new(address(number).ip(), 32_768 + (peers[0] % 28_000) as u16);
        let here = Input::Connected { peer: Peer(peers[0]), side: Side::Outbound, address: to, id: far, speaks };
        let there = Input::Connected { peer: Peer(peers[1]), side: Side::Inbound, address: from, id: near, speaks };
        self.arrive_at(number, here);
        if self.links[link as usize].open[1] {
            self.arrive_at(target, there);
        }
        for (end, node) in [(0, number), (1, target)] {
            if self.nodes[node as usize].nature == Nature::Garbage && self.links[link as usize].open[end] {
                self.say_garbage(link, end);
            }
        }
    }

    /// An input that concerns the present life, held back while the node is
    /// frozen.
    fn arrive_at(&mut self, number: u32, input: Input) {
        let life = self.nodes[number as usize].lives;
        self.input(number, life, input);
    }

    fn end_of(&self, link: u32, number: u32) -> usize {
        usize::from(self.links[link as usize].nodes[0] != number)
    }

    fn route(&self, link: u32, end: usize) -> Route {
        let nodes = self.links[link as usize].nodes;
        Route { link, end: end as u8, from: nodes[end], to: nodes[1 - end] }
    }

    /// The open connection behind a peer key, and which end of it is here.
    fn link_of(&self, number: u32, peer: Peer) -> Option<(u32, usize)> {
        let link = *self.nodes[number as usize].links.get(peer.0 as usize)?;
        let end = self.end_of(link, number);
        self.links[link as usize].open[end].then_some((link, end))
    }

    /// This end is closed; the other hears of it unless the machine fell
    /// silent.
    fn hang_up(&mut self, link: u32, end: usize, silent: bool) {
        self.links[link as usize].open[end] = false;
        self.net.cut(link);
        if !silent {
            let route = self.route(link, end);
            let at = self.net.farewell(route, self.agenda.now());
            self.agenda.at(at, Event::Closed(link, 1 - end as u8));
        }
    }

    fn closed(&mut self, link: u32, end: usize) {
        let here = self.links[link as usize];
        if !here.open[end] {
            return;
        }
        let number = here.nodes[end];
        let until = self.nodes[number as usize].frozen_until;
        if until > self.now() {
            return self.agenda.at(until, Event::Closed(link, end as u8));
        }
        self.links[link as usize].open[end] = false;
        self.net.cut(link);
        self.nodes[number as usize].forget_owed(here.peers[end]);
        self.step(number, Input::Gone(Peer(here.peers[end])), None);
    }

    fn dropped(&mut self, number: u32, peer: Peer, why: Why) {
        let Some((link, end)) = self.link_of(number, peer) else {
            return self.violation(|| format!("node {number} drops a peer {} that it does not have", peer.0));
        };
        let other = self.links[link as usize].nodes[1 - end];
        *self.drops.entry(kind_of(&why)).or_default() += 1;
        let both = self.nodes[number as usize].is_ours() && self.nodes[other as usize].is_honest();
        if both && is_accusation(&why) {
            self.unfair += 1;
            self.violation(|| format!("node {number} drops the honest node {other}: {why}"));
        }
        self.nodes[number as usize].forget_owed(peer.0);
        self.hang_up(link, end, false);
    }

    // -- messages and blocks ----------------------------------------------

    fn say(&mut self, number: u32, peer: Peer, mut message: Message) {
        let Some((link, end)) = self.link_of(number, peer) else {
            return self.violation(|| format!("node {number} speaks to a peer {} that it does not have", peer.0));
        };
        if self.nodes[number as usize].is_ours() {
            self.check_said(number, peer, &message);
        }
        self.said[kind_of_message(&message)] += 1;
        if let Message::Extended(Extended::Handshake(handshake)) = &mut message {
            // As a driver does.
            handshake.listen_port = Some(PORT);
        }
        let route = self.route(link, end);
        self.net.say(route, message, &mut self.agenda);
    }

    fn check_said(&mut self, number: u32, peer: Peer, message: &Message) {
        let node = &mut self.nodes[number as usize];
        if let Err(bad) = node.said(peer.0, message) {
            let what = match bad {
                BadAsk::HasIt => "asks for what it has",
                BadAsk::AskedTwice => "asks one peer twice for a block",
            };
            self.violation(|| format!("node {number} {what}: {message:?}"));
        }
        let node = &self.nodes[number as usize];
        let claims = match message {
            Message::Have(piece) => !node.truth.contains(*piece),
            Message::Bitfield(bitfield) => bitfield.iter().any(|piece| !node.truth.contains(piece)),
            Message::HaveAll => !node.truth.is_full(),
            _ => false,
        };
        if claims {
            self.violation(|| format!("node {number} claims what it has not verified: {message:?}"));
        }
    }

    fn send(&mut self, number: u32, peer: Peer, block: Block) {
        let Some((link, end)) = self.link_of(number, peer) else {
            return self.violation(|| format!("node {number} sends to a peer {} that it does not have", peer.0));
        };
        let node = &self.nodes[number as usize];
        if node.nature == Nature::Mute {
            return;
        }
        if !node.truth.contains(block.piece) {
            return self.violation(|| format!("node {number} serves piece {} unverified", block.piece));
        }
        let route = self.route(link, end);
        self.net.send(route, block, &mut self.agenda);
    }

    fn deliver(&mut self, delivery: Delivery) {
        match &delivery {
            Delivery::Said(route, _) => {
                let Some(peer) = self.receiver(*route) else { return };
                if self.is_frozen(route.to) {
                    return self.hold(route.to, delivery);
                }
                let Delivery::Said(route, message) = delivery else { return };
                let fast = self.links[route.link as usize].fast;
                self.nodes[route.to as usize].heard(peer.0, &message, fast);
                self.step(route.to, Input::Said(peer, message), None);
            }
            Delivery::Sent(route, block) => {
                let (route, block) = (*route, *block);
                self.count_sent(route, block);
                let link = self.links[route.link as usize];
                if !link.open[usize::from(route.end)] {
                    return;
                }
                if self.is_frozen(route.from) {
                    let life = self.nodes[route.from as usize].lives;
                    let input = Input::Sent(Peer(link.peers[usize::from(route.end)]), block);
                    let until = self.nodes[route.from as usize].frozen_until;
                    return self.later(route.from, until, Due::Input(life, input));
                }
                self.step(route.from, Input::Sent(Peer(link.peers[usize::from(route.end)]), block), None);
            }
            Delivery::Arrived(route, block) => {
                let (route, block) = (*route, *block);
                let Some(peer) = self.receiver(route) else {
                    self.payload_lost += u64::from(block.length);
                    return;
                };
                if self.is_frozen(route.to) {
                    return self.hold(route.to, delivery);
                }
                self.arrived(route, peer, block);
            }
        }
    }

    fn receiver(&self, route: Route) -> Option<Peer> {
        let end = 1 - usize::from(route.end);
        let link = &self.links[route.link as usize];
        link.open[end].then_some(Peer(link.peers[end]))
    }

    fn is_frozen(&self, number: u32) -> bool {
        self.nodes[number as usize].frozen_until > self.now()
    }

    fn hold(&mut self, number: u32, delivery: Delivery) {
        let until = self.nodes[number as usize].frozen_until;
        self.later(number, until, Due::Delivery(delivery));
    }

    fn count_sent(&mut self, route: Route, block: Block) {
        let bytes = u64::from(block.length);
        self.payload_sent += bytes;
        self.nodes[route.from as usize].sent += bytes;
        if route.from < self.scenario.fabric.seeds {
            self.seed_sent += bytes;
            if let Some((fault, limit)) = self.seed_limit.filter(|(_, limit)| self.seed_sent >= *limit) {
                let _ = limit;
                self.seed_limit = None;
                self.agenda.at(self.agenda.now(), Event::Fault(fault));
            }
        }
    }

    fn arrived(&mut self, route: Route, peer: Peer, block: Block) {
        let bytes = u64::from(block.length);
        self.payload_arrived += bytes;
        let receiver = &mut self.nodes[route.to as usize];
        receiver.arrived += bytes;
        receiver.settle(peer.0, block);
        let crosses = self.net.ports().is_between_racks(route.from, route.to);
        if let Some(rack) = self.scenario.rack_of(route.to).filter(|_| crosses) {
            self.rack_in[rack as usize] += bytes;
            self.nodes[route.to as usize].carried += bytes;
        }
        let bad = self.bad_blocks(route.from, block);
        self.step(route.to, Input::Arrived(peer, block), Some((block, bad)));
    }

    /// The blocks of this range that the sender spoils.
    fn bad_blocks(&self, from: u32, block: Block) -> Vec<u32> {
        let one_in = match self.nodes[from as usize].nature {
            Nature::Corrupt { one_in } => one_in.max(1),
            Nature::FalseHaves => 1,
            _ => return Vec::new(),
        };
        let blocks = block.offset / BLOCK_BYTES..(block.offset + block.length).div_ceil(BLOCK_BYTES);
        let key = |index: u32| (u64::from(block.piece) << 20) | u64::from(index);
        blocks.filter(|index| below(self.seed, from, Stream::Lies, key(*index), one_in.into()) == 0).collect()
    }

    /// What no client may say, one of several by chance.
    fn say_garbage(&mut self, link: u32, end: usize) {
        let route = self.route(link, end);
        let pieces = self.shape.pieces();
        let whole = Block { piece: 0, offset: 0, length: BLOCK_BYTES };
        let number = u64::from(link);
        let message = match below(self.seed, route.from, Stream::Conduct, number, 5) {
            0 => Message::Have(pieces + 7),
            1 => Message::Request(Block { piece: pieces + 1, ..whole }),
            2 => Message::Request(Block { offset: u32::MAX - 5, ..whole }),
            3 => Message::Request(Block { length: 1 << 30, ..whole }),
            _ => Message::Suggest(u32::MAX),
        };
        self.net.say(route, message, &mut self.agenda);
    }
}

/// The address of a node: 10.0.0.0/8 by number.
fn address(node: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::from((0x0A00_0000_u32 + node + 1).to_be_bytes()), PORT)
}

fn node_at(address: SocketAddr) -> Option<u32> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    u32::from(ip).checked_sub(0x0A00_0001)
}

/// A drop that says that the peer broke a rule. A peer that never answers may
/// be frozen or out of reach.
fn is_accusation(why: &Why) -> bool {
    !matches!(
        why,
        Why::Ourselves
            | Why::Duplicate
            | Why::Full
            | Why::Displaced
            | Why::BothComplete
            | Why::Lost
            | Why::Silent
            | Why::Banned
            | Why::NeverAnswers(_)
    )
}

/// The name of a reason without its numbers.
fn kind_of(why: &Why) -> String {
    let text = format!("{why:?}");
    text.split(['(', ' ']).next().unwrap_or(&text).to_owned()
}

/// What messages are called in the figures.
const KINDS: [&str; 11] = [
    "have",
    "request",
    "suggest",
    "reject",
    "cancel",
    "have with backlog",
    "decline",
    "lanes",
    "peer exchange",
    "choking and interest",
    "others",
];

fn kind_of_message(message: &Message) -> usize {
    match message {
        Message::Have(_) => 0,
        Message::Request(_) => 1,
        Message::Suggest(_) => 2,
        Message::Reject(_) => 3,
        Message::Cancel(_) => 4,
        Message::Extended(Extended::Rack(RackMessage::Have { .. })) => 5,
        Message::Extended(Extended::Rack(RackMessage::Decline { .. })) => 6,
        Message::Extended(Extended::Rack(RackMessage::Lanes { .. })) => 7,
        Message::Extended(Extended::Pex(_)) => 8,
        Message::Choke | Message::Unchoke | Message::Interested | Message::NotInterested => 9,
        _ => 10,
    }
}

fn engine_seed(seed: u64, number: u32, life: u32) -> u64 {
    draw(seed, number, Stream::Engine, life.into())
}
