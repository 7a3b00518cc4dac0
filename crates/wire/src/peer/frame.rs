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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peer::{
        Bitfield, Extended, ExtensionHandshake, HashRange, MetadataMessage, Pex, PexPeer, RackHello, RackMessage,
        RackName,
    };

    const PIECES: u32 = 11;

    fn decoder() -> FrameDecoder {
        FrameDecoder::new(PIECES, 0)
    }

    fn one(bytes: &[u8]) -> Frame {
        let (frame, used) = decoder().decode(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        frame
    }

    fn encoded(message: &Message) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(&ExtensionIds::OURS, &mut out);
        out
    }

    fn range() -> Box<HashRange> {
        Box::new(HashRange { pieces_root: [7; 32], base_layer: 4, index: 6, length: 2, proof_layers: 3 })
    }

    #[test]
    fn each_message_has_the_bytes_of_its_bep() {
        let block = Block { piece: 1, offset: 0x4000, length: 0x4000 };
        let place = [0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0];
        let with_place = |id: u8| [[0, 0, 0, 13, id].as_slice(), &place].concat();
        let hashes = |id: u8, length: u8| {
            [[0, 0, 0, length, id].as_slice(), &[7; 32], &[0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 3]].concat()
        };
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
            (Message::Request(block), with_place(6)),
            (Message::Cancel(block), with_place(8)),
            (Message::Port(6881), vec![0, 0, 0, 3, 9, 0x1A, 0xE1]),
            (Message::Suggest(258), vec![0, 0, 0, 5, 13, 0, 0, 1, 2]),
            (Message::HaveAll, vec![0, 0, 0, 1, 14]),
            (Message::HaveNone, vec![0, 0, 0, 1, 15]),
            (Message::Reject(block), with_place(16)),
            (Message::AllowedFast(258), vec![0, 0, 0, 5, 17, 0, 0, 1, 2]),
            (Message::HashRequest(range()), hashes(21, 49)),
            (Message::Hashes(range(), vec![[9; 32]; 4]), [hashes(22, 177), vec![9; 128]].concat()),
            (Message::HashReject(range()), hashes(23, 49)),
            (
                RackMessage::Decline { piece: 258, needless: true, backlog: 3 }.into(),
                vec![0, 0, 0, 9, 20, 3, 0, 0, 0, 1, 2, 1, 3],
            ),
            (RackMessage::Have { piece: 258, backlog: 9 }.into(), vec![0, 0, 0, 8, 20, 3, 1, 0, 0, 1, 2, 9]),
            (
                RackMessage::Lanes { claimed: 1 << 63 | 1 }.into(),
                vec![0, 0, 0, 11, 20, 3, 2, 0x80, 0, 0, 0, 0, 0, 0, 1],
            ),
        ];
        for (message, bytes) in table {
            assert_eq!(encoded(&message), bytes, "{message:?}");
            assert_eq!(one(&bytes), Frame::Message(message));
            for cut in 0..bytes.len() {
                assert_eq!(decoder().decode(&bytes[..cut]), Ok(None));
            }
        }
    }

    #[test]
    fn messages_stay_small() {
        assert!(size_of::<Message>() <= 40, "{}", size_of::<Message>());
    }

    #[test]
    fn a_peer_without_the_extension_is_told_nothing() {
        let mut out = Vec::new();
        for message in [
            RackMessage::Lanes { claimed: 1 }.into(),
            Pex::default().into(),
            MetadataMessage::Request { piece: 0 }.into(),
            Message::Extended(Extended::Unknown { id: 3 }),
            Message::Unknown { id: 99 },
        ] {
            message.encode(&ExtensionIds::NONE, &mut out);
        }
        assert_eq!(out, []);
        let theirs = ExtensionIds { rack: Some(200), ..ExtensionIds::NONE };
        Message::from(RackMessage::Lanes { claimed: 1 }).encode(&theirs, &mut out);
        assert_eq!(out, [0, 0, 0, 11, 20, 200, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
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
    fn packed_gives_its_head_and_leaves_the_payload() {
        let block = Block { piece: 7, offset: 16384, length: 16384 };
        let mut stream = encode_packed_head(3, block, 100).to_vec();
        assert_eq!(stream[..7], [0, 0, 0, 115, 20, 3, 3]);
        for cut in 0..stream.len() {
            assert_eq!(decoder().decode(&stream[..cut]).unwrap(), None, "{cut}");
        }
        stream.extend_from_slice(&[1; 100]);
        let frame = Frame::Packed { block, packed_bytes: 100 };
        assert_eq!(decoder().decode(&stream).unwrap(), Some((frame, PACKED_HEAD_BYTES)));
    }

    #[test]
    fn a_packed_block_is_smaller_than_a_plain_one_and_within_the_limit() {
        let block = |length| Block { piece: 0, offset: 0, length };
        let refused = |length, packed| decoder().decode(&encode_packed_head(3, block(length), packed)).is_err();
        assert!(refused(100, 100));
        assert!(refused(100, 0));
        assert!(refused(BLOCK_BYTES + 1, 100));
        assert!(refused(u32::MAX, BLOCK_BYTES + 1));
        assert!(!refused(BLOCK_BYTES, BLOCK_BYTES - 1));
    }

    #[test]
    fn payloads_grow_only_by_agreement() {
        let block = Block { piece: 0, offset: 0, length: 256 << 10 };
        let mut decoder = decoder();
        for _ in 0..2 {
            let piece = decoder.decode(&encode_piece_head(block));
            let packed = decoder.decode(&encode_packed_head(3, block, block.length - 1));
            assert_eq!(piece.is_ok(), decoder.block_limit() >= block.length);
            assert_eq!(packed.is_ok(), piece.is_ok());
            decoder.set_block_limit(block.length);
        }
        let other = [[0, 3, 0, 0, 20, 3, 1].as_slice(), &[0; 20]].concat();
        assert!(decoder.decode(&other).is_err(), "only payloads may be so large");
        let other = [[0, 3, 0, 0, 99].as_slice(), &[0; 20]].concat();
        assert!(decoder.decode(&other).is_err());
    }

    #[test]
    fn unknown_messages_are_skipped_whole() {
        let stream = [0, 0, 0, 3, 99, 1, 2, 0, 0, 0, 1, 0];
        let (frame, used) = decoder().decode(&stream).unwrap().unwrap();
        assert_eq!((frame, used), (Frame::Message(Message::Unknown { id: 99 }), 7));
        assert_eq!(decoder().decode(&stream[..6]).unwrap(), None);
        for extended in [[0, 0, 0, 4, 20, 77, 1, 2], [0, 0, 0, 4, 20, 3, 99, 2]] {
            let unknown = Message::Extended(Extended::Unknown { id: extended[5] });
            assert_eq!(one(&extended), Frame::Message(unknown));
        }
    }

    #[test]
    fn wrong_sizes_are_refused_from_the_first_five_bytes() {
        for (id, length) in [
            (0u8, 2u32),
            (1, 5),
            (2, 2),
            (3, 9),
            (4, 4),
            (5, 2),
            (5, 4),
            (6, 12),
            (7, 9),
            (8, 14),
            (9, 2),
            (13, 4),
            (14, 2),
            (15, 2),
            (16, 12),
            (17, 6),
            (20, 1),
            (21, 48),
            (22, 48),
            (22, 49 + 577 * 32),
            (23, 50),
        ] {
            let mut stream = length.to_be_bytes().to_vec();
            stream.push(id);
            assert_eq!(decoder().decode(&stream), Err(PeerError::WrongSize { id, length }));
        }
        for short in [[0, 0, 0, 7, 20, 3, 1, 0, 0, 0, 0].as_slice(), &[0, 0, 0, 2, 20, 3]] {
            assert!(matches!(decoder().decode(short), Err(PeerError::Extension { .. }) | Ok(None)));
        }
    }

    #[test]
    fn a_claimed_length_is_refused_before_it_is_buffered() {
        let limit = SMALLEST_FRAME_LIMIT;
        assert_eq!(decoder().decode(&u32::MAX.to_be_bytes()), Err(PeerError::FrameTooLong { length: u32::MAX, limit }));
        assert_eq!(FrameDecoder::new(1 << 20, 0).buffer_bytes(), 4 + 1 + (1 << 17));
        let piece = [[0, 0, 0x40, 10].as_slice(), &[7]].concat();
        let limit = BLOCK_BYTES + 9;
        assert_eq!(decoder().decode(&piece), Err(PeerError::FrameTooLong { length: limit + 1, limit }));
    }

    #[test]
    fn ranges_of_hashes_are_checked() {
        let bad = [(0, 3), (1, 2), (0, 1), (0, 0), (0, 1024), (u32::MAX, 2)];
        for (index, length) in bad {
            let bytes = encoded(&Message::HashRequest(Box::new(HashRange { index, length, ..*range() })));
            assert_eq!(decoder().decode(&bytes), Err(PeerError::HashRange { index, length }));
        }
        let deep = encoded(&Message::HashRequest(Box::new(HashRange { proof_layers: 65, ..*range() })));
        assert!(decoder().decode(&deep).is_err());
        for hashes in [1, 6] {
            let bytes = encoded(&Message::Hashes(range(), vec![[9; 32]; hashes]));
            assert!(decoder().decode(&bytes).is_err(), "{hashes} hashes for a range of 2 and 3 proofs");
        }
        assert_eq!(range().uncles(), 3);
        assert_eq!(HashRange { length: 512, proof_layers: 10, ..*range() }.uncles(), 2);
        assert_eq!(HashRange { length: 512, proof_layers: 3, ..*range() }.uncles(), 0);
    }

    fn a_rack() -> impl Strategy<Value = Option<RackName>> {
        proptest::option::of("[^\\pC]{1,16}".prop_map(|text| RackName::new(&text).unwrap()))
    }

    fn a_message() -> impl Strategy<Value = Message> {
        let block = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(piece, offset, length)| Block {
            piece,
            offset,
            length,
        });
        let range = (any::<[u8; 32]>(), 0u32..64, 0u32..1000, 1u32..10, 0u32..64).prop_map(
            |(pieces_root, base_layer, index, length, proof_layers)| {
                let length = 1 << length;
                Box::new(HashRange { pieces_root, base_layer, index: index * length, length, proof_layers })
            },
        );
        let rack =
            (any::<u64>(), any::<u32>(), any::<u8>(), 0..3).prop_map(|(claimed, piece, backlog, kind)| match kind {
                0 => RackMessage::Decline { piece, needless: claimed & 1 == 1, backlog },
                1 => RackMessage::Have { piece, backlog },
                _ => RackMessage::Lanes { claimed },
            });
        let metadata = (0u32..64, 0usize..=16384, 0..3).prop_map(|(piece, bytes, kind)| match kind {
            0 => MetadataMessage::Request { piece },
            1 => MetadataMessage::Reject { piece },
            _ => {
                let bytes = vec![7; bytes.max(1)];
                MetadataMessage::Data { piece, total_bytes: piece * 16384 + bytes.len() as u32, bytes: bytes.into() }
            }
        });
        let address = (any::<std::net::IpAddr>(), 1u16..).prop_map(|(ip, port)| std::net::SocketAddr::new(ip, port));
        let added = (address.clone(), any::<u8>()).prop_map(|(address, flags)| PexPeer { address, flags });
        let pex = (proptest::collection::vec(added, 0..50), proptest::collection::vec(address, 0..50)).prop_map(
            |(mut added, mut dropped)| {
                added.sort_by_key(|peer| !peer.address.is_ipv4());
                dropped.sort_by_key(|address| !address.is_ipv4());
                Pex { added, dropped }
            },
        );
        let id = || proptest::option::of(1u8..);
        let ids = (id(), id(), id()).prop_map(|(pex, metadata, rack)| ExtensionIds { pex, metadata, rack });
        let hello = (a_rack(), BLOCK_BYTES..=64 << 20, any::<bool>(), any::<bool>())
            .prop_map(|(rack, max_request_bytes, offers, zstd)| RackHello { rack, max_request_bytes, offers, zstd });
        let number = || proptest::option::of(any::<u32>());
        let client = proptest::option::of("[^\\pC]{0,30}");
        let hello = proptest::option::of(hello);
        let handshake = (ids, client, number(), number(), proptest::option::of(1u16..), hello).prop_map(
            |(ids, client, request_queue, metadata_bytes, listen_port, rack)| ExtensionHandshake {
                ids,
                client,
                request_queue,
                metadata_bytes,
                listen_port,
                rack,
            },
        );
        prop_oneof![
            any::<u32>().prop_map(Message::Have),
            any::<u32>().prop_map(Message::Suggest),
            any::<u16>().prop_map(Message::Port),
            block.clone().prop_map(Message::Request),
            block.prop_map(Message::Reject),
            range.clone().prop_map(Message::HashRequest),
            range.prop_map(|range| {
                let hashes = vec![[1; 32]; (range.length + range.proof_layers.min(range.uncles())) as usize];
                Message::Hashes(range, hashes)
            }),
            rack.prop_map(Message::from),
            metadata.prop_map(Message::from),
            pex.prop_map(Message::from),
            handshake.prop_map(Message::from),
        ]
    }

    proptest! {
        #[test]
        fn any_message_survives(message in a_message()) {
            let bytes = encoded(&message);
            prop_assert!(bytes.len() <= decoder().buffer_bytes());
            prop_assert_eq!(decoder().decode(&bytes), Ok(Some((Frame::Message(message), bytes.len()))));
            prop_assert_eq!(decoder().decode(&bytes[..bytes.len() - 1]), Ok(None));
        }

        #[test]
        fn plain_messages_have_one_encoding(stream in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((frame, used))) = decoder().decode(&stream) {
                let bytes = match frame {
                    Frame::Piece(block) => encode_piece_head(block).to_vec(),
                    Frame::Packed { block, packed_bytes } => encode_packed_head(3, block, packed_bytes).to_vec(),
                    Frame::Message(Message::Unknown { .. } | Message::Extended(_)) => return Ok(()),
                    Frame::Message(message) => encoded(&message),
                };
                prop_assert_eq!(&bytes[..], &stream[..used]);
            }
        }

        #[test]
        fn a_stream_cut_anywhere_decodes_the_same(pieces in proptest::collection::vec(0u32..PIECES, 1..20), cut in 0usize..200) {
            let mut stream = Vec::new();
            for &piece in &pieces {
                stream.extend(encoded(&Message::Have(piece)));
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
