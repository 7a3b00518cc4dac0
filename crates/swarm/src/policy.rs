//! Everything about the engine's behaviour that may be tuned, as data: the
//! simulator sweeps it, the winner becomes the default.

use std::time::Duration;

/// Who is allowed to download from us, and in which order they are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChokerKind {
    /// Everybody interested is unchoked; the uplink serves one piece to one
    /// peer before the next. For swarms whose nodes all belong to one owner.
    Cooperative,
    /// BEP 3: a few slots for those who give most, one of them by chance.
    TitForTat,
}

/// The knobs of an engine. Every default says where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Default `Cooperative`: tit-for-tat costs a factor of 1.5 to 2.4 in a
    /// swarm whose members want the same thing.
    pub choker: ChokerKind,
    /// Connections of either side at once. Default 80.
    pub max_peers: usize,
    /// We dial while fewer peers than this are connected. Default 40: beyond
    /// 20 neighbours a random graph loses less than one per cent.
    pub dial_peers: usize,
    /// Addresses remembered for dialling. Default 1000.
    pub max_addresses: usize,
    /// Requests outstanding per peer, in blocks. Default 32, 512 KiB: twice
    /// the bandwidth-delay product of 10 Gbit/s and 0.2 ms.
    pub pipeline_blocks: usize,
    /// Memory for pieces that are not yet verified, in bytes; at least two
    /// pieces are always allowed. Default 16 MiB.
    pub active_bytes: u64,
    /// A peer that owes us a block and sends none for this long loses its
    /// requests. Default 30 s.
    pub request_timeout: Duration,
    /// How many peers may owe us the same block at the end. Default 2.
    pub endgame_copies: u8,
    /// Requests of one peer that may wait to be served; one more is a reason
    /// to drop it. Default 2048: four times what any client keeps in flight.
    pub max_queued_requests: usize,
    /// Blocks handed to the driver and not yet reported sent, over all peers
    /// (`Cooperative`). Default 6: 96 KiB keep sockets busy while the next is
    /// chosen.
    pub uplink_blocks: usize,
    /// The same for one peer. Default 4, so one stuck peer never takes the
    /// whole uplink.
    pub peer_uplink_blocks: usize,
    /// A peer whose block stays unsent for this long no longer counts against
    /// `uplink_blocks`. Default 2 s.
    pub uplink_stall: Duration,
    /// Under `Cooperative` the piece sent least often goes first, but no peer
    /// waits longer than this for its turn. Default 5 s, well below
    /// `request_timeout`.
    pub uplink_patience: Duration,
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
            choker: ChokerKind::Cooperative,
            max_peers: 80,
            dial_peers: 40,
            max_addresses: 1000,
            pipeline_blocks: 32,
            active_bytes: 16 << 20,
            request_timeout: Duration::from_secs(30),
            endgame_copies: 2,
            max_queued_requests: 2048,
            uplink_blocks: 6,
            peer_uplink_blocks: 4,
            uplink_stall: Duration::from_secs(2),
            uplink_patience: Duration::from_secs(5),
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
