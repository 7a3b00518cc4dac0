//! The models of the network against arithmetic, and against each other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{load, run, sound};
use rackswarm_sim::plan::bound::payload_rate;
use rackswarm_sim::{Model, Scenario};

fn scenario(fabric: &str) -> Scenario {
    let text = format!("[image]\nsize = '32MiB'\npiece = '256KiB'\n[fabric]\n{fabric}\n");
    Scenario::parse(&text, "test").unwrap()
}

fn both(mut scenario: Scenario, check: impl Fn(&Scenario)) {
    for model in [Model::Transfers, Model::Blocks] {
        scenario.network.model = model;
        check(&scenario);
    }
}

/// One node gets the file at the rate of the link: what is lost is the start.
#[test]
fn one_node_takes_as_long_as_the_link() {
    both(scenario("nodes = 1\nrate = '100Mbit'"), |scenario| {
        let seconds = sound(scenario, 1).makespan as f64 / 1e9;
        let least = f64::from(32 << 20) / payload_rate(100_000_000);
        let over = seconds / least;
        assert!((0.99..1.03).contains(&over), "{:?}: {over}", scenario.network.model);
    });
}

/// A slow disk is the limit.
#[test]
fn a_disk_limits() {
    both(scenario("nodes = 4\nrate = '1Gbit'\ndisk = '4MB/s'"), |scenario| {
        let seconds = sound(scenario, 1).makespan as f64 / 1e9;
        let over = seconds / (f64::from(32 << 20) / 4e6);
        assert!((1.0..1.15).contains(&over), "{:?}: {over}", scenario.network.model);
    });
}

/// An uplink below a node's link cannot be passed faster.
#[test]
fn an_uplink_limits() {
    both(scenario("nodes = 4\nracks = 2\nrate = '100Mbit'\nuplink = '50Mbit'"), |scenario| {
        let report = sound(scenario, 1);
        assert!(report.bound as f64 / 1e9 >= f64::from(32 << 20) / payload_rate(50_000_000));
        assert!(report.ratio() >= 0.98, "{:?}: {}", scenario.network.model, report.ratio());
    });
}

/// Nobody beats the bound but by what a port's burst lets pass.
#[test]
fn the_bound_holds() {
    both(scenario("nodes = 30\nracks = 3\nrate = '100Mbit'\nuplink = '200Mbit'"), |scenario| {
        let report = sound(scenario, 3);
        assert!(report.ratio() > 0.98, "{:?}: {}", scenario.network.model, report.ratio());
        let received: u64 = report.per_node.iter().map(|node| node.received).sum();
        assert_eq!(received, report.payload);
    });
}

/// Both models see the same swarm. The fine one adds what TCP costs: slow
/// starts, and messages that wait behind data.
#[test]
fn the_models_agree() {
    let mut scenario = load("a.toml");
    scenario.limits = rackswarm_sim::scenario::Limits::default();
    let ratios = [Model::Transfers, Model::Blocks].map(|model| {
        scenario.network.model = model;
        run(&scenario, 1).ratio()
    });
    assert!((ratios[0] / ratios[1] - 1.0).abs() < 0.15, "{ratios:?}");
}
