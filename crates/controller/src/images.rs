//! Images: the registry is the truth; what it holds is seeded, tracked, and
//! told to the keeper.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Buf, Bytes};
use fleet::deployment::ImageInfo;
use fleet::ids::{ImageName, Millis};
use fleet::layout::Layout;
use futures_util::{Stream, StreamExt};
use image::{FileSource, Format, Image, ImportOptions, Registry};
use swarm::tracker::{Tracker, TrackerPolicy};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use transport::bittorrent::{Listener, Seeder};
use transport::tracker::{TrackerDoors, TrackerServer, TrackerService};
use wire::metainfo::InfoHash;

use crate::captures::Captures;

/// Imports at the same time; each hashes with all cores.
const IMPORTS: usize = 2;
/// An upload that sends nothing for this long is given up.
const STALL: Duration = Duration::from_secs(60);
/// How long the rest of a refused upload is still read, so that its sender
/// gets to read why.
const DRAIN: Duration = Duration::from_secs(10);

/// Why an image was not imported, served or removed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The registry refuses or fails.
    #[error(transparent)]
    Registry(#[from] image::Error),
    /// The seeder refuses or fails.
    #[error(transparent)]
    Seeder(#[from] transport::Error),
    /// Too many imports at once.
    #[error("{IMPORTS} imports are under way already; try again when one has ended")]
    Busy,
    /// An image without a digest cannot be proved after it was booted.
    #[error("image `{0}` has no digest; import it again")]
    NoDigest(String),
    /// No capture of this name.
    #[error("there is no capture `{0}` under way; `rackswarm image list` shows images and captures")]
    NoCapture(String),
    /// Another sender has begun this capture anew.
    #[error("the capture `{0}` was begun anew by another sender; stop")]
    CaptureTaken(String),
    /// The capture is complete and being published.
    #[error("all of `{0}` has arrived and becomes an image now; wait for it, then remove it or choose another name")]
    CaptureEnds(String),
    /// A defect of this program.
    #[error("the work on an image ended unexpectedly; please report this")]
    Defect,
}

/// The registry, what is served of it, and who is in its swarms.
pub struct Images {
    registry: Registry,
    captures: Captures,
    seeder: Seeder,
    tracker: TrackerServer,
    served: RwLock<BTreeMap<ImageName, Served>>,
    imports: Arc<Semaphore>,
    announce_url: String,
    address: SocketAddr,
    stop: CancellationToken,
}

/// An image that is served.
struct Served {
    info_hash: InfoHash,
    manifest: Bytes,
    torrent: Bytes,
}

impl Images {
    /// Opens the registry and serves all that is in it. `advertise` is where
    /// nodes find the seeder when `listener` listens on all addresses; `doors`
    /// are the tracker's beside our HTTP, and its memory.
    ///
    /// # Errors
    /// When the registry cannot be opened, or a door. A damaged image is left
    /// out, with a warning.
    pub async fn open(
        folder: PathBuf,
        listener: Listener,
        doors: TrackerDoors,
        advertise: SocketAddrV4,
        stop: CancellationToken,
    ) -> Result<(Self, Vec<ImageInfo>), ImageError> {
        let ending = stop.clone();
        let (registry, captures, entries) = blocking(move || {
            let registry = Registry::open(folder)?;
            let captures = Captures::open(registry.clone(), ending)?;
            let entries = registry.list()?;
            Ok((registry, captures, entries))
        })
        .await?;
        let port = listener.address().port();
        let address = match listener.address().ip() {
            ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(*advertise.ip()), port),
            ip => SocketAddr::new(ip, port),
        };
        let tracker = Tracker::new(TrackerPolicy::default(), rand::random());
        let images = Self {
            registry,
            captures,
            seeder: Seeder::new(listener),
            tracker: TrackerServer::bind(doors, Arc::new(Mutex::new(tracker))).await?,
            served: RwLock::default(),
            imports: Arc::new(Semaphore::new(IMPORTS)),
            announce_url: format!("http://{advertise}/announce"),
            address,
            stop,
        };
        let mut known = Vec::new();
        for entry in entries {
            let serving = async { images.serve(entry.image?).await };
            match serving.await {
                Ok(info) => known.push(info),
                Err(error) => tracing::warn!(image = %entry.name, %error, "this image is not served"),
            }
        }
        Ok((images, known))
    }

    /// Takes an image in from a stream and serves it.
    ///
    /// # Errors
    /// Nothing is left behind by any of them. The rest of the stream is still
    /// read for a moment, in the background.
    pub async fn import(
        &self,
        options: ImportOptions,
        length_bytes: Option<u64>,
        body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    ) -> Result<ImageInfo, ImageError> {
        let (chunks, reader) = mpsc::channel(16);
        tokio::spawn(pump(body, chunks));
        let _slot = Arc::clone(&self.imports).try_acquire_owned().map_err(|_| ImageError::Busy)?;
        let (registry, stop) = (self.registry.clone(), self.stop.clone());
        let image = blocking(move || {
            let mut upload = Upload { chunks: reader, present: Bytes::new() };
            registry.import_stream(&mut upload, length_bytes, &options, &mut |_, _| {
                if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })
        .await?;
        self.serve(image).await
    }

    /// Ceases to serve an image and removes it from the registry.
    ///
    /// # Errors
    /// When it cannot be removed; it is served again then.
    pub async fn remove(&self, name: &ImageName) -> Result<(), ImageError> {
        let served = self.served.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(served) = served {
            self.tracker().tracker().retire(&served.info_hash);
            if let Err(error) = self.seeder.retract(served.info_hash).await {
                tracing::warn!(image = %name, %error, "the image was not served to the end");
            }
        }
        let (registry, wanted) = (self.registry.clone(), name.clone());
        let removed = blocking(move || registry.remove(&wanted)).await;
        if removed.is_err() {
            let (registry, wanted) = (self.registry.clone(), name.clone());
            if let Ok(image) = blocking(move || registry.get(&wanted)).await {
                self.serve(image).await?;
            }
        }
        removed
    }

    /// The manifest of an image, as JSON.
    #[must_use]
    pub fn manifest(&self, name: &ImageName) -> Option<Bytes> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).get(name).map(|served| served.manifest.clone())
    }

    /// The .torrent with this info-hash, in hexadecimal, for ordinary clients.
    #[must_use]
    pub fn torrent(&self, info_hash: &str) -> Option<Bytes> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.values().find(|served| served.info_hash.to_string() == info_hash).map(|served| served.torrent.clone())
    }

    /// Payload that the seeder has sent since the start, in bytes, by image.
    #[must_use]
    pub fn seeded_bytes(&self) -> BTreeMap<String, u64> {
        let sent: BTreeMap<InfoHash, u64> =
            self.seeder.progress().into_iter().map(|(hash, progress)| (hash, progress.bytes_up)).collect();
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let of = |served: &Served| sent.get(&served.info_hash).copied().unwrap_or(0);
        served.iter().map(|(name, served)| (name.to_string(), of(served))).collect()
    }

    /// Closes the tracker and writes down what it remembers.
    pub async fn close(&self) {
        self.tracker.close().await;
    }

    /// Answers announces and scrapes.
    #[must_use]
    pub fn tracker(&self) -> &TrackerService {
        self.tracker.service()
    }

    /// Disks on their way into the registry.
    #[must_use]
    pub fn captures(&self) -> &Captures {
        &self.captures
    }

    /// Serves an image of the registry.
    ///
    /// # Errors
    /// When its files cannot be read, or the seeder fails.
    pub async fn serve(&self, image: Image) -> Result<ImageInfo, ImageError> {
        let announce = vec![self.announce_url.clone()];
        let (image, source, torrent, info) = blocking(move || {
            let source = FileSource::open(&image.disk_path(), Arc::clone(&image.manifest))?;
            let torrent = image.torrent(&announce)?;
            let info = info(&image, image.layout()?);
            Ok((image, source, torrent, info))
        })
        .await?;
        let info = info.ok_or_else(|| ImageError::NoDigest(image.manifest.name().to_owned()))?;
        // The seeder is in every announce answer; it need not announce itself.
        let published = self.seeder.publish(Arc::clone(&image.manifest), Arc::new(source), Vec::new())?;
        let named = [image.manifest.infohash_v1(), image.manifest.infohash_v2().map(|hash| hash.truncated())];
        let anchored = {
            let mut tracker = self.tracker().tracker();
            tracker.register(published.info_hash);
            named.into_iter().flatten().for_each(|other| tracker.alias(other, published.info_hash));
            tracker.anchor(published.info_hash, self.address, published.peer_id)
        };
        debug_assert_eq!(anchored, Ok(()), "it was registered just now");
        let served = Served {
            info_hash: published.info_hash,
            manifest: image.manifest.to_json().into(),
            torrent: torrent.into(),
        };
        self.served.write().unwrap_or_else(PoisonError::into_inner).insert(info.name.clone(), served);
        Ok(info)
    }
}

/// What the fleet knows of an image; nothing without a digest.
fn info(image: &Image, layout: Option<Layout>) -> Option<ImageInfo> {
    let manifest = &image.manifest;
    let sealed = std::fs::metadata(image.disk_path()).and_then(|m| m.modified()).unwrap_or(UNIX_EPOCH);
    let milliseconds = sealed.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Some(ImageInfo {
        name: manifest.name().parse().ok()?,
        digest: manifest.digest()?,
        size_bytes: manifest.size_bytes(),
        used_bytes: manifest.payload_bytes(),
        piece_size: manifest.piece_size_bytes(),
        infohash: manifest.infohash()?.to_string(),
        sealed_at: Millis(u64::try_from(milliseconds).unwrap_or(u64::MAX)),
        layout,
    })
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, image::Error> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Defect)?.map_err(ImageError::Registry)
}

/// Carries an upload to the thread that writes it; when that thread has given
/// up, reads on for a moment.
async fn pump(mut body: impl Stream<Item = io::Result<Bytes>> + Unpin, chunks: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let next = tokio::time::timeout(STALL, body.next()).await.unwrap_or_else(|_| {
            let why = format!("nothing arrived for {} s", STALL.as_secs());
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
        });
        let Some(next) = next else { return };
        let broken = next.is_err();
        if chunks.send(next).await.is_err() {
            let rest = async { while let Some(Ok(_)) = body.next().await {} };
            // Whether it ends or not, nobody wants the rest.
            let _ = tokio::time::timeout(DRAIN, rest).await;
            return;
        }
        if broken {
            return;
        }
    }
}

/// An upload as a blocking reader.
struct Upload {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    present: Bytes,
}

impl Read for Upload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.present = chunk?,
                None => return Ok(0),
            }
        }
        let count = self.present.len().min(buffer.len());
        self.present.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The format that a request names.
///
/// # Errors
/// The sentence names the formats there are.
pub fn format(text: Option<&str>) -> Result<Option<Format>, String> {
    text.map(str::parse).transpose()
}
