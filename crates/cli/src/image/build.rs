//! `rackswarm image build`: bootable images from Debian packages, without mounts or loop devices.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use golden::{Debian, Options, Recipe, Small};

use crate::output::{bytes, say};
use crate::parse;

const EXAMPLES: &str = "\
Examples:
  rackswarm image build debian --out debian.raw
  rackswarm image build debian --out web.raw --package nginx-light,rsync --size 3G
  rackswarm image build small --out small.raw

It must run as root, since the system inside belongs to root; nothing is mounted where others
would see it. The image boots by BIOS and UEFI and holds nothing of Rackswarm's. It is kept in the
cache: building it again only copies it.";

/// What is made.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// debian: a minimal Debian server; small: a busybox system of a few MiB, for tests
    #[arg(value_enum)]
    kind: Kind,
    /// The raw disk file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Size of the disk, such as 2G; nodes grow the root partition to their own
    #[arg(long, value_parser = parse::size)]
    size: Option<u64>,
    /// Host name until post actions set another
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Further Debian packages
    #[arg(long = "package", value_name = "NAME", value_delimiter = ',')]
    packages: Vec<String>,
    /// Debian release
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// Where packages come from: a mirror's address or a sources.list file
    #[arg(long, value_name = "MIRROR")]
    mirror: Option<String>,
    /// Build with today's packages, even when the cache has such an image
    #[arg(long)]
    refresh: bool,
    /// Where packages and finished images are kept
    #[arg(long, value_name = "DIR", default_value = golden::DEFAULT_CACHE)]
    cache: PathBuf,
    /// Print what was built as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Debian,
    Small,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let recipe = recipe(arguments)?;
    let options =
        Options { cache: arguments.cache.clone(), refresh: arguments.refresh, ..Options::new(arguments.out.clone()) };
    let built = golden::build(&recipe, &options, &|line| eprintln!("{line}"))?;
    let description = &built.description;
    say(if arguments.json {
        serde_json::to_string_pretty(description)?
    } else {
        format!(
            "{}: a disk of {}, {} used, Linux {}, {} packages\nnext: rackswarm image import {} --name NAME",
            built.path.display(),
            bytes(description.size_bytes),
            bytes(built.used_bytes),
            description.kernel_version,
            description.packages.len(),
            built.path.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn recipe(arguments: &Arguments) -> Result<Recipe> {
    // Rounded up, so that the disk is at least as large as was asked for.
    let size_mib = arguments.size.map(|size| size.div_ceil(1 << 20));
    if arguments.kind == Kind::Debian {
        let usual = Debian::default();
        return Ok(Recipe::Debian(Debian {
            suite: arguments.suite.clone().unwrap_or(usual.suite),
            size_mib: size_mib.unwrap_or(usual.size_mib),
            packages: arguments.packages.clone(),
            mirror: arguments.mirror.clone(),
            hostname: arguments.hostname.clone().unwrap_or(usual.hostname),
        }));
    }
    let only_debian = [
        ("--package", !arguments.packages.is_empty()),
        ("--suite", arguments.suite.is_some()),
        ("--mirror", arguments.mirror.is_some()),
    ];
    if let Some((option, _)) = only_debian.iter().find(|(_, given)| *given) {
        anyhow::bail!("{option} is for `image build debian` only; the small image has no packages");
    }
    let usual = Small::default();
    Ok(Recipe::Small(Small {
        size_mib: size_mib.unwrap_or(usual.size_mib),
        hostname: arguments.hostname.clone().unwrap_or(usual.hostname),
    }))
}
