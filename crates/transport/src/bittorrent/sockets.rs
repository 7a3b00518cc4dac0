//! Options of sockets that keep wakeups few and queues short.

use std::io;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
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

sockopt_impl!(
    /// `TCP_INFO`, its first 152 bytes, which Linux has had since 4.6; the last
    /// word is `tcpi_min_rtt`, in microseconds.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u32; 38]
);

/// Queues are kept short by us, from what each link is seen to do. Algorithms
/// that model the link (BBR) take the bursts that shapers let through for its
/// rate, and fill the shaper's queue.
const CONGESTION: &[u8] = b"cubic";

/// Unsent bytes that a fresh connection may hold, until its rate is known.
const FIRST_UNSENT_BYTES: u32 = 16 << 10;

/// For every connection: small messages leave at once, and what is unsent
/// stays short, so that the engine's order of service is the real one.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Where it is not allowed the system's own choice serves too.
    let _ = SockRef::from(stream).set_tcp_congestion(CONGESTION);
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

/// The shortest round trip that was ever seen on this connection.
pub(super) fn shortest_round_trip(stream: &TcpStream) -> Option<Duration> {
    let micros = *getsockopt(stream, TcpInfo).ok()?.last()?;
    // All ones until one was seen.
    (micros < u32::MAX).then(|| Duration::from_micros(micros.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_connection_on_this_machine_has_a_short_round_trip() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = socket.accept().await.unwrap();
        prepare(&near).unwrap();
        wake_reader_at(&far, 3);
        near.write_all(b"abc").await.unwrap();
        far.read_exact(&mut [0; 3]).await.unwrap();
        assert!(shortest_round_trip(&near).unwrap() < Duration::from_secs(5));
    }
}
