//! Who asks whom for which block, and when. Pure: time, chance and messages
//! are arguments, only places of blocks pass through, and the same
//! [`Engine`] runs in the agent, in the seeder and in the simulator.

mod book;
mod chance;
mod choker;
pub mod engine;
mod herald;
mod holding;
pub mod io;
pub mod lanes;
pub mod ledger;
mod links;
mod peer;
mod picker;
pub mod pieceset;
pub mod policy;
mod rate;
pub mod shape;
mod time;
pub mod tracker;
mod uplink;

pub use engine::Engine;
pub use io::{Input, Output, Peer, PeerView, Progress, Setup, Side, Speaks, Verdict, View, Why};
pub use pieceset::PieceSet;
pub use policy::Policy;
pub use shape::{Shape, ShapeError};
