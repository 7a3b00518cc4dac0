//! `rackswarm fetch`: gets an image through a swarm, verified, and gives it on.

mod destination;
mod report;
mod screen;

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use image::{Manifest, PieceSink};
use tokio::sync::watch;
use transport::bittorrent::{Download, FetchJob, Limits, Listener, MagnetJob, Progress, fetch_metainfo};
use wire::metainfo::Metainfo;
use wire::peer::RackName;

use crate::swarming::{self, Behaviour, Listen, Signals, torrent};
use crate::{output, parse};
use destination::Opened;
use report::Report;
use screen::Screen;

/// Sockets and files of the transport close within this time after it stopped.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// What to fetch, and whereto.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rackswarm fetch http://10.0.0.1/image.torrent /dev/sda --rack r7
  rackswarm fetch 'magnet:?xt=urn:btih:...&tr=http://10.0.0.1:6969/announce' image.raw

Exit status: 0 only when every byte was verified and is on DEST; 1 when it failed;
130 or 143 when SIGINT or SIGTERM ended it before. What was verified until then
stays on DEST, and the next run fetches only what is missing.")]
pub(crate) struct Arguments {
    /// A .torrent file, its http:// address, or a magnet link
    torrent: String,
    /// Block device, file or folder; what it holds already is verified and kept
    #[arg(value_name = "DEST")]
    destination: PathBuf,
    /// Where peers reach this node; without a port 6881 or, when that is taken, any other
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0")]
    listen: Listen,
    /// The rack that this node is in: its members fetch each piece across racks only once
    #[arg(long, value_name = "NAME")]
    rack: Option<RackName>,
    /// How long to go on giving when everything is there
    #[arg(long, value_name = "SECONDS|forever", default_value = "10")]
    linger: Linger,
    /// A JSON object about bytes, links, CPU and memory instead of the line `complete bytes=N seconds=S`
    #[arg(long)]
    json: bool,
    /// Memory for pieces on their way
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse::size)]
    memory: u64,
    /// A peer that is known without a tracker; may be given again
    #[arg(long = "peer", value_name = "IP:PORT")]
    peers: Vec<SocketAddr>,
    /// Do not look for the swarm in the local network (BEP 14) while no tracker answers
    #[arg(long)]
    no_local_discovery: bool,
    /// How to treat other peers; auto is cooperative where the tracker says that the swarm is one operator's
    #[arg(long, value_enum, default_value_t)]
    policy: Behaviour,
    /// Give up after this time; without it trackers and peers are tried for ever
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
}

/// How long to stay as a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linger {
    For(Duration),
    Forever,
}

impl FromStr for Linger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "forever" => Ok(Self::Forever),
            _ => text
                .parse::<u32>()
                .map(|seconds| Self::For(Duration::from_secs(seconds.into())))
                .map_err(|_| format!("`{text}` is neither a number of seconds nor `forever`")),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    swarming::log_warnings();
    swarming::run(fetch(arguments, start))
}

async fn fetch(arguments: &Arguments, start: Instant) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let (screen, phase) = (Screen::new(), RefCell::new(Phase::Looking));
    let limit = arguments.limit.map(|seconds| start + Duration::from_secs(seconds));
    let outcome = tokio::select! {
        outcome = deliver(arguments, &screen, &phase, start) => outcome,
        signal = signals.next() => {
            screen.clear();
            let name = signal.name();
            eprintln!("rackswarm: ended by {name}: {}; the next run goes on from here", phase.borrow());
            return Ok(signal.exit_code());
        }
        () = swarming::until(limit) => {
            screen.clear();
            let seconds = arguments.limit.unwrap_or(0);
            bail!("not complete after {seconds} s (--limit): {}; the next run goes on from here", phase.borrow());
        }
    };
    let fetched = outcome.inspect_err(|_| screen.clear())?;
    tokio::select! {
        () = linger(arguments.linger) => {}
        // Everything was verified and is on the disk: being told to leave now is no failure.
        _ = signals.next() => {}
    }
    fetched.leave().await?;
    Ok(ExitCode::SUCCESS)
}

/// How far it is, for the sentence when it is ended before.
enum Phase {
    Looking,
    Verifying,
    Fetching(watch::Receiver<Progress>),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = "is a seed running, and does its tracker answer?";
        match self {
            Self::Looking => write!(f, "nobody gave the torrent ({advice})"),
            Self::Verifying => f.write_str("it still read what DEST holds"),
            Self::Fetching(progress) => {
                let progress = *progress.borrow();
                let (done, all) = (output::bytes(progress.bytes_done), output::bytes(progress.bytes_to_move));
                match progress.peers {
                    _ if done == all => f.write_str("everything came and was being made durable"),
                    0 => write!(f, "{done} of {all} came, and nobody is connected ({advice})"),
                    peers => write!(f, "{done} of {all} came, and {} connected", output::are(peers, "peer")),
                }
            }
        }
    }
}

/// A download that is complete and serves others.
struct Fetched {
    download: Download,
    _listener: Listener,
    _lock: Option<File>,
}

impl Fetched {
    async fn leave(self) -> Result<()> {
        tokio::time::timeout(RELEASE_LIMIT, self.download.stop()).await.ok().transpose().context("the end failed")?;
        Ok(())
    }
}

/// From the torrent's address to the one line on standard output.
async fn deliver(arguments: &Arguments, screen: &Screen, phase: &RefCell<Phase>, start: Instant) -> Result<Fetched> {
    destination::check(&arguments.destination)?;
    let listener = bind(arguments.listen).await?;
    let metainfo = Arc::new(find(arguments, &listener, screen).await?);
    let manifest = Arc::new(Manifest::from_metainfo(&metainfo)?);
    let target = destination::of(&arguments.destination, manifest.name())?;
    phase.replace(Phase::Verifying);
    let Opened { sink, lock } = open(target, Arc::clone(&manifest), screen).await?;
    let held = manifest.bytes_of(&sink.held());

    let mut job = FetchJob::new(manifest, Arc::clone(&sink) as _);
    job.trackers = torrent::trackers(metainfo.announce(), !arguments.peers.is_empty());
    job.peers.clone_from(&arguments.peers);
    job.local_discovery = !arguments.no_local_discovery;
    job.memory_bytes = arguments.memory;
    job.metainfo = Some(metainfo);
    job.rack.clone_from(&arguments.rack);
    arguments.policy.apply(&mut job.policy);
    let mut download = Download::start(&listener, job)?;
    phase.replace(Phase::Fetching(download.progress()));
    follow(&mut download, screen).await?;

    screen.message("make durable");
    let closing = Arc::clone(&sink);
    blocking(move || Ok(closing.finish(rand::random())?)).await?;
    screen.clear();
    let report = Report::gather(&download, &sink, held, start.elapsed()).await?;
    output::say(if arguments.json { report.json()? } else { report.line() })?;
    Ok(Fetched { download, _listener: listener, _lock: lock })
}

/// The torrent, which the swarm itself gives to whoever has a magnet link.
async fn find(arguments: &Arguments, listener: &Listener, screen: &Screen) -> Result<Metainfo> {
    screen.message("look for the torrent");
    let Some(magnet) = torrent::magnet(&arguments.torrent)? else { return torrent::read(&arguments.torrent).await };
    let mut job = MagnetJob::new(magnet);
    job.magnet.trackers = torrent::trackers(&job.magnet.trackers, !arguments.peers.is_empty());
    job.peers.clone_from(&arguments.peers);
    job.rack.clone_from(&arguments.rack);
    job.local_discovery = !arguments.no_local_discovery;
    Ok(fetch_metainfo(listener, job).await?)
}

/// Opens the destination, keeps what it holds and zeroes what is to be zero.
async fn open(target: PathBuf, manifest: Arc<Manifest>, screen: &Screen) -> Result<Opened> {
    let screen = screen.clone();
    blocking(move || {
        let was_there = destination::is_there(&target)?;
        let opened = destination::open(&target, manifest)?;
        if was_there {
            opened.sink.scan(&mut screen.follow("verify what is there"))?;
        }
        opened.sink.prepare(&mut screen.follow("zero"))?;
        destination::check_space(&target, opened.sink.manifest().bytes_of(&opened.sink.missing()))?;
        Ok(opened)
    })
    .await
}

/// The wanted address, or another port of it when the usual one is taken.
async fn bind(listen: Listen) -> Result<Listener> {
    match Listener::bind(listen.address(swarming::PEER_PORT), Limits::default()).await {
        Err(transport::Error::Listen { .. }) if listen.port.is_none() => {
            Ok(Listener::bind(listen.address(0), Limits::default()).await?)
        }
        outcome => Ok(outcome?),
    }
}

/// Shows how far it is until everything is there.
async fn follow(download: &mut Download, screen: &Screen) -> Result<()> {
    let mut numbers = download.progress();
    loop {
        screen.progress(&numbers.borrow_and_update());
        tokio::select! {
            done = download.completed() => {
                screen.progress(&numbers.borrow());
                return Ok(done?);
            }
            Ok(()) = numbers.changed(), if screen.is_seen() => {}
        }
    }
}

async fn linger(linger: Linger) {
    match linger {
        Linger::For(duration) => tokio::time::sleep(duration).await,
        Linger::Forever => std::future::pending().await,
    }
}

/// Runs what blocks off the thread of the network.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a thread ended unexpectedly; please report this")?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lingering_is_a_number_or_for_ever() {
        assert_eq!("forever".parse(), Ok(Linger::Forever));
        assert_eq!("0".parse(), Ok(Linger::For(Duration::ZERO)));
        assert!("-1".parse::<Linger>().unwrap_err().contains("forever"));
    }
}
