//! Peers that lie, over real sockets: dropped and named, and the download
//! finishes from the honest one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::{ANYWHERE, Bench, Gate, named, start, until, within};
use rackswarm_transport::bittorrent::{Cause, FetchJob, Limits, Listener, MagnetJob, Seeder, fetch_metainfo};
use swarm::Why;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::magnet::Magnet;
use wire::metainfo::InfoHash;
use wire::peer::{
    Block, ExtensionHandshake, ExtensionIds, HANDSHAKE_BYTES, Handshake, Message, PeerId, RackHello, encode_piece_head,
};

const LIAR: PeerId = PeerId(*b"-XX0001-liar00000000");

/// A peer that listens, greets as one of our own kind that has everything,
/// says `then`, and reads whatever comes.
async fn liar(info_hash: InfoHash, then: Vec<u8>) -> SocketAddr {
    let socket = TcpListener::bind(ANYWHERE).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let then = then.clone();
            tokio::spawn(async move {
                let mut theirs = [0; HANDSHAKE_BYTES];
                stream.read_exact(&mut theirs).await?;
                stream.write_all(&Handshake::new(info_hash, LIAR).encode()).await?;
                let hello = RackHello { rack: None, max_request_bytes: 1 << 20, offers: false, zstd: true };
                let ours =
                    ExtensionHandshake { ids: ExtensionIds::OURS, rack: Some(hello), ..ExtensionHandshake::default() };
                stream.write_all(&encode(&[ours.into(), Message::HaveAll, Message::Unchoke])).await?;
                stream.write_all(&then).await?;
                let mut sink = vec![0; 4096];
                while stream.read(&mut sink).await? > 0 {}
                std::io::Result::Ok(())
            });
        }
    });
    address
}

fn encode(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&ExtensionIds::OURS, &mut bytes);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_protocol_is_named_and_the_download_finishes() {
    let bench = Bench::new(4 << 20);
    let info_hash = bench.manifest.infohash().unwrap();
    let outside = Block { piece: 9999, offset: 0, length: 16384 };
    let unasked = Block { piece: 1, offset: 0, length: 16384 };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", vec![0xff; 4096]),
        ("a length that nobody sends", [0x7f, 0xff, 0xff, 0xff, 7, 0].to_vec()),
        ("a place outside the image", encode_piece_head(outside).to_vec()),
        ("a piece that does not exist", encode(&[Message::Have(9999)])),
        ("bytes that nobody asked for", [encode_piece_head(unasked).as_slice(), &[1; 16384]].concat()),
        ("a request outside the image", encode(&[Message::Request(outside)])),
    ];
    for (at, (what, lie)) in cases.into_iter().enumerate() {
        let (seeder, honest) = bench.seeder(&bench.image, vec![]).await;
        let liar = liar(info_hash, lie).await;
        // A complete node would not talk to the liar any more.
        let gate = Gate::new(bench.disk(&format!("disk{at}")), 0);
        let mut download = start(FetchJob { peers: vec![liar, honest], ..bench.job(&gate) }).await;
        let dropped = named(&download, |dropped| dropped.address == liar).await;
        assert_eq!(dropped.id, LIAR, "{what}");
        gate.open();
        within(what, download.completed()).await.unwrap();
        download.stop().await.unwrap();
        bench.assert_installed(&format!("disk{at}"));
        seeder.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_promises_and_never_gives_costs_little_time() {
    let bench = Bench::new(4 << 20);
    let (_seeder, honest) = bench.seeder(&bench.image, vec![]).await;
    let liar = liar(bench.manifest.infohash().unwrap(), encode(&[Message::Suggest(0), Message::Suggest(1)])).await;
    let disk = bench.disk("disk");
    let mut download = start(FetchJob { peers: vec![liar, honest], ..bench.job(&disk) }).await;
    within("it completes", download.completed()).await.unwrap();
    download.stop().await.unwrap();
    bench.assert_installed("disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_corrupt_seed_among_two_is_named_and_nothing_wrong_is_written() {
    let bench = Bench::new(8 << 20);
    let (corrupt, liar) = bench.seeder(&bench.altered(), vec![]).await;
    let (_seeder, honest) = bench.seeder(&bench.image, vec![]).await;
    let disk = bench.disk("disk");
    let mut download = start(FetchJob { peers: vec![liar, honest], ..bench.job(&disk) }).await;
    let dropped = named(&download, |dropped| dropped.address == liar).await;
    let cause = Cause::Swarm(Why::CorruptPiece(0)).to_string();
    assert!(matches!(dropped.cause, Cause::Swarm(_)), "{dropped:?}, not as {cause}");
    within("it completes", download.completed()).await.unwrap();
    download.stop().await.unwrap();
    bench.assert_installed("disk");
    let seen = async || corrupt.progress().iter().find(|(_, progress)| progress.corrupt_on_disk > 0).map(drop);
    until("the corrupt seed knows it by itself", seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_and_never_reads_holds_nobody_up() {
    let bench = Bench::new(16 << 20);
    let (_seeder, honest) = bench.seeder(&bench.image, vec![]).await;
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(honest).await.unwrap();
        let info_hash = bench.manifest.infohash().unwrap();
        stream.write_all(&Handshake::new(info_hash, PeerId(rand::random())).encode()).await.unwrap();
        let asks = (0..8).map(|block| Message::Request(Block { piece: 1, offset: block << 14, length: 1 << 14 }));
        let messages: Vec<Message> = [Message::HaveNone, Message::Interested].into_iter().chain(asks).collect();
        stream.write_all(&encode(&messages)).await.unwrap();
        greedy.push(stream);
    }
    let disk = bench.disk("disk");
    let mut download = start(FetchJob { peers: vec![honest], ..bench.job(&disk) }).await;
    within("it completes", download.completed()).await.unwrap();
    download.stop().await.unwrap();
    bench.assert_installed("disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hybrid_torrent_is_one_swarm_under_two_names() {
    let bench = Bench::new(4 << 20);
    let (_seeder, address) = bench.seeder(&bench.image, vec![]).await;
    let names = [bench.metainfo.v1().unwrap(), bench.metainfo.v2().unwrap().truncated()];
    for name in names {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&Handshake::new(name, LIAR).encode()).await.unwrap();
        let mut answer = [0; HANDSHAKE_BYTES];
        within("it answers", stream.read_exact(&mut answer)).await.unwrap();
        let answer = Handshake::decode(&answer).unwrap();
        assert_eq!(answer.info_hash, name);
        assert!(answer.speaks_v2() && answer.speaks_fast() && answer.speaks_extended());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_magnet_link_is_enough() {
    let bench = Bench::new(4 << 20);
    let seeder = Seeder::new(Listener::bind(ANYWHERE, Limits::default()).await.unwrap());
    let source = bench.source(&bench.image);
    let manifest = std::sync::Arc::clone(&bench.manifest);
    let published = seeder.publish_torrent(manifest, Some(&bench.metainfo), source, vec![]).unwrap();
    let (v1, v2) = (bench.metainfo.v1(), bench.metainfo.v2());
    for (v1, v2) in [(v1, None), (None, v2), (v1, v2)] {
        let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
        let magnet = Magnet { v1, v2, peers: vec![published.address.to_string()], ..Magnet::default() };
        let job = MagnetJob::new(magnet);
        let found = within("the torrent comes", fetch_metainfo(&listener, job)).await.unwrap();
        assert_eq!(found.raw_info(), bench.metainfo.raw_info());
        assert_eq!(found.info().v2, bench.metainfo.info().v2);
    }
    seeder.close().await;
}
