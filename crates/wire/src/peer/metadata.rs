//! Passing on the info dictionary (BEP 9, `ut_metadata`).

use bytes::Bytes;

use super::PeerError;
use crate::bencode::{Dictionary, Value};
use crate::metainfo::MAX_PIECES;

/// Bytes of every part of the info dictionary but the last.
pub const METADATA_PIECE_BYTES: u32 = 16 * 1024;

/// Largest info dictionary that is fetched from peers, in bytes: the version 1
/// hashes of most pieces, and room for the rest. Nothing vouches for it until
/// it is whole, so it may not be as large as a torrent file with its piece
/// layers, which never travel this way.
pub const MAX_METADATA_BYTES: u32 = MAX_PIECES * 20 + (64 << 10);

/// The dictionary before the bytes of a part.
const MAX_HEAD_BYTES: usize = 1024;

const NAME: &str = "ut_metadata";
const REQUEST: u8 = 0;
const DATA: u8 = 1;
const REJECT: u8 = 2;

/// A message about a part of the info dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataMessage {
    /// Send me this part.
    Request {
        /// Index of the part.
        piece: u32,
    },
    /// Here it is.
    Data {
        /// Index of the part.
        piece: u32,
        /// Bytes of the whole info dictionary.
        total_bytes: u32,
        /// The part: 16 KiB, less only at the end. Answers that wait share the
        /// dictionary's memory: a peer may ask often and read nothing.
        bytes: Bytes,
    },
    /// I do not have it, or was asked too often.
    Reject {
        /// Index of the part.
        piece: u32,
    },
}

impl MetadataMessage {
    /// `None` for a kind of message that BEP 9 says to ignore.
    pub(super) fn decode(body: &[u8]) -> Result<Option<MetadataMessage>, PeerError> {
        let bad = |why: &str| PeerError::extension(NAME, why);
        let head_limit = body.len().min(MAX_HEAD_BYTES);
        let head = Value::decode_front(&body[..head_limit]).map_err(|error| PeerError::extension(NAME, error))?;
        let number = |key| head.get(key).and_then(Value::as_integer::<u32>);
        let kind: u8 = head.get("msg_type").and_then(Value::as_integer).ok_or_else(|| bad("no msg_type"))?;
        if kind > REJECT {
            return Ok(None);
        }
        let piece = number("piece").ok_or_else(|| bad("no piece"))?;
        if piece >= MAX_METADATA_BYTES.div_ceil(METADATA_PIECE_BYTES) {
            return Err(bad("its piece lies beyond the largest info dictionary"));
        }
        Ok(Some(match kind {
            REQUEST => MetadataMessage::Request { piece },
            REJECT => MetadataMessage::Reject { piece },
            _ => {
                let bytes = &body[head.raw().map_or(0, <[u8]>::len)..];
                let total_bytes = number("total_size").ok_or_else(|| bad("no total_size"))?;
                if total_bytes > MAX_METADATA_BYTES || Some(bytes.len()) != part_bytes(piece, total_bytes) {
                    return Err(bad("its bytes are not what piece and total_size demand"));
                }
                MetadataMessage::Data { piece, total_bytes, bytes: Bytes::copy_from_slice(bytes) }
            }
        }))
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let (kind, piece, total) = match self {
            MetadataMessage::Request { piece } => (REQUEST, *piece, None),
            MetadataMessage::Data { piece, total_bytes, .. } => (DATA, *piece, Some(*total_bytes)),
            MetadataMessage::Reject { piece } => (REJECT, *piece, None),
        };
        let mut pairs = vec![
            (b"msg_type".as_slice(), Value::Integer(kind.into())),
            (b"piece".as_slice(), Value::Integer(piece.into())),
        ];
        pairs.extend(total.map(|total| (b"total_size".as_slice(), Value::Integer(total.into()))));
        // Fixed keys and no nesting: this always encodes.
        out.extend(Value::Dictionary(Dictionary::new(pairs)).encode().unwrap_or_default());
        if let MetadataMessage::Data { bytes, .. } = self {
            out.extend_from_slice(bytes);
        }
    }
}

/// Bytes of a part; `None` when the dictionary has no such part.
fn part_bytes(piece: u32, total_bytes: u32) -> Option<usize> {
    let left = total_bytes.checked_sub(piece.checked_mul(METADATA_PIECE_BYTES)?)?;
    (left > 0).then_some(left.min(METADATA_PIECE_BYTES) as usize)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_bep_9() {
        let bytes = vec![b'x'; 3425];
        let table = [
            (MetadataMessage::Request { piece: 0 }, b"d8:msg_typei0e5:piecei0ee".to_vec()),
            (MetadataMessage::Reject { piece: 0 }, b"d8:msg_typei2e5:piecei0ee".to_vec()),
            (
                MetadataMessage::Data { piece: 0, total_bytes: 3425, bytes: bytes.clone().into() },
                [b"d8:msg_typei1e5:piecei0e10:total_sizei3425ee".as_slice(), &bytes].concat(),
            ),
        ];
        for (message, body) in table {
            let mut out = Vec::new();
            message.put(&mut out);
            assert_eq!(out, body);
            assert_eq!(MetadataMessage::decode(&body), Ok(Some(message)));
        }
        assert_eq!(MetadataMessage::decode(b"d8:msg_typei3e5:piecei0ee"), Ok(None), "to be ignored");
        assert_eq!(MetadataMessage::decode(b"d8:msg_typei9ee"), Ok(None), "to be ignored");
    }

    #[test]
    fn a_part_has_the_bytes_that_its_place_demands() {
        let data = |piece: u32, total: u32, bytes: usize| {
            let head = format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei{total}ee");
            MetadataMessage::decode(&[head.as_bytes(), &vec![b'd'; bytes]].concat())
        };
        assert!(data(0, 16385, 16384).is_ok());
        assert!(data(1, 16385, 1).is_ok());
        for (piece, total, bytes) in
            [(0, 16385, 16383), (0, 16385, 16385), (1, 16385, 2), (1, 16384, 0), (2, 16385, 1), (0, 0, 0)]
        {
            assert!(data(piece, total, bytes).is_err(), "{piece} {total} {bytes}");
        }
        assert!(data(0, u32::MAX, 16384).is_err());
        assert!(data(u32::MAX, u32::MAX, 16384).is_err());
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        for (body, why) in [
            (b"".as_slice(), "bencode"),
            (b"i1e", "no dictionary"),
            (b"d5:piecei0ee", "no msg_type"),
            (b"d8:msg_typei0ee", "no piece"),
            (b"d8:msg_typei0e5:piecei-1ee", "no piece"),
            (b"d8:msg_typei0e5:piecei4294967295ee", "beyond the largest"),
            (b"d8:msg_typei1e5:piecei0eex", "no total_size"),
        ] {
            let error = MetadataMessage::decode(body).unwrap_err().to_string();
            assert!(error.contains("ut_metadata") && error.contains(why), "{error}");
        }
    }
}
