//! Cables and switches: every connection has a window of bytes that can be
//! under way, every uplink serves its connections in turn, and racks and
//! downlinks are queues that parts cut through.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wire::peer::{BLOCK_BYTES, Block};

use super::Plan;

/// A driver cuts ranges into parts of this much time and at most this length.
const PART_TIME: Duration = Duration::from_millis(10);
const MAX_PART: u32 = 16 << 10;

pub(super) struct Net {
    ports: Vec<Port>,
    racks: Vec<Trunk>,
    window: u64,
}

struct Port {
    up: f64,
    down: f64,
    rack: Option<usize>,
    part: u32,
    busy_until: Duration,
    down_free: Duration,
    /// By connection: what waits, and what is under way.
    flows: BTreeMap<usize, Flow>,
    last: usize,
}

#[derive(Default)]
struct Flow {
    waiting: VecDeque<Block>,
    under_way: u64,
}

#[derive(Clone)]
struct Trunk {
    rate: f64,
    up_free: Duration,
    down_free: Duration,
}

impl Net {
    pub(super) fn new(plan: &Plan) -> Net {
        let part = |rate: f64| {
            ((rate * PART_TIME.as_secs_f64()) as u32 / BLOCK_BYTES * BLOCK_BYTES).clamp(BLOCK_BYTES, MAX_PART)
        };
        let ports = plan.nodes.iter().map(|node| Port {
            up: node.up,
            down: node.down,
            rack: node.rack,
            part: part(node.up),
            busy_until: Duration::ZERO,
            down_free: Duration::ZERO,
            flows: BTreeMap::new(),
            last: 0,
        });
        let rate = plan.rack_rate.unwrap_or(f64::INFINITY);
        let racks = plan.nodes.iter().filter_map(|node| node.rack).max().map_or(0, |last| last + 1);
        let trunk = Trunk { rate, up_free: Duration::ZERO, down_free: Duration::ZERO };
        Net { ports: ports.collect(), racks: vec![trunk; racks], window: plan.window }
    }

    pub(super) fn queue(&mut self, node: usize, link: usize, mut range: Block) {
        let part = self.ports[node].part;
        let flow = self.ports[node].flows.entry(link).or_default();
        while range.length > part {
            flow.waiting.push_back(Block { length: part, ..range });
            range = Block { offset: range.offset + part, length: range.length - part, ..range };
        }
        flow.waiting.push_back(range);
    }

    pub(super) fn closed(&mut self, node: usize, link: usize) {
        self.ports[node].flows.remove(&link);
    }

    /// What leaves the uplink next, and when; nothing while it is busy.
    pub(super) fn next(&mut self, now: Duration, node: usize) -> Option<(Duration, usize, Block)> {
        let window = self.window;
        let port = &mut self.ports[node];
        if port.busy_until > now {
            return None;
        }
        let ready = |flow: &Flow| {
            flow.waiting
                .front()
                .is_some_and(|part| flow.under_way == 0 || flow.under_way + u64::from(part.length) <= window)
        };
        let after = port.flows.range(port.last + 1..).find(|(_, flow)| ready(flow)).map(|(link, _)| *link);
        let link = after.or_else(|| port.flows.iter().find(|(_, flow)| ready(flow)).map(|(link, _)| *link))?;
        port.last = link;
        let flow = port.flows.get_mut(&link)?;
        let part = flow.waiting.pop_front()?;
        flow.under_way += u64::from(part.length);
        port.busy_until = now + took(part.length, port.up);
        Some((port.busy_until, link, part))
    }

    /// A part left an uplink: when it is out of the other node's downlink.
    pub(super) fn deliver(&mut self, now: Duration, from: usize, to: usize, bytes: u32) -> Duration {
        let (out_of, into) = (self.ports[from].rack, self.ports[to].rack);
        let mut at = now;
        if out_of != into {
            if let Some(rack) = out_of {
                let trunk = &mut self.racks[rack];
                at = through(at, &mut trunk.up_free, bytes, trunk.rate);
            }
            if let Some(rack) = into {
                let trunk = &mut self.racks[rack];
                at = through(at, &mut trunk.down_free, bytes, trunk.rate);
            }
        }
        let port = &mut self.ports[to];
        through(at, &mut port.down_free, bytes, port.down)
    }

    pub(super) fn arrived(&mut self, from: usize, link: usize, bytes: u32) {
        if let Some(flow) = self.ports[from].flows.get_mut(&link) {
            flow.under_way -= u64::from(bytes);
        }
    }
}

/// Through a queue that forwards while it receives.
fn through(at: Duration, free: &mut Duration, bytes: u32, rate: f64) -> Duration {
    *free = at.max(*free + took(bytes, rate));
    *free
}

fn took(bytes: u32, rate: f64) -> Duration {
    Duration::from_secs_f64(f64::from(bytes) / rate)
}
