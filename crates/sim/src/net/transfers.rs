//! The coarse model: a transfer is counted once at every port it passes. A
//! node's uplink serves its transfers one after the other; behind it a
//! transfer cuts through, and a port gives way in order of arrival. Messages
//! take the path's delay and are charged to the next transfer of the ports
//! at the edge.

use swarm::Shape;
use wire::peer::{BLOCK_BYTES, Block, Message};

use super::ports::{HEADER_BYTES, Ports, wire_bytes};
use super::{Delivery, Network, Passed, Route, message_bytes};
use crate::agenda::{Agenda, Event, Slab};
use crate::scenario::Scenario;
use crate::units::Nanos;

/// A transfer held up by a closed port is tried again.
const RETRY: u8 = 0;
/// Most of a transfer has left the sender.
const HEAD_LEFT: u8 = 1;
/// All of it has.
const LEFT: u8 = 2;
/// It is at the receiver.
const ARRIVED: u8 = 3;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Transfer {
    route: Route,
    block: Block,
    /// The next in its uplink's queue.
    next: u32,
    /// It has left; the other of `LEFT` and `ARRIVED` frees it.
    half_done: bool,
}

/// The transfers that wait for an uplink.
#[derive(Debug, Clone, Copy)]
struct Queue {
    first: u32,
    last: u32,
    busy: bool,
}

#[derive(Debug)]
pub(crate) struct Transfers {
    ports: Ports,
    pieces: u32,
    queues: Vec<Queue>,
    transfers: Slab<Transfer>,
    cut: Vec<bool>,
    batches: Vec<Vec<(Route, Message)>>,
    free_batches: Vec<u32>,
    /// Batches that may still grow, all begun at the same time.
    open: Vec<(Nanos, u32)>,
    opened: Nanos,
    passed: Passed,
}

impl Network for Transfers {
    fn new(scenario: &Scenario, shape: Shape) -> Transfers {
        Transfers {
            ports: Ports::new(scenario),
            pieces: shape.pieces(),
            queues: vec![Queue { first: NONE, last: NONE, busy: false }; scenario.everybody() as usize],
            transfers: Slab::default(),
            cut: Vec::new(),
            batches: Vec::new(),
            free_batches: Vec::new(),
            open: Vec::new(),
            opened: 0,
            passed: Passed::default(),
        }
    }

    fn say(&mut self, route: Route, message: Message, agenda: &mut Agenda) {
        let bytes = message_bytes(&message, self.pieces) + HEADER_BYTES as u32;
        self.passed.messages += 1;
        self.passed.message_bytes += u64::from(bytes);
        self.ports.charge(route.from, route.to, bytes);
        let direction = 2 * route.link as usize + usize::from(route.end);
        let arrival = self.ports.arrival(agenda.now(), route.from, route.to, direction);
        let batch = self.batch(arrival, agenda);
        self.batches[batch as usize].push((route, message));
    }

    fn send(&mut self, route: Route, block: Block, agenda: &mut Agenda) {
        let number = self.transfers.put(Transfer { route, block, next: NONE, half_done: false });
        self.enqueue(route.from, number, agenda);
    }

    fn cut(&mut self, link: u32) {
        let link = link as usize;
        if self.cut.len() <= link {
            self.cut.resize(link + 1, false);
        }
        self.cut[link] = true;
    }

    fn happen(&mut self, event: Event, agenda: &mut Agenda, out: &mut Vec<Delivery>) {
        match event {
            Event::Messages(batch) => {
                if self.open.iter().any(|(_, open)| *open == batch) {
                    self.open.clear();
                }
                out.extend(
                    self.batches[batch as usize].drain(..).map(|(route, message)| Delivery::Said(route, message)),
                );
                self.free_batches.push(batch);
            }
            Event::Network(RETRY, number) => {
                if let Some(transfer) = self.transfers.get(number) {
                    self.enqueue(transfer.route.from, number, agenda);
                }
            }
            Event::Network(HEAD_LEFT, number) => {
                if let Some(transfer) = self.transfers.get(number) {
                    let (head, _) = halves(transfer.block);
                    out.push(Delivery::Sent(transfer.route, head));
                }
            }
            Event::Network(LEFT, number) => {
                if let Some(transfer) = self.transfers.get(number).copied() {
                    out.push(Delivery::Sent(transfer.route, halves(transfer.block).1));
                    self.finish_half(number);
                    self.queues[transfer.route.from as usize].busy = false;
                    self.start_next(transfer.route.from, agenda);
                }
            }
            Event::Network(_, number) => {
                if let Some(transfer) = self.transfers.get(number).copied() {
                    out.push(Delivery::Arrived(transfer.route, transfer.block));
                    self.finish_half(number);
                }
            }
            _ => {}
        }
    }

    fn ports(&mut self) -> &mut Ports {
        &mut self.ports
    }

    fn farewell(&mut self, route: Route, now: Nanos) -> Nanos {
        let direction = 2 * route.link as usize + usize::from(route.end);
        self.ports.arrival(now, route.from, route.to, direction)
    }

    fn passed(&self) -> Passed {
        self.passed
    }
}

/// What is reported sent first, so that the engine can decide on the next
/// transfer before this one is over; and the rest, possibly all.
fn halves(block: Block) -> (Block, Block) {
    let tail = (block.length / 4).div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
    let head = if tail >= block.length { 0 } else { (block.length - tail) / BLOCK_BYTES * BLOCK_BYTES };
    let first = Block { length: head, ..block };
    (first, Block { offset: block.offset + head, length: block.length - head, ..block })
}

impl Transfers {
    /// The batch that arrives then.
    fn batch(&mut self, arrival: Nanos, agenda: &mut Agenda) -> u32 {
        if self.opened != agenda.now() {
            self.open.clear();
            self.opened = agenda.now();
        }
        if let Some((_, batch)) = self.open.iter().find(|(at, _)| *at == arrival) {
            return *batch;
        }
        let batch = self.free_batches.pop().unwrap_or_else(|| {
            self.batches.push(Vec::new());
            (self.batches.len() - 1) as u32
        });
        self.open.push((arrival, batch));
        agenda.at(arrival, Event::Messages(batch));
        batch
    }

    fn is_cut(&self, link: u32) -> bool {
        self.cut.get(link as usize).copied().unwrap_or(false)
    }

    fn enqueue(&mut self, node: u32, number: u32, agenda: &mut Agenda) {
        let last = self.queues[node as usize].last;
        match self.transfers.get_mut(last) {
            Some(last) => last.next = number,
            None => self.queues[node as usize].first = number,
        }
        self.queues[node as usize].last = number;
        self.start_next(node, agenda);
    }

    /// Lets an idle uplink take up its next transfer; those whose way is
    /// closed stand aside, those whose connection is gone vanish.
    fn start_next(&mut self, node: u32, agenda: &mut Agenda) {
        while !self.queues[node as usize].busy {
            let number = self.queues[node as usize].first;
            let Some(transfer) = self.transfers.get_mut(number) else { return };
            let (route, next) = (transfer.route, std::mem::replace(&mut transfer.next, NONE));
            let queue = &mut self.queues[node as usize];
            queue.first = next;
            if next == NONE {
                queue.last = NONE;
            }
            if self.is_cut(route.link) {
                self.transfers.take(number);
                continue;
            }
            let opens = self.ports.opens(agenda.now(), route.from, route.to);
            if opens > agenda.now() {
                agenda.at(opens, Event::Network(RETRY, number));
                continue;
            }
            self.start(number, agenda);
        }
    }

    fn start(&mut self, number: u32, agenda: &mut Agenda) {
        let Some(transfer) = self.transfers.get(number).copied() else { return };
        let now = agenda.now();
        let (route, bytes) = (transfer.route, wire_bytes(transfer.block.length));
        self.queues[route.from as usize].busy = true;
        let mut finish = now;
        for &port in self.ports.path(route.from, route.to).ports() {
            let port = self.ports.port(port);
            let debt = u64::from(std::mem::take(&mut port.debt));
            let took = port.time(bytes + debt);
            finish = finish.max(port.free.max(now) + took);
            port.free = finish;
        }
        let left = self.ports.port(Ports::up(route.from)).free;
        let acknowledgements = self.ports.acknowledgements(transfer.block.length) as u32;
        self.ports.charge(route.to, route.from, acknowledgements);
        let (head, tail) = halves(transfer.block);
        if head.length > 0 {
            let before = self.ports.port(Ports::up(route.from)).time(wire_bytes(tail.length));
            agenda.at(left.saturating_sub(before), Event::Network(HEAD_LEFT, number));
        }
        agenda.at(left, Event::Network(LEFT, number));
        let direction = 2 * route.link as usize + usize::from(route.end);
        let arrival = self.ports.arrival(finish, route.from, route.to, direction);
        agenda.at(arrival, Event::Network(ARRIVED, number));
    }

    fn finish_half(&mut self, number: u32) {
        let done =
            self.transfers.get_mut(number).is_none_or(|transfer| std::mem::replace(&mut transfer.half_done, true));
        if done {
            self.transfers.take(number);
        }
    }
}
