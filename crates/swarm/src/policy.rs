//! Everything about the engine's behaviour that may be tuned, as data: the
//! simulator sweeps it, the winner becomes the default.

use std::time::Duration;

use crate::shape::Shape;

/// Whether we work for the whole swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChokerKind {
    /// `Cooperative` when our own tracker says so, or when the torrent is
    /// private and was made by us; else `TitForTat`.
    Auto,
    /// Among our own kind everybody serves everybody: for swarms whose nodes all
    /// belong to one owner. Other clients still get their slots tit for tat.
    Cooperative,
    /// BEP 3 with everybody: a few slots for those who give most, one of them
    /// by chance.
    TitForTat,
}

/// The knobs of an engine. Every default says where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Default `Auto`. Tit-for-tat costs a factor of 1.5 to 2.4 in a swarm
    /// whose members want the same thing, and keeps strangers honest.
    pub choker: ChokerKind,
    /// Connections of either side at once. Default 128.
    pub max_peers: usize,
    /// We dial while fewer peers than this are connected; whom a tracker of our
    /// own kind chose for us, while there is any place. Default 40: beyond 20
    /// neighbours a random graph loses less than one per cent, and each costs
    /// announcements.
    pub dial_peers: usize,
    /// Addresses remembered for dialling. Default 1000.
    pub max_addresses: usize,
    /// Requests outstanding with a foreign client, in blocks, until bandwidth
    /// and delay are known to need more. Default 32, 512 KiB: twice their
    /// product at 10 Gbit/s and 0.2 ms.
    pub pipeline_blocks: usize,
    /// Memory for pieces that are not yet verified, in bytes; at least two
    /// pieces are always allowed. Default 16 MiB.
    pub active_bytes: u64,
    /// A foreign client that owes us a block and sends none for this long
    /// loses its requests. Default 10 s.
    pub request_timeout: Duration,
    /// How many peers may owe us the same block at the end. Default 2.
    pub endgame_copies: u8,
    /// Requests of one peer that may wait to be served; one more is a reason
    /// to drop it. Default 2048: four times what any client keeps in flight.
    pub max_queued_requests: usize,
    /// Blocks handed to the driver for one foreign client and not yet reported
    /// sent. Default 4, so one stuck peer never takes the whole uplink.
    pub peer_uplink_blocks: usize,
    /// Of the uplink's bytes foreign clients get one in so many while our own
    /// kind has work for it. Default 4.
    pub foreign_share: u32,
    /// Longest range that our own kind may ask of us at once, in bytes.
    /// Default 1 MiB: one request for most pieces.
    pub max_request_bytes: u32,
    /// Pieces asked of rack mates at once; half as many more where mates are
    /// many. Default 16: with fewer, uplinks are idle while those who share them
    /// wait elsewhere.
    pub pull_pieces: usize,
    /// The same across racks, for our lanes. Default 4.
    pub far_pieces: usize,
    /// Transfers to our own kind side by side. Default 8.
    pub uploads: usize,
    /// The same of a seed. Default 12: more than `uploads`, since its share of a
    /// receiver's downlink is one among theirs.
    pub seed_uploads: usize,
    /// One of our own kind that owes us a piece and sends nothing for this
    /// long, or four times as long as first bytes usually take, loses the
    /// request. Default 2 s.
    pub kin_timeout: Duration,
    /// A node that receives nothing for this long, or four times as long as
    /// pieces take if that is more, asks whoever it can. Default 2 s.
    pub starving: Duration,
    /// Our own kind says something at least this often. Default 5 s.
    pub kin_keep_alive: Duration,
    /// One of our own kind that says nothing for this long is dropped.
    /// Default 20 s.
    pub kin_silence: Duration,
    /// Unchoked peers (`TitForTat`). Default 4 (BEP 3).
    pub upload_slots: usize,
    /// How often slots are given anew (`TitForTat`). Default 10 s (BEP 3).
    pub choke_round: Duration,
    /// How often the peer chosen by chance changes (`TitForTat`). Default
    /// 30 s (BEP 3).
    pub optimistic_round: Duration,
    /// We say something at least this often. Default 2 min (BEP 3).
    pub keep_alive: Duration,
    /// A peer that says nothing for this long is dropped. Default 3 min: one
    /// keep-alive may come late.
    pub silence: Duration,
    /// A dial without an answer has failed after this. Default 10 s.
    pub dial_timeout: Duration,
    /// Wait before the second dial of an address; it doubles with each
    /// failure. Default 1 s.
    pub dial_backoff: Duration,
    /// Longest wait between dials of an address. Default 60 s.
    pub dial_backoff_max: Duration,
    /// Wait before an announce that failed is tried again; it doubles.
    /// Default 2 s, at most the announce interval.
    pub announce_retry: Duration,
    /// Announce interval until the tracker names its own. Default 60 s.
    pub announce_interval: Duration,
    /// An engine that has too few peers asks the tracker again after this
    /// even if its interval is longer. Default 10 s.
    pub announce_hungry: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            choker: ChokerKind::Auto,
            max_peers: 128,
            dial_peers: 40,
            max_addresses: 1000,
            pipeline_blocks: 32,
            active_bytes: 16 << 20,
            request_timeout: Duration::from_secs(10),
            endgame_copies: 2,
            max_queued_requests: 2048,
            peer_uplink_blocks: 4,
            foreign_share: 4,
            max_request_bytes: 1 << 20,
            pull_pieces: 16,
            far_pieces: 4,
            uploads: 8,
            seed_uploads: 12,
            kin_timeout: Duration::from_secs(2),
            starving: Duration::from_secs(2),
            kin_keep_alive: Duration::from_secs(5),
            kin_silence: Duration::from_secs(20),
            upload_slots: 4,
            choke_round: Duration::from_secs(10),
            optimistic_round: Duration::from_secs(30),
            keep_alive: Duration::from_secs(120),
            silence: Duration::from_secs(180),
            dial_timeout: Duration::from_secs(10),
            dial_backoff: Duration::from_secs(1),
            dial_backoff_max: Duration::from_secs(60),
            announce_retry: Duration::from_secs(2),
            announce_interval: Duration::from_secs(60),
            announce_hungry: Duration::from_secs(10),
        }
    }
}

/// With fewer pieces than this, fewer transfers run side by side.
const MANY_PIECES: usize = 1024;

/// Fewest that are, and fewest pieces asked at once.
const LEAST_AT_ONCE: usize = 3;

impl Policy {
    /// What runs side by side takes longer each, and each piece travels through
    /// several nodes one after the other: of few pieces fewer go at once, or
    /// that time is a large part of all (`uploads * hops / pieces` of it).
    pub(crate) fn for_shape(mut self, shape: &Shape) -> Policy {
        if self.everybody_offers(shape) {
            // Nobody collides with others unawares.
            (self.uploads, self.seed_uploads) = (1, 1);
            return self;
        }
        for most in [&mut self.pull_pieces, &mut self.uploads, &mut self.seed_uploads] {
            let fitting = most.saturating_mul(shape.pieces() as usize) / MANY_PIECES;
            *most = fitting.clamp(LEAST_AT_ONCE.min(*most), *most);
        }
        self
    }

    /// Whether all choose what they send to whom, as seeds do: pieces are few,
    /// so that what waits in queues costs much, and each takes so long that an
    /// answer's time is nothing beside it.
    pub(crate) fn everybody_offers(&self, shape: &Shape) -> bool {
        (shape.pieces() as usize) < MANY_PIECES && shape.piece_length() > self.max_request_bytes
    }
}
