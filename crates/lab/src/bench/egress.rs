//! What one seeder gives on loopback, everything in memory: to clients that only drain their sockets, which is the
//! seeder's own limit, and to whole downloads, whose hashing and writing takes most of the same cores.

mod drain;

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::content;
use super::group::Group;
use super::machine::{self, Watch};
use crate::scratch::{self, Scratch};
use crate::stop::Stop;
use crate::{line, tool};
use drain::Drains;

/// The seeder hashes the file first.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Whoever downloads has failed after this time, and whoever drains gets its first bytes within it.
const LIMIT: Duration = Duration::from_secs(60);
/// So much passes to each client before the measurement begins.
const WARM_BYTES: u64 = 64 << 20;
/// Nobody listens there: the clients are told where the seeder is, and nothing of each other.
const NO_TRACKER: &str = "http://127.0.0.1:9/announce";
const GLANCE: Duration = Duration::from_millis(2);

/// What is asked of the seeder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of a piece.
    pub piece_bytes: u32,
    /// Clients at once.
    pub clients: usize,
    /// How long they drain.
    pub length: Duration,
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Ask for whole pieces, as our own kind does, and drain.
    Pieces,
    /// Ask for blocks of 16 KiB, as every client does, and drain.
    Blocks,
    /// `rackswarm fetch` into memory: hash and write too.
    Downloads,
}

impl Way {
    /// All of them, in the order in which they run.
    pub const ALL: [Way; 3] = [Way::Pieces, Way::Blocks, Way::Downloads];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Way::Pieces => "drain, pieces",
            Way::Blocks => "drain, blocks",
            Way::Downloads => "downloads",
        }
    }
}

/// What was measured. CPU is that of the processes, kernel included; loopback does most of a receiver's network work
/// where the packet is sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Egress {
    /// It came to its end; downloads have the same bytes as the seeder.
    pub ok: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Others used the machine.
    pub noisy: bool,
    /// Clients at once.
    pub clients: usize,
    /// How long it took.
    pub seconds: f64,
    /// What the seeder gave.
    pub bytes: u64,
    /// What downloads gave each other.
    pub exchanged_bytes: u64,
    /// 10^9 bytes that the seeder gave in a second.
    pub gigabytes_per_second: f64,
    /// CPU seconds of the seeder for 10^9 bytes.
    pub seeder_cpu_per_gb: f64,
    /// CPU seconds of all clients for 10^9 bytes.
    pub clients_cpu_per_gb: f64,
    /// Most resident memory of the seeder.
    pub seeder_resident_peak: u64,
    /// Share of the cores that nobody used before.
    pub free_before: f64,
    /// Share of the cores that nobody used meanwhile.
    pub idle_share: f64,
    /// CPU seconds of others.
    pub foreign_cpu: f64,
    /// CPU seconds that the host of this virtual machine took.
    pub steal: f64,
}

/// How it is done.
pub struct Setting<'a> {
    /// Our own program.
    pub program: &'a Path,
    /// The file to give.
    pub source: &'a Path,
    /// Folder for everything else, in memory.
    pub parent: &'a Path,
    /// Further words for `rackswarm seed`.
    pub seed_words: &'a [String],
    /// Further words for `rackswarm fetch`.
    pub fetch_words: &'a [String],
    /// How long to wait for an idle machine.
    pub patience: Duration,
    /// Others give way to us.
    pub others_give_way: bool,
    /// Asked to end?
    pub stop: &'a Stop,
}

/// Measures once.
#[must_use]
pub fn run(way: Way, load: &Load, setting: &Setting<'_>) -> Egress {
    let outcome = attempt(way, load, setting);
    outcome.unwrap_or_else(|error| Egress { error: Some(format!("{error:#}")), ..Egress::default() })
}

fn attempt(way: Way, load: &Load, setting: &Setting<'_>) -> Result<Egress> {
    let folder = Scratch::new(setting.parent)?;
    let mut seeder = Seeder::start(load, setting, folder.path())?;
    let free_before = machine::wait_until_idle(setting.patience);
    let mut egress = match way {
        Way::Pieces => drained(load, load.piece_bytes, setting, &mut seeder)?,
        Way::Blocks => drained(load, wire::peer::BLOCK_BYTES, setting, &mut seeder)?,
        Way::Downloads => downloaded(load, setting, &mut seeder, folder.path())?,
    };
    let gigabytes = egress.bytes as f64 / 1e9;
    ensure!(gigabytes > 0.0, "the seeder gave nothing");
    seeder.process.group.sample();
    egress.ok = true;
    egress.clients = load.clients;
    egress.free_before = free_before;
    egress.gigabytes_per_second = gigabytes / egress.seconds;
    egress.seeder_cpu_per_gb /= gigabytes;
    egress.clients_cpu_per_gb /= gigabytes;
    egress.seeder_resident_peak = seeder.process.group.resident_peak();
    Ok(egress)
}

/// A process with its group; both end with the value.
struct Process {
    group: Group,
    child: Child,
    home: PathBuf,
}

impl Process {
    fn start(home: PathBuf, line: &[String], gated: bool) -> Result<Process> {
        fs::create_dir(&home)?;
        let group = Group::new(&scratch::unique_name())?;
        let mut command = group.command(line, gated);
        command.current_dir(&home).stdout(File::create(home.join("out"))?).stderr(File::create(home.join("err"))?);
        let child = command.spawn().with_context(|| format!("cannot start {}", line.join(" ")))?;
        Ok(Process { group, child, home })
    }

    fn said(&self) -> String {
        fs::read_to_string(self.home.join("out")).unwrap_or_default()
    }

    fn last_words(&self) -> String {
        last_words(&self.home)
    }

    /// When it wrote to its standard output last, if it did.
    fn spoke(&self) -> Option<SystemTime> {
        let about = self.home.join("out").metadata().ok().filter(|about| about.len() > 0)?;
        about.modified().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, or the group ends it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_words(home: &Path) -> String {
    let text = fs::read_to_string(home.join("err")).unwrap_or_default();
    text.lines().last().unwrap_or_default().to_owned()
}

struct Seeder {
    process: Process,
    torrent: PathBuf,
    address: SocketAddr,
}

impl Seeder {
    fn start(load: &Load, setting: &Setting<'_>, folder: &Path) -> Result<Seeder> {
        let torrent = folder.join("image.torrent");
        let (program, source) = (setting.program.display(), setting.source.display());
        let mut line = line![program, "seed", source, "--torrent", torrent.display()];
        line.extend(line!["--piece-size", load.piece_bytes, "--listen", "127.0.0.1:0"]);
        line.extend(line!["--tracker-listen", "none", "--announce", NO_TRACKER, "--no-local-discovery"]);
        // A tracker would say so.
        line.extend(line!["--policy", "cooperative"]);
        line.extend(setting.seed_words.iter().cloned());
        let mut process = Process::start(folder.join("seeder"), &line, false)?;
        let begun = Instant::now();
        loop {
            setting.stop.check()?;
            if let Some(address) = ready(&process.said()) {
                return Ok(Seeder { process, torrent, address });
            }
            if let Some(status) = process.child.try_wait()? {
                bail!("`rackswarm seed` ended with {status}: {}", process.last_words());
            }
            ensure!(begun.elapsed() < READY_LIMIT, "`rackswarm seed` is not ready after {} s", READY_LIMIT.as_secs());
            std::thread::sleep(GLANCE);
        }
    }
}

fn ready(said: &str) -> Option<SocketAddr> {
    said.lines().find_map(|line| line.strip_prefix("ready: seeding on ")?.trim().parse().ok())
}

/// Clients on threads of this process; their CPU time is these threads'.
fn drained(load: &Load, range_bytes: u32, setting: &Setting<'_>, seeder: &mut Seeder) -> Result<Egress> {
    let torrent = fs::read(&seeder.torrent).with_context(|| format!("cannot read {}", seeder.torrent.display()))?;
    let drains = Drains::of(&torrent, seeder.address, load, range_bytes)?;
    let Process { group, home, .. } = &mut seeder.process;
    std::thread::scope(|scope| {
        // Whatever happens, nobody drains on when this is left.
        let _over = drains.over_on_drop();
        let drains = &drains;
        let clients: Vec<_> = (0..load.clients).map(|client| scope.spawn(move || drains.one(client))).collect();
        let begun = Instant::now();
        let running = || -> Result<()> {
            setting.stop.check()?;
            ensure!(!clients.iter().any(|client| client.is_finished()), "{}; {}", drains.why(), last_words(home));
            std::thread::sleep(GLANCE);
            Ok(())
        };
        while drains.got.load(Ordering::Relaxed) < WARM_BYTES * load.clients as u64 {
            running()?;
            ensure!(begun.elapsed() < LIMIT, "the seeder gave too little within {} s", LIMIT.as_secs());
        }
        group.begin();
        let watch = Watch::begin(group.pids());
        let (before, cpu, begun) = (drains.got.load(Ordering::Relaxed), drains.cpu_seconds(), Instant::now());
        while begun.elapsed() < load.length {
            running()?;
        }
        let bytes = drains.got.load(Ordering::Relaxed) - before;
        let seconds = begun.elapsed().as_secs_f64();
        let cores = watch.end(group.pids(), setting.others_give_way);
        let (seeder_cpu_per_gb, clients_cpu_per_gb) = (group.cpu_seconds(), drains.cpu_seconds() - cpu);
        Ok(Egress { seconds, bytes, seeder_cpu_per_gb, clients_cpu_per_gb, ..with(cores) })
    })
}

/// Clients in processes of their own; they wait at a gate, and their start counts.
fn downloaded(load: &Load, setting: &Setting<'_>, seeder: &mut Seeder, folder: &Path) -> Result<Egress> {
    let mut clients = Vec::new();
    for client in 0..load.clients {
        let home = folder.join(format!("client{client}"));
        let mut line = line![setting.program.display(), "fetch", seeder.torrent.display(), home.join("disk").display()];
        // An address of its own, so that what it gives others is not taken for the seeder's.
        let listen = format!("127.0.0.{}:0", client + 2);
        line.extend(line!["--listen", listen, "--peer", seeder.address, "--no-local-discovery"]);
        line.extend(line!["--policy", "cooperative", "--json", "--linger", "forever"]);
        line.extend(setting.fetch_words.iter().cloned());
        clients.push(Process::start(home, &line, true)?);
    }
    let mut gates: Vec<ChildStdin> = clients.iter_mut().filter_map(|client| client.child.stdin.take()).collect();
    wait(setting, || Ok(clients.iter().all(|client| !client.group.pids().is_empty())))?;
    let pids = |seeder: &Seeder, clients: &[Process]| -> Vec<u32> {
        clients.iter().chain([&seeder.process]).flat_map(|process| process.group.pids()).collect()
    };
    seeder.process.group.begin();
    clients.iter_mut().for_each(|client| client.group.begin());
    let watch = Watch::begin(pids(seeder, &clients));
    let opened = SystemTime::now();
    for gate in &mut gates {
        std::io::Write::write_all(gate, b"\n").context("a client did not wait at its gate")?;
    }
    wait(setting, || {
        for client in &mut clients {
            if let Some(status) = client.child.try_wait()? {
                bail!("`rackswarm fetch` ended with {status}: {}", client.last_words());
            }
        }
        Ok(clients.iter().all(|client| client.spoke().is_some()))
    })?;
    let cores = watch.end(pids(seeder, &clients), setting.others_give_way);
    let seeder_cpu_per_gb = seeder.process.group.cpu_seconds();
    let clients_cpu_per_gb = clients.iter().map(|client| client.group.cpu_seconds()).sum();
    let last = clients.iter().filter_map(Process::spoke).max().unwrap_or(opened);
    let seconds = last.duration_since(opened).unwrap_or_default().as_secs_f64();
    let (mut bytes, mut exchanged_bytes) = (0, 0);
    for client in &clients {
        let (given, exchanged) = links(&client.said(), seeder.address.ip())?;
        bytes += given;
        exchanged_bytes += exchanged;
        ensure!(
            content::same(setting.source, &client.home.join("disk"))?,
            "a download has another file than the seeder"
        );
    }
    Ok(Egress { seconds, bytes, exchanged_bytes, seeder_cpu_per_gb, clients_cpu_per_gb, ..with(cores) })
}

/// What came from the seeder, and from others, by a download's own account.
fn links(said: &str, seeder: IpAddr) -> Result<(u64, u64)> {
    let report: Value = serde_json::from_str(said.trim()).context("`rackswarm fetch --json` did not print JSON")?;
    let seeder = seeder.to_string();
    let mut received = (0, 0);
    for link in report["links"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let bytes = link["received"].as_u64().unwrap_or(0) + link["wasted"].as_u64().unwrap_or(0);
        match link["address"].as_str() == Some(&seeder) {
            true => received.0 += bytes,
            false => received.1 += bytes,
        }
    }
    Ok(received)
}

fn wait(setting: &Setting<'_>, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        setting.stop.check()?;
        ensure!(begun.elapsed() < LIMIT, "a download is not done after {} s", LIMIT.as_secs());
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

fn with(cores: machine::Used) -> Egress {
    let machine::Used { idle_share, foreign, steal, noisy, .. } = cores;
    Egress { idle_share, foreign_cpu: foreign, steal, noisy, ..Egress::default() }
}

/// What exactly is measured.
#[must_use]
pub fn version(program: &Path) -> String {
    tool::run(&program.display().to_string(), ["--version"]).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_seeders_last_line_tells_its_address() {
        assert_eq!(ready("torrent     x\nready: seeding on 127.0.0.1:40001\n"), "127.0.0.1:40001".parse().ok());
        assert_eq!(ready("torrent     x\n"), None);
    }

    #[test]
    fn what_downloads_give_each_other_is_not_the_seeders() {
        let said = r#"{"links":[{"address":"127.0.0.1","received":70,"wasted":1,"sent":0},
            {"address":"127.0.0.2","received":30,"wasted":0,"sent":9},{"address":null,"received":4,"wasted":0}]}"#;
        assert_eq!(links(said, "127.0.0.1".parse().unwrap()).unwrap(), (71, 34));
        assert!(links("", "127.0.0.1".parse().unwrap()).is_err());
    }
}
