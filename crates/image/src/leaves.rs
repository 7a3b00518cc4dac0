//! Leaf hashes that peers told of single pieces (BEP 52), kept while a piece
//! that failed is being fetched again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most pieces whose leaves are kept. They are wanted only between a failure
/// and the next try, so this is far more than ever are at once; it bounds what
/// an attacker can make us keep (1024 leaves of 32 bytes for pieces of 16 MiB).
const KEPT_PIECES: usize = 32;

/// A small memory of leaves. It is no part of what a manifest says: two
/// manifests are equal whatever they have learnt.
#[derive(Debug, Default)]
pub(crate) struct Leaves(Mutex<BTreeMap<u32, Vec<[u8; 32]>>>);

impl Leaves {
    /// Keeps leaves that were compared with the root of their piece.
    pub(crate) fn keep(&self, index: u32, leaves: Vec<[u8; 32]>) {
        let mut known = self.known();
        known.insert(index, leaves);
        if known.len() > KEPT_PIECES
            && let Some(other) = known.keys().copied().find(|&other| other != index)
        {
            known.remove(&other);
        }
    }

    /// Forgets those of a piece that is right now.
    pub(crate) fn forget(&self, index: u32) {
        self.known().remove(&index);
    }

    /// The blocks whose hash is not the one that is known; empty when none is.
    pub(crate) fn differing(&self, index: u32, found: &[[u8; 32]]) -> Vec<u32> {
        match self.known().get(&index) {
            Some(expected) => {
                (0u32..).zip(found.iter().zip(expected)).filter(|(_, (a, b))| a != b).map(|(n, _)| n).collect()
            }
            None => Vec::new(),
        }
    }

    pub(crate) fn of(&self, index: u32) -> Option<Vec<[u8; 32]>> {
        self.known().get(&index).cloned()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u32, Vec<[u8; 32]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Leaves {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.known().clone()))
    }
}

impl PartialEq for Leaves {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Leaves {}
