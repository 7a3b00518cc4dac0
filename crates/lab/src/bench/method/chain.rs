//! Each node receives over TCP, writes and passes on: the least that a delivery can cost. One dead node stops it.

use std::time::SystemTime;

use anyhow::Result;

use super::{Method, done_when_ended, package};
use crate::bench::fabric::Place;
use crate::bench::stage::{Line, Stage};
use crate::line;

const PORT: u16 = 7000;
const BUFFER: u32 = 256 << 10;

pub(super) struct Chain;

impl Method for Chain {
    fn name(&self) -> String {
        "chain".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["socat", "tee"]
    }

    fn version(&self) -> String {
        format!("{} | tee", package("socat"))
    }

    fn serve(&self, _stage: &mut Stage<'_>) -> Result<()> {
        Ok(())
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        let file = stage.destination(node);
        let next = if node + 1 < stage.fabric.plan().nodes() {
            format!("| tee {} | {}", file.display(), send_to(stage, node + 1))
        } else {
            format!("> {}", file.display())
        };
        line!["sh", "-c", format!("socat -u -b {BUFFER} TCP-LISTEN:{PORT},reuseaddr STDOUT {next}")]
    }

    fn released(&self, stage: &mut Stage<'_>) -> Result<()> {
        let script = format!("{} < {}", send_to(stage, 0), stage.source.display());
        stage.start(Place::Server, &line!["sh", "-c", script])
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_ended(stage, node)
    }
}

fn send_to(stage: &Stage<'_>, node: usize) -> String {
    let address = stage.fabric.address(Place::Node(node));
    format!("socat -u -b {BUFFER} STDIN TCP:{address}:{PORT},retry=200,interval=0.05")
}
