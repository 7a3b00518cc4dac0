//! The folder that keeps downloads and costly intermediate results between builds.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{Error, error::file};

/// Where the cache is unless somebody chooses another place.
pub const DEFAULT_CACHE: &str = "/var/cache/rackswarm";
/// How long a build waits for another one, in seconds. A slow root file system takes ten minutes.
const LOCK_SECONDS: u64 = 1800;

/// A cache folder. Everything in it can be deleted at any time; the next build takes longer.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Held while a build uses a part of the cache alone; released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// Opens the cache, making its folder when it is new.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(root: &Path) -> Result<Self, Error> {
        fs::create_dir_all(root).map_err(file("make the cache folder", root))?;
        let root = fs::canonicalize(root).map_err(file("find", root))?;
        Ok(Cache { root })
    }

    /// A folder inside the cache, made when it is new.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(file("make the folder", &path))?;
        Ok(path)
    }

    /// Waits until no other process holds the lock `name`. Leftovers of killed builds of that name are removed.
    ///
    /// # Errors
    /// [`Error::Busy`] after half an hour.
    pub fn lock(&self, name: &str, progress: &dyn Fn(&str)) -> Result<Lock, Error> {
        let path = self.folder("locks")?.join(name);
        let lock = File::create(&path).map_err(file("make the lock", &path))?;
        let started = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(file("lock", path)(source)),
                Err(TryLockError::WouldBlock) if started.elapsed().as_secs() >= LOCK_SECONDS => {
                    return Err(Error::Busy { path, seconds: LOCK_SECONDS });
                }
                Err(TryLockError::WouldBlock) => {
                    if started.elapsed() < Duration::from_millis(100) {
                        progress(&format!("another build holds {}, waiting for it", path.display()));
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            }
        }
        remove_leftovers(&self.folder("work")?, name);
        Ok(Lock { _file: lock })
    }

    /// A new empty folder that disappears when dropped. `name` is the lock that the caller holds.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn work(&self, name: &str) -> Result<TempDir, Error> {
        let parent = self.folder("work")?;
        tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .tempdir_in(&parent)
            .map_err(file("make a work folder in", parent))
    }
}

/// Only folders of our own name: other builds may be at work under other locks.
fn remove_leftovers(work: &Path, name: &str) {
    let prefix = format!("{name}.");
    for entry in fs::read_dir(work).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            // What cannot be removed now costs space only, and the next build tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a file so that readers see the old one or the whole new one.
///
/// # Errors
/// When the folder of `path` is not writable or full.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let new = tempfile::Builder::new().prefix(".new").tempfile_in(folder).map_err(file("write into", folder))?;
    fs::write(new.path(), bytes).map_err(file("write", path))?;
    set_mode(new.path(), 0o644)?;
    new.persist(path).map_err(|error| file("write", path)(error.error))?;
    Ok(())
}

/// Sets the permission bits of a file or folder.
///
/// # Errors
/// When the file is missing or not ours.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(file("set the mode of", path))
}

/// The SHA-256 of bytes in lower-case hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

/// The SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String, Error> {
    let mut source = File::open(path).map_err(file("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = std::io::Read::read(&mut source, &mut buffer).map_err(file("read", path))?;
        if read == 0 {
            return Ok(data_encoding::HEXLOWER.encode(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_removes_its_own_leftovers_only() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let mine = cache.work("golden").unwrap().keep();
        let other = cache.work("bootenv").unwrap();
        let lock = cache.lock("golden", &|_| ()).unwrap();
        assert!(!mine.exists() && other.path().exists());
        drop(lock);
        cache.lock("golden", &|_| ()).unwrap();
    }

    #[test]
    fn digests_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        write_whole(&path, b"abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sha256(b"abc").as_str(), sha256_of_file(&path).unwrap().as_str()), (expected, expected));
    }
}
