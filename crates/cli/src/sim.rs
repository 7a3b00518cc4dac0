//! `rackswarm sim`: a swarm in virtual time, from a scenario file.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sim::{Report, Sample, Scenario};

use crate::output::{bytes, check_file, say, table, text_of};

const EXAMPLES: &str = "\
Examples:
  rackswarm sim bench/scenarios/d.toml
  rackswarm sim bench/scenarios/10k.toml --csv run.csv --svg run.svg
  rackswarm sim bench/scenarios/faults/mixed.toml --seeds 1..1000

The same scenario and seed give the same run to the bit: compare the line `trace:`.
Exit status 1 when something happened that must never happen.";

/// Which scenario, and what to write.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The scenario, a TOML file
    scenario: PathBuf,
    /// Seed of all chance
    #[arg(long, default_value_t = 1, conflicts_with = "seeds")]
    seed: u64,
    /// Run every seed from the first to the last, and print one line for each that fails
    #[arg(long, value_name = "FIRST..LAST", value_parser = seeds)]
    seeds: Option<(u64, u64)>,
    /// Write when each node finished; progress over time goes to FILE with `.progress` before its extension
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    csv: Option<PathBuf>,
    /// Draw the run
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    svg: Option<PathBuf>,
    /// Print a JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// A run and what it cost us.
struct Run {
    report: Report,
    wall: Duration,
    peak_memory: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let scenario = Scenario::load(&arguments.scenario)?;
    if let Some((first, last)) = arguments.seeds {
        return sweep(&scenario, first, last, arguments.json);
    }
    let beside = arguments.csv.as_deref().map(beside);
    for path in [&arguments.csv, &beside, &arguments.svg].into_iter().flatten() {
        check_file(path)?;
    }
    let run = simulate(&scenario, arguments.seed, true)?;
    if let (Some(nodes), Some(progress)) = (&arguments.csv, &beside) {
        write(nodes, &run.report.nodes_csv())?;
        write(progress, &run.report.progress_csv())?;
    }
    if let Some(path) = &arguments.svg {
        write(path, &run.report.svg()?)?;
    }
    say(if arguments.json { serde_json::to_string_pretty(&run.json())? } else { run.text() })?;
    Ok(verdict(run.report.violation_count == 0))
}

fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn simulate(scenario: &Scenario, seed: u64, show: bool) -> Result<Run> {
    let bar = (show && std::io::stderr().is_terminal()).then(|| progress_bar(scenario)).transpose()?;
    let begun = Instant::now();
    let report = sim::run(scenario, seed, &mut |sample: &Sample| {
        if let Some(bar) = &bar {
            bar.set_position(sample.pieces);
            bar.set_message(format!("{:.1} s, {} finished", sample.at as f64 / 1e9, sample.finished));
        }
        true
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(Run { report, wall: begun.elapsed(), peak_memory: peak_memory() })
}

fn progress_bar(scenario: &Scenario) -> Result<ProgressBar> {
    let pieces = u64::from(scenario.shape()?.pieces()) * u64::from(scenario.fabric.nodes);
    let style = ProgressStyle::with_template("{bar:40} {percent}% of the pieces, {msg}")?;
    Ok(ProgressBar::new(pieces).with_style(style))
}

/// Every seed of a range; all must hold.
fn sweep(scenario: &Scenario, first: u64, last: u64, json: bool) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut ratios = Vec::new();
    let mut failed = Vec::new();
    for seed in first..=last {
        let report = sim::run(scenario, seed, &mut |_: &Sample| true)?;
        ratios.push(report.ratio());
        if report.violation_count > 0 {
            let sentence = report.violations.first().cloned().unwrap_or_default();
            if !json {
                say(format!("seed {seed}: {} violations: {sentence}", report.violation_count))?;
            }
            failed.push(json!({ "seed": seed, "violations": report.violation_count, "first": sentence }));
        }
    }
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios.get((share * (ratios.len() - 1) as f64) as usize).copied().unwrap_or(0.0);
    let (median, worst, wall) = (at(0.5), at(1.0), begun.elapsed().as_secs_f64());
    if json {
        let value = json!({
            "title": scenario.title, "seeds": ratios.len(), "failed": failed, "ratio_median": median,
            "ratio_worst": worst, "wall_seconds": wall,
        });
        say(serde_json::to_string_pretty(&value)?)?;
    } else {
        say(format!(
            "{} seeds in {wall:.1} s: {} failed; makespan over the bound: median {median:.4}, worst {worst:.4}",
            ratios.len(),
            failed.len()
        ))?;
    }
    Ok(verdict(failed.is_empty()))
}

impl Run {
    fn json(&self) -> Value {
        let report = &self.report;
        let mut value = serde_json::to_value(report).unwrap_or_default();
        let wall = self.wall.as_secs_f64();
        let more = json!({
            "ratio": report.ratio(), "seed_copies": report.seed_copies(), "rack_copies": report.rack_copies(),
            "wasted_share": report.wasted_share(), "wall_seconds": wall,
            "events_per_second": report.events as f64 / wall, "peak_memory_bytes": self.peak_memory,
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
            all.extend(more);
        }
        value
    }

    fn text(&self) -> String {
        let report = &self.report;
        let seconds = |nanos: u64| format!("{:.3} s", nanos as f64 / 1e9);
        let over = |nanos: u64, bound: u64| format!("{:.4}", nanos as f64 / bound.max(1) as f64);
        let wall = self.wall.as_secs_f64();
        let mut rows = table(["", "", ""]);
        let mut row = |name: &str, value: String, note: String| {
            rows.add_row([name.to_owned(), value, note]);
        };
        row("nodes", report.nodes.to_string(), format!("{} finished, {} not", report.finished, report.unfinished));
        row(
            "image",
            bytes(report.image_bytes),
            format!("{} of {} pieces to get", report.fetched_pieces, report.pieces),
        );
        row("T*", seconds(report.t_star), "formula (1)".to_owned());
        row("T_LB", seconds(report.bound), "formula (4): the bound".to_owned());
        row("makespan", seconds(report.makespan), format!("{} of the bound", over(report.makespan, report.bound)));
        row("median", seconds(report.median), format!("{} of the bound", over(report.median, report.bound)));
        row("seed payload", bytes(report.seed_sent), format!("{:.4} images", report.seed_copies()));
        if report.racks > 1 {
            let mean = report.rack_in_mean as f64 / report.image_bytes.max(1) as f64;
            row(
                "into a rack",
                bytes(report.rack_in_most),
                format!("{:.4} images at most, {mean:.4} on average", report.rack_copies()),
            );
        }
        row("wasted", bytes(report.wasted), format!("{:.3} % of the payload", 100.0 * report.wasted_share()));
        row("messages", report.messages.to_string(), format!("{} with headers", bytes(report.message_bytes)));
        row("unverified", bytes(report.peak_active_bytes), "most that a node held".to_owned());
        let pace = format!("{:.0} events/s, {} steps of engines", report.events as f64 / wall, report.steps);
        row("events", report.events.to_string(), pace);
        row("wall time", format!("{wall:.2} s"), format!("{} peak memory", bytes(self.peak_memory)));
        let mut text =
            format!("{}\nseed {} \n{}\n", report.title, report.seed, text_of(&rows, "")).replace(" \n", "\n");
        for (kind, count) in &report.messages_by_kind {
            text.push_str(&format!("said: {kind} {count}\n"));
        }
        for (why, count) in &report.drops {
            text.push_str(&format!("closed by engines: {why} {count}\n"));
        }
        if report.violation_count > 0 {
            text.push_str(&format!("VIOLATIONS: {}\n", report.violation_count));
            report.violations.iter().for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
        }
        text.push_str(&format!("trace: {}", report.trace));
        text
    }
}

/// `run.csv` becomes `run.progress.csv`.
fn beside(path: &Path) -> PathBuf {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("csv");
    path.with_extension(format!("progress.{extension}"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Most memory that this process ever had, in bytes; 0 where the system does
/// not say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn seeds(text: &str) -> Result<(u64, u64)> {
    let sentence = "write two numbers, as in 1..1000: the first and the last seed";
    let (first, last) = text.split_once("..").context(sentence)?;
    let (first, last) = (first.parse().context(sentence)?, last.trim_start_matches('=').parse().context(sentence)?);
    ensure!(first <= last, "{first} is after {last}: {sentence}");
    Ok((first, last))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_seeds() {
        assert_eq!(seeds("1..1000").unwrap(), (1, 1000));
        assert_eq!(seeds("3..=3").unwrap(), (3, 3));
        assert!(seeds("5..1").unwrap_err().to_string().contains("5 is after 1"));
        assert!(seeds("7").is_err());
    }

    #[test]
    fn progress_lies_beside_the_nodes() {
        assert_eq!(beside(Path::new("/tmp/run.csv")), Path::new("/tmp/run.progress.csv"));
    }
}
