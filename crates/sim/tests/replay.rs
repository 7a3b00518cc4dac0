//! The same scenario and seed give the same run, to the bit.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{load, run};
use rackswarm_sim::Model;

#[test]
fn a_run_replays_from_its_seed() {
    for model in [Model::Transfers, Model::Blocks] {
        let mut scenario = load("faults/mixed.toml");
        scenario.network.model = model;
        let (first, again, other) = (run(&scenario, 7), run(&scenario, 7), run(&scenario, 8));
        assert_eq!(first.trace, again.trace);
        assert_eq!(first, again);
        assert_ne!(first.trace, other.trace);
    }
}

/// What nobody has any more, nobody waits for.
#[test]
fn a_run_ends_when_a_piece_is_lost() {
    let mut scenario = load("faults/seed-dies.toml");
    let text = "[[fault]]\nkind = 'seed-dies'\nafter_copies = 0.5\n";
    let only = rackswarm_sim::Scenario::parse(
        &format!("[image]\nsize = '4MiB'\npiece = '256KiB'\n[fabric]\nnodes = 4\nrate = '100Mbit'\n{text}"),
        "lost",
    );
    scenario.faults = only.unwrap().faults;
    let report = run(&scenario, 1);
    assert_eq!((report.finished, report.unfinished), (0, 24));
    assert!(report.violations.is_empty(), "{:?}", report.violations);
    // Not the deadline, which is twenty minutes later.
    assert!(report.samples.last().unwrap().at < 60 * 1_000_000_000);
}
