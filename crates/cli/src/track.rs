//! `rackswarm track`: only the tracker, for torrents that others seed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::output::say;
use crate::swarming::tracker::{self, Server};
use crate::swarming::{self, Listen, Signals, TRACKER_PORT, torrent};

/// What to track, and where.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Torrents whose swarms are served; nobody else's are
    #[arg(required = true)]
    torrent: Vec<String>,
    /// Where the tracker listens
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0")]
    listen: Listen,
    /// Which addresses are in which rack (TOML), so that an image enters each rack once
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// How often peers announce themselves
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    swarming::log_warnings();
    swarming::runtime()?.block_on(track(arguments))
}

async fn track(arguments: &Arguments) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let mut swarms = Vec::new();
    for place in &arguments.torrent {
        swarms.push(torrent::read(place).await?);
    }
    let interval = Duration::from_secs(arguments.interval);
    let tracker = tracker::new(arguments.topology.as_deref(), interval)?;
    let server = Server::bind(arguments.listen.address(TRACKER_PORT), tracker).await?;
    for metainfo in &swarms {
        server.register(metainfo);
    }
    say(format!("ready: tracking {} torrent(s) on {}", swarms.len(), server.address()))?;
    signals.next().await;
    Ok(ExitCode::SUCCESS)
}
