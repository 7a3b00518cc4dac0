//! Hashes that peers send are climbed or refused, and never by more work than
//! their number asks for.

use rackswarm_wire::metainfo::merkle::{FileTree, climb, uncles};
use rackswarm_wire::peer::{Frame, FrameDecoder, MAX_HASHES, MAX_PROOF_LAYERS, Message};

/// The first eight bytes are the length of a file, the ninth the size of its
/// pieces, the rest is the body of a `hashes` message. Says whether it is one.
pub fn check(data: &[u8]) -> bool {
    let Some((length, [shift, body @ ..])) = data.split_first_chunk::<8>() else { return false };
    let tree = FileTree::new(u64::from_be_bytes(*length), (16 << 10) << (shift % 13));
    let Ok(size) = u32::try_from(body.len() + 1) else { return false };
    let frame = [size.to_be_bytes().as_slice(), &[22], body].concat();
    let Ok(Some((Frame::Message(Message::Hashes(range, hashes)), _))) = FrameDecoder::new(8, 0).decode(&frame) else {
        return false;
    };
    assert!(hashes.len() <= (MAX_HASHES + MAX_PROOF_LAYERS) as usize);
    assert_eq!(uncles(&range).count(), range.uncles() as usize);
    let climbed = climb(&range, &hashes);
    assert_eq!(climbed.is_some(), hashes.len() == (range.length + range.uncles()) as usize);
    if let (true, Some((layer, index, _))) = (tree.allows(&range), climbed) {
        assert!(layer <= tree.height() && index < tree.nodes(layer), "{range:?} climbs out of {tree:?}");
        assert!(uncles(&range).all(|(layer, _)| layer < tree.height()));
    }
    true
}
