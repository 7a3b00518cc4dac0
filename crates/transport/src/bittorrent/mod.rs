//! BitTorrent (BEP 3) over TCP around the pure `swarm::Engine`.
//!
//! The way of a payload: [`reading`] lets it come from its socket straight into
//! its piece, for which [`pool`] has the memory, and tells [`drive`], the one
//! task of a swarm, which asks the engine. A whole piece is hashed and written
//! on a blocking thread ([`checking`]) and can then be read in [`store`], from
//! whose file [`writing`] sends it to others, as much at a time as [`pace`] has
//! measured to be right. [`announcer`] asks trackers, [`listener`] accepts for
//! all swarms of the process, [`services`] answers what the engine need not
//! know, and [`magnet`] gets a torrent from its peers.

mod announcer;
mod checking;
mod connection;
mod doubts;
mod download;
mod drive;
mod listener;
mod magnet;
mod pace;
mod packing;
mod pool;
mod progress;
mod reading;
mod seeder;
mod services;
mod sockets;
mod store;
mod writing;

pub use download::{Download, FetchJob};
pub use listener::{Limits, Listener};
pub use magnet::{MagnetJob, fetch_metainfo};
pub use progress::{Cause, Dropped, Progress};
pub use seeder::{Published, Seeder};
pub use store::{MIN_MEMORY_BYTES, Storage};

use wire::peer::PeerId;

/// A name for one swarm of this process: the client's mark as in BEP 20, then
/// chance.
fn new_peer_id() -> PeerId {
    let mut id = [0; 20];
    id[..8].copy_from_slice(b"-RS0100-");
    id[8..].copy_from_slice(&rand::random::<[u8; 12]>());
    PeerId(id)
}
