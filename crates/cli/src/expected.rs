//! Files of expected machines: nodes before they are seen, as a table or as TOML, read and written.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use api::client::Client;
use api::operator::{NewNode, NodeSettings, NodeView, RackSettings};
use clap::{Args, ValueEnum};
use fleet::disk::DiskRule;
use fleet::ids::{Mac, NodeName, RackName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::connect::explain;
use crate::output::{self, Meaning, or_dash, say};

pub(crate) const HELP: &str = "\
A table (.csv) has these columns, in any order; all but name may be missing or empty:
  name,mac,rack,uuid,power,address,disk_serial,memory_gib
  n1,52:54:00:12:34:56 52:54:00:12:34:57,r1,,ipmi://admin@10.9.1.1?password_file=/etc/rackswarm/bmc,10.0.1.1,S3Z8NB0K,256
TOML (.toml) has the same words in [[machine]], with mac = [\"...\", \"...\"].
A node needs a MAC address or its UUID. Racks that do not exist are made. What a node has and the file does not name is
kept. The exit status is 0 only when every line was taken.";

/// A file to be read.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file, .csv or .toml
    file: PathBuf,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How to write it.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The form
    #[arg(long, value_enum, default_value_t = Form::Csv)]
    format: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table with commas
    Csv,
    /// [[machine]] for each node
    Toml,
}

/// A machine that is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    name: NodeName,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mac: Vec<Mac>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rack: Option<RackName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    power: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk_serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_gib: Option<u32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    #[serde(default)]
    machine: Vec<Machine>,
}

/// A line of the table, before its words are understood.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line {
    name: String,
    mac: String,
    rack: String,
    uuid: String,
    power: String,
    address: String,
    disk_serial: String,
    memory_gib: String,
}

/// What became of a machine.
#[derive(Debug, Serialize)]
struct Row {
    name: NodeName,
    what: &'static str,
    text: String,
}

pub(crate) async fn import(client: &Client, arguments: &Import) -> Result<ExitCode> {
    let machines = read(&arguments.file)?;
    let nodes = client.nodes().await.map_err(explain)?;
    let mut racks: BTreeSet<RackName> =
        client.racks().await.map_err(explain)?.into_iter().map(|rack| rack.name).collect();
    let mut rows = Vec::new();
    for machine in machines {
        let name = machine.name.clone();
        let (what, text) = match take(client, machine, &nodes, &mut racks, arguments.dry_run).await {
            Ok(done) => done,
            Err(error) => ("refused", output::sentence(&error)),
        };
        rows.push(Row { name, what, text });
    }
    let refused = rows.iter().any(|row| row.what == "refused");
    output::show(arguments.json, &rows, |rows| table(rows, arguments.dry_run))?;
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Adds the node or changes what differs.
async fn take(
    client: &Client,
    machine: Machine,
    nodes: &[NodeView],
    racks: &mut BTreeSet<RackName>,
    dry_run: bool,
) -> Result<(&'static str, String)> {
    let known = nodes.iter().find(|node| node.name == machine.name);
    ensure!(
        known.is_some() || !machine.mac.is_empty() || machine.uuid.is_some(),
        "a new node needs a MAC address or its UUID"
    );
    let (settings, said) = difference(&machine, known);
    if known.is_some() && settings == NodeSettings::default() {
        return Ok(("unchanged", String::new()));
    }
    let what = if known.is_some() { "changed" } else { "added" };
    if dry_run {
        return Ok((what, said));
    }
    if let Some(rack) = settings.rack.clone().filter(|rack| !racks.contains(rack)) {
        client.put_rack(&rack, &RackSettings::default()).await.map_err(explain)?;
        racks.insert(rack);
    }
    match known {
        Some(node) => client.set_node(&node.name, &settings).await,
        None => client.add_node(&NewNode { name: machine.name, settings }).await,
    }
    .map_err(explain)?;
    Ok((what, said))
}

/// What the file says and the node does not have, with a sentence about it.
fn difference(machine: &Machine, known: Option<&NodeView>) -> (NodeSettings, String) {
    let new = |differs: bool| known.is_none() || differs;
    let serial = machine.disk_serial.clone();
    let rule = serial.map(|serial| DiskRule { serial: Some(serial), ..DiskRule::default() });
    let macs = Some(machine.mac.clone()).filter(|macs| !macs.is_empty());
    let settings = NodeSettings {
        rack: machine.rack.clone().filter(|rack| new(known.is_some_and(|node| node.rack.as_ref() != Some(rack)))),
        macs: macs.filter(|macs| new(known.is_some_and(|node| node.macs != *macs))),
        uuid: machine.uuid.filter(|uuid| new(known.is_some_and(|node| node.uuid != Some(*uuid)))),
        power: machine.power.clone().filter(|power| new(known.is_some_and(|node| node.power != *power))),
        // The address that a node has may be one that it was leased; the same is asked for once more then.
        address: machine.address.filter(|address| new(known.is_some_and(|node| node.address != Some(*address)))),
        disk: rule.filter(|rule| new(known.is_some_and(|node| node.disk.serial != rule.serial))),
        memory_gib: machine.memory_gib.filter(|gib| new(known.is_some_and(|node| node.memory_gib != Some(*gib)))),
        post: None,
    };
    let mut said = Vec::new();
    let macs = settings.macs.as_ref().map(|macs| macs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let disk = settings.disk.as_ref().and_then(|rule| rule.serial.clone());
    for (word, value) in [
        ("rack", settings.rack.as_ref().map(ToString::to_string)),
        ("mac", macs),
        ("uuid", settings.uuid.map(|uuid| uuid.to_string())),
        ("power", settings.power.clone()),
        ("address", settings.address.map(|address| address.to_string())),
        ("disk serial", disk),
        ("memory", settings.memory_gib.map(|gib| format!("{gib} GiB"))),
    ] {
        said.extend(value.map(|value| format!("{word} {value}")));
    }
    (settings, said.join(", "))
}

fn table(rows: &[Row], dry_run: bool) -> String {
    let mut table = output::table(["NODE", "WHAT", "WHY"]);
    for row in rows.iter().filter(|row| row.what != "unchanged") {
        let meaning = match row.what {
            "added" => Meaning::Good,
            "changed" => Meaning::Busy,
            _ => Meaning::Bad,
        };
        table.add_row([row.name.to_string().into(), output::painted(row.what, meaning), row.text.clone().into()]);
    }
    let counts = ["added", "changed", "unchanged", "refused"]
        .into_iter()
        .map(|what| (rows.iter().filter(|row| row.what == what).count(), what))
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"));
    let end = if dry_run { " (dry run: nothing was changed)" } else { "" };
    let summary = counts.collect::<Vec<_>>().join(", ");
    let summary = if summary.is_empty() { "the file has no machines".to_owned() } else { summary };
    format!("{}\n{summary}{end}", output::text_of(&table, "nothing to change"))
}

pub(crate) async fn export(client: &Client, arguments: &Export) -> Result<ExitCode> {
    let nodes = client.nodes().await.map_err(explain)?;
    let machines = nodes.iter().filter(|node| node.approved).map(machine).collect();
    say(written(machines, arguments.format)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Its leased address is left away: a file makes addresses fixed.
fn machine(node: &NodeView) -> Machine {
    Machine {
        name: node.name.clone(),
        mac: node.macs.clone(),
        rack: node.rack.clone(),
        uuid: node.uuid,
        power: Some(node.power.clone()),
        address: None,
        disk_serial: node.disk.serial.clone(),
        memory_gib: node.memory_gib,
    }
}

fn written(machines: Vec<Machine>, form: Form) -> Result<String> {
    if form == Form::Toml {
        return toml::to_string(&Book { machine: machines }).context("cannot write TOML");
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    for machine in &machines {
        let empty = |value: String| if value == "-" { String::new() } else { value };
        let macs: Vec<String> = machine.mac.iter().map(ToString::to_string).collect();
        writer.serialize(Line {
            name: machine.name.to_string(),
            mac: macs.join(" "),
            rack: empty(or_dash(machine.rack.as_ref())),
            uuid: empty(or_dash(machine.uuid)),
            power: machine.power.clone().unwrap_or_default(),
            address: empty(or_dash(machine.address)),
            disk_serial: machine.disk_serial.clone().unwrap_or_default(),
            memory_gib: machine.memory_gib.map(|gib| gib.to_string()).unwrap_or_default(),
        })?;
    }
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8(bytes)?)
}

fn read(file: &Path) -> Result<Vec<Machine>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let machines = match file.extension().and_then(|end| end.to_str()) {
        Some("csv") => table_of(&text).with_context(|| shown.to_string())?,
        Some("toml") => toml::from_str::<Book>(&text).with_context(|| shown.to_string())?.machine,
        _ => bail!("{shown} ends neither in .csv nor in .toml, so its form is not known"),
    };
    let mut names = BTreeSet::new();
    for machine in &machines {
        ensure!(names.insert(&machine.name), "{shown}: the machine `{}` stands there twice", machine.name);
        if let Some(power) = &machine.power {
            power::open(power).with_context(|| format!("{shown}: machine `{}`", machine.name))?;
        }
    }
    Ok(machines)
}

fn table_of(text: &str) -> Result<Vec<Machine>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut machines = Vec::new();
    for (index, line) in reader.deserialize::<Line>().enumerate() {
        // The heading is the first line.
        let number = index + 2;
        let line = line.with_context(|| format!("line {number}"))?;
        machines.push(line.machine().with_context(|| format!("line {number}"))?);
    }
    Ok(machines)
}

impl Line {
    fn machine(self) -> Result<Machine> {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Machine {
            name: self.name.parse()?,
            mac: self.mac.split_whitespace().map(str::parse).collect::<Result<_, _>>()?,
            rack: given(self.rack).map(|text| text.parse()).transpose()?,
            uuid: given(self.uuid)
                .map(|text| text.parse().with_context(|| format!("`{text}` is not a UUID")))
                .transpose()?,
            power: given(self.power),
            address: given(self.address)
                .map(|text| text.parse().with_context(|| format!("`{text}` is not an IPv4 address")))
                .transpose()?,
            disk_serial: given(self.disk_serial),
            memory_gib: given(self.memory_gib)
                .map(|text| text.parse().with_context(|| format!("`{text}` is no number of GiB")))
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TABLE: &str = "\
name,rack,mac,power,disk_serial
n1,r1,52:54:00:00:00:01 52:54:00:00:00:02,\"manual:rack 3, unit 1\",S-1
n2,,52:54:00:00:00:03,,
";

    #[test]
    fn both_forms_say_the_same_and_come_back() {
        let machines = table_of(TABLE).unwrap();
        assert_eq!((machines[0].mac.len(), machines[0].power.as_deref()), (2, Some("manual:rack 3, unit 1")));
        assert_eq!((machines[1].rack.clone(), machines[1].disk_serial.clone()), (None, None));
        assert_eq!(table_of(&written(machines.clone(), Form::Csv).unwrap()).unwrap(), machines);
        let book: Book = toml::from_str(&written(machines.clone(), Form::Toml).unwrap()).unwrap();
        assert_eq!(book.machine, machines);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, part) in [
            ("a.csv", "name,mac\nn1,52:54:00\n", "line 2"),
            ("a.csv", "name,colour\nn1,red\n", "colour"),
            ("a.csv", "name\nn1\nN 2\n", "line 3"),
            ("a.csv", "name\nn1\nn1\n", "twice"),
            ("a.csv", "name,power\nn1,pigeon:x\n", "machine `n1`"),
            ("a.toml", "[[machine]]\nname = \"n1\"\ncolour = 1\n", "colour"),
            ("a.txt", "n1", "neither"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let said = output::sentence(&read(&path).unwrap_err());
            assert!(said.contains(part) && said.contains(name), "{text:?}: {said}");
        }
    }
}
