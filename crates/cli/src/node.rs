//! `rackswarm node`: machines.

mod wipe;

use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use api::client::Client;
use api::operator::{NewNode, NodeSettings, NodeView};
use clap::{Args, Subcommand};
use fleet::discovery::{Card, CheckOutcome, Inventory};
use fleet::disk::{Allow, DiskRule};
use fleet::ids::{Mac, NodeName, RackName};
use fleet::life::Stage;
use fleet::post::PostSettings;
use uuid::Uuid;

use crate::connect::{Connection, explain};
use crate::output::{self, ago, bytes, moment, or_dash, percent, rate, say, show};
use crate::{expected, parse, post, timeline};

/// What is done with machines.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All nodes: where each is in its life and why
    #[command(visible_alias = "ls")]
    List {
        /// Only nodes of this rack
        #[arg(long)]
        rack: Option<RackName>,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// One node: settings, stage, what it waits for, what it has proved
    Show {
        /// The node
        name: NodeName,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// What happened to a node, in sentences
    Timeline(timeline::Arguments),
    /// Add a node before it is seen on the network
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        /// Its name, which also becomes its host name
        name: NodeName,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Change what is known of a node; options that are not given keep what is set
    Set {
        /// The node
        name: NodeName,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Add or change nodes from a file of expected machines
    #[command(after_help = expected::HELP)]
    Import(expected::Import),
    /// Print all approved nodes as such a file
    Export(expected::Export),
    /// Take in a machine that showed itself on the network, or say that one whose hardware failed a check is mended
    Approve {
        /// The node; machines that nobody has named are called node- and their MAC address
        name: NodeName,
    },
    /// Let a node go: whatever is under way ends, and it boots its own disk again
    Release {
        /// The node
        name: NodeName,
    },
    /// Wipe disks of a node, read samples back and certify what that is worth
    Wipe(wipe::Arguments),
    /// What was certified of a node's disks
    Certificates {
        /// The node
        name: NodeName,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a node
    #[command(visible_alias = "rm")]
    Remove {
        /// The node
        name: NodeName,
    },
}

const ADD_EXAMPLES: &str = "\
Examples:
  rackswarm node add n1 --rack r1 --mac 52:54:00:12:34:56
      power is switched by hand; the only disk is written
  rackswarm node add n2 --rack r1 --mac 52:54:00:12:34:57 --disk-serial S3Z8NB0K \\
      --power 'ipmi://admin@10.0.0.7?password_file=/etc/rackswarm/bmc' \\
      --network static:10.0.1.2/24,10.0.1.1,10.0.1.1";

/// What may be said of a node.
#[derive(Debug, Args)]
#[group(id = "node")]
pub(crate) struct Options {
    /// The rack that it stands in
    #[arg(long)]
    rack: Option<RackName>,
    /// MAC address of an interface that may boot; several are separated by commas
    #[arg(long = "mac", value_delimiter = ',', value_name = "MAC")]
    macs: Vec<Mac>,
    /// SMBIOS system UUID, where two machines must not be mistaken for each other
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Address of its power driver, such as manual: or ipmi://USER@HOST?password_file=FILE
    #[arg(long, value_name = "ADDRESS", value_parser = power_address)]
    power: Option<String>,
    /// Memory that it is expected to have, in GiB: one that has less is not deployed; 0 expects nothing
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<u32>,
    /// Fixed IPv4 address for its first MAC address
    #[arg(long)]
    address: Option<Ipv4Addr>,
    #[command(flatten)]
    disk: DiskOptions,
    #[command(flatten)]
    post: post::Options,
}

/// Which disk may be written. What is given replaces the whole former rule; without any rule it is "the only disk".
/// Nothing is written unless exactly one disk matches.
#[derive(Debug, Args)]
#[command(next_help_heading = "Disk (which one may be written; exactly one must match)")]
struct DiskOptions {
    /// Exactly this serial number
    #[arg(long, value_name = "SERIAL")]
    disk_serial: Option<String>,
    /// Exactly this world wide name
    #[arg(long, value_name = "WWN")]
    disk_wwn: Option<String>,
    /// The model begins with this text
    #[arg(long, value_name = "TEXT")]
    disk_model: Option<String>,
    /// This device path or one of its stable paths
    #[arg(long, value_name = "PATH")]
    disk_path: Option<String>,
    /// At least this large, such as 400GB
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    disk_min_size: Option<u64>,
    /// At most this large
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    disk_max_size: Option<u64>,
    /// What is not refused: signatures (marks of old RAID, LVM, LUKS, bcache or ZFS are overwritten), removable (removable
    /// media and disks on USB), multipath (one of several paths to a device is used), or none; several are separated by
    /// commas. Given alone it leaves the rest of the rule as it is
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = parse::allowed)]
    disk_allow: Option<Vec<Option<Allow>>>,
    /// Go back to the rule "the only disk"
    #[arg(long, conflicts_with_all = ["disk_serial", "disk_wwn", "disk_model", "disk_path", "disk_min_size", "disk_max_size"])]
    disk_only: bool,
}

impl DiskOptions {
    fn rule(&self, former: &DiskRule) -> Option<DiskRule> {
        let allow = self.disk_allow.as_ref().map(|words| words.iter().flatten().copied().collect::<Vec<_>>());
        let rule = DiskRule {
            min_size_bytes: self.disk_min_size,
            max_size_bytes: self.disk_max_size,
            serial: self.disk_serial.clone(),
            wwn: self.disk_wwn.clone(),
            model: self.disk_model.clone(),
            path: self.disk_path.clone(),
            allow: Vec::new(),
        };
        match (self.disk_only || rule != DiskRule::default(), allow) {
            (true, allow) => Some(DiskRule { allow: allow.unwrap_or_default(), ..rule }),
            (false, Some(allow)) => Some(DiskRule { allow, ..former.clone() }),
            (false, None) => None,
        }
    }
}

impl Options {
    fn settings(&self, former_disk: &DiskRule, former_post: &PostSettings) -> Result<NodeSettings> {
        Ok(NodeSettings {
            rack: self.rack.clone(),
            macs: (!self.macs.is_empty()).then(|| self.macs.clone()),
            uuid: self.uuid,
            power: self.power.clone(),
            memory_gib: self.memory_gib,
            address: self.address,
            disk: self.disk.rule(former_disk),
            post: self.post.settings(former_post)?,
        })
    }
}

/// Checks the address here already, so that a mistake is found before anything is sent.
fn power_address(text: &str) -> Result<String, String> {
    power::open(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

pub(crate) async fn run(connection: &Connection, command: Command) -> Result<ExitCode> {
    let client = connection.client()?;
    match command {
        Command::List { rack, json } => {
            let mut nodes = client.nodes().await.map_err(explain)?;
            nodes.retain(|node| rack.is_none() || node.rack == rack);
            show(json, &nodes, |nodes| list(nodes))
        }
        Command::Show { name, json } => {
            let node = client.node(&name).await.map_err(explain)?;
            show(json, &node, describe)
        }
        Command::Timeline(arguments) => timeline::run(&client, &arguments).await,
        Command::Add { name, options } => add(&client, name, &options).await,
        Command::Set { name, options } => set(&client, &name, &options).await,
        Command::Import(arguments) => expected::import(&client, &arguments).await,
        Command::Export(arguments) => expected::export(&client, &arguments).await,
        Command::Approve { name } => {
            let node = client.approve_node(&name).await.map_err(explain)?;
            done(format!("{} is approved", node.name))
        }
        Command::Release { name } => {
            let node = client.release_node(&name).await.map_err(explain)?;
            done(format!("{} is released; it boots its own disk from now on", node.name))
        }
        Command::Wipe(arguments) => wipe::run(&client, &arguments).await,
        Command::Certificates { name, json } => wipe::certificates(&client, &name, json).await,
        Command::Remove { name } => {
            client.remove_node(&name).await.map_err(explain)?;
            done(format!("{name} is removed"))
        }
    }
}

async fn add(client: &Client, name: NodeName, options: &Options) -> Result<ExitCode> {
    ensure!(
        !options.macs.is_empty() || options.uuid.is_some(),
        "a new node needs at least one MAC address, or its UUID: --mac 52:54:00:12:34:56"
    );
    let settings = options.settings(&DiskRule::default(), &PostSettings::default())?;
    let node = client.add_node(&NewNode { name, settings }).await.map_err(explain)?;
    done(format!("{} is added; it writes {}", node.name, node.disk))
}

async fn set(client: &Client, name: &NodeName, options: &Options) -> Result<ExitCode> {
    let (disk, post) = if options.post.needs_former() || options.disk.disk_allow.is_some() {
        let former = client.node(name).await.map_err(explain)?;
        (former.disk, former.post)
    } else {
        Default::default()
    };
    let settings = options.settings(&disk, &post)?;
    ensure!(
        settings != NodeSettings::default(),
        "nothing to change: `rackswarm node set --help` lists what can be set"
    );
    let node = client.set_node(name, &settings).await.map_err(explain)?;
    done(format!("{} is changed", node.name))
}

fn done(sentence: String) -> Result<ExitCode> {
    say(sentence)?;
    Ok(ExitCode::SUCCESS)
}

fn list(nodes: &[NodeView]) -> String {
    let mut table = output::table(["NODE", "RACK", "STAGE", "FOR", "ADDRESS", "FIRMWARE", "IMAGE", "NOTE"]);
    for node in nodes {
        table.add_row([
            node.name.to_string().into(),
            or_dash(node.rack.as_ref()).into(),
            output::painted(node.stage, node.stage.into()),
            ago(node.stage_since).trim_end_matches(" ago").into(),
            or_dash(node.address).into(),
            or_dash(node.firmware).into(),
            or_dash(node.deployed.as_ref().map(|deployed| &deployed.image)).into(),
            note(node).into(),
        ]);
    }
    output::text_of(&table, "no nodes yet: `rackswarm node add --help`")
}

/// What an operator wants to know first.
fn note(node: &NodeView) -> String {
    match (node.stage, &node.progress, &node.reason) {
        _ if node.member.as_ref().is_some_and(|member| member.missing_since.is_some()) => {
            "its set does not list it any more".to_owned()
        }
        _ if !node.approved => match &node.inventory {
            Some(inventory) => {
                format!("waits for approval ({}): rackswarm node approve {}", summary(inventory), node.name)
            }
            None => format!("waits for approval: rackswarm node approve {}", node.name),
        },
        (Stage::Wiping, Some(progress), _) => {
            format!("wiping, {} %", percent(progress.done_bytes, progress.total_bytes))
        }
        (Stage::Capturing, Some(progress), _) => crate::image::capture::sending(progress),
        (Stage::Fetching, Some(progress), _) => format!(
            "{} % at {} from {} peers",
            percent(progress.done_bytes, progress.total_bytes),
            rate(progress.down_bytes_per_second),
            progress.peers
        ),
        (Stage::Failed, _, Some(reason)) => reason.clone(),
        (Stage::Enrolled, ..) => {
            let failed = node.inventory.iter().flat_map(Inventory::failed_checks).next();
            failed.map(|check| format!("{} failed: {}", check.name, check.text)).unwrap_or_default()
        }
        (stage, _, Some(reason)) if stage.is_under_way() => format!("attempt {} after: {reason}", node.tries),
        (Stage::Running, ..) => node
            .heard
            .map_or_else(|| "not heard since the controller started".to_owned(), |at| format!("heard {}", ago(at))),
        (stage, ..) if stage.is_under_way() => format!("waits for {}", node.waits_for),
        _ => String::new(),
    }
}

fn describe(node: &NodeView) -> String {
    let mut lines = identity(node);
    lines.extend(node.inventory.iter().flat_map(machine));
    lines.extend(life(node));
    lines.extend(post::describe(&node.post));
    lines.extend(health(node));
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}

fn identity(node: &NodeView) -> Vec<(&'static str, String)> {
    let macs: Vec<String> = node.macs.iter().map(ToString::to_string).collect();
    vec![
        ("node", node.name.to_string()),
        ("rack", or_dash(node.rack.as_ref())),
        ("approved", if node.approved { "yes" } else { "no" }.to_owned()),
        ("macs", macs.join(" ")),
        ("uuid", or_dash(node.uuid)),
        ("address", or_dash(node.address)),
        ("memory expected", node.memory_gib.map_or_else(|| "-".to_owned(), |gib| format!("{gib} GiB"))),
        ("firmware", or_dash(node.firmware)),
        ("power", power_line(node)),
        ("set", membership(node)),
        ("disk", node.disk.to_string()),
    ]
}

/// A machine in a few words.
fn summary(inventory: &Inventory) -> String {
    let disks: u64 = inventory.disks.iter().filter(|disk| !disk.removable).map(|disk| disk.size_bytes).sum();
    let product = if inventory.product.is_empty() { "unnamed product" } else { &inventory.product };
    format!(
        "{product}, {}, {}, {} of disks",
        output::count(inventory.processors as usize, "processor"),
        bytes(inventory.memory_bytes),
        bytes(disks)
    )
}

/// What a machine told of itself.
fn machine(inventory: &Inventory) -> Vec<(&'static str, String)> {
    let macs: Vec<String> = inventory.macs.iter().map(ToString::to_string).collect();
    let mut lines =
        vec![("machine", format!("{} ({})", summary(inventory), ago(inventory.at))), ("its cards", macs.join(" "))];
    lines.extend(inventory.disks.iter().map(|disk| {
        let holds = if disk.contents.is_empty() { "blank".to_owned() } else { disk.contents.join(" and ") };
        ("its disk", format!("{disk}, {holds}"))
    }));
    let findings = &inventory.findings;
    if !findings.firmware.is_empty() {
        lines.push(("its firmware", findings.firmware.clone()));
    }
    lines.extend(findings.cards.iter().map(|card| ("its card", describe_card(card))));
    lines.extend(findings.checks.iter().map(|check| {
        let outcome = match check.outcome {
            CheckOutcome::Passed => "passed",
            CheckOutcome::Failed => "FAILED",
            CheckOutcome::NotMade => "not made",
        };
        ("check", format!("{} {outcome}: {}", check.name, check.text))
    }));
    lines
}

fn describe_card(card: &Card) -> String {
    let rate = card.rate_mbit.map(|rate| format!(" of {rate} Mbit/s")).unwrap_or_default();
    let link = if card.link { format!("link{rate}") } else { "no link".to_owned() };
    let switch = card.switch.as_ref().map(|switch| {
        let description = switch.description.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
        format!(", to {} port {}{description}", switch.name, switch.port)
    });
    format!("{} {}, {link}{}", card.name, card.mac, switch.unwrap_or_default())
}

fn power_line(node: &NodeView) -> String {
    match (node.power_state, node.power_read_at) {
        (Some(state), Some(at)) => format!("{} ({state}, read {})", node.power, ago(at)),
        _ => node.power.clone(),
    }
}

fn membership(node: &NodeView) -> String {
    match &node.member {
        None => "-".to_owned(),
        Some(member) => match member.missing_since {
            None => format!("{}, which calls it {}", member.set, member.id),
            Some(at) => format!("{}, which does not list it any more since {}", member.set, moment(at)),
        },
    }
}

fn life(node: &NodeView) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("stage", format!("{}, since {} ({})", node.stage, moment(node.stage_since), ago(node.stage_since))),
        ("waits for", node.waits_for.clone()),
    ];
    if let Some(deadline) = node.deadline {
        lines.push(("at most until", moment(deadline)));
    }
    lines.push(("attempt", format!("{} of its life, {} of the present deployment", node.attempt, node.tries)));
    if let Some(reason) = &node.reason {
        lines.push(("reason", reason.clone()));
    }
    if let Some(deployment) = node.deployment {
        lines.push(("deployment", deployment.to_string()));
    }
    if let Some(progress) = &node.progress {
        lines.push((
            "progress",
            format!(
                "{} of {} on the disk ({} %), {} in, {} out, {} peers",
                bytes(progress.done_bytes),
                bytes(progress.total_bytes),
                percent(progress.done_bytes, progress.total_bytes),
                rate(progress.down_bytes_per_second),
                rate(progress.up_bytes_per_second),
                progress.peers
            ),
        ));
    }
    if let Some(deployed) = &node.deployed {
        lines.push(("runs", format!("{} {}", deployed.image, deployed.digest)));
        lines.push((
            "on",
            format!("{}, proved {} in attempt {}", deployed.disk, moment(deployed.proved_at), deployed.attempt),
        ));
    }
    lines
}

fn health(node: &NodeView) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(heard) = node.heard {
        lines.push(("heard", ago(heard)));
    }
    if let Some(beat) = &node.beat {
        lines.push(("up", output::span(std::time::Duration::from_secs(beat.uptime_seconds))));
        lines.push(("load", format!("{:.2}", beat.load1)));
        lines.push(("memory", format!("{} of {}", bytes(beat.memory_used_bytes), bytes(beat.memory_total_bytes))));
        lines.push(("root", format!("{} of {}", bytes(beat.disk_used_bytes), bytes(beat.disk_total_bytes))));
        if !beat.processes_missing.is_empty() {
            lines.push(("not running", beat.processes_missing.join(", ")));
        }
    }
    if node.unexpected_total > 0 {
        lines.push(("unexpected", format!("{} events; each is in the timeline", node.unexpected_total)));
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fleet::ids::Millis;
    use fleet::node::Progress;

    use super::*;

    fn view() -> NodeView {
        serde_json::from_value(serde_json::json!({
            "name": "n1", "rack": "r1", "macs": ["52:54:00:12:34:56"], "uuid": null, "approved": true, "power": "manual:",
            "address": "10.0.0.7", "disk": {}, "post": {}, "firmware": "uefi_x64", "stage": "fetching", "stage_since": 0,
            "waits_for": "the rest of the image", "deadline": null, "attempt": 3, "tries": 1, "reason": null,
            "deployment": "d-1", "deployed": null, "progress": null, "beat": null, "heard": null, "unexpected_total": 0
        }))
        .unwrap()
    }

    #[test]
    fn the_note_says_what_an_operator_asks_first() {
        let mut node = view();
        assert_eq!(note(&node), "waits for the rest of the image");
        node.progress = Some(Progress { done_bytes: 50, total_bytes: 100, peers: 3, ..Progress::default() });
        assert!(note(&node).starts_with("50 % at 0"), "{}", note(&node));
        node.stage = Stage::Failed;
        node.reason = Some("no disk".into());
        assert_eq!(note(&node), "no disk");
        node.approved = false;
        assert!(note(&node).contains("node approve n1"));
    }

    #[test]
    fn a_list_is_one_line_for_each_node() {
        let text = list(&[view()]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("uefi-pxe") && text.contains("fetching"));
        assert!(list(&[]).contains("no nodes yet"));
    }

    #[test]
    fn a_description_names_stage_and_deadline() {
        let mut node = view();
        node.deadline = Some(Millis(1));
        let text = describe(&node);
        assert!(text.contains("at most until") && text.contains("the only disk"), "{text}");
    }
}
