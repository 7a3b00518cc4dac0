//! A controller in this process on loopback, and a scripted machine that talks
//! to it over the real client.
#![allow(dead_code, unreachable_pub)]

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::agent::{Assignment, DeployedConfig, Orders, Proof, Register, Report, ReportKind, Token};
use api::client::{Client, ClientError};
use api::operator::{DeploymentView, ImageView, NewDeployment, NewNode, NodeSettings, NodeView};
use bytes::Bytes;
use fleet::disk::Disk;
use fleet::ids::{Mac, NodeName};
use fleet::ledger::{Ledger, Traffic};
use fleet::life::Stage;
use fleet::node::Progress;
use rackswarm_controller::{Config, bind};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for anything in these tests.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running controller.
pub struct Server {
    pub config: Config,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), rackswarm_controller::Error>>,
}

/// A configuration that needs no privileges and keeps everything in `folder`.
pub fn config(folder: &Path) -> Config {
    let loaders = folder.join("loaders");
    std::fs::create_dir_all(&loaders).unwrap();
    let mut config = Config::default();
    config.server.data_dir = folder.join("data");
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.swarm.listen = "127.0.0.1:0".parse().unwrap();
    config.tftp.enabled = false;
    config.tftp.root = loaders;
    config.deploy.pause_seconds = 0;
    config
}

impl Server {
    pub async fn start(config: &Config) -> Self {
        let bound = bind(config.clone()).unwrap();
        let (address, token_file) = (bound.http_address(), bound.token_file());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(bound.serve(async move {
            let _ = stopped.await;
        }));
        eventually("the operator token", || async { token_file.exists().then_some(()) }).await;
        let server = Self { config: config.clone(), address, stop, task };
        eventually("an answer", || async { server.operator().status().await.ok() }).await;
        server
    }

    /// Ends it in an orderly way; must be quick.
    pub async fn stop(self) {
        let begun = Instant::now();
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "stopping took {:?}", begun.elapsed());
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn token(&self) -> Token {
        let file = self.config.server.data_dir.join("operator.token");
        Token(std::fs::read_to_string(file).unwrap().trim().to_owned())
    }

    pub fn operator(&self) -> Client {
        self.client(self.token())
    }

    pub fn client(&self, token: Token) -> Client {
        Client::new(&self.url(""), token).unwrap()
    }

    pub async fn import(&self, name: &str, content: Vec<u8>) -> Result<ImageView, ClientError> {
        let length = content.len() as u64;
        let chunks: Vec<std::io::Result<Bytes>> =
            content.chunks(100_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        self.operator().import_image(name, Some("raw"), length, futures_util::stream::iter(chunks)).await
    }

    pub async fn add_node(&self, name: &str, mac: Mac, power: &str) -> NodeView {
        let settings = NodeSettings { macs: Some(vec![mac]), power: Some(power.to_owned()), ..NodeSettings::default() };
        self.operator().add_node(&NewNode { name: name.parse().unwrap(), settings }).await.unwrap()
    }

    pub async fn deploy(&self, image: &str, nodes: &[&str]) -> DeploymentView {
        let nodes = nodes.iter().map(|name| name.parse().unwrap()).collect();
        let deployment = NewDeployment { image: image.to_owned(), nodes, ..NewDeployment::default() };
        self.operator().deploy(&deployment).await.unwrap()
    }

    pub async fn node(&self, name: &str) -> NodeView {
        self.operator().node(&name.parse().unwrap()).await.unwrap()
    }

    pub async fn until(&self, name: &str, what: &str, holds: impl Fn(&NodeView) -> bool) -> NodeView {
        let client = self.operator();
        let name: NodeName = name.parse().unwrap();
        eventually(what, || async { client.node(&name).await.ok().filter(&holds) }).await
    }

    pub async fn until_stage(&self, name: &str, stage: Stage) -> NodeView {
        self.until(name, stage.as_str(), |node| node.stage == stage).await
    }

    /// The words of a node's timeline, oldest first.
    pub async fn kinds(&self, name: &str) -> Vec<String> {
        let lines = self.operator().timeline(&name.parse().unwrap()).await.unwrap();
        lines.into_iter().map(|line| line.kind).collect()
    }

    /// Fetches a boot script as iPXE would.
    pub async fn script(&self, mac: Mac) -> String {
        let url = self.url(&format!("/boot/{}/script?uuid=&platform=pcbios", mac.dashed()));
        let answer = reqwest::get(url).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    }

    /// Network-boots a machine to the point where its agent knows its token.
    pub async fn boot(&self, mac: Mac) -> Agent {
        let script = self.script(mac).await;
        self.agent(mac, &script)
    }

    /// The agent of a machine whose kernel line is in this text.
    pub fn agent(&self, mac: Mac, script: &str) -> Agent {
        let word = |key: &str| script.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        let token = word("rackswarm.token=").unwrap_or_else(|| panic!("no token in {script}"));
        assert_eq!(word("rackswarm.server=").unwrap(), self.url(""));
        Agent { client: self.client(Token(token)), mac }
    }
}

/// The agent in memory of a scripted machine.
pub struct Agent {
    pub client: Client,
    pub mac: Mac,
}

pub fn disk() -> Disk {
    Disk {
        path: "/dev/vda".to_owned(),
        size_bytes: 4 << 30,
        serial: Some("disk-1".to_owned()),
        contents: vec!["an old file system".to_owned()],
        ..Disk::default()
    }
}

impl Agent {
    pub fn introduction(&self) -> Register {
        Register {
            uuid: None,
            macs: vec![self.mac.to_string()],
            memory_bytes: 1 << 30,
            processors: 2,
            product: "Scripted Machine".to_owned(),
            disks: vec![disk()],
            agent_version: "test".to_owned(),
            findings: Default::default(),
        }
    }

    pub async fn register(&self) -> Assignment {
        match self.client.register(&self.introduction()).await.unwrap() {
            Orders::Install(assignment) => *assignment,
            order => panic!("{order:?}"),
        }
    }

    pub async fn say(&self, assignment: &Assignment, what: ReportKind) -> Result<(), ClientError> {
        self.client.report(&Report { attempt: assignment.attempt, what }).await
    }

    /// All that an agent says from the disk's choice to the reboot.
    pub async fn install(&self, assignment: &Assignment) -> DeployedConfig {
        let progress =
            Progress { done_bytes: assignment.size_bytes, total_bytes: assignment.size_bytes, ..Progress::default() };
        for what in [
            ReportKind::FetchStarted {
                disk: disk().identity(),
                text: format!("{}: an old file system is lost", disk()),
            },
            ReportKind::Progress(progress),
            ReportKind::Ledger(from_the_controller(assignment.size_bytes)),
            ReportKind::ImageVerified { text: "all pieces verified".to_owned() },
            ReportKind::PostActionDone { action: "hostname".to_owned(), milliseconds: 3, output: "ok".to_owned() },
            ReportKind::PostActionsDone,
        ] {
            self.say(assignment, what).await.unwrap();
        }
        DeployedConfig {
            node: assignment.node.clone(),
            controller_url: assignment.post.controller_url.clone(),
            node_token: assignment.post.node_token.clone(),
            digest: assignment.digest,
            attempt: assignment.attempt,
            heartbeat_seconds: assignment.post.heartbeat_seconds,
            watch_processes: Vec::new(),
        }
    }
}

/// All of the image came from the controller's own seeder.
fn from_the_controller(received_bytes: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.add(None, &Traffic { received_bytes, ..Traffic::default() });
    ledger
}

pub fn proof(deployed: &DeployedConfig) -> Proof {
    Proof {
        digest: deployed.digest,
        disk: disk().identity(),
        attempt: deployed.attempt,
        boot_id: "b".to_owned(),
        kernel: "6.1".to_owned(),
    }
}

pub fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

/// Content that has zeros in the middle, so that not all of it travels.
pub fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![seed; 300_000];
    bytes[0] = seed.wrapping_add(1);
    bytes.resize(1 << 20, 0);
    bytes
}

/// A name for a fake machine that no other test uses.
pub fn fake(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// Asks until there is an answer; panics with `what` at the deadline.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "still waiting for {what} after {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The status of a refusal.
pub fn status<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> u16 {
    match outcome.unwrap_err() {
        ClientError::Refused { status, .. } | ClientError::Failed { status, .. } => status,
        other => panic!("{other}"),
    }
}

pub fn environment(config: &Config) -> PathBuf {
    let folder = config.environment();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("vmlinuz"), vec![1u8; 200_000]).unwrap();
    std::fs::write(folder.join("initramfs"), vec![2u8; 300_001]).unwrap();
    folder
}
