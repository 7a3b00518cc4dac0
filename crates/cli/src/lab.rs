//! `rackswarm lab`: a rack of virtual machines, and power drivers by hand.

mod bench;
mod bmc;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use lab::demo;
use power::{BootDevice, Outcome, PowerDriver};

use crate::output::say;
use crate::parse;

/// What is done in the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Virtual machines with blank disks, from power-on to proved systems; as root
    Demo(DemoArguments),
    /// Deliver files in network namespaces and measure it; as root
    Bench(bench::Arguments),
    /// Redfish controllers to try things with, before machines in memory or QEMU's
    Bmc(bmc::Arguments),
    /// Drive a power driver by its address, without a controller
    #[command(after_help = POWER_HELP.as_str())]
    Power {
        /// What to do
        #[arg(value_enum)]
        action: Action,
        /// The driver's address, as in `node add --power`
        address: String,
        /// For next-boot: disk or network
        #[arg(value_enum, required_if_eq("action", "next-boot"))]
        device: Option<Device>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Printed from the table of drivers, so that it cannot lag behind it.
static POWER_HELP: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let mut text = "Drivers:\n".to_owned();
    for driver in power::DRIVERS {
        text.push_str(&format!("  {:8} {}\n           {}\n", driver.scheme, driver.help, driver.example));
    }
    text + "\nEvery address takes limit_seconds=1..600, the deadline of one operation."
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Action {
    /// Say whether it has power
    Status,
    /// Switch it on
    On,
    /// Take the power away
    Off,
    /// Off and on again
    Cycle,
    /// Start it anew without taking its power, where its controller can do that
    Reset,
    /// Choose what the next start boots, once
    NextBoot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    Disk,
    Network,
}

/// The demo's rack.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// How many machines
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// The raw image that they get, as `rackswarm image build debian` makes it
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Folder with vmlinuz and initramfs, as `rackswarm bootenv build` makes it
    #[arg(long, value_name = "DIR")]
    bootenv: PathBuf,
    /// Write the table of seconds per stage and node as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the server's log and the machines' consoles here
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Folder for disks; they are sparse and go away at the end
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Memory of each machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(256..=65536))]
    memory: u32,
    /// Size of each machine's disk
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse::size)]
    disk: u64,
    /// Limit of what each machine receives, in Mbit/s
    #[arg(long, value_name = "MBIT")]
    rate: Option<u32>,
    /// The demo fails after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u32,
}

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(arguments) => demonstrate(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Bmc(arguments) => bmc::run(&arguments),
        Command::Power { action, address, device, json } => {
            let driver = power::open(&address)?;
            crate::wait(drive(driver.as_ref(), action, device, json))
        }
    }
}

fn demonstrate(arguments: DemoArguments) -> Result<ExitCode> {
    let executable = std::env::current_exe().context("this program's own path is not known")?;
    let usual = demo::Options::new(arguments.nodes, arguments.image, arguments.bootenv, executable);
    demo::run(&demo::Options {
        json: arguments.json,
        logs: arguments.logs,
        parent: arguments.work.unwrap_or(usual.parent),
        memory_mib: arguments.memory,
        disk_bytes: arguments.disk,
        rate_mbit: arguments.rate,
        limit: Duration::from_secs(arguments.limit.into()),
        ..usual
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn drive(driver: &dyn PowerDriver, action: Action, device: Option<Device>, json: bool) -> Result<ExitCode> {
    let outcome = match action {
        Action::Status => {
            let state = driver.state().await?;
            say(if json { serde_json::json!({ "state": state }).to_string() } else { state.to_string() })?;
            return Ok(ExitCode::SUCCESS);
        }
        Action::On => driver.on().await?,
        Action::Off => driver.off().await?,
        Action::Cycle => driver.cycle().await?,
        Action::Reset => driver.reset().await?,
        Action::NextBoot => {
            let device = match device.context("name what to boot: disk or network")? {
                Device::Disk => BootDevice::Disk,
                Device::Network => BootDevice::Network,
            };
            driver.boot_next(device).await?
        }
    };
    let (word, sentence) = match outcome {
        Outcome::Done => ("done", "done".to_owned()),
        Outcome::AskOperator(sentence) => ("ask_operator", sentence),
    };
    say(if json { serde_json::json!({ "outcome": word, "text": sentence }).to_string() } else { sentence })?;
    Ok(ExitCode::SUCCESS)
}
