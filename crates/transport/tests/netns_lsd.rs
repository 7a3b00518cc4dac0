//! A swarm whose tracker and seed died takes newcomers, in network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{Bench, PATIENCE, within};
use image::DiskSink;
use nix::sched::{CloneFlags, setns};
use rackswarm_transport::bittorrent::{Download, FetchJob, Limits, Listener, Seeder};
use rackswarm_transport::tracker::{TrackerDoors, TrackerServer};
use swarm::tracker::{Tracker, TrackerPolicy};
use tokio::sync::oneshot;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A switch, and hosts with one interface each.
struct Network {
    switch: String,
    hosts: Vec<String>,
}

impl Network {
    fn new(hosts: u32) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network tests need root: run `sudo cargo xtask test`");
        let switch = format!("rst{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { switch: switch.clone(), hosts: Vec::new() };
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        for number in 1..=hosts {
            let (host, port) = (format!("{switch}h{number}"), format!("p{number}"));
            ip(&["netns", "add", &host]);
            network.hosts.push(host.clone());
            ip(&["-n", &host, "link", "set", "lo", "up"]);
            ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host]);
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
            ip(&["-n", &host, "address", "add", &format!("10.78.0.{number}/24"), "dev", "eth0"]);
            ip(&["-n", &host, "link", "set", "eth0", "up"]);
        }
        network
    }

    /// Runs a future on a thread of this host; hosts count from 1.
    fn run<F: Future<Output = ()> + 'static>(
        &self,
        host: usize,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> JoinHandle<()> {
        let path = format!("/run/netns/{}", self.hosts[host - 1]);
        thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.switch]) {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("`ip` is not installed: run `cargo xtask test`, which installs it");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const TRACKER: &str = "10.78.0.1:6969";

/// Starts a node that listens on all addresses, like the agent does.
async fn node(bench: &Bench, disk: &Arc<DiskSink>, local_discovery: bool) -> Download {
    let trackers = vec![format!("http://{TRACKER}/announce")];
    let job = FetchJob { trackers, local_discovery, ..bench.job(disk) };
    let listener = Listener::bind(SocketAddr::from(([0, 0, 0, 0], 6881)), Limits::default()).await.unwrap();
    Download::start(&listener, job).unwrap()
}

#[test]
fn a_newcomer_finds_the_rest_of_a_swarm_whose_tracker_and_seed_are_dead() {
    let network = Network::new(4);
    let bench = Arc::new(Bench::new(4 << 20));
    let (stop_server, server_stops) = oneshot::channel::<()>();
    let (stop_node, node_stops) = oneshot::channel::<()>();
    let (tell_served, served) = oneshot::channel::<()>();
    let (tell_complete, complete) = std::sync::mpsc::channel::<()>();

    let of = Arc::clone(&bench);
    let server = network.run(1, || async move {
        let mut tracker = Tracker::new(TrackerPolicy::default(), 1);
        tracker.register(of.manifest.infohash().unwrap());
        let doors = TrackerDoors { http: Some(TRACKER.parse().unwrap()), ..TrackerDoors::default() };
        let tracker = TrackerServer::bind(doors, Arc::new(Mutex::new(tracker))).await.unwrap();
        let listener = Listener::bind("10.78.0.1:6881".parse().unwrap(), Limits::default()).await.unwrap();
        let seeder = Seeder::new(listener);
        let trackers = vec![format!("http://{TRACKER}/announce")];
        seeder.publish(Arc::clone(&of.manifest), of.source(&of.image), trackers).unwrap();
        tell_served.send(()).unwrap();
        server_stops.await.unwrap();
        seeder.close().await;
        tracker.close().await;
    });
    served.blocking_recv().unwrap();

    let (of, disk) = (Arc::clone(&bench), bench.disk("first"));
    let first = network.run(2, || async move {
        let mut download = node(&of, &disk, true).await;
        within("the first node completes", download.completed()).await.unwrap();
        tell_complete.send(()).unwrap();
        node_stops.await.unwrap();
        download.stop().await.unwrap();
    });
    complete.recv_timeout(PATIENCE).unwrap();
    stop_server.send(()).unwrap();
    server.join().unwrap();

    let (of, disk) = (Arc::clone(&bench), bench.disk("newcomer"));
    let newcomer = network.run(3, || async move {
        let mut download = node(&of, &disk, true).await;
        within("the newcomer completes", download.completed()).await.unwrap();
        download.stop().await.unwrap();
    });
    newcomer.join().unwrap();
    bench.assert_installed("newcomer");

    let (of, disk) = (Arc::clone(&bench), bench.disk("deaf"));
    let deaf = network.run(4, || async move {
        let mut download = node(&of, &disk, false).await;
        // Nobody can come: with the option off there is neither call nor ear.
        assert!(tokio::time::timeout(Duration::from_secs(3), download.completed()).await.is_err());
        download.stop().await.unwrap();
    });
    deaf.join().unwrap();
    stop_node.send(()).unwrap();
    first.join().unwrap();
}
