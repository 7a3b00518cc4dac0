//! The bench: files are delivered in network namespaces by our swarm and by others, on the same work, and measured.
//!
//! [`rows`] says what is delivered and what must come out, [`fabric`] builds the network, [`run`] watches one
//! delivery, [`method`] holds the ways to deliver, [`report`] writes the tables.

pub mod content;
pub mod fabric;
pub mod group;
pub mod machine;
pub mod method;
pub mod report;
pub mod rows;
pub mod run;
pub mod stage;
pub mod swarm;
pub mod theory;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::scratch::Scratch;
use crate::stop::Stop;
use crate::{leftovers, tool};
use fabric::Fabric;
use method::{Method, Ours};
use report::{Line, Origin};
use rows::{Beside, Row, Session, Task};
use run::{Course, Measured, Setting};

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
    tool::need_root()?;
    let rows = chosen(&options.rows)?;
    let stop = Stop::on_signals()?;
    leftovers::remove(&options.parent)?;
    rustix::process::setpriority_process(None, options.nice).context("cannot set the priority")?;
    let scratch = Scratch::new(&options.parent)?;
    // A copy in memory: the original may be built anew meanwhile, and no disk is waited for.
    let program = scratch.path().join("rackswarm");
    fs::copy(&options.program, &program).with_context(|| format!("cannot copy {}", options.program.display()))?;

    let origin = Origin::find(options.command.clone(), options.nice);
    let mut bench = Bench {
        options,
        stop,
        folder: scratch.path().to_owned(),
        program,
        origin,
        session: Session::default(),
        lines: BTreeMap::new(),
    };
    let mut tasks: Vec<Task> = Vec::new();
    for task in rows.iter().flat_map(|row| &row.tasks) {
        if !tasks.iter().any(|known| known.name == task.name) {
            tasks.push(*task);
        }
    }
    let outcome = tasks.iter().try_for_each(|task| bench.task(&bench_task(options, *task)));
    // What was measured until an interruption is worth keeping.
    let good = bench.tell(rows)?;
    outcome.map(|()| good)
}

fn bench_task(options: &Options, task: Task) -> Task {
    let task = if options.quick { rows::quick(task) } else { task };
    Task { piece_bytes: options.piece_bytes.unwrap_or(task.piece_bytes), ..task }
}

fn chosen(ids: &[String]) -> Result<Vec<Row>> {
    let mut all = rows::all();
    let known: Vec<&str> = all.iter().map(|row| row.id).collect();
    if let Some(unknown) = ids.iter().find(|id| !known.contains(&id.as_str())) {
        bail!("there is no row `{unknown}`; there are {}", known.join(", "));
    }
    all.retain(|row| ids.is_empty() || ids.iter().any(|id| id == row.id));
    Ok(all)
}

/// A session under way.
struct Bench<'a> {
    options: &'a Options,
    stop: Stop,
    folder: PathBuf,
    program: PathBuf,
    origin: Origin,
    session: Session,
    /// JSON by task.
    lines: BTreeMap<String, Vec<String>>,
}

impl Bench<'_> {
    /// Runs a task with every method, in turns, so that a change of the machine meets all of them.
    fn task(&mut self, task: &Task) -> Result<()> {
        self.stop.check()?;
        self.need_room(task)?;
        let files = Files::make(&self.folder, task)?;
        let methods = self.methods(task);
        println!("==> {}: {} nodes, {} MiB", task.name, task.plan.nodes(), task.bytes >> 20);
        let fabric = Fabric::build(task.plan)?;
        for number in 1..=self.options.runs {
            for method in &methods {
                self.stop.check()?;
                let measured = self.repeat(method.as_ref(), task, &files, &fabric);
                self.stop.check()?;
                self.keep(task, method.as_ref(), number, measured)?;
            }
        }
        Ok(())
    }

    fn repeat(&self, method: &dyn Method, task: &Task, files: &Files, fabric: &Fabric) -> Measured {
        let setting = Setting {
            fabric,
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
        let mut measured = run::run(method, &setting);
        for _ in 0..REPEATS {
            if !measured.noisy || self.stop.check().is_err() {
                break;
            }
            println!("    {}: others used {:.1} s of CPU, once more", method.name(), measured.foreign_cpu);
            measured = run::run(method, &setting);
        }
        measured
    }

    fn keep(&mut self, task: &Task, method: &dyn Method, number: usize, measured: Measured) -> Result<()> {
        let (name, version) = (method.name(), method.version());
        let name = if task.mixed { rows::OURS.to_owned() } else { name };
        println!("    {}", told(&name, number, &measured));
        let line = Line {
            task: task.name,
            method: &name,
            version: &version,
            run: number,
            measured: &measured,
            origin: &self.origin,
        };
        let line = serde_json::to_string(&line).context("cannot write JSON")?;
        self.lines.entry(task.name.to_owned()).or_default().push(line);
        self.session.0.entry((task.name.to_owned(), name)).or_default().push(measured);
        Ok(())
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
    fn need_room(&self, task: &Task) -> Result<()> {
        let needed = task.bytes * (task.plan.nodes() as u64 + 2);
        let space = rustix::fs::statvfs(&self.folder)?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        ensure!(
            needed <= free,
            "{} needs {} MiB in {} and {} are free: make room, choose another with --work, or add --quick",
            task.name,
            needed >> 20,
            self.folder.display(),
            free >> 20
        );
        Ok(())
    }

    /// Prints the table and writes the files of every row that has results.
    fn tell(&self, mut rows: Vec<Row>) -> Result<bool> {
        for row in &mut rows {
            row.tasks = row.tasks.iter().map(|task| bench_task(self.options, *task)).collect();
        }
        let is_complete = |row: &Row| row.tasks.iter().all(|task| self.lines.contains_key(task.name));
        println!("\n{}", report::head());
        let mut good = true;
        for row in rows.iter().filter(|row| is_complete(row)) {
            let lines: Vec<String> =
                row.tasks.iter().filter_map(|task| self.lines.get(task.name)).flatten().cloned().collect();
            report::write(&self.options.out, row, &self.session, &lines, &self.origin)?;
            println!("{}", report::line(row, &self.session));
            let figures = (row.figure)(&self.session);
            good &= !figures.is_empty() && figures.iter().all(|figure| *figure <= row.required);
        }
        println!("\nmore in {}/ROW.md", self.options.out.display());
        Ok(good)
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

fn told(name: &str, number: usize, measured: &Measured) -> String {
    if let Some(error) = &measured.error {
        return format!("{name} #{number}: failed: {error}");
    }
    let over = measured.over_bound.map(|over| format!(" = {over:.3} x bound")).unwrap_or_default();
    let racks = measured.rack_images.map(|images| format!(", rack {images:.2}")).unwrap_or_default();
    let received = measured.received_images.map(|images| format!(", received {images:.4}")).unwrap_or_default();
    format!(
        "{name} #{number}: {:.2} s{over}, server {:.3} images{racks}{received}, CPU {:.2} s/GB/node, {:.1} MiB, idle {:.2}{}",
        measured.makespan,
        measured.server_images,
        measured.cpu_per_gb_and_node,
        measured.resident_peak as f64 / 1_048_576.0,
        measured.idle_share,
        if measured.noisy { ", disturbed" } else { "" }
    )
}
