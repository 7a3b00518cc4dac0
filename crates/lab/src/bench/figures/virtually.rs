//! The delivery in virtual time, with what the stages around it took real firmware and kernels in virtual machines.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use toml::Table;

use super::super::simulate;
use super::{File, Setting, Spread, draw};

/// The paper's Figure 8 in minutes: the fastest, the slowest, the mean.
pub(super) const PAPER: (f64, f64, f64) = (14.0, 23.0, 17.25);
/// What machines took in the demo, stage by stage.
const STAGES: &str = "bench/scenarios/vm-stages.csv";
/// The paper's nodes, with links of today.
const SCENARIO: &str = "230-paper";
/// Machines that the controller switches on in a second, all racks together; its default.
const STARTS_PER_SECOND: f64 = 20.0;
const SEED: u64 = 1;

/// One simulation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Virtual {
    /// Which links and image.
    pub title: String,
    /// Nodes.
    pub nodes: u64,
    /// From the order to the proof, in seconds.
    pub installed: Spread,
    /// Of it, fetching.
    pub fetching: Spread,
    /// The swarm's own bound, in seconds.
    pub bound: f64,
    /// Sent by the server.
    pub server_images: f64,
    /// Into the rack that got most.
    pub rack_images: f64,
}

/// One simulated node, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Way {
    pub(super) node: u32,
    /// From the order until it joined the swarm.
    pub(super) started: f64,
    pub(super) fetch: f64,
    /// Post actions and reboot, as a virtual machine took them.
    pub(super) after: f64,
}

impl Way {
    /// From the order to the proof.
    pub(super) fn installed(&self) -> f64 {
        self.started + self.fetch + self.after
    }
}

/// What a virtual machine took.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    boot: f64,
    after: f64,
}

/// Simulates the paper's nodes with today's links and with slower ones.
pub(super) fn run(nodes: usize, setting: &Setting<'_>) -> Result<(Vec<Virtual>, Vec<File>)> {
    let text = fs::read_to_string(STAGES)
        .with_context(|| format!("cannot read {STAGES}: start it in the repository's root"))?;
    let machines = measured(&text).with_context(|| format!("{STAGES} is no table of stages"))?;
    let scenario: Table = simulate::scenario(SCENARIO, false)?.parse()?;
    let (mut told, mut ways) = (Vec::new(), Vec::new());
    for (rate, uplink, words) in [("1Gbit", "10Gbit", "1 Gbit/s"), ("100Mbit", "1Gbit", "100 Mbit/s")] {
        setting.stop.check()?;
        let title = format!("{nodes} nodes, 4 GiB, {words}");
        let scenario = with_links(&scenario, nodes, rate, uplink, &machines)?;
        let (one, nodes) = simulate_one(&title, &scenario, &machines, setting)?;
        told.push(one);
        ways.push((title, nodes));
    }
    let picture = draw::simulated(&ways)?;
    Ok((told, vec![("fig8-simulated.csv", table(&ways)), ("fig8-simulated.svg", picture)]))
}

fn simulate_one(
    title: &str,
    scenario: &str,
    machines: &[Measured],
    setting: &Setting<'_>,
) -> Result<(Virtual, Vec<Way>)> {
    let csv = setting.parent.join("simulated.csv");
    let how = simulate::Setting {
        program: setting.program,
        parent: setting.parent,
        others_give_way: setting.others_give_way,
        // Its result is virtual, so it does not matter who else computes.
        patience: Duration::ZERO,
        stop: setting.stop,
    };
    let simulated = simulate::with_nodes(scenario, SEED, &how, &csv)?;
    let nodes = ways(&fs::read_to_string(&csv)?, machines)?;
    ensure!(
        nodes.len() as u64 == simulated.nodes,
        "the simulator tells of {} of {} nodes",
        nodes.len(),
        simulated.nodes
    );
    let told = Virtual {
        title: title.to_owned(),
        nodes: simulated.nodes,
        installed: Spread::of(nodes.iter().map(Way::installed)),
        fetching: Spread::of(nodes.iter().map(|way| way.fetch)),
        bound: simulated.bound,
        server_images: simulated.server_images,
        rack_images: simulated.rack_images,
    };
    Ok((told, nodes))
}

/// A column by its name, over all lines.
fn measured(text: &str) -> Result<Vec<Measured>> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().context("it is empty")?.split(',').collect();
    let machine = |line: &str| -> Result<Measured> {
        let fields: Vec<&str> = line.split(',').collect();
        let sum = |names: &[&str]| -> Result<f64> {
            names
                .iter()
                .map(|name| {
                    let at = head
                        .iter()
                        .position(|column| column == name)
                        .with_context(|| format!("it has no column {name}"))?;
                    let field = fields.get(at).with_context(|| format!("a line has no {name}"))?;
                    field.parse::<f64>().with_context(|| format!("`{field}` is no number of seconds"))
                })
                .sum()
        };
        Ok(Measured { boot: sum(&["power", "lease", "loader", "kernel", "agent"])?, after: sum(&["post", "reboot"])? })
    };
    let machines: Vec<Measured> = lines.filter(|line| !line.is_empty()).map(machine).collect::<Result<_>>()?;
    ensure!(!machines.is_empty(), "it has no machines");
    Ok(machines)
}

/// The scenario with other links; its nodes come one after the other, as they are switched on and as they boot.
fn with_links(scenario: &Table, nodes: usize, rate: &str, uplink: &str, machines: &[Measured]) -> Result<String> {
    let mut scenario = scenario.clone();
    let fabric =
        scenario.get_mut("fabric").and_then(toml::Value::as_table_mut).context("the scenario has no fabric")?;
    fabric.insert("nodes".to_owned(), i64::try_from(nodes)?.into());
    fabric.insert("rate".to_owned(), rate.into());
    fabric.insert("uplink".to_owned(), uplink.into());
    let boots = machines.iter().map(|machine| machine.boot);
    let (least, most) = boots.fold((f64::INFINITY, 0.0_f64), |(least, most), boot| (least.min(boot), most.max(boot)));
    let over = nodes as f64 / STARTS_PER_SECOND + most - least;
    let arrival = Table::from_iter([("over".to_owned(), toml::Value::from(format!("{:.0}ms", over * 1000.0)))]);
    scenario.insert("arrival".to_owned(), arrival.into());
    Ok(toml::to_string(&scenario)?)
}

/// The simulator's nodes (the seed is left out) with the stages of the virtual machines, each in its turn.
fn ways(csv: &str, machines: &[Measured]) -> Result<Vec<Way>> {
    let least = machines.iter().map(|machine| machine.boot).fold(f64::INFINITY, f64::min);
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column =
        |name: &str| head.iter().position(|column| *column == name).with_context(|| format!("no column {name}"));
    let (node, started, finished) = (column("node")?, column("started_seconds")?, column("finished_seconds")?);
    let mut ways = Vec::new();
    for line in lines.skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| -> Result<f64> {
            let field = fields.get(at).copied().unwrap_or_default();
            field.parse().with_context(|| format!("`{field}` is no number, in `{line}`"))
        };
        let (joined, done) = (number(started)?, number(finished)?);
        let after = machines[ways.len() % machines.len()].after;
        ways.push(Way { node: number(node)? as u32, started: joined + least, fetch: done - joined, after });
    }
    Ok(ways)
}

fn table(ways: &[(String, Vec<Way>)]) -> String {
    let mut text = "links,node,joined_seconds,fetch_seconds,post_and_reboot_seconds,installed_seconds\n".to_owned();
    for (title, nodes) in ways {
        let links = title.rsplit(", ").next().unwrap_or(title);
        for way in nodes {
            let _ = writeln!(
                text,
                "{links},{},{:.3},{:.3},{:.3},{:.3}",
                way.node,
                way.started,
                way.fetch,
                way.after,
                way.installed()
            );
        }
    }
    text
}

/// What the row's page says.
pub(super) fn page(runs: &[Virtual]) -> String {
    let mut text = format!(
        "*Simulated*: `bench/scenarios/{SCENARIO}.toml` (disks of 100 MB/s) with the links below; power to agent, post actions and reboot as four \
         virtual machines took them under emulation (`{STAGES}`, *VM*), machines switched on at {STARTS_PER_SECOND} a second. A real machine's \
         self-test takes minutes more; the paper does not give its image's size.\n\n\
         | (*simulated*) min, order to proof | least | median | mean | most | fetching, mean s | bound s | server images | rack images |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for Virtual { title, installed, fetching, bound, server_images, rack_images, .. } in runs {
        let minutes =
            [installed.least, installed.median, installed.mean, installed.most].map(|s| format!("{:.1}", s / 60.0));
        let _ = writeln!(
            text,
            "| {title} | {} | {:.1} | {bound:.1} | {server_images:.3} | {rack_images:.3} |",
            minutes.join(" | "),
            fetching.mean
        );
    }
    let _ =
        writeln!(text, "| the paper, 2010 | {:.1} | - | {:.2} | {:.1} | - | - | - | - |", PAPER.0, PAPER.2, PAPER.1);
    text + "\n![Figure 8, simulated](fig8-simulated.svg)\n"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_measured_stages_are_read_and_wrong_ones_refused() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(STAGES);
        let machines = measured(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(machines.len(), 4);
        assert!((machines[0].boot - 25.5).abs() < 1e-9 && (machines[0].after - 92.7).abs() < 1e-9);
        for (text, word) in
            [("node,power\nn1,1\n", "lease"), ("power,lease,loader,kernel,agent,post,reboot\n1,2,x\n", "`x`")]
        {
            let error = format!("{:#}", measured(text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn simulated_nodes_take_the_stages_in_turns() {
        let csv =
            "node,rack,started_seconds,finished_seconds,alive\n0,,0.0,0.0,true\n1,0,2.0,30.0,true\n2,0,5.0,31.0,true\n";
        let machines = [Measured { boot: 20.0, after: 90.0 }, Measured { boot: 30.0, after: 100.0 }];
        let ways = ways(csv, &machines).unwrap();
        let times: Vec<_> = ways.iter().map(|way| (way.node, way.started, way.fetch, way.installed())).collect();
        assert_eq!(times, [(1, 22.0, 28.0, 140.0), (2, 25.0, 26.0, 151.0)]);
        let scenario = "[fabric]\nnodes = 9\nrate = \"x\"\n".parse().unwrap();
        let text = with_links(&scenario, 20, "1Gbit", "10Gbit", &machines).unwrap();
        assert!(text.contains("nodes = 20") && text.contains("over = \"11000ms\""), "{text}");
        assert!(
            table(&[("20 nodes, 4 GiB, 1 Gbit/s".into(), ways)]).contains("1 Gbit/s,2,25.000,26.000,100.000,151.000")
        );
    }
}
