//! `rackswarm node wipe` and `rackswarm node certificates`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use api::client::Client;
use api::operator::NodeView;
use clap::Args;
use clap::builder::PossibleValue;
use fleet::disk::{Allow, Disk, DiskRule};
use fleet::ids::NodeName;
use fleet::life::Stage;
use fleet::wipe::{Certificate, Method, Wipe, Worth, resolve};

use crate::connect::explain;
use crate::output::{WrongUsage, moment, or_dash, percent, show, span};
use crate::parse;

const EXAMPLES: &str = "\
Examples:
  rackswarm node wipe n1
      the disk that the node's disk rule leads to
  rackswarm node wipe n1 --serial S3Z8NB0K --method sanitise
  rackswarm node wipe n1 --all --yes --json > certificates.json

The machine boots into memory once through the network. Random marks are written over the disk and read back, the disk is wiped,
and the same places are read again. The certificate says purged (not to be got back in a laboratory either, as far as the device
keeps its word), cleared (not through the device's interface), or not sanitised, with the reason. It stays with the node:
`rackswarm node certificates NODE`. Exit status 1 where a disk is not sanitised.";

/// What is wiped.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The node
    name: NodeName,
    /// The disk with this serial number; otherwise the one that the node's disk rule leads to
    #[arg(long, value_name = "SERIAL", conflicts_with_all = ["wwn", "all"])]
    serial: Option<String>,
    /// The disk with this world wide name
    #[arg(long, value_name = "WWN", conflicts_with = "all")]
    wwn: Option<String>,
    /// Every disk that the node has told of, except removable ones and those in use
    #[arg(long)]
    all: bool,
    /// How
    #[arg(long, value_enum, default_value_t = Way(Method::Auto))]
    method: Way,
    /// What is not refused: removable (removable media and disks on USB), multipath; several are separated by commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = parse::allowed)]
    allow: Vec<Option<Allow>>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Do not wait until it is done
    #[arg(long)]
    detach: bool,
    /// Print the certificates as JSON
    #[arg(long)]
    json: bool,
}

/// How, as a word of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way(Method);

impl clap::ValueEnum for Way {
    fn value_variants<'a>() -> &'a [Self] {
        const WAYS: [Way; 4] = [Way(Method::Auto), Way(Method::Sanitise), Way(Method::Overwrite), Way(Method::Discard)];
        &WAYS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.as_str()).help(self.0.what()))
    }
}

/// How often the controller is asked how far it is.
const GLANCE: Duration = Duration::from_secs(1);

pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let name = &arguments.name;
    let node = client.node(name).await.map_err(explain)?;
    let order = order(&node, arguments)?;
    let before = client.certificates(name).await.map_err(explain)?.len();
    let view = client.wipe_node(name, &order).await.map_err(explain)?;
    if arguments.detach {
        return show(arguments.json, &view, |_| {
            format!("{name} is to be wiped; `rackswarm node certificates {name}` shows what came of it")
        });
    }
    let outcome = tokio::select! {
        outcome = ended(client, name, view.attempt) => outcome?,
        _ = tokio::signal::ctrl_c() => {
            bail!("nobody watches any more, and the wipe goes on; `rackswarm node release {name}` ends it")
        }
    };
    let mut certificates = client.certificates(name).await.map_err(explain)?;
    let fresh = certificates.split_off(before.min(certificates.len()));
    show(arguments.json, &fresh, |fresh| printed(fresh))?;
    if let Err(reason) = outcome {
        bail!("{name} is not wiped: {reason}");
    }
    let all_good = !fresh.is_empty() && fresh.iter().all(|certificate| certificate.worth != Worth::NotSanitised);
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was certified so far.
pub(super) async fn certificates(client: &Client, name: &NodeName, json: bool) -> Result<ExitCode> {
    let found = client.certificates(name).await.map_err(explain)?;
    show(json, &found, |found| match found.as_slice() {
        [] => format!("no disk of {name} was wiped; `rackswarm node wipe {name}` does"),
        found => printed(found),
    })
}

/// The order, once somebody has seen what is lost.
fn order(node: &NodeView, arguments: &Arguments) -> Result<Wipe> {
    let allow: Vec<Allow> = arguments.allow.iter().flatten().copied().collect();
    let named = DiskRule {
        serial: arguments.serial.clone(),
        wwn: arguments.wwn.clone(),
        allow: allow.clone(),
        ..DiskRule::default()
    };
    let is_named = arguments.serial.is_some() || arguments.wwn.is_some();
    let rule = if is_named || arguments.all { named } else { DiskRule { allow, ..node.disk.clone() } };
    let name = &node.name;
    let (disks, lost) = match &node.inventory {
        Some(inventory) => {
            let found = resolve(&inventory.disks, &rule, arguments.all).map_err(|why| anyhow!("{name}: {why}"))?;
            let told = moment(inventory.at);
            let lost: Vec<String> = found.iter().map(|(disk, _)| format!("  {}", held(disk))).collect();
            let lost = format!("as {name} told at {told}:\n{}", lost.join("\n"));
            (found.into_iter().map(|(_, rule)| rule).collect(), lost)
        }
        None if rule.serial.is_some() || rule.wwn.is_some() => {
            (vec![rule.clone()], format!("{name} has not told of its disks; the one with {rule}, whatever it holds"))
        }
        None => bail!("{name} has not told of its disks yet, so the disk must be named by --serial or --wwn"),
    };
    if !arguments.yes {
        ask(name, &lost)?;
    }
    Ok(Wipe { disks, method: arguments.method.0 })
}

fn held(disk: &Disk) -> String {
    match disk.contents.as_slice() {
        [] => format!("{disk}, which held nothing that is known"),
        contents => format!("{disk}, which held {}", contents.join("; ")),
    }
}

/// Everything on a disk goes, so a person types the machine's name.
fn ask(name: &NodeName, lost: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        return Err(WrongUsage::error("nobody can be asked here; --yes wipes without asking"));
    }
    eprintln!("To be wiped, {lost}");
    eprint!("Type the node's name to wipe it: ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() != name.as_str() {
        bail!("that is not `{name}`; nothing is wiped");
    }
    Ok(())
}

/// Waits until the attempt is over. The reason where it ended badly.
async fn ended(client: &Client, name: &NodeName, attempt: u32) -> Result<Result<(), String>> {
    let mut told = String::new();
    loop {
        let node = client.node(name).await.map_err(explain)?;
        match node.stage {
            Stage::Enrolled if node.attempt == attempt || node.reason.is_none() => return Ok(Ok(())),
            Stage::Enrolled | Stage::Running => return Ok(Err("it was released".to_owned())),
            Stage::Failed => return Ok(Err(node.reason.unwrap_or_default())),
            _ => {}
        }
        let line = match (node.stage, &node.progress) {
            (Stage::Wiping, Some(p)) if p.total_bytes > 0 => {
                format!("{name}: wiping, {} %", percent(p.done_bytes, p.total_bytes))
            }
            _ => format!("{name}: {}, waits for {}", node.stage, node.waits_for),
        };
        if line != told {
            eprintln!("{line}");
            told = line;
        }
        tokio::time::sleep(GLANCE).await;
    }
}

fn printed(certificates: &[Certificate]) -> String {
    certificates.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

fn one(certificate: &Certificate) -> String {
    let Certificate { path, model, serial, wwn, size_bytes, samples, worth, .. } = certificate;
    let mut lines = vec![
        format!("{} of {}: {}", path, certificate.node, worth.as_str().to_uppercase()),
        format!(
            "  model {}, serial {}, wwn {}",
            or_dash(model.as_ref()),
            or_dash(serial.as_ref()),
            or_dash(wwn.as_ref())
        ),
        format!("  {size_bytes} bytes; {}", certificate.used.what()),
        format!("  {}, in {}", moment(certificate.at), span(Duration::from_millis(certificate.milliseconds))),
        format!(
            "  {} places of {} bytes marked before and read after: {} zeros, {} something else, {} still the mark, {} unreadable",
            samples.marked, samples.block_bytes, samples.zero, samples.other, samples.unchanged, samples.unreadable
        ),
    ];
    lines.extend(certificate.reasons.iter().map(|reason| format!("  because {reason}")));
    lines.extend(certificate.notes.iter().map(|note| format!("  note: {note}")));
    lines.push(format!("  attempt {}, agent {}", certificate.attempt, certificate.agent_version));
    lines.join("\n")
}
