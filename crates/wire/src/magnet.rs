//! Magnet links (BEP 9, BEP 52): a torrent named by its hash.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;

use crate::metainfo::{InfoHash, InfoHashV2};
use crate::text::{put_escaped, unescape};

/// Longest link that is read, in bytes.
pub const MAX_MAGNET_BYTES: usize = 16 << 10;

/// Most trackers, and most peers, that are taken from a link.
pub const MAX_MAGNET_ENTRIES: usize = 64;

const SCHEME: &str = "magnet:?";
const BTIH: &str = "urn:btih:";
const BTMH: &str = "urn:btmh:";
/// Multihash of SHA-256: its code, then 32 bytes.
const SHA_256: &str = "1220";
const MAX_TEXT_BYTES: usize = 2048;

/// Why a text is no magnet link that we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    /// It does not begin as one.
    #[error("a magnet link begins with \"{SCHEME}\"")]
    Scheme,
    /// It is too long.
    #[error("the magnet link has {0} bytes; at most {MAX_MAGNET_BYTES} are read")]
    TooLong(usize),
    /// It names no torrent.
    #[error("the magnet link has no xt=urn:btih:... or xt=urn:btmh:...: it names no torrent")]
    NoTopic,
    /// It names two torrents.
    #[error("the magnet link names two torrents of the same version")]
    TwoTopics,
    /// A parameter cannot be read.
    #[error("the magnet link's \"{0}\" cannot be read: it must be {wanted}", wanted = wanted(.0))]
    Invalid(&'static str),
}

/// What a parameter holds.
fn wanted(parameter: &str) -> &'static str {
    match parameter {
        "xt" => "urn:btih: and 40 hexadecimal digits (or 32 of base 32), or urn:btmh:1220 and 64",
        "x.pe" => "HOST:PORT",
        "tr" => "the URL of a tracker, with everything unusual as %XX",
        _ => "UTF-8 text with everything unusual as %XX",
    }
}

/// What a magnet link says. At least one of the hashes is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Magnet {
    /// Hash of version 1.
    pub v1: Option<InfoHash>,
    /// Hash of version 2.
    pub v2: Option<InfoHashV2>,
    /// What to call it until the torrent is there.
    pub name: Option<String>,
    /// URLs of trackers.
    pub trackers: Vec<String>,
    /// Peers as `host:port`; a host may be a name, an IPv4 address, or an IPv6
    /// address in brackets.
    pub peers: Vec<String>,
}

impl Magnet {
    /// The hash by which the swarm is announced and greeted: version 1 where
    /// there is one, because everybody speaks that.
    pub fn info_hash(&self) -> Option<InfoHash> {
        self.v1.or_else(|| self.v2.map(|hash| hash.truncated()))
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), MagnetError> {
        match key {
            "xt" => self.add_topic(value),
            // Spaces of forms are common in names.
            "dn" => {
                let name = text(&value.replace('+', " "), "dn")?;
                self.name.get_or_insert(name);
                Ok(())
            }
            "tr" => push(&mut self.trackers, text(value, "tr")?),
            "x.pe" => {
                let peer = text(value, "x.pe")?;
                if is_host_and_port(&peer) { push(&mut self.peers, peer) } else { Err(MagnetError::Invalid("x.pe")) }
            }
            _ => Ok(()),
        }
    }

    /// Topics of other networks are passed over.
    fn add_topic(&mut self, value: &str) -> Result<(), MagnetError> {
        let value = text(value, "xt")?;
        if let Some(digits) = strip_prefix(&value, BTIH) {
            set(&mut self.v1, v1(digits).ok_or(MagnetError::Invalid("xt"))?)
        } else if let Some(multihash) = strip_prefix(&value, BTMH) {
            let hash = multihash.strip_prefix(SHA_256).and_then(|digits| digits.parse().ok());
            set(&mut self.v2, hash.ok_or(MagnetError::Invalid("xt"))?)
        } else {
            Ok(())
        }
    }
}

impl FromStr for Magnet {
    type Err = MagnetError;

    fn from_str(link: &str) -> Result<Magnet, MagnetError> {
        if link.len() > MAX_MAGNET_BYTES {
            return Err(MagnetError::TooLong(link.len()));
        }
        let query = strip_prefix(link, SCHEME).ok_or(MagnetError::Scheme)?;
        let mut magnet = Magnet::default();
        for pair in query.split('&') {
            let Some((key, value)) = pair.split_once('=') else { continue };
            // Repeated parameters may be numbered: xt.1, tr.2.
            let numbered = key.rsplit_once('.').filter(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
            magnet.add(numbered.map_or(key, |(key, _)| key), value)?;
        }
        if magnet.v1.is_none() && magnet.v2.is_none() { Err(MagnetError::NoTopic) } else { Ok(magnet) }
    }
}

/// The link, with everything escaped that needs it.
impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pairs = Vec::new();
        pairs.extend(self.v1.map(|hash| format!("xt={BTIH}{hash}")));
        pairs.extend(self.v2.map(|hash| format!("xt={BTMH}{SHA_256}{hash}")));
        let texts = self.name.iter().map(|name| ("dn", name));
        let texts = texts.chain(self.trackers.iter().map(|url| ("tr", url)));
        for (key, value) in texts.chain(self.peers.iter().map(|peer| ("x.pe", peer))) {
            let mut pair = format!("{key}=");
            put_escaped(&mut pair, value.as_bytes());
            pairs.push(pair);
        }
        write!(f, "{SCHEME}{}", pairs.join("&"))
    }
}

fn set<T: PartialEq>(place: &mut Option<T>, value: T) -> Result<(), MagnetError> {
    if place.as_ref().is_some_and(|known| *known != value) {
        return Err(MagnetError::TwoTopics);
    }
    *place = Some(value);
    Ok(())
}

fn push(list: &mut Vec<String>, entry: String) -> Result<(), MagnetError> {
    if list.len() < MAX_MAGNET_ENTRIES {
        list.push(entry);
    }
    Ok(())
}

/// 40 hexadecimal digits, or 32 of base 32 as old links have them.
fn v1(digits: &str) -> Option<InfoHash> {
    if digits.len() == 32 {
        let bytes = BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes()).ok()?;
        return bytes.try_into().ok().map(InfoHash);
    }
    digits.parse().ok()
}

fn text(value: &str, key: &'static str) -> Result<String, MagnetError> {
    let text = unescape(value).and_then(|bytes| String::from_utf8(bytes).ok());
    let fits = |text: &String| !text.is_empty() && text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
    text.filter(fits).ok_or(MagnetError::Invalid(key))
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() < 254
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (front, rest) = text.split_at_checked(prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V1: &str = "631a31dd0a46257d5078c0dee4e66e26f73e42ac";
    const V2: &str = "d8dd32ac93357c368556af3ac1d95c9d76bd0dff6fa9833ecdac3d53134efabb";

    #[test]
    fn links_of_every_version_are_read() {
        let hybrid = format!("magnet:?xt=urn:btih:{V1}&xt=urn:btmh:1220{V2}&dn=bittorrent-v1-v2-hybrid-test");
        let read: Magnet = hybrid.parse().unwrap();
        assert_eq!((read.v1, read.v2), (Some(V1.parse().unwrap()), Some(V2.parse().unwrap())));
        assert_eq!(read.name.as_deref(), Some("bittorrent-v1-v2-hybrid-test"));
        assert_eq!(read.info_hash(), read.v1);
        assert_eq!(read.to_string(), hybrid);

        let only_v2: Magnet = format!("MAGNET:?XT=x&xt.1=URN:BTMH:1220{V2}").parse().unwrap();
        assert_eq!(only_v2.info_hash().unwrap().to_string(), V2[..40]);

        let base32: Magnet = "magnet:?xt=urn:btih:mMnDDXIKIYSX2UDYYDPOJZTOE33T4QVM".parse().unwrap();
        assert_eq!(base32.v1, Some(V1.parse().unwrap()));
    }

    #[test]
    fn trackers_peers_and_names_are_unescaped() {
        let link = format!(
            "magnet:?xt=urn:btih:{V1}&dn=a+b%20%2B&tr=http%3A%2F%2Ft.example%3A80%2Fannounce%3Fa%3D1&tr.2=udp://t:1\
             &x.pe=10.0.0.7:6881&x.pe=[fd77::1]:80&x.pe=node-7.lab:1&so=0,2&ws=http://w&flag"
        );
        let read: Magnet = link.parse().unwrap();
        assert_eq!(read.name.as_deref(), Some("a b +"));
        assert_eq!(read.trackers, ["http://t.example:80/announce?a=1", "udp://t:1"]);
        assert_eq!(read.peers, ["10.0.0.7:6881", "[fd77::1]:80", "node-7.lab:1"]);
        assert_eq!(read.to_string().parse(), Ok(read));
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        let other = "0".repeat(40);
        let table = [
            ("http://x".to_owned(), MagnetError::Scheme),
            ("magnet:".to_owned(), MagnetError::Scheme),
            ("magnet:?dn=x".to_owned(), MagnetError::NoTopic),
            ("magnet:?xt=urn:sha1:ABC".to_owned(), MagnetError::NoTopic),
            ("magnet:?xt=urn:btih:123".to_owned(), MagnetError::Invalid("xt")),
            (format!("magnet:?xt=urn:btih:{V2}"), MagnetError::Invalid("xt")),
            (format!("magnet:?xt=urn:btmh:1114{V1}"), MagnetError::Invalid("xt")),
            (format!("magnet:?xt=urn:btmh:1220{V1}"), MagnetError::Invalid("xt")),
            (format!("magnet:?xt=urn:btih:{V1}&xt=urn:btih:{other}"), MagnetError::TwoTopics),
            (format!("magnet:?xt=urn:btih:{V1}&tr=%zz"), MagnetError::Invalid("tr")),
            (format!("magnet:?xt=urn:btih:{V1}&tr=a%0Ab"), MagnetError::Invalid("tr")),
            (format!("magnet:?xt=urn:btih:{V1}&dn=%FF"), MagnetError::Invalid("dn")),
            (format!("magnet:?xt=urn:btih:{V1}&x.pe=10.0.0.7"), MagnetError::Invalid("x.pe")),
            (format!("magnet:?xt=urn:btih:{V1}&x.pe=10.0.0.7:0"), MagnetError::Invalid("x.pe")),
            (format!("magnet:?xt=urn:btih:{V1}&x.pe=fd77::1:80"), MagnetError::Invalid("x.pe")),
            ("x".repeat(MAX_MAGNET_BYTES + 1), MagnetError::TooLong(MAX_MAGNET_BYTES + 1)),
        ];
        for (link, error) in table {
            assert_eq!(link.parse::<Magnet>(), Err(error), "{link}");
        }
        let many = format!("magnet:?xt=urn:btih:{V1}{}", "&tr=udp://t:1".repeat(100));
        assert_eq!(many.parse::<Magnet>().unwrap().trackers.len(), MAX_MAGNET_ENTRIES);
    }

    proptest! {
        #[test]
        fn any_link_survives(
            v1: [u8; 20], v2 in proptest::option::of(any::<[u8; 32]>()), name in proptest::option::of("[^\\pC]{1,40}"),
            trackers in proptest::collection::vec("[^\\pC]{1,40}", 0..5),
        ) {
            let sent = Magnet { v1: Some(InfoHash(v1)), v2: v2.map(InfoHashV2), name, trackers, peers: vec![] };
            prop_assert_eq!(sent.to_string().parse(), Ok(sent));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "magnet:\\?(xt=urn:bt[im]h:)?[0-9a-f&=%.:txrdnpe]{0,120}") {
            if let Ok(magnet) = text.parse::<Magnet>() {
                prop_assert_eq!(magnet.to_string().parse(), Ok(magnet));
            }
        }
    }
}
