//! Hashing and writing of pieces; all of it blocks.

use image::{Manifest, PieceSink};
use swarm::PieceSet;

use super::store::Store;
use crate::Error;

/// How a piece came out.
pub(super) enum Checked {
    /// Right and on the disk, and so are its twins. The bytes come back.
    Written {
        /// What was hashed.
        bytes: Option<Vec<u8>>,
        /// Other pieces with the same content.
        twins: Vec<u32>,
    },
    /// Nothing new but these pieces, which were known without anybody's help.
    Known {
        /// Zeros, or twins of pieces that were there.
        twins: Vec<u32>,
    },
    /// Wrong; nothing was written. The bytes come back.
    Corrupt {
        /// What was hashed.
        bytes: Vec<u8>,
        /// The blocks that are wrong, when that is known.
        blocks: Vec<u32>,
    },
    /// The disk failed.
    Failed(Error),
}

/// Only a verified piece comes to the sink; see `image::VerifiedPiece`.
pub(super) fn check(manifest: &Manifest, sink: &dyn PieceSink, piece: u32, bytes: Vec<u8>) -> Checked {
    let mut verified = match manifest.verify(piece, bytes) {
        Ok(verified) => verified,
        Err(corrupt) => return Checked::Corrupt { blocks: corrupt.blocks, bytes: corrupt.bytes },
    };
    if let Err(error) = sink.put(&verified) {
        return Checked::Failed(error.into());
    }
    let mut twins = Vec::new();
    for &twin in manifest.twins_of(piece) {
        verified = match manifest.as_twin(verified, twin) {
            Some(verified) => verified,
            None => return Checked::Written { bytes: None, twins },
        };
        if let Err(error) = sink.put(&verified) {
            return Checked::Failed(error.into());
        }
        twins.push(twin);
    }
    Checked::Written { bytes: Some(verified.into_bytes()), twins }
}

/// What is missing though nobody has to send it: for each piece to be read (or
/// made, of zeros) those that follow from it.
pub(super) fn unwritten(manifest: &Manifest, have: &PieceSet) -> Vec<(u32, Vec<u32>)> {
    let missing = |piece: &u32| !have.contains(*piece);
    let zeros = manifest.zero_pieces().ones().map(|piece| piece as u32).filter(missing);
    let zeros = zeros.map(|piece| (piece, vec![piece]));
    let firsts = (0..manifest.piece_count()).filter(|piece| have.contains(*piece));
    let twins = firsts.filter_map(|first| {
        let twins: Vec<u32> = manifest.twins_of(first).iter().copied().filter(missing).collect();
        (!twins.is_empty()).then_some((first, twins))
    });
    zeros.chain(twins).collect()
}

/// Writes what [`unwritten`] found.
pub(super) fn write_twins(
    manifest: &Manifest,
    store: &Store,
    sink: &dyn PieceSink,
    first: u32,
    twins: &[u32],
) -> Checked {
    let mut bytes = vec![0; manifest.piece_length(first) as usize];
    if !manifest.zero_pieces().contains(first as usize)
        && let Err(error) = store.read_blocking(first, &mut bytes)
    {
        return Checked::Failed(error);
    }
    match manifest.verify(first, bytes) {
        // The disk has changed since it was scanned; it will be told apart
        // from a peer's fault because nobody is asked for twins.
        Err(corrupt) => Checked::Failed(Error::ChangedDisk { piece: corrupt.index }),
        Ok(mut verified) => {
            for &twin in twins {
                if twin != first {
                    verified = match manifest.as_twin(verified, twin) {
                        Some(verified) => verified,
                        None => return Checked::Failed(Error::Defect),
                    };
                }
                if let Err(error) = sink.put(&verified) {
                    return Checked::Failed(error.into());
                }
            }
            Checked::Known { twins: twins.to_vec() }
        }
    }
}
