//! What cannot be beaten: lower bounds of the time until the last node has everything.

use serde::{Deserialize, Serialize};

/// Share of a link's rate that is payload: 1448 of 1514 bytes of a full TCP segment on Ethernet.
pub const PAYLOAD_SHARE: f64 = 1448.0 / 1514.0;

/// A swarm on a fabric, as the bounds see it. Rates in bit/s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Bytes to deliver.
    pub bytes: u64,
    /// Bytes of a piece.
    pub piece_bytes: u32,
    /// Receivers.
    pub nodes: usize,
    /// Racks; the source is outside all of them when there are several.
    pub racks: usize,
    /// Rate of a node's link; 0 is unlimited.
    pub link: u64,
    /// Rate of a rack's uplink; 0 is unlimited.
    pub uplink: u64,
}

impl Work {
    /// Seconds that the file takes over one link.
    #[must_use]
    pub fn once(&self) -> f64 {
        self.bytes as f64 / (self.link as f64 / 8.0 * PAYLOAD_SHARE)
    }

    /// T* = (F/U)(1 + floor(log2 N)/K) for nodes of equal rates.
    #[must_use]
    pub fn best(&self) -> f64 {
        let pieces = self.bytes.div_ceil(u64::from(self.piece_bytes)) as f64;
        self.once() * (1.0 + f64::from(self.nodes.max(1).ilog2()) / pieces)
    }

    /// The same, or what the racks' uplinks need for one copy each, whichever is longer.
    #[must_use]
    pub fn bound(&self) -> f64 {
        if self.racks < 2 || self.uplink == 0 {
            return self.best();
        }
        let into_rack = self.bytes as f64 / (self.uplink as f64 / 8.0 * PAYLOAD_SHARE);
        self.best().max(into_rack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(bytes: u64, piece_bytes: u32, nodes: usize, link: u64) -> Work {
        Work { bytes, piece_bytes, nodes, racks: 1, link, uplink: 0 }
    }

    #[test]
    fn the_bounds_are_those_of_the_literature() {
        let ten = work(512 << 20, 1 << 20, 10, 100_000_000);
        assert!((ten.once() - 44.91).abs() < 0.01, "{}", ten.once());
        assert!((ten.best() - 45.17).abs() < 0.01, "{}", ten.best());
        let many = work(32 << 20, 256 << 10, 230, 5_000_000);
        assert!((many.best() - 59.20).abs() < 0.02, "{}", many.best());
        let racks = Work { racks: 5, uplink: 10_000_000, ..work(32 << 20, 256 << 10, 50, 20_000_000) };
        assert!((racks.bound() - 2.0 * racks.once()).abs() < 0.01);
    }
}
