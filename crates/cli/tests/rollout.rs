//! `rackswarm deploy` over a rack of fake machines, which are switched on and never boot.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Server, json, until};

#[test]
fn a_rack_is_seen_first_paused_by_its_budget_retried_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "[deploy]\nattempts = 1\nleasing_seconds = 2\n");
    let disk = folder.path().join("disk.raw");
    let content: Vec<u8> = (0..3u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&disk, content).unwrap();
    server.run(&["image", "import", disk.to_str().unwrap(), "--name", "try", "--format", "raw"]).ok();
    let set = format!("fake:rollout-{}?machines=5", std::process::id());
    server.run(&["set", "add", "hall", &set, "--rack", "r1"]).ok();
    server.run(&["set", "sync", "hall"]).ok();

    let words =
        ["deploy", "try", "--rack", "r1", "--canary", "1", "--at-once-per-rack", "2", "--boot", "90s", "--dry-run"];
    let seen = server.run(&words).ok();
    for part in ["nothing is changed", "canary", "never told of its disks", "as you say"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let seen = json(&server.run(&[&words[..], &["--json"]].concat()).ok());
    let waves: Vec<f64> =
        seen["prediction"]["wave_seconds"].as_array().unwrap().iter().map(|wave| wave.as_f64().unwrap()).collect();
    assert!(waves.len() == 2 && waves[0] >= 90.0 && waves[1] >= 180.0, "two rounds in the second wave: {waves:?}");
    assert!(server.run(&["deploy", "status"]).ok().contains("no deployments yet"));

    let watched = server.run(&["deploy", "try", "--rack", "r1", "--at-once", "2", "--failure-budget", "1", "--watch"]);
    assert_eq!(watched.code, 1, "{}", watched.stdout);
    assert!(watched.stdout.contains("paused: 1 of 5 nodes failed"), "{}", watched.stdout);
    assert!(watched.stderr.contains("resume d-1") && watched.stderr.contains("DHCP"), "{}", watched.stderr);
    let two_failed = || {
        let report = json(&server.run(&["deploy", "report", "d-1", "--json"]).ok());
        report["failures"].as_object().unwrap().len() == 2
    };
    until("what was under way fails as well", two_failed);
    let status = server.run(&["deploy", "status", "d-1"]).ok();
    assert!(status.contains("3 nodes not started") && status.contains("failure budget 1"), "{status}");

    assert!(server.run(&["deploy", "pause", "d-1", "--rack", "r1"]).ok().contains("rack r1 of d-1 is paused"));
    assert!(server.run(&["deploy", "retry", "d-1"]).ok().contains("5 nodes to start"));
    let resumed = server.run(&["deploy", "resume", "d-1", "--window", "2000-01-01T00:00/2100-01-01T00:00"]).ok();
    assert!(resumed.starts_with("d-1 goes on"), "{resumed}");
    until("two nodes fail again", two_failed);
    let report = server.run(&["deploy", "report", "d-1", "--nodes"]).ok();
    for part in ["2 retries", "powering_on", "leasing", "paused"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(server.run(&["deploy", "cancel", "d-1"]).ok().contains("cancelled"));
    let wrong = server.run(&["deploy", "try", "--rack", "r1", "--failure-budget", "0"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("failure budget"), "{}", wrong.stderr);
}
