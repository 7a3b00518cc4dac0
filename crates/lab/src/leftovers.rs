//! What earlier labs left behind because they were killed: their machines, namespaces and folders.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Result;

use crate::{netns, scratch, vm};

/// How much was found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Virtual machines that still ran.
    pub machines: usize,
    /// Network namespaces.
    pub namespaces: usize,
    /// Scratch folders.
    pub folders: usize,
}

/// Removes what belongs to labs whose process is gone; looks for folders in `parent`. Another lab may start at the same time
/// and do the same: what is gone by then is no error.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(parent: &Path) -> Result<Removed> {
    let mut removed = Removed::default();
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(parent)?.flatten() {
        if entry.file_name().to_str().and_then(scratch::owner_of).is_some_and(is_gone) {
            folders.push(entry.path());
        }
    }
    for folder in &folders {
        removed.machines += vm::kill_all_in(folder)?;
    }
    for name in netns::all()?.iter().filter(|name| scratch::owner_of(name).is_some_and(is_gone)) {
        match netns::remove(name) {
            Ok(()) => removed.namespaces += 1,
            Err(_) if !netns::all()?.contains(name) => {}
            Err(error) => return Err(error),
        }
    }
    for folder in folders {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => removed.folders += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(removed)
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}
