//! Bytes for serving: from memory while a piece is fresh, else from the disk on
//! a blocking thread, a stretch at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use image::{PieceSink, PieceSource};
use swarm::Shape;
use tokio::sync::{OnceCell, Semaphore};
use wire::peer::{BLOCK_BYTES, Block};

use crate::Error;

/// Least memory that a swarm can be given, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 8 << 20;

/// Longest stretch that is read from a disk at once: a peer that asks for one
/// block of a piece asks for the next ones too.
const STRETCH_BYTES: u64 = 256 << 10;

/// Disk reads at once: enough to keep a disk's queue filled.
const READS: usize = 8;

/// A disk that takes pieces and gives them back.
pub trait Storage: PieceSink + PieceSource {}

impl<T: PieceSink + PieceSource> Storage for T {}

/// How the memory of a swarm is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Pieces that are not verified yet, in bytes.
    pub(super) active_bytes: u64,
    /// Stretches kept for serving, in bytes.
    pub(super) cache_bytes: u64,
    /// Blocks between a socket and their piece.
    pub(super) blocks_in_flight: usize,
}

impl Budget {
    /// Half for pieces that come, a quarter for serving; the rest is for what
    /// is on its way in queues and socket buffers of ours.
    pub(super) fn of(memory_bytes: u64) -> Self {
        let memory = memory_bytes.max(MIN_MEMORY_BYTES);
        let blocks = (memory / 8 / u64::from(BLOCK_BYTES)).clamp(32, 512);
        Self { active_bytes: memory / 2, cache_bytes: memory / 4, blocks_in_flight: blocks as usize }
    }
}

/// The readable pieces of one swarm.
pub(super) struct Store {
    source: Arc<dyn PieceSource>,
    shape: Shape,
    stretch_bytes: u32,
    limit_bytes: u64,
    cache: Mutex<Cache>,
    reads: Semaphore,
}

/// Stretches in the order they came; the oldest leaves first. Fresh pieces are
/// what the swarm wants most (they are rare), so age is the right measure, and
/// the stretches of a piece, which share their memory, leave together.
#[derive(Default)]
struct Cache {
    stretches: HashMap<Key, Arc<OnceCell<Bytes>>>,
    order: VecDeque<(Key, u64)>,
    bytes: u64,
}

/// Piece and number of the stretch in it.
type Key = (u32, u32);

impl Store {
    pub(super) fn new(source: Arc<dyn PieceSource>, shape: Shape, limit_bytes: u64) -> Self {
        // A small cache has short stretches, so that several peers fit.
        let stretch = (limit_bytes / 32).next_power_of_two().clamp(u64::from(BLOCK_BYTES), STRETCH_BYTES);
        Self {
            source,
            shape,
            stretch_bytes: stretch as u32,
            limit_bytes,
            cache: Mutex::default(),
            reads: Semaphore::new(READS),
        }
    }

    /// The bytes of a block, which may cross a stretch when a foreign peer cuts
    /// otherwise than we do.
    pub(super) async fn block(self: &Arc<Self>, block: Block) -> Result<Bytes, Error> {
        let first = block.offset / self.stretch_bytes;
        let begin = (block.offset % self.stretch_bytes) as usize;
        let end = begin + block.length as usize;
        let stretch = self.stretch((block.piece, first)).await?;
        if end <= stretch.len() {
            return Ok(stretch.slice(begin..end));
        }
        let next = self.stretch((block.piece, first + 1)).await?;
        let (head, rest) = (stretch.get(begin..), next.get(..end.saturating_sub(stretch.len())));
        match (head, rest) {
            (Some(head), Some(rest)) => Ok([head, rest].concat().into()),
            _ => Err(Error::Defect),
        }
    }

    /// Keeps a piece that was just verified.
    pub(super) fn remember(&self, piece: u32, bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let mut cache = self.cache();
        for (number, start) in (0..bytes.len()).step_by(self.stretch_bytes as usize).enumerate() {
            let end = bytes.len().min(start + self.stretch_bytes as usize);
            let cell = Arc::new(OnceCell::new_with(Some(bytes.slice(start..end))));
            cache.insert((piece, number as u32), (end - start) as u64, cell);
        }
        cache.shrink(self.limit_bytes);
    }

    /// Bytes held in memory now.
    pub(super) fn cached_bytes(&self) -> u64 {
        self.cache().bytes
    }

    /// Several connections that want the same stretch wait for one read.
    async fn stretch(self: &Arc<Self>, key: Key) -> Result<Bytes, Error> {
        let cell = {
            let mut cache = self.cache();
            match cache.stretches.get(&key) {
                Some(cell) => Arc::clone(cell),
                None => {
                    let cell = Arc::new(OnceCell::new());
                    cache.insert(key, u64::from(self.stretch_length(key)), Arc::clone(&cell));
                    cache.shrink(self.limit_bytes);
                    cell
                }
            }
        };
        cell.get_or_try_init(|| self.read(key)).await.cloned()
    }

    async fn read(self: &Arc<Self>, key: Key) -> Result<Bytes, Error> {
        let _turn = self.reads.acquire().await.map_err(|_| Error::Defect)?;
        let store = Arc::clone(self);
        let read = move || {
            let mut bytes = vec![0; store.stretch_length(key) as usize];
            store.source.read(key.0, key.1 * store.stretch_bytes, &mut bytes)?;
            Ok(Bytes::from(bytes))
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Defect)?
    }

    fn stretch_length(&self, (piece, number): Key) -> u32 {
        let start = number.saturating_mul(self.stretch_bytes);
        self.shape.piece_bytes(piece).saturating_sub(start).min(self.stretch_bytes)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn insert(&mut self, key: Key, bytes: u64, cell: Arc<OnceCell<Bytes>>) {
        if self.stretches.insert(key, cell).is_none() {
            self.order.push_back((key, bytes));
            self.bytes += bytes;
        }
    }

    fn shrink(&mut self, limit_bytes: u64) {
        while self.bytes > limit_bytes
            && let Some((key, bytes)) = self.order.pop_front()
        {
            self.stretches.remove(&key);
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PIECE: u32 = 1 << 20;

    /// Every byte tells its piece; counts reads.
    struct Counting(AtomicUsize);

    impl PieceSource for Counting {
        fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), image::Error> {
            self.0.fetch_add(1, Ordering::SeqCst);
            for (at, byte) in into.iter_mut().enumerate() {
                *byte = (index + (begin + at as u32) / 1000) as u8;
            }
            Ok(())
        }
    }

    fn store(limit: u64) -> (Arc<Counting>, Arc<Store>) {
        let source = Arc::new(Counting(AtomicUsize::new(0)));
        let shape = Shape::new(u64::from(PIECE) * 8 + 1000, PIECE).unwrap();
        (Arc::clone(&source), Arc::new(Store::new(source, shape, limit)))
    }

    fn expected(block: Block) -> Vec<u8> {
        (block.offset..block.offset + block.length).map(|at| (block.piece + at / 1000) as u8).collect()
    }

    #[tokio::test]
    async fn a_stretch_is_read_once_for_all_its_blocks() {
        let (source, store) = store(16 << 20);
        for offset in (0..256 << 10).step_by(16 << 10) {
            let block = Block { piece: 3, offset, length: 16 << 10 };
            assert_eq!(store.block(block).await.unwrap(), expected(block));
        }
        assert_eq!(source.0.load(Ordering::SeqCst), 1);
        assert_eq!(store.cached_bytes(), 256 << 10);
    }

    #[tokio::test]
    async fn blocks_across_stretches_and_at_the_end_are_right() {
        let (_, store) = store(16 << 20);
        for block in [
            Block { piece: 0, offset: (256 << 10) - 100, length: 16 << 10 },
            Block { piece: 8, offset: 0, length: 1000 },
            Block { piece: 7, offset: PIECE - 1, length: 1 },
        ] {
            assert_eq!(store.block(block).await.unwrap(), expected(block), "{block:?}");
        }
    }

    #[tokio::test]
    async fn fresh_pieces_need_no_disk_and_memory_stays_within_its_limit() {
        let (source, store) = store(2 << 20);
        for piece in 0..5 {
            let block = Block { piece, offset: 0, length: PIECE };
            store.remember(piece, expected(block));
            assert!(store.cached_bytes() <= 2 << 20);
        }
        let block = Block { piece: 4, offset: 500_000, length: 16 << 10 };
        assert_eq!(store.block(block).await.unwrap(), expected(block));
        assert_eq!(source.0.load(Ordering::SeqCst), 0);
        let old = Block { piece: 0, offset: 0, length: 100 };
        assert_eq!(store.block(old).await.unwrap(), expected(old));
        assert_eq!(source.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn budgets_fit_into_their_memory() {
        for memory in [0, MIN_MEMORY_BYTES, 64 << 20, 1 << 30] {
            let budget = Budget::of(memory);
            let blocks = budget.blocks_in_flight as u64 * u64::from(BLOCK_BYTES);
            assert!(budget.active_bytes + budget.cache_bytes + blocks <= memory.max(MIN_MEMORY_BYTES));
        }
    }
}
