//! A torrent keeps its info-hash through any number of hands.

use rackswarm_wire::metainfo::Metainfo;

/// Says whether `data` decodes; panics when it does not survive encoding.
pub fn check(data: &[u8]) -> bool {
    let Ok(torrent) = Metainfo::decode(data) else { return false };
    let again = torrent.encode().expect("a decoded torrent can be written");
    let again = Metainfo::decode(&again).expect("a written torrent can be read");
    assert_eq!(again, torrent);
    assert_eq!(again.info_hash(), torrent.info_hash());
    let pieces = torrent.info().length.div_ceil(torrent.info().piece_length.into());
    assert_eq!(torrent.info().pieces.len() as u64, pieces);
    true
}
