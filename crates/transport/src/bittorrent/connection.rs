//! One connection: handshake, a task that reads and a task that writes.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use swarm::{Peer, Shape};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use wire::metainfo::InfoHash;
use wire::peer::{
    BLOCK_BYTES, Bitfield, Block, ExtensionIds, Frame, FrameDecoder, HANDSHAKE_BYTES, Handshake, Message, PeerError,
    PeerId, encode_piece_head,
};

use super::drive::Event;
use super::store::Store;

/// How long a peer may take to connect and to exchange handshakes.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a peer may leave us unable to send anything.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// What is read from a socket at once: four blocks.
const READ_BYTES: usize = 4 * (BLOCK_BYTES as usize + 16);

/// Small messages are joined up to this many bytes before they are sent.
const JOIN_BYTES: usize = 16 << 10;

/// Longest frame that is not a piece or a bitfield: extension messages of
/// foreign clients, which are read and passed over.
const FRAME_LIMIT_BYTES: u32 = 64 << 10;

/// Orders that may wait for a slow peer. The engine bounds requests and blocks;
/// announcements of new pieces are what can pile up.
pub(super) const ORDERS: usize = 4096;

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) id: PeerId,
    /// Its place among the connections of the process, held until it closes.
    pub(super) place: OwnedSemaphorePermit,
}

/// What the writing task is told.
#[derive(Debug)]
pub(super) enum Order {
    Say(Message),
    Send(Block),
}

/// Connects to a peer from the address that we listen on, so that it sees the
/// one the tracker tells others.
pub(super) async fn dial(
    address: SocketAddr,
    from: SocketAddr,
    ours: Handshake,
    place: OwnedSemaphorePermit,
) -> io::Result<Link> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if !from.ip().is_unspecified() && from.is_ipv4() == address.is_ipv4() {
        socket.bind(SocketAddr::new(from.ip(), 0))?;
    }
    let greeting = async {
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        write_handshake(&mut stream, &ours).await?;
        let theirs = read_handshake(&mut stream).await?;
        expect_swarm(theirs.info_hash, ours.info_hash)?;
        Ok(Link { stream, id: theirs.peer_id, place })
    };
    match timeout(HANDSHAKE_DEADLINE, greeting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn expect_swarm(theirs: InfoHash, ours: InfoHash) -> io::Result<()> {
    if theirs == ours { Ok(()) } else { Err(io::Error::other(format!("it answered for swarm {theirs}"))) }
}

pub(super) async fn read_handshake(stream: &mut TcpStream) -> io::Result<Handshake> {
    let mut bytes = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut bytes).await?;
    Handshake::decode(&bytes).map_err(io::Error::other)
}

pub(super) async fn write_handshake(stream: &mut TcpStream, handshake: &Handshake) -> io::Result<()> {
    stream.write_all(&handshake.encode()).await
}

/// Reads until the peer closes, breaks the protocol, or the swarm ends.
pub(super) async fn read(peer: Peer, stream: OwnedReadHalf, shape: Shape, events: mpsc::Sender<Event>) {
    let mut reader = Reader {
        stream,
        shape,
        decoder: FrameDecoder::new(shape.pieces(), FRAME_LIMIT_BYTES),
        buffer: BytesMut::new(),
        bitfield: None,
        haves: VecDeque::new(),
    };
    let why = loop {
        let event = match reader.next().await {
            Ok(Heard::Message(message)) => Event::Said(peer, message),
            Ok(Heard::Block(block, bytes)) => Event::Block(peer, block, bytes),
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
    Block(Block, Bytes),
}

/// Cuts the stream. Blocks are handed on as parts of the buffer they were read
/// into, without copying.
struct Reader<S> {
    stream: S,
    shape: Shape,
    decoder: FrameDecoder,
    buffer: BytesMut,
    /// What the bitfields so far said.
    bitfield: Option<Bitfield>,
    /// What a repeated bitfield said anew.
    haves: VecDeque<u32>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    async fn next(&mut self) -> io::Result<Heard> {
        loop {
            if let Some(piece) = self.haves.pop_front() {
                return Ok(Heard::Message(Message::Have(piece)));
            }
            match self.decoder.decode(&self.buffer).map_err(invalid)? {
                None => self.fill().await?,
                Some((Frame::Message(message), used)) => {
                    self.buffer.advance(used);
                    if let Some(message) = self.first_bitfield(message) {
                        return Ok(Heard::Message(message));
                    }
                }
                Some((Frame::Piece(block), used)) => {
                    self.expect_sane(block)?;
                    self.buffer.advance(used);
                    let length = block.length as usize;
                    while self.buffer.len() < length {
                        self.fill().await?;
                    }
                    return Ok(Heard::Block(block, self.buffer.split_to(length).freeze()));
                }
                Some((Frame::Packed { .. }, _)) => return Err(invalid("it sent a packed block, which was not agreed")),
            }
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
        for piece in bitfield.iter() {
            if !known.contains(piece) {
                known.insert(piece);
                self.haves.push_back(piece);
            }
        }
        None
    }

    /// Before any of its bytes are waited for: a block lies in the image and is
    /// no longer than what we ever request.
    fn expect_sane(&self, block: Block) -> io::Result<()> {
        if block.length > BLOCK_BYTES {
            return Err(invalid(PeerError::FrameTooLong { length: block.length, limit: BLOCK_BYTES }));
        }
        if !self.shape.contains(block) {
            return Err(invalid(format!(
                "it sent bytes at {} of piece {}, outside the image",
                block.offset, block.piece
            )));
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.buffer.capacity() - self.buffer.len() < BLOCK_BYTES as usize {
            self.buffer.reserve(READ_BYTES);
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Writes what the swarm orders until it closes the queue, or the peer does not
/// take anything for too long.
pub(super) async fn write(
    peer: Peer,
    stream: OwnedWriteHalf,
    mut orders: mpsc::Receiver<Order>,
    store: Arc<Store>,
    events: mpsc::Sender<Event>,
) {
    let mut writer = Writer { stream, joined: BytesMut::new() };
    let why = loop {
        let outcome = match orders.recv().await {
            None => return,
            Some(Order::Say(message)) => writer.say(&message, orders.is_empty()).await,
            Some(Order::Send(block)) => {
                let sent = writer.send(block, &store).await;
                if sent.is_ok() && events.send(Event::Sent(peer, block)).await.is_err() {
                    return;
                }
                sent
            }
        };
        if let Err(error) = outcome {
            break error;
        }
    };
    let _ = events.send(Event::Closed(peer, why)).await;
}

struct Writer<S> {
    stream: S,
    joined: BytesMut,
}

impl<S: AsyncWrite + Unpin> Writer<S> {
    /// Sends at once when nothing else waits, otherwise with what follows.
    async fn say(&mut self, message: &Message, nothing_waits: bool) -> io::Result<()> {
        let mut frame = Vec::new();
        message.encode(&ExtensionIds::NONE, &mut frame);
        self.joined.extend_from_slice(&frame);
        if nothing_waits || self.joined.len() >= JOIN_BYTES { self.push(Bytes::new()).await } else { Ok(()) }
    }

    async fn send(&mut self, block: Block, store: &Arc<Store>) -> io::Result<()> {
        let payload = store.block(block).await.map_err(io::Error::other)?;
        self.joined.extend_from_slice(&encode_piece_head(block));
        self.push(payload).await
    }

    async fn push(&mut self, payload: Bytes) -> io::Result<()> {
        let mut all = self.joined.split().chain(payload);
        let deadline = timeout(WRITE_DEADLINE, self.stream.write_all_buf(&mut all));
        deadline.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    struct Abc;

    impl image::PieceSource for Abc {
        fn read(&self, _index: u32, _begin: u32, into: &mut [u8]) -> Result<(), image::Error> {
            into.copy_from_slice(b"abc");
            Ok(())
        }
    }

    fn reader(bytes: &[u8]) -> Reader<&[u8]> {
        let shape = Shape::new(100_000, 32 << 10).unwrap();
        let decoder = FrameDecoder::new(shape.pieces(), FRAME_LIMIT_BYTES);
        Reader { stream: bytes, shape, decoder, buffer: BytesMut::new(), bitfield: None, haves: VecDeque::new() }
    }

    fn piece(block: Block, payload: &[u8]) -> Vec<u8> {
        [encode_piece_head(block).as_slice(), payload].concat()
    }

    #[tokio::test]
    async fn messages_and_blocks_come_in_their_order() {
        let block = Block { piece: 1, offset: 16384, length: 16384 };
        let mut bytes = Vec::new();
        Message::Unchoke.encode(&ExtensionIds::NONE, &mut bytes);
        bytes.extend(piece(block, &[7; 16384]));
        Message::Have(2).encode(&ExtensionIds::NONE, &mut bytes);
        let mut reader = reader(&bytes);
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Unchoke))));
        let Ok(Heard::Block(found, payload)) = reader.next().await else { panic!("no block") };
        assert_eq!((found, payload.as_ref()), (block, [7; 16384].as_slice()));
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(2)))));
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn blocks_that_cannot_be_are_refused_before_they_are_waited_for() {
        for block in [
            Block { piece: 9, offset: 0, length: 100 },
            Block { piece: 0, offset: 32 << 10, length: 1 },
            Block { piece: 0, offset: 0, length: BLOCK_BYTES + 1 },
            Block { piece: 3, offset: 1696, length: 1 },
        ] {
            let error = reader(&encode_piece_head(block)).next().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{block:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_repeated_bitfield_becomes_what_it_says_anew() {
        let mut bytes = Vec::new();
        let mut bitfield = Bitfield::empty(4);
        bitfield.insert(1);
        Message::Bitfield(bitfield.clone()).encode(&ExtensionIds::NONE, &mut bytes);
        for piece in [0, 3] {
            bitfield.insert(piece);
        }
        Message::Bitfield(bitfield.clone()).encode(&ExtensionIds::NONE, &mut bytes);
        Message::Bitfield(bitfield).encode(&ExtensionIds::NONE, &mut bytes);
        Message::Choke.encode(&ExtensionIds::NONE, &mut bytes);
        let mut reader = reader(&bytes);
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Bitfield(_)))));
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(0)))));
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Have(3)))));
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Choke))));
    }

    #[tokio::test]
    async fn garbage_closes() {
        let error = reader(&[0xff; 64]).next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }

    #[tokio::test]
    async fn small_messages_travel_together() {
        let mut writer = Writer { stream: Vec::new(), joined: BytesMut::new() };
        writer.say(&Message::Unchoke, false).await.unwrap();
        assert!(writer.stream.is_empty());
        let store = Store::new(Arc::new(Abc), Shape::new(3, 16 << 10).unwrap(), 1 << 20);
        writer.send(Block { piece: 0, offset: 0, length: 3 }, &Arc::new(store)).await.unwrap();
        let mut reader = reader(&writer.stream);
        assert!(matches!(reader.next().await, Ok(Heard::Message(Message::Unchoke))));
        assert!(matches!(reader.next().await, Ok(Heard::Block(_, bytes)) if bytes.as_ref() == b"abc"));
    }
}
