//! The paper's Figures 8, 9 and 10, drawn from a run of our own: the real server and tracker, and the real agent as a
//! process in a network namespace for each node. Firmware, kernel and the first start of the written system are
//! replaced, which is said beside every picture. The same for machines with real stage times is simulated beside it.

mod draw;
mod traffic;
mod virtually;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fleet::deployment::Outcome;
use fleet::life::Stage as NodeStage;
use fleet::report::Report;
use fleet::rollout::Rollout;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::content::{self, Content};
use super::fabric::{Fabric, Place, Plan};
use super::hall::Hall;
use super::machine::{self, Watch};
use super::record::median;
use super::stage::Stage;
use super::theory::PAYLOAD_SHARE;
use crate::stop::Stop;
use crate::tool;
use traffic::Traffic;
pub use virtually::Virtual;

/// The server's link is so many times a node's. What machines tell once a second and the manifest that each of them reads
/// do not shrink with the links of the bench: over a link as slow as a node's they would take a good part of it.
const SERVER_LINKS: u64 = 20;
/// A rack's uplink is so many times a node's link: 10 Gbit/s above nodes with 1 Gbit/s.
const UPLINK_LINKS: u64 = 10;
/// A node goes on giving for this part of the time that the image takes over one link, as the usual 5 s are of 4 GiB at
/// 1 Gbit/s, but never less than these 5 s.
const LINGER_SHARE: f64 = 1.0 / 7.0;
const LINGER_LEAST: f64 = 5.0;
/// Looks at the ports in the time that the image takes over one link, where that is not more than one a second.
const LOOKS: f64 = 150.0;
/// What was replaced in namespaces.
const REPLACED: &str = "Namespaces: the server, its tracker and the agents are the real programs; power, firmware, loader, kernel and \
                        the reboot are replaced (the bench reads the boot script and starts the agent with what the kernel line would say, \
                        into a sparse file; post actions are left out; the bench sends the booted system's proof).";

/// How large it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Nodes of all racks.
    pub nodes: usize,
    /// Racks, of equally many nodes.
    pub racks: usize,
    /// Bytes of the image.
    pub bytes: u64,
    /// A node's link in bit/s, each way.
    pub link: u64,
}

impl Load {
    /// # Errors
    /// When racks would have unequal numbers of nodes.
    fn plan(&self) -> Result<Plan> {
        let Load { nodes, racks, link, .. } = *self;
        ensure!(
            racks > 0 && nodes > 0 && nodes % racks == 0,
            "{nodes} nodes do not fill {racks} racks evenly: choose --nodes as a multiple of --racks"
        );
        let uplink = link * UPLINK_LINKS;
        Ok(Plan { racks, nodes_per_rack: nodes / racks, link, server_link: link * SERVER_LINKS, uplink, slow_nodes: 0 })
    }

    /// Seconds that the image takes over one link.
    fn once(&self) -> f64 {
        self.bytes as f64 / (self.link as f64 / 8.0 * PAYLOAD_SHARE)
    }

    fn linger_seconds(&self) -> u32 {
        (self.once() * LINGER_SHARE).max(LINGER_LEAST).ceil() as u32
    }

    /// Whoever needs longer has failed.
    fn limit(&self) -> Duration {
        Duration::from_secs_f64(120.0 + 8.0 * self.once())
    }
}

/// How it is done.
pub struct Setting<'a> {
    /// Our own program.
    pub program: &'a Path,
    /// The agent's.
    pub agent: &'a Path,
    /// Folder for files, in memory.
    pub parent: &'a Path,
    /// Others give way to us.
    pub others_give_way: bool,
    /// How long to wait for an idle machine.
    pub patience: Duration,
    /// Without the simulation beside it, which takes longer than the run itself.
    pub alone: bool,
    /// Asked to end?
    pub stop: &'a Stop,
}

/// Seconds over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spread {
    /// The fastest.
    pub least: f64,
    /// Half took at most this.
    pub median: f64,
    /// On average.
    pub mean: f64,
    /// The slowest.
    pub most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (values.first(), values.last()) else { return Spread::default() };
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Spread { least: *least, median: median(&values), mean, most: *most }
    }
}

/// What was measured. Times in seconds, sizes in bytes, rates in bit/s, "images" are payload over the image's size.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Every node was proved and had the image, byte by byte.
    pub ok: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Others used the machine.
    pub noisy: bool,
    /// CPU time of others that did not give way.
    pub foreign_cpu: f64,
    /// Nodes.
    pub nodes: usize,
    /// Racks.
    pub racks: usize,
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// A node's link.
    pub link: u64,
    /// A rack's uplink.
    pub uplink: u64,
    /// The server's link.
    pub server_link: u64,
    /// How long complete nodes go on giving at most.
    pub linger_seconds: u32,
    /// T*: formula (1), as `rackswarm plan` reckons it.
    pub best: f64,
    /// The bound of this fabric, formula (4), likewise.
    pub bound: f64,
    /// From the order to deploy until the node was proved, over the nodes.
    pub installed: Spread,
    /// In the stage in which the image is fetched.
    pub fetching: Spread,
    /// From the first node that fetched to the last that had everything.
    pub delivery: f64,
    /// That over the bound.
    pub over_bound: f64,
    /// Sent by the server, counted at its port.
    pub server_images: f64,
    /// Into the rack that got most, counted at its uplink.
    pub rack_images: Option<f64>,
    /// The same as the deployment's report has it from the agents' ledgers.
    pub reported_rack_images: Option<f64>,
    /// The node of Figure 10.
    pub shown: String,
    /// Per cent of the image that it had when it began to give.
    pub gives_from_percent: f64,
    /// CPU time of the server.
    pub cpu_server: f64,
    /// Of all agents, the kernel's network work included.
    pub cpu_nodes: f64,
    /// Of this bench: looks at agents, ports and memory, scripts and proofs.
    pub cpu_bench: f64,
    /// Share of the cores that nobody used, from the order to the last proof.
    pub idle_share: f64,
    /// The same in the busiest ten seconds.
    pub idle_least: f64,
    /// Most resident memory of an agent.
    pub resident_peak: u64,
    /// Most resident memory of the server.
    pub server_resident_peak: u64,
    /// Packets that full queues dropped.
    pub drops: u64,
    /// In virtual time, with stage times from virtual machines.
    pub simulated: Vec<Virtual>,
    /// Why there is none.
    pub simulation_failed: Option<String>,
}

/// A file of the results: its name and what is in it.
pub type File = (&'static str, String);

/// One node, as the deployment's report has it.
pub(crate) struct Installed {
    pub(crate) name: String,
    pub(crate) rack: String,
    /// Seconds in each stage, in order.
    pub(crate) stages: Vec<(NodeStage, f64)>,
    /// From the order to the proof.
    pub(crate) seconds: f64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Installed {
    /// Seconds in a stage, and before it.
    fn span(&self, stage: NodeStage) -> Option<(f64, f64)> {
        let at = self.stages.iter().position(|(passed, _)| *passed == stage)?;
        // Whatever no stage accounts for lies before the first one.
        let all: f64 = self.stages.iter().map(|(_, seconds)| seconds).sum();
        let before = self.stages[..at].iter().map(|(_, seconds)| seconds).sum::<f64>() + (self.seconds - all).max(0.0);
        Some((before, self.stages[at].1))
    }
}

/// Runs it once, in namespaces and simulated; what was measured, and the pictures with their numbers.
#[must_use]
pub fn run(load: &Load, setting: &Setting<'_>) -> (Figures, Vec<File>) {
    attempt(load, setting).unwrap_or_else(|error| {
        let Load { nodes, racks, bytes, link } = *load;
        (Figures { error: Some(format!("{error:#}")), nodes, racks, bytes, link, ..Figures::default() }, Vec::new())
    })
}

fn attempt(load: &Load, setting: &Setting<'_>) -> Result<(Figures, Vec<File>)> {
    let source = setting.parent.join("figures.raw");
    content::write(&source, load.bytes, Content::Random)?;
    let fabric = Fabric::build(load.plan()?)?;
    let stage = Stage::new(&fabric, &source, setting.program, setting.parent, setting.stop)?;
    let mut hall = Hall::open(stage, setting.agent, load.linger_seconds(), "")?;
    let piece_bytes = hall.fill()?;
    hall.line_up()?;
    let _free = machine::wait_until_idle(setting.patience);

    // From the order to the last proof.
    hall.stage.groups().for_each(|(_, group)| group.begin());
    let before = fabric.counters()?;
    let watch = Watch::begin(hall.pids());
    let own_before = machine::own_cpu_seconds();
    let begun = Instant::now();
    let id = hall.deploy(Rollout::default())?;
    let step = Duration::from_secs_f64((load.once() / LOOKS).clamp(0.1, 1.0));
    let traffic = Traffic::watch(&fabric, begun, step, || hall.attend(id, load.limit(), |_| Ok(())))?;
    let cores = watch.end(hall.pids(), setting.others_give_way);
    let own_after = machine::own_cpu_seconds();
    let after = fabric.counters()?;
    let report = hall.report(id)?;
    for node in 0..load.nodes {
        ensure!(
            content::same(&source, &hall.disk(node))?,
            "the disk of node {node} holds something else than the image"
        );
    }

    let nodes = installed(&report)?;
    let (best, bound) = bounds(load, piece_bytes, setting.program)?;
    let spans: Vec<(f64, f64)> = nodes.iter().filter_map(|node| node.span(NodeStage::Fetching)).collect();
    ensure!(spans.len() == nodes.len(), "a node was proved that never fetched");
    let first = spans.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
    let delivery = spans.iter().map(|(at, took)| at + took).fold(0.0, f64::max) - first;
    let shown = middle_node(&nodes);
    let curve = traffic.curve(shown, load.bytes);
    let images = |bytes: u64| bytes as f64 / load.bytes as f64;
    let rack_images =
        (0..load.racks).filter(|_| load.racks > 1).map(|rack| images(after.into_rack_since(&before, rack)));
    let plan = fabric.plan();
    // What was measured is worth having without the simulation beside it.
    let (simulated, simulation_failed, mut files) = match setting.alone {
        true => (Vec::new(), None, Vec::new()),
        false => match virtually::run(load.nodes, setting) {
            Ok((simulated, files)) => (simulated, None, files),
            Err(error) => (Vec::new(), Some(format!("{error:#}")), Vec::new()),
        },
    };
    let mut figures = Figures {
        ok: true,
        noisy: cores.noisy,
        foreign_cpu: cores.foreign,
        nodes: load.nodes,
        racks: load.racks,
        bytes: load.bytes,
        piece_bytes,
        link: plan.link,
        uplink: plan.uplink,
        server_link: plan.server_link,
        linger_seconds: load.linger_seconds(),
        best,
        bound,
        installed: Spread::of(nodes.iter().map(|node| node.seconds)),
        fetching: Spread::of(spans.iter().map(|(_, took)| *took)),
        delivery,
        over_bound: delivery / bound,
        server_images: images(after.server_sent_since(&before)),
        rack_images: rack_images.reduce(f64::max),
        reported_rack_images: report.racks.iter().filter_map(|rack| rack.entered_copies).reduce(f64::max),
        shown: nodes[shown].name.clone(),
        gives_from_percent: curve.gives_from(),
        cpu_bench: own_after - own_before,
        idle_share: cores.idle_share,
        idle_least: traffic.idle_least(),
        drops: after.drops - before.drops,
        simulated,
        simulation_failed,
        ..Figures::default()
    };
    used(&mut hall, &mut figures);
    files.extend([
        ("fig8.csv", table(&nodes)),
        ("fig8.svg", draw::installations(&nodes, &figures)?),
        ("fig9.csv", traffic.table(&nodes)),
        ("fig9.svg", draw::bandwidths(&traffic, &figures)?),
        ("fig10.csv", curve.table()),
        ("fig10.svg", draw::one_node(&curve, &figures)?),
    ]);
    Ok((figures, files))
}

/// Each node's way, in the order of their names.
fn installed(report: &Report) -> Result<Vec<Installed>> {
    let mut nodes = Vec::new();
    for node in &report.nodes {
        let run = &node.run;
        let Outcome::Running { milliseconds } = run.outcome else {
            anyhow::bail!("{} is not running: {:?}", run.node, run.outcome);
        };
        let last = run.tries.last().with_context(|| format!("{} has no try", run.node))?;
        let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
        nodes.push(Installed {
            name: run.node.to_string(),
            rack: run.rack.as_ref().map(ToString::to_string).unwrap_or_default(),
            stages: last.stages.iter().map(|passed| (passed.stage, seconds(passed.milliseconds))).collect(),
            seconds: seconds(milliseconds + run.started_at.since(report.created_at)),
            received: last.received_bytes,
            sent: last.sent_bytes,
        });
    }
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(nodes)
}

/// The node with as many before it as after it.
fn middle_node(nodes: &[Installed]) -> usize {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by(|one, other| nodes[*one].seconds.total_cmp(&nodes[*other].seconds));
    order.get(order.len() / 2).copied().unwrap_or(0)
}

/// T* and the bound, of the planner that operators ask.
fn bounds(load: &Load, piece_bytes: u64, program: &Path) -> Result<(f64, f64)> {
    let plan = load.plan()?;
    let mut words = crate::line!["plan", "--json", "--nodes", load.nodes, "--racks", load.racks, "--size", load.bytes];
    words.extend(crate::line!["--piece", piece_bytes, "--rate", format!("{}bit", plan.link)]);
    words.extend(crate::line!["--seed-rate", format!("{}bit", plan.server_link)]);
    if load.racks > 1 {
        words.extend(crate::line!["--uplink", format!("{}bit", plan.uplink)]);
    }
    let said: Value = serde_json::from_str(&tool::run(&program.display().to_string(), words)?)?;
    let number =
        |key: &str| said[key].as_f64().with_context(|| format!("`rackswarm plan --json` says nothing of {key}"));
    Ok((number("t_star")?, number("bound")?))
}

fn used(hall: &mut Hall<'_>, figures: &mut Figures) {
    for (place, group) in hall.stage.groups() {
        match place {
            Place::Server => {
                figures.cpu_server = group.cpu_seconds();
                figures.server_resident_peak = group.resident_peak();
            }
            Place::Node(_) => {
                figures.cpu_nodes += group.cpu_seconds();
                figures.resident_peak = figures.resident_peak.max(group.resident_peak());
            }
        }
    }
}

/// Figure 8 as numbers.
fn table(nodes: &[Installed]) -> String {
    let passed: Vec<NodeStage> =
        NodeStage::ALL.into_iter().filter(|stage| nodes.iter().any(|node| node.span(*stage).is_some())).collect();
    let mut text = "node,rack,installed_seconds".to_owned();
    passed.iter().for_each(|stage| text += &format!(",{stage}_seconds"));
    text += ",received_bytes,sent_bytes\n";
    for node in nodes {
        text += &format!("{},{},{:.3}", node.name, node.rack, node.seconds);
        for stage in &passed {
            text += &node.span(*stage).map_or_else(|| ",".to_owned(), |(_, took)| format!(",{took:.3}"));
        }
        text += &format!(",{},{}\n", node.received, node.sent);
    }
    text
}

/// What the row's page says about a run.
#[must_use]
pub fn page(run: &Figures) -> String {
    let Figures { installed, fetching, .. } = run;
    let mbit = |rate: u64| rate / 1_000_000;
    let or_dash = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.3}"));
    let mut text = format!(
        "\n{} nodes in {} racks, {} Mbit/s each, uplinks {} Mbit/s, server {} Mbit/s; image {} MiB in pieces of {} KiB; complete nodes give for \
         at most {} s more.\n\n{REPLACED}\n\n",
        run.nodes,
        run.racks,
        mbit(run.link),
        mbit(run.uplink),
        mbit(run.server_link),
        run.bytes >> 20,
        run.piece_bytes >> 10,
        run.linger_seconds
    );
    text += &format!(
        "| (*namespaces*) s | least | median | mean | most |\n|---|---|---|---|---|\n\
         | order to proof | {:.1} | {:.1} | {:.1} | {:.1} |\n| fetching | {:.1} | {:.1} | {:.1} | {:.1} |\n\n",
        installed.least,
        installed.median,
        installed.mean,
        installed.most,
        fetching.least,
        fetching.median,
        fetching.mean,
        fetching.most
    );
    text += &format!(
        "First fetch to last verified image: {:.1} s = {:.3} of the bound ({:.2} s; T* {:.2} s). Server {:.3} images; into the busiest rack {} \
         images at its uplink, {} by the deployment's report. CPU: server {:.1} s, agents {:.1} s, the bench itself {:.1} s; idle {:.2}, in the busiest ten seconds {:.2}. \
         Agent at most {:.1} MiB, server {:.1} MiB. {} packets dropped. {} of Figure 10 gave from {:.1} % on (the paper: from 4 %).\n\n",
        run.delivery,
        run.over_bound,
        run.bound,
        run.best,
        run.server_images,
        or_dash(run.rack_images),
        or_dash(run.reported_rack_images),
        run.cpu_server,
        run.cpu_nodes,
        run.cpu_bench,
        run.idle_share,
        run.idle_least,
        run.resident_peak as f64 / 1_048_576.0,
        run.server_resident_peak as f64 / 1_048_576.0,
        run.drops,
        run.shown,
        run.gives_from_percent
    );
    text += "![Figure 8](fig8.svg)\n![Figure 9](fig9.svg)\n![Figure 10](fig10.svg)\n\n";
    if let Some(why) = &run.simulation_failed {
        return text + &format!("The simulation beside it failed: {why}.\n");
    }
    if run.simulated.is_empty() {
        return text + "The simulation beside it was left out (`--alone`).\n";
    }
    text + &virtually::page(&run.simulated)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(name: &str, seconds: f64) -> Installed {
        let stages = vec![(NodeStage::Leasing, 1.0), (NodeStage::Fetching, 10.0), (NodeStage::Rebooting, 2.0)];
        Installed { name: name.into(), rack: "r1".into(), stages, seconds, received: 5, sent: 7 }
    }

    #[test]
    fn stages_follow_each_other_and_a_late_start_comes_first() {
        let one = node("n1", 13.0);
        assert_eq!(one.span(NodeStage::Fetching), Some((1.0, 10.0)));
        assert_eq!(node("n1", 15.5).span(NodeStage::Fetching), Some((3.5, 10.0)));
        assert_eq!(one.span(NodeStage::PostActions), None);
        let text = table(&[one, node("n2", 15.5)]);
        assert!(text.starts_with("node,rack,installed_seconds,leasing_seconds,fetching_seconds,rebooting_seconds,"));
        assert!(text.ends_with("n2,r1,15.500,1.000,10.000,2.000,5,7\n"), "{text}");
        assert_eq!(middle_node(&[node("a", 9.0), node("b", 1.0), node("c", 5.0)]), 2);
    }

    #[test]
    fn racks_are_filled_evenly_or_refused() {
        let load = Load { nodes: 230, racks: 10, bytes: 32 << 20, link: 4_000_000 };
        let plan = load.plan().unwrap();
        assert_eq!((plan.nodes_per_rack, plan.uplink, plan.server_link), (23, 40_000_000, 80_000_000));
        assert!((load.once() - 70.2).abs() < 0.1 && load.linger_seconds() == 11);
        let uneven = Load { nodes: 21, ..load }.plan().unwrap_err().to_string();
        assert!(uneven.contains("21 nodes") && uneven.contains("multiple of --racks"), "{uneven}");
        assert_eq!(Load { bytes: 1 << 20, ..load }.linger_seconds(), 5);
    }

    #[test]
    fn a_spread_is_made_of_all_values() {
        let spread = Spread::of([3.0, 1.0, 8.0].into_iter());
        assert_eq!((spread.least, spread.median, spread.mean, spread.most), (1.0, 3.0, 4.0, 8.0));
        assert_eq!(Spread::of(std::iter::empty()), Spread::default());
    }
}
