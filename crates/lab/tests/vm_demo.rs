//! `rackswarm lab demo` as a newcomer runs it: it succeeds, says so in JSON, and leaves nothing behind, also when it is
//! interrupted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{WHOLE, small_image, until};
use rackswarm_lab::rig::from_environment;
use rackswarm_lab::tool;
use rustix::process::{Pid, Signal, kill_process};

/// How long cleaning up may take on a loaded host.
const CLEAN: Duration = Duration::from_secs(90);

fn demo(work: &Path, nodes: u32) -> Child {
    Command::new(from_environment("RACKSWARM_TEST_PROGRAM").unwrap())
        .args(["lab", "demo", "--disk", "64M", "--nodes", &nodes.to_string()])
        .arg("--image")
        .arg(small_image())
        .arg("--bootenv")
        .arg(from_environment("RACKSWARM_TEST_BOOTENV").unwrap())
        .arg("--json")
        .arg(work.join("demo.json"))
        .arg("--work")
        .arg(work.join("lab"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

fn ended(mut demo: Child, limit: Duration) -> ExitStatus {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = demo.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= deadline {
            demo.kill().unwrap();
            panic!("the demo has not ended after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Machines whose command line names the folder.
fn machines_in(work: &Path) -> usize {
    let name = work.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains("-pidfile") && line.contains(&name))
        .count()
}

fn assert_nothing_left(work: &Path, pid: u32) {
    assert_eq!(machines_in(work), 0, "a machine still runs");
    let namespaces = tool::run("ip", ["netns", "list"]).unwrap();
    assert!(!namespaces.contains(&format!("rackswarm-lab-{pid}-")), "{namespaces}");
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&format!("rackswarm-lab-{pid}-")));
    assert_eq!(std::fs::read_dir(work.join("lab")).unwrap().count(), 0, "a folder is left");
}

#[test]
fn vm_demo_shows_every_firmware_and_proves_every_disk() {
    let work = tempfile::tempdir().unwrap();
    std::fs::create_dir(work.path().join("lab")).unwrap();
    let demo = demo(work.path(), 3);
    let pid = demo.id();
    assert!(ended(demo, WHOLE).success());
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(work.path().join("demo.json")).unwrap()).unwrap();
    let nodes = result["nodes"].as_array().unwrap();
    let firmware: Vec<&str> = nodes.iter().map(|node| node["firmware"].as_str().unwrap()).collect();
    assert_eq!(firmware, ["BIOS PXE", "UEFI PXE", "UEFI HTTP"]);
    for node in nodes {
        assert_eq!(node["is_running"], true);
        assert_eq!(node["check"]["differing"], 0);
        assert!(node["check"]["files_compared"].as_u64().unwrap() > 10);
        assert!(node["stage_seconds"]["rebooting"].as_f64().unwrap() > 0.0);
    }
    assert_nothing_left(work.path(), pid);
}

#[test]
fn vm_demo_interrupted_by_ctrl_c_leaves_nothing_behind() {
    let work = tempfile::tempdir().unwrap();
    std::fs::create_dir(work.path().join("lab")).unwrap();
    let demo = demo(work.path(), 2);
    let pid = demo.id();
    until("both machines run", CLEAN, || machines_in(work.path()) == 2);
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::INT).unwrap();
    assert!(!ended(demo, CLEAN).success());
    assert_nothing_left(work.path(), pid);
}
