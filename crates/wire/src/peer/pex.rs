//! Peer exchange (BEP 11, `ut_pex`).

use std::net::SocketAddr;

use super::PeerError;
use crate::bencode::{Dictionary, Value};
use crate::compact;

/// Most peers that are taken from one message, added and dropped each, both
/// address families together; the rest of a longer message is passed over.
pub const MAX_PEX_PEERS: usize = 50;

/// Largest message that is read, in bytes: BEP 11 lets a first message name
/// more than fifty.
pub const MAX_PEX_BYTES: usize = 16 << 10;

const NAME: &str = "ut_pex";

/// A peer that the sender met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PexPeer {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is known of it: bits of BEP 11, [`PexPeer::SEED`] among them.
    pub flags: u8,
}

impl PexPeer {
    /// It has everything.
    pub const SEED: u8 = 0x02;
    /// It can be connected to: the sender did.
    pub const REACHABLE: u8 = 0x10;
}

/// What changed since the sender's last message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pex {
    /// Peers it is now connected to.
    pub added: Vec<PexPeer>,
    /// Peers it no longer is.
    pub dropped: Vec<SocketAddr>,
}

impl Pex {
    pub(super) fn decode(body: &[u8]) -> Result<Pex, PeerError> {
        if body.len() > MAX_PEX_BYTES {
            return Err(PeerError::extension(NAME, format!("{} bytes, limit {MAX_PEX_BYTES}", body.len())));
        }
        let value = Value::decode(body).map_err(|error| PeerError::extension(NAME, error))?;
        let top = value.as_dictionary().ok_or_else(|| PeerError::extension(NAME, "no dictionary"))?;
        let mut added = Vec::new();
        for (addresses, flags) in [("added", "added.f"), ("added6", "added6.f")] {
            // Absent or short flags mean that nothing is known.
            let flags = top.get(flags).and_then(Value::as_bytes).unwrap_or_default();
            let known = flags.iter().copied().chain(std::iter::repeat(0));
            added.extend(listed(top, addresses)?.zip(known).map(|(address, flags)| PexPeer { address, flags }));
        }
        let mut dropped: Vec<SocketAddr> = listed(top, "dropped")?.collect();
        dropped.extend(listed(top, "dropped6")?);
        added.retain(|peer| peer.address.port() != 0);
        added.truncate(MAX_PEX_PEERS);
        dropped.truncate(MAX_PEX_PEERS);
        Ok(Pex { added, dropped })
    }

    /// Writes at most [`MAX_PEX_PEERS`] of each.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let added = &self.added[..self.added.len().min(MAX_PEX_PEERS)];
        let dropped = &self.dropped[..self.dropped.len().min(MAX_PEX_PEERS)];
        let flags = |v4: bool| -> Vec<u8> {
            added.iter().filter(|peer| peer.address.is_ipv4() == v4).map(|peer| peer.flags).collect()
        };
        let addresses = || added.iter().map(|peer| peer.address);
        let fields: [(&[u8], Vec<u8>); 6] = [
            (b"added", compact::encode_v4(addresses())),
            (b"added.f", flags(true)),
            (b"added6", compact::encode_v6(addresses())),
            (b"added6.f", flags(false)),
            (b"dropped", compact::encode_v4(dropped.iter().copied())),
            (b"dropped6", compact::encode_v6(dropped.iter().copied())),
        ];
        let pairs = fields.iter().map(|(key, bytes)| (*key, Value::Bytes(bytes))).collect();
        // Fixed keys and no nesting: this always encodes.
        out.extend(Value::Dictionary(Dictionary::new(pairs)).encode().unwrap_or_default());
    }
}

/// The addresses under `key`: none when it is absent.
fn listed<'a>(
    top: &Dictionary<'a>,
    key: &'static str,
) -> Result<impl Iterator<Item = SocketAddr> + use<'a>, PeerError> {
    let bytes = top.get(key).and_then(Value::as_bytes).unwrap_or_default();
    let (v4, v6) = if key.ends_with('6') { (&bytes[..0], bytes) } else { (bytes, &bytes[..0]) };
    match (compact::decode_v4(v4), compact::decode_v6(v6)) {
        (Some(v4), Some(v6)) => Ok(v4.chain(v6)),
        _ => Err(PeerError::extension(NAME, format!("{key} ends within an address"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn peer(address: &str, flags: u8) -> PexPeer {
        PexPeer { address: address.parse().unwrap(), flags }
    }

    fn written(pex: &Pex) -> Vec<u8> {
        let mut out = Vec::new();
        pex.put(&mut out);
        out
    }

    #[test]
    fn both_families_travel_as_bep_11_says() {
        let pex = Pex {
            added: vec![peer("10.0.0.7:6881", PexPeer::REACHABLE), peer("[fd77::1]:80", PexPeer::SEED)],
            dropped: vec!["10.0.0.8:1".parse().unwrap()],
        };
        let expected = [
            b"d5:added6:\x0a\x00\x00\x07\x1a\xe17:added.f1:\x106:added618:\xfd\x77".as_slice(),
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x508:added6.f1:\x027:dropped6:\x0a\x00\x00\x08\x00\x01",
            b"8:dropped60:e",
        ]
        .concat();
        assert_eq!(written(&pex), expected);
        assert_eq!(Pex::decode(&expected), Ok(pex));
    }

    #[test]
    fn messages_of_other_clients_are_read() {
        let read = Pex::decode(b"d5:added12:\x0a\0\0\x07\x1a\xe1\x0a\0\0\x08\0\0e").unwrap();
        assert_eq!(read, Pex { added: vec![peer("10.0.0.7:6881", 0)], dropped: vec![] });
        let short_flags = Pex::decode(b"d5:added12:\x0a\0\0\x07\x1a\xe1\x0a\0\0\x08\0\x017:added.f1:\x02e").unwrap();
        assert_eq!(short_flags.added, [peer("10.0.0.7:6881", 2), peer("10.0.0.8:1", 0)]);
        assert_eq!(Pex::decode(b"de"), Ok(Pex::default()));
    }

    #[test]
    fn no_message_brings_more_than_fifty() {
        let many =
            Pex { added: vec![peer("10.0.0.7:6881", 0); 100], dropped: vec!["[fd77::1]:80".parse().unwrap(); 100] };
        let read = Pex::decode(&written(&many)).unwrap();
        assert_eq!((read.added.len(), read.dropped.len()), (MAX_PEX_PEERS, MAX_PEX_PEERS));
        let flood = [b"d5:added1200:".as_slice(), &[1; 1200], b"e"].concat();
        assert_eq!(Pex::decode(&flood).unwrap().added.len(), MAX_PEX_PEERS);
        let large = [b"d5:added16800:".as_slice(), &[1; 16800], b"e"].concat();
        assert!(Pex::decode(&large).is_err());
    }

    #[test]
    fn what_is_cut_says_where() {
        let error = Pex::decode(b"d8:dropped65:abcdee").unwrap_err();
        assert!(error.to_string().contains("dropped6 ends within an address"), "{error}");
        assert!(Pex::decode(b"le").is_err());
        assert!(Pex::decode(b"").is_err());
    }
}
