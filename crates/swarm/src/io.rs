//! What goes into an engine and what comes out.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use wire::announce::{Event, Guidance};
use wire::peer::{Block, Message, PeerId, RackName};

use crate::pieceset::PieceSet;
use crate::shape::Shape;

/// A connection's key, given by the driver and never used again for another
/// connection of the same engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u32);

/// Who opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer dialled us.
    Inbound,
    /// We dialled the peer.
    Outbound,
}

/// Extensions that a peer's handshake offers in its reserved bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Speaks {
    /// The fast extension (BEP 6).
    pub fast: bool,
    /// The extension protocol (BEP 10).
    pub extended: bool,
}

/// How a piece came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Verified *and* readable for upload.
    Good,
    /// Its hash is wrong; the driver has forgotten the bytes.
    Corrupt,
    /// Its hash is wrong because of these blocks of 16 KiB, numbered within
    /// the piece. The driver has forgotten their bytes and keeps the others:
    /// only these are fetched again.
    CorruptBlocks(Vec<u32>),
}

/// What an engine begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// How the file is cut.
    pub shape: Shape,
    /// Pieces that are there: on disk, or known to be zero.
    pub have: PieceSet,
    /// Pieces that are never fetched, offered or waited for among our own
    /// clients, because they are zero or equal an earlier piece. The driver
    /// writes them when that one is there, and steps `Verified` for each.
    pub twins: PieceSet,
    /// The rack of this node. The tracker's guidance may name it later.
    pub rack: Option<RackName>,
    /// The torrent was made by us: with `private` reason enough to cooperate
    /// when nobody says otherwise.
    pub ours: bool,
    /// The torrent is private (BEP 27): no peers through peer exchange from
    /// or to foreign clients.
    pub private: bool,
}

impl Setup {
    /// Nothing special: no twins, no rack, public.
    #[must_use]
    pub fn new(shape: Shape, have: PieceSet) -> Setup {
        Setup { shape, have, twins: PieceSet::empty(shape.pieces()), rack: None, ours: false, private: false }
    }
}

/// What happened in the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The tracker answered our `Announce`.
    Announced {
        /// Wait this long before the next regular announce.
        interval: Duration,
        /// Peers to try.
        peers: Vec<SocketAddr>,
        /// What a tracker of our own kind says besides.
        guidance: Option<Guidance>,
    },
    /// No tracker answered, or it refused.
    AnnounceFailed,
    /// Peers became known otherwise.
    Found(Vec<SocketAddr>),
    /// Handshakes were exchanged, and the info-hash is ours.
    Connected {
        /// The connection's new key.
        peer: Peer,
        /// Who opened it.
        side: Side,
        /// The other end; for `Outbound` exactly what `Dial` named.
        address: SocketAddr,
        /// What the peer calls itself.
        id: PeerId,
        /// What its handshake offers.
        speaks: Speaks,
    },
    /// A `Dial` came to nothing: refused, timed out or a bad handshake.
    DialFailed(SocketAddr),
    /// A message came, other than a block.
    Said(Peer, Message),
    /// The bytes of one `piece` message came whole: part of a requested range,
    /// a multiple of 16 KiB or the piece's tail. The driver holds them until
    /// it has seen whether this step says `Keep`.
    Arrived(Peer, Block),
    /// This part of a range given by `Send` has been handed to the network.
    /// The parts of a range come in order. The connection may be gone by now;
    /// the bytes are counted all the same.
    Sent(Peer, Block),
    /// The answer to `Verify`.
    Verified(u32, Verdict),
    /// The disk no longer gives these verified pieces, and nothing can be
    /// written to it.
    Lost(Vec<u32>),
    /// The connection is closed. Not needed after `Drop`.
    Gone(Peer),
    /// Nothing, but `deadline` has come.
    Tick,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Connect; answer with `Connected` or `DialFailed`.
    Dial(SocketAddr),
    /// Send this message. An extension handshake names our racks and requests
    /// only: the driver adds what is its own business, which are the client's
    /// name, the listening port, the size of the metadata and compression.
    Say(Peer, Message),
    /// Read this range of one piece from storage and send it, cut into `piece`
    /// messages; answer with `Sent` for each part that the socket has taken.
    /// The order of service is decided here, so a driver keeps what is unsent
    /// in its sockets short (`TCP_NOTSENT_LOWAT`).
    Send(Peer, Block),
    /// These of the bytes that just arrived are wanted: put them into their
    /// piece. Mostly it is all that arrived; after a repetition it may be a
    /// part, or several. What is not named is to be thrown away.
    Keep(Peer, Block),
    /// All blocks of this piece were kept: hash it, store it, and answer with
    /// `Verified`. On `Corrupt` the driver forgets the bytes.
    Verify(u32),
    /// The blocks kept of this piece are given up: free their memory.
    Forget(u32),
    /// Tell the tracker; answer with `Announced` or `AnnounceFailed`.
    Announce(Progress),
    /// Close the connection. The engine has already forgotten it.
    Drop(Peer, Why),
    /// Everything is verified. Comes once, and never from an engine that
    /// began complete.
    Complete,
}

/// The numbers of an announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What happened, if anything.
    pub event: Option<Event>,
    /// Payload bytes sent.
    pub uploaded: u64,
    /// Payload bytes received, wasted ones included.
    pub downloaded: u64,
    /// Bytes of missing pieces.
    pub left: u64,
    /// How many peers we can use.
    pub num_want: u32,
}

/// Why a peer was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It alone supplied this piece, and the hash is wrong.
    CorruptPiece(u32),
    /// Like `CorruptPiece`, and nobody else is known to have that piece.
    CorruptSource(u32),
    /// It supplied this block, and the block's hash is wrong.
    CorruptBlock(Block),
    /// It says it has this piece, and neither sends nor refuses it.
    NeverAnswers(u32),
    /// It says it has this piece, and refuses to send it.
    Refuses(u32),
    /// It is ourselves.
    Ourselves,
    /// It is connected already.
    Duplicate,
    /// It was dropped for a lie before.
    Banned,
    /// All connections are taken.
    Full,
    /// Neither side wanted anything, and somebody else needed the place.
    Displaced,
    /// Neither side misses anything.
    BothComplete,
    /// It was told of pieces that our disk has lost since.
    Lost,
    /// It said nothing for too long.
    Silent,
    /// It named a piece that does not exist, or sent a second bitfield.
    BadPieceMap,
    /// It requested a place outside the file or more than a block.
    BadRequest(Block),
    /// It requested a piece that we never offered.
    NotOffered(u32),
    /// It queued more requests than any honest peer does.
    TooManyRequests,
    /// It sent a block that we did not ask for.
    Unsolicited(Block),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::CorruptPiece(piece) => write!(f, "it alone sent piece {piece}, whose hash is wrong"),
            Why::CorruptSource(piece) => {
                write!(f, "it alone has piece {piece}, and what it sent has the wrong hash")
            }
            Why::CorruptBlock(block) => {
                write!(f, "the bytes it sent at {} of piece {} have the wrong hash", block.offset, block.piece)
            }
            Why::NeverAnswers(piece) => write!(f, "it says it has piece {piece} and does not send it"),
            Why::Refuses(piece) => write!(f, "it says it has piece {piece} and refuses to send it"),
            Why::Ourselves => f.write_str("it is this node itself"),
            Why::Duplicate => f.write_str("the same peer is connected already"),
            Why::Banned => f.write_str("it was dropped for corrupt data before"),
            Why::Full => f.write_str("all connections are taken"),
            Why::Displaced => f.write_str("neither side wanted anything of the other and the place was needed"),
            Why::BothComplete => f.write_str("both sides are complete"),
            Why::Lost => f.write_str("it was told of pieces that this node has lost"),
            Why::Silent => f.write_str("it sent nothing for too long"),
            Why::BadPieceMap => f.write_str("its have or bitfield message does not fit the image"),
            Why::BadRequest(block) => {
                write!(f, "it requested {} bytes at {} of piece {}", block.length, block.offset, block.piece)
            }
            Why::NotOffered(piece) => write!(f, "it requested piece {piece}, which was never offered"),
            Why::TooManyRequests => f.write_str("it queued too many requests"),
            Why::Unsolicited(block) => {
                write!(f, "it sent bytes at {} of piece {} without a request", block.offset, block.piece)
            }
        }
    }
}

/// A summary for metrics, the console and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Pieces verified.
    pub pieces: u32,
    /// Pieces of the image.
    pub pieces_total: u32,
    /// Bytes of missing pieces.
    pub left: u64,
    /// Pieces begun and not yet verified.
    pub active_pieces: usize,
    /// Connections.
    pub peers: Vec<PeerView>,
    /// Dials without an answer yet.
    pub dialling: usize,
    /// Pieces that failed verification.
    pub failed_pieces: u64,
    /// We cooperate with our own kind.
    pub cooperative: bool,
}

/// A summary of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Its key.
    pub peer: Peer,
    /// Its name.
    pub id: PeerId,
    /// The other end.
    pub address: SocketAddr,
    /// Who opened it.
    pub side: Side,
    /// It is of our own kind and cooperates.
    pub kin: bool,
    /// Pieces it says it has.
    pub pieces: u32,
    /// We do not serve it.
    pub we_choke: bool,
    /// It does not serve us.
    pub chokes_us: bool,
    /// We want something of it.
    pub we_want: bool,
    /// It wants something of us.
    pub wants_us: bool,
    /// It owes us blocks and has not sent any for too long.
    pub snubbed: bool,
    /// Blocks it owes us.
    pub outstanding: usize,
    /// Blocks we owe it.
    pub queued: usize,
}
