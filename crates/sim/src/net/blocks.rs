//! The fine model: blocks of 16 KiB and small messages wait in first-in
//! first-out queues at every port, as behind token buckets. A connection is
//! a stream with a window that grows until a queue overflows; messages wait
//! behind the data that is already under way, but slip in between `piece`
//! messages. A block cuts through: its first packet is in the next queue
//! before its last has left this one.

use std::collections::VecDeque;

use swarm::Shape;
use wire::peer::{BLOCK_BYTES, Block, Message};

use super::ports::{HEADER_BYTES, Path, Ports, wire_bytes};
use super::{Delivery, Network, Party, Passed, Route, message_bytes};
use crate::agenda::{Agenda, Event, Slab};
use crate::scenario::Scenario;
use crate::units::{Nanos, SECOND};

/// A unit's first packet is at a port.
const HOP: u8 = 0;
/// Its last packet is at the receiver.
const ARRIVED: u8 = 1;
/// The sender knows that.
const ACKNOWLEDGED: u8 = 2;
/// The sender's driver has handed over a `piece` message.
const SENT: u8 = 3;
/// A unit has left the sender's own port.
const LEFT: u8 = 4;

/// Linux lets one stream have no more than about this much in the queue of
/// the machine's own port (TCP small queues): two units, or so long.
const SMALL_QUEUE: (u64, Nanos) = (2 * BLOCK_BYTES as u64, 2 * SECOND / 1000);

const PACKET_WIRE_BYTES: u64 = 1514;
const SEGMENT_BYTES: u64 = 1448;
/// RFC 6928.
const FIRST_WINDOW: u64 = 10 * SEGMENT_BYTES;
/// A stream idle for so long starts anew (RFC 5681, 4.1).
/// Delay that ends slow start (HyStart of Linux): an eighth of the shortest
/// round trip, within these, and not below 16 segments.
const DELAYED: (Nanos, Nanos) = (4 * SECOND / 1000, 16 * SECOND / 1000);
const HYSTART_WINDOW: u64 = 16 * SEGMENT_BYTES;
const IDLE: Nanos = SECOND / 5;
/// A queue holds at least this.
const QUEUE_BYTES: u64 = 262_144 + 70_000;
/// Longest `piece` message, in bytes and time of the link.
const CHUNK: (u32, Nanos) = (256 << 10, SECOND / 400);

#[derive(Debug)]
enum Load {
    Message(Message),
    /// A block; the `piece` message that ends with it.
    Data(Option<Block>),
}

#[derive(Debug)]
struct Unit {
    route: Route,
    payload: u32,
    /// It has a packet of its own, rather than a place in the one before it.
    leads: bool,
    load: Load,
    path: Path,
    hop: u8,
    launched: Nanos,
    /// When its last packet left the port before.
    finish: Nanos,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Stream {
    messages: VecDeque<Message>,
    chunks: VecDeque<Block>,
    /// Bytes of the first chunk that are under way.
    begun: u32,
    flight: u64,
    /// Of these, bytes that wait in the sender's own port.
    waiting: u64,
    /// Bytes of messages in the packet that was begun last, and when that was.
    packet: (Nanos, u32),
    window: u64,
    threshold: u64,
    /// The shortest round trip of a whole unit.
    shortest: Nanos,
    last_cut: Nanos,
    last_sent: Nanos,
    round: Nanos,
    cut: bool,
}

#[derive(Debug)]
pub(crate) struct Blocks {
    ports: Ports,
    pieces: u32,
    streams: Vec<Stream>,
    units: Slab<Unit>,
    sent: Slab<(Route, Block)>,
    queue: Nanos,
    burst: u64,
    most: u64,
    passed: Passed,
}

impl Network for Blocks {
    fn new(scenario: &Scenario, shape: Shape) -> Blocks {
        Blocks {
            ports: Ports::new(scenario),
            pieces: shape.pieces(),
            streams: Vec::new(),
            units: Slab::default(),
            sent: Slab::default(),
            queue: scenario.network.queue.0,
            burst: scenario.network.burst.0,
            most: scenario.network.window.0.max(FIRST_WINDOW),
            passed: Passed::default(),
        }
    }

    fn say(&mut self, route: Route, message: Message, agenda: &mut Agenda) {
        self.passed.messages += 1;
        self.passed.message_bytes += u64::from(message_bytes(&message, self.pieces)) + HEADER_BYTES;
        self.stream(route).messages.push_back(message);
        self.release(route, agenda);
    }

    fn send(&mut self, route: Route, block: Block, agenda: &mut Agenda) {
        let in_time = self.ports.port(Ports::up(route.from)).payload_in(CHUNK.1);
        let most = (in_time.min(u64::from(CHUNK.0)) as u32 / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        let end = block.offset + block.length;
        let mut offset = block.offset;
        while offset < end {
            let length = most.min(end - offset);
            self.stream(route).chunks.push_back(Block { offset, length, ..block });
            offset += length;
        }
        self.release(route, agenda);
    }

    fn cut(&mut self, link: u32) {
        for end in 0..2 {
            let route = Route { link, end, from: 0, to: 0 };
            *self.stream(route) = Stream { cut: true, ..Stream::default() };
        }
    }

    fn happen(&mut self, event: Event, agenda: &mut Agenda, out: &mut Vec<Delivery>) {
        match event {
            Event::Network(HOP, number) => self.hop(number, agenda),
            Event::Network(ARRIVED, number) => self.arrived(number, agenda, out),
            Event::Network(LEFT, number) => self.left(number, agenda),
            Event::Network(ACKNOWLEDGED, number) => self.acknowledged(number, agenda),
            Event::Network(SENT, number) => {
                out.extend(self.sent.take(number).map(|(route, block)| Delivery::Sent(route, block)));
            }
            _ => {}
        }
    }

    /// Small swarms fit into the cache.
    fn concerns(&self, _: Event, _: &mut Vec<(Route, Party)>) {}

    fn ports(&mut self) -> &mut Ports {
        &mut self.ports
    }

    fn farewell(&mut self, route: Route, now: Nanos) -> Nanos {
        let behind = self.ports.port(Ports::up(route.from)).free.max(now) - now;
        let direction = 2 * route.link as usize + usize::from(route.end);
        self.ports.arrival(now + behind, route.from, route.to, direction)
    }

    fn passed(&self) -> Passed {
        self.passed
    }
}

impl Blocks {
    fn stream(&mut self, route: Route) -> &mut Stream {
        let number = 2 * route.link as usize + usize::from(route.end);
        if self.streams.len() <= number {
            let fresh =
                || Stream { window: FIRST_WINDOW, threshold: u64::MAX, shortest: Nanos::MAX, ..Stream::default() };
            self.streams.resize_with((number | 1) + 1, fresh);
        }
        &mut self.streams[number]
    }

    /// Hands to the network what the window lets pass.
    fn release(&mut self, route: Route, agenda: &mut Agenda) {
        loop {
            let now = agenda.now();
            let pieces = self.pieces;
            let small = SMALL_QUEUE.0.max(self.ports.port(Ports::up(route.from)).payload_in(SMALL_QUEUE.1));
            let stream = self.stream(route);
            if stream.cut {
                return;
            }
            if stream.flight == 0 && stream.last_sent + IDLE < now {
                stream.window = stream.window.min(FIRST_WINDOW);
            }
            let next = match (stream.messages.front(), stream.chunks.front()) {
                (Some(message), _) if stream.begun == 0 => message_bytes(message, pieces),
                (_, Some(chunk)) => BLOCK_BYTES.min(chunk.length - stream.begun),
                (Some(message), None) => message_bytes(message, pieces),
                (None, None) => return,
            };
            if stream.flight > 0 && stream.flight + u64::from(next) > stream.window {
                return;
            }
            if stream.waiting > 0 && stream.waiting + u64::from(next) > small {
                return;
            }
            stream.flight += u64::from(next);
            stream.waiting += u64::from(next);
            stream.last_sent = now;
            let load = if stream.begun == 0 && !stream.messages.is_empty() {
                match stream.messages.pop_front() {
                    Some(message) => Load::Message(message),
                    None => return,
                }
            } else {
                Load::Data(stream.take(next))
            };
            self.launch(route, next, load, agenda);
        }
    }

    fn launch(&mut self, route: Route, payload: u32, load: Load, agenda: &mut Agenda) {
        if let Load::Data(Some(chunk)) = &load {
            let number = self.sent.put((route, *chunk));
            agenda.at(agenda.now(), Event::Network(SENT, number));
        }
        let path = self.ports.path(route.from, route.to);
        let leads = !matches!(load, Load::Message(_)) || self.stream(route).begins_packet(payload, agenda.now());
        let unit = Unit { route, payload, leads, load, path, hop: 0, launched: agenda.now(), finish: agenda.now() };
        let number = self.units.put(unit);
        self.hop(number, agenda);
    }

    fn hop(&mut self, number: u32, agenda: &mut Agenda) {
        let Some(unit) = self.units.get_mut(number) else { return };
        let (route, now) = (unit.route, agenda.now());
        if unit.hop == 0 {
            let opens = self.ports.opens(now, route.from, route.to);
            if opens > now {
                return agenda.at(opens, Event::Network(HOP, number));
            }
        }
        let bytes = match unit.load {
            Load::Message(_) => u64::from(unit.payload) + if unit.leads { HEADER_BYTES } else { 0 },
            Load::Data(_) => wire_bytes(unit.payload),
        };
        let port = self.ports.port(unit.path.ports()[usize::from(unit.hop)]);
        let packet = port.time(bytes.min(PACKET_WIRE_BYTES));
        let debt = u64::from(std::mem::take(&mut port.debt));
        let took = port.time(bytes + debt);
        let tokens = port.free.max(now.saturating_sub(port.time(self.burst)));
        port.free = tokens + took;
        let finish = port.free.max(now).max(unit.finish + packet);
        let waits = tokens.saturating_sub(now);
        let full = waits > self.queue.max(port.time(QUEUE_BYTES));
        let first = (finish - took.min(finish)).max(now) + packet;
        unit.finish = finish;
        if unit.hop == 0 {
            agenda.at(finish, Event::Network(LEFT, number));
        }
        unit.hop += 1;
        if usize::from(unit.hop) < unit.path.ports().len() {
            agenda.at(first.min(finish), Event::Network(HOP, number));
        } else {
            let direction = 2 * route.link as usize + usize::from(route.end);
            let at = self.ports.arrival(finish, route.from, route.to, direction);
            agenda.at(at, Event::Network(ARRIVED, number));
        }
        if full {
            self.stream(route).lose(now);
        }
    }

    fn left(&mut self, number: u32, agenda: &mut Agenda) {
        let Some(unit) = self.units.get(number) else { return };
        let (route, payload) = (unit.route, unit.payload);
        let stream = self.stream(route);
        stream.waiting = stream.waiting.saturating_sub(payload.into());
        self.release(route, agenda);
    }

    fn arrived(&mut self, number: u32, agenda: &mut Agenda, out: &mut Vec<Delivery>) {
        let Some(unit) = self.units.get_mut(number) else { return };
        let (route, payload, leads) = (unit.route, unit.payload, unit.leads);
        match std::mem::replace(&mut unit.load, Load::Data(None)) {
            Load::Message(message) => out.push(Delivery::Said(route, message)),
            Load::Data(chunk) => out.extend(chunk.map(|chunk| Delivery::Arrived(route, chunk))),
        }
        let acknowledgements = if leads { self.ports.acknowledgements(payload) as u32 } else { 0 };
        self.ports.charge(route.to, route.from, acknowledgements);
        let behind = self.ports.port(Ports::up(route.to)).free.saturating_sub(agenda.now());
        let back = self.ports.delay_between(route.to, route.from);
        agenda.after(behind + back, Event::Network(ACKNOWLEDGED, number));
    }

    fn acknowledged(&mut self, number: u32, agenda: &mut Agenda) {
        let Some(unit) = self.units.take(number) else { return };
        let most = self.most;
        let stream = self.stream(unit.route);
        stream.flight = stream.flight.saturating_sub(unit.payload.into());
        if unit.payload == BLOCK_BYTES {
            stream.measured(agenda.now() - unit.launched);
        }
        stream.grow(unit.payload.into(), most);
        self.release(unit.route, agenda);
    }
}

impl Stream {
    /// The next bytes of the first chunk; the chunk itself with its last.
    fn take(&mut self, bytes: u32) -> Option<Block> {
        self.begun += bytes;
        let whole = self.chunks.front().is_some_and(|chunk| self.begun >= chunk.length);
        if !whole {
            return None;
        }
        self.begun = 0;
        self.chunks.pop_front()
    }

    /// Messages said at one moment share packets, as a driver writes them.
    fn begins_packet(&mut self, message_bytes: u32, now: Nanos) -> bool {
        let (began, bytes) = self.packet;
        let joins = began == now && u64::from(bytes + message_bytes) <= SEGMENT_BYTES;
        self.packet = (now, if joins { bytes + message_bytes } else { message_bytes });
        !joins
    }

    /// A queue builds up: slow start is over.
    fn measured(&mut self, round_trip: Nanos) {
        self.shortest = self.shortest.min(round_trip);
        let delayed = self.shortest + (self.shortest / 8).clamp(DELAYED.0, DELAYED.1);
        if round_trip >= delayed && self.window >= HYSTART_WINDOW {
            self.threshold = self.threshold.min(self.window);
        }
    }

    fn grow(&mut self, bytes: u64, most: u64) {
        let more =
            if self.window < self.threshold { bytes } else { (SEGMENT_BYTES * bytes / self.window.max(1)).max(1) };
        self.window = (self.window + more).min(most);
    }

    /// A queue overflowed: once a round trip the window gives way.
    fn lose(&mut self, now: Nanos) {
        if self.last_cut + self.round > now {
            return;
        }
        self.window = (self.window / 10 * 7).max(2 * SEGMENT_BYTES);
        self.threshold = self.window;
        self.last_cut = now;
        self.round = SECOND / 5;
    }
}
