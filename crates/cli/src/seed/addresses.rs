//! By which addresses other machines reach this one.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The addresses to tell others, when this process listens on `listen`: that one, or all of this machine that are no
/// loopback, IPv4 first. At least one.
pub(super) fn reachable(listen: IpAddr) -> Result<Vec<IpAddr>> {
    if !listen.is_unspecified() {
        return Ok(vec![listen]);
    }
    let interfaces = getifaddrs().context("cannot list this machine's addresses")?;
    let mut found = Vec::new();
    for interface in interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP)) {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let v6 = || address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
        found.extend(v4.or_else(v6).filter(|ip| is_told(*ip, listen)));
    }
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    if found.is_empty() {
        found.push(Ipv4Addr::LOCALHOST.into());
    }
    Ok(found)
}

/// Link-local addresses mean another machine to everybody, and 0.0.0.0 hears no IPv6.
fn is_told(ip: IpAddr, listen: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => listen.is_ipv6() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_named_address_is_the_only_one_and_all_are_never_none() {
        let one: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(reachable(one).unwrap(), [one]);
        let all = reachable(Ipv4Addr::UNSPECIFIED.into()).unwrap();
        assert!(!all.is_empty() && all.iter().all(IpAddr::is_ipv4), "{all:?}");
    }
}
