//! One TCP port for every swarm of a process: the handshake names the swarm.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::metainfo::InfoHash;
use wire::peer::{Handshake, PeerId};

use super::connection::{HANDSHAKE_DEADLINE, Link, read_handshake, write_handshake};
use super::drive::Event;
use super::sockets;
use crate::Error;

/// Connections waiting in the kernel until they are accepted.
const BACKLOG: u32 = 256;

/// What a process allows its peers to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all swarms together. Default 200.
    pub connections: usize,
    /// Connections that have not said which swarm they want. Default 32.
    pub handshakes: usize,
    /// How long a connection may take to say it. Default 10 s.
    pub handshake_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 200, handshakes: 32, handshake_deadline: HANDSHAKE_DEADLINE }
    }
}

/// The listening socket. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    swarms: Mutex<HashMap<InfoHash, Member>>,
    connections: Arc<Semaphore>,
}

/// A swarm as the listener knows it.
#[derive(Debug, Clone)]
struct Member {
    me: PeerId,
    /// It answers hash requests (BEP 52).
    v2: bool,
    events: mpsc::Sender<Event>,
}

/// Takes a swarm off the listener when dropped.
#[derive(Debug)]
pub(super) struct Membership {
    shared: Arc<Shared>,
    names: Vec<InfoHash>,
}

impl Listener {
    /// Listens on `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// [`Error::Listen`] when the address cannot be had.
    pub async fn bind(address: SocketAddr, limits: Limits) -> Result<Self, Error> {
        let socket = open(address).map_err(|source| Error::Listen { address, source })?;
        let address = socket.local_addr().map_err(|source| Error::Listen { address, source })?;
        let shared = Arc::new(Shared {
            address,
            swarms: Mutex::default(),
            connections: Arc::new(Semaphore::new(limits.connections)),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(socket, Arc::clone(&shared), limits)));
        Ok(Self { shared, _stop: Arc::new(stop.drop_guard()) })
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Lets connections for a swarm in, under each of its names: a hybrid
    /// torrent has two.
    pub(super) fn join(
        &self,
        names: &[InfoHash],
        me: PeerId,
        v2: bool,
        events: &mpsc::Sender<Event>,
    ) -> Result<Membership, Error> {
        let mut swarms = self.shared.swarms();
        if let Some(taken) = names.iter().find(|name| swarms.contains_key(name)) {
            return Err(Error::JoinedAlready(*taken));
        }
        for &name in names {
            swarms.insert(name, Member { me, v2, events: events.clone() });
        }
        Ok(Membership { shared: Arc::clone(&self.shared), names: names.to_vec() })
    }

    /// A place among the connections of this process, if one is free.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.connections).try_acquire_owned().ok()
    }
}

impl Shared {
    fn swarms(&self) -> MutexGuard<'_, HashMap<InfoHash, Member>> {
        self.swarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut swarms = self.shared.swarms();
        for name in &self.names {
            swarms.remove(name);
        }
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server must have its port while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts for ever. Peers that are slow to say what they want use up their
/// own places only; further ones wait in the kernel.
async fn accept(socket: TcpListener, shared: Arc<Shared>, limits: Limits) {
    let waiting = Arc::new(Semaphore::new(limits.handshakes.max(1)));
    loop {
        let Ok(place) = Arc::clone(&waiting).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, address)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let outcome = timeout(limits.handshake_deadline, welcome(stream, address, &shared)).await;
                    drop(place);
                    match outcome {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%address, %error, "turned a connection away"),
                        Err(_) => tracing::debug!(%address, "turned a connection away: no handshake in time"),
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn welcome(mut stream: TcpStream, address: SocketAddr, shared: &Shared) -> io::Result<()> {
    sockets::prepare(&stream)?;
    let theirs = read_handshake(&mut stream).await?;
    let member = shared.swarms().get(&theirs.info_hash).cloned();
    let member = member.ok_or_else(|| io::Error::other(format!("no swarm {} here", theirs.info_hash)))?;
    let place = Arc::clone(&shared.connections).try_acquire_owned();
    let place = place.map_err(|_| io::Error::other("all connections are taken"))?;
    let ours = our_handshake(theirs.info_hash, member.me, member.v2);
    write_handshake(&mut stream, &ours).await?;
    let link = Link::new(stream, &theirs, place);
    // A swarm that has just ended does not take it; the connection closes.
    let _ = member.events.send(Event::Accepted { address, link }).await;
    Ok(())
}

/// What we say first.
pub(super) fn our_handshake(info_hash: InfoHash, me: PeerId, v2: bool) -> Handshake {
    let ours = Handshake::new(info_hash, me);
    if v2 { ours.with_v2() } else { ours }
}
