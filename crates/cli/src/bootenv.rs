//! `rackswarm bootenv`: what machines start over the network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bootenv::{Built, Flavour, Options};
use clap::{Args, Subcommand, ValueEnum};

use crate::output::{bytes, say};

/// What is done with the boot environment.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build kernel and initramfs from Debian packages, which are downloaded and not installed
    #[command(after_help = EXAMPLES)]
    Build(BuildArguments),
}

const EXAMPLES: &str = "\
Examples:
  rackswarm bootenv build
  rackswarm bootenv build --kernel cloud --out /srv/bootenv
  rackswarm bootenv build --module mpt3sas --firmware /lib/firmware

Equal packages, agent and options give equal files. SOURCE_DATE_EPOCH sets the time stamps inside.";

/// What is built, and where.
#[derive(Debug, Args)]
pub(crate) struct BuildArguments {
    /// Folder that receives vmlinuz, initramfs and bootenv.json; the default is where `rackswarm serve` looks for them
    #[arg(long, value_name = "DIR", default_value = "/var/lib/rackswarm/bootenv")]
    out: PathBuf,
    /// generic for metal and virtual machines, cloud for virtual machines only: smaller, without e1000 and AHCI
    #[arg(long, value_enum, default_value_t = Kernel::Generic)]
    kernel: Kernel,
    /// The agent, a static program; by default rackswarm-agent beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Further kernel modules to have on board, by name
    #[arg(long = "module", value_name = "NAME", value_delimiter = ',')]
    modules: Vec<String>,
    /// Folder laid out like /lib/firmware, from which firmware for the modules on board is taken
    #[arg(long, value_name = "DIR")]
    firmware: Option<PathBuf>,
    /// Where downloads are kept
    #[arg(long, value_name = "DIR", default_value = bootenv::DEFAULT_CACHE)]
    cache: PathBuf,
    /// Print what was built as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kernel {
    Generic,
    Cloud,
}

pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    let Command::Build(arguments) = command;
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => agent_beside(&std::env::current_exe().context("this program's own path is not known")?)?,
    };
    let options = Options {
        kernel: match arguments.kernel {
            Kernel::Generic => Flavour::Generic,
            Kernel::Cloud => Flavour::Cloud,
        },
        cache: arguments.cache.clone(),
        modules: arguments.modules.clone(),
        firmware: arguments.firmware.clone(),
        ..Options::new(arguments.out.clone(), agent)
    };
    let built = bootenv::build(&options, &|line| eprintln!("{line}"))?;
    if arguments.json {
        say(serde_json::to_string_pretty(&built.description)?)?;
    } else {
        say(describe(&built))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn agent_beside(program: &Path) -> Result<PathBuf> {
    let agent = program.with_file_name("rackswarm-agent");
    if !agent.is_file() {
        bail!("there is no agent at {}; name it by --agent", agent.display());
    }
    Ok(agent)
}

fn describe(built: &Built) -> String {
    let description = &built.description;
    format!(
        "{}: {}, Linux {}\n{}: {}, {} in memory, {} modules, agent of {}",
        built.kernel.display(),
        bytes(description.kernel.size_bytes),
        description.kernel_version,
        built.initramfs.display(),
        bytes(description.initramfs.size_bytes),
        bytes(description.initramfs_unpacked_bytes),
        description.modules.len(),
        bytes(description.agent.size_bytes)
    )
}
