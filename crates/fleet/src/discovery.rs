//! Machines that nobody has named: what they are, and which of them are taken in without asking.

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::ids::{Mac, Millis, RackName};
use crate::node::Node;

/// How often a machine is asked what it is before it is left to its disk: one whose kernel does not come up would restart
/// for ever.
pub const INVENTORY_TRIES: u32 = 3;

/// The `[discovery]` section of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Whether machines that nobody has named are booted into memory once to tell what they are. Nothing is written to
    /// them. Default false: they boot their own disks.
    pub inventory: bool,
    /// Rules by which machines are approved without asking; the first that fits counts.
    pub approve: Vec<Rule>,
}

impl Discovery {
    /// The section with its defaults, commented.
    pub const DEFAULT_TOML: &str = "\
[discovery]
# Machines that nobody has named are booted into memory once, to tell what they are; nothing is written to them.
# Without it they boot their own disks, and only their MAC addresses are known.
inventory = false
# Rules by which machines are approved without asking: all conditions of a rule must hold, the first rule that fits counts.
# Those on product, memory, processors and disks need the inventory.
# [[discovery.approve]]
# name = \"hall1\"
# The product begins with this text, as `rackswarm node show` prints it.
# product = \"Dell Inc. PowerEdge\"
# The MAC address begins with this.
# mac = \"52:54:00\"
# min_memory_gib = 64
# min_processors = 16
# min_disks = 1
# The rack that it is put into.
# rack = \"r1\"
";
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
    }
}

/// What a machine told of itself when its agent last registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    fn a_rule_that_would_approve_everything_is_refused() {
        let rule = Rule { name: "all".into(), rack: Some("r1".parse().unwrap()), ..Rule::default() };
        assert!(rule.check().unwrap_err().contains("every machine"));
        assert!(Rule { mac: Some("dell".into()), ..rule.clone() }.check().unwrap_err().contains("52:54:00"));
        assert!(Rule { name: " ".into(), ..rule.clone() }.check().is_err());
        assert!(Rule { min_disks: Some(1), ..rule }.check().is_ok());
    }
}
