//! Resource sets: machines that are listed, taken and given back in numbers, whoever owns them.
//!
//! A set is opened by its address, as a driver is; [`SETS`] has a row for each kind. What a set lists carries the power
//! address that [`crate::open`] takes, so power, status and the next boot of its machines go through the same drivers as
//! those of a single machine. Taking is idempotent by the wish's token: asked again with it, a set answers the machines
//! that this token holds already and adds what is missing.

mod fake;
mod machines;

use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub(crate) use fake::identity;

use crate::bounded::Deadline;
use crate::{Address, Error, Outcome, PowerDriver, Result, State};

/// One row per kind of set.
pub const SETS: &[Set] = &[machines::SET, crate::redfish::SET, crate::libvirt::SET, crate::ec2::SET, fake::SET];

/// Machines under one owner.
pub trait ResourceSet: Send + Sync {
    /// All of its machines, those that nobody holds included.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>>;
    /// The same without asking each machine for its power where that is a question of its own; such have the state
    /// [`State::Unknown`].
    fn known(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        self.list()
    }
    /// Takes machines, or makes them. The same token always means the same machines.
    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>>;
    /// Gives a machine back by its id; a made one ceases to exist, with its disks. A machine that is not there is done.
    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>>;
    /// The images that new machines may start from. Physical sets have none.
    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>>;
    /// Makes an image called `name`; with the name of an image that is there, nothing changes.
    fn add_image<'a>(&'a self, name: &'a str, source: &'a Source) -> BoxFuture<'a, Result<Image>>;
    /// The power driver of one of its machines, by id.
    ///
    /// # Errors
    /// When the id cannot be one of this set's.
    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>>;
}

/// Whether a machine is there for good, or made and unmade.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Iron.
    #[default]
    Physical,
    /// A virtual machine.
    Virtual,
}

/// A machine of a set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// What the set calls it; unique in the set and lasting.
    pub id: String,
    /// What people call it; may be empty.
    pub name: String,
    /// Iron or virtual.
    pub kind: Kind,
    /// Whether it has power.
    pub state: State,
    /// The power address that [`crate::open`] takes.
    pub power: String,
    /// MAC addresses, lower case, as far as the set knows them.
    pub macs: Vec<String>,
    /// IP addresses, as far as the set knows them.
    pub addresses: Vec<String>,
    /// SMBIOS system UUID, as far as the set knows it.
    pub uuid: Option<String>,
    /// The rack it stands in, as far as the set knows it.
    pub rack: Option<String>,
    /// The token of the wish that holds it.
    pub held_by: Option<String>,
    /// Make, model, serial number, or the kind of instance.
    pub about: String,
}

/// Machines wanted of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Who asks: the idempotency key. Up to 64 letters, digits, `-`, `_` and `.`.
    pub token: String,
    /// How many machines in all this token shall hold, 1 to 1000.
    pub count: u32,
    /// The image that made machines start from: an id of [`ResourceSet::images`]. Without one they boot from the network.
    pub image: Option<String>,
    /// Virtual processors of made machines.
    pub cpus: u32,
    /// Memory of made machines in MiB.
    pub memory_mib: u32,
    /// Disk of made machines in GiB; never less than their image needs.
    pub disk_gib: u32,
    /// The platform's own name for a size, where it has such: `t3.small`.
    pub instance_type: Option<String>,
    /// Only machines of this rack, where the set knows racks.
    pub rack: Option<String>,
}

impl Default for Wish {
    fn default() -> Self {
        Wish {
            token: "default".into(),
            count: 1,
            image: None,
            cpus: 1,
            memory_mib: 1024,
            disk_gib: 8,
            instance_type: None,
            rack: None,
        }
    }
}

impl Wish {
    /// Checks the bounds that hold for every set.
    pub(crate) fn check(&self, target: &str) -> Result<()> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.token.is_empty() || self.token.len() > 64 || !self.token.chars().all(fine) {
            return Err(Error::refused(
                target,
                format!("the token `{}` is not 1 to 64 letters, digits, '-', '_' and '.'", self.token),
            ));
        }
        for (what, number, least, most) in [
            ("count", self.count, 1, 1_000),
            ("cpus", self.cpus, 1, 512),
            ("memory_mib", self.memory_mib, 32, 16 * 1024 * 1024),
            ("disk_gib", self.disk_gib, 1, 1024 * 1024),
        ] {
            if !(least..=most).contains(&number) {
                return Err(Error::refused(target, format!("`{what}` is {number}, not {least} to {most}")));
            }
        }
        Ok(())
    }
}

/// An image on a platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What the platform calls it; goes into [`Wish::image`].
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Whether machines can start from it already. A capture can take minutes.
    pub ready: bool,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The disk of a machine of the set, by id. The machine should be off.
    Machine(String),
    /// What the platform can read by itself: the absolute path of a raw or qcow2 file on a libvirt host, or the id of a
    /// snapshot (`snap-...`) on EC2.
    Place(String),
}

/// A row of [`SETS`].
pub struct Set {
    /// The word before the colon of an address.
    pub scheme: &'static str,
    /// One line for help texts: what it is, and its options.
    pub help: &'static str,
    /// An address that parses.
    pub example: &'static str,
    /// How long one operation may take unless the address says `limit_seconds=`.
    pub limit: Duration,
    /// The option that names the file with its secret, where it has one.
    pub credentials: Option<&'static str>,
    /// Makes the set out of its address.
    pub parse: fn(&mut Address) -> Result<Box<dyn ResourceSet>>,
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Set").field("scheme", &self.scheme).field("example", &self.example).finish_non_exhaustive()
    }
}

/// Opens the set that `address` names. Nothing is contacted yet.
///
/// Every set takes `limit_seconds=1..3600`, the deadline of one operation.
///
/// # Errors
/// [`Error::UnknownScheme`] names the kinds there are; [`Error::Address`] says which part of the address is wrong.
pub fn open_set(address: &str) -> Result<Box<dyn ResourceSet>> {
    let (row, mut parsed) = row_of(address)?;
    let limit = parsed.number("limit_seconds", 1..=3600)?.map_or(row.limit, Duration::from_secs);
    let address = parsed.shown().to_owned();
    let inner = (row.parse)(&mut parsed)?;
    parsed.finish()?;
    Ok(Box::new(BoundedSet { inner, deadline: Deadline { address, limit } }))
}

/// An address with the file of its secret written into it as the option that its kind has for that. The whole is checked
/// as [`open_set`] does.
///
/// # Errors
/// As [`open_set`]; and when this kind of set has no secret, or the address names a file already.
pub fn set_address(address: &str, credentials_file: Option<&Path>) -> Result<String> {
    let (row, parsed) = row_of(address)?;
    let whole = match (credentials_file, row.credentials) {
        (None, _) => address.to_owned(),
        (Some(_), None) => {
            return Err(parsed.wrong(format!("a set of kind `{}` takes no credentials file", row.scheme)));
        }
        (Some(_), Some(option)) if parsed.peek(option).is_some() => {
            return Err(parsed.wrong(format!("it names a `{option}` already")));
        }
        (Some(file), Some(option)) => {
            let joint = if address.contains('?') { '&' } else { '?' };
            format!("{address}{joint}{option}={}", file.display())
        }
    };
    open_set(&whole).map(|_| whole)
}

fn row_of(address: &str) -> Result<(&'static Set, Address)> {
    let mut parsed = Address::parse(address)?;
    let row = SETS.iter().find(|row| row.scheme == parsed.scheme()).ok_or_else(|| Error::UnknownSet {
        address: parsed.shown().to_owned(),
        known: SETS.iter().map(|row| row.scheme).collect::<Vec<_>>().join(", "),
    })?;
    parsed.set_example(row.example);
    Ok((row, parsed))
}

/// The deadline around every operation of every set.
struct BoundedSet {
    inner: Box<dyn ResourceSet>,
    deadline: Deadline,
}

impl ResourceSet for BoundedSet {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        Box::pin(self.deadline.within("list", self.inner.list()))
    }

    fn known(&self) -> BoxFuture<'_, Result<Vec<Resource>>> {
        Box::pin(self.deadline.within("list", self.inner.known()))
    }

    fn acquire<'a>(&'a self, wish: &'a Wish) -> BoxFuture<'a, Result<Vec<Resource>>> {
        Box::pin(async {
            wish.check(&format!("set {}", self.deadline.address))?;
            self.deadline.within("acquire", self.inner.acquire(wish)).await
        })
    }

    fn release<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.deadline.within("release", self.inner.release(id)))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>>> {
        Box::pin(self.deadline.within("images", self.inner.images()))
    }

    fn add_image<'a>(&'a self, name: &'a str, source: &'a Source) -> BoxFuture<'a, Result<Image>> {
        Box::pin(self.deadline.within("add_image", self.inner.add_image(name, source)))
    }

    fn power(&self, id: &str) -> Result<Box<dyn PowerDriver>> {
        self.inner.power(id)
    }
}

/// What physical sets answer to a wish for an image.
pub(crate) fn no_images<'a, T: Send + 'a>(target: &str) -> BoxFuture<'a, Result<T>> {
    let error = Error::refused(
        target,
        "physical machines have no images of their own platform; `rackswarm image capture` makes one through the agent",
    );
    Box::pin(std::future::ready(Err(error)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn every_example_parses_and_an_unknown_set_names_the_known_ones() {
        for row in SETS {
            open_set(row.example).map(|_| ()).unwrap_or_else(|error| panic!("{}: {error}", row.example));
        }
        let error = open_set("cloud9:x").err().unwrap().to_string();
        assert!(SETS.iter().all(|row| error.contains(row.scheme)), "{error}");
    }

    #[test]
    fn the_file_of_the_secret_becomes_the_option_that_the_kind_has() {
        let file = Some(Path::new("/etc/secret"));
        assert_eq!(
            set_address("redfish+http://admin@bmc", file).unwrap(),
            "redfish+http://admin@bmc?password_file=/etc/secret"
        );
        assert_eq!(
            set_address("ec2+http://cloud?region=r", file).unwrap(),
            "ec2+http://cloud?region=r&credentials_file=/etc/secret"
        );
        assert_eq!(set_address("libvirt:?uri=qemu:///session", None).unwrap(), "libvirt:?uri=qemu:///session");
        for (address, file, part) in [
            ("machines:/etc/machines.toml", file, "no credentials file"),
            ("redfish+http://admin@bmc?password_file=/p", file, "already"),
            ("redfish+http://admin@bmc", None, "password_file"),
            ("redfish+http://admin@bmc", Some(Path::new("secret")), "absolute"),
        ] {
            let error = set_address(address, file).unwrap_err().to_string();
            assert!(error.contains(part), "{address}: {error}");
        }
    }

    #[test]
    fn a_wish_is_bounded() {
        let fine = Wish::default();
        fine.check("set").unwrap();
        for (wish, part) in [
            (Wish { token: "a b".into(), ..fine.clone() }, "token"),
            (Wish { token: "x".repeat(65), ..fine.clone() }, "token"),
            (Wish { count: 0, ..fine.clone() }, "count"),
            (Wish { count: 1001, ..fine.clone() }, "count"),
            (Wish { memory_mib: 1, ..fine.clone() }, "memory_mib"),
        ] {
            assert!(wish.check("set").unwrap_err().to_string().contains(part));
        }
    }
}
