//! BitTorrent (BEP 3) over TCP around the pure `swarm::Engine`.
//!
//! The way of a block: [`connection`] reads it off a socket and hands it to
//! [`drive`], the one task of a swarm, which asks the engine and puts the block
//! into its piece; a whole piece is hashed and written on a blocking thread and
//! becomes readable in [`store`], from which other peers are served.
//! [`announcer`] asks trackers, [`listener`] accepts for all swarms of the
//! process.

mod announcer;
mod checking;
mod connection;
mod doubts;
mod download;
mod drive;
mod listener;
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
