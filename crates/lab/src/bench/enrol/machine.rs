//! One machine: what its firmware, its agent in memory and its deployed system say to the controller.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::agent::{Assignment, Heartbeat, Orders, Proof, Register, Report, ReportKind, Token};
use api::client::{Client, ClientError};
use fleet::disk::Disk;
use fleet::ids::{Mac, NodeName};
use fleet::node::{Beat, Progress};
use tokio::sync::watch;
use uuid::Uuid;

/// What all of them are.
pub(super) const PRODUCT: &str = "Lab Machine Twin Socket";
/// Tries of one request.
const TRIES: u32 = 40;
const GIB: u64 = 1 << 30;
/// The script's size, as the firmware's loader bounds it.
const SCRIPT_BYTES: usize = 64 << 10;
/// From the last post action to the proof.
const REBOOT: Duration = Duration::from_secs(2);

/// Where all of them are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// They come for the first time.
    Enrol,
    /// They are switched on, and some fetch already.
    Deploy,
    /// All of them fetch.
    AllFetch,
    /// They end, one after the other.
    Ending,
    /// All of them run.
    AllRun,
}

/// What was asked of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    /// Script and inventory.
    Boot,
    /// Script and registration, from the power hook's call on.
    Orders,
    /// A report of an agent.
    Report,
    /// A heartbeat.
    Beat,
    /// An operator's look.
    Status,
    /// An operator's look at all outcomes.
    Deployment,
    /// An operator's list of nodes.
    List,
}

/// How long everything took, by phase. The phase moves when the last machine has come to it.
pub(super) struct Clocks {
    machines: usize,
    fetching: AtomicUsize,
    verified: AtomicUsize,
    running: AtomicUsize,
    repeated: AtomicU64,
    report_seconds: AtomicU32,
    times: Mutex<BTreeMap<(Phase, Call), Vec<f64>>>,
    began: Mutex<BTreeMap<Phase, Instant>>,
}

impl Clocks {
    pub(super) fn new(machines: usize) -> Clocks {
        Clocks {
            machines,
            fetching: AtomicUsize::new(0),
            verified: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            repeated: AtomicU64::new(0),
            report_seconds: AtomicU32::new(0),
            times: Mutex::default(),
            began: Mutex::default(),
        }
    }

    /// Where the machines are now, since the deployment began.
    pub(super) fn phase(&self) -> Phase {
        let at = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        match (at(&self.fetching), at(&self.verified), at(&self.running)) {
            (_, _, running) if running == self.machines => Phase::AllRun,
            (_, 1.., _) => Phase::Ending,
            (fetching, ..) if fetching == self.machines => Phase::AllFetch,
            _ => Phase::Deploy,
        }
    }

    fn step(&self, count: &AtomicUsize) {
        let before = self.phase();
        count.fetch_add(1, Ordering::Relaxed);
        let after = self.phase();
        if before != after {
            self.began.lock().unwrap_or_else(PoisonError::into_inner).entry(after).or_insert_with(Instant::now);
        }
    }

    pub(super) fn add(&self, phase: Phase, call: Call, time: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.entry((phase, call)).or_default().push(time.as_secs_f64() * 1e3);
    }

    pub(super) fn times(&self, phase: Phase, call: Call) -> Vec<f64> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.get(&(phase, call)).cloned().unwrap_or_default()
    }

    /// From the phase's beginning to that of the next.
    pub(super) fn length(&self, phase: Phase) -> Duration {
        let began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(from) = began.get(&phase) else { return Duration::ZERO };
        let next = began.iter().find(|(other, _)| **other > phase).map(|(_, at)| *at);
        next.unwrap_or_else(Instant::now).duration_since(*from)
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Seconds between two reports, as the orders of the last machine say.
    pub(super) fn report_seconds(&self) -> u32 {
        self.report_seconds.load(Ordering::Relaxed)
    }

    pub(super) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }
}

/// One machine.
pub(super) struct Machine {
    number: usize,
    mac: Mac,
    client: Client,
    clocks: Arc<Clocks>,
    power: watch::Receiver<u64>,
    fetching: Duration,
}

impl Machine {
    pub(super) fn new(
        number: usize,
        client: Client,
        clocks: Arc<Clocks>,
        power: watch::Receiver<u64>,
        fetching: Duration,
    ) -> Machine {
        Machine { number, mac: mac(number), client, clocks, power, fetching }
    }

    /// Boots for the first time, tells what it is, and is told to go.
    pub(super) async fn enrol(&self) -> Result<()> {
        let begun = Instant::now();
        let agent = self.boot().await?;
        // The answer to whoever only tells what it is: stop and reboot.
        let introduction = self.introduction();
        match self.insist(|| agent.register(&introduction)).await {
            Err(ClientError::Refused { status: 409, .. }) => {}
            other => bail!("machine {} told what it is and was answered {other:?}", self.number),
        }
        self.clocks.add(Phase::Enrol, Call::Boot, begun.elapsed());
        Ok(())
    }

    /// From the power hook's call to the proof, and then beats for ever.
    pub(super) async fn live(mut self) -> Result<()> {
        self.power.changed().await.context("the power hooks are gone")?;
        let switched = Instant::now();
        let agent = self.boot().await?;
        let mut introduction = self.introduction();
        let orders = self.insist(|| agent.register(&introduction)).await?;
        let Orders::Install(orders) = orders else { bail!("machine {} is to be captured", self.number) };
        self.clocks.add(Phase::Deploy, Call::Orders, switched.elapsed());
        let disk = introduction.disks.remove(0);
        let text = format!("{disk}: {} are lost", disk.contents.join(" and "));
        self.say(&agent, &orders, ReportKind::FetchStarted { disk: disk.identity(), text }).await?;
        self.clocks.step(&self.clocks.fetching);
        self.fetch(&agent, &orders).await?;
        self.say(&agent, &orders, ReportKind::ImageVerified { text: "all pieces verified".to_owned() }).await?;
        self.clocks.step(&self.clocks.verified);
        for action in ["hostname", "keys", "network", "grow-root"] {
            let done =
                ReportKind::PostActionDone { action: action.to_owned(), milliseconds: 30, output: "ok".to_owned() };
            self.say(&agent, &orders, done).await?;
        }
        self.say(&agent, &orders, ReportKind::PostActionsDone).await?;
        tokio::time::sleep(REBOOT).await;
        let daemon = self.client.with_token(orders.post.node_token.clone());
        let proof = Proof {
            digest: orders.digest,
            disk: disk.identity(),
            attempt: orders.attempt,
            boot_id: Uuid::from_u128(self.number as u128).to_string(),
            kernel: "6.12.48+deb13-amd64".to_owned(),
        };
        self.insist(|| daemon.prove(&proof)).await?;
        self.clocks.step(&self.clocks.running);
        self.beat(&daemon, orders.post.heartbeat_seconds).await
    }

    async fn fetch(&self, agent: &Client, orders: &Assignment) -> Result<()> {
        let begun = Instant::now();
        self.clocks.report_seconds.store(orders.report_seconds, Ordering::Relaxed);
        let total = orders.size_bytes;
        while begun.elapsed() < self.fetching {
            tokio::time::sleep(Duration::from_secs(orders.report_seconds.into())).await;
            let share = (begun.elapsed().as_secs_f64() / self.fetching.as_secs_f64()).min(1.0);
            let done = (total as f64 * share) as u64;
            let progress = Progress {
                done_bytes: done,
                total_bytes: total,
                received_bytes: done,
                sent_bytes: done / 2,
                down_bytes_per_second: 100_000_000,
                up_bytes_per_second: 50_000_000,
                peers: 40,
            };
            self.say(agent, orders, ReportKind::Progress(progress)).await?;
        }
        Ok(())
    }

    async fn beat(&self, daemon: &Client, seconds: u32) -> Result<()> {
        let mut beat =
            Beat { load1: 0.3, memory_total_bytes: 512 * GIB, disk_total_bytes: 960 * GIB, ..Beat::default() };
        loop {
            let (phase, begun) = (self.clocks.phase(), Instant::now());
            beat.uptime_seconds += u64::from(seconds);
            let heartbeat = Heartbeat { beat: beat.clone() };
            self.insist(|| daemon.beat(&heartbeat)).await?;
            self.clocks.add(phase, Call::Beat, begun.elapsed());
            tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        }
    }

    async fn say(&self, agent: &Client, orders: &Assignment, what: ReportKind) -> Result<()> {
        let (phase, begun) = (self.clocks.phase(), Instant::now());
        let report = Report { attempt: orders.attempt, what };
        self.insist(|| agent.report(&report)).await?;
        self.clocks.add(phase, Call::Report, begun.elapsed());
        Ok(())
    }

    /// Fetches the boot script as the loader does; the agent's token is in it.
    async fn boot(&self) -> Result<Client> {
        let path = format!("/boot/{}/script?uuid={}&platform=efi", self.mac.dashed(), uuid(self.number));
        let script = self.insist(|| self.client.read(&path, SCRIPT_BYTES)).await?;
        let script = String::from_utf8_lossy(&script);
        let token = script.split_whitespace().find_map(|word| word.strip_prefix("rackswarm.token="));
        let token = token.with_context(|| format!("machine {} was sent to its disk: {script}", self.number))?;
        Ok(self.client.with_token(Token(token.to_owned())))
    }

    /// Asks again while another answer may come, as machines do.
    async fn insist<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        let mut tries = 1;
        loop {
            match ask().await {
                Err(error) if error.may_pass() && tries < TRIES => {
                    tries += 1;
                    self.clocks.repeated.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(machine = self.number, %error, "asked again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                other => return other,
            }
        }
    }

    fn introduction(&self) -> Register {
        let [_, _, a, b, c, _] = self.mac.0;
        let cards = [0, 1, 2, 3].map(|card| Mac([0x52, 0x54, a, b, c, card]).to_string());
        Register {
            uuid: Some(uuid(self.number)),
            macs: cards.to_vec(),
            memory_bytes: 512 * GIB,
            processors: 128,
            product: PRODUCT.to_owned(),
            disks: (0..10).map(|disk| self.disk(disk)).collect(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            findings: Default::default(),
        }
    }

    fn disk(&self, number: usize) -> Disk {
        let name = format!("nvme{number}n1");
        Disk {
            path: format!("/dev/{name}"),
            by_path: vec![format!("/dev/disk/by-path/pci-0000:{:02x}:00.0-nvme-1", 0x41 + number)],
            size_bytes: 3840 * 1_000_000_000,
            serial: Some(format!("LAB{:06}{number:02}", self.number)),
            wwn: Some(format!("eui.{:08x}{number:08x}", self.number)),
            model: Some("Lab Datacenter NVMe 3.84TB".to_owned()),
            contents: vec!["a GPT with 3 partitions".to_owned(), "ext4 `root`, 40 GiB used".to_owned()],
            ..Disk::default()
        }
    }
}

/// The boot interface of a machine; the last byte counts its cards.
fn mac(number: usize) -> Mac {
    let [.., a, b, c] = (number as u32).to_be_bytes();
    Mac([0x52, 0x54, a, b, c, 0])
}

fn uuid(number: usize) -> Uuid {
    Uuid::from_u128(0x4c61_6200_0000_4000_8000_0000_0000_0001 + number as u128)
}

/// What the controller calls a machine that nobody has named.
pub(super) fn name(number: usize) -> NodeName {
    NodeName::of_stranger(mac(number))
}
