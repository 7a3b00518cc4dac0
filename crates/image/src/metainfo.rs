//! Torrents of images: made from a file at the disk's speed, and from what
//! sealing found.

use std::path::Path;

use wire::metainfo::{HashesV2, Info, Metainfo, MetainfoError};

use crate::hash::Wanted;
use crate::manifest::{Parts, PieceHashes, check_piece_size, piece_size_for};
use crate::seal::Sealed;
use crate::{Error, Progress, spans};

/// Which hashes a torrent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// SHA-1 of pieces: every client reads it (BEP 3).
    V1,
    /// A tree of SHA-256: the hashes name a bad block, not only a bad piece
    /// (BEP 52).
    V2,
    /// Both. Costs both hashes to make and only one to verify.
    #[default]
    Hybrid,
}

impl Version {
    fn wanted(self) -> Wanted {
        Wanted { sha1: self != Self::V2, roots: self != Self::V1 }
    }
}

/// What a torrent is to be like.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The file name that it suggests; the source's own when not given.
    pub name: Option<String>,
    /// Which hashes it has.
    pub version: Version,
    /// Bytes of a piece, a power of two; [`piece_size_for`] when not given.
    pub piece_length: Option<u64>,
    /// Peers come from the trackers only (BEP 27).
    pub private: bool,
    /// Announce URLs, in the order to try them.
    pub trackers: Vec<String>,
}

/// Makes the torrent of a file or block device, reading and hashing on all
/// cores; holes are not read. Takes some hundred KiB of memory for each core.
///
/// # Errors
/// When the source cannot be read, its size or an option is not allowed, or
/// `progress` asks to stop.
pub fn create(path: &Path, options: &CreateOptions, progress: &mut Progress<'_>) -> Result<Metainfo, Error> {
    let (file, size_bytes) = spans::open_source(path)?;
    let piece_size = options.piece_length.unwrap_or_else(|| u64::from(piece_size_for(size_bytes)));
    let piece_size_bytes = check_piece_size(piece_size)?;
    let own_name = || path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = options.name.clone().or_else(own_name).unwrap_or_default();
    let source = spans::Source { file: &file, path, size_bytes, piece_size_bytes, keep_cached: true };
    let hashes = spans::hash(&source, options.version.wanted(), progress)?;
    let info = Info {
        name,
        piece_length: piece_size_bytes,
        length: size_bytes,
        pieces: hashes.sha1,
        v2: hashes.roots.map(|roots| HashesV2::of(size_bytes, piece_size_bytes, roots)),
        private: options.private,
    };
    Metainfo::new(info, options.trackers.clone()).map_err(bad)
}

/// The private hybrid torrent of sealed content, without trackers: those are
/// known only when it is served.
///
/// # Errors
/// When the name or a size is not one that torrents can have.
pub fn of_sealed(name: &str, sealed: &Sealed) -> Result<Metainfo, Error> {
    let info = Info {
        name: name.to_owned(),
        piece_length: sealed.piece_size_bytes,
        length: sealed.size_bytes,
        pieces: Some(sealed.sha1.clone()),
        v2: Some(HashesV2::of(sealed.size_bytes, sealed.piece_size_bytes, sealed.roots.clone())),
        private: true,
    };
    Metainfo::new(info, Vec::new()).map_err(bad)
}

/// The file of the same torrent with these trackers.
pub(crate) fn with_trackers(metainfo: Metainfo, announce: &[String]) -> Result<Vec<u8>, Error> {
    metainfo.with_trackers(announce.to_vec()).and_then(|metainfo| metainfo.encode()).map_err(bad)
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Metainfo, Error> {
    Metainfo::decode(bytes).map_err(bad)
}

/// What a torrent tells of an image: the stronger hashes where it has both.
pub(crate) fn parts_of(metainfo: &Metainfo) -> Result<Parts, Error> {
    let info = metainfo.info();
    let roots = info.v2.as_ref().and_then(|v2| v2.piece_roots.clone());
    let pieces = match (roots, &info.pieces) {
        (Some(roots), _) => PieceHashes::Roots(roots),
        (None, Some(sha1)) => PieceHashes::Sha1(sha1.clone()),
        (None, None) => return Err(bad(MetainfoError::PieceLayers)),
    };
    Ok(Parts {
        name: info.name.clone(),
        size_bytes: info.length,
        piece_size_bytes: u64::from(info.piece_length),
        digest: None,
        pieces,
        v1: metainfo.v1(),
        v2: metainfo.v2(),
    })
}

fn bad(error: MetainfoError) -> Error {
    Error::BadTorrent(error.to_string())
}
