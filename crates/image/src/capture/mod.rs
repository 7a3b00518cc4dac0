//! A machine's disk on its way into the registry.
//!
//! The story in order: a disk is [opened](Disk) read-only and [surveyed](survey): file systems say which of their blocks
//! are in use. What is used is read in chunks, hashed and packed where the disk is, and sent. The registry
//! [takes chunks in](crate::Capture), any number of times, and in the end takes out of its copy what belongs to that one
//! machine ([`generalise`]), gives free space back, seals and publishes it.

mod attach;
mod disk;
mod extents;
mod fat;
mod generalise;
mod survey;
mod table;
mod tool;

pub use disk::{Disk, Packed, hash_of};
pub use extents::Extents;
pub use generalise::{Generalised, generalise};
pub use survey::{Kind, Part, Survey, survey};
