//! What can go wrong while an image is made.

use std::path::{Path, PathBuf};

use fleet::disk::Size;

/// Why a golden image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files of the image belong to root, so only root can make them.
    #[error("making an image needs root: its files belong to root and packages configure themselves in a chroot")]
    NotRoot,
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The recipe asks for something impossible.
    #[error("the recipe cannot be built: {0}")]
    Recipe(String),
    /// The installed system lacks a file that booting needs.
    #[error("the installed system has no {path}; it comes with the package {package}")]
    NotInstalled {
        /// The missing file or kind of file.
        path: String,
        /// The Debian package that should have brought it.
        package: &'static str,
    },
    /// GRUB's first stage does not fit into its partition.
    #[error("GRUB's core image has {size_bytes} bytes, its partition {room_bytes}")]
    LoaderTooLarge {
        /// The size of `core.img`.
        size_bytes: usize,
        /// The size of the BIOS boot partition.
        room_bytes: usize,
    },
    /// The partition table could not be written.
    #[error("cannot write the partition table: {0}")]
    PartitionTable(#[from] gptman::Error),
    /// A tree or its archive is not what an image can be made of.
    #[error("{0}")]
    Tree(String),
    /// Something of an archive could not be unpacked.
    #[error("cannot unpack {entry} of {archive}: {source}", entry = entry.display(), archive = archive.display())]
    Entry {
        /// The entry.
        entry: PathBuf,
        /// The archive or layer.
        archive: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tree is larger than its place.
    #[error("{what} needs {needs}, and {place} {has}; give the layout more room there")]
    TreeTooLarge {
        /// The tree or a part of it.
        what: String,
        /// What it takes.
        needs: Size,
        /// What it was to go to, with its verb.
        place: String,
        /// The place's size.
        has: Size,
    },
    /// The server's disk would be full.
    #[error("{path} has {free} left, of which {reserve} are to stay free; make room, or unpack elsewhere with --cache", path = path.display())]
    NoRoom {
        /// Where was unpacked.
        path: PathBuf,
        /// What was left.
        free: Size,
        /// What stays free.
        reserve: Size,
    },
    /// The layout cannot be built or would not boot.
    #[error("the layout cannot be built: {0}")]
    Layout(#[from] fleet::layout::Wrong),
    /// Packages, programs or the cache failed.
    #[error(transparent)]
    Tools(#[from] bootenv::Error),
}

impl Error {
    /// An error with one entry of an archive.
    pub(crate) fn entry(entry: &Path, archive: &Path, source: std::io::Error) -> Self {
        Error::Entry { entry: entry.to_owned(), archive: archive.to_owned(), source }
    }
}

/// Turns an I/O error into a sentence that names the file.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}
