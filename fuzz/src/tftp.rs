//! Packets mean the same after a round trip, and none is larger than it says.

use rackswarm_wire::tftp::Packet;

/// Reads `data` as a packet; says whether it is one.
pub fn check(data: &[u8]) -> bool {
    let Ok(packet) = Packet::parse(data) else { return false };
    let bytes = packet.encode();
    let again = Packet::parse(&bytes).expect("an encoded packet can be read");
    match (&packet, &again) {
        // Octets that are no text are replaced, and the text is cut again.
        (Packet::Error { code, .. }, Packet::Error { code: kept, .. }) => assert_eq!(code, kept),
        _ => assert_eq!(again, packet),
    }
    true
}
