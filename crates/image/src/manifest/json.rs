//! `manifest.json`, the form in which the registry keeps a manifest.

use data_encoding::BASE64;
use fleet::ids::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wire::metainfo::InfoHashError;

use super::{Manifest, Parts, PieceHashes};
use crate::Error;

/// Version of the manifest format that this program writes. Version 1 had a
/// plain SHA-256 of each piece; the registry seals such images anew.
const VERSION: u32 = 2;

impl Manifest {
    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// When it is not JSON, of a newer version, or inconsistent; says where.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let version: VersionOnly = serde_json::from_slice(text)
            .map_err(|error| Error::BadManifest(format!("it is not a manifest: {error}")))?;
        expect_version(version.version)?;
        let file: OnDisk = serde_json::from_slice(text).map_err(|error| Error::BadManifest(error.to_string()))?;
        file.try_into()
    }

    /// The text of `manifest.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and numbers only: there is nothing that could fail.
        serde_json::to_string_pretty(&self).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    name: String,
    size_bytes: u64,
    piece_size_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    infohash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    infohash_v2: Option<String>,
    pieces: HashesOnDisk,
}

/// All hashes joined, in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum HashesOnDisk {
    Roots(String),
    Sha1(String),
}

impl From<&Manifest> for OnDisk {
    fn from(manifest: &Manifest) -> Self {
        Self {
            version: VERSION,
            name: manifest.name.clone(),
            size_bytes: manifest.size_bytes,
            piece_size_bytes: u64::from(manifest.piece_size_bytes),
            digest: manifest.digest,
            infohash: manifest.v1.map(|hash| hash.to_string()),
            infohash_v2: manifest.v2.map(|hash| hash.to_string()),
            pieces: match &manifest.pieces {
                PieceHashes::Roots(hashes) => HashesOnDisk::Roots(BASE64.encode(hashes.as_flattened())),
                PieceHashes::Sha1(hashes) => HashesOnDisk::Sha1(BASE64.encode(hashes.as_flattened())),
            },
        }
    }
}

impl TryFrom<OnDisk> for Manifest {
    type Error = Error;
    fn try_from(file: OnDisk) -> Result<Self, Error> {
        expect_version(file.version)?;
        let bad = |error: InfoHashError| Error::BadManifest(error.to_string());
        let v1 = file.infohash.map(|text| text.parse()).transpose().map_err(bad)?;
        let v2 = file.infohash_v2.map(|text| text.parse()).transpose().map_err(bad)?;
        let pieces = match &file.pieces {
            HashesOnDisk::Roots(text) => PieceHashes::Roots(split(text)?),
            HashesOnDisk::Sha1(text) => PieceHashes::Sha1(split(text)?),
        };
        Self::new(Parts {
            name: file.name,
            size_bytes: file.size_bytes,
            piece_size_bytes: file.piece_size_bytes,
            digest: file.digest,
            pieces,
            v1,
            v2,
        })
    }
}

fn expect_version(found: u32) -> Result<(), Error> {
    match found {
        VERSION => Ok(()),
        0..VERSION => Err(Error::OldManifest { found, known: VERSION }),
        _ => Err(Error::ManifestVersion { found, known: VERSION }),
    }
}

fn split<const N: usize>(text: &str) -> Result<Vec<[u8; N]>, Error> {
    let bytes = BASE64
        .decode(text.as_bytes())
        .map_err(|error| Error::BadManifest(format!("the piece hashes are not base64: {error}")))?;
    let (hashes, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() {
        Ok(hashes.to_vec())
    } else {
        Err(Error::BadManifest(format!("the piece hashes are {} bytes, no multiple of {N}", bytes.len())))
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        OnDisk::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OnDisk::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{PIECE, parts};
    use super::*;
    use crate::hash::sha1;

    #[test]
    fn damaged_json_is_refused_with_the_reason() {
        let text = Manifest::new(parts(&vec![1; PIECE * 2])).unwrap().to_json();
        let refuse = |from: &str, to: &str, expected: &str| {
            assert!(text.contains(from), "{from} in {text}");
            let sentence = Manifest::from_json(text.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{sentence}");
        };
        refuse("\"version\": 2", "\"version\": 3", "has version 3, this program reads version 2: update");
        refuse("\"version\": 2", "\"version\": 1", "version 1");
        refuse("\"version\": 2", "\"vision\": 2", "missing field `version`");
        refuse("cdcd", "zzzz", "64");
        refuse("\"size_bytes\": 32768", "\"size_bytes\": 32769", "are 3 pieces");
        refuse("\"roots\": \"", "\"roots\": \"AAAA", "no multiple of 32");
        refuse("\"roots\": \"", "\"roots\": \"!", "not base64");
        refuse("\"roots\": \"", "\"md5\": \"", "unknown variant");
        refuse("\"name\"", "\"colour\": 1, \"name\"", "unknown field `colour`");
        refuse("sha256:", "sha512:", "is not an image digest");
        refuse("abab", "zzzz", "40 hexadecimal digits");
        assert!(Manifest::from_json(b"").unwrap_err().to_string().contains("not a manifest"));
        assert!(Manifest::from_json(&text.as_bytes()[..text.len() / 2]).is_err());
    }

    proptest! {
        #[test]
        fn json_round_trips(content in prop::collection::vec(any::<u8>(), 1..100_000), sha1_only in any::<bool>()) {
            let mut parts = parts(&content);
            if sha1_only {
                parts.pieces = PieceHashes::Sha1(content.chunks(PIECE).map(sha1).collect());
                parts.digest = None;
                parts.v1 = None;
                parts.v2 = None;
            }
            let manifest = Manifest::new(parts).unwrap();
            prop_assert_eq!(&Manifest::from_json(manifest.to_json().as_bytes()).unwrap(), &manifest);
            let embedded: Manifest = serde_json::from_str(&serde_json::to_string(&manifest).unwrap()).unwrap();
            prop_assert_eq!(&embedded, &manifest);
        }

        #[test]
        fn no_bytes_make_from_json_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::from_json(&text);
        }
    }
}
