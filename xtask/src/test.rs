//! `cargo xtask test`: every check, in tiers, each with its deadline; the first that fails ends the run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::arguments::{Arguments, Usage};
use crate::packages::{self, For};
use crate::prepare::{self, Places, cargo};
use crate::run::{self, Ended, Seconds, step};
use crate::{generated, tidy};

/// A tier of tests. Those with one virtual machine have names that begin with `vm_`, those with many `vm_fleet_`, those
/// that repeat at length what another tier shows for other machines `vm_long_`, those with ordinary BitTorrent clients
/// `interop_`.
struct Tier {
    name: &'static str,
    what: &'static str,
    /// Profile in `.config/nextest.toml`.
    profile: &'static str,
    /// How long its tests may take in all, compilation apart.
    limit: Duration,
}

const TIERS: [Tier; 5] = [
    Tier { name: "a", what: "without virtual machines", profile: "default", limit: minutes(15) },
    Tier { name: "interop", what: "with ordinary BitTorrent clients", profile: "interop", limit: minutes(20) },
    Tier { name: "b", what: "one virtual machine each", profile: "vm", limit: minutes(50) },
    Tier { name: "c", what: "ten virtual machines", profile: "fleet", limit: minutes(8) },
    Tier { name: "long", what: "one virtual machine each, for long", profile: "long", limit: minutes(30) },
];

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

pub(crate) fn command(mut arguments: Arguments) -> Result<Ended> {
    let wanted = arguments.value::<String>("--tier")?.unwrap_or_else(|| "all".to_owned());
    arguments.finish()?;
    let names: &[&str] = match wanted.as_str() {
        "a" => &["a"],
        "interop" => &["interop"],
        "b" => &["b"],
        "c" => &["c"],
        "long" => &["long"],
        "vm" => &["b", "c"],
        // What the long ones show is shown for other machines by tier b.
        "all" => &["a", "interop", "b", "c"],
        other => {
            return Err(Usage::error(format!("there is no tier `{other}`: write a, interop, b, c, long, vm or all")));
        }
    };

    let start = Instant::now();
    let places = Places::find()?;
    step("Debian packages", || packages::install(For::Tests))?;
    step("Python programs", || prepare::install_python_programs(&places))?;
    let runner = Runner::find();
    let mut summary = Vec::new();
    let mut ended = Ended::SUCCESS;
    for tier in TIERS.iter().filter(|tier| names.contains(&tier.name)) {
        let tier_start = Instant::now();
        let result = run_tier(&places, tier, runner);
        ended = *result.as_ref().unwrap_or(&Ended::FAILURE);
        let told = match result {
            Ok(ended) => format!("{ended}{}", Retries::read(&places, tier, runner)),
            Err(error) => format!("failed: {error:#}"),
        };
        let time = Seconds(tier_start.elapsed());
        summary.push(format!("tier {} ({}): {told}, {time} of at most {}", tier.name, tier.what, Seconds(tier.limit)));
        if !ended.is_success() {
            break;
        }
    }
    println!();
    for line in &summary {
        println!("{line}");
    }
    println!("all in {}", Seconds(start.elapsed()));
    Ok(ended)
}

fn run_tier(places: &Places, tier: &Tier, runner: Runner) -> Result<Ended> {
    if tier.name == "a" {
        check_sources(places)?;
    }
    // This also makes target/debug/rackswarm, with the features of the whole workspace: nothing is compiled twice.
    step(&format!("compile the tests of tier {}", tier.name), || run::must(&mut runner.compile()))?;
    match tier.name {
        "a" => step("generated documents", || generated::check(places))?,
        "interop" => step("rqbit, which takes long the first time", || prepare::install_rqbit(places))?,
        _ => prepare_machines(places)?,
    }
    println!("==> tests of tier {}: {}", tier.name, tier.what);
    run::wait(&mut runner.tests(places, tier), Some(tier.limit))
}

fn check_sources(places: &Places) -> Result<()> {
    step("formatting", || run::must(cargo().args(["fmt", "--all", "--check"])))?;
    step("tidy", || match tidy::check(&places.root)? {
        0 => Ok(()),
        count => bail!("tidy has {count} findings"),
    })?;
    step("lints", || {
        let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run::must(cargo().args(lints))
    })
}

/// What the machines boot and what they are given.
fn prepare_machines(places: &Places) -> Result<()> {
    let agent = step("build the agent", || prepare::build_agent(places))?;
    step("boot environment", || prepare::build_bootenv(places, &agent))?;
    step("small image", || prepare::build_image(places, "small", &places.small()))
}

/// What runs the tests. Nextest gives each test a deadline and its own process; without it, cargo's own runner does, so
/// that a newcomer need not compile nextest for minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Nextest,
    Cargo,
}

impl Runner {
    fn find() -> Self {
        if run::has_program("cargo-nextest") {
            return Self::Nextest;
        }
        println!(
            "cargo-nextest is not installed: cargo's own test runner is used; there are no retries and no deadline for a single test"
        );
        Self::Cargo
    }

    fn compile(self) -> Command {
        let mut command = cargo();
        match self {
            Self::Nextest => command.args(["nextest", "run", "--locked", "--workspace", "--no-run"]),
            Self::Cargo => command.args(["test", "--locked", "--workspace", "--no-run"]),
        };
        command
    }

    fn tests(self, places: &Places, tier: &Tier) -> Command {
        let mut command = cargo();
        match (self, tier.name) {
            (Self::Nextest, _) => {
                command.args(["nextest", "run", "--locked", "--workspace", "--profile", tier.profile])
            }
            (Self::Cargo, "a") => {
                command.args(["test", "--locked", "--workspace", "--", "--skip", "vm_", "--skip", "interop_"])
            }
            (Self::Cargo, "interop") => {
                command.args(["test", "--locked", "--workspace", "--tests", "--", "interop_", "--test-threads=1"])
            }
            (Self::Cargo, "b") => command.args(["test", "--locked", "--workspace", "--tests", "--", "vm_"]).args([
                "--skip",
                "vm_fleet_",
                "--skip",
                "vm_long_",
                "--test-threads=1",
            ]),
            (Self::Cargo, "long") => {
                command.args(["test", "--locked", "--workspace", "--tests", "--", "vm_long_", "--test-threads=1"])
            }
            (Self::Cargo, _) => {
                command.args(["test", "--locked", "--workspace", "--tests", "--", "vm_fleet_", "--test-threads=1"])
            }
        };
        command
            .env("RACKSWARM_TEST_PROGRAM", places.rackswarm())
            .env("RACKSWARM_TEST_BOOTENV", places.bootenv())
            .env("RACKSWARM_TEST_SMALL_IMAGE", places.small());
        command
    }
}

/// How many tests had to be run again, counted in nextest's report.
struct Retries(Option<usize>);

impl Retries {
    fn read(places: &Places, tier: &Tier, runner: Runner) -> Self {
        let report: PathBuf = places.target.join("nextest").join(tier.profile).join("junit.xml");
        match runner {
            Runner::Nextest => Self(count(&report)),
            Runner::Cargo => Self(None),
        }
    }
}

fn count(report: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(report).ok()?;
    Some(text.matches("<flakyFailure").count() + text.matches("<rerunFailure").count())
}

impl std::fmt::Display for Retries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(1) => f.write_str(", 1 retry"),
            Some(count) => write!(f, ", {count} retries"),
            None => f.write_str(", retries not counted"),
        }
    }
}
