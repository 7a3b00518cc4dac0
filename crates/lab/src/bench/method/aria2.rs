//! aria2 as an ordinary BitTorrent client.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;

use super::{Method, done_when_flagged, first_line, hook};
use crate::bench::fabric::Place;
use crate::bench::stage::{FILE, Line, Stage};
use crate::bench::swarm;
use crate::line;

pub(super) struct Aria2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Seed,
    Node,
}

const PIECE_BYTES: u32 = 1 << 20;

impl Method for Aria2 {
    fn name(&self) -> String {
        "aria2".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["aria2c"]
    }

    fn version(&self) -> String {
        first_line("aria2c", &["--version"])
    }

    fn serve(&self, stage: &mut Stage<'_>) -> Result<()> {
        let torrent = swarm::track(stage, PIECE_BYTES)?;
        std::os::unix::fs::symlink(&stage.source, stage.home(Place::Server).join(FILE))?;
        let line = line(stage, Place::Server, &torrent, Role::Seed);
        stage.start(Place::Server, &line)?;
        swarm::wait_for_seed(stage)
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        line(stage, Place::Node(node), &swarm::torrent(stage), Role::Node)
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_flagged(stage, node)
    }
}

pub(super) fn line(stage: &Stage<'_>, place: Place, torrent: &Path, role: Role) -> Line {
    let mut line = line![
        "aria2c",
        "--no-conf",
        "--dir",
        stage.home(place).display(),
        "--enable-dht=false",
        "--enable-dht6=false",
        "--disable-ipv6=true",
        "--bt-enable-lpd=false",
        "--enable-peer-exchange=false",
        "--bt-max-peers=0",
        "--bt-request-peer-speed-limit=1000M",
        "--bt-tracker-interval=5",
        "--file-allocation=none",
        "--listen-port=6881",
        "--seed-ratio=0.0",
        "--summary-interval=0",
        "--show-console-readout=false",
        "--disk-cache=16M",
        "--bt-detach-seed-only=true",
    ];
    match role {
        Role::Seed => {
            line.extend(line!["--bt-seed-unverified=true", "--check-integrity=false", "--allow-overwrite=true"])
        }
        // A hook that cannot be written shows as a node that never gets done.
        Role::Node => line.extend(hook(stage, place).map(|hook| format!("--on-bt-download-complete={hook}")).ok()),
    }
    line.extend(line![torrent.display()]);
    line
}
