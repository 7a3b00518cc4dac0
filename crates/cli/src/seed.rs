//! `rackswarm seed`: one process that has a file, tells who wants it, and gives it.

mod addresses;
mod tracker;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use image::{FileSource, Manifest};
use swarm::Policy;
use transport::bittorrent::{Limits, Listener, Seeder};
use wire::metainfo::{Info, Metainfo};

use crate::output::say;
use crate::parse;
use crate::swarming::{self, Behaviour, Listen, PEER_PORT, Signals, TRACKER_PORT};

/// What to seed, and how it is found.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The file; a disk image, or anything else
    file: PathBuf,
    /// Write the .torrent here
    #[arg(long, value_name = "OUT")]
    torrent: Option<PathBuf>,
    /// Where peers reach this process
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0")]
    listen: Listen,
    /// Where the tracker listens [default: the address of --listen, port 6969]
    #[arg(long, value_name = "IP[:PORT]")]
    tracker_listen: Option<Listen>,
    /// A tracker address to write into the torrent, where nodes reach this machine by another than its own; may be
    /// given again
    #[arg(long = "announce", value_name = "URL")]
    announce: Vec<String>,
    /// Which addresses are in which rack (TOML), so that an image enters each rack once
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Bytes of a piece, a power of two; by default from the file's size
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    piece_size: Option<u64>,
    /// Kind of torrent
    #[arg(id = "kind", long = "version", value_enum, default_value_t)]
    kind: Kind,
    /// Memory for serving
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse::size)]
    memory: u64,
    /// How to treat peers
    #[arg(long, value_enum, default_value_t)]
    policy: Behaviour,
}

/// Versions of the torrent format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Kind {
    /// BEP 3, which every client reads
    #[default]
    V1,
    /// BEP 52: SHA-256, single blocks verified
    V2,
    /// Both in one
    Hybrid,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    swarming::log_warnings();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(seed(arguments))
}

async fn seed(arguments: &Arguments) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let served = tokio::select! {
        served = begin(arguments) => served?,
        signal = signals.next() => return Ok(signal.exit_code()),
    };
    signals.next().await;
    served.seeder.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Everything that runs until a signal comes.
struct Serving {
    seeder: Seeder,
    _tracker: tracker::Server,
}

async fn begin(arguments: &Arguments) -> Result<Serving> {
    ensure!(arguments.kind == Kind::V1, "torrents of version 2 cannot be made yet");
    ensure!(arguments.topology.is_none(), "the tracker knows nothing of racks yet");
    let tracker_listen = arguments.tracker_listen.unwrap_or(Listen { ip: arguments.listen.ip, port: None });
    let tracker = tracker::Server::bind(tracker_listen.address(TRACKER_PORT)).await?;
    let reachable = addresses::reachable(tracker.address().ip())?;
    let announce = match arguments.announce.is_empty() {
        true => reachable.iter().map(|ip| announce_url(*ip, tracker.address().port())).collect(),
        false => arguments.announce.clone(),
    };

    let (metainfo, manifest, source) = hashed(arguments, announce.clone()).await?;
    if let Some(out) = &arguments.torrent {
        let bytes = metainfo.encode()?;
        std::fs::write(out, bytes).with_context(|| format!("cannot write the torrent {}", out.display()))?;
    }
    let listener = Listener::bind(arguments.listen.address(PEER_PORT), Limits::default()).await?;
    tracker.register(metainfo.info_hash());
    let mut policy = Policy::default();
    arguments.policy.apply(&mut policy);
    let seeder = Seeder::new(listener.clone()).with_policy(policy).with_memory(arguments.memory);
    // Through its own address, so that the tracker tells nodes the address they reach.
    let own = reachable.first().map(|ip| announce_url(*ip, tracker.address().port()));
    seeder.publish(Arc::clone(&manifest), Arc::new(source), own.into_iter().collect())?;
    say(described(arguments, &metainfo, manifest.piece_count(), &reachable, listener.address()))?;
    Ok(Serving { seeder, _tracker: tracker })
}

/// Reads the file once, on all cores.
async fn hashed(arguments: &Arguments, announce: Vec<String>) -> Result<(Metainfo, Arc<Manifest>, FileSource)> {
    let (file, piece_size) = (arguments.file.clone(), arguments.piece_size);
    tokio::task::spawn_blocking(move || {
        let name = name_of(&file)?;
        let sealed = image::seal::seal_file(&file, piece_size, &mut image::no_progress)?;
        let info = Info {
            name,
            piece_length: sealed.piece_size_bytes,
            length: sealed.size_bytes,
            pieces: Some(sealed.sha1),
            v2: None,
            private: true,
        };
        let metainfo = Metainfo::new(info, announce)?;
        let manifest = Arc::new(Manifest::from_metainfo(&metainfo)?);
        let source = FileSource::open(&file, Arc::clone(&manifest))?;
        Ok((metainfo, manifest, source))
    })
    .await
    .context("a thread ended unexpectedly; please report this")?
}

fn name_of(file: &Path) -> Result<String> {
    let Some(name) = file.file_name() else { bail!("{} has no name that a torrent could give it", file.display()) };
    let name = name.to_str().with_context(|| format!("the name of {} is not UTF-8: rename it", file.display()))?;
    Ok(name.to_owned())
}

fn announce_url(ip: IpAddr, port: u16) -> String {
    format!("http://{}/announce", SocketAddr::new(ip, port))
}

/// What the person at the terminal needs; the last line says that everything runs.
fn described(arguments: &Arguments, metainfo: &Metainfo, pieces: u32, reachable: &[IpAddr], listen: SocketAddr) -> String {
    let info = metainfo.info();
    let chosen = if arguments.piece_size.is_some() { "as asked for" } else { "from the size" };
    let mut lines = vec![
        format!("file        {}, {} bytes", arguments.file.display(), info.length),
        format!("pieces      {pieces} of {} KiB, {chosen}", info.piece_length >> 10),
        format!("info-hash   {}", metainfo.info_hash()),
    ];
    lines.extend(metainfo.announce().iter().map(|url| format!("tracker     {url}")));
    if arguments.announce.is_empty() && reachable.len() > 1 {
        lines.push("            nodes try them in this order; --tracker-listen IP chooses one".to_owned());
    }
    if reachable.iter().all(IpAddr::is_loopback) {
        lines.push("            only this machine reaches it: it has no other address".to_owned());
    }
    if let Some(out) = &arguments.torrent {
        lines.push(format!("torrent     {}", out.display()));
    }
    lines.push(format!("magnet      {}", magnet(metainfo)));
    lines.push(format!("ready: seeding on {listen}"));
    lines.join("\n")
}

/// BEP 9 and BEP 53.
fn magnet(metainfo: &Metainfo) -> String {
    let mut link = format!("magnet:?xt=urn:btih:{}&dn={}", metainfo.info_hash(), escaped(&metainfo.info().name));
    for url in metainfo.announce() {
        link.push_str("&tr=");
        link.push_str(&escaped(url));
    }
    link
}

/// Percent-encoding of RFC 3986, section 2.3: everything but the unreserved.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
