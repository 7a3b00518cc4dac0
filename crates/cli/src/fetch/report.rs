//! What a fetch cost: bytes by link, CPU and memory.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use image::DiskSink;
use serde::Serialize;
use swarm::ledger::Account;
use transport::bittorrent::Download;
use transport::usage;

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Always true: without it there is no object.
    complete: bool,
    image: String,
    destination: String,
    /// Bytes of the image, every one verified.
    bytes: u64,
    /// From the start of the process until it was on the disk.
    seconds: f64,
    /// Bytes that needed not come: on the disk already, or zeros.
    bytes_held: u64,
    /// All bytes from and to peers, messages and heads included, TCP's own excluded.
    wire_received: u64,
    wire_sent: u64,
    payload_received: u64,
    payload_sent: u64,
    /// Received for nothing: repeated, late or corrupt.
    payload_wasted: u64,
    peers: usize,
    /// Payload received from each rack; peers without one are under the empty name.
    received_by_rack: BTreeMap<String, u64>,
    links: Vec<Link>,
    dropped: Vec<Dropped>,
    cpu_seconds: f64,
    /// The most that was resident, program included.
    peak_memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Link {
    peer: String,
    address: Option<String>,
    rack: Option<String>,
    received: u64,
    wasted: u64,
    sent: u64,
}

#[derive(Debug, Serialize)]
struct Dropped {
    address: String,
    why: String,
}

impl Report {
    pub(super) async fn gather(
        download: &Download,
        sink: &DiskSink,
        bytes_held: u64,
        elapsed: Duration,
    ) -> Result<Self> {
        // Whoever asks for the ledger has the other numbers brought up to date.
        let ledger = download.ledger().await.unwrap_or_default();
        let numbers = *download.progress().borrow();
        let total = ledger.total();
        let links = ledger.accounts().map(|(id, account)| Link::new(id.to_string(), account));
        let links: Vec<Link> = links.collect();
        let mut received_by_rack = BTreeMap::new();
        for link in &links {
            *received_by_rack.entry(link.rack.clone().unwrap_or_default()).or_default() += link.received;
        }
        let manifest = sink.manifest();
        let zeros = manifest.size_bytes() - manifest.payload_bytes();
        Ok(Self {
            complete: true,
            image: manifest.name().to_owned(),
            destination: sink.path().display().to_string(),
            bytes: manifest.size_bytes(),
            seconds: elapsed.as_secs_f64(),
            bytes_held: bytes_held.max(zeros),
            wire_received: numbers.wire_bytes_down,
            wire_sent: numbers.wire_bytes_up,
            payload_received: total.received + total.wasted,
            payload_sent: total.sent,
            payload_wasted: total.wasted,
            peers: numbers.peers,
            received_by_rack,
            links,
            dropped: dropped(download).await,
            cpu_seconds: usage::cpu_seconds(),
            peak_memory_bytes: usage::peak_memory_bytes().unwrap_or(0),
        })
    }

    /// The one line that scripts wait for.
    pub(super) fn line(&self) -> String {
        format!("complete bytes={} seconds={:.3}", self.bytes, self.seconds)
    }

    /// The object on one line.
    pub(super) fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("cannot write JSON")
    }
}

impl Link {
    fn new(peer: String, account: &Account) -> Self {
        let address = account.address.map(|address| address.to_string());
        let rack = account.rack.as_ref().map(ToString::to_string);
        Self { peer, address, rack, received: account.received, wasted: account.wasted, sent: account.sent }
    }
}

/// Peers that were dropped, each reason once.
async fn dropped(download: &Download) -> Vec<Dropped> {
    let all = download.dropped().await;
    let named: BTreeMap<String, String> =
        all.iter().map(|dropped| (dropped.address.to_string(), dropped.cause.to_string())).collect();
    named.into_iter().map(|(address, why)| Dropped { address, why }).collect()
}
