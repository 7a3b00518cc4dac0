//! Where racks are: by address, from a TOML text.
//!
//! ```toml
//! [[rack]]
//! name = "r1"
//! cidrs = ["10.77.1.0/24"]
//! addresses = ["10.77.9.7"]
//! uplink_mbit = 1000    # out of the rack; for the planner
//! downlink_mbit = 1000
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use wire::peer::RackName;

/// Why a topology cannot be used. The line counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// It is not TOML, or has other keys.
    #[error("the topology is unreadable: {0}")]
    Unreadable(String),
    /// A name is empty, too long or has control characters.
    #[error("line {line}: the rack name {name:?} will not do: use 1 to 64 bytes without control characters")]
    Name {
        /// Where.
        line: usize,
        /// What stands there.
        name: String,
    },
    /// Two racks have one name.
    #[error("line {line}: the rack {name} was named before: put all its addresses into one [[rack]]")]
    Repeated {
        /// Where it comes again.
        line: usize,
        /// The name.
        name: RackName,
    },
    /// Neither a range of addresses nor an address.
    #[error("line {line}: {text:?} is no {wanted}: write it like {example}")]
    Address {
        /// Where.
        line: usize,
        /// What stands there.
        text: String,
        /// What should.
        wanted: &'static str,
        /// How that looks.
        example: &'static str,
    },
    /// One range in two racks.
    #[error("line {line}: {range} belongs to the rack {other} already: remove it from one of the two")]
    Ambiguous {
        /// Where it comes again.
        line: usize,
        /// The range.
        range: IpNet,
        /// Who has it.
        other: RackName,
    },
}

/// A rack as the topology names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rack {
    /// Its name.
    pub name: RackName,
    /// Rate out of the rack, in Mbit/s.
    pub uplink_mbit: Option<u32>,
    /// Rate into the rack, in Mbit/s.
    pub downlink_mbit: Option<u32>,
}

/// Which addresses stand in which rack. Empty: every node has to say so itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    racks: Vec<Rack>,
    /// Ranges by the length of their prefix; the longest that fits decides.
    ranges: BTreeMap<u8, BTreeMap<IpNet, usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rack: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    #[serde(default)]
    cidrs: Vec<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    uplink_mbit: Option<u32>,
    downlink_mbit: Option<u32>,
}

impl Topology {
    /// Reads a topology.
    ///
    /// # Errors
    /// Each names the line and what to do about it.
    pub fn from_toml(text: &str) -> Result<Topology, TopologyError> {
        let file: File = toml::from_str(text).map_err(|error| TopologyError::Unreadable(error.to_string()))?;
        let mut topology = Topology::default();
        file.rack.into_iter().try_for_each(|entry| topology.add(text, entry))?;
        Ok(topology)
    }

    /// The rack of an address; the narrowest range that holds it decides.
    #[must_use]
    pub fn rack_of(&self, address: IpAddr) -> Option<&RackName> {
        let address = address.to_canonical();
        let within = |(&prefix, ranges): (&u8, &BTreeMap<IpNet, usize>)| {
            ranges.get(&IpNet::new(address, prefix).ok()?.trunc()).copied()
        };
        let rack = self.ranges.iter().rev().find_map(within)?;
        Some(&self.racks[rack].name)
    }

    /// All racks, in the order of the text.
    #[must_use]
    pub fn racks(&self) -> &[Rack] {
        &self.racks
    }

    fn add(&mut self, text: &str, entry: Entry) -> Result<(), TopologyError> {
        let line = line_of(text, &entry.name);
        let name = entry.name.into_inner();
        let name = RackName::new(&name).map_err(|_| TopologyError::Name { line, name })?;
        if self.racks.iter().any(|rack| rack.name == name) {
            return Err(TopologyError::Repeated { line, name });
        }
        let (uplink_mbit, downlink_mbit) = (entry.uplink_mbit, entry.downlink_mbit);
        self.racks.push(Rack { name, uplink_mbit, downlink_mbit });
        for cidr in entry.cidrs {
            let line = line_of(text, &cidr);
            let range = cidr.get_ref().parse().map_err(|_| malformed(line, cidr, "range", "10.77.1.0/24"))?;
            self.put(line, range)?;
        }
        for address in entry.addresses {
            let line = line_of(text, &address);
            let one: IpAddr =
                address.get_ref().parse().map_err(|_| malformed(line, address, "address", "10.77.1.9"))?;
            self.put(line, IpNet::from(one.to_canonical()))?;
        }
        Ok(())
    }

    fn put(&mut self, line: usize, range: IpNet) -> Result<(), TopologyError> {
        let (range, rack) = (range.trunc(), self.racks.len() - 1);
        match self.ranges.entry(range.prefix_len()).or_default().insert(range, rack) {
            Some(other) if other != rack => {
                Err(TopologyError::Ambiguous { line, range, other: self.racks[other].name.clone() })
            }
            _ => Ok(()),
        }
    }
}

fn malformed(line: usize, text: Spanned<String>, wanted: &'static str, example: &'static str) -> TopologyError {
    TopologyError::Address { line, text: text.into_inner(), wanted, example }
}

fn line_of(text: &str, value: &Spanned<String>) -> usize {
    1 + text.bytes().take(value.span().start).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const TWO: &str = "[[rack]]\nname = \"r1\"\ncidrs = [\"10.77.1.0/24\", \"fd00:1::/64\"]\nuplink_mbit = 1000\n\n\
        [[rack]]\nname = \"r2\"\ncidrs = [\"10.77.0.0/16\"]\naddresses = [\"10.77.1.9\"]\n";

    fn rack(topology: &Topology, address: &str) -> Option<String> {
        topology.rack_of(address.parse().unwrap()).map(ToString::to_string)
    }

    #[test]
    fn the_narrowest_range_decides() {
        let topology = Topology::from_toml(TWO).unwrap();
        let expected = [
            ("10.77.1.8", Some("r1")),
            ("10.77.1.9", Some("r2")),
            ("10.77.200.1", Some("r2")),
            ("::ffff:10.77.1.8", Some("r1")),
            ("fd00:1::7", Some("r1")),
            ("fd00:2::7", None),
            ("192.0.2.1", None),
        ];
        for (address, name) in expected {
            assert_eq!(rack(&topology, address).as_deref(), name, "{address}");
        }
        assert_eq!((topology.racks()[0].uplink_mbit, topology.racks()[1].uplink_mbit), (Some(1000), None));
        assert_eq!(Topology::from_toml("").unwrap(), Topology::default());
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let mistakes = [
            ("[[rack]]\nname = \"\"", "line 2: the rack name \"\""),
            ("[[rack]]\nname = \"a\"\n[[rack]]\nname = \"a\"", "line 4: the rack a was named before"),
            ("[[rack]]\nname = \"a\"\ncidrs = [\n  \"10.1.1.0\"]", "line 4: \"10.1.1.0\" is no range"),
            ("[[rack]]\nname = \"a\"\naddresses = [\"10.1.1.0/24\"]", "line 3: \"10.1.1.0/24\" is no address"),
            (
                "[[rack]]\nname = \"a\"\ncidrs = [\"10.1.0.0/24\"]\n[[rack]]\nname = \"b\"\ncidrs = [\"10.1.0.7/24\"]",
                "line 6: 10.1.0.0/24 belongs to the rack a already",
            ),
            ("[[rack]]\nname = \"a\"\ncidr = []", "line 3"),
            ("[[rack]]\nname = ", "line 2"),
        ];
        for (text, expected) in mistakes {
            let said = Topology::from_toml(text).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }
}
