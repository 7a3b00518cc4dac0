//! What an image is: its size, its pieces and their hashes.

use std::fmt;

use data_encoding::BASE64;
use fleet::ids::{Digest, ImageName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use thiserror::Error as ThisError;
use wire::metainfo::merkle::{self, FileTree};
use wire::metainfo::{InfoHash, InfoHashError, InfoHashV2};
use wire::peer::HashRange;

use crate::hash::{PieceHash, ZeroHashes, leaf_hashes, sha1};
use crate::leaves::Leaves;
use crate::seal::Sealed;
use crate::twins::Twins;
use crate::{Error, PieceSet};

/// Version of the manifest format that this program writes. Version 1 had a
/// plain SHA-256 of each piece; the registry seals such images anew.
const VERSION: u32 = 2;

/// Largest image, in bytes: 16 TiB, a million pieces of 16 MiB.
pub const MAX_IMAGE_BYTES: u64 = 16 << 40;

/// Most pieces of an image; bounds what a manifest can make us allocate.
const MAX_PIECES: u64 = 1 << 20;

const PIECE_SIZE_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=64 << 20;

/// The piece size for an image of this size, in bytes: 512 to 8,192 pieces from
/// 8 MiB to 128 GiB. Fewer would leave a swarm without pieces to exchange (a
/// run takes `1 + log2(nodes) / pieces` of the least time); more cost
/// announcements and disk seeks. From 256 KiB on the usual sizes are taken where
/// the number of pieces allows it.
#[must_use]
pub fn piece_size_for(size_bytes: u64) -> u32 {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let usual = match size_bytes {
        0..0x1000_0000 => 256 << 10,
        _ if size_bytes < 4 * GIB => MIB,
        _ if size_bytes < 32 * GIB => 4 * MIB,
        _ if size_bytes < 64 * GIB => 8 * MIB,
        _ => 16 * MIB,
    };
    let largest = (size_bytes / LEAST_PIECES).checked_ilog2().map_or(1, |exponent| 1 << exponent);
    usual.clamp(*PIECE_SIZE_BYTES.start(), largest.max(*PIECE_SIZE_BYTES.start())) as u32
}

/// Pieces that an image has at least, if it is not tiny.
const LEAST_PIECES: u64 = 512;

pub(crate) fn check_piece_size(piece_size_bytes: u64) -> Result<u32, Error> {
    if piece_size_bytes.is_power_of_two() && PIECE_SIZE_BYTES.contains(&piece_size_bytes) {
        Ok(piece_size_bytes as u32)
    } else {
        Err(Error::BadPieceSize(piece_size_bytes))
    }
}

/// The hash of every piece, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceHashes {
    /// The root of each piece in the tree of SHA-256 (BEP 52): images that we
    /// sealed, torrents of version 2 and hybrids.
    Roots(Vec<[u8; 32]>),
    /// SHA-1 of each piece: all that a version 1 torrent tells.
    Sha1(Vec<[u8; 20]>),
}

impl PieceHashes {
    /// How many pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Roots(hashes) => hashes.len(),
            Self::Sha1(hashes) => hashes.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces whose hash is that of zeros. Derived, never stored: a set in
    /// the file could contradict the hashes and leave old content on a disk.
    fn zeros(&self, zero: &ZeroHashes) -> PieceSet {
        let count = self.len();
        let mut zeros = PieceSet::with_capacity(count);
        for index in 0..count {
            let of_zeros = zero.of(index + 1 == count);
            zeros.set(
                index,
                match self {
                    Self::Roots(hashes) => Some(hashes[index]) == of_zeros.root,
                    Self::Sha1(hashes) => Some(hashes[index]) == of_zeros.sha1,
                },
            );
        }
        zeros
    }

    fn twins(&self, zero_pieces: &PieceSet, last_is_short: bool) -> Twins {
        match self {
            Self::Roots(hashes) => Twins::find(hashes, zero_pieces, last_is_short),
            Self::Sha1(hashes) => Twins::find(hashes, zero_pieces, last_is_short),
        }
    }
}

/// An image: what every disk that gets it must hold.
///
/// A value of this type is consistent: size, piece size and the number of
/// hashes fit together. Only [`Manifest::verify`] makes a [`VerifiedPiece`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    name: String,
    size_bytes: u64,
    piece_size_bytes: u32,
    digest: Option<Digest>,
    pieces: PieceHashes,
    zero_pieces: PieceSet,
    twins: Twins,
    v1: Option<InfoHash>,
    v2: Option<InfoHashV2>,
    content_id: [u8; 32],
    pieces_root: Option<[u8; 32]>,
    leaves: Leaves,
}

impl Manifest {
    /// The manifest of content that was just sealed, with the info-hashes of its
    /// [hybrid torrent](crate::metainfo::of_sealed).
    ///
    /// # Errors
    /// When size and hashes do not fit together.
    pub fn from_sealed(name: &ImageName, sealed: &Sealed) -> Result<Self, Error> {
        let torrent = crate::metainfo::of_sealed(name.as_str(), sealed)?;
        Self::new(Parts { digest: Some(sealed.digest), ..crate::metainfo::parts_of(&torrent)? })
    }

    /// The manifest that a torrent of any version allows: no digest of the
    /// whole, and the hashes of version 2 where it has them.
    ///
    /// # Errors
    /// When the torrent has sizes that no image can have, or is one of version
    /// 2 whose piece roots are still to be learnt.
    pub fn from_metainfo(metainfo: &wire::metainfo::Metainfo) -> Result<Self, Error> {
        Self::new(crate::metainfo::parts_of(metainfo)?).map_err(|error| Error::BadTorrent(error.to_string()))
    }

    pub(crate) fn new(parts: Parts) -> Result<Self, Error> {
        let Parts { name, size_bytes, piece_size_bytes, digest, pieces, v1, v2 } = parts;
        let bad = |what: String| Err(Error::BadManifest(what));
        if name.is_empty() || name.len() > 255 || name.contains('/') || name.chars().any(char::is_control) {
            return bad(format!("`{}` is not a usable name", name.escape_debug()));
        }
        let piece_size_bytes = check_piece_size(piece_size_bytes)?;
        if size_bytes == 0 || size_bytes > MAX_IMAGE_BYTES {
            return bad(format!("{size_bytes} bytes is not a size from 1 to {MAX_IMAGE_BYTES}"));
        }
        let count = size_bytes.div_ceil(u64::from(piece_size_bytes));
        if count > MAX_PIECES {
            return bad(format!("it has {count} pieces, more than {MAX_PIECES}: use larger pieces"));
        }
        if pieces.len() as u64 != count {
            return bad(format!(
                "{size_bytes} bytes in pieces of {piece_size_bytes} are {count} pieces, but it lists {} hashes",
                pieces.len()
            ));
        }
        let zero_pieces = pieces.zeros(&ZeroHashes::new(size_bytes, piece_size_bytes));
        let twins = pieces.twins(&zero_pieces, !size_bytes.is_multiple_of(u64::from(piece_size_bytes)));
        let content_id = content_id(size_bytes, piece_size_bytes, &pieces);
        let pieces_root = match &pieces {
            PieceHashes::Roots(roots) => Some(FileTree::new(size_bytes, piece_size_bytes).root(roots)),
            PieceHashes::Sha1(_) => None,
        };
        Ok(Self {
            name,
            size_bytes,
            piece_size_bytes,
            digest,
            pieces,
            zero_pieces,
            twins,
            v1,
            v2,
            content_id,
            pieces_root,
            leaves: Leaves::default(),
        })
    }

    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// When it is not JSON, of a newer version, or inconsistent; says where.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let version: VersionOnly = serde_json::from_slice(text)
            .map_err(|error| Error::BadManifest(format!("it is not a manifest: {error}")))?;
        expect_version(version.version)?;
        let file: OnDisk = serde_json::from_slice(text).map_err(|error| Error::BadManifest(error.to_string()))?;
        file.try_into()
    }

    /// The text of `manifest.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and numbers only: there is nothing that could fail.
        serde_json::to_string_pretty(&self).unwrap_or_default()
    }

    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Raw size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of every piece but the last, a power of two.
    #[must_use]
    pub fn piece_size_bytes(&self) -> u32 {
        self.piece_size_bytes
    }

    /// SHA-256 of the whole raw content; none when only a .torrent is known.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The hash of every piece.
    #[must_use]
    pub fn pieces(&self) -> &PieceHashes {
        &self.pieces
    }

    /// How many pieces; at least one.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// The pieces that are all zeros and need not travel.
    #[must_use]
    pub fn zero_pieces(&self) -> &PieceSet {
        &self.zero_pieces
    }

    /// The pieces that an own node need not fetch: those that are all zeros
    /// ([`Manifest::zero_pieces`]) and those equal to an earlier piece
    /// ([`Manifest::twin_of`]).
    #[must_use]
    pub fn twins(&self) -> &PieceSet {
        self.twins.all()
    }

    /// The first piece with the same content, which is not all zeros; `None` for
    /// that first piece itself, for zeros, and for pieces without an equal.
    #[must_use]
    pub fn twin_of(&self, index: u32) -> Option<u32> {
        self.twins.first_of(index)
    }

    /// The later pieces with the content of this first one, ascending.
    #[must_use]
    pub fn twins_of(&self, first: u32) -> &[u32] {
        self.twins.copies_of(first)
    }

    /// The swarm's name in handshakes and announces: version 1's where there is
    /// one, else the truncated one of version 2.
    #[must_use]
    pub fn infohash(&self) -> Option<InfoHash> {
        self.v1.or_else(|| self.v2.map(|v2| v2.truncated()))
    }

    /// The info-hash of version 1 (SHA-1).
    #[must_use]
    pub fn infohash_v1(&self) -> Option<InfoHash> {
        self.v1
    }

    /// The info-hash of version 2 (SHA-256).
    #[must_use]
    pub fn infohash_v2(&self) -> Option<InfoHashV2> {
        self.v2
    }

    /// Offset of a piece in the image, in bytes.
    #[must_use]
    pub fn piece_offset(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.piece_size_bytes)
    }

    /// Bytes of one piece; 0 when there is no such piece.
    #[must_use]
    pub fn piece_length(&self, index: u32) -> u32 {
        let left = self.size_bytes.saturating_sub(self.piece_offset(index));
        left.min(u64::from(self.piece_size_bytes)) as u32
    }

    /// Bytes of all pieces in a set.
    #[must_use]
    pub fn bytes_of(&self, set: &PieceSet) -> u64 {
        set.ones().map(|index| u64::from(self.piece_length(index as u32))).sum()
    }

    /// Bytes that must move to a blank disk: all but the zero pieces.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.size_bytes - self.bytes_of(&self.zero_pieces)
    }

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
    /// be rejected, as one is that would have more than 16 MiB read (or one
    /// piece, if that is larger).
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
        let leaves_wanted = u64::from(range.length) << range.base_layer;
        if range.base_layer < piece_layer && leaves_wanted > MAX_LEAVES_READ.max(1 << piece_layer) {
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

    pub(crate) fn content_id(&self) -> &[u8; 32] {
        &self.content_id
    }
}

/// Blocks that a peer can make us read and hash with one request: 16 MiB.
const MAX_LEAVES_READ: u64 = 1024;

fn leaves_in(piece_length: u32) -> u32 {
    piece_length.div_ceil(merkle::LEAF_BYTES)
}

/// What a manifest is made of, before it is checked.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) piece_size_bytes: u64,
    pub(crate) digest: Option<Digest>,
    pub(crate) pieces: PieceHashes,
    pub(crate) v1: Option<InfoHash>,
    pub(crate) v2: Option<InfoHashV2>,
}

fn content_id(size_bytes: u64, piece_size_bytes: u32, pieces: &PieceHashes) -> [u8; 32] {
    let mut hash = sha2::Sha256::new();
    hash.update(size_bytes.to_le_bytes());
    hash.update(piece_size_bytes.to_le_bytes());
    match pieces {
        PieceHashes::Roots(hashes) => hash.update(hashes.as_flattened()),
        PieceHashes::Sha1(hashes) => hash.update(hashes.as_flattened()),
    }
    hash.finalize().into()
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

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    name: String,
    size_bytes: u64,
    piece_size_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    infohash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    infohash_v2: Option<String>,
    pieces: HashesOnDisk,
}

/// All hashes joined, in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum HashesOnDisk {
    Roots(String),
    Sha1(String),
}

impl From<&Manifest> for OnDisk {
    fn from(manifest: &Manifest) -> Self {
        Self {
            version: VERSION,
            name: manifest.name.clone(),
            size_bytes: manifest.size_bytes,
            piece_size_bytes: u64::from(manifest.piece_size_bytes),
            digest: manifest.digest,
            infohash: manifest.v1.map(|hash| hash.to_string()),
            infohash_v2: manifest.v2.map(|hash| hash.to_string()),
            pieces: match &manifest.pieces {
                PieceHashes::Roots(hashes) => HashesOnDisk::Roots(BASE64.encode(hashes.as_flattened())),
                PieceHashes::Sha1(hashes) => HashesOnDisk::Sha1(BASE64.encode(hashes.as_flattened())),
            },
        }
    }
}

impl TryFrom<OnDisk> for Manifest {
    type Error = Error;
    fn try_from(file: OnDisk) -> Result<Self, Error> {
        expect_version(file.version)?;
        let bad = |error: InfoHashError| Error::BadManifest(error.to_string());
        let v1 = file.infohash.map(|text| text.parse()).transpose().map_err(bad)?;
        let v2 = file.infohash_v2.map(|text| text.parse()).transpose().map_err(bad)?;
        let pieces = match &file.pieces {
            HashesOnDisk::Roots(text) => PieceHashes::Roots(split(text)?),
            HashesOnDisk::Sha1(text) => PieceHashes::Sha1(split(text)?),
        };
        Self::new(Parts {
            name: file.name,
            size_bytes: file.size_bytes,
            piece_size_bytes: file.piece_size_bytes,
            digest: file.digest,
            pieces,
            v1,
            v2,
        })
    }
}

fn expect_version(found: u32) -> Result<(), Error> {
    match found {
        VERSION => Ok(()),
        0..VERSION => Err(Error::OldManifest { found, known: VERSION }),
        _ => Err(Error::ManifestVersion { found, known: VERSION }),
    }
}

fn split<const N: usize>(text: &str) -> Result<Vec<[u8; N]>, Error> {
    let bytes = BASE64
        .decode(text.as_bytes())
        .map_err(|error| Error::BadManifest(format!("the piece hashes are not base64: {error}")))?;
    let (hashes, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() {
        Ok(hashes.to_vec())
    } else {
        Err(Error::BadManifest(format!("the piece hashes are {} bytes, no multiple of {N}", bytes.len())))
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        OnDisk::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OnDisk::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::hash::sha256;
    use proptest::prelude::*;

    const PIECE: usize = 16 << 10;

    fn roots(content: &[u8], piece: usize) -> PieceHashes {
        let tree = FileTree::new(content.len() as u64, piece as u32);
        PieceHashes::Roots(content.chunks(piece).map(|piece| tree.piece_root(&leaf_hashes(piece))).collect())
    }

    fn parts(content: &[u8]) -> Parts {
        Parts {
            name: "debian".into(),
            size_bytes: content.len() as u64,
            piece_size_bytes: PIECE as u64,
            digest: Some(Digest(sha256(content))),
            pieces: roots(content, PIECE),
            v1: Some(InfoHash([0xab; 20])),
            v2: Some(InfoHashV2([0xcd; 32])),
        }
    }

    #[test]
    fn zero_pieces_come_from_the_hashes_also_for_a_short_last_piece() {
        let mut content = vec![0; 3 * PIECE + 512];
        content[PIECE] = 1;
        let manifest = Manifest::new(parts(&content)).unwrap();
        assert_eq!(manifest.zero_pieces().ones().collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(manifest.payload_bytes(), PIECE as u64);
        assert_eq!(manifest.piece_length(3), 512);
        assert_eq!(manifest.piece_length(4), 0);
        let mut torrent_only = parts(&content);
        torrent_only.pieces = PieceHashes::Sha1(content.chunks(PIECE).map(sha1).collect());
        let torrent_only = Manifest::new(torrent_only).unwrap();
        assert_eq!(torrent_only.zero_pieces(), manifest.zero_pieces());
    }

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

    #[test]
    fn inconsistent_manifests_are_refused_with_the_reason() {
        let content = vec![1; PIECE * 2];
        let refuse = |change: fn(&mut Parts), expected: &str| {
            let mut parts = parts(&content);
            change(&mut parts);
            let sentence = Manifest::new(parts).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{sentence}");
        };
        refuse(|p| p.size_bytes = 0, "not a size");
        refuse(|p| p.size_bytes = u64::MAX, "not a size");
        refuse(|p| p.size_bytes += 1, "are 3 pieces, but it lists 2 hashes");
        refuse(|p| p.piece_size_bytes = 20_000, "not a power of two");
        refuse(|p| p.piece_size_bytes = 8192, "not a power of two");
        refuse(|p| p.piece_size_bytes = 1 << 40, "not a power of two");
        refuse(|p| p.name = "a/b".into(), "not a usable name");
        refuse(|p| p.pieces = PieceHashes::Roots(vec![]), "lists 0 hashes");
        refuse(|p| p.size_bytes = MAX_IMAGE_BYTES, "pieces, more than");
    }

    #[test]
    fn damaged_json_is_refused_with_the_reason() {
        let text = Manifest::new(parts(&vec![1; PIECE * 2])).unwrap().to_json();
        let refuse = |from: &str, to: &str, expected: &str| {
            assert!(text.contains(from), "{from} in {text}");
            let sentence = Manifest::from_json(text.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{sentence}");
        };
        refuse("\"version\": 2", "\"version\": 3", "has version 3, this program reads version 2: update");
        refuse("\"version\": 2", "\"version\": 1", "version 1");
        refuse("\"version\": 2", "\"vision\": 2", "missing field `version`");
        refuse("cdcd", "zzzz", "64");
        refuse("\"size_bytes\": 32768", "\"size_bytes\": 32769", "are 3 pieces");
        refuse("\"roots\": \"", "\"roots\": \"AAAA", "no multiple of 32");
        refuse("\"roots\": \"", "\"roots\": \"!", "not base64");
        refuse("\"roots\": \"", "\"md5\": \"", "unknown variant");
        refuse("\"name\"", "\"colour\": 1, \"name\"", "unknown field `colour`");
        refuse("sha256:", "sha512:", "is not an image digest");
        refuse("abab", "zzzz", "40 hexadecimal digits");
        assert!(Manifest::from_json(b"").unwrap_err().to_string().contains("not a manifest"));
        assert!(Manifest::from_json(&text.as_bytes()[..text.len() / 2]).is_err());
    }

    #[test]
    fn piece_sizes_grow_with_the_image() {
        let mib = 1u64 << 20;
        for (size, piece) in [
            (512, 16 << 10),
            (8 * mib, 16 << 10),
            (32 * mib, 64 << 10),
            (64 * mib, 128 << 10),
            (128 * mib, 256 << 10),
            (256 * mib - 1, 256 << 10),
            (256 * mib, 512 << 10),
            (512 * mib, 1 << 20),
            (4096 * mib - 1, 1 << 20),
            (4096 * mib, 4 << 20),
            (32 * 1024 * mib, 8 << 20),
            (64 * 1024 * mib, 16 << 20),
            (MAX_IMAGE_BYTES, 16 << 20),
        ] {
            assert_eq!(piece_size_for(size), piece, "{size}");
            assert!(size.div_ceil(u64::from(piece)) <= MAX_PIECES);
        }
    }

    proptest! {
        #[test]
        fn images_have_512_to_8192_pieces(size in (8u64 << 20)..(128 << 30)) {
            let pieces = size.div_ceil(piece_size_for(size).into());
            prop_assert!((512..=8192).contains(&pieces), "{}", pieces);
        }

        #[test]
        fn json_round_trips(content in prop::collection::vec(any::<u8>(), 1..100_000), sha1_only in any::<bool>()) {
            let mut parts = parts(&content);
            if sha1_only {
                parts.pieces = PieceHashes::Sha1(content.chunks(PIECE).map(sha1).collect());
                parts.digest = None;
                parts.v1 = None;
                parts.v2 = None;
            }
            let manifest = Manifest::new(parts).unwrap();
            prop_assert_eq!(&Manifest::from_json(manifest.to_json().as_bytes()).unwrap(), &manifest);
            let embedded: Manifest = serde_json::from_str(&serde_json::to_string(&manifest).unwrap()).unwrap();
            prop_assert_eq!(&embedded, &manifest);
        }

        /// Every hash a peer may ask for is answered with what proves it.
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
            let mut leaves_of = |piece: u32| content.chunks(1 << shift).nth(piece as usize).map(leaf_hashes);
            let answer = manifest.hashes(&range, &mut leaves_of);
            prop_assert_eq!(answer.is_some(), tree.allows(&range));
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
            prop_assert_eq!(manifest.hashes(&stranger, &mut leaves_of), None);
        }

        #[test]
        fn no_bytes_make_from_json_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::from_json(&text);
        }
    }
}
