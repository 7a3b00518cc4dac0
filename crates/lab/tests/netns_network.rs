//! The lab's network: it is there, it reaches, it is limited, and it goes. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use rackswarm_lab::netns::{Namespace, Plan, SERVER};
use rackswarm_lab::{leftovers, tool};

#[test]
fn work_inside_sees_the_switch_and_the_host_does_not() {
    let namespace = Namespace::new(&Plan { taps: 3, rate_mbit: Some(50) }).unwrap();
    let links = tool::run("ip", ["-n", namespace.name(), "-br", "link"]).unwrap();
    for wanted in ["br0", "tap0", "tap1", "tap2"] {
        assert!(links.contains(wanted), "{links}");
    }
    let queues = tool::run("tc", ["-n", namespace.name(), "qdisc", "show", "dev", "tap2"]).unwrap();
    assert!(queues.contains("tbf") && queues.contains("50Mbit"), "{queues}");
    let reached = namespace
        .inside(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let listener = TcpListener::bind(SocketAddr::from((SERVER, 0))).unwrap();
            let address = listener.local_addr().unwrap();
            runtime.block_on(async move {
                // Also threads that the runtime makes later are inside.
                tokio::task::spawn_blocking(move || TcpStream::connect(address).is_ok()).await.unwrap()
            })
        })
        .unwrap();
    assert!(reached);
    assert!(TcpListener::bind(SocketAddr::from((SERVER, 0))).is_err(), "the host has the lab's address");
    let name = namespace.name().to_owned();
    namespace.remove().unwrap();
    assert!(!Path::new("/run/netns").join(name).exists());
}

#[test]
fn a_panic_inside_is_an_error_and_the_namespace_still_goes() {
    let namespace = Namespace::new(&Plan::default()).unwrap();
    let name = namespace.name().to_owned();
    let error = namespace.inside(|| panic!("on purpose")).unwrap_err().to_string();
    assert!(error.contains("on purpose"), "{error}");
    drop(namespace);
    assert!(!Path::new("/run/netns").join(name).exists());
}

#[test]
fn what_a_dead_lab_left_is_removed_and_living_ones_stay() {
    let mine = Namespace::new(&Plan::default()).unwrap();
    // No process has this id: it is above the kernel's largest (PID_MAX_LIMIT is 4,194,304).
    let dead = "rackswarm-lab-4999999-0";
    tool::run("ip", ["netns", "add", dead]).unwrap();
    let mut sleeper = std::process::Command::new("ip").args(["netns", "exec", dead, "sleep", "600"]).spawn().unwrap();
    while !tool::run("ip", ["netns", "pids", dead]).unwrap().contains(&sleeper.id().to_string()) {
        assert!(sleeper.try_wait().unwrap().is_none(), "the sleeper never got into the namespace");
        std::thread::yield_now();
    }
    let parent = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(parent.path().join("rackswarm-lab-4999999-1/vm")).unwrap();
    let removed = leftovers::remove(parent.path()).unwrap();
    assert!(removed.namespaces >= 1 && removed.folders == 1, "{removed:?}");
    assert!(!sleeper.wait().unwrap().success(), "what ran in it was ended");
    assert!(!Path::new("/run/netns").join(dead).exists());
    assert!(Path::new("/run/netns").join(mine.name()).exists());
}

#[test]
fn labs_that_start_together_remove_what_a_dead_one_left_without_failing() {
    let parent = tempfile::tempdir().unwrap();
    // Enough of them that two are at the same one, as virtual machines' tests were.
    for number in 0..40 {
        tool::run("ip", ["netns", "add", &format!("rackswarm-lab-4999998-{number}")]).unwrap();
        std::fs::create_dir_all(parent.path().join(format!("rackswarm-lab-4999998-{number}/vm"))).unwrap();
    }
    let start = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        let starts = [(); 3].map(|()| {
            scope.spawn(|| {
                start.wait();
                leftovers::remove(parent.path())
            })
        });
        let removed = starts.map(|start| start.join().unwrap().unwrap());
        assert!(removed.iter().map(|removed| removed.folders).sum::<usize>() >= 40, "{removed:?}");
    });
    assert!(!tool::run("ip", ["netns", "list"]).unwrap().contains("rackswarm-lab-4999998-"));
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
}
