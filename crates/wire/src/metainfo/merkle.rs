//! The hash tree of one file (BEP 52): SHA-256 leaves of 16 KiB blocks, a
//! binary tree above them, piece roots somewhere in the middle.
//!
//! Layers are counted from the leaves, which are layer 0. A leaf that the file
//! does not have is 32 zero bytes (not the hash of a zero block), and so a node
//! above only such leaves is [`padding`] of its layer.

use sha2::{Digest, Sha256};

use crate::peer::{HashRange, MAX_HASHES};

/// A node of the tree.
pub type Hash = [u8; 32];

/// Bytes under one leaf; the last leaf of a file may cover fewer.
pub const LEAF_BYTES: u32 = 16 << 10;

/// The leaf of a block.
#[must_use]
pub fn leaf(block: &[u8]) -> Hash {
    Sha256::digest(block).into()
}

/// The node above two others.
#[must_use]
pub fn parent(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update(left).chain_update(right).finalize().into()
}

/// The node of `layer` above nothing but missing leaves.
#[must_use]
pub fn padding(layer: u32) -> Hash {
    (0..layer).fold([0; 32], |node, _| parent(&node, &node))
}

/// The node of layer `to` above these neighbours of layer `from`, the first of
/// which is its leftmost; what lacks on the right is padding. At most
/// `2^(to - from)` hashes belong under one node; more would make another one.
#[must_use]
pub fn subtree(hashes: &[Hash], from: u32, to: u32) -> Hash {
    let mut pad = padding(from);
    let mut nodes = hashes.to_vec();
    for _ in from..to {
        nodes = nodes
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => parent(left, right),
                [left, ..] => parent(left, &pad),
                [] => pad,
            })
            .collect();
        pad = parent(&pad, &pad);
    }
    nodes.first().copied().unwrap_or(pad)
}

/// The shape of a file's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileTree {
    leaves: u64,
    leaves_per_piece: u64,
}

impl FileTree {
    /// The tree of a file of `length` bytes, at least one, in pieces of
    /// `piece_length` bytes, a power of two of at least [`LEAF_BYTES`].
    #[must_use]
    pub fn new(length: u64, piece_length: u32) -> Self {
        let leaves = length.div_ceil(LEAF_BYTES.into()).max(1);
        Self { leaves, leaves_per_piece: u64::from(piece_length / LEAF_BYTES).max(1) }
    }

    /// The layer of the root.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.leaves.next_power_of_two().trailing_zeros()
    }

    /// The layer of the piece roots. The tree of a file of one piece is no
    /// larger than its blocks need, and its piece root is the root.
    #[must_use]
    pub fn piece_layer(&self) -> u32 {
        self.leaves_per_piece.trailing_zeros().min(self.height())
    }

    /// Nodes of a layer that are above blocks of the file; the rest is padding.
    #[must_use]
    pub fn nodes(&self, layer: u32) -> u64 {
        1u64.checked_shl(layer).map_or(1, |width| self.leaves.div_ceil(width))
    }

    /// The root of a piece from the leaves that it has.
    #[must_use]
    pub fn piece_root(&self, leaves: &[Hash]) -> Hash {
        subtree(leaves, 0, self.piece_layer())
    }

    /// The `pieces root` of the file from the roots of its pieces.
    #[must_use]
    pub fn root(&self, piece_roots: &[Hash]) -> Hash {
        subtree(piece_roots, self.piece_layer(), self.height())
    }

    /// Whether this is a range that BEP 52 lets a peer ask for and this file has.
    #[must_use]
    pub fn allows(&self, range: &HashRange) -> bool {
        let (index, length) = (u64::from(range.index), u64::from(range.length));
        let above = self.height().saturating_sub(range.base_layer);
        (2..=MAX_HASHES).contains(&range.length)
            && length.is_power_of_two()
            && length <= 1u64.checked_shl(above).unwrap_or(0)
            && index.is_multiple_of(length)
            && index < self.nodes(range.base_layer)
            && range.proof_layers < above
    }

    /// What to ask a peer for to learn all piece roots of the file, each answer
    /// proved up to the root; nothing for a file of one piece.
    pub fn piece_root_ranges(&self, pieces_root: Hash) -> impl Iterator<Item = HashRange> + use<> {
        let base_layer = self.piece_layer();
        let above = self.height() - base_layer;
        let length = 1u32 << above.min(MAX_HASHES.trailing_zeros());
        let pieces = if above == 0 { 0 } else { u32::try_from(self.nodes(base_layer)).unwrap_or(u32::MAX) };
        (0..pieces).step_by(length as usize).map(move |index| HashRange {
            pieces_root,
            base_layer,
            index,
            length,
            proof_layers: above - 1,
        })
    }
}

/// The nodes that prove a range, lowest first, as layer and index: the sibling
/// of the range's common ancestor, the sibling of its parent, and so on.
pub fn uncles(range: &HashRange) -> impl Iterator<Item = (u32, u64)> + use<> {
    let (layer, index) = top(range);
    (layer..=range.base_layer.saturating_add(range.proof_layers)).map(move |at| (at, (index >> (at - layer)) ^ 1))
}

/// Climbs from an answer, the range's nodes and then the uncles, to the node
/// that it proves: its layer, index and hash. `None` when the number of hashes
/// is not what was asked for.
#[must_use]
pub fn climb(range: &HashRange, hashes: &[Hash]) -> Option<(u32, u64, Hash)> {
    let (nodes, above) = hashes.split_at_checked(range.length as usize)?;
    if above.len() != uncles(range).count() {
        return None;
    }
    let (mut layer, mut index) = top(range);
    let mut hash = subtree(nodes, range.base_layer, layer);
    for uncle in above {
        hash = if index.is_multiple_of(2) { parent(&hash, uncle) } else { parent(uncle, &hash) };
        (layer, index) = (layer + 1, index / 2);
    }
    Some((layer, index, hash))
}

/// The node right above a whole range.
fn top(range: &HashRange) -> (u32, u64) {
    let length = range.length.max(1);
    (range.base_layer.saturating_add(length.ilog2()), u64::from(range.index / length))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every node of the tree, layer by layer, nothing clever.
    fn naive(length: u64, piece_length: u32, seed: u8) -> (FileTree, Vec<Vec<Hash>>) {
        let tree = FileTree::new(length, piece_length);
        let leaves = length.div_ceil(LEAF_BYTES.into());
        let mut layer: Vec<Hash> = (0..leaves.next_power_of_two())
            .map(|at| if at < leaves { leaf(&[&[seed], at.to_le_bytes().as_slice()].concat()) } else { [0; 32] })
            .collect();
        let mut layers = vec![layer.clone()];
        while layer.len() > 1 {
            layer = layer.chunks(2).map(|pair| leaf(&pair.concat())).collect();
            layers.push(layer.clone());
        }
        (tree, layers)
    }

    fn range(base_layer: u32, index: u32, length: u32, proof_layers: u32) -> HashRange {
        HashRange { pieces_root: [0; 32], base_layer, index, length, proof_layers }
    }

    #[test]
    fn padding_is_built_of_zero_bytes_not_of_hashes_of_zeros() {
        assert_eq!(padding(0), [0; 32]);
        assert_eq!(padding(1), leaf(&[0; 64]));
        assert_eq!(padding(2), leaf(&[leaf(&[0; 64]), leaf(&[0; 64])].concat()));
        assert_eq!(subtree(&[], 1, 3), padding(3));
    }

    #[test]
    fn a_file_of_one_piece_has_the_smallest_tree() {
        for (length, height) in [(1, 0), (16_384, 0), (16_385, 1), (40_000, 2), (65_536, 2)] {
            let tree = FileTree::new(length, 1 << 20);
            assert_eq!((tree.height(), tree.piece_layer()), (height, height), "{length}");
        }
        let two_pieces = FileTree::new((1 << 20) + 1, 1 << 20);
        assert_eq!((two_pieces.height(), two_pieces.piece_layer()), (7, 6));
    }

    #[test]
    fn requests_outside_the_tree_are_not_allowed() {
        let tree = FileTree::new(5 << 14, 1 << 14);
        let span = range;
        assert!(tree.allows(&span(0, 0, 8, 0)));
        assert!(tree.allows(&span(0, 4, 4, 2)));
        assert!(tree.allows(&span(2, 0, 2, 0)));
        for refused in [
            span(0, 0, 16, 0),
            span(0, 0, 3, 0),
            span(0, 0, 0, 0),
            span(0, 2, 4, 0),
            span(0, 6, 2, 0),
            span(0, 0, 8, 3),
            span(0, 0, 1, 0),
            span(3, 0, 2, 0),
            span(4, 0, 2, 0),
            span(64, 0, 1, 0),
            span(0, u32::MAX - 1, 2, 0),
            span(0, 0, 1024, 0),
            span(u32::MAX, 0, 1, u32::MAX),
        ] {
            assert!(!tree.allows(&refused), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn the_tree_is_the_naive_one(length in 1u64..3_000_000, shift in 14u32..20, seed: u8) {
            let (tree, layers) = naive(length, 1 << shift, seed);
            prop_assert_eq!(tree.height() as usize, layers.len() - 1);
            let leaves = &layers[0][..tree.nodes(0) as usize];
            let per_piece = 1usize << (shift - 14);
            let roots: Vec<Hash> = leaves.chunks(per_piece).map(|leaves| tree.piece_root(leaves)).collect();
            let pieces = length.div_ceil(1 << shift) as usize;
            prop_assert_eq!(&roots[..], &layers[tree.piece_layer() as usize][..pieces]);
            prop_assert_eq!(tree.nodes(tree.piece_layer()) as usize, pieces);
            prop_assert_eq!(tree.root(&roots), layers[layers.len() - 1][0]);
        }

        #[test]
        fn every_allowed_request_can_be_proved_and_a_changed_answer_cannot(
            length in 1u64..3_000_000, seed: u8, layer in 0u32..8, at: u64, width in 1u32..5, proof in 0u32..9, flip: usize
        ) {
            let (tree, layers) = naive(length, 1 << 14, seed);
            let index = (at % tree.nodes(layer.min(tree.height()))) as u32 >> width << width;
            let range = range(layer, index, 1 << width, proof);
            prop_assume!(tree.allows(&range));
            let node = |(layer, index): (u32, u64)| layers[layer as usize][index as usize];
            let mut answer: Vec<Hash> = (0..range.length).map(|at| node((layer, u64::from(index + at)))).collect();
            answer.extend(uncles(&range).map(node));
            prop_assert_eq!(uncles(&range).count(), range.uncles() as usize);
            let (top, place, hash) = climb(&range, &answer).unwrap();
            prop_assert_eq!(top, (layer + proof + 1).max(layer + width));
            prop_assert_eq!(hash, node((top, place)));
            let flip = flip % answer.len();
            answer[flip][0] ^= 1;
            prop_assert_ne!(climb(&range, &answer).unwrap().2, hash);
            prop_assert_eq!(climb(&range, &answer[1..]), None);
        }

        #[test]
        fn all_piece_roots_can_be_asked_for(length in 1u64..40_000_000, seed: u8) {
            let (tree, layers) = naive(length, 1 << 15, seed);
            let root = layers[layers.len() - 1][0];
            let mut learnt = Vec::new();
            for range in tree.piece_root_ranges(root) {
                prop_assert!(tree.allows(&range), "{:?}", range);
                let node = |(layer, index): (u32, u64)| layers[layer as usize][index as usize];
                let nodes = (range.index..range.index + range.length).map(|at| node((range.base_layer, at.into())));
                let answer: Vec<Hash> = nodes.chain(uncles(&range).map(node)).collect();
                prop_assert_eq!(climb(&range, &answer), Some((tree.height(), 0, root)));
                learnt.extend_from_slice(&answer[..range.length as usize]);
            }
            learnt.truncate(length.div_ceil(1 << 15) as usize);
            prop_assert!(learnt.is_empty() == (length <= 1 << 15));
            prop_assert!(learnt.is_empty() || tree.root(&learnt) == root);
        }
    }
}
