//! Passing on the info dictionary (BEP 9, `ut_metadata`).

use super::PeerError;
use crate::bencode::{Dictionary, Value};
use crate::metainfo::MAX_METAINFO_BYTES;

/// Bytes of every part of the info dictionary but the last.
pub const METADATA_PIECE_BYTES: u32 = 16 * 1024;

/// Largest info dictionary that is fetched from peers, in bytes.
pub const MAX_METADATA_BYTES: u32 = MAX_METAINFO_BYTES as u32;

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
        /// The part: 16 KiB, less only at the end.
        bytes: Vec<u8>,
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
                MetadataMessage::Data { piece, total_bytes, bytes: bytes.to_vec() }
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
