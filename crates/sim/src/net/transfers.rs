//! The coarse model: a transfer is counted once at every port it passes. A
//! node's uplink serves its transfers one after the other; behind it a
//! transfer cuts through, and a port gives way in order of arrival. Messages
//! take the path's delay and are charged to the next transfer of the ports
//! at the edge.

use swarm::Shape;
use wire::peer::{BLOCK_BYTES, Block, Message};

use super::ports::{HEADER_BYTES, Ports, wire_bytes};
use super::{Delivery, Network, Party, Passed, Route, message_bytes};
use crate::agenda::{Agenda, Event, Slab};
use crate::scenario::Scenario;
use crate::units::Nanos;

/// A transfer held up by a closed port is tried again.
const RETRY: u8 = 0;
/// The next part of a transfer has left the sender.
const LEFT: u8 = 1;
/// The next part is at the receiver.
const ARRIVED: u8 = 2;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Transfer {
    route: Route,
    block: Block,
    /// The next in its uplink's queue.
    next: u32,
    /// Bytes that have left and that have arrived.
    left: u32,
    arrived: u32,
    /// When the last byte leaves and when it arrives, and how long the first
    /// and the last port took.
    leaves: Nanos,
    arrives: Nanos,
    took: [Nanos; 2],
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
    /// Bytes that are reported together.
    part: u32,
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
            part: shape.piece_bytes(0).div_ceil(scenario.network.parts.max(1)).div_ceil(BLOCK_BYTES) * BLOCK_BYTES,
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
        let number = self.transfers.put(Transfer {
            route,
            block,
            next: NONE,
            left: 0,
            arrived: 0,
            leaves: 0,
            arrives: 0,
            took: [0; 2],
        });
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
            Event::Network(LEFT, number) => self.left(number, agenda, out),
            Event::Network(_, number) => self.arrived(number, agenda, out),
            _ => {}
        }
    }

    fn concerns(&self, event: Event, concerned: &mut Vec<(Route, Party)>) {
        let (number, party) = match event {
            Event::Messages(batch) => {
                let routes = self.batches[batch as usize].iter().map(|(route, _)| (*route, Party::Receiver));
                return concerned.extend(routes);
            }
            Event::Network(ARRIVED, number) => (number, Party::Receiver),
            Event::Network(_, number) => (number, Party::Sender),
            _ => return,
        };
        concerned.extend(self.transfers.get(number).map(|transfer| (transfer.route, party)));
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
        let (mut finish, mut last) = (now, 0);
        for &port in self.ports.path(route.from, route.to).ports() {
            let port = self.ports.port(port);
            let debt = u64::from(std::mem::take(&mut port.debt));
            last = port.time(bytes + debt);
            finish = finish.max(port.free.max(now) + last);
            port.free = finish;
        }
        let up = self.ports.port(Ports::up(route.from));
        let (leaves, first) = (up.free, up.time(bytes));
        let acknowledgements = self.ports.acknowledgements(transfer.block.length) as u32;
        self.ports.charge(route.to, route.from, acknowledgements);
        let direction = 2 * route.link as usize + usize::from(route.end);
        let arrives = self.ports.arrival(finish, route.from, route.to, direction);
        let part = self.part.min(transfer.block.length);
        if let Some(transfer) = self.transfers.get_mut(number) {
            (transfer.leaves, transfer.arrives, transfer.took) = (leaves, arrives, [first, last]);
            agenda.at(transfer.leaves_at(part), Event::Network(LEFT, number));
            agenda.at(transfer.arrives_at(part), Event::Network(ARRIVED, number));
        }
    }

    /// A part has left. With the last the uplink takes up the next transfer.
    fn left(&mut self, number: u32, agenda: &mut Agenda, out: &mut Vec<Delivery>) {
        let Some(transfer) = self.transfers.get(number).copied() else { return };
        let part = self.part.min(transfer.block.length - transfer.left);
        let block = Block { offset: transfer.block.offset + transfer.left, length: part, ..transfer.block };
        out.push(Delivery::Sent(transfer.route, block));
        let left = transfer.left + part;
        if let Some(transfer) = self.transfers.get_mut(number) {
            transfer.left = left;
        }
        if left < transfer.block.length {
            let next = (left + self.part).min(transfer.block.length);
            return agenda.at(transfer.leaves_at(next), Event::Network(LEFT, number));
        }
        self.forget_done(number);
        self.queues[transfer.route.from as usize].busy = false;
        self.start_next(transfer.route.from, agenda);
    }

    fn arrived(&mut self, number: u32, agenda: &mut Agenda, out: &mut Vec<Delivery>) {
        let Some(transfer) = self.transfers.get(number).copied() else { return };
        let part = self.part.min(transfer.block.length - transfer.arrived);
        let block = Block { offset: transfer.block.offset + transfer.arrived, length: part, ..transfer.block };
        out.push(Delivery::Arrived(transfer.route, block));
        let arrived = transfer.arrived + part;
        if let Some(transfer) = self.transfers.get_mut(number) {
            transfer.arrived = arrived;
        }
        if arrived < transfer.block.length {
            let next = (arrived + self.part).min(transfer.block.length);
            return agenda.at(transfer.arrives_at(next), Event::Network(ARRIVED, number));
        }
        self.forget_done(number);
    }

    fn forget_done(&mut self, number: u32) {
        let all =
            |transfer: &Transfer| transfer.left == transfer.block.length && transfer.arrived == transfer.block.length;
        if self.transfers.get(number).is_some_and(all) {
            self.transfers.take(number);
        }
    }
}

impl Transfer {
    /// When so many bytes have left: they go evenly.
    fn leaves_at(&self, bytes: u32) -> Nanos {
        self.leaves - self.rest(self.took[0], bytes)
    }

    fn arrives_at(&self, bytes: u32) -> Nanos {
        self.arrives.saturating_sub(self.rest(self.took[1], bytes))
    }

    fn rest(&self, took: Nanos, bytes: u32) -> Nanos {
        let rest = u128::from(self.block.length.saturating_sub(bytes));
        (u128::from(took) * rest / u128::from(self.block.length.max(1))) as Nanos
    }
}
