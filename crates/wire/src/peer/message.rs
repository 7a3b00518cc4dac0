//! All messages but those with payload.

use super::bitfield::Bitfield;
use super::extension::{ExtensionHandshake, ExtensionIds};
use super::hashes::{HashRange, decode_hashes};
use super::metadata::MetadataMessage;
use super::pex::Pex;
use super::rack::RackMessage;
use super::{Block, LENGTH_PREFIX_BYTES, PeerError, u32_at};

pub(super) const ID_CHOKE: u8 = 0;
pub(super) const ID_UNCHOKE: u8 = 1;
pub(super) const ID_INTERESTED: u8 = 2;
pub(super) const ID_NOT_INTERESTED: u8 = 3;
pub(super) const ID_HAVE: u8 = 4;
pub(super) const ID_BITFIELD: u8 = 5;
pub(super) const ID_REQUEST: u8 = 6;
pub(super) const ID_PIECE: u8 = 7;
pub(super) const ID_CANCEL: u8 = 8;
pub(super) const ID_PORT: u8 = 9;
pub(super) const ID_SUGGEST: u8 = 13;
pub(super) const ID_HAVE_ALL: u8 = 14;
pub(super) const ID_HAVE_NONE: u8 = 15;
pub(super) const ID_REJECT: u8 = 16;
pub(super) const ID_ALLOWED_FAST: u8 = 17;
pub(super) const ID_EXTENDED: u8 = 20;
pub(super) const ID_HASH_REQUEST: u8 = 21;
pub(super) const ID_HASHES: u8 = 22;
pub(super) const ID_HASH_REJECT: u8 = 23;

/// Extended message id of the extension handshake (BEP 10).
const EXTENDED_HANDSHAKE: u8 = 0;

/// Every message except those with payload, which are heads in
/// [`super::Frame`] because their bytes take another way. Rare and large
/// contents are boxed, so that a message takes 40 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Nothing to say; the connection lives.
    KeepAlive,
    /// I will not serve your requests; without the fast extension those
    /// pending are forgotten, with it each is answered or rejected.
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
    /// UDP port of my DHT node (BEP 5).
    Port(u16),
    /// You might fetch this piece from me (BEP 6).
    Suggest(u32),
    /// In place of the bitfield: I have everything (BEP 6).
    HaveAll,
    /// In place of the bitfield: I have nothing (BEP 6).
    HaveNone,
    /// I shall not serve this request (BEP 6).
    Reject(Block),
    /// You may request this piece even while I choke you (BEP 6).
    AllowedFast(u32),
    /// Send me these hashes (BEP 52).
    HashRequest(Box<HashRange>),
    /// The hashes asked for, then the uncles that prove them (BEP 52).
    Hashes(Box<HashRange>, Vec<[u8; 32]>),
    /// I shall not send these hashes (BEP 52).
    HashReject(Box<HashRange>),
    /// A message of the extension protocol (BEP 10).
    Extended(Extended),
    /// A message of an extension that we did not agree to; to be ignored.
    Unknown {
        /// Message id.
        id: u8,
    },
}

/// A message of the extension protocol (BEP 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extended {
    /// What the peer speaks; may come again when something changed.
    Handshake(Box<ExtensionHandshake>),
    /// Peers that it met and lost (BEP 11).
    Pex(Box<Pex>),
    /// Parts of the info dictionary (BEP 9).
    Metadata(Box<MetadataMessage>),
    /// Our own.
    Rack(RackMessage),
    /// An extension, or a kind of message within one, that we do not know; to
    /// be ignored.
    Unknown {
        /// Extended message id.
        id: u8,
    },
}

impl From<Extended> for Message {
    fn from(extended: Extended) -> Message {
        Message::Extended(extended)
    }
}

impl From<RackMessage> for Message {
    fn from(message: RackMessage) -> Message {
        Message::Extended(Extended::Rack(message))
    }
}

impl From<ExtensionHandshake> for Message {
    fn from(handshake: ExtensionHandshake) -> Message {
        Message::Extended(Extended::Handshake(Box::new(handshake)))
    }
}

impl From<Pex> for Message {
    fn from(pex: Pex) -> Message {
        Message::Extended(Extended::Pex(Box::new(pex)))
    }
}

impl From<MetadataMessage> for Message {
    fn from(message: MetadataMessage) -> Message {
        Message::Extended(Extended::Metadata(Box::new(message)))
    }
}

impl Message {
    /// The message of a body whose size was checked against its id.
    pub(super) fn decode(id: u8, body: &[u8], pieces: u32) -> Result<Message, PeerError> {
        Ok(match id {
            ID_CHOKE => Message::Choke,
            ID_UNCHOKE => Message::Unchoke,
            ID_INTERESTED => Message::Interested,
            ID_NOT_INTERESTED => Message::NotInterested,
            ID_HAVE => Message::Have(u32_at(body, 0)),
            ID_BITFIELD => Message::Bitfield(Bitfield::from_bytes(body, pieces)?),
            ID_REQUEST => Message::Request(Block::at(body)),
            ID_CANCEL => Message::Cancel(Block::at(body)),
            ID_PORT => Message::Port(u16::from_be_bytes([body[0], body[1]])),
            ID_SUGGEST => Message::Suggest(u32_at(body, 0)),
            ID_HAVE_ALL => Message::HaveAll,
            ID_HAVE_NONE => Message::HaveNone,
            ID_REJECT => Message::Reject(Block::at(body)),
            ID_ALLOWED_FAST => Message::AllowedFast(u32_at(body, 0)),
            ID_HASH_REQUEST => Message::HashRequest(Box::new(HashRange::decode(body)?)),
            ID_HASHES => {
                let (range, hashes) = decode_hashes(body)?;
                Message::Hashes(Box::new(range), hashes)
            }
            ID_HASH_REJECT => Message::HashReject(Box::new(HashRange::decode(body)?)),
            ID_EXTENDED => Message::Extended(Extended::decode(body[0], &body[1..])?),
            _ => Message::Unknown { id },
        })
    }

    /// Appends the frame to `out`. `theirs` are the ids that the peer hands
    /// out; an extended message that it has no id for appends nothing, nor
    /// does a message whose body is unknown.
    pub fn encode(&self, theirs: &ExtensionIds, out: &mut Vec<u8>) {
        match self {
            Message::KeepAlive => out.extend_from_slice(&[0; LENGTH_PREFIX_BYTES]),
            Message::Choke => put_head(out, ID_CHOKE, 0),
            Message::Unchoke => put_head(out, ID_UNCHOKE, 0),
            Message::Interested => put_head(out, ID_INTERESTED, 0),
            Message::NotInterested => put_head(out, ID_NOT_INTERESTED, 0),
            Message::Have(piece) => put_piece(out, ID_HAVE, *piece),
            Message::Bitfield(bitfield) => {
                put_head(out, ID_BITFIELD, bitfield.as_bytes().len());
                out.extend_from_slice(bitfield.as_bytes());
            }
            Message::Request(block) => put_block(out, ID_REQUEST, *block),
            Message::Cancel(block) => put_block(out, ID_CANCEL, *block),
            Message::Port(port) => {
                put_head(out, ID_PORT, 2);
                out.extend_from_slice(&port.to_be_bytes());
            }
            Message::Suggest(piece) => put_piece(out, ID_SUGGEST, *piece),
            Message::HaveAll => put_head(out, ID_HAVE_ALL, 0),
            Message::HaveNone => put_head(out, ID_HAVE_NONE, 0),
            Message::Reject(block) => put_block(out, ID_REJECT, *block),
            Message::AllowedFast(piece) => put_piece(out, ID_ALLOWED_FAST, *piece),
            Message::HashRequest(range) => put_hashes(out, ID_HASH_REQUEST, range, &[]),
            Message::Hashes(range, hashes) => put_hashes(out, ID_HASHES, range, hashes),
            Message::HashReject(range) => put_hashes(out, ID_HASH_REJECT, range, &[]),
            Message::Extended(extended) => extended.encode(theirs, out),
            Message::Unknown { .. } => {}
        }
    }
}

impl Extended {
    fn decode(id: u8, body: &[u8]) -> Result<Extended, PeerError> {
        let ours = ExtensionIds::OURS;
        if id == EXTENDED_HANDSHAKE {
            return Ok(Extended::Handshake(Box::new(ExtensionHandshake::decode(body)?)));
        }
        let known = if ours.pex == Some(id) {
            Some(Extended::Pex(Box::new(Pex::decode(body)?)))
        } else if ours.metadata == Some(id) {
            MetadataMessage::decode(body)?.map(|message| Extended::Metadata(Box::new(message)))
        } else if ours.rack == Some(id) {
            RackMessage::decode(body)?.map(Extended::Rack)
        } else {
            None
        };
        Ok(known.unwrap_or(Extended::Unknown { id }))
    }

    fn encode(&self, theirs: &ExtensionIds, out: &mut Vec<u8>) {
        let id = match self {
            Extended::Handshake(_) => Some(EXTENDED_HANDSHAKE),
            Extended::Pex(_) => theirs.pex,
            Extended::Metadata(_) => theirs.metadata,
            Extended::Rack(_) => theirs.rack,
            Extended::Unknown { .. } => None,
        };
        let Some(id) = id else { return };
        let start = out.len();
        put_head(out, ID_EXTENDED, 0);
        out.push(id);
        match self {
            Extended::Handshake(handshake) => handshake.put(out),
            Extended::Pex(pex) => pex.put(out),
            Extended::Metadata(message) => message.put(out),
            Extended::Rack(message) => message.put(out),
            Extended::Unknown { .. } => {}
        }
        let length = u32::try_from(out.len() - start - LENGTH_PREFIX_BYTES).unwrap_or(u32::MAX);
        out[start..start + LENGTH_PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    }
}

fn put_head(out: &mut Vec<u8>, id: u8, body_bytes: usize) {
    let length = u32::try_from(body_bytes + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.push(id);
}

fn put_piece(out: &mut Vec<u8>, id: u8, piece: u32) {
    put_head(out, id, 4);
    out.extend_from_slice(&piece.to_be_bytes());
}

fn put_block(out: &mut Vec<u8>, id: u8, block: Block) {
    put_head(out, id, 12);
    block.put(out);
}

fn put_hashes(out: &mut Vec<u8>, id: u8, range: &HashRange, hashes: &[[u8; 32]]) {
    let bytes = range.encode();
    put_head(out, id, bytes.len() + hashes.len() * 32);
    out.extend_from_slice(&bytes);
    out.extend_from_slice(hashes.as_flattened());
}
