//! The UDP tracker protocol (BEP 15) with URL data (BEP 41), both directions.
//! Announces mean the same as over HTTP, so they share its types.
//!
//! Our own kind is recognised by the keys `rackswarm` and `rack` in the query
//! of the URL data. Its answer ends in guidance: after the peers an entry of
//! zeroes, which everybody passes over because its port is 0, then the
//! bencoded dictionary that an HTTP answer carries under `rackswarm`.

use std::net::{IpAddr, SocketAddr};

use crate::announce::{
    self, AnnounceError, AnnounceRequest, AnnounceResponse, AnnouncedPeer, Event, Guidance, MAX_PEERS, ScrapeEntry,
};
use crate::bencode::Value;
use crate::compact;
use crate::metainfo::InfoHash;
use crate::peer::PeerId;
use crate::text::readable;

/// Largest datagram that is written, in bytes: it travels in one frame of
/// every network.
pub const MAX_WRITTEN_BYTES: usize = 1400;

/// Most swarms of one scrape, as BEP 15 counts them.
pub const MAX_SCRAPE: usize = 74;

/// Longest path and query of a tracker's URL, in bytes.
pub const MAX_URL_BYTES: usize = 1024;

/// Stands for the connection id in a connect request.
const PROTOCOL: u64 = 0x0417_2710_1980;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

const ANNOUNCE_BYTES: usize = 98;
const SCRAPE_ENTRY_BYTES: usize = 12;

/// Option types of BEP 41; those above have a length.
const OPTIONS_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_URL: u8 = 2;

/// Why a datagram is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UdpTrackerError {
    /// It ends before its fixed fields do.
    #[error("a datagram of {bytes} bytes is too short for what it begins with")]
    TooShort {
        /// Its size.
        bytes: usize,
    },
    /// It begins like no request, or like no answer.
    #[error("no known action: this is not the UDP tracker protocol (BEP 15)")]
    Action,
    /// A field has a value out of its range.
    #[error("the field \"{0}\" has an invalid value")]
    Invalid(&'static str),
    /// What our own kind says within it is wrong.
    #[error(transparent)]
    Announce(#[from] AnnounceError),
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Give me a connection id: proof that I receive at my address.
    Connect {
        /// Chosen by the client, repeated in the answer.
        transaction: u32,
    },
    /// An announce.
    Announce {
        /// From the answer to `Connect`.
        connection: u64,
        /// Chosen by the client, repeated in the answer.
        transaction: u32,
        /// Tells the tracker that announces from several addresses are one
        /// client's.
        key: u32,
        /// What an HTTP query would say. `compact` is always true here.
        announce: Box<AnnounceRequest>,
        /// Path and query of the tracker's URL, without our own keys; may be
        /// empty.
        url: String,
    },
    /// Asks for the numbers of swarms.
    Scrape {
        /// From the answer to `Connect`.
        connection: u64,
        /// Chosen by the client, repeated in the answer.
        transaction: u32,
        /// Which swarms, at most [`MAX_SCRAPE`].
        hashes: Vec<InfoHash>,
    },
}

impl Request {
    /// The transaction, by which an error can be answered.
    pub fn transaction(&self) -> u32 {
        match self {
            Request::Connect { transaction }
            | Request::Announce { transaction, .. }
            | Request::Scrape { transaction, .. } => *transaction,
        }
    }

    /// Reads a datagram. What follows the fields is passed over, as BEP 15
    /// demands.
    ///
    /// # Errors
    /// When it is no request, or a field is out of range. Nothing should be
    /// answered then: whoever sends it speaks another protocol.
    pub fn decode(bytes: &[u8]) -> Result<Request, UdpTrackerError> {
        let connection = field(bytes, 0).map(u64::from_be_bytes)?;
        let action = field(bytes, 8).map(u32::from_be_bytes)?;
        let transaction = field(bytes, 12).map(u32::from_be_bytes)?;
        match action {
            CONNECT if connection == PROTOCOL => Ok(Request::Connect { transaction }),
            ANNOUNCE => decode_announce(bytes, connection, transaction),
            SCRAPE => {
                let (chunks, _) = bytes[16..].as_chunks::<20>();
                if chunks.is_empty() || chunks.len() > MAX_SCRAPE {
                    return Err(UdpTrackerError::Invalid("info_hash"));
                }
                let hashes = chunks.iter().map(|chunk| InfoHash(*chunk)).collect();
                Ok(Request::Scrape { connection, transaction, hashes })
            }
            _ => Err(UdpTrackerError::Action),
        }
    }

    /// The datagram to send. URL data beyond [`MAX_URL_BYTES`] and swarms
    /// beyond [`MAX_SCRAPE`] are left out.
    pub fn encode(&self) -> Vec<u8> {
        let (connection, action) = match self {
            Request::Connect { .. } => (PROTOCOL, CONNECT),
            Request::Announce { connection, .. } => (*connection, ANNOUNCE),
            Request::Scrape { connection, .. } => (*connection, SCRAPE),
        };
        let mut out = Vec::with_capacity(ANNOUNCE_BYTES + 64);
        out.extend_from_slice(&connection.to_be_bytes());
        out.extend_from_slice(&action.to_be_bytes());
        out.extend_from_slice(&self.transaction().to_be_bytes());
        match self {
            Request::Connect { .. } => {}
            Request::Announce { key, announce, url, .. } => put_announce(&mut out, *key, announce, url),
            Request::Scrape { hashes, .. } => {
                hashes.iter().take(MAX_SCRAPE).for_each(|hash| out.extend_from_slice(&hash.0));
            }
        }
        out
    }
}

fn decode_announce(bytes: &[u8], connection: u64, transaction: u32) -> Result<Request, UdpTrackerError> {
    let number = |at| field(bytes, at).map(u64::from_be_bytes);
    let event = match field(bytes, 80).map(u32::from_be_bytes)? {
        0 => None,
        1 => Some(Event::Completed),
        2 => Some(Event::Started),
        3 => Some(Event::Stopped),
        _ => return Err(UdpTrackerError::Invalid("event")),
    };
    let port = field(bytes, 96).map(u16::from_be_bytes)?;
    if port == 0 {
        return Err(UdpTrackerError::Invalid("port"));
    }
    // Any negative number means the tracker's default.
    let num_want = u32::try_from(field(bytes, 92).map(i32::from_be_bytes)?).ok();
    let (url, own) = split_own_keys(&url_data(&bytes[ANNOUNCE_BYTES..])?);
    let own = announce::decode_own_keys(&own)?;
    let announce = AnnounceRequest {
        info_hash: InfoHash(field(bytes, 16)?),
        peer_id: PeerId(field(bytes, 36)?),
        port,
        uploaded: number(72)?,
        downloaded: number(56)?,
        left: number(64)?,
        event,
        num_want,
        compact: true,
        own_kind: own.0,
        rack: own.1,
    };
    let key = field(bytes, 88).map(u32::from_be_bytes)?;
    Ok(Request::Announce { connection, transaction, key, announce: Box::new(announce), url })
}

fn put_announce(out: &mut Vec<u8>, key: u32, announce: &AnnounceRequest, url: &str) {
    out.extend_from_slice(&announce.info_hash.0);
    out.extend_from_slice(&announce.peer_id.0);
    for number in [announce.downloaded, announce.left, announce.uploaded] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    let event: u32 = match announce.event {
        None => 0,
        Some(Event::Completed) => 1,
        Some(Event::Started) => 2,
        Some(Event::Stopped) => 3,
    };
    out.extend_from_slice(&event.to_be_bytes());
    // The address of the datagram is the one that counts.
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&key.to_be_bytes());
    let num_want = announce.num_want.map_or(-1, |number| i32::try_from(number).unwrap_or(i32::MAX));
    out.extend_from_slice(&num_want.to_be_bytes());
    out.extend_from_slice(&announce.port.to_be_bytes());
    let mut url = url.to_owned();
    announce::put_own_keys(&mut url, announce);
    if url.len() <= MAX_URL_BYTES {
        for chunk in url.as_bytes().chunks(usize::from(u8::MAX)) {
            out.push(OPTION_URL);
            out.extend(u8::try_from(chunk.len()));
            out.extend_from_slice(chunk);
        }
    }
}

/// All URL data of the options; other options are skipped, and one that is cut
/// ends them.
fn url_data(mut options: &[u8]) -> Result<String, UdpTrackerError> {
    let mut url = Vec::new();
    while let [kind, tail @ ..] = options {
        if *kind == OPTIONS_END {
            break;
        }
        if *kind == OPTION_NOTHING {
            options = tail;
            continue;
        }
        let Some((data, rest)) = tail.split_first().and_then(|(len, tail)| tail.split_at_checked(usize::from(*len)))
        else {
            break;
        };
        if *kind == OPTION_URL {
            url.extend_from_slice(data);
            if url.len() > MAX_URL_BYTES {
                return Err(UdpTrackerError::Invalid("url"));
            }
        }
        options = rest;
    }
    String::from_utf8(url).map_err(|_| UdpTrackerError::Invalid("url"))
}

/// The URL without our own keys, and a query of only those.
fn split_own_keys(url: &str) -> (String, String) {
    let Some((path, query)) = url.split_once('?') else { return (url.to_owned(), String::new()) };
    let is_own = |pair: &&str| pair.split_once('=').is_some_and(|(key, _)| announce::OWN_KEYS.contains(&key));
    let (own, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_own);
    let rest = if others.is_empty() { path.to_owned() } else { format!("{path}?{}", others.join("&")) };
    (rest, own.join("&"))
}

/// What a tracker answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Use this connection id.
    Connect {
        /// As in the request.
        transaction: u32,
        /// Valid for a minute or two.
        connection: u64,
    },
    /// Peers.
    Announce {
        /// As in the request.
        transaction: u32,
        /// What an HTTP answer would say. Of the optional fields only
        /// `complete`, `incomplete` and `guidance` travel, of the peers only
        /// those whose address is of the datagram's family.
        response: AnnounceResponse,
    },
    /// Numbers of swarms, in the order of the request.
    Scrape {
        /// As in the request.
        transaction: u32,
        /// At most [`MAX_SCRAPE`].
        entries: Vec<ScrapeEntry>,
    },
    /// A refusal, and why.
    Error {
        /// As in the request.
        transaction: u32,
        /// For the operator.
        message: String,
    },
}

impl Response {
    /// The transaction, by which the answer finds its request.
    pub fn transaction(&self) -> u32 {
        match self {
            Response::Connect { transaction, .. }
            | Response::Announce { transaction, .. }
            | Response::Scrape { transaction, .. }
            | Response::Error { transaction, .. } => *transaction,
        }
    }

    /// Reads a datagram that came from the tracker's address `from`: its
    /// family tells the size of an address.
    ///
    /// # Errors
    /// When it is no answer, or its peers end within an address.
    pub fn decode(bytes: &[u8], from: IpAddr) -> Result<Response, UdpTrackerError> {
        let action = field(bytes, 0).map(u32::from_be_bytes)?;
        let transaction = field(bytes, 4).map(u32::from_be_bytes)?;
        match action {
            CONNECT => {
                let connection = field(bytes, 8).map(u64::from_be_bytes)?;
                Ok(Response::Connect { transaction, connection })
            }
            ANNOUNCE => Ok(Response::Announce { transaction, response: decode_response(bytes, from)? }),
            SCRAPE => {
                let (chunks, _) = bytes[8..].as_chunks::<SCRAPE_ENTRY_BYTES>();
                let entries = chunks.iter().take(MAX_SCRAPE).map(decode_entry).collect();
                Ok(Response::Scrape { transaction, entries })
            }
            ERROR => Ok(Response::Error { transaction, message: readable(&bytes[8..]) }),
            _ => Err(UdpTrackerError::Action),
        }
    }

    /// The datagram for a client at address `to`, never larger than
    /// [`MAX_WRITTEN_BYTES`]: peers that have no room are left out.
    pub fn encode(&self, to: IpAddr) -> Vec<u8> {
        let action = match self {
            Response::Connect { .. } => CONNECT,
            Response::Announce { .. } => ANNOUNCE,
            Response::Scrape { .. } => SCRAPE,
            Response::Error { .. } => ERROR,
        };
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&action.to_be_bytes());
        out.extend_from_slice(&self.transaction().to_be_bytes());
        match self {
            Response::Connect { connection, .. } => out.extend_from_slice(&connection.to_be_bytes()),
            Response::Announce { response, .. } => put_response(&mut out, response, to),
            Response::Scrape { entries, .. } => {
                for entry in entries.iter().take(MAX_SCRAPE) {
                    for number in [entry.complete, entry.downloaded, entry.incomplete] {
                        out.extend_from_slice(&number.to_be_bytes());
                    }
                }
            }
            Response::Error { message, .. } => {
                out.extend(message.bytes().take(MAX_WRITTEN_BYTES - 8));
            }
        }
        out
    }
}

fn decode_response(bytes: &[u8], from: IpAddr) -> Result<AnnounceResponse, UdpTrackerError> {
    let number = |at| field(bytes, at).map(u32::from_be_bytes);
    let (interval_seconds, incomplete, complete) = (number(8)?, number(12)?, number(16)?);
    let (list, guidance) = split_guidance(&bytes[20..], address_bytes(from));
    let unnamed = |address: SocketAddr| AnnouncedPeer { address, peer_id: None };
    let peers: Option<Vec<AnnouncedPeer>> = if from.is_ipv4() {
        compact::decode_v4(list).map(|peers| peers.map(unnamed).collect())
    } else {
        compact::decode_v6(list).map(|peers| peers.map(unnamed).collect())
    };
    let mut peers = peers.ok_or(UdpTrackerError::Invalid("peers"))?;
    peers.retain(|peer| peer.address.port() != 0);
    peers.truncate(MAX_PEERS);
    Ok(AnnounceResponse {
        interval_seconds,
        complete: Some(complete),
        incomplete: Some(incomplete),
        peers,
        guidance,
        ..AnnounceResponse::default()
    })
}

/// The peers, and the guidance behind the first entry of zeroes if there is.
fn split_guidance(list: &[u8], address_bytes: usize) -> (&[u8], Option<Guidance>) {
    let ends = |entry: &[u8]| entry.len() == address_bytes && entry.iter().all(|byte| *byte == 0);
    let Some(at) = list.chunks(address_bytes).position(ends).map(|index| index * address_bytes) else {
        return (list, None);
    };
    match Value::decode(&list[at + address_bytes..]) {
        Ok(Value::Dictionary(dictionary)) => (&list[..at], Some(Guidance::from_dictionary(&dictionary))),
        _ => (list, None),
    }
}

fn put_response(out: &mut Vec<u8>, response: &AnnounceResponse, to: IpAddr) {
    for number in [response.interval_seconds, response.incomplete.unwrap_or(0), response.complete.unwrap_or(0)] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    let end = vec![0; address_bytes(to)];
    let tail = match &response.guidance {
        // Fixed keys and no nesting: this always encodes.
        Some(guidance) => [end, guidance.to_value().encode().unwrap_or_default()].concat(),
        None => Vec::new(),
    };
    let room = MAX_WRITTEN_BYTES - out.len() - tail.len();
    let addresses = response.peers.iter().map(|peer| peer.address);
    let mut list = if to.is_ipv4() { compact::encode_v4(addresses) } else { compact::encode_v6(addresses) };
    list.truncate(room - room % address_bytes(to));
    out.extend(list);
    out.extend(tail);
}

fn decode_entry(chunk: &[u8; SCRAPE_ENTRY_BYTES]) -> ScrapeEntry {
    let number = |at: usize| u32::from_be_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]);
    ScrapeEntry { complete: number(0), downloaded: number(4), incomplete: number(8) }
}

fn address_bytes(family: IpAddr) -> usize {
    if family.is_ipv4() { compact::V4_BYTES } else { compact::V6_BYTES }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], UdpTrackerError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().ok_or(UdpTrackerError::TooShort { bytes: bytes.len() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::peer::RackName;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn announce() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash([b'h'; 20]),
            peer_id: PeerId([b'p'; 20]),
            port: 6881,
            uploaded: 3,
            downloaded: 1,
            left: 2,
            event: Some(Event::Started),
            num_want: None,
            compact: true,
            own_kind: false,
            rack: None,
        }
    }

    fn request(announce: AnnounceRequest, url: &str) -> Request {
        Request::Announce { connection: 7, transaction: 8, key: 9, announce: Box::new(announce), url: url.to_owned() }
    }

    fn peer(address: &str) -> AnnouncedPeer {
        AnnouncedPeer { address: address.parse().unwrap(), peer_id: None }
    }

    #[test]
    fn requests_have_the_bytes_of_bep_15() {
        let connect = Request::Connect { transaction: 0x0102_0304 };
        assert_eq!(connect.encode(), [0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 1, 2, 3, 4]);
        let bytes = request(announce(), "").encode();
        let expected = [
            [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 8].as_slice(),
            &[b'h'; 20],
            &[b'p'; 20],
            &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3],
            &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0xFF, 0xFF, 0xFF, 0xFF, 0x1A, 0xE1],
        ]
        .concat();
        assert_eq!(bytes, expected);
        let scrape = Request::Scrape { connection: 7, transaction: 8, hashes: vec![InfoHash([b'h'; 20])] };
        let expected = [[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 8].as_slice(), &[b'h'; 20]].concat();
        assert_eq!(scrape.encode(), expected);
        for request in [connect, request(announce(), ""), scrape] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn url_data_is_that_of_bep_41() {
        let plain = request(announce(), "").encode();
        let with = request(announce(), "/dir?a=b&c=d");
        assert_eq!(with.encode(), [plain.as_slice(), b"\x02\x0C/dir?a=b&c=d"].concat());
        assert_eq!(Request::decode(&with.encode()), Ok(with.clone()));
        let padded = [plain.as_slice(), b"\x02\x0C/dir?a=b&c=d\x01\x01\x00\x02\xFF"].concat();
        assert_eq!(Request::decode(&padded), Ok(with.clone()));
        let in_parts = [plain.as_slice(), b"\x02\x04/dir\x09\x01x\x02\x00\x02\x08?a=b&c=d\x02\x05cut"].concat();
        assert_eq!(Request::decode(&in_parts), Ok(with));
        let long = request(announce(), &"x".repeat(MAX_URL_BYTES));
        assert_eq!(Request::decode(&long.encode()), Ok(long));
        assert!(Request::decode(&[plain.as_slice(), b"\x02\x01\xFF"].concat()).is_err());
        let flood = b"\x02\xFFx".iter().chain(&[b'x'; 254]).copied().collect::<Vec<u8>>().repeat(5);
        assert_eq!(Request::decode(&[plain, flood].concat()), Err(UdpTrackerError::Invalid("url")));
    }

    #[test]
    fn our_own_kind_says_so_in_the_url() {
        let own = AnnounceRequest { own_kind: true, rack: Some(RackName::new("row 3/7").unwrap()), ..announce() };
        for (url, whole) in [
            ("", "?rackswarm=1&rack=row%203%2F7"),
            ("/announce", "/announce?rackswarm=1&rack=row%203%2F7"),
            ("/announce?a=1", "/announce?a=1&rackswarm=1&rack=row%203%2F7"),
        ] {
            let sent = request(own.clone(), url);
            assert!(sent.encode().ends_with(whole.as_bytes()), "{whole}");
            assert_eq!(Request::decode(&sent.encode()), Ok(sent));
        }
        let bad = request(announce(), "/?rack=%00").encode();
        assert_eq!(Request::decode(&bad), Err(AnnounceError::Invalid("rack").into()));
    }

    #[test]
    fn bad_requests_are_refused() {
        let good = request(announce(), "").encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Request::decode(&bytes)
        };
        assert_eq!(with(83, 4), Err(UdpTrackerError::Invalid("event")));
        assert_eq!(with(11, 3), Err(UdpTrackerError::Action));
        assert_eq!(with(11, 0), Err(UdpTrackerError::Action), "no connect without the magic number");
        for cut in 0..good.len() {
            assert_eq!(Request::decode(&good[..cut]), Err(UdpTrackerError::TooShort { bytes: cut }));
        }
        let none = Request::Scrape { connection: 1, transaction: 1, hashes: Vec::new() };
        assert!(Request::decode(&none.encode()).is_err());
    }

    #[test]
    fn answers_have_the_bytes_of_bep_15() {
        let response = AnnounceResponse {
            interval_seconds: 30,
            complete: Some(2),
            incomplete: Some(1),
            peers: vec![peer("10.0.0.7:6881")],
            ..AnnounceResponse::default()
        };
        let answer = Response::Announce { transaction: 8, response };
        let bytes = answer.encode(V4);
        let expected = [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 30, 0, 0, 0, 1, 0, 0, 0, 2, 10, 0, 0, 7, 0x1A, 0xE1];
        assert_eq!(bytes, expected);
        assert_eq!(Response::decode(&bytes, V4), Ok(answer));
        assert_eq!(Response::decode(&bytes[..25], V4), Err(UdpTrackerError::Invalid("peers")));
        let scrape = Response::Scrape {
            transaction: 8,
            entries: vec![ScrapeEntry { complete: 1, downloaded: 2, incomplete: 3 }],
        };
        assert_eq!(scrape.encode(V4), [0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
        let error = Response::Error { transaction: 8, message: "no".to_owned() };
        assert_eq!(error.encode(V4), b"\0\0\0\x03\0\0\0\x08no");
        let connect = Response::Connect { transaction: 8, connection: 7 };
        assert_eq!(connect.encode(V4), [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7]);
        for answer in [scrape, error, connect] {
            assert_eq!(Response::decode(&answer.encode(V4), V4), Ok(answer));
        }
        assert_eq!(Response::decode(&[0, 0, 0, 9, 0, 0, 0, 0], V4), Err(UdpTrackerError::Action));
        assert!(Response::decode(&[0, 0, 0, 3], V4).is_err());
    }

    #[test]
    fn guidance_stands_behind_the_peers() {
        for (to, address) in [(V4, "10.0.0.7:6881"), (V6, "[fd77::1]:80")] {
            for rack in [None, Some(RackName::new("r7").unwrap())] {
                let response = AnnounceResponse {
                    interval_seconds: 30,
                    complete: Some(2),
                    incomplete: Some(1),
                    peers: vec![peer(address)],
                    guidance: Some(Guidance { cooperative: true, rack }),
                    ..AnnounceResponse::default()
                };
                let answer = Response::Announce { transaction: 8, response };
                assert_eq!(Response::decode(&answer.encode(to), to), Ok(answer));
            }
        }
        let zeroes = [[0, 0, 0, 1].as_slice(), &[0; 16], &[0; 6], &[10, 0, 0, 7, 0, 80]].concat();
        let Ok(Response::Announce { response, .. }) = Response::decode(&zeroes, V4) else { panic!("an announce") };
        assert_eq!((response.peers, response.guidance), (vec![peer("10.0.0.7:80")], None));
    }

    #[test]
    fn an_answer_fits_one_frame() {
        let response = AnnounceResponse {
            peers: vec![peer("10.0.0.7:6881"); 2000],
            guidance: Some(Guidance { cooperative: true, rack: Some(RackName::new(&"r".repeat(64)).unwrap()) }),
            ..AnnounceResponse::default()
        };
        let bytes = Response::Announce { transaction: 1, response }.encode(V4);
        assert!(bytes.len() <= MAX_WRITTEN_BYTES);
        let Ok(Response::Announce { response, .. }) = Response::decode(&bytes, V4) else { panic!("an announce") };
        assert!(response.peers.len() > 190 && response.guidance.is_some());
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
            }
            let from = if v6 { V6 } else { V4 };
            if let Ok(answer) = Response::decode(&bytes, from) {
                prop_assert_eq!(Response::decode(&answer.encode(from), from), Ok(answer));
            }
        }

        #[test]
        fn any_announce_survives(
            connection: u64, transaction: u32, key: u32, hash: [u8; 20], id: [u8; 20], port in 1u16..,
            uploaded: u64, downloaded: u64, left: u64, num_want in proptest::option::of(0u32..i32::MAX as u32),
            own_kind: bool, rack in proptest::option::of("[a-z0-9 &=?%]{1,20}"), url in "(/[a-z]{0,9}){0,3}",
        ) {
            let announce = AnnounceRequest {
                info_hash: InfoHash(hash), peer_id: PeerId(id), port, uploaded, downloaded, left,
                event: None, num_want, compact: true, own_kind, rack: rack.map(|text| RackName::new(&text).unwrap()),
            };
            let sent = Request::Announce { connection, transaction, key, announce: Box::new(announce), url };
            prop_assert_eq!(Request::decode(&sent.encode()), Ok(sent));
        }
    }
}
