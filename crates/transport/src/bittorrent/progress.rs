//! How far a swarm is, as numbers that change.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use image::Manifest;
use swarm::{Engine, Why};
use wire::peer::PeerId;

/// A rate is the mean over about this time, in seconds; of younger swarms over
/// all of their life.
const MEMORY_SECONDS: f64 = 1.5;

/// A snapshot of one swarm.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Pieces verified and on the disk, zero pieces included.
    pub pieces_done: u32,
    /// Pieces of the image.
    pub pieces_total: u32,
    /// Bytes verified of those that had to move when this began.
    pub bytes_done: u64,
    /// Bytes that had to move when this began: not on the disk, not zero.
    pub bytes_to_move: u64,
    /// Bytes of the image.
    pub bytes_total: u64,
    /// Payload bytes received, wasted ones included.
    pub bytes_down: u64,
    /// Payload bytes sent.
    pub bytes_up: u64,
    /// Received for nothing: repeated, late, or corrupt.
    pub bytes_wasted: u64,
    /// Payload bytes received a second, over the last seconds.
    pub down_bytes_per_second: u64,
    /// Payload bytes sent a second, over the last seconds.
    pub up_bytes_per_second: u64,
    /// All bytes received from peers, messages and heads included.
    pub wire_bytes_down: u64,
    /// All bytes sent to peers, messages and heads included.
    pub wire_bytes_up: u64,
    /// Connected peers.
    pub peers: usize,
    /// Pieces whose hash was wrong; none of them reached the disk.
    pub corrupt_pieces: u64,
    /// Times that a piece was found to differ from the image where this node
    /// reads it for others; the log names them.
    pub corrupt_on_disk: u64,
    /// Bytes of pieces and of what is kept for serving, in memory now.
    pub memory_bytes: u64,
    /// Every piece is on the disk.
    pub complete: bool,
}

/// A peer that was dropped, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Its address; of an inbound connection the port is not where it listens.
    pub address: SocketAddr,
    /// What it called itself.
    pub id: PeerId,
    /// The reason.
    pub cause: Cause,
}

/// Why a peer was dropped; displays as a sentence's end, as in "dropped,
/// because ...".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// What it said or sent is against the rules of the swarm.
    Swarm(Why),
    /// Its bytes are not the protocol.
    Protocol(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swarm(why) => why.fmt(f),
            Self::Protocol(what) => f.write_str(what),
        }
    }
}

/// Makes snapshots out of an engine's counters.
pub(super) struct Meter {
    bytes_to_move: u64,
    bytes_total: u64,
    before: Instant,
    down: Rate,
    up: Rate,
}

/// Bytes and seconds, both of which fade.
#[derive(Default)]
struct Rate {
    counted: u64,
    bytes: f64,
    seconds: f64,
}

impl Rate {
    fn measure(&mut self, counted: u64, seconds: f64) -> u64 {
        let fades = (-seconds / MEMORY_SECONDS).exp();
        self.bytes = self.bytes * fades + counted.saturating_sub(self.counted) as f64;
        self.seconds = self.seconds * fades + seconds;
        self.counted = counted;
        (self.bytes / self.seconds.max(0.001)) as u64
    }
}

impl Meter {
    pub(super) fn new(manifest: &Manifest, engine: &Engine, now: Instant) -> Self {
        Self {
            bytes_to_move: engine.view().left,
            bytes_total: manifest.size_bytes(),
            before: now,
            down: Rate::default(),
            up: Rate::default(),
        }
    }

    pub(super) fn read(&mut self, engine: &Engine, memory_bytes: u64, now: Instant) -> Progress {
        let view = engine.view();
        let total = engine.ledger().total();
        let seconds = now.duration_since(self.before).as_secs_f64();
        self.before = now;
        Progress {
            pieces_done: view.pieces,
            pieces_total: view.pieces_total,
            bytes_done: self.bytes_to_move.saturating_sub(view.left),
            bytes_to_move: self.bytes_to_move,
            bytes_total: self.bytes_total,
            bytes_down: total.received + total.wasted,
            bytes_up: total.sent,
            bytes_wasted: total.wasted,
            down_bytes_per_second: self.down.measure(total.received + total.wasted, seconds),
            up_bytes_per_second: self.up.measure(total.sent, seconds),
            peers: view.peers.len(),
            corrupt_pieces: view.failed_pieces,
            memory_bytes,
            wire_bytes_down: 0,
            wire_bytes_up: 0,
            corrupt_on_disk: 0,
            complete: engine.have().is_full(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_settles_on_what_is_measured_and_decays() {
        let mut rate = Rate::default();
        let mut counted = 0;
        for _ in 0..60 {
            counted += 250;
            rate.measure(counted, 0.25);
        }
        assert!((999..=1000).contains(&rate.measure(counted + 250, 0.25)));
        for _ in 0..120 {
            rate.measure(counted + 250, 0.25);
        }
        assert_eq!(rate.measure(counted + 250, 0.25), 0);
    }

    #[test]
    fn a_rate_is_right_from_the_first_measurement_on_and_however_often_it_is_taken() {
        let mut rate = Rate::default();
        assert_eq!(rate.measure(0, 0.0), 0);
        assert_eq!(rate.measure(100, 0.1), 1000);
        let mut counted = 100;
        for seconds in [0.25, 0.001, 0.002, 0.25, 0.001, 1.0] {
            counted += (seconds * 1000.0) as u64;
            assert!((990..=1010).contains(&rate.measure(counted, seconds)));
        }
        // Somebody looks twice in the same moment.
        assert!((990..=1010).contains(&rate.measure(counted, 0.0)));
    }
}
