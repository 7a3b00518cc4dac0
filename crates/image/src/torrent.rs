//! The version 1 .torrent of a sealed image (BEP 3, private as in BEP 27).

use wire::metainfo::{Info, Metainfo};

use crate::Error;
use crate::manifest::{Parts, PieceHashes};
use crate::seal::Sealed;

/// The torrent of sealed content, without trackers: those are known only when
/// it is served.
pub(crate) fn of_sealed(name: &str, sealed: &Sealed) -> Result<Metainfo, Error> {
    let info = Info {
        name: name.to_owned(),
        piece_length: sealed.piece_size_bytes,
        length: sealed.size_bytes,
        pieces: Some(sealed.sha1.clone()),
        v2: None,
        private: true,
    };
    Metainfo::new(info, Vec::new()).map_err(bad)
}

/// The same torrent with these trackers. It was written by [`of_sealed`], so
/// its info dictionary has no key that would be lost.
pub(crate) fn with_trackers(metainfo: &Metainfo, announce: &[String]) -> Result<Vec<u8>, Error> {
    Metainfo::new(metainfo.info().clone(), announce.to_vec()).and_then(|metainfo| metainfo.encode()).map_err(bad)
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Metainfo, Error> {
    Metainfo::decode(bytes).map_err(bad)
}

/// What a .torrent tells of an image.
pub(crate) fn parts_of(metainfo: &Metainfo) -> Parts {
    let info = metainfo.info();
    Parts {
        name: info.name.clone(),
        size_bytes: info.length,
        piece_size_bytes: u64::from(info.piece_length),
        digest: None,
        pieces: PieceHashes::Sha1(info.pieces.clone().unwrap_or_default()),
        infohash: Some(metainfo.info_hash()),
    }
}

fn bad(error: wire::metainfo::MetainfoError) -> Error {
    Error::BadTorrent(error.to_string())
}
