//! A handshake keeps every byte.

use rackswarm_wire::peer::{HANDSHAKE_BYTES, Handshake};

/// Says whether `data` begins with a handshake.
pub fn check(data: &[u8]) -> bool {
    let Some(bytes) = data.first_chunk::<HANDSHAKE_BYTES>() else { return false };
    let Ok(handshake) = Handshake::decode(bytes) else { return false };
    assert_eq!(handshake.encode(), *bytes);
    assert_eq!(handshake.with_v2().speaks_fast(), handshake.speaks_fast());
    true
}
