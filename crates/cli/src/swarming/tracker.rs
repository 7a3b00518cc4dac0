//! The tracker of one process.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use swarm::tracker::{Topology, Tracker, TrackerPolicy};
use transport::tracker::{TrackerDoors, TrackerServer};
use wire::metainfo::Metainfo;

/// What a tracker knows and keeps.
#[derive(Debug, Clone, Args)]
pub(crate) struct Knowledge {
    /// Which addresses are in which rack (TOML), so that an image enters each rack once
    #[arg(long, value_name = "FILE")]
    pub(crate) topology: Option<PathBuf>,
    /// Keep the tracker's lists of peers in this file, over restarts
    #[arg(long, value_name = "FILE")]
    pub(crate) tracker_memory: Option<PathBuf>,
}

impl Knowledge {
    /// Opens a tracker for HTTP and for UDP on the same address.
    pub(crate) async fn open(&self, address: SocketAddr, interval: Duration) -> Result<Server> {
        let policy = TrackerPolicy { interval, ..TrackerPolicy::default() };
        let mut tracker = Tracker::new(policy, rand::random());
        if let Some(path) = &self.topology {
            tracker = tracker.with_topology(topology(path)?);
        }
        // With port 0 the two would be two different ports, of which only one could be told.
        let udp = (address.port() != 0).then_some(address);
        let doors = TrackerDoors { http: Some(address), udp, memory: self.tracker_memory.clone() };
        let server = TrackerServer::bind(doors, Arc::new(Mutex::new(tracker))).await?;
        Ok(Server { address: server.http().unwrap_or(address), server })
    }
}

fn topology(path: &Path) -> Result<Topology> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the topology {}", path.display()))?;
    Topology::from_toml(&text).with_context(|| format!("{} cannot be used", path.display()))
}

/// A tracker that answers until it is closed.
pub(crate) struct Server {
    address: SocketAddr,
    server: TrackerServer,
}

impl Server {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The announce address for nodes that reach this machine by `ip`.
    pub(crate) fn url(&self, ip: IpAddr) -> String {
        format!("http://{}/announce", SocketAddr::new(ip, self.address.port()))
    }

    /// Serves this torrent, by the hash of either version.
    pub(crate) fn register(&self, metainfo: &Metainfo) {
        let mut tracker = self.server.service().tracker();
        for info_hash in [metainfo.v1(), metainfo.v2().map(|hash| hash.truncated())].into_iter().flatten() {
            tracker.register(info_hash);
        }
    }

    pub(crate) async fn close(self) {
        self.server.close().await;
    }
}
