//! The structure that our own clients get from the tracker: short across, near
//! regular, and lanes meet between racks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use rackswarm_swarm::lanes::{LANES, claims};
use rackswarm_swarm::tracker::{Topology, Tracker, TrackerPolicy};
use wire::announce::{AnnounceRequest, AnnounceResponse, Event};
use wire::metainfo::InfoHash;
use wire::peer::{PeerId, RackName};

const IMAGE: InfoHash = InfoHash([7; 20]);
const START: Duration = Duration::ZERO;

fn ip(node: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + node).to_be_bytes())
}

fn node(address: SocketAddr) -> u32 {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address}") };
    u32::from(ip) - 0x0a00_0000
}

fn id(node: u32) -> PeerId {
    let mut id = *b"-RS0100-............";
    id[8..12].copy_from_slice(&node.to_be_bytes());
    PeerId(id)
}

fn request(node: u32, rack: Option<&str>) -> AnnounceRequest {
    AnnounceRequest {
        info_hash: IMAGE,
        peer_id: id(node),
        port: 6881,
        uploaded: 0,
        downloaded: 0,
        left: 1,
        event: Some(Event::Started),
        num_want: Some(40),
        compact: true,
        own_kind: true,
        rack: rack.map(|name| RackName::new(name).unwrap()),
    }
}

/// Nodes that connect to everybody they are told of.
struct World {
    tracker: Tracker,
    racks: BTreeMap<u32, String>,
    links: BTreeMap<u32, BTreeSet<u32>>,
}

impl World {
    fn new(policy: TrackerPolicy, seed: u64) -> World {
        let mut tracker = Tracker::new(policy, seed);
        tracker.register(IMAGE);
        World { tracker, racks: BTreeMap::new(), links: BTreeMap::new() }
    }

    fn announce(&mut self, now: Duration, node_number: u32) -> AnnounceResponse {
        let request = request(node_number, self.racks.get(&node_number).map(String::as_str));
        let answer = self.tracker.announce(now, &request, ip(node_number)).unwrap();
        self.links.entry(node_number).or_default();
        for peer in &answer.peers {
            let other = node(peer.address);
            assert_ne!(other, node_number, "nobody is told of itself");
            self.links.entry(node_number).or_default().insert(other);
            self.links.entry(other).or_default().insert(node_number);
        }
        answer
    }

    fn die(&mut self, node: u32) {
        let stopped = AnnounceRequest { event: Some(Event::Stopped), ..request(node, None) };
        assert!(self.tracker.announce(START, &stopped, ip(node)).unwrap().peers.is_empty());
        self.racks.remove(&node);
        for other in self.links.remove(&node).unwrap_or_default() {
            self.links.get_mut(&other).unwrap().remove(&node);
        }
    }

    fn degrees(&self) -> Vec<usize> {
        let mut degrees: Vec<usize> = self.links.values().map(BTreeSet::len).collect();
        degrees.sort_unstable();
        degrees
    }

    /// Steps to the farthest node from `from`; panics when one is out of reach.
    fn eccentricity(&self, from: u32) -> usize {
        let (mut seen, mut edge, mut steps) = (BTreeSet::from([from]), vec![from], 0);
        loop {
            let next: BTreeSet<u32> = edge.iter().flat_map(|at| &self.links[at]).copied().collect();
            edge = next.into_iter().filter(|other| seen.insert(*other)).collect();
            if edge.is_empty() {
                assert_eq!(seen.len(), self.links.len(), "some nodes are out of reach");
                return steps;
            }
            steps += 1;
        }
    }

    fn mates(&self, node: u32) -> Vec<PeerId> {
        let mates = self.links[&node].iter().filter(|other| self.racks.get(other) == self.racks.get(&node));
        mates.map(|other| id(*other)).collect()
    }
}

/// All at once, then once more as the answers said.
fn settled(nodes: u32, seed: u64) -> World {
    let mut world = World::new(TrackerPolicy::default(), seed);
    let mut soon = 0;
    for node in 0..nodes {
        soon += u32::from(world.announce(START, node).interval_seconds < 30);
    }
    assert!(nodes <= 40 || soon >= nodes - 40, "newcomers shall ask again soon: {soon} of {nodes}");
    for node in 0..nodes {
        world.announce(Duration::from_secs(2), node);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn without_racks_the_graph_is_connected_and_near_regular(nodes in 1u32..1000, seed: u64) {
        let world = settled(nodes, seed);
        let degrees = world.degrees();
        if nodes <= 40 {
            prop_assert!(degrees.iter().all(|degree| *degree == nodes as usize - 1));
        } else {
            prop_assert!(degrees[0] >= 20, "{:?}", degrees);
            prop_assert!(degrees[degrees.len() - 1] <= 80, "{:?}", degrees);
            // The first forty know each other; all later ones are alike.
            let later = &degrees[..degrees.len() - 41];
            prop_assert!(later.last().is_none_or(|most| *most <= 40), "{:?}", degrees);
        }
        prop_assert!(world.eccentricity(0) <= 4, "{}", world.eccentricity(0));
    }

    #[test]
    fn lanes_meet_between_racks(sizes in proptest::collection::vec(1u32..40, 2..12), seed: u64, mixed: bool) {
        let mut world = World::new(TrackerPolicy::default(), seed);
        let mut nodes: Vec<u32> = Vec::new();
        for (rack, size) in sizes.iter().enumerate() {
            for _ in 0..*size {
                world.racks.insert(nodes.len() as u32, format!("r{rack}"));
                nodes.push(nodes.len() as u32);
            }
        }
        if mixed {
            nodes.sort_by_key(|node| id(node.wrapping_mul(0x9e37_79b9)).0);
        }
        for round in 0..3 {
            for node in &nodes {
                world.announce(Duration::from_secs(2 * round), *node);
            }
        }
        assert_lanes_meet(&world);
        world.eccentricity(0);
    }

    #[test]
    fn deaths_are_repaired(nodes in 60u32..300, seed: u64, stride in 2u32..5) {
        let mut world = settled(nodes, seed);
        (0..nodes).step_by(stride as usize).for_each(|node| world.die(node));
        let living: Vec<u32> = world.links.keys().copied().collect();
        for node in &living {
            world.announce(Duration::from_secs(32), *node);
        }
        let least = 20.min(living.len() - 1);
        prop_assert!(world.degrees()[0] >= least, "{:?}", world.degrees());
        world.eccentricity(living[0]);
    }

    #[test]
    fn torn_and_rotten_snapshots_are_refused(nodes in 0u32..30, at: prop::sample::Index, bit in 0u8..8) {
        let mut world = World::new(TrackerPolicy::default(), 1);
        (0..nodes).for_each(|node| { world.announce(START, node); });
        let good = world.tracker.snapshot();
        let mut rotten = good.clone();
        let at = at.index(rotten.len());
        rotten[at] ^= 1 << bit;
        for damaged in [&rotten[..], &good[..at]] {
            prop_assert!(Tracker::new(TrackerPolicy::default(), 1).restore(START, damaged).is_err());
        }
        prop_assert_eq!(Tracker::new(TrackerPolicy::default(), 1).restore(START, &good), Ok(nodes as usize));
    }
}

/// Every member knows its mates, and who claims a lane here knows who claims
/// it in each other rack, all by the roster that each sees itself.
fn assert_lanes_meet(world: &World) {
    let claimed: BTreeMap<u32, u64> =
        world.racks.keys().map(|node| (*node, claims(&world.mates(*node), id(*node)))).collect();
    let names: BTreeSet<&String> = world.racks.values().collect();
    for lane in 0..LANES {
        let holders: Vec<u32> =
            claimed.iter().filter(|(_, set)| *set & 1 << lane != 0).map(|(node, _)| *node).collect();
        assert_eq!(holders.len(), names.len(), "one holder of lane {lane} in each rack");
        for a in &holders {
            assert!(holders.iter().all(|b| a == b || world.links[a].contains(b)), "lane {lane}: {a} misses one");
        }
    }
}

#[test]
fn many_racks_exchange_every_lane_over_a_connected_graph() {
    let mut world = World::new(TrackerPolicy::default(), 3);
    for node in 0..600 {
        world.racks.insert(node, format!("r{}", node % 60));
    }
    for round in 0..3 {
        (0..600).for_each(|node| drop(world.announce(Duration::from_secs(2 * round), node)));
    }
    let claimed: BTreeMap<u32, u64> = (0..600).map(|node| (node, claims(&world.mates(node), id(node)))).collect();
    for lane in 0..LANES {
        let holders: BTreeSet<u32> = (0..600).filter(|node| claimed[node] & 1 << lane != 0).collect();
        assert_eq!(holders.len(), 60);
        let mut reached = BTreeSet::from([*holders.first().unwrap()]);
        let mut edge: Vec<u32> = reached.iter().copied().collect();
        while let Some(at) = edge.pop() {
            edge.extend(world.links[&at].intersection(&holders).copied().filter(|other| reached.insert(*other)));
        }
        assert_eq!(reached, holders, "lane {lane}");
        let least = holders.iter().map(|at| world.links[at].intersection(&holders).count()).min().unwrap();
        assert!(least >= 10, "lane {lane}: {least}");
    }
}

#[test]
fn large_racks_have_a_claimer_of_every_lane_who_knows_one_elsewhere() {
    let mut world = World::new(TrackerPolicy::default(), 5);
    for node in 0..400 {
        world.racks.insert(node, format!("r{}", node % 2));
    }
    for round in 0..3 {
        (0..400).for_each(|node| drop(world.announce(Duration::from_secs(2 * round), node)));
    }
    let claimed: Vec<u64> = (0..400).map(|node| claims(&world.mates(node), id(node))).collect();
    for lane in 0..LANES {
        let claims_it = |node: &u32| claimed[*node as usize] & 1 << lane != 0;
        let meets = (0..400).filter(claims_it).any(|node| {
            world.links[&node].iter().any(|other| world.racks[other] != world.racks[&node] && claims_it(other))
        });
        assert!(meets, "lane {lane}");
    }
}

#[test]
fn the_topology_goes_before_what_a_node_says() {
    let topology = Topology::from_toml("[[rack]]\nname = \"east\"\ncidrs = [\"10.0.0.0/31\"]").unwrap();
    let mut tracker = Tracker::new(TrackerPolicy::default(), 1).with_topology(topology);
    tracker.register(IMAGE);
    let mut rack = |node, said| {
        let answer = tracker.announce(START, &request(node, said), ip(node)).unwrap();
        answer.guidance.unwrap().rack.map(|name| name.to_string())
    };
    assert_eq!(rack(1, Some("west")).as_deref(), Some("east"));
    assert_eq!(rack(2, Some("west")).as_deref(), Some("west"));
    assert_eq!(rack(3, None), None);
}

#[test]
fn a_seed_outside_the_racks_is_spread_over_racks_and_lanes() {
    let mut world = World::new(TrackerPolicy::default(), 1);
    let seed = SocketAddr::new(ip(9999), 6881);
    world.tracker.anchor(IMAGE, seed, id(9999)).unwrap();
    for node in 0..1000 {
        world.racks.insert(node, format!("r{:02}", node / 50));
    }
    for round in 0..3 {
        (0..1000).for_each(|node| drop(world.announce(Duration::from_secs(2 * round), node)));
    }
    // Its book of fans has a bound; who was let go stays connected, so count generously.
    let fans = &world.links[&9999];
    assert!(fans.len() <= 600, "{}", fans.len());
    let mut racks: BTreeMap<&str, u64> = BTreeMap::new();
    for fan in fans {
        *racks.entry(&world.racks[fan]).or_default() |= claims(&world.mates(*fan), id(*fan));
    }
    assert_eq!(racks.len(), 20, "{racks:?}");
    for lane in 0..LANES {
        let known = racks.values().filter(|set| *set & 1 << lane != 0).count();
        assert!(known >= 2, "lane {lane}: {known} racks");
    }
    // An announce cannot remove or replace the process's own seed.
    world.die(9999);
    let usurper = AnnounceRequest { peer_id: id(5), ..request(9999, None) };
    world.tracker.announce(START, &usurper, ip(9999)).unwrap();
    let told = world.tracker.announce(START, &request(2000, Some("new")), ip(2000)).unwrap();
    assert!(told.peers.iter().any(|peer| peer.address == seed && peer.peer_id == Some(id(9999))));
}

#[test]
fn small_swarms_know_all_seeds_and_seeds_need_nobody() {
    let mut world = World::new(TrackerPolicy::default(), 1);
    world.tracker.anchor(IMAGE, SocketAddr::new(ip(900), 6881), id(900)).unwrap();
    let seed = AnnounceRequest { left: 0, num_want: Some(0), ..request(901, None) };
    assert!(world.tracker.announce(START, &seed, ip(901)).unwrap().peers.is_empty());
    for node in 0..100 {
        world.announce(START, node);
    }
    assert_eq!((world.links[&900].len(), world.links[&901].len()), (100, 100));
}

#[test]
fn strangers_get_samples_and_no_guidance() {
    let mut world = World::new(TrackerPolicy::default(), 1);
    for node in 0..200 {
        world.racks.insert(node, format!("r{}", node % 4));
        world.announce(START, node);
    }
    let stranger = AnnounceRequest { own_kind: false, rack: Some(RackName::new("r1").unwrap()), ..request(300, None) };
    let answer = world.tracker.announce(START, &stranger, ip(300)).unwrap();
    assert_eq!((answer.peers.len(), answer.guidance, answer.interval_seconds), (40, None, 30));
    let told = world.announce(START, 201);
    assert!(told.peers.iter().any(|peer| node(peer.address) == 300), "and our own are told of strangers");
}

#[test]
fn a_restarted_tracker_knows_the_swarm_and_its_links() {
    let mut world = World::new(TrackerPolicy::default(), 1);
    for node in 0..300 {
        if node % 2 == 0 {
            world.racks.insert(node, format!("r{}", node % 3));
        }
        world.announce(START, node);
    }
    for node in 0..300 {
        world.announce(Duration::from_secs(2), node);
    }
    let before = world.links.clone();
    let snapshot = world.tracker.snapshot();
    let mut tracker = Tracker::new(TrackerPolicy::default(), 99);
    assert_eq!(tracker.restore(START, &snapshot), Ok(300));
    assert!(tracker.announce(START, &request(1, None), ip(1)).is_err(), "not registered yet");
    tracker.register(IMAGE);
    assert_eq!(tracker.scrape(START, &IMAGE).unwrap().incomplete, 300);
    assert_eq!(tracker.snapshot(), snapshot);
    world.tracker = tracker;
    assert!(world.announce(START, 1001).peers.len() >= 12, "a newcomer gets peers at once");
    for node in (1..300).step_by(2) {
        world.announce(START, node);
        let more = world.links[&node].difference(&before[&node]).filter(|other| **other < 300).count();
        assert!(more <= 2, "{node}: {more} new links without need");
    }
    // Whoever did not come again in time is gone.
    assert_eq!(world.tracker.scrape(Duration::from_secs(76), &IMAGE).unwrap().incomplete, 0);
}

/// Of the order that docs/decisions/0011 plans a tracker by.
#[test]
fn a_hundred_thousand_peers_take_little_memory() {
    let mut reports = Vec::new();
    for racks in [2500u32, 0] {
        let mut tracker = Tracker::new(TrackerPolicy::default(), 1);
        tracker.register(IMAGE);
        let rack = |node: u32| (racks > 0).then(|| format!("r{}", node % racks.max(1)));
        let resident = resident_bytes();
        for round in 0..2 {
            for node in 0..100_000 {
                let request = request(node, rack(node).as_deref());
                let answer = tracker.announce(Duration::from_secs(20 * round), &request, ip(node)).unwrap();
                assert!(answer.peers.len() <= 200 && (node == 0 || !answer.peers.is_empty()));
            }
        }
        let bytes = resident_bytes().saturating_sub(resident) / 100_000;
        let snapshot = tracker.snapshot().len() / 100_000;
        reports.push(format!("{racks} racks: {bytes} bytes a peer, {snapshot} in the snapshot"));
        assert!(bytes < 2000, "{reports:?}");
    }
    println!("{}", reports.join("\n"));
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
