//! Captures: disks whose chunks arrive, and copies that become images.
//!
//! The registry's folders are the truth. This keeps them open, lets one sender at a time at each, and carries a copy that is
//! complete through to an image, also after a restart.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::capture::CaptureState;
use bytes::Bytes;
use fleet::capture::Original;
use fleet::ids::{ImageName, NodeName};
use image::{Capture, Finishing, Image, Registry};
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::images::{ImageError, blocking};

/// Copies that are generalised and sealed at the same time; each is hashed with all cores.
const FINISHING: usize = 1;
/// Chunks that are unpacked at the same time: each takes twice its size in memory.
const UNPACKING: usize = 8;

/// All captures under way.
pub struct Captures {
    registry: Registry,
    open: Mutex<BTreeMap<ImageName, Arc<Job>>>,
    finishing: Arc<Semaphore>,
    unpacking: Semaphore,
    stop: CancellationToken,
}

/// One capture.
pub struct Job {
    capture: Capture,
    /// The node whose agent began it; not known after a restart.
    node: Option<NodeName>,
    state: Mutex<CaptureState>,
    /// True when another sender has begun anew. Whoever writes a chunk holds it open meanwhile, so nothing of the former
    /// sender is written after the next one has begun.
    closed: RwLock<bool>,
}

impl Job {
    /// What is captured.
    #[must_use]
    pub fn capture(&self) -> &Capture {
        &self.capture
    }

    /// The node whose agent began it.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> CaptureState {
        self.lock().clone()
    }

    fn is_finishing(&self) -> bool {
        matches!(*self.lock(), CaptureState::Generalising | CaptureState::Sealing { .. })
    }

    fn set(&self, state: CaptureState) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, CaptureState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Captures {
    /// Opens what an earlier process left in the registry. Blocks.
    ///
    /// # Errors
    /// When the registry's folder cannot be read.
    pub(crate) fn open(registry: Registry, stop: CancellationToken) -> Result<Self, image::Error> {
        let left = registry.captures()?.into_iter().map(|capture| (capture.name().clone(), job(capture, None)));
        Ok(Self {
            open: Mutex::new(left.collect()),
            registry,
            finishing: Arc::new(Semaphore::new(FINISHING)),
            unpacking: Semaphore::new(UNPACKING),
            stop,
        })
    }

    /// All captures, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.lock().values().cloned().collect()
    }

    /// One capture.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &ImageName) -> Result<Arc<Job>, ImageError> {
        self.lock().get(name).cloned().ok_or_else(|| ImageError::NoCapture(name.to_string()))
    }

    /// Begins a capture or goes on with one; a former sender's chunks are not taken in any more.
    ///
    /// # Errors
    /// When the copy is being published already, or as [`Registry::begin_capture`].
    pub async fn begin(
        &self,
        name: &ImageName,
        original: Original,
        node: Option<NodeName>,
    ) -> Result<Arc<Job>, ImageError> {
        let old = self.lock().get(name).cloned();
        if let Some(old) = old {
            self.close(&old).await?;
        }
        let (registry, wanted) = (self.registry.clone(), name.clone());
        let begun =
            blocking(move || registry.begin_capture(&wanted, &original).map(|capture| job(capture, node))).await;
        let mut open = self.lock();
        match begun {
            Ok(job) => {
                open.insert(name.clone(), Arc::clone(&job));
                Ok(job)
            }
            Err(error) => {
                open.remove(name);
                Err(error)
            }
        }
    }

    /// Takes in one chunk.
    ///
    /// # Errors
    /// As [`Capture::put`]; what has arrived stays.
    pub async fn put(&self, name: &ImageName, chunk: u32, hash: [u8; 32], packed: Bytes) -> Result<(), ImageError> {
        let job = self.get(name)?;
        let _turn = self.unpacking.acquire().await.map_err(|_| ImageError::Defect)?;
        let closed = job.closed.read().await;
        if *closed {
            return Err(ImageError::CaptureTaken(name.to_string()));
        }
        let writing = Arc::clone(&job);
        blocking(move || writing.capture.put(chunk, hash, &packed)).await
    }

    /// Says that every chunk has arrived. True where [`Captures::finish`] is to be called now.
    ///
    /// # Errors
    /// When some have not arrived.
    pub async fn receive(&self, name: &ImageName) -> Result<(Arc<Job>, bool), ImageError> {
        let job = self.get(name)?;
        let receiving = Arc::clone(&job);
        blocking(move || receiving.capture.receive()).await?;
        let mut state = job.lock();
        let first = matches!(*state, CaptureState::Receiving | CaptureState::Failed { .. });
        if first {
            *state = CaptureState::Generalising;
        }
        drop(state);
        Ok((job, first))
    }

    /// The captures that were complete when an earlier process ended; they are marked as begun.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Arc<Job>> {
        let left: Vec<_> = self.list().into_iter().filter(|job| job.capture.is_received()).collect();
        left.iter().for_each(|job| job.set(CaptureState::Generalising));
        left
    }

    /// Makes an image of a copy that is complete.
    ///
    /// # Errors
    /// As [`Capture::finish`]; the copy stays, and its state says why.
    pub async fn finish(&self, job: &Arc<Job>) -> Result<Image, ImageError> {
        let slot = Arc::clone(&self.finishing).acquire_owned().await.map_err(|_| ImageError::Defect)?;
        let (working, stop) = (Arc::clone(job), self.stop.clone());
        let finished = blocking(move || {
            working.capture.finish(&mut |step| {
                if let Finishing::Sealing(done_bytes, total_bytes) = step {
                    working.set(CaptureState::Sealing { done_bytes, total_bytes });
                }
                if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })
        .await;
        drop(slot);
        match &finished {
            Ok(_) => {
                self.lock().remove(job.capture.name());
            }
            Err(error) => job.set(CaptureState::Failed { reason: error.to_string() }),
        }
        finished
    }

    /// Throws away what has arrived.
    ///
    /// # Errors
    /// When there is none, or it is being published.
    pub async fn discard(&self, name: &ImageName) -> Result<(), ImageError> {
        let job = self.get(name)?;
        self.close(&job).await?;
        self.lock().remove(name);
        let (registry, name) = (self.registry.clone(), name.clone());
        blocking(move || registry.discard_capture(&name)).await
    }

    async fn close(&self, job: &Job) -> Result<(), ImageError> {
        // Waits for chunks that are being written.
        let mut closed = job.closed.write().await;
        if job.is_finishing() {
            return Err(ImageError::CaptureEnds(job.capture.name().to_string()));
        }
        *closed = true;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ImageName, Arc<Job>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn job(capture: Capture, node: Option<NodeName>) -> Arc<Job> {
    Arc::new(Job { capture, node, state: Mutex::new(CaptureState::Receiving), closed: RwLock::new(false) })
}
