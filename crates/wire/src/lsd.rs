//! Local service discovery (BEP 14): datagrams to a multicast group that read
//! like an HTTP request.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::metainfo::InfoHash;

/// The group of IPv4, organisation-local.
pub const GROUP_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 192, 152, 143)), 6771);

/// The group of IPv6, site-local.
pub const GROUP_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f)), 6771);

/// Largest datagram that is read or written, in bytes (BEP 14).
pub const MAX_LSD_BYTES: usize = 1400;

/// Most swarms named in one datagram: as many as fit.
pub const MAX_LSD_HASHES: usize = 22;

/// Most headers that are read: every swarm is one.
const MAX_HEADERS: usize = 32;
const MAX_COOKIE_BYTES: usize = 64;

/// Why a datagram is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LsdError {
    /// It is longer than BEP 14 allows.
    #[error("{0} bytes exceed the {MAX_LSD_BYTES} of local service discovery")]
    TooLarge(usize),
    /// It does not read like an HTTP request.
    #[error("it does not read like an HTTP request: {0}")]
    Http(httparse::Error),
    /// It is another request, or ends too early.
    #[error("it is no whole BT-SEARCH request of HTTP/1.1")]
    NotSearch,
    /// No port that can be connected to.
    #[error("its Port header is missing or no port")]
    Port,
    /// No swarm at all.
    #[error("it has no Infohash header of 40 hexadecimal digits")]
    NoHash,
}

/// A peer says in which swarms it is. Its address is that of the datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LsdAnnounce {
    /// TCP port on which it listens.
    pub port: u16,
    /// The swarms; at most [`MAX_LSD_HASHES`].
    pub hashes: Vec<InfoHash>,
    /// By which the sender knows its own datagrams: at most 64 printable
    /// characters.
    pub cookie: Option<String>,
}

impl LsdAnnounce {
    /// Reads a datagram. Headers that we do not know are passed over, and so
    /// are hashes that are not 40 digits and swarms beyond the most.
    ///
    /// # Errors
    /// When it is no announce; it is then to be ignored.
    pub fn decode(bytes: &[u8]) -> Result<LsdAnnounce, LsdError> {
        if bytes.len() > MAX_LSD_BYTES {
            return Err(LsdError::TooLarge(bytes.len()));
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let whole = request.parse(bytes).map_err(LsdError::Http)?.is_complete();
        if !whole || request.method != Some("BT-SEARCH") || request.version != Some(1) {
            return Err(LsdError::NotSearch);
        }
        let named = |name: &'static str| {
            let headers = request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
            headers.filter_map(|header| std::str::from_utf8(header.value).ok())
        };
        let port = named("port").next().and_then(|text| text.parse().ok()).filter(|port| *port != 0);
        let hashes: Vec<InfoHash> =
            named("infohash").filter_map(|text| text.parse().ok()).take(MAX_LSD_HASHES).collect();
        if hashes.is_empty() {
            return Err(LsdError::NoHash);
        }
        let cookie = named("cookie").next().filter(|text| is_cookie(text)).map(str::to_owned);
        Ok(LsdAnnounce { port: port.ok_or(LsdError::Port)?, hashes, cookie })
    }

    /// The datagram for `group`. Swarms beyond the most and a cookie that is
    /// none are left out.
    pub fn encode(&self, group: SocketAddr) -> Vec<u8> {
        let mut text = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ = write!(text, "BT-SEARCH * HTTP/1.1\r\nHost: {group}\r\nPort: {}\r\n", self.port);
        for hash in self.hashes.iter().take(MAX_LSD_HASHES) {
            let _ = write!(text, "Infohash: {hash}\r\n");
        }
        if let Some(cookie) = self.cookie.as_ref().filter(|text| is_cookie(text)) {
            let _ = write!(text, "cookie: {cookie}\r\n");
        }
        text.push_str("\r\n\r\n");
        text.into_bytes()
    }
}

fn is_cookie(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_COOKIE_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announce(hashes: usize) -> LsdAnnounce {
        LsdAnnounce { port: 6881, hashes: vec![InfoHash([0xAB; 20]); hashes], cookie: Some("x1".to_owned()) }
    }

    #[test]
    fn an_announce_has_the_text_of_bep_14() {
        let text = announce(1).encode(GROUP_V4);
        let expected = format!(
            "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\nInfohash: {}\r\ncookie: x1\r\n\r\n\r\n",
            "ab".repeat(20)
        );
        assert_eq!(String::from_utf8(text.clone()).unwrap(), expected);
        assert_eq!(LsdAnnounce::decode(&text), Ok(announce(1)));
        let v6 = String::from_utf8(announce(1).encode(GROUP_V6)).unwrap();
        assert!(v6.contains("\r\nHost: [ff15::efc0:988f]:6771\r\n"));
    }

    #[test]
    fn the_largest_announce_fits() {
        let most = LsdAnnounce { port: u16::MAX, cookie: Some("c".repeat(64)), ..announce(MAX_LSD_HASHES) };
        for group in [GROUP_V4, GROUP_V6] {
            let bytes = most.encode(group);
            assert!(bytes.len() <= MAX_LSD_BYTES, "{}", bytes.len());
            assert_eq!(LsdAnnounce::decode(&bytes), Ok(most.clone()));
        }
        assert_eq!(announce(100).encode(GROUP_V4), announce(MAX_LSD_HASHES).encode(GROUP_V4));
    }

    #[test]
    fn announces_of_other_clients_are_understood() {
        let text = "BT-SEARCH * HTTP/1.1\r\nhost: 239.192.152.143:6771\r\nX-New: thing\r\nPORT: 51413\r\n\
                    INFOHASH: 0123456789ABCDEF0123456789abcdef01234567\r\nInfohash: short\r\n\r\n\r\n";
        let read = LsdAnnounce::decode(text.as_bytes()).unwrap();
        assert_eq!((read.port, read.hashes.len(), read.cookie), (51413, 1, None));
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        let good = String::from_utf8(announce(1).encode(GROUP_V4)).unwrap();
        let table = [
            (good.replace("BT-SEARCH", "GET"), LsdError::NotSearch),
            (good.replace("HTTP/1.1", "HTTP/1.0"), LsdError::NotSearch),
            (good.replace("\r\n\r\n\r\n", "\r\n"), LsdError::NotSearch),
            (good.replace("6881", "0"), LsdError::Port),
            (good.replace("6881", "65536"), LsdError::Port),
            (good.replace("Port", "Part"), LsdError::Port),
            (good.replace("abab", "abxx"), LsdError::NoHash),
            (good.replace(" * ", "\0"), LsdError::Http(httparse::Error::Token)),
            ("x".repeat(1401), LsdError::TooLarge(1401)),
        ];
        for (text, error) in table {
            assert_eq!(LsdAnnounce::decode(text.as_bytes()), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_announce_survives(
            port in 1u16..,
            hashes in proptest::collection::vec(any::<[u8; 20]>(), 1..MAX_LSD_HASHES),
            cookie in proptest::option::of("[!-~]{1,64}"),
        ) {
            let sent = LsdAnnounce { port, hashes: hashes.into_iter().map(InfoHash).collect(), cookie };
            prop_assert_eq!(LsdAnnounce::decode(&sent.encode(GROUP_V6)), Ok(sent));
        }
    }
}
