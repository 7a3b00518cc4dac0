//! Sends what is used of a disk to the controller: hashed, packed, and only what it does not hold yet.
//!
//! Reading, hashing and packing are on a blocking thread, which is a few chunks ahead. Whatever the controller has taken in
//! stays there when one of both dies; then the disk is read again, and what is there already does not travel.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::capture::CaptureView;
use api::client::{Client, ClientError};
use fleet::capture::Original;
use fleet::ids::ImageName;
use fleet::node::Progress;
use image::capture::{Disk, Packed};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::report::Pauses;
use crate::{Error, Stop};

/// Packed chunks that wait for the network: 16 MiB at most.
const AHEAD: usize = 4;
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(10);
/// Rates are those of so long.
const WINDOW: Duration = Duration::from_secs(10);
/// Insufficient Storage (RFC 4918): the server's disk is full.
const FULL: u16 = 507;

/// How far a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Chunks that the controller holds, looked at in this run.
    pub chunks: u64,
    /// Bytes of the disk in those.
    pub done_bytes: u64,
    /// Bytes that travelled, packed.
    pub sent_bytes: u64,
    /// Chunks that were there before.
    pub kept_chunks: u64,
}

/// The rate of the last seconds: what is there already goes by much faster than what travels.
#[derive(Debug, Default)]
pub struct Pace(Mutex<VecDeque<(Instant, Sent)>>);

impl Pace {
    /// What is told about a disk on its way. `down_bytes_per_second` is how fast the disk goes by, which tells the time
    /// left; `up_bytes_per_second` is what travels.
    #[must_use]
    pub fn progress(&self, sent: Sent, original: &Original) -> Progress {
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push_back((now, sent));
        while seen.len() > 2 && seen.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            seen.pop_front();
        }
        let (at, first) = seen.front().copied().unwrap_or((now, sent));
        let milliseconds = (now - at).as_millis().max(1) as u64;
        let rate = |bytes: u64| bytes.saturating_mul(1000) / milliseconds;
        Progress {
            done_bytes: sent.done_bytes,
            total_bytes: original.wanted().map(|chunk| original.length(chunk)).sum(),
            sent_bytes: sent.sent_bytes,
            down_bytes_per_second: rate(sent.done_bytes - first.done_bytes),
            up_bytes_per_second: rate(sent.sent_bytes - first.sent_bytes),
            ..Progress::default()
        }
    }
}

/// Sends a disk whole. `patience` is how long the controller may be away; `told` hears of every chunk.
///
/// # Errors
/// When the disk cannot be read, the controller refuses, is full, or stays away.
pub async fn send(
    client: &Client,
    image: &ImageName,
    disk: Arc<Disk>,
    original: &Original,
    patience: Duration,
    stop: &Stop,
    told: &(dyn Fn(Sent) + Sync),
) -> Result<(Sent, CaptureView), Error> {
    let away = |error| gone(error, patience);
    patient(patience, || client.begin_capture(image, original)).await.map_err(away)?;
    let held = patient(patience, || client.held_chunks(image, original.chunks())).await.map_err(away)?;
    let (ready, mut chunks) = mpsc::channel(AHEAD);
    let reading = tokio::task::spawn_blocking({
        let (original, stop) = (original.clone(), stop.clone());
        move || read(&disk, &original, &held, &stop, &ready)
    });
    let mut sent = Sent::default();
    told(sent);
    while let Some((chunk, Packed { hash, bytes })) = chunks.recv().await {
        match bytes.map(bytes::Bytes::from) {
            Some(bytes) => {
                patient(patience, || client.put_chunk(image, chunk, hash, bytes.clone())).await.map_err(away)?;
                sent.sent_bytes += bytes.len() as u64;
            }
            None => sent.kept_chunks += 1,
        }
        sent.chunks += 1;
        sent.done_bytes += original.length(chunk);
        told(sent);
    }
    reading.await.map_err(|error| Error::Defect(error.to_string()))??;
    if let Some(reason) = stop.reason() {
        return Err(Error::AttemptOver(reason));
    }
    let view = patient(patience, || client.finish_capture(image)).await.map_err(away)?;
    Ok((sent, view))
}

type Ready = mpsc::Sender<(u32, Packed)>;

fn read(disk: &Disk, original: &Original, held: &[[u8; 32]], stop: &Stop, ready: &Ready) -> Result<(), image::Error> {
    let mut buffer = Vec::new();
    for chunk in original.wanted() {
        let there = held.get(chunk as usize).copied();
        // The receiver is gone when sending has failed, and says so itself.
        if stop.is_set() || ready.blocking_send((chunk, disk.pack(chunk, there, &mut buffer)?)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Asks again while the controller is away. A full disk does not get better by asking.
async fn patient<T, F: Future<Output = Result<T, ClientError>>>(
    patience: Duration,
    ask: impl Fn() -> F,
) -> Result<T, ClientError> {
    let deadline = Instant::now() + patience;
    let mut pauses = Pauses::up_to(PAUSE);
    loop {
        match ask().await {
            Err(error) if error.may_pass() && !is_full(&error) && Instant::now() < deadline => {
                tracing::warn!(%error, "the controller is asked again");
            }
            outcome => return outcome,
        }
        pauses.wait().await;
    }
}

fn is_full(error: &ClientError) -> bool {
    matches!(error, ClientError::Failed { status: FULL, .. })
}

fn gone(error: ClientError, patience: Duration) -> Error {
    match error {
        ClientError::Refused { error, .. } => Error::Capture(error),
        ClientError::Failed { status: FULL, error } => Error::Capture(format!("{error}; what has arrived is kept")),
        other => Error::Capture(format!("{other}, for {} s; what has arrived is kept", patience.as_secs())),
    }
}
