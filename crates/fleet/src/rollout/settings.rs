//! What an operator says of a rollout.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::window::Window;
use crate::ids::{Millis, NodeName};

/// In which order the nodes of a deployment start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// All nodes of all racks at once, as far as the limits let them: the swarm gives each rack its lane.
    #[default]
    Lanes,
    /// One node of each rack first; the rest of a rack when that one is proved (Figure 3 of the paper).
    Leaders,
}

/// Which nodes come first, while all others wait until they are proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Canary {
    /// So many, spread over the racks; at least 1.
    Count(u32),
    /// These.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    Nodes(Vec<NodeName>),
}

/// After how many failed nodes nothing new starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// So many nodes, at least 1.
    Nodes(u32),
    /// So many per cent of the nodes, 1 to 100, rounded up.
    Percent(u32),
}

impl Budget {
    /// The number of failed nodes, of so many in all, that uses it up; at least 1.
    #[must_use]
    pub fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(nodes) => nodes.max(1) as usize,
            Self::Percent(percent) => (nodes * percent as usize).div_ceil(100).max(1),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(nodes) => write!(f, "{nodes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no failure budget: write a number of nodes from 1, or per cent as in 10%");
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim().parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
            None => match text.parse() {
                Ok(nodes @ 1..) => Ok(Self::Nodes(nodes)),
                _ => Err(wrong()),
            },
        }
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a deployment goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// In which order nodes start.
    pub order: Order,
    /// Which come before all others.
    pub canary: Option<Canary>,
    /// Nodes under way at the same time; by default all.
    pub at_once: Option<u32>,
    /// Nodes of one rack under way at the same time; by default all.
    pub at_once_per_rack: Option<u32>,
    /// Failed nodes after which nothing new starts: a number as in `3`, or per cent as in `10%`.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub failure_budget: Option<Budget>,
    /// Failed nodes of a rack after which nothing new starts in that rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub failure_budget_per_rack: Option<Budget>,
    /// When nodes may start; always where there is none. What has started goes on to its end.
    pub windows: Vec<Window>,
    /// Whether deployed kernels are started without going through the firmware; each node's own setting where it is absent.
    pub kexec: Option<bool>,
    /// Whether machines whose hardware failed a check are deployed nevertheless.
    pub despite_checks: bool,
}

/// Windows of one deployment.
const WINDOWS: usize = 64;

impl Rollout {
    /// Checks what a parser cannot.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn check(&self, now: Millis) -> Result<(), String> {
        match &self.canary {
            Some(Canary::Count(0)) => return Err("canary: name at least one node, or leave it out".to_owned()),
            Some(Canary::Nodes(names)) if names.is_empty() => {
                return Err("canary: name at least one node, or leave it out".to_owned());
            }
            Some(Canary::Nodes(names)) if names.iter().collect::<BTreeSet<_>>().len() != names.len() => {
                return Err("canary: a node is named twice".to_owned());
            }
            _ => {}
        }
        for (key, limit) in [("at_once", self.at_once), ("at_once_per_rack", self.at_once_per_rack)] {
            if limit == Some(0) {
                return Err(format!("{key} is 0 and nothing would ever start: write at least 1"));
            }
        }
        check_windows(&self.windows, now)
    }
}

/// Checks windows as an operator gives them.
///
/// # Errors
/// What is wrong, as a sentence.
pub(crate) fn check_windows(windows: &[Window], now: Millis) -> Result<(), String> {
    if windows.len() > WINDOWS {
        return Err(format!("windows: {} are more than {WINDOWS}", windows.len()));
    }
    windows.iter().try_for_each(Window::check)?;
    match super::window::opening(windows, now) {
        super::window::Opening::Never => {
            Err("windows: all of them are over, so nothing would ever start; name one that is still to come".to_owned())
        }
        _ => Ok(()),
    }
}
