//! With an ordinary client, aria2, on either side and in between.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::{Bench, PATIENCE, TestTracker, start, within};
use rackswarm_transport::bittorrent::FetchJob;

/// A running aria2c, ended when dropped.
struct Aria2 {
    child: Child,
}

impl Aria2 {
    /// With `seed` it stays after it is complete, else it ends.
    fn start(torrent: &Path, folder: &Path, seed: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("aria2c")
            .args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"])
            .args(["--enable-peer-exchange=false", "--disable-ipv6=true", "--file-allocation=none"])
            .args(["--check-integrity=true", "--allow-overwrite=true", "--seed-ratio=0.0", "--summary-interval=0"])
            .args(["--console-log-level=error", "--bt-tracker-interval=2", "--bt-max-peers=20"])
            .arg(format!("--seed-time={}", if seed { 60 } else { 0 }))
            .arg(format!("--stop={}", PATIENCE.as_secs() + 30))
            .arg(format!("--listen-port={port}"))
            .arg(format!("--dir={}", folder.display()))
            .arg(torrent)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("aria2c: {error}: run `cargo xtask test`, which installs it"));
        Self { child }
    }

    async fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Aria2 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aria2_seeds_for_us() {
    let bench = Bench::v1(16 << 20);
    let tracker = TestTracker::start(&bench).await;
    let torrent = bench.torrent(tracker.urls());
    let _aria2 = Aria2::start(&torrent, bench.folder.path(), true);
    let disk = bench.disk("disk");
    let mut download = start(FetchJob { trackers: tracker.urls(), ..bench.job(&disk) }).await;
    within("we complete from aria2", download.completed()).await.unwrap();
    let ledger = download.stop().await.unwrap();
    assert_eq!(ledger.total().received, bench.manifest.payload_bytes());
    let (id, _) = ledger.accounts().next().unwrap();
    assert!(id.0.starts_with(b"A2-"), "{id} is not aria2");
    disk.finish(1).unwrap();
    bench.assert_installed("disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_seed_for_aria2() {
    let bench = Bench::v1(16 << 20);
    let tracker = TestTracker::start(&bench).await;
    let torrent = bench.torrent(tracker.urls());
    let (seeder, _) = bench.seeder(&bench.image, tracker.urls()).await;
    let folder = bench.path("theirs");
    let mut aria2 = Aria2::start(&torrent, &folder, false);
    assert!(within("aria2 completes from us", aria2.ended()).await.success());
    assert!(fs::read(folder.join("golden")).unwrap() == bench.content);
    let ledger = seeder.retract(bench.manifest.infohash().unwrap()).await.unwrap().unwrap();
    let (sent, size) = (ledger.total().sent, bench.manifest.size_bytes());
    assert!(sent >= size, "{sent} of {size} octets sent: zero pieces are served to foreign clients too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_swarm_completes() {
    let bench = Bench::v1(16 << 20);
    let tracker = TestTracker::start(&bench).await;
    let torrent = bench.torrent(tracker.urls());
    let (_seeder, _) = bench.seeder(&bench.image, tracker.urls()).await;
    let folder = bench.path("theirs");
    let mut aria2 = Aria2::start(&torrent, &folder, false);
    let mut downloads = Vec::new();
    for node in 0..2 {
        let disk = bench.disk(&format!("disk{node}"));
        downloads.push(start(FetchJob { trackers: tracker.urls(), ..bench.job(&disk) }).await);
    }
    for (node, download) in downloads.iter_mut().enumerate() {
        within("our nodes complete", download.completed()).await.unwrap();
        bench.assert_installed(&format!("disk{node}"));
    }
    assert!(within("aria2 completes", aria2.ended()).await.success());
    assert!(fs::read(folder.join("golden")).unwrap() == bench.content);
    for download in downloads {
        download.stop().await.unwrap();
    }
}
