//! Everything that goes wrong in `bench/scenarios/faults`, each over many
//! seeds: more than a thousand runs. Rules are checked in every step of a
//! run; afterwards everybody alive has everything. The long form is
//! `rackswarm sim bench/scenarios/faults/NAME.toml --seeds 1..1000`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{folder, load, run, sound};
use rackswarm_sim::units::Size;

const SEEDS: u64 = 50;
/// Half of the image of the files: so many runs shall not take long.
const HALF: Size = Size(8 << 20);

macro_rules! faults {
    ($($test:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let mut scenario = load(concat!("faults/", $file));
                scenario.image.size = HALF;
                (1..=SEEDS).for_each(|seed| { sound(&scenario, seed); });
            }
        )*

        /// A scenario without a test would be a promise without proof.
        #[test]
        fn every_scenario_has_its_test() {
            let tested = [$($file),*, "seed-dies.toml"];
            for entry in std::fs::read_dir(folder().join("faults")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(tested.contains(&name.as_str()), "{name}");
            }
        }
    };
}

faults! {
    crash: "crash.toml",
    crash_and_return: "crash-and-return.toml",
    delay: "delay.toml",
    foreign: "foreign.toml",
    freeze: "freeze.toml",
    lane_member: "lane-member.toml",
    late: "late.toml",
    liars: "liars.toml",
    liars_without_leaves: "liars-without-leaves.toml",
    mixed: "mixed.toml",
    partition: "partition.toml",
    power_off: "power-off.toml",
    rack_power: "rack-power.toml",
    resets: "resets.toml",
    seed_dies_early: "seed-dies-early.toml",
    slow_disk: "slow-disk.toml",
    slow_link: "slow-link.toml",
    tracker: "tracker.toml",
    twins: "twins.toml",
    uplink_down: "uplink-down.toml",
}

/// The seed dies for good after a little more than a copy. Where a piece is
/// lost with it nobody can finish, and the run says so instead of waiting;
/// where none is, everybody finishes.
#[test]
fn seed_dies() {
    let scenario = load("faults/seed-dies.toml");
    let mut finished = 0;
    for seed in 1..=SEEDS {
        let report = run(&scenario, seed);
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
        finished += u64::from(report.unfinished == 0);
    }
    assert!(finished > 0, "no swarm of {SEEDS} outlived its seed");
}

/// The same in queues of blocks, with fewer seeds.
#[test]
fn blocks_in_queues() {
    for name in ["crash-and-return", "delay", "liars", "mixed", "partition", "resets", "uplink-down"] {
        let mut scenario = load(&format!("faults/{name}.toml"));
        scenario.network.model = rackswarm_sim::Model::Blocks;
        scenario.image.size = HALF;
        (1..=2).for_each(|seed| {
            sound(&scenario, seed);
        });
    }
}
