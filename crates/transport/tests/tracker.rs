//! The tracker's two doors on loopback: our own clients, ordinary ones,
//! nonsense, and a restart.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{ANYWHERE, Bench, PATIENCE, start, until, within};
use image::metainfo::{CreateOptions, Version};
use image::{FileSource, Manifest, no_progress};
use rackswarm_transport::bittorrent::{FetchJob, Limits, Listener, Seeder};
use rackswarm_transport::tracker::{TrackerDoors, TrackerServer};
use swarm::tracker::{Tracker, TrackerPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use wire::announce::{AnnounceRequest, AnnounceResponse, Answer, Event};
use wire::metainfo::InfoHash;
use wire::peer::{PeerId, RackName};
use wire::udp_tracker::{Request, Response};

const IMAGE: InfoHash = InfoHash([7; 20]);

async fn open(torrents: &[InfoHash], memory: Option<PathBuf>) -> TrackerServer {
    let mut tracker = Tracker::new(TrackerPolicy { interval: Duration::from_secs(2), ..TrackerPolicy::default() }, 1);
    torrents.iter().for_each(|torrent| tracker.register(*torrent));
    let doors = TrackerDoors { http: Some(ANYWHERE), udp: Some(ANYWHERE), memory };
    TrackerServer::bind(doors, Arc::new(Mutex::new(tracker))).await.unwrap()
}

fn announce(port: u16) -> AnnounceRequest {
    AnnounceRequest {
        info_hash: IMAGE,
        peer_id: PeerId([port as u8; 20]),
        port,
        uploaded: 0,
        downloaded: 0,
        left: 1,
        event: Some(Event::Started),
        num_want: Some(50),
        compact: true,
        own_kind: true,
        rack: Some(RackName::new("r1").unwrap()),
    }
}

/// Sends bytes, shuts down, and reads what comes.
async fn http(server: &TrackerServer, request: &str) -> String {
    let mut stream = TcpStream::connect(server.http().unwrap()).await.unwrap();
    // A server that refuses early closes while we write.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within("the tracker's answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask_http(server: &TrackerServer, request: &AnnounceRequest) -> AnnounceResponse {
    let url = format!("http://{}/announce?{}", server.http().unwrap(), request.encode_query());
    let body = within("an announce", reqwest::get(url)).await.unwrap().bytes().await.unwrap();
    let Answer::Peers(response) = Answer::decode(&body).unwrap() else { panic!("refused") };
    response
}

struct UdpClient {
    socket: UdpSocket,
    server: SocketAddr,
}

impl UdpClient {
    async fn new(server: &TrackerServer) -> Self {
        let (socket, server) = (UdpSocket::bind(ANYWHERE).await.unwrap(), server.udp().unwrap());
        socket.connect(server).await.unwrap();
        Self { socket, server }
    }

    async fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).await.unwrap();
    }

    async fn receive(&self) -> Response {
        let mut datagram = [0; 2048];
        let bytes = within("a datagram", self.socket.recv(&mut datagram)).await.unwrap();
        Response::decode(&datagram[..bytes], self.server.ip()).unwrap()
    }

    async fn connect(&self) -> u64 {
        self.send(&Request::Connect { transaction: 5 }.encode()).await;
        let Response::Connect { transaction: 5, connection } = self.receive().await else { panic!("no connection") };
        connection
    }

    async fn ask(&self, connection: u64, announce: AnnounceRequest) -> Response {
        self.send(&request(connection, announce).encode()).await;
        self.receive().await
    }
}

fn request(connection: u64, announce: AnnounceRequest) -> Request {
    Request::Announce { connection, transaction: 9, key: 1, announce: Box::new(announce), url: String::new() }
}

#[tokio::test]
async fn both_doors_lead_to_one_swarm() {
    let server = open(&[IMAGE], None).await;
    assert!(ask_http(&server, &announce(1)).await.peers.is_empty());
    let client = UdpClient::new(&server).await;
    let connection = client.connect().await;
    let Response::Announce { transaction: 9, response } = client.ask(connection, announce(2)).await else { panic!() };
    assert_eq!(response.peers[0].address, "127.0.0.1:1".parse().unwrap());
    assert_eq!(response.guidance.unwrap().rack.unwrap().as_str(), "r1");
    let third = ask_http(&server, &AnnounceRequest { own_kind: false, ..announce(3) }).await;
    assert_eq!((third.peers.len(), third.guidance), (2, None));

    client.send(&Request::Scrape { connection, transaction: 3, hashes: vec![IMAGE, InfoHash([1; 20])] }.encode()).await;
    let Response::Scrape { entries, .. } = client.receive().await else { panic!() };
    assert_eq!((entries.len(), entries[0].incomplete, entries[1].incomplete), (2, 3, 0));
    let scraped = http(&server, "GET /scrape HTTP/1.0\r\n\r\n").await;
    assert!(scraped.contains("10:incompletei3e"), "{scraped}");
}

#[tokio::test]
async fn ordinary_clients_get_the_form_they_ask_for() {
    let server = open(&[IMAGE], None).await;
    ask_http(&server, &announce(1)).await;
    let stranger = AnnounceRequest { own_kind: false, ..announce(2) };
    let query = stranger.encode_query();
    let answer = async |query: String| http(&server, &format!("GET /announce?{query} HTTP/1.0\r\n\r\n")).await;
    let compact = answer(query.clone()).await;
    assert!(compact.contains("5:peers6:\u{7f}") && !compact.contains("rackswarm"), "{compact}");
    let listed = answer(query.replace("compact=1", "compact=0")).await;
    assert!(listed.contains("5:peersld2:ip9:127.0.0.17:peer id20:") && listed.contains("4:porti1e"), "{listed}");
    let nameless = answer(query.replace("compact=1", "compact=0&no_peer_id=1")).await;
    assert!(nameless.contains("5:peersld2:ip9:127.0.0.14:porti1e"), "{nameless}");
    let few = answer(query.replace("numwant=50", "numwant=0")).await;
    assert!(few.contains("5:peers0:"), "{few}");
}

/// Whoever writes `ip=` cannot have the swarm knock at somebody's door.
#[tokio::test]
async fn an_address_in_the_query_is_passed_over() {
    let server = open(&[IMAGE], None).await;
    let url = format!("http://{}/announce?{}&ip=10.9.9.9", server.http().unwrap(), announce(1).encode_query());
    reqwest::get(url).await.unwrap();
    assert_eq!(ask_http(&server, &announce(2)).await.peers[0].address, "127.0.0.1:1".parse().unwrap());
}

#[tokio::test]
async fn nonsense_is_refused_and_harms_nobody() {
    let server = open(&[IMAGE], None).await;
    let good = announce(1).encode_query();
    let long = "x".repeat(5000);
    for (line, expected) in [
        ("GET /announce HTTP/1.0".to_owned(), "14:failure reason"),
        ("GET /announce?info_hash=%zz HTTP/1.0".to_owned(), "14:failure reason"),
        (format!("GET /announce?{good}&port=x HTTP/1.0"), "14:failure reason"),
        (format!("GET /announce?{} HTTP/1.0", good.replace("port=1", "port=0")), "14:failure reason"),
        (format!("GET /announce?{good}&x={long} HTTP/1.0"), "14:failure reason"),
        (format!("GET /announce?{} HTTP/1.0", good.replacen("%07", "%08", 1)), "publish the image first"),
        ("GET /scrape?info_hash=short HTTP/1.0".to_owned(), "14:failure reason"),
        ("POST /announce HTTP/1.0".to_owned(), "405 "),
        ("GET /else HTTP/1.0".to_owned(), "404 "),
        (format!("GET /announce?{} HTTP/1.0", "y".repeat(100_000)), ""),
        ("\0\0\0\u{13}BitTorrent protocol".to_owned(), ""),
    ] {
        let answer = http(&server, &format!("{line}\r\n\r\n")).await;
        let told: String = line.chars().take(100).collect();
        assert!(answer.contains(expected), "{told}: {answer}");
    }
    let client = UdpClient::new(&server).await;
    let stolen = request(12345, announce(4)).encode();
    for datagram in [&b""[..], b"x", &[0xff; 2000], &[0; 16], &stolen, &stolen[..97]] {
        client.send(datagram).await;
    }
    // The first answer is to the last datagram: the others got none.
    let connection = client.connect().await;
    let unknown = client.ask(connection, AnnounceRequest { info_hash: InfoHash([8; 20]), ..announce(4) }).await;
    let Response::Error { message, .. } = unknown else { panic!("{unknown:?}") };
    assert!(message.contains("publish the image first"), "{message}");
    assert_eq!(server.service().scrape(""), b"d5:filesd20:\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07d8:completei0e10:downloadedi0e10:incompletei0eeee");
    ask_http(&server, &announce(1)).await;
}

#[tokio::test]
async fn slow_clients_do_not_hold_up_others() {
    let server = open(&[IMAGE], None).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server.http().unwrap()).await.unwrap();
        stream.write_all(b"GET /announce?").await.unwrap();
        idle.push(stream);
    }
    ask_http(&server, &announce(1)).await;
    drop(idle);
}

#[tokio::test]
async fn a_restarted_tracker_hands_out_peers_at_once_and_survives_a_damaged_memory() {
    let folder = tempfile::tempdir().unwrap();
    let memory = folder.path().join("memory");
    let server = open(&[IMAGE], Some(memory.clone())).await;
    for port in 1..=5 {
        ask_http(&server, &announce(port)).await;
    }
    server.close().await;
    let server = open(&[IMAGE], Some(memory.clone())).await;
    assert_eq!(ask_http(&server, &announce(6)).await.peers.len(), 5);
    server.close().await;

    let mut bytes = std::fs::read(&memory).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&memory, &bytes).unwrap();
    let server = open(&[IMAGE], Some(memory.clone())).await;
    assert!(ask_http(&server, &announce(7)).await.peers.is_empty());
    server.close().await;
    // A folder that is gone is a warning, not an end.
    let server = open(&[IMAGE], Some(folder.path().join("none/memory"))).await;
    ask_http(&server, &announce(7)).await;
    server.close().await;
}

async fn completes(bench: &Bench, server: &TrackerServer, trackers: Vec<String>) -> Duration {
    let (_seeder, _) = bench.seeder(&bench.image, trackers.clone()).await;
    let disk = bench.disk("disk");
    let job = FetchJob { trackers, rack: Some(RackName::new("r1").unwrap()), ..bench.job(&disk) };
    let began = Instant::now();
    let mut download = start(job).await;
    let mut progress = download.progress();
    within("a peer", progress.wait_for(|progress| progress.peers > 0 || progress.complete)).await.unwrap();
    let first = began.elapsed();
    within("the image", download.completed()).await.unwrap();
    bench.assert_installed("disk");
    let image = bench.manifest.infohash().unwrap();
    let counted = || server.service().tracker().scrape(Duration::ZERO, &image).unwrap().downloaded == 1;
    until("the tracker hears `completed`", async || counted().then_some(())).await;
    within("the goodbye", download.stop()).await.unwrap();
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn our_nodes_ask_over_udp_as_well() {
    let bench = Bench::new(4 << 20);
    let server = open(&[bench.manifest.infohash().unwrap()], None).await;
    completes(&bench, &server, vec![format!("udp://{}/announce", server.udp().unwrap())]).await;
    let left = server.service().tracker().scrape(Duration::ZERO, &bench.manifest.infohash().unwrap()).unwrap();
    assert_eq!((left.downloaded, left.incomplete), (1, 0), "it said `stopped`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_udp_tracker_is_passed_over() {
    let bench = Bench::new(1 << 20);
    let server = open(&[bench.manifest.infohash().unwrap()], None).await;
    let closed = UdpSocket::bind(ANYWHERE).await.unwrap().local_addr().unwrap();
    let trackers = vec![format!("udp://{closed}"), format!("http://{}/announce", server.http().unwrap())];
    completes(&bench, &server, trackers).await;
}

/// Runs aria2c to its end; it has nothing but the tracker to find the seed.
async fn aria2_completes(torrent: &Path, folder: &Path) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Without DHT aria2 does not speak to UDP trackers. Its file is empty, and
    // nobody is at its entry point.
    let mut child = Command::new("aria2c")
        .args(["--no-conf", "--enable-dht=true", "--enable-dht6=false", "--bt-enable-lpd=false"])
        .args(["--enable-peer-exchange=false", "--disable-ipv6=true", "--file-allocation=none", "--seed-time=0"])
        .args(["--dht-entry-point=127.0.0.1:9", "--console-log-level=error", "--summary-interval=0"])
        .args(["--bt-tracker-interval=2", &format!("--stop={}", PATIENCE.as_secs() + 30)])
        .arg(format!("--dht-file-path={}", folder.join("dht").display()))
        .args([format!("--log={}", folder.join("log").display()), "--log-level=info".to_owned()])
        .args([format!("--dht-listen-port={}", free()), format!("--listen-port={}", free())])
        .arg(format!("--dir={}", folder.display()))
        .arg(torrent)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("aria2c: {error}: run `cargo xtask test`, which installs it"));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                let log = std::fs::read_to_string(folder.join("log")).unwrap();
                panic!("aria2 did not complete in {PATIENCE:?}: {log}");
            }
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(status.success(), "aria2: {status}");
}

/// With a torrent of version 1: aria2 1.36 computes another hash of a hybrid.
#[tokio::test(flavor = "multi_thread")]
async fn aria2_asks_over_http_and_over_udp() {
    for door in ["http", "udp"] {
        let bench = Bench::new(4 << 20);
        let server = open(&[], None).await;
        let address = if door == "http" { server.http() } else { server.udp() }.unwrap();
        let options = CreateOptions {
            version: Version::V1,
            trackers: vec![format!("{door}://{address}/announce")],
            ..CreateOptions::default()
        };
        let metainfo = image::metainfo::create(&bench.image, &options, &mut no_progress).unwrap();
        let manifest = Arc::new(Manifest::from_metainfo(&metainfo).unwrap());
        let info_hash = manifest.infohash().unwrap();
        server.service().tracker().register(info_hash);
        let source = Arc::new(FileSource::open(&bench.image, Arc::clone(&manifest)).unwrap());
        let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
        let seeder = Seeder::new(listener);
        let published = seeder.publish(manifest, source, Vec::new()).unwrap();
        server.service().tracker().anchor(info_hash, published.address, published.peer_id).unwrap();

        let (torrent, folder) = (bench.path("v1.torrent"), bench.path("theirs"));
        std::fs::write(&torrent, metainfo.encode().unwrap()).unwrap();
        std::fs::create_dir(&folder).unwrap();
        aria2_completes(&torrent, &folder).await;
        assert!(std::fs::read(folder.join("golden")).unwrap() == bench.content, "{door}");
        seeder.close().await;
    }
}

/// The figure is for the documentation; the bound is for a busy machine.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_peers_come_soon() {
    let server = open(&[IMAGE], None).await;
    ask_http(&server, &announce(1)).await;
    let began = Instant::now();
    let client = UdpClient::new(&server).await;
    let connection = client.connect().await;
    client.ask(connection, announce(2)).await;
    let udp = began.elapsed();
    let bench = Bench::new(1 << 20);
    let server = open(&[bench.manifest.infohash().unwrap()], None).await;
    let trackers = vec![format!("http://{}/announce", server.http().unwrap())];
    let first = completes(&bench, &server, trackers).await;
    println!("UDP announce {udp:?}, start to first connected peer {first:?} (reports come every 250 ms)");
    assert!(udp < Duration::from_secs(5));
}
