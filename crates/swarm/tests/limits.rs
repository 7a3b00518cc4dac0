//! How near whole swarms come to the bounds of theory, in a world of virtual
//! time where control costs nothing and a transfer that shares a link does not
//! wait. It flatters; `sim` with its model of blocks is the judge, and the
//! bounds here are no aims (docs/decisions/0016).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::time::Duration;

use rackswarm_swarm::policy::ChokerKind;
use rackswarm_swarm::{Policy, Shape};
use world::{Plan, World};

const LONG: Duration = Duration::from_secs(36_000);

fn cooperative() -> Policy {
    Policy { choker: ChokerKind::Cooperative, dial_peers: 20, ..Policy::default() }
}

fn shape(pieces: u32, piece_length: u32) -> Shape {
    Shape::new(u64::from(pieces) * u64::from(piece_length), piece_length).unwrap()
}

struct Outcome {
    ratio: f64,
    egress: f64,
    waste: f64,
    world: World,
}

fn outcome(name: &str, plan: Plan) -> Outcome {
    let leechers = plan.nodes.len() - 1;
    let seed = plan.seed;
    let mut world = World::planned(plan);
    world.run(LONG);
    let limit = world.limit(leechers);
    let finishes = world.finishes();
    let median = finishes[finishes.len() / 2] / limit;
    let outcome = Outcome { ratio: world.makespan() / limit, egress: world.egress(0), waste: world.waste(), world };
    println!(
        "simulated {name} seed {seed}: makespan {:.4}, median {:.4} of the bound, seed sent {:.4} images, waste {:.5}, {} steps, {} messages",
        outcome.ratio, median, outcome.egress, outcome.waste, outcome.world.steps, outcome.world.messages
    );
    outcome
}

#[test]
fn ten_nodes() {
    for seed in 0..3 {
        let plan = Plan::new(shape(1024, 128 << 10), 10, 12.5e6, &cooperative(), seed);
        let outcome = outcome("10 nodes, 1024 pieces of 128 KiB", plan);
        assert!(outcome.ratio <= 1.05 && outcome.egress <= 1.03);
    }
}

fn fifty(seed: u64) -> Plan {
    Plan::new(shape(1024, 128 << 10), 50, 2.5e6, &cooperative(), seed)
}

#[test]
fn fifty_nodes() {
    for seed in 0..2 {
        let outcome = outcome("50 nodes, 1024 pieces of 128 KiB", fifty(seed));
        assert!(outcome.ratio <= 1.07 && outcome.egress <= 1.04);
        assert!(outcome.waste < 0.005, "duplicates are for the end game only");
    }
}

/// Few pieces make the depth of the swarm show: the bound itself is 1.055
/// times what the bytes alone take.
#[test]
fn two_hundred_and_thirty_nodes() {
    let plan = Plan::new(shape(512, 128 << 10), 230, 0.625e6, &cooperative(), 0);
    let outcome = outcome("230 nodes, 512 pieces of 128 KiB", plan);
    assert!(outcome.ratio <= 1.30);
}

/// Each image crosses into each rack once, and the cables between racks,
/// which carry as much as two nodes, are no bottleneck.
#[test]
fn five_racks_of_ten() {
    let policy = Policy { dial_peers: 40, ..cooperative() };
    let plan = Plan::new(shape(1024, 128 << 10), 50, 2.5e6, &policy, 0).racked(10, 2.0);
    let outcome = outcome("5 racks of 10, uplinks of 2 nodes", plan);
    let crossed: Vec<f64> = (0..5).map(|rack| outcome.world.crossed(rack)).collect();
    println!("simulated bytes into each rack, in images: {crossed:.3?}");
    assert!(outcome.ratio <= 1.10);
    assert!(crossed.iter().all(|images| *images <= 1.02));
}

/// A tenth of the nodes vanish half-way without closing a connection.
#[test]
fn silent_deaths_cost_the_rest_nothing_to_speak_of() {
    let plan = fifty(0);
    let half_way = Duration::from_secs_f64(plan.limit(50) / 2.0);
    let mut world = World::planned(plan);
    for node in (5..=50).step_by(10) {
        world.vanish_at(half_way, node);
    }
    world.run(LONG);
    let ratio = world.makespan() / world.limit(50);
    println!("simulated 50 nodes, 5 vanish: makespan {ratio:.4} of the bound");
    assert!(ratio <= 1.13);
}

#[test]
fn slow_nodes_delay_only_themselves() {
    let mut plan = fifty(0);
    let limit = plan.limit(50);
    for node in [10, 30] {
        plan.nodes[node].up /= 2.0;
        plan.nodes[node].down /= 2.0;
    }
    let mut world = World::planned(plan);
    world.run(LONG);
    let finishes = world.finishes();
    let median = finishes[finishes.len() / 2] / limit;
    println!("simulated 50 nodes, 2 at half the rate: median {median:.4} of the bound of the others");
    assert!(median <= 1.13);
}

#[test]
fn a_fast_seed_is_used() {
    let mut plan = fifty(0);
    plan.nodes[0].up *= 4.0;
    for node in &mut plan.nodes[1..] {
        node.down *= 4.0;
    }
    let outcome = outcome("50 nodes, seed and downlinks four times as fast", plan);
    assert!(outcome.ratio <= 1.12);
}

#[test]
fn a_late_starter_is_served_at_once() {
    let mut plan = fifty(0);
    plan.nodes[50].starts = Duration::from_secs(20);
    let limit = plan.limit(50);
    let mut world = World::planned(plan);
    world.run(LONG);
    let own = world.finishes().iter().copied().fold(0.0, f64::max) / limit;
    println!("simulated late starter among 50: the longest download took {own:.4} of the bound");
    assert!(own <= 1.08);
}

/// Half of the nodes only pull, tit for tat.
#[test]
fn other_clients_do_not_spoil_it_for_ours() {
    let alone = outcome("50 nodes of ours", fifty(0));
    let foreign = |node: usize| node > 0 && node.is_multiple_of(2);
    let mut world = World::planned(fifty(0).foreign(foreign));
    world.run(LONG);
    let ours = (1..=50).filter(|node| !foreign(*node)).filter_map(|node| world.nodes[node].finished).max();
    let ratio = ours.unwrap().as_secs_f64() / alone.world.makespan();
    println!("simulated 25 of ours among 25 others: {ratio:.4} of unmixed");
    assert!(ratio <= 1.35);
}
