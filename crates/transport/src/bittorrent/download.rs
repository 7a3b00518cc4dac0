//! Taking part in a swarm to get an image, and staying to give it on.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use image::{Manifest, PieceSource};
use swarm::ledger::Ledger;
use swarm::{PieceSet, Policy};
use tokio::sync::watch;
use wire::metainfo::Metainfo;
use wire::peer::RackName;

use super::drive::{self, Handle, Job};
use super::listener::Listener;
use super::progress::{Dropped, Progress};
use super::store::Storage;
use crate::Error;

/// Default memory of a download, in bytes.
const MEMORY_BYTES: u64 = 64 << 20;

/// An image to get.
pub struct FetchJob {
    /// What is wanted; it must have an info-hash.
    pub manifest: Arc<Manifest>,
    /// Where it goes, and from where it is served to others. What it does not
    /// miss is not fetched: scan and prepare it first.
    pub disk: Arc<dyn Storage>,
    /// `http://` and `udp://` addresses of trackers, in the order to try. They
    /// are asked for ever; peers that are known go on when all trackers are dead.
    pub trackers: Vec<String>,
    /// Find the swarm in the local network (BEP 14) while no tracker answers,
    /// and be found by others. Default false.
    pub local_discovery: bool,
    /// The torrent, if there is one: its info dictionary is given to peers that
    /// come with a magnet link (BEP 9).
    pub metainfo: Option<Arc<Metainfo>>,
    /// The rack of this node; a tracker of ours may name it too.
    pub rack: Option<RackName>,
    /// Peers that are known without a tracker.
    pub peers: Vec<SocketAddr>,
    /// How the engine behaves.
    pub policy: Policy,
    /// Memory for pieces and serving, in bytes; at least
    /// [`MIN_MEMORY_BYTES`](super::MIN_MEMORY_BYTES) and two pieces are used.
    pub memory_bytes: u64,
    /// Chance for the engine: different on every node.
    pub seed: u64,
}

impl FetchJob {
    /// A job without trackers and peers, with default policy and 64 MiB.
    #[must_use]
    pub fn new(manifest: Arc<Manifest>, disk: Arc<dyn Storage>) -> Self {
        Self {
            manifest,
            disk,
            trackers: Vec::new(),
            local_discovery: false,
            metainfo: None,
            rack: None,
            peers: Vec::new(),
            policy: Policy::default(),
            memory_bytes: MEMORY_BYTES,
            seed: rand::random(),
        }
    }
}

/// A download that is running, or complete and serving others. Dropping it
/// ends it; [`stop`](Download::stop) also waits.
pub struct Download {
    handle: Handle,
}

impl Download {
    /// Joins the swarm and begins. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the image has no info-hash, a tracker's address is neither http nor udp, or
    /// this listener takes part in the swarm already.
    pub fn start(listener: &Listener, job: FetchJob) -> Result<Self, Error> {
        let missing = job.disk.missing();
        let mut have = PieceSet::empty(job.manifest.piece_count());
        for piece in missing.zeroes() {
            have.insert(piece as u32);
        }
        let source: Arc<dyn PieceSource> = Arc::clone(&job.disk) as Arc<dyn PieceSource>;
        let handle = drive::start(
            listener,
            Job {
                info: job.metainfo.as_ref().map(|metainfo| Bytes::copy_from_slice(metainfo.raw_info())),
                rack: job.rack,
                ours: job.manifest.digest().is_some(),
                private: is_private(&job.manifest, job.metainfo.as_deref()),
                manifest: job.manifest,
                source,
                sink: Some(job.disk),
                have,
                trackers: job.trackers,
                local_discovery: job.local_discovery,
                peers: job.peers,
                policy: job.policy,
                memory_bytes: job.memory_bytes,
                seed: job.seed,
            },
        )?;
        Ok(Self { handle })
    }

    /// Progress as it changes, four times a second.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.handle.progress.clone()
    }

    /// Waits until every piece is verified and written. The download then goes
    /// on serving others. Without a deadline: trackers and peers are tried for
    /// ever, so the caller sets one. May be called again.
    ///
    /// # Errors
    /// When the disk fails; the error names it, and is told once.
    pub async fn completed(&mut self) -> Result<(), Error> {
        if self.handle.progress.wait_for(|progress| progress.complete).await.is_ok() {
            return Ok(());
        }
        self.handle.ended().await.and(Err(Error::Stopped))
    }

    /// Bytes by peer and direction so far; none after a failure.
    pub async fn ledger(&self) -> Option<Ledger> {
        self.handle.asker().look(|engine, _| engine.ledger().clone()).await
    }

    /// The last peers that were dropped for what they did.
    pub async fn dropped(&self) -> Vec<Dropped> {
        self.handle.asker().look(|_, dropped| dropped.iter().cloned().collect()).await.unwrap_or_default()
    }

    /// Leaves the swarm: tells trackers, closes connections, finishes writes
    /// that are under way. Takes at most a few seconds.
    ///
    /// # Errors
    /// When the disk failed before and nobody was told.
    pub async fn stop(self) -> Result<Ledger, Error> {
        self.handle.stop().await
    }
}

/// What the torrent says; torrents of images that we sealed are private.
pub(super) fn is_private(manifest: &Manifest, metainfo: Option<&Metainfo>) -> bool {
    metainfo.map_or(manifest.digest().is_some(), |metainfo| metainfo.info().private)
}
