//! A file tree packed as an initramfs: one or more cpio archives, each compressed by itself.
//!
//! The kernel unpacks the segments of an initramfs one after the other (Documentation/driver-api/early-userspace/
//! buffer-format). So the large, seldom changing segment is compressed once and kept, and the agent comes behind it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::{Cache, set_mode, sha256, write_whole};
use crate::command::Run;
use crate::{Error, error::file};

/// zstd's level. Level 19 keeps its window at 8 MiB, which any machine has; above 19 the window grows.
const LEVEL: i32 = 19;
/// The most that an initramfs may hold when it is listed, in bytes: a bound against damaged files.
const UNPACKED_BYTES: u64 = 4 << 30;

/// How many compressed segments the cache keeps.
const SEGMENTS_KEPT: usize = 24;

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// What stands at one path.
#[derive(Debug, Clone)]
enum Node {
    Folder { mode: u32 },
    Text { mode: u32, bytes: Vec<u8> },
    Copy { mode: u32, source: PathBuf },
    Link { target: String },
    Character { mode: u32, major: u32, minor: u32 },
}

/// Files to pack, by path without a leading slash. Everything belongs to root; folders above a file appear by themselves.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// One entry of an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path without a leading slash.
    pub path: String,
    /// File type and permission bits as in `stat`.
    pub mode: u32,
    /// Its size in bytes; of a link, the length of its target.
    pub size_bytes: u64,
    /// Its modification time, in seconds since 1970.
    pub mtime: u32,
    /// The target of a symbolic link.
    pub target: Option<String>,
}

impl Tree {
    /// Adds a folder with its permission bits.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.put(path, Node::Folder { mode });
    }

    /// Adds a file with the given contents.
    pub fn text(&mut self, path: &str, mode: u32, bytes: &(impl AsRef<[u8]> + ?Sized)) {
        self.put(path, Node::Text { mode, bytes: bytes.as_ref().to_vec() });
    }

    /// Adds a copy of a file, which is read when the tree is packed.
    pub fn copy(&mut self, path: &str, mode: u32, source: &Path) {
        self.put(path, Node::Copy { mode, source: source.to_owned() });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link { target: target.to_owned() });
    }

    /// Adds a character device.
    pub fn character(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.put(path, Node::Character { mode, major, minor });
    }

    /// Leaves out the files that `other` has under the same path: both were taken from the same packages.
    pub fn leave_out(&mut self, other: &Tree) {
        self.nodes.retain(|path, _| !matches!(other.nodes.get(path), Some(Node::Copy { .. } | Node::Folder { .. })));
    }

    fn put(&mut self, path: &str, node: Node) {
        for (end, _) in path.match_indices('/') {
            self.nodes.entry(path[..end].to_owned()).or_insert(Node::Folder { mode: 0o755 });
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The tree as one cpio archive in the "newc" form: sorted, every entry of the same age, owned by root.
    ///
    /// # Errors
    /// When a file to copy cannot be read or is larger than 4 GiB.
    pub fn to_cpio(&self, mtime: u32) -> Result<Vec<u8>, Error> {
        let memory = |source| file("write", "cpio archive")(source);
        let mut archive = Vec::new();
        for (number, (path, node)) in (1u32..).zip(&self.nodes) {
            let bytes = match node {
                Node::Folder { .. } | Node::Character { .. } => Vec::new(),
                Node::Text { bytes, .. } => bytes.clone(),
                Node::Copy { source, .. } => fs::read(source).map_err(file("read", source))?,
                Node::Link { target } => target.clone().into_bytes(),
            };
            let size = u32::try_from(bytes.len())
                .map_err(|_| file("pack", path)(std::io::Error::other("it is larger than cpio's 4 GiB")))?;
            let mut writer = node.header(path).ino(number).mtime(mtime).write(&mut archive, size);
            writer.write_all(&bytes).and_then(|()| writer.finish()).map_err(memory)?;
        }
        cpio::newc::trailer(&mut archive).map_err(memory)?;
        Ok(archive)
    }

    /// Writes the tree into a new folder instead, for another archive or file system to be made from. Owners are whoever
    /// runs this.
    ///
    /// # Errors
    /// When the folder exists, a file cannot be read, or a device cannot be made (which only root can).
    pub fn write_to(&self, folder: &Path) -> Result<(), Error> {
        fs::create_dir(folder).map_err(file("make the folder", folder))?;
        for (path, node) in &self.nodes {
            node.write_to(&folder.join(path))?;
        }
        Ok(())
    }
}

impl Node {
    fn write_to(&self, path: &Path) -> Result<(), Error> {
        match self {
            Node::Folder { mode } => {
                fs::create_dir(path).map_err(file("make the folder", path))?;
                set_mode(path, *mode)
            }
            Node::Text { mode, bytes } => {
                fs::write(path, bytes).map_err(file("write", path))?;
                set_mode(path, *mode)
            }
            Node::Copy { mode, source } => {
                fs::copy(source, path).map_err(file("copy", source))?;
                set_mode(path, *mode)
            }
            Node::Link { target } => std::os::unix::fs::symlink(target, path).map_err(file("link", path)),
            Node::Character { mode, major, minor } => {
                let mknod = Run::new("mknod", "coreutils").args([&format!("--mode={mode:o}")]).args([path]);
                mknod.args(["c".to_owned(), major.to_string(), minor.to_string()]).output().map(drop)
            }
        }
    }

    fn header(&self, path: &str) -> cpio::newc::Builder {
        let builder = cpio::newc::Builder::new(path);
        match self {
            Node::Folder { mode } => builder.mode(FOLDER | mode).nlink(2),
            Node::Text { mode, .. } | Node::Copy { mode, .. } => builder.mode(REGULAR | mode),
            Node::Link { .. } => builder.mode(SYMLINK | 0o777),
            Node::Character { mode, major, minor } => {
                builder.mode(CHARACTER | mode).rdev_major(*major).rdev_minor(*minor)
            }
        }
    }
}

/// Compresses one segment.
///
/// # Errors
/// When memory runs out.
pub fn compress(segment: &[u8]) -> Result<Vec<u8>, Error> {
    zstd::bulk::compress(segment, LEVEL).map_err(file("compress", "initramfs segment"))
}

/// Compresses one segment, or takes the result from the cache: level 19 costs seconds, and equal bytes compress equally.
///
/// # Errors
/// When the cache cannot be read or written.
pub fn compress_cached(cache: &Cache, segment: &[u8], progress: &dyn Fn(&str)) -> Result<Vec<u8>, Error> {
    let name = format!("{}-zstd{}-{LEVEL}", sha256(segment), zstd::zstd_safe::version_number());
    let folder = cache.folder("segments")?;
    let kept = folder.join(name);
    if kept.exists() {
        // Its age is how long nobody has used it.
        let used = fs::File::open(&kept).and_then(|segment| segment.set_modified(SystemTime::now()));
        used.map_err(file("touch", &kept))?;
        return fs::read(&kept).map_err(file("read", &kept));
    }
    progress(&format!("compress {} MiB, once for these contents", segment.len() >> 20));
    let compressed = compress(segment)?;
    write_whole(&kept, &compressed)?;
    forget_old(&folder)?;
    Ok(compressed)
}

/// Each new agent makes a new segment; only the latest ones are worth their space.
fn forget_old(folder: &Path) -> Result<(), Error> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder).map_err(file("list", folder))?.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        segments.push((modified.map_err(file("look at", entry.path()))?, entry.path()));
    }
    segments.sort();
    for (_, path) in segments.iter().rev().skip(SEGMENTS_KEPT) {
        fs::remove_file(path).map_err(file("remove", path))?;
    }
    Ok(())
}

/// Lists what an initramfs made by this crate holds, segment after segment.
///
/// # Errors
/// When the file is damaged or in another format.
pub fn list(path: &Path) -> Result<Vec<Entry>, Error> {
    let damaged = |why: String| Error::Archive { path: path.to_owned(), why };
    let packed = fs::File::open(path).map_err(file("open", path))?;
    let decoder = zstd::stream::Decoder::new(packed).map_err(|error| damaged(error.to_string()))?;
    let mut bytes = Vec::new();
    decoder.take(UNPACKED_BYTES).read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
    let mut entries = Vec::new();
    let mut cursor = Cursor::new(bytes.as_slice());
    while usize::try_from(cursor.position()).is_ok_and(|position| position < bytes.len()) {
        let reader = cpio::newc::Reader::new(cursor).map_err(|error| damaged(error.to_string()))?;
        cursor = take_entry(reader, &mut entries).map_err(|error| damaged(error.to_string()))?;
    }
    Ok(entries)
}

fn take_entry<'a>(
    mut reader: cpio::newc::Reader<Cursor<&'a [u8]>>,
    entries: &mut Vec<Entry>,
) -> std::io::Result<Cursor<&'a [u8]>> {
    let header = reader.entry().clone();
    let mut target = None;
    if header.mode() & 0o170_000 == SYMLINK {
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        target = Some(text);
    }
    if !header.is_trailer() {
        entries.push(Entry {
            path: header.name().to_owned(),
            mode: header.mode(),
            size_bytes: u64::from(header.file_size()),
            mtime: header.mtime(),
            target,
        });
    }
    reader.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.text("etc/hosts", 0o644, "127.0.0.1 localhost\n");
        tree.link("sbin", "bin");
        tree.character("dev/console", 0o600, 5, 1);
        tree.folder("tmp", 0o1777);
        tree
    }

    #[test]
    fn segments_are_listed_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initramfs");
        let mut second = Tree::default();
        second.text("init", 0o755, "#!/bin/sh\n");
        let mut packed = compress(&tree().to_cpio(7).unwrap()).unwrap();
        packed.extend(compress(&second.to_cpio(7).unwrap()).unwrap());
        fs::write(&path, packed).unwrap();
        let entries = list(&path).unwrap();
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["dev", "dev/console", "etc", "etc/hosts", "sbin", "tmp", "init"]);
        assert_eq!(entries[1].mode, 0o020_600);
        assert_eq!(entries[4].target.as_deref(), Some("bin"));
        assert_eq!(entries[5].mode, 0o041_777);
        assert!(entries.iter().all(|entry| entry.mtime == 7));
    }

    #[test]
    fn equal_trees_are_equal_bytes() {
        let mut other = Tree::default();
        other.folder("tmp", 0o1777);
        other.character("dev/console", 0o600, 5, 1);
        other.link("sbin", "bin");
        other.text("etc/hosts", 0o644, "127.0.0.1 localhost\n");
        assert_eq!(tree().to_cpio(7).unwrap(), other.to_cpio(7).unwrap());
    }

    #[test]
    fn files_that_are_there_already_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "program").unwrap();
        let (mut base, mut more) = (Tree::default(), Tree::default());
        base.copy("lib/libc.so.6", 0o644, &program);
        base.link("bin/tar", "busybox");
        base.text("lib/modules/modules.dep", 0o644, "few");
        for path in ["lib/libc.so.6", "bin/tar", "bin/lvm"] {
            more.copy(path, 0o755, &program);
        }
        more.text("lib/modules/modules.dep", 0o644, "more");
        more.leave_out(&base);
        let kept: Vec<&str> = more
            .nodes
            .keys()
            .map(String::as_str)
            .filter(|path| path.contains('.') || path.starts_with("bin/"))
            .collect();
        assert_eq!(kept, ["bin/lvm", "bin/tar", "lib/modules/modules.dep"]);
    }

    #[test]
    fn a_tree_becomes_a_folder() {
        use std::os::unix::fs::MetadataExt as _;
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("root");
        let mut tree = Tree::default();
        tree.text("bin/tool", 0o755, "text");
        tree.link("sbin", "bin");
        tree.folder("tmp", 0o1777);
        tree.write_to(&root).unwrap();
        assert_eq!(fs::read_to_string(root.join("sbin/tool")).unwrap(), "text");
        assert_eq!(fs::metadata(root.join("bin/tool")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert!(tree.write_to(&root).is_err());
    }

    #[test]
    fn the_cache_keeps_the_latest_segments() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let first = compress_cached(&cache, b"first", &|_| ()).unwrap();
        let old = fs::File::open(fs::read_dir(root.path().join("segments")).unwrap().next().unwrap().unwrap().path());
        old.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        for number in 0..SEGMENTS_KEPT {
            compress_cached(&cache, &number.to_le_bytes(), &|_| ()).unwrap();
        }
        assert_eq!(fs::read_dir(root.path().join("segments")).unwrap().count(), SEGMENTS_KEPT);
        let compressed_again = std::cell::Cell::new(false);
        let again = compress_cached(&cache, b"first", &|_| compressed_again.set(true)).unwrap();
        assert!(compressed_again.get() && again == first);
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initramfs");
        fs::write(&path, b"070701 this is no zstd").unwrap();
        assert!(matches!(list(&path), Err(Error::Archive { .. })));
    }
}
