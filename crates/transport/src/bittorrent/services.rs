//! What a driver answers by itself: metadata for magnet links (BEP 9), hashes
//! (BEP 52); and a look now and then at what it serves.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use image::{Manifest, leaf_hashes};
use swarm::Peer;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use wire::peer::{Block, ExtensionHandshake, ExtensionIds, HashRange, METADATA_PIECE_BYTES, Message, MetadataMessage};

use super::drive::Event;
use super::store::Store;
use crate::Error;

/// Hash requests of all peers that are worked on at once; further ones wait.
const HASH_REQUESTS: usize = 4;

/// Hash requests of one peer that are worked on or wait; further ones are
/// refused, as BEP 52 allows, so that nobody takes others' turns.
const HASH_REQUESTS_OF_PEER: usize = 4;

/// Looking at what is served takes at most one part in so many of a core.
const INSPECTION_SHARE: u32 = 16;

/// Answers of one swarm.
pub(super) struct Services {
    manifest: Arc<Manifest>,
    store: Arc<Store>,
    info: Option<Bytes>,
    events: mpsc::Sender<Event>,
    hashing: Arc<Semaphore>,
    inspector: Arc<Inspector>,
}

/// The hash requests that one peer may have open.
pub(super) struct HashPlaces(Arc<Semaphore>);

impl Default for HashPlaces {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(HASH_REQUESTS_OF_PEER)))
    }
}

/// Reads again what this process has not itself written or checked.
struct Inspector {
    state: Mutex<Inspection>,
    corrupt: AtomicU64,
}

struct Inspection {
    good: FixedBitSet,
    /// Found to differ, and said so.
    told: FixedBitSet,
    /// The next look is not before this; none while one is under way.
    next: Option<Instant>,
}

impl Services {
    pub(super) fn new(
        manifest: Arc<Manifest>,
        store: Arc<Store>,
        info: Option<Bytes>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let good = FixedBitSet::with_capacity(manifest.piece_count() as usize);
        let state = Mutex::new(Inspection { told: good.clone(), good, next: Some(Instant::now()) });
        let inspector = Arc::new(Inspector { state, corrupt: AtomicU64::new(0) });
        Self { manifest, store, info, events, hashing: Arc::new(Semaphore::new(HASH_REQUESTS)), inspector }
    }

    /// Adds to our extension handshake what the engine does not know.
    pub(super) fn introduce(&self, handshake: &mut ExtensionHandshake, port: u16) {
        handshake.ids.metadata = ExtensionIds::OURS.metadata;
        handshake.metadata_bytes = self.info.as_ref().and_then(|info| u32::try_from(info.len()).ok());
        handshake.listen_port = Some(port);
        if let Some(hello) = &mut handshake.rack {
            hello.zstd = true;
        }
    }

    /// The answer to a request for metadata.
    pub(super) fn metadata(&self, asked: &MetadataMessage) -> Option<MetadataMessage> {
        let MetadataMessage::Request { piece } = *asked else { return None };
        let part = self.info.as_ref().and_then(|info| {
            let start = (piece as usize).checked_mul(METADATA_PIECE_BYTES as usize)?;
            let end = info.len().min(start.checked_add(METADATA_PIECE_BYTES as usize)?);
            let bytes = (start < end).then(|| info.slice(start..end))?;
            Some(MetadataMessage::Data { piece, total_bytes: u32::try_from(info.len()).ok()?, bytes })
        });
        Some(part.unwrap_or(MetadataMessage::Reject { piece }))
    }

    /// Works out the answer to a request for hashes.
    ///
    /// # Errors
    /// The refusal, when this peer asks for too many at once.
    pub(super) fn hashes(
        &self,
        peer: Peer,
        places: &HashPlaces,
        range: HashRange,
    ) -> Result<impl Future<Output = ()> + Send + 'static, Message> {
        let refusal = Message::HashReject(Box::new(range));
        let Ok(place) = Arc::clone(&places.0).try_acquire_owned() else { return Err(refusal) };
        let hashing = Arc::clone(&self.hashing);
        let (manifest, store, events) = (Arc::clone(&self.manifest), Arc::clone(&self.store), self.events.clone());
        Ok(async move {
            let turn = hashing.acquire_owned().await;
            let work = move || {
                manifest.hashes(&range, &mut |piece| {
                    let mut leaves = Vec::new();
                    store.each_stretch(piece, |stretch| leaves.extend(leaf_hashes(stretch))).ok()?;
                    Some(leaves)
                })
            };
            let hashes = spawn_blocking(work).await.ok().flatten();
            drop((turn, place));
            let answer = hashes.map_or(refusal, |hashes| Message::Hashes(Box::new(range), hashes));
            // The peer may be gone.
            let _ = events.send(Event::Answer(peer, answer)).await;
        })
    }

    /// This piece was verified by this process.
    pub(super) fn known_good(&self, piece: u32) {
        self.inspector.with(|state| state.good.insert(piece as usize));
    }

    /// Pieces that were found to differ from the image where we read them.
    pub(super) fn corrupt_on_disk(&self) -> u64 {
        self.inspector.corrupt.load(Ordering::Relaxed)
    }

    /// A part of a piece was served. Now and then the piece is read again, so
    /// that a disk or file that has changed is told by its own node.
    pub(super) fn served(&self, part: Block) -> Option<impl Future<Output = ()> + Send + 'static> {
        let piece = part.piece;
        let due = self.inspector.with(|state| {
            let due = !state.good.contains(piece as usize) && state.next.is_some_and(|next| next <= Instant::now());
            if due {
                state.next = None;
            }
            due
        });
        if !due {
            return None;
        }
        let (manifest, store, inspector) =
            (Arc::clone(&self.manifest), Arc::clone(&self.store), Arc::clone(&self.inspector));
        let (image, events) = (Arc::clone(&self.manifest), self.events.clone());
        Some(async move {
            let begun = Instant::now();
            let work = move || {
                let mut bytes = vec![0; manifest.piece_length(piece) as usize];
                store.read_blocking(piece, &mut bytes)?;
                Ok(manifest.verify(piece, bytes).is_ok())
            };
            let read: Result<bool, Error> = spawn_blocking(work).await.unwrap_or(Ok(true));
            let pause = begun.elapsed().saturating_mul(INSPECTION_SHARE).max(Duration::from_millis(1));
            let is_news = inspector.with(|state| {
                state.next = Some(Instant::now() + pause);
                state.good.set(piece as usize, matches!(read, Ok(true)));
                matches!(read, Ok(false)) && !state.told.put(piece as usize)
            });
            match read {
                Ok(true) => {}
                Ok(false) => {
                    inspector.corrupt.fetch_add(1, Ordering::Relaxed);
                }
                // The swarm may have ended.
                Err(error) => drop(events.send(Event::Unreadable(piece, error)).await),
            }
            if is_news {
                tracing::error!(
                    piece,
                    image = image.name(),
                    "what this node serves differs from the image: peers will refuse it; put the file or disk right"
                );
            }
        })
    }
}

impl Inspector {
    fn with<T>(&self, act: impl FnOnce(&mut Inspection) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use image::seal::seal_file;
    use image::{FileSource, no_progress};
    use swarm::Shape;

    const PIECE: u64 = 64 << 10;

    #[tokio::test]
    async fn who_asks_for_many_hashes_takes_nobody_elses_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, vec![7; 8 * PIECE as usize]).unwrap();
        let sealed = seal_file(&path, Some(PIECE), &mut no_progress).unwrap();
        let manifest = Arc::new(Manifest::from_sealed(&"hashes".parse().unwrap(), &sealed).unwrap());
        let source = Arc::new(FileSource::open(&path, Arc::clone(&manifest)).unwrap());
        let shape = Shape::new(manifest.size_bytes(), manifest.piece_size_bytes()).unwrap();
        let (events, mut answers) = mpsc::channel(16);
        let services = Services::new(Arc::clone(&manifest), Arc::new(Store::new(source, shape, 1 << 20)), None, events);
        let [range] = manifest.leaf_ranges(3).try_into().unwrap();
        let (greedy, modest) = (HashPlaces::default(), HashPlaces::default());
        let works: Vec<_> =
            (0..HASH_REQUESTS_OF_PEER).map(|_| services.hashes(Peer(1), &greedy, range).ok().unwrap()).collect();
        assert_eq!(services.hashes(Peer(1), &greedy, range).err(), Some(Message::HashReject(Box::new(range))));
        services.hashes(Peer(2), &modest, range).ok().unwrap().await;
        let Some(Event::Answer(Peer(2), Message::Hashes(of, hashes))) = answers.recv().await else { panic!() };
        assert_eq!((*of, hashes), (range, leaf_hashes(&[7; PIECE as usize])));
        for work in works {
            work.await;
            assert!(matches!(answers.recv().await, Some(Event::Answer(Peer(1), Message::Hashes(..)))));
        }
        assert!(services.hashes(Peer(1), &greedy, range).is_ok(), "answered requests are no longer open");
    }
}
