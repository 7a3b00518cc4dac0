//! A controller that answers as told, and a swarm with one or more seeders.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub)]

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::run::{Options, Place};
use agent::{Error, Watchdog, run};
use api::Problem;
use api::agent::{Assignment, Heartbeat, Orders, PostPlan, Proof, Register, Report, ReportKind, Token, WipeOrder};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fleet::disk::{Disk, DiskRule};
use fleet::ids::Attempt;
use fleet::ledger::Ledger;
use fleet::post::Network;
use image::{Error as ImageError, FileSource, Image, ImportOptions, PieceSource, Registry};
use tokio::sync::Notify;
use transport::bittorrent::{Limits, Listener, Seeder};

pub const PIECE: u64 = 16 << 10;
pub const LIMIT: Duration = Duration::from_secs(120);

/// What the fake controller knows and does.
pub struct Controller {
    pub url: String,
    pub assignment: Mutex<Assignment>,
    /// What is wiped, instead of the assignment.
    pub wipe: Mutex<Option<WipeOrder>>,
    pub manifest: Mutex<Vec<u8>>,
    pub registered: Mutex<Vec<Register>>,
    pub reports: Mutex<Vec<ReportKind>>,
    pub proofs: Mutex<Vec<Proof>>,
    pub beats: Mutex<Vec<Heartbeat>>,
    /// How many requests from now on are answered with 503.
    pub fail_next: AtomicU32,
    /// Every report is refused with 409 once this many were accepted.
    pub refuse_after: AtomicUsize,
    /// Whom the tracker names, one list for each announce; the last one stays.
    pub peers: Mutex<Vec<Vec<SocketAddr>>>,
    /// Something has arrived.
    pub arrived: Notify,
}

impl Controller {
    /// Starts on loopback, assigning this image.
    pub async fn start(image: &Image) -> Arc<Self> {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let controller = Arc::new(Self {
            assignment: Mutex::new(assignment(image, &url)),
            wipe: Mutex::default(),
            url,
            manifest: Mutex::new(image.manifest.to_json().into_bytes()),
            registered: Mutex::default(),
            reports: Mutex::default(),
            proofs: Mutex::default(),
            beats: Mutex::default(),
            fail_next: AtomicU32::new(0),
            refuse_after: AtomicUsize::new(usize::MAX),
            peers: Mutex::default(),
            arrived: Notify::new(),
        });
        let router = Router::new()
            .route("/api/v1/agent/register", post(register))
            .route("/api/v1/agent/report", post(report))
            .route("/api/v1/agent/proof", post(proof))
            .route("/api/v1/agent/beat", post(beat))
            .route("/manifest", get(manifest))
            .route("/announce", get(announce))
            .with_state(Arc::clone(&controller));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        controller
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.reports.lock().unwrap().iter().map(kind).collect()
    }

    /// The reports that move a node's life.
    pub fn life(&self) -> Vec<&'static str> {
        self.kinds().into_iter().filter(|kind| !matches!(*kind, "alive" | "progress" | "ledger")).collect()
    }

    pub fn received_bytes(&self) -> u64 {
        let reports = self.reports.lock().unwrap();
        reports
            .iter()
            .filter_map(|r| if let ReportKind::Progress(p) = r { Some(p.received_bytes) } else { None })
            .max()
            .unwrap_or(0)
    }

    pub fn ledgers(&self) -> Vec<Ledger> {
        let reports = self.reports.lock().unwrap();
        let ledger = |report: &ReportKind| if let ReportKind::Ledger(l) = report { Some(l.clone()) } else { None };
        reports.iter().filter_map(ledger).collect()
    }

    pub fn failure(&self) -> Option<(String, bool)> {
        let reports = self.reports.lock().unwrap();
        reports.iter().find_map(|report| match report {
            ReportKind::Failed { reason, retry } => Some((reason.clone(), *retry)),
            _ => None,
        })
    }

    /// Waits until `condition` holds; looked at whenever something arrives.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let arrived = self.arrived.notified();
                if condition(self) {
                    return;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(LIMIT, wait)
            .await
            .unwrap_or_else(|_| panic!("it never happened; reports: {:?}", self.kinds()));
    }

    /// 503 while told so.
    fn trouble(&self) -> Option<Response> {
        let less = |n: u32| n.checked_sub(1);
        let failing = self.fail_next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        failing.then(|| problem(StatusCode::SERVICE_UNAVAILABLE, "the store is busy"))
    }
}

fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(Problem { error: error.into() })).into_response()
}

fn kind(report: &ReportKind) -> &'static str {
    match report {
        ReportKind::Alive => "alive",
        ReportKind::CaptureStarted { .. } => "capture_started",
        ReportKind::Captured { .. } => "captured",
        ReportKind::FetchStarted { .. } => "fetch_started",
        ReportKind::Progress(_) => "progress",
        ReportKind::Ledger(_) => "ledger",
        ReportKind::SwitchesHeard { .. } => "switches_heard",
        ReportKind::ImageVerified { .. } => "image_verified",
        ReportKind::PostActionDone { .. } => "post_action_done",
        ReportKind::PostActionsDone => "post_actions_done",
        ReportKind::WipeStarted { .. } => "wipe_started",
        ReportKind::DiskWiped { .. } => "disk_wiped",
        ReportKind::Wiped { .. } => "wiped",
        ReportKind::Failed { .. } => "failed",
    }
}

type Shared = State<Arc<Controller>>;

async fn register(State(controller): Shared, body: Bytes) -> Response {
    if let Some(trouble) = controller.trouble() {
        return trouble;
    }
    controller.registered.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    match controller.wipe.lock().unwrap().clone() {
        Some(order) => Json(Orders::Wipe(order)).into_response(),
        None => Json(controller.assignment.lock().unwrap().clone()).into_response(),
    }
}

async fn report(State(controller): Shared, body: Bytes) -> Response {
    if let Some(trouble) = controller.trouble() {
        return trouble;
    }
    let report: Report = serde_json::from_slice(&body).unwrap();
    assert_eq!(report.attempt, controller.assignment.lock().unwrap().attempt);
    let mut reports = controller.reports.lock().unwrap();
    if reports.len() >= controller.refuse_after.load(Ordering::SeqCst) {
        return problem(StatusCode::CONFLICT, "attempt 1 of node1 is over (the present one is 2); stop and reboot");
    }
    reports.push(report.what);
    controller.arrived.notify_waiters();
    Json(()).into_response()
}

async fn proof(State(controller): Shared, body: Bytes) -> Response {
    if let Some(trouble) = controller.trouble() {
        return trouble;
    }
    controller.proofs.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    controller.arrived.notify_waiters();
    Json(()).into_response()
}

async fn beat(State(controller): Shared, body: Bytes) -> Response {
    if let Some(trouble) = controller.trouble() {
        return trouble;
    }
    controller.beats.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    controller.arrived.notify_waiters();
    // The real one answers with no body.
    StatusCode::NO_CONTENT.into_response()
}

async fn manifest(State(controller): Shared) -> Vec<u8> {
    controller.manifest.lock().unwrap().clone()
}

/// A tracker (BEP 3, BEP 23) that knows its peers by heart.
async fn announce(State(controller): Shared) -> Vec<u8> {
    let mut lists = controller.peers.lock().unwrap();
    let peers = if lists.len() > 1 { lists.remove(0) } else { lists.first().cloned().unwrap_or_default() };
    let mut compact = Vec::new();
    for peer in peers {
        let SocketAddr::V4(peer) = peer else { panic!("IPv4 only") };
        compact.extend(peer.ip().octets());
        compact.extend(peer.port().to_be_bytes());
    }
    let mut answer = format!("d8:intervali1e5:peers{}:", compact.len()).into_bytes();
    answer.extend(compact);
    answer.push(b'e');
    answer
}

fn assignment(image: &Image, url: &str) -> Assignment {
    Assignment {
        node: "node1".parse().unwrap(),
        attempt: Attempt(1),
        image: "golden".parse().unwrap(),
        digest: image.manifest.digest().unwrap(),
        size_bytes: image.manifest.size_bytes(),
        manifest_path: "/manifest".into(),
        trackers: vec![format!("{url}/announce")],
        disk: DiskRule::default(),
        keep_what_is_right: false,
        layout: None,
        own_disk: None,
        memory_budget_bytes: 8 << 20,
        linger_seconds: 0,
        report_seconds: 1,
        post: PostPlan {
            kexec: false,
            host_name: "node1".into(),
            authorized_keys: vec!["ssh-ed25519 AAAA operator".into()],
            network: Network::Dhcp,
            user_data: None,
            grow_root: true,
            script: None,
            action_limit_seconds: 100,
            controller_url: url.into(),
            node_token: Token("node-token".into()),
            heartbeat_seconds: 1,
            watch_processes: vec!["no-such-process".into()],
        },
    }
}

/// A folder with a sealed image and room for disks.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub image: Image,
}

impl Bench {
    /// Seals `content`.
    pub fn of(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("golden.raw");
        fs::write(&source, content).unwrap();
        Self::sealed(folder, &source)
    }

    pub fn sealed(folder: tempfile::TempDir, source: &Path) -> Self {
        let registry = Registry::open(folder.path().join("images")).unwrap();
        let mut options = ImportOptions::named("golden".parse().unwrap());
        options.piece_size_bytes = Some(PIECE);
        options.format = Some(image::Format::Raw);
        let image = registry.import(source, &options, &mut image::no_progress).unwrap();
        Self { folder, image }
    }

    /// A file of this size full of `fill`.
    pub fn disk(&self, name: &str, size_bytes: u64, fill: u8) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, vec![fill; usize::try_from(size_bytes).unwrap()]).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A seeder of the image on a port of its own.
    pub async fn seeder(&self, corrupt: bool) -> (Seeder, SocketAddr) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Limits::default()).await.unwrap();
        let honest = FileSource::open(&self.image.disk_path(), Arc::clone(&self.image.manifest)).unwrap();
        let source: Arc<dyn PieceSource> = if corrupt { Arc::new(Liar(honest)) } else { Arc::new(honest) };
        let seeder = Seeder::new(listener);
        let published = seeder.publish(Arc::clone(&self.image.manifest), source, Vec::new()).unwrap();
        (seeder, published.address)
    }
}

/// Gives every piece with its first byte changed.
struct Liar(FileSource);

impl PieceSource for Liar {
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), ImageError> {
        self.0.read(index, begin, into)?;
        if begin == 0 && !into.is_empty() {
            into[0] ^= 0xff;
        }
        Ok(())
    }
}

/// Bytes with zero pieces and no two others alike.
pub fn content(pieces: u64) -> Vec<u8> {
    let mut state = 7u64;
    let mut content = Vec::new();
    for piece in 0..pieces {
        for _ in 0..PIECE / 8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            content.extend(if piece % 3 == 1 { [0; 8] } else { state.to_be_bytes() });
        }
    }
    content
}

/// Facts of a file as a disk.
pub fn disk(path: &Path, serial: &str) -> Disk {
    let size_bytes = fs::metadata(path).unwrap().len();
    Disk { path: path.display().to_string(), size_bytes, serial: Some(serial.into()), ..Disk::default() }
}

pub fn options(controller: &Controller, disks: Vec<Disk>, post: bool) -> Options {
    Options {
        place: Place::Trial { disks, listen: "127.0.0.1:0".parse().unwrap() },
        server: controller.url.clone(),
        token: Token("boot-token".into()),
        mac: Some("52:54:00:00:00:01".parse().unwrap()),
        post,
        listen: std::time::Duration::ZERO,
        check: false,
        booted: None,
    }
}

/// The whole life, with a deadline.
pub async fn provision(options: Options) -> Result<(), Error> {
    let dog = Watchdog::default();
    tokio::time::timeout(LIMIT, run::run(options, &dog)).await.expect("the agent must come to an end")
}

pub fn first_bytes(path: &Path, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn change_byte(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}
