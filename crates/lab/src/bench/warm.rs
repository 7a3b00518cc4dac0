//! Memory that is really there.
//!
//! The host of a virtual machine gives a page when it is first touched, and takes free memory back in blocks of 2 MiB
//! (free page reporting). Nodes whose disks are files in memory then pay for that with every piece they write: 1.6
//! instead of 0.4 CPU seconds per GB were seen, a third of both cores while 230 nodes fetched. A disk has its blocks
//! already. So the memory is touched before, and a page in each mebibyte is kept: what is free between them is never
//! whole blocks, and stays.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate, statfs};

use crate::stop::Stop;

/// A page of this length is kept at the beginning of each stretch.
const PAGE_BYTES: u64 = 4 << 10;
const STRETCH_BYTES: u64 = 1 << 20;

/// How statfs(2) names tmpfs.
const TMPFS: u64 = 0x0102_1994;

/// Keeps memory warm until it is dropped.
#[derive(Debug)]
pub struct Warm(PathBuf);

impl Warm {
    /// Touches so much memory through a file in `folder`, which must have room for it, and leaves all but a 256th of it
    /// free. A folder on a disk has nothing to be warmed: none.
    ///
    /// # Errors
    /// When the file cannot be written, or on [`Stop`].
    pub fn up(folder: &Path, bytes: u64, stop: &Stop) -> Result<Option<Warm>> {
        if statfs(folder)?.f_type as u64 != TMPFS {
            return Ok(None);
        }
        let warm = Warm(folder.join("warm"));
        let failed = || format!("cannot touch {} MiB of memory in {}", bytes >> 20, folder.display());
        let file = File::create_new(&warm.0).with_context(failed)?;
        let stretch = vec![1; STRETCH_BYTES as usize];
        let stretches = bytes / STRETCH_BYTES;
        for at in (0..stretches).map(|number| number * STRETCH_BYTES) {
            stop.check()?;
            file.write_all_at(&stretch, at).with_context(failed)?;
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for at in (0..stretches).map(|number| number * STRETCH_BYTES + PAGE_BYTES) {
            fallocate(&file, hole, at, STRETCH_BYTES - PAGE_BYTES).with_context(failed)?;
        }
        Ok(Some(warm))
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "memory that was kept warm cannot be given back");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_was_touched_is_free_again_but_for_a_page_in_each_mebibyte() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let warm = Warm::up(folder.path(), 3 << 20, &Stop::on_signals().unwrap()).unwrap();
        let file = fs::metadata(folder.path().join("warm")).unwrap();
        assert_eq!((file.len(), file.blocks() * 512), (3 << 20, 3 * PAGE_BYTES));
        drop(warm);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
