//! Cutting a byte stream into frames.

use super::bitfield::bitfield_bytes;
use super::extension::{ExtensionIds, MAX_EXTENSION_HANDSHAKE_BYTES};
use super::hashes::{HASH_RANGE_BYTES, MAX_HASHES_BYTES};
use super::message::{
    ID_ALLOWED_FAST, ID_BITFIELD, ID_CANCEL, ID_CHOKE, ID_EXTENDED, ID_HASH_REJECT, ID_HASH_REQUEST, ID_HASHES,
    ID_HAVE, ID_HAVE_ALL, ID_HAVE_NONE, ID_INTERESTED, ID_NOT_INTERESTED, ID_PIECE, ID_PORT, ID_REJECT, ID_REQUEST,
    ID_SUGGEST, ID_UNCHOKE,
};
use super::rack::PACKED;
use super::{BLOCK_BYTES, Block, LENGTH_PREFIX_BYTES, Message, PeerError};

/// Bytes of everything in a `piece` message before its payload: length
/// prefix, id, piece index and offset.
pub const PIECE_HEAD_BYTES: usize = 13;

/// Bytes of everything in a packed message before its payload: length prefix,
/// id, extension id, kind, piece index, offset and unpacked length.
pub const PACKED_HEAD_BYTES: usize = 19;

/// What the length field counts of a head.
const PIECE_HEAD_LENGTH: u32 = 9;
const PACKED_HEAD_LENGTH: u32 = 15;

/// Enough for every message whose size does not depend on the torrent: the
/// largest are `hashes` and the extension messages.
const SMALLEST_FRAME_LIMIT: u32 = 20 << 10;

const _: () = {
    assert!(SMALLEST_FRAME_LIMIT as usize > MAX_EXTENSION_HANDSHAKE_BYTES + 2);
    assert!(SMALLEST_FRAME_LIMIT as usize > MAX_HASHES_BYTES);
};

/// What stands at the front of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A whole message.
    Message(Message),
    /// The head of a `piece` message: the block's `length` payload bytes
    /// follow in the stream.
    Piece(Block),
    /// The head of a packed message: `packed_bytes` bytes of one zstd frame
    /// follow in the stream, which unpack to the block's `length`. It is
    /// always fewer bytes than that.
    Packed {
        /// What it unpacks to.
        block: Block,
        /// Bytes that follow.
        packed_bytes: u32,
    },
}

/// Cuts a byte stream into frames. It keeps no bytes: the caller owns the
/// buffer, and drops from its front what was consumed.
#[derive(Debug, Clone, Copy)]
pub struct FrameDecoder {
    pieces: u32,
    frame_limit: u32,
    block_limit: u32,
}

impl FrameDecoder {
    /// A decoder for a torrent of `pieces` pieces. `frame_limit_bytes` bounds
    /// the length field of every frame without payload; it is raised, if need
    /// be, to what a bitfield or the messages of the extensions take. Payloads
    /// are bounded by [`BLOCK_BYTES`] until a larger size is agreed.
    pub fn new(pieces: u32, frame_limit_bytes: u32) -> FrameDecoder {
        let bitfield = pieces.div_ceil(8) + 1;
        let frame_limit = frame_limit_bytes.max(bitfield).max(SMALLEST_FRAME_LIMIT);
        FrameDecoder { pieces, frame_limit, block_limit: BLOCK_BYTES }
    }

    /// Accepts payloads of up to `bytes`, at least [`BLOCK_BYTES`], once the
    /// peer was told so.
    pub fn set_block_limit(&mut self, bytes: u32) {
        self.block_limit = bytes.max(BLOCK_BYTES);
    }

    /// The largest payload accepted, in bytes.
    pub fn block_limit(&self) -> u32 {
        self.block_limit
    }

    /// The most bytes that the caller's buffer must hold for any frame to
    /// become decodable (payloads not included).
    pub fn buffer_bytes(&self) -> usize {
        LENGTH_PREFIX_BYTES + self.frame_limit as usize
    }

    /// The frame at the front of `stream` and how many bytes it took, or
    /// `None` when more bytes are needed first. For [`Frame::Piece`] and
    /// [`Frame::Packed`] only the head is consumed.
    ///
    /// # Errors
    /// Any error means that the connection has to be closed.
    pub fn decode(&self, stream: &[u8]) -> Result<Option<(Frame, usize)>, PeerError> {
        let Some((prefix, rest)) = stream.split_first_chunk::<LENGTH_PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix);
        if length == 0 {
            return Ok(Some((Frame::Message(Message::KeepAlive), LENGTH_PREFIX_BYTES)));
        }
        check_limit(length, self.frame_limit.max(self.block_limit.saturating_add(PACKED_HEAD_LENGTH)))?;
        let Some((&id, rest)) = rest.split_first() else {
            return Ok(None);
        };
        self.check_size(id, length)?;
        if id == ID_PIECE {
            return self.decode_piece(rest, length);
        }
        if let Some(kind) = packed_kind(id, rest) {
            match kind {
                None => return Ok(None),
                Some(true) => return self.decode_packed(rest, length),
                Some(false) => {}
            }
        }
        check_limit(length, self.frame_limit)?;
        let Some(body) = rest.get(..length as usize - 1) else {
            return Ok(None);
        };
        let message = Message::decode(id, body, self.pieces)?;
        Ok(Some((Frame::Message(message), LENGTH_PREFIX_BYTES + length as usize)))
    }

    /// Refuses a wrong size from the first five bytes, before anything is
    /// buffered for it.
    fn check_size(&self, id: u8, length: u32) -> Result<(), PeerError> {
        let fits = match id {
            ID_CHOKE | ID_UNCHOKE | ID_INTERESTED | ID_NOT_INTERESTED | ID_HAVE_ALL | ID_HAVE_NONE => length == 1,
            ID_HAVE | ID_SUGGEST | ID_ALLOWED_FAST => length == 5,
            ID_BITFIELD => length as usize == 1 + bitfield_bytes(self.pieces),
            ID_REQUEST | ID_CANCEL | ID_REJECT => length == 13,
            ID_PIECE => length > PIECE_HEAD_LENGTH,
            ID_PORT => length == 3,
            ID_EXTENDED => length >= 2,
            ID_HASH_REQUEST | ID_HASH_REJECT => length as usize == 1 + HASH_RANGE_BYTES,
            ID_HASHES => length as usize > HASH_RANGE_BYTES && length as usize <= MAX_HASHES_BYTES,
            _ => true,
        };
        if fits { Ok(()) } else { Err(PeerError::WrongSize { id, length }) }
    }

    fn decode_piece(&self, rest: &[u8], length: u32) -> Result<Option<(Frame, usize)>, PeerError> {
        check_limit(length, self.block_limit + PIECE_HEAD_LENGTH)?;
        let Some(head) = rest.first_chunk::<8>() else { return Ok(None) };
        let block =
            Block { piece: super::u32_at(head, 0), offset: super::u32_at(head, 4), length: length - PIECE_HEAD_LENGTH };
        Ok(Some((Frame::Piece(block), PIECE_HEAD_BYTES)))
    }

    /// A packed block that is not smaller than the plain one has no reason to
    /// exist; refusing it bounds what has to be buffered to unpack it.
    fn decode_packed(&self, rest: &[u8], length: u32) -> Result<Option<(Frame, usize)>, PeerError> {
        check_limit(length, self.block_limit + PACKED_HEAD_LENGTH)?;
        if length <= PACKED_HEAD_LENGTH {
            return Err(PeerError::WrongSize { id: ID_EXTENDED, length });
        }
        let Some(head) = rest.first_chunk::<14>() else { return Ok(None) };
        let (block, packed_bytes) = (Block::at(&head[2..]), length - PACKED_HEAD_LENGTH);
        check_limit(block.length, self.block_limit)?;
        if packed_bytes >= block.length {
            let why = format!("{packed_bytes} packed bytes for {} plain ones", block.length);
            return Err(PeerError::extension("packed", why));
        }
        Ok(Some((Frame::Packed { block, packed_bytes }, PACKED_HEAD_BYTES)))
    }
}

/// `None` when this is no message of ours, `Some(None)` when the byte that
/// tells is not there yet, otherwise whether it is a packed one.
fn packed_kind(id: u8, rest: &[u8]) -> Option<Option<bool>> {
    if id != ID_EXTENDED {
        return None;
    }
    match rest {
        [] => Some(None),
        [extension, ..] if Some(*extension) != ExtensionIds::OURS.rack => None,
        [_] => Some(None),
        [_, kind, ..] => Some(Some(*kind == PACKED)),
    }
}

fn check_limit(length: u32, limit: u32) -> Result<(), PeerError> {
    if length > limit { Err(PeerError::FrameTooLong { length, limit }) } else { Ok(()) }
}

/// The bytes before the payload of a `piece` message; `block.length` payload
/// bytes must follow them on the stream.
pub fn encode_piece_head(block: Block) -> [u8; PIECE_HEAD_BYTES] {
    let mut head = [0; PIECE_HEAD_BYTES];
    head[..4].copy_from_slice(&block.length.saturating_add(PIECE_HEAD_LENGTH).to_be_bytes());
    head[4] = ID_PIECE;
    head[5..9].copy_from_slice(&block.piece.to_be_bytes());
    head[9..].copy_from_slice(&block.offset.to_be_bytes());
    head
}

/// The bytes before the payload of a packed message; `packed_bytes` bytes of
/// one zstd frame, fewer than `block.length`, must follow them on the stream.
/// `rack_id` is the id that the peer hands out for our messages.
pub fn encode_packed_head(rack_id: u8, block: Block, packed_bytes: u32) -> [u8; PACKED_HEAD_BYTES] {
    let mut head = [0; PACKED_HEAD_BYTES];
    head[..4].copy_from_slice(&packed_bytes.saturating_add(PACKED_HEAD_LENGTH).to_be_bytes());
    head[4..7].copy_from_slice(&[ID_EXTENDED, rack_id, PACKED]);
    head[7..11].copy_from_slice(&block.piece.to_be_bytes());
    head[11..15].copy_from_slice(&block.offset.to_be_bytes());
    head[15..].copy_from_slice(&block.length.to_be_bytes());
    head
}
