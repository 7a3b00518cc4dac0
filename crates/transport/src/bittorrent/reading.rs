//! The receiving half of a connection. Payloads go from the socket straight
//! into their piece, and the task sleeps until a whole message is there.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use swarm::{Peer, Shape};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use wire::peer::{Bitfield, Block, Extended, Frame, FrameDecoder, Message};

use super::drive::Event;
use super::pace::MAX_CHUNK_BYTES;
use super::packing::Unpacker;
use super::pool::{Landing, Lent, Pool, Yard};
use super::sockets::wake_reader_at;

/// What is read ahead while no payload is expected: a few small messages, or
/// the head of a payload. More would have to be copied.
const HEADS_BYTES: usize = 4 << 10;

/// Longest frame that is not a payload or a bitfield.
const FRAME_LIMIT_BYTES: u32 = 64 << 10;

/// What is read of a payload that nobody wants, at once.
const SINK_BYTES: usize = 16 << 10;

/// Wakes the reader for payloads of this length only when they are whole; of
/// longer ones parts are fetched, so that the window never closes.
const SLEEP_BYTES: usize = 256 << 10;

/// A stream that can be told when to wake its reader.
pub(super) trait Source: AsyncRead + Unpin {
    fn wake_at(&self, bytes: usize);
}

impl Source for OwnedReadHalf {
    fn wake_at(&self, bytes: usize) {
        wake_reader_at(AsRef::<TcpStream>::as_ref(self), bytes);
    }
}

/// What the reading task needs of its swarm.
pub(super) struct Reading {
    pub(super) peer: Peer,
    pub(super) shape: Shape,
    pub(super) yard: Arc<Yard>,
    pub(super) pool: Arc<Pool>,
    pub(super) unpacker: Arc<Unpacker>,
    pub(super) events: mpsc::Sender<Event>,
    /// Bytes received by the process's swarm, heads and messages included.
    pub(super) received: Arc<AtomicU64>,
}

/// A payload as it came.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) block: Block,
    pub(super) landed: Landing,
}

/// Reads until the peer closes, breaks the protocol, or the swarm ends.
pub(super) async fn read(stream: OwnedReadHalf, reading: Reading) {
    let (peer, events) = (reading.peer, reading.events.clone());
    let mut reader = Reader::new(stream, reading);
    let why = loop {
        let event = match reader.next().await {
            Ok(Heard::Message(message)) => Event::Said(peer, message),
            Ok(Heard::Chunk(chunk)) => Event::Chunk(peer, chunk),
            Err(error) => break error,
        };
        if events.send(event).await.is_err() {
            return;
        }
    };
    let _ = events.send(Event::Closed(peer, why)).await;
}

#[derive(Debug)]
enum Heard {
    Message(Message),
    Chunk(Chunk),
}

struct Reader<S> {
    stream: S,
    swarm: Reading,
    decoder: FrameDecoder,
    /// Bytes read and not yet used: `heads[start..end]`.
    heads: Vec<u8>,
    start: usize,
    end: usize,
    /// The mark that the socket has now.
    mark: usize,
    /// What the bitfields so far said.
    bitfield: Option<Bitfield>,
    /// What a repeated bitfield said anew.
    haves: VecDeque<u32>,
}

impl<S: Source> Reader<S> {
    fn new(stream: S, swarm: Reading) -> Self {
        let decoder = FrameDecoder::new(swarm.shape.pieces(), FRAME_LIMIT_BYTES);
        Self {
            stream,
            swarm,
            decoder,
            heads: vec![0; HEADS_BYTES],
            start: 0,
            end: 0,
            mark: 1,
            bitfield: None,
            haves: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> io::Result<Heard> {
        loop {
            if let Some(piece) = self.haves.pop_front() {
                return Ok(Heard::Message(Message::Have(piece)));
            }
            match self.decoder.decode(&self.heads[self.start..self.end]).map_err(invalid)? {
                None => self.fill().await?,
                Some((Frame::Message(message), used)) => {
                    self.start += used;
                    self.agree(&message);
                    if let Some(message) = self.first_bitfield(message) {
                        return Ok(Heard::Message(message));
                    }
                }
                Some((Frame::Piece(block), used)) => {
                    self.start += used;
                    self.expect_sane(block)?;
                    let landed = self.payload(block).await?;
                    return Ok(Heard::Chunk(Chunk { block, landed }));
                }
                Some((Frame::Packed { block, packed_bytes }, used)) => {
                    self.start += used;
                    self.expect_sane(block)?;
                    let landed = self.packed(block, packed_bytes as usize).await?;
                    return Ok(Heard::Chunk(Chunk { block, landed }));
                }
            }
        }
    }

    /// Our own kind was told that it may send longer payloads.
    fn agree(&mut self, message: &Message) {
        if let Message::Extended(Extended::Handshake(handshake)) = message
            && handshake.rack.is_some()
        {
            self.decoder.set_block_limit(MAX_CHUNK_BYTES);
        }
    }

    /// aria2 (seen with 1.36.0) sends a bitfield again in place of twenty or
    /// more `have` messages, against BEP 3. Each piece in it that is new stands
    /// for one `have`, so a peer that repeats itself gains nothing by it.
    fn first_bitfield(&mut self, message: Message) -> Option<Message> {
        let Message::Bitfield(bitfield) = &message else { return Some(message) };
        let Some(known) = &mut self.bitfield else {
            self.bitfield = Some(bitfield.clone());
            return Some(message);
        };
        known.merge(bitfield, |piece| self.haves.push_back(piece));
        None
    }

    /// Before any of its bytes are waited for: a payload lies in the image.
    fn expect_sane(&self, block: Block) -> io::Result<()> {
        if self.swarm.shape.contains(block) {
            return Ok(());
        }
        Err(invalid(format!("it sent bytes at {} of piece {}, outside the image", block.offset, block.piece)))
    }

    async fn payload(&mut self, block: Block) -> io::Result<Landing> {
        let mut landing = self.swarm.yard.claim(self.swarm.peer, block);
        let length = block.length as usize;
        match &mut landing {
            Landing::Place(claim) => {
                let claim = &*claim;
                self.receive(length, |at, read| claim.with(|place| read(place.get_mut(at..).unwrap_or_default())))
                    .await?;
            }
            Landing::Aside(bytes) => self.receive(length, |at, read| read(&mut bytes[at..])).await?,
            Landing::Nowhere => self.pass_over(length).await?,
        }
        Ok(landing)
    }

    /// Receives bytes that nobody wants.
    async fn pass_over(&mut self, length: usize) -> io::Result<()> {
        let mut sink = vec![0; SINK_BYTES.min(length)];
        self.receive(length, |at, read| {
            let most = sink.len().min(length - at);
            read(&mut sink[..most])
        })
        .await
    }

    /// The packed bytes are fewer than the block's, which the decoder has
    /// checked, so a buffer of the block's length always suffices.
    async fn packed(&mut self, block: Block, packed_bytes: usize) -> io::Result<Landing> {
        let mut landing = self.swarm.yard.claim(self.swarm.peer, block);
        if matches!(landing, Landing::Nowhere) {
            self.pass_over(packed_bytes).await?;
            return Ok(landing);
        }
        let mut packed = Lent::of(&self.swarm.pool, packed_bytes);
        self.receive(packed_bytes, |at, read| read(&mut packed[at..])).await?;
        match &mut landing {
            Landing::Place(claim) => claim.with(|place| self.swarm.unpacker.unpack(&packed, place))?,
            Landing::Aside(bytes) => self.swarm.unpacker.unpack(&packed, bytes)?,
            Landing::Nowhere => {}
        }
        Ok(landing)
    }

    /// Reads exactly `length` bytes. `place` is called with the number that is
    /// there and with what reads into the bytes it passes on.
    async fn receive(
        &mut self,
        length: usize,
        mut place: impl FnMut(usize, &mut dyn FnMut(&mut [u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>>,
    ) -> io::Result<()> {
        let mut there = 0;
        while there < length && self.start < self.end {
            let waiting = &self.heads[self.start..self.end.min(self.start + length - there)];
            let copied = place(there, &mut |into| {
                let count = waiting.len().min(into.len());
                into[..count].copy_from_slice(&waiting[..count]);
                Poll::Ready(Ok(count))
            });
            let Poll::Ready(copied) = copied else { break };
            let copied = copied?;
            self.start += copied;
            there += copied;
        }
        while there < length {
            let wanted = (length - there).min(SLEEP_BYTES);
            let (stream, mark) = (&mut self.stream, &mut self.mark);
            let got = poll_fn(|context| {
                let polled = place(there, &mut |into| poll_read(stream, context, into));
                sleep_until(stream, mark, wanted, polled)
            })
            .await?;
            self.swarm.received.fetch_add(got as u64, Ordering::Relaxed);
            there += got;
        }
        Ok(())
    }

    /// Reads ahead. The buffer grows for the rare long message and shrinks
    /// again after it.
    async fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.heads.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.heads.len() {
            let grown = (self.heads.len() * 2).min(self.decoder.buffer_bytes().max(HEADS_BYTES));
            self.heads.resize(grown, 0);
        } else if self.end == 0 && self.heads.len() > HEADS_BYTES {
            self.heads = vec![0; HEADS_BYTES];
        }
        let (stream, mark, end) = (&mut self.stream, &mut self.mark, self.end);
        let heads = &mut self.heads;
        let got = poll_fn(|context| {
            let polled = poll_read(stream, context, &mut heads[end..]);
            sleep_until(stream, mark, 1, polled)
        })
        .await?;
        self.swarm.received.fetch_add(got as u64, Ordering::Relaxed);
        self.end += got;
        Ok(())
    }
}

fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    context: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(into);
    match Pin::new(stream).poll_read(context, &mut buffer) {
        Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Ok(())) => Poll::Ready(Ok(buffer.filled().len())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Pending,
    }
}

/// When the reader is about to sleep, tells the socket for how much.
fn sleep_until<S: Source>(
    stream: &S,
    mark: &mut usize,
    bytes: usize,
    polled: Poll<io::Result<usize>>,
) -> Poll<io::Result<usize>> {
    if polled.is_pending() && *mark != bytes {
        *mark = bytes;
        stream.wake_at(bytes);
    }
    polled
}

pub(super) fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use wire::peer::{BLOCK_BYTES, ExtensionHandshake, ExtensionIds, RackHello, encode_packed_head, encode_piece_head};

    const PIECE: u32 = 256 << 10;

    /// Gives its bytes a few at a time, as a network does.
    struct Drops {
        bytes: Vec<u8>,
        at: usize,
        drop_bytes: usize,
        marks: Arc<Mutex<Vec<usize>>>,
        dry: bool,
    }

    impl AsyncRead for Drops {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.dry && self.at < self.bytes.len() {
                self.dry = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.dry = false;
            let count = self.drop_bytes.min(into.remaining()).min(self.bytes.len() - self.at);
            into.put_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Poll::Ready(Ok(()))
        }
    }

    impl Source for Drops {
        fn wake_at(&self, bytes: usize) {
            self.marks.lock().unwrap().push(bytes);
        }
    }

    fn reader(bytes: Vec<u8>, drop_bytes: usize) -> Reader<Drops> {
        let shape = Shape::new(u64::from(PIECE) * 3 + 1696, PIECE).unwrap();
        let pool = Arc::new(Pool::new(PIECE as usize, 2));
        let yard = Arc::new(Yard::new(shape, Arc::clone(&pool)));
        let (events, _) = mpsc::channel(1);
        let reading =
            Reading { peer: Peer(0), shape, yard, pool, unpacker: Arc::default(), events, received: Arc::default() };
        Reader::new(Drops { bytes, at: 0, drop_bytes, marks: Arc::default(), dry: false }, reading)
    }

    /// Requests a whole piece.
    fn expect(reader: &Reader<Drops>, piece: u32) {
        let Reading { peer, shape, yard, .. } = &reader.swarm;
        yard.expect(*peer, Block { piece, offset: 0, length: shape.piece_bytes(piece) });
    }

    fn encode(message: &Message, out: &mut Vec<u8>) {
        message.encode(&ExtensionIds::OURS, out);
    }

    fn piece(block: Block, payload: &[u8]) -> Vec<u8> {
        [encode_piece_head(block).as_slice(), payload].concat()
    }

    fn hello() -> Message {
        let hello = RackHello { rack: None, max_request_bytes: PIECE, offers: false, zstd: true };
        ExtensionHandshake { rack: Some(hello), ..ExtensionHandshake::default() }.into()
    }

    #[tokio::test]
    async fn messages_and_payloads_come_in_their_order_however_the_network_cuts_them() {
        let block = Block { piece: 1, offset: 16384, length: 16384 };
        let mut bytes = Vec::new();
        encode(&Message::Unchoke, &mut bytes);
        bytes.extend(piece(block, &[7; 16384]));
        encode(&Message::Have(2), &mut bytes);
        for drop_bytes in [1, 5, 1000, 4096, 1 << 20] {
            let mut reader = reader(bytes.clone(), drop_bytes);
            expect(&reader, 1);
            assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Unchoke))));
            let Ok(Heard::Chunk(chunk)) = reader.next().await else { panic!("no payload") };
            let Landing::Place(claim) = chunk.landed else { panic!("not in its place") };
            assert_eq!(chunk.block, block);
            claim.with(|place| assert_eq!(place, [7; 16384]));
            assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(2)))));
            assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(reader.swarm.received.load(Ordering::Relaxed), bytes.len() as u64);
        }
    }

    #[tokio::test]
    async fn the_reader_sleeps_until_a_payload_is_whole() {
        let block = Block { piece: 0, offset: 0, length: 16384 };
        let mut reader = reader(piece(block, &[1; 16384]), 4096);
        expect(&reader, 0);
        assert!(reader.next().await.is_ok());
        let marks = reader.stream.marks.lock().unwrap().clone();
        assert_eq!(marks, [16384 - (4096 - 13), 16384 - (8192 - 13), 16384 - (12288 - 13), 13]);
    }

    #[tokio::test]
    async fn payloads_that_cannot_be_are_refused_before_they_are_waited_for() {
        for block in [
            Block { piece: 1, offset: 0, length: BLOCK_BYTES + 1 },
            Block { piece: 9, offset: 0, length: 16384 },
            Block { piece: 3, offset: 0, length: 1697 },
            Block { piece: 1, offset: u32::MAX, length: 1 },
        ] {
            let error = reader(encode_piece_head(block).to_vec(), 4096).next().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{block:?}");
        }
    }

    #[tokio::test]
    async fn long_payloads_come_once_they_are_agreed() {
        let block = Block { piece: 2, offset: 0, length: PIECE };
        let payload = vec![3; PIECE as usize];
        assert!(reader(piece(block, &payload), 1 << 20).next().await.is_err());
        let mut bytes = Vec::new();
        encode(&hello(), &mut bytes);
        bytes.extend(piece(block, &payload));
        let mut reader = reader(bytes, 1 << 20);
        expect(&reader, 2);
        assert!(matches!(reader.next().await, Ok(Heard::Message(_))));
        assert!(matches!(reader.next().await, Ok(Heard::Chunk(Chunk { landed: Landing::Place(_), .. }))));
    }

    #[tokio::test]
    async fn packed_payloads_unpack_into_their_place_and_lies_end_the_connection() {
        let block = Block { piece: 0, offset: 32768, length: 65536 };
        let packed = zstd::bulk::compress(&[5; 65536], 1).unwrap();
        let mut bytes = Vec::new();
        encode(&hello(), &mut bytes);
        let rack = ExtensionIds::OURS.rack.unwrap();
        bytes.extend(encode_packed_head(rack, block, packed.len() as u32));
        bytes.extend(&packed);
        let shorter = Block { length: 32768, ..block };
        bytes.extend(encode_packed_head(rack, shorter, packed.len() as u32));
        bytes.extend(&packed);
        let mut reader = reader(bytes, 100);
        expect(&reader, 0);
        assert!(matches!(reader.next().await, Ok(Heard::Message(_))));
        let Ok(Heard::Chunk(Chunk { landed: Landing::Place(claim), .. })) = reader.next().await else { panic!() };
        claim.with(|place| assert!(place.iter().all(|byte| *byte == 5) && place.len() == 65536));
        drop(claim);
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn payloads_that_nobody_asked_for_take_no_memory() {
        let block = Block { piece: 0, offset: 0, length: 65536 };
        let packed = zstd::bulk::compress(&[5; 65536], 1).unwrap();
        let mut bytes = Vec::new();
        encode(&hello(), &mut bytes);
        bytes.extend(piece(block, &[1; 65536]));
        bytes.extend(encode_packed_head(ExtensionIds::OURS.rack.unwrap(), block, packed.len() as u32));
        bytes.extend(&packed);
        encode(&Message::Have(2), &mut bytes);
        let mut reader = reader(bytes, 1000);
        assert!(matches!(reader.next().await, Ok(Heard::Message(_))));
        for _ in 0..2 {
            assert!(matches!(reader.next().await, Ok(Heard::Chunk(Chunk { landed: Landing::Nowhere, .. }))));
        }
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(2)))));
        assert_eq!(reader.swarm.pool.bytes(), 0);
    }

    #[tokio::test]
    async fn frames_that_never_end_do_not_grow_the_buffer() {
        let mut bytes = 0x4000_0000_u32.to_be_bytes().to_vec();
        bytes.extend([9; 5000]);
        let mut reader = reader(bytes, 4096);
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(reader.heads.len() <= HEADS_BYTES);
    }

    #[tokio::test]
    async fn a_repeated_bitfield_is_what_it_adds() {
        let (mut first, mut second) = (Bitfield::empty(4), Bitfield::empty(4));
        first.insert(0);
        for index in 0..3 {
            second.insert(index);
        }
        let mut bytes = Vec::new();
        encode(&Message::Bitfield(first), &mut bytes);
        encode(&Message::Bitfield(second), &mut bytes);
        let mut reader = reader(bytes, 4096);
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Bitfield(_)))));
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(1)))));
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(2)))));
    }
}
