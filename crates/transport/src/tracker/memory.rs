//! What a tracker remembers over its own restart: one file, whole or not there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use swarm::tracker::MAX_SNAPSHOT_BYTES;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::TrackerService;

/// How often the file is written while something changes.
const EVERY: Duration = Duration::from_secs(5);

/// An older memory names nobody who is still there.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// A tracker's file.
pub(super) struct Memory {
    path: PathBuf,
    service: TrackerService,
    written: Vec<u8>,
}

impl Memory {
    /// Reads what there is.
    pub(super) async fn wake(path: PathBuf, service: TrackerService) -> Self {
        let from = path.clone();
        let read = spawn_blocking(move || read(&from)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut written = Vec::new();
        match read {
            Ok(Some(snapshot)) => {
                let restored = service.tracker().restore(service.now(), &snapshot);
                match restored {
                    Ok(peers) => tracing::info!(peers, "the tracker remembers its swarms"),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "the tracker begins anew"),
                }
                written = snapshot;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "the tracker begins anew"),
        }
        Self { path, service, written }
    }

    /// Writes now and then until `stop`, and once more.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            self.write().await;
        }
        self.write().await;
    }

    async fn write(&mut self) {
        let (path, service, written) = (self.path.clone(), self.service.clone(), std::mem::take(&mut self.written));
        // Of a large hall it takes a while to put together as well.
        let work = spawn_blocking(move || {
            let snapshot = service.tracker().snapshot();
            let outcome = if snapshot == written { Ok(()) } else { replace(&path, &snapshot) };
            (if outcome.is_ok() { snapshot } else { written }, outcome)
        });
        let (written, outcome) = work.await.unwrap_or_else(|error| (Vec::new(), Err(io::Error::other(error))));
        self.written = written;
        if let Err(error) = outcome {
            tracing::warn!(path = %self.path.display(), %error, "the tracker's memory is not written");
        }
    }
}

/// Nothing when there is no file, or an old one.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // A clock that went back makes it young, which costs a few vain dials.
    let age = SystemTime::now().duration_since(file.metadata()?.modified()?).unwrap_or_default();
    if age > FORGOTTEN_AFTER {
        return Ok(None);
    }
    let mut snapshot = Vec::new();
    file.take(MAX_SNAPSHOT_BYTES as u64 + 1).read_to_end(&mut snapshot)?;
    Ok(Some(snapshot))
}

/// Under another name first, so that a reader finds the old or the new one.
/// Not synced: after a power cut the nodes announce again anyway, and damage
/// is noticed.
fn replace(path: &Path, snapshot: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    File::create(&new)?.write_all(snapshot)?;
    fs::rename(&new, path)
}
