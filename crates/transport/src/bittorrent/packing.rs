//! Chunks that travel packed (zstd, level 1) between our own kind: when that
//! is quicker than the link, and while the image shrinks.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use wire::peer::Block;
use zstd::bulk::{Compressor, Decompressor};

use super::reading::invalid;

/// The quickest level: links are the limit, not ratios.
const LEVEL: i32 = 1;

/// A packed chunk has to be shorter than this share of the plain one.
const WORTH: f64 = 0.9;

/// The link has to be this much slower than packing: packing also takes the
/// time of a core that hashes and writes.
const HEADROOM: f64 = 4.0;

/// After chunks that did not shrink, so many are sent plain before the next
/// try: doubled each time up to this.
const MOST_SKIPPED: u32 = 64;

/// States of zstd that are kept while idle.
const IDLE_STATES: usize = 2;

/// What packing makes of a chunk before it was ever measured, bytes a second.
const FIRST_SPEED: u64 = 300_000_000;

/// States of zstd that wait for the next chunk: each takes as much memory as
/// several chunks, and making one as long as packing one.
struct States<T>(Mutex<Vec<T>>);

impl<T> Default for States<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> States<T> {
    /// Lets `act` use an idle state or one that `make` makes; no lock is held
    /// meanwhile.
    fn with<R>(
        &self,
        make: impl FnOnce() -> io::Result<T>,
        act: impl FnOnce(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        let idle = self.idle().pop();
        let mut state = match idle {
            Some(state) => state,
            None => make()?,
        };
        let outcome = act(&mut state);
        let mut idle = self.idle();
        if idle.len() < IDLE_STATES {
            idle.push(state);
        }
        outcome
    }

    fn idle(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packed chunks of one swarm, kept while other peers may ask for the same.
pub(super) struct Packer {
    limit_bytes: u64,
    cache: Mutex<Cache>,
    states: States<Compressor<'static>>,
    /// Bytes a second that packing manages.
    speed: AtomicU64,
    /// Chunks to be sent plain before the next try, and how many after it.
    skip: AtomicU32,
    skip_next: AtomicU32,
}

#[derive(Default)]
struct Cache {
    chunks: HashMap<Block, Bytes>,
    order: VecDeque<Block>,
    bytes: u64,
}

impl Packer {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            cache: Mutex::default(),
            states: States::default(),
            speed: AtomicU64::new(FIRST_SPEED),
            skip: AtomicU32::new(0),
            skip_next: AtomicU32::new(1),
        }
    }

    /// Whether packing the next chunk for a link of this rate may pay.
    pub(super) fn worth_trying(&self, link_rate: Option<f64>) -> bool {
        let Some(rate) = link_rate else { return false };
        if rate * HEADROOM > self.speed.load(Ordering::Relaxed) as f64 {
            return false;
        }
        let skipped = self.skip.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        skipped.is_err()
    }

    /// A chunk that was packed for somebody else.
    pub(super) fn cached(&self, block: Block) -> Option<Bytes> {
        self.cache().chunks.get(&block).cloned()
    }

    /// Packs; none when it does not shrink. Blocks for a millisecond or less.
    pub(super) fn pack(&self, block: Block, plain: &[u8]) -> Option<Bytes> {
        let begun = Instant::now();
        let packed = self.states.with(|| Compressor::new(LEVEL), |state| state.compress(plain)).ok()?;
        let speed = plain.len() as f64 / begun.elapsed().as_secs_f64().max(1e-6);
        let before = self.speed.load(Ordering::Relaxed);
        self.speed.store((before * 7 + speed as u64) / 8, Ordering::Relaxed);
        if packed.len() as f64 > plain.len() as f64 * WORTH {
            let skip = self.skip_next.load(Ordering::Relaxed);
            self.skip.store(skip, Ordering::Relaxed);
            self.skip_next.store((skip * 2).min(MOST_SKIPPED), Ordering::Relaxed);
            return None;
        }
        self.skip_next.store(1, Ordering::Relaxed);
        let packed = Bytes::from(packed.into_boxed_slice());
        self.remember(block, packed.clone());
        Some(packed)
    }

    /// Bytes kept now.
    pub(super) fn bytes(&self) -> u64 {
        self.cache().bytes
    }

    fn remember(&self, block: Block, packed: Bytes) {
        let mut cache = self.cache();
        let length = packed.len() as u64;
        if cache.chunks.insert(block, packed).is_none() {
            cache.order.push_back(block);
            cache.bytes += length;
        }
        while cache.bytes > self.limit_bytes
            && let Some(oldest) = cache.order.pop_front()
        {
            let gone = cache.chunks.remove(&oldest).map_or(0, |packed| packed.len() as u64);
            cache.bytes -= gone;
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Unpacks for all connections of a swarm.
#[derive(Default)]
pub(super) struct Unpacker {
    states: States<Decompressor<'static>>,
}

impl Unpacker {
    /// Fills `into` exactly. The frame can never write beyond it.
    ///
    /// # Errors
    /// When the frame is broken or unpacks to another length; the peer lies.
    pub(super) fn unpack(&self, packed: &[u8], into: &mut [u8]) -> io::Result<()> {
        let unpack = |state: &mut Decompressor<'static>| {
            state.decompress_to_buffer(packed, &mut *into).map_err(|error| invalid(format!("{error}")))
        };
        let unpacked = self.states.with(Decompressor::new, unpack)?;
        if unpacked == into.len() { Ok(()) } else { Err(invalid("a packed message is shorter than it says")) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn block(offset: u32, length: usize) -> Block {
        Block { piece: 0, offset, length: length as u32 }
    }

    #[test]
    fn what_was_packed_unpacks_and_is_had_again() {
        let packer = Packer::new(1 << 20);
        let plain: Vec<u8> = (0..65536_u32).map(|at| (at / 100) as u8).collect();
        let packed = packer.pack(block(0, plain.len()), &plain).unwrap();
        assert!(packed.len() < plain.len() / 2);
        assert_eq!(packer.cached(block(0, plain.len())), Some(packed.clone()));
        let mut back = vec![0; plain.len()];
        Unpacker::default().unpack(&packed, &mut back).unwrap();
        assert_eq!(back, plain);
    }

    #[test]
    fn lies_about_the_length_are_errors() {
        let packer = Packer::new(1 << 20);
        let packed = packer.pack(block(0, 65536), &[1; 65536]).unwrap();
        let unpacker = Unpacker::default();
        for length in [16384, 65535, 65537] {
            assert!(unpacker.unpack(&packed, &mut vec![0; length]).is_err(), "{length}");
        }
        assert!(unpacker.unpack(&[7; 100], &mut vec![0; 16384]).is_err());
        assert!(unpacker.unpack(&packed, &mut vec![0; 65536]).is_ok(), "a bad frame spoils nothing");
    }

    #[test]
    fn noise_is_tried_ever_more_seldom_and_quick_links_never() {
        let packer = Packer::new(1 << 20);
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(16384)
        .collect();
        let mut tries = 0;
        for _ in 0..200 {
            if packer.worth_trying(Some(1e6)) {
                tries += 1;
                assert_eq!(packer.pack(block(0, noise.len()), &noise), None);
            }
        }
        assert!(tries < 12, "{tries}");
        assert!(!packer.worth_trying(Some(1e10)) && !packer.worth_trying(None));
    }

    #[test]
    fn the_cache_keeps_its_limit() {
        let packer = Packer::new(10_000);
        let plain: Vec<u8> = (0..65536_u32).map(|at| (at / 10) as u8).collect();
        for offset in 0..200 {
            packer.pack(block(offset << 14, plain.len()), &plain).unwrap();
            assert!(packer.bytes() <= 10_000);
        }
    }
}
