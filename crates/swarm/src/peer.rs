//! What the engine knows of one connection.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::peer::{Block, PeerId, RackHello};

use crate::choker::Standing;
use crate::holding::Holding;
use crate::io::{Peer, PeerView, Side, Speaks};
use crate::picker::{Asker, Run};
use crate::time::{Time, bytes_in};

/// Requests taken back whose blocks may still be on their way. More than this
/// many cannot be, for an honest peer.
const MAX_STALE: usize = 256;

/// Pieces that a peer declined and that are not offered to it again for a
/// while.
const DECLINED: usize = 4;

/// Fewest requests to a foreign client: many answer in batches.
const MIN_WINDOW: usize = 16;

/// Most requests to a foreign client, whatever it says it takes.
const MAX_WINDOW: usize = 500;

/// How a peer is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It speaks the extension protocol but has not said what it is.
    Unknown,
    /// Another client, or one of ours that does not cooperate: it pulls, we
    /// pull, and slots are given tit for tat.
    Foreign,
    /// One of ours: everybody serves everybody, and seeds choose what they send.
    Kin,
}

/// A piece suggested and not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) piece: u32,
    pub(crate) at: Time,
}

/// One connection. Swarms of many nodes are simulated, and there the time goes
/// into waiting for memory: what a search over all connections looks at comes
/// first, in the lines of the cache that are named, and what is rarely needed
/// last.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Link {
    pub(crate) peer: Peer,
    /// Its rack, as an index into the engine's list.
    pub(crate) rack: u16,
    pub(crate) kind: Kind,
    pub(crate) snubbed: bool,
    /// It chooses by itself what to send to whom.
    pub(crate) offers: bool,
    pub(crate) on_parole: bool,
    /// It takes nothing of what it asked for; others are served beside it.
    pub(crate) stalled: bool,
    /// What we asked for last has begun to come.
    pub(crate) comes: bool,
    /// Offers declined in a row.
    pub(crate) declines: u8,
    /// Times in a row that it did not answer, or refused what it claims.
    pub(crate) strikes: u8,
    proven: bool,
    pub(crate) map_seen: bool,
    /// Pieces it has and we want.
    pub(crate) wanted: u32,
    /// Pieces we have and it misses.
    pub(crate) useful: u32,
    /// Bytes given to the driver and not reported sent.
    pub(crate) in_flight: u32,
    /// The lanes of its rack that it takes across, or asked to hear of.
    pub(crate) lanes: u64,
    /// When it will have sent what was asked of it, as far as we know.
    pub(crate) free_at: Time,
    /// No piece is offered to it before.
    pub(crate) rests_until: Time,

    // Second line.
    pub(crate) said: Time,
    pub(crate) heard: Time,
    pub(crate) queue: VecDeque<Block>,
    pub(crate) offer: Option<Offer>,

    // Third.
    pub(crate) has: Holding,
    pub(crate) outstanding: Vec<Run>,
    /// When it last made progress on what it owes us.
    pub(crate) owed_since: Time,

    // Fourth.
    /// When the running transfer from kin was requested.
    pub(crate) asked_at: Time,
    /// When the driver last took or sent something.
    pub(crate) sending_since: Time,
    /// When it was last served, as a running number.
    pub(crate) served: u64,
    stale: VecDeque<Run>,
    /// The piece of which parts were handed over and others are in the queue.
    pub(crate) sending: Option<u32>,

    declined: [u32; DECLINED],
    pub(crate) since: Time,
    /// When it was last told of other peers.
    pub(crate) exchanged: Time,
    /// Longest range that it serves as one request.
    pub(crate) max_request: u32,
    pub(crate) id: PeerId,
    pub(crate) address: SocketAddr,
    /// Where it listens, if it said so.
    pub(crate) listen_port: Option<u16>,
    pub(crate) side: Side,
    pub(crate) speaks: Speaks,
    /// It understands peer exchange.
    pub(crate) exchanges: bool,
    pub(crate) we_want: bool,
    pub(crate) chokes_us: bool,
    pub(crate) wants_us: bool,
    pub(crate) we_choke: bool,
    pub(crate) foreign: Option<Box<Foreign>>,
    /// What one of ours said while we did not cooperate.
    pub(crate) hello: Option<Box<RackHello>>,
}

/// What only foreign clients need.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    /// The block that a snubbed peer was asked for to see whether it answers.
    pub(crate) probe: Option<Run>,
    /// Pieces that we serve while choking, and that it serves while choking.
    pub(crate) allowed_to_it: Vec<u32>,
    pub(crate) allowed_to_us: Vec<u32>,
    /// Requests that it keeps at most.
    pub(crate) request_queue: Option<u32>,
    received: Meter,
    sent: Meter,
    window: Window,
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

/// Bandwidth and delay of what a foreign client sends us.
#[derive(Debug, Default)]
struct Window {
    /// A request whose answer is timed.
    timed: Option<(Run, Time)>,
    /// Shortest time seen from a request to its block.
    delay: Option<Duration>,
    /// Bytes per second.
    rate: u64,
    since: Time,
    bytes: u64,
}

impl Window {
    fn arrived(&mut self, run: Run, bytes: u32, now: Time) {
        if let Some((_, asked)) = self.timed.take_if(|(timed, _)| *timed == run) {
            let delay = now - asked;
            self.delay = Some(self.delay.map_or(delay, |least| least.min(delay)));
        }
        self.bytes += u64::from(bytes);
        let took = now - self.since;
        if took >= Duration::from_secs(1) {
            let sample = u128::from(self.bytes) * 1_000_000_000 / took.as_nanos();
            let sample = u64::try_from(sample).unwrap_or(u64::MAX);
            // A pause between downloads says nothing about the bandwidth.
            let counts = took < Duration::from_secs(3);
            self.rate = if counts { (self.rate + sample) / 2 } else { self.rate };
            (self.since, self.bytes) = (now, 0);
        }
    }

    /// Twice bandwidth times delay, so that a faster peer shows.
    fn requests(&self, block_bytes: u32) -> usize {
        let delay = self.delay.unwrap_or_default();
        usize::try_from(2 * bytes_in(delay, self.rate) / u64::from(block_bytes)).unwrap_or(usize::MAX)
    }
}

impl Link {
    pub(crate) fn new(
        peer: Peer,
        id: PeerId,
        address: SocketAddr,
        side: Side,
        speaks: Speaks,
        pieces: u32,
        now: Time,
    ) -> Link {
        Link {
            peer,
            id,
            address,
            side,
            speaks,
            kind: if speaks.extended { Kind::Unknown } else { Kind::Foreign },
            exchanges: false,
            exchanged: Time::ZERO,
            listen_port: None,
            rack: 0,
            lanes: 0,
            max_request: wire::peer::BLOCK_BYTES,
            since: now,
            heard: now,
            said: now,
            has: Holding::nothing(pieces),
            wanted: 0,
            useful: 0,
            map_seen: false,
            we_want: false,
            chokes_us: true,
            outstanding: Vec::new(),
            asked_at: now,
            comes: false,
            owed_since: now,
            snubbed: false,
            strikes: 0,
            on_parole: false,
            proven: false,
            stale: VecDeque::new(),
            wants_us: false,
            we_choke: true,
            queue: VecDeque::new(),
            sending: None,
            in_flight: 0,
            sending_since: now,
            stalled: false,
            served: 0,
            offer: None,
            rests_until: Time::ZERO,
            offers: false,
            free_at: Time::ZERO,
            declined: [u32::MAX; DECLINED],
            declines: 0,
            foreign: Some(Box::default()),
            hello: None,
        }
    }

    /// Looks into each of the lines that a step may need.
    pub(crate) fn look(&self) -> usize {
        self.wanted as usize ^ self.queue.len() ^ self.outstanding.len() ^ self.stale.len() ^ self.has.word(0)
    }

    pub(crate) fn is_kin(&self) -> bool {
        self.kind == Kind::Kin
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Where others can reach it, if known.
    pub(crate) fn listens_at(&self) -> Option<SocketAddr> {
        match (self.side, self.listen_port) {
            (Side::Outbound, _) => Some(self.address),
            (Side::Inbound, Some(port)) => Some(SocketAddr::new(self.address.ip(), port)),
            (Side::Inbound, None) => None,
        }
    }

    pub(crate) fn asker(&self) -> Asker<'_> {
        let last = self.outstanding.last().map(|run| run.piece);
        Asker { peer: self.peer, has: &self.has, busy_with: last, on_parole: self.on_parole }
    }

    /// Blocks it owes us.
    pub(crate) fn owes_blocks(&self) -> usize {
        self.outstanding.iter().map(|run| run.count as usize).sum()
    }

    /// Pieces of which it owes us blocks.
    pub(crate) fn owes_pieces(&self) -> usize {
        // Blocks of one piece stand side by side.
        let starts = self.outstanding.windows(2).filter(|pair| pair[0].piece != pair[1].piece).count();
        starts + usize::from(!self.outstanding.is_empty())
    }

    /// Requests that may be outstanding with a foreign client. A snubbed one
    /// gets none that others would wait for; one that never delivered takes at
    /// most an eighth of the memory for unverified blocks, so mute peers cannot
    /// fill it one after the other.
    pub(crate) fn window(&self, pipeline: usize, memory_blocks: usize, block_bytes: u32) -> usize {
        let Some(foreign) = self.foreign.as_ref().filter(|_| !self.snubbed) else { return 0 };
        let limit = foreign.request_queue.map_or(MAX_WINDOW, |queue| queue as usize).clamp(1, MAX_WINDOW);
        let window = foreign.window.requests(block_bytes).max(pipeline).max(MIN_WINDOW).min(limit);
        if self.proven { window } else { pipeline.min((memory_blocks / 8).max(1)).min(limit) }
    }

    /// It owes us blocks, or at least a sign of life.
    pub(crate) fn owes(&self) -> bool {
        self.snubbed || !self.outstanding.is_empty()
    }

    /// Takes these blocks out of what it owes us; false when it does not owe
    /// all of them.
    pub(crate) fn settle(&mut self, run: Run) -> bool {
        let Some(at) = self.outstanding.iter().position(|owed| owed.covers(run)) else { return false };
        let owed = self.outstanding[at];
        let (before, after) = owed.without(run);
        match (before, after) {
            (None, None) => drop(self.outstanding.remove(at)),
            (Some(rest), None) | (None, Some(rest)) => self.outstanding[at] = rest,
            (Some(before), Some(after)) => {
                self.outstanding[at] = before;
                self.outstanding.insert(at + 1, after);
            }
        }
        true
    }

    /// Remembers that the blocks of a request taken back may still come.
    pub(crate) fn forgive(&mut self, run: Run) {
        if self.stale.len() == MAX_STALE {
            self.stale.pop_front();
        }
        self.stale.push_back(run);
    }

    /// A piece of which it has not answered what was taken back.
    pub(crate) fn leaves_open(&self) -> Option<u32> {
        self.stale.front().map(|stale| stale.piece)
    }

    /// Whether it has not yet answered what was taken back of this piece. Asked
    /// again before, its answer could be to either request.
    pub(crate) fn leaves_open_of(&self, piece: u32) -> bool {
        self.stale.iter().any(|stale| stale.piece == piece)
    }

    /// Whether these blocks were taken back before; forgotten once they came.
    pub(crate) fn was_forgiven(&mut self, run: Run) -> bool {
        let Some(at) = self.stale.iter().position(|stale| stale.covers(run)) else { return false };
        let Some(stale) = self.stale.remove(at) else { return false };
        let (before, after) = stale.without(run);
        self.stale.extend(before.into_iter().chain(after));
        true
    }

    /// It delivered something of use.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven
    }

    /// A request goes out, and nobody is asked for the same before the answer.
    pub(crate) fn clock_request(&mut self, run: Run, now: Time) {
        if let Some(foreign) = &mut self.foreign {
            foreign.window.timed.get_or_insert((run, now));
        }
    }

    pub(crate) fn count_received(&mut self, run: Run, bytes: u32, now: Time) {
        self.proven = true;
        self.strikes = 0;
        if let Some(foreign) = &mut self.foreign {
            foreign.received.running += u64::from(bytes);
            foreign.window.arrived(run, bytes, now);
        }
    }

    pub(crate) fn count_sent(&mut self, bytes: u32) {
        if let Some(foreign) = &mut self.foreign {
            foreign.sent.running += u64::from(bytes);
        }
    }

    /// What a choker sees; closes the running round of the meters.
    pub(crate) fn standing(&mut self, now: Time, new_for: Duration) -> Option<Standing> {
        let foreign = self.foreign.as_mut()?;
        Some(Standing {
            peer: self.peer,
            interested: self.wants_us,
            snubbed: self.snubbed,
            new: now - self.since < new_for,
            received: foreign.received.turn(),
            sent: foreign.sent.turn(),
        })
    }

    /// Nobody would miss the connection.
    pub(crate) fn is_idle(&self) -> bool {
        !self.we_want && !self.wants_us && self.in_flight == 0 && self.kind != Kind::Kin
    }

    /// Nothing is on its way in either direction, nor asked.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.outstanding.is_empty() && self.queue.is_empty() && self.in_flight == 0 && self.offer.is_none()
    }

    pub(crate) fn decline(&mut self, piece: u32) {
        self.declined.rotate_right(1);
        self.declined[0] = piece;
    }

    pub(crate) fn has_declined(&self, piece: u32) -> bool {
        self.declined.contains(&piece)
    }

    /// Whatever it declined it may want again.
    pub(crate) fn forget_declined(&mut self) {
        self.declined = [u32::MAX; DECLINED];
    }

    pub(crate) fn view(&self) -> PeerView {
        PeerView {
            peer: self.peer,
            id: self.id,
            address: self.address,
            side: self.side,
            kin: self.is_kin(),
            pieces: self.has.count(),
            we_choke: self.we_choke,
            chokes_us: self.chokes_us,
            we_want: self.we_want,
            wants_us: self.wants_us,
            snubbed: self.snubbed,
            outstanding: self.owes_blocks(),
            queued: self.queue.len() + self.in_flight.div_ceil(wire::peer::BLOCK_BYTES) as usize,
        }
    }
}
