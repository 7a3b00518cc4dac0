//! The engine of one download or seed: one door, [`Engine::step`]. What it
//! does at that door is told in chapters: peers come and go, messages, what
//! foreign clients and kin are told of each other, racks and their lanes, what
//! a seed offers, what comes from kin, pulling, serving, blocks and pieces, and
//! upkeep, which is all that happens because time passes.

mod blocks;
mod exchange;
mod intake;
mod loss;
mod messages;
mod news;
mod offers;
mod peers;
mod pull;
mod racks;
mod serve;
mod upkeep;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use wire::announce::{Event, Guidance};
use wire::peer::PeerId;

use crate::book::Book;
use crate::chance::Chance;
use crate::choker::TitForTat;
use crate::herald::Herald;
use crate::io::{Input, Output, Peer, Progress, Setup, Verdict, View};
use crate::ledger::{Ledger, Party};
use crate::links::Links;
use crate::picker::{Picker, Run};
use crate::pieceset::PieceSet;
use crate::policy::{ChokerKind, Policy};
use crate::shape::Shape;
use crate::time::Time;
use crate::uplink::Uplink;
use news::News;
use racks::Racks;

/// The state of one download or seed.
#[derive(Debug)]
pub struct Engine {
    me: PeerId,
    shape: Shape,
    policy: Policy,
    now: Time,
    /// Nothing that depends on time alone happens before this.
    due: Time,
    have: PieceSet,
    /// Not to be fetched: the driver writes them.
    twins: PieceSet,
    left: u64,
    private: bool,
    /// We work for the whole swarm, and kin are told so.
    cooperative: bool,
    links: Links,
    /// How many of them are kin.
    kin: usize,
    departed: VecDeque<Departed>,
    banned: BTreeSet<PeerId>,
    picker: Picker,
    racks: Racks,
    choker: TitForTat,
    book: Book,
    herald: Herald,
    ledger: Ledger,
    chance: Chance,
    failed_pieces: u64,

    uplink: Uplink,
    /// What a seed sends, it chooses; of few long pieces everybody does.
    offering: Option<offers::Offering>,
    everybody_offers: bool,
    /// Pieces that rack mates and others owe us.
    owed_near: usize,
    owed_far: usize,
    /// More may be asked of somebody.
    has_room: bool,
    /// Whom to ask. Kept for its memory.
    mates: Vec<u32>,
    /// How long a piece from kin takes; nothing while unknown.
    piece_time: Duration,
    /// From a request of ours until its first bytes come, as long as it was
    /// lately.
    wait: Duration,
    /// Pieces of which kin were not told, and of which seeds were not.
    news: News,
    later_news: News,
    /// When what was coming ended, or we asked whoever we could.
    hungry_since: Time,
    next_exchange: Time,
    fresh: Vec<Run>,
}

/// A peer that left, to name a liar that left before the hash was known.
#[derive(Debug)]
struct Departed {
    peer: Peer,
    address: SocketAddr,
    listened_at: Option<SocketAddr>,
    at: Time,
    party: Party,
}

impl Engine {
    /// An engine that begins with `setup`. `me` is the peer id that the driver
    /// puts into its handshakes. The same `seed` and inputs give the same
    /// outputs.
    pub fn new(me: PeerId, setup: Setup, policy: Policy, seed: u64) -> Engine {
        let everybody_offers = policy.everybody_offers(&setup.shape);
        let policy = policy.for_shape(&setup.shape);
        let Setup { shape, have, twins, rack, ours, private } = setup;
        let (have, twins) = (have.fitted(shape.pieces()), twins.fitted(shape.pieces()));
        let missing = (0..shape.pieces()).filter(|&piece| !have.contains(piece));
        let cooperative = match policy.choker {
            ChokerKind::Cooperative => true,
            ChokerKind::TitForTat => false,
            ChokerKind::Auto => private && ours,
        };
        Engine {
            me,
            shape,
            now: Time::ZERO,
            due: Time::ZERO,
            left: missing.map(|piece| u64::from(shape.piece_bytes(piece))).sum(),
            private,
            cooperative,
            links: Links::default(),
            kin: 0,
            departed: VecDeque::new(),
            banned: BTreeSet::new(),
            picker: Picker::new(shape, &have.union(&twins), &policy),
            racks: Racks::new(rack),
            choker: TitForTat::new(&policy),
            book: Book::new(&policy),
            herald: Herald::new(&policy),
            ledger: Ledger::default(),
            chance: Chance::new(seed, 1),
            failed_pieces: 0,
            uplink: Uplink::new(&policy, if have.is_full() { policy.seed_uploads } else { policy.uploads }),
            offering: (have.is_full() || everybody_offers)
                .then(|| offers::Offering::new(have.is_full(), shape.pieces())),
            everybody_offers,
            owed_near: 0,
            owed_far: 0,
            has_room: false,
            mates: Vec::new(),
            piece_time: Duration::ZERO,
            wait: Duration::ZERO,
            news: News::none(),
            later_news: News::none(),
            hungry_since: Time::ZERO,
            next_exchange: Time::MAX,
            fresh: Vec::new(),
            have,
            twins,
            policy,
        }
    }

    /// Takes one input at time `now` (any monotonic origin) and appends what
    /// has to be done to `out`, in order. The first step also announces.
    pub fn step(&mut self, now: Duration, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now.into());
        match input {
            Input::Announced { interval, peers, guidance } => self.announced(interval, &peers, guidance, out),
            Input::AnnounceFailed => {
                self.herald.failed(self.now.duration());
                self.due = self.now;
            }
            Input::Found(peers) => self.found(&peers, false),
            Input::Connected { peer, side, address, id, speaks } => {
                self.connected(peer, side, address, id, speaks, out);
            }
            Input::DialFailed(address) => {
                self.book.failed(address, self.now.duration(), &mut self.chance);
                self.due = self.now;
            }
            Input::Said(peer, message) => self.said(peer, message, out),
            Input::Arrived(peer, block) => self.arrived(peer, block, out),
            Input::Sent(peer, block) => self.sent(peer, block, out),
            Input::Verified(piece, Verdict::Good) => self.verified(piece, out),
            Input::Verified(piece, Verdict::Corrupt) => self.corrupt(piece, out),
            Input::Verified(piece, Verdict::CorruptBlocks(blocks)) => self.corrupt_blocks(piece, &blocks, out),
            Input::Lost(pieces) => self.lost(&pieces, out),
            Input::Gone(peer) => {
                self.remove(peer, out);
            }
            Input::Tick => {}
        }
        if self.due <= self.now {
            self.housekeep(out);
        }
        self.pull(out);
        self.tell_news(out);
    }

    fn announced(
        &mut self,
        interval: Duration,
        peers: &[SocketAddr],
        guidance: Option<Guidance>,
        out: &mut Vec<Output>,
    ) {
        self.herald.answered(self.now.duration(), interval);
        let chosen = guidance.is_some();
        if let Some(guidance) = guidance {
            self.guided(guidance, out);
        }
        self.found(peers, chosen);
    }

    /// Reads what the next step will need first of the engine itself, and changes
    /// nothing. Who steps very many engines in turn waits for memory most of
    /// the time; looked at beforehand together, they are waited for together.
    /// The number has no meaning.
    pub fn look(&self) -> usize {
        self.links.len() ^ self.owed_near ^ self.news.len() ^ self.kin ^ self.picker.active_pieces() ^ self.mates.len()
    }

    /// The same of what belongs to one peer, after [`Engine::look`].
    pub fn look_at(&self, peer: Peer) -> usize {
        self.links.get(peer).map_or(0, crate::peer::Link::look)
    }

    /// When to step with `Tick` if nothing else happens before.
    pub fn deadline(&self) -> Option<Duration> {
        (self.due < Time::MAX).then(|| self.due.duration())
    }

    /// A summary.
    pub fn view(&self) -> View {
        View {
            pieces: self.have.count(),
            pieces_total: self.shape.pieces(),
            left: self.left,
            active_pieces: self.picker.active_pieces(),
            peers: self.links.iter().map(crate::peer::Link::view).collect(),
            dialling: self.book.dialling(),
            failed_pieces: self.failed_pieces,
            cooperative: self.cooperative,
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

    /// What we call ourselves.
    pub fn id(&self) -> PeerId {
        self.me
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
