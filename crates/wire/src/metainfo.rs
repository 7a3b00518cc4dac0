//! Torrent files of exactly one file, a disk image: version 1 (BEP 3), version
//! 2 and hybrid (BEP 52), with the announce-list of BEP 12 and the private flag
//! of BEP 27. The bytes of the info dictionary are kept as they came, so keys
//! that we do not read survive and the info-hashes stay what their author
//! computed.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::bencode::{BencodeError, Dictionary, Value};

pub mod merkle;

use merkle::{FileTree, Hash};

/// Largest torrent file that is read: [`MAX_PIECES`] hashes of both versions
/// and room for the rest.
pub const MAX_METAINFO_BYTES: usize = 56 << 20;

/// Most pieces that a torrent may have.
pub const MAX_PIECES: u32 = 1 << 20;

/// Smallest and largest piece length; it is a power of two between them, as
/// every known author makes it and BEP 52 demands it.
pub const PIECE_LENGTH_RANGE: (u32, u32) = (16 << 10, 64 << 20);

const MAX_NAME_BYTES: usize = 255;
const MAX_TRACKERS: usize = 64;
const MAX_TRACKER_BYTES: usize = 2048;
const HASH_BYTES: usize = 20;
const HASH_V2_BYTES: usize = 32;
const META_VERSION: u64 = 2;

/// Why a torrent is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// The bytes are not bencode.
    #[error("the torrent is unreadable: {0}")]
    Bencode(#[from] BencodeError),
    /// The file exceeds [`MAX_METAINFO_BYTES`].
    #[error("the torrent has {bytes} bytes; at most {MAX_METAINFO_BYTES} are read: make it with longer pieces")]
    TooLarge {
        /// Size of the file.
        bytes: usize,
    },
    /// A required field is absent or has another type or range.
    #[error("the torrent's field \"{field}\" is missing or not {expected}")]
    Field {
        /// Key as in BEP 3 or BEP 52.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// The torrent describes a folder.
    #[error("the torrent has several files or a folder; images are a single file: publish the image file alone")]
    MultiFile,
    /// The torrent is of a version that is not known here.
    #[error("the torrent has meta version {0}; versions 1 and 2 are known: make it anew")]
    MetaVersion(u64),
    /// The two halves of a hybrid torrent contradict each other.
    #[error("the torrent's version 1 half says {v1} bytes and its version 2 half {v2}: it is damaged or hostile")]
    Disagreement {
        /// `length`.
        v1: u64,
        /// The length in `file tree`.
        v2: u64,
    },
    /// The piece layer is absent or another file's.
    #[error("the torrent's piece layers do not hash to its pieces root: get the torrent again")]
    PieceLayers,
    /// The piece length is not usable.
    #[error("a piece length of {0} bytes is refused: it must be a power of two from 16 KiB to 64 MiB")]
    PieceLength(u64),
    /// The length of the file is zero or needs more than [`MAX_PIECES`].
    #[error(
        "a file of {length} bytes with pieces of {piece_length} bytes is refused: 1 to {MAX_PIECES} pieces are supported"
    )]
    Length {
        /// Bytes of the file.
        length: u64,
        /// Bytes of a piece.
        piece_length: u32,
    },
    /// The number of hashes does not fit the length.
    #[error("the torrent has {found} bytes of piece hashes where its length needs {expected}")]
    PiecesLength {
        /// Bytes of `pieces`.
        found: u64,
        /// Bytes that `length` and `piece length` demand.
        expected: u64,
    },
    /// The name could lead out of a folder.
    #[error("the torrent's name {0:?} is refused: it must be a plain file name of at most {MAX_NAME_BYTES} bytes")]
    Name(String),
}

/// SHA-1 of the info dictionary, or its SHA-256 cut to the same length: the
/// name of a swarm in handshakes and announces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash(pub [u8; HASH_BYTES]);

/// SHA-256 of the info dictionary (BEP 52).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHashV2(pub [u8; HASH_V2_BYTES]);

impl InfoHashV2 {
    /// The first 20 bytes, which stand where there is no room for all.
    #[must_use]
    pub fn truncated(&self) -> InfoHash {
        let mut short = [0; HASH_BYTES];
        short.copy_from_slice(&self.0[..HASH_BYTES]);
        InfoHash(short)
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InfoHash({self})")
    }
}

impl fmt::Debug for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InfoHashV2({self})")
    }
}

/// The text is not 40 (version 2: 64) hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an info-hash is written as 40 hexadecimal digits, one of version 2 as 64")]
pub struct InfoHashError;

impl FromStr for InfoHash {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<InfoHash, InfoHashError> {
        read_hex(text).map(InfoHash)
    }
}

impl FromStr for InfoHashV2 {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<InfoHashV2, InfoHashError> {
        read_hex(text).map(InfoHashV2)
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn read_hex<const N: usize>(text: &str) -> Result<[u8; N], InfoHashError> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(InfoHashError);
    }
    let mut hash = [0; N];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| InfoHashError)?;
    }
    Ok(hash)
}

/// What the info dictionary says of the file. At least one version's hashes
/// are there; both in a hybrid torrent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Suggested file name.
    pub name: String,
    /// Bytes of every piece but the last.
    pub piece_length: u32,
    /// Bytes of the file.
    pub length: u64,
    /// Version 1: SHA-1 of each piece.
    pub pieces: Option<Vec<[u8; HASH_BYTES]>>,
    /// Version 2: the hash tree of the file.
    pub v2: Option<HashesV2>,
    /// Peers come from the tracker only (BEP 27).
    pub private: bool,
}

/// What a version 2 torrent says of its file's hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashesV2 {
    /// The root of the tree, which the info-hash covers.
    pub pieces_root: Hash,
    /// The root of each piece. They stand outside the info dictionary, so
    /// whoever has only that one (BEP 9) has none until a peer sends them.
    pub piece_roots: Option<Vec<Hash>>,
}

impl HashesV2 {
    /// Of a file whose piece roots are known.
    #[must_use]
    pub fn of(length: u64, piece_length: u32, piece_roots: Vec<Hash>) -> Self {
        Self { pieces_root: FileTree::new(length, piece_length).root(&piece_roots), piece_roots: Some(piece_roots) }
    }
}

impl Info {
    /// Number of pieces.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        u32::try_from(self.length.div_ceil(u64::from(self.piece_length.max(1)))).unwrap_or(u32::MAX)
    }

    /// The shape of the file's hash tree.
    #[must_use]
    pub fn tree(&self) -> FileTree {
        FileTree::new(self.length, self.piece_length)
    }

    /// Checks the rules that hold for built and for received torrents alike.
    fn check(&self) -> Result<(), MetainfoError> {
        check_name(&self.name)?;
        let expected = piece_count(self.length, u64::from(self.piece_length))?;
        match &self.pieces {
            Some(pieces) if pieces.len() as u64 != expected => {
                return Err(MetainfoError::PiecesLength {
                    found: (pieces.len() * HASH_BYTES) as u64,
                    expected: expected * HASH_BYTES as u64,
                });
            }
            None if self.v2.is_none() => return Err(NO_HASHES),
            _ => {}
        }
        match self.v2.as_ref().map(|v2| (v2.pieces_root, v2.piece_roots.as_deref())) {
            Some((root, Some(roots))) if roots.len() as u64 != expected || self.tree().root(roots) != root => {
                Err(MetainfoError::PieceLayers)
            }
            _ => Ok(()),
        }
    }

    fn to_value(&self) -> Value<'_> {
        let mut pairs = vec![
            (b"name".as_slice(), Value::Bytes(self.name.as_bytes())),
            (b"piece length", Value::Integer(self.piece_length.into())),
        ];
        if let Some(pieces) = &self.pieces {
            pairs.push((b"length", Value::Integer(self.length.into())));
            pairs.push((b"pieces", Value::Bytes(pieces.as_flattened())));
        }
        if let Some(v2) = &self.v2 {
            pairs.push((b"meta version", Value::Integer(META_VERSION.into())));
            let file = dictionary(vec![
                (b"length", Value::Integer(self.length.into())),
                (b"pieces root", Value::Bytes(&v2.pieces_root)),
            ]);
            pairs.push((b"file tree", dictionary(vec![(self.name.as_bytes(), dictionary(vec![(b"", file)]))])));
        }
        if self.private {
            pairs.push((b"private", Value::Integer(1)));
        }
        dictionary(pairs)
    }
}

const NO_HASHES: MetainfoError = MetainfoError::Field { field: "pieces", expected: "a byte string" };

/// A torrent file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metainfo {
    info: Info,
    announce: Vec<String>,
    raw_info: Vec<u8>,
}

impl Metainfo {
    /// A new torrent; `announce` are the trackers in the order to try them.
    ///
    /// # Errors
    /// When `info` breaks a rule that `decode` would refuse it for.
    pub fn new(info: Info, announce: Vec<String>) -> Result<Metainfo, MetainfoError> {
        info.check()?;
        if info.v2.as_ref().is_some_and(|v2| v2.piece_roots.is_none()) {
            return Err(MetainfoError::PieceLayers);
        }
        check_trackers(&announce)?;
        let raw_info = info.to_value().encode()?;
        Ok(Metainfo { info, announce, raw_info })
    }

    /// Reads a torrent file.
    ///
    /// # Errors
    /// When the file is not a single-file torrent within the limits of this
    /// module, or its hashes contradict each other.
    pub fn decode(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
        if bytes.len() > MAX_METAINFO_BYTES {
            return Err(MetainfoError::TooLarge { bytes: bytes.len() });
        }
        let value = Value::decode(bytes)?;
        let top = value.as_dictionary().ok_or(MetainfoError::Field { field: "torrent", expected: "a dictionary" })?;
        let raw = top
            .get("info")
            .and_then(Value::as_dictionary)
            .ok_or(MetainfoError::Field { field: "info", expected: "a dictionary" })?;
        let mut info = decode_info(raw)?;
        let tree = info.tree();
        if let Some(v2) = &mut info.v2 {
            v2.piece_roots = Some(decode_layer(top, &v2.pieces_root, tree)?);
        }
        info.check()?;
        Ok(Metainfo { info, announce: decode_trackers(top), raw_info: raw.raw().unwrap_or_default().to_vec() })
    }

    /// A torrent of which only the info dictionary is known, as peers hand it
    /// out (BEP 9). The caller has compared the info-hash. Of a version 2 file
    /// of several pieces the piece roots are still to be learnt.
    ///
    /// # Errors
    /// As [`Metainfo::decode`].
    pub fn from_info(raw_info: &[u8], announce: Vec<String>) -> Result<Metainfo, MetainfoError> {
        if raw_info.len() > MAX_METAINFO_BYTES {
            return Err(MetainfoError::TooLarge { bytes: raw_info.len() });
        }
        check_trackers(&announce)?;
        let value = Value::decode(raw_info)?;
        let raw = value.as_dictionary().ok_or(MetainfoError::Field { field: "info", expected: "a dictionary" })?;
        let mut info = decode_info(raw)?;
        let pieces = info.piece_count();
        if let Some(v2) = info.v2.as_mut().filter(|_| pieces == 1) {
            v2.piece_roots = Some(vec![v2.pieces_root]);
        }
        info.check()?;
        Ok(Metainfo { info, announce, raw_info: raw_info.to_vec() })
    }

    /// The same torrent with the piece roots that peers sent (BEP 52).
    ///
    /// # Errors
    /// When they do not hash to the root, or there is no version 2.
    pub fn with_piece_roots(mut self, piece_roots: Vec<Hash>) -> Result<Metainfo, MetainfoError> {
        let v2 = self.info.v2.as_mut().ok_or(MetainfoError::PieceLayers)?;
        v2.piece_roots = Some(piece_roots);
        self.info.check()?;
        Ok(self)
    }

    /// The torrent file: trackers, the info dictionary as it was, the piece
    /// layer.
    ///
    /// # Errors
    /// [`MetainfoError::PieceLayers`] while the piece roots are to be learnt.
    pub fn encode(&self) -> Result<Vec<u8>, MetainfoError> {
        let info = Value::decode(&self.raw_info)?;
        let mut pairs = vec![(b"info".as_slice(), info)];
        if let Some(v2) = &self.info.v2 {
            let roots = v2.piece_roots.as_ref().ok_or(MetainfoError::PieceLayers)?;
            // A file of one piece has no entry: its root is its piece's.
            let layer = (roots.len() > 1).then(|| (v2.pieces_root.as_slice(), Value::Bytes(roots.as_flattened())));
            pairs.push((b"piece layers", dictionary(layer.into_iter().collect())));
        }
        if let Some(first) = self.announce.first() {
            pairs.push((b"announce", Value::Bytes(first.as_bytes())));
        }
        if self.announce.len() > 1 {
            pairs.push((b"announce-list", Value::List(self.announce.iter().map(|url| tier(url)).collect())));
        }
        Ok(dictionary(pairs).encode()?)
    }

    /// The same torrent with other trackers.
    ///
    /// # Errors
    /// When there are too many, or one is too long.
    pub fn with_trackers(self, announce: Vec<String>) -> Result<Metainfo, MetainfoError> {
        check_trackers(&announce)?;
        Ok(Metainfo { announce, ..self })
    }

    /// What the torrent says of the file.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The trackers, tiers flattened, in the order to try them.
    pub fn announce(&self) -> &[String] {
        &self.announce
    }

    /// The exact bytes of the info dictionary.
    pub fn raw_info(&self) -> &[u8] {
        &self.raw_info
    }

    /// The name of the version 1 swarm, if the torrent has that version.
    pub fn v1(&self) -> Option<InfoHash> {
        self.info.pieces.as_ref().map(|_| InfoHash(Sha1::digest(&self.raw_info).into()))
    }

    /// The version 2 info-hash, if the torrent has that version.
    pub fn v2(&self) -> Option<InfoHashV2> {
        self.info.v2.as_ref().map(|_| InfoHashV2(Sha256::digest(&self.raw_info).into()))
    }

    /// The name of the swarm that everybody who reads this torrent can join:
    /// version 1's where there is one, else the truncated one of version 2.
    pub fn info_hash(&self) -> InfoHash {
        self.v1().unwrap_or_else(|| InfoHashV2(Sha256::digest(&self.raw_info).into()).truncated())
    }
}

fn dictionary<'a>(pairs: Vec<(&'a [u8], Value<'a>)>) -> Value<'a> {
    Value::Dictionary(Dictionary::new(pairs))
}

fn tier(url: &str) -> Value<'_> {
    Value::List(vec![Value::Bytes(url.as_bytes())])
}

fn check_trackers(announce: &[String]) -> Result<(), MetainfoError> {
    if announce.len() > MAX_TRACKERS || announce.iter().any(|url| url.len() > MAX_TRACKER_BYTES) {
        return Err(MetainfoError::Field { field: "announce", expected: "at most 64 addresses of 2048 bytes" });
    }
    Ok(())
}

/// Everything but the piece layer, which is not in the info dictionary.
fn decode_info(info: &Dictionary<'_>) -> Result<Info, MetainfoError> {
    if info.get("files").is_some() {
        return Err(MetainfoError::MultiFile);
    }
    let name = info
        .get("name")
        .and_then(Value::as_text)
        .ok_or(MetainfoError::Field { field: "name", expected: "UTF-8 text" })?;
    check_name(name)?;
    let piece_length = number(info, "piece length")?;
    let v1 = info.get("pieces").map(|pieces| decode_v1(info, pieces, piece_length)).transpose()?;
    let v2 = match info.get("meta version") {
        None => None,
        Some(version) if version.as_integer() == Some(META_VERSION) => Some(decode_v2(info, name, piece_length)?),
        Some(version) => return Err(MetainfoError::MetaVersion(version.as_integer().unwrap_or_default())),
    };
    let length = match (&v1, &v2) {
        (Some((v1, _)), Some((v2, _))) if v1 != v2 => return Err(MetainfoError::Disagreement { v1: *v1, v2: *v2 }),
        (Some((length, _)), _) | (None, Some((length, _))) => *length,
        (None, None) => return Err(NO_HASHES),
    };
    Ok(Info {
        name: name.to_owned(),
        piece_length: u32::try_from(piece_length).map_err(|_| MetainfoError::PieceLength(piece_length))?,
        length,
        pieces: v1.map(|(_, pieces)| pieces),
        v2: v2.map(|(_, pieces_root)| HashesV2 { pieces_root, piece_roots: None }),
        private: info.get("private").and_then(Value::as_integer::<u8>) == Some(1),
    })
}

/// Length and hashes as version 1 has them.
fn decode_v1(
    info: &Dictionary<'_>,
    pieces: &Value<'_>,
    piece_length: u64,
) -> Result<(u64, Vec<[u8; HASH_BYTES]>), MetainfoError> {
    let hashes = pieces.as_bytes().ok_or(NO_HASHES)?;
    let length = number(info, "length")?;
    let expected = piece_count(length, piece_length)? * HASH_BYTES as u64;
    if hashes.len() as u64 != expected {
        return Err(MetainfoError::PiecesLength { found: hashes.len() as u64, expected });
    }
    Ok((length, hashes.as_chunks().0.to_vec()))
}

/// Length and root as version 2 has them: `{ name: { "": { length, pieces root } } }`.
fn decode_v2(info: &Dictionary<'_>, name: &str, piece_length: u64) -> Result<(u64, Hash), MetainfoError> {
    let tree = info
        .get("file tree")
        .and_then(Value::as_dictionary)
        .ok_or(MetainfoError::Field { field: "file tree", expected: "a dictionary" })?;
    let node = only(tree, name).and_then(Value::as_dictionary).ok_or(MetainfoError::MultiFile)?;
    let file = only(node, "").and_then(Value::as_dictionary).ok_or(MetainfoError::MultiFile)?;
    let length = number(file, "length")?;
    piece_count(length, piece_length)?;
    let root = file
        .get("pieces root")
        .and_then(Value::as_bytes)
        .and_then(|root| root.try_into().ok())
        .ok_or(MetainfoError::Field { field: "pieces root", expected: "32 bytes" })?;
    Ok((length, root))
}

/// The value of the only key of a dictionary, if that is this one.
fn only<'d, 'a>(dictionary: &'d Dictionary<'a>, key: &str) -> Option<&'d Value<'a>> {
    dictionary.get(key).filter(|_| dictionary.iter().count() == 1)
}

/// The roots of the pieces; the caller compares them with the root.
fn decode_layer(top: &Dictionary<'_>, root: &Hash, tree: FileTree) -> Result<Vec<Hash>, MetainfoError> {
    if tree.piece_layer() == tree.height() {
        return Ok(vec![*root]);
    }
    let layers = top
        .get("piece layers")
        .and_then(Value::as_dictionary)
        .ok_or(MetainfoError::Field { field: "piece layers", expected: "a dictionary" })?;
    let mut found = layers.iter().filter(|(key, _)| *key == root);
    let (_, layer) = found.next().ok_or(MetainfoError::PieceLayers)?;
    match layer.as_bytes().unwrap_or_default().as_chunks() {
        (roots, []) => Ok(roots.to_vec()),
        _ => Err(MetainfoError::PieceLayers),
    }
}

fn number(info: &Dictionary<'_>, field: &'static str) -> Result<u64, MetainfoError> {
    info.get(field)
        .and_then(Value::as_integer)
        .ok_or(MetainfoError::Field { field, expected: "a number that is not negative" })
}

fn piece_count(length: u64, piece_length: u64) -> Result<u64, MetainfoError> {
    let (shortest, longest) = PIECE_LENGTH_RANGE;
    let narrow = u32::try_from(piece_length).map_err(|_| MetainfoError::PieceLength(piece_length))?;
    if !(shortest..=longest).contains(&narrow) || !narrow.is_power_of_two() {
        return Err(MetainfoError::PieceLength(piece_length));
    }
    let pieces = length.div_ceil(piece_length);
    if pieces == 0 || pieces > u64::from(MAX_PIECES) {
        return Err(MetainfoError::Length { length, piece_length: narrow });
    }
    Ok(pieces)
}

/// The name may end up as a file name on somebody's disk.
fn check_name(name: &str) -> Result<(), MetainfoError> {
    let plain = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == '\\' || c.is_control());
    if plain { Ok(()) } else { Err(MetainfoError::Name(name.chars().take(MAX_NAME_BYTES).collect())) }
}

/// BEP 12: where there is an announce-list, `announce` is not read. Entries
/// that are no text or too long are passed over, the rest may still work.
fn decode_trackers(top: &Dictionary<'_>) -> Vec<String> {
    let tiers = top.get("announce-list").and_then(Value::as_list).unwrap_or_default();
    let mut urls: Vec<&str> = tiers.iter().filter_map(Value::as_list).flatten().filter_map(Value::as_text).collect();
    if urls.is_empty() {
        urls.extend(top.get("announce").and_then(Value::as_text));
    }
    urls.retain(|url| !url.is_empty() && url.len() <= MAX_TRACKER_BYTES);
    urls.truncate(MAX_TRACKERS);
    urls.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(length: u64, piece_length: u32) -> Info {
        let pieces = length.div_ceil(piece_length.into());
        Info {
            name: "node.img".to_owned(),
            piece_length,
            length,
            pieces: Some((0..pieces).map(|piece| [piece as u8; 20]).collect()),
            v2: None,
            private: true,
        }
    }

    /// The same file with the hashes of both versions.
    fn hybrid(length: u64, piece_length: u32) -> Info {
        let pieces = length.div_ceil(piece_length.into());
        let roots = (0..pieces).map(|piece| merkle::leaf(&piece.to_le_bytes())).collect();
        Info { v2: Some(HashesV2::of(length, piece_length, roots)), ..info(length, piece_length) }
    }

    fn only_v2(length: u64, piece_length: u32) -> Info {
        Info { pieces: None, ..hybrid(length, piece_length) }
    }

    fn torrent(info: &[u8]) -> Vec<u8> {
        [b"d8:announce14:http://t/x?a=14:info", info, b"e"].concat()
    }

    #[test]
    fn a_built_torrent_reads_back_the_same() {
        let trackers = vec!["http://10.0.0.1:6969/announce".to_owned(), "http://10.0.0.2/announce".to_owned()];
        for trackers in [Vec::new(), trackers[..1].to_vec(), trackers] {
            let built = Metainfo::new(info(100_000, 32 << 10), trackers).unwrap();
            assert_eq!(Metainfo::decode(&built.encode().unwrap()).unwrap(), built);
        }
    }

    /// The digest was computed with sha1sum over the bytes below.
    #[test]
    fn the_info_hash_covers_the_exact_bytes_unknown_keys_included() {
        let raw = [
            b"d6:lengthi5e4:name1:a12:piece lengthi16384e6:pieces20:".as_slice(),
            &[b'x'; 20],
            b"7:privatei1e5:x-newli7eee",
        ]
        .concat();
        let read = Metainfo::decode(&torrent(&raw)).unwrap();
        assert_eq!(read.raw_info(), raw);
        assert_eq!(read.info().pieces, Some(vec![[b'x'; 20]]));
        assert_eq!((read.v1(), read.v2()), (Some(read.info_hash()), None));
        assert!(read.info().private);
        assert_eq!(read.announce(), ["http://t/x?a=1"]);
        assert_eq!(Metainfo::decode(&read.encode().unwrap()).unwrap().info_hash(), read.info_hash());
        assert_eq!(read.info_hash().to_string(), "8ffe26c2e248530d3b0378e0274a97a832f7fc6a");
    }

    #[test]
    fn an_announce_list_replaces_announce() {
        let built = Metainfo::new(info(1, 16 << 10), Vec::new()).unwrap();
        let bytes =
            [b"d8:announce3:old13:announce-listll1:a1:bel1:cee4:info".as_slice(), built.raw_info(), b"e"].concat();
        assert_eq!(Metainfo::decode(&bytes).unwrap().announce(), ["a", "b", "c"]);
    }

    /// An info dictionary of version 2.
    fn v2(file: &str, length: &str, root_bytes: usize) -> String {
        let root = "r".repeat(root_bytes);
        format!(
            "d9:file treed{file}d0:d6:length{length}11:pieces root{root_bytes}:{root}eee12:meta versioni2e4:name1:a\
             12:piece lengthi16384ee"
        )
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        type Is = fn(&MetainfoError) -> bool;
        let hash = "6:pieces20:xxxxxxxxxxxxxxxxxxxx";
        let table: Vec<(String, Is)> = vec![
            (format!("d5:filesle4:name1:a12:piece lengthi16384e{hash}e"), |e| *e == MetainfoError::MultiFile),
            ("d12:meta versioni3e4:name1:a12:piece lengthi16384ee".into(), |e| *e == MetainfoError::MetaVersion(3)),
            ("d12:meta versioni2e4:name1:a12:piece lengthi16384ee".into(), |e| {
                matches!(e, MetainfoError::Field { field: "file tree", .. })
            }),
            (v2("1:b", "i5e", 32), |e| *e == MetainfoError::MultiFile),
            (v2("1:a", "i5e", 31), |e| matches!(e, MetainfoError::Field { field: "pieces root", .. })),
            (v2("1:a", "i-1e", 32), |e| matches!(e, MetainfoError::Field { field: "length", .. })),
            (v2("1:a", "i0e", 32), |e| matches!(e, MetainfoError::Length { .. })),
            (v2("1:a", "i16385e", 32), |e| matches!(e, MetainfoError::Field { field: "piece layers", .. })),
            (
                format!(
                    "d9:file treed1:ad0:d6:lengthi5e11:pieces root32:{}eee6:lengthi6e12:meta versioni2e4:name1:a\
                     12:piece lengthi16384e{hash}e",
                    "r".repeat(32)
                ),
                |e| *e == MetainfoError::Disagreement { v1: 6, v2: 5 },
            ),
            ("d6:lengthi5e4:name1:a12:piece lengthi16384ee".into(), |e| {
                matches!(e, MetainfoError::Field { field: "pieces", .. })
            }),
            (format!("d4:name1:a12:piece lengthi16384e{hash}e"), |e| {
                matches!(e, MetainfoError::Field { field: "length", .. })
            }),
            (format!("d6:lengthi-5e4:name1:a12:piece lengthi16384e{hash}e"), |e| {
                matches!(e, MetainfoError::Field { field: "length", .. })
            }),
            (format!("d6:lengthi16385e4:name1:a12:piece lengthi16384e{hash}e"), |e| {
                *e == MetainfoError::PiecesLength { found: 20, expected: 40 }
            }),
            (format!("d6:lengthi0e4:name1:a12:piece lengthi16384e{hash}e"), |e| {
                matches!(e, MetainfoError::Length { .. })
            }),
            (format!("d6:lengthi9999999999999e4:name1:a12:piece lengthi16384e{hash}e"), |e| {
                matches!(e, MetainfoError::Length { .. })
            }),
            (format!("d6:lengthi5e4:name1:a12:piece lengthi16385e{hash}e"), |e| {
                *e == MetainfoError::PieceLength(16385)
            }),
            (format!("d6:lengthi5e4:name1:a12:piece lengthi8192e{hash}e"), |e| *e == MetainfoError::PieceLength(8192)),
            (format!("d6:lengthi5e4:name1:a12:piece lengthi4294967296e{hash}e"), |e| {
                *e == MetainfoError::PieceLength(1 << 32)
            }),
            (format!("d6:lengthi5e4:name2:..12:piece lengthi16384e{hash}e"), |e| matches!(e, MetainfoError::Name(_))),
            (format!("d6:lengthi5e4:name3:a/b12:piece lengthi16384e{hash}e"), |e| matches!(e, MetainfoError::Name(_))),
            (format!("d6:lengthi5e4:name0:12:piece lengthi16384e{hash}e"), |e| matches!(e, MetainfoError::Name(_))),
        ];
        for (raw, is) in table {
            let error = Metainfo::decode(&torrent(raw.as_bytes())).unwrap_err();
            assert!(is(&error), "{raw}: {error}");
        }
        assert!(matches!(Metainfo::decode(b"le"), Err(MetainfoError::Field { field: "torrent", .. })));
        assert!(matches!(Metainfo::decode(b"de"), Err(MetainfoError::Field { field: "info", .. })));
        assert!(matches!(Metainfo::decode(b"d"), Err(MetainfoError::Bencode(_))));
    }

    #[test]
    fn what_cannot_be_read_cannot_be_built() {
        let mut short = info(40_000, 16 << 10);
        short.pieces.as_mut().unwrap().pop();
        assert!(matches!(Metainfo::new(short, Vec::new()), Err(MetainfoError::PiecesLength { .. })));
        let mut none = info(1, 16 << 10);
        none.pieces = None;
        assert!(matches!(Metainfo::new(none, Vec::new()), Err(MetainfoError::Field { field: "pieces", .. })));
        for change in [
            |roots: &mut Vec<Hash>| roots[1][0] ^= 1,
            |roots: &mut Vec<Hash>| roots.truncate(1),
            |roots: &mut Vec<Hash>| roots.push([0; 32]),
            |roots: &mut Vec<Hash>| roots.clear(),
        ] {
            let mut changed = hybrid(100_000, 16 << 10);
            change(changed.v2.as_mut().unwrap().piece_roots.as_mut().unwrap());
            assert_eq!(Metainfo::new(changed, Vec::new()), Err(MetainfoError::PieceLayers));
        }
        let mut named = info(1, 16 << 10);
        named.name = "../x".to_owned();
        assert!(matches!(Metainfo::new(named, Vec::new()), Err(MetainfoError::Name(_))));
        let many = vec!["http://t/".to_owned(); MAX_TRACKERS + 1];
        assert!(Metainfo::new(info(1, 16 << 10), many).is_err());
    }

    #[test]
    fn damaged_piece_layers_are_refused() {
        let built = Metainfo::new(only_v2(100_000, 16 << 10), Vec::new()).unwrap();
        let bytes = built.encode().unwrap();
        let layer = built.info().v2.as_ref().unwrap().piece_roots.as_ref().unwrap()[1];
        let at = bytes.windows(32).position(|window| window == layer).unwrap();
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(Metainfo::decode(&damaged), Err(MetainfoError::PieceLayers));
        let without = String::from_utf8_lossy(&bytes).find("12:piece layers").unwrap();
        assert!(Metainfo::decode(&[&bytes[..without], b"e"].concat()).is_err());
    }

    #[test]
    fn piece_roots_are_learnt_after_the_info_dictionary() {
        let whole = Metainfo::new(only_v2(100_000, 16 << 10), Vec::new()).unwrap();
        let roots = whole.info().v2.as_ref().unwrap().piece_roots.clone().unwrap();
        let bare = Metainfo::from_info(whole.raw_info(), Vec::new()).unwrap();
        assert_eq!((bare.v2(), bare.v1()), (whole.v2(), None));
        assert_eq!(bare.info_hash(), whole.v2().unwrap().truncated());
        assert_eq!(bare.encode(), Err(MetainfoError::PieceLayers));
        let mut wrong = roots.clone();
        wrong.swap(0, 1);
        assert_eq!(bare.clone().with_piece_roots(wrong), Err(MetainfoError::PieceLayers));
        assert_eq!(bare.with_piece_roots(roots).unwrap(), whole);

        let one_piece = Metainfo::new(only_v2(10_000, 16 << 10), Vec::new()).unwrap();
        assert_eq!(Metainfo::from_info(one_piece.raw_info(), Vec::new()).unwrap(), one_piece);
        let old = Metainfo::new(info(10_000, 16 << 10), Vec::new()).unwrap();
        assert_eq!(Metainfo::from_info(old.raw_info(), Vec::new()).unwrap(), old);
        assert_eq!(old.with_piece_roots(vec![[0; 32]]), Err(MetainfoError::PieceLayers));
    }

    #[test]
    fn an_info_hash_is_written_and_read_in_hexadecimal() {
        let hash = InfoHash([0xA5; 20]);
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let long = InfoHashV2([0x5A; 32]);
        assert_eq!(long.to_string().parse(), Ok(long));
        assert_eq!(long.truncated(), InfoHash([0x5A; 20]));
        assert_eq!(hash.to_string().parse::<InfoHashV2>(), Err(InfoHashError));
        for text in ["", "a5", "zz", &"+5".repeat(20), &"é".repeat(20)] {
            assert_eq!(text.parse::<InfoHash>(), Err(InfoHashError));
        }
    }

    proptest! {
        #[test]
        fn any_size_survives(length in 1u64..5_000_000, shift in 14u32..20, private: bool, version in 0..3) {
            let make = [info, only_v2, hybrid][version as usize];
            let mut described = make(length, 1 << shift);
            described.private = private;
            let built = Metainfo::new(described, vec!["http://t/announce".to_owned()]).unwrap();
            prop_assert_eq!(Metainfo::decode(&built.encode().unwrap()).unwrap(), built);
        }
    }
}
