//! A value has exactly one encoding.

use rackswarm_wire::bencode::Value;

/// Says whether `data` decodes; panics when it does not encode back.
pub fn check(data: &[u8]) -> bool {
    let Ok(value) = Value::decode(data) else { return false };
    assert_eq!(value.encode().as_deref(), Ok(data));
    true
}
