//! `rackswarm track`: only the tracker, for torrents that others seed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::output::say;
use crate::swarming::tracker::Knowledge;
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
    #[command(flatten)]
    knowledge: Knowledge,
    /// How often peers announce themselves
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    swarming::log_warnings();
    swarming::run(track(arguments))
}

async fn track(arguments: &Arguments) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let mut swarms = Vec::new();
    for place in &arguments.torrent {
        swarms.push(torrent::read(place).await?);
    }
    let interval = Duration::from_secs(arguments.interval);
    let server = arguments.knowledge.open(arguments.listen.address(TRACKER_PORT), interval).await?;
    for metainfo in &swarms {
        server.register(metainfo);
    }
    say(format!("ready: tracking {} torrent(s) on {}", swarms.len(), server.address()))?;
    signals.next().await;
    server.close().await;
    Ok(ExitCode::SUCCESS)
}
