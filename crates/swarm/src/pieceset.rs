//! A set of pieces that knows its size.

use fixedbitset::FixedBitSet;
use wire::peer::Bitfield;

/// Which pieces somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceSet {
    bits: FixedBitSet,
    count: u32,
}

impl PieceSet {
    /// None of `pieces`.
    pub fn empty(pieces: u32) -> PieceSet {
        PieceSet { bits: FixedBitSet::with_capacity(pieces as usize), count: 0 }
    }

    /// All of `pieces`.
    pub fn full(pieces: u32) -> PieceSet {
        let mut bits = FixedBitSet::with_capacity(pieces as usize);
        bits.insert_range(..);
        PieceSet { bits, count: pieces }
    }

    /// Number of pieces of the torrent, had or not.
    pub fn capacity(&self) -> u32 {
        self.bits.len() as u32
    }

    /// Number of pieces had.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Nothing is missing.
    pub fn is_full(&self) -> bool {
        self.count == self.capacity()
    }

    /// Nothing is had.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the piece is had; false beyond the last.
    pub fn contains(&self, piece: u32) -> bool {
        self.bits.contains(piece as usize)
    }

    /// Adds a piece and says whether it is new; false beyond the last.
    pub fn insert(&mut self, piece: u32) -> bool {
        let new = piece < self.capacity() && !self.bits.put(piece as usize);
        self.count += u32::from(new);
        new
    }

    /// Takes a piece out and says whether it was had.
    pub fn remove(&mut self, piece: u32) -> bool {
        let had = self.contains(piece);
        if had {
            self.bits.remove(piece as usize);
            self.count -= 1;
        }
        had
    }

    /// The pieces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits.ones().map(|piece| piece as u32)
    }

    /// The same pieces out of `pieces`; those beyond are lost.
    pub(crate) fn fitted(self, pieces: u32) -> PieceSet {
        if self.capacity() == pieces {
            return self;
        }
        let mut set = PieceSet::empty(pieces);
        for piece in self.iter() {
            set.insert(piece);
        }
        set
    }

    /// What is in either.
    pub(crate) fn union(&self, other: &PieceSet) -> PieceSet {
        let mut both = self.clone();
        other.iter().for_each(|piece| {
            both.insert(piece);
        });
        both
    }

    /// The 32 or 64 pieces per word that candidates are searched by.
    pub(crate) fn bits(&self) -> &FixedBitSet {
        &self.bits
    }

    /// As it travels.
    pub fn to_bitfield(&self) -> Bitfield {
        let mut bitfield = Bitfield::empty(self.capacity());
        self.iter().for_each(|piece| bitfield.insert(piece));
        bitfield
    }
}

impl From<&Bitfield> for PieceSet {
    fn from(bitfield: &Bitfield) -> PieceSet {
        let mut set = PieceSet::empty(bitfield.pieces());
        for piece in bitfield.iter() {
            set.insert(piece);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_follows() {
        let mut set = PieceSet::empty(10);
        assert!(set.insert(3) && !set.insert(3) && !set.insert(10));
        assert_eq!((set.count(), set.contains(3), set.contains(10), set.is_full()), (1, true, false, false));
        assert!(PieceSet::full(10).is_full());
        assert_eq!(PieceSet::from(&set.to_bitfield()), set);
        let fitted = set.fitted(4);
        assert_eq!((fitted.capacity(), fitted.count(), fitted.clone().fitted(3).count()), (4, 1, 0));
    }
}
