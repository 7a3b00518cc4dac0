//! Swarms of our own nodes on loopback, with faults.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{ANYWHERE, Bench, Gate, TestTracker, named, start, until, within};
use image::{PieceSet, PieceSink, PieceSource, VerifiedPiece};
use rackswarm_transport::Error;
use rackswarm_transport::bittorrent::{Cause, Download, FetchJob, Limits, Listener, MIN_MEMORY_BYTES, Seeder};
use swarm::policy::ChokerKind;
use swarm::{Policy, Why};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::announce::Event;
use wire::metainfo::InfoHash;
use wire::peer::{Handshake, PeerId};

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_get_the_image_of_one_seeder_and_of_each_other() {
    let bench = Bench::new(32 << 20);
    let tracker = TestTracker::start(&bench).await;
    let (seeder, _) = bench.seeder(&bench.image, tracker.urls()).await;
    let mut downloads = Vec::new();
    for node in 0..8 {
        let disk = bench.disk(&format!("disk{node}"));
        let job = FetchJob { trackers: tracker.urls(), seed: node, ..bench.job(&disk) };
        downloads.push((start(job).await, disk));
    }
    let (mut received, mut given) = (0, 0);
    for (download, _) in &mut downloads {
        within("a node completes", download.completed()).await.unwrap();
        let progress = *download.progress().borrow();
        assert_eq!(progress.bytes_done, bench.manifest.payload_bytes());
        assert_eq!(progress.bytes_to_move, progress.bytes_done);
        assert!(progress.complete && progress.corrupt_pieces == 0);
        assert_eq!(progress.pieces_done, 128);
    }
    for (node, (download, disk)) in downloads.into_iter().enumerate() {
        let total = download.stop().await.unwrap().total();
        received += total.received;
        given += total.sent;
        disk.finish(1).unwrap();
        bench.assert_installed(&format!("disk{node}"));
    }
    let info_hash = bench.manifest.infohash().unwrap();
    let egress = seeder.retract(info_hash).await.unwrap().unwrap().total().sent;
    assert_eq!(received, 8 * bench.manifest.payload_bytes(), "zero pieces do not travel");
    assert!(given > 0, "nodes serve each other");
    let images = egress as f64 / bench.manifest.payload_bytes() as f64;
    assert!(images < 6.0, "the seeder sent {images:.2} images to 8 nodes");
    seeder.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tit_for_tat_completes_too() {
    let bench = Bench::new(8 << 20);
    let policy = Policy { choker: ChokerKind::TitForTat, ..Policy::default() };
    let tracker = TestTracker::start(&bench).await;
    let seeder = Seeder::new(Listener::bind(ANYWHERE, Limits::default()).await.unwrap()).with_policy(policy.clone());
    seeder.publish(Arc::clone(&bench.manifest), bench.source(&bench.image), tracker.urls()).unwrap();
    let mut downloads = Vec::new();
    for node in 0..3 {
        let disk = bench.disk(&format!("disk{node}"));
        let job = FetchJob { trackers: tracker.urls(), policy: policy.clone(), ..bench.job(&disk) };
        downloads.push(start(job).await);
    }
    for (node, download) in downloads.iter_mut().enumerate() {
        within("a node completes", download.completed()).await.unwrap();
        bench.assert_installed(&format!("disk{node}"));
    }
    seeder.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tracker_hears_started_completed_and_stopped() {
    let bench = Bench::new(2 << 20);
    let tracker = TestTracker::start(&bench).await;
    let (_seeder, _) = bench.seeder(&bench.image, tracker.urls()).await;
    let disk = bench.disk("disk");
    let mut download = start(FetchJob { trackers: tracker.urls(), ..bench.job(&disk) }).await;
    within("it completes", download.completed()).await.unwrap();
    let completed = async || heard(&tracker).contains(&(Some(Event::Completed), 0)).then_some(());
    until("the tracker hears of it", completed).await;
    download.stop().await.unwrap();
    let all = heard(&tracker);
    assert!(all.contains(&(Some(Event::Started), bench.manifest.payload_bytes())), "{all:?}");
    assert!(all.contains(&(Some(Event::Started), 0)), "the seeder: {all:?}");
    assert_eq!(all.last(), Some(&(Some(Event::Stopped), 0)));
}

fn heard(tracker: &TestTracker) -> Vec<(Option<Event>, u64)> {
    tracker.heard.lock().unwrap().iter().map(|request| (request.event, request.left)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_tracker_is_passed_over_and_a_dying_one_is_survived() {
    let bench = Bench::new(8 << 20);
    let mut tracker = TestTracker::start(&bench).await;
    let (seeder, _) = bench.seeder(&bench.image, tracker.urls()).await;
    let dead = "http://127.0.0.1:9/announce".to_owned();
    let gate = Gate::new(bench.disk("disk"), 5);
    let mut download = start(FetchJob { trackers: vec![dead, tracker.url.clone()], ..bench.job(&gate) }).await;
    let mut progress = download.progress();
    within("a peer is found", progress.wait_for(|now| now.pieces_done > 0 && now.peers > 0)).await.unwrap();
    tracker.kill();
    gate.open();
    within("it completes", download.completed()).await.unwrap();
    download.stop().await.unwrap();
    bench.assert_installed("disk");
    seeder.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_seed_never_reaches_a_disk_and_is_named() {
    let bench = Bench::new(8 << 20);
    let (_seeder, address) = bench.seeder(&bench.altered(), vec![]).await;
    let disk = bench.disk("disk");
    let download = start(FetchJob { peers: vec![address], ..bench.job(&disk) }).await;
    let dropped = named(&download, |dropped| dropped.address == address).await;
    let corrupt =
        matches!(dropped.cause, Cause::Swarm(Why::CorruptPiece(_) | Why::CorruptSource(_) | Why::CorruptBlock(_)));
    assert!(corrupt, "{dropped:?}");
    assert!(download.progress().borrow().corrupt_pieces <= 32);
    download.stop().await.unwrap();
    let written = fs::read(bench.path("disk")).unwrap();
    for piece in disk.missing().ones() {
        let start = bench.manifest.piece_offset(piece as u32) as usize;
        let end = start + bench.manifest.piece_length(piece as u32) as usize;
        assert!(written[start..end].iter().all(|&byte| byte == 0xff), "something of piece {piece} was written");
    }
    assert_eq!(disk.held(), *bench.manifest.zero_pieces());

    let (_good, address) = bench.seeder(&bench.image, vec![]).await;
    let mut download = start(FetchJob { peers: vec![address], ..bench.job(&disk) }).await;
    within("it completes from an honest seed", download.completed()).await.unwrap();
    download.stop().await.unwrap();
    bench.assert_installed("disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_half_way_harms_nobody_and_resumes_with_what_it_has() {
    let bench = Bench::new(32 << 20);
    let tracker = TestTracker::start(&bench).await;
    let (_seeder, _) = bench.seeder(&bench.image, tracker.urls()).await;
    let gate = Gate::new(bench.disk("disk0"), 40);
    let victim = start(FetchJob { trackers: tracker.urls(), ..bench.job(&gate) }).await;
    let mut others = Vec::new();
    for node in 1..3 {
        let disk = bench.disk(&format!("disk{node}"));
        others.push(start(FetchJob { trackers: tracker.urls(), ..bench.job(&disk) }).await);
    }
    let mut progress = victim.progress();
    within("40 pieces", progress.wait_for(|now| now.bytes_done == 40 * (256 << 10))).await.unwrap();
    drop(victim);
    gate.open();
    within("it ends", async { while progress.changed().await.is_ok() {} }).await;
    for (node, download) in others.iter_mut().enumerate() {
        within("the others complete", download.completed()).await.unwrap();
        bench.assert_installed(&format!("disk{}", node + 1));
    }
    drop(gate);

    let disk = bench.disk("disk0");
    let kept = bench.manifest.bytes_of(&disk.held());
    let missing = bench.manifest.size_bytes() - kept;
    assert!(kept >= 40 * (256 << 10) && missing > 0, "what was written is kept: {kept} bytes");
    let mut download = start(FetchJob { trackers: tracker.urls(), ..bench.job(&disk) }).await;
    within("it completes", download.completed()).await.unwrap();
    assert_eq!(download.stop().await.unwrap().total().received, missing, "nothing is fetched twice");
    bench.assert_installed("disk0");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_its_budget() {
    let bench = Bench::new(64 << 20);
    let (seeder, address) = bench.seeder(&bench.image, vec![]).await;
    let disk = bench.disk("disk");
    let job = FetchJob { peers: vec![address], memory_bytes: MIN_MEMORY_BYTES, ..bench.job(&disk) };
    let mut download = start(job).await;
    let mut progress = download.progress();
    let watch = tokio::spawn(async move {
        let mut most = 0;
        while progress.changed().await.is_ok() {
            most = most.max(progress.borrow().memory_bytes);
        }
        most
    });
    within("it completes", download.completed()).await.unwrap();
    download.stop().await.unwrap();
    let most = within("the watch ends", watch).await.unwrap();
    assert!(most > 0 && most <= MIN_MEMORY_BYTES, "{most} bytes");
    bench.assert_installed("disk");
    seeder.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_babbling_peers_are_turned_away_and_disturb_nobody() {
    let bench = Bench::new(4 << 20);
    let limits = Limits { handshakes: 8, handshake_deadline: Duration::from_millis(300), ..Limits::default() };
    let seeder = Seeder::new(Listener::bind(ANYWHERE, limits).await.unwrap());
    let published = seeder.publish(Arc::clone(&bench.manifest), bench.source(&bench.image), vec![]).unwrap();
    let ours = Handshake::new(published.info_hash, PeerId(*b"-XX0000-abcdefghijkl"));
    let stranger = Handshake::new(InfoHash([9; 20]), ours.peer_id);

    // Two that never speak keep places for handshakes.
    let silent = [connect(published.address).await, connect(published.address).await];
    let disk = bench.disk("disk");
    let mut download = start(FetchJob { peers: vec![published.address], ..bench.job(&disk) }).await;
    within("it completes beside them", download.completed()).await.unwrap();
    for stream in silent {
        assert_eq!(rest_of(stream).await, b"", "closed without a word");
    }
    let mut cases: Vec<(&str, Vec<u8>, usize)> =
        vec![("not BitTorrent", b"GET / HTTP/1.1\r\n".repeat(8), 0), ("another swarm", stranger.encode().to_vec(), 0)];
    for (what, babble) in [
        ("garbage", vec![0xff; 400]),
        ("a frame of 2 GiB", b"\x7f\xff\xff\xff\x05".to_vec()),
        ("a request outside the image", [b"\0\0\0\x0d\x06".as_slice(), &[0xee; 12]].concat()),
        ("a block nobody asked for", [b"\0\0\0\x0a\x07".as_slice(), &[0; 9]].concat()),
        ("a piece that does not exist", b"\0\0\0\x05\x04\xff\xff\xff\xff".to_vec()),
    ] {
        cases.push((what, [ours.encode().as_slice(), &babble].concat(), 68));
    }
    for (what, bytes, at_least) in cases {
        let mut stream = connect(published.address).await;
        stream.write_all(&bytes).await.unwrap();
        let answer = within(what, rest_of(stream)).await;
        assert!(answer.len() >= at_least && answer.len() < 1000, "{what}: {} bytes", answer.len());
    }
    let causes: Vec<Cause> = seeder.dropped(published.info_hash).await.into_iter().map(|drop| drop.cause).collect();
    let of_protocol = causes.iter().filter(|cause| matches!(cause, Cause::Protocol(_))).count();
    assert_eq!((causes.len(), of_protocol), (5, 2), "{causes:?}");
    download.stop().await.unwrap();
    seeder.close().await;
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Everything until the other side closes; a reset is a close too.
async fn rest_of(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(got @ 1..) = within("it closes", stream.read(&mut chunk)).await {
        all.extend_from_slice(&chunk[..got]);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited() {
    let bench = Bench::new(1 << 20);
    let limits = Limits { connections: 1, ..Limits::default() };
    let seeder = Seeder::new(Listener::bind(ANYWHERE, limits).await.unwrap());
    let published = seeder.publish(Arc::clone(&bench.manifest), bench.source(&bench.image), vec![]).unwrap();
    let hello = |name| Handshake::new(published.info_hash, PeerId(name)).encode();
    let mut first = connect(published.address).await;
    first.write_all(&hello([1; 20])).await.unwrap();
    let mut answer = [0; 68];
    within("the first is welcome", first.read_exact(&mut answer)).await.unwrap();
    let mut second = connect(published.address).await;
    second.write_all(&hello([2; 20])).await.unwrap();
    assert_eq!(rest_of(second).await, b"");
    drop(first);
    let third = async {
        loop {
            let mut third = connect(published.address).await;
            third.write_all(&hello([3; 20])).await.unwrap();
            if third.read_exact(&mut answer).await.is_ok() {
                return;
            }
        }
    };
    within("the place is free again", third).await;
    seeder.close().await;
}

/// A disk that breaks after some pieces.
struct Breaking {
    inner: Arc<image::DiskSink>,
    path: PathBuf,
}

impl PieceSink for Breaking {
    fn missing(&self) -> PieceSet {
        self.inner.missing()
    }

    fn put(&self, piece: &VerifiedPiece) -> Result<(), image::Error> {
        if self.inner.missing().count_ones(..) > 20 {
            return self.inner.put(piece);
        }
        let source = std::io::Error::from_raw_os_error(5);
        Err(image::Error::Device { action: "write", device: self.path.clone(), offset: piece.offset(), source })
    }
}

impl PieceSource for Breaking {
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), image::Error> {
        self.inner.read(index, begin, into)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_ends_the_download_and_is_named() {
    let bench = Bench::new(8 << 20);
    let (_seeder, address) = bench.seeder(&bench.image, vec![]).await;
    let disk = Breaking { inner: bench.disk("disk"), path: "/dev/sdx".into() };
    let job = FetchJob { peers: vec![address], ..FetchJob::new(Arc::clone(&bench.manifest), Arc::new(disk)) };
    let mut download = start(job).await;
    let error = within("it fails", download.completed()).await.unwrap_err();
    assert!(matches!(error, Error::Disk(_)), "{error}");
    assert!(error.to_string().contains("/dev/sdx at byte"), "{error}");
    assert!(matches!(download.completed().await, Err(Error::Stopped)));
    assert!(download.ledger().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let bench = Bench::new(1 << 20);
    let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
    let taken = Listener::bind(listener.address(), Limits::default()).await.unwrap_err();
    assert!(taken.to_string().contains(&listener.address().to_string()), "{taken}");
    let disk = bench.disk("disk");
    for url in ["https://10.0.0.1/announce", "", "tracker"] {
        let job = FetchJob { trackers: vec![url.to_owned()], ..bench.job(&disk) };
        assert!(matches!(Download::start(&listener, job), Err(Error::Tracker(_))), "{url}");
    }
    let first = Download::start(&listener, bench.job(&disk)).unwrap();
    assert!(matches!(Download::start(&listener, bench.job(&disk)), Err(Error::JoinedAlready(_))));
    first.stop().await.unwrap();
    Download::start(&listener, bench.job(&disk)).unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_there_already_is_complete_at_once() {
    let bench = Bench::new(1 << 20);
    fs::write(bench.path("disk"), &bench.content).unwrap();
    let disk = bench.disk("disk");
    let mut download = start(bench.job(&disk)).await;
    within("it completes", download.completed()).await.unwrap();
    assert_eq!(download.progress().borrow().bytes_to_move, 0);
    assert_eq!(download.stop().await.unwrap().total().received, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_whose_file_shrinks_gives_the_rest_until_there_is_none() {
    let bench = Bench::new(8 << 20);
    let path = bench.path("shrinking");
    fs::copy(&bench.image, &path).unwrap();
    let (seeder, address) = bench.seeder(&path, vec![]).await;
    let info_hash = bench.manifest.infohash().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    // In the midst of piece 9 of 32, before the zeros.
    file.set_len(9 * (256 << 10) + 1000).unwrap();
    let disk = bench.disk("disk");
    let download = start(FetchJob { peers: vec![address], ..bench.job(&disk) }).await;
    until("nine pieces came", async || (0..9).all(|piece| !disk.missing().contains(piece)).then_some(())).await;
    let left = until("the seed knows what it has", async || {
        let (_, progress) = seeder.progress().into_iter().next()?;
        (progress.pieces_done < 32).then_some(progress.pieces_done)
    })
    .await;
    assert_eq!(left, 9);
    assert!(disk.missing().contains(9));
    assert_eq!(download.dropped().await, [], "nobody is to blame");
    download.stop().await.unwrap();

    file.set_len(0).unwrap();
    let disk = bench.disk("late");
    let download = start(FetchJob { peers: vec![address], ..bench.job(&disk) }).await;
    let error = within("the seed gives up", seeder.failed(info_hash)).await.to_string();
    assert!(error.contains("shrinking at byte") && error.contains("shrunk to 0 bytes"), "{error}");
    assert!(seeder.progress().is_empty());
    download.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_does_not_keep_a_download_from_its_end() {
    let bench = Bench::new(2 << 20);
    let (seeder, address) = bench.seeder(&bench.image, vec![]).await;
    let gate = Gate::new(bench.disk("hanging"), 1);
    let download = start(FetchJob { peers: vec![address], ..bench.job(&gate) }).await;
    let begun_with = download.progress().borrow().pieces_done;
    until("a piece was written", async || (download.progress().borrow().pieces_done > begun_with).then_some(())).await;
    within("it ends", download.stop()).await.unwrap();
    gate.open();
    seeder.close().await;
}
