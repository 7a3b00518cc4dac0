//! The tracker of one process, over HTTP (BEP 3, BEP 48).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::routing::get;
use swarm::tracker::{Topology, Tracker, TrackerPolicy};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use wire::announce::{AnnounceRequest, Answer, decode_scrape_query, encode_scrape};
use wire::metainfo::Metainfo;

/// A tracker that answers until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    tracker: Mutex<Tracker>,
    began: Instant,
}

/// A tracker that knows the racks of this file.
pub(crate) fn new(topology: Option<&Path>, interval: Duration) -> Result<Tracker> {
    let tracker = Tracker::new(TrackerPolicy { interval, ..TrackerPolicy::default() }, rand::random());
    let Some(path) = topology else { return Ok(tracker) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the topology {}", path.display()))?;
    let topology = Topology::from_toml(&text).with_context(|| format!("{} cannot be used", path.display()))?;
    Ok(tracker.with_topology(topology))
}

impl Server {
    pub(crate) async fn bind(address: SocketAddr, tracker: Tracker) -> Result<Self> {
        let socket = TcpListener::bind(address).await;
        let socket = socket.with_context(|| format!("cannot track on {address}: choose another address"))?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared { tracker: Mutex::new(tracker), began: Instant::now() });
        let router = Router::new().route("/announce", get(announce)).route("/scrape", get(scrape));
        let router = router.with_state(Arc::clone(&shared));
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(socket, service).await {
                tracing::error!(%error, "the tracker ended");
            }
        });
        Ok(Self { address, shared, _task: AbortOnDropHandle::new(task) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves this torrent, by the hash of either version.
    pub(crate) fn register(&self, metainfo: &Metainfo) {
        let mut tracker = self.shared.tracker();
        for info_hash in [metainfo.v1(), metainfo.v2().map(|hash| hash.truncated())].into_iter().flatten() {
            tracker.register(info_hash);
        }
    }
}

impl Shared {
    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, query: &str, remote: IpAddr) -> (Answer, bool) {
        match AnnounceRequest::decode_query(query) {
            Err(error) => (Answer::Failure(error.to_string()), true),
            Ok(request) => {
                let taken = self.tracker().announce(self.began.elapsed(), &request, remote.to_canonical());
                let answer = taken.map_or_else(|refusal| Answer::Failure(refusal.to_string()), Answer::Peers);
                (answer, request.compact)
            }
        }
    }
}

async fn announce(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(remote): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> Vec<u8> {
    let (answer, compact) = shared.answer(&query.unwrap_or_default(), remote.ip());
    answer.encode(compact).unwrap_or_default()
}

async fn scrape(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Vec<u8> {
    let now = shared.began.elapsed();
    let mut tracker = shared.tracker();
    let mut wanted = decode_scrape_query(&query.unwrap_or_default()).unwrap_or_default();
    if wanted.is_empty() {
        wanted = tracker.torrents().copied().collect();
    }
    let found: Vec<_> = wanted.into_iter().filter_map(|hash| Some((hash, tracker.scrape(now, &hash)?))).collect();
    encode_scrape(&found).unwrap_or_default()
}
