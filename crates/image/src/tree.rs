//! Images that are a tree of files instead of a disk: a tar archive packed by zstd, with a head that says on which layout it
//! is unpacked.
//!
//! The head is a skippable frame (RFC 8878, 3.1.2), so the whole file is an ordinary `.tar.zst`, and what it says is sealed
//! and verified with everything else.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use fleet::layout::Layout;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Our skippable frame among the sixteen that there are.
const FRAME: u32 = 0x184D_2A5E;
/// What its content begins with; the version is part of it.
const NAME: &[u8] = b"rackswarm-tree-1\n";
/// Number and length of a skippable frame, in bytes.
const FRAME_HEAD_BYTES: usize = 8;
/// A layout has at most some thousand short names.
const MOST_BYTES: usize = 1 << 20;
/// Images are whole sectors of this many bytes.
const SECTOR_BYTES: u64 = 512;

#[derive(Serialize, Deserialize)]
struct Head {
    layout: Layout,
}

/// The head of a tree that is unpacked on `layout`. The archive packed by zstd comes behind it, then [`tail`].
///
/// # Errors
/// When the layout is larger than any that can be built.
pub fn head(layout: &Layout) -> Result<Vec<u8>, Error> {
    let text = serde_json::to_vec(&Head { layout: layout.clone() }).map_err(|error| wrong(&error.to_string()))?;
    let content = [NAME, &text].concat();
    if content.len() > MOST_BYTES {
        return Err(wrong("the layout is too large"));
    }
    Ok(frame(&content))
}

/// What makes a tree of `bytes` bytes a whole number of sectors: a skippable frame.
#[must_use]
pub fn tail(bytes: u64) -> Vec<u8> {
    let end = (bytes + FRAME_HEAD_BYTES as u64).next_multiple_of(SECTOR_BYTES);
    let room = end.saturating_sub(bytes + FRAME_HEAD_BYTES as u64);
    frame(&vec![0; usize::try_from(room).unwrap_or_default()])
}

/// The layout of the tree in this file; none where the file is a disk.
///
/// # Errors
/// When it cannot be read, or its head is of another version.
pub fn layout_of(path: &Path) -> Result<Option<Layout>, Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    read(&mut file).map_err(Error::io("read", path))?.map_or(Ok(None), |content| {
        let text =
            content.strip_prefix(NAME).ok_or_else(|| wrong("its head is of another version; import it again"))?;
        let head: Head = serde_json::from_slice(text).map_err(|error| wrong(&error.to_string()))?;
        Ok(Some(head.layout))
    })
}

/// The content of our frame at the beginning; none where there is another beginning.
fn read(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    let mut start = Vec::new();
    file.take(FRAME_HEAD_BYTES as u64).read_to_end(&mut start)?;
    let Some((number, length)) = start.split_first_chunk::<4>() else { return Ok(None) };
    let length = length.try_into().map_or(usize::MAX, |length| u32::from_le_bytes(length) as usize);
    if u32::from_le_bytes(*number) != FRAME || length > MOST_BYTES {
        return Ok(None);
    }
    let mut content = vec![0; length];
    match file.read_exact(&mut content) {
        // Frames of this number may be anybody's.
        Ok(()) => Ok(Some(content).filter(|content| content.starts_with(b"rackswarm-tree-"))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn frame(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&FRAME.to_le_bytes(), &length.to_le_bytes(), content].concat()
}

fn wrong(why: &str) -> Error {
    Error::BadManifest(format!("it is a tree of files without a readable layout: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use fleet::layout::{Extent, Kind, LaidDisk, Mount, Partition, Role, Table};

    fn layout() -> Layout {
        let partition = Partition { name: "root".into(), size: Extent::Rest, role: Role::Data };
        let disk = LaidDisk { name: "a".into(), rule: None, partitions: vec![partition] };
        let mount = Mount {
            on: "a.root".into(),
            kind: Kind::Xfs,
            at: Some("/".into()),
            label: None,
            options: None,
            least: None,
        };
        Layout {
            table: Table::Gpt,
            disks: vec![disk],
            arrays: Vec::new(),
            locked: Vec::new(),
            groups: Vec::new(),
            mounts: vec![mount],
        }
    }

    #[test]
    fn a_tree_is_a_zstd_file_that_knows_its_layout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree");
        let mut bytes = head(&layout()).unwrap();
        bytes.extend(zstd::bulk::compress(b"an archive", 3).unwrap());
        bytes.extend(tail(bytes.len() as u64));
        assert_eq!(bytes.len() % 512, 0);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(layout_of(&path).unwrap(), Some(layout()));
        assert_eq!(zstd::stream::decode_all(bytes.as_slice()).unwrap(), b"an archive");
        for at in 0..1024 {
            assert_eq!((at + tail(at).len() as u64) % 512, 0);
        }
    }

    #[test]
    fn a_disk_is_no_tree_and_a_later_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for disk in [&b""[..], b"\xeb\x63\x90", &[0; 4096], &frame(b"somebody else's"), &frame(b"rackswarm")[..12]] {
            std::fs::write(&path, disk).unwrap();
            assert_eq!(layout_of(&path).unwrap(), None);
        }
        for broken in [&b"rackswarm-tree-2\n{}"[..], b"rackswarm-tree-1\n{"] {
            std::fs::write(&path, frame(broken)).unwrap();
            assert!(layout_of(&path).unwrap_err().to_string().contains("without a readable layout"));
        }
    }
}
