//! The stored fuzz inputs of the boot protocols go through their decoders
//! again, as in `corpus.rs`: names beginning with `good` decode, with `bad` not.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "../../../fuzz/src/dhcp.rs"]
mod dhcp;
#[path = "../../../fuzz/src/tftp.rs"]
mod tftp;

use std::fs;
use std::path::Path;

fn replay(format: &str, check: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(format);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let decodes = check(&fs::read(&path).unwrap());
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(decodes || !name.starts_with("good"), "{} has to decode", path.display());
        assert!(!decodes || !name.starts_with("bad"), "{} must not decode", path.display());
        count += 1;
    }
    assert!(count >= 20, "{} has {count} inputs", folder.display());
}

#[test]
fn dhcp_corpus() {
    replay("dhcp", dhcp::check);
}

#[test]
fn tftp_corpus() {
    replay("tftp", tftp::check);
}
