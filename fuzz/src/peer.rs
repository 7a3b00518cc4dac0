//! A stream of frames cut anywhere gives the same frames, and frames mean the
//! same after a round trip.

use rackswarm_wire::peer::{
    Extended, ExtensionIds, Frame, FrameDecoder, Message, encode_packed_head, encode_piece_head,
};

/// The first two bytes are the number of pieces, the rest a stream. Says
/// whether at least one frame decodes.
pub fn check(data: &[u8]) -> bool {
    let [high, low, stream @ ..] = data else { return false };
    let pieces = u16::from_be_bytes([*high, *low]);
    let mut decoder = FrameDecoder::new(pieces.into(), 0);
    if pieces % 2 == 1 {
        decoder.set_block_limit(1 << 20);
    }
    let mut rest = stream;
    let mut frames = 0;
    while let Ok(Some((frame, used))) = decoder.decode(rest) {
        check_frame(&decoder, &frame, &rest[..used]);
        let payload_bytes = match frame {
            Frame::Piece(block) => block.length,
            Frame::Packed { packed_bytes, .. } => packed_bytes,
            Frame::Message(_) => 0,
        };
        assert!(payload_bytes <= decoder.block_limit());
        rest = rest.get(used + payload_bytes as usize..).unwrap_or_default();
        frames += 1;
    }
    frames > 0
}

fn check_frame(decoder: &FrameDecoder, frame: &Frame, bytes: &[u8]) {
    assert!(bytes.len() <= decoder.buffer_bytes());
    for cut in [0, 1, 4, 5, 6, bytes.len() - 1] {
        let early = decoder.decode(&bytes[..cut.min(bytes.len() - 1)]);
        assert_eq!(early, Ok(None), "a frame decodes only when it is whole");
    }
    match frame {
        Frame::Piece(block) => assert_eq!(encode_piece_head(*block), bytes),
        Frame::Packed { block, packed_bytes } => {
            assert!(*packed_bytes < block.length && block.length <= decoder.block_limit());
            assert_eq!(encode_packed_head(bytes[5], *block, *packed_bytes), bytes);
        }
        Frame::Message(message) => check_message(decoder, message, bytes),
    }
}

/// Extension messages may lose what we do not read, but then stay the same;
/// all others have one encoding.
pub(crate) fn check_message(decoder: &FrameDecoder, message: &Message, bytes: &[u8]) {
    let mut encoded = Vec::new();
    message.encode(&ExtensionIds::OURS, &mut encoded);
    match message {
        Message::Unknown { .. } | Message::Extended(Extended::Unknown { .. }) => assert!(encoded.is_empty()),
        Message::Extended(_) => {
            let again = Frame::Message(message.clone());
            assert_eq!(decoder.decode(&encoded), Ok(Some((again, encoded.len()))));
        }
        _ => assert_eq!(encoded, bytes),
    }
}
