//! Runs a scenario without the command line: `cargo run --example quick FILE [SEED]`.
use std::time::Instant;
fn main() {
    let mut args = std::env::args().skip(1);
    let file = args.next().expect("a scenario");
    let seed = args.next().map_or(1, |s| s.parse().expect("a seed"));
    let scenario = rackswarm_sim::Scenario::load(std::path::Path::new(&file)).unwrap_or_else(|e| panic!("{e}"));
    let begun = Instant::now();
    let r = rackswarm_sim::run(&scenario, seed, &mut |_| true).unwrap_or_else(|e| panic!("{e}"));
    let wall = begun.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hwm = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("").to_owned();
    println!(
        "{file}: ratio {:.4} median {:.4} makespan {:.3} s t* {:.3} bound {:.3} seed {:.4} rack {:.4} wasted {:.5} unfinished {} messages {} events {} steps {} active {} wall {:.2} {}\n  drops {:?} said {:?}\n  violations {} {:#?}\ntrace: {}",
        r.ratio(),
        r.median as f64 / r.bound as f64,
        r.makespan as f64 / 1e9,
        r.t_star as f64 / 1e9,
        r.bound as f64 / 1e9,
        r.seed_copies(),
        r.rack_copies(),
        r.wasted_share(),
        r.unfinished,
        r.messages,
        r.events,
        r.steps,
        r.peak_active_bytes,
        wall,
        hwm,
        r.drops,
        r.messages_by_kind,
        r.violation_count,
        r.violations,
        r.trace
    );
}
