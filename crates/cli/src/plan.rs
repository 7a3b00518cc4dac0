//! `rackswarm plan`: what a delivery takes at least, what limits it, and what
//! to expect, without simulating anything.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, value_parser};
use sim::plan::{Plan, Question, plan};
use sim::units::{Rate, Size, Span};

use crate::output::{WrongUsage, bytes, show, table, text_of};

const EXAMPLES: &str = "\
Examples:
  rackswarm plan --nodes 230 --racks 10 --size 4GiB --rate 1Gbit --uplink 10Gbit --disk 100MB/s
  rackswarm plan --nodes 10000 --size 4GiB --rate 10Gbit --copies 1.01 --eta 0.98";

/// More machines than any data centre has are a typing error.
const MACHINES: i64 = 1_000_000;
/// A pebibyte; more is no image.
const BYTES: u64 = 1 << 50;

/// What is to be delivered over what.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Machines that want the image
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MACHINES))]
    nodes: u32,
    /// Racks that they stand in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=MACHINES))]
    racks: u32,
    /// Bytes that travel: the image without its zero and repeated pieces, such as 4GiB
    #[arg(long)]
    size: Size,
    /// Bytes that are written, where more than travel
    #[arg(long, value_name = "SIZE")]
    written: Option<Size>,
    /// Bytes of a piece [default: as `rackswarm torrent` chooses]
    #[arg(long, value_name = "SIZE")]
    piece: Option<Size>,
    /// A machine's link, each way, such as 10Gbit
    #[arg(long)]
    rate: Rate,
    /// A machine's link inwards, where it differs
    #[arg(long, value_name = "RATE")]
    rate_down: Option<Rate>,
    /// The seed's link [default: as the machines']
    #[arg(long, value_name = "RATE")]
    seed_rate: Option<Rate>,
    /// Seeds
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=MACHINES))]
    seeds: u32,
    /// A rack's uplink, each way
    #[arg(long, value_name = "RATE")]
    uplink: Option<Rate>,
    /// The seed stands in one of the racks, not at the core
    #[arg(long)]
    seed_in_rack: bool,
    /// What a machine's disk writes, such as 100MB/s
    #[arg(long, value_name = "RATE")]
    disk: Option<Rate>,
    /// Copies of the image that the seeds sent in the last run; at least 1
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = number::<1, 1_000_000>)]
    copies: f64,
    /// How well the machines shared in the last run, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.99, value_parser = number::<0, 1>)]
    eta: f64,
    /// From power-on to the first request, such as 90s
    #[arg(long, value_name = "TIME", default_value = "0s")]
    boot: Span,
    /// Machines that boot per second; 0 for all at once
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, value_parser = number::<0, 1_000_000>)]
    boots_per_second: f64,
    /// Part of multicast packets that are lost, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = number::<0, 1>)]
    loss: f64,
    /// Print a JSON object instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let question = question(arguments)?;
    show(arguments.json, &plan(&question), |plan| text(&question, plan))
}

fn question(arguments: &Arguments) -> Result<Question> {
    let wrong = |sentence: &str| Err(WrongUsage::error(sentence));
    if arguments.racks > arguments.nodes {
        return wrong("--racks must not be more than --nodes: no rack is empty");
    }
    if arguments.uplink.is_some() && arguments.racks == 1 {
        return wrong("--uplink needs --racks 2 or more");
    }
    let sizes = [Some(arguments.size), arguments.written, arguments.piece];
    if sizes.into_iter().flatten().any(|size| size.0 == 0 || size.0 > BYTES) {
        return wrong("--size, --written and --piece must be from one byte to 1048576 GiB");
    }
    let rates = [Some(arguments.rate), arguments.rate_down, arguments.seed_rate, arguments.uplink, arguments.disk];
    if rates.into_iter().flatten().any(|rate| rate.0 == 0) {
        return wrong("rates must be more than 0");
    }
    if arguments.loss >= 1.0 {
        return wrong("--loss must be less than 1: nothing would arrive");
    }
    let usual = || u64::from(image::piece_size_for(arguments.size.0));
    let piece = arguments.piece.map_or_else(usual, |piece| piece.0).min(arguments.size.0);
    Ok(Question {
        nodes: arguments.nodes,
        racks: arguments.racks,
        bytes: arguments.size.0,
        piece,
        rate: arguments.rate.0,
        rate_down: arguments.rate_down.map(|rate| rate.0),
        seed_rate: arguments.seed_rate.map(|rate| rate.0),
        seeds: arguments.seeds,
        uplink: arguments.uplink.map(|rate| rate.0),
        seed_in_rack: arguments.seed_in_rack,
        disk: arguments.disk.map(|rate| rate.0),
        written: arguments.written.map(|size| size.0),
        copies: arguments.copies,
        eta: arguments.eta,
        boot_seconds: arguments.boot.0 as f64 / 1e9,
        boots_per_second: arguments.boots_per_second,
        loss: arguments.loss,
    })
}

fn text(question: &Question, plan: &Plan) -> String {
    let seconds = |seconds: f64| format!("{seconds:.2} s");
    let mut rows = table(["", "", ""]);
    let mut row = |name: &str, value: String, note: String| {
        rows.add_row([name.to_owned(), value, note]);
    };
    row("image", bytes(question.bytes), format!("{} pieces of {}", plan.pieces, bytes(question.piece)));
    row("T*", seconds(plan.t_star), "formula (1): one switch, whole pieces".to_owned());
    row("bound", seconds(plan.bound), "formula (4): nobody is faster without multicast".to_owned());
    row("predicted", seconds(plan.predicted), format!("{:.3} of the bound", plan.predicted / plan.bound));
    row("limited by", plan.limited_by.to_owned(), String::new());
    for limit in &plan.limits {
        row("", seconds(limit.seconds), limit.what.to_owned());
    }
    if plan.oversubscription > 0.0 {
        row("racks", format!("{:.2} : 1", plan.oversubscription), "oversubscription".to_owned());
    }
    row(
        "Qiu-Srikant",
        seconds(plan.fluid_closed),
        format!("closed form; integrated {}", seconds(plan.fluid_integrated)),
    );
    row("hybrid", seconds(plan.hybrid), "formula (7): multicast, holes filled by the swarm".to_owned());
    for method in &plan.methods {
        row("instead", seconds(method.seconds), format!("{}, {:.3} of the bound", method.name, method.ratio));
    }
    text_of(&rows, "")
}

/// A number from one bound to the other.
fn number<const LEAST: u32, const MOST: u32>(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (f64::from(LEAST)..=f64::from(MOST)).contains(&number) => Ok(number),
        _ => Err(format!("`{text}` is no number from {LEAST} to {MOST}")),
    }
}
