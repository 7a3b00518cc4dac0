//! The written system's file tree, seen from outside.
//!
//! Paths are resolved as if the tree were the whole world (`openat2` with
//! `RESOLVE_IN_ROOT`): an image's absolute links, such as
//! `/etc/resolv.conf -> /run/...`, must never lead into the boot environment.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::Error;

/// The most that is read of one file: configuration is small.
const FILE_LIMIT_BYTES: u64 = 16 << 20;

/// A file tree. Whatever is written is complete and durable, or not there.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    folder: OwnedFd,
    written: Mutex<Vec<String>>,
}

impl Root {
    /// The tree at `path`.
    ///
    /// # Errors
    /// When it is not a folder.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Error::sys("open", path))?;
        Ok(Self { path: path.to_owned(), folder, written: Mutex::default() })
    }

    /// Where the tree is, seen from outside.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that were written or linked so far.
    pub(super) fn written(&self) -> Vec<String> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is something, links followed.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH).is_ok()
    }

    /// Whether there is something, a link to nowhere included.
    #[must_use]
    pub fn has_entry(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH | OFlags::NOFOLLOW).is_ok()
    }

    /// The text of a file; none where there is no such file.
    ///
    /// # Errors
    /// When it cannot be read or is no text.
    pub fn read(&self, path: &str) -> Result<Option<String>, Error> {
        let file = match self.open(path, OFlags::RDONLY) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(self.error("read", path, errno)),
        };
        let mut text = String::new();
        file.take(FILE_LIMIT_BYTES).read_to_string(&mut text).map_err(Error::io("read", self.path.join(path)))?;
        Ok(Some(text))
    }

    /// Names in a folder, sorted; none where there is no such folder.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        let Some(folder) = self.outside(path) else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Where a path of the tree is, seen from outside, with every link resolved.
    #[must_use]
    pub fn outside(&self, path: &str) -> Option<PathBuf> {
        let found = self.open(path, OFlags::PATH).ok()?;
        std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()
    }

    /// Writes a file with these permission bits, in place of whatever was there.
    /// Folders above it are made.
    ///
    /// # Errors
    /// When it cannot be written; the old file is then still there.
    pub fn write(&self, path: &str, mode: u32, text: impl AsRef<[u8]>) -> Result<(), Error> {
        self.write_from(path, mode, &mut text.as_ref())
    }

    /// The same with the content of a stream.
    ///
    /// # Errors
    /// As [`Root::write`].
    pub fn write_from(&self, path: &str, mode: u32, from: &mut dyn Read) -> Result<(), Error> {
        let failed = |source: io::Error| Error::io("write", self.path.join(path))(source);
        let (folder, name) = self.parent(path)?;
        let draft = format!(".{name}.rackswarm");
        let _ = rustix::fs::unlinkat(&folder, &draft, AtFlags::empty());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let mut file = File::from(rustix::fs::openat(&folder, &draft, flags, mode).map_err(|e| failed(e.into()))?);
        io::copy(from, &mut file).and_then(|_| file.flush()).map_err(failed)?;
        // The process's umask took bits away when the file was made.
        rustix::fs::fchmod(&file, mode).map_err(|e| failed(e.into()))?;
        file.sync_all().map_err(failed)?;
        rustix::fs::renameat(&folder, &draft, &folder, &name).map_err(|e| failed(e.into()))?;
        rustix::fs::fsync(&folder).map_err(|e| failed(e.into()))?;
        self.note(path);
        Ok(())
    }

    /// Makes a symbolic link, in place of whatever was there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn link(&self, target: &str, path: &str) -> Result<(), Error> {
        let (folder, name) = self.parent(path)?;
        let draft = format!(".{name}.rackswarm");
        let _ = rustix::fs::unlinkat(&folder, &draft, AtFlags::empty());
        rustix::fs::symlinkat(target, &folder, &draft)
            .and_then(|()| rustix::fs::renameat(&folder, &draft, &folder, &name))
            .and_then(|()| rustix::fs::fsync(&folder))
            .map_err(|errno| self.error("link", path, errno))?;
        self.note(path);
        Ok(())
    }

    /// Gives a file another name in its folder; what has that name is replaced.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn rename(&self, path: &str, new_name: &str) -> Result<(), Error> {
        let (folder, name) = self.parent(path)?;
        rustix::fs::renameat(&folder, &name, &folder, new_name).map_err(|errno| self.error("rename", path, errno))
    }

    /// Removes a file or link; one that is not there is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        let (folder, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", path, errno)),
        }
    }

    /// Makes a folder with these permission bits, and those above it; of one
    /// that is there the bits are set.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, path: &str, mode: u32) -> Result<(), Error> {
        let folder = self.make_folders(path)?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode)).map_err(|errno| self.error("make", path, errno))
    }

    /// The folder above `path`, made if need be, and the last name.
    fn parent(&self, path: &str) -> Result<(OwnedFd, String), Error> {
        let (above, name) = path.trim_matches('/').rsplit_once('/').unwrap_or(("", path.trim_matches('/')));
        Ok((self.make_folders(above)?, name.to_owned()))
    }

    fn make_folders(&self, path: &str) -> Result<OwnedFd, Error> {
        let failed = |errno| self.error("make the folder", path, errno);
        let open = |below: &str| self.open(below, OFlags::RDONLY | OFlags::DIRECTORY);
        let mut folder = open(".").map_err(failed)?;
        let mut below = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let above = folder;
            below = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            folder = match open(&below) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    open(&below).map_err(failed)?
                }
                opened => opened.map_err(failed)?,
            };
        }
        Ok(folder)
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = match path.trim_start_matches('/') {
            "" => ".",
            inside => inside,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(self.folder.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn note(&self, path: &str) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(format!("/{}", path.trim_start_matches('/')));
    }

    fn error(&self, action: &'static str, path: &str, errno: Errno) -> Error {
        Error::io(action, self.path.join(path.trim_start_matches('/')))(errno.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn links_never_lead_out_of_the_tree() {
        let tree = Tree::new();
        let root = tree.root();
        tree.link("/etc/passwd", "stolen");
        tree.link("../../../../../etc/passwd", "climbed");
        assert_eq!(root.read("stolen").unwrap().unwrap(), "root:x:0:0:root:/root:/bin/sh\n");
        assert_eq!(root.read("climbed").unwrap(), root.read("stolen").unwrap());
        tree.link("/tmp", "var");
        assert!(!root.has("var"), "the tree has no /tmp");
        assert!(root.has_entry("var"));
        tree.link("usr/sbin", "sbin");
        tree.file("usr/sbin/init", "");
        assert!(root.has("/sbin/init"));
        assert_eq!(root.outside("/sbin/init").unwrap(), tree.path().join("usr/sbin/init"));
    }

    #[test]
    fn writing_replaces_a_link_and_not_what_it_leads_to() {
        let tree = Tree::new();
        tree.link("/etc/passwd", "etc/hostname");
        tree.root().write("etc/hostname", 0o644, "node7\n").unwrap();
        assert_eq!(tree.text("etc/hostname"), "node7\n");
        assert!(tree.text("etc/passwd").starts_with("root"));
    }

    #[test]
    fn folders_are_made_through_links_and_modes_kept() {
        let tree = Tree::new();
        tree.link("usr/etc", "config");
        std::fs::create_dir_all(tree.path().join("usr/etc")).unwrap();
        let root = tree.root();
        root.write("/config/deep/secret", 0o600, "x").unwrap();
        assert_eq!(tree.mode("usr/etc/deep/secret"), 0o600);
        root.folder("root/.ssh", 0o700).unwrap();
        assert_eq!(tree.mode("root/.ssh"), 0o700);
        root.link("../x", "a/b/link").unwrap();
        root.link("../y", "a/b/link").unwrap();
        assert_eq!(std::fs::read_link(tree.path().join("a/b/link")).unwrap(), Path::new("../y"));
        assert_eq!(root.list("a/b"), ["link"]);
        assert_eq!(root.written(), ["/config/deep/secret", "/a/b/link", "/a/b/link"]);
        root.remove("a/b/link").unwrap();
        root.remove("a/b/link").unwrap();
        assert!(root.list("a/b").is_empty());
    }

    #[test]
    fn what_is_missing_is_none_and_what_fails_is_named() {
        let tree = Tree::new();
        let root = tree.root();
        assert_eq!(root.read("etc/none").unwrap(), None);
        assert_eq!(root.read("etc/passwd/none").unwrap(), None);
        let error = root.write("etc/passwd/x", 0o644, "").unwrap_err().to_string();
        assert!(error.contains("etc/passwd") && error.contains("Not a directory"), "{error}");
    }
}
