//! What an image is: its size, its pieces and their hashes.

use std::fmt;

use data_encoding::BASE64;
use fleet::ids::{Digest, ImageName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use thiserror::Error as ThisError;
use wire::metainfo::InfoHash;

use crate::hash::{sha1, sha256};
use crate::seal::{Sealed, ZeroHashes};
use crate::{Error, PieceSet};

/// Version of the manifest format that this program writes.
const VERSION: u32 = 1;

/// Largest image, in bytes: 16 TiB, a million pieces of 16 MiB.
pub const MAX_IMAGE_BYTES: u64 = 16 << 40;

/// Most pieces of an image; bounds what a manifest can make us allocate.
const MAX_PIECES: u64 = 1 << 20;

const PIECE_SIZE_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=64 << 20;

/// The piece size for an image of this size, in bytes: 512 to 8,192 pieces for
/// the usual sizes, so that a swarm pipelines well and announcements stay few.
#[must_use]
pub fn piece_size_for(size_bytes: u64) -> u32 {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match size_bytes {
        0..0x1000_0000 => 256 << 10,
        _ if size_bytes < 4 * GIB => MIB as u32,
        _ if size_bytes < 32 * GIB => 4 * MIB as u32,
        _ if size_bytes < 128 * GIB => 8 * MIB as u32,
        _ => 16 * MIB as u32,
    }
}

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
    /// SHA-256 of each piece: images that we sealed.
    Sha256(Vec<[u8; 32]>),
    /// SHA-1 of each piece: all that a version 1 .torrent tells.
    Sha1(Vec<[u8; 20]>),
}

impl PieceHashes {
    /// How many pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Sha256(hashes) => hashes.len(),
            Self::Sha1(hashes) => hashes.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn agree(&self, index: usize, bytes: &[u8]) -> bool {
        match self {
            Self::Sha256(hashes) => hashes.get(index).is_some_and(|expected| *expected == sha256(bytes)),
            Self::Sha1(hashes) => hashes.get(index).is_some_and(|expected| *expected == sha1(bytes)),
        }
    }

    /// The pieces whose hash is that of zeros. Derived, never stored: a set in
    /// the file could contradict the hashes and leave old content on a disk.
    fn zeros(&self, zero: &ZeroHashes) -> PieceSet {
        let count = self.len();
        let mut zeros = PieceSet::with_capacity(count);
        for index in 0..count {
            let (wide, narrow) = zero.of(index + 1 == count);
            zeros.set(
                index,
                match self {
                    Self::Sha256(hashes) => hashes[index] == wide,
                    Self::Sha1(hashes) => hashes[index] == narrow,
                },
            );
        }
        zeros
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
    infohash: Option<InfoHash>,
    content_id: [u8; 32],
}

impl Manifest {
    /// The manifest of content that was just sealed, with the infohash of its
    /// version 1 .torrent.
    ///
    /// # Errors
    /// When size and hashes do not fit together.
    pub fn from_sealed(name: &ImageName, sealed: &Sealed) -> Result<Self, Error> {
        let torrent = crate::torrent::of_sealed(name.as_str(), sealed)?;
        Self::new(Parts {
            name: name.to_string(),
            size_bytes: sealed.size_bytes,
            piece_size_bytes: u64::from(sealed.piece_size_bytes),
            digest: Some(sealed.digest),
            pieces: PieceHashes::Sha256(sealed.sha256.clone()),
            infohash: Some(torrent.info_hash()),
        })
    }

    /// The manifest that a version 1 .torrent alone allows: SHA-1 of pieces, no
    /// digest of the whole.
    ///
    /// # Errors
    /// When the torrent has sizes that no image can have.
    pub fn from_metainfo(metainfo: &wire::metainfo::Metainfo) -> Result<Self, Error> {
        Self::new(crate::torrent::parts_of(metainfo)).map_err(|error| Error::BadTorrent(error.to_string()))
    }

    pub(crate) fn new(parts: Parts) -> Result<Self, Error> {
        let Parts { name, size_bytes, piece_size_bytes, digest, pieces, infohash } = parts;
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
        let content_id = content_id(size_bytes, piece_size_bytes, &pieces);
        Ok(Self { name, size_bytes, piece_size_bytes, digest, pieces, zero_pieces, infohash, content_id })
    }

    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// When it is not JSON, of a newer version, or inconsistent; says where.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let version: VersionOnly = serde_json::from_slice(text)
            .map_err(|error| Error::BadManifest(format!("it is not a manifest: {error}")))?;
        if version.version != VERSION {
            return Err(Error::ManifestVersion { found: version.version, known: VERSION });
        }
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

    /// The swarm's name, when there is a .torrent.
    #[must_use]
    pub fn infohash(&self) -> Option<InfoHash> {
        self.infohash
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
    /// [`Corrupt`] gives the bytes back with the reason.
    pub fn verify(&self, index: u32, bytes: Vec<u8>) -> Result<VerifiedPiece, Corrupt> {
        let reason = if index >= self.piece_count() {
            Some(CorruptReason::NoSuchPiece)
        } else if bytes.len() != self.piece_length(index) as usize {
            Some(CorruptReason::Length)
        } else if self.pieces.agree(index as usize, &bytes) {
            None
        } else {
            Some(CorruptReason::Hash)
        };
        match reason {
            None => Ok(VerifiedPiece { index, offset: self.piece_offset(index), bytes, content_id: self.content_id }),
            Some(reason) => Err(Corrupt { index, reason, bytes }),
        }
    }

    /// Whether bytes are this piece; for content that stays where it is.
    pub(crate) fn agrees(&self, index: u32, bytes: &[u8]) -> bool {
        bytes.len() == self.piece_length(index) as usize && self.pieces.agree(index as usize, bytes)
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
    pub(crate) infohash: Option<InfoHash>,
}

fn content_id(size_bytes: u64, piece_size_bytes: u32, pieces: &PieceHashes) -> [u8; 32] {
    let mut hash = sha2::Sha256::new();
    hash.update(size_bytes.to_le_bytes());
    hash.update(piece_size_bytes.to_le_bytes());
    match pieces {
        PieceHashes::Sha256(hashes) => hash.update(hashes.as_flattened()),
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
    pieces: HashesOnDisk,
}

/// All hashes joined, in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum HashesOnDisk {
    Sha256(String),
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
            infohash: manifest.infohash.map(|hash| hash.to_string()),
            pieces: match &manifest.pieces {
                PieceHashes::Sha256(hashes) => HashesOnDisk::Sha256(BASE64.encode(hashes.as_flattened())),
                PieceHashes::Sha1(hashes) => HashesOnDisk::Sha1(BASE64.encode(hashes.as_flattened())),
            },
        }
    }
}

impl TryFrom<OnDisk> for Manifest {
    type Error = Error;
    fn try_from(file: OnDisk) -> Result<Self, Error> {
        if file.version != VERSION {
            return Err(Error::ManifestVersion { found: file.version, known: VERSION });
        }
        let infohash = file.infohash.map(|text| text.parse::<InfoHash>()).transpose();
        let infohash = infohash.map_err(|error| Error::BadManifest(error.to_string()))?;
        let pieces = match &file.pieces {
            HashesOnDisk::Sha256(text) => PieceHashes::Sha256(split(text)?),
            HashesOnDisk::Sha1(text) => PieceHashes::Sha1(split(text)?),
        };
        Self::new(Parts {
            name: file.name,
            size_bytes: file.size_bytes,
            piece_size_bytes: file.piece_size_bytes,
            digest: file.digest,
            pieces,
            infohash,
        })
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
    use proptest::prelude::*;

    const PIECE: usize = 16 << 10;

    fn parts(content: &[u8]) -> Parts {
        Parts {
            name: "debian".into(),
            size_bytes: content.len() as u64,
            piece_size_bytes: PIECE as u64,
            digest: Some(Digest(sha256(content))),
            pieces: PieceHashes::Sha256(content.chunks(PIECE).map(sha256).collect()),
            infohash: Some(InfoHash([0xab; 20])),
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
        refuse(|p| p.pieces = PieceHashes::Sha256(vec![]), "lists 0 hashes");
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
        refuse("\"version\": 1", "\"version\": 2", "has version 2, this program reads version 1");
        refuse("\"version\": 1", "\"vision\": 1", "missing field `version`");
        refuse("\"size_bytes\": 32768", "\"size_bytes\": 32769", "are 3 pieces");
        refuse("\"sha256\": \"", "\"sha256\": \"AAAA", "no multiple of 32");
        refuse("\"sha256\": \"", "\"sha256\": \"!", "not base64");
        refuse("\"sha256\": \"", "\"md5\": \"", "unknown variant");
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
            (512, 256 << 10),
            (256 * mib - 1, 256 << 10),
            (256 * mib, 1 << 20),
            (4096 * mib - 1, 1 << 20),
            (4096 * mib, 4 << 20),
            (32 * 1024 * mib, 8 << 20),
            (128 * 1024 * mib, 16 << 20),
            (MAX_IMAGE_BYTES, 16 << 20),
        ] {
            assert_eq!(piece_size_for(size), piece, "{size}");
            assert!(size.div_ceil(u64::from(piece)) <= MAX_PIECES);
        }
    }

    proptest! {
        #[test]
        fn json_round_trips(content in prop::collection::vec(any::<u8>(), 1..100_000), sha1_only in any::<bool>()) {
            let mut parts = parts(&content);
            if sha1_only {
                parts.pieces = PieceHashes::Sha1(content.chunks(PIECE).map(sha1).collect());
                parts.digest = None;
                parts.infohash = None;
            }
            let manifest = Manifest::new(parts).unwrap();
            prop_assert_eq!(&Manifest::from_json(manifest.to_json().as_bytes()).unwrap(), &manifest);
            let embedded: Manifest = serde_json::from_str(&serde_json::to_string(&manifest).unwrap()).unwrap();
            prop_assert_eq!(&embedded, &manifest);
        }

        #[test]
        fn no_bytes_make_from_json_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::from_json(&text);
        }
    }
}
