//! What the engine knows of one connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use wire::peer::{Block, PeerId};

use crate::choker::Standing;
use crate::io::{Peer, PeerView, Side};
use crate::picker::{Asker, Place};
use crate::pieceset::PieceSet;

/// Requests taken back whose blocks may still be on their way. More than this
/// many cannot be, for an honest peer.
const MAX_STALE: usize = 256;

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: PeerId,
    pub(crate) address: SocketAddr,
    pub(crate) side: Side,
    pub(crate) since: Duration,
    pub(crate) heard: Duration,
    pub(crate) said: Duration,

    pub(crate) has: PieceSet,
    /// Pieces it has and we miss.
    pub(crate) wanted: u32,
    pub(crate) bitfield_seen: bool,
    pub(crate) we_want: bool,
    pub(crate) chokes_us: bool,
    pub(crate) outstanding: Vec<Place>,
    /// When it last made progress on what it owes us.
    pub(crate) owed_since: Duration,
    pub(crate) snubbed: bool,
    /// The block that a snubbed peer was asked for to see whether it answers.
    pub(crate) probe: Option<Place>,
    pub(crate) on_parole: bool,
    stale: VecDeque<Place>,

    pub(crate) wants_us: bool,
    pub(crate) we_choke: bool,
    pub(crate) queue: VecDeque<Block>,
    /// Blocks given to the driver and not reported sent.
    pub(crate) in_flight: usize,
    /// When the driver last took or sent a block.
    pub(crate) sending_since: Duration,
    /// Its socket takes nothing; it no longer counts against the uplink.
    pub(crate) stalled: bool,
    /// When it was last served, as a running number.
    pub(crate) served: u64,
    /// Since when requests of it have been waiting without service.
    pub(crate) waiting_since: Duration,

    proven: bool,
    received: Meter,
    sent: Meter,
}

/// Bytes of the running and the last choke round.
#[derive(Debug, Default)]
struct Meter {
    running: u64,
    last: u64,
}

impl Meter {
    fn turn(&mut self) -> u64 {
        let both = self.running + self.last;
        self.last = std::mem::take(&mut self.running);
        both
    }
}

impl Link {
    pub(crate) fn new(id: PeerId, address: SocketAddr, side: Side, pieces: u32, now: Duration) -> Link {
        Link {
            id,
            address,
            side,
            since: now,
            heard: now,
            said: now,
            has: PieceSet::empty(pieces),
            wanted: 0,
            bitfield_seen: false,
            we_want: false,
            chokes_us: true,
            outstanding: Vec::new(),
            owed_since: now,
            snubbed: false,
            probe: None,
            on_parole: false,
            stale: VecDeque::new(),
            wants_us: false,
            we_choke: true,
            queue: VecDeque::new(),
            in_flight: 0,
            sending_since: now,
            stalled: false,
            served: 0,
            waiting_since: now,
            proven: false,
            received: Meter::default(),
            sent: Meter::default(),
        }
    }

    pub(crate) fn asker(&self, peer: Peer) -> Asker<'_> {
        Asker { peer, has: &self.has, outstanding: &self.outstanding, on_parole: self.on_parole }
    }

    /// Requests that may be outstanding. A snubbed peer gets none that others
    /// would wait for; one that never delivered takes at most an eighth of
    /// the memory for unverified blocks, so mute peers cannot fill it one
    /// after the other.
    pub(crate) fn window(&self, pipeline: usize, memory_blocks: usize) -> usize {
        if self.chokes_us || self.snubbed {
            0
        } else if self.proven {
            pipeline
        } else {
            pipeline.min((memory_blocks / 8).max(1))
        }
    }

    /// It owes us blocks, or at least a sign of life.
    pub(crate) fn owes(&self) -> bool {
        self.snubbed || !self.outstanding.is_empty()
    }

    /// Removes an outstanding request; false when there is none.
    pub(crate) fn settle(&mut self, place: Place) -> bool {
        let at = self.outstanding.iter().position(|owed| *owed == place);
        at.map(|at| self.outstanding.remove(at)).is_some()
    }

    /// Remembers that the block of a request taken back may still come.
    pub(crate) fn forgive(&mut self, place: Place) {
        if self.stale.len() == MAX_STALE {
            self.stale.pop_front();
        }
        self.stale.push_back(place);
    }

    /// Whether the block was taken back before; forgotten once it came.
    pub(crate) fn was_forgiven(&mut self, place: Place) -> bool {
        let at = self.stale.iter().position(|stale| *stale == place);
        at.and_then(|at| self.stale.remove(at)).is_some()
    }

    /// It delivered something of use.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven
    }

    pub(crate) fn count_received(&mut self, bytes: u32) {
        self.proven = true;
        self.received.running += u64::from(bytes);
    }

    pub(crate) fn count_sent(&mut self, bytes: u32) {
        self.sent.running += u64::from(bytes);
    }

    /// What a choker sees; closes the running round of the meters.
    pub(crate) fn standing(&mut self, peer: Peer, now: Duration, new_for: Duration) -> Standing {
        Standing {
            peer,
            interested: self.wants_us,
            snubbed: self.snubbed,
            new: now.saturating_sub(self.since) < new_for,
            received: self.received.turn(),
            sent: self.sent.turn(),
        }
    }

    /// Nobody would miss the connection.
    pub(crate) fn is_idle(&self) -> bool {
        !self.we_want && !self.wants_us && self.in_flight == 0
    }

    pub(crate) fn view(&self, peer: Peer) -> PeerView {
        PeerView {
            peer,
            id: self.id,
            address: self.address,
            side: self.side,
            pieces: self.has.count(),
            we_choke: self.we_choke,
            chokes_us: self.chokes_us,
            we_want: self.we_want,
            wants_us: self.wants_us,
            snubbed: self.snubbed,
            outstanding: self.outstanding.len(),
            queued: self.queue.len() + self.in_flight,
        }
    }
}
