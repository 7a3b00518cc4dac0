//! What our own kind says to each other: an extension of BEP 10 named
//! `rackswarm`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{BLOCK_BYTES, PeerError, u32_at};
use crate::bencode::{Dictionary, Value};

/// Number of lanes: piece p travels between racks in lane p mod `LANES`.
pub const LANES: u32 = 64;

/// Longest range that one request of our own kind may name: the largest piece.
pub const MAX_REQUEST_BYTES: u32 = 64 << 20;

const MAX_NAME_BYTES: usize = 64;
const NAME: &str = "rackswarm";

/// First byte of each message.
const DECLINE: u8 = 0;
const HAVE: u8 = 1;
const LANES_CLAIMED: u8 = 2;
pub(super) const PACKED: u8 = 3;

/// The text is no name of a rack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a rack has 1 to {MAX_NAME_BYTES} bytes and no control characters")]
pub struct RackNameError;

/// The name of a rack: 1 to 64 bytes of UTF-8 without control characters.
/// Copies share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RackName(Arc<str>);

impl RackName {
    /// Takes the text as it is; nothing is trimmed.
    ///
    /// # Errors
    /// When it is empty, too long, or has control characters.
    pub fn new(text: &str) -> Result<RackName, RackNameError> {
        let fits = !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
        if fits { Ok(RackName(text.into())) } else { Err(RackNameError) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in bytes from the wire, if they are one.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<RackName> {
        RackName::new(std::str::from_utf8(bytes).ok()?).ok()
    }
}

impl FromStr for RackName {
    type Err = RackNameError;

    fn from_str(text: &str) -> Result<RackName, RackNameError> {
        RackName::new(text)
    }
}

impl AsRef<str> for RackName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RackName({self})")
    }
}

/// What our own kind says in the extension handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RackHello {
    /// The rack that it stands in, if it knows.
    pub rack: Option<RackName>,
    /// Longest range that it serves as one request: 16 KiB to
    /// [`MAX_REQUEST_BYTES`].
    pub max_request_bytes: u32,
    /// It chooses itself which piece goes to whom, and suggests it (BEP 6): a
    /// seed, whose pieces nobody else has. Nobody need ask it for any.
    pub offers: bool,
    /// It can unpack [`super::Frame::Packed`].
    pub zstd: bool,
}

impl RackHello {
    pub(super) fn from_dictionary(dictionary: &Dictionary<'_>) -> RackHello {
        let number = |key| dictionary.get(key).and_then(Value::as_integer::<u32>);
        RackHello {
            rack: dictionary.get("rack").and_then(Value::as_bytes).and_then(RackName::from_bytes),
            max_request_bytes: number("max_request").unwrap_or(BLOCK_BYTES).clamp(BLOCK_BYTES, MAX_REQUEST_BYTES),
            offers: number("offers") == Some(1),
            zstd: number("zstd") == Some(1),
        }
    }
}

pub(super) fn to_dictionary(hello: &RackHello) -> Value<'_> {
    let mut pairs = vec![
        (b"max_request".as_slice(), Value::Integer(hello.max_request_bytes.into())),
        (b"offers", Value::Integer(hello.offers.into())),
        (b"zstd", Value::Integer(hello.zstd.into())),
    ];
    pairs.extend(hello.rack.as_ref().map(|rack| (b"rack".as_slice(), Value::Bytes(rack.as_str().as_bytes()))));
    Value::Dictionary(Dictionary::new(pairs))
}

/// A message among our own kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RackMessage {
    /// I shall not fetch the piece that you suggested.
    Decline {
        /// Index of the piece.
        piece: u32,
        /// I have it, or it is on its way to me, and, where everybody offers,
        /// you have nothing else for me either. Otherwise there is no room.
        needless: bool,
        /// What is on its way to me, in quarters of a piece. 255 for more.
        backlog: u8,
    },
    /// I have this piece, verified; in place of the `have` of BEP 3.
    Have {
        /// Index of the piece.
        piece: u32,
        /// What is asked of the sender and not sent, in pieces; of few long
        /// pieces, where everybody offers, what is on its way to the sender, in
        /// quarters of a piece. 255 for more.
        backlog: u8,
    },
    /// For my rack I take these lanes across.
    Lanes {
        /// Bit l stands for lane l.
        claimed: u64,
    },
}

impl RackMessage {
    /// `None` for a kind of message that a later version may have.
    pub(super) fn decode(body: &[u8]) -> Result<Option<RackMessage>, PeerError> {
        let wrong = || PeerError::extension(NAME, format!("{} bytes", body.len()));
        let (&kind, body) = body.split_first().ok_or_else(wrong)?;
        let expected_bytes = match kind {
            DECLINE => 6,
            HAVE => 5,
            LANES_CLAIMED => 8,
            _ => return Ok(None),
        };
        if body.len() != expected_bytes {
            return Err(wrong());
        }
        let piece = u32_at(body, 0);
        Ok(Some(match kind {
            DECLINE => RackMessage::Decline { piece, needless: body[4] != 0, backlog: body[5] },
            HAVE => RackMessage::Have { piece, backlog: body[4] },
            _ => RackMessage::Lanes { claimed: u64::from(piece) << 32 | u64::from(u32_at(body, 4)) },
        }))
    }

    pub(super) fn put(self, out: &mut Vec<u8>) {
        match self {
            RackMessage::Decline { piece, needless, backlog } => {
                out.push(DECLINE);
                out.extend_from_slice(&piece.to_be_bytes());
                out.extend_from_slice(&[needless.into(), backlog]);
            }
            RackMessage::Have { piece, backlog } => {
                out.push(HAVE);
                out.extend_from_slice(&piece.to_be_bytes());
                out.push(backlog);
            }
            RackMessage::Lanes { claimed } => {
                out.push(LANES_CLAIMED);
                out.extend_from_slice(&claimed.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_rack_has_a_readable_name() {
        for good in ["r", "row 3/7", "Z\u{fc}rich-2", &"x".repeat(64)] {
            assert_eq!(RackName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a\nb", "a\u{85}", &"x".repeat(65), &"\u{fc}".repeat(33)] {
            assert_eq!(bad.parse::<RackName>(), Err(RackNameError), "{bad:?}");
        }
        assert_eq!(RackName::from_bytes(b"\xff"), None);
    }

    #[test]
    fn kinds_to_come_are_passed_over_and_wrong_sizes_refused() {
        assert_eq!(RackMessage::decode(&[4, 1, 2, 3]), Ok(None));
        for bad in [[].as_slice(), &[0, 1, 2, 3], &[1, 1, 2, 3, 4, 5, 6], &[2, 1, 2, 3]] {
            assert!(matches!(RackMessage::decode(bad), Err(PeerError::Extension { .. })), "{bad:?}");
        }
    }
}
