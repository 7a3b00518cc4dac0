//! The planner: how fast a delivery can be, what limits it, and what other
//! methods would take. Pure arithmetic, nothing is simulated.

pub mod bound;
pub mod fluid;

use serde::Serialize;

use bound::{Racks, Swarm, floor_log2, payload_rate, t_star};
use fluid::Fluid;

/// Bytes of a block, the unit that a chain can pass on at once.
const BLOCK: f64 = 16384.0;
/// Packets of a block, for holes in multicast.
const PACKETS_PER_BLOCK: i32 = 12;

/// What is to be delivered over what. Rates are bits per second on the wire,
/// the disk's in bits per second too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Question {
    /// Nodes.
    pub nodes: u32,
    /// Racks that they stand in; 0 or 1 for one switch.
    pub racks: u32,
    /// Bytes of the image that travel.
    pub bytes: u64,
    /// Bytes of a piece.
    pub piece: u64,
    /// A node's link, each way.
    pub rate: u64,
    /// A node's link inwards, where it differs.
    pub rate_down: Option<u64>,
    /// The seed's link.
    pub seed_rate: Option<u64>,
    /// Seeds.
    pub seeds: u32,
    /// A rack's uplink, each way.
    pub uplink: Option<u64>,
    /// The seed stands in one of the racks.
    pub seed_in_rack: bool,
    /// What a node's disk writes.
    pub disk: Option<u64>,
    /// Bytes that are written, where more than travel.
    pub written: Option<u64>,
    /// Copies of the image that the seeds send, from the last run.
    pub copies: f64,
    /// How well downloaders share, from the last run.
    pub eta: f64,
    /// Seconds until a node asks for its first piece.
    pub boot_seconds: f64,
    /// Nodes that boot per second; 0 for all at once.
    pub boots_per_second: f64,
    /// Part of multicast packets that are lost.
    pub loss: f64,
}

impl Question {
    /// One seed and one switch, links alike in both directions, disks and booting that cost nothing.
    #[must_use]
    pub fn new(nodes: u32, bytes: u64, piece: u64, rate: u64) -> Question {
        Question {
            nodes,
            racks: 1,
            bytes,
            piece,
            rate,
            rate_down: None,
            seed_rate: None,
            seeds: 1,
            uplink: None,
            seed_in_rack: false,
            disk: None,
            written: None,
            copies: 1.0,
            eta: 0.99,
            boot_seconds: 0.0,
            boots_per_second: 0.0,
            loss: 0.0,
        }
    }
}

/// Something that takes at least so long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// What.
    pub what: &'static str,
    /// How long, in seconds.
    pub seconds: f64,
}

/// Another method, for comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// What it takes, in seconds.
    pub seconds: f64,
    /// Over the bound.
    pub ratio: f64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Pieces.
    pub pieces: u32,
    /// Payload bytes per second of a node's link.
    pub payload_rate: f64,
    /// Formula (1), in seconds.
    pub t_star: f64,
    /// Formula (4) and the disk, in seconds: nobody is faster.
    pub bound: f64,
    /// What is to be expected, in seconds from power-on.
    pub predicted: f64,
    /// What takes longest.
    pub limited_by: &'static str,
    /// All that takes time side by side, longest first.
    pub limits: Vec<Limit>,
    /// Rack nodes' links over the uplink; 0 without.
    pub oversubscription: f64,
    /// Qiu and Srikant, closed form (6), in seconds.
    pub fluid_closed: f64,
    /// Qiu and Srikant, integrated (5), in seconds.
    pub fluid_integrated: f64,
    /// Formula (7): multicast with repair by the swarm, in seconds.
    pub hybrid: f64,
    /// Other methods.
    pub methods: Vec<Method>,
}

/// Answers.
pub fn plan(question: &Question) -> Plan {
    let view = View::of(question);
    let spread = view.piece * f64::from(floor_log2(question.nodes.into())) / view.up;
    let limits = view.limits(question);
    let t_star = t_star(view.bytes, view.up, question.nodes.into(), view.pieces);
    let bound = view.bound();
    let longest = limits.first().map_or(0.0, |limit| limit.seconds);
    Plan {
        pieces: view.pieces,
        payload_rate: view.up,
        t_star,
        bound,
        predicted: question.boot_seconds + longest + spread,
        limited_by: limits.first().map_or("nothing", |limit| limit.what),
        limits,
        oversubscription: view.uplink.map_or(0.0, |uplink| view.per_rack * view.up / uplink),
        fluid_closed: view.fluid(question).batch(view.nodes, f64::from(question.seeds)),
        fluid_integrated: view.fluid(question).integrate(view.nodes, f64::from(question.seeds)),
        hybrid: view.hybrid(question.loss),
        methods: view.methods(bound),
    }
}

/// The question in payload bytes per second.
struct View {
    bytes: f64,
    piece: f64,
    pieces: u32,
    nodes: f64,
    up: f64,
    down: f64,
    seeds_up: f64,
    seed_up: f64,
    uplink: Option<f64>,
    per_rack: f64,
    racks: Option<Racks>,
    disk_seconds: f64,
}

impl View {
    fn of(question: &Question) -> View {
        let up = payload_rate(question.rate);
        let seed_up = payload_rate(question.seed_rate.unwrap_or(question.rate));
        let racks = question.racks.max(1);
        let uplink = question.uplink.filter(|_| racks > 1).map(payload_rate);
        let written = question.written.unwrap_or(question.bytes) as f64;
        View {
            bytes: question.bytes as f64,
            piece: question.piece as f64,
            pieces: question.bytes.div_ceil(question.piece.max(1)) as u32,
            nodes: f64::from(question.nodes),
            up,
            down: payload_rate(question.rate_down.unwrap_or(question.rate)),
            seeds_up: seed_up * f64::from(question.seeds.max(1)),
            seed_up,
            uplink,
            per_rack: (f64::from(question.nodes) / f64::from(racks)).ceil(),
            racks: uplink.map(|uplink| Racks { racks, uplink, source_inside: question.seed_in_rack }),
            disk_seconds: question.disk.map_or(0.0, |disk| written * 8.0 / disk as f64),
        }
    }

    fn swarm(&self) -> Swarm {
        Swarm {
            bytes: self.bytes,
            pieces: self.pieces,
            seeds_up: self.seeds_up,
            nodes: vec![(self.up, self.down); self.nodes as usize],
        }
    }

    fn rack_seconds(&self) -> f64 {
        self.racks.map_or(0.0, |racks| racks.t_racks(self.bytes))
    }

    fn bound(&self) -> f64 {
        self.swarm().t_pieces().max(self.rack_seconds()).max(self.disk_seconds)
    }

    fn fluid(&self, question: &Question) -> Fluid {
        Fluid {
            mu: self.up / self.bytes,
            c: self.down / self.bytes,
            eta: question.eta,
            lambda: question.boots_per_second,
            theta: 0.0,
            gamma: 0.0,
        }
    }

    /// All that takes time side by side, longest first.
    fn limits(&self, question: &Question) -> Vec<Limit> {
        let fluid = self.fluid(question);
        let seeds = f64::from(question.seeds);
        let swarm = if question.boots_per_second > 0.0 {
            fluid.integrate(self.nodes, seeds)
        } else {
            fluid.batch(self.nodes, seeds)
        };
        let mut limits = vec![
            Limit { what: "server uplink", seconds: question.copies * self.bytes / self.seeds_up },
            Limit { what: "node link", seconds: swarm.max(self.bytes / self.down) },
            Limit { what: "rack uplink", seconds: self.rack_seconds() },
            Limit { what: "disk", seconds: self.disk_seconds },
        ];
        limits.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        limits.retain(|limit| limit.seconds > 0.0);
        limits
    }

    /// Formula (7).
    fn hybrid(&self, loss: f64) -> f64 {
        let rate = self.uplink.map_or(self.down, |uplink| uplink.min(self.down)).min(self.seed_up);
        let holes = 1.0 - (1.0 - loss).powi(PACKETS_PER_BLOCK);
        self.bytes / (0.95 * rate) + holes * self.bytes / self.down.min(self.up) + 2.0 * self.piece / self.up
    }

    fn methods(&self, bound: f64) -> Vec<Method> {
        let (n, link) = (self.nodes, self.bytes / self.up);
        let through_racks = self.rack_seconds();
        let slow_disk = self.disk_seconds;
        let star = n * self.bytes / self.seed_up;
        let depth = (n + 1.0).log2().ceil();
        let multicast = self.uplink.map_or(self.down, |uplink| uplink.min(self.down)).min(self.seed_up);
        let rows = [
            ("star: one server (HTTP, FTP, NFS)", star),
            ("tree: every node feeds two", (2.0 * link + depth * self.piece / self.up * 2.0).max(through_racks)),
            (
                "chain of whole pieces, by racks",
                (link * (1.0 + (n - 1.0) * self.piece / self.bytes)).max(through_racks),
            ),
            ("chain of 16 KiB blocks, by racks", (link * (1.0 + (n - 1.0) * BLOCK / self.bytes)).max(through_racks)),
            ("multicast at 90 % of the rate", self.bytes / (0.9 * multicast)),
        ];
        let method = |(name, seconds): (&'static str, f64)| {
            let seconds = seconds.max(slow_disk);
            Method { name, seconds, ratio: seconds / bound }
        };
        rows.into_iter().map(method).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn question(nodes: u32, rate: u64, bytes: u64, piece: u64) -> Question {
        Question::new(nodes, bytes, piece, rate)
    }

    /// p2p.md, table 1.5.
    #[test]
    fn the_limit_rows_of_the_benchmark() {
        const M: u64 = 1 << 20;
        const K: u64 = 1 << 10;
        let rows = [
            (10, 100_000_000, 512 * M, M, 512, 44.91, 45.17, 45.7, 449.0),
            (50, 20_000_000, 128 * M, 256 * K, 512, 56.13, 56.68, 61.5, 2_807.0),
            (230, 5_000_000, 32 * M, 256 * K, 128, 56.13, 59.20, 156.6, 12_911.0),
            (230, 5_000_000, 64 * M, 128 * K, 512, 112.3, 113.8, 162.5, 25_822.0),
        ];
        for (nodes, rate, bytes, piece, pieces, fluid, t_star, chain, star) in rows {
            let plan = plan(&question(nodes, rate, bytes, piece));
            let close = |value: f64, expected: f64| (value / expected - 1.0).abs() < 1.2e-3;
            assert_eq!(plan.pieces, pieces);
            assert!(close(bytes as f64 / plan.payload_rate, fluid), "{nodes}");
            assert!(close(plan.t_star, t_star) && close(plan.bound, t_star), "{nodes}: {}", plan.t_star);
            assert!(close(plan.methods[2].seconds, chain), "{nodes}: {}", plan.methods[2].seconds);
            assert!(close(plan.methods[0].seconds, star), "{nodes}: {}", plan.methods[0].seconds);
        }
    }

    /// p2p.md, table 1.4: over F/U at 230 nodes and 512 pieces.
    #[test]
    fn other_methods() {
        let bytes = 512 << 20;
        let plan = plan(&question(230, 1_000_000_000, bytes, 1 << 20));
        let link = bytes as f64 / plan.payload_rate;
        let over: Vec<f64> = plan.methods.iter().map(|method| method.seconds / link).collect();
        assert!((over[0] - 230.0).abs() < 1e-6);
        assert!((over[1] - 2.03).abs() < 0.01, "{}", over[1]);
        assert!((over[2] - 1.447).abs() < 1e-3);
        assert!((plan.t_star / link - 1.0137).abs() < 1e-4);
        let large = super::plan(&question(230, 1_000_000_000, 2_000_000_000, 1 << 20));
        let over = large.methods[3].seconds / (2e9 / large.payload_rate);
        assert!((over - 1.002).abs() < 2e-4, "{over}");
    }

    #[test]
    fn racks_hide_oversubscription_up_to_their_size() {
        let mut question = question(230, 1_000_000_000, 4 << 30, 4 << 20);
        question.racks = 10;
        question.uplink = Some(23_000_000_000 / 4);
        let hidden = plan(&question);
        assert!((hidden.bound - hidden.t_star).abs() < 1e-9);
        assert!((hidden.oversubscription - 4.0).abs() < 1e-9);
        assert_eq!(hidden.limited_by, "node link");
        question.uplink = Some(500_000_000);
        let narrow = plan(&question);
        assert_eq!(narrow.limited_by, "rack uplink");
        assert!((narrow.bound / (2.0 * (4_u64 << 30) as f64 / narrow.payload_rate) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn disks_and_servers_limit() {
        let mut slow = question(230, 1_000_000_000, 4 << 30, 4 << 20);
        slow.disk = Some(800_000_000);
        let plan_of_disk = plan(&slow);
        assert_eq!(plan_of_disk.limited_by, "disk");
        assert!((plan_of_disk.bound - 42.95).abs() < 0.01, "{}", plan_of_disk.bound);
        let mut served = question(230, 1_000_000_000, 4 << 30, 4 << 20);
        served.seed_rate = Some(100_000_000);
        assert_eq!(plan(&served).limited_by, "server uplink");
    }

    /// p2p.md, 1.2: a fast seed helps until the third term of (2) binds.
    #[test]
    fn unequal_rates() {
        let mut question = question(230, 100_000_000, 512 << 20, 1 << 20);
        question.seed_rate = Some(400_000_000);
        let same_downlink = plan(&question);
        assert!((same_downlink.bound / same_downlink.t_star - 0.99).abs() < 0.012);
        question.rate_down = Some(400_000_000);
        let wide_downlink = plan(&question);
        assert!((wide_downlink.bound / wide_downlink.t_star - 0.97).abs() < 0.01, "{}", wide_downlink.bound);
    }

    /// p2p.md, section 3: with 5 % of rate kept back and one packet in a
    /// thousand lost, about 1.07 F/U.
    #[test]
    fn multicast_with_repair() {
        let mut question = question(230, 1_000_000_000, 4 << 30, 4 << 20);
        question.loss = 1e-3;
        let plan = plan(&question);
        let over = plan.hybrid / ((4_u64 << 30) as f64 / plan.payload_rate);
        assert!((over - 1.067).abs() < 0.004, "{over}");
    }
}
