//! A bench for swarms on loopback: an image, disks, a tracker.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub)]

use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use image::metainfo::{CreateOptions, Version};
use image::seal::seal_file;
use image::{DiskSink, FileSource, Manifest, PieceSet, PieceSink, PieceSource, VerifiedPiece, no_progress};
use rackswarm_transport::bittorrent::{Download, Dropped, FetchJob, Limits, Listener, Seeder, Storage};
use swarm::tracker::{Tracker, TrackerPolicy};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::announce::{AnnounceRequest, Answer};
use wire::metainfo::Metainfo;

/// What anything here may take on a busy machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Loopback, any port.
pub const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Waits for something with a deadline.
pub async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Waits until `look` finds something.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, looking).await
}

/// Waits until the download has dropped such a peer.
pub async fn named(download: &Download, wanted: impl Fn(&Dropped) -> bool) -> Dropped {
    until("the liar is named", async || download.dropped().await.into_iter().find(&wanted)).await
}

/// An image in a folder of its own.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub content: Vec<u8>,
    pub manifest: Arc<Manifest>,
    pub metainfo: Arc<Metainfo>,
    pub image: PathBuf,
}

impl Bench {
    /// Noise with a tenth of zeros in the middle, in pieces of 256 KiB.
    pub fn new(bytes: usize) -> Self {
        Self::of(bytes, Version::Hybrid)
    }

    /// As [`new`](Self::new), of a torrent that every ordinary client reads.
    /// (aria2 1.37 takes hybrid torrents by a wrong info-hash.)
    pub fn v1(bytes: usize) -> Self {
        Self::of(bytes, Version::V1)
    }

    pub fn of(bytes: usize, version: Version) -> Self {
        let mut state = 0x9e37_79b9_u32;
        let mut content = vec![0u8; bytes];
        for word in content.chunks_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = state.to_le_bytes();
            word.copy_from_slice(&noise[..word.len()]);
        }
        content[bytes / 2..bytes / 2 + bytes / 10].fill(0);
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("golden");
        fs::write(&image, &content).unwrap();
        let options =
            CreateOptions { version, piece_length: Some(256 << 10), private: true, ..CreateOptions::default() };
        let metainfo = image::metainfo::create(&image, &options, &mut no_progress).unwrap();
        let manifest = match version {
            Version::Hybrid => {
                let sealed = seal_file(&image, Some(256 << 10), &mut no_progress).unwrap();
                Manifest::from_sealed(&"golden".parse().unwrap(), &sealed).unwrap()
            }
            _ => Manifest::from_metainfo(&metainfo).unwrap(),
        };
        assert_eq!(Some(metainfo.info_hash()), manifest.infohash());
        Self { folder, content, manifest: Arc::new(manifest), metainfo: Arc::new(metainfo), image }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The image with a wrong byte in every piece.
    pub fn altered(&self) -> PathBuf {
        let path = self.path("altered");
        let mut content = self.content.clone();
        for piece in 0..self.manifest.piece_count() {
            content[self.manifest.piece_offset(piece) as usize + 70_000] ^= 0x55;
        }
        fs::write(&path, content).unwrap();
        path
    }

    /// The torrent as a file, for ordinary clients.
    pub fn torrent(&self, trackers: Vec<String>) -> PathBuf {
        let metainfo = Metainfo::clone(&self.metainfo).with_trackers(trackers).unwrap();
        let path = self.path("golden.torrent");
        fs::write(&path, metainfo.encode().unwrap()).unwrap();
        path
    }

    /// A used disk, ready for the image.
    pub fn disk(&self, name: &str) -> Arc<DiskSink> {
        let path = self.path(name);
        if !path.exists() {
            fs::write(&path, vec![0xff; self.content.len() + (1 << 20)]).unwrap();
        }
        let disk = DiskSink::open(&path, Arc::clone(&self.manifest)).unwrap();
        disk.scan(&mut no_progress).unwrap();
        disk.prepare(&mut no_progress).unwrap();
        Arc::new(disk)
    }

    pub fn job<S: Storage + 'static>(&self, disk: &Arc<S>) -> FetchJob {
        FetchJob::new(Arc::clone(&self.manifest), Arc::clone(disk) as _)
    }

    pub fn source(&self, path: &Path) -> Arc<FileSource> {
        Arc::new(FileSource::open(path, Arc::clone(&self.manifest)).unwrap())
    }

    /// A seeder of the image in this file, announcing to these trackers.
    pub async fn seeder(&self, path: &Path, trackers: Vec<String>) -> (Seeder, SocketAddr) {
        let seeder = Seeder::new(Listener::bind(ANYWHERE, Limits::default()).await.unwrap());
        let published = seeder.publish(Arc::clone(&self.manifest), self.source(path), trackers).unwrap();
        (seeder, published.address)
    }

    /// The disk holds the image, and nothing else was touched.
    pub fn assert_installed(&self, name: &str) {
        let disk = fs::read(self.path(name)).unwrap();
        assert!(disk[..self.content.len()] == self.content[..], "{name} differs from the image");
    }
}

/// Starts a download on a listener of its own.
pub async fn start(job: FetchJob) -> Download {
    Download::start(&Listener::bind(ANYWHERE, Limits::default()).await.unwrap(), job).unwrap()
}

/// A disk that takes some pieces, then lets writers wait until it is opened.
pub struct Gate {
    inner: Arc<DiskSink>,
    left: Mutex<u32>,
    opened: Condvar,
}

impl Gate {
    /// Takes so many pieces at once.
    pub fn new(inner: Arc<DiskSink>, pieces: u32) -> Arc<Self> {
        Arc::new(Self { inner, left: Mutex::new(pieces), opened: Condvar::new() })
    }

    /// Lets all writers through.
    pub fn open(&self) {
        *self.left.lock().unwrap() = u32::MAX;
        self.opened.notify_all();
    }
}

impl PieceSink for Gate {
    fn missing(&self) -> PieceSet {
        self.inner.missing()
    }

    fn put(&self, piece: &VerifiedPiece) -> Result<(), image::Error> {
        let mut left = self.opened.wait_while(self.left.lock().unwrap(), |left| *left == 0).unwrap();
        *left -= 1;
        drop(left);
        self.inner.put(piece)
    }
}

impl PieceSource for Gate {
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), image::Error> {
        self.inner.read(index, begin, into)
    }
}

/// An HTTP tracker of a few lines around the product's own.
pub struct TestTracker {
    pub url: String,
    pub heard: Arc<Mutex<Vec<AnnounceRequest>>>,
    stop: Option<DropGuard>,
}

impl TestTracker {
    pub async fn start(bench: &Bench) -> Self {
        let policy = TrackerPolicy { interval: Duration::from_secs(2), ..TrackerPolicy::default() };
        let mut tracker = Tracker::new(policy, 1);
        tracker.register(bench.manifest.infohash().unwrap());
        let tracker = Arc::new(Mutex::new(tracker));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let socket = TcpListener::bind(ANYWHERE).await.unwrap();
        let url = format!("http://{}/announce", socket.local_addr().unwrap());
        let (begin, kept) = (Instant::now(), Arc::clone(&heard));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((stream, from)) = socket.accept().await {
                tokio::spawn(answer(stream, from, begin, Arc::clone(&tracker), Arc::clone(&kept)));
            }
        }));
        Self { url, heard, stop: Some(stop.drop_guard()) }
    }

    pub fn urls(&self) -> Vec<String> {
        vec![self.url.clone()]
    }

    pub fn kill(&mut self) {
        self.stop = None;
    }
}

async fn answer(
    stream: TcpStream,
    from: SocketAddr,
    begin: Instant,
    tracker: Arc<Mutex<Tracker>>,
    heard: Arc<Mutex<Vec<AnnounceRequest>>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut header = String::from("x");
    while !header.trim().is_empty() {
        header.clear();
        stream.read_line(&mut header).await?;
    }
    let query = request.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
    let request = AnnounceRequest::decode_query(query).unwrap();
    let peers = tracker.lock().unwrap().announce(begin.elapsed(), &request, from.ip());
    let answer = peers.map_or_else(|refusal| Answer::Failure(refusal.to_string()), Answer::Peers);
    let body = answer.encode(request.compact).unwrap();
    heard.lock().unwrap().push(request);
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}
