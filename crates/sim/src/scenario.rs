//! A scenario: who takes part, over which links, and what goes wrong, as
//! data. `bench/scenarios/` has examples.

mod fault;

use std::path::Path;

use serde::Deserialize;
use swarm::policy::ChokerKind;
use swarm::{Policy, Shape};

pub use fault::Fault;

use crate::units::{Rate, SECOND, Size, Span, When};

/// Most nodes of a simulation.
pub const MAX_NODES: u32 = 1_000_000;

/// Why a scenario is refused.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file is not there or not readable.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The text is no scenario.
    #[error("{path} is no scenario: {reason}")]
    Malformed {
        /// Which file.
        path: String,
        /// Where and why.
        reason: String,
    },
    /// Its values do not go together.
    #[error("{0}")]
    Impossible(String),
}

/// One run, but for its seed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows; printed above the table.
    #[serde(default)]
    pub title: String,
    /// What is distributed.
    pub image: Image,
    /// Who takes part, and the links between them.
    pub fabric: Fabric,
    /// How ports are modelled.
    #[serde(default)]
    pub network: NetworkModel,
    /// Changes to the engine's policy.
    #[serde(default)]
    pub policy: PolicyChanges,
    /// What the tracker does.
    #[serde(default)]
    pub tracker: TrackerChanges,
    /// When nodes start.
    #[serde(default)]
    pub arrival: Arrival,
    /// Nodes that are slower than the others.
    #[serde(default, rename = "slow")]
    pub slow: Vec<Slow>,
    /// Peers that are not ours, or not honest.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Odd>,
    /// What goes wrong, and when.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// What must hold.
    #[serde(default)]
    pub limits: Limits,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its bytes.
    pub size: Size,
    /// Bytes of a piece.
    pub piece: Size,
    /// Hashes of its blocks are known, so a corrupt block names its sender.
    #[serde(default = "yes")]
    pub leaves: bool,
    /// Part of the pieces that are zero, and known to be.
    #[serde(default)]
    pub zero: f64,
    /// Part of the pieces that equal an earlier one.
    #[serde(default)]
    pub repeated: f64,
    /// Part of the pieces that every node has from before.
    #[serde(default)]
    pub kept: f64,
}

/// Nodes and links. Rates are bits per second on the wire; what is left for
/// payload is 1448 of 1514 bytes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// Nodes that want the image.
    pub nodes: u32,
    /// Racks that they stand in, evenly; 0 or 1 for one switch.
    #[serde(default)]
    pub racks: u32,
    /// Complete seeds at the start. They are nodes 0 and on.
    #[serde(default = "one")]
    pub seeds: u32,
    /// The rack in which the seeds stand; without it they stand at the core.
    #[serde(default)]
    pub seed_rack: Option<u32>,
    /// Rate of every node, each way.
    pub rate: Rate,
    /// Rate of a node inwards, where it differs.
    #[serde(default)]
    pub rate_down: Option<Rate>,
    /// Rate of a seed, where it differs.
    #[serde(default)]
    pub seed_rate: Option<Rate>,
    /// Rate of a rack's uplink, each way.
    #[serde(default)]
    pub uplink: Option<Rate>,
    /// Or: node rates of a rack over its uplink.
    #[serde(default)]
    pub oversubscription: Option<f64>,
    /// One-way delay of a message between nodes of one rack, without queues.
    #[serde(default = "hundred_microseconds")]
    pub delay: Span,
    /// What is added between racks.
    #[serde(default = "hundred_microseconds")]
    pub delay_between_racks: Span,
    /// What a node's disk writes.
    #[serde(default = "fast_disk")]
    pub disk: Rate,
    /// What a node hashes.
    #[serde(default = "fast_hash")]
    pub hashing: Rate,
    /// Whether nodes tell the engine and the tracker their rack.
    #[serde(default = "yes")]
    pub racks_are_known: bool,
}

/// Which model of ports, and its constants.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkModel {
    /// Which one.
    pub model: Model,
    /// Longest queue of a port (`blocks`).
    pub queue: Span,
    /// Bytes that an idle port lets pass at once (`blocks`).
    pub burst: Size,
    /// Most bytes of one connection under way (`blocks`).
    pub window: Size,
    /// Parts in which the transfer of a piece is reported to both engines
    /// (`transfers`).
    pub parts: u32,
    /// Acknowledgements of 66 bytes are sent for every so many packets; 0
    /// for none.
    pub packets_per_acknowledgement: u32,
}

impl Default for NetworkModel {
    fn default() -> NetworkModel {
        NetworkModel {
            model: Model::Transfers,
            queue: Span(50_000_000),
            burst: Size(70_000),
            window: Size(4 << 20),
            parts: 4,
            packets_per_acknowledgement: 0,
        }
    }
}

/// How coarse the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// Blocks of 16 KiB in queues, with windows: up to about 1000 nodes.
    Blocks,
    /// Whole transfers: up to 100,000 nodes and more.
    Transfers,
}

/// What is changed of [`Policy`]; see there for the meaning.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyChanges {
    /// How uploads are given.
    pub choker: Option<Choker>,
    /// Connections at once.
    pub max_peers: Option<usize>,
    /// Connections that a node opens by itself.
    pub dial_peers: Option<usize>,
    /// Memory for pieces not yet verified.
    pub active: Option<Size>,
    /// A peer that owes a block this long loses its requests.
    pub request_timeout: Option<Span>,
    /// A peer silent for this long is dropped.
    pub silence: Option<Span>,
    /// Pieces asked of rack mates at once.
    pub pull_pieces: Option<usize>,
    /// Pieces asked across racks at once.
    pub far_pieces: Option<usize>,
    /// Transfers of a node side by side.
    pub uploads: Option<usize>,
    /// Transfers of a seed side by side.
    pub seed_uploads: Option<usize>,
    /// A node that receives nothing for this long asks whoever it can.
    pub starving: Option<Span>,
    /// One of our own kind that owes a piece this long loses the request.
    pub kin_timeout: Option<Span>,
}

/// A choker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choker {
    /// As the engine does by itself.
    Auto,
    /// Everybody is served, senders schedule.
    Cooperative,
    /// BEP 3.
    TitForTat,
}

/// What is changed of the tracker's policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackerChanges {
    /// How often peers announce.
    pub interval: Option<Span>,
    /// Peers in an answer when none are asked for.
    pub peers: Option<u32>,
}

/// When nodes start, after their seeds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arrival {
    /// Each at a moment by chance within this time.
    pub over: Option<Span>,
    /// This part of the nodes starts later.
    pub late: f64,
    /// So much later.
    pub late_after: Option<When>,
}

/// Some of the nodes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// All that want the image.
    All,
    /// The seeds.
    Seeds,
    /// These: the seeds are the first numbers.
    Nodes(Vec<u32>),
    /// So many by chance, not seeds.
    Count(u32),
    /// This part by chance, not seeds.
    Share(f64),
    /// Everybody in this rack.
    Rack(u32),
}

/// Slow nodes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slow {
    /// Which.
    pub who: Who,
    /// Rate each way.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// What the disk writes.
    #[serde(default)]
    pub disk: Option<Rate>,
}

/// Peers that are not our honest nodes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Odd {
    /// Which.
    pub who: Who,
    /// What they are.
    #[serde(rename = "is")]
    pub nature: Nature,
}

/// What a peer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Nature {
    /// Our agent.
    #[default]
    Honest,
    /// An ordinary client: BEP 3, four slots, no extension, pulls only.
    Foreign,
    /// Sends corrupt bytes for one block in `one_in`.
    Corrupt {
        /// See above.
        one_in: u32,
    },
    /// Says that it has everything, and sends rubbish for what it has not.
    FalseHaves,
    /// Takes requests and never answers.
    Mute,
    /// Sends what no client may send.
    Garbage,
    /// Bears the peer id of another node.
    Twin {
        /// Whose id it bears.
        of: u32,
    },
}

/// What must hold, beside what always must.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Everybody alive has finished by then.
    pub deadline: Option<When>,
    /// Payload sent by all seeds over the image, if nobody dies.
    pub seed_copies: Option<f64>,
    /// Makespan over the bound.
    pub ratio: Option<f64>,
    /// Bytes into any rack over the image.
    pub rack_copies: Option<f64>,
    /// Payload received for nothing over all received.
    pub wasted: Option<f64>,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is not readable, no scenario, or impossible.
    pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| ScenarioError::Unreadable { path: name.clone(), source })?;
        Scenario::parse(&text, &name)
    }

    /// Takes a text; `name` is for the error.
    ///
    /// # Errors
    /// When it is no scenario, or impossible.
    pub fn parse(text: &str, name: &str) -> Result<Scenario, ScenarioError> {
        let scenario: Scenario = toml::from_str(text)
            .map_err(|error| ScenarioError::Malformed { path: name.to_owned(), reason: error.to_string() })?;
        scenario.check()?;
        Ok(scenario)
    }

    /// The cut of the image.
    ///
    /// # Errors
    /// When there are no pieces or too many.
    pub fn shape(&self) -> Result<Shape, ScenarioError> {
        let piece = u32::try_from(self.image.piece.0).unwrap_or(u32::MAX);
        Shape::new(self.image.size.0, piece).map_err(|error| ScenarioError::Impossible(error.to_string()))
    }

    /// Seeds and nodes.
    pub fn everybody(&self) -> u32 {
        self.fabric.nodes + self.fabric.seeds
    }

    /// Nodes of a full rack; 0 where there are no racks.
    pub fn per_rack(&self) -> u32 {
        if self.fabric.racks > 1 { self.fabric.nodes.div_ceil(self.fabric.racks) } else { 0 }
    }

    /// Where a node stands.
    pub fn rack_of(&self, node: u32) -> Option<u32> {
        if self.fabric.racks <= 1 {
            return None;
        }
        match node.checked_sub(self.fabric.seeds) {
            None => self.fabric.seed_rack,
            Some(index) => Some(index / self.per_rack()),
        }
    }

    /// Rate of a rack's uplink; `None` where it does not limit.
    pub fn uplink(&self) -> Option<Rate> {
        let of_nodes = self.fabric.rate.0.saturating_mul(u64::from(self.per_rack())) as f64;
        let share = |o: f64| Rate((of_nodes / o).round() as u64);
        self.fabric.uplink.or(self.fabric.oversubscription.map(share)).filter(|_| self.fabric.racks > 1)
    }

    /// The engine's policy with this scenario's changes.
    pub fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        let changes = &self.policy;
        match changes.choker {
            Some(Choker::Cooperative) => policy.choker = ChokerKind::Cooperative,
            Some(Choker::TitForTat) => policy.choker = ChokerKind::TitForTat,
            Some(Choker::Auto) | None => {}
        }
        set(&mut policy.max_peers, changes.max_peers);
        set(&mut policy.dial_peers, changes.dial_peers);
        set(&mut policy.active_bytes, changes.active.map(|size| size.0));
        set(&mut policy.request_timeout, changes.request_timeout.map(duration));
        set(&mut policy.silence, changes.silence.map(duration));
        set(&mut policy.pull_pieces, changes.pull_pieces);
        set(&mut policy.far_pieces, changes.far_pieces);
        set(&mut policy.uploads, changes.uploads);
        set(&mut policy.seed_uploads, changes.seed_uploads);
        set(&mut policy.starving, changes.starving.map(duration));
        set(&mut policy.kin_timeout, changes.kin_timeout.map(duration));
        policy
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let impossible = |text: String| Err(ScenarioError::Impossible(text));
        let fabric = &self.fabric;
        self.shape()?;
        if self.image.piece.0 < 16 << 10 || self.image.piece.0 > u64::from(u32::MAX) {
            return impossible("image.piece must be between 16KiB and 4GiB".to_owned());
        }
        if fabric.nodes == 0 || self.everybody() > MAX_NODES {
            return impossible(format!("fabric.nodes must be between 1 and {MAX_NODES}"));
        }
        if fabric.seeds == 0 {
            return impossible("fabric.seeds must be at least 1: somebody must have the image".to_owned());
        }
        if fabric.racks > fabric.nodes {
            return impossible(format!("{} racks are more than {} nodes", fabric.racks, fabric.nodes));
        }
        let rates = [Some(fabric.rate), fabric.rate_down, fabric.seed_rate, self.uplink(), Some(fabric.disk)];
        if rates.into_iter().flatten().chain([fabric.hashing]).any(|rate| rate.0 < 1000) {
            return impossible("every rate must be at least 1kbit".to_owned());
        }
        if fabric.uplink.is_some() && fabric.oversubscription.is_some() {
            return impossible("give fabric.uplink or fabric.oversubscription, not both".to_owned());
        }
        if fabric.racks <= 1 && (fabric.uplink.is_some() || fabric.oversubscription.is_some()) {
            return impossible("an uplink needs racks: set fabric.racks to 2 or more".to_owned());
        }
        let parts = [self.image.zero, self.image.repeated, self.image.kept, self.arrival.late];
        if parts.iter().any(|part| !(0.0..=1.0).contains(part)) {
            return impossible("zero, repeated, kept and late are parts between 0 and 1".to_owned());
        }
        self.check_names()
    }

    /// Nodes and racks that are named must be there.
    fn check_names(&self) -> Result<(), ScenarioError> {
        let whos = self.faults.iter().flat_map(Fault::whos);
        let whos = whos.chain(self.slow.iter().map(|slow| &slow.who)).chain(self.peers.iter().map(|odd| &odd.who));
        for who in whos {
            match who {
                Who::Nodes(nodes) => nodes.iter().try_for_each(|node| self.check_node(*node))?,
                Who::Rack(rack) => self.check_rack(*rack)?,
                Who::Share(share) if !(0.0..=1.0).contains(share) => {
                    return Err(ScenarioError::Impossible(format!("a share of {share} is not between 0 and 1")));
                }
                Who::All | Who::Seeds | Who::Count(_) | Who::Share(_) => {}
            }
        }
        for odd in &self.peers {
            if let Nature::Twin { of } = odd.nature {
                self.check_node(of)?;
            }
        }
        let racks = self.faults.iter().filter_map(Fault::rack).chain(self.fabric.seed_rack);
        racks.into_iter().try_for_each(|rack| self.check_rack(rack))
    }

    fn check_node(&self, node: u32) -> Result<(), ScenarioError> {
        if node < self.everybody() {
            return Ok(());
        }
        Err(ScenarioError::Impossible(format!("there is no node {node}: the last is {}", self.everybody() - 1)))
    }

    fn check_rack(&self, rack: u32) -> Result<(), ScenarioError> {
        if self.fabric.racks > 1 && rack < self.fabric.racks {
            return Ok(());
        }
        let sentence =
            format!("there is no rack {rack}: racks are numbered from 0, and there are {}", self.fabric.racks);
        Err(ScenarioError::Impossible(sentence))
    }
}

fn set<T>(place: &mut T, change: Option<T>) {
    if let Some(value) = change {
        *place = value;
    }
}

fn duration(span: Span) -> std::time::Duration {
    std::time::Duration::from_nanos(span.0)
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn hundred_microseconds() -> Span {
    Span(SECOND / 10_000)
}

fn fast_disk() -> Rate {
    Rate(8_000_000_000_000)
}

fn fast_hash() -> Rate {
    Rate(16_000_000_000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const SMALL: &str = "
[image]
size = '1MiB'
piece = '64KiB'
[fabric]
nodes = 8
racks = 2
rate = '100Mbit'
";

    #[test]
    fn the_smallest_scenario_has_defaults() {
        let scenario = Scenario::parse(SMALL, "small").unwrap();
        assert_eq!((scenario.everybody(), scenario.per_rack(), scenario.fabric.seeds), (9, 4, 1));
        assert_eq!(scenario.network.model, Model::Transfers);
        let racks: Vec<_> = (0..9).map(|node| scenario.rack_of(node)).collect();
        assert_eq!(racks[0], None);
        assert_eq!(racks[1..5], [Some(0); 4]);
        assert_eq!(racks[5..9], [Some(1); 4]);
    }

    #[test]
    fn oversubscription_becomes_a_rate() {
        let text = SMALL.replace("rate =", "oversubscription = 4\nrate =");
        assert_eq!(Scenario::parse(&text, "small").unwrap().uplink(), Some(Rate(100_000_000)));
    }

    #[test]
    fn faults_and_peers_are_data() {
        let text = format!(
            "{SMALL}
[[fault]]
kind = 'crash'
who = {{ share = 0.1 }}
at = '50%'
back_after = '3s'
[[fault]]
kind = 'rack-uplink'
rack = 1
at = '2s'
lasts = '5s'
left = 0.1
[[peer]]
who = {{ nodes = [3] }}
is = {{ corrupt = {{ one_in = 4 }} }}
[[slow]]
who = 'all'
rate = '50Mbit'
"
        );
        let scenario = Scenario::parse(&text, "faults").unwrap();
        assert_eq!(scenario.faults.len(), 2);
        assert_eq!(scenario.peers[0].nature, Nature::Corrupt { one_in: 4 });
        assert_eq!(scenario.faults[0].at(), Some(When::Share(500_000)));
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |from: &str, to: &str| Scenario::parse(&SMALL.replace(from, to), "x").unwrap_err().to_string();
        assert!(refused("nodes", "noodles").contains("unknown field `noodles`"));
        assert!(refused("'100Mbit'", "'fast'").contains("`fast` is no rate"));
        assert!(refused("nodes = 8", "nodes = 0").contains("fabric.nodes must be between"));
        assert!(refused("racks = 2", "racks = 9").contains("9 racks are more than 8 nodes"));
        assert!(refused("64KiB", "1KiB").contains("image.piece must be"));
        assert!(refused("racks = 2", "uplink = '1Gbit'").contains("an uplink needs racks"));
        let fault = format!("{SMALL}\n[[fault]]\nkind = 'lane-member'\nrack = 2\nat = 1\n");
        assert!(Scenario::parse(&fault, "x").unwrap_err().to_string().contains("there is no rack 2"));
        let fault = format!("{SMALL}\n[[fault]]\nkind = 'crash'\nwho = {{ nodes = [9] }}\nat = 1\n");
        assert!(Scenario::parse(&fault, "x").unwrap_err().to_string().contains("there is no node 9"));
    }
}
