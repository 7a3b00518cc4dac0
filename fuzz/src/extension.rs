//! What an extension message says survives a round trip: extension handshake,
//! peer exchange, metadata, and our own.

use rackswarm_wire::peer::{
    Extended, Frame, FrameDecoder, MAX_PEX_PEERS, METADATA_PIECE_BYTES, Message, MetadataMessage,
};

use super::peer::check_message;

/// `data` is the extended message id and the body of one message. Says whether
/// it is one that we read.
pub fn check(data: &[u8]) -> bool {
    let Ok(length) = u32::try_from(data.len() + 1) else { return false };
    let frame = [length.to_be_bytes().as_slice(), &[20], data].concat();
    let decoder = FrameDecoder::new(8, 0);
    match decoder.decode(&frame) {
        Ok(Some((Frame::Message(Message::Extended(extended)), used))) => {
            assert_eq!(used, frame.len());
            check_bounds(&extended);
            let known = !matches!(extended, Extended::Unknown { .. });
            check_message(&decoder, &Message::Extended(extended), &frame);
            known
        }
        Ok(Some((Frame::Packed { .. }, _))) => true,
        Ok(_) | Err(_) => false,
    }
}

fn check_bounds(extended: &Extended) {
    match extended {
        Extended::Pex(pex) => {
            assert!(pex.added.len() <= MAX_PEX_PEERS && pex.dropped.len() <= MAX_PEX_PEERS);
            assert!(pex.added.iter().all(|peer| peer.address.port() != 0));
        }
        Extended::Metadata(message) => {
            let MetadataMessage::Data { piece, total_bytes, bytes } = &**message else { return };
            assert!(bytes.len() <= METADATA_PIECE_BYTES as usize);
            assert!(piece * METADATA_PIECE_BYTES < *total_bytes);
        }
        Extended::Handshake(handshake) => {
            assert!(handshake.client.as_ref().is_none_or(|name| name.chars().count() <= 300));
        }
        _ => {}
    }
}
