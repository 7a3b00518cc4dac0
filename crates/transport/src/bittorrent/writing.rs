//! The sending half of a connection. Ranges go out as chunks of about ten
//! milliseconds, small messages between them; what the network has not taken
//! stays with us, so that the engine's order of service is the real one.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::SendFlags;
use swarm::Peer;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::peer::{
    BLOCK_BYTES, Block, ExtensionHandshake, ExtensionIds, Message, encode_packed_head, encode_piece_head,
};

use super::drive::Event;
use super::pace::Pace;
use super::store::{Payload, Store};
use crate::Error;

/// How long a peer may leave us unable to send anything.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Most bytes of blocks that leave together.
const MOST_BLOCKS_BYTES: u32 = 128 << 10;

/// What the writing task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// A message.
    Say(Message),
    /// A range of a piece.
    Send(Block),
    /// What the peer said of itself.
    Met(Box<ExtensionHandshake>),
}

/// What the writing task needs of its swarm.
pub(super) struct Writing {
    pub(super) peer: Peer,
    pub(super) store: Arc<Store>,
    pub(super) events: mpsc::Sender<Event>,
    /// Bytes sent by the process's swarm, heads and messages included.
    pub(super) sent: Arc<AtomicU64>,
}

/// Writes what the swarm orders until it closes the queue, or the peer does not
/// take anything for too long.
pub(super) async fn write(stream: OwnedWriteHalf, orders: mpsc::Receiver<Order>, writing: Writing) {
    let (peer, events) = (writing.peer, writing.events.clone());
    let mut writer = Writer {
        pace: Pace::new(),
        stream,
        orders,
        swarm: writing,
        small: Vec::new(),
        ranges: VecDeque::new(),
        theirs: ExtensionIds::NONE,
        bulk: false,
        unpacks: false,
    };
    let error = match writer.run().await {
        Ok(()) => return,
        Err(Failure::Socket(error)) => error,
        Err(Failure::Disk(piece, error)) => {
            let ends = io::Error::other(error.to_string());
            let _ = events.send(Event::Unreadable(piece, error)).await;
            ends
        }
    };
    let _ = events.send(Event::Closed(peer, error)).await;
}

/// Why a connection cannot go on.
enum Failure {
    Socket(io::Error),
    /// This piece of ours cannot be read.
    Disk(u32, Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

struct Writer {
    stream: OwnedWriteHalf,
    orders: mpsc::Receiver<Order>,
    swarm: Writing,
    pace: Pace,
    /// Encoded messages that wait for the next chunk or flush.
    small: Vec<u8>,
    ranges: VecDeque<Queued>,
    /// What the peer calls our extensions.
    theirs: ExtensionIds,
    /// It takes payloads longer than 16 KiB.
    bulk: bool,
    unpacks: bool,
}

enum Queued {
    Range(Block),
    /// A message that must not overtake what was queued before it.
    Behind(Message),
}

impl Writer {
    async fn run(&mut self) -> Result<(), Failure> {
        loop {
            while let Ok(order) = self.orders.try_recv() {
                self.queue(order);
            }
            let open = match self.ranges.front() {
                Some(Queued::Range(_)) if self.bulk => self.send_chunk().await?,
                Some(Queued::Range(_)) => self.send_blocks().await?,
                Some(Queued::Behind(message)) => {
                    message.encode(&self.theirs, &mut self.small);
                    self.ranges.pop_front();
                    true
                }
                None => self.wait().await?,
            };
            if !open {
                return Ok(());
            }
        }
    }

    /// Nothing but small messages: they leave together. False when the swarm has
    /// closed the queue.
    async fn wait(&mut self) -> Result<bool, Failure> {
        if !self.small.is_empty() {
            let small = std::mem::take(&mut self.small);
            self.push(&small, Rest::Nothing).await?;
            self.reuse(small);
            return Ok(true);
        }
        self.pace.idle();
        let order = self.orders.recv().await;
        let open = order.is_some();
        order.into_iter().for_each(|order| self.queue(order));
        Ok(open)
    }

    fn queue(&mut self, order: Order) {
        match order {
            Order::Say(Message::Choke) if !self.ranges.is_empty() => {
                self.ranges.push_back(Queued::Behind(Message::Choke));
            }
            Order::Say(message) => self.say(&message),
            Order::Send(range) => self.ranges.push_back(Queued::Range(range)),
            Order::Met(handshake) => self.met(&handshake),
        }
    }

    fn say(&mut self, message: &Message) {
        message.encode(&self.theirs, &mut self.small);
    }

    fn met(&mut self, handshake: &ExtensionHandshake) {
        let ids = handshake.ids;
        self.theirs.pex = ids.pex.or(self.theirs.pex);
        self.theirs.metadata = ids.metadata.or(self.theirs.metadata);
        self.theirs.rack = ids.rack.or(self.theirs.rack);
        if let Some(hello) = &handshake.rack {
            self.bulk = true;
            self.unpacks = hello.zstd && self.theirs.rack.is_some();
        }
    }

    /// What is next of the first range in the queue, at most so much of it.
    fn first_chunk(&self, longest: u32) -> Option<Block> {
        match self.ranges.front() {
            Some(Queued::Range(range)) => Some(Block { length: range.length.min(longest), ..*range }),
            _ => None,
        }
    }

    /// A chunk leaves the queue; the rest of its range is the next.
    fn advance(&mut self, chunk: Block) {
        if let Some(Queued::Range(range)) = self.ranges.front_mut() {
            range.offset += chunk.length;
            range.length -= chunk.length;
            if range.length == 0 {
                self.ranges.pop_front();
            }
        }
    }

    /// Sends one chunk, small messages in front. False when the swarm has ended.
    async fn send_chunk(&mut self) -> Result<bool, Failure> {
        let longest = if self.bulk { self.pace.chunk_bytes() } else { BLOCK_BYTES };
        let Some(chunk) = self.first_chunk(longest) else { return Ok(true) };
        self.advance(chunk);
        let mut head = std::mem::take(&mut self.small);
        if self.unpacks
            && self.swarm.store.packer().worth_trying(self.pace.rate())
            && let Some(packed) =
                self.swarm.store.packed(chunk).await.map_err(|error| Failure::Disk(chunk.piece, error))?
        {
            let rack = self.theirs.rack.unwrap_or_default();
            head.extend_from_slice(&encode_packed_head(rack, chunk, packed.len() as u32));
            self.push(&head, Rest::Bytes(&packed)).await?;
        } else {
            head.extend_from_slice(&encode_piece_head(chunk));
            match self.swarm.store.payload(chunk).await.map_err(|error| Failure::Disk(chunk.piece, error))? {
                Payload::Bytes(bytes) => self.push(&head, Rest::Bytes(&bytes)).await?,
                Payload::OnFile => self.push(&head, Rest::OnFile(chunk)).await?,
            }
        }
        self.pace.unhindered();
        self.reuse(head);
        Ok(self.sent(chunk).await)
    }

    /// Sends blocks of 16 KiB to those who know no longer ones: as many as make
    /// up a chunk leave together, if they are in memory. One system call for
    /// each costs more than the copy that this takes.
    async fn send_blocks(&mut self) -> Result<bool, Failure> {
        let mut out = std::mem::take(&mut self.small);
        let mut blocks = Vec::new();
        let (mut length, longest) = (0, self.pace.chunk_bytes().min(MOST_BLOCKS_BYTES));
        while let Some(block) = self.first_chunk(BLOCK_BYTES)
            && length + block.length <= longest
        {
            let begin = out.len();
            out.extend_from_slice(&encode_piece_head(block));
            if !self.swarm.store.append_cached(block, &mut out) {
                out.truncate(begin);
                break;
            }
            self.advance(block);
            blocks.push(block);
            length += block.length;
        }
        if blocks.is_empty() {
            self.small = out;
            return self.send_chunk().await;
        }
        self.push(&out, Rest::Nothing).await?;
        self.pace.unhindered();
        self.reuse(out);
        for block in blocks {
            if !self.sent(block).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells the swarm. False when it has ended.
    async fn sent(&self, chunk: Block) -> bool {
        self.swarm.events.send(Event::Sent(self.swarm.peer, chunk)).await.is_ok()
    }

    /// The buffer of small messages is used again. What held payloads goes when
    /// nothing more is to be sent.
    fn reuse(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        if buffer.capacity() > BLOCK_BYTES as usize && self.ranges.is_empty() {
            buffer = Vec::new();
        }
        self.small = buffer;
    }

    /// Hands everything to the socket.
    async fn push(&mut self, head: &[u8], rest: Rest<'_>) -> Result<(), Failure> {
        let length = rest.length();
        let mut at = 0;
        while at < head.len() + length {
            let taken = match &rest {
                Rest::OnFile(chunk) if at >= head.len() => self.push_file(*chunk, at - head.len()).await?,
                Rest::OnFile(_) => self.push_bytes(&[&head[at..]], SendFlags::MORE).await?,
                Rest::Bytes(bytes) if at >= head.len() => {
                    self.push_bytes(&[&bytes[at - head.len()..]], SendFlags::empty()).await?
                }
                Rest::Bytes(bytes) => self.push_bytes(&[&head[at..], bytes], SendFlags::empty()).await?,
                Rest::Nothing => self.push_bytes(&[&head[at..]], SendFlags::empty()).await?,
            };
            at += taken;
        }
        self.swarm.sent.fetch_add((head.len() + length) as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn push_bytes(&mut self, parts: &[&[u8]], flags: SendFlags) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 2];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let slices = &slices[..parts.len().min(2)];
        let length = slices.iter().map(|slice| slice.len()).sum();
        give(&self.stream, &mut self.pace, length, |stream| {
            let mut control = rustix::net::SendAncillaryBuffer::default();
            Ok(rustix::net::sendmsg(stream, slices, &mut control, flags | SendFlags::NOSIGNAL)?)
        })
        .await
    }

    async fn push_file(&mut self, chunk: Block, done: usize) -> Result<usize, Failure> {
        let Some((file, start)) = self.swarm.store.place(chunk.piece) else {
            return Err(Failure::Socket(io::ErrorKind::NotFound.into()));
        };
        let mut offset = start + u64::from(chunk.offset) + done as u64;
        let left = chunk.length as usize - done;
        let given = give(&self.stream, &mut self.pace, left, |stream| {
            match rustix::fs::sendfile(stream, file, Some(&mut offset), left)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                taken => Ok(taken),
            }
        });
        let error = match given.await {
            Ok(taken) => return Ok(taken),
            Err(error) => error,
        };
        // The disk or the socket: reading again tells, and names the place.
        match self.swarm.store.read(chunk).await {
            Err(unreadable) => Err(Failure::Disk(chunk.piece, unreadable)),
            Ok(_) => Err(Failure::Socket(error)),
        }
    }
}

/// What follows the head.
enum Rest<'a> {
    Nothing,
    Bytes(&'a [u8]),
    OnFile(Block),
}

impl Rest<'_> {
    fn length(&self) -> usize {
        match self {
            Rest::Nothing => 0,
            Rest::Bytes(bytes) => bytes.len(),
            Rest::OnFile(chunk) => chunk.length as usize,
        }
    }
}

/// Tries to give the socket `length` bytes, and waits while it takes nothing.
async fn give(
    half: &OwnedWriteHalf,
    pace: &mut Pace,
    length: usize,
    mut attempt: impl FnMut(&TcpStream) -> io::Result<usize>,
) -> io::Result<usize> {
    let stream: &TcpStream = half.as_ref();
    loop {
        let mut taken = 0;
        let outcome = stream.try_io(Interest::WRITABLE, || {
            taken = attempt(stream)?;
            // A socket that took less is full: no need to ask again before it
            // has said that it is not.
            if taken < length { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        pace.took(taken);
        match outcome {
            Ok(()) => return Ok(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pace.full(stream);
                if taken > 0 {
                    return Ok(taken);
                }
                let writable = timeout(WRITE_DEADLINE, stream.writable()).await;
                writable.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
