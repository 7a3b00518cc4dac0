//! Names and numbers that identify things, each its own type.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Why a text is not a valid identifier. The sentence names the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadId {
    /// A name has characters or a length that are not allowed.
    #[error("`{0}` is not a name: use 1 to 63 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit")]
    Name(String),
    /// A MAC address is not six hexadecimal octets.
    #[error("`{0}` is not a MAC address: write six octets as in 52:54:00:12:34:56")]
    Mac(String),
    /// A digest is not `sha256:` and 64 hexadecimal digits.
    #[error("`{0}` is not an image digest: write `sha256:` and 64 hexadecimal digits")]
    Digest(String),
    /// A deployment number is not of the form `d-12`.
    #[error("`{0}` is not a deployment: write its number as in d-12")]
    Deployment(String),
}

fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    (1..=63).contains(&text.len())
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
}

macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                if is_name(text) { Ok(Self(text.to_owned())) } else { Err(BadId::Name(text.to_owned())) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        text_serde!($name);
    };
}

name!(
    /// A node's name, also its default host name: a DNS label or dotted name in
    /// lower case (RFC 1123), at most 63 octets.
    NodeName
);
name!(
    /// A rack's name; the same alphabet as node names.
    RackName
);
name!(
    /// An image's name in the registry; the same alphabet as node names.
    ImageName
);

name!(
    /// The name of a set of machines; the same alphabet as node names.
    SetName
);

impl NodeName {
    /// The name a machine gets that nobody has named: `node-` and its MAC.
    #[must_use]
    pub fn of_stranger(mac: Mac) -> Self {
        Self(format!("node-{}", HEXLOWER.encode(&mac.0)))
    }
}

/// An Ethernet hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The form with dashes that boot file names carry, `52-54-00-12-34-56`.
    #[must_use]
    pub fn dashed(&self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = BadId;
    /// Accepts `:` and `-` between the octets, in either case.
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::Mac(text.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}
text_serde!(Mac);

/// SHA-256 of an image's whole raw content; equals `sha256sum disk.raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", HEXLOWER.encode(&self.0))
    }
}

impl FromStr for Digest {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::Digest(text.to_owned());
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?;
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| bad())?;
        Ok(Self(bytes.try_into().map_err(|_| bad())?))
    }
}
text_serde!(Digest);

/// A deployment's number, written `d-12`. Numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeploymentId(pub u64);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d-{}", self.0)
    }
}

impl FromStr for DeploymentId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        text.strip_prefix("d-").and_then(|n| n.parse().ok()).map(Self).ok_or_else(|| BadId::Deployment(text.to_owned()))
    }
}
text_serde!(DeploymentId);

/// Which try at provisioning a node this is, counted over the node's whole
/// life; whatever an older attempt still reports is refused by this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The attempt after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A moment, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This moment and `milliseconds` more.
    #[must_use]
    pub fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds since `earlier`; zero when the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_dns_like() {
        for good in ["a", "node1", "r1.n-2", "0x"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "..", ".a", &"x".repeat(64), "ä"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn macs_take_both_separators_and_print_one() {
        let mac: Mac = "52-54-00-AB-cd-ef".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        assert_eq!(mac.dashed(), "52-54-00-ab-cd-ef");
        for bad in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "5:54:00:ab:cd:ef0", "+2:54:00:ab:cd:ef"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn identifiers_round_trip_as_text() {
        let digest = Digest([7; 32]);
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!("d-12".parse::<DeploymentId>().unwrap(), DeploymentId(12));
        assert_eq!(serde_json::to_string(&digest).unwrap().len(), 73);
        assert!("12".parse::<DeploymentId>().is_err());
    }
}
