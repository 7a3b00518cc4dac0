//! What the engine reaches in the scenarios of the bench. The limits stand in
//! the files.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{load, run, sound};

#[test]
fn ten_nodes() {
    sound(&load("a.toml"), 1);
}

#[test]
fn fifty_nodes_in_one_rack() {
    sound(&load("b.toml"), 1);
}

#[test]
fn fifty_nodes_in_five_racks() {
    sound(&load("d.toml"), 1);
}

#[test]
fn a_node_half_as_fast_delays_only_itself() {
    let mut scenario = load("b.toml");
    let text = "[image]\nsize='1MiB'\npiece='64KiB'\n[fabric]\nnodes=50\nrate='1Mbit'\n[[slow]]\nwho={share=0.05}\nrate='10Mbit'\n";
    scenario.slow = rackswarm_sim::Scenario::parse(text, "slow").unwrap().slow;
    scenario.limits = rackswarm_sim::scenario::Limits::default();
    let report = sound(&scenario, 1);
    // Of blocks, with acknowledgements, the swarm without slow nodes takes 1.08.
    assert!(report.median as f64 / (report.t_star as f64) < 1.15, "{}", report.median);
}

#[test]
fn half_ordinary_clients() {
    let mut scenario = load("mixed.toml");
    let mixed = sound(&scenario, 1);
    scenario.peers.clear();
    let alone = sound(&scenario, 1);
    let ours: Vec<u64> =
        mixed.per_node.iter().filter(|node| node.ours).skip(1).filter_map(|node| node.finished).collect();
    let mut ours = ours;
    ours.sort_unstable();
    let median = ours[ours.len() / 2];
    let over = median as f64 / alone.median as f64;
    assert!(over < 1.3, "our nodes' median is {over} of the unmixed swarm's");
}

#[test]
fn zero_and_repeated_pieces_do_not_travel() {
    let scenario = load("thinner.toml");
    let report = sound(&scenario, 1);
    let whole = scenario.image.size.0 * u64::from(scenario.fabric.nodes);
    let received = report.payload as f64 / whole as f64;
    assert!(received < 0.45, "{received}");
    assert!(report.image_bytes as f64 / (scenario.image.size.0 as f64) < 0.45);
}

#[test]
fn what_is_there_is_kept() {
    let scenario = load("kept.toml");
    let report = sound(&scenario, 1);
    let whole = scenario.image.size.0 * u64::from(scenario.fabric.nodes);
    assert!((report.payload as f64 / whole as f64) < 0.07);
}

/// Killing the tracker and a tenth of the nodes half-way costs the others
/// little.
#[test]
fn the_rest_of_a_swarm_goes_on() {
    let mut scenario = load("faults/crash.toml");
    let after = run(&scenario, 1).makespan;
    scenario.faults.clear();
    let before = run(&scenario, 1).makespan;
    let over = after as f64 / before as f64;
    assert!(over < 1.10, "{over}");
}

#[test]
fn a_picture_and_tables() {
    let report = run(&load("thinner.toml"), 1);
    let svg = report.svg().unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("bound"));
    assert_eq!(report.nodes_csv().lines().count(), 18);
    assert!(report.progress_csv().lines().count() > 20);
}
