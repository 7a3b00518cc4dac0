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

    /// The pieces that are there, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.pieces).filter(|&piece| self.contains(piece))
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
    use super::*;

    #[test]
    fn spare_bits_are_refused() {
        assert_eq!(Bitfield::from_bytes(&[0xFF, 0x10], 11), Err(PeerError::SpareBits { pieces: 11 }));
        assert_eq!(Bitfield::from_bytes(&[0xFF, 0xE0], 11).unwrap().iter().count(), 11);
        assert!(Bitfield::from_bytes(&[0xFF], 8).is_ok());
        assert!(Bitfield::from_bytes(&[0xFF, 0], 8).is_err());
    }
}
