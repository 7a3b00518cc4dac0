//! Every stored fuzz input goes through its decoder again: none may panic,
//! and what decodes has to survive encoding. Inputs whose names begin with
//! `good` have to decode, those that begin with `bad` must not.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "../../../fuzz/src/announce.rs"]
mod announce;
#[path = "../../../fuzz/src/bencode.rs"]
mod bencode;
#[path = "../../../fuzz/src/extension.rs"]
mod extension;
#[path = "../../../fuzz/src/handshake.rs"]
mod handshake;
#[path = "../../../fuzz/src/hashes.rs"]
mod hashes;
#[path = "../../../fuzz/src/lldp.rs"]
mod lldp;
#[path = "../../../fuzz/src/lsd.rs"]
mod lsd;
#[path = "../../../fuzz/src/magnet.rs"]
mod magnet;
#[path = "../../../fuzz/src/metainfo.rs"]
mod metainfo;
#[path = "../../../fuzz/src/peer.rs"]
mod peer;
#[path = "../../../fuzz/src/udp_tracker.rs"]
mod udp_tracker;

use std::fs;
use std::path::Path;

fn replay(format: &str, check: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(format);
    let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 8, "{} has {} inputs", folder.display(), inputs.len());
    for path in inputs {
        let decodes = check(&fs::read(&path).unwrap());
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(decodes || !name.starts_with("good"), "{} has to decode", path.display());
        assert!(!decodes || !name.starts_with("bad"), "{} must not decode", path.display());
    }
}

#[test]
fn announce_corpus() {
    replay("announce", announce::check);
}

#[test]
fn bencode_corpus() {
    replay("bencode", bencode::check);
}

#[test]
fn extension_corpus() {
    replay("extension", extension::check);
}

#[test]
fn handshake_corpus() {
    replay("handshake", handshake::check);
}

#[test]
fn hashes_corpus() {
    replay("hashes", hashes::check);
}

#[test]
fn lldp_corpus() {
    replay("lldp", lldp::check);
}

#[test]
fn lsd_corpus() {
    replay("lsd", lsd::check);
}

#[test]
fn magnet_corpus() {
    replay("magnet", magnet::check);
}

#[test]
fn metainfo_corpus() {
    replay("metainfo", metainfo::check);
}

#[test]
fn peer_corpus() {
    replay("peer", peer::check);
}

#[test]
fn udp_tracker_corpus() {
    replay("udp_tracker", udp_tracker::check);
}
