//! The hash tree of one file (BEP 52): SHA-256 leaves of 16 KiB blocks, a
//! binary tree above them, piece roots somewhere in the middle.
//!
//! Layers are counted from the leaves, which are layer 0. A leaf that the file
//! does not have is 32 zero bytes (not the hash of a zero block), and so a node
//! above only such leaves is [`padding`] of its layer.

use sha2::{Digest, Sha256};

/// A node of the tree.
pub type Hash = [u8; 32];

/// Bytes under one leaf; the last leaf of a file may cover fewer.
pub const LEAF_BYTES: u32 = 16 << 10;

/// Most hashes of one layer that a peer may ask for at once.
pub const MAX_HASHES: u64 = 512;

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

    /// Whether a request for these hashes is one that BEP 52 allows.
    #[must_use]
    pub fn allows(&self, range: &HashSpan) -> bool {
        let HashSpan { layer, index, count, proof_layers } = *range;
        let width = self.height().checked_sub(layer).and_then(|above| 1u64.checked_shl(above));
        width.is_some_and(|width| {
            (2..=MAX_HASHES).contains(&count)
                && count.is_power_of_two()
                && index.is_multiple_of(count)
                && index.checked_add(count).is_some_and(|end| end <= width)
                && index < self.nodes(layer)
                && proof_layers < self.height() - layer
        })
    }
}

/// Neighbouring nodes of one layer, and how many layers above them their proof
/// has: the meaning of BEP 52's hash request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashSpan {
    /// The layer, 0 for leaves.
    pub layer: u32,
    /// The first node, a multiple of `count`.
    pub index: u64,
    /// How many nodes, a power of two of at least 2.
    pub count: u64,
    /// Layers above `layer` from which the answer has an uncle. Those below the
    /// common ancestor of the nodes follow from the nodes and are left out; to
    /// reach the root it takes all layers between.
    pub proof_layers: u32,
}

impl HashSpan {
    /// The layer and index of the node right above all of these.
    #[must_use]
    pub fn top(&self) -> (u32, u64) {
        (self.layer + self.count.trailing_zeros(), self.index / self.count.max(1))
    }

    /// The nodes that complete the proof, lowest first: the sibling of the
    /// common ancestor, the sibling of its parent, and so on.
    pub fn uncles(&self) -> impl Iterator<Item = (u32, u64)> + use<> {
        let (layer, index) = self.top();
        (layer..=self.layer.saturating_add(self.proof_layers)).map(move |at| (at, (index >> (at - layer)) ^ 1))
    }

    /// Climbs from an answer, nodes and then uncles, to the node that it proves:
    /// its layer, index and hash. `None` when the number of hashes is wrong.
    #[must_use]
    pub fn climb(&self, hashes: &[Hash]) -> Option<(u32, u64, Hash)> {
        let count = usize::try_from(self.count).ok()?;
        let (nodes, uncles) = hashes.split_at_checked(count)?;
        if uncles.len() != self.uncles().count() {
            return None;
        }
        let (mut layer, mut index) = self.top();
        let mut hash = subtree(nodes, self.layer, layer);
        for uncle in uncles {
            hash = if index.is_multiple_of(2) { parent(&hash, uncle) } else { parent(uncle, &hash) };
            (layer, index) = (layer + 1, index / 2);
        }
        Some((layer, index, hash))
    }
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
        let span = |layer, index, count, proof_layers| HashSpan { layer, index, count, proof_layers };
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
            span(0, u64::MAX - 1, 2, 0),
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
            let count = 1u64 << width;
            let index = (at % tree.nodes(layer.min(tree.height()))) / count * count;
            let span = HashSpan { layer, index, count, proof_layers: proof };
            prop_assume!(tree.allows(&span));
            let node = |(layer, index): (u32, u64)| layers[layer as usize][index as usize];
            let mut answer: Vec<Hash> = (index..index + count).map(|index| node((layer, index))).collect();
            answer.extend(span.uncles().map(node));
            let (top, place, hash) = span.climb(&answer).unwrap();
            prop_assert_eq!(top, (layer + proof + 1).max(layer + width));
            prop_assert_eq!(hash, node((top, place)));
            let flip = flip % answer.len();
            answer[flip][0] ^= 1;
            prop_assert_ne!(span.climb(&answer).unwrap().2, hash);
            prop_assert_eq!(span.climb(&answer[1..]), None);
        }
    }
}
