//! A small fabric with a file, our own program, and four ordinary BitTorrent clients.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rackswarm_lab::bench::content::{self, Content};
use rackswarm_lab::bench::fabric::{Fabric, Place, Plan, SERVER};
use rackswarm_lab::bench::stage::{FILE, Line, Stage};
use rackswarm_lab::line;
use rackswarm_lab::rig::from_environment;
use rackswarm_lab::stop::Stop;
use serde_json::json;

/// Until everybody has the file. Some clients ask the tracker only every half a minute.
pub const PATIENCE: Duration = Duration::from_secs(100);
const FILE_BYTES: u64 = 24 << 20;
const TRACKER: u16 = 6969;

/// Which hashes the torrent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
    Hybrid,
}

impl Version {
    fn word(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
        }
    }
}

/// An ordinary client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Aria2,
    Transmission,
    Libtorrent,
    Rqbit,
}

/// A network with a file at the server.
pub struct Site {
    fabric: Fabric,
    folder: tempfile::TempDir,
    source: PathBuf,
    program: PathBuf,
    stop: Stop,
}

impl Site {
    pub fn new(nodes: usize) -> Site {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let source = folder.path().join(FILE);
        // Zero and repeated pieces too: others must be given them although our own know them.
        content::write(&source, FILE_BYTES, Content::System(256 << 10)).unwrap();
        let plan = Plan {
            racks: 1,
            nodes_per_rack: nodes,
            link: 200_000_000,
            server_link: 200_000_000,
            uplink: 0,
            slow_nodes: 0,
        };
        let program = from_environment("RACKSWARM_TEST_PROGRAM").unwrap();
        let fabric = Fabric::build(plan).expect("root and iproute2 are needed: run `cargo xtask test --tier interop`");
        Site { fabric, source, program, stop: Stop::on_signals().unwrap(), folder }
    }

    pub fn stage(&self) -> Stage<'_> {
        Stage::new(&self.fabric, &self.source, &self.program, self.folder.path(), &self.stop).unwrap()
    }
}

/// Our own program seeds and tracks.
pub fn we_seed(stage: &mut Stage<'_>, version: Version) -> PathBuf {
    let torrent = torrent_in(stage);
    let mut line = line![stage.program.display(), "seed", stage.source.display(), "--torrent", torrent.display()];
    line.extend(line!["--listen", SERVER, "--version", version.word(), "--piece-size", "256K"]);
    stage.start(Place::Server, &line).unwrap();
    until_ready(stage);
    torrent
}

/// Another client seeds, we only track.
pub fn they_seed(stage: &mut Stage<'_>, client: Client, version: Version) -> PathBuf {
    let torrent = torrent_in(stage);
    let announce = format!("http://{SERVER}:{TRACKER}/announce");
    let mut make = line!["torrent", stage.source.display(), "--out", torrent.display(), "--piece-size", "256K"];
    make.extend(line!["--announce", announce, "--version", version.word()]);
    rackswarm_lab::tool::run(&stage.program.display().to_string(), make).unwrap();
    let track = line![stage.program.display(), "track", torrent.display(), "--listen", SERVER, "--interval", 3];
    stage.start(Place::Server, &track).unwrap();
    until_ready(stage);
    std::fs::copy(&stage.source, stage.home(Place::Server).join(FILE)).unwrap();
    let line = client_line(stage, Place::Server, client, &torrent, true);
    stage.start(Place::Server, &line).unwrap();
    torrent
}

/// Our own program fetches.
pub fn we_fetch(stage: &mut Stage<'_>, node: usize, torrent: &Path) {
    let mut line = line![stage.program.display(), "fetch", torrent.display(), stage.destination(node).display()];
    line.extend(line!["--listen", stage.fabric.address(Place::Node(node)), "--linger", "forever", "--json"]);
    stage.start(Place::Node(node), &line).unwrap();
}

/// Another client fetches.
pub fn they_fetch(stage: &mut Stage<'_>, node: usize, client: Client, torrent: &Path) {
    let line = client_line(stage, Place::Node(node), client, torrent, false);
    stage.start(Place::Node(node), &line).unwrap();
}

/// Waits until every node has the file.
pub fn all_complete(stage: &mut Stage<'_>, nodes: usize) {
    let start = Instant::now();
    let mut left: Vec<usize> = (0..nodes).collect();
    while !left.is_empty() {
        left.retain(|node| {
            let file = stage.destination(*node);
            !content::same(&stage.source, &file).unwrap_or(false)
        });
        if start.elapsed() > PATIENCE {
            let words: Vec<String> = left
                .iter()
                .map(|node| {
                    format!(
                        "node {node}: {} | {}",
                        stage.last_words(Place::Node(*node)),
                        tail(&stage.said(Place::Node(*node)))
                    )
                })
                .collect();
            panic!(
                "not complete within {} s: {}\nserver: {} | {}",
                PATIENCE.as_secs(),
                words.join("\n"),
                stage.last_words(Place::Server),
                tail(&stage.said(Place::Server))
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What a node of ours reports, once it has reported.
pub fn report(stage: &Stage<'_>, node: usize) -> serde_json::Value {
    stage.wait_for("our node reports", Duration::from_secs(20), || !stage.said(Place::Node(node)).is_empty()).unwrap();
    serde_json::from_str(stage.said(Place::Node(node)).trim()).unwrap()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(4).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

fn torrent_in(stage: &Stage<'_>) -> PathBuf {
    stage.home(Place::Server).join("image.torrent")
}

fn until_ready(stage: &Stage<'_>) {
    stage
        .wait_for("our program is ready", Duration::from_secs(60), || {
            stage.said(Place::Server).lines().any(|line| line.starts_with("ready"))
        })
        .unwrap();
}

fn client_line(stage: &Stage<'_>, place: Place, client: Client, torrent: &Path, seed: bool) -> Line {
    let home = stage.home(place);
    match client {
        Client::Aria2 => {
            let mut line =
                line!["aria2c", "--no-conf", "--dir", home.display(), "--enable-dht=false", "--enable-dht6=false"];
            line.extend(line!["--disable-ipv6=true", "--bt-enable-lpd=false", "--bt-tracker-interval=3"]);
            line.extend(line!["--file-allocation=none", "--listen-port=6881", "--seed-ratio=0.0", "--seed-time=600"]);
            line.extend(line!["--summary-interval=0", "--allow-overwrite=true"]);
            line.extend(line![format!("--check-integrity={seed}"), torrent.display()]);
            line
        }
        Client::Transmission => {
            let folder = home.join("settings");
            std::fs::create_dir_all(&folder).unwrap();
            let settings = json!({
                "dht-enabled": false, "lpd-enabled": false, "utp-enabled": false, "encryption": 0, "preallocation": 0,
                "port-forwarding-enabled": false, "rename-partial-files": false,
            });
            std::fs::write(folder.join("settings.json"), settings.to_string()).unwrap();
            let mut line = line!["transmission-cli", "-g", folder.display(), "-w", home.display(), "-M", "-et"];
            line.extend(line!["-p", 6881]);
            line.extend(seed.then(|| "-v".to_owned()));
            line.extend(line![torrent.display()]);
            line
        }
        Client::Libtorrent => {
            let script = home.join("peer.py");
            std::fs::write(&script, include_str!("peer.py")).unwrap();
            let python = target().join("libtorrent-venv/bin/python");
            assert!(python.exists(), "libtorrent is missing: run `cargo xtask test --tier interop`, which installs it");
            let role = if seed { "seed" } else { "fetch" };
            line![python.display(), script.display(), torrent.display(), home.display(), role]
        }
        Client::Rqbit => {
            let rqbit = target().join("tools/bin/rqbit");
            assert!(rqbit.exists(), "rqbit is missing: run `cargo xtask test --tier interop`, which builds it");
            let mut line =
                line![rqbit.display(), "-v", "info", "-i", "3s", "--disable-dht", "--disable-dht-persistence"];
            line.extend(line!["--disable-lsd", "--disable-upnp-port-forward", "--listen-port", 4240, "--ipv4-only"]);
            line.extend(line!["--listen-ip", "0.0.0.0", "download", "--disable-http-api", "--overwrite", "-o"]);
            line.extend(line![home.display(), torrent.display()]);
            line
        }
    }
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}
