//! Whole swarms of real engines in a world of virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::time::Duration;

use rackswarm_swarm::policy::ChokerKind;
use rackswarm_swarm::{PieceSet, Policy, Shape, Why};
use world::{Nature, Plan, World};

const MEGABYTE: f64 = 1e6;
const LONG: Duration = Duration::from_secs(3600);

fn shape(pieces: u32, blocks: u32) -> Shape {
    // The last piece and its last block are short.
    let piece = blocks * 16384;
    Shape::new(u64::from(pieces * piece) - 5000, piece).unwrap()
}

fn policy(choker: ChokerKind) -> Policy {
    Policy { choker, ..Policy::default() }
}

const BOTH: [ChokerKind; 2] = [ChokerKind::Cooperative, ChokerKind::TitForTat];

fn assert_nobody_was_blamed(world: &World) {
    assert_only_blamed(world, &[]);
}

/// Of honest nodes only these reasons to part are legal.
fn assert_only_blamed(world: &World, guilty: &[usize]) {
    for (number, node) in world.nodes.iter().enumerate() {
        for (other, why) in &node.dropped {
            let polite =
                matches!(why, Why::Duplicate | Why::BothComplete | Why::Displaced | Why::Full | Why::Ourselves);
            assert!(polite || guilty.contains(other), "node {number} dropped {other}: {why}");
        }
    }
}

#[test]
fn every_size_of_swarm_completes_with_both_chokers() {
    for choker in BOTH {
        for (leechers, seeds) in [(1, 8), (2, 8), (10, 8), (50, 2)] {
            for seed in 0..seeds {
                let mut world = World::new(shape(48, 4), leechers, MEGABYTE, &policy(choker), seed);
                world.run(LONG);
                assert_nobody_was_blamed(&world);
                world.settle(Duration::from_secs(15));
                assert_eq!(world.unanswered(), 0, "every request is answered or refused");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for choker in BOTH {
        let trace = |seed| {
            let plan = Plan { traced: true, ..Plan::new(shape(40, 4), 12, MEGABYTE, &policy(choker), seed) };
            let mut world = World::planned(plan);
            world.kill_at(Duration::from_secs(1), 3);
            world.nodes[5].nature = Nature::Liar { one_in: 3 };
            world.run(LONG);
            (world.trace, world.steps, world.now)
        };
        assert_eq!(trace(1), trace(1));
        assert_ne!(trace(1), trace(2));
    }
}

#[test]
fn the_rest_completes_when_peers_die_half_way() {
    for choker in BOTH {
        for seed in 0..4 {
            let mut world = World::new(shape(64, 4), 10, MEGABYTE, &policy(choker), seed);
            let half_way = Duration::from_secs_f64(world.limit(10) / 2.0);
            for node in [2, 5, 7] {
                world.kill_at(half_way, node);
            }
            world.run(LONG);
            assert_nobody_was_blamed(&world);
            assert_eq!(world.nodes.iter().filter(|node| node.finished.is_some()).count(), 8);
        }
    }
}

#[test]
fn the_swarm_completes_without_its_seed_once_a_copy_is_out() {
    for choker in BOTH {
        for seed in 0..4 {
            let shape = shape(64, 4);
            let mut world = World::new(shape, 10, MEGABYTE, &policy(choker), seed);
            world.run_while(LONG, |world| {
                let out = |piece| world.nodes[1..].iter().any(|node| node.engine.have().contains(piece));
                !(0..shape.pieces()).all(out)
            });
            assert!(!world.is_finished(), "somebody still misses something");
            world.kill_now(0);
            world.kill_tracker();
            world.run(LONG);
        }
    }
}

#[test]
fn liars_are_named_and_dropped_and_nothing_corrupt_counts() {
    for choker in BOTH {
        for (seed, one_in) in [(1, 1), (2, 1), (3, 4), (4, 20), (5, 20)] {
            let mut world = World::new(shape(64, 4), 10, MEGABYTE, &policy(choker), seed);
            for liar in [3, 8] {
                world.nodes[liar].nature = Nature::Liar { one_in };
            }
            world.run(LONG);
            let mut named = 0;
            for (number, node) in world.nodes.iter().enumerate() {
                for (other, why) in &node.dropped {
                    if let Why::CorruptPiece(_) | Why::CorruptSource(_) = why {
                        assert!([3, 8].contains(other), "node {number} blames honest {other} (seed {seed})");
                        named += 1;
                    }
                }
                let total = node.engine.ledger().total();
                if node.finished.is_some() && number > 0 {
                    assert_eq!(total.received, 64 * 4 * 16384 - 5000, "exactly the image counts");
                }
            }
            assert!(named > 0, "nobody was named: seed {seed}, one in {one_in}");
        }
    }
}

/// Among our own kind a mute peer costs a node no more than the time that a
/// transfer may stand still; among strangers one time-out, or with an end game
/// nothing.
#[test]
fn a_mute_peer_costs_little() {
    let policies = [
        (ChokerKind::Cooperative, 2, Duration::from_millis(3_000)),
        (ChokerKind::TitForTat, 2, Policy::default().request_timeout),
        (ChokerKind::TitForTat, 1, Policy::default().request_timeout * 2),
    ];
    for (choker, endgame_copies, at_most) in policies {
        let full = || PieceSet::full(24);
        let haves = vec![full(), full(), PieceSet::empty(24), PieceSet::empty(24)];
        let policy = Policy { endgame_copies, ..policy(choker) };
        let mut world = World::with(shape(24, 4), haves, MEGABYTE, &policy, 1);
        world.nodes[1].nature = Nature::Mute;
        world.run(LONG);
        assert!(world.now < at_most, "{choker:?} {endgame_copies}: {:?}", world.now);
        assert_only_blamed(&world, &[1]);
    }
}

/// With room for two pieces only, nothing that mute peers were asked for may
/// hold the others up for more than one time-out.
#[test]
fn mute_peers_do_not_clog_a_small_memory() {
    for choker in BOTH {
        let full = || PieceSet::full(24);
        let mut haves = vec![full(); 5];
        haves.push(PieceSet::empty(24));
        let policy = Policy { active_bytes: 0, ..policy(choker) };
        let mut world = World::with(shape(24, 4), haves, MEGABYTE, &policy, 1);
        for mute in [1, 2, 3, 4] {
            world.nodes[mute].nature = Nature::Mute;
        }
        world.run(LONG);
        assert!(world.now < Policy::default().request_timeout * 3, "{choker:?}: {:?}", world.now);
    }
}

/// A seed that freezes is snubbed by everybody, and taken back by everybody.
#[test]
fn a_frozen_seed_is_used_again_when_it_thaws() {
    for choker in BOTH {
        let mut world = World::new(shape(24, 4), 3, MEGABYTE / 10.0, &policy(choker), 1);
        world.run_while(Duration::from_secs(2), |_| true);
        world.freeze(0);
        world.run_while(Duration::from_secs(15), |_| true);
        assert!(!world.is_finished());
        world.thaw(0);
        world.run(Duration::from_secs(200));
        assert_nobody_was_blamed(&world);
    }
}

#[test]
fn pieces_on_disk_are_never_fetched() {
    let shape = shape(64, 4);
    let mut half = PieceSet::empty(64);
    (0..64).step_by(2).for_each(|piece| assert!(half.insert(piece)));
    let haves = vec![PieceSet::full(64), half.clone(), half, PieceSet::empty(64)];
    let mut world = World::with(shape, haves, MEGABYTE, &Policy::default(), 1);
    world.run(LONG);
    let received = |node: usize| world.nodes[node].engine.ledger().total().received;
    assert_eq!(received(1), 32 * 4 * 16384 - 5000);
    assert_eq!(received(3), 64 * 4 * 16384 - 5000);
}

#[test]
fn little_memory_is_enough() {
    for choker in BOTH {
        let small = Policy { active_bytes: 0, max_peers: 6, dial_peers: 4, ..policy(choker) };
        let mut world = World::new(shape(48, 4), 20, MEGABYTE, &small, 3);
        world.run(LONG);
        assert_nobody_was_blamed(&world);
    }
}

#[test]
fn a_tracker_that_comes_back_is_enough() {
    let mut world = World::new(shape(16, 4), 3, MEGABYTE, &Policy::default(), 1);
    world.kill_tracker();
    world.run_while(Duration::from_secs(100), |_| true);
    assert!(!world.is_finished());
    world.revive_tracker();
    world.run(Duration::from_secs(300));
}
