//! How near whole swarms come to the bounds of theory, in a world of virtual
//! time.

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
    median: f64,
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
    let outcome = Outcome {
        ratio: world.makespan() / limit,
        median: finishes[finishes.len() / 2] / limit,
        egress: world.egress(0),
        waste: world.waste(),
        world,
    };
    println!(
        "simulated {name} seed {seed}: makespan {:.4}, median {:.4} of the bound, seed sent {:.4} images, waste {:.5}, {} steps, {} messages",
        outcome.ratio, outcome.median, outcome.egress, outcome.waste, outcome.world.steps, outcome.world.messages
    );
    outcome
}

#[test]
fn ten_nodes() {
    for seed in 0..3 {
        let plan = Plan::new(shape(512, 1 << 20), 10, 12.5e6, &cooperative(), seed);
        let outcome = outcome("10 nodes, 512 pieces of 1 MiB", plan);
        assert!(outcome.ratio <= 1.02 && outcome.egress <= 1.02);
    }
}

#[test]
fn fifty_nodes() {
    for seed in 0..2 {
        let plan = Plan::new(shape(512, 256 << 10), 50, 2.5e6, &cooperative(), seed);
        let outcome = outcome("50 nodes, 512 pieces of 256 KiB", plan);
        assert!(outcome.ratio <= 1.03 && outcome.egress <= 1.02);
    }
}
