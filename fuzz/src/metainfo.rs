//! A torrent keeps its info-hash through any number of hands.

use rackswarm_wire::metainfo::Metainfo;

/// Says whether `data` decodes; panics when it does not survive encoding.
pub fn check(data: &[u8]) -> bool {
    let Ok(torrent) = Metainfo::decode(data) else { return false };
    let again = torrent.encode().expect("a decoded torrent can be written");
    let again = Metainfo::decode(&again).expect("a written torrent can be read");
    assert_eq!(again, torrent);
    assert_eq!(again.info_hash(), torrent.info_hash());
    let info = torrent.info();
    let pieces = info.length.div_ceil(info.piece_length.into());
    assert!(info.pieces.as_ref().is_none_or(|hashes| hashes.len() as u64 == pieces));
    assert!(
        info.v2.as_ref().is_none_or(|v2| v2.piece_roots.as_ref().is_some_and(|roots| roots.len() as u64 == pieces))
    );
    let _ = Metainfo::from_info(torrent.raw_info(), Vec::new()).expect("its info dictionary can be read alone");
    true
}
