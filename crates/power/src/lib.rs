//! Switch machines on and off and choose what they boot next.
//!
//! One trait, [`PowerDriver`], one file per driver, one row per driver in [`DRIVERS`]. A machine is configured by one
//! address, such as `ipmi://admin@bmc7?password_file=/etc/rackswarm/bmc`; [`open`] turns it into a driver. The driver
//! parses its own options and refuses those it does not know.
//!
//! Every operation is idempotent and has a deadline, which [`open`] puts around the driver so that no driver can forget
//! it. States are as coarse as a management controller is honest: on, off, or unknown.

mod address;
mod bounded;
mod error;
pub mod fake;
mod ipmi;
mod manual;
pub mod qemu;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use address::Address;
pub use error::{Advice, Error};

/// What a driver answers.
pub type Result<T> = std::result::Result<T, Error>;

/// One row per driver: the only registration there is. Command-line help, documents and [`open`] read it.
pub const DRIVERS: &[Driver] = &[manual::DRIVER, fake::DRIVER, qemu::DRIVER, ipmi::DRIVER];

/// A way to reach one machine's power switch.
///
/// All operations are idempotent: asking for what is already so is answered [`Outcome::Done`] and changes nothing.
/// (`cycle` always ends with the machine freshly started.)
pub trait PowerDriver: Send + Sync {
    /// Whether the machine has power, as far as its controller tells.
    fn state(&self) -> BoxFuture<'_, Result<State>>;
    /// Gives the machine power.
    fn on(&self) -> BoxFuture<'_, Result<Outcome>>;
    /// Takes the power away at once, without asking the operating system.
    fn off(&self) -> BoxFuture<'_, Result<Outcome>>;
    /// Off and on again; a machine that is off is switched on.
    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>>;
    /// Chooses the boot device of the next start only. The standing order (disk first) stays as it is.
    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>>;
}

/// A machine's power, as reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has power.
    On,
    /// It has none.
    Off,
    /// Nobody can say, for instance because a person is the driver.
    Unknown,
}

/// Where a machine looks for its operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootDevice {
    /// Its own disk.
    Disk,
    /// The network: PXE or UEFI HTTP boot, as its firmware does it.
    Network,
}

/// How an operation ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// A person has to do it; the sentence says what.
    AskOperator(String),
}

/// A driver's row in [`DRIVERS`].
pub struct Driver {
    /// The word before the colon of an address.
    pub scheme: &'static str,
    /// One line for help texts: what it is, and its options.
    pub help: &'static str,
    /// An address that parses.
    pub example: &'static str,
    /// How long one operation may take unless the address says `limit_seconds=`.
    pub limit: Duration,
    /// Makes the driver out of its address.
    pub parse: fn(&mut Address) -> Result<Box<dyn PowerDriver>>,
}

/// Opens the driver that `address` names. Nothing is contacted yet.
///
/// Every driver takes `limit_seconds=1..600`, the deadline of one operation.
///
/// # Errors
/// [`Error::UnknownScheme`] names the drivers there are; [`Error::Address`] says which part of the address is wrong.
pub fn open(address: &str) -> Result<Box<dyn PowerDriver>> {
    let mut parsed = Address::parse(address)?;
    let driver = DRIVERS
        .iter()
        .find(|row| row.scheme == parsed.scheme())
        .ok_or_else(|| Error::UnknownScheme { address: address.to_owned(), known: schemes() })?;
    parsed.set_example(driver.example);
    let limit = parsed.number("limit_seconds", 1..=600)?.map_or(driver.limit, Duration::from_secs);
    let inner = (driver.parse)(&mut parsed)?;
    parsed.finish()?;
    Ok(Box::new(bounded::Bounded::new(inner, address, limit)))
}

/// The schemes of all drivers, for sentences: `manual, fake, qemu, ipmi`.
fn schemes() -> String {
    DRIVERS.iter().map(|row| row.scheme).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::On => "on",
            State::Off => "off",
            State::Unknown => "unknown",
        })
    }
}

impl fmt::Display for BootDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BootDevice::Disk => "disk",
            BootDevice::Network => "network",
        })
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("scheme", &self.scheme).field("example", &self.example).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn every_example_parses_and_schemes_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for row in DRIVERS {
            open(row.example).unwrap_or_else(|error| panic!("{}: {error}", row.example));
            assert!(row.example.starts_with(&format!("{}:", row.scheme)));
            assert!(seen.insert(row.scheme), "{} twice", row.scheme);
        }
    }

    #[test]
    fn an_unknown_scheme_names_the_known_ones() {
        let error = open("redfish:bmc7").err().unwrap().to_string();
        for row in DRIVERS {
            assert!(error.contains(row.scheme), "{error}");
        }
    }

    #[test]
    fn wrong_addresses_are_refused_with_the_reason() {
        for (address, part) in [
            ("", "no scheme"),
            ("fake", "no scheme"),
            ("fake:", "name"),
            ("fake:n1?latency=5", "latency"),
            ("fake:n1?fail=x", "fail"),
            ("fake:n1?fail=1&fail=2", "twice"),
            ("fake:n1?lie=moon", "moon"),
            ("fake:n1?limit_seconds=0", "limit_seconds"),
            ("qemu:vm.toml", "absolute"),
            ("ipmi://bmc7?password_file=/p", "user"),
            ("ipmi://admin@bmc7", "password_file"),
            ("ipmi://admin:secret@bmc7?password_file=/p", "password_file"),
            ("ipmi://admin@bmc7:99999?password_file=/p", "port"),
            ("ipmi://admin@-x?password_file=/p", "host"),
            ("ipmi://admin@bmc7?password_file=p", "absolute"),
        ] {
            let error = open(address).err().unwrap_or_else(|| panic!("{address} was taken")).to_string();
            assert!(error.contains(part), "{address}: {error}");
        }
    }

    #[test]
    fn a_secret_in_an_address_is_not_repeated_in_the_error() {
        let error = open("ipmi://admin:hunter2@bmc7?password_file=/p").err().unwrap().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
