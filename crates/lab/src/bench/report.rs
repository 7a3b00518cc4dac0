//! Results as lines of JSON for programs and as tables for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::machine;
use super::rows::{OURS, Row, Session};
use super::run::{Measured, median};
use crate::tool;

const MIB: f64 = 1_048_576.0;

/// Where and with what it was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Origin {
    /// As it was typed.
    pub command: String,
    /// Hardware.
    pub machine: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Of the repository; with a mark when files differ from it.
    pub commit: String,
    /// When it began, in UTC.
    pub date: String,
    /// Priority of all measured processes; below 0 others give way.
    pub nice: i32,
}

impl Origin {
    /// Of this process.
    #[must_use]
    pub fn find(command: String, nice: i32) -> Origin {
        let git = |arguments: &[&str]| tool::run("git", arguments).unwrap_or_default().trim().to_owned();
        let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { "+" };
        let commit = format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]));
        let date = tool::run("date", ["-u", "+%F %T"]).unwrap_or_default().trim().to_owned();
        Origin { command, machine: machine::describe(), kernel: machine::kernel(), commit, date, nice }
    }
}

/// One run with everything that belongs to it.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// Task.
    pub task: &'a str,
    /// Method.
    pub method: &'a str,
    /// What exactly ran.
    pub version: &'a str,
    /// Counted from 1.
    pub run: usize,
    /// What came of it.
    #[serde(flatten)]
    pub measured: &'a Measured,
    /// Where and with what.
    #[serde(flatten)]
    pub origin: &'a Origin,
}

/// Writes `ROW.json`, a line of JSON for each run, and `ROW.md`.
///
/// # Errors
/// When they cannot be written.
pub fn write(folder: &Path, row: &Row, session: &Session, lines: &[String], origin: &Origin) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let put = |name: String, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    put(format!("{}.json", row.id), lines.iter().map(|line| format!("{line}\n")).collect())?;
    let mut text = format!("# Row {}: {}\n\n", row.id, row.what);
    let _ = writeln!(text, "{}\n{}\n", head(), line(row, session));
    text.push_str(&details(row, session));
    let Origin { command, machine, kernel, commit, date, nice } = origin;
    let _ = write!(
        text,
        "\nCommand: `{command}`. {date} UTC, commit {commit}, {machine}, Linux {kernel}, priority {nice}.\n\
         Images are payload (1448 of 1514 bytes on a link) over the file's size; CPU is that of the nodes' control groups,\n\
         the kernel's network work in them included. A run with * was disturbed by others.\n"
    );
    put(format!("{}.md", row.id), text)
}

/// The head of the table of rows.
#[must_use]
pub fn head() -> String {
    "| row | figure | median | worst | runs | required | aim | verdict |\n|---|---|---|---|---|---|---|---|".to_owned()
}

/// A row's line in it.
#[must_use]
pub fn line(row: &Row, session: &Session) -> String {
    let mut figures = (row.figure)(session);
    figures.sort_by(f64::total_cmp);
    let (Row { id, what, required, aim, .. }, count) = (row, figures.len());
    let Some(worst) = figures.last() else {
        return format!("| {id} | {what} | - | - | 0 | {required} | {aim} | **failed** |");
    };
    let middle = median(&figures);
    let verdict = match middle {
        middle if middle <= *aim => "aim",
        middle if middle <= *required => "required",
        _ => "**short**",
    };
    format!("| {id} | {what} | {middle:.3} | {worst:.3} | {count} | {required} | {aim} | {verdict} |")
}

/// What each method did in each task of a row, fastest first.
#[must_use]
pub fn details(row: &Row, session: &Session) -> String {
    let mut text = String::new();
    for task in &row.tasks {
        let work = task.work();
        let plan = &task.plan;
        let _ = writeln!(
            text,
            "{}: {} rack(s) of {} nodes, {} Mbit/s, uplink {} Mbit/s, {} MiB in pieces of {} KiB; F/U {:.2} s, T* {:.2} s, bound {:.2} s\n",
            task.name,
            plan.racks,
            plan.nodes_per_rack,
            plan.link / 1_000_000,
            plan.uplink / 1_000_000,
            work.bytes as f64 / MIB,
            work.piece_bytes >> 10,
            work.once(),
            work.best(),
            work.bound()
        );
        text.push_str(
            "| method | runs | makespan s | range s | median node s | / T* | / bound | server images | rack images | \
             received images | wasted % | CPU-s/GB/node | server CPU-s | peak MiB | server MiB | idle | drops |\n",
        );
        text.push_str(&format!("|{}\n", "---|".repeat(17)));
        for (method, runs) in methods(task.name, session) {
            text.push_str(&method_line(&method, &runs, session.good(task.name, &method)));
        }
        text.push('\n');
    }
    text
}

fn methods(task: &str, session: &Session) -> Vec<(String, Vec<Measured>)> {
    let of_task = session.0.iter().filter(|((name, _), _)| name == task);
    let mut methods: Vec<(String, Vec<Measured>)> =
        of_task.map(|((_, method), runs)| (method.clone(), runs.clone())).collect();
    let key =
        |runs: &[Measured]| runs.iter().filter(|run| run.ok).map(|run| run.makespan).fold(f64::INFINITY, f64::min);
    methods.sort_by(|one, other| key(&one.1).total_cmp(&key(&other.1)));
    methods
}

fn method_line(method: &str, all: &[Measured], good: Vec<&Measured>) -> String {
    let name = if method == OURS { format!("**{method}**") } else { method.to_owned() };
    let disturbed = if good.iter().any(|run| run.noisy) { "*" } else { "" };
    let mut line = format!("| {name} | {} of {}{disturbed} |", good.len(), all.len());
    if good.is_empty() {
        let why = all.iter().rev().find_map(|run| run.error.clone()).unwrap_or_default().replace('|', "/");
        let _ = writeln!(line, " failed: {why} |{}", " |".repeat(14));
        return line;
    }
    let of = |figure: &dyn Fn(&Measured) -> Option<f64>| {
        let mut figures: Vec<f64> = good.iter().filter_map(|run| figure(run)).collect();
        figures.sort_by(f64::total_cmp);
        (!figures.is_empty()).then(|| (median(&figures), figures[0], figures[figures.len() - 1]))
    };
    let cell = |digits: usize, figure: &dyn Fn(&Measured) -> Option<f64>| {
        of(figure).map_or_else(|| "-".to_owned(), |(middle, ..)| format!("{middle:.digits$}"))
    };
    let range = of(&|run| Some(run.makespan)).map(|(_, least, most)| format!("{least:.2} to {most:.2}"));
    let cells = [
        cell(2, &|run| Some(run.makespan)),
        range.unwrap_or_default(),
        cell(2, &|run| Some(run.ours_median.unwrap_or(run.median))),
        cell(3, &|run| run.over_best),
        cell(3, &|run| run.over_bound),
        cell(3, &|run| Some(run.server_images)),
        cell(3, &|run| run.rack_images),
        cell(4, &|run| run.received_images),
        cell(2, &|run| run.wasted_share.map(|share| share * 100.0)),
        cell(2, &|run| Some(run.cpu_per_gb_and_node)),
        cell(2, &|run| Some(run.cpu_server)),
        cell(1, &|run| Some(run.resident_peak as f64 / MIB)),
        cell(1, &|run| Some(run.server_resident_peak as f64 / MIB)),
        cell(2, &|run| Some(run.idle_share)),
        cell(0, &|run| Some(run.drops as f64)),
    ];
    let _ = writeln!(line, " {} |", cells.join(" | "));
    line
}
