//! How many bytes a second one seeder gives on loopback, everything in memory
//! (row m of issue 3), and what each side pays for them. The clients live in the
//! same program on threads of their own: either they only drain their sockets,
//! in ranges of a piece or as ordinary clients in
//! blocks of 16 KiB, or they are real downloads into memory.
//! What the kernel does for the receiver of loopback's packets is mostly done,
//! and counted, where they are sent.
//!
//! `cargo run --release -p rackswarm-transport --example egress -- [drain|download|blocks] [CLIENTS] [SECONDS]`
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use image::seal::seal_file;
use image::{DiskSink, FileSource, Manifest, no_progress};
use rackswarm_transport::bittorrent::{Download, FetchJob, Limits, Listener, Seeder};
use rackswarm_transport::usage;
use swarm::Policy;
use swarm::policy::ChokerKind;
use tokio::runtime::{Builder, Runtime};
use wire::peer::{
    BLOCK_BYTES, Block, ExtensionHandshake, ExtensionIds, HANDSHAKE_BYTES, Handshake, Message, PeerId, RackHello,
};

const IMAGE_BYTES: u64 = 512 << 20;
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes that a draining client has asked for and not yet got.
const AHEAD_BYTES: u64 = 4 << 20;
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_else(|| "drain".to_owned());
    let clients: usize = arguments.next().map_or(2, |text| text.parse().unwrap());
    let seconds: u64 = arguments.next().map_or(5, |text| text.parse().unwrap());
    let folder = Path::new("/dev/shm").join(format!("rackswarm-egress-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let outcome = std::panic::catch_unwind(|| measure(&kind, clients, seconds, &folder));
    fs::remove_dir_all(&folder).unwrap();
    assert!(outcome.is_ok(), "the measurement failed");
}

fn measure(kind: &str, clients: usize, seconds: u64, folder: &Path) {
    let (image, manifest) = image_of_noise(folder);
    let (seeding, fetching) = (runtime(SEED), runtime(FETCH));
    let (seeder, address) = seeding.block_on(async {
        let policy = Policy { choker: ChokerKind::Cooperative, ..Policy::default() };
        let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
        let seeder = Seeder::new(listener).with_policy(policy);
        let source = Arc::new(FileSource::open(&image, Arc::clone(&manifest)).unwrap());
        let published = seeder.publish(Arc::clone(&manifest), source, vec![]).unwrap();
        (seeder, published.address)
    });
    let length = Duration::from_secs(seconds);
    let given = match kind {
        "download" => fetching.block_on(download(&manifest, address, clients, length, folder)),
        "drain" => drain(&manifest, address, clients, length, PIECE_BYTES as u32),
        "blocks" => drain(&manifest, address, clients, length, BLOCK_BYTES),
        other => panic!("`{other}` is none of drain, download, blocks"),
    };
    let dropped = seeding.block_on(seeder.dropped(manifest.infohash().unwrap()));
    assert!(dropped.is_empty(), "the seeder dropped clients: {dropped:?}");
    let gigabytes = given.bytes as f64 / 1e9;
    println!(
        "{kind}, {clients} clients: {:.2} GB/s; CPU-seconds per GB: seeder {:.2}, clients {:.2}; peak memory {} MiB",
        gigabytes / given.took.as_secs_f64(),
        given.seed_cpu / gigabytes,
        given.fetch_cpu / gigabytes,
        usage::peak_memory_bytes().unwrap_or(0) >> 20,
    );
}

/// Names of the threads of both sides.
const SEED: &str = "seed";
const FETCH: &str = "fetch";

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().thread_name(name).enable_all().build().unwrap()
}

/// What the seeder gave, in what time and at what price.
#[derive(Default)]
struct Given {
    bytes: u64,
    took: Duration,
    seed_cpu: f64,
    fetch_cpu: f64,
}

impl Given {
    /// Adds what happened since then.
    fn add(&mut self, begun: Instant, cpu: (f64, f64), bytes: u64) {
        self.bytes += bytes;
        self.took += begun.elapsed();
        let now = cpu_of_both();
        self.seed_cpu += now.0 - cpu.0;
        self.fetch_cpu += now.1 - cpu.1;
    }
}

/// CPU-seconds of the seeder's and of the clients' threads.
fn cpu_of_both() -> (f64, f64) {
    let of = |name: &str| -> f64 {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let nanoseconds = tasks.filter_map(|task| {
            let folder = task.unwrap().path();
            let called = fs::read_to_string(folder.join("comm")).ok()?;
            let schedule = fs::read_to_string(folder.join("schedstat")).ok()?;
            (called.trim() == name).then(|| schedule.split(' ').next()?.parse::<f64>().ok()).flatten()
        });
        nanoseconds.sum::<f64>() / 1e9
    };
    (of(SEED), of(FETCH))
}

fn image_of_noise(folder: &Path) -> (PathBuf, Arc<Manifest>) {
    let path = folder.join("image");
    let file = File::create(&path).unwrap();
    let mut state = 1_u64;
    let mut piece = vec![0_u8; PIECE_BYTES as usize];
    for offset in (0..IMAGE_BYTES).step_by(PIECE_BYTES as usize) {
        for word in piece.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        file.write_all_at(&piece, offset).unwrap();
    }
    let sealed = seal_file(&path, Some(PIECE_BYTES), &mut no_progress).unwrap();
    let manifest = Manifest::from_sealed(&"egress".parse().unwrap(), &sealed).unwrap();
    (path, Arc::new(manifest))
}

/// Downloads again and again until the time is over.
async fn download(
    manifest: &Arc<Manifest>,
    seeder: SocketAddr,
    clients: usize,
    length: Duration,
    folder: &Path,
) -> Given {
    let policy = Policy { choker: ChokerKind::Cooperative, ..Policy::default() };
    let mut given = Given::default();
    while given.took < length {
        let disks: Vec<PathBuf> = (0..clients).map(|client| folder.join(format!("disk{client}"))).collect();
        let (cpu, begun) = (cpu_of_both(), Instant::now());
        let mut downloads = Vec::new();
        for disk in &disks {
            let disk = DiskSink::create(disk, Arc::clone(manifest)).unwrap();
            let job = FetchJob {
                peers: vec![seeder],
                policy: policy.clone(),
                ..FetchJob::new(Arc::clone(manifest), Arc::new(disk))
            };
            let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
            downloads.push(Download::start(&listener, job).unwrap());
        }
        for download in &mut downloads {
            tokio::time::timeout(Duration::from_secs(60), download.completed()).await.unwrap().unwrap();
        }
        given.add(begun, cpu, IMAGE_BYTES * clients as u64);
        for download in downloads {
            download.stop().await.unwrap();
        }
        disks.iter().for_each(|disk| fs::remove_file(disk).unwrap());
    }
    given
}

/// What the clients got in this time.
fn drain(manifest: &Manifest, seeder: SocketAddr, clients: usize, length: Duration, range_bytes: u32) -> Given {
    let (got, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut given = Given::default();
    std::thread::scope(|scope| {
        let (got, over) = (&got, &over);
        for client in 0..clients {
            let drain = move || drain_one(manifest, seeder, client, range_bytes, got, over);
            std::thread::Builder::new().name(FETCH.to_owned()).spawn_scoped(scope, drain).unwrap();
        }
        let (cpu, begun) = (cpu_of_both(), Instant::now());
        std::thread::sleep(length);
        given.add(begun, cpu, got.load(Ordering::Relaxed));
        over.store(true, Ordering::Relaxed);
    });
    given
}

fn drain_one(
    manifest: &Manifest,
    seeder: SocketAddr,
    client: usize,
    range_bytes: u32,
    got: &AtomicU64,
    over: &AtomicBool,
) {
    let mut stream = TcpStream::connect(seeder).unwrap();
    stream.set_nodelay(true).unwrap();
    let id = PeerId(*format!("-RS0100-drain{client:07}").as_bytes().first_chunk().unwrap());
    stream.write_all(&Handshake::new(manifest.infohash().unwrap(), id).encode()).unwrap();
    stream.read_exact(&mut [0; HANDSHAKE_BYTES]).unwrap();
    // Without it the seeder takes us for an ordinary client.
    let hello = RackHello { rack: None, max_request_bytes: PIECE_BYTES as u32, offers: false, zstd: false };
    let ours = ExtensionHandshake {
        ids: ExtensionIds::OURS,
        rack: (range_bytes > BLOCK_BYTES).then_some(hello),
        ..ExtensionHandshake::default()
    };
    say(&mut stream, &[ours.into(), Message::HaveNone, Message::Interested]);
    // Longer than any choke lasts; the seeder serves everybody.
    std::thread::sleep(Duration::from_millis(200));
    let ranges_of_piece = PIECE_BYTES / u64::from(range_bytes);
    let ranges = u64::from(manifest.piece_count()) * ranges_of_piece;
    let (mut asked, mut received) = (0_u64, 0_u64);
    let mut buffer = vec![0; 1 << 20];
    while !over.load(Ordering::Relaxed) {
        let mut requests = Vec::new();
        while asked * u64::from(range_bytes) < received + AHEAD_BYTES {
            let range = (asked + client as u64 * 37 * ranges_of_piece) % ranges;
            let offset = (range % ranges_of_piece) as u32 * range_bytes;
            let piece = (range / ranges_of_piece) as u32;
            requests.push(Message::Request(Block { piece, offset, length: range_bytes }));
            asked += 1;
        }
        say(&mut stream, &requests);
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            // Why is told by the seeder.
            return;
        }
        received += count as u64;
        got.fetch_add(count as u64, Ordering::Relaxed);
    }
}

fn say(stream: &mut TcpStream, messages: &[Message]) {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&ExtensionIds::OURS, &mut bytes);
    }
    if !bytes.is_empty() {
        stream.write_all(&bytes).unwrap();
    }
}
