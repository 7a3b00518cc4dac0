//! Gets the image through the swarm, and gives it on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::agent::Assignment;
use fleet::ledger::{Ledger, Traffic};
use image::{DiskSink, Manifest};
use tokio::time::{self, Instant};
use transport::bittorrent::{Download, FetchJob, Limits, Listener, Progress};

use crate::report::Reporter;
use crate::{Error, Stop, Watchdog};

/// Nobody wanted anything for this long: others are done, or cannot reach us.
const NOBODY_ASKS: Duration = Duration::from_secs(5);
/// The same with no peer connected: whoever is complete has left, and whoever
/// is not would have come.
const NOBODY_THERE: Duration = Duration::from_secs(2);
/// Two looks at how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// Two lines about progress on the console.
const CONSOLE_PAUSE: Duration = Duration::from_secs(5);
/// Files and sockets of the transport close within this time after it stopped.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// The swarm, joined.
pub(crate) struct Swarm {
    download: Download,
    _listener: Listener,
}

impl Swarm {
    /// Joins the assignment's swarm for what `sink` misses.
    ///
    /// # Errors
    /// When the port cannot be had or the image is in no swarm.
    pub(crate) async fn join(assignment: &Assignment, sink: &Arc<DiskSink>, listen: SocketAddr) -> Result<Self, Error> {
        let listener = Listener::bind(listen, Limits::default()).await.map_err(fetch_error)?;
        let mut job = FetchJob::new(Arc::clone(sink.manifest()), Arc::clone(sink) as _);
        job.trackers.clone_from(&assignment.trackers);
        // When the controller is away, those who are here find each other.
        job.local_discovery = true;
        job.memory_bytes = assignment.memory_budget_bytes;
        let download = Download::start(&listener, job).map_err(fetch_error)?;
        Ok(Self { download, _listener: listener })
    }

    /// Waits until every piece is on the disk, telling how far it is; the last
    /// word of it is the answer. The controller may be away meanwhile.
    ///
    /// # Errors
    /// When the disk fails, or everything is to stop.
    pub(crate) async fn complete(
        &mut self,
        reporter: &Reporter,
        watchdog: &Watchdog,
        stop: &Stop,
    ) -> Result<Progress, Error> {
        let mut told = Instant::now();
        let mut pieces_before = 0;
        loop {
            let progress = *self.download.progress().borrow();
            reporter.progress(as_reported(&progress));
            if progress.pieces_done > pieces_before {
                pieces_before = progress.pieces_done;
                watchdog.feed();
            }
            if told.elapsed() >= CONSOLE_PAUSE {
                told = Instant::now();
                tracing::info!("{}", sentence(&progress));
            }
            tokio::select! {
                done = self.download.completed() => {
                    done.map_err(fetch_error)?;
                    return Ok(*self.download.progress().borrow());
                }
                () = time::sleep(LOOK) => {}
                reason = stop.wait() => return Err(Error::AttemptOver(reason)),
            }
        }
    }

    /// With whom this node has exchanged how many bytes.
    pub(crate) async fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        let Some(accounts) = self.download.ledger().await else { return ledger };
        let others = accounts.others();
        for account in accounts.accounts().map(|(_, account)| account).chain([&others]) {
            // A peer may name its rack as it likes; ours have names that the controller knows.
            let rack = account.rack.as_ref().and_then(|rack| rack.as_str().parse().ok());
            let (received_bytes, wasted_bytes, sent_bytes) = (account.received, account.wasted, account.sent);
            ledger.add(rack, &Traffic { received_bytes, wasted_bytes, sent_bytes });
        }
        ledger.bounded()
    }

    /// Goes on giving until nobody asks any more, for at most `limit`; then
    /// leaves the swarm, lets go of the disk and says what was given and taken in all.
    ///
    /// # Errors
    /// When everything is to stop.
    pub(crate) async fn linger(self, limit: Duration, reporter: &Reporter, stop: &Stop) -> Result<Ledger, Error> {
        let newest = self.download.progress();
        let deadline = Instant::now() + limit;
        let mut asked_at = Instant::now();
        let mut sent_before = newest.borrow().bytes_up;
        loop {
            let progress = *newest.borrow();
            reporter.progress(as_reported(&progress));
            if progress.bytes_up > sent_before {
                sent_before = progress.bytes_up;
                asked_at = Instant::now();
            }
            let patience = if progress.peers == 0 { NOBODY_THERE } else { NOBODY_ASKS };
            if Instant::now() >= deadline || asked_at.elapsed() >= patience {
                break;
            }
            tokio::select! {
                () = time::sleep(LOOK) => {}
                reason = stop.wait() => return Err(Error::AttemptOver(reason)),
            }
        }
        let ledger = self.ledger().await;
        self.download.stop().await.map_err(fetch_error)?;
        Ok(ledger)
    }
}

/// Closes the disk once the transport has let go of it.
///
/// # Errors
/// When it does not.
pub(crate) async fn release(mut sink: Arc<DiskSink>) -> Result<(), Error> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        sink = match Arc::try_unwrap(sink) {
            Ok(closed) => {
                drop(closed);
                return Ok(());
            }
            Err(held) if Instant::now() < deadline => held,
            Err(_) => return Err(Error::Defect("the transport did not let go of the disk".into())),
        };
        time::sleep(Duration::from_millis(10)).await;
    }
}

/// How far, before the swarm is joined.
pub(crate) fn before_swarm(manifest: &Manifest, sink: &DiskSink) -> fleet::node::Progress {
    fleet::node::Progress {
        done_bytes: manifest.bytes_of(&sink.held()),
        total_bytes: manifest.size_bytes(),
        ..fleet::node::Progress::default()
    }
}

/// The transport's numbers in the contract's words.
pub(crate) fn as_reported(progress: &Progress) -> fleet::node::Progress {
    fleet::node::Progress {
        done_bytes: progress.bytes_total - progress.bytes_to_move.saturating_sub(progress.bytes_done),
        total_bytes: progress.bytes_total,
        received_bytes: progress.bytes_down,
        sent_bytes: progress.bytes_up,
        down_bytes_per_second: progress.down_bytes_per_second,
        up_bytes_per_second: progress.up_bytes_per_second,
        peers: u32::try_from(progress.peers).unwrap_or(u32::MAX),
    }
}

fn sentence(progress: &Progress) -> String {
    let percent = progress.bytes_done * 100 / progress.bytes_to_move.max(1);
    format!(
        "fetched {percent} % of {} MiB, {} KiB/s in, {} KiB/s out, {} peers",
        progress.bytes_to_move >> 20,
        progress.down_bytes_per_second >> 10,
        progress.up_bytes_per_second >> 10,
        progress.peers
    )
}

fn fetch_error(error: transport::Error) -> Error {
    match error {
        transport::Error::Disk(error) => Error::Image(error),
        other => Error::Fetch(other.to_string()),
    }
}
