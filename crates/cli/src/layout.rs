//! `rackswarm layout`: partition layouts, checked and built.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::Stop;
use agent::inventory::View;
use agent::layout::build;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use fleet::disk::{Allow, Disk, DiskRule, Purpose, choose};
use fleet::layout::{Input, Layout, Plan, Step, Target, plan};

use crate::output::{WrongUsage, say};
use crate::parse;

const EXAMPLES: &str = "\
A layout is a TOML file:

  [[disk]]
  name = \"sys\"
  partition = [
      { name = \"bios\", size = \"1MiB\", role = \"bios_boot\" },
      { name = \"esp\", size = \"512MiB\", role = \"esp\" },
      { name = \"root\", size = \"rest\" },
  ]
  [[mount]]
  on = \"sys.root\"
  kind = \"ext4\"
  at = \"/\"
  [[mount]]
  on = \"sys.esp\"
  kind = \"vfat\"
  at = \"/boot/efi\"

[[raid]] (name, level 0, 1 or 10, members), [[luks]] (name, on, key_file) and [[group]] (name, members, volume) make more of
what was named before: partitions are DISK.PARTITION, volumes GROUP/VOLUME.

Examples:
  rackswarm layout check web.toml --disk sys=480GB
  rackswarm layout build web.toml --disk sys=/dev/sdb";

/// What is done with layouts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what is wrong with a layout, or by which commands it would be built
    #[command(after_help = EXAMPLES)]
    Check(Check),
    /// Build a layout on disks of this machine, and read it back; all that is on them is lost
    #[command(after_help = EXAMPLES)]
    Build(Build),
}

/// A layout to be checked.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The layout
    file: PathBuf,
    /// How large a disk of the layout is; without any, only the layout itself is checked
    #[arg(long = "disk", value_name = "NAME=SIZE", value_parser = pair)]
    disks: Vec<(String, String)>,
    /// For machines that boot by BIOS instead of UEFI
    #[arg(long)]
    bios: bool,
}

/// A layout to be built.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The layout
    file: PathBuf,
    /// Which disk of this machine is a disk of the layout
    #[arg(long = "disk", value_name = "NAME=PATH", value_parser = pair, required = true)]
    disks: Vec<(String, String)>,
    /// File with the key of an encrypted device of the layout
    #[arg(long = "key", value_name = "NAME=FILE", value_parser = pair)]
    keys: Vec<(String, String)>,
    /// For machines that boot by BIOS instead of UEFI
    #[arg(long)]
    bios: bool,
    /// What is not refused: signatures, removable, multipath; several are separated by commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = parse::allowed)]
    allow: Vec<Option<Allow>>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Check(arguments) => check(&arguments),
        Command::Build(arguments) => build_here(&arguments),
    }
}

fn check(arguments: &Check) -> Result<ExitCode> {
    let layout = read(&arguments.file)?;
    if arguments.disks.is_empty() {
        layout.check(!arguments.bios)?;
        say(format!("{} can be built", arguments.file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let target = |(name, size): &(String, String)| -> Result<Target> {
        let size_bytes = parse::size(size).map_err(|why| anyhow!(why))?;
        Ok(Target { name: name.clone(), path: format!("/dev/{name}"), size_bytes })
    };
    let targets = arguments.disks.iter().map(target).collect::<Result<Vec<_>>>()?;
    let plan = plan(&layout, &targets, !arguments.bios)?;
    say(printed(&plan))?;
    Ok(ExitCode::SUCCESS)
}

fn build_here(arguments: &Build) -> Result<ExitCode> {
    let layout = read(&arguments.file)?;
    let disks = View::default().machine(None).disks;
    let allow: Vec<Allow> = arguments.allow.iter().flatten().copied().collect();
    let mut targets = Vec::new();
    let mut lost = Vec::new();
    for (name, path) in &arguments.disks {
        let disk = chosen(&disks, path, &allow)?;
        if targets.iter().any(|target: &Target| target.path == disk.path || target.name == *name) {
            return Err(WrongUsage::error(format!("{name}={path}: a disk and a name are used once")));
        }
        lost.push(held(disk));
        targets.push(Target { name: name.clone(), path: disk.path.clone(), size_bytes: disk.size_bytes });
    }
    let plan = plan(&layout, &targets, !arguments.bios)?;
    let keys = keys(&plan, &arguments.keys)?;
    if !arguments.yes {
        ask(&lost)?;
    }
    let paths: Vec<String> = targets.into_iter().map(|target| target.path).collect();
    let told = |step: &Step| eprintln!("{}", step.what);
    let built = build(&plan, &paths, &|name| keys.get(name).cloned(), &Stop::default(), &told)?;
    built.close()?;
    let on = plan.mounts.iter().map(|(mount, device)| format!("{} on {device}", mount.kind.as_str()));
    say(format!("built and read back: {}", on.collect::<Vec<_>>().join(", ")))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a layout from its file.
pub(crate) fn read(file: &Path) -> Result<Layout> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    toml::from_str(&text).map_err(|error| anyhow!("{}: {}", file.display(), error.to_string().trim()))
}

/// The interlock of the agent holds here too.
fn chosen<'a>(disks: &'a [Disk], path: &str, allow: &[Allow]) -> Result<&'a Disk> {
    if !disks.iter().any(|disk| disk.path == path || disk.by_path.iter().any(|other| other == path)) {
        let seen: Vec<String> = disks.iter().map(ToString::to_string).collect();
        bail!("this machine has no disk {path}; it has {}", seen.join("; "));
    }
    let rule = DiskRule { path: Some(path.to_owned()), allow: allow.to_vec(), ..DiskRule::default() };
    choose(disks, &rule, Purpose::Write { image_bytes: 0, own: None }).map_err(|refusal| {
        anyhow!("{}", refusal.to_string().replace("`rackswarm node set NODE --disk-allow ", "`--allow "))
    })
}

fn keys(plan: &Plan, given: &[(String, String)]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut keys = BTreeMap::new();
    for (name, file) in given {
        let key = std::fs::read(file).with_context(|| format!("cannot read the key {file}"))?;
        keys.insert(name.clone(), key);
    }
    let missing = plan.steps.iter().find_map(|step| match &step.input {
        Input::Key(name) if keys.get(name).is_none_or(Vec::is_empty) => Some(name),
        _ => None,
    });
    match missing {
        Some(name) => bail!("`{name}` is encrypted and has no key: give --key {name}=FILE"),
        None => Ok(keys),
    }
}

fn held(disk: &Disk) -> String {
    match disk.contents.as_slice() {
        [] => format!("  {disk}, which holds nothing that is known"),
        contents => format!("  {disk}, which holds {}", contents.join("; ")),
    }
}

fn ask(lost: &[String]) -> Result<()> {
    if !io::stdin().is_terminal() {
        return Err(WrongUsage::error("nobody can be asked here; --yes builds without asking"));
    }
    eprintln!("All that is on these disks will be lost:\n{}", lost.join("\n"));
    eprint!("Type yes to go on: ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() != "yes" {
        bail!("nothing is changed");
    }
    Ok(())
}

fn printed(plan: &Plan) -> String {
    let line = |step: &Step| {
        let reads = match &step.input {
            Input::Nothing => String::new(),
            Input::Text(text) => format!(" <<END\n{text}END"),
            Input::Key(name) => format!(" < KEY-OF-{name}"),
        };
        format!(
            "# {}, within {} s\n{} {}{reads}",
            step.what,
            step.limit_seconds,
            step.program,
            step.arguments.join(" ")
        )
    };
    plan.steps.iter().map(line).collect::<Vec<_>>().join("\n")
}
