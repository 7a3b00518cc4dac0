//! Runs a scenario without the whole command line, for work on the engine:
//! `cargo run --release -p rackswarm-sim --example quick -- FILE [SEED]`.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use rackswarm_sim::{Sample, Scenario};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("name a scenario file")?;
    let seed = arguments.next().map_or(Ok(1), |seed| seed.parse())?;
    let scenario = Scenario::load(Path::new(&file))?;
    let begun = Instant::now();
    let report = rackswarm_sim::run(&scenario, seed, &mut |_: &Sample| true)?;
    let wall = begun.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    let over = |nanos: u64| nanos as f64 / report.bound as f64;
    println!(
        "{file} seed {seed}: ratio {:.4}, median {:.4}, makespan {:.3} s of {:.3} s",
        report.ratio(),
        over(report.median),
        report.makespan as f64 / 1e9,
        report.bound as f64 / 1e9
    );
    println!(
        "  seed copies {:.4}, rack copies {:.4}, wasted {:.5}, unfinished {}, unverified {} bytes",
        report.seed_copies(),
        report.rack_copies(),
        report.wasted_share(),
        report.unfinished,
        report.peak_active_bytes
    );
    println!("  {} events, {} steps, {wall:.2} s, {memory}", report.events, report.steps);
    println!("  said {:?}", report.messages_by_kind);
    println!("  dropped {:?}", report.drops);
    report.violations.iter().for_each(|sentence| println!("  VIOLATION {sentence}"));
    println!("trace: {}", report.trace);
    Ok(())
}
