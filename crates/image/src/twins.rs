//! Pieces that need not travel because they are zeros or equal another one.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use crate::PieceSet;

/// What the hashes tell of pieces that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Twins {
    all: PieceSet,
    first_of: BTreeMap<u32, u32>,
    copies_of: BTreeMap<u32, Vec<u32>>,
}

impl Twins {
    /// Of pieces with these hashes. The last one may be shorter than the
    /// others; then no other can be its twin, whatever a hash says.
    pub(crate) fn find<H: Hash + Eq>(hashes: &[H], zero_pieces: &PieceSet, last_is_short: bool) -> Self {
        let mut twins = Self { all: zero_pieces.clone(), first_of: BTreeMap::new(), copies_of: BTreeMap::new() };
        twins.all.grow(hashes.len());
        let mut firsts: HashMap<&H, u32> = HashMap::with_capacity(hashes.len());
        for (index, hash) in hashes[..hashes.len() - usize::from(last_is_short)].iter().enumerate() {
            if zero_pieces.contains(index) {
                continue;
            }
            let first = *firsts.entry(hash).or_insert(index as u32);
            if first != index as u32 {
                twins.all.insert(index);
                twins.first_of.insert(index as u32, first);
                twins.copies_of.entry(first).or_default().push(index as u32);
            }
        }
        twins
    }

    pub(crate) fn all(&self) -> &PieceSet {
        &self.all
    }

    pub(crate) fn first_of(&self, index: u32) -> Option<u32> {
        self.first_of.get(&index).copied()
    }

    pub(crate) fn copies_of(&self, first: u32) -> &[u32] {
        self.copies_of.get(&first).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_last_piece_has_no_twin() {
        let none = PieceSet::with_capacity(3);
        assert_eq!(Twins::find(&[1, 1, 1], &none, true).copies_of(0), [1]);
        assert_eq!(Twins::find(&[1, 1, 1], &none, false).copies_of(0), [1, 2]);
        assert_eq!(Twins::find(&[1], &PieceSet::with_capacity(1), true).all().count_ones(..), 0);
    }

    proptest! {
        #[test]
        fn twins_are_what_comparing_each_with_each_finds(kinds in prop::collection::vec(0u8..6, 1..60)) {
            let zeros: PieceSet = kinds.iter().enumerate().filter(|(_, kind)| **kind == 0).map(|(at, _)| at).collect();
            let twins = Twins::find(&kinds, &zeros, false);
            for (index, kind) in kinds.iter().enumerate() {
                let first = kinds.iter().position(|other| other == kind).unwrap_or(index);
                let expected = (*kind != 0 && first != index).then_some(first as u32);
                prop_assert_eq!(twins.first_of(index as u32), expected);
                prop_assert_eq!(twins.all().contains(index), *kind == 0 || expected.is_some());
                let copies = (index + 1..kinds.len()).filter(|&at| kinds[at] == *kind).map(|at| at as u32);
                let copies: Vec<u32> = copies.filter(|_| *kind != 0 && first == index).collect();
                prop_assert_eq!(twins.copies_of(index as u32), copies);
            }
        }
    }
}
