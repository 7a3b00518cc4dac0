//! The first message in each direction.

use super::{PeerError, PeerId, array_at};
use crate::metainfo::InfoHash;

/// Bytes of a handshake.
pub const HANDSHAKE_BYTES: usize = 68;

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";
/// Byte and bit of the reserved field, as their BEPs count them.
const EXTENDED: (usize, u8) = (5, 0x10);
const FAST: (usize, u8) = (7, 0x04);
const V2: (usize, u8) = (7, 0x10);

/// The first message in each direction (BEP 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// Capability bits, most significant byte first as on the wire.
    pub reserved: [u8; 8],
    /// Which torrent this connection is about; of a version 2 torrent the
    /// truncated hash (BEP 52).
    pub info_hash: InfoHash,
    /// Who speaks.
    pub peer_id: PeerId,
}

impl Handshake {
    /// A handshake that claims what all our drivers speak: the fast extension
    /// (BEP 6) and the extension protocol (BEP 10).
    pub fn new(info_hash: InfoHash, peer_id: PeerId) -> Handshake {
        let mut reserved = [0; 8];
        reserved[EXTENDED.0] |= EXTENDED.1;
        reserved[FAST.0] |= FAST.1;
        Handshake { reserved, info_hash, peer_id }
    }

    /// Claims BEP 52 as well: the peer may ask for hashes, and may answer to
    /// the version 1 hash of a hybrid torrent with the version 2 hash.
    #[must_use]
    pub fn with_v2(mut self) -> Handshake {
        self.reserved[V2.0] |= V2.1;
        self
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
        self.has(EXTENDED)
    }

    /// The peer speaks the fast extension (BEP 6).
    pub fn speaks_fast(&self) -> bool {
        self.has(FAST)
    }

    /// The peer speaks the hash messages of version 2 (BEP 52).
    pub fn speaks_v2(&self) -> bool {
        self.has(V2)
    }

    fn has(&self, (byte, bit): (usize, u8)) -> bool {
        self.reserved[byte] & bit != 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_keeps_its_reserved_bits() {
        let mut shake = Handshake::new(InfoHash([7; 20]), PeerId(*b"-RS0100-abcdefghijk%"));
        assert!(shake.speaks_extended() && shake.speaks_fast() && !shake.speaks_v2());
        assert!(shake.with_v2().speaks_v2());
        assert_eq!(shake.with_v2().reserved, [0, 0, 0, 0, 0, 0x10, 0, 0x14]);
        shake.reserved = [0x80, 0, 0, 0, 0, 0, 0, 0x01];
        let back = Handshake::decode(&shake.encode()).unwrap();
        assert_eq!(back, shake);
        assert!(!back.speaks_extended() && !back.speaks_fast() && !back.speaks_v2());
        assert_eq!(back.peer_id.to_string(), "-RS0100-abcdefghijk%25");

        let mut bytes = shake.encode();
        bytes[1] = b'b';
        assert_eq!(Handshake::decode(&bytes), Err(PeerError::NotBitTorrent));
    }
}
