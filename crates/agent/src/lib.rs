//! The agent: from the first user process of a network-booted machine to the
//! monitoring daemon of the system that it wrote.
//!
//! [`init`] is process 1 and watches over the agent proper, whose life is one
//! function, [`run::run`]: prepare, network, register, choose the disk, fetch,
//! verify, make the image this node's own ([`post`]), hand over. On the written
//! system [`monitor`] proves what was booted and then beats.

pub mod args;
pub mod capture;
mod cards;
mod checks;
pub mod command;
pub mod console;
mod contents;
pub mod devices;
mod error;
mod fetch;
pub mod init;
pub mod inventory;
pub mod kernel_line;
pub mod layout;
pub mod modules;
pub mod monitor;
mod network;
pub mod post;
pub mod proof;
mod report;
pub mod run;
mod stop;
mod watchdog;
pub mod wipe;

pub use error::Error;
pub use stop::Stop;
pub use watchdog::Watchdog;

/// The agent's version, as it reports it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
