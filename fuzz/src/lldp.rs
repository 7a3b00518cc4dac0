//! Frames from switches are read within bounds, and what is read can be shown.

use rackswarm_wire::lldp::Neighbour;

/// Says whether `data` is a frame.
pub fn check(data: &[u8]) -> bool {
    let Ok(found) = Neighbour::decode(data) else { return false };
    let texts = [Some(&found.chassis), Some(&found.port), found.port_description.as_ref(), found.system_name.as_ref()];
    for text in texts.into_iter().flatten() {
        assert!(!text.is_empty() && text.chars().count() <= 120 && !text.chars().any(char::is_control));
    }
    // What stands behind the end of a message changes nothing.
    let mut padded = data.to_vec();
    padded.extend([0; 8]);
    if let Ok(again) = Neighbour::decode(&padded) {
        assert_eq!(again, found);
    }
    true
}
