//! Switch machines on and off and choose what they boot next.
//!
//! One trait, [`PowerDriver`], one file per driver, one row per driver in [`DRIVERS`]. A machine is configured by one
//! address, such as `ipmi://admin@bmc7?password_file=/etc/rackswarm/bmc`; [`open`] turns it into a driver. The driver
//! parses its own options and refuses those it does not know.
//!
//! Every operation is idempotent and has a deadline, which [`open`] puts around the driver so that no driver can forget
//! it. States are as coarse as a management controller is honest: on, off, or unknown. What a driver says to be done, it
//! has read back; where nobody can, it asks a person to look.
//!
//! Machines that are found, taken and given back in numbers belong to a [`ResourceSet`]: a file of physical machines, the
//! systems behind one Redfish controller, a libvirt host, an EC2 endpoint. [`open_set`] opens one by its address, and each
//! of its [`Resource`]s names the power address that [`open`] takes.
//!
//! [`virtual_bmc`] is the other side: a strict Redfish controller before any machine that a driver can switch, with
//! faults on demand.

mod address;
mod bounded;
mod ec2;
mod error;
pub mod fake;
mod gate;
mod http;
mod ipmi;
mod libvirt;
mod manual;
mod program;
pub mod qemu;
pub mod quirks;
mod redfish;
mod secret;
mod set;
mod settle;
pub mod virtual_bmc;
mod webhook;
mod wol;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bounded::{Bounded, Deadline};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use address::{Address, Server};
pub use error::{Advice, Error};
pub use gate::{Counts, controllers};
pub use set::{Image, Kind, Resource, ResourceSet, SETS, Set, Source, Wish, open_set, set_address};

/// What a driver answers.
pub type Result<T> = std::result::Result<T, Error>;

/// One row per driver: the only registration there is. Command-line help, documents and [`open`] read it.
pub const DRIVERS: &[Driver] = &[
    manual::DRIVER,
    fake::DRIVER,
    qemu::DRIVER,
    ipmi::DRIVER,
    redfish::DRIVER,
    wol::DRIVER,
    webhook::DRIVER,
    libvirt::DRIVER,
    ec2::DRIVER,
];

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
    /// Starts a machine anew without taking its power, where its controller can do that; otherwise as [`Self::cycle`],
    /// which also is what becomes of a machine that is off. That it is on afterwards is read back; no controller tells
    /// for sure that it was started anew.
    fn reset(&self) -> BoxFuture<'_, Result<Outcome>> {
        self.cycle()
    }
    /// Chooses the boot device of the next start only. The standing order (disk first) stays as it is.
    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>>;
    /// What the next start will boot from, as far as the controller tells. After a start that used up a one-time order it
    /// tells whether the firmware kept to it.
    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(std::future::ready(Ok(NextBoot::Unknown)))
    }
    /// Whether the machine's platform hands it a kernel for one start, so that no network boot is needed.
    fn hands_kernel(&self) -> bool {
        false
    }
    /// Off, and on again with this kernel in memory. When the guest restarts, the machine goes off and stays so:
    /// [`Self::on`] then boots its disk.
    fn start_kernel<'a>(&'a self, kernel: &'a Kernel) -> BoxFuture<'a, Result<Outcome>> {
        let why = format!("it cannot be handed {}; only some virtual machines can", kernel.kernel.display());
        Box::pin(std::future::ready(Err(Error::refused("this machine", why))))
    }
}

/// What a platform hands to a machine in place of what its firmware would find. The files must be readable to the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// Its command line.
    pub line: String,
}

/// A machine's power, as reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has power.
    On,
    /// It has none.
    Off,
    /// Nobody can say, for instance because a person is the driver, or the machine is between both.
    #[default]
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

/// What a machine will boot from, as reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextBoot {
    /// The next start only.
    Once(BootDevice),
    /// Every start from now on.
    Always(BootDevice),
    /// Nothing special: what the firmware is set to.
    Standing,
    /// Nobody can say.
    Unknown,
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
    /// What its machines share, by which their turns are taken: a management controller, a host, a cloud.
    pub controller: fn(&Address) -> String,
    /// How many operations such a controller takes at the same time.
    pub at_once: usize,
    /// Whether [`PowerDriver::boot_next`] can choose the network.
    pub network_boot: bool,
    /// Whether a person does it, and so takes a person's time.
    pub by_hand: bool,
    /// Makes the driver out of its address.
    pub parse: fn(&mut Address) -> Result<Box<dyn PowerDriver>>,
}

/// What is known of a machine's power from its address alone: what may be asked of it, how long that may take, and
/// whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The driver.
    pub scheme: &'static str,
    /// The controller, host or cloud behind the driver's name, as in [`Counts::controller`].
    pub controller: String,
    /// How many operations it takes at the same time.
    pub at_once: usize,
    /// The deadline of one operation, which [`open`] puts around the driver.
    pub limit: Duration,
    /// Whether the next start can be from the network.
    pub network_boot: bool,
    /// Whether a person does it.
    pub by_hand: bool,
}

/// Opens the driver that `address` names. Nothing is contacted yet.
///
/// Every driver takes `limit_seconds=1..600`, the deadline of one operation.
///
/// # Errors
/// [`Error::UnknownScheme`] names the drivers there are; [`Error::Address`] says which part of the address is wrong.
pub fn open(address: &str) -> Result<Box<dyn PowerDriver>> {
    let (driver, mut parsed, limit) = read(address)?;
    let address = parsed.shown().to_owned();
    let inner = (driver.parse)(&mut parsed)?;
    parsed.finish()?;
    Ok(Box::new(Bounded { inner, deadline: Deadline { address, limit } }))
}

/// What is known of a machine's power from its address. Nothing is contacted, and options are not checked: [`open`]
/// does that.
///
/// # Errors
/// As [`open`], for what every address has.
pub fn about(address: &str) -> Result<About> {
    let (driver, parsed, limit) = read(address)?;
    Ok(About {
        scheme: driver.scheme,
        controller: format!("{} {}", driver.scheme, (driver.controller)(&parsed)),
        at_once: driver.at_once,
        limit,
        network_boot: driver.network_boot,
        by_hand: driver.by_hand,
    })
}

/// The driver's row, the address, and the deadline of one operation.
fn read(address: &str) -> Result<(&'static Driver, Address, Duration)> {
    let mut parsed = Address::parse(address)?;
    let driver = DRIVERS
        .iter()
        .find(|row| row.scheme == parsed.scheme())
        .ok_or_else(|| Error::UnknownScheme { address: parsed.shown().to_owned(), known: schemes() })?;
    parsed.set_example(driver.example);
    let limit = parsed.number("limit_seconds", 1..=600)?.map_or(driver.limit, Duration::from_secs);
    Ok((driver, parsed, limit))
}

/// The schemes of all drivers, for sentences.
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
            let scheme = row.example.split_once(':').unwrap().0;
            assert_eq!(scheme.split('+').next().unwrap(), row.scheme);
            assert!(seen.insert(row.scheme), "{} twice", row.scheme);
        }
    }

    #[test]
    fn an_unknown_scheme_names_the_known_ones() {
        let error = open("carrier-pigeon:bmc7").err().unwrap().to_string();
        for row in DRIVERS {
            assert!(error.contains(row.scheme), "{error}");
        }
    }

    #[test]
    fn an_address_tells_whose_turn_it_is_and_what_may_be_asked() {
        for (address, controller, limit, network_boot) in [
            ("redfish+http://admin@bmc7/redfish/v1/Systems/2?password_file=/p", "redfish admin@bmc7:80", 300, true),
            ("redfish+http://admin@bmc7:80?password_file=/q&limit_seconds=90", "redfish admin@bmc7:80", 90, true),
            ("ipmi://admin@[fd00::7]?password_file=/p", "ipmi admin@[fd00::7]:623", 120, true),
            ("libvirt:web1", "libvirt qemu:///system", 180, true),
            ("libvirt:web1?uri=qemu+ssh://h/system", "libvirt qemu+ssh://h/system", 180, true),
            ("ec2+http://cloud/i-1?region=r&credentials_file=/p", "ec2 cloud:80", 600, false),
            ("fake:n1?fail=1", "fake n1", 10, true),
        ] {
            let about = about(address).unwrap();
            assert_eq!((about.controller.as_str(), about.limit.as_secs()), (controller, limit), "{address}");
            assert_eq!(about.network_boot, network_boot, "{address}");
        }
        assert!(about("manual:").unwrap().by_hand && about("wol:52:54:00:00:00:01").unwrap().by_hand);
        assert!(about("pigeon:x").is_err() && about("fake:x?limit_seconds=0").is_err());
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
            ("redfish://admin@bmc7?password_file=/p", "redfish+http:"),
            ("redfish+https://admin@bmc7?password_file=/p", "no TLS yet"),
            ("redfish+http://bmc7?password_file=/p", "user"),
            ("redfish+http://admin@bmc7", "password_file"),
            ("redfish+http://admin@bmc7/redfish/v1/Chassis/1?password_file=/p", "not a system"),
            ("redfish+http://admin@bmc7?password_file=/p&auth=magic", "magic"),
            ("redfish+http://admin@bmc7?password_file=/p&login_attempts=9", "login_attempts"),
            ("ipmi+http://admin@bmc7?password_file=/p", "not carried"),
            ("wol:52:54:00:00:00", "MAC"),
            ("wol:52:54:00:00:00:01?via=10.0.0.255&port=0", "port"),
            ("webhook:node1", "file"),
            ("libvirt:-x", "name"),
            ("libvirt:web1?boot=usb", "boot"),
            ("libvirt:web1?boot=kernel&uri=qemu+ssh://h/system", "this host"),
            ("ec2+http://endpoint/i-1?credentials_file=/p", "region"),
            ("ec2+http://endpoint/x?region=lab&credentials_file=/p", "instance"),
        ] {
            let error = open(address).err().unwrap_or_else(|| panic!("{address} was taken")).to_string();
            assert!(error.contains(part), "{address}: {error}");
        }
    }

    #[test]
    fn a_secret_in_an_address_is_not_repeated_in_the_error() {
        for scheme in ["ipmi", "redfish+http", "ilo"] {
            let error = open(&format!("{scheme}://admin:hunter2@bmc7?password_file=/p")).err().unwrap().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
