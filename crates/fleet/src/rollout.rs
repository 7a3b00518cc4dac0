//! A rollout: in which order the nodes of a deployment start, how many at once, after how many failures no more, and when.
//!
//! What is decided once stands in the [`crate::deployment::Deployment`]: its [`Wave`]s and its settings. Which nodes start
//! now is derived from the snapshot again and again ([`admit`]), so a restart at any moment changes nothing.

mod admit;
mod settings;
mod standing;
mod starts;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use admit::{Admission, admit, book, fitness, spread, waits_in};
pub(crate) use settings::check_windows;
pub use settings::{Budget, Canary, Order, Rollout};
pub use standing::{Outlook, Place, Queue, Standing, Tally};
pub use starts::{Second, Starts};
pub use window::{Opening, Window, opening};

use crate::ids::{Millis, NodeName, RackName};

/// Leaders of one rack that may fail in a row before the rack is paused: the next in turn would fail alike.
pub const FAILED_LEADERS: usize = 3;

/// What the nodes of a wave are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum WaveKind {
    /// Those that all others wait for.
    Canary,
    /// One of each rack, that the rest of its rack waits for (Figure 3 of the paper).
    Leaders,
    /// All others.
    Racks,
}

impl WaveKind {
    /// The word for commands and timelines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Leaders => "leaders",
            Self::Racks => "racks",
        }
    }
}

/// Nodes that stand in one rack, in the order in which they start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Group {
    /// The rack; nothing for nodes that stand in none.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// The nodes.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub nodes: Vec<NodeName>,
}

/// Nodes of a deployment that have their turn together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Wave {
    /// What they are.
    pub kind: WaveKind,
    /// The nodes, rack by rack.
    pub groups: Vec<Group>,
}

impl Wave {
    /// All nodes of the wave with their racks.
    pub fn nodes(&self) -> impl Iterator<Item = (Option<&RackName>, &NodeName)> {
        self.groups.iter().flat_map(|group| group.nodes.iter().map(|node| (group.rack.as_ref(), node)))
    }

    /// As [`Wave::nodes`], but the first of each rack first, then the second of each.
    pub fn nodes_by_turns(&self) -> impl Iterator<Item = (Option<&RackName>, &NodeName)> {
        let longest = self.groups.iter().map(|group| group.nodes.len()).max().unwrap_or(0);
        (0..longest).flat_map(move |turn| {
            self.groups.iter().filter_map(move |group| group.nodes.get(turn).map(|node| (group.rack.as_ref(), node)))
        })
    }
}

/// Who paused a deployment or one of its racks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PausedBy {
    /// An operator.
    Operator,
    /// A failure budget that is used up, a canary or leaders that failed.
    Failures,
    /// The end of its last maintenance window.
    Windows,
}

/// Why nothing new starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pause {
    /// Since when, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub at: Millis,
    /// Who paused it.
    pub by: PausedBy,
    /// Why, as a sentence.
    pub reason: String,
}

/// The waves of a deployment to these nodes, by their racks.
///
/// # Errors
/// A sentence where a canary is none of the nodes.
pub fn waves(rollout: &Rollout, nodes: &BTreeMap<NodeName, Option<RackName>>) -> Result<Vec<Wave>, String> {
    let mut left = nodes.clone();
    let mut waves = Vec::new();
    let canaries = canaries(rollout, nodes)?;
    let mut led: BTreeSet<Option<RackName>> = BTreeSet::new();
    if !canaries.is_empty() {
        led.extend(canaries.iter().filter_map(|name| nodes.get(name).cloned()));
        waves.push(wave(WaveKind::Canary, &mut left, &canaries));
    }
    if rollout.order == Order::Leaders {
        // The canary of a rack has proved itself before anybody else starts; it is the rack's leader.
        let mut leaders = Vec::new();
        for (name, rack) in &left {
            if led.insert(rack.clone()) {
                leaders.push(name.clone());
            }
        }
        if !leaders.is_empty() {
            waves.push(wave(WaveKind::Leaders, &mut left, &leaders));
        }
    }
    if !left.is_empty() {
        let rest: Vec<NodeName> = left.keys().cloned().collect();
        waves.push(wave(WaveKind::Racks, &mut left, &rest));
    }
    Ok(waves)
}

fn canaries(rollout: &Rollout, nodes: &BTreeMap<NodeName, Option<RackName>>) -> Result<Vec<NodeName>, String> {
    match &rollout.canary {
        None => Ok(Vec::new()),
        Some(Canary::Nodes(names)) => match names.iter().find(|name| !nodes.contains_key(*name)) {
            Some(other) => Err(format!("canary `{other}` is none of the nodes of this deployment")),
            None => Ok(names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()),
        },
        Some(Canary::Count(count)) => {
            // Spread over the racks: what differs from rack to rack is to be found out.
            let mut all = nodes.clone();
            let names: Vec<NodeName> = all.keys().cloned().collect();
            let spread = wave(WaveKind::Canary, &mut all, &names);
            Ok(spread.nodes_by_turns().map(|(_, name)| name.clone()).take(*count as usize).collect())
        }
    }
}

/// Takes these nodes out of `left`.
fn wave(kind: WaveKind, left: &mut BTreeMap<NodeName, Option<RackName>>, names: &[NodeName]) -> Wave {
    let mut racks: BTreeMap<Option<RackName>, Vec<NodeName>> = BTreeMap::new();
    for name in names {
        if let Some(rack) = left.remove(name) {
            racks.entry(rack).or_default().push(name.clone());
        }
    }
    Wave { kind, groups: racks.into_iter().map(|(rack, nodes)| Group { rack, nodes }).collect() }
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
