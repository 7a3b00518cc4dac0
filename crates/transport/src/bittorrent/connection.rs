//! Opening a connection: dialling and the handshake.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use swarm::Speaks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use wire::metainfo::InfoHash;
use wire::peer::{HANDSHAKE_BYTES, Handshake, PeerId};

use super::sockets;

/// How long a peer may take to connect and to exchange handshakes.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Orders that may wait for a slow peer. The engine bounds requests and blocks;
/// announcements of new pieces are what can pile up.
pub(super) const ORDERS: usize = 4096;

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) id: PeerId,
    pub(super) speaks: Speaks,
    /// It answers hash requests (BEP 52).
    pub(super) speaks_v2: bool,
    /// Its place among the connections of the process, held until it closes.
    pub(super) place: OwnedSemaphorePermit,
}

impl Link {
    pub(super) fn new(stream: TcpStream, theirs: &Handshake, place: OwnedSemaphorePermit) -> Self {
        let speaks = Speaks { fast: theirs.speaks_fast(), extended: theirs.speaks_extended() };
        Self { stream, id: theirs.peer_id, speaks, speaks_v2: theirs.speaks_v2(), place }
    }
}

/// Connects to a peer from the address that we listen on, so that it sees the
/// one the tracker tells others. Of a hybrid torrent the peer may answer with
/// either of its `names`.
pub(super) async fn dial(
    address: SocketAddr,
    from: SocketAddr,
    ours: Handshake,
    names: &[InfoHash],
    place: OwnedSemaphorePermit,
) -> io::Result<Link> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if !from.ip().is_unspecified() && from.is_ipv4() == address.is_ipv4() {
        socket.bind(SocketAddr::new(from.ip(), 0))?;
    }
    let greeting = async {
        let mut stream = socket.connect(address).await?;
        sockets::prepare(&stream)?;
        write_handshake(&mut stream, &ours).await?;
        let theirs = read_handshake(&mut stream).await?;
        if !names.contains(&theirs.info_hash) {
            return Err(io::Error::other(format!("it answered for swarm {}", theirs.info_hash)));
        }
        Ok(Link::new(stream, &theirs, place))
    };
    match timeout(HANDSHAKE_DEADLINE, greeting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

pub(super) async fn read_handshake(stream: &mut TcpStream) -> io::Result<Handshake> {
    let mut bytes = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut bytes).await?;
    Handshake::decode(&bytes).map_err(io::Error::other)
}

pub(super) async fn write_handshake(stream: &mut TcpStream, handshake: &Handshake) -> io::Result<()> {
    stream.write_all(&handshake.encode()).await
}
