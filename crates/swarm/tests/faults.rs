//! Small swarms, many seeds, every fault: the rules that must always hold.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::time::Duration;

use rackswarm_swarm::policy::ChokerKind;
use rackswarm_swarm::{PieceSet, Policy, Shape, Speaks, Why};
use world::{Nature, Plan, World};

const RATE: f64 = 2e6;
const PIECES: u32 = 20;

/// A small generator: which faults a seed draws.
struct Lots(u64);

impl Lots {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// Five to eight nodes, of which the seed and at least two others are honest
/// and stay; the rest lie, refuse, keep mute, vanish, die, come late, are
/// other clients, or are well.
fn draw(seed: u64) -> (Plan, Vec<(usize, Duration, bool)>, Vec<usize>) {
    let mut lots = Lots(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5555);
    let leechers = 4 + lots.below(4) as usize;
    let piece = 4 * 16384;
    let shape = Shape::new(u64::from(PIECES * piece) - 5000, piece).unwrap();
    let kind = [ChokerKind::Cooperative, ChokerKind::Cooperative, ChokerKind::Auto][lots.below(3) as usize];
    let active_bytes = if lots.one_in(3) { 0 } else { 16 << 20 };
    let policy = Policy { choker: kind, active_bytes, ..Policy::default() };
    let mut plan = Plan::new(shape, leechers, RATE, &policy, seed);
    plan.guided = true;
    plan.leaves = lots.one_in(2);
    plan.latency = Duration::from_micros(100 + lots.below(20_000));
    plan.twins_from = lots.one_in(4).then_some(PIECES / 2);
    if lots.one_in(3) {
        plan = plan.racked(2 + lots.below(2) as usize, 1.0 + lots.below(3) as f64);
    }
    let mut guilty = Vec::new();
    let mut deaths = Vec::new();
    for number in 3..=leechers {
        let at = Duration::from_millis(lots.below(1500));
        let node = &mut plan.nodes[number];
        match lots.below(10) {
            0 => node.nature = Nature::Liar { one_in: 1 + lots.below(30) as u32 },
            1 => node.nature = Nature::Mute,
            2 => node.nature = Nature::Refuser,
            3 => deaths.push((number, at, true)),
            4 => deaths.push((number, at, false)),
            5 => node.starts = at,
            6 => node.policy.choker = ChokerKind::TitForTat,
            7 => node.speaks = Speaks { fast: lots.one_in(2), extended: false },
            8 => (node.up, node.down) = (node.up / 4.0, node.down / 4.0),
            _ => (0..PIECES).step_by(3).for_each(|piece| {
                node.have.insert(piece);
            }),
        }
        let bad = plan.nodes[number].nature != Nature::Honest;
        if bad && lots.one_in(2) {
            // With everything to lie about from the start.
            plan.nodes[number].have = PieceSet::full(PIECES);
        }
        if bad || deaths.last().is_some_and(|(dead, ..)| *dead == number) {
            guilty.push(number);
        }
    }
    (plan, deaths, guilty)
}

fn check(seed: u64) {
    let (plan, deaths, guilty) = draw(seed);
    let mut world = World::planned(plan);
    for (node, at, silently) in deaths {
        if silently { world.vanish_at(at, node) } else { world.kill_at(at, node) }
    }
    world.run(Duration::from_secs(600));
    for (number, node) in world.nodes.iter().enumerate().filter(|(number, _)| !guilty.contains(number)) {
        for (other, why) in &node.dropped {
            let polite =
                matches!(why, Why::Duplicate | Why::BothComplete | Why::Displaced | Why::Full | Why::Ourselves);
            assert!(polite || guilty.contains(other), "seed {seed}: node {number} dropped honest {other}: {why}");
        }
    }
    world.settle(Duration::from_secs(30));
    assert_eq!(world.debts(&guilty), "", "seed {seed}");
}

#[test]
fn no_fault_stalls_the_rest_and_nobody_honest_is_blamed() {
    (0..700).for_each(check);
}

#[test]
fn nor_do_seven_hundred_others() {
    (10_000..10_700).for_each(check);
}
