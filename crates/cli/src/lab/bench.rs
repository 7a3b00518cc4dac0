//! `rackswarm lab bench`: deliveries in network namespaces, measured; `cargo xtask bench` builds and starts it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use lab::bench;
use sim::units::Rate;

use crate::parse;

/// What is measured, and how.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Letters of rows [default: all]
    rows: Vec<String>,
    /// Runs of each delivery
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// A quarter of the bytes, a tenth of the machines and one run, for a first look; written to target/bench-quick
    #[arg(long)]
    quick: bool,
    /// Machines of row enrol [default: 10000], nodes of row fig8 [default: 230]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_000))]
    nodes: Option<u32>,
    /// Racks of row fig8 [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=250))]
    racks: Option<u32>,
    /// Size of row fig8's image [default: 32M]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    bytes: Option<u64>,
    /// Rate of a node's link in row fig8, such as 4Mbit
    #[arg(long)]
    rate: Option<Rate>,
    /// The agent's program, for row fig8
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Other clients too, where they are installed
    #[arg(long)]
    peers: bool,
    /// Only ours, without what runs beside it for comparison
    #[arg(long)]
    alone: bool,
    /// The program to measure [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Folder for results [default: bench/results]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder for files; in memory, and with room for one file for each node
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    work: PathBuf,
    /// Priority of what is measured; below 0 others on this machine give way, and are no disturbance
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: i32,
    /// How long to wait for an idle machine before each run
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Bytes of a piece, in place of the rows' own
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    piece_size: Option<u64>,
    /// Further words for `rackswarm seed`, such as "--policy tit-for-tat"
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    seed_args: String,
    /// Further words for `rackswarm fetch`
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    fetch_args: String,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let usual_out = if arguments.quick { "target/bench-quick" } else { "bench/results" };
    let program = match arguments.program {
        Some(program) => program,
        None => std::env::current_exe().context("this program's own path is not known")?,
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let typed: Vec<String> = std::env::args().skip(1).collect();
    let good = bench::run(&bench::Options {
        rows: arguments.rows,
        runs: if arguments.quick { 1 } else { arguments.runs.into() },
        quick: arguments.quick,
        nodes: arguments.nodes.map(|nodes| nodes as usize),
        racks: arguments.racks.map(|racks| racks as usize),
        bytes: arguments.bytes,
        rate: arguments.rate.map(|rate| rate.0),
        agent: arguments.agent,
        peers: arguments.peers,
        alone: arguments.alone,
        program,
        out: arguments.out.unwrap_or_else(|| usual_out.into()),
        parent: arguments.work,
        nice: arguments.nice,
        patience: Duration::from_secs(arguments.wait),
        piece_bytes: arguments.piece_size.map(u32::try_from).transpose().context("--piece-size is too large")?,
        seed_words: words(&arguments.seed_args),
        fetch_words: words(&arguments.fetch_args),
        command: format!("rackswarm {}", typed.join(" ")),
    })?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
