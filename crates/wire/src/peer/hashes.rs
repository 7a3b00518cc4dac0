//! The hash messages of version 2 torrents (BEP 52).

use super::{PeerError, array_at, u32_at};

/// Most hashes of one layer that a request may name.
pub const MAX_HASHES: u32 = 512;

/// Most ancestor layers that a request may ask proof for: a file of 2^63 bytes
/// has 49 layers.
pub const MAX_PROOF_LAYERS: u32 = 64;

/// Bytes of a range as it travels.
pub(super) const HASH_RANGE_BYTES: usize = 48;

/// What the length field of the largest `hashes` message says.
pub(super) const MAX_HASHES_BYTES: usize = 1 + HASH_RANGE_BYTES + (MAX_HASHES + MAX_PROOF_LAYERS) as usize * HASH_BYTES;

const HASH_BYTES: usize = 32;

/// A range of hashes in one layer of a file's merkle tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashRange {
    /// Root of the tree: names the file.
    pub pieces_root: [u8; 32],
    /// Layer, 0 being the hashes of 16 KiB blocks.
    pub base_layer: u32,
    /// First hash within the layer, a multiple of `length`.
    pub index: u32,
    /// Number of hashes, a power of two from 2 to [`MAX_HASHES`].
    pub length: u32,
    /// Layers above the base layer to prove the hashes in; those that follow
    /// from the hashes themselves are left out.
    pub proof_layers: u32,
}

impl HashRange {
    /// How many uncle hashes follow the hashes in the answer: one for each
    /// proof layer that the hashes do not themselves span.
    pub fn uncles(&self) -> u32 {
        (self.proof_layers + 1).saturating_sub(self.length.max(2).ilog2())
    }

    pub(super) fn decode(body: &[u8]) -> Result<HashRange, PeerError> {
        let range = HashRange {
            pieces_root: array_at(body, 0),
            base_layer: u32_at(body, 32),
            index: u32_at(body, 36),
            length: u32_at(body, 40),
            proof_layers: u32_at(body, 44),
        };
        let fits = range.length.is_power_of_two()
            && (2..=MAX_HASHES).contains(&range.length)
            && range.index.is_multiple_of(range.length)
            && range.base_layer <= MAX_PROOF_LAYERS
            && range.proof_layers <= MAX_PROOF_LAYERS;
        if fits { Ok(range) } else { Err(PeerError::HashRange { index: range.index, length: range.length }) }
    }

    pub(super) fn encode(&self) -> [u8; HASH_RANGE_BYTES] {
        let mut bytes = [0; HASH_RANGE_BYTES];
        bytes[..32].copy_from_slice(&self.pieces_root);
        bytes[32..36].copy_from_slice(&self.base_layer.to_be_bytes());
        bytes[36..40].copy_from_slice(&self.index.to_be_bytes());
        bytes[40..44].copy_from_slice(&self.length.to_be_bytes());
        bytes[44..].copy_from_slice(&self.proof_layers.to_be_bytes());
        bytes
    }
}

/// The number of hashes is bounded by the range that they answer.
pub(super) fn decode_hashes(body: &[u8]) -> Result<(HashRange, Vec<[u8; 32]>), PeerError> {
    let range = HashRange::decode(&body[..HASH_RANGE_BYTES])?;
    let (hashes, rest) = body[HASH_RANGE_BYTES..].as_chunks::<HASH_BYTES>();
    let most = (range.length + range.proof_layers) as usize;
    if !rest.is_empty() || hashes.len() < range.length as usize || hashes.len() > most {
        let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
        return Err(PeerError::WrongSize { id: super::message::ID_HASHES, length });
    }
    Ok((range, hashes.to_vec()))
}
