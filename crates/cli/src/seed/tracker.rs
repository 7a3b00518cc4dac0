//! The tracker of one process, over HTTP (BEP 3, BEP 48).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::routing::get;
use swarm::tracker::{Tracker, TrackerPolicy};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use wire::announce::{AnnounceRequest, Answer};
use wire::metainfo::InfoHash;

/// A tracker that answers until it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    tracker: Mutex<Tracker>,
    began: Instant,
}

impl Server {
    pub(super) async fn bind(address: SocketAddr) -> Result<Self> {
        let socket = TcpListener::bind(address).await;
        let socket =
            socket.with_context(|| format!("cannot track on {address}: choose another with --tracker-listen"))?;
        let address = socket.local_addr()?;
        let tracker = Mutex::new(Tracker::new(TrackerPolicy::default(), rand::random()));
        let shared = Arc::new(Shared { tracker, began: Instant::now() });
        let router = Router::new().route("/announce", get(announce)).with_state(Arc::clone(&shared));
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(socket, service).await {
                tracing::error!(%error, "the tracker ended");
            }
        });
        Ok(Self { address, shared, _task: AbortOnDropHandle::new(task) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn register(&self, info_hash: InfoHash) {
        self.shared.tracker().register(info_hash);
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
