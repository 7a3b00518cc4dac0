//! The server halves of a tracker around the pure `swarm::tracker::Tracker`:
//! HTTP (BEP 3, 7, 23, 48) and UDP (BEP 15, 41), and its memory on disk.
//!
//! [`TrackerServer`] is a whole tracker; [`TrackerService`] answers requests
//! that came in by another server's door, like the controller's.

mod connection_ids;
mod http;
mod memory;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use swarm::tracker::Tracker;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::announce::{AnnounceRequest, Answer, decode_scrape_query, encode_scrape};

use crate::Error;
use memory::Memory;
use udp::UdpDesk;

/// How a tracker ends: its last memory must be written by then.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Answers announces and scrapes. Clones share the tracker.
#[derive(Debug, Clone)]
pub struct TrackerService {
    tracker: Arc<Mutex<Tracker>>,
    began: Instant,
}

impl TrackerService {
    /// Around a tracker whose clock begins now.
    #[must_use]
    pub fn new(tracker: Arc<Mutex<Tracker>>) -> Self {
        Self { tracker, began: Instant::now() }
    }

    /// The tracker; hold it for a moment only.
    pub fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the answer to `GET /announce?query` from this address. An
    /// `ip` parameter is passed over: anybody could have the swarm knock at
    /// anybody's door with it.
    #[must_use]
    pub fn announce(&self, query: &str, remote: IpAddr) -> Vec<u8> {
        let request = match AnnounceRequest::decode_query(query) {
            Ok(request) => request,
            Err(error) => return encoded(&Answer::Failure(error.to_string()), true),
        };
        let mut answer = self.take(&request, remote);
        if let Answer::Peers(response) = &mut answer
            && query.split('&').any(|parameter| parameter == "no_peer_id=1")
        {
            response.peers.iter_mut().for_each(|peer| peer.peer_id = None);
        }
        encoded(&answer, request.compact)
    }

    /// The body of the answer to `GET /scrape?query` (BEP 48); without an
    /// info-hash, of all torrents.
    #[must_use]
    pub fn scrape(&self, query: &str) -> Vec<u8> {
        let refuse = |why: String| encoded(&Answer::Failure(why), true);
        let mut wanted = match decode_scrape_query(query) {
            Ok(wanted) => wanted,
            Err(error) => return refuse(error.to_string()),
        };
        let now = self.now();
        let mut tracker = self.tracker();
        if wanted.is_empty() {
            wanted = tracker.torrents().copied().collect();
        }
        let found: Vec<_> = wanted.into_iter().filter_map(|hash| Some((hash, tracker.scrape(now, &hash)?))).collect();
        encode_scrape(&found).unwrap_or_else(|error| refuse(error.to_string()))
    }

    fn take(&self, request: &AnnounceRequest, remote: IpAddr) -> Answer {
        let now = self.now();
        let taken = self.tracker().announce(now, request, remote);
        taken.map_or_else(|refusal| Answer::Failure(refusal.to_string()), Answer::Peers)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

/// Encoding can only fail for values that are not made here.
fn encoded(answer: &Answer, compact: bool) -> Vec<u8> {
    answer.encode(compact).unwrap_or_default()
}

/// Where a tracker listens, and what it remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrackerDoors {
    /// For HTTP; port 0 lets the system choose.
    pub http: Option<SocketAddr>,
    /// For UDP.
    pub udp: Option<SocketAddr>,
    /// A file that carries the swarms over a restart; its folder must exist.
    pub memory: Option<PathBuf>,
}

/// A tracker that answers until it is closed or dropped.
#[derive(Debug)]
pub struct TrackerServer {
    service: TrackerService,
    http: Option<SocketAddr>,
    udp: Option<SocketAddr>,
    memory: Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl TrackerServer {
    /// Opens the doors. What the memory holds is known from the first answer
    /// on; a damaged one is passed over with a warning.
    ///
    /// # Errors
    /// [`Error::Listen`] when an address cannot be had.
    pub async fn bind(doors: TrackerDoors, tracker: Arc<Mutex<Tracker>>) -> Result<Self, Error> {
        let service = TrackerService::new(tracker);
        let stop = CancellationToken::new();
        let (mut http, mut udp, mut memory) = (None, None, None);
        if let Some(path) = doors.memory {
            memory = Some(Memory::wake(path, service.clone()).await);
        }
        if let Some(address) = doors.http {
            let (socket, address) = http::listen(address).map_err(|source| Error::Listen { address, source })?;
            tokio::spawn(stop.clone().run_until_cancelled_owned(http::serve(socket, service.clone())));
            http = Some(address);
        }
        if let Some(address) = doors.udp {
            let socket = tokio::net::UdpSocket::bind(address).await;
            let socket = socket.map_err(|source| Error::Listen { address, source })?;
            udp = Some(socket.local_addr().map_err(|source| Error::Listen { address, source })?);
            tokio::spawn(stop.clone().run_until_cancelled_owned(serve_udp(socket, service.clone())));
        }
        let memory = Mutex::new(memory.map(|memory| tokio::spawn(memory.keep(stop.clone()))));
        Ok(Self { service, http, udp, memory, _guard: stop.clone().drop_guard(), stop })
    }

    /// Where it listens for HTTP, with the port that was chosen.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Where it listens for UDP.
    #[must_use]
    pub fn udp(&self) -> Option<SocketAddr> {
        self.udp
    }

    /// What it answers with.
    #[must_use]
    pub fn service(&self) -> &TrackerService {
        &self.service
    }

    /// Closes the doors and writes the memory, for which there is a deadline.
    /// Only the first call waits.
    pub async fn close(&self) {
        self.stop.cancel();
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(memory) = memory
            && tokio::time::timeout(CLOSE_DEADLINE, memory).await.is_err()
        {
            tracing::warn!("the tracker's memory was not written in time");
        }
    }
}

/// Answers UDP trackers' clients on this socket for ever.
pub async fn serve_udp(socket: tokio::net::UdpSocket, service: TrackerService) {
    UdpDesk::new(service).serve(&socket).await;
}
