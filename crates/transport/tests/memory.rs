//! The memory of a node, as the system counts it: a process that only fetches.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use image::seal::seal_file;
use image::{DiskSink, FileSource, Manifest, no_progress};
use rackswarm_transport::bittorrent::{Download, FetchJob, Limits, Listener, MIN_MEMORY_BYTES, Seeder};
use rackswarm_transport::usage;

const IMAGE_BYTES: u64 = 256 << 20;
const PIECE_BYTES: u64 = 1 << 20;
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A seeder and a node in one process, so twice the needs of either.
#[test]
fn the_budget_is_kept_as_the_system_sees_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = File::create(&path).unwrap();
    let mut state = 7_u64;
    let mut piece = vec![0_u8; PIECE_BYTES as usize];
    for offset in (0..IMAGE_BYTES).step_by(PIECE_BYTES as usize) {
        for word in piece.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all_at(&piece, offset).unwrap();
    }
    drop(piece);
    let sealed = seal_file(&path, Some(PIECE_BYTES), &mut no_progress).unwrap();
    let manifest = Arc::new(Manifest::from_sealed(&"memory".parse().unwrap(), &sealed).unwrap());
    let before = usage::anonymous_memory_bytes().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let most = runtime.block_on(async {
        let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
        let seeder = Seeder::new(listener).with_memory(MIN_MEMORY_BYTES);
        let source = Arc::new(FileSource::open(&path, Arc::clone(&manifest)).unwrap());
        let address = seeder.publish(Arc::clone(&manifest), source, vec![]).unwrap().address;
        let disk = DiskSink::create(&folder.path().join("disk"), Arc::clone(&manifest)).unwrap();
        let job = FetchJob {
            peers: vec![address],
            memory_bytes: MIN_MEMORY_BYTES,
            ..FetchJob::new(Arc::clone(&manifest), Arc::new(disk))
        };
        let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
        let mut download = Download::start(&listener, job).unwrap();
        let mut most = 0;
        let watching = async {
            loop {
                most = most.max(usage::anonymous_memory_bytes().unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            done = tokio::time::timeout(Duration::from_secs(90), download.completed()) => done.unwrap().unwrap(),
            () = watching => {}
        }
        let progress = *download.progress().borrow();
        assert!(progress.memory_bytes <= MIN_MEMORY_BYTES, "{} bytes by its own count", progress.memory_bytes);
        download.stop().await.unwrap();
        seeder.close().await;
        most
    });
    let grown = most.saturating_sub(before);
    // Both budgets, and stacks, buffers of sockets and the allocator's own.
    assert!(grown <= 3 * MIN_MEMORY_BYTES, "{} MiB more than before", grown >> 20);
    assert!(fs::read(&path).unwrap() == fs::read(folder.path().join("disk")).unwrap());
}
