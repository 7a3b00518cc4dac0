//! What has to hold for any input, one module per wire format. The fuzz
//! targets feed these with invented inputs, `crates/wire/tests/corpus.rs` with
//! the stored ones.

// As the crates of the workspace name it: one module here is their own file.
extern crate rackswarm_wire as wire;

pub mod announce;
pub mod bencode;
pub mod dhcp;
pub mod extension;
pub mod handshake;
pub mod hashes;
pub mod lldp;
pub mod lsd;
pub mod magnet;
pub mod metainfo;
pub mod packed;
pub mod peer;
pub mod tftp;
pub mod udp_tracker;
