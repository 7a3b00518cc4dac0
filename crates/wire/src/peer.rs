//! The peer wire protocol (BEP 3): handshake, messages and an incremental
//! frame decoder. The payload of a `piece` message never passes through here:
//! the decoder returns its head, and the driver reads the bytes where they
//! belong.

use std::fmt;

use crate::metainfo::InfoHash;

/// Bytes of the blocks we request. BEP 3: peers may close the connection on
/// larger requests, so this is also the largest request that we serve.
pub const BLOCK_BYTES: u32 = 16 * 1024;

/// Bytes of a handshake.
pub const HANDSHAKE_BYTES: usize = 68;

/// Bytes of everything in a `piece` message before its payload: length
/// prefix, id, piece index and offset.
pub const PIECE_HEAD_BYTES: usize = 13;

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";
const LENGTH_PREFIX_BYTES: usize = 4;
const ID_CHOKE: u8 = 0;
const ID_UNCHOKE: u8 = 1;
const ID_INTERESTED: u8 = 2;
const ID_NOT_INTERESTED: u8 = 3;
const ID_HAVE: u8 = 4;
const ID_BITFIELD: u8 = 5;
const ID_REQUEST: u8 = 6;
const ID_PIECE: u8 = 7;
const ID_CANCEL: u8 = 8;
const ID_EXTENDED: u8 = 20;

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

/// The first message in each direction (BEP 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// Capability bits, most significant byte first as on the wire.
    pub reserved: [u8; 8],
    /// Which torrent this connection is about.
    pub info_hash: InfoHash,
    /// Who speaks.
    pub peer_id: PeerId,
}

impl Handshake {
    /// A handshake that claims no extension.
    pub fn new(info_hash: InfoHash, peer_id: PeerId) -> Handshake {
        Handshake { reserved: [0; 8], info_hash, peer_id }
    }

    /// Reads a handshake; the reserved bits are kept as they came.
    ///
    /// # Errors
    /// `NotBitTorrent` when the protocol name differs.
    pub fn decode(bytes: &[u8; HANDSHAKE_BYTES]) -> Result<Handshake, PeerError> {
        let (protocol, rest) = bytes.split_at(PROTOCOL.len());
        if protocol != PROTOCOL {
            return Err(PeerError::NotBitTorrent);
        }
        Ok(Handshake {
            reserved: array_at(rest, 0),
            info_hash: InfoHash(array_at(rest, 8)),
            peer_id: PeerId(array_at(rest, 28)),
        })
    }

    /// The 68 bytes to send.
    pub fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        let mut bytes = [0; HANDSHAKE_BYTES];
        bytes[..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(&self.reserved);
        bytes[28..48].copy_from_slice(&self.info_hash.0);
        bytes[48..].copy_from_slice(&self.peer_id.0);
        bytes
    }

    /// The peer speaks the extension protocol (BEP 10).
    pub fn speaks_extended(&self) -> bool {
        self.reserved[5] & 0x10 != 0
    }

    /// The peer speaks the fast extension (BEP 6).
    pub fn speaks_fast(&self) -> bool {
        self.reserved[7] & 0x04 != 0
    }
}

/// A place: `length` bytes from `offset` within `piece`. Also the body of
/// `request` and `cancel`, and the head of `piece`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Index of the piece.
    pub piece: u32,
    /// First byte within the piece.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
}

/// Which pieces a peer has, as it travels: piece 0 is the highest bit of the
/// first byte. The spare bits at the end are always zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitfield {
    bytes: Vec<u8>,
    pieces: u32,
}

impl Bitfield {
    /// No piece of `pieces`.
    pub fn empty(pieces: u32) -> Bitfield {
        Bitfield { bytes: vec![0; bitfield_bytes(pieces)], pieces }
    }

    /// Checks a bitfield from the wire against the number of pieces.
    ///
    /// # Errors
    /// `WrongSize` or `SpareBits`; BEP 3 asks to drop such a peer.
    pub fn from_bytes(bytes: &[u8], pieces: u32) -> Result<Bitfield, PeerError> {
        if bytes.len() != bitfield_bytes(pieces) {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(1);
            return Err(PeerError::WrongSize { id: ID_BITFIELD, length });
        }
        let used = pieces % 8;
        let spare = if used == 0 { 0 } else { 0xFF_u8 >> used };
        if bytes.last().is_some_and(|last| last & spare != 0) {
            return Err(PeerError::SpareBits { pieces });
        }
        Ok(Bitfield { bytes: bytes.to_vec(), pieces })
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of pieces of the torrent, had or not.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Whether the piece is there; false beyond the last piece.
    pub fn contains(&self, piece: u32) -> bool {
        piece < self.pieces && self.bytes[piece as usize / 8] & mask(piece) != 0
    }

    /// Adds a piece; beyond the last piece nothing happens.
    pub fn insert(&mut self, piece: u32) {
        if piece < self.pieces {
            self.bytes[piece as usize / 8] |= mask(piece);
        }
    }

    /// The pieces that are there, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.pieces).filter(|&piece| self.contains(piece))
    }
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitfield({} of {})", self.iter().count(), self.pieces)
    }
}

fn bitfield_bytes(pieces: u32) -> usize {
    pieces.div_ceil(8) as usize
}

fn mask(piece: u32) -> u8 {
    0x80 >> (piece % 8)
}

/// Every message of BEP 3 except `piece`, which is [`Frame::Piece`] because
/// its bytes take another way, and what we let pass without understanding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Nothing to say; the connection lives.
    KeepAlive,
    /// I will not serve your requests; those pending are forgotten.
    Choke,
    /// I will serve your requests.
    Unchoke,
    /// You have pieces that I want.
    Interested,
    /// You have nothing that I want.
    NotInterested,
    /// I have this piece, verified.
    Have(u32),
    /// I have these pieces; only as the first message.
    Bitfield(Bitfield),
    /// Send me this block.
    Request(Block),
    /// I no longer want this block.
    Cancel(Block),
    /// Extension protocol (BEP 10), not interpreted here.
    Extended {
        /// Extended message id; 0 is the extension handshake.
        id: u8,
        /// The rest of the frame.
        payload: Vec<u8>,
    },
    /// A message of an extension that we did not agree to; to be ignored.
    Unknown {
        /// Message id.
        id: u8,
    },
}

/// What stands at the front of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A whole message.
    Message(Message),
    /// The head of a `piece` message: the block's `length` payload bytes
    /// follow in the stream.
    Piece(Block),
}

/// Cuts a byte stream into frames. It keeps no bytes: the caller owns the
/// buffer, and drops from its front what was consumed.
#[derive(Debug, Clone, Copy)]
pub struct FrameDecoder {
    pieces: u32,
    frame_limit: u32,
}

impl FrameDecoder {
    /// A decoder for a torrent of `pieces` pieces. `frame_limit_bytes` bounds
    /// the length field of every frame; it is raised, if need be, to what a
    /// bitfield and a full block take.
    pub fn new(pieces: u32, frame_limit_bytes: u32) -> FrameDecoder {
        let bitfield = pieces.div_ceil(8) + 1;
        let block = BLOCK_BYTES + 9;
        FrameDecoder { pieces, frame_limit: frame_limit_bytes.max(bitfield).max(block) }
    }

    /// The most bytes that the caller's buffer must hold for any frame to
    /// become decodable (the payload of `piece` not included).
    pub fn buffer_bytes(&self) -> usize {
        LENGTH_PREFIX_BYTES + self.frame_limit as usize
    }

    /// The frame at the front of `stream` and how many bytes it took, or
    /// `None` when more bytes are needed first. For [`Frame::Piece`] only the
    /// head is consumed.
    ///
    /// # Errors
    /// Any error means that the connection has to be closed.
    pub fn decode(&self, stream: &[u8]) -> Result<Option<(Frame, usize)>, PeerError> {
        let Some(prefix) = stream.first_chunk::<LENGTH_PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix);
        if length > self.frame_limit {
            return Err(PeerError::FrameTooLong { length, limit: self.frame_limit });
        }
        let Some(&id) = stream.get(LENGTH_PREFIX_BYTES) else {
            return Ok((length == 0).then_some((Frame::Message(Message::KeepAlive), LENGTH_PREFIX_BYTES)));
        };
        if length == 0 {
            return Ok(Some((Frame::Message(Message::KeepAlive), LENGTH_PREFIX_BYTES)));
        }
        self.check_size(id, length)?;
        if id == ID_PIECE {
            return Ok(decode_piece_head(stream, length).map(|block| (Frame::Piece(block), PIECE_HEAD_BYTES)));
        }
        let end = LENGTH_PREFIX_BYTES + length as usize;
        let Some(body) = stream.get(LENGTH_PREFIX_BYTES + 1..end) else {
            return Ok(None);
        };
        Ok(Some((Frame::Message(self.decode_body(id, body)?), end)))
    }

    /// Refuses a wrong size from the first five bytes, before anything is
    /// buffered for it.
    fn check_size(&self, id: u8, length: u32) -> Result<(), PeerError> {
        let fits = match id {
            ID_CHOKE | ID_UNCHOKE | ID_INTERESTED | ID_NOT_INTERESTED => length == 1,
            ID_HAVE => length == 5,
            ID_BITFIELD => length as usize == 1 + bitfield_bytes(self.pieces),
            ID_REQUEST | ID_CANCEL => length == 13,
            ID_PIECE => length > 9,
            ID_EXTENDED => length >= 2,
            _ => true,
        };
        if fits { Ok(()) } else { Err(PeerError::WrongSize { id, length }) }
    }

    fn decode_body(&self, id: u8, body: &[u8]) -> Result<Message, PeerError> {
        Ok(match id {
            ID_CHOKE => Message::Choke,
            ID_UNCHOKE => Message::Unchoke,
            ID_INTERESTED => Message::Interested,
            ID_NOT_INTERESTED => Message::NotInterested,
            ID_HAVE => Message::Have(u32_at(body, 0)),
            ID_BITFIELD => Message::Bitfield(Bitfield::from_bytes(body, self.pieces)?),
            ID_REQUEST => Message::Request(block_at(body)),
            ID_CANCEL => Message::Cancel(block_at(body)),
            ID_EXTENDED => Message::Extended { id: body[0], payload: body[1..].to_vec() },
            _ => Message::Unknown { id },
        })
    }
}

fn decode_piece_head(stream: &[u8], length: u32) -> Option<Block> {
    let head = stream.get(LENGTH_PREFIX_BYTES + 1..PIECE_HEAD_BYTES)?;
    Some(Block { piece: u32_at(head, 0), offset: u32_at(head, 4), length: length - 9 })
}

impl Message {
    /// Appends the frame to `out`. `Unknown` has no known body and appends
    /// nothing.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::KeepAlive => out.extend_from_slice(&[0; LENGTH_PREFIX_BYTES]),
            Message::Choke => put_head(out, ID_CHOKE, 0),
            Message::Unchoke => put_head(out, ID_UNCHOKE, 0),
            Message::Interested => put_head(out, ID_INTERESTED, 0),
            Message::NotInterested => put_head(out, ID_NOT_INTERESTED, 0),
            Message::Have(piece) => {
                put_head(out, ID_HAVE, 4);
                out.extend_from_slice(&piece.to_be_bytes());
            }
            Message::Bitfield(bitfield) => {
                put_head(out, ID_BITFIELD, bitfield.bytes.len());
                out.extend_from_slice(&bitfield.bytes);
            }
            Message::Request(block) => put_block(out, ID_REQUEST, *block),
            Message::Cancel(block) => put_block(out, ID_CANCEL, *block),
            Message::Extended { id, payload } => {
                put_head(out, ID_EXTENDED, 1 + payload.len());
                out.push(*id);
                out.extend_from_slice(payload);
            }
            Message::Unknown { .. } => {}
        }
    }
}

/// The bytes before the payload of a `piece` message; `block.length` payload
/// bytes must follow them on the stream.
pub fn encode_piece_head(block: Block) -> [u8; PIECE_HEAD_BYTES] {
    let mut head = [0; PIECE_HEAD_BYTES];
    head[..4].copy_from_slice(&block.length.saturating_add(9).to_be_bytes());
    head[4] = ID_PIECE;
    head[5..9].copy_from_slice(&block.piece.to_be_bytes());
    head[9..].copy_from_slice(&block.offset.to_be_bytes());
    head
}

fn put_head(out: &mut Vec<u8>, id: u8, body_bytes: usize) {
    let length = u32::try_from(body_bytes + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.push(id);
}

fn put_block(out: &mut Vec<u8>, id: u8, block: Block) {
    put_head(out, id, 12);
    out.extend_from_slice(&block.piece.to_be_bytes());
    out.extend_from_slice(&block.offset.to_be_bytes());
    out.extend_from_slice(&block.length.to_be_bytes());
}

fn block_at(body: &[u8]) -> Block {
    Block { piece: u32_at(body, 0), offset: u32_at(body, 4), length: u32_at(body, 8) }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECES: u32 = 11;

    fn decoder() -> FrameDecoder {
        FrameDecoder::new(PIECES, 0)
    }

    fn one(bytes: &[u8]) -> Frame {
        let (frame, used) = decoder().decode(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        frame
    }

    #[test]
    fn each_message_has_the_bytes_of_bep_3() {
        let block = Block { piece: 1, offset: 0x4000, length: 0x4000 };
        let mut some = Bitfield::empty(PIECES);
        some.insert(0);
        some.insert(10);
        let table: Vec<(Message, Vec<u8>)> = vec![
            (Message::KeepAlive, vec![0, 0, 0, 0]),
            (Message::Choke, vec![0, 0, 0, 1, 0]),
            (Message::Unchoke, vec![0, 0, 0, 1, 1]),
            (Message::Interested, vec![0, 0, 0, 1, 2]),
            (Message::NotInterested, vec![0, 0, 0, 1, 3]),
            (Message::Have(258), vec![0, 0, 0, 5, 4, 0, 0, 1, 2]),
            (Message::Bitfield(some), vec![0, 0, 0, 3, 5, 0x80, 0x20]),
            (Message::Request(block), vec![0, 0, 0, 13, 6, 0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0]),
            (Message::Cancel(block), vec![0, 0, 0, 13, 8, 0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0]),
            (Message::Extended { id: 3, payload: vec![9] }, vec![0, 0, 0, 3, 20, 3, 9]),
        ];
        for (message, bytes) in table {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(out, bytes, "{message:?}");
            assert_eq!(one(&bytes), Frame::Message(message));
        }
    }

    #[test]
    fn piece_gives_its_head_and_leaves_the_payload() {
        let block = Block { piece: 7, offset: 16384, length: 100 };
        let mut stream = encode_piece_head(block).to_vec();
        for cut in 0..stream.len() {
            assert_eq!(decoder().decode(&stream[..cut]).unwrap(), None, "{cut}");
        }
        stream.extend_from_slice(&[1; 100]);
        assert_eq!(decoder().decode(&stream).unwrap(), Some((Frame::Piece(block), PIECE_HEAD_BYTES)));
    }

    #[test]
    fn unknown_messages_are_skipped_whole() {
        let stream = [0, 0, 0, 3, 99, 1, 2, 0, 0, 0, 1, 0];
        let (frame, used) = decoder().decode(&stream).unwrap().unwrap();
        assert_eq!((frame, used), (Frame::Message(Message::Unknown { id: 99 }), 7));
        assert_eq!(decoder().decode(&stream[..6]).unwrap(), None);
    }

    #[test]
    fn wrong_sizes_are_refused_from_the_first_five_bytes() {
        for (id, length) in
            [(0u8, 2u32), (1, 5), (2, 2), (3, 9), (4, 4), (5, 2), (5, 4), (6, 12), (7, 9), (8, 14), (20, 1)]
        {
            let mut stream = length.to_be_bytes().to_vec();
            stream.push(id);
            assert_eq!(decoder().decode(&stream), Err(PeerError::WrongSize { id, length }));
        }
    }

    #[test]
    fn a_claimed_length_is_refused_before_it_is_buffered() {
        let limit = BLOCK_BYTES + 9;
        assert_eq!(decoder().decode(&u32::MAX.to_be_bytes()), Err(PeerError::FrameTooLong { length: u32::MAX, limit }));
        assert_eq!(FrameDecoder::new(1 << 20, 0).buffer_bytes(), 4 + 1 + (1 << 17));
    }

    #[test]
    fn spare_bits_are_refused() {
        assert_eq!(Bitfield::from_bytes(&[0xFF, 0x10], PIECES), Err(PeerError::SpareBits { pieces: PIECES }));
        assert_eq!(Bitfield::from_bytes(&[0xFF, 0xE0], PIECES).unwrap().iter().count(), 11);
        assert!(Bitfield::from_bytes(&[0xFF], 8).is_ok());
        assert!(Bitfield::from_bytes(&[0xFF, 0], 8).is_err());
    }

    #[test]
    fn a_handshake_keeps_its_reserved_bits() {
        let mut shake = Handshake::new(InfoHash([7; 20]), PeerId(*b"-RS0100-abcdefghijk%"));
        assert!(!shake.speaks_extended() && !shake.speaks_fast());
        shake.reserved = [0, 0, 0, 0, 0, 0x10, 0, 0x04];
        let back = Handshake::decode(&shake.encode()).unwrap();
        assert_eq!(back, shake);
        assert!(back.speaks_extended() && back.speaks_fast());
        assert_eq!(back.peer_id.to_string(), "-RS0100-abcdefghijk%25");

        let mut bytes = shake.encode();
        bytes[1] = b'b';
        assert_eq!(Handshake::decode(&bytes), Err(PeerError::NotBitTorrent));
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(stream in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((frame, used))) = decoder().decode(&stream) {
                let mut out = Vec::new();
                match frame {
                    Frame::Piece(block) => out.extend_from_slice(&encode_piece_head(block)),
                    Frame::Message(Message::Unknown { .. }) => return Ok(()),
                    Frame::Message(message) => message.encode(&mut out),
                }
                prop_assert_eq!(&out[..], &stream[..used]);
            }
        }

        #[test]
        fn a_stream_cut_anywhere_decodes_the_same(pieces in proptest::collection::vec(0u32..PIECES, 1..20), cut in 0usize..200) {
            let mut stream = Vec::new();
            for &piece in &pieces {
                Message::Have(piece).encode(&mut stream);
            }
            let cut = cut.min(stream.len());
            let mut buffer = stream[..cut].to_vec();
            let mut rest = Some(&stream[cut..]);
            let mut seen = Vec::new();
            loop {
                match decoder().decode(&buffer).unwrap() {
                    Some((Frame::Message(Message::Have(piece)), used)) => {
                        seen.push(piece);
                        buffer.drain(..used);
                    }
                    Some(other) => prop_assert!(false, "{:?}", other),
                    None => match rest.take() {
                        Some(more) => buffer.extend_from_slice(more),
                        None => break,
                    },
                }
            }
            prop_assert_eq!(seen, pieces);
        }
    }
}
