//! The `[dhcp]` section.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// Largest number of addresses in all ranges together. Keeps a typing mistake
/// such as a /8 from taking all memory.
pub const POOL_MAX_ADDRESSES: u32 = 1 << 20;

/// What we do on the boot network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Answer nobody; [`crate::dhcp::lines`] writes the lines for the DHCP
    /// server that is already there.
    #[default]
    Off,
    /// Another server gives addresses; we only add where to boot from. Some
    /// UEFI firmware does not merge the two offers (edk2 issue 6944): when a
    /// machine ignores us, use `full` or `off`.
    Proxy,
    /// We give addresses and boot information; no other DHCP server may answer
    /// on this network.
    Full,
}

/// One network for which addresses are given: the one of our interface, or a
/// rack's behind a DHCP relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The network with its prefix length, as in `10.77.0.0/24`. A relayed
    /// request belongs to the network that holds the relay's address.
    pub network: Ipv4Net,
    /// Addresses to give, as in `10.77.0.100-10.77.0.199`; both ends belong to
    /// the range. May be empty when every node has a reserved address.
    #[serde(default)]
    pub ranges: Vec<AddressRange>,
    /// Default router given to the machines; none by default.
    #[serde(default)]
    pub router: Option<Ipv4Addr>,
    /// Name servers given to the machines; none by default.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// Domain name given to the machines; none by default.
    #[serde(default)]
    pub domain: Option<String>,
}

/// The `[dhcp]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DhcpConfig {
    /// `off` (default), `proxy` or `full`.
    pub mode: Mode,
    /// The network interface of the boot network. Needed unless the mode is
    /// `off`.
    pub interface: Option<String>,
    /// Our address as the machines see it; by default the first IPv4 address
    /// of the interface.
    pub server_address: Option<Ipv4Addr>,
    /// How long a machine may keep an address without renewing it, seconds, 60
    /// to 604,800. Default 3,600.
    pub lease_seconds: u32,
    /// Answer IPv6 router solicitations on the interface with an advertisement
    /// that offers no route. Without any answer iPXE waits 13 s. Default true.
    pub router_advertisements: bool,
    /// Networks for which addresses are given; needed in mode `full`.
    pub subnets: Vec<Subnet>,
}

impl Default for DhcpConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            interface: None,
            server_address: None,
            lease_seconds: 3_600,
            router_advertisements: true,
            subnets: Vec::new(),
        }
    }
}

impl DhcpConfig {
    /// The section with its defaults and what every field means.
    pub const DEFAULT_TOML: &'static str = r#"[dhcp]
# off: answer nobody; your own DHCP server needs a few lines that Rackswarm writes for you.
# proxy: another server gives addresses, we add where to boot from.
# full: we give addresses as well; no other DHCP server may answer on this network.
mode = "off"
# Network interface of the boot network; needed unless the mode is off.
# interface = "eth1"
# Our address as the machines see it; by default the interface's first IPv4 address.
# server_address = "10.77.0.1"
# How long a machine may keep an address without renewing it: 60 to 604800 seconds.
lease_seconds = 3600
# Answer IPv6 router solicitations (no route is offered); otherwise iPXE waits 13 seconds.
router_advertisements = true
# Networks for which addresses are given in mode full; one more table for each relayed rack.
# Reserved addresses come from the nodes themselves.
# [[dhcp.subnets]]
# network = "10.77.0.0/24"
# ranges = ["10.77.0.100-10.77.0.199"]
# router = "10.77.0.1"
# dns = ["10.77.0.1"]
# domain = "lab.example"
"#;

    /// Checks what a parser cannot: that the parts fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] names the field and what to write.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |why: String| Err(Error::Config(why));
        if !(60..=604_800).contains(&self.lease_seconds) {
            return bad(format!("dhcp.lease_seconds is {}, write 60 to 604800", self.lease_seconds));
        }
        if self.mode != Mode::Off && self.interface.is_none() {
            return bad("dhcp.interface is missing: name the interface of the boot network".into());
        }
        if self.mode == Mode::Full && self.subnets.is_empty() {
            return bad(
                "dhcp.mode is full but no [[dhcp.subnets]] says which addresses to give, add one or use proxy".into()
            );
        }
        for subnet in &self.subnets {
            subnet.check().map_err(Error::Config)?;
        }
        self.check_overlap()?;
        let total = self.subnets.iter().flat_map(|s| &s.ranges).fold(0u64, |sum, range| sum + u64::from(range.count()));
        if total > u64::from(POOL_MAX_ADDRESSES) {
            return bad(format!("dhcp.subnets hold {total} addresses, at most {POOL_MAX_ADDRESSES} are possible"));
        }
        Ok(())
    }

    /// The network to which a machine belongs that asks through the relay
    /// `giaddr`, or directly (`giaddr` unspecified) on our interface.
    #[must_use]
    pub fn subnet_of(&self, giaddr: Ipv4Addr, server: Ipv4Addr) -> Option<&Subnet> {
        let near = if giaddr.is_unspecified() { server } else { giaddr };
        self.subnets.iter().find(|s| s.network.contains(&near))
    }

    fn check_overlap(&self) -> Result<(), Error> {
        for (index, subnet) in self.subnets.iter().enumerate() {
            for other in &self.subnets[index + 1..] {
                if subnet.network.contains(&other.network) || other.network.contains(&subnet.network) {
                    return Err(Error::Config(format!(
                        "dhcp.subnets {} and {} overlap",
                        subnet.network, other.network
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Subnet {
    fn check(&self) -> Result<(), String> {
        let network = self.network;
        for range in &self.ranges {
            let inside = network.contains(&range.first) && network.contains(&range.last);
            if !inside || range.first == network.network() || range.last == network.broadcast() {
                return Err(format!("dhcp.subnets range {range} is not inside the host addresses of {network}"));
            }
        }
        for (index, range) in self.ranges.iter().enumerate() {
            for other in &self.ranges[index + 1..] {
                if range.first <= other.last && other.first <= range.last {
                    return Err(format!("dhcp.subnets ranges {range} and {other} overlap"));
                }
            }
        }
        if let Some(router) = self.router
            && !network.contains(&router)
        {
            return Err(format!("dhcp.subnets router {router} is not in {network}"));
        }
        if self.dns.len() > 8 {
            return Err(format!("dhcp.subnets {network} has more than 8 name servers"));
        }
        if self.domain.as_ref().is_some_and(|d| d.len() > 253 || !d.is_ascii()) {
            return Err(format!("dhcp.subnets {network}: the domain must be ASCII of at most 253 characters"));
        }
        Ok(())
    }
}

/// Addresses from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// Lowest address.
    pub first: Ipv4Addr,
    /// Highest address, not below `first`.
    pub last: Ipv4Addr,
}

impl AddressRange {
    /// How many addresses the range holds.
    #[must_use]
    pub fn count(&self) -> u32 {
        (self.last.to_bits() - self.first.to_bits()).saturating_add(1)
    }

    /// Whether the address belongs to the range.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not an address range: write it as in 10.77.0.100-10.77.0.199");
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let first: Ipv4Addr = first.trim().parse().map_err(|_| bad())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| bad())?;
        if first > last {
            return Err(format!("`{text}` ends before it begins"));
        }
        Ok(Self { first, last })
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        dhcp: DhcpConfig,
    }

    const FULL: &str = r#"
        [dhcp]
        mode = "full"
        interface = "br0"
        [[dhcp.subnets]]
        network = "10.77.0.0/24"
        ranges = ["10.77.0.100-10.77.0.199"]
        router = "10.77.0.1"
        [[dhcp.subnets]]
        network = "10.78.0.0/24"
        ranges = ["10.78.0.10-10.78.0.19", "10.78.0.30-10.78.0.39"]
    "#;

    fn parse(text: &str) -> DhcpConfig {
        toml::from_str::<File>(text).unwrap().dhcp
    }

    #[test]
    fn the_printed_section_is_the_default() {
        assert_eq!(parse(DhcpConfig::DEFAULT_TOML), DhcpConfig::default());
        DhcpConfig::default().check().unwrap();
    }

    #[test]
    fn the_commented_example_is_valid_too() {
        let uncommented: String = DhcpConfig::DEFAULT_TOML
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") || rest.starts_with("[[") => rest,
                _ => line,
            })
            .fold(String::new(), |all, line| all + line + "\n");
        let config = parse(&uncommented);
        assert_eq!(config.subnets.len(), 1);
        assert_eq!(config.interface.as_deref(), Some("eth1"));
        config.check().unwrap();
    }

    #[test]
    fn a_full_configuration_passes_and_finds_subnets_by_relay() {
        let config = parse(FULL);
        config.check().unwrap();
        let server = "10.77.0.1".parse().unwrap();
        let direct = config.subnet_of(Ipv4Addr::UNSPECIFIED, server).unwrap();
        assert_eq!(direct.network, "10.77.0.0/24".parse().unwrap());
        let relayed = config.subnet_of("10.78.0.1".parse().unwrap(), server);
        assert_eq!(relayed.unwrap().network, "10.78.0.0/24".parse().unwrap());
        assert!(config.subnet_of("10.79.0.1".parse().unwrap(), server).is_none());
    }

    #[test]
    fn contradictions_are_refused_with_the_field_named() {
        for (from, to, word) in [
            ("interface = \"br0\"", "", "interface"),
            ("10.77.0.199", "10.77.1.5", "range"),
            ("10.77.0.100-", "10.77.0.0-", "range"),
            ("router = \"10.77.0.1\"", "router = \"10.9.0.1\"", "router"),
            ("10.78.0.30", "10.78.0.15", "overlap"),
            ("10.78.0.0/24", "10.76.0.0/14", "overlap"),
            ("mode = \"full\"", "mode = \"full\"\nlease_seconds = 5", "lease_seconds"),
        ] {
            let error = parse(&FULL.replace(from, to)).check().unwrap_err().to_string();
            assert!(error.contains(word), "{from} -> {to}: {error}");
        }
        let no_subnets = "[dhcp]\nmode = \"full\"\ninterface = \"br0\"";
        assert!(parse(no_subnets).check().is_err());
        assert!(toml::from_str::<File>("[dhcp]\nmodus = \"full\"").is_err());
        assert!("10.0.0.9-10.0.0.1".parse::<AddressRange>().is_err());
        assert!("10.0.0.9".parse::<AddressRange>().is_err());
    }

    #[test]
    fn a_range_counts_both_ends() {
        let range: AddressRange = "10.0.0.1-10.0.0.1".parse().unwrap();
        assert_eq!(range.count(), 1);
        assert_eq!(range.to_string(), "10.0.0.1-10.0.0.1");
    }
}
