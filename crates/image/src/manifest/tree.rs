//! The hash tree of an image (BEP 52): what peers are asked for and told of it.

use wire::metainfo::merkle::{self, FileTree};
use wire::peer::HashRange;

use super::{Manifest, PieceHashes};

impl Manifest {
    /// The shape of the hash tree (BEP 52).
    #[must_use]
    pub fn tree(&self) -> FileTree {
        FileTree::new(self.size_bytes, self.piece_size_bytes)
    }

    /// The root of the hash tree, which names the file in hash requests; `None`
    /// for a version 1 torrent.
    #[must_use]
    pub fn pieces_root(&self) -> Option<[u8; 32]> {
        self.pieces_root
    }

    /// What to ask a peer for to learn the leaves of a piece; nothing for a
    /// version 1 torrent and for pieces of one block. The answers' hashes, in
    /// order, are for [`Manifest::learn_leaves`]; they carry no proof because
    /// the root of the piece is known.
    #[must_use]
    pub fn leaf_ranges(&self, index: u32) -> Vec<HashRange> {
        let tree = self.tree();
        let Some(pieces_root) = self.pieces_root().filter(|_| tree.piece_layer() > 0 && index < self.piece_count())
        else {
            return Vec::new();
        };
        let width = 1u32 << tree.piece_layer();
        let length = width.min(wire::peer::MAX_HASHES);
        let begin = index * width;
        // Beyond the last block there is nothing but padding to be told.
        let end = begin + leaves_in(self.piece_length(index));
        let starts = (begin..end).step_by(length as usize);
        starts.map(|index| HashRange { pieces_root, base_layer: 0, index, length, proof_layers: 0 }).collect()
    }

    /// Keeps the leaves of a piece, so that [`Manifest::verify`] can name bad
    /// blocks. `false` when they are not its leaves: whoever sent them lied.
    pub fn learn_leaves(&self, index: u32, mut leaves: Vec<[u8; 32]>) -> bool {
        let PieceHashes::Roots(roots) = &self.pieces else { return false };
        let tree = self.tree();
        let right =
            leaves.len() <= 1 << tree.piece_layer() && roots.get(index as usize) == Some(&tree.piece_root(&leaves));
        if right {
            leaves.truncate(leaves_in(self.piece_length(index)) as usize);
            self.leaves.keep(index, leaves);
        }
        right
    }

    /// The answer to a peer's hash request, proof included. `leaves_of` is asked
    /// for the [leaves](crate::leaf_hashes) of a piece where they are needed: the
    /// caller reads and hashes it, if it has it. `None` where the request is to
    /// be rejected: as one is for layers between blocks and pieces or above
    /// pieces, which nobody needs and which would cost most. So at most 8 MiB
    /// are read (or one piece, if that is larger), and no more nodes computed
    /// than the image has pieces.
    pub fn hashes(
        &self,
        range: &HashRange,
        leaves_of: &mut dyn FnMut(u32) -> Option<Vec<[u8; 32]>>,
    ) -> Option<Vec<[u8; 32]>> {
        let tree = self.tree();
        let PieceHashes::Roots(roots) = &self.pieces else { return None };
        if self.pieces_root() != Some(range.pieces_root) || !tree.allows(range) {
            return None;
        }
        let piece_layer = tree.piece_layer();
        if ![0, piece_layer].contains(&range.base_layer) {
            return None;
        }
        // One piece's leaves serve all nodes below its root.
        let mut last: Option<(u32, Vec<[u8; 32]>)> = None;
        let mut node = |layer: u32, index: u64| -> Option<[u8; 32]> {
            if index >= tree.nodes(layer) {
                return Some(merkle::padding(layer));
            }
            let (from, hashes, first) = match layer.checked_sub(piece_layer) {
                Some(above) => (piece_layer, roots.as_slice(), index << above),
                None => {
                    let below = piece_layer - layer;
                    let piece = (index >> below) as u32;
                    if last.as_ref().is_none_or(|(kept, _)| *kept != piece) {
                        let leaves = self.leaves.of(piece).or_else(|| leaves_of(piece))?;
                        last = Some((piece, leaves));
                    }
                    let leaves = &last.as_ref()?.1;
                    (0, leaves.as_slice(), (index << layer) - (u64::from(piece) << piece_layer))
                }
            };
            let first = (first as usize).min(hashes.len());
            let end = (first + (1usize << (layer - from))).min(hashes.len());
            Some(merkle::subtree(&hashes[first..end], from, layer))
        };
        let nodes = (0..range.length).map(|at| (range.base_layer, u64::from(range.index) + u64::from(at)));
        nodes.chain(merkle::uncles(range)).map(|(layer, index)| node(layer, index)).collect()
    }
}

fn leaves_in(piece_length: u32) -> u32 {
    piece_length.div_ceil(merkle::LEAF_BYTES)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{PIECE, parts, roots};
    use super::super::{CorruptReason, Parts};
    use super::*;
    use crate::hash::{leaf_hashes, sha1};

    #[test]
    fn bad_blocks_are_named_once_the_leaves_are_known() {
        let piece_size = 4 * PIECE;
        let content: Vec<u8> = (0..piece_size * 2 + PIECE + 5).map(|n| (n / PIECE + n % 251) as u8).collect();
        let manifest = Manifest::new(Parts {
            piece_size_bytes: piece_size as u64,
            pieces: roots(&content, piece_size),
            ..parts(&content)
        })
        .unwrap();
        let piece = |index: usize| content.chunks(piece_size).nth(index).unwrap().to_vec();
        for (index, block) in [(1u32, 2u32), (2, 1)] {
            let mut damaged = piece(index as usize);
            damaged[block as usize * PIECE + 1] ^= 1;
            let unknown = manifest.verify(index, damaged).unwrap_err();
            assert_eq!((unknown.reason, unknown.blocks), (CorruptReason::Hash, vec![]));

            let asked = manifest.leaf_ranges(index);
            assert_eq!((asked.len(), asked[0].length, asked[0].index), (1, 4, index * 4));
            let told = manifest.hashes(&asked[0], &mut |piece_index| {
                assert_eq!(piece_index, index);
                Some(leaf_hashes(&piece(index as usize)))
            });
            let told = told.unwrap();
            let mut lie = told.clone();
            lie[0][0] ^= 1;
            assert!(!manifest.learn_leaves(index, lie));
            assert!(!manifest.learn_leaves(index + 1, told.clone()));
            assert!(manifest.learn_leaves(index, told));
            assert_eq!(manifest.verify(index, unknown.bytes).unwrap_err().blocks, [block]);
            assert!(manifest.verify(index, piece(index as usize)).is_ok());
            assert_eq!(manifest.leaves.of(index), None, "forgotten once the piece is right");
        }
        assert_eq!(manifest.leaf_ranges(3), []);
        let mut v1 = parts(&content);
        v1.pieces = PieceHashes::Sha1(content.chunks(PIECE).map(sha1).collect());
        let v1 = Manifest::new(v1).unwrap();
        assert_eq!((v1.leaf_ranges(0), v1.pieces_root()), (vec![], None));
        assert!(!v1.learn_leaves(0, vec![]));
    }

    #[test]
    fn large_pieces_are_asked_for_in_halves() {
        let content = vec![5; 40 << 20];
        let piece_size = 16 << 20;
        let manifest = Manifest::new(Parts {
            piece_size_bytes: piece_size as u64,
            pieces: roots(&content, piece_size),
            ..parts(&content)
        })
        .unwrap();
        assert_eq!(manifest.leaf_ranges(1).iter().map(|range| range.index).collect::<Vec<_>>(), [1024, 1536]);
        assert_eq!(manifest.leaf_ranges(2).iter().map(|range| range.index).collect::<Vec<_>>(), [2048]);
        for index in [1, 2] {
            let told: Vec<[u8; 32]> = manifest
                .leaf_ranges(index)
                .iter()
                .flat_map(|range| manifest.hashes(range, &mut |_| Some(leaf_hashes(&content[..piece_size]))).unwrap())
                .collect();
            // The last piece is half as long; its leaves are those of the whole one.
            assert!(manifest.learn_leaves(index, told[..manifest.piece_length(index) as usize / PIECE].to_vec()));
        }
    }

    proptest! {
        /// Every hash a peer may ask for is answered with what proves it, and
        /// no more is read for it than is documented.
        #[test]
        fn hash_requests_are_answered_with_proof(
            length in 1usize..3_000_000, shift in 14u32..18, layer in 0u32..8, at: u32, width in 1u32..10, proof in 0u32..8
        ) {
            let content: Vec<u8> = (0..length).map(|n| (n >> 10) as u8).collect();
            let manifest = Manifest::new(Parts {
                piece_size_bytes: 1 << shift,
                pieces: roots(&content, 1 << shift),
                ..parts(&content)
            }).unwrap();
            let (tree, root) = (manifest.tree(), manifest.pieces_root().unwrap());
            let index = ((at % (1 << tree.height())) >> width) << width;
            let range = HashRange { pieces_root: root, base_layer: layer, index, length: 1 << width, proof_layers: proof };
            let mut read = 0;
            let mut leaves_of = |piece: u32| {
                let leaves = content.chunks(1 << shift).nth(piece as usize).map(leaf_hashes);
                read += leaves.as_ref().map_or(0, Vec::len);
                leaves
            };
            let answer = manifest.hashes(&range, &mut leaves_of);
            prop_assert!(read <= 512.max(1 << tree.piece_layer()), "{} blocks were read", read);
            let sensible = layer == 0 || layer == tree.piece_layer();
            prop_assert_eq!(answer.is_some(), sensible && tree.allows(&range));
            let leaves = leaf_hashes(&content);
            let node = |layer: u32, index: u64| {
                let first = ((index << layer) as usize).min(leaves.len());
                merkle::subtree(&leaves[first..leaves.len().min(first + (1 << layer))], 0, layer)
            };
            if let Some(answer) = answer {
                for (at, hash) in answer[..range.length as usize].iter().enumerate() {
                    prop_assert_eq!(*hash, node(layer, u64::from(range.index) + at as u64));
                }
                let (top, place, hash) = merkle::climb(&range, &answer).unwrap();
                prop_assert_eq!(hash, node(top, place));
            }
            let stranger = HashRange { pieces_root: [1; 32], ..range };
            prop_assert_eq!(manifest.hashes(&stranger, &mut |_| None), None);
        }
    }
}
