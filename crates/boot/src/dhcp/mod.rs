//! DHCP in three modes: the whole server, boot information beside another
//! server, or only the lines for somebody else's server.

pub mod answer;
pub mod config;
pub mod leases;
pub mod lines;
pub mod serve;

pub use config::{AddressRange, DhcpConfig, Mode, Subnet};
