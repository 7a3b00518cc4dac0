//! Measures one seeder and N downloads in one process on loopback: disks are
//! files in a temporary folder, hashing and writing included.
//!
//! `cargo run -p rackswarm-transport --example egress -- [MIB] [NODES] [MEMORY_MIB]`
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use image::seal::seal_file;
use image::{DiskSink, FileSource, Manifest, no_progress};
use rackswarm_transport::bittorrent::{Download, FetchJob, Limits, Listener, Seeder};

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<usize>().expect("a number"));
    let (mib, nodes) = (numbers.next().unwrap_or(512), numbers.next().unwrap_or(1));
    let memory_bytes = (numbers.next().unwrap_or(64) as u64) << 20;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let mut state = 1u64;
    let mut content = vec![0u8; mib << 20];
    for word in content.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
    std::fs::write(&image, &content).unwrap();
    drop(content);
    let begin = Instant::now();
    let sealed = seal_file(&image, None, &mut no_progress).unwrap();
    println!("sealed {mib} MiB in {:.2} s", begin.elapsed().as_secs_f64());
    let manifest = Arc::new(Manifest::from_sealed(&"image".parse().unwrap(), &sealed).unwrap());

    let seeder = Seeder::new(Listener::bind(ANYWHERE, Limits::default()).await.unwrap());
    let source = Arc::new(FileSource::open(&image, Arc::clone(&manifest)).unwrap());
    let published = seeder.publish(Arc::clone(&manifest), source, vec![]).unwrap();
    let mut listeners = Vec::new();
    for _ in 0..nodes {
        listeners.push(Listener::bind(ANYWHERE, Limits::default()).await.unwrap());
    }
    let everybody: Vec<SocketAddr> = listeners.iter().map(Listener::address).chain([published.address]).collect();
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let mut downloads = Vec::new();
    for (node, listener) in listeners.iter().enumerate() {
        let disk = DiskSink::create(&folder.path().join(format!("disk{node}")), Arc::clone(&manifest)).unwrap();
        disk.prepare(&mut no_progress).unwrap();
        let job =
            FetchJob { peers: everybody.clone(), memory_bytes, ..FetchJob::new(Arc::clone(&manifest), Arc::new(disk)) };
        downloads.push(Download::start(listener, job).unwrap());
    }
    for download in &mut downloads {
        download.completed().await.unwrap();
    }
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let sent = seeder.retract(published.info_hash).await.unwrap().unwrap().total().sent as f64;
    let moved = (mib << 20) as f64 * nodes as f64;
    println!("{nodes} nodes complete in {seconds:.2} s: {:.0} MB/s received by all", moved / seconds / 1e6);
    println!("seeder sent {:.2} images, {:.0} MB/s", sent / (mib << 20) as f64, sent / seconds / 1e6);
    println!("{:.2} CPU seconds for each GB received, both sides, hashing and writing included", cpu / moved * 1e9);
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
