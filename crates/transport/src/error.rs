//! What can go wrong in moving an image.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;
use wire::metainfo::InfoHash;

/// Every failure of this crate. A peer or a tracker that fails is none of them:
/// others are tried, for ever.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The listening socket cannot be had.
    #[error("cannot listen on {address}: {source}; choose another address or end what uses it")]
    Listen {
        /// The wanted address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk refused a piece, or cannot be read.
    #[error(transparent)]
    Disk(#[from] image::Error),
    /// The image's size cannot be distributed.
    #[error(transparent)]
    Shape(#[from] swarm::ShapeError),
    /// The image has no .torrent, so no swarm can be joined.
    #[error("image `{0}` has no info-hash: seal it again, or take its .torrent")]
    NoInfoHash(String),
    /// The same image is in the swarm of this listener already.
    #[error("this process already takes part in swarm {0}: end that first, or listen on another port")]
    JoinedAlready(InfoHash),
    /// A tracker's address cannot be used.
    #[error("tracker `{0}` will not do: write http://HOST:PORT/announce or udp://HOST:PORT")]
    Tracker(String),
    /// The HTTP client cannot be made.
    #[error("cannot prepare to ask trackers: {0}")]
    Http(#[from] reqwest::Error),
    /// The disk no longer holds what it held when it was scanned.
    #[error("piece {piece} on the disk has changed since it was scanned: does something else write to this disk?")]
    ChangedDisk {
        /// The piece.
        piece: u32,
    },
    /// The download was stopped before it was complete.
    #[error("the download was stopped before it was complete")]
    Stopped,
    /// A task ended unexpectedly; a defect of this program.
    #[error("a task of the transport ended unexpectedly; please report this")]
    Defect,
}
