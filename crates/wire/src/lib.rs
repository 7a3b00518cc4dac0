//! Bytes to types and back for every protocol Rackswarm speaks. No state, no
//! time, and no allocation that a peer's claim can inflate.

pub mod announce;
pub mod bencode;
mod compact;
pub mod dhcp;
pub mod lldp;
pub mod lsd;
pub mod magnet;
pub mod metainfo;
pub mod peer;
mod text;
pub mod tftp;
pub mod udp_tracker;
