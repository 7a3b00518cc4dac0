//! Scenarios for the tests. Not every test uses all of it.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use rackswarm_sim::{Report, Sample, Scenario};

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/scenarios")
}

pub(crate) fn load(name: &str) -> Scenario {
    Scenario::load(&folder().join(name)).unwrap()
}

pub(crate) fn run(scenario: &Scenario, seed: u64) -> Report {
    rackswarm_sim::run(scenario, seed, &mut |_: &Sample| true).unwrap()
}

/// The run, which must not have broken any rule.
pub(crate) fn sound(scenario: &Scenario, seed: u64) -> Report {
    let report = run(scenario, seed);
    let title = &scenario.title;
    assert!(report.violations.is_empty(), "{title}, seed {seed}: {:#?}", report.violations);
    assert_eq!(report.unfinished, 0, "{title}, seed {seed}");
    report
}
