//! One stream for everybody: udpcast and uftp.

use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::{Method, done_when_ended, done_when_flagged, hook, package};
use crate::bench::fabric::Place;
use crate::bench::stage::{Line, Stage};
use crate::line;

pub(super) struct Udpcast;
pub(super) struct Uftp;

impl Method for Udpcast {
    fn name(&self) -> String {
        "udpcast".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["udp-sender", "udp-receiver"]
    }

    fn version(&self) -> String {
        package("udpcast")
    }

    fn serve(&self, stage: &mut Stage<'_>) -> Result<()> {
        let mut line = line!["udp-sender", "--file", stage.source.display(), "--interface", "eth0", "--nokbd"];
        line.extend(line![
            "--no-progress",
            "--min-receivers",
            stage.fabric.plan().nodes(),
            "--max-wait",
            60,
            "--full-duplex"
        ]);
        stage.start(Place::Server, &line)?;
        // It listens on no port that could be waited for.
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        let file = stage.destination(node);
        line![
            "udp-receiver",
            "--file",
            file.display(),
            "--interface",
            "eth0",
            "--nokbd",
            "--no-progress",
            "--rcvbuf",
            4 << 20,
            "--exit-wait",
            100
        ]
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_ended(stage, node)
    }
}

impl Method for Uftp {
    fn name(&self) -> String {
        "uftp".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["uftp", "uftpd"]
    }

    fn version(&self) -> String {
        package("uftp")
    }

    fn serve(&self, _stage: &mut Stage<'_>) -> Result<()> {
        Ok(())
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        let home = stage.home(Place::Node(node));
        // With -q it asks no name server who the server is: there is none, and the answer would come too late.
        let mut line = line!["uftpd", "-d", "-q", "-I", "eth0", "-B", 4 << 20, "-D", home.display()];
        line.extend(hook(stage, Place::Node(node)).map(|hook| line!["-s", hook]).unwrap_or_default());
        line.extend(line!["-t", "-U", format!("0x{:08X}", 0x0a4d_0002 + node)]);
        line
    }

    fn released(&self, stage: &mut Stage<'_>) -> Result<()> {
        std::thread::sleep(Duration::from_millis(500));
        let mut line =
            line!["uftp", "-R", -1, "-I", "eth0", "-B", 4 << 20, "-b", 1448, "-r", "0.05:0.01:0.5", "-s", 10];
        line.extend(line![stage.source.display()]);
        stage.start(Place::Server, &line)
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_flagged(stage, node)
    }
}
