//! From power-on to our kernel: DHCP and TFTP for the firmware, router
//! advertisements so that iPXE does not wait, and the iPXE script that decides
//! whether a machine is provisioned or starts its own disk.
//!
//! The order of events is: [`dhcp::serve`] names the first loader,
//! [`tftp::serve`] sends it, the loader asks again over DHCP as iPXE and is
//! given a script address, and the controller's HTTP server answers that
//! address with [`decide::script`]. Everything that decides
//! ([`dhcp::leases`], [`dhcp::answer`], [`tftp::transfer`], [`decide`]) is pure;
//! the drivers beside it own the sockets. What happened is told to the
//! controller through [`director::Director`].

pub mod decide;
pub mod dhcp;
pub mod director;
pub mod error;
pub mod firmware;
pub mod interface;
pub mod ra;
pub mod services;
mod socket;
pub mod tftp;

pub use director::Director;
pub use error::Error;
pub use services::Services;
