//! A folder that is the whole world to whoever works in it: absolute links and `..` of a foreign tree never lead out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, file};

/// The most that is read of one file of configuration, in bytes.
const TEXT_BYTES: u64 = 1 << 20;
/// Links that are followed while missing folders are made, as many as Linux follows.
const MOST_LINKS: u32 = 40;
const LABEL: &str = "security.selinux";
/// A page, the most that SELinux takes.
const LABEL_BYTES: usize = 4096;
/// The kernel gives up on `..` while anything anywhere is renamed, and wants to be asked again.
const TRIES: u32 = 1000;

/// A foreign tree.
#[derive(Debug)]
pub(crate) struct Inside {
    path: PathBuf,
    folder: OwnedFd,
}

impl Inside {
    pub(crate) fn at(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| file("open", path)(e.into()))?;
        Ok(Inside { path: path.to_owned(), folder })
    }

    /// Where the tree is, seen from outside.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what a path of the tree leads to.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    fn resolve(&self, path: &Path, flags: OFlags, also: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV | also;
        let once = || rustix::fs::openat2(self.folder.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), how);
        (1..TRIES).map(|_| once()).find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or_else(once)
    }

    /// Whether a path leads to a file.
    pub(crate) fn has_file(&self, path: &str) -> bool {
        let found = self.open(Path::new(path), OFlags::PATH);
        found.and_then(rustix::fs::fstat).is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_file())
    }

    /// Whether a path leads to a folder.
    pub(crate) fn has_folder(&self, path: &str) -> bool {
        self.open(Path::new(path), OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// Opens a file for reading. Devices and pipes are refused: reading them would not be reading the tree.
    pub(crate) fn read_file(&self, path: &Path) -> Result<File, Error> {
        let failed = |errno: Errno| file("open", self.outside(path))(errno.into());
        let opened = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
        match rustix::fs::fstat(&opened).map(|found| FileType::from_raw_mode(found.st_mode)).map_err(failed)? {
            FileType::RegularFile => Ok(File::from(opened)),
            _ => Err(Error::Tree(format!("/{} is not a file", path.display()))),
        }
    }

    /// The text of a file, without what is beyond a MiB; empty where there is none.
    pub(crate) fn text(&self, path: &str) -> String {
        let mut bytes = Vec::new();
        if let Ok(file) = self.read_file(Path::new(path)) {
            let _ = file.take(TEXT_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The names in a folder, sorted; none where there is no such folder.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(folder) = self.open(Path::new(path), OFlags::RDONLY | OFlags::DIRECTORY) else { return Vec::new() };
        let names = names_of(&folder).unwrap_or_default();
        let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        names
    }

    /// Writes a file in place of whatever link or file stood there.
    pub(crate) fn write(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), Error> {
        let failed = |errno: Errno| file("write", self.outside(Path::new(path)))(errno.into());
        let (folder, name) = self.parent(Path::new(path))?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&folder, &name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let mut written = File::from(opened);
        std::io::Write::write_all(&mut written, bytes).map_err(file("write", self.outside(Path::new(path))))?;
        rustix::fs::fchmod(&written, Mode::from_raw_mode(mode)).map_err(failed)?;
        // SELinux gives a new file its folder's label, where a kernel with it makes the file.
        match label(folder.as_fd()) {
            Some(label) => {
                rustix::fs::fsetxattr(&written, LABEL, &label, rustix::fs::XattrFlags::empty()).map_err(failed)
            }
            None => Ok(()),
        }
    }

    /// Whether a folder of the tree has a label of SELinux.
    pub(crate) fn is_labelled(&self, path: &str) -> bool {
        let folder = self.open(Path::new(path), OFlags::RDONLY | OFlags::DIRECTORY);
        folder.is_ok_and(|folder| label(folder.as_fd()).is_some())
    }

    /// Makes a folder and those above it.
    pub(crate) fn folder(&self, path: &str) -> Result<OwnedFd, Error> {
        self.folders(Path::new(path), 0)
    }

    /// The folder above `path`, made if need be, and the last name.
    pub(crate) fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Error> {
        let name = path.file_name().ok_or_else(|| Error::Tree(format!("`{}` names no file", path.display())))?;
        Ok((self.folders(path.parent().unwrap_or(Path::new("")), 0)?, name.to_owned()))
    }

    /// Makes folders, also where a link leads to one that is not there yet, such as `/var/run` before `/run`.
    fn folders(&self, path: &Path, links: u32) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let failed = |errno: Errno| file("make the folder", self.outside(path))(errno.into());
        let mut folder = self.open(Path::new("."), flags).map_err(failed)?;
        let mut below = PathBuf::new();
        for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            let above = below.clone();
            below.push(part);
            folder = match self.open(&below, flags) {
                Err(Errno::NOENT) => match rustix::fs::readlinkat(&folder, part.as_os_str(), Vec::new()) {
                    Ok(_) if links > MOST_LINKS => return Err(failed(Errno::LOOP)),
                    Ok(target) => {
                        let target = OsStr::new(target.to_str().map_err(|_| failed(Errno::ILSEQ))?).to_owned();
                        self.folders(&lexical(&above.join(target)), links + 1)?
                    }
                    Err(_) => {
                        rustix::fs::mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o755)).map_err(failed)?;
                        self.open(&below, flags).map_err(failed)?
                    }
                },
                opened => opened.map_err(failed)?,
            };
        }
        Ok(folder)
    }

    /// Whether a path can be used as it is written: no link on the way, a folder at its end or nothing.
    pub(crate) fn is_plain_folder(&self, path: &str) -> bool {
        let opened = self.resolve(Path::new(path), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS);
        matches!(opened, Ok(_) | Err(Errno::NOENT))
    }

    fn outside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn label(folder: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut value = [0; LABEL_BYTES];
    let got = rustix::fs::fgetxattr(folder, LABEL, &mut value[..]).ok()?;
    Some(value.get(..got)?.to_owned())
}

/// The names in an open folder, without `.` and `..`.
pub(crate) fn names_of(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    use std::os::unix::ffi::OsStrExt as _;
    let entries = Dir::read_from(folder)?.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_owned()));
    let names: Result<Vec<Vec<u8>>, Errno> = entries.collect();
    let names = names?.into_iter().filter(|name| name != b"." && name != b"..");
    Ok(names.map(|name| OsStr::from_bytes(&name).to_owned()).collect())
}

/// A path to something in an open folder that can be given to calls without a folder argument.
pub(crate) fn through(folder: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

/// Takes `.` and `..` out of a path without looking, and never climbs above its beginning.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir => plain = PathBuf::new(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_the_tree_stay_in_it() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        let tree = Inside::at(&root).unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink(outer.path(), root.join("away")).unwrap();
        assert_eq!(tree.text("up"), "");
        assert!(!tree.has_file("away/secret"));
        tree.write("up", 0o644, b"inside").unwrap();
        tree.write("away/secret", 0o600, b"inside").unwrap();
        assert_eq!(std::fs::read_to_string(outer.path().join("secret")).unwrap(), "outside");
        assert_eq!(tree.text("up"), "inside");
        assert_eq!(tree.text("/away/secret"), "inside");
    }

    #[test]
    fn folders_are_made_where_dangling_links_lead() {
        let root = tempfile::tempdir().unwrap();
        let tree = Inside::at(root.path()).unwrap();
        tree.folder("var").unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        tree.write("var/run/deep/file", 0o644, b"x").unwrap();
        assert_eq!(tree.text("run/deep/file"), "x");
        assert!(tree.folder("loop/x").is_err());
        assert!(tree.is_plain_folder("var") && tree.is_plain_folder("none") && !tree.is_plain_folder("var/run"));
    }

    #[test]
    fn new_files_are_labelled_like_their_folder() {
        let root = tempfile::tempdir().unwrap();
        let tree = Inside::at(root.path()).unwrap();
        tree.write("etc/plain", 0o644, b"").unwrap();
        assert!(!tree.is_labelled("etc"));
        let value = b"system_u:object_r:etc_t:s0\0";
        let set = rustix::fs::lsetxattr(root.path().join("etc"), LABEL, value, rustix::fs::XattrFlags::empty());
        set.expect("attributes of the name space `security` need root");
        tree.write("etc/fstab", 0o644, b"").unwrap();
        assert!(tree.is_labelled("etc") && !tree.is_labelled("none"));
        let mut found = [0; 64];
        let got = rustix::fs::lgetxattr(root.path().join("etc/fstab"), LABEL, &mut found[..]).unwrap();
        assert_eq!(&found[..got], value);
    }

    #[test]
    fn pipes_are_not_read() {
        let root = tempfile::tempdir().unwrap();
        let made = rustix::fs::mknodat(CWD, root.path().join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0);
        made.unwrap();
        let tree = Inside::at(root.path()).unwrap();
        assert!(tree.read_file(Path::new("pipe")).unwrap_err().to_string().contains("not a file"));
    }
}
