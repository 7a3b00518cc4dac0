//! The engine of one download or seed: one door, [`Engine::step`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use wire::announce::Event;
use wire::peer::{BLOCK_BYTES, Block, Message, PeerId};

use crate::book::Book;
use crate::chance::Chance;
use crate::choker::{Choker, choker};
use crate::herald::Herald;
use crate::ledger::Ledger;
use crate::peer::Link;
use crate::picker::{Arrival, Picker, Place};
use crate::pieceset::PieceSet;
use crate::policy::Policy;
use crate::shape::Shape;
use crate::uplink::Uplink;

/// With fewer neighbours than this we ask the tracker before its interval is
/// over.
const HUNGRY_PEERS: usize = 5;

/// A connection this young is not displaced: it had no time to say what it
/// wants.
const SETTLING: Duration = Duration::from_secs(10);

/// Departed peers whose names are kept, to name a liar that left before the
/// hash was known.
const DEPARTED: usize = 64;

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

/// What happened in the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The tracker answered our `Announce`.
    Announced {
        /// Wait this long before the next regular announce.
        interval: Duration,
        /// Peers to try.
        peers: Vec<SocketAddr>,
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
    },
    /// A `Dial` came to nothing: refused, timed out or a bad handshake.
    DialFailed(SocketAddr),
    /// A message came, other than a block.
    Said(Peer, Message),
    /// The bytes of a block came whole; the driver holds them until it has
    /// seen whether this step says `Keep`.
    Arrived(Peer, Block),
    /// A block given by `Send` has been handed to the network.
    Sent(Peer, Block),
    /// The answer to `Verify`. True means: verified *and* readable for upload.
    Verified(u32, bool),
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
    /// Send this message.
    Say(Peer, Message),
    /// Read this block from storage and send it; answer with `Sent`.
    Send(Peer, Block),
    /// The bytes that just arrived are wanted: put them into their piece.
    /// Without this output they are to be thrown away.
    Keep(Peer, Block),
    /// All blocks of this piece were kept: hash it, store it, and answer with
    /// `Verified`. On false the driver forgets the bytes.
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
            Why::Ourselves => f.write_str("it is this node itself"),
            Why::Duplicate => f.write_str("the same peer is connected already"),
            Why::Banned => f.write_str("it was dropped for corrupt data before"),
            Why::Full => f.write_str("all connections are taken"),
            Why::Displaced => f.write_str("neither side wanted anything and the connection was needed"),
            Why::BothComplete => f.write_str("both sides are complete"),
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

/// The state of one download or seed.
#[derive(Debug)]
pub struct Engine {
    me: PeerId,
    shape: Shape,
    policy: Policy,
    now: Duration,
    /// Nothing that depends on time alone happens before this.
    due: Duration,
    have: PieceSet,
    left: u64,
    links: BTreeMap<Peer, Link>,
    ids: BTreeMap<PeerId, Peer>,
    departed: VecDeque<(Peer, PeerId, SocketAddr)>,
    banned: BTreeSet<PeerId>,
    picker: Picker,
    uplink: Uplink,
    choker: Box<dyn Choker>,
    book: Book,
    herald: Herald,
    ledger: Ledger,
    chance: Chance,
    failed_pieces: u64,
}

impl Engine {
    /// An engine that has `have` from the start: pieces on disk, and pieces
    /// that the manifest knows to be zero. `me` is the peer id that the driver
    /// puts into its handshakes. The same `seed` and inputs give the same
    /// outputs.
    pub fn new(me: PeerId, shape: Shape, have: PieceSet, policy: Policy, seed: u64) -> Engine {
        let choker = choker(&policy);
        let have = have.fitted(shape.pieces());
        let missing = (0..shape.pieces()).filter(|&piece| !have.contains(piece));
        Engine {
            me,
            shape,
            now: Duration::ZERO,
            due: Duration::ZERO,
            left: missing.map(|piece| u64::from(shape.piece_bytes(piece))).sum(),
            links: BTreeMap::new(),
            ids: BTreeMap::new(),
            departed: VecDeque::new(),
            banned: BTreeSet::new(),
            picker: Picker::new(shape, &have, &policy),
            uplink: Uplink::new(shape.pieces(), choker.discipline(), &policy),
            choker,
            book: Book::new(&policy),
            herald: Herald::new(&policy),
            ledger: Ledger::default(),
            chance: Chance::new(seed, 1),
            failed_pieces: 0,
            have,
            policy,
        }
    }

    /// Takes one input at time `now` (any monotonic origin) and appends what
    /// has to be done to `out`, in order. The first step also announces.
    pub fn step(&mut self, now: Duration, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now);
        match input {
            Input::Announced { interval, peers } => {
                self.herald.answered(self.now, interval);
                self.found(&peers);
            }
            Input::AnnounceFailed => {
                self.herald.failed(self.now);
                self.due = self.now;
            }
            Input::Found(peers) => self.found(&peers),
            Input::Connected { peer, side, address, id } => self.connected(peer, side, address, id, out),
            Input::DialFailed(address) => {
                self.book.failed(address, self.now, &mut self.chance);
                self.due = self.now;
            }
            Input::Said(peer, message) => self.said(peer, message, out),
            Input::Arrived(peer, block) => self.arrived(peer, block, out),
            Input::Sent(peer, block) => self.sent(peer, block, out),
            Input::Verified(piece, true) => self.verified(piece, out),
            Input::Verified(piece, false) => self.corrupt(piece, out),
            Input::Gone(peer) => {
                self.remove(peer, out);
            }
            Input::Tick => {}
        }
        if self.due <= self.now {
            self.housekeep(out);
        }
    }

    /// When to step with `Tick` if nothing else happens before.
    pub fn deadline(&self) -> Option<Duration> {
        (self.due < Duration::MAX).then_some(self.due)
    }

    /// A summary.
    pub fn view(&self) -> View {
        View {
            pieces: self.have.count(),
            pieces_total: self.shape.pieces(),
            left: self.left,
            active_pieces: self.picker.active_pieces(),
            peers: self.links.iter().map(|(peer, link)| link.view(*peer)).collect(),
            dialling: self.book.dialling(),
            failed_pieces: self.failed_pieces,
        }
    }

    /// The numbers for an announce of the driver's own, `Stopped` at the end.
    pub fn progress(&self, event: Option<Event>) -> Progress {
        let total = self.ledger.total();
        let open = if self.have.is_full() { 0 } else { self.policy.max_peers.saturating_sub(self.links.len()) };
        Progress {
            event,
            uploaded: total.sent,
            downloaded: total.received + total.wasted,
            left: self.left,
            num_want: u32::try_from(open).unwrap_or(u32::MAX),
        }
    }

    /// Pieces verified.
    pub fn have(&self) -> &PieceSet {
        &self.have
    }

    /// Bytes by peer and direction.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

/// Peers come and go.
impl Engine {
    fn found(&mut self, peers: &[SocketAddr]) {
        self.book.found(peers, self.now);
        self.due = self.now;
    }

    fn connected(&mut self, peer: Peer, side: Side, address: SocketAddr, id: PeerId, out: &mut Vec<Output>) {
        if side == Side::Outbound {
            self.book.connected(address, id);
        }
        if let Some(why) = self.refusal(side, id, out) {
            if side == Side::Outbound {
                match why {
                    Why::Ourselves | Why::Banned => self.book.bar(address),
                    _ => self.book.failed(address, self.now, &mut self.chance),
                }
            }
            self.due = self.now;
            return out.push(Output::Drop(peer, why));
        }
        self.ids.insert(id, peer);
        self.links.insert(peer, Link::new(id, address, side, self.shape.pieces(), self.now));
        if !self.have.is_empty() {
            self.say(peer, Message::Bitfield(self.have.to_bitfield()), out);
        }
        self.wake(self.now + self.policy.keep_alive.min(self.policy.silence));
    }

    /// Why a new connection cannot stay. Makes room for it if that is all
    /// that is missing.
    fn refusal(&mut self, side: Side, id: PeerId, out: &mut Vec<Output>) -> Option<Why> {
        if id == self.me {
            return Some(Why::Ourselves);
        }
        if self.banned.contains(&id) {
            return Some(Why::Banned);
        }
        if let Some(&other) = self.ids.get(&id) {
            let other_side = self.links.get(&other).map_or(side, |link| link.side);
            if !self.outlives(side, other_side, id) {
                return Some(Why::Duplicate);
            }
            self.drop_peer(other, Why::Duplicate, out);
        }
        if self.links.len() >= self.policy.max_peers {
            let settled = |link: &Link| link.is_idle() && link.since + SETTLING <= self.now;
            let Some(idle) = self.links.iter().find(|(_, link)| settled(link)).map(|(peer, _)| *peer) else {
                return Some(Why::Full);
            };
            self.drop_peer(idle, Why::Displaced, out);
        }
        None
    }

    /// Two peers that dial each other at once see two connections. Both keep
    /// the one that the larger id opened, so both keep the same.
    fn outlives(&self, new: Side, old: Side, id: PeerId) -> bool {
        let stronger = if self.me > id { Side::Outbound } else { Side::Inbound };
        new == stronger && old != stronger
    }

    fn drop_peer(&mut self, peer: Peer, why: Why, out: &mut Vec<Output>) {
        if self.remove(peer, out) {
            out.push(Output::Drop(peer, why));
        }
    }

    /// Forgets a connection; what it owed is asked of others.
    fn remove(&mut self, peer: Peer, out: &mut Vec<Output>) -> bool {
        let Some(mut link) = self.links.remove(&peer) else { return false };
        self.ids.remove(&link.id);
        if self.departed.len() == DEPARTED {
            self.departed.pop_front();
        }
        self.departed.push_back((peer, link.id, link.address));
        self.picker.remove_holders(&link.has);
        self.uplink.gone(&link);
        if link.side == Side::Outbound {
            self.book.failed(link.address, self.now, &mut self.chance);
        }
        let owed = std::mem::take(&mut link.outstanding);
        self.release(peer, &owed, out);
        self.refill_all(out);
        self.feed_uplink(out);
        self.due = self.now;
        true
    }

    fn ban(&mut self, id: PeerId, address: SocketAddr) {
        self.banned.insert(id);
        self.book.bar(address);
    }

    /// Who a connection is or was.
    fn identity(&self, peer: Peer) -> Option<(PeerId, SocketAddr)> {
        let gone = || self.departed.iter().find(|(key, _, _)| *key == peer).map(|(_, id, at)| (*id, *at));
        self.links.get(&peer).map(|link| (link.id, link.address)).or_else(gone)
    }
}

/// Messages.
impl Engine {
    fn said(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.heard = self.now;
        match message {
            Message::KeepAlive | Message::Extended { .. } | Message::Unknown { .. } => {}
            Message::Choke => self.choked(peer, out),
            Message::Unchoke => {
                link.chokes_us = false;
                self.refill(peer, out);
            }
            Message::Interested => self.interested(peer, out),
            Message::NotInterested => link.wants_us = false,
            Message::Have(piece) => self.peer_has(peer, piece, out),
            Message::Bitfield(bitfield) => self.peer_has_all_of(peer, &PieceSet::from(&bitfield), out),
            Message::Request(block) => self.requested(peer, block, out),
            Message::Cancel(block) => link.queue.retain(|queued| *queued != block),
        }
    }

    fn say(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.said = self.now;
            out.push(Output::Say(peer, message));
        }
    }

    /// Without the fast extension a choke takes every request back, but blocks
    /// may still be under way.
    fn choked(&mut self, peer: Peer, out: &mut Vec<Output>) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.chokes_us = true;
            self.take_back(peer, out);
            self.refill_all(out);
        }
    }

    fn interested(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let unchoked = self.links.values().filter(|link| link.wants_us && !link.we_choke).count();
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.wants_us = true;
        if link.we_choke && self.choker.admits(unchoked) {
            link.we_choke = false;
            self.say(peer, Message::Unchoke, out);
        }
    }

    fn peer_has(&mut self, peer: Peer, piece: u32, out: &mut Vec<Output>) {
        if piece >= self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        let Some(link) = self.links.get_mut(&peer) else { return };
        if !link.has.insert(piece) {
            return;
        }
        self.picker.add_holder(piece);
        if !self.have.contains(piece) {
            link.wanted += 1;
            self.want(peer, out);
            self.refill(peer, out);
        }
    }

    fn peer_has_all_of(&mut self, peer: Peer, bitfield: &PieceSet, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.bitfield_seen || bitfield.capacity() != self.shape.pieces() {
            return self.drop_peer(peer, Why::BadPieceMap, out);
        }
        link.bitfield_seen = true;
        for piece in bitfield.iter().filter(|&piece| link.has.insert(piece)) {
            self.picker.add_holder(piece);
            link.wanted += u32::from(!self.have.contains(piece));
        }
        if link.has.is_full() && self.have.is_full() {
            return self.drop_peer(peer, Why::BothComplete, out);
        }
        self.want(peer, out);
        self.refill(peer, out);
    }

    /// Says whether we want something, when that changed.
    fn want(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let want = link.wanted > 0;
        if link.we_want != want {
            link.we_want = want;
            let message = if want { Message::Interested } else { Message::NotInterested };
            self.say(peer, message, out);
        }
    }

    fn requested(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        if !self.shape.contains(block) || block.length > BLOCK_BYTES {
            return self.drop_peer(peer, Why::BadRequest(block), out);
        }
        if !self.have.contains(block.piece) {
            return self.drop_peer(peer, Why::NotOffered(block.piece), out);
        }
        let Some(link) = self.links.get_mut(&peer) else { return };
        // The choke that refuses it is on its way already.
        if link.we_choke || link.queue.contains(&block) {
            return;
        }
        if link.queue.len() >= self.policy.max_queued_requests {
            return self.drop_peer(peer, Why::TooManyRequests, out);
        }
        if link.queue.is_empty() {
            link.waiting_since = self.now;
        }
        link.queue.push_back(block);
        self.feed_uplink(out);
    }

    fn feed_uplink(&mut self, out: &mut Vec<Output>) {
        while let Some((peer, block)) = self.uplink.next(&mut self.links, self.now) {
            out.push(Output::Send(peer, block));
            self.wake(self.now + self.policy.uplink_stall);
        }
    }

    fn sent(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.said = self.now;
        link.count_sent(block.length);
        self.ledger.sent(link.id, link.address.ip(), block.length);
        self.uplink.sent(link, self.now);
        self.feed_uplink(out);
    }
}

/// Blocks and pieces.
impl Engine {
    /// Asks a peer for as much as its window allows.
    fn refill(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let was_endgame = self.picker.is_endgame();
        self.request_more(peer, out);
        if !was_endgame && self.picker.is_endgame() {
            self.refill_all(out);
        }
    }

    /// Something may have become available to anybody; those that answer go
    /// before those that do not.
    fn refill_all(&mut self, out: &mut Vec<Output>) {
        for snubbed in [false, true] {
            let alike = self.links.iter().filter(|(_, link)| link.snubbed == snubbed);
            let peers: Vec<Peer> = alike.map(|(peer, _)| *peer).collect();
            peers.into_iter().for_each(|peer| self.request_more(peer, out));
        }
    }

    fn request_more(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let mut forgotten = Vec::new();
        while let Some(link) = self.links.get_mut(&peer) {
            if link.wanted == 0 || link.outstanding.len() >= link.window(self.policy.pipeline_blocks) {
                break;
            }
            let place = self.picker.pick(&link.asker(peer), &mut self.chance, &mut forgotten);
            out.extend(forgotten.drain(..).map(Output::Forget));
            let Some(place) = place else { break };
            if link.outstanding.is_empty() {
                link.owed_since = self.now;
            }
            link.outstanding.push(place);
            self.wake(self.now + self.policy.request_timeout);
            self.say(peer, Message::Request(self.shape.block(place.piece, place.index)), out);
        }
    }

    fn arrived(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        let place = Place { piece: block.piece, index: block.offset / BLOCK_BYTES };
        let Some(link) = self.links.get_mut(&peer) else { return };
        let (id, ip) = (link.id, link.address.ip());
        link.heard = self.now;
        let is_ours = self.shape.contains(block) && self.shape.block(place.piece, place.index) == block;
        let asked = is_ours && link.settle(place);
        if !asked && !(is_ours && link.was_forgiven(place)) {
            self.ledger.wasted(id, ip, block.length);
            return self.drop_peer(peer, Why::Unsolicited(block), out);
        }
        link.owed_since = self.now;
        link.snubbed = false;
        // On parole only pieces of its own count, and those are still asked.
        let arrival = if link.on_parole && !asked { Arrival::Wasted } else { self.picker.arrived(peer, place, asked) };
        match arrival {
            Arrival::Wasted => self.ledger.wasted(id, ip, block.length),
            Arrival::Kept { also_asked, completes } => {
                link.count_received(block.length);
                self.ledger.kept(id, ip, block.length);
                out.push(Output::Keep(peer, block));
                if also_asked {
                    self.cancel_everywhere(|owed| *owed == place, out);
                }
                if completes {
                    out.push(Output::Verify(place.piece));
                }
            }
        }
        self.refill(peer, out);
    }

    /// Takes requests back that are no longer needed from anybody, and gives
    /// those peers something else to do.
    fn cancel_everywhere(&mut self, unneeded: impl Fn(&Place) -> bool, out: &mut Vec<Output>) {
        let mut free = Vec::new();
        for (peer, link) in &mut self.links {
            let cancelled: Vec<Place> = link.outstanding.extract_if(.., |owed| unneeded(owed)).collect();
            for place in cancelled {
                link.forgive(place);
                link.said = self.now;
                out.push(Output::Say(*peer, Message::Cancel(self.shape.block(place.piece, place.index))));
                free.push(*peer);
            }
        }
        free.dedup();
        free.into_iter().for_each(|peer| self.request_more(peer, out));
    }

    /// Forgets what a peer owes us; it may still send it.
    fn take_back(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let owed = std::mem::take(&mut link.outstanding);
        owed.iter().for_each(|&place| link.forgive(place));
        self.release(peer, &owed, out);
    }

    fn release(&mut self, peer: Peer, owed: &[Place], out: &mut Vec<Output>) {
        owed.iter().for_each(|&place| self.picker.released(place));
        out.extend(self.picker.disowned(peer).into_iter().map(Output::Forget));
    }

    fn verified(&mut self, piece: u32, out: &mut Vec<Output>) {
        if !self.have.insert(piece) {
            return;
        }
        // A piece may also come another way, multicast for one.
        let came_otherwise = !self.picker.awaits_verdict(piece);
        self.left -= u64::from(self.shape.piece_bytes(piece));
        let supply = self.picker.succeeded(piece);
        self.praise(supply.contributors.keys().copied().collect());
        if came_otherwise {
            self.cancel_everywhere(|owed| owed.piece == piece, out);
        }
        self.tell_everybody(piece, out);
        if self.have.is_full() {
            self.completed(out);
        }
    }

    fn praise(&mut self, contributors: Vec<Peer>) {
        let alone = contributors.len() == 1;
        for peer in contributors {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            self.book.praise(link.address);
            if alone {
                link.on_parole = false;
            }
        }
    }

    /// Peers that have the piece need not be told that we have it too.
    fn tell_everybody(&mut self, piece: u32, out: &mut Vec<Output>) {
        let peers: Vec<Peer> = self.links.keys().copied().collect();
        for peer in peers {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            if link.has.contains(piece) {
                link.wanted -= 1;
                self.want(peer, out);
            } else {
                self.say(peer, Message::Have(piece), out);
            }
        }
    }

    fn completed(&mut self, out: &mut Vec<Output>) {
        self.herald.complete(self.now);
        self.due = self.now;
        out.push(Output::Complete);
        let full: Vec<Peer> = self.links.iter().filter(|(_, link)| link.has.is_full()).map(|(peer, _)| *peer).collect();
        full.into_iter().for_each(|peer| self.drop_peer(peer, Why::BothComplete, out));
    }

    /// One contributor is a liar by itself. Of several we know only that one
    /// is; each then gets whole pieces of its own until one proves it.
    fn corrupt(&mut self, piece: u32, out: &mut Vec<Output>) {
        if !self.picker.awaits_verdict(piece) {
            return;
        }
        self.failed_pieces += 1;
        let supply = self.picker.failed(piece);
        for (&peer, &bytes) in &supply.contributors {
            if let Some((id, address)) = self.identity(peer) {
                self.ledger.spoiled(id, address.ip(), bytes);
            }
        }
        let mut contributors = supply.contributors.into_keys();
        match (contributors.next(), contributors.next()) {
            (Some(liar), None) => self.expose(liar, piece, out),
            (first, second) => first.into_iter().chain(second).chain(contributors).for_each(|peer| {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.on_parole = true;
                    self.cancel_all_of(peer, out);
                }
            }),
        }
        self.refill_all(out);
    }

    fn expose(&mut self, liar: Peer, piece: u32, out: &mut Vec<Output>) {
        if let Some((id, address)) = self.identity(liar) {
            self.drop_peer(liar, Why::CorruptPiece(piece), out);
            self.ban(id, address);
        }
    }

    fn cancel_all_of(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let owed = self.links.get(&peer).map(|link| link.outstanding.clone()).unwrap_or_default();
        self.take_back(peer, out);
        for place in owed {
            self.say(peer, Message::Cancel(self.shape.block(place.piece, place.index)), out);
        }
    }
}

/// What happens because time passes.
impl Engine {
    fn wake(&mut self, at: Duration) {
        self.due = self.due.min(at);
    }

    fn housekeep(&mut self, out: &mut Vec<Output>) {
        // Everything below may set an earlier time again.
        self.due = Duration::MAX;
        let peers: Vec<Peer> = self.links.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.check_peer(peer, out));
        self.choke_round(out);
        self.announce(out);
        self.dial(out);
        self.due = self.next_due();
    }

    fn check_peer(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.heard + self.policy.silence <= self.now {
            return self.drop_peer(peer, Why::Silent, out);
        }
        if self.uplink.stalls_at(link).is_some_and(|at| at <= self.now) {
            self.uplink.stalled(link);
            self.feed_uplink(out);
        }
        self.check_debts(peer, out);
        let said = self.links.get(&peer).map(|link| link.said);
        if said.is_some_and(|said| said + self.policy.keep_alive <= self.now) {
            self.say(peer, Message::KeepAlive, out);
        }
    }

    fn check_debts(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if !link.outstanding.is_empty() && link.owed_since + self.policy.request_timeout <= self.now {
            link.snubbed = true;
            self.cancel_all_of(peer, out);
            self.refill_all(out);
        }
    }

    fn choke_round(&mut self, out: &mut Vec<Output>) {
        if self.choker.deadline().is_none_or(|due| due > self.now) {
            return;
        }
        let new_for = 3 * self.policy.choke_round;
        let standings: Vec<_> =
            self.links.iter_mut().map(|(peer, link)| link.standing(*peer, self.now, new_for)).collect();
        let unchoked = self.choker.round(self.now, &standings, self.have.is_full(), &mut self.chance);
        for standing in standings {
            self.set_choke(standing.peer, unchoked.binary_search(&standing.peer).is_err(), out);
        }
        self.feed_uplink(out);
    }

    fn set_choke(&mut self, peer: Peer, choke: bool, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        if link.we_choke == choke {
            return;
        }
        link.we_choke = choke;
        if choke {
            link.queue.clear();
        }
        self.say(peer, if choke { Message::Choke } else { Message::Unchoke }, out);
    }

    fn announce(&mut self, out: &mut Vec<Output>) {
        if let Some(event) = self.herald.due(self.now, self.is_hungry()) {
            out.push(Output::Announce(self.progress(event)));
        }
    }

    fn is_hungry(&self) -> bool {
        !self.have.is_full() && self.links.len() + self.book.dialling() < HUNGRY_PEERS
    }

    fn dial(&mut self, out: &mut Vec<Output>) {
        self.book.expire(self.now, &mut self.chance);
        while self.may_dial() {
            let ids = &self.ids;
            let address = self.book.dial(self.now, |id| ids.contains_key(id), &mut self.chance);
            let Some(address) = address else { break };
            out.push(Output::Dial(address));
        }
    }

    /// A complete peer is found by those who need it.
    fn may_dial(&self) -> bool {
        !self.have.is_full() && self.links.len() + self.book.dialling() < self.policy.dial_peers
    }

    fn next_due(&self) -> Duration {
        let links = self.links.values().map(|link| self.link_due(link));
        let others = [
            self.choker.deadline(),
            self.herald.deadline(self.is_hungry()),
            self.book.deadline(self.now, self.may_dial()),
        ];
        links.chain(others.into_iter().flatten()).min().unwrap_or(Duration::MAX)
    }

    fn link_due(&self, link: &Link) -> Duration {
        let debts =
            if link.outstanding.is_empty() { Duration::MAX } else { link.owed_since + self.policy.request_timeout };
        let stall = self.uplink.stalls_at(link).unwrap_or(Duration::MAX);
        let silence = (link.heard + self.policy.silence).min(link.said + self.policy.keep_alive);
        debts.min(stall).min(silence)
    }
}
