//! The one trait through which the boot services talk to the controller.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::Future;
use std::net::Ipv4Addr;

use fleet::ids::{Mac, Millis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::firmware::Asker;

/// What the controller's store answers when it cannot do its work.
pub type DirectorError = Box<dyn StdError + Send + Sync>;

/// An address given to a machine. Stored under `address`: a later lease of the
/// same address replaces the earlier one, whoever held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The address; the key of the stored record.
    pub address: Ipv4Addr,
    /// The machine that holds it, or held it last.
    pub mac: Mac,
    /// From this moment on the address may be given to another machine. In the
    /// past for a released lease, which is kept so that the machine finds its
    /// address again.
    pub expires: Millis,
}

/// How far a machine has come with DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It looks for a server and was offered this address by us.
    Offered(Ipv4Addr),
    /// It looks for a server; we told it where to boot from and leave the
    /// address to the other DHCP server.
    Proxied,
    /// It holds this address, and the lease is saved.
    Leased(Ipv4Addr),
    /// It gave this address back.
    Released(Ipv4Addr),
    /// It found this address in use by somebody else.
    Declined(Ipv4Addr),
}

/// A machine was seen on the boot network. Identity of a node is decided by
/// the controller: MAC addresses repeat over boot stages, DHCP client
/// identifiers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The hardware address the machine boots from.
    pub mac: Mac,
    /// Which program of the boot chain is asking.
    pub asker: Asker,
    /// SMBIOS UUID from option 97. Some boards ship many machines with the
    /// same UUID, so it supports an identity but never makes one alone.
    pub uuid: Option<Uuid>,
    /// What was answered.
    pub stage: Stage,
}

/// Fixed addresses of known nodes, in both directions.
pub trait Reservations {
    /// The address that this machine always gets.
    fn reservation(&self, mac: Mac) -> Option<Ipv4Addr>;
    /// The machine for which this address is kept; nobody else is given it.
    fn reserved_for(&self, address: Ipv4Addr) -> Option<Mac>;
}

impl Reservations for BTreeMap<Mac, Ipv4Addr> {
    fn reservation(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.get(&mac).copied()
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<Mac> {
        self.iter().find_map(|(mac, held)| (*held == address).then_some(*mac))
    }
}

/// What the boot services need from the controller. The calls without a future
/// are made on the packet path: they read memory or enqueue, and never wait.
pub trait Director: Reservations + Send + Sync + 'static {
    /// A machine was answered.
    fn sighted(&self, sighting: Sighting);

    /// A loader reached a machine completely. `mac` is known when the file was
    /// asked for under the name that carries it, `boot/<mac>/<file>`.
    fn loader_sent(&self, mac: Option<Mac>, file: &str, bytes: u64);

    /// Something failed that an operator must know: no free address, an
    /// aborted transfer, an unsupported architecture. The sentence goes into
    /// the node's timeline.
    fn trouble(&self, mac: Option<Mac>, sentence: &str);

    /// Stores these leases, each under its address. Returns when they are
    /// durable; only then does the machine get its answer.
    fn save_leases(&self, leases: Vec<Lease>) -> impl Future<Output = Result<(), DirectorError>> + Send;

    /// All stored leases, expired ones included, in any order.
    fn load_leases(&self) -> impl Future<Output = Result<Vec<Lease>, DirectorError>> + Send;
}
