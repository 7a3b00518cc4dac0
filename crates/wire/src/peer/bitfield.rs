//! Which pieces a peer has.

use std::fmt;

use super::PeerError;
use super::message::ID_BITFIELD;

/// Which pieces a peer has, as it travels: piece 0 is the highest bit of the
/// first byte. The spare bits at the end are always zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitfield {
    bytes: Vec<u8>,
    pieces: u32,
}

impl Bitfield {
    /// No piece of `pieces`.
    pub fn empty(pieces: u32) -> Bitfield {
        Bitfield { bytes: vec![0; bitfield_bytes(pieces)], pieces }
    }

    /// Checks a bitfield from the wire against the number of pieces.
    ///
    /// # Errors
    /// `WrongSize` or `SpareBits`; BEP 3 asks to drop such a peer.
    pub fn from_bytes(bytes: &[u8], pieces: u32) -> Result<Bitfield, PeerError> {
        if bytes.len() != bitfield_bytes(pieces) {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(1);
            return Err(PeerError::WrongSize { id: ID_BITFIELD, length });
        }
        let used = pieces % 8;
        let spare = if used == 0 { 0 } else { 0xFF_u8 >> used };
        if bytes.last().is_some_and(|last| last & spare != 0) {
            return Err(PeerError::SpareBits { pieces });
        }
        Ok(Bitfield { bytes: bytes.to_vec(), pieces })
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of pieces of the torrent, had or not.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Whether the piece is there; false beyond the last piece.
    pub fn contains(&self, piece: u32) -> bool {
        piece < self.pieces && self.bytes[piece as usize / 8] & mask(piece) != 0
    }

    /// Adds a piece; beyond the last piece nothing happens.
    pub fn insert(&mut self, piece: u32) {
        if piece < self.pieces {
            self.bytes[piece as usize / 8] |= mask(piece);
        }
    }

    /// The pieces that are there, ascending. What is empty costs an eighth of
    /// what is full, so that a peer cannot keep us busy with nothing.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..)
            .step_by(8)
            .zip(&self.bytes)
            .filter(|(_, byte)| **byte != 0)
            .flat_map(|(first, byte)| (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| first + bit))
    }

    /// Adds every piece of `other` and calls `each` with those that are new;
    /// the cost is one comparison for every eight pieces, and what is new.
    /// Pieces beyond ours are passed over.
    pub fn merge(&mut self, other: &Bitfield, mut each: impl FnMut(u32)) {
        for (first, (ours, theirs)) in (0..).step_by(8).zip(self.bytes.iter_mut().zip(&other.bytes)) {
            let new = theirs & !*ours;
            if new != 0 {
                let pieces = self.pieces;
                let bits = (0..8).filter(|bit| new & (0x80 >> bit) != 0 && first + bit < pieces);
                for bit in bits {
                    *ours |= 0x80 >> bit;
                    each(first + bit);
                }
            }
        }
    }
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitfield({} of {})", self.iter().count(), self.pieces)
    }
}

pub(super) fn bitfield_bytes(pieces: u32) -> usize {
    pieces.div_ceil(8) as usize
}

fn mask(piece: u32) -> u8 {
    0x80 >> (piece % 8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spare_bits_are_refused() {
        assert_eq!(Bitfield::from_bytes(&[0xFF, 0x10], 11), Err(PeerError::SpareBits { pieces: 11 }));
        assert_eq!(Bitfield::from_bytes(&[0xFF, 0xE0], 11).unwrap().iter().count(), 11);
        assert!(Bitfield::from_bytes(&[0xFF], 8).is_ok());
        assert!(Bitfield::from_bytes(&[0xFF, 0], 8).is_err());
    }

    proptest! {
        #[test]
        fn a_bitfield_is_a_set(pieces in 0u32..40, bits in proptest::collection::btree_set(0u32..50, 0..30),
                               more in proptest::collection::btree_set(0u32..50, 0..30), wider in 0u32..20) {
            let of = |pieces: u32, set: &BTreeSet<u32>| {
                let mut bitfield = Bitfield::empty(pieces);
                set.iter().for_each(|piece| bitfield.insert(*piece));
                bitfield
            };
            let mut bitfield = of(pieces, &bits);
            let expected: Vec<u32> = bits.iter().copied().filter(|piece| *piece < pieces).collect();
            prop_assert_eq!(bitfield.iter().collect::<Vec<_>>(), expected);
            prop_assert_eq!(Bitfield::from_bytes(bitfield.as_bytes(), pieces), Ok(bitfield.clone()));

            let mut new = Vec::new();
            bitfield.merge(&of(pieces + wider, &more), |piece| new.push(piece));
            let fresh: Vec<u32> = more.difference(&bits).copied().filter(|piece| *piece < pieces).collect();
            prop_assert_eq!(new, fresh);
            prop_assert_eq!(bitfield, of(pieces, &bits.union(&more).copied().collect()));
        }
    }
}
