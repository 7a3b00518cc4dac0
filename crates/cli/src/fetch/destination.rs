//! DEST: a block device, a file or a folder, and every way in which it may be the wrong one.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use image::{DiskSink, Manifest};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// An open destination.
pub(super) struct Opened {
    pub(super) sink: Arc<DiskSink>,
    /// Keeps other fetches away from a file until it is dropped; the kernel does so for a block device.
    pub(super) lock: Option<File>,
}

/// Finds a typing error before anything is asked of the network.
pub(super) fn check(destination: &Path) -> Result<()> {
    let Some(metadata) = look(destination)? else {
        let folder = folder_of(destination);
        ensure!(!destination.is_symlink(), "{} is a link to something that is not there", destination.display());
        ensure!(
            !destination.starts_with("/dev") || destination.starts_with("/dev/shm"),
            "{} is not there: is the device's name right? (`lsblk` lists them)",
            destination.display()
        );
        return match look(folder)? {
            Some(there) if there.is_dir() => Ok(()),
            Some(_) => bail!("{} is not a folder, so {} cannot be made", folder.display(), destination.display()),
            None => bail!("the folder {} is not there: is the path right?", folder.display()),
        };
    };
    let kind = metadata.file_type();
    ensure!(
        kind.is_file() || kind.is_dir() || kind.is_block_device(),
        "{} is neither a block device, nor a file, nor a folder",
        destination.display()
    );
    ensure!(
        !image::is_write_protected(&metadata),
        "{0} is read-only: choose another DEST, or lift it by `blockdev --setrw {0}`",
        destination.display()
    );
    Ok(())
}

/// The file or device that is written: a folder gets a file of the image's name.
pub(super) fn of(destination: &Path, name: &str) -> Result<PathBuf> {
    if !look(destination)?.is_some_and(|there| there.is_dir()) {
        return Ok(destination.to_owned());
    }
    ensure!(!matches!(name, "." | ".."), "the torrent calls its file `{name}`: give DEST a file's name");
    Ok(destination.join(name))
}

pub(super) fn is_there(target: &Path) -> Result<bool> {
    Ok(look(target)?.is_some_and(|there| !is_empty_file(&there)))
}

fn is_empty_file(there: &Metadata) -> bool {
    there.is_file() && there.len() == 0
}

/// Opens what is there, or makes a sparse file.
pub(super) fn open(target: &Path, manifest: Arc<Manifest>) -> Result<Opened> {
    let Some(there) = look(target)? else {
        check_space(target, manifest.payload_bytes())?;
        let sink = Arc::new(DiskSink::create(target, manifest)?);
        return Ok(Opened { sink, lock: locked(target)? });
    };
    let lock = if there.is_file() { locked(target)? } else { None };
    if is_empty_file(&there) {
        std::fs::remove_file(target).with_context(|| format!("cannot replace the empty file {}", target.display()))?;
        return open(target, manifest);
    }
    ensure!(
        !there.is_file() || there.len() == manifest.size_bytes(),
        "{} has {} bytes but the image has {}: it is another file; remove it or choose another DEST",
        target.display(),
        there.len(),
        manifest.size_bytes()
    );
    Ok(Opened { sink: Arc::new(DiskSink::open(target, manifest)?), lock })
}

/// The file under a lock that no other fetch has; `None` where the file system knows no locks.
fn locked(path: &Path) -> Result<Option<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => {
            bail!("another fetch writes to {} or gives from it: end that one, or choose another DEST", path.display())
        }
        Err(_) => Ok(None),
    }
}

/// Refuses before anything is fetched what would fill the disk. A block device has its space.
pub(super) fn check_space(target: &Path, needed_bytes: u64) -> Result<()> {
    let there = look(target)?;
    if there.as_ref().is_some_and(|there| there.file_type().is_block_device()) {
        return Ok(());
    }
    let folder = folder_of(target);
    let free = rustix::fs::statvfs(folder).with_context(|| format!("cannot ask how full {} is", folder.display()))?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    // Blocks that the file has already are used again.
    let own_bytes = there.map_or(0, |there| there.blocks() * 512);
    ensure!(
        needed_bytes <= free_bytes.saturating_add(own_bytes),
        "{} has {} MiB free, and {} MiB more are to be written: make room or choose another DEST",
        folder.display(),
        free_bytes >> 20,
        needed_bytes.saturating_sub(own_bytes).div_ceil(1 << 20)
    );
    Ok(())
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    match path.metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
