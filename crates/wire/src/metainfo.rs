//! Torrent files (BEP 3, announce-list of BEP 12, private flag of BEP 27) of
//! exactly one file: a disk image. The bytes of the info dictionary are kept
//! as they came, so keys that we do not read (BEP 52's among them) survive
//! and the info-hash stays what its author computed.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest, Sha1};

use crate::bencode::{BencodeError, Dictionary, Value};

/// Largest torrent file that is read: [`MAX_PIECES`] hashes and room for the
/// rest.
pub const MAX_METAINFO_BYTES: usize = 24 << 20;

/// Most pieces that a torrent may have.
pub const MAX_PIECES: u32 = 1 << 20;

/// Smallest and largest piece length; it is a power of two between them, as
/// every known author makes it and BEP 52 demands it.
pub const PIECE_LENGTH_RANGE: (u32, u32) = (16 << 10, 64 << 20);

const MAX_NAME_BYTES: usize = 255;
const MAX_TRACKERS: usize = 64;
const MAX_TRACKER_BYTES: usize = 2048;
const HASH_BYTES: usize = 20;

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
        /// Key as in BEP 3.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// The torrent describes a folder.
    #[error("the torrent has several files; images are a single file: publish the image file alone")]
    MultiFile,
    /// The torrent has only BEP 52 hashes.
    #[error("the torrent has only version 2 hashes; make a version 1 or hybrid torrent")]
    OnlyVersion2,
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

/// SHA-1 of the info dictionary: the name of a swarm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash(pub [u8; HASH_BYTES]);

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InfoHash({self})")
    }
}

/// The text is not 40 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an info-hash is written as 40 hexadecimal digits")]
pub struct InfoHashError;

impl FromStr for InfoHash {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<InfoHash, InfoHashError> {
        if text.len() != 2 * HASH_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InfoHashError);
        }
        let mut hash = [0; HASH_BYTES];
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| InfoHashError)?;
        }
        Ok(InfoHash(hash))
    }
}

/// What the info dictionary says of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Suggested file name.
    pub name: String,
    /// Bytes of every piece but the last.
    pub piece_length: u32,
    /// Bytes of the file.
    pub length: u64,
    /// SHA-1 of each piece.
    pub pieces: Vec<[u8; HASH_BYTES]>,
    /// Peers come from the tracker only (BEP 27).
    pub private: bool,
}

impl Info {
    /// Checks the rules that hold for built and for received torrents alike.
    fn check(&self) -> Result<(), MetainfoError> {
        check_name(&self.name)?;
        let expected = piece_count(self.length, u64::from(self.piece_length))?;
        if self.pieces.len() as u64 != expected {
            return Err(MetainfoError::PiecesLength {
                found: (self.pieces.len() * HASH_BYTES) as u64,
                expected: expected * HASH_BYTES as u64,
            });
        }
        Ok(())
    }

    fn to_value<'a>(&'a self, hashes: &'a [u8]) -> Value<'a> {
        let mut pairs = vec![
            (b"length".as_slice(), Value::Integer(self.length.into())),
            (b"name", Value::Bytes(self.name.as_bytes())),
            (b"piece length", Value::Integer(self.piece_length.into())),
            (b"pieces", Value::Bytes(hashes)),
        ];
        if self.private {
            pairs.push((b"private", Value::Integer(1)));
        }
        Value::Dictionary(Dictionary::new(pairs))
    }
}

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
        if announce.len() > MAX_TRACKERS || announce.iter().any(|url| url.len() > MAX_TRACKER_BYTES) {
            return Err(MetainfoError::Field { field: "announce", expected: "at most 64 addresses of 2048 bytes" });
        }
        let raw_info = info.to_value(info.pieces.as_flattened()).encode()?;
        Ok(Metainfo { info, announce, raw_info })
    }

    /// Reads a torrent file.
    ///
    /// # Errors
    /// When the file is not a single-file torrent within the limits of this
    /// module.
    pub fn decode(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
        if bytes.len() > MAX_METAINFO_BYTES {
            return Err(MetainfoError::TooLarge { bytes: bytes.len() });
        }
        let value = Value::decode(bytes)?;
        let top = value.as_dictionary().ok_or(MetainfoError::Field { field: "torrent", expected: "a dictionary" })?;
        let info = top
            .get("info")
            .and_then(Value::as_dictionary)
            .ok_or(MetainfoError::Field { field: "info", expected: "a dictionary" })?;
        Ok(Metainfo {
            info: decode_info(info)?,
            announce: decode_trackers(top),
            raw_info: info.raw().unwrap_or_default().to_vec(),
        })
    }

    /// The torrent file: trackers and the info dictionary as it was.
    ///
    /// # Errors
    /// Not for a value that `new` or `decode` made.
    pub fn encode(&self) -> Result<Vec<u8>, MetainfoError> {
        let info = Value::decode(&self.raw_info)?;
        let mut pairs = vec![(b"info".as_slice(), info)];
        if let Some(first) = self.announce.first() {
            pairs.push((b"announce", Value::Bytes(first.as_bytes())));
        }
        if self.announce.len() > 1 {
            pairs.push((b"announce-list", Value::List(self.announce.iter().map(|url| tier(url)).collect())));
        }
        Ok(Value::Dictionary(Dictionary::new(pairs)).encode()?)
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

    /// The name of the swarm.
    pub fn info_hash(&self) -> InfoHash {
        InfoHash(Sha1::digest(&self.raw_info).into())
    }
}

fn tier(url: &str) -> Value<'_> {
    Value::List(vec![Value::Bytes(url.as_bytes())])
}

fn decode_info(info: &Dictionary<'_>) -> Result<Info, MetainfoError> {
    if info.get("files").is_some() {
        return Err(MetainfoError::MultiFile);
    }
    let Some(pieces) = info.get("pieces") else {
        return Err(match info.get("meta version") {
            Some(_) => MetainfoError::OnlyVersion2,
            None => MetainfoError::Field { field: "pieces", expected: "a byte string" },
        });
    };
    let hashes = pieces.as_bytes().ok_or(MetainfoError::Field { field: "pieces", expected: "a byte string" })?;
    let length = number(info, "length")?;
    let piece_length = number(info, "piece length")?;
    let expected = piece_count(length, piece_length)? * HASH_BYTES as u64;
    if hashes.len() as u64 != expected {
        return Err(MetainfoError::PiecesLength { found: hashes.len() as u64, expected });
    }
    let name = info
        .get("name")
        .and_then(Value::as_text)
        .ok_or(MetainfoError::Field { field: "name", expected: "UTF-8 text" })?;
    check_name(name)?;
    Ok(Info {
        name: name.to_owned(),
        piece_length: u32::try_from(piece_length).map_err(|_| MetainfoError::PieceLength(piece_length))?,
        length,
        pieces: hashes.as_chunks().0.to_vec(),
        private: info.get("private").and_then(Value::as_integer::<u8>) == Some(1),
    })
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
            pieces: (0..pieces).map(|piece| [piece as u8; 20]).collect(),
            private: true,
        }
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
        assert_eq!(read.info().pieces, vec![[b'x'; 20]]);
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

    #[test]
    fn refusals_say_what_is_wrong() {
        type Is = fn(&MetainfoError) -> bool;
        let hash = "6:pieces20:xxxxxxxxxxxxxxxxxxxx";
        let table: Vec<(String, Is)> = vec![
            (format!("d5:filesle4:name1:a12:piece lengthi16384e{hash}e"), |e| *e == MetainfoError::MultiFile),
            ("d12:meta versioni2e4:name1:ae".into(), |e| *e == MetainfoError::OnlyVersion2),
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
        short.pieces.pop();
        assert!(matches!(Metainfo::new(short, Vec::new()), Err(MetainfoError::PiecesLength { .. })));
        let mut named = info(1, 16 << 10);
        named.name = "../x".to_owned();
        assert!(matches!(Metainfo::new(named, Vec::new()), Err(MetainfoError::Name(_))));
        let many = vec!["http://t/".to_owned(); MAX_TRACKERS + 1];
        assert!(Metainfo::new(info(1, 16 << 10), many).is_err());
    }

    #[test]
    fn an_info_hash_is_written_and_read_in_hexadecimal() {
        let hash = InfoHash([0xA5; 20]);
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for text in ["", "a5", "zz", &"+5".repeat(20), &"é".repeat(20)] {
            assert_eq!(text.parse::<InfoHash>(), Err(InfoHashError));
        }
    }

    proptest! {
        #[test]
        fn any_size_survives(length in 1u64..5_000_000, shift in 14u32..20, private: bool) {
            let mut described = info(length, 1 << shift);
            described.private = private;
            let built = Metainfo::new(described, vec!["http://t/announce".to_owned()]).unwrap();
            prop_assert_eq!(Metainfo::decode(&built.encode().unwrap()).unwrap(), built);
        }
    }
}
