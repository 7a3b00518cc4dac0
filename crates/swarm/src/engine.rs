//! The engine of one download or seed: one door, [`Engine::step`]. What it
//! does at that door is told in four chapters: peers come and go, messages,
//! blocks and pieces, and upkeep, which is all that happens because time
//! passes.

mod blocks;
mod messages;
mod peers;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use wire::announce::Event;
use wire::peer::PeerId;

use crate::book::Book;
use crate::chance::Chance;
use crate::choker::{Choker, choker};
use crate::herald::Herald;
use crate::io::{Input, Output, Peer, Progress, Setup, Verdict, View};
use crate::ledger::Ledger;
use crate::peer::Link;
use crate::picker::Picker;
use crate::pieceset::PieceSet;
use crate::policy::Policy;
use crate::shape::Shape;
use crate::uplink::Uplink;

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
    /// An engine that begins with `setup`. `me` is the peer id that the driver
    /// puts into its handshakes. The same `seed` and inputs give the same
    /// outputs.
    pub fn new(me: PeerId, setup: Setup, policy: Policy, seed: u64) -> Engine {
        let Setup { shape, have, .. } = setup;
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
            Input::Announced { interval, peers, guidance: _ } => {
                self.herald.answered(self.now, interval);
                self.found(&peers);
            }
            Input::AnnounceFailed => {
                self.herald.failed(self.now);
                self.due = self.now;
            }
            Input::Found(peers) => self.found(&peers),
            Input::Connected { peer, side, address, id, speaks: _ } => self.connected(peer, side, address, id, out),
            Input::DialFailed(address) => {
                self.book.failed(address, self.now, &mut self.chance);
                self.due = self.now;
            }
            Input::Said(peer, message) => self.said(peer, message, out),
            Input::Arrived(peer, block) => self.arrived(peer, block, out),
            Input::Sent(peer, block) => self.sent(peer, block, out),
            Input::Verified(piece, Verdict::Good) => self.verified(piece, out),
            Input::Verified(piece, _) => self.corrupt(piece, out),
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
