//! The stored fuzz inputs of packed payloads go through the driver's unpacker
//! again: names beginning with `good` unpack, with `bad` not.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "../../../fuzz/src/packed.rs"]
mod packed;

use std::fs;
use std::path::Path;

#[test]
fn packed_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/packed");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let unpacks = packed::check(&fs::read(&path).unwrap());
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(unpacks || !name.starts_with("good"), "{} has to unpack", path.display());
        assert!(!unpacks || !name.starts_with("bad"), "{} must not unpack", path.display());
        count += 1;
    }
    assert!(count >= 16, "{} has {count} inputs", folder.display());
}
