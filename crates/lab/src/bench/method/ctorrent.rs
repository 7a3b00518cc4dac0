//! ctorrent: old, small and cheap.

use std::time::SystemTime;

use anyhow::Result;

use super::{Method, done_when_flagged, hook, package};
use crate::bench::fabric::Place;
use crate::bench::stage::{FILE, Line, Stage};
use crate::bench::swarm;
use crate::line;

pub(super) struct Ctorrent;

const PIECE_BYTES: u32 = 256 << 10;

impl Method for Ctorrent {
    fn name(&self) -> String {
        "ctorrent".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["ctorrent"]
    }

    fn version(&self) -> String {
        package("ctorrent")
    }

    fn serve(&self, stage: &mut Stage<'_>) -> Result<()> {
        let torrent = swarm::track(stage, PIECE_BYTES)?;
        std::os::unix::fs::symlink(&stage.source, stage.home(Place::Server).join(FILE))?;
        let mut line = line(stage, Place::Server);
        line.extend(line!["-f", torrent.display()]);
        stage.start(Place::Server, &line)?;
        swarm::wait_for_seed(stage)
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        let mut line = line(stage, Place::Node(node));
        line.extend(hook(stage, Place::Node(node)).map(|hook| line!["-X", hook]).unwrap_or_default());
        line.extend(line![swarm::torrent(stage).display()]);
        line
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_flagged(stage, node)
    }
}

fn line(stage: &Stage<'_>, place: Place) -> Line {
    let home = stage.home(place);
    let (file, fields) = (home.join(FILE), home.join("bitfield"));
    let mut line = line!["ctorrent", "-s", file.display(), "-b", fields.display()];
    line.extend(line!["-C", 32, "-M", 200, "-z", 16, "-e", 1, "-p", 6881]);
    line
}
