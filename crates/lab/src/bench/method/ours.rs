//! `rackswarm seed` and `rackswarm fetch`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rustix::process::Signal;

use super::{Method, aria2_node, first_line};
use crate::bench::fabric::{Place, SERVER};
use crate::bench::stage::{Line, Stage};
use crate::bench::swarm;
use crate::line;

/// A file of this size is hashed within a second; a busy machine gets more.
const READY_LIMIT: Duration = Duration::from_secs(60);
const PEERS: u16 = 6881;
const TRACKER: u16 = 6969;

/// Our own swarm.
#[derive(Debug, Clone)]
pub struct Ours {
    /// The program.
    pub program: PathBuf,
    /// Bytes of a piece.
    pub piece_bytes: u32,
    /// Nodes say in which rack they are.
    pub racks: bool,
    /// The tracker is a process of its own, so that it can be ended alone.
    pub tracker_apart: bool,
    /// Every second node is an ordinary client.
    pub mixed: bool,
    /// Further words for `seed`.
    pub seed_words: Vec<String>,
    /// Further words for `fetch`.
    pub fetch_words: Vec<String>,
}

impl Ours {
    /// Whether a node is one of ours.
    #[must_use]
    pub fn is_ours(&self, node: usize) -> bool {
        !self.mixed || node.is_multiple_of(2)
    }

    fn torrent(stage: &Stage<'_>) -> PathBuf {
        stage.home(Place::Server).join("image.torrent")
    }

    fn topology(stage: &Stage<'_>) -> Result<PathBuf> {
        let plan = stage.fabric.plan();
        let rack = |rack: usize| format!("[[rack]]\nname = \"r{rack}\"\ncidrs = [\"10.77.{}.0/24\"]\n", rack + 1);
        let path = stage.home(Place::Server).join("topology.toml");
        std::fs::write(&path, (0..plan.racks).map(rack).collect::<String>())?;
        Ok(path)
    }

    fn seed_line(&self, stage: &Stage<'_>, torrent: &Path) -> Result<Line> {
        let mut line = line![self.program.display(), "seed", stage.source.display(), "--torrent", torrent.display()];
        line.extend(line!["--piece-size", self.piece_bytes, "--listen", format!("{SERVER}:{PEERS}")]);
        if self.tracker_apart {
            line.extend(line!["--tracker-listen", "none", "--announce", format!("http://{SERVER}:{TRACKER}/announce")]);
        } else {
            line.extend(line!["--tracker-listen", format!("{SERVER}:{TRACKER}")]);
        }
        if self.racks && !self.tracker_apart {
            line.extend(line!["--topology", Self::topology(stage)?.display()]);
        }
        if self.mixed {
            // aria2 1.36 computes another hash of a hybrid torrent than everybody else.
            line.extend(line!["--version", "v1"]);
        }
        line.extend(self.seed_words.iter().cloned());
        Ok(line)
    }
}

impl Method for Ours {
    fn name(&self) -> String {
        if self.mixed { "rackswarm, half aria2".to_owned() } else { "rackswarm".to_owned() }
    }

    fn needs(&self) -> &'static [&'static str] {
        if self.mixed { &["aria2c"] } else { &[] }
    }

    fn version(&self) -> String {
        let words = [self.seed_words.join(" "), self.fetch_words.join(" ")];
        let words: Vec<&str> = words.iter().map(String::as_str).filter(|words| !words.is_empty()).collect();
        let version = first_line(&self.program.display().to_string(), &["--version"]);
        if words.is_empty() { version } else { format!("{version} with {}", words.join(" and ")) }
    }

    fn serve(&self, stage: &mut Stage<'_>) -> Result<()> {
        let torrent = Self::torrent(stage);
        let line = self.seed_line(stage, &torrent)?;
        stage.start(Place::Server, &line)?;
        stage.wait_for("`rackswarm seed` is ready", READY_LIMIT, || {
            stage.said(Place::Server).lines().any(|line| line.starts_with("ready"))
        })?;
        if self.tracker_apart {
            let listen = format!("{SERVER}:{TRACKER}");
            let mut line = line![self.program.display(), "track", torrent.display(), "--listen", listen];
            if self.racks {
                line.extend(line!["--topology", Self::topology(stage)?.display()]);
            }
            stage.start(Place::Server, &line)?;
            stage.wait_for_port(TRACKER)?;
        }
        swarm::wait_for_seed(stage)
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        let torrent = Self::torrent(stage);
        if !self.is_ours(node) {
            return aria2_node(stage, &torrent, node);
        }
        let mut line =
            line![self.program.display(), "fetch", torrent.display(), stage.destination(node).display(), "--json"];
        line.extend(line!["--listen", stage.fabric.address(Place::Node(node)), "--linger", "forever"]);
        if self.racks {
            line.extend(line!["--rack", format!("r{}", stage.fabric.plan().rack_of(node))]);
        }
        line.extend(self.fetch_words.iter().cloned());
        line
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        if !self.is_ours(node) {
            return super::done_when_flagged(stage, node);
        }
        super::done_when_written(stage, node, "out")
    }

    fn end_tracker(&self, stage: &mut Stage<'_>) -> bool {
        self.tracker_apart && stage.signal_child(Place::Server, 1, Signal::KILL)
    }
}
