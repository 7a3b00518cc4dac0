//! Machines that nobody has named: what they are, and which of them are taken in without asking.

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::ids::{Mac, Millis, RackName};
use crate::node::Node;

/// How often a machine is asked what it is before it is left to its disk: one whose kernel does not come up would restart
/// for ever.
pub const INVENTORY_TRIES: u32 = 3;

/// The `[discovery]` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Whether machines that nobody has named are booted into memory once to tell what they are. Nothing is written to
    /// them. Default false: they boot their own disks.
    pub inventory: bool,
    /// How long a machine that tells what it is listens for its switches, in seconds; 0 to 120. Default 32.
    pub listen_seconds: u32,
    /// Whether the hardware is checked before its first use. Default true.
    pub checks: bool,
    /// How often all sets are asked for their machines, in seconds, up to a day; 0: only when an operator says
    /// so. Default 0.
    pub sync_seconds: u32,
    /// Rules by which machines are approved without asking; the first that fits counts.
    pub approve: Vec<Rule>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self { inventory: false, listen_seconds: 32, checks: true, sync_seconds: 0, approve: Vec::new() }
    }
}

impl Discovery {
    /// The section with its defaults, commented.
    pub const DEFAULT_TOML: &str = "\
[discovery]
# Machines that nobody has named are booted into memory once, to tell what they are; nothing is written to them.
# Without it they boot their own disks, and only their MAC addresses are known.
inventory = false
# Then it listens so long for the switches that its cards are plugged into (LLDP), in seconds; they speak every 30. 0: not.
listen_seconds = 32
# Whether disks, memory and network are checked before a machine is used for the first time. A machine that fails is not
# deployed, unless `rackswarm deploy --despite-checks` says so.
checks = true
# How often all sets are asked for their machines, in seconds; 0: only by `rackswarm set sync`.
sync_seconds = 0
# Rules by which machines are approved without asking: all conditions of a rule must hold, the first rule that fits counts.
# Those on product, memory, processors, disks and switch need the inventory.
# [[discovery.approve]]
# name = \"hall1\"
# The product begins with this text, as `rackswarm node show` prints it.
# product = \"Dell Inc. PowerEdge\"
# The MAC address begins with this.
# mac = \"52:54:00\"
# min_memory_gib = 64
# min_processors = 16
# min_disks = 1
# The switch that a card is plugged into begins with this, or is named after the rack: then that is its rack.
# switch = \"leaf-{rack}-a\"
# The rack that it is put into.
# rack = \"r1\"
";
}

/// What an agent is to find out before its machine shows itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looks {
    /// For so long it listens for switches.
    pub listen_seconds: u32,
    /// Whether it checks the hardware.
    pub checks: bool,
}

impl Discovery {
    /// What the agent of this node is to find out when it boots now: everything of a machine that waits for approval;
    /// the hardware's state before the first use, and again while it is bad.
    #[must_use]
    pub fn looks_at(&self, node: &Node) -> Looks {
        let inventory = node.inventory.as_ref();
        let known = inventory.is_some_and(|inventory| !inventory.findings.checks.is_empty());
        let bad = inventory.is_some_and(|inventory| inventory.failed_checks().next().is_some());
        let captured = node.captured().is_some();
        Looks {
            listen_seconds: if node.approved { 0 } else { self.listen_seconds.min(120) },
            checks: self.checks && !captured && (!known || bad),
        }
    }
}

/// A rule by which machines are approved without asking.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What timelines call it.
    pub name: String,
    /// The product begins with this text.
    #[serde(default)]
    pub product: Option<String>,
    /// One of the MAC addresses begins with this text.
    #[serde(default)]
    pub mac: Option<String>,
    /// Memory at least, in GiB, rounded as makers do.
    #[serde(default)]
    pub min_memory_gib: Option<u64>,
    /// Logical processors at least.
    #[serde(default)]
    pub min_processors: Option<u32>,
    /// Disks at least that can be written.
    #[serde(default)]
    pub min_disks: Option<u32>,
    /// The switch that one of its cards is plugged into, by the name that it tells by LLDP: the beginning of it, or the
    /// whole name with `{rack}` where the rack's name stands, as in `leaf-{rack}-a`.
    #[serde(default)]
    pub switch: Option<SwitchName>,
    /// The rack that it is put into.
    #[serde(default)]
    pub rack: Option<RackName>,
}

impl Rule {
    /// Checks what a parser cannot.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.name.trim().is_empty() {
            return Err("a rule needs a name, for the timelines".to_owned());
        }
        if self.mac.is_none() && !self.needs_inventory() {
            return Err(format!("rule `{}` has no condition and would approve every machine", self.name));
        }
        let is_start = |text: &str| {
            !text.is_empty() && text.len() <= 17 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        };
        match &self.mac {
            Some(mac) if !is_start(mac) => {
                Err(format!("rule `{}`: `{mac}` is not how a MAC address begins, such as 52:54:00", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Whether this machine is taken in by this rule. What is not known of it does not fit.
    #[must_use]
    pub fn fits(&self, node: &Node) -> bool {
        let mac = self.mac.as_ref().is_none_or(|start| {
            let start = start.to_ascii_lowercase();
            node.macs.iter().any(|mac| mac.to_string().starts_with(&start))
        });
        mac && (!self.needs_inventory()
            || node.inventory.as_ref().is_some_and(|inventory| self.fits_inventory(inventory)))
    }

    fn needs_inventory(&self) -> bool {
        self.product.is_some()
            || self.min_memory_gib.is_some()
            || self.min_processors.is_some()
            || self.min_disks.is_some()
            || self.switch.is_some()
    }

    fn fits_inventory(&self, inventory: &Inventory) -> bool {
        let disks =
            inventory.disks.iter().filter(|disk| !disk.removable && !disk.read_only && !disk.boot_medium).count();
        // Firmware and graphics keep a part of the memory; half a GiB short of 64 is a machine of 64.
        let memory_gib = inventory.memory_bytes.div_ceil(1 << 30);
        self.product.as_ref().is_none_or(|start| inventory.product.starts_with(start.as_str()))
            && self.min_memory_gib.is_none_or(|least| memory_gib + least / 16 >= least)
            && self.min_processors.is_none_or(|least| inventory.processors >= least)
            && self.min_disks.is_none_or(|least| disks >= least as usize)
            && self.switch.as_ref().is_none_or(|name| inventory.switches().any(|switch| name.fits(switch)))
    }
}

impl Rule {
    /// The rack that a machine that fits is put into: the rule's own, or the one that its switch is named after.
    #[must_use]
    pub fn rack_for(&self, inventory: Option<&Inventory>) -> Option<RackName> {
        let by_switch = || inventory?.switches().find_map(|switch| self.switch.as_ref()?.rack(switch));
        self.rack.clone().or_else(by_switch)
    }
}

/// Where a rack's name stands in a switch's.
const RACK: &str = "{rack}";

/// How switches are named: the beginning of a name, or a name with `{rack}` in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SwitchName(String);

impl SwitchName {
    fn fits(&self, switch: &str) -> bool {
        if self.0.contains(RACK) {
            return self.rack(switch).is_some();
        }
        let start = switch.get(..self.0.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(&self.0))
    }

    /// The rack that this switch is named after, if the rest of its name fits.
    fn rack(&self, switch: &str) -> Option<RackName> {
        let (before, after) = self.0.split_once(RACK)?;
        let switch = switch.to_ascii_lowercase();
        let inner = switch.strip_prefix(&before.to_ascii_lowercase())?.strip_suffix(&after.to_ascii_lowercase())?;
        inner.parse().ok()
    }
}

impl TryFrom<String> for SwitchName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.trim().is_empty() || text.matches(RACK).count() > 1 {
            return Err(format!(
                "`{text}` is no name of switches: write how they begin, or the name with {RACK} in it once"
            ));
        }
        Ok(Self(text))
    }
}

impl From<SwitchName> for String {
    fn from(name: SwitchName) -> Self {
        name.0
    }
}

/// What a machine told of itself when its agent last registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Inventory {
    /// When, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub at: Millis,
    /// Vendor and product from SMBIOS.
    pub product: String,
    /// Logical processors.
    pub processors: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// MAC addresses of all its interfaces.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub macs: Vec<Mac>,
    /// Its disks, with what they held then.
    pub disks: Vec<Disk>,
    /// What it found out beyond that.
    #[serde(default)]
    pub findings: Findings,
}

/// What an agent finds out of its machine with some effort.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Findings {
    /// Vendor, version and date of its firmware.
    pub firmware: String,
    /// Its network cards, with what they are plugged into.
    pub cards: Vec<Card>,
    /// What was tried before its first use, and how it went.
    pub checks: Vec<Check>,
}

impl Inventory {
    /// Names of the switches that it is plugged into.
    pub fn switches(&self) -> impl Iterator<Item = &str> {
        self.findings.cards.iter().filter_map(|card| Some(card.switch.as_ref()?.name.as_str()))
    }

    /// Checks that failed.
    pub fn failed_checks(&self) -> impl Iterator<Item = &Check> {
        self.findings.checks.iter().filter(|check| check.outcome == CheckOutcome::Failed)
    }
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Card {
    /// Its address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub mac: Mac,
    /// What the boot environment calls it.
    pub name: String,
    /// Whether it has a link.
    pub link: bool,
    /// The link's rate in Mbit/s, where the driver tells.
    pub rate_mbit: Option<u32>,
    /// What it is plugged into, where that tells by LLDP.
    pub switch: Option<SwitchPort>,
}

/// What a network card is plugged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SwitchPort {
    /// The switch.
    pub name: String,
    /// Its port.
    pub port: String,
    /// What is written at the port.
    pub description: Option<String>,
}

/// How a check of the hardware went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// As it should be.
    Passed,
    /// Not fit for use.
    Failed,
    /// It could not be tried, which says nothing.
    NotMade,
}

/// A check of the hardware before its first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Check {
    /// What was checked, in a word or two; stable.
    pub name: String,
    /// How it went.
    pub outcome: CheckOutcome,
    /// On what, and what was found.
    pub text: String,
}

/// The check of the memory's size against what the operator expects. Firmware and graphics keep a part of it, a sixteenth
/// at most.
#[must_use]
pub fn memory_check(memory_bytes: u64, expected_gib: u64) -> Check {
    let found_gib = memory_bytes.div_ceil(1 << 30);
    let enough = found_gib + expected_gib / 16 >= expected_gib;
    Check {
        name: "memory".to_owned(),
        outcome: if enough { CheckOutcome::Passed } else { CheckOutcome::Failed },
        text: format!("{found_gib} GiB found, {expected_gib} GiB expected"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(memory_bytes: u64) -> Node {
        let mut node = Node::new("n1".parse().unwrap(), vec!["52:54:00:aa:00:01".parse().unwrap()], false, Millis(0));
        let disk = |removable| Disk { size_bytes: 1 << 40, removable, ..Disk::default() };
        node.inventory = Some(Inventory {
            at: Millis(0),
            product: "Dell Inc. PowerEdge R650".into(),
            processors: 32,
            memory_bytes,
            macs: Vec::new(),
            disks: vec![disk(false), disk(true)],
            ..Inventory::default()
        });
        node
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold_and_the_unknown_does_not() {
        let rule = Rule { name: "r".into(), ..Rule::default() };
        let known = node(63 << 30);
        for (rule, fits) in [
            (Rule { product: Some("Dell".into()), ..rule.clone() }, true),
            (Rule { product: Some("PowerEdge".into()), ..rule.clone() }, false),
            (Rule { mac: Some("52:54:00:AA".into()), ..rule.clone() }, true),
            (Rule { mac: Some("52:54:01".into()), product: Some("Dell".into()), ..rule.clone() }, false),
            (Rule { min_memory_gib: Some(64), min_processors: Some(32), ..rule.clone() }, true),
            (Rule { min_memory_gib: Some(128), ..rule.clone() }, false),
            (Rule { min_processors: Some(33), ..rule.clone() }, false),
            (Rule { min_disks: Some(1), ..rule.clone() }, true),
            (Rule { min_disks: Some(2), ..rule.clone() }, false),
        ] {
            assert_eq!(rule.fits(&known), fits, "{rule:?}");
            let unknown = Node { inventory: None, ..known.clone() };
            assert_eq!(rule.fits(&unknown), fits && !rule.needs_inventory(), "{rule:?}");
        }
    }

    #[test]
    fn the_rack_is_read_from_the_switchs_name() {
        let mut machine = node(64 << 30);
        let inventory = machine.inventory.as_mut().unwrap();
        let switch = Some(SwitchPort { name: "Leaf-R7-a".into(), port: "e1".into(), description: None });
        let mac = machine.macs[0];
        inventory.findings.cards = vec![
            Card { mac, name: "eth0".into(), link: false, rate_mbit: None, switch: None },
            Card { mac, name: "eth1".into(), link: true, rate_mbit: Some(25_000), switch },
        ];
        let rule = |switch: &str| Rule {
            name: "r".into(),
            switch: Some(switch.to_owned().try_into().unwrap()),
            ..Rule::default()
        };
        for (pattern, fits, rack) in [
            ("leaf-{rack}-a", true, Some("r7")),
            ("leaf-{rack}", true, Some("r7-a")),
            ("leaf-{rack}-b", false, None),
            ("leaf-r7", true, None),
            ("spine", false, None),
        ] {
            assert_eq!(rule(pattern).fits(&machine), fits, "{pattern}");
            let found = rule(pattern).rack_for(machine.inventory.as_ref());
            assert_eq!(found.as_ref().map(RackName::as_str), rack, "{pattern}");
        }
        let named = Rule { rack: Some("hall".parse().unwrap()), ..rule("leaf-{rack}-a") };
        assert_eq!(named.rack_for(machine.inventory.as_ref()).unwrap().as_str(), "hall");
        for wrong in ["", " ", "{rack}-{rack}"] {
            assert!(SwitchName::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_that_firmware_keeps_is_not_missing() {
        let outcome = |found: u64, expected| memory_check(found << 20, expected).outcome;
        assert_eq!(outcome(63 << 10, 64), CheckOutcome::Passed);
        assert_eq!(outcome(480, 1), CheckOutcome::Passed);
        assert_eq!(outcome(48 << 10, 64), CheckOutcome::Failed);
        assert_eq!(outcome(1 << 10, 2), CheckOutcome::Failed);
    }

    #[test]
    fn a_rule_that_would_approve_everything_is_refused() {
        let rule = Rule { name: "all".into(), rack: Some("r1".parse().unwrap()), ..Rule::default() };
        assert!(rule.check().unwrap_err().contains("every machine"));
        assert!(Rule { mac: Some("dell".into()), ..rule.clone() }.check().unwrap_err().contains("52:54:00"));
        assert!(Rule { name: " ".into(), ..rule.clone() }.check().is_err());
        assert!(Rule { min_disks: Some(1), ..rule }.check().is_ok());
    }
}
