//! Archives become a tree: owners, modes, times, attributes, links and devices as they were, layer over layer.
//!
//! What an archive says is a claim. Every path is resolved as if the tree were the whole world, nothing is written through
//! what an entry put there before, and what would lie outside is refused.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fleet::disk::Size;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchown, fstatvfs,
    lsetxattr, statat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::inside::{Inside, names_of, through};
use crate::error::{Error, file};

const STEP_BYTES: usize = 128 << 10;
/// The free space is looked at again after so many bytes, and before each file that is as large as this.
const LOOK_BYTES: u64 = 64 << 20;
const LARGE_BYTES: u64 = 1 << 20;
/// Zeros at the end of a complete archive, in bytes (POSIX pax, section "ustar Interchange Format").
const END_BYTES: usize = 512;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of the layering's own; nothing of the tree.
const RESERVED: &[u8] = b".wh..wh.";
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// How archives are unpacked into a tree.
#[derive(Debug)]
pub(crate) struct Unpacker {
    tree: Inside,
    /// The most that the tree may have, in bytes; beyond it, it is only counted.
    limit_bytes: Option<u64>,
    /// What must stay free where the tree is unpacked, in bytes.
    reserve_bytes: u64,
    unlooked_bytes: u64,
    /// Bytes of files, those included that were only counted.
    size_bytes: u64,
    is_over: bool,
    /// What the present layer brought, by its folder's inode number and name.
    brought: HashSet<(u64, OsString)>,
    notes: BTreeSet<String>,
}

/// An entry of an archive, as far as it is the same for all kinds.
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    time: Timespec,
    attributes: Vec<(String, Vec<u8>)>,
}

impl Unpacker {
    /// Unpacks into `folder`.
    pub(crate) fn new(folder: &Path, limit_bytes: Option<u64>, reserve_bytes: u64) -> Result<Self, Error> {
        Ok(Unpacker {
            tree: Inside::at(folder)?,
            limit_bytes,
            reserve_bytes,
            // So that the first file looks.
            unlooked_bytes: LOOK_BYTES,
            size_bytes: 0,
            is_over: false,
            brought: HashSet::new(),
            notes: BTreeSet::new(),
        })
    }

    /// Unpacks one archive. In a `layer`, names beginning with `.wh.` take away what lower layers brought (OCI image
    /// specification 1.1, layer.md); otherwise they are names like any other.
    pub(crate) fn unpack(&mut self, content: &mut dyn Read, what: &Path, layer: bool) -> Result<(), Error> {
        self.brought.clear();
        let mut tail = Tail { inner: content, zeros: 0, any: false };
        let mut archive = tar::Archive::new(&mut tail);
        let mut folder_times = Vec::new();
        for entry in archive.entries().map_err(file("read", what))? {
            let entry = entry.map_err(file("read", what))?;
            self.entry(entry, what, layer, &mut folder_times)?;
        }
        // A folder's time changes with each name in it.
        for (path, time) in folder_times.into_iter().rev() {
            if let Ok(folder) = self.tree.open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::futimens(&folder, &times).map_err(|e| file("set the time of", path)(e.into()))?;
            }
        }
        io::copy(&mut tail, &mut io::sink()).map_err(file("read", what))?;
        if !tail.any {
            return Err(Error::Tree(format!("{} is empty", what.display())));
        }
        if tail.zeros < END_BYTES {
            return Err(Error::Tree(format!(
                "{} has no end mark: it is no tar archive, or cut off; copy it again",
                what.display()
            )));
        }
        match self.limit_bytes {
            Some(limit_bytes) if self.is_over => Err(Error::TreeTooLarge {
                what: "the tree".to_owned(),
                needs: Size(self.size_bytes.next_multiple_of(1 << 20)),
                place: "the layout's file systems together have".to_owned(),
                has: Size(limit_bytes),
            }),
            _ => Ok(()),
        }
    }

    /// What could not be kept, in sentences.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &String> {
        self.notes.iter()
    }

    fn entry<R: Read>(
        &mut self,
        mut entry: tar::Entry<'_, R>,
        what: &Path,
        layer: bool,
        folder_times: &mut Vec<(PathBuf, Timespec)>,
    ) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if matches!(
            kind,
            EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader
        ) {
            return Ok(());
        }
        let path = plain(&entry.path_bytes(), what)?;
        let meta = self.meta(&mut entry, &path, what)?;
        if path.as_os_str().is_empty() {
            if kind == EntryType::Directory {
                let root = self.tree.folder("")?;
                self.settle_folder(&root, OsStr::new("."), &meta, &path)?;
                folder_times.push((path, meta.time));
            }
            return Ok(());
        }
        if layer && path.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT)) {
            return self.whiteout(&path);
        }
        if self.is_over {
            self.size_bytes += entry.size();
            return Ok(());
        }

        let failed = |errno: Errno| Error::entry(&path, what, errno.into());
        let (above, name) = self.tree.parent(&path)?;
        if layer {
            let number = rustix::fs::fstat(&above).map_err(failed)?.st_ino;
            self.brought.insert((number, name.clone()));
        }
        let there =
            statat(&above, &name, AtFlags::SYMLINK_NOFOLLOW).map(|there| FileType::from_raw_mode(there.st_mode));
        let stays = kind == EntryType::Directory && there == Ok(FileType::Directory);
        if there.is_ok() && !stays {
            self.remove(&above, &name).map_err(failed)?;
        }
        match kind {
            EntryType::Directory => {
                if !stays {
                    rustix::fs::mkdirat(&above, &name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                }
                self.settle_folder(&above, &name, &meta, &path)?;
                folder_times.push((path, meta.time));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(&mut entry, &above, &name, &meta, &path, what)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = plain(&target, what)?;
                let missing = |errno: Errno| {
                    let target = target.display();
                    Error::Tree(format!("{}: {} is a hard link to {target}: {errno}", what.display(), path.display()))
                };
                let (folder, from) = self.tree.parent(&target)?;
                rustix::fs::linkat(&folder, &from, &above, &name, AtFlags::empty()).map_err(missing)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &above, &name).map_err(failed)?;
                self.settle_other(&above, &name, &meta, &path, false)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
                let device =
                    rustix::fs::makedev(number(entry.header().device_major()), number(entry.header().device_minor()));
                let (made, device) = match kind {
                    EntryType::Char => (FileType::CharacterDevice, device),
                    EntryType::Block => (FileType::BlockDevice, device),
                    _ => (FileType::Fifo, 0),
                };
                rustix::fs::mknodat(&above, &name, made, Mode::from_raw_mode(0o600), device).map_err(failed)?;
                self.settle_other(&above, &name, &meta, &path, true)
            }
            other => Err(Error::Tree(format!(
                "{}: {} is of kind `{}`, which a tree cannot have",
                what.display(),
                path.display(),
                char::from(other.as_byte())
            ))),
        }
    }

    fn meta<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path, what: &Path) -> Result<Meta, Error> {
        let wrong = |source: io::Error| Error::entry(path, what, source);
        let header = entry.header();
        let id =
            |number: io::Result<u64>| number.map_err(wrong).map(|number| u32::try_from(number).unwrap_or(u32::MAX - 1));
        let seconds = i64::try_from(header.mtime().map_err(wrong)?).unwrap_or(0);
        let mut meta = Meta {
            mode: header.mode().map_err(wrong)? & 0o7777,
            uid: id(header.uid())?,
            gid: id(header.gid())?,
            time: Timespec { tv_sec: seconds, tv_nsec: 0 },
            attributes: Vec::new(),
        };
        for extension in entry.pax_extensions().map_err(wrong)?.into_iter().flatten() {
            let extension = extension.map_err(wrong)?;
            let (Ok(key), value) = (extension.key(), extension.value_bytes()) else { continue };
            let text = std::str::from_utf8(value).unwrap_or_default();
            match key {
                "uid" => meta.uid = text.parse().unwrap_or(meta.uid),
                "gid" => meta.gid = text.parse().unwrap_or(meta.gid),
                "mtime" => meta.time = moment(text).unwrap_or(meta.time),
                "GNU.sparse.major" | "GNU.sparse.map" => {
                    return Err(Error::Tree(format!(
                        "{}: {} is sparse in a way that is not read here; make the archive with `tar --format=gnu`, or without --sparse",
                        what.display(),
                        path.display()
                    )));
                }
                "SCHILY.acl.access" | "SCHILY.acl.default" => {
                    self.notes.insert(
                        "access control lists are kept only where the archive has them as attributes: make it with `tar --xattrs --xattrs-include='*'`".to_owned(),
                    );
                }
                _ => {
                    if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                        meta.attributes.push((name.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(meta)
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        above: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
        path: &Path,
        what: &Path,
    ) -> Result<(), Error> {
        let failed = |errno: Errno| Error::entry(path, what, errno.into());
        let size_bytes = entry.size();
        if self.limit_bytes.is_some_and(|limit| self.size_bytes.saturating_add(size_bytes) > limit) && self.is_system()
        {
            self.is_over = true;
            self.size_bytes += size_bytes;
            return Ok(());
        }
        self.expect_room(if entry.header().entry_type() == EntryType::GNUSparse { 0 } else { size_bytes })?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = File::from(rustix::fs::openat(above, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?);
        let mut buffer = vec![0; STEP_BYTES];
        let mut at = 0;
        while at < size_bytes {
            let got = match entry.read(&mut buffer) {
                Ok(0) => {
                    return Err(Error::Tree(format!(
                        "{} is cut off within {}; copy it again",
                        what.display(),
                        path.display()
                    )));
                }
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(file("read", what)(error)),
            };
            let bytes = buffer.get(..got).unwrap_or_default();
            if bytes.iter().any(|byte| *byte != 0) {
                made.write_all_at(bytes, at).map_err(|error| Error::entry(path, what, error))?;
            }
            at += got as u64;
        }
        made.set_len(size_bytes).map_err(|error| Error::entry(path, what, error))?;
        self.size_bytes += size_bytes;
        fchown(&made, owner(meta.uid), group(meta.gid)).map_err(failed)?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(meta.mode)).map_err(failed)?;
        self.attributes(above, name, meta, path)?;
        let times = Timestamps { last_access: meta.time, last_modification: meta.time };
        rustix::fs::futimens(&made, &times).map_err(failed)
    }

    fn settle_folder(&mut self, above: &OwnedFd, name: &OsStr, meta: &Meta, path: &Path) -> Result<(), Error> {
        let failed = |errno: Errno| file("set the owner of", path)(errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(above, name, flags, Mode::empty()).map_err(failed)?;
        fchown(&folder, owner(meta.uid), group(meta.gid)).map_err(failed)?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(meta.mode)).map_err(failed)?;
        self.attributes(above, name, meta, path)
    }

    fn settle_other(
        &mut self,
        above: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
        path: &Path,
        node: bool,
    ) -> Result<(), Error> {
        let failed = |errno: Errno| file("set the owner of", path)(errno.into());
        chownat(above, name, owner(meta.uid), group(meta.gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if node {
            // Made a moment ago in a folder that is ours alone, so it is no link.
            rustix::fs::chmodat(above, name, Mode::from_raw_mode(meta.mode), AtFlags::empty()).map_err(failed)?;
        }
        self.attributes(above, name, meta, path)?;
        let times =
            Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: meta.time };
        utimensat(above, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// After the owner: changing that takes capabilities away.
    fn attributes(&mut self, above: &OwnedFd, name: &OsStr, meta: &Meta, path: &Path) -> Result<(), Error> {
        for (attribute, value) in &meta.attributes {
            match lsetxattr(through(above, name), attribute.as_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // No file system keeps attributes of the name space `user` of links and devices (xattr(7)).
                Err(Errno::OPNOTSUPP | Errno::PERM) if attribute.starts_with("user.") => {
                    self.notes.insert("some attributes of the name space `user` could not be kept".to_owned());
                }
                Err(errno) => {
                    let what = format!("the attribute {attribute} of {}", path.display());
                    return Err(file("set", what)(errno.into()));
                }
            }
        }
        Ok(())
    }

    /// Takes away what lower layers brought; what the present one brought stays, whichever came first.
    fn whiteout(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let folder = path.parent().unwrap_or(Path::new(""));
        // Where the folder is not there, nothing is to be hidden.
        let Ok(above) = self.tree.open(folder, OFlags::RDONLY | OFlags::DIRECTORY) else { return Ok(()) };
        let failed = |errno: Errno| file("remove", path)(errno.into());
        if name == OPAQUE {
            for hidden in names_of(&above).map_err(failed)? {
                self.hide(&above, &hidden).map_err(failed)?;
            }
        } else if !name.starts_with(RESERVED) {
            let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(Error::Tree(format!("the whiteout `{}` names nothing", path.display())));
            }
            self.hide(&above, OsStr::from_bytes(hidden)).map_err(failed)?;
        }
        Ok(())
    }

    fn hide(&mut self, above: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        let number = rustix::fs::fstat(above)?.st_ino;
        if !self.brought.contains(&(number, name.to_owned())) {
            return self.remove(above, name);
        }
        match open_folder(above, name) {
            Ok(folder) => names_of(&folder)?.iter().try_for_each(|name| self.hide(&folder, name)),
            Err(_) => Ok(()),
        }
    }

    /// Removes a file or a folder with all that is in it; what is not there is fine.
    fn remove(&mut self, above: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        let there = match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match FileType::from_raw_mode(there.st_mode) {
            FileType::Directory => {
                let folder = open_folder(above, name)?;
                for name in names_of(&folder)? {
                    self.remove(&folder, &name)?;
                }
                rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
            }
            kind => {
                if kind == FileType::RegularFile && there.st_nlink == 1 {
                    let size_bytes = u64::try_from(there.st_size).unwrap_or(0);
                    self.size_bytes = self.size_bytes.saturating_sub(size_bytes);
                }
                rustix::fs::unlinkat(above, name, AtFlags::empty())
            }
        }
    }

    /// The server's other files need room as well.
    fn expect_room(&mut self, size_bytes: u64) -> Result<(), Error> {
        self.unlooked_bytes = self.unlooked_bytes.saturating_add(size_bytes);
        if self.unlooked_bytes < LOOK_BYTES && size_bytes < LARGE_BYTES {
            return Ok(());
        }
        self.unlooked_bytes = 0;
        let root = self.tree.folder("")?;
        let found = fstatvfs(&root).map_err(|e| file("look at", self.tree.path())(e.into()))?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        if free_bytes < self.reserve_bytes.saturating_add(size_bytes) {
            return Err(Error::NoRoom {
                path: self.tree.path().to_owned(),
                free: Size(free_bytes),
                reserve: Size(self.reserve_bytes),
            });
        }
        Ok(())
    }

    /// Whether this is a system's tree, as far as it is known, and not an archive that holds layers.
    fn is_system(&self) -> bool {
        self.tree.has_folder("usr") || self.tree.has_folder("etc")
    }
}

fn open_folder(above: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

fn owner(id: u32) -> Option<Uid> {
    Some(Uid::from_raw(id))
}

fn group(id: u32) -> Option<Gid> {
    Some(Gid::from_raw(id))
}

/// A path without `.` and a leading slash.
fn plain(bytes: &[u8], what: &Path) -> Result<PathBuf, Error> {
    let parts: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let refuse = |why: &str| {
        let name = String::from_utf8_lossy(bytes);
        Err(Error::Tree(format!("{} has an entry `{name}`, which {why}; nothing of it is used", what.display())))
    };
    if parts.contains(&b"..".as_slice()) {
        return refuse("would lie outside of the tree");
    }
    if bytes.contains(&0) {
        return refuse("is no name");
    }
    Ok(parts.into_iter().map(OsStr::from_bytes).collect())
}

/// Seconds with a fraction, as pax has them.
fn moment(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().take(9).collect();
    let nanoseconds = format!("{digits:0<9}").parse().ok()?;
    Some(Timespec { tv_sec: whole.parse().ok()?, tv_nsec: nanoseconds })
}

/// Knows how many zeros came last.
struct Tail<'a> {
    inner: &'a mut dyn Read,
    zeros: usize,
    any: bool,
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        let bytes = buffer.get(..got).unwrap_or_default();
        self.any |= got > 0;
        match bytes.iter().rposition(|byte| *byte != 0) {
            Some(at) => self.zeros = got - at - 1,
            None => self.zeros = self.zeros.saturating_add(got),
        }
        Ok(got)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use tar::{Builder, Header};

    /// An archive, put together entry by entry.
    struct Tar(Builder<Vec<u8>>);

    impl Tar {
        fn new() -> Self {
            Tar(Builder::new(Vec::new()))
        }

        fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
            let mut header = Header::new_gnu();
            // Written as bytes: the crate itself refuses to write what is refused here.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
            header.set_uid(12);
            header.set_gid(34);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            header.set_cksum();
            self.0.append(&header, content).unwrap();
            self
        }

        fn file(self, name: &str, content: &str) -> Self {
            self.entry(EntryType::Regular, name, "", content.as_bytes())
        }

        fn folder(self, name: &str) -> Self {
            self.entry(EntryType::Directory, name, "", b"")
        }

        fn link(self, name: &str, target: &str) -> Self {
            self.entry(EntryType::Symlink, name, target, b"")
        }

        fn done(self) -> Vec<u8> {
            self.0.into_inner().unwrap()
        }
    }

    fn layers(layers: &[Vec<u8>]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(folder.path(), None, 0).unwrap();
        for layer in layers {
            unpacker.unpack(&mut layer.as_slice(), Path::new("layer"), true).unwrap();
        }
        folder
    }

    fn refused(archive: &[u8], limit_bytes: Option<u64>, reserve_bytes: u64) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(folder.path(), limit_bytes, reserve_bytes).unwrap();
        unpacker.unpack(&mut &*archive, Path::new("t.tar"), false).unwrap_err().to_string()
    }

    fn listed(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![folder.to_owned()];
        while let Some(next) = left.pop() {
            for entry in std::fs::read_dir(next).unwrap().map(Result::unwrap) {
                let is_folder = entry.file_type().unwrap().is_dir();
                found.push(entry.path().strip_prefix(folder).unwrap().display().to_string());
                left.extend(is_folder.then(|| entry.path()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_tree_is_what_the_archive_says_of_it() {
        let archive = Tar::new()
            .folder("./")
            .folder("./etc")
            .file("/etc/motd", "hello")
            .entry(EntryType::Link, "etc/issue", "./etc/motd", b"")
            .link("etc/link", "/nowhere")
            .entry(EntryType::Fifo, "etc/pipe", "", b"")
            .entry(EntryType::Char, "dev/null", "", b"");
        let root = layers(&[archive.done()]);
        let motd = std::fs::symlink_metadata(root.path().join("etc/motd")).unwrap();
        assert_eq!((motd.uid(), motd.gid(), motd.mode() & 0o7777, motd.mtime()), (12, 34, 0o640, 1_700_000_000));
        assert_eq!(motd.nlink(), 2);
        assert_eq!(std::fs::metadata(root.path().join("etc")).unwrap().mtime(), 1_700_000_000);
        assert_eq!(std::fs::read_link(root.path().join("etc/link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(std::fs::symlink_metadata(root.path().join("etc/link")).unwrap().uid(), 12);
        assert_eq!(std::fs::symlink_metadata(root.path().join("dev/null")).unwrap().mode() & 0o170_000, 0o020_000);
    }

    #[test]
    fn real_tar_with_attributes_long_names_and_holes_comes_out_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        let deep = from.join("a".repeat(120)).join("b".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let sparse = File::create(deep.join("sparse")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"end", (8 << 20) - 3).unwrap();
        std::fs::write(from.join("ping"), "program").unwrap();
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        lsetxattr(from.join("ping"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        let archive = folder.path().join("t.tar");
        for format in [&["--format=pax"][..], &["--format=gnu", "--sparse"]] {
            let mut tar = std::process::Command::new("tar");
            tar.args(format)
                .args(["--xattrs", "--xattrs-include=*", "-C"])
                .arg(&from)
                .arg("-cf")
                .arg(&archive)
                .arg(".");
            // Attributes need the pax format, which overrules the other one.
            let with_attributes = format.len() == 1;
            if !with_attributes {
                tar = std::process::Command::new("tar");
                tar.args(format).arg("-C").arg(&from).arg("-cf").arg(&archive).arg(".");
            }
            assert!(tar.status().unwrap().success());
            let root = layers(&[std::fs::read(&archive).unwrap()]);
            let path = root.path().join(deep.strip_prefix(&from).unwrap()).join("sparse");
            assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(deep.join("sparse")).unwrap());
            assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
            let mut value = [0; 20];
            let got = rustix::fs::lgetxattr(root.path().join("ping"), "security.capability", &mut value[..]);
            assert_eq!(got.is_ok(), with_attributes);
            assert!(!with_attributes || value == capability);
        }
    }

    #[test]
    fn whiteouts_take_away_what_lower_layers_brought_and_nothing_else() {
        let lower = Tar::new().folder("d").file("d/old", "1").file("d/sub/x", "1").file("gone", "1").file("stay", "1");
        let upper = Tar::new().file(".wh.gone", "").file("d/new", "2").file("d/.wh..wh..opq", "").file("d/late", "2");
        let root = layers(&[lower.done(), upper.done()]);
        assert_eq!(listed(root.path()), ["d", "d/late", "d/new", "stay"]);
        // A whiteout of what its own layer brings hides what was there below.
        let lower = Tar::new().folder("d").file("d/old", "1");
        let upper =
            Tar::new().folder("d").file("d/new", "2").file(".wh.d", "").file(".wh.none", "").file(".wh..wh.plnk", "");
        let root = layers(&[lower.done(), upper.done()]);
        assert_eq!(listed(root.path()), ["d", "d/new"]);
        // Through a link of a lower layer, and onto what it led to.
        let lower = Tar::new().file("usr/lib/a", "1").file("usr/lib/b", "1").link("lib", "usr/lib");
        let upper = Tar::new().file("lib/c", "2").file("lib/.wh.a", "");
        let root = layers(&[lower.done(), upper.done()]);
        assert_eq!(listed(root.path()), ["lib", "usr", "usr/lib", "usr/lib/b", "usr/lib/c"]);
        // In a plain archive they are names.
        let folder = tempfile::tempdir().unwrap();
        let archive = Tar::new().file("x", "").file(".wh.x", "").done();
        let mut unpacker = Unpacker::new(folder.path(), None, 0).unwrap();
        unpacker.unpack(&mut archive.as_slice(), Path::new("t"), false).unwrap();
        assert_eq!(listed(folder.path()), [".wh.x", "x"]);
    }

    #[test]
    fn a_whiteout_of_a_hard_links_other_name_leaves_the_new_name() {
        let lower = Tar::new().file("a", "1");
        let upper = Tar::new().entry(EntryType::Link, "b", "a", b"").file(".wh.a", "");
        assert_eq!(listed(layers(&[lower.done(), upper.done()]).path()), ["b"]);
    }

    #[test]
    fn later_entries_replace_earlier_ones_of_any_kind() {
        let lower = Tar::new().file("a", "1").file("b/c", "1").link("l", "b").folder("keep").file("keep/x", "1");
        let upper = Tar::new().file("a/now-a-folder", "2");
        let sentence = {
            let root = layers(&[lower.done()]);
            let mut unpacker = Unpacker::new(root.path(), None, 0).unwrap();
            unpacker.unpack(&mut upper.done().as_slice(), Path::new("u"), true).unwrap_err().to_string()
        };
        assert!(sentence.contains("a"), "{sentence}");
        let lower = Tar::new().file("a", "1").file("b/c", "1").link("l", "b").folder("keep").file("keep/x", "1");
        let upper = Tar::new().folder("a").file("b", "2").folder("l").file("l/y", "2").folder("keep");
        let root = layers(&[lower.done(), upper.done()]);
        assert_eq!(listed(root.path()), ["a", "b", "keep", "keep/x", "l", "l/y"]);
    }

    #[test]
    fn nothing_is_written_outside_of_the_tree() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(outer.path().join("victim"), "safe").unwrap();
        let absolute = outer.path().display().to_string();
        let archive = Tar::new()
            .link("up", "..")
            .file("up/victim", "overwritten")
            .link("away", &absolute)
            .file("away/victim", "overwritten")
            .link("direct", "../victim")
            .file("direct", "overwritten")
            .entry(EntryType::Link, "hard", "away/victim", b"")
            .file("hard", "overwritten")
            .file("/victim2", "inside");
        let mut unpacker = Unpacker::new(&root, None, 0).unwrap();
        unpacker.unpack(&mut archive.done().as_slice(), Path::new("t"), false).unwrap();
        assert_eq!(std::fs::read_to_string(outer.path().join("victim")).unwrap(), "safe");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
        assert!(root.join("victim").is_file() && root.join("victim2").is_file());
        for name in ["../x", "a/../../x", "/.."] {
            let sentence = refused(&Tar::new().file(name, "x").done(), None, 0);
            assert!(sentence.contains("outside of the tree") && sentence.contains(name), "{sentence}");
        }
        let sentence = refused(&Tar::new().entry(EntryType::Link, "h", "../victim", b"").done(), None, 0);
        assert!(sentence.contains("outside of the tree"), "{sentence}");
        let sentence = refused(&Tar::new().entry(EntryType::Link, "h", "none", b"").done(), None, 0);
        assert!(sentence.contains("hard link to none"), "{sentence}");
    }

    #[test]
    fn what_is_too_large_is_counted_and_not_written() {
        let large = "x".repeat(3 << 20);
        let archive = Tar::new().folder("etc").file("etc/a", &large).file("etc/b", &large).file("etc/c", &large).done();
        let sentence = refused(&archive, Some(5 << 20), 0);
        assert!(sentence.contains("needs 9 MiB") && sentence.contains("have 5 MiB"), "{sentence}");
        // Replacing is not adding.
        let folder = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(folder.path(), Some(5 << 20), 0).unwrap();
        for _ in 0..3 {
            let layer = Tar::new().folder("etc").file("etc/a", &large).done();
            unpacker.unpack(&mut layer.as_slice(), Path::new("t"), true).unwrap();
        }
        let sentence = refused(&archive, None, u64::MAX / 2);
        assert!(sentence.contains("--cache"), "{sentence}");
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_entry() {
        /// A small file system in memory, unmounted when dropped.
        struct Small(tempfile::TempDir);
        impl Drop for Small {
            fn drop(&mut self) {
                let _ = std::process::Command::new("umount").arg(self.0.path()).status();
            }
        }
        let small = Small(tempfile::tempdir().unwrap());
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(small.0.path());
        assert!(mount.status().unwrap().success(), "mounting needs root");
        let archive = Tar::new().file("etc/fits", "x").file("etc/large", &"x".repeat(3 << 20)).done();
        let mut unpacker = Unpacker::new(small.0.path(), None, 0).unwrap();
        let sentence = unpacker.unpack(&mut archive.as_slice(), Path::new("t.tar"), false).unwrap_err().to_string();
        assert!(sentence.contains("left") && sentence.contains("--cache"), "{sentence}");
        // Small files fill it unseen.
        let half = "x".repeat(700 << 10);
        let archive = Tar::new().file("etc/one", &half).file("etc/two", &half).done();
        let sentence = unpacker.unpack(&mut archive.as_slice(), Path::new("t.tar"), false).unwrap_err().to_string();
        assert!(sentence.contains("etc/two of t.tar") && sentence.contains("No space"), "{sentence}");
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let archive = Tar::new().file("etc/a", &"x".repeat(5000)).done();
        for (end, word) in [(512, "cut off"), (3000, "cut off"), (512 + 5120, "no end mark"), (0, "empty")] {
            let sentence = refused(&archive[..end], None, 0);
            assert!(sentence.contains(word), "{end}: {sentence}");
        }
        assert!(refused(&vec![7; 4096], None, 0).contains("t.tar"));
    }
}
