//! Ways to move the pieces of an image; both halves of each way in one folder.
//!
//! [`bittorrent`] drives the pure `swarm::Engine` with sockets and disks: a
//! [`bittorrent::Download`] on a node, a [`bittorrent::Seeder`] in the server,
//! each behind a [`bittorrent::Listener`] that a process needs once. [`tracker`]
//! serves the pure `swarm::tracker::Tracker` over HTTP and UDP.

pub mod bittorrent;
mod error;
mod lsd;
pub mod tracker;
pub mod usage;

pub use error::Error;
