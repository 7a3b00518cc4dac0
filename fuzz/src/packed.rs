//! Packed payloads: a frame unpacks to exactly the length that its message
//! says, or is refused; it never writes beyond it, nor takes memory for more.

use std::sync::OnceLock;

use packing::{Packer, Unpacker};

use wire::peer::Block;

/// What the driver's reading half gives to its unpacker.
mod reading {
    use std::io;

    pub(super) fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, what)
    }
}

/// The driver's own code; its other half chooses what to send.
#[allow(dead_code)]
#[path = "../../crates/transport/src/bittorrent/packing.rs"]
mod packing;

/// What one packed message may unpack to at most.
const MOST_BYTES: usize = 256 << 10;

/// The first three bytes are the unpacked length, the rest a frame. Says
/// whether it unpacks to that.
pub fn check(data: &[u8]) -> bool {
    static UNPACKER: OnceLock<Unpacker> = OnceLock::new();
    let unpacker = UNPACKER.get_or_init(Unpacker::default);
    let [high, middle, low, frame @ ..] = data else { return false };
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize % (MOST_BYTES + 1);
    let mut plain = vec![0; length];
    let unpacks = unpacker.unpack(frame, &mut plain).is_ok();
    if unpacks {
        check_again(unpacker, &plain);
    }
    unpacks
}

/// What is packed anew unpacks to the same, and to no other length.
fn check_again(unpacker: &Unpacker, plain: &[u8]) {
    let block = Block { piece: 0, offset: 0, length: 0 };
    let Some(packed) = Packer::new(0).pack(block, plain) else { return };
    assert!(packed.len() < plain.len());
    let mut again = vec![1; plain.len()];
    unpacker.unpack(&packed, &mut again).expect("what was packed unpacks");
    assert_eq!(again, plain);
    assert!(unpacker.unpack(&packed, &mut vec![0; plain.len() + 1]).is_err());
    assert!(unpacker.unpack(&packed, &mut vec![0; plain.len() - 1]).is_err());
}
