//! The network interface that the boot services work on.

use std::net::{Ipv4Addr, Ipv6Addr};

use fleet::ids::Mac;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockaddrStorage;

use crate::error::Error;

/// A network interface of this machine and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name, as in `eth1`.
    pub name: String,
    /// The kernel's number.
    pub index: u32,
    /// Hardware address, where it has one.
    pub mac: Option<Mac>,
    /// IPv4 addresses, the primary one first.
    pub ipv4: Vec<Ipv4Addr>,
    /// IPv6 link-local address, where IPv6 is on.
    pub link_local: Option<Ipv6Addr>,
}

impl Interface {
    /// Looks the interface up.
    ///
    /// # Errors
    /// [`Error::Interface`] when there is no such interface; the sentence names
    /// those that exist.
    pub fn find(name: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Interface { interface: name.to_owned(), why };
        let all: Vec<_> = getifaddrs().map_err(|cause| bad(format!("cannot list interfaces: {cause}")))?.collect();
        let index = if_nametoindex(name).map_err(|_| {
            let mut names: Vec<&str> = all.iter().map(|entry| entry.interface_name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            bad(format!("does not exist; this machine has {}", names.join(", ")))
        })?;
        let mut found = Self { name: name.to_owned(), index, mac: None, ipv4: Vec::new(), link_local: None };
        for address in all.iter().filter(|entry| entry.interface_name == name).filter_map(|entry| entry.address) {
            found.take(&address);
        }
        Ok(found)
    }

    /// Our IPv4 address: the wanted one if the interface has it, else the
    /// primary one.
    ///
    /// # Errors
    /// [`Error::Interface`] when the interface has no such address.
    pub fn server_address(&self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, Error> {
        let bad = |why: String| Error::Interface { interface: self.name.clone(), why };
        match wanted {
            Some(address) if self.ipv4.contains(&address) => Ok(address),
            Some(address) => Err(bad(format!(
                "does not have {address}; add it with `ip address add` or correct dhcp.server_address"
            ))),
            None => self
                .ipv4
                .first()
                .copied()
                .ok_or_else(|| bad("has no IPv4 address; add one with `ip address add`".to_owned())),
        }
    }

    fn take(&mut self, address: &SockaddrStorage) {
        if let Some(address) = address.as_sockaddr_in() {
            self.ipv4.push(address.ip());
        } else if let Some(address) = address.as_sockaddr_in6() {
            if address.ip().is_unicast_link_local() {
                self.link_local = Some(address.ip());
            }
        } else if let Some(link) = address.as_link_addr() {
            self.mac = link.addr().map(Mac).filter(|mac| mac.0 != [0; 6]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn loopback_is_found_with_its_address() {
        let loopback = Interface::find("lo").unwrap();
        assert_eq!(loopback.ipv4.first(), Some(&Ipv4Addr::LOCALHOST));
        assert_eq!(loopback.server_address(None).unwrap(), Ipv4Addr::LOCALHOST);
        let error = loopback.server_address(Some(Ipv4Addr::new(192, 0, 2, 1))).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1") && error.contains("dhcp.server_address"), "{error}");
    }

    #[test]
    fn a_missing_interface_names_those_that_exist() {
        let error = Interface::find("nonesuch0").unwrap_err().to_string();
        assert!(error.contains("nonesuch0") && error.contains("lo"), "{error}");
    }
}
