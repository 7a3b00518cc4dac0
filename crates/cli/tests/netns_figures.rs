//! The paper's figures from a small run: the real server, and the real agent in a namespace for each node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::json;

#[test]
fn twelve_agents_in_three_racks_are_installed_and_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let agent = Path::new(env!("CARGO_BIN_EXE_rackswarm")).with_file_name("rackswarm-agent");
    assert!(agent.is_file(), "{} is not built: run `cargo xtask test`, which builds it", agent.display());
    let out = tempfile::tempdir().unwrap();
    let bench = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackswarm"));
        command.args(["lab", "bench", "fig8", "--wait", "0", "--out"]).arg(out.path()).arg("--agent").arg(&agent);
        command.args(words).current_dir(&root).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let id = child.id();
        (id, child.wait_with_output().unwrap())
    };
    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();

    let (_, uneven) = bench(&["--nodes", "10", "--racks", "3"]);
    let said = String::from_utf8(uneven.stdout).unwrap();
    assert!(said.contains("10 nodes do not fill 3 racks evenly") && !uneven.status.success(), "{said}");

    let (id, ended) = bench(&["--nodes", "12", "--racks", "3", "--bytes", "4M", "--rate", "20Mbit"]);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));

    let run = json(read("fig8.json").lines().last().unwrap());
    assert_eq!((run["nodes"].as_u64(), run["racks"].as_u64(), run["ok"].as_bool()), (Some(12), Some(3), Some(true)));
    assert!(run["delivery"].as_f64().unwrap() >= run["bound"].as_f64().unwrap() * 0.99, "{run}");
    let (counted, told) = (run["rack_images"].as_f64().unwrap(), run["reported_rack_images"].as_f64().unwrap());
    assert!(told >= 0.99 && (counted / told - 1.0).abs() < 0.2, "uplink: {counted} counted, {told} by the ledgers");
    let nodes = read("fig8.csv");
    assert_eq!(nodes.lines().count(), 13);
    assert!(nodes.starts_with("node,rack,installed_seconds,") && nodes.contains("\nn012,r03,"), "{nodes}");
    assert_eq!(read("fig9.csv").lines().next().unwrap().split(',').count(), 13);
    let curve = read("fig10.csv");
    assert!(curve.lines().last().unwrap().contains(",100.00,"), "{curve}");
    for picture in ["fig8.svg", "fig9.svg", "fig10.svg", "fig8-simulated.svg"] {
        assert!(read(picture).starts_with("<svg"), "{picture}");
    }
    let page = read("fig8.md");
    assert!(page.contains("are replaced") && page.contains("*Simulated*") && page.contains("17.25"), "{page}");

    let mine = format!("rackswarm-lab-{id}-");
    let left = fs::read_dir("/run/netns").into_iter().flatten().chain(fs::read_dir("/dev/shm").unwrap()).flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(&mine)).collect();
    assert!(left.is_empty(), "{left:?}");
}
