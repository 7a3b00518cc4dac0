//! Datagrams of local service discovery mean the same after a round trip.

use rackswarm_wire::lsd::{GROUP_V4, GROUP_V6, LsdAnnounce, MAX_LSD_BYTES};

/// Says whether `data` is an announce.
pub fn check(data: &[u8]) -> bool {
    let Ok(announce) = LsdAnnounce::decode(data) else { return false };
    assert_ne!(announce.port, 0);
    for group in [GROUP_V4, GROUP_V6] {
        let bytes = announce.encode(group);
        assert!(bytes.len() <= MAX_LSD_BYTES);
        assert_eq!(LsdAnnounce::decode(&bytes).as_ref(), Ok(&announce));
    }
    true
}
