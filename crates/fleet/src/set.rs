//! Sets of machines: who lists them, and what a listing changes in the registry.
//!
//! A set owns what it knows of its machines: their power addresses, that their MAC addresses and UUIDs belong to them,
//! and the rack where it tells one. Everything else of a node stays the operator's. What a set does not list any more is
//! removed only when nothing was ever written to it and the set had made it; any other node is kept and marked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::change::{Change, Note, Snapshot};
use crate::ids::{Mac, Millis, NodeName, RackName, SetName};
use crate::intake::Refused;
use crate::life::Stage;
use crate::node::{Node, Rack, either_order};
use crate::rollout::waits_in;

/// A set as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSet {
    /// Its name.
    pub name: SetName,
    /// Its address, already checked by the table of sets.
    pub address: String,
    /// Rack of its machines where it does not tell one.
    pub rack: Option<RackName>,
    /// True where it stands in the configuration, and so can be removed only there.
    #[serde(default)]
    pub configured: bool,
    /// The latest listing that was taken in.
    #[serde(default)]
    pub synced: Option<Synced>,
}

/// A listing that was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// When.
    pub at: Millis,
    /// How many machines of each kind of row, as a sentence.
    pub text: String,
}

/// The set that a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Member {
    /// The set.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub set: SetName,
    /// What the set calls the machine.
    pub id: String,
    /// True where the node was made by the set, and not by an operator before.
    #[serde(default)]
    pub made: bool,
    /// Since when the set lists it no more.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub missing_since: Option<Millis>,
}

/// A machine as its set lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// What the set calls it; unique in the set and lasting.
    pub id: String,
    /// What people call it; may be empty.
    pub name: String,
    /// MAC addresses, as far as the set knows them.
    pub macs: Vec<Mac>,
    /// SMBIOS system UUID, as far as the set knows it.
    pub uuid: Option<Uuid>,
    /// The rack, as far as the set knows it.
    pub rack: Option<String>,
    /// Address of its power driver.
    pub power: String,
}

/// What a listing means for one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It becomes a node.
    Added,
    /// Its node changes.
    Changed,
    /// Its node is as the set says.
    Unchanged,
    /// The set does not list it any more, and its node is kept: it was written to, or was there before the set.
    Missing,
    /// The set does not list it any more, and its node, to which nothing was ever written, is removed.
    Retired,
    /// It cannot be taken in until somebody decides something.
    Refused,
}

impl What {
    /// All of them, in the order of summaries.
    pub const ALL: [What; 6] =
        [What::Added, What::Changed, What::Unchanged, What::Missing, What::Retired, What::Refused];

    /// The word for tables and summaries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Missing => "missing",
            Self::Retired => "retired",
            Self::Refused => "refused",
        }
    }
}

/// A line of what a listing means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Row {
    /// What the set calls the machine.
    pub id: String,
    /// Its node, where it has or gets one.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub node: Option<NodeName>,
    /// What becomes of it.
    pub what: What,
    /// What changes and why, as a sentence.
    pub text: String,
}

/// What a listing comes to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparison {
    /// A row for each machine that is listed, then one for each that no longer is.
    pub rows: Vec<Row>,
    /// What it changes.
    pub changes: Vec<Change>,
}

impl Comparison {
    /// How many rows of each kind, as a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts: Vec<String> = What::ALL
            .into_iter()
            .map(|what| (self.rows.iter().filter(|row| row.what == what).count(), what.as_str()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        if parts.is_empty() { "it lists no machines".to_owned() } else { parts.join(", ") }
    }
}

/// What it means that a set lists these machines and no others. Nothing is decided by the order of the list.
///
/// # Errors
/// When more than half of the set's nodes would be gone at once and `force` is false: a set that is asked with the wrong
/// account or in the wrong region lists little or nothing.
pub fn compare(
    snapshot: &Snapshot,
    now: Millis,
    set: &MachineSet,
    listed: &[Listed],
    force: bool,
) -> Result<Comparison, Refused> {
    let mut listed: Vec<&Listed> = listed.iter().collect();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    let mut work = Work::new(snapshot, now, set, &listed);
    for machine in &listed {
        work.take(machine);
    }
    let gone = work.gone();
    // Those that are marked already were somebody's decision.
    let (lost, had) = (work.present(gone.iter()), work.present(work.members.values()));
    if lost > 1 && lost * 2 > had && !force {
        return Err(Refused::Conflict(format!(
            "set `{}` does not list {lost} of its {had} nodes any more, which looks like a mistake of the set: is its \
             address right, may its account see all machines? Nothing was changed; --force takes it as it is",
            set.name
        )));
    }
    for name in gone {
        work.lose(&name);
    }
    let mut done = Comparison { rows: work.rows, changes: work.changes };
    let synced = Some(Synced { at: now, text: done.summary() });
    done.changes.push(Change::PutSet(MachineSet { synced, ..set.clone() }));
    Ok(done)
}

/// A comparison under way.
struct Work<'a> {
    /// The state with what was decided so far.
    ahead: Snapshot,
    now: Millis,
    set: &'a MachineSet,
    /// The set's nodes by its own ids.
    members: BTreeMap<String, NodeName>,
    /// By [`either_order`].
    by_uuid: BTreeMap<Uuid, Vec<NodeName>>,
    /// UUIDs, by [`either_order`], that several listed machines claim: boards whose maker gave all the same.
    shared_uuids: BTreeSet<Uuid>,
    /// Names that several listed machines have.
    shared_names: BTreeSet<String>,
    seen: BTreeSet<String>,
    rows: Vec<Row>,
    changes: Vec<Change>,
}

impl<'a> Work<'a> {
    fn new(snapshot: &Snapshot, now: Millis, set: &'a MachineSet, listed: &[&Listed]) -> Self {
        let of_set = |node: &&Node| node.member.as_ref().is_some_and(|member| member.set == set.name);
        let members = snapshot.nodes.values().filter(of_set);
        let mut by_uuid: BTreeMap<Uuid, Vec<NodeName>> = BTreeMap::new();
        for node in snapshot.nodes.values() {
            if let Some(uuid) = node.uuid {
                by_uuid.entry(either_order(uuid)).or_default().push(node.name.clone());
            }
        }
        Self {
            ahead: snapshot.clone(),
            now,
            set,
            members: members.filter_map(|n| Some((n.member.as_ref()?.id.clone(), n.name.clone()))).collect(),
            by_uuid,
            shared_uuids: repeated(listed.iter().filter_map(|machine| machine.uuid.map(either_order))),
            shared_names: repeated(listed.iter().map(|machine| node_name(&machine.name))),
            seen: BTreeSet::new(),
            rows: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn take(&mut self, machine: &Listed) {
        if !self.seen.insert(machine.id.clone()) {
            self.row(machine, None, What::Refused, format!("the set lists `{}` twice", machine.id));
            return;
        }
        match self.node_of(machine) {
            Err(why) => self.row(machine, None, What::Refused, why),
            Ok(Some(node)) => self.update(machine, &node),
            Ok(None) => self.add(machine),
        }
    }

    /// The node that this machine is, if it is one; otherwise why that cannot be said.
    fn node_of(&self, machine: &Listed) -> Result<Option<NodeName>, String> {
        let member = self.members.get(&machine.id);
        let owners: BTreeSet<&NodeName> = machine
            .macs
            .iter()
            .filter_map(|mac| self.ahead.node_of(*mac))
            .filter(|n| n.approved)
            .map(|n| &n.name)
            .collect();
        if let Some(other) = owners.iter().find(|owner| member.is_some_and(|name| name != **owner)) {
            return Err(format!("one of its MAC addresses belongs to node `{other}`; correct one of the two"));
        }
        if let Some(name) = member {
            return Ok(Some(name.clone()));
        }
        let mut owners = owners.into_iter();
        let found = match (owners.next(), owners.next()) {
            (Some(one), Some(other)) => {
                return Err(format!("its MAC addresses belong to the nodes `{one}` and `{other}`; remove one of them"));
            }
            (Some(one), None) => Some(one.clone()),
            _ => self.by_other_signs(machine)?,
        };
        let Some(name) = found else { return Ok(None) };
        match self.ahead.nodes.get(&name).and_then(|node| node.member.as_ref()) {
            Some(of) => Err(format!("node `{name}` is `{}` of set `{}` already", of.id, of.set)),
            None => Ok(Some(name)),
        }
    }

    /// By UUID, where exactly one node has it and the MAC addresses do not speak against it; by name, where the set tells
    /// nothing else.
    fn by_other_signs(&self, machine: &Listed) -> Result<Option<NodeName>, String> {
        if let Some(uuid) = machine.uuid.map(either_order).filter(|uuid| !self.shared_uuids.contains(uuid)) {
            match self.by_uuid.get(&uuid).map_or(&[][..], Vec::as_slice) {
                [] => {}
                [name] => {
                    let node = self.ahead.nodes.get(name);
                    if machine.macs.is_empty() || node.is_none_or(|node| node.macs.is_empty() || !node.approved) {
                        return Ok(Some(name.clone()));
                    }
                    return Err(format!(
                        "node `{name}` has its UUID and other MAC addresses; add these with `rackswarm node set {name} --mac`, \
                         or take the UUID from the wrong one"
                    ));
                }
                several => {
                    let names: Vec<&str> = several.iter().take(4).map(NodeName::as_str).collect();
                    return Err(format!("its UUID is that of several nodes: {}", names.join(", ")));
                }
            }
        }
        let silent = machine.macs.is_empty() && machine.uuid.is_none();
        let name = node_name(&machine.name).parse::<NodeName>().ok().filter(|name| self.ahead.nodes.contains_key(name));
        match name {
            Some(name) if silent => Ok(Some(name)),
            Some(name) if !self.shared_names.contains(name.as_str()) && self.is_named_by_people(machine) => {
                Err(format!(
                    "there is a node `{name}` with other MAC addresses; rename one of the two, or give that node these addresses"
                ))
            }
            _ => Ok(None),
        }
    }

    /// In a file of machines the name is the id: somebody has written it down and means that node.
    fn is_named_by_people(&self, machine: &Listed) -> bool {
        machine.name == machine.id
    }

    fn add(&mut self, machine: &Listed) {
        let name = match self.new_name(machine) {
            Ok(name) => name,
            Err(why) => return self.row(machine, None, What::Refused, why),
        };
        let mut node = Node::new(name.clone(), machine.macs.clone(), true, self.now);
        node.uuid = machine.uuid;
        node.power.clone_from(&machine.power);
        node.member =
            Some(Member { set: self.set.name.clone(), id: machine.id.clone(), made: true, missing_since: None });
        if let Err(why) = self.place(&mut node, machine) {
            return self.row(machine, None, What::Refused, why);
        }
        let mut text = format!("power {}", machine.power);
        for stranger in self.strangers(machine) {
            node.firmware = node.firmware.or(stranger.firmware);
            node.uuid = node.uuid.or(stranger.uuid);
            node.inventory = node.inventory.or(stranger.inventory);
            text = format!("it waited for approval as {}; {text}", stranger.name);
            self.apply(Change::DropNode(stranger.name));
        }
        if node.macs.is_empty() {
            text.push_str(if node.uuid.is_some() {
                "; no MAC address is known, so it is recognised by its UUID when it boots"
            } else {
                "; neither MAC address nor UUID is known: `rackswarm node set --mac` before it is deployed"
            });
        }
        let note = format!("added by set {}, which calls it `{}`", self.set.name, machine.id);
        self.put(node, "added", &note);
        self.row(machine, Some(name), What::Added, text);
    }

    fn update(&mut self, machine: &Listed, name: &NodeName) {
        let Some(before) = self.ahead.nodes.get(name).cloned() else { return };
        let mut node = before.clone();
        let mut said = Vec::new();
        match &mut node.member {
            Some(member) => {
                if member.missing_since.take().is_some() {
                    said.push("it is listed again".to_owned());
                }
            }
            None => {
                said.push(format!("it belongs to set {} now", self.set.name));
                node.member = Some(Member {
                    set: self.set.name.clone(),
                    id: machine.id.clone(),
                    made: false,
                    missing_since: None,
                });
            }
        }
        if !node.approved {
            node.approved = true;
            said.push("approved".to_owned());
        }
        if node.power != machine.power {
            said.push(format!("power {} becomes {}", node.power, machine.power));
            node.power.clone_from(&machine.power);
        }
        let new: Vec<Mac> = machine.macs.iter().filter(|mac| !node.macs.contains(mac)).copied().collect();
        if !new.is_empty() {
            let text: Vec<String> = new.iter().map(ToString::to_string).collect();
            said.push(format!("MAC address {}", text.join(" ")));
            node.macs.extend(new);
        }
        if let Some(uuid) = machine.uuid.filter(|uuid| node.uuid.map(either_order) != Some(either_order(*uuid))) {
            said.push(format!("UUID {uuid}"));
            node.uuid = Some(uuid);
        }
        if let Err(why) = self.place(&mut node, machine) {
            return self.row(machine, Some(name.clone()), What::Refused, why);
        }
        if node.rack != before.rack {
            let rack = |rack: &Option<RackName>| rack.as_ref().map_or("none".to_owned(), ToString::to_string);
            said.push(format!("rack {} becomes {}", rack(&before.rack), rack(&node.rack)));
        }
        for stranger in self.strangers(machine).into_iter().filter(|stranger| stranger.name != *name) {
            said.push(format!("it waited for approval as {}", stranger.name));
            self.apply(Change::DropNode(stranger.name));
        }
        if node == before {
            return self.row(machine, Some(name.clone()), What::Unchanged, String::new());
        }
        let text = said.join("; ");
        self.put(node, "changed", &format!("changed by set {}: {text}", self.set.name));
        self.row(machine, Some(name.clone()), What::Changed, text);
    }

    /// Nodes of this set that are not listed.
    fn gone(&self) -> Vec<NodeName> {
        self.members.iter().filter(|(id, _)| !self.seen.contains(*id)).map(|(_, name)| name.clone()).collect()
    }

    /// How many of these are not marked as missing yet.
    fn present<'b>(&self, names: impl Iterator<Item = &'b NodeName>) -> usize {
        let marked = |name: &NodeName| {
            let member = self.ahead.nodes.get(name).and_then(|node| node.member.as_ref());
            member.is_some_and(|member| member.missing_since.is_some())
        };
        names.filter(|name| !marked(name)).count()
    }

    fn lose(&mut self, name: &NodeName) {
        let Some(mut node) = self.ahead.nodes.get(name).cloned() else { return };
        let Some(member) = &mut node.member else { return };
        let row = |what, text: String| Row { id: member.id.clone(), node: Some(name.clone()), what, text };
        let untouched = !node.written_before && node.deployed.is_none();
        let waits_in = waits_in(&self.ahead, name).map(|deployment| deployment.id);
        if member.made && untouched && waits_in.is_none() && matches!(node.stage, Stage::Enrolled | Stage::Failed) {
            self.rows
                .push(row(What::Retired, "the set does not list it any more; nothing was ever written to it".into()));
            return self.apply(Change::DropNode(name.clone()));
        }
        let kept = match (&node.deployed, node.stage) {
            (_, stage) if stage.is_under_way() => format!("it is being deployed ({stage})"),
            _ if waits_in.is_some() => "it waits for its turn in a deployment".to_owned(),
            (Some(deployed), _) => format!("{} was deployed to it", deployed.image),
            _ if node.written_before => "its disk was written to".to_owned(),
            _ => "an operator had added it".to_owned(),
        };
        let text = format!(
            "the set does not list it any more; kept, because {kept}: `rackswarm node remove {name}` forgets it"
        );
        self.rows.push(row(What::Missing, text));
        if member.missing_since.is_none() {
            member.missing_since = Some(self.now);
            let note = format!("set {} does not list it any more", self.set.name);
            self.put(node, "missing", &note);
        }
    }

    /// Puts the node into the rack that the set tells, which is made where there is none; the set's own rack is only for
    /// nodes that stand in none.
    fn place(&mut self, node: &mut Node, machine: &Listed) -> Result<(), String> {
        let told = match &machine.rack {
            Some(text) => Some(text.parse::<RackName>().map_err(|bad| format!("its rack: {bad}"))?),
            None => None,
        };
        let Some(rack) = told.or_else(|| self.set.rack.clone().filter(|_| node.rack.is_none())) else { return Ok(()) };
        if !self.ahead.racks.contains_key(&rack) {
            self.apply(Change::PutRack(Rack { name: rack.clone(), post: Default::default() }));
        }
        node.rack = Some(rack);
        Ok(())
    }

    /// The machine's own name where it is one and nobody else's, else the set's name and what the set calls it.
    fn new_name(&self, machine: &Listed) -> Result<NodeName, String> {
        let own = node_name(&machine.name);
        let lone = !self.shared_names.contains(&own) && own != "localhost";
        let long = node_name(&format!("{}-{}", self.set.name, machine.id));
        let candidates = [lone.then_some(own), Some(node_name(&machine.id)).filter(|id| id.len() > 8), Some(long)];
        let mut names = candidates.into_iter().flatten().filter_map(|name| name.parse::<NodeName>().ok());
        names
            .find(|name| !self.ahead.nodes.contains_key(name))
            .ok_or_else(|| format!("no name can be made of `{}` that is not taken; rename it in the set", machine.id))
    }

    /// Machines that wait for approval and have one of its MAC addresses.
    fn strangers(&self, machine: &Listed) -> Vec<Node> {
        let mut found: Vec<Node> = machine.macs.iter().filter_map(|mac| self.ahead.node_of(*mac)).cloned().collect();
        found.retain(|node| !node.approved);
        found.dedup_by(|a, b| a.name == b.name);
        found
    }

    fn put(&mut self, node: Node, kind: &str, text: &str) {
        let note = Note {
            node: node.name.clone(),
            at: self.now,
            attempt: node.attempt,
            stage: node.stage,
            kind: kind.to_owned(),
            text: text.to_owned(),
        };
        self.apply(Change::PutNode(Box::new(node)));
        self.apply(Change::Note(note));
    }

    fn apply(&mut self, change: Change) {
        self.ahead.apply(&change);
        self.changes.push(change);
    }

    fn row(&mut self, machine: &Listed, node: Option<NodeName>, what: What, text: String) {
        self.rows.push(Row { id: machine.id.clone(), node, what, text });
    }
}

/// What occurs more than once.
fn repeated<T: Ord + Clone>(all: impl Iterator<Item = T>) -> BTreeSet<T> {
    let mut seen = BTreeSet::new();
    all.filter(|one| !seen.insert(one.clone())).collect()
}

/// A text in the alphabet of names, as far as that can be had.
fn node_name(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let short: String = plain.trim_matches(['-', '.']).chars().take(63).collect();
    short.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
#[path = "set_tests.rs"]
mod tests;
