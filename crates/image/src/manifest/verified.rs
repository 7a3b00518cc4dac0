//! Pieces against their hashes: nothing comes to a disk but by this door.

use std::fmt;

use thiserror::Error as ThisError;

use super::{Manifest, PieceHashes};
use crate::hash::{PieceHash, leaf_hashes, sha1};

impl Manifest {
    /// Checks a piece's length and hash; the only way to a [`VerifiedPiece`].
    ///
    /// # Errors
    /// [`Corrupt`] gives the bytes back with the reason, and names the bad
    /// blocks when the leaves of the piece are known.
    pub fn verify(&self, index: u32, bytes: Vec<u8>) -> Result<VerifiedPiece, Corrupt> {
        let (reason, blocks) = if index >= self.piece_count() {
            (CorruptReason::NoSuchPiece, Vec::new())
        } else if bytes.len() != self.piece_length(index) as usize {
            (CorruptReason::Length, Vec::new())
        } else {
            match self.compare(index, &bytes) {
                Ok(()) => {
                    let (offset, content_id) = (self.piece_offset(index), self.content_id);
                    return Ok(VerifiedPiece { index, offset, bytes, content_id });
                }
                Err(blocks) => (CorruptReason::Hash, blocks),
            }
        };
        Err(Corrupt { index, reason, blocks, bytes })
    }

    /// A verified piece as the twin of it at another place, for a sink to write
    /// there; `None` when they are not twins.
    #[must_use]
    pub fn as_twin(&self, piece: VerifiedPiece, index: u32) -> Option<VerifiedPiece> {
        let first = |index| self.twin_of(index).unwrap_or(index);
        let twins = piece.content_id == self.content_id
            && index < self.piece_count()
            && first(index) == first(piece.index)
            && piece.bytes.len() == self.piece_length(index) as usize;
        twins.then(|| VerifiedPiece { index, offset: self.piece_offset(index), ..piece })
    }

    /// Compares right length with the hash; the blocks that differ, if known.
    fn compare(&self, index: u32, bytes: &[u8]) -> Result<(), Vec<u32>> {
        match &self.pieces {
            PieceHashes::Roots(roots) => {
                let leaves = leaf_hashes(bytes);
                if roots.get(index as usize) == Some(&self.tree().piece_root(&leaves)) {
                    self.leaves.forget(index);
                    return Ok(());
                }
                Err(self.leaves.differing(index, &leaves))
            }
            PieceHashes::Sha1(hashes) if hashes.get(index as usize) == Some(&sha1(bytes)) => Ok(()),
            PieceHashes::Sha1(_) => Err(Vec::new()),
        }
    }

    /// Whether this is the hash of a piece; for content that stays where it is.
    pub(crate) fn is_hash_of(&self, index: u32, hash: &PieceHash) -> bool {
        match &self.pieces {
            PieceHashes::Roots(roots) => hash.root.is_some() && roots.get(index as usize).copied() == hash.root,
            PieceHashes::Sha1(hashes) => hash.sha1.is_some() && hashes.get(index as usize).copied() == hash.sha1,
        }
    }

    /// Whether bytes are this piece; for content that stays where it is.
    pub(crate) fn agrees(&self, index: u32, bytes: &[u8]) -> bool {
        bytes.len() == self.piece_length(index) as usize && self.compare(index, bytes).is_ok()
    }
}

/// A piece whose hash agrees with its manifest. There is no other way to make
/// one than [`Manifest::verify`], and sinks take nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPiece {
    index: u32,
    offset: u64,
    bytes: Vec<u8>,
    content_id: [u8; 32],
}

impl VerifiedPiece {
    /// Which piece.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where it begins in the image, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its content, for keeping in memory or using the buffer again.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn content_id(&self) -> &[u8; 32] {
        &self.content_id
    }
}

/// Why bytes are not the piece they were said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorruptReason {
    /// The image has no piece of this index.
    NoSuchPiece,
    /// The piece has another length.
    Length,
    /// The hash differs.
    Hash,
}

impl fmt::Display for CorruptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchPiece => "the image has no such piece",
            Self::Length => "its length is wrong",
            Self::Hash => "its hash differs from the manifest",
        })
    }
}

/// A piece that is not what the manifest says, with its bytes so that the
/// buffer can be used again.
#[derive(Debug, ThisError)]
#[error("piece {index} is corrupt: {reason}")]
pub struct Corrupt {
    /// Which piece it was said to be.
    pub index: u32,
    /// What is wrong.
    pub reason: CorruptReason,
    /// The 16 KiB blocks that are bad, ascending. Empty while nobody told the
    /// leaves of the piece ([`Manifest::learn_leaves`]).
    pub blocks: Vec<u32>,
    /// The bytes that were checked.
    pub bytes: Vec<u8>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::tests::{PIECE, parts};
    use super::*;

    #[test]
    fn only_the_right_bytes_are_verified_and_others_come_back() {
        let content: Vec<u8> = (0..PIECE * 2).map(|n| (n % 251) as u8).collect();
        let manifest = Manifest::new(parts(&content)).unwrap();
        let piece = manifest.verify(1, content[PIECE..].to_vec()).unwrap();
        assert_eq!((piece.index(), piece.offset()), (1, PIECE as u64));
        assert_eq!(piece.bytes(), &content[PIECE..]);

        let swapped = manifest.verify(0, content[PIECE..].to_vec()).unwrap_err();
        assert_eq!(swapped.reason, CorruptReason::Hash);
        assert_eq!(swapped.bytes.len(), PIECE);
        let short = manifest.verify(0, vec![0; 5]).unwrap_err();
        assert_eq!(short.to_string(), "piece 0 is corrupt: its length is wrong");
        assert_eq!(manifest.verify(2, vec![]).unwrap_err().reason, CorruptReason::NoSuchPiece);
    }

    #[test]
    fn twins_are_found_and_written_from_one_another() {
        let mut content = vec![0; 6 * PIECE + 100];
        for index in [1, 3, 5] {
            content[index * PIECE] = 7;
        }
        content[4 * PIECE] = 8;
        let mut sha1_only = parts(&content);
        sha1_only.pieces = PieceHashes::Sha1(content.chunks(PIECE).map(sha1).collect());
        for parts in [parts(&content), sha1_only] {
            let manifest = Manifest::new(parts).unwrap();
            assert_eq!(manifest.twins().ones().collect::<Vec<_>>(), [0, 2, 3, 5, 6]);
            assert_eq!(manifest.twins_of(1), [3, 5]);
            assert_eq!((manifest.twin_of(3), manifest.twin_of(1), manifest.twin_of(0)), (Some(1), None, None));
            let first = manifest.verify(1, content[PIECE..2 * PIECE].to_vec()).unwrap();
            let twin = manifest.as_twin(first.clone(), 5).unwrap();
            assert_eq!((twin.index(), twin.offset()), (5, 5 * PIECE as u64));
            for other in [0, 4, 6, 7] {
                assert_eq!(manifest.as_twin(first.clone(), other), None);
            }
        }
    }
}
