//! One delivery: everybody is made ready, the gate opens, and until the last one has everything it is watched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::content;
use super::fabric::{Counters, Fabric, Place};
use super::machine::{self, Watch};
use super::method::Method;
use super::record::median;
use super::stage::Stage;
use super::theory::Work;
use crate::stop::Stop;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(700);
/// How often the bytes that arrived are counted.
const COUNT: Duration = Duration::from_millis(100);
/// The share of all bytes that has arrived when [`Course::Faulty`] strikes.
const HALF: f64 = 0.5;
/// Two hundred shells are started within seconds, on a busy machine too.
const GATE_LIMIT: Duration = Duration::from_secs(60);

/// What happens while the nodes fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Course {
    /// All start together and stay.
    #[default]
    Plain,
    /// Each node starts so much later than the one before.
    Staggered(Duration),
    /// When half of all bytes have arrived, the tracker and every tenth node are killed.
    Faulty,
    /// The nodes hold an older version of the file at the start.
    Again,
}

/// How a run is done.
pub struct Setting<'a> {
    /// The network.
    pub fabric: &'a Fabric,
    /// The work, for the bounds.
    pub work: Work,
    /// The file to deliver.
    pub source: &'a Path,
    /// What the nodes hold at the start, with [`Course::Again`].
    pub before: Option<&'a Path>,
    /// Our own program.
    pub program: &'a Path,
    /// What happens meanwhile.
    pub course: Course,
    /// It has failed after this time.
    pub limit: Duration,
    /// How long to wait for an idle machine.
    pub patience: Duration,
    /// Others' CPU time disturbs only where nobody gives way to us.
    pub shared: bool,
    /// Folder for everything.
    pub parent: &'a Path,
    /// Asked to end?
    pub stop: &'a Stop,
}

/// What was measured; one line of JSON. Times in seconds, sizes in bytes, "images" are payload over the file's size.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Everybody who was not killed had the whole file, byte by byte.
    pub ok: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Others used the machine.
    pub noisy: bool,
    /// From the gate's opening (of each node's own gate where they are staggered) to the last node.
    pub makespan: f64,
    /// Until the first node had everything.
    pub first: f64,
    /// Until half of the nodes had.
    pub median: f64,
    /// Of each node that was not killed, in order.
    pub per_node: Vec<f64>,
    /// The makespan over T*, on links that are limited.
    pub over_best: Option<f64>,
    /// The makespan over the bound that counts rack uplinks too.
    pub over_bound: Option<f64>,
    /// Until half of all bytes had arrived at the nodes' ports.
    pub half: Option<f64>,
    /// When the tracker and a tenth of the nodes were killed, with [`Course::Faulty`].
    pub killed: Option<f64>,
    /// Sent by the server.
    pub server_images: f64,
    /// Into the rack that got most, over its uplink.
    pub rack_images: Option<f64>,
    /// CPU time of the server's group.
    pub cpu_server: f64,
    /// Of all nodes' groups, the kernel's network work included.
    pub cpu_nodes: f64,
    /// The same for each node and 10^9 bytes of the file.
    pub cpu_per_gb_and_node: f64,
    /// Of the whole machine.
    pub cpu_machine: f64,
    /// Share of the cores that nobody used meanwhile.
    pub idle_share: f64,
    /// Share of the cores that nobody used before the gate opened.
    pub free_before: f64,
    /// CPU time of others that did not give way.
    pub foreign_cpu: f64,
    /// CPU time that the host of this virtual machine took.
    pub steal: f64,
    /// Most resident memory of a node.
    pub resident_peak: u64,
    /// The middle of the nodes' peaks.
    pub resident_median: u64,
    /// As `resident_peak`, without what comes from files.
    pub anonymous_peak: u64,
    /// Most resident memory of the server's group.
    pub server_resident_peak: u64,
    /// Packets that full queues dropped.
    pub drops: u64,
    /// What TCP brought to a node, by its port; the mean over all that were not killed.
    pub port_images: f64,
    /// Bytes from peers, messages and all, as our own nodes say; the mean over them.
    pub received_images: Option<f64>,
    /// Payload among them.
    pub payload_images: Option<f64>,
    /// Share of the payload that was received for nothing.
    pub wasted_share: Option<f64>,
    /// Nodes of ours and their median, in a mixed swarm.
    pub ours_median: Option<f64>,
}

/// Delivers the file once.
#[must_use]
pub fn run(method: &dyn Method, setting: &Setting<'_>) -> Measured {
    attempt(method, setting)
        .unwrap_or_else(|error| Measured { error: Some(format!("{error:#}")), ..Measured::default() })
}

fn attempt(method: &dyn Method, setting: &Setting<'_>) -> Result<Measured> {
    let nodes = setting.fabric.plan().nodes();
    let mut stage = Stage::new(setting.fabric, setting.source, setting.program, setting.parent, setting.stop)?;
    if let Some(before) = setting.before {
        (0..nodes).try_for_each(|node| fs::copy(before, stage.destination(node)).map(drop))?;
    }
    method.serve(&mut stage)?;
    for node in 0..nodes {
        let line = method.line(&stage, node);
        stage.hold(node, &line)?;
    }
    let waits = |node: usize| stage.group(Place::Node(node)).is_some_and(|group| !group.pids().is_empty());
    stage.wait_for("every node waits at its gate", GATE_LIMIT, || (0..nodes).all(waits))?;
    let free_before = machine::wait_until_idle(setting.patience);

    let start = Baseline::take(&mut stage)?;
    let finished = Race::new(method, setting, &start.counters).watch(&mut stage)?;
    ensure!(
        setting.course != Course::Faulty || finished.killed.is_some(),
        "everybody was done before half of the bytes were seen to arrive"
    );
    let mut measured = start.compare(&mut stage, setting, &finished)?;
    measured.free_before = free_before;
    accounts(&stage, setting, &mut measured);
    for node in (0..nodes).filter(|node| !finished.lost.contains(node)) {
        ensure!(
            content::same(setting.source, &stage.destination(node))?,
            "node {node} has another file than the server"
        );
    }
    measured.ok = true;
    Ok(measured)
}

/// Everybody on the way.
struct Race<'a> {
    method: &'a dyn Method,
    setting: &'a Setting<'a>,
    released: Vec<Option<SystemTime>>,
    done: Vec<Option<SystemTime>>,
    lost: BTreeSet<usize>,
    /// When the gate opened.
    counters: &'a Counters,
    half: Option<Duration>,
    killed: Option<Duration>,
}

/// Who needed how long.
struct Finished {
    seconds: BTreeMap<usize, f64>,
    lost: BTreeSet<usize>,
    half: Option<f64>,
    killed: Option<f64>,
}

impl<'a> Race<'a> {
    fn new(method: &'a dyn Method, setting: &'a Setting<'a>, counters: &'a Counters) -> Race<'a> {
        let nodes = setting.fabric.plan().nodes();
        let (released, done) = (vec![None; nodes], vec![None; nodes]);
        Race { method, setting, released, done, lost: BTreeSet::new(), counters, half: None, killed: None }
    }

    fn watch(mut self, stage: &mut Stage<'_>) -> Result<Finished> {
        let start = Instant::now();
        let (mut sampled, mut counted) = (start, start);
        // Others are done when their process has ended, which only a look tells.
        let glance = Duration::from_millis(if self.done.len() > 60 { 50 } else { 5 });
        self.release(stage, Duration::ZERO)?;
        self.method.released(stage)?;
        loop {
            self.setting.stop.check()?;
            self.look(stage)?;
            let elapsed = start.elapsed();
            if self.left() == 0 {
                return Ok(self.finished());
            }
            if elapsed > self.setting.limit {
                bail!("{} of {} nodes are not done after {} s", self.left(), self.done.len(), elapsed.as_secs());
            }
            self.release(stage, elapsed)?;
            if counted.elapsed() >= COUNT {
                self.count(stage, elapsed)?;
                self.disturb(stage, elapsed)?;
                counted = Instant::now();
            }
            if sampled.elapsed() >= SAMPLE {
                stage.groups().for_each(|(_, group)| group.sample());
                sampled = Instant::now();
            }
            std::thread::sleep(glance);
        }
    }

    fn release(&mut self, stage: &mut Stage<'_>, elapsed: Duration) -> Result<()> {
        for node in 0..self.released.len() {
            let due = match self.setting.course {
                Course::Staggered(pause) => pause * node as u32,
                _ => Duration::ZERO,
            };
            if self.released[node].is_none() && elapsed >= due {
                self.released[node] = Some(SystemTime::now());
                stage.release(node)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        for node in 0..self.done.len() {
            if self.released[node].is_some() && self.done[node].is_none() && !self.lost.contains(&node) {
                self.done[node] = self.method.done(stage, node)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, stage: &Stage<'_>, elapsed: Duration) -> Result<()> {
        if self.half.is_none() {
            let now = stage.fabric.ports()?;
            let arrived: u64 = (0..self.done.len()).map(|node| now.node_received_since(self.counters, node)).sum();
            let all = self.setting.work.bytes * self.done.len() as u64;
            self.half = (arrived as f64 >= HALF * all as f64).then_some(elapsed);
        }
        Ok(())
    }

    /// Kills the tracker and every tenth node, once, at half-way.
    fn disturb(&mut self, stage: &mut Stage<'_>, elapsed: Duration) -> Result<()> {
        if self.setting.course != Course::Faulty || self.half.is_none() || self.killed.is_some() {
            return Ok(());
        }
        self.killed = Some(elapsed);
        ensure!(self.method.end_tracker(stage), "the tracker of {} cannot be killed alone", self.method.name());
        self.lost = (0..self.done.len()).filter(|node| node % 10 == 5).collect();
        for node in &self.lost {
            if let Some(group) = stage.group(Place::Node(*node)) {
                group.signal(Signal::KILL);
            }
        }
        Ok(())
    }

    fn left(&self) -> usize {
        let waits = |node: &usize| self.done[*node].is_none() && !self.lost.contains(node);
        (0..self.done.len()).filter(waits).count()
    }

    fn finished(self) -> Finished {
        let took = |node: usize| {
            let (released, done) = (self.released[node]?, self.done[node]?);
            Some((node, done.duration_since(released).unwrap_or_default().as_secs_f64()))
        };
        let seconds = (0..self.done.len()).filter(|node| !self.lost.contains(node)).filter_map(took).collect();
        let [half, killed] = [self.half, self.killed].map(|at| at.map(|at| at.as_secs_f64()));
        Finished { seconds, lost: self.lost, half, killed }
    }
}

/// Counters at the moment when the gate opens.
struct Baseline {
    counters: Counters,
    watch: Watch,
}

impl Baseline {
    fn take(stage: &mut Stage<'_>) -> Result<Baseline> {
        stage.groups().for_each(|(_, group)| group.begin());
        Ok(Baseline { counters: stage.fabric.counters()?, watch: Watch::begin(measured_pids(stage)) })
    }

    fn compare(self, stage: &mut Stage<'_>, setting: &Setting<'_>, finished: &Finished) -> Result<Measured> {
        let cores = self.watch.end(measured_pids(stage), setting.shared);
        let now = stage.fabric.counters()?;
        stage.groups().for_each(|(_, group)| group.sample());
        let size = setting.work.bytes as f64;
        let plan = stage.fabric.plan();
        let images = |bytes: u64| bytes as f64 / size;
        let racks = (0..plan.racks).filter(|_| plan.racks > 1);
        let rack_images = racks.map(|rack| images(now.into_rack_since(&self.counters, rack))).reduce(f64::max);
        let arrived: u64 = finished.seconds.keys().map(|node| now.node_received_since(&self.counters, *node)).sum();

        let mut per_node: Vec<f64> = finished.seconds.values().copied().collect();
        let makespan = per_node.iter().copied().fold(0.0, f64::max);
        let shaped = setting.work.link > 0;
        let mut measured = Measured {
            makespan,
            per_node: per_node.clone(),
            over_best: shaped.then(|| makespan / setting.work.best()),
            over_bound: shaped.then(|| makespan / setting.work.bound()),
            half: finished.half,
            killed: finished.killed,
            server_images: images(now.server_sent_since(&self.counters)),
            rack_images,
            port_images: images(arrived) / finished.seconds.len().max(1) as f64,
            cpu_machine: cores.busy,
            idle_share: cores.idle_share,
            foreign_cpu: cores.foreign,
            steal: cores.steal,
            noisy: cores.noisy,
            drops: now.drops - self.counters.drops,
            ..Measured::default()
        };
        per_node.sort_by(f64::total_cmp);
        measured.first = per_node.first().copied().unwrap_or(0.0);
        measured.median = median(&per_node);
        used(stage, setting, &mut measured);
        Ok(measured)
    }
}

/// CPU and memory of all groups.
fn used(stage: &mut Stage<'_>, setting: &Setting<'_>, measured: &mut Measured) {
    let mut resident = Vec::new();
    for (place, group) in stage.groups() {
        match place {
            Place::Server => {
                measured.cpu_server = group.cpu_seconds();
                measured.server_resident_peak = group.resident_peak();
            }
            Place::Node(_) => {
                measured.cpu_nodes += group.cpu_seconds();
                measured.anonymous_peak = measured.anonymous_peak.max(group.anonymous_peak());
                resident.push(group.resident_peak());
            }
        }
    }
    resident.sort_unstable();
    measured.resident_peak = resident.last().copied().unwrap_or(0);
    measured.resident_median = resident.get(resident.len() / 2).copied().unwrap_or(0);
    let gigabytes = setting.work.bytes as f64 / 1e9;
    measured.cpu_per_gb_and_node = measured.cpu_nodes / (gigabytes * resident.len().max(1) as f64);
}

/// What our own nodes say about themselves with `--json`.
fn accounts(stage: &Stage<'_>, setting: &Setting<'_>, measured: &mut Measured) {
    let size = setting.work.bytes as f64;
    let said = |node: usize| serde_json::from_str::<Value>(stage.said(Place::Node(node)).trim()).ok();
    let nodes: Vec<(usize, Value)> =
        (0..setting.work.nodes).filter_map(|node| said(node).map(|value| (node, value))).collect();
    if nodes.is_empty() {
        return;
    }
    let sum = |key: &str| nodes.iter().filter_map(|(_, value)| value[key].as_f64()).sum::<f64>();
    let count = nodes.len() as f64;
    let payload = sum("payload_received");
    measured.received_images = Some(sum("wire_received") / count / size);
    measured.payload_images = Some(payload / count / size);
    measured.wasted_share = Some(sum("payload_wasted") / payload.max(1.0));
    if nodes.len() < measured.per_node.len() {
        let mut own: Vec<f64> = nodes.iter().filter_map(|(node, _)| measured.per_node.get(*node).copied()).collect();
        own.sort_by(f64::total_cmp);
        measured.ours_median = Some(median(&own));
    }
}

fn measured_pids(stage: &mut Stage<'_>) -> Vec<u32> {
    stage.groups().flat_map(|(_, group)| group.pids()).collect()
}
