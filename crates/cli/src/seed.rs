//! `rackswarm seed`: one process that has a file, tells who wants it, and gives it.

mod addresses;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use image::{FileSource, Manifest};
use swarm::Policy;
use tokio::runtime::Builder;
use transport::bittorrent::{Limits, Listener, Seeder};
use wire::metainfo::{InfoHash, Metainfo};
use wire::peer::RackName;

use crate::output::{WrongUsage, check_file, say};
use crate::parse;
use crate::swarming::create::{self, Form};
use crate::swarming::tracker::{Knowledge, Server};
use crate::swarming::{self, Behaviour, Listen, PEER_PORT, Signals, TRACKER_PORT};

/// How often peers announce themselves to our tracker.
const INTERVAL: Duration = Duration::from_secs(30);

/// What to seed, and how it is found.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The file or block device; a disk image, or anything else
    file: PathBuf,
    /// Write the .torrent here
    #[arg(long, value_name = "OUT")]
    torrent: Option<PathBuf>,
    /// Where peers reach this process; the port is 6881 unless given
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0")]
    listen: Listen,
    /// Where the tracker listens, or none for another tracker that --announce names [default: the address of --listen,
    /// port 6969]
    #[arg(long, value_name = "IP[:PORT]|none")]
    tracker_listen: Option<TrackerListen>,
    /// A tracker's address to write into the torrent, where nodes reach this machine by another than its own; may be
    /// given again
    #[arg(long = "announce", value_name = "URL", value_parser = create::tracker_url)]
    announce: Vec<String>,
    #[command(flatten)]
    knowledge: Knowledge,
    #[command(flatten)]
    form: Form,
    /// Memory for serving
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse::size)]
    memory: u64,
    /// The rack that this machine is in; without one it serves all racks alike
    #[arg(long, value_name = "NAME")]
    rack: Option<RackName>,
    /// Do not answer those who look for the swarm in the local network (BEP 14)
    #[arg(long)]
    no_local_discovery: bool,
    /// How to treat peers
    #[arg(long, value_enum, default_value_t)]
    policy: Behaviour,
}

/// Where our own tracker is, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrackerListen {
    At(Listen),
    Nowhere,
}

impl FromStr for TrackerListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self::Nowhere) } else { text.parse().map(Self::At) }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    swarming::log_warnings();
    swarming::run_on(&mut Builder::new_multi_thread(), seed(arguments))
}

async fn seed(arguments: &Arguments) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let served = tokio::select! {
        served = begin(arguments) => served?,
        signal = signals.next() => return Ok(signal.exit_code()),
    };
    let failed = tokio::select! {
        _ = signals.next() => None,
        error = served.seeder.failed(served.info_hash) => Some(error),
    };
    served.seeder.close().await;
    if let Some(tracker) = served.tracker {
        tracker.close().await;
    }
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(error).context("nothing can be served any more; put the file or disk right and begin again"),
    }
}

/// Everything that runs until a signal comes.
struct Serving {
    seeder: Seeder,
    info_hash: InfoHash,
    tracker: Option<Server>,
}

async fn begin(arguments: &Arguments) -> Result<Serving> {
    // Reading the file may take minutes; what cannot work is said before.
    arguments.torrent.as_deref().map_or(Ok(()), check_file)?;
    let listener = Listener::bind(arguments.listen.address(PEER_PORT), Limits::default()).await?;
    let tracker = track(arguments).await?;
    let at = tracker.as_ref().map_or(arguments.listen.ip, |tracker| tracker.address().ip());
    let reachable = addresses::reachable(at)?;
    let url_of = |tracker: &Server| -> Vec<String> { reachable.iter().map(|ip| tracker.url(*ip)).collect() };
    let own = tracker.as_ref().map(url_of).unwrap_or_default();
    let told = if arguments.announce.is_empty() { own.clone() } else { arguments.announce.clone() };

    let (metainfo, manifest, source) = hashed(arguments, told).await?;
    if let Some(out) = &arguments.torrent {
        create::write(out, &metainfo)?;
    }
    if let Some(tracker) = &tracker {
        tracker.register(&metainfo);
    }
    let mut policy = Policy::default();
    arguments.policy.apply(&mut policy);
    let seeder = Seeder::new(listener.clone()).with_policy(policy).with_memory(arguments.memory);
    let seeder = seeder.with_rack(arguments.rack.clone()).with_local_discovery(!arguments.no_local_discovery);
    // Through its own address, so that the tracker tells nodes the address they reach.
    let asked = if own.is_empty() { arguments.announce.clone() } else { own.into_iter().take(1).collect() };
    let published = seeder.publish_torrent(manifest, Some(&metainfo), Arc::new(source), asked)?;
    say(described(arguments, &metainfo, &reachable, listener.address()))?;
    Ok(Serving { seeder, info_hash: published.info_hash, tracker })
}

async fn track(arguments: &Arguments) -> Result<Option<Server>> {
    let usual = Listen { ip: arguments.listen.ip, port: None };
    match arguments.tracker_listen.unwrap_or(TrackerListen::At(usual)) {
        TrackerListen::At(listen) => Ok(Some(arguments.knowledge.open(listen.address(TRACKER_PORT), INTERVAL).await?)),
        TrackerListen::Nowhere => {
            if arguments.announce.is_empty() {
                return Err(WrongUsage::error("--tracker-listen none needs --announce: nobody would find the seed"));
            }
            if arguments.knowledge.topology.is_some() {
                return Err(WrongUsage::error("--topology is for the tracker: give it to `rackswarm track`"));
            }
            Ok(None)
        }
    }
}

/// Reads the file once, on all cores.
async fn hashed(arguments: &Arguments, announce: Vec<String>) -> Result<(Metainfo, Arc<Manifest>, FileSource)> {
    let (file, form) = (arguments.file.clone(), arguments.form.clone());
    tokio::task::spawn_blocking(move || {
        let metainfo = form.make(&file, announce)?;
        let manifest = Arc::new(Manifest::from_metainfo(&metainfo)?);
        let source = FileSource::open(&file, Arc::clone(&manifest))?;
        Ok((metainfo, manifest, source))
    })
    .await
    .context("a thread ended unexpectedly; please report this")?
}

/// What the person at the terminal needs; the last line says that everything runs.
fn described(arguments: &Arguments, metainfo: &Metainfo, reachable: &[IpAddr], listen: SocketAddr) -> String {
    let mut lines = arguments.form.describe(&arguments.file, metainfo);
    if arguments.announce.is_empty() && reachable.len() > 1 {
        lines.push("            nodes try them in this order; --tracker-listen IP chooses one".to_owned());
    }
    if reachable.iter().all(IpAddr::is_loopback) {
        lines.push("            only this machine reaches it: it listens on no other address".to_owned());
    }
    if let Some(out) = &arguments.torrent {
        lines.push(format!("torrent     {}", out.display()));
    }
    lines.push(format!("magnet      {}", create::magnet(metainfo)));
    lines.push(format!("ready: seeding on {listen}"));
    lines.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_is_somewhere_or_nowhere() {
        assert_eq!("none".parse(), Ok(TrackerListen::Nowhere));
        assert!(matches!("10.0.0.1".parse().unwrap(), TrackerListen::At(_)));
        assert!("nowhere".parse::<TrackerListen>().is_err());
    }
}
