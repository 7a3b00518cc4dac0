//! The agent's life: one function, read from top to bottom.

mod tree;
mod wipe;

use std::io::Write;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::agent::{Assignment, CaptureOrder, DeployedConfig, Orders, Register, ReportKind, Token};
use api::client::{Client, ClientError};
use fleet::discovery::Card;
use fleet::disk::{Disk, Purpose, Size, are_among, choose};
use fleet::ids::Mac;
use image::{DiskSink, Manifest, PieceSink};
use tokio::time::{self, Instant};

use crate::capture::{self, Pace, Sent};
use crate::cards::Listener;
use crate::checks;
use crate::command::Run;
use crate::devices::Devices;
use crate::fetch::{self, Swarm};
use crate::inventory::View;
use crate::kernel_line::KernelLine;
use crate::modules::Modules;
use crate::network::{self, Network};
use crate::post::{self, Subject};
use crate::report::{Pauses, Reporter};
use crate::{Error, Stop, Watchdog, contents, init};

/// No device has appeared for this long: no disk is about to. Waited for before
/// a disk is chosen, since a second one that matches must be a refusal.
const DISKS_QUIET: Duration = Duration::from_secs(2);
/// RAID controllers take this long to show their last disk.
const DISKS_LIMIT: Duration = Duration::from_secs(60);
/// How long the controller may be away before the machine starts again: it may
/// have been given another controller since.
const SILENT_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The longest pause between two tries to be answered.
const ASK_PAUSE: Duration = Duration::from_secs(15);
/// How long the last words may take. The proof of the booted system says more.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5 * 60);
/// Between two reports of progress of a node that nothing is to be installed on.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// `blockdev` only talks to the kernel.
const PROTECT_LIMIT: Duration = Duration::from_secs(30);
/// How long the report of a failure may take.
const FAILURE_LIMIT: Duration = Duration::from_secs(60);
/// Largest manifest, in bytes: over a million pieces.
const MANIFEST_LIMIT_BYTES: usize = 64 << 20;
/// Where peers connect to on a machine of its own; the port that BitTorrent had first.
const PEER_PORT: u16 = 6881;

/// What the agent runs with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it runs.
    pub place: Place,
    /// Base URL of the controller.
    pub server: String,
    /// The attempt's boot token.
    pub token: Token,
    /// The interface that the machine booted through.
    pub mac: Option<Mac>,
    /// Whether the written image is made this node's own.
    pub post: bool,
    /// How long to listen for switches before the machine shows itself.
    pub listen: Duration,
    /// Whether the hardware is checked before that.
    pub check: bool,
    /// Where to write what the booted system would prove itself with; for trials, in which nothing boots.
    pub booted: Option<PathBuf>,
}

/// Where the agent runs.
#[derive(Debug, Clone)]
pub enum Place {
    /// In the boot environment, which has nothing up yet.
    BootEnvironment,
    /// On a system that runs; these stand for the machine's disks.
    Trial {
        /// The disks with their facts.
        disks: Vec<Disk>,
        /// Where peers connect to.
        listen: SocketAddr,
    },
}

impl Options {
    /// What the kernel line says, for the boot environment.
    ///
    /// # Errors
    /// When it lacks something.
    pub fn from_kernel_line(line: &str) -> Result<Self, Error> {
        let line = KernelLine::parse(line)?;
        let listen = Duration::from_secs(line.listen_seconds.into());
        let (server, token, mac, check) = (line.server, line.token, line.mac, line.check);
        Ok(Self { place: Place::BootEnvironment, server, token, mac, post: true, booted: None, listen, check })
    }
}

/// Provisions this machine. Afterwards it is to restart, whatever the outcome.
///
/// # Errors
/// Whatever ended the attempt; the controller has been told if it can be.
pub async fn run(options: Options, watchdog: &Watchdog) -> Result<(), Error> {
    // Devices, modules, network.
    let ground = Ground::prepare(&options).await?;
    watchdog.feed();

    // Show ourselves until somebody answers what to do.
    let client = Client::new(&options.server, options.token.clone()).map_err(|e| Error::Usage(e.to_string()))?;
    let mut machine = ground.machine().await?;
    if options.check {
        machine.findings.checks = checks::make(&client, &machine.disks).await;
    }
    machine.findings.cards = ground.cards(options.listen).await;
    let orders = register(&client, &options.server, &machine).await?;
    let attempt = match &orders {
        Orders::Install(order) => {
            tracing::info!("this is {}, attempt {}, to become {}", order.node, order.attempt, order.image);
            order.attempt
        }
        Orders::Capture(order) => {
            tracing::info!(
                "this is {}, attempt {}, to be captured as {}",
                order.node,
                order.attempt,
                order.capture.image
            );
            order.attempt
        }
        Orders::Wipe(order) => {
            tracing::info!("this is {}, attempt {}, to be wiped", order.node, order.attempt);
            order.attempt
        }
    };
    if matches!(options.place, Place::BootEnvironment) {
        init::remember(&options.server, &options.token, attempt);
    }
    watchdog.feed();

    // From here on the attempt has a number, and every end is reported under it.
    let stop = Stop::default();
    let pause = match &orders {
        Orders::Install(order) => Duration::from_secs(order.report_seconds.max(1).into()),
        Orders::Capture(_) | Orders::Wipe(_) => PROGRESS_PAUSE,
    };
    let (reporter, telling) = Reporter::start(client.clone(), attempt, pause, stop.clone());
    let (options, ground) = (&options, &ground);
    let outcome = match orders {
        Orders::Install(order) => {
            let life = Life { options, ground, client, assignment: *order, reporter, watchdog, stop };
            life.live(life.provision()).await
        }
        Orders::Capture(order) => {
            let life = Life { options, ground, client, assignment: order, reporter, watchdog, stop };
            life.live(life.capture()).await
        }
        Orders::Wipe(order) => {
            let life = Life { options, ground, client, assignment: order, reporter, watchdog, stop };
            life.live(life.wipe()).await
        }
    };
    telling.abort();
    outcome
}

/// One attempt, once its number is known.
struct Life<'a, Order> {
    options: &'a Options,
    ground: &'a Ground,
    client: Client,
    assignment: Order,
    reporter: Reporter,
    watchdog: &'a Watchdog,
    stop: Stop,
}

impl<Order> Life<'_, Order> {
    /// Does the work to its end, or until the attempt is over.
    async fn live(&self, work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let outcome = tokio::select! {
            outcome = work => outcome,
            reason = self.stop.wait() => Err(Error::AttemptOver(reason)),
        };
        // Whatever failed because everything was to stop, the reason is that of the stop.
        let outcome = match self.stop.reason() {
            Some(reason) => outcome.map_err(|_| Error::AttemptOver(reason)),
            None => outcome,
        };
        // Work on blocking threads looks at the word; nothing may go on writing.
        self.stop.set("the attempt has ended");
        if let Err(error) = &outcome {
            self.report_failure(error).await;
        }
        outcome
    }

    /// Tells what moves the node's life, until it is accepted.
    async fn tell(&self, kind: ReportKind) -> Result<(), Error> {
        match self.reporter.tell(kind).await {
            Ok(()) => {
                self.watchdog.feed();
                Ok(())
            }
            Err(_) => Err(Error::AttemptOver(self.stop.reason().unwrap_or_default())),
        }
    }

    /// The last words. The controller may be away by then.
    async fn farewell(&self, kind: ReportKind) -> Result<(), Error> {
        match time::timeout(FAREWELL_LIMIT, self.tell(kind)).await {
            Ok(accepted) => accepted,
            Err(_) => {
                tracing::warn!("the controller is away; the booted system will tell it");
                Ok(())
            }
        }
    }

    async fn report_failure(&self, error: &Error) {
        if error.is_to_be_reported() {
            let told = self.reporter.tell(ReportKind::Failed { reason: error.to_string(), retry: error.retry() });
            if !matches!(time::timeout(FAILURE_LIMIT, told).await, Ok(Ok(()))) {
                tracing::warn!("the controller could not be told");
            }
        }
    }
}

impl Life<'_, CaptureOrder> {
    /// From the order to a disk that has been sent. It is only read.
    async fn capture(&self) -> Result<(), Error> {
        // The interlock's rule says which disk; any size will do.
        let disks = self.ground.disks().await?;
        let disk = choose(&disks, &self.assignment.disk, Purpose::Read)?;
        tracing::info!("the disk is {disk}");
        if matches!(self.options.place, Place::BootEnvironment) {
            protect(&disk.path, &self.stop).await?;
        }
        let path = PathBuf::from(&disk.path);
        let source = Arc::new(blocking(move || image::capture::Disk::open(&path)).await??);
        self.watchdog.feed();
        let order = &self.assignment.capture;
        let original = source.original(&disk.identity(), order.generalise);
        tracing::info!("{}", original.sentence());
        self.tell(ReportKind::CaptureStarted { text: format!("{disk}: {}", original.sentence()) }).await?;

        let began = Instant::now();
        let pace = Pace::default();
        let told = |sent: Sent| {
            self.watchdog.feed();
            self.reporter.progress(pace.progress(sent, &original));
        };
        let sending = capture::send(&self.client, &order.image, source, &original, SILENT_LIMIT, &self.stop, &told);
        let (sent, _) = sending.await?;
        let text = format!(
            "{} chunks are with the server after {} s, {} MiB travelled, {} chunks were there before; \
             the image is made there now, and this machine starts its own disk",
            sent.chunks,
            began.elapsed().as_secs(),
            sent.sent_bytes >> 20,
            sent.kept_chunks
        );
        tracing::info!("{text}");
        self.farewell(ReportKind::Captured { text }).await
    }
}

impl Life<'_, Assignment> {
    /// From the assignment to a disk that boots as this node.
    async fn provision(&self) -> Result<(), Error> {
        match &self.assignment.layout {
            Some(layout) => self.provision_tree(layout).await,
            None => self.provision_disk().await,
        }
    }

    async fn provision_disk(&self) -> Result<(), Error> {
        let manifest = Arc::new(self.manifest().await?);

        // Interlock: exactly one disk, looked for again now that all have had time to appear.
        let disks = self.ground.disks().await?;
        let own = self.assignment.own_disk.as_deref();
        let purpose = Purpose::Write { image_bytes: self.assignment.size_bytes, own };
        let disk = choose(&disks, &self.assignment.disk, purpose)?;
        let is_own = own.is_none_or(|own| are_among(&disk.identity(), own));
        tracing::info!("the disk is {disk}");
        let sink = Arc::new(DiskSink::open(Path::new(&disk.path), manifest)?);
        if self.assignment.keep_what_is_right && is_own {
            self.scan(&sink).await?;
        }

        // Nothing is written before the controller knows what is about to be lost.
        let text = lost(disk, &sink);
        tracing::info!("{text}");
        self.tell(ReportKind::FetchStarted { disk: disk.identity(), text }).await?;
        if !disk.signatures.is_empty() && sink.held().is_clear() {
            let (path, stop) = (disk.path.clone(), self.stop.clone());
            blocking(move || contents::erase_marks(&path, &stop)).await??;
        }
        self.receive(sink).await?;

        if self.options.post {
            self.post(disk).await?;
        }
        if let Some(file) = &self.options.booted {
            self.write_booted(file)?;
        }
        self.last_words().await
    }

    /// Pieces arrive, are verified, and are written; then they are given to others for a while.
    async fn receive(&self, sink: Arc<DiskSink>) -> Result<(), Error> {
        self.zero(&sink).await?;
        let began = Instant::now();
        let mut swarm = Swarm::join(&self.assignment, &sink, self.ground.listen()).await?;
        let fetched = swarm.complete(&self.reporter, self.watchdog, &self.stop).await?;
        let read_back = self.finish(&sink).await?;
        let text = format!(
            "{} MiB received in {} s, {} KiB of it in vain, {} corrupt pieces kept off the disk, {read_back} pieces read back",
            fetched.bytes_down >> 20,
            began.elapsed().as_secs(),
            fetched.bytes_wasted >> 10,
            fetched.corrupt_pieces
        );
        tracing::info!("the image is verified on the disk: {text}");
        let ledger = swarm.ledger().await;
        // Reports are answered in order, so the next one's answer stands for these. A short fetch is over before its progress
        // would be told for the first time.
        drop(self.reporter.tell(ReportKind::Progress(fetch::as_reported(&fetched))));
        drop(self.reporter.tell(ReportKind::Ledger(ledger)));
        self.tell(ReportKind::ImageVerified { text }).await?;

        // Give before changing: pieces that post actions touch could not be given any more.
        let linger = Duration::from_secs(self.assignment.linger_seconds.into());
        let ledger = swarm.linger(linger, &self.reporter, &self.stop).await?;
        tracing::info!("gave {} MiB to others", ledger.sent_bytes() >> 20);
        drop(self.reporter.tell(ReportKind::Ledger(ledger)));
        fetch::release(sink).await?;
        self.watchdog.feed();
        Ok(())
    }

    /// Everything is written and closed.
    async fn last_words(&self) -> Result<(), Error> {
        let cards = self.ground.cards(Duration::ZERO).await;
        if cards.iter().any(|card| card.switch.is_some()) {
            self.tell(ReportKind::SwitchesHeard { cards }).await?;
        }
        rustix::fs::sync();
        tracing::info!("done; the machine starts from its disk now");
        self.farewell(ReportKind::PostActionsDone).await
    }

    /// The image's manifest, which must be the assigned one.
    async fn manifest(&self) -> Result<Manifest, Error> {
        let path = &self.assignment.manifest_path;
        let read = answered(&self.options.server, || self.client.read(path, MANIFEST_LIMIT_BYTES)).await;
        let text = read.map_err(|error| Error::Assignment(error.to_string()))?;
        let manifest = Manifest::from_json(&text)?;
        if manifest.digest() != Some(self.assignment.digest) || manifest.size_bytes() != self.assignment.size_bytes {
            let why = format!("the manifest at {path} is not of the assigned image {}", self.assignment.digest);
            return Err(Error::Assignment(why));
        }
        Ok(manifest)
    }

    /// Hashes what the disk holds and keeps the right pieces.
    async fn scan(&self, sink: &Arc<DiskSink>) -> Result<(), Error> {
        tracing::info!("looking for what the disk already holds");
        self.on_disk(sink, |sink, progress| sink.scan(progress).map(drop)).await
    }

    /// Zeroes what is to be zero. Long runs take their time on disks that cannot
    /// do it themselves; what is done shows as progress.
    async fn zero(&self, sink: &Arc<DiskSink>) -> Result<(), Error> {
        let manifest = Arc::clone(sink.manifest());
        let shown = async {
            loop {
                self.reporter.progress(fetch::before_swarm(&manifest, sink));
                time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            zeroed = self.on_disk(sink, DiskSink::prepare) => zeroed,
            () = shown => Ok(()),
        }
    }

    async fn finish(&self, sink: &Arc<DiskSink>) -> Result<u32, Error> {
        let sink = Arc::clone(sink);
        let finished = blocking(move || sink.finish(rand::random())).await??;
        self.watchdog.feed();
        Ok(finished.pieces_read_back)
    }

    /// Long work on the disk, off the runtime's threads. It ends when everything
    /// is to stop.
    async fn on_disk(
        &self,
        sink: &Arc<DiskSink>,
        work: impl FnOnce(&DiskSink, &mut image::Progress<'_>) -> Result<(), image::Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (sink, stop, watchdog) = (Arc::clone(sink), self.stop.clone(), self.watchdog.clone());
        let done = blocking(move || {
            work(&sink, &mut |_, _| {
                watchdog.feed();
                if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        Ok(done.await??)
    }

    /// Readable by its owner only: the node's token is in it.
    fn write_booted(&self, file: &Path) -> Result<(), Error> {
        let config = DeployedConfig::of(&self.assignment);
        let text = serde_json::to_vec_pretty(&config).map_err(|error| Error::Defect(error.to_string()))?;
        let mut options = std::fs::OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600);
        let written = options.open(file).and_then(|mut open| open.write_all(&text));
        written.map_err(Error::io("write", file))
    }

    async fn post(&self, disk: &Disk) -> Result<(), Error> {
        let subject = self.subject(Path::new(&disk.path));
        let (stop, done) = (self.stop.clone(), self.done());
        blocking(move || post::run(&subject, &stop, &done)).await?
    }

    fn subject(&self, disk: &Path) -> Subject {
        Subject {
            disk: disk.to_owned(),
            node: self.assignment.node.clone(),
            image: self.assignment.image.clone(),
            digest: self.assignment.digest,
            attempt: self.assignment.attempt,
            mac: self.ground.mac(self.options.mac),
            own_machine: matches!(self.options.place, Place::BootEnvironment),
            plan: self.assignment.post.clone(),
        }
    }

    /// Tells of each post action that ended well.
    fn done(&self) -> impl Fn(&str, Duration, String) + Send + use<> {
        let (reporter, watchdog) = (self.reporter.clone(), self.watchdog.clone());
        move |action: &str, took: Duration, output: String| {
            watchdog.feed();
            tracing::info!("{action} done in {} ms", took.as_millis());
            let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            // Answered in order, so the last report's answer stands for these.
            drop(reporter.tell(ReportKind::PostActionDone { action: action.to_owned(), milliseconds, output }));
        }
    }
}

/// What the agent stands on: devices and the network, or what stands for them.
enum Ground {
    Machine { devices: Devices, network: Box<Network>, listener: Listener },
    Trial { disks: Vec<Disk>, listen: SocketAddr, mac: Option<Mac> },
}

impl Ground {
    async fn prepare(options: &Options) -> Result<Self, Error> {
        match &options.place {
            Place::Trial { disks, listen } => {
                Ok(Self::Trial { disks: disks.clone(), listen: *listen, mac: options.mac })
            }
            Place::BootEnvironment => {
                let modules = blocking(load_listed_modules).await?;
                let devices = Devices::watch(modules);
                let network = Box::new(network::up(options.mac).await?);
                let all = options.listen > Duration::ZERO;
                let interfaces = if all { network::cards() } else { vec![network.interface.clone()] };
                let listener = blocking(move || Listener::start(&interfaces)).await?;
                Ok(Self::Machine { devices, network, listener })
            }
        }
    }

    /// The machine as it registers.
    async fn machine(&self) -> Result<Register, Error> {
        match self {
            Self::Trial { disks, mac, .. } => {
                let mac = *mac;
                let machine = blocking(move || View::default().machine_without_disks(mac)).await?;
                // The host's own is not that of the machine whose disks these are.
                Ok(Register { disks: disks.clone(), uuid: None, ..machine })
            }
            Self::Machine { devices, network, .. } => {
                devices.settled(DISKS_QUIET, DISKS_LIMIT).await;
                let mac = network.mac;
                blocking(move || View::default().machine(Some(mac))).await
            }
        }
    }

    /// The network cards, after listening for so long.
    async fn cards(&self, listen: Duration) -> Vec<Card> {
        match self {
            Self::Trial { .. } => Vec::new(),
            Self::Machine { listener, .. } => {
                listener.wait(listen).await;
                listener.cards()
            }
        }
    }

    /// The disks, all that there are.
    async fn disks(&self) -> Result<Vec<Disk>, Error> {
        match self {
            Self::Trial { disks, .. } => Ok(disks.clone()),
            Self::Machine { devices, .. } => {
                if !devices.settled(DISKS_QUIET, DISKS_LIMIT).await {
                    tracing::warn!("devices still come and go after {} s", DISKS_LIMIT.as_secs());
                }
                blocking(|| {
                    let mut disks = View::default().disks();
                    contents::describe(&mut disks);
                    disks
                })
                .await
            }
        }
    }

    fn listen(&self) -> SocketAddr {
        match self {
            Self::Trial { listen, .. } => *listen,
            Self::Machine { network, .. } => SocketAddr::from((network.address, PEER_PORT)),
        }
    }

    fn mac(&self, given: Option<Mac>) -> Option<Mac> {
        match self {
            Self::Trial { .. } => given,
            Self::Machine { network, .. } => Some(network.mac),
        }
    }
}

/// Makes the kernel refuse every write to a disk until the machine starts again.
async fn protect(path: &str, stop: &Stop) -> Result<(), Error> {
    let run = Run::new("blockdev", PROTECT_LIMIT).args(["--setro", path]);
    let stop = stop.clone();
    blocking(move || run.text(&stop)).await??;
    Ok(())
}

fn load_listed_modules() -> Modules {
    let (modules, notes) = load_modules(Path::new("/etc/rackswarm/modules"));
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    modules
}

/// Loads the modules that a file lists; gives a sentence for each that did not load.
fn load_modules(list: &Path) -> (Modules, Vec<String>) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut modules = Modules::open(&Path::new("/lib/modules").join(release), &line);
    let notes = modules.load_listed(list);
    (modules, notes)
}

/// Registers until answered.
async fn register(client: &Client, url: &str, machine: &Register) -> Result<Orders, Error> {
    answered(url, || client.register(machine)).await
}

/// Asks again, with growing pauses, until the controller has an answer.
async fn answered<T, F: Future<Output = Result<T, ClientError>>>(url: &str, ask: impl Fn() -> F) -> Result<T, Error> {
    let deadline = Instant::now() + SILENT_LIMIT;
    let mut pauses = Pauses::up_to(ASK_PAUSE);
    let mut told = false;
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if !error.may_pass() => return Err(Error::Refused(error.to_string())),
            Err(error) => error,
        };
        if !told {
            tracing::warn!("{error}; asking again until it answers");
            told = true;
        }
        if Instant::now() >= deadline {
            let minutes = SILENT_LIMIT.as_secs() / 60;
            return Err(Error::Silent { url: url.to_owned(), minutes, cause: error.to_string() });
        }
        pauses.wait().await;
    }
}

/// A disk with what it holds.
fn held(disk: &Disk) -> String {
    match disk.contents.as_slice() {
        [] => format!("{disk}; it holds nothing that is known"),
        contents => format!("{disk}; lost is: {}", contents.join("; ")),
    }
}

/// Which disk, and what is lost on it.
fn lost(disk: &Disk, sink: &DiskSink) -> String {
    let manifest = sink.manifest();
    let kept = manifest.bytes_of(&sink.held());
    let mut to_fetch = sink.missing();
    to_fetch.difference_with(manifest.zero_pieces());
    let keeps = if kept > 0 { format!(", {} are right already", Size(kept)) } else { String::new() };
    format!("writing {}; {} to fetch{keeps}", held(disk), Size(manifest.bytes_of(&to_fetch)))
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Defect(error.to_string()))
}
