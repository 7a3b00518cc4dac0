//! The handshake of the extension protocol (BEP 10).

use super::PeerError;
use super::rack::{self, RackHello};
use crate::bencode::{Dictionary, Value};
use crate::text::readable;

/// Largest extension handshake that is read, in bytes.
pub const MAX_EXTENSION_HANDSHAKE_BYTES: usize = 16 << 10;

const NAME: &str = "extension handshake";
const PEX: &str = "ut_pex";
const METADATA: &str = "ut_metadata";
/// Both the extension's name and the key of what we say about it.
const RACK: &str = "rackswarm";

/// The message ids that one side hands out: the other side has to use them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtensionIds {
    /// Peer exchange (BEP 11).
    pub pex: Option<u8>,
    /// Passing on metadata (BEP 9).
    pub metadata: Option<u8>,
    /// Our own messages.
    pub rack: Option<u8>,
}

impl ExtensionIds {
    /// What we hand out, if at all: the decoder reads by these.
    pub const OURS: ExtensionIds = ExtensionIds { pex: Some(1), metadata: Some(2), rack: Some(3) };

    /// No extension at all.
    pub const NONE: ExtensionIds = ExtensionIds { pex: None, metadata: None, rack: None };
}

/// What a client says of itself after the handshake. It may say so again; what
/// a later one leaves out stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtensionHandshake {
    /// The ids that it hands out.
    pub ids: ExtensionIds,
    /// Name and version of the client.
    pub client: Option<String>,
    /// How many requests it keeps before it drops some.
    pub request_queue: Option<u32>,
    /// Size of the info dictionary (BEP 9).
    pub metadata_bytes: Option<u32>,
    /// TCP port on which it listens.
    pub listen_port: Option<u16>,
    /// What our own kind says.
    pub rack: Option<RackHello>,
}

impl ExtensionHandshake {
    /// Fields of a wrong type or range count as absent: other clients put
    /// much into this dictionary.
    pub(super) fn decode(body: &[u8]) -> Result<ExtensionHandshake, PeerError> {
        if body.len() > MAX_EXTENSION_HANDSHAKE_BYTES {
            let why = format!("{} bytes, limit {MAX_EXTENSION_HANDSHAKE_BYTES}", body.len());
            return Err(PeerError::extension(NAME, why));
        }
        let value = Value::decode(body).map_err(|error| PeerError::extension(NAME, error))?;
        let top = value.as_dictionary().ok_or_else(|| PeerError::extension(NAME, "no dictionary"))?;
        let ids = top.get("m").and_then(Value::as_dictionary);
        // Zero means that the extension is switched off.
        let id = |name| ids?.get(name)?.as_integer::<u8>().filter(|id| *id != 0);
        let number = |key| top.get(key).and_then(Value::as_integer::<u32>);
        Ok(ExtensionHandshake {
            ids: ExtensionIds { pex: id(PEX), metadata: id(METADATA), rack: id(RACK) },
            client: top.get("v").and_then(Value::as_bytes).map(readable),
            request_queue: number("reqq"),
            metadata_bytes: number("metadata_size"),
            listen_port: top.get("p").and_then(Value::as_integer).filter(|port| *port != 0),
            rack: top.get(RACK).and_then(Value::as_dictionary).map(RackHello::from_dictionary),
        })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let ids = [(PEX, self.ids.pex), (METADATA, self.ids.metadata), (RACK, self.ids.rack)];
        let ids = ids.iter().filter_map(|(name, id)| Some((name.as_bytes(), Value::Integer((*id)?.into()))));
        let mut pairs = vec![(b"m".as_slice(), Value::Dictionary(Dictionary::new(ids.collect())))];
        let numbers: [(&[u8], Option<u32>); 3] = [
            (b"reqq", self.request_queue),
            (b"metadata_size", self.metadata_bytes),
            (b"p", self.listen_port.map(u32::from)),
        ];
        pairs.extend(numbers.into_iter().filter_map(|(key, number)| Some((key, Value::Integer(number?.into())))));
        pairs.extend(self.client.as_ref().map(|name| (b"v".as_slice(), Value::Bytes(name.as_bytes()))));
        pairs.extend(self.rack.as_ref().map(|hello| (RACK.as_bytes(), rack::to_dictionary(hello))));
        // Fixed keys, two levels: this always encodes.
        out.extend(Value::Dictionary(Dictionary::new(pairs)).encode().unwrap_or_default());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::peer::RackName;

    #[test]
    fn handshakes_of_other_clients_are_read() {
        let body = "d1:md11:LT_metadatai1e6:ut_pexi2e7:\u{b5}T_PEXi9ee1:pi6881e4:reqqi250e1:v13:\u{b5}Torrent 1.2e";
        let read = ExtensionHandshake::decode(body.as_bytes()).unwrap();
        let expected = ExtensionHandshake {
            ids: ExtensionIds { pex: Some(2), ..ExtensionIds::NONE },
            client: Some("\u{b5}Torrent 1.2".to_owned()),
            request_queue: Some(250),
            listen_port: Some(6881),
            ..ExtensionHandshake::default()
        };
        assert_eq!(read, expected);
        assert_eq!(ExtensionHandshake::decode(b"de").unwrap(), ExtensionHandshake::default());
    }

    #[test]
    fn what_is_out_of_range_counts_as_absent() {
        let body = b"d1:md6:ut_pexi256e11:ut_metadatai0ee13:metadata_sizei-1e1:pi0e4:reqq1:x1:v7:a\x1b[1m\xffbe";
        assert!(ExtensionHandshake::decode(body).is_err(), "keys out of order");
        let body = b"d1:md11:ut_metadatai0e6:ut_pexi256ee13:metadata_sizei-1e1:pi0e9:rackswarmi1e4:reqq1:x1:v3:a\x1bbe";
        let read = ExtensionHandshake::decode(body).unwrap();
        assert_eq!(read, ExtensionHandshake { client: Some("ab".to_owned()), ..ExtensionHandshake::default() });

        let hello = |body: &[u8]| ExtensionHandshake::decode(body).unwrap().rack.unwrap();
        let least = RackHello { rack: None, max_request_bytes: 16384, offers: false, zstd: false };
        assert_eq!(hello(b"d9:rackswarmdee"), least);
        assert_eq!(hello(b"d9:rackswarmd11:max_requesti1e4:rack1:\x004:zstdi2eee"), least);
        let most = hello(b"d9:rackswarmd11:max_requesti4294967295e4:rack2:r74:zstdi1eee");
        assert_eq!((most.max_request_bytes, most.zstd), (64 << 20, true));
        assert_eq!(most.rack, Some(RackName::new("r7").unwrap()));
    }

    #[test]
    fn ours_reads_as_bep_10_says() {
        let ours = ExtensionHandshake {
            ids: ExtensionIds::OURS,
            client: Some("Rackswarm".to_owned()),
            request_queue: Some(500),
            metadata_bytes: Some(31235),
            listen_port: Some(6881),
            rack: Some(RackHello {
                rack: Some(RackName::new("r7").unwrap()),
                max_request_bytes: 1 << 20,
                offers: true,
                zstd: true,
            }),
        };
        let mut out = Vec::new();
        ours.put(&mut out);
        let text = "d1:md9:rackswarmi3e11:ut_metadatai2e6:ut_pexi1ee13:metadata_sizei31235e1:pi6881e\
                    9:rackswarmd11:max_requesti1048576e6:offersi1e4:rack2:r74:zstdi1ee4:reqqi500e1:v9:Rackswarme";
        assert_eq!(String::from_utf8(out).unwrap(), text);
        assert_eq!(ExtensionHandshake::decode(text.as_bytes()), Ok(ours));
    }

    #[test]
    fn what_is_no_dictionary_or_too_large_is_refused() {
        for bad in [b"".as_slice(), b"le", b"d1:me", b"d1:mdee "] {
            assert!(matches!(ExtensionHandshake::decode(bad), Err(PeerError::Extension { .. })));
        }
        let large = format!("d1:v{}:{}e", MAX_EXTENSION_HANDSHAKE_BYTES, "x".repeat(MAX_EXTENSION_HANDSHAKE_BYTES));
        assert!(ExtensionHandshake::decode(large.as_bytes()).unwrap_err().to_string().contains("limit 16384"));
    }
}
