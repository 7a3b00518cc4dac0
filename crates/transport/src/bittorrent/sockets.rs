//! Options of sockets that keep wakeups few and queues short.

use std::io;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use socket2::SockRef;
use tokio::net::TcpStream;

sockopt_impl!(
    /// `SO_RCVLOWAT`: a waiting reader is woken when this much is there.
    ReceiveLowMark,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    i32
);

/// Unsent bytes that a fresh connection may hold, until its rate is known.
const FIRST_UNSENT_BYTES: u32 = 64 << 10;

/// For every connection: small messages leave at once, and what is unsent
/// stays short, so that the engine's order of service is the real one.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    limit_unsent(stream, FIRST_UNSENT_BYTES);
    Ok(())
}

/// Wakes a reader only when this many bytes have come. The kernel looks again
/// whenever the mark moves, so no byte that is there already is missed; end of
/// stream and a full window always wake.
pub(super) fn wake_reader_at(stream: &TcpStream, bytes: usize) {
    // Only more wakeups than needed if it is refused.
    let _ = setsockopt(stream, ReceiveLowMark, &(bytes.clamp(1, 1 << 30) as i32));
}

/// Bytes that may wait in the socket before its peer's window (RFC 9293) and
/// congestion allow them out.
pub(super) fn limit_unsent(stream: &TcpStream, bytes: u32) {
    // Only longer queues than wanted if it is refused.
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(bytes);
}

/// Bytes that may be in the socket at all, on their way included.
pub(super) fn limit_in_flight(stream: &TcpStream, bytes: usize) {
    // The kernel doubles what it is told, for its own book-keeping of packets.
    let _ = SockRef::from(stream).set_send_buffer_size(bytes);
}

/// What a fresh connection's round trip is taken for until it was seen.
pub(super) const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(1);
