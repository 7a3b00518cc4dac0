//! What an image is: its size, its pieces and their hashes.

mod json;
mod tree;
mod verified;

use fleet::ids::{Digest, ImageName};
use sha2::Digest as _;
use wire::metainfo::merkle::FileTree;
use wire::metainfo::{InfoHash, InfoHashV2};

use crate::hash::ZeroHashes;
use crate::leaves::Leaves;
use crate::seal::Sealed;
use crate::twins::Twins;
use crate::{Error, PieceSet};

pub use verified::{Corrupt, CorruptReason, VerifiedPiece};

/// Largest image, in bytes: 16 TiB, a million pieces of 16 MiB.
pub const MAX_IMAGE_BYTES: u64 = 16 << 40;

/// Most pieces of an image; bounds what a manifest can make us allocate.
const MAX_PIECES: u64 = 1 << 20;

const PIECE_SIZE_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=64 << 20;

/// The piece size for an image of this size, in bytes: 1,024 to 16,384 pieces
/// from 16 MiB to 256 GiB. Fewer would leave a swarm without pieces to exchange
/// (ten nodes took 1.06 to 1.11 of the least time with 512, 1.04 with 1,024); more
/// cost announcements and disk seeks. From 256 KiB on the usual sizes are taken
/// where the number of pieces allows it, 1 MiB for long: sixteen of those fit
/// into a node's memory at once.
#[must_use]
pub fn piece_size_for(size_bytes: u64) -> u32 {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let usual = match size_bytes {
        0..0x1000_0000 => 256 << 10,
        _ if size_bytes < 16 * GIB => MIB,
        _ if size_bytes < 64 * GIB => 4 * MIB,
        _ => 16 * MIB,
    };
    let largest = (size_bytes / LEAST_PIECES).checked_ilog2().map_or(1, |exponent| 1 << exponent);
    usual.clamp(*PIECE_SIZE_BYTES.start(), largest.max(*PIECE_SIZE_BYTES.start())) as u32
}

/// Pieces that an image has at least, if it is not tiny.
const LEAST_PIECES: u64 = 1024;

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

    pub(crate) fn content_id(&self) -> &[u8; 32] {
        &self.content_id
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::hash::{leaf_hashes, sha1, sha256};
    use proptest::prelude::*;

    pub(super) const PIECE: usize = 16 << 10;

    pub(super) fn roots(content: &[u8], piece: usize) -> PieceHashes {
        let tree = FileTree::new(content.len() as u64, piece as u32);
        PieceHashes::Roots(content.chunks(piece).map(|piece| tree.piece_root(&leaf_hashes(piece))).collect())
    }

    pub(super) fn parts(content: &[u8]) -> Parts {
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
    fn piece_sizes_grow_with_the_image() {
        let mib = 1u64 << 20;
        for (size, piece) in [
            (512, 16 << 10),
            (16 * mib, 16 << 10),
            (64 * mib, 64 << 10),
            (128 * mib, 128 << 10),
            (256 * mib - 1, 128 << 10),
            (256 * mib, 256 << 10),
            (512 * mib, 512 << 10),
            (1024 * mib, 1 << 20),
            (16 * 1024 * mib - 1, 1 << 20),
            (16 * 1024 * mib, 4 << 20),
            (64 * 1024 * mib, 16 << 20),
            (MAX_IMAGE_BYTES, 16 << 20),
        ] {
            assert_eq!(piece_size_for(size), piece, "{size}");
            assert!(size.div_ceil(u64::from(piece)) <= MAX_PIECES);
        }
    }

    proptest! {
        #[test]
        fn images_have_1024_to_16384_pieces(size in (16u64 << 20)..(256 << 30)) {
            let pieces = size.div_ceil(piece_size_for(size).into());
            prop_assert!((1024..=16384).contains(&pieces), "{}", pieces);
        }
    }
}
