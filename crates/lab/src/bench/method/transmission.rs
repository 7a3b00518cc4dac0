//! Transmission's command line client.

use std::time::SystemTime;

use anyhow::Result;
use serde_json::json;

use super::{Method, done_when_flagged, first_line, hook};
use crate::bench::fabric::Place;
use crate::bench::stage::{FILE, Line, Stage};
use crate::bench::swarm;
use crate::line;

pub(super) struct Transmission;

const PIECE_BYTES: u32 = 1 << 20;

impl Method for Transmission {
    fn name(&self) -> String {
        "transmission".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["transmission-cli"]
    }

    fn version(&self) -> String {
        first_line("transmission-cli", &["--version"])
    }

    fn serve(&self, stage: &mut Stage<'_>) -> Result<()> {
        let torrent = swarm::track(stage, PIECE_BYTES)?;
        std::os::unix::fs::symlink(&stage.source, stage.home(Place::Server).join(FILE))?;
        let mut line = line(stage, Place::Server)?;
        line.extend(line!["-v", torrent.display()]);
        stage.start(Place::Server, &line)?;
        swarm::wait_for_seed(stage)
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        let mut line = line(stage, Place::Node(node)).unwrap_or_default();
        line.extend(hook(stage, Place::Node(node)).map(|hook| line!["-f", hook]).unwrap_or_default());
        line.extend(line![swarm::torrent(stage).display()]);
        line
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_flagged(stage, node)
    }
}

fn line(stage: &Stage<'_>, place: Place) -> Result<Line> {
    let home = stage.home(place);
    let folder = home.join("settings");
    std::fs::create_dir_all(&folder)?;
    let settings = json!({
        "dht-enabled": false, "lpd-enabled": false, "pex-enabled": false, "utp-enabled": false, "encryption": 0,
        "peer-limit-global": 1000, "peer-limit-per-torrent": 250, "upload-slots-per-torrent": 14, "preallocation": 0,
        "cache-size-mb": 16, "speed-limit-up-enabled": false, "speed-limit-down-enabled": false,
        "port-forwarding-enabled": false, "rename-partial-files": false, "scrape-paused-torrents-enabled": false,
    });
    std::fs::write(folder.join("settings.json"), settings.to_string())?;
    Ok(line!["transmission-cli", "-g", folder.display(), "-w", home.display(), "-M", "-D", "-U", "-et", "-p", 51413])
}
