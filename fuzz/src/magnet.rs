//! A magnet link means the same after a round trip.

use rackswarm_wire::magnet::{MAX_MAGNET_BYTES, MAX_MAGNET_ENTRIES, Magnet};

/// Says whether `data` is a link.
pub fn check(data: &[u8]) -> bool {
    let Some(magnet) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<Magnet>().ok()) else {
        return false;
    };
    assert!(magnet.info_hash().is_some());
    assert!(magnet.trackers.len() <= MAX_MAGNET_ENTRIES && magnet.peers.len() <= MAX_MAGNET_ENTRIES);
    // Escaping can make a link too long to be read again.
    let text = magnet.to_string();
    assert!(text.len() > MAX_MAGNET_BYTES || text.parse() == Ok(magnet));
    true
}
