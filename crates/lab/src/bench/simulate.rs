//! Runs in virtual time, by `rackswarm sim` as anybody would start it: scenarios of the repository, and deliveries of
//! the rows over again, so that the simulator can be held against the network.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use toml::Table;

use super::machine::{self, Watch};
use super::rows::Task;
use crate::scratch::Scratch;
use crate::stop::Stop;

/// Where the scenarios are, seen from the repository's root.
const SCENARIOS: &str = "bench/scenarios";
/// Whoever simulates longer has failed.
const LIMIT: Duration = Duration::from_secs(3600);
const GLANCE: Duration = Duration::from_millis(20);
/// With `--quick` a scenario has this part of its nodes.
const QUICK: i64 = 10;
/// The simulator's own bound may differ from ours by this share, which is rounding.
const SAME_BOUND: f64 = 0.002;

/// What was simulated. Times in seconds of the simulated world, but for the wall's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Simulated {
    /// Every node finished, and nothing happened that must not.
    pub ok: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Others used the machine, so the wall's time is too long. The rest of it is the same on any machine.
    pub noisy: bool,
    /// Seed of all chance.
    pub seed: u64,
    /// Nodes that want the image.
    pub nodes: u64,
    /// Pieces of the image.
    pub pieces: u64,
    /// T*.
    pub best: f64,
    /// T_LB.
    pub bound: f64,
    /// Until the last node had everything.
    pub makespan: f64,
    /// The makespan over T*.
    pub over_best: f64,
    /// The makespan over T_LB.
    pub over_bound: f64,
    /// Sent by the server, in images.
    pub server_images: f64,
    /// Into the rack that got most, in images.
    pub rack_images: f64,
    /// How long the simulation took, from the process's start to its end.
    pub wall: f64,
    /// Most resident memory of the simulation.
    pub resident_peak: u64,
    /// Events of the simulator.
    pub events: u64,
    /// Hash of everything that the engines put out: the same wherever it runs.
    pub trace: String,
    /// CPU seconds of others.
    pub foreign_cpu: f64,
    /// What `rackswarm sim` read.
    pub scenario: String,
}

/// How it is done.
pub struct Setting<'a> {
    /// Our own program.
    pub program: &'a Path,
    /// Folder for files.
    pub parent: &'a Path,
    /// Others give way to us.
    pub others_give_way: bool,
    /// How long to wait for an idle machine; only the wall's time needs one.
    pub patience: Duration,
    /// Asked to end?
    pub stop: &'a Stop,
}

/// Simulates a scenario once.
#[must_use]
pub fn run(scenario: &str, seed: u64, setting: &Setting<'_>) -> Simulated {
    let failed = |error| Simulated { error: Some(format!("{error:#}")), seed, ..Simulated::default() };
    let simulated = attempt(scenario, seed, setting, None).unwrap_or_else(failed);
    Simulated { scenario: scenario.to_owned(), ..simulated }
}

/// Simulates a scenario once and writes what became of each node, as `rackswarm sim --csv` does.
///
/// # Errors
/// When it cannot be simulated, or not every node finished.
pub fn with_nodes(scenario: &str, seed: u64, setting: &Setting<'_>, csv: &Path) -> Result<Simulated> {
    let simulated = attempt(scenario, seed, setting, Some(csv))?;
    match &simulated.error {
        None => Ok(Simulated { scenario: scenario.to_owned(), ..simulated }),
        Some(error) => bail!("the simulation failed: {error}"),
    }
}

/// Simulates the delivery of a row once. That both reckon with the same bound is made sure of.
#[must_use]
pub fn twin(task: &Task, seed: u64, setting: &Setting<'_>) -> Simulated {
    // Its result is virtual, so it does not matter who else computes.
    let simulated = Simulated { noisy: false, ..run(&scenario_of(task), seed, setting) };
    let (theirs, ours) = (simulated.bound, task.work().bound());
    if simulated.ok && (theirs / ours - 1.0).abs() > SAME_BOUND {
        let error = format!("the simulator's bound is {theirs:.3} s and ours {ours:.3} s: these are two works");
        return Simulated { ok: false, error: Some(error), ..simulated };
    }
    simulated
}

/// A scenario of the repository without its limits, because the rows judge; a part of its nodes where it is to be quick.
///
/// # Errors
/// When there is none of this name.
pub fn scenario(name: &str, quick: bool) -> Result<String> {
    let path = Path::new(SCENARIOS).join(format!("{name}.toml"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}: start the bench in the repository's root", path.display()))?;
    without_limits(&text, quick).with_context(|| format!("{} is no scenario", path.display()))
}

fn without_limits(text: &str, quick: bool) -> Result<String> {
    let mut scenario: Table = text.parse()?;
    scenario.remove("limits");
    if quick {
        let fabric = scenario.get_mut("fabric").and_then(toml::Value::as_table_mut).context("it has no fabric")?;
        let nodes = fabric.get("nodes").and_then(toml::Value::as_integer).context("it has no number of nodes")?;
        fabric.insert("nodes".to_owned(), (nodes / QUICK).max(1).into());
    }
    Ok(toml::to_string(&scenario)?)
}

/// The same bytes, pieces, nodes and links. The model is the fine one, which has the links' queues, and TCP's
/// acknowledgements, one for two packets, because the network has them.
#[must_use]
pub fn scenario_of(task: &Task) -> String {
    let work = task.work();
    let mut text = format!(
        "title = \"the work of {}\"\n\n[image]\nsize = \"{}\"\npiece = \"{}\"\n\n[fabric]\nnodes = {}\nrate = \"{}bit\"\n",
        task.name, work.bytes, work.piece_bytes, work.nodes, work.link
    );
    if work.racks > 1 {
        text += &format!("racks = {}\n", work.racks);
    }
    if work.racks > 1 && work.uplink > 0 {
        text += &format!("uplink = \"{}bit\"\n", work.uplink);
    }
    text + "\n[network]\nmodel = \"blocks\"\npackets_per_acknowledgement = 2\n"
}

fn attempt(scenario: &str, seed: u64, setting: &Setting<'_>, csv: Option<&Path>) -> Result<Simulated> {
    let folder = Scratch::new(setting.parent)?;
    let file = folder.path().join("scenario.toml");
    fs::write(&file, scenario)?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    // Its end is all that is waited for, so a look at the machine before costs it nothing.
    let _free = machine::wait_until_idle(setting.patience);
    let mut sim = Command::new(setting.program);
    sim.arg("sim").arg(&file).args(["--json", "--seed", &seed.to_string()]);
    if let Some(csv) = csv {
        sim.arg("--csv").arg(csv);
    }
    sim.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let begun = Instant::now();
    let mut child = Ended(sim.spawn().context("`rackswarm sim` cannot be started")?);
    let pid = child.0.id();
    let watch = Watch::begin([pid]);
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        setting.stop.check()?;
        ensure!(begun.elapsed() < LIMIT, "`rackswarm sim` is not done after {} s", LIMIT.as_secs());
        std::thread::sleep(GLANCE);
    };
    let wall = begun.elapsed().as_secs_f64();
    let cores = watch.end([pid], setting.others_give_way);
    let text = fs::read_to_string(&out)?;
    let Ok(report) = serde_json::from_str::<Value>(&text) else {
        let said = fs::read_to_string(&err).unwrap_or_default();
        bail!("`rackswarm sim` ended with {status}: {}", said.lines().last().unwrap_or_default());
    };
    Ok(Simulated { wall, noisy: cores.noisy, foreign_cpu: cores.foreign, ..read(&report, seed)? })
}

/// What `rackswarm sim --json` prints.
fn read(report: &Value, seed: u64) -> Result<Simulated> {
    let number =
        |key: &str| report[key].as_f64().with_context(|| format!("`rackswarm sim --json` says nothing of {key}"));
    let (best, bound, makespan) = (number("t_star")? / 1e9, number("bound")? / 1e9, number("makespan")? / 1e9);
    ensure!(best > 0.0 && bound > 0.0, "the simulator knows no bound");
    let error = match (number("unfinished")?, number("violation_count")?) {
        (0.0, 0.0) => None,
        (0.0, _) => Some(report["violations"][0].as_str().unwrap_or("a rule was broken").to_owned()),
        (unfinished, _) => Some(format!("{unfinished} nodes did not finish")),
    };
    Ok(Simulated {
        ok: error.is_none(),
        error,
        seed,
        nodes: number("nodes")? as u64,
        pieces: number("pieces")? as u64,
        best,
        bound,
        makespan,
        over_best: makespan / best,
        over_bound: makespan / bound,
        server_images: number("seed_copies")?,
        rack_images: number("rack_copies")?,
        resident_peak: number("peak_memory_bytes")? as u64,
        events: number("events")? as u64,
        trace: report["trace"].as_str().unwrap_or_default().to_owned(),
        ..Simulated::default()
    })
}

/// A process that does not outlive its value.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::rows::{self, Job};

    #[test]
    fn a_scenario_loses_its_limits_and_a_quick_one_most_nodes() {
        let text = "title = \"x\"\n[image]\nsize = \"1GiB\"\n[fabric]\nnodes = 10000\n[limits]\nratio = 1.05\n";
        let table = |quick| without_limits(text, quick).unwrap().parse::<Table>().unwrap();
        assert!(!table(false).contains_key("limits"));
        assert_eq!(table(false)["fabric"]["nodes"].as_integer(), Some(10_000));
        assert_eq!(table(true)["fabric"]["nodes"].as_integer(), Some(1000));
        assert_eq!(table(true)["image"]["size"].as_str(), Some("1GiB"));
        assert!(without_limits("title = \"x\"", true).is_err());
    }

    #[test]
    fn a_rows_own_work_becomes_a_scenario() {
        let tasks: Vec<Task> = rows::all().into_iter().flat_map(|row| row.jobs).filter_map(Job::delivery).collect();
        let of = |name: &str| -> Table {
            scenario_of(tasks.iter().find(|task| task.name == name).unwrap()).parse().unwrap()
        };
        let (ten, racks) = (of("ten"), of("racks"));
        assert_eq!(ten["image"]["size"].as_str(), Some("134217728"));
        assert_eq!(ten["fabric"]["rate"].as_str(), Some("100000000bit"));
        assert!(!ten["fabric"].as_table().unwrap().contains_key("racks"));
        assert_eq!((racks["fabric"]["racks"].as_integer(), racks["fabric"]["nodes"].as_integer()), (Some(5), Some(50)));
        assert_eq!(racks["fabric"]["uplink"].as_str(), Some("40000000bit"));
    }

    #[test]
    fn what_the_simulator_prints_is_judged() {
        let mut report = serde_json::json!({
            "t_star": 10_000_000_000_u64, "bound": 20_000_000_000_u64, "makespan": 22_000_000_000_u64,
            "unfinished": 0, "violation_count": 0, "violations": [], "nodes": 10, "pieces": 64, "seed_copies": 1.01,
            "rack_copies": 0.0, "peak_memory_bytes": 1_048_576, "events": 5, "trace": "ab",
        });
        let good = read(&report, 3).unwrap();
        assert!(good.ok && (good.over_best - 2.2).abs() < 1e-9 && (good.over_bound - 1.1).abs() < 1e-9);
        report["violation_count"] = 1.into();
        report["violations"] = serde_json::json!(["a byte was counted twice"]);
        assert_eq!(read(&report, 3).unwrap().error.as_deref(), Some("a byte was counted twice"));
        report["unfinished"] = 2.into();
        assert_eq!(read(&report, 3).unwrap().error.as_deref(), Some("2 nodes did not finish"));
        assert!(read(&serde_json::json!({}), 3).is_err());
    }
}
