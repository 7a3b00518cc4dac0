//! A folder of this process for everything that the lab writes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// How every namespace and folder of the lab begins; the process id and a number follow.
pub const PREFIX: &str = "rackswarm-lab-";

/// A name that nothing else on this machine has: `rackswarm-lab-PID-NUMBER`.
#[must_use]
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The process id in a name that [`unique_name`] made.
#[must_use]
pub fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// A folder that is removed with its value, unless it is kept.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes a folder inside `parent`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(parent: &Path) -> Result<Scratch> {
        let path = parent.join(unique_name());
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))?;
        Ok(Scratch { path, keep: false })
    }

    /// Where it is; absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder on the disk, for instance because a failed run's logs are in it.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the lab's folder cannot be removed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_tell_their_owner() {
        let (one, two) = (unique_name(), unique_name());
        assert_ne!(one, two);
        assert_eq!(owner_of(&one), Some(std::process::id()));
        assert_eq!(owner_of("rackswarm-lab-"), None);
        assert_eq!(owner_of("other-1-2"), None);
    }

    #[test]
    fn a_folder_goes_with_its_value_unless_kept() {
        let parent = tempfile::tempdir().unwrap();
        let gone = Scratch::new(parent.path()).unwrap();
        let path = gone.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(gone);
        assert!(!path.exists());
        let mut kept = Scratch::new(parent.path()).unwrap();
        kept.keep();
        let path = kept.path().to_owned();
        drop(kept);
        assert!(path.exists());
    }
}
