//! An image as a manifest and verified pieces on files and block devices.
//!
//! The story in order: a file of any disk format is [probed](format) and
//! [imported](Registry::import) into the [`Registry`], which [seals](seal) it
//! into a [`Manifest`]. A node opens a [`DiskSink`] for that manifest, keeps
//! what its disk already holds ([`DiskSink::scan`]), zeroes what is to be zero
//! ([`DiskSink::prepare`]), and writes pieces that only [`Manifest::verify`]
//! can make ([`VerifiedPiece`]), so nothing unverified reaches a disk.
//!
//! Everything here blocks; callers in async code use blocking threads.

pub mod capture;
mod direct;
mod error;
pub mod format;
mod hash;
mod leaves;
mod manifest;
pub mod metainfo;
mod registry;
pub mod seal;
mod sink;
mod spans;
mod sparse;
pub mod tree;
mod twins;

use std::ops::ControlFlow;

pub use error::Error;
pub use fleet::ids::{Digest, ImageName};
pub use format::Format;
pub use hash::leaf_hashes;
pub use manifest::{Corrupt, CorruptReason, MAX_IMAGE_BYTES, Manifest, PieceHashes, VerifiedPiece, piece_size_for};
pub use registry::{Capture, Entry, Finishing, Image, ImportOptions, Registry};
pub use sink::{DiskSink, FileSource, Finished, PieceSink, PieceSource, is_write_protected};
pub use wire::metainfo::{InfoHash, InfoHashV2};

/// A set of piece indices, one bit for each piece of an image.
pub type PieceSet = fixedbitset::FixedBitSet;

/// Told `(bytes done, bytes in all)` while a long operation runs; answering
/// [`ControlFlow::Break`] ends the operation with [`Error::Cancelled`].
pub type Progress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// A [`Progress`] for callers that want to hear nothing.
pub fn no_progress(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
