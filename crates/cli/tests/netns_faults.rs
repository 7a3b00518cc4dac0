//! Faults of the data plane with the real server and the real agent in a namespace for each node: a rack without power, a
//! leader that dies, an uplink that falls to a fiftieth.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet::deployment::Outcome;
use fleet::life::Stage as NodeStage;
use fleet::report::{NodeReport, Report};
use fleet::rollout::{Order, Rollout};
use lab::bench::content::{self, Content};
use lab::bench::fabric::{Fabric, Plan};
use lab::bench::hall::Hall;
use lab::bench::stage::Stage;
use lab::scratch::Scratch;
use lab::stop::Stop;

const BYTES: u64 = 16 << 20;
/// A node's link in bit/s: the image takes 8.8 s over it, so that there is a middle to be caught in.
const LINK: u64 = 16_000_000;
const UPLINK: u64 = 5 * LINK;
const NODES_PER_RACK: usize = 4;
/// From the order to the end, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Complete nodes give for so long.
const LINGER_SECONDS: u32 = 3;
/// A dead agent is noticed soon.
const IMPATIENT: &str = "[deploy]\nsilence_seconds = 8\npause_seconds = 1\nstarts_per_second_per_rack = 20\n";
/// A dead agent is noticed soon, and its node has failed then.
const ONE_TRY: &str = "[deploy]\nsilence_seconds = 8\nattempts = 1\nstarts_per_second_per_rack = 20\n";

/// Deploys to so many racks while `meddle` does its worst until it says that it is done, and returns the report. Every disk of a node that runs holds the
/// image.
fn deploy(racks: usize, settings: &str, order: Order, meddle: impl FnMut(&mut Hall<'_>) -> bool + Send) -> Report {
    let mut meddle = meddle;
    let agent = Path::new(env!("CARGO_BIN_EXE_rackswarm")).with_file_name("rackswarm-agent");
    assert!(agent.is_file(), "{} is not built: run `cargo xtask test`, which builds it", agent.display());
    let program = PathBuf::from(env!("CARGO_BIN_EXE_rackswarm"));
    let (scratch, stop) = (Scratch::new(Path::new("/dev/shm")).unwrap(), Stop::on_signals().unwrap());
    let source = scratch.path().join("image.raw");
    content::write(&source, BYTES, Content::Random).unwrap();
    let plan = Plan {
        racks,
        nodes_per_rack: NODES_PER_RACK,
        link: LINK,
        server_link: 10 * LINK,
        uplink: UPLINK,
        slow_nodes: 0,
    };
    let fabric = Fabric::build(plan).unwrap();
    let stage = Stage::new(&fabric, &source, &program, scratch.path(), &stop).unwrap();
    let mut hall = Hall::open(stage, &agent, LINGER_SECONDS, settings).unwrap();
    hall.fill().unwrap();
    hall.line_up().unwrap();
    let id = hall.deploy(Rollout { order, ..Rollout::default() }).unwrap();
    let mut has_meddled = false;
    hall.attend(id, LIMIT, |hall| {
        has_meddled = has_meddled || meddle(hall);
        Ok(())
    })
    .unwrap();
    assert!(has_meddled, "the fault never came, or never ended");
    let mut report = hall.report(id).unwrap();
    report.nodes.sort_by(|one, other| one.run.node.cmp(&other.run.node));
    for (node, told) in report.nodes.iter().enumerate() {
        let runs = matches!(told.run.outcome, Outcome::Running { .. });
        assert!(!runs || content::same(&source, &hall.disk(node)).unwrap(), "the disk of {} is wrong", told.run.node);
    }
    report
}

/// Whether a node has at least so many per cent of the image.
fn has(hall: &Hall<'_>, node: usize, percent: u64) -> bool {
    let view = hall.view(node).unwrap();
    view.stage == NodeStage::Fetching && view.progress.is_some_and(|told| told.done_bytes * 100 >= BYTES * percent)
}

fn is_past_fetching(hall: &Hall<'_>, node: usize) -> bool {
    matches!(hall.view(node).unwrap().stage, NodeStage::PostActions | NodeStage::Rebooting | NodeStage::Running)
}

fn is_running(node: &NodeReport) -> bool {
    matches!(node.run.outcome, Outcome::Running { .. })
}

/// When the image was complete on its disk, in milliseconds since the Unix epoch, and how long the fetch of that try took.
/// Machines are noisy, so only the order of such moments is asserted; the seconds are told.
fn verified(node: &NodeReport) -> (u64, f64) {
    let last = node.run.tries.last().expect("a try");
    let fetched = last.stages.iter().position(|passed| passed.stage == NodeStage::Fetching).expect("it fetched");
    let passed: u64 = last.stages[..=fetched].iter().map(|passed| passed.milliseconds).sum();
    (last.began_at.0 + passed, last.stages[fetched].milliseconds as f64 / 1000.0)
}

/// Every one of `before` had its image when none of `after` had it. Whoever waits for another that is held up for longer
/// than the whole image takes is overtaken or comes with it.
fn all_before(before: &[&NodeReport], after: &[&NodeReport]) {
    let slowest = |nodes: &[&NodeReport]| nodes.iter().map(|node| verified(node).1).fold(0.0, f64::max);
    let last = before.iter().map(|node| verified(node).0).max().expect("somebody");
    let first = after.iter().map(|node| verified(node).0).min().expect("somebody");
    println!("fetched in at most {:.1} s, the ones held up in {:.1} s", slowest(before), slowest(after));
    println!("between the last of the others and the first held up: {:.1} s", (first as f64 - last as f64) / 1000.0);
    assert!(last < first, "somebody who was not struck had its image {} ms after one who was", last - first);
}

#[test]
fn a_rack_that_loses_power_half_way_comes_back_and_fetches_only_what_it_lacks() {
    let report = deploy(3, IMPATIENT, Order::Lanes, |hall| {
        let strikes = has(hall, NODES_PER_RACK, 50);
        if strikes {
            (NODES_PER_RACK..2 * NODES_PER_RACK).for_each(|node| hall.cut_power(node).unwrap());
        }
        strikes
    });
    assert!(report.nodes.iter().all(is_running), "{report:?}");
    let (struck, spared): (Vec<_>, Vec<_>) =
        report.nodes.iter().partition(|node| node.run.rack.as_ref().is_some_and(|rack| rack.as_str() == "r02"));
    assert_eq!(struck.len(), NODES_PER_RACK);
    for node in &struck {
        assert_eq!(node.run.tries.len(), 2, "{node:?}");
        let again = node.run.tries[1].received_bytes as f64 / BYTES as f64;
        println!("{} received {again:.3} images after it came back", node.run.node);
        assert!(again < 0.65, "{} received {again:.3} images after it came back", node.run.node);
    }
    assert!(spared.iter().all(|node| node.run.tries.len() == 1), "{spared:?}");
    all_before(&spared, &struck);
}

#[test]
fn a_leader_that_dies_while_it_fetches_is_replaced_and_its_rack_completes() {
    let mut dead = None;
    let report = deploy(2, ONE_TRY, Order::Leaders, |hall| {
        dead = (0..NODES_PER_RACK).find(|node| has(hall, *node, 30));
        dead.into_iter().for_each(|node| hall.destroy(node).unwrap());
        dead.is_some()
    });
    let dead = dead.expect("a leader fetched");
    for (number, node) in report.nodes.iter().enumerate() {
        assert_eq!(is_running(node), number != dead, "{:?}", node.run);
    }
    let Outcome::Failed { reason } = &report.nodes[dead].run.outcome else { panic!("{:?}", report.nodes[dead].run) };
    assert!(reason.contains("8 s"), "{reason}");
}

#[test]
fn an_uplink_that_falls_to_a_fiftieth_holds_up_its_own_rack_alone() {
    let others = 0..2 * NODES_PER_RACK;
    let mut is_slow = false;
    let report = deploy(3, "", Order::Lanes, |hall| {
        if !is_slow {
            is_slow = has(hall, others.end, 20);
            if is_slow {
                hall.stage.fabric.set_uplink(2, UPLINK / 50).unwrap();
            }
            return false;
        }
        // The rest would take the rack a minute, however quick the machine is: the others have theirs first, or wait for it.
        let are_done = others.clone().all(|node| is_past_fetching(hall, node));
        if are_done {
            hall.stage.fabric.set_uplink(2, UPLINK).unwrap();
        }
        are_done
    });
    assert!(report.nodes.iter().all(is_running), "{report:?}");
    assert!(report.nodes.iter().all(|node| node.run.tries.len() == 1), "{report:?}");
    let (own, others): (Vec<_>, Vec<_>) =
        report.nodes.iter().partition(|node| node.run.rack.as_ref().is_some_and(|rack| rack.as_str() == "r03"));
    assert_eq!(own.len(), NODES_PER_RACK);
    all_before(&others, &own);
    // What came in twice would make a slow uplink slower yet.
    let entered = report.racks[2].entered_copies.expect("it stands in a rack");
    println!("{entered:.3} images entered the rack behind the slow uplink");
    assert!(entered < 1.3, "{entered:.3} images");
}
