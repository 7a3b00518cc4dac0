//! The bench: files are delivered in network namespaces by our swarm and by others, on the same work, and measured; one
//! seeder on loopback; and the simulator.
//!
//! [`rows`] says what runs and what must come out. A delivery: [`fabric`] builds the network, [`run`] watches it,
//! [`method`] holds the ways to deliver. [`egress`] is the seeder alone, [`simulate`] the simulator. [`record`] keeps what
//! was measured, [`report`] writes the tables. [`enrol`] is the controller alone, with machines that only talk;
//! [`hall`] is the server with agents in namespaces, [`figures`] a run of it drawn as the paper's figures.

pub mod content;
pub mod egress;
pub mod enrol;
pub mod fabric;
pub mod figures;
pub mod group;
pub mod hall;
pub mod machine;
pub mod method;
pub mod record;
pub mod report;
pub mod rows;
pub mod run;
pub mod simulate;
pub mod stage;
pub mod swarm;
pub mod theory;
pub mod warm;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::scratch::Scratch;
use crate::stop::Stop;
use crate::{leftovers, tool};
use content::Content;
use egress::{Load, Way};
use fabric::Fabric;
use method::{Method, Ours};
use record::{OURS, Origin, Outcome, Record, Session};
use rows::{Beside, Job, Row, Task, Times};
use run::{Course, Measured};
use simulate::Simulated;
use theory::Work;
use warm::Warm;

/// A run that others disturbed is repeated so often.
const REPEATS: usize = 2;
/// Every so many-th piece is another one in the newer file of [`Course::Again`].
const CHANGED_EVERY: u64 = 20;

/// What is measured, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Letters of rows; all where there are none.
    pub rows: Vec<String>,
    /// Runs of each task and method.
    pub runs: usize,
    /// A quarter of the bytes.
    pub quick: bool,
    /// Machines that enrol or are installed, in place of the row's own number.
    pub nodes: Option<usize>,
    /// Racks of row fig8, in place of its own number.
    pub racks: Option<usize>,
    /// Bytes of row fig8's image.
    pub bytes: Option<u64>,
    /// Rate of a node's link in row fig8, in bit/s.
    pub rate: Option<u64>,
    /// The agent's program, for row fig8.
    pub agent: Option<PathBuf>,
    /// Other clients too, where they are installed.
    pub peers: bool,
    /// Only us, without the comparison of the same run.
    pub alone: bool,
    /// The program to measure.
    pub program: PathBuf,
    /// Folder for results.
    pub out: PathBuf,
    /// Folder for files, in memory; it must hold one file for each node.
    pub parent: PathBuf,
    /// Priority of what is measured; below 0 others on this machine give way.
    pub nice: i32,
    /// How long to wait for an idle machine before each run.
    pub patience: Duration,
    /// Other pieces than the rows have.
    pub piece_bytes: Option<u32>,
    /// Further words for `rackswarm seed`.
    pub seed_words: Vec<String>,
    /// Further words for `rackswarm fetch`.
    pub fetch_words: Vec<String>,
    /// As it was typed, for the record.
    pub command: String,
}

/// Runs rows and writes their tables; true when every figure is as required.
///
/// # Errors
/// When the machine cannot run them at all. A delivery that fails is a result, not an error.
pub fn run(options: &Options) -> Result<bool> {
    let rows = chosen(options)?;
    if rows.iter().flat_map(|row| &row.jobs).any(Job::needs_root) {
        tool::need_root()?;
        leftovers::remove(&options.parent)?;
    }
    let stop = Stop::on_signals()?;
    rustix::process::setpriority_process(None, options.nice).context("cannot set the priority")?;
    let scratch = Scratch::new(&options.parent)?;
    // A copy in memory: the original may be built anew meanwhile, and no disk is waited for.
    let program = scratch.path().join("rackswarm");
    fs::copy(&options.program, &program).with_context(|| format!("cannot copy {}", options.program.display()))?;

    let origin = Origin::find(options.command.clone(), &options.program, options.nice);
    let version = egress::version(&program);
    let folder = scratch.path().to_owned();
    let mut bench =
        Bench { options, stop, folder, program, origin, version, session: Session::default(), files: Vec::new() };
    let mut jobs: Vec<Job> = Vec::new();
    for job in rows.iter().flat_map(|row| &row.jobs) {
        if !jobs.iter().any(|known| known.name() == job.name()) {
            jobs.push(*job);
        }
    }
    let outcome = jobs.iter().try_for_each(|job| bench.job(job));
    // What was measured until an interruption is worth keeping.
    let good = bench.tell(&rows, outcome.is_ok())?;
    outcome.map(|()| good)
}

/// The rows that were asked for, and those that share all of their runs, which come for nothing.
fn chosen(options: &Options) -> Result<Vec<Row>> {
    let mut all = rows::all();
    let known: Vec<&str> = all.iter().map(|row| row.id).collect();
    if let Some(unknown) = options.rows.iter().find(|id| !known.contains(&id.as_str())) {
        bail!("there is no row `{unknown}`; there are {}", known.join(", "));
    }
    let is_asked = |row: &Row| options.rows.is_empty() || options.rows.iter().any(|id| id == row.id);
    let names = |row: &Row| row.jobs.iter().map(Job::name).collect::<Vec<_>>();
    let run: BTreeSet<String> = all.iter().filter(|row| is_asked(row)).flat_map(names).collect();
    all.retain(|row| row.jobs.iter().all(|job| run.contains(&job.name())));
    for job in all.iter_mut().flat_map(|row| &mut row.jobs) {
        let other = options.piece_bytes.map_or(*job, |piece_bytes| job.with_pieces(piece_bytes));
        let other = if options.quick { other.quick() } else { other };
        let other = options.nodes.map_or(other, |nodes| other.with_nodes(nodes));
        *job = match other {
            Job::Figures(load) => Job::Figures(figures::Load {
                racks: options.racks.unwrap_or(load.racks),
                bytes: options.bytes.unwrap_or(load.bytes),
                link: options.rate.unwrap_or(load.link),
                ..load
            }),
            other => other,
        };
    }
    Ok(all)
}

/// A session under way.
struct Bench<'a> {
    options: &'a Options,
    stop: Stop,
    folder: PathBuf,
    program: PathBuf,
    origin: Origin,
    /// Of our own program.
    version: String,
    session: Session,
    /// Pictures and numbers of good runs, to be written with their row.
    files: Vec<figures::File>,
}

impl Bench<'_> {
    fn job(&mut self, job: &Job) -> Result<()> {
        self.stop.check()?;
        match job {
            Job::Delivery(task) => self.deliver(task),
            Job::Egress(load) => self.give(&job.name(), load),
            Job::Enrolment(load) => self.enrol(&job.name(), load),
            Job::Figures(load) => self.figures(&job.name(), load),
            Job::Scenario(name, times) => {
                let scenario = simulate::scenario(name, self.options.quick)?;
                println!("==> {name}, simulated");
                let runs = if *times == Times::Once { 1 } else { self.options.runs };
                self.simulate(&job.name(), None, runs, |seed, setting| simulate::run(&scenario, seed, setting))
            }
            Job::Twin(task) => {
                self.recall(task);
                println!("==> {}, simulated", task.name);
                let runs = self.options.runs;
                self.simulate(&job.name(), Some(task.work()), runs, |seed, setting| simulate::twin(task, seed, setting))
            }
        }
    }

    /// Delivers with every method, in turns, so that a change of the machine meets all of them.
    fn deliver(&mut self, task: &Task) -> Result<()> {
        let bytes = task.bytes * (task.plan.nodes() as u64 + 2);
        self.need_room(bytes, task.name)?;
        let _warm = Warm::up(&self.folder, bytes, &self.stop)?;
        let files = Files::make(&self.folder, task)?;
        let methods = self.methods(task);
        println!("==> {}: {} nodes, {} MiB", task.name, task.plan.nodes(), task.bytes >> 20);
        let fabric = Fabric::build(task.plan)?;
        for number in 1..=self.options.runs {
            for method in &methods {
                let setting = run::Setting {
                    fabric: &fabric,
                    work: task.work(),
                    source: &files.source,
                    before: files.before.as_deref(),
                    program: &self.program,
                    course: task.course,
                    limit: task.limit(),
                    patience: self.options.patience,
                    shared: self.options.nice < 0,
                    parent: &self.folder,
                    stop: &self.stop,
                };
                let name = if task.mixed { OURS.to_owned() } else { method.name() };
                let outcome = self.repeat(&name, || Outcome::Namespaces(run::run(method.as_ref(), &setting)))?;
                self.keep((task.name, &name, number), method.version(), Some(task.work()), outcome);
            }
        }
        Ok(())
    }

    fn give(&mut self, job: &str, load: &Load) -> Result<()> {
        self.need_room(load.bytes * (load.clients as u64 + 2), job)?;
        fs::create_dir_all(self.folder.join("source"))?;
        let source = self.folder.join("source").join(stage::FILE);
        content::write(&source, load.bytes, Content::Random)?;
        println!("==> {job}: {} clients, {} MiB", load.clients, load.bytes >> 20);
        for number in 1..=self.options.runs {
            for way in Way::ALL {
                let setting = egress::Setting {
                    program: &self.program,
                    source: &source,
                    parent: &self.folder,
                    seed_words: &self.options.seed_words,
                    fetch_words: &self.options.fetch_words,
                    patience: self.options.patience,
                    others_give_way: self.options.nice < 0,
                    stop: &self.stop,
                };
                let outcome = self.repeat(way.name(), || Outcome::Loopback(egress::run(way, load, &setting)))?;
                self.keep((job, way.name(), number), self.version.clone(), None, outcome);
            }
        }
        Ok(())
    }

    fn enrol(&mut self, job: &str, load: &enrol::Load) -> Result<()> {
        println!("==> {job}: {} machines, one controller", load.nodes);
        for number in 1..=self.options.runs {
            let setting = enrol::Setting {
                program: &self.program,
                others_give_way: self.options.nice < 0,
                patience: self.options.patience,
                stop: &self.stop,
            };
            let outcome = Outcome::Enrolment(enrol::run(load, &setting));
            self.stop.check()?;
            self.keep((job, OURS, number), self.version.clone(), None, outcome);
        }
        Ok(())
    }

    /// Runs once however many runs are asked for: one run is what the figures show.
    fn figures(&mut self, job: &str, load: &figures::Load) -> Result<()> {
        let agent =
            self.options.agent.as_deref().context(
                "row fig8 needs the agent: `cargo xtask bench fig8` builds it; or name one with --agent FILE",
            )?;
        ensure!(agent.is_file(), "there is no agent {}", agent.display());
        let bytes = load.bytes * (load.nodes as u64 + 4);
        self.need_room(bytes, job)?;
        let _warm = Warm::up(&self.folder, bytes, &self.stop)?;
        let copy = self.folder.join("rackswarm-agent");
        fs::copy(agent, &copy).with_context(|| format!("cannot copy {}", agent.display()))?;
        println!("==> {job}: {} agents in {} racks, {} MiB", load.nodes, load.racks, load.bytes >> 20);
        let setting = figures::Setting {
            program: &self.program,
            agent: &copy,
            parent: &self.folder,
            others_give_way: self.options.nice < 0,
            patience: self.options.patience,
            alone: self.options.alone,
            stop: &self.stop,
        };
        let (figures, files) = figures::run(load, &setting);
        self.stop.check()?;
        self.files = files;
        self.keep((job, OURS, 1), self.version.clone(), None, Outcome::Figures(Box::new(figures)));
        Ok(())
    }

    fn simulate(
        &mut self,
        job: &str,
        work: Option<Work>,
        runs: usize,
        run: impl Fn(u64, &simulate::Setting<'_>) -> Simulated,
    ) -> Result<()> {
        for number in 1..=runs {
            let setting = simulate::Setting {
                program: &self.program,
                parent: &self.folder,
                others_give_way: self.options.nice < 0,
                // What another delivery is held against has no time of the wall.
                patience: if work.is_some() { Duration::ZERO } else { self.options.patience },
                stop: &self.stop,
            };
            let outcome = Outcome::Simulated(run(number as u64, &setting));
            self.stop.check()?;
            self.keep((job, OURS, number), self.version.clone(), work, outcome);
        }
        Ok(())
    }

    /// Measures again while others disturb.
    fn repeat(&self, name: &str, measure: impl Fn() -> Outcome) -> Result<Outcome> {
        self.stop.check()?;
        let mut outcome = measure();
        for _ in 0..REPEATS {
            if !outcome.noisy() || self.stop.check().is_err() {
                break;
            }
            println!("    {name}: others used {:.1} s of CPU, once more", outcome.foreign_cpu());
            outcome = measure();
        }
        self.stop.check()?;
        Ok(outcome)
    }

    fn keep(&mut self, (job, method, run): (&str, &str, usize), version: String, work: Option<Work>, outcome: Outcome) {
        println!("    {}", told(method, run, &outcome));
        let (job, method, origin) = (job.to_owned(), method.to_owned(), self.origin.clone());
        self.session.add(Record { job, method, version, run, work, outcome, origin });
    }

    /// What the simulator is held against: this session's runs, or those of the same work that were kept.
    fn recall(&mut self, task: &Task) {
        let Some(row) = rows::measured_by(task.name).filter(|_| !self.session.has(task.name)) else { return };
        let kept = Session::load(&self.options.out, row);
        let records = kept.of_job(task.name).filter(|(method, _)| *method == OURS).flat_map(|(_, records)| records);
        for record in records.filter(|record| record.work == Some(task.work())) {
            self.session.add(record.clone());
        }
    }

    fn methods(&self, task: &Task) -> Vec<Box<dyn Method>> {
        let options = self.options;
        let ours = Ours {
            program: self.program.clone(),
            piece_bytes: task.piece_bytes,
            racks: task.plan.racks > 1,
            tracker_apart: task.tracker_apart,
            mixed: task.mixed,
            seed_words: options.seed_words.clone(),
            fetch_words: options.fetch_words.clone(),
        };
        let mut methods: Vec<Box<dyn Method>> = vec![Box::new(ours)];
        match task.beside {
            _ if options.alone => {}
            Beside::Nobody => {}
            Beside::Chain => methods.push(method::chain()),
            Beside::Http => methods.push(method::http()),
        }
        if options.peers && task.peers {
            methods.extend(method::peers());
        }
        methods.retain(|method| match tool::need(method.needs()) {
            Ok(()) => true,
            Err(why) => {
                println!("    {} is left out: {why:#}", method.name());
                false
            }
        });
        methods
    }

    /// One file for the server and each node, and some for programs and pages.
    fn need_room(&self, needed: u64, job: &str) -> Result<()> {
        let space = rustix::fs::statvfs(&self.folder)?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        ensure!(
            needed <= free,
            "{job} needs {} MiB in {} and {} are free: make room, choose another with --work, or add --quick",
            needed >> 20,
            self.folder.display(),
            free >> 20
        );
        Ok(())
    }

    /// Prints the table and writes the files of every row that ran. One that was cut short is only printed, so that it
    /// replaces no good result.
    fn tell(&self, rows: &[Row], is_whole: bool) -> Result<bool> {
        println!("\n{}", report::head());
        let mut good = true;
        for row in rows.iter().filter(|row| row.jobs.iter().all(|job| self.session.has(&job.name()))) {
            print!("{}", report::line(row, &self.session));
            if is_whole || self.has_every_run(row) {
                report::write(&self.options.out, row, &self.session)?;
                let drawn = self.files.iter().filter(|_| row.jobs.iter().any(|job| matches!(job, Job::Figures(_))));
                drawn.into_iter().try_for_each(|(name, text)| report::put(&self.options.out, name, text))?;
            }
            good &= row.figures.iter().all(|figure| figure.is_met(&self.session));
        }
        report::summary(&self.options.out)?;
        println!("\nmore in {}/ROW.md", self.options.out.display());
        Ok(good)
    }

    fn has_every_run(&self, row: &Row) -> bool {
        let runs = |job: &Job| {
            if matches!(job, Job::Scenario(_, Times::Once) | Job::Figures(_)) { 1 } else { self.options.runs }
        };
        row.jobs.iter().all(|job| self.session.of_job(&job.name()).all(|(_, records)| records.len() >= runs(job)))
    }
}

/// The file to deliver, and what the nodes hold before.
struct Files {
    source: PathBuf,
    before: Option<PathBuf>,
}

impl Files {
    fn make(folder: &Path, task: &Task) -> Result<Files> {
        let source = folder.join("source").join(stage::FILE);
        let before = folder.join("source").join("before.bin");
        fs::create_dir_all(folder.join("source"))?;
        content::write(&source, task.bytes, task.content)?;
        if task.course != Course::Again {
            return Ok(Files { source, before: None });
        }
        fs::copy(&source, &before)?;
        content::change(&source, task.piece_bytes, CHANGED_EVERY)?;
        Ok(Files { source, before: Some(before) })
    }
}

fn told(name: &str, number: usize, outcome: &Outcome) -> String {
    let error = match outcome {
        Outcome::Namespaces(run) => &run.error,
        Outcome::Loopback(run) => &run.error,
        Outcome::Simulated(run) => &run.error,
        Outcome::Enrolment(run) => &run.error,
        Outcome::Figures(run) => &run.error,
    };
    if let Some(error) = error {
        return format!("{name} #{number}: failed: {error}");
    }
    let text = match outcome {
        Outcome::Namespaces(run) => delivered(run),
        Outcome::Loopback(run) => format!(
            "{:.2} GB/s, CPU-s/GB: seeder {:.2}, clients {:.2}; idle {:.2}",
            run.gigabytes_per_second, run.seeder_cpu_per_gb, run.clients_cpu_per_gb, run.idle_share
        ),
        Outcome::Simulated(run) => format!(
            "{:.2} s = {:.4} x bound, in {:.1} s with {:.0} MB",
            run.makespan,
            run.over_bound,
            run.wall,
            run.resident_peak as f64 / 1e6
        ),
        Outcome::Enrolment(run) => format!(
            "{:.0} enrolments a minute, reports p50 {:.1} p99 {:.1} ms at {:.0}/s, power after p99 {:.0} ms, {:.0} MiB, CPU {:.0} + {:.0} + {:.0} s",
            run.enrolments_per_minute,
            run.report.p50,
            run.report.p99,
            run.reports_per_second,
            run.assigned_to_power.p99,
            run.resident_peak as f64 / 1_048_576.0,
            run.cpu_enrol,
            run.cpu_settings,
            run.cpu_deploy
        ),
        Outcome::Figures(run) => format!(
            "order to proof {:.1} to {:.1} s, mean {:.1}; delivery {:.1} s = {:.3} x bound, server {:.3} images, idle {:.2}",
            run.installed.least,
            run.installed.most,
            run.installed.mean,
            run.delivery,
            run.over_bound,
            run.server_images,
            run.idle_share
        ),
    };
    format!("{name} #{number}: {text}{}", if outcome.noisy() { ", disturbed" } else { "" })
}

fn delivered(run: &Measured) -> String {
    let over = run.over_bound.map(|over| format!(" = {over:.3} x bound")).unwrap_or_default();
    let racks = run.rack_images.map(|images| format!(", rack {images:.2}")).unwrap_or_default();
    let received = run.received_images.map(|images| format!(", received {images:.4}")).unwrap_or_default();
    let killed = run.killed.map(|at| format!(", killed at {at:.1} s")).unwrap_or_default();
    format!(
        "{:.2} s{over}{killed}, server {:.3} images{racks}{received}, CPU {:.2} s/GB/node, {:.1} MiB, idle {:.2}",
        run.makespan,
        run.server_images,
        run.cpu_per_gb_and_node,
        run.resident_peak as f64 / 1_048_576.0,
        run.idle_share
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(rows: &[&str], quick: bool) -> Options {
        Options {
            rows: rows.iter().map(|row| (*row).to_owned()).collect(),
            runs: 3,
            quick,
            nodes: None,
            racks: None,
            bytes: None,
            rate: None,
            agent: None,
            peers: false,
            alone: false,
            program: PathBuf::new(),
            out: PathBuf::new(),
            parent: PathBuf::new(),
            nice: 0,
            patience: Duration::ZERO,
            piece_bytes: None,
            seed_words: Vec::new(),
            fetch_words: Vec::new(),
            command: String::new(),
        }
    }

    #[test]
    fn rows_that_share_their_runs_come_for_nothing() {
        let ids =
            |rows: &[&str]| -> Vec<&str> { chosen(&options(rows, false)).unwrap().iter().map(|row| row.id).collect() };
        assert_eq!(ids(&["a"]), ["a", "f", "g"]);
        assert_eq!(ids(&["e", "n"]), ["d", "e", "n"]);
        assert_eq!(ids(&["p"]), ["p"]);
        assert_eq!(ids(&[]).len(), rows::all().len());
        let refused = chosen(&options(&["z"], false)).err().map(|error| error.to_string());
        assert!(refused.unwrap().starts_with("there is no row `z`"));
    }

    #[test]
    fn a_quick_delivery_and_its_twin_stay_the_same_work() {
        let rows = chosen(&Options { piece_bytes: Some(1 << 20), ..options(&["a", "p"], true) }).unwrap();
        let (ten, twin) = (rows[0].jobs[0], rows.last().unwrap().jobs[0]);
        let (Job::Delivery(ten), Job::Twin(twin)) = (ten, twin) else { panic!("{ten:?}, {twin:?}") };
        assert_eq!((ten.bytes, ten.piece_bytes), (32 << 20, 1 << 20));
        assert_eq!(ten, twin);
    }
}
