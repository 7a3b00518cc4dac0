//! The HTTP tracker protocol (BEP 3), both directions: query and answer of
//! `announce` with compact peers (BEP 23, BEP 7), and `scrape` (BEP 48).

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::bencode::{BencodeError, Dictionary, Value};
use crate::compact;
use crate::metainfo::InfoHash;
use crate::peer::{PeerId, RackName};
use crate::text::{put_escaped, readable, unescape};

/// Longest query string that is read, in bytes.
pub const MAX_QUERY_BYTES: usize = 4096;

/// Largest tracker answer that is read, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// Most peers taken from one answer.
pub const MAX_PEERS: usize = 2000;

/// Most swarms asked about in one scrape.
pub const MAX_SCRAPE: usize = 64;

/// Key of our own part of an answer, and the parameter that asks for it.
const OWN_KIND: &str = "rackswarm";
const RACK: &str = "rack";

/// The parameters that only our own kind sends.
pub(crate) const OWN_KEYS: [&str; 2] = [OWN_KIND, RACK];

/// Why a query or an answer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// The answer is not bencode.
    #[error("the tracker's answer is unreadable: {0}")]
    Bencode(#[from] BencodeError),
    /// Query or answer exceed their limit.
    #[error("{bytes} bytes exceed the limit of {limit}")]
    TooLarge {
        /// What came.
        bytes: usize,
        /// What is read at most.
        limit: usize,
    },
    /// A required parameter is missing.
    #[error("the parameter \"{0}\" is missing")]
    Missing(&'static str),
    /// A parameter has a value out of its range.
    #[error("the parameter \"{0}\" has an invalid value")]
    Invalid(&'static str),
    /// A parameter that names one thing came twice.
    #[error("the parameter \"{0}\" came twice")]
    Repeated(&'static str),
}

/// What happened to the download since the last announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The first announce.
    Started,
    /// The peer leaves.
    Stopped,
    /// The download became complete while running.
    Completed,
}

impl Event {
    fn as_str(self) -> &'static str {
        match self {
            Event::Started => "started",
            Event::Stopped => "stopped",
            Event::Completed => "completed",
        }
    }
}

/// An announce from a peer to the tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceRequest {
    /// Which swarm.
    pub info_hash: InfoHash,
    /// Who asks.
    pub peer_id: PeerId,
    /// TCP port on which the peer listens.
    pub port: u16,
    /// Payload bytes sent since `started`.
    pub uploaded: u64,
    /// Payload bytes received since `started`.
    pub downloaded: u64,
    /// Bytes still missing; 0 for a seed.
    pub left: u64,
    /// What happened, if anything.
    pub event: Option<Event>,
    /// How many peers are wanted; the tracker may give fewer.
    pub num_want: Option<u32>,
    /// Peers may come in the compact form (BEP 23).
    pub compact: bool,
    /// The peer is of our own kind and takes [`Guidance`].
    pub own_kind: bool,
    /// The rack that the peer stands in, if it knows.
    pub rack: Option<RackName>,
}

impl AnnounceRequest {
    /// The query string, without the question mark.
    pub fn encode_query(&self) -> String {
        let mut query = String::with_capacity(256);
        query.push_str("info_hash=");
        put_escaped(&mut query, &self.info_hash.0);
        query.push_str("&peer_id=");
        put_escaped(&mut query, &self.peer_id.0);
        // Writing to a String cannot fail.
        let _ = write!(
            query,
            "&port={}&uploaded={}&downloaded={}&left={}&compact={}",
            self.port,
            self.uploaded,
            self.downloaded,
            self.left,
            u8::from(self.compact)
        );
        if let Some(event) = self.event {
            let _ = write!(query, "&event={}", event.as_str());
        }
        if let Some(num_want) = self.num_want {
            let _ = write!(query, "&numwant={num_want}");
        }
        put_own_pairs(&mut query, '&', self);
        query
    }

    /// Reads a query string. Unknown parameters are passed over; `ip` is too,
    /// because the address of the connection is the one that we can believe.
    ///
    /// # Errors
    /// When a required parameter is missing or malformed.
    pub fn decode_query(query: &str) -> Result<AnnounceRequest, AnnounceError> {
        let parameters = Parameters::read(query)?;
        let event = match parameters.get("event")?.as_deref() {
            None | Some(b"" | b"empty") => None,
            Some(b"started") => Some(Event::Started),
            Some(b"stopped") => Some(Event::Stopped),
            Some(b"completed") => Some(Event::Completed),
            Some(_) => return Err(AnnounceError::Invalid("event")),
        };
        let port: u16 = parameters.required_number("port")?;
        if port == 0 {
            return Err(AnnounceError::Invalid("port"));
        }
        Ok(AnnounceRequest {
            info_hash: InfoHash(parameters.required_hash("info_hash")?),
            peer_id: PeerId(parameters.required_hash("peer_id")?),
            port,
            uploaded: parameters.number("uploaded")?.unwrap_or(0),
            downloaded: parameters.number("downloaded")?.unwrap_or(0),
            left: parameters.required_number("left")?,
            event,
            num_want: num_want(&parameters)?,
            compact: parameters.get("compact")?.as_deref() != Some(b"0"),
            own_kind: is_own_kind(&parameters)?,
            rack: rack(&parameters)?,
        })
    }
}

fn is_own_kind(parameters: &Parameters<'_>) -> Result<bool, AnnounceError> {
    Ok(parameters.get(OWN_KIND)?.as_deref() == Some(b"1"))
}

fn rack(parameters: &Parameters<'_>) -> Result<Option<RackName>, AnnounceError> {
    let Some(bytes) = parameters.get(RACK)? else { return Ok(None) };
    RackName::from_bytes(&bytes).map(Some).ok_or(AnnounceError::Invalid(RACK))
}

/// Appends what only our own kind says, with `separator` before the first pair.
fn put_own_pairs(query: &mut String, mut separator: char, request: &AnnounceRequest) {
    if request.own_kind {
        // Writing to a String cannot fail.
        let _ = write!(query, "{separator}{OWN_KIND}=1");
        separator = '&';
    }
    if let Some(rack) = &request.rack {
        let _ = write!(query, "{separator}{RACK}=");
        put_escaped(query, rack.as_str().as_bytes());
    }
}

/// Appends what only our own kind says to path and query of a tracker's URL.
pub(crate) fn put_own_keys(url: &mut String, request: &AnnounceRequest) {
    let separator = if url.contains('?') { '&' } else { '?' };
    put_own_pairs(url, separator, request);
}

/// Reads back what [`put_own_keys`] wrote: own kind or not, and the rack.
pub(crate) fn decode_own_keys(query: &str) -> Result<(bool, Option<RackName>), AnnounceError> {
    let parameters = Parameters::read(query)?;
    Ok((is_own_kind(&parameters)?, rack(&parameters)?))
}

/// Some clients send -1 for "the tracker's default".
fn num_want(parameters: &Parameters<'_>) -> Result<Option<u32>, AnnounceError> {
    if parameters.get("numwant")?.as_deref() == Some(b"-1") {
        return Ok(None);
    }
    parameters.number("numwant")
}

/// A peer in a tracker's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnouncedPeer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its name; only the dictionary form carries it.
    pub peer_id: Option<PeerId>,
}

/// What our tracker tells our own kind about the swarm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guidance {
    /// All members work for the same end: whoever can, sends.
    pub cooperative: bool,
    /// The rack that the asking peer stands in, if the tracker knows.
    pub rack: Option<RackName>,
}

impl Guidance {
    pub(crate) fn to_value(&self) -> Value<'_> {
        let mut pairs = vec![(b"cooperative".as_slice(), Value::Integer(self.cooperative.into()))];
        pairs.extend(self.rack.as_ref().map(|rack| (RACK.as_bytes(), Value::Bytes(rack.as_str().as_bytes()))));
        Value::Dictionary(Dictionary::new(pairs))
    }

    pub(crate) fn from_dictionary(dictionary: &Dictionary<'_>) -> Guidance {
        Guidance {
            cooperative: dictionary.get("cooperative").and_then(Value::as_integer) == Some(1_u8),
            rack: dictionary.get(RACK).and_then(Value::as_bytes).and_then(RackName::from_bytes),
        }
    }
}

/// Peers and numbers from a tracker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnounceResponse {
    /// Wait this long before the next regular announce.
    pub interval_seconds: u32,
    /// Never announce more often than this.
    pub min_interval_seconds: Option<u32>,
    /// Peers that have everything.
    pub complete: Option<u32>,
    /// Peers that still download.
    pub incomplete: Option<u32>,
    /// Something for the operator to read.
    pub warning: Option<String>,
    /// Peers to connect to.
    pub peers: Vec<AnnouncedPeer>,
    /// For our own kind only: left out unless the request had `own_kind`.
    pub guidance: Option<Guidance>,
}

/// A tracker's whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The announce was accepted.
    Peers(AnnounceResponse),
    /// The announce was refused, and why.
    Failure(String),
}

impl Answer {
    /// The body of the HTTP response. `compact` selects BEP 23 and BEP 7;
    /// otherwise peers are dictionaries.
    ///
    /// # Errors
    /// Never for values of this type; kept because encoding is fallible.
    pub fn encode(&self, compact: bool) -> Result<Vec<u8>, AnnounceError> {
        let value = match self {
            Answer::Failure(reason) => {
                let pairs = vec![(b"failure reason".as_slice(), Value::Bytes(reason.as_bytes()))];
                return Ok(Value::Dictionary(Dictionary::new(pairs)).encode()?);
            }
            Answer::Peers(response) => response,
        };
        let mut pairs = value.numbers();
        if let Some(warning) = &value.warning {
            pairs.push((b"warning message", Value::Bytes(warning.as_bytes())));
        }
        pairs.extend(value.guidance.as_ref().map(|guidance| (OWN_KIND.as_bytes(), guidance.to_value())));
        let addresses = || value.peers.iter().map(|peer| peer.address);
        let (v4, v6) = (compact::encode_v4(addresses()), compact::encode_v6(addresses()));
        let texts: Vec<String> = value.peers.iter().map(|peer| peer.address.ip().to_string()).collect();
        if compact {
            pairs.push((b"peers", Value::Bytes(&v4)));
            if !v6.is_empty() {
                pairs.push((b"peers6", Value::Bytes(&v6)));
            }
        } else {
            let peers = value.peers.iter().zip(&texts).map(|(peer, ip)| peer_dictionary(peer, ip)).collect();
            pairs.push((b"peers", Value::List(peers)));
        }
        Ok(Value::Dictionary(Dictionary::new(pairs)).encode()?)
    }

    /// Reads the body of a tracker's HTTP response.
    ///
    /// # Errors
    /// When it is not bencode, too large, or has no usable interval.
    pub fn decode(body: &[u8]) -> Result<Answer, AnnounceError> {
        check_size(body.len(), MAX_RESPONSE_BYTES)?;
        let value = Value::decode(body)?;
        let top = value.as_dictionary().ok_or(AnnounceError::Invalid("answer"))?;
        if let Some(reason) = top.get("failure reason").and_then(Value::as_bytes) {
            return Ok(Answer::Failure(readable(reason)));
        }
        let number = |key| top.get(key).and_then(Value::as_integer);
        let mut peers = decode_peers(top)?;
        peers.truncate(MAX_PEERS);
        Ok(Answer::Peers(AnnounceResponse {
            interval_seconds: number("interval").ok_or(AnnounceError::Missing("interval"))?,
            min_interval_seconds: number("min interval"),
            complete: number("complete"),
            incomplete: number("incomplete"),
            warning: top.get("warning message").and_then(Value::as_bytes).map(readable),
            peers,
            guidance: top.get(OWN_KIND).and_then(Value::as_dictionary).map(Guidance::from_dictionary),
        }))
    }
}

impl AnnounceResponse {
    fn numbers(&self) -> Vec<(&'static [u8], Value<'_>)> {
        let optional: [(&'static [u8], Option<u32>); 3] = [
            (b"min interval", self.min_interval_seconds),
            (b"complete", self.complete),
            (b"incomplete", self.incomplete),
        ];
        let mut pairs: Vec<(&'static [u8], Value<'_>)> =
            vec![(b"interval", Value::Integer(self.interval_seconds.into()))];
        pairs.extend(optional.into_iter().filter_map(|(key, number)| Some((key, Value::Integer(number?.into())))));
        pairs
    }
}

fn peer_dictionary<'a>(peer: &'a AnnouncedPeer, ip: &'a str) -> Value<'a> {
    let mut pairs =
        vec![(b"ip".as_slice(), Value::Bytes(ip.as_bytes())), (b"port", Value::Integer(peer.address.port().into()))];
    if let Some(id) = &peer.peer_id {
        pairs.push((b"peer id", Value::Bytes(&id.0)));
    }
    Value::Dictionary(Dictionary::new(pairs))
}

fn decode_peers(top: &Dictionary<'_>) -> Result<Vec<AnnouncedPeer>, AnnounceError> {
    let unnamed = |address| AnnouncedPeer { address, peer_id: None };
    let mut peers: Vec<AnnouncedPeer> = match top.get("peers") {
        None => Vec::new(),
        Some(Value::Bytes(bytes)) => {
            compact::decode_v4(bytes).ok_or(AnnounceError::Invalid("peers"))?.map(unnamed).collect()
        }
        Some(Value::List(list)) => list.iter().filter_map(decode_peer_dictionary).collect(),
        Some(_) => return Err(AnnounceError::Invalid("peers")),
    };
    if let Some(bytes) = top.get("peers6").and_then(Value::as_bytes) {
        peers.extend(compact::decode_v6(bytes).ok_or(AnnounceError::Invalid("peers6"))?.map(unnamed));
    }
    peers.retain(|peer| peer.address.port() != 0);
    Ok(peers)
}

/// BEP 3 allows a host name for `ip`; we pass those over, because a
/// provisioning network has no name server to ask.
fn decode_peer_dictionary(value: &Value<'_>) -> Option<AnnouncedPeer> {
    let peer = value.as_dictionary()?;
    let ip: IpAddr = peer.get("ip")?.as_text()?.parse().ok()?;
    let port: u16 = peer.get("port")?.as_integer()?;
    let peer_id = peer.get("peer id").and_then(Value::as_bytes).and_then(|id| id.try_into().ok()).map(PeerId);
    Some(AnnouncedPeer { address: SocketAddr::new(ip, port), peer_id })
}

/// The numbers of one swarm (BEP 48).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrapeEntry {
    /// Peers that have everything.
    pub complete: u32,
    /// Downloads that became complete since the tracker knows the swarm.
    pub downloaded: u32,
    /// Peers that still download.
    pub incomplete: u32,
}

/// The swarms that a scrape asks about; empty means all.
///
/// # Errors
/// When a hash is malformed or there are more than [`MAX_SCRAPE`].
pub fn decode_scrape_query(query: &str) -> Result<Vec<InfoHash>, AnnounceError> {
    let hashes: Result<Vec<InfoHash>, AnnounceError> = Parameters::read(query)?
        .all("info_hash")
        .map(|bytes| bytes.and_then(|bytes| to_hash(&bytes, "info_hash")).map(InfoHash))
        .collect();
    let hashes = hashes?;
    check_size(hashes.len(), MAX_SCRAPE)?;
    Ok(hashes)
}

/// The body of a scrape's answer.
///
/// # Errors
/// When `entries` names a swarm twice.
pub fn encode_scrape(entries: &[(InfoHash, ScrapeEntry)]) -> Result<Vec<u8>, AnnounceError> {
    let files = entries
        .iter()
        .map(|(hash, entry)| {
            let numbers = vec![
                (b"complete".as_slice(), Value::Integer(entry.complete.into())),
                (b"downloaded", Value::Integer(entry.downloaded.into())),
                (b"incomplete", Value::Integer(entry.incomplete.into())),
            ];
            (hash.0.as_slice(), Value::Dictionary(Dictionary::new(numbers)))
        })
        .collect();
    let top = vec![(b"files".as_slice(), Value::Dictionary(Dictionary::new(files)))];
    Ok(Value::Dictionary(Dictionary::new(top)).encode()?)
}

/// Reads the body of a scrape's answer.
///
/// # Errors
/// When it is not bencode, too large, or an entry is malformed.
pub fn decode_scrape(body: &[u8]) -> Result<Vec<(InfoHash, ScrapeEntry)>, AnnounceError> {
    check_size(body.len(), MAX_RESPONSE_BYTES)?;
    let value = Value::decode(body)?;
    let files = value
        .as_dictionary()
        .and_then(|top| top.get("files"))
        .and_then(Value::as_dictionary)
        .ok_or(AnnounceError::Missing("files"))?;
    files
        .iter()
        .map(|(hash, entry)| {
            let entry = entry.as_dictionary().ok_or(AnnounceError::Invalid("files"))?;
            let number = |key| entry.get(key).and_then(Value::as_integer).unwrap_or(0);
            let numbers = ScrapeEntry {
                complete: number("complete"),
                downloaded: number("downloaded"),
                incomplete: number("incomplete"),
            };
            Ok((InfoHash(to_hash(hash, "files")?), numbers))
        })
        .collect()
}

/// A query string, cut but not yet unescaped.
struct Parameters<'a> {
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Parameters<'a> {
    fn read(query: &'a str) -> Result<Parameters<'a>, AnnounceError> {
        check_size(query.len(), MAX_QUERY_BYTES)?;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        Ok(Parameters { pairs })
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = Result<Vec<u8>, AnnounceError>> {
        let named = self.pairs.iter().filter(move |(key, _)| *key == name);
        named.map(move |(_, value)| unescape(value).ok_or(AnnounceError::Invalid(name)))
    }

    fn get(&self, name: &'static str) -> Result<Option<Vec<u8>>, AnnounceError> {
        let mut values = self.all(name);
        let first = values.next().transpose()?;
        if values.next().is_some() { Err(AnnounceError::Repeated(name)) } else { Ok(first) }
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, AnnounceError> {
        let Some(bytes) = self.get(name)? else { return Ok(None) };
        let digits = bytes.iter().all(u8::is_ascii_digit).then_some(bytes).and_then(|b| String::from_utf8(b).ok());
        digits.and_then(|text| text.parse().ok()).map(Some).ok_or(AnnounceError::Invalid(name))
    }

    fn required_number<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, AnnounceError> {
        self.number(name)?.ok_or(AnnounceError::Missing(name))
    }

    fn required_hash(&self, name: &'static str) -> Result<[u8; 20], AnnounceError> {
        to_hash(&self.get(name)?.ok_or(AnnounceError::Missing(name))?, name)
    }
}

fn to_hash(bytes: &[u8], name: &'static str) -> Result<[u8; 20], AnnounceError> {
    bytes.try_into().map_err(|_| AnnounceError::Invalid(name))
}

fn check_size(bytes: usize, limit: usize) -> Result<(), AnnounceError> {
    if bytes > limit { Err(AnnounceError::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash(*b"\x00\xFF&=%+ ~abcdefghijkl"),
            peer_id: PeerId(*b"-RS0100-0123456789ab"),
            port: 6881,
            uploaded: 1,
            downloaded: 2,
            left: u64::MAX,
            event: Some(Event::Started),
            num_want: Some(50),
            compact: true,
            own_kind: false,
            rack: None,
        }
    }

    fn peer(address: &str) -> AnnouncedPeer {
        AnnouncedPeer { address: address.parse().unwrap(), peer_id: None }
    }

    #[test]
    fn a_query_is_escaped_byte_by_byte() {
        let query = request().encode_query();
        assert_eq!(
            query,
            "info_hash=%00%FF%26%3D%25%2B%20~abcdefghijkl&peer_id=-RS0100-0123456789ab&port=6881\
             &uploaded=1&downloaded=2&left=18446744073709551615&compact=1&event=started&numwant=50"
        );
        assert_eq!(AnnounceRequest::decode_query(&query), Ok(request()));
    }

    #[test]
    fn queries_of_other_clients_are_understood() {
        let query = "peer_id=%2DTR3000%2Dabcdefgh+j%6Cm&info_hash=%12%34aaaaaaaaaaaaaaaaaa&port=51413&left=0\
                     &uploaded=0&downloaded=0&numwant=-1&key=5f1c&ip=1.2.3.4&supportcrypto=1&event=&flag";
        let read = AnnounceRequest::decode_query(query).unwrap();
        assert_eq!(read.peer_id, PeerId(*b"-TR3000-abcdefgh+jlm"));
        assert_eq!((read.left, read.event, read.num_want, read.compact), (0, None, None, true));
        assert!(!AnnounceRequest::decode_query(&format!("{query}&compact=0")).unwrap().compact);
    }

    #[test]
    fn bad_queries_name_the_parameter() {
        let good = request().encode_query();
        let table = [
            (good.replace("port=6881", "port=0"), AnnounceError::Invalid("port")),
            (good.replace("port=6881", "port=65536"), AnnounceError::Invalid("port")),
            (good.replace("port=6881", "port=+1"), AnnounceError::Invalid("port")),
            (good.replace("left=", "life="), AnnounceError::Missing("left")),
            (good.replace("left=", "left=-"), AnnounceError::Invalid("left")),
            (good.replace("%00%FF", "%00"), AnnounceError::Invalid("info_hash")),
            (good.replace("%00%FF", "%0"), AnnounceError::Invalid("info_hash")),
            (good.replace("%00%FF", "%0g%FF"), AnnounceError::Invalid("info_hash")),
            (good.replace("peer_id=", "peer="), AnnounceError::Missing("peer_id")),
            (good.replace("started", "paused"), AnnounceError::Invalid("event")),
            (format!("{good}&port=1"), AnnounceError::Repeated("port")),
        ];
        for (query, error) in table {
            assert_eq!(AnnounceRequest::decode_query(&query), Err(error), "{query}");
        }
        let long = "a".repeat(MAX_QUERY_BYTES + 1);
        assert!(matches!(AnnounceRequest::decode_query(&long), Err(AnnounceError::TooLarge { .. })));
    }

    #[test]
    fn compact_answers_carry_both_families() {
        let answer = Answer::Peers(AnnounceResponse {
            interval_seconds: 30,
            complete: Some(1),
            peers: vec![peer("10.0.0.7:6881"), peer("[fd77::1]:80")],
            ..AnnounceResponse::default()
        });
        let bytes = answer.encode(true).unwrap();
        let expected = [
            b"d8:completei1e8:intervali30e5:peers6:\x0a\x00\x00\x07\x1a\xe1".as_slice(),
            b"6:peers618:\xfd\x77\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50e",
        ]
        .concat();
        assert_eq!(bytes, expected);
        assert_eq!(Answer::decode(&bytes), Ok(answer));
    }

    #[test]
    fn dictionary_answers_carry_peer_ids() {
        let named = AnnouncedPeer { peer_id: Some(PeerId([7; 20])), ..peer("10.0.0.7:6881") };
        let answer = Answer::Peers(AnnounceResponse {
            interval_seconds: 30,
            min_interval_seconds: Some(5),
            warning: Some("late".to_owned()),
            peers: vec![named, peer("[fd77::1]:80")],
            ..AnnounceResponse::default()
        });
        assert_eq!(Answer::decode(&answer.encode(false).unwrap()), Ok(answer));

        let mixed = b"d8:intervali30e5:peersld2:ip4:host4:porti1eed2:ip9:127.0.0.14:porti2eed2:ip1:x4:porti-1eei3eee";
        let Answer::Peers(read) = Answer::decode(mixed).unwrap() else { panic!("peers expected") };
        assert_eq!(read.peers, vec![peer("127.0.0.1:2")]);
    }

    #[test]
    fn failures_and_malformed_answers() {
        let refusal = Answer::Failure("this image is not published".to_owned());
        assert_eq!(Answer::decode(&refusal.encode(true).unwrap()), Ok(refusal));
        assert_eq!(Answer::decode(b"d5:peers0:e"), Err(AnnounceError::Missing("interval")));
        assert_eq!(Answer::decode(b"d8:intervali1e5:peers5:abcdee"), Err(AnnounceError::Invalid("peers")));
        assert_eq!(Answer::decode(b"d8:intervali1e6:peers65:abcdee"), Err(AnnounceError::Invalid("peers6")));
        assert!(Answer::decode(b"<html>").is_err());
        assert!(Answer::decode(&vec![b'a'; MAX_RESPONSE_BYTES + 1]).is_err());
        let shouted = b"d14:failure reason5:a\x1b[1me";
        assert_eq!(Answer::decode(shouted), Ok(Answer::Failure("a[1m".to_owned())));
    }

    #[test]
    fn our_own_kind_is_known_and_guided() {
        let rack = Some(RackName::new("row 3/7").unwrap());
        let sent = AnnounceRequest { own_kind: true, rack: rack.clone(), ..request() };
        let query = sent.encode_query();
        assert!(query.ends_with("&rackswarm=1&rack=row%203%2F7"), "{query}");
        assert_eq!(AnnounceRequest::decode_query(&query), Ok(sent));
        let unknown = query.replace("rackswarm=1", "rackswarm=2");
        assert!(!AnnounceRequest::decode_query(&unknown).unwrap().own_kind);
        let nowhere = query.replace("rack=row%203%2F7", "rack=");
        assert_eq!(AnnounceRequest::decode_query(&nowhere), Err(AnnounceError::Invalid("rack")));

        for guidance in [None, Some(Guidance { cooperative: true, rack }), Some(Guidance::default())] {
            let answer =
                Answer::Peers(AnnounceResponse { interval_seconds: 30, guidance, ..AnnounceResponse::default() });
            assert_eq!(Answer::decode(&answer.encode(true).unwrap()), Ok(answer.clone()));
            assert_eq!(Answer::decode(&answer.encode(false).unwrap()), Ok(answer));
        }
        let plain = b"d8:intervali30e5:peers0:9:rackswarmd11:cooperativei1e4:rack2:r7ee";
        let Answer::Peers(read) = Answer::decode(plain).unwrap() else { panic!("peers expected") };
        assert_eq!(read.guidance, Some(Guidance { cooperative: true, rack: Some(RackName::new("r7").unwrap()) }));
    }

    #[test]
    fn scrapes_round_trip() {
        let entries = vec![
            (InfoHash([1; 20]), ScrapeEntry { complete: 1, downloaded: 2, incomplete: 3 }),
            (InfoHash([2; 20]), ScrapeEntry::default()),
        ];
        assert_eq!(decode_scrape(&encode_scrape(&entries).unwrap()), Ok(entries));
        let query = "info_hash=aaaaaaaaaaaaaaaaaaaa&info_hash=%62bbbbbbbbbbbbbbbbbbb";
        assert_eq!(decode_scrape_query(query), Ok(vec![InfoHash([b'a'; 20]), InfoHash([b'b'; 20])]));
        assert_eq!(decode_scrape_query(""), Ok(Vec::new()));
        assert!(decode_scrape_query("info_hash=short").is_err());
    }

    proptest! {
        #[test]
        fn any_identity_survives_the_query(hash: [u8; 20], id: [u8; 20], port in 1u16.., left: u64) {
            let sent = AnnounceRequest { info_hash: InfoHash(hash), peer_id: PeerId(id), port, left, ..request() };
            prop_assert_eq!(AnnounceRequest::decode_query(&sent.encode_query()), Ok(sent));
        }

        #[test]
        fn any_query_is_read_or_refused(query in "\\PC{0,80}") {
            let _ = AnnounceRequest::decode_query(&query);
        }
    }
}
