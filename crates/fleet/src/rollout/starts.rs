//! How many machines are switched on in each second. The snapshot keeps it, so that nobody has to ask all nodes.

use std::collections::BTreeMap;

use crate::ids::{Millis, RackName};
use crate::node::Node;

/// Machines that are switched on in one second.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Second {
    all: u32,
    racks: BTreeMap<RackName, u32>,
}

impl Second {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> u32 {
        self.all
    }

    /// Those of a rack.
    #[must_use]
    pub fn of(&self, rack: Option<&RackName>) -> u32 {
        rack.and_then(|rack| self.racks.get(rack)).copied().unwrap_or(0)
    }
}

/// When the machines that are under way were or will be switched on, by seconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Starts(BTreeMap<u64, Second>);

impl Starts {
    /// Counts a node.
    pub fn add(&mut self, node: &Node) {
        let Some(at) = switched_at(node) else { return };
        let second = self.0.entry(second(at)).or_default();
        second.all += 1;
        if let Some(rack) = &node.rack {
            *second.racks.entry(rack.clone()).or_default() += 1;
        }
    }

    /// Counts a node no more.
    pub fn remove(&mut self, node: &Node) {
        let Some(at) = switched_at(node).map(second) else { return };
        let Some(second) = self.0.get_mut(&at) else { return };
        second.all -= 1;
        if let Some(rack) = &node.rack
            && let Some(count) = second.racks.get_mut(rack)
        {
            *count -= 1;
            if *count == 0 {
                second.racks.remove(rack);
            }
        }
        if second.all == 0 {
            self.0.remove(&at);
        }
    }

    /// Those of one second.
    #[must_use]
    pub fn at(&self, second: u64) -> Option<&Second> {
        self.0.get(&second)
    }

    /// How many seconds from this one on have any.
    #[must_use]
    pub fn seconds_from(&self, second: u64) -> usize {
        self.0.range(second..).count()
    }
}

/// When the power of the present attempt was or is to be switched.
pub(super) fn switched_at(node: &Node) -> Option<Millis> {
    node.not_before.filter(|_| node.stage.is_under_way())
}

/// The second that a moment belongs to.
pub(super) fn second(at: Millis) -> u64 {
    at.0 / 1000
}
