//! What can go wrong while an image is made.

use std::path::PathBuf;

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
    /// Packages, programs or the cache failed.
    #[error(transparent)]
    Tools(#[from] bootenv::Error),
}

/// Turns an I/O error into a sentence that names the file.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}
