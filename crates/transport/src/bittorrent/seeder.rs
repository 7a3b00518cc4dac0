//! The server's side: every published image, served from its file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use image::{Manifest, PieceSource};
use swarm::ledger::Ledger;
use swarm::{PieceSet, Policy};
use wire::metainfo::{InfoHash, Metainfo};
use wire::peer::{PeerId, RackName};

use super::download::is_private;
use super::drive::{self, Handle, Job};
use super::listener::Listener;
use super::progress::{Dropped, Progress};
use crate::Error;

/// Default memory of each image, in bytes.
const MEMORY_BYTES: u64 = 64 << 20;

/// Serves any number of images on one listener.
pub struct Seeder {
    listener: Listener,
    policy: Policy,
    memory_bytes: u64,
    rack: Option<RackName>,
    local_discovery: bool,
    swarms: Mutex<BTreeMap<InfoHash, Handle>>,
}

/// Where a published image is to be had; for the tracker in the same process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The swarm.
    pub info_hash: InfoHash,
    /// The name this seeder has in it.
    pub peer_id: PeerId,
    /// Where it listens. The address is unspecified (0.0.0.0) when it listens
    /// on all: the tracker then gives each node the server's address it used.
    pub address: SocketAddr,
}

impl Seeder {
    /// A seeder behind this listener, with default policy and 64 MiB for each
    /// image.
    #[must_use]
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            policy: Policy::default(),
            memory_bytes: MEMORY_BYTES,
            rack: None,
            local_discovery: false,
            swarms: Mutex::default(),
        }
    }

    /// How the engines of images published from now on behave.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Memory for serving each image published from now on, in bytes.
    #[must_use]
    pub fn with_memory(self, memory_bytes: u64) -> Self {
        Self { memory_bytes, ..self }
    }

    /// The rack that this seeder stands in; without one it is outside of all.
    #[must_use]
    pub fn with_rack(self, rack: Option<RackName>) -> Self {
        Self { rack, ..self }
    }

    /// Answer those in the local network whose tracker is silent (BEP 14).
    #[must_use]
    pub fn with_local_discovery(self, local_discovery: bool) -> Self {
        Self { local_discovery, ..self }
    }

    /// Begins to serve an image. It announces to `trackers`; with none it is
    /// found through what this returns.
    ///
    /// # Errors
    /// When the image has no info-hash, is published already, or a tracker's
    /// address is neither http nor udp.
    pub fn publish(
        &self,
        manifest: Arc<Manifest>,
        source: Arc<dyn PieceSource>,
        trackers: Vec<String>,
    ) -> Result<Published, Error> {
        self.publish_torrent(manifest, None, source, trackers)
    }

    /// As [`publish`](Self::publish), and gives the torrent's info dictionary to
    /// peers that come with a magnet link (BEP 9).
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_torrent(
        &self,
        manifest: Arc<Manifest>,
        metainfo: Option<&Metainfo>,
        source: Arc<dyn PieceSource>,
        trackers: Vec<String>,
    ) -> Result<Published, Error> {
        let info_hash = drive::names(&manifest)?[0];
        let have = PieceSet::full(manifest.piece_count());
        let job = Job {
            info: metainfo.map(|metainfo| Bytes::copy_from_slice(metainfo.raw_info())),
            rack: self.rack.clone(),
            ours: manifest.digest().is_some(),
            private: is_private(&manifest, metainfo),
            manifest,
            source,
            sink: None,
            have,
            trackers,
            local_discovery: self.local_discovery,
            peers: Vec::new(),
            policy: self.policy.clone(),
            memory_bytes: self.memory_bytes,
            seed: rand::random(),
        };
        let handle = drive::start(&self.listener, job)?;
        let published = Published { info_hash, peer_id: handle.me, address: self.listener.address() };
        self.swarms().insert(info_hash, handle);
        Ok(published)
    }

    /// Ceases to serve an image; the bytes it gave. None when it was not served.
    ///
    /// # Errors
    /// Only when a task died, which is a defect.
    pub async fn retract(&self, info_hash: InfoHash) -> Result<Option<Ledger>, Error> {
        let handle = self.swarms().remove(&info_hash);
        match handle {
            Some(handle) => handle.stop().await.map(Some),
            None => Ok(None),
        }
    }

    /// Waits until nothing of an image can be served any more, and tells why; for
    /// ever while something can, or when it was retracted.
    pub async fn failed(&self, info_hash: InfoHash) -> Error {
        let progress = self.swarms().get(&info_hash).map(|handle| handle.progress.clone());
        if let Some(mut progress) = progress {
            while progress.changed().await.is_ok() {}
            let ended = self.swarms().remove(&info_hash);
            if let Some(handle) = ended
                && let Err(error) = handle.stop().await
            {
                return error;
            }
        }
        std::future::pending().await
    }

    /// What is served now, with its numbers.
    #[must_use]
    pub fn progress(&self) -> Vec<(InfoHash, Progress)> {
        self.swarms().iter().map(|(info_hash, handle)| (*info_hash, *handle.progress.borrow())).collect()
    }

    /// Bytes by peer of one image so far; none when it is not served.
    pub async fn ledger(&self, info_hash: InfoHash) -> Option<Ledger> {
        self.look(info_hash, |engine, _| engine.ledger().clone()).await
    }

    /// The last peers of one image that were dropped for what they did.
    pub async fn dropped(&self, info_hash: InfoHash) -> Vec<Dropped> {
        self.look(info_hash, |_, dropped| dropped.iter().cloned().collect()).await.unwrap_or_default()
    }

    /// Ends everything in an orderly way.
    pub async fn close(self) {
        let swarms = std::mem::take(&mut *self.swarms());
        for (info_hash, handle) in swarms {
            if let Err(error) = handle.stop().await {
                tracing::warn!(%info_hash, %error, "an image was not served to the end");
            }
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        info_hash: InfoHash,
        look: impl FnOnce(&swarm::Engine, &std::collections::VecDeque<Dropped>) -> T + Send + 'static,
    ) -> Option<T> {
        // The question is asked without the lock, which must not be held while
        // waiting.
        let asker = self.swarms().get(&info_hash).map(Handle::asker)?;
        asker.look(look).await
    }

    fn swarms(&self) -> MutexGuard<'_, BTreeMap<InfoHash, Handle>> {
        self.swarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
