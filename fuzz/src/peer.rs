//! A stream of frames cut anywhere gives the same frames, and frames encode
//! back to their bytes.

use rackswarm_wire::peer::{
    Frame, FrameDecoder, HANDSHAKE_BYTES, Handshake, Message, PIECE_HEAD_BYTES, encode_piece_head,
};

/// The first two bytes are the number of pieces, the rest a stream, which is
/// also tried as a handshake. Says whether at least one frame decodes.
pub fn check(data: &[u8]) -> bool {
    let [high, low, stream @ ..] = data else { return false };
    if let Some(bytes) = stream.first_chunk::<HANDSHAKE_BYTES>()
        && let Ok(handshake) = Handshake::decode(bytes)
    {
        assert_eq!(handshake.encode(), *bytes);
        return true;
    }
    let decoder = FrameDecoder::new(u16::from_be_bytes([*high, *low]).into(), 0);
    let mut rest = stream;
    let mut frames = 0;
    while let Ok(Some((frame, used))) = decoder.decode(rest) {
        check_frame(&decoder, &frame, &rest[..used]);
        let payload = match frame {
            Frame::Piece(block) => block.length as usize,
            Frame::Message(_) => 0,
        };
        rest = rest.get(used + payload..).unwrap_or_default();
        frames += 1;
    }
    frames > 0
}

fn check_frame(decoder: &FrameDecoder, frame: &Frame, bytes: &[u8]) {
    assert!(bytes.len() <= decoder.buffer_bytes());
    for cut in [0, 1, 4, 5, bytes.len() - 1] {
        let early = decoder.decode(&bytes[..cut.min(bytes.len() - 1)]);
        assert_eq!(early, Ok(None), "a frame decodes only when it is whole");
    }
    let mut encoded = Vec::new();
    match frame {
        Frame::Piece(block) => encoded.extend_from_slice(&encode_piece_head(*block)),
        Frame::Message(Message::Unknown { .. }) => return,
        Frame::Message(message) => message.encode(&mut encoded),
    }
    assert_eq!(encoded, bytes);
    assert!(matches!(frame, Frame::Message(_)) || bytes.len() == PIECE_HEAD_BYTES);
}
