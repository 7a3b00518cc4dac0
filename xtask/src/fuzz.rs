//! `cargo xtask fuzz`: every fuzz target for a bounded time.
//!
//! The coverage instrumentation that libFuzzer needs is in the stable compiler, so neither a nightly compiler nor
//! cargo-fuzz is asked for. The address sanitizer is left out: there is no unsafe code here for it to watch.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::arguments::{Arguments, Usage};
use crate::prepare::{Places, cargo};
use crate::run::{self, Ended, Seconds};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const COVERAGE: &str = "--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=1 -C debug-assertions";

pub(crate) fn command(mut arguments: Arguments) -> Result<Ended> {
    let seconds = match arguments.positional() {
        None => 30,
        Some(text) => text
            .parse::<u32>()
            .ok()
            .filter(|s| (1..=86_400).contains(s))
            .ok_or_else(|| Usage::error(format!("`{text}` is no number of seconds from 1 to 86400")))?,
    };
    let only = arguments.positional();
    arguments.finish()?;

    let places = Places::find()?;
    let manifest = places.root.join("fuzz/Cargo.toml");
    let mut targets = targets(&manifest)?;
    if let Some(only) = &only {
        let known = targets.join(", ");
        targets.retain(|target| target == only);
        ensure!(!targets.is_empty(), "there is no fuzz target `{only}`; there are {known}");
    }
    build(&manifest)?;
    let mut failed = Vec::new();
    for target in &targets {
        if !fuzz_one(&places, target, seconds)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(Ended::SUCCESS);
    }
    bail!("failed: {}; the inputs are in target/fuzz-findings", failed.join(", "))
}

fn targets(manifest: &Path) -> Result<Vec<String>> {
    let text =
        run::output(cargo().args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"]).arg(manifest))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata did not print JSON")?;
    let all = metadata["packages"][0]["targets"].as_array().cloned().unwrap_or_default();
    let is_program = |target: &Value| target["kind"][0] == "bin";
    let mut names: Vec<String> =
        all.iter().filter(|t| is_program(t)).filter_map(|t| t["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    ensure!(!names.is_empty(), "{} has no programs", manifest.display());
    Ok(names)
}

fn build(manifest: &Path) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release", "--bins", "--target", TARGET, "--manifest-path"]).arg(manifest);
    run::must(command.env("RUSTFLAGS", COVERAGE))
}

/// Runs one target and prints how much it did; false when it found something.
///
/// New inputs go to a folder that is not tracked; the tracked corpus is only read.
fn fuzz_one(places: &Places, target: &str, seconds: u32) -> Result<bool> {
    let findings = places.root.join("target/fuzz-findings");
    let fresh = places.root.join("fuzz/corpus-local").join(target);
    let tracked = places.root.join("fuzz/corpus").join(target);
    for folder in [&findings, &fresh] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let program = places.root.join("fuzz/target").join(TARGET).join("release").join(target);
    let log_path = findings.join(format!("{target}.log"));
    let log = std::fs::File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;

    let mut command = Command::new(program);
    command.arg(format!("-max_total_time={seconds}")).args([
        "-print_final_stats=1",
        "-timeout=10",
        "-rss_limit_mb=2048",
    ]);
    command.arg(format!("-artifact_prefix={}/{target}-", findings.display())).arg(&fresh);
    if tracked.is_dir() {
        command.arg(&tracked);
    }
    let start = Instant::now();
    let limit = Duration::from_secs(u64::from(seconds) + 120);
    let ended = run::wait(command.stdout(Stdio::null()).stderr(log), Some(limit))?;

    let text = std::fs::read(&log_path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let executions = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")).map(str::trim);
    println!("{target}: {ended}, {} executions in {}", executions.unwrap_or("unknown"), Seconds(start.elapsed()));
    if let Some(signal) = run::received() {
        bail!("ended by signal {signal}");
    }
    if !ended.is_success() {
        let tail: Vec<&str> = text.lines().rev().take(25).collect();
        eprintln!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(ended.is_success())
}
