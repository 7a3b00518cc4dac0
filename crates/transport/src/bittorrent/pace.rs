//! How much is given to one socket at a time. Measured, never configured: the
//! network's rate shows in how fast a full socket empties.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use wire::peer::BLOCK_BYTES;

use super::sockets::{limit_in_flight, limit_unsent, shortest_round_trip};

/// Longest payload of one message.
pub(super) const MAX_CHUNK_BYTES: u32 = 256 << 10;

/// A chunk takes about this long on its link: other messages of the connection
/// wait for no more.
const CHUNK_TIME: Duration = Duration::from_micros(2500);

/// What waits unsent in the socket lasts about this long, enough for us to
/// wake up and give more.
const UNSENT_TIME: Duration = Duration::from_millis(4);

/// What a slow link's socket holds lasts about this long, besides what is on
/// its way: every message of every connection queues behind it at the link.
const IN_FLIGHT_TIME: Duration = Duration::from_millis(3);

/// Below this rate (bytes per second) the queue between us and the link is
/// ours to keep short; above it the kernel sizes its buffers better.
const SLOW_LINK: f64 = 40e6;

/// Least that the socket of a slow link may hold: with less, delayed
/// acknowledgements stop the flow.
const LEAST_IN_FLIGHT_BYTES: f64 = 20e3;

/// Bounds of what may wait unsent.
const UNSENT_BYTES: (f64, f64) = (16e3, 1e6);

/// A rate is taken over at least this long: shorter ones show bursts.
const MEASURE: Duration = Duration::from_millis(25);

/// Weight of a new measurement.
const NEWEST: f64 = 0.3;

/// The pace of one connection.
#[derive(Debug)]
pub(super) struct Pace {
    chunk_bytes: u32,
    /// Bytes per second; zero until known.
    rate: f64,
    /// When the socket was full, and what it has taken since.
    full: Option<Instant>,
    taken: u64,
    /// Time between two moments at which it was full, added up, and what it
    /// took in that time. A piece is often shorter than a measurement.
    measured: Duration,
    measured_bytes: u64,
    /// The rate that the socket's limits were set for.
    set_for: f64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            chunk_bytes: 4 * BLOCK_BYTES,
            rate: 0.0,
            full: None,
            taken: 0,
            measured: Duration::ZERO,
            measured_bytes: 0,
            set_for: 0.0,
        }
    }

    /// Bytes of the next message, a multiple of 16 KiB.
    pub(super) fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// Bytes per second of a link that has shown its limit.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.rate > 0.0).then_some(self.rate)
    }

    /// The socket took bytes.
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken += bytes as u64;
    }

    /// The socket takes no more for now.
    pub(super) fn full(&mut self, stream: &TcpStream) {
        let now = Instant::now();
        let Some(since) = self.full else {
            (self.full, self.taken) = (Some(now), 0);
            return;
        };
        self.measured += now - since;
        self.measured_bytes += self.taken;
        (self.full, self.taken) = (Some(now), 0);
        if self.measured < MEASURE {
            return;
        }
        let newest = self.measured_bytes as f64 / self.measured.as_secs_f64();
        self.rate += (newest - self.rate) * if self.rate > 0.0 { NEWEST } else { 1.0 };
        (self.measured, self.measured_bytes) = (Duration::ZERO, 0);
        self.adapt(stream);
    }

    /// There is nothing to send: how fast the socket empties does not show.
    pub(super) fn idle(&mut self) {
        self.full = None;
    }

    /// A whole message went without meeting the link's limit.
    pub(super) fn unhindered(&mut self) {
        if self.full.is_none() {
            self.chunk_bytes = (self.chunk_bytes * 2).min(MAX_CHUNK_BYTES);
        }
    }

    fn adapt(&mut self, stream: &TcpStream) {
        let chunk = (self.rate * CHUNK_TIME.as_secs_f64()) as u32 / BLOCK_BYTES * BLOCK_BYTES;
        self.chunk_bytes = chunk.clamp(BLOCK_BYTES, MAX_CHUNK_BYTES);
        let change = self.rate / self.set_for.max(1.0);
        if (0.8..1.25).contains(&change) {
            return;
        }
        self.set_for = self.rate;
        let unsent = self.rate * UNSENT_TIME.as_secs_f64();
        limit_unsent(stream, unsent.clamp(UNSENT_BYTES.0, UNSENT_BYTES.1) as u32);
        if self.rate < SLOW_LINK {
            // More than the round trip, so that a limit of ours never looks
            // like the link's and shrinks itself.
            let lasting = IN_FLIGHT_TIME + shortest_round_trip(stream).unwrap_or(IN_FLIGHT_TIME) * 4;
            limit_in_flight(stream, (self.rate * lasting.as_secs_f64()).max(LEAST_IN_FLIGHT_BYTES) as usize);
        }
    }
}
