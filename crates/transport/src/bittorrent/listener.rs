//! One TCP port for every swarm of a process: the handshake names the swarm.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
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
    /// Connections that have not said which swarm they want. One address may
    /// have half of them. Default 64.
    pub handshakes: usize,
    /// How long a connection may take to say it. Default 10 s.
    pub handshake_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 200, handshakes: 64, handshake_deadline: HANDSHAKE_DEADLINE }
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

/// Places for connections that have not said which swarm they want.
#[derive(Debug)]
struct Porch {
    /// Places of one address.
    share: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A place on the porch, left when dropped.
#[derive(Debug)]
struct Place {
    porch: Arc<Porch>,
    address: IpAddr,
}

impl Porch {
    /// None when this address has its share already.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let places = taken.entry(address).or_default();
        if *places >= self.share {
            return None;
        }
        *places += 1;
        Some(Place { porch: Arc::clone(self), address })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.porch.taken();
        if let Some(places) = taken.get_mut(&self.address) {
            *places -= 1;
            if *places == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Accepts for ever. Peers that are slow to say what they want use up their
/// own places only: no address gets more than half of them, and when all are
/// taken further connections wait in the kernel.
async fn accept(socket: TcpListener, shared: Arc<Shared>, limits: Limits) {
    let waiting = Arc::new(Semaphore::new(limits.handshakes.max(1)));
    let porch = Arc::new(Porch { share: limits.handshakes.div_ceil(2).max(1), taken: Mutex::default() });
    loop {
        let Ok(place) = Arc::clone(&waiting).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, address)) => {
                let Some(share) = porch.enter(address.ip()) else {
                    tracing::debug!(%address, "turned a connection away: too many of its address are silent");
                    continue;
                };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let outcome = timeout(limits.handshake_deadline, welcome(stream, address, &shared)).await;
                    drop((place, share));
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt;
    use wire::peer::HANDSHAKE_BYTES;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);
    const NAME: InfoHash = InfoHash([4; 20]);
    const ME: PeerId = PeerId([5; 20]);

    async fn connect(from: u8, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, from), 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_leaves_places_to_others() {
        let limits = Limits { handshakes: 8, ..Limits::default() };
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), limits).await.unwrap();
        let (events, mut heard) = mpsc::channel(4);
        let _membership = listener.join(&[NAME], ME, false, &events).unwrap();
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(connect(2, listener.address()).await);
        }
        let mut other = connect(3, listener.address()).await;
        write_handshake(&mut other, &Handshake::new(NAME, PeerId([6; 20]))).await.unwrap();
        let answer = timeout(DEADLINE, read_handshake(&mut other)).await.unwrap().unwrap();
        assert_eq!(answer.peer_id, ME);
        assert!(matches!(heard.recv().await, Some(Event::Accepted { .. })));
        // Four of its connections wait; the rest were closed at once.
        for stream in &mut silent[4..] {
            let closed = timeout(DEADLINE, stream.read(&mut [0; HANDSHAKE_BYTES])).await.unwrap();
            assert!(!matches!(closed, Ok(1..)));
        }
        write_handshake(&mut silent[0], &Handshake::new(NAME, PeerId([7; 20]))).await.unwrap();
        assert!(timeout(DEADLINE, read_handshake(&mut silent[0])).await.unwrap().is_ok());
    }

    #[test]
    fn places_come_back() {
        let porch = Arc::new(Porch { share: 2, taken: Mutex::default() });
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let places = [porch.enter(one).unwrap(), porch.enter(one).unwrap()];
        assert!(porch.enter(one).is_none() && porch.enter(other).is_some());
        drop(places);
        assert!(porch.taken().is_empty() && porch.enter(one).is_some());
    }
}
