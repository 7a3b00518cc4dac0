//! The peer wire protocol: BEP 3, the fast extension (BEP 6), the extension
//! protocol (BEP 10) with metadata (BEP 9), peer exchange (BEP 11) and our own
//! messages, and the hash messages of BEP 52.
//!
//! Payload never passes through here: of a `piece` message the decoder
//! returns the head, and the driver reads the bytes where they belong.

mod bitfield;
mod extension;
mod frame;
mod handshake;
mod hashes;
mod message;
mod metadata;
mod pex;
mod rack;

use std::fmt;

pub use bitfield::Bitfield;
pub use extension::{ExtensionHandshake, ExtensionIds, MAX_EXTENSION_HANDSHAKE_BYTES};
pub use frame::{Frame, FrameDecoder, PACKED_HEAD_BYTES, PIECE_HEAD_BYTES, encode_packed_head, encode_piece_head};
pub use handshake::{HANDSHAKE_BYTES, Handshake};
pub use hashes::{HashRange, MAX_HASHES, MAX_PROOF_LAYERS};
pub use message::{Extended, Message};
pub use metadata::{MAX_METADATA_BYTES, METADATA_PIECE_BYTES, MetadataMessage};
pub use pex::{MAX_PEX_BYTES, MAX_PEX_PEERS, Pex, PexPeer};
pub use rack::{LANES, MAX_REQUEST_BYTES, RackHello, RackMessage, RackName, RackNameError};

/// Bytes of the blocks that every client requests (BEP 3: peers may close the
/// connection on larger requests). More only where both sides agreed to it.
pub const BLOCK_BYTES: u32 = 16 * 1024;

const LENGTH_PREFIX_BYTES: usize = 4;

/// What was wrong with bytes from a peer. The only cure is to close the
/// connection: after a bad frame the stream has no known boundary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The first 20 bytes are not BitTorrent's.
    #[error("the handshake does not begin with \"BitTorrent protocol\": this is not a BitTorrent peer")]
    NotBitTorrent,
    /// A frame is longer than the caller allows.
    #[error("a frame of {length} bytes exceeds the limit of {limit}: close the connection")]
    FrameTooLong {
        /// What the peer announced.
        length: u32,
        /// What the caller allows.
        limit: u32,
    },
    /// A message has the wrong number of bytes for its id.
    #[error("message {id} with {length} bytes has the wrong size: close the connection")]
    WrongSize {
        /// Message id.
        id: u8,
        /// Length field of the frame.
        length: u32,
    },
    /// A bitfield has bits set beyond the last piece.
    #[error("the bitfield has spare bits set beyond piece {pieces}: close the connection")]
    SpareBits {
        /// Number of pieces of the torrent.
        pieces: u32,
    },
    /// A range of hashes that BEP 52 forbids.
    #[error("{length} hashes from {index} are no power of two from 2 to 512 at a multiple of it: close the connection")]
    HashRange {
        /// First hash of the range.
        index: u32,
        /// Number of hashes.
        length: u32,
    },
    /// A message of the extension protocol cannot be read.
    #[error("the {name} message cannot be read ({why}): close the connection")]
    Extension {
        /// Name of the extension.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl PeerError {
    fn extension(name: &'static str, why: impl fmt::Display) -> PeerError {
        PeerError::Extension { name, why: why.to_string() }
    }
}

/// The name that a peer gives itself in the handshake and to the tracker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 20]);

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

/// Printable bytes as they are, the rest as percent escapes: peer ids are
/// mostly readable (`-RS0100-...`).
impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            if byte.is_ascii_graphic() && byte != b'%' {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// A place: `length` bytes from `offset` within `piece`. Also the body of
/// `request`, `cancel` and `reject`, and the head of `piece`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Index of the piece.
    pub piece: u32,
    /// First byte within the piece.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
}

impl Block {
    /// Callers have checked the size.
    fn at(body: &[u8]) -> Block {
        Block { piece: u32_at(body, 0), offset: u32_at(body, 4), length: u32_at(body, 8) }
    }

    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.piece.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

/// Callers have checked the size.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
