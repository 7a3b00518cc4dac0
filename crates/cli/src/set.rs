//! `rackswarm set`: machines that one owner lists.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::operator::{AcquireRequest, GiveBackRequest, NewSet, SetView, SyncOptions, SyncReport};
use clap::{Args, Subcommand};
use fleet::ids::{NodeName, RackName, SetName};
use fleet::set::What;

use crate::connect::{Connection, explain};
use crate::output::{self, Meaning, ago, or_dash, say, show};

/// What is done with sets.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All sets: where they are, how many nodes each has, what the last sync came to
    #[command(visible_alias = "ls")]
    List {
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a set; it is asked for its machines at once, so that a mistake is found now
    #[command(after_help = ADD_HELP.as_str())]
    Add(Box<AddArguments>),
    /// Ask a set for its machines and make nodes of them
    #[command(after_help = SYNC_HELP)]
    Sync {
        /// The set
        name: SetName,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// Take it as it is when more than half of the set's nodes are gone
        #[arg(long)]
        force: bool,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Take machines of a set, or have it make some, and make nodes of them
    #[command(after_help = ACQUIRE_HELP)]
    Acquire(Box<AcquireArguments>),
    /// Give machines back to their set; one that the set has made ceases to exist, with its disk
    Release {
        /// The set
        name: SetName,
        /// Its nodes, separated by commas
        #[arg(required = true, value_delimiter = ',')]
        nodes: Vec<NodeName>,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a set; its nodes stay
    #[command(visible_alias = "rm")]
    Remove {
        /// The set
        name: SetName,
    },
}

/// A set to be added.
#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// Its name
    name: SetName,
    /// Its address: the kind, where it is, and its options
    #[arg(value_parser = address)]
    address: String,
    /// File on the controller that holds its secret: a controller's password, a cloud's access key
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// Rack of its machines where the set does not tell one
    #[arg(long)]
    rack: Option<RackName>,
    /// Add it although it does not answer now
    #[arg(long)]
    unchecked: bool,
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
}

/// Machines to be taken.
#[derive(Debug, Args)]
pub(crate) struct AcquireArguments {
    /// The set
    name: SetName,
    /// How many machines the token shall hold in all
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Who asks; the same token always means the same machines
    #[arg(long)]
    token: String,
    /// Image of the platform that made machines start from [default: they boot from the network]
    #[arg(long)]
    image: Option<String>,
    /// Virtual processors of made machines [default: 1]
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory of made machines [default: 1024]
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u32>,
    /// Disk of made machines [default: 8]
    #[arg(long, value_name = "GIB")]
    disk_gib: Option<u32>,
    /// The platform's own name for a size, such as t3.small
    #[arg(long)]
    instance_type: Option<String>,
    /// Only machines of this rack, where the set knows racks
    #[arg(long)]
    rack: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
}

const ACQUIRE_HELP: &str = "\
Example:
  rackswarm set acquire hall1 --count 4 --token web --cpus 2 --memory-mib 4096 --disk-gib 20
Asked again with the same token and a larger count, only what is missing is made.";

const SYNC_HELP: &str = "\
New machines become nodes, known ones are brought up to date. A machine is known by the set's own id for it, by a MAC
address, or by its UUID. What the set does not list any more is removed where it was made by the set and nothing was
ever written to it; any other node is kept and marked missing.
The exit status is 0 only when no machine was refused.";

/// Printed from the table of sets, so that it cannot lag behind it.
static ADD_HELP: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let mut text = "Kinds:\n".to_owned();
    for set in power::SETS {
        text.push_str(&format!("  {:8} {}\n           {}\n", set.scheme, set.help, set.example));
    }
    text + "\nEvery address takes limit_seconds=1..3600, the deadline of one operation. --credentials-file is the same as \
            password_file= or credentials_file= in the address. All files are the controller's."
});

/// Finds a kind that does not exist before anything is sent; the rest is the controller's to check, whose files it names.
fn address(text: &str) -> Result<String, String> {
    let scheme = text.split([':', '+']).next().unwrap_or_default();
    let known: Vec<&str> = power::SETS.iter().map(|set| set.scheme).collect();
    if text.contains(':') && known.contains(&scheme) {
        return Ok(text.to_owned());
    }
    Err(format!("an address is `KIND:...`, and the kinds are {}", known.join(", ")))
}

pub(crate) async fn run(connection: &Connection, command: Command) -> Result<ExitCode> {
    let client = connection.client()?;
    match command {
        Command::List { json } => {
            let sets = client.sets().await.map_err(explain)?;
            show(json, &sets, |sets| list(sets))
        }
        Command::Add(arguments) => add(&client, *arguments).await,
        Command::Sync { name, dry_run, force, json } => {
            let report = client.sync_set(&name, SyncOptions { dry_run, force }).await.map_err(explain)?;
            show(json, &report, describe)?;
            let refused = report.rows.iter().any(|row| row.what == What::Refused);
            Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Acquire(arguments) => acquire(&client, *arguments).await,
        Command::Release { name, nodes, json } => {
            let report = client.give_back(&name, &GiveBackRequest { nodes }).await.map_err(explain)?;
            show(json, &report, describe)
        }
        Command::Remove { name } => {
            client.remove_set(&name).await.map_err(explain)?;
            say(format_args!("{name} is removed; its nodes stay"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn acquire(client: &Client, arguments: AcquireArguments) -> Result<ExitCode> {
    let AcquireArguments { name, count, token, image, cpus, memory_mib, disk_gib, instance_type, rack, json } =
        arguments;
    let wish = AcquireRequest { token, count, image, cpus, memory_mib, disk_gib, instance_type, rack };
    let report = client.acquire(&name, &wish).await.map_err(explain)?;
    show(json, &report, describe)
}

async fn add(client: &Client, arguments: AddArguments) -> Result<ExitCode> {
    let AddArguments { name, address, credentials_file, rack, unchecked, json } = arguments;
    let new = NewSet { name, address, credentials_file, rack, unchecked };
    let set = client.add_set(&new).await.map_err(explain)?;
    show(json, &set, |set| {
        let listed = match set.listed {
            Some(count) => format!("it lists {}", output::count(count as usize, "machine")),
            None => "it was not asked".to_owned(),
        };
        format!("{0} is added; {listed}. Make nodes of them with: rackswarm set sync {0}", set.name)
    })
}

fn list(sets: &[SetView]) -> String {
    let mut table = output::table(["SET", "NODES", "MISSING", "RACK", "SYNCED", "CAME TO", "ADDRESS"]);
    for set in sets {
        table.add_row([
            set.name.to_string(),
            set.nodes.to_string(),
            set.missing.to_string(),
            or_dash(set.rack.as_ref()),
            or_dash(set.synced_at.map(ago)),
            or_dash(set.synced.as_ref()),
            set.address.clone(),
        ]);
    }
    output::text_of(&table, "no sets yet: `rackswarm set add --help`")
}

/// Every row but those of which there is nothing to say.
fn describe(report: &SyncReport) -> String {
    let mut table = output::table(["MACHINE", "NODE", "WHAT", "WHY"]);
    for row in report.rows.iter().filter(|row| row.what != What::Unchanged) {
        let meaning = match row.what {
            What::Added => Meaning::Good,
            What::Unchanged => Meaning::Plain,
            What::Changed | What::Missing | What::Retired => Meaning::Busy,
            What::Refused => Meaning::Bad,
        };
        table.add_row([
            row.id.clone().into(),
            or_dash(row.node.as_ref()).into(),
            output::painted(row.what.as_str(), meaning),
            row.text.clone().into(),
        ]);
    }
    let nothing = if report.dry_run { "nothing would change" } else { "nothing has changed" };
    let end = if report.dry_run { " (dry run: nothing was changed)" } else { "" };
    format!("{}\n{}: {}{end}", output::text_of(&table, nothing), report.set, report.summary)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fleet::set::Row;

    use super::*;

    #[test]
    fn a_report_names_what_changes_and_why() {
        let row = |id: &str, what, text: &str| Row { id: id.into(), node: id.parse().ok(), what, text: text.into() };
        let mut report = SyncReport {
            set: "s1".parse().unwrap(),
            dry_run: true,
            summary: "1 added, 1 unchanged".into(),
            rows: vec![row("n1", What::Added, "power fake:n1"), row("n2", What::Unchanged, "")],
        };
        let text = describe(&report);
        assert!(text.contains("power fake:n1") && !text.contains("n2") && text.contains("dry run"), "{text}");
        report.rows.remove(0);
        report.dry_run = false;
        assert!(describe(&report).starts_with("nothing has changed\ns1: "), "{}", describe(&report));
    }

    #[test]
    fn only_kinds_that_exist_are_sent() {
        assert!(address("fake:x").is_ok() && address("redfish+http://admin@bmc").is_ok());
        for wrong in ["fake", "pigeon:x", ""] {
            assert!(address(wrong).unwrap_err().contains("machines, redfish"), "{wrong}");
        }
    }
}
