//! Bytes by link: what a node exchanged with its own rack, with others, and with whoever stands in none.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::RackName;

/// Most racks that one node's ledger keeps apart. A node has connections to fewer.
pub const RACKS: usize = 32;

/// Payload both ways, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Traffic {
    /// Received and kept.
    pub received_bytes: u64,
    /// Received for nothing: repeated, late or corrupt.
    pub wasted_bytes: u64,
    /// Sent.
    pub sent_bytes: u64,
}

impl Traffic {
    /// All that came in, of use or not: a link carries both.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.received_bytes.saturating_add(self.wasted_bytes)
    }

    fn all(&self) -> u64 {
        self.arrived().saturating_add(self.sent_bytes)
    }

    fn add(&mut self, other: &Self) {
        self.received_bytes = self.received_bytes.saturating_add(other.received_bytes);
        self.wasted_bytes = self.wasted_bytes.saturating_add(other.wasted_bytes);
        self.sent_bytes = self.sent_bytes.saturating_add(other.sent_bytes);
    }
}

/// What one node exchanged with the members of each rack, as these name their racks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Ledger {
    /// By rack, its own included; at most [`RACKS`].
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, Traffic>))]
    pub racks: BTreeMap<RackName, Traffic>,
    /// With peers that name no rack, as the controller's own seeder, and with the racks beyond [`RACKS`].
    pub elsewhere: Traffic,
}

impl Ledger {
    /// Adds what was exchanged with a member of `rack`.
    pub fn add(&mut self, rack: Option<RackName>, traffic: &Traffic) {
        match rack {
            Some(rack) => self.racks.entry(rack).or_default().add(traffic),
            None => self.elsewhere.add(traffic),
        }
    }

    /// The same with at most [`RACKS`] racks: those with the most bytes, the others summed up.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if self.racks.len() > RACKS {
            let mut by_bytes: Vec<(RackName, Traffic)> = std::mem::take(&mut self.racks).into_iter().collect();
            by_bytes.sort_by_key(|(_, traffic)| Reverse(traffic.all()));
            let rest = by_bytes.split_off(RACKS);
            rest.iter().for_each(|(_, traffic)| self.elsewhere.add(traffic));
            self.racks = by_bytes.into_iter().collect();
        }
        self
    }

    /// Nothing was exchanged with anybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// With everybody who does not stand in `rack`: what crossed its uplink.
    #[must_use]
    pub fn outside(&self, rack: &RackName) -> Traffic {
        let mut sum = self.elsewhere;
        self.racks.iter().filter(|(name, _)| *name != rack).for_each(|(_, traffic)| sum.add(traffic));
        sum
    }

    /// All that was sent.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.racks.values().fold(self.elsewhere.sent_bytes, |sum, traffic| sum.saturating_add(traffic.sent_bytes))
    }

    /// Bytes that arrived, by where they came from.
    pub fn arrivals(&self) -> impl Iterator<Item = (Option<&RackName>, u64)> {
        let racks = self.racks.iter().map(|(rack, traffic)| (Some(rack), traffic.arrived()));
        racks.chain([(None, self.elsewhere.arrived())]).filter(|(_, bytes)| *bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn traffic(received_bytes: u64) -> Traffic {
        Traffic { received_bytes, wasted_bytes: 1, sent_bytes: 10 }
    }

    #[test]
    fn an_uplink_carries_all_but_what_stays_in_the_rack() {
        let rack = |name: &str| -> RackName { name.parse().unwrap() };
        let mut ledger = Ledger::default();
        assert!(ledger.is_empty());
        ledger.add(Some(rack("r1")), &traffic(1000));
        ledger.add(Some(rack("r2")), &traffic(100));
        ledger.add(Some(rack("r2")), &traffic(100));
        ledger.add(None, &traffic(7));
        let out = ledger.outside(&rack("r1"));
        assert_eq!((out.arrived(), out.sent_bytes), (210, 30));
        assert_eq!(ledger.outside(&rack("r9")).received_bytes, 1207);
        let from: Vec<_> = ledger.arrivals().map(|(rack, bytes)| (rack.map(ToString::to_string), bytes)).collect();
        assert_eq!(from, [(Some("r1".into()), 1001), (Some("r2".into()), 202), (None, 8)]);
    }

    #[test]
    fn only_the_busiest_racks_are_kept_apart() {
        let mut ledger = Ledger::default();
        for index in 0..2 * RACKS as u64 {
            ledger.add(Some(format!("r{index}").parse().unwrap()), &traffic(index));
        }
        let before = ledger.outside(&"none".parse().unwrap());
        let bounded = ledger.bounded();
        assert_eq!((bounded.racks.len(), bounded.outside(&"none".parse().unwrap())), (RACKS, before));
        assert!(bounded.racks.values().all(|traffic| traffic.received_bytes >= RACKS as u64));
    }
}
