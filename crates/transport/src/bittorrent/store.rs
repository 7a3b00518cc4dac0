//! Bytes for serving: straight from the file when they are in the system's
//! memory, else read on a blocking thread.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::{PieceSink, PieceSource};
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use swarm::{PieceSet, Shape};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::spawn_blocking;
use wire::peer::{BLOCK_BYTES, Block};

use super::packing::Packer;
use crate::Error;

/// Least memory that a swarm can be given, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 8 << 20;

/// Longest stretch that is read at once from a source that is no file: a peer
/// that asks for one block of a piece asks for the next ones too.
const STRETCH_BYTES: u64 = 256 << 10;

/// A stretch that was read this long ago is read again: what is on the disk may
/// have been put right meanwhile.
const STRETCH_LASTS: Duration = Duration::from_secs(5);

/// How long others are looked for when a piece cannot be read.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// Disk reads at once: enough to keep a disk's queue filled.
const READS: usize = 8;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of statfs(2): files that are nowhere but in
/// memory.
const MEMORY_FILESYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A disk that takes pieces and gives them back.
pub trait Storage: PieceSink + PieceSource {}

impl<T: PieceSink + PieceSource> Storage for T {}

/// How the memory of a swarm is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Pieces that are not verified yet, in bytes.
    pub(super) active_bytes: u64,
    /// Kept for serving, in bytes: packed chunks, and stretches of sources that
    /// are no file.
    pub(super) cache_bytes: u64,
    /// Events that may wait for the swarm's task.
    pub(super) events: usize,
}

impl Budget {
    /// Half for pieces that come, a quarter for serving; the rest is for what
    /// comes twice, for reads from the disk and for buffers of connections.
    pub(super) fn of(memory_bytes: u64) -> Self {
        let memory = memory_bytes.max(MIN_MEMORY_BYTES);
        Self { active_bytes: memory / 2, cache_bytes: memory / 4, events: 256 }
    }
}

/// A payload to be sent.
#[derive(Debug)]
pub(super) enum Payload {
    /// These bytes.
    Bytes(Bytes),
    /// It lies in the file of [`Store::place`], and in the system's memory.
    OnFile,
}

/// The readable pieces of one swarm.
pub(super) struct Store {
    source: Arc<dyn PieceSource>,
    shape: Shape,
    stretch_bytes: u32,
    limit_bytes: u64,
    cache: Mutex<Cache>,
    reads: Semaphore,
    packer: Packer,
    /// The file never leaves memory; known once a piece is there.
    in_memory: OnceLock<bool>,
}

/// Stretches in the order they came; the oldest leaves first. Fresh pieces are
/// what the swarm wants most (they are rare), so age is the right measure, and
/// the stretches of a piece, which share their memory, leave together.
#[derive(Default)]
struct Cache {
    stretches: HashMap<Key, (Instant, Arc<OnceCell<Bytes>>)>,
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
            limit_bytes: limit_bytes / 2,
            cache: Mutex::default(),
            reads: Semaphore::new(READS),
            packer: Packer::new(limit_bytes / 2),
            in_memory: OnceLock::new(),
        }
    }

    /// The file that holds a piece, and where it begins in it.
    pub(super) fn place(&self, piece: u32) -> Option<(&File, u64)> {
        self.source.place(piece)
    }

    /// Packs chunks, and tells when that pays.
    pub(super) fn packer(&self) -> &Packer {
        &self.packer
    }

    /// How a range of one piece is best sent; waits until it can be sent
    /// without waiting for a disk.
    pub(super) async fn payload(self: &Arc<Self>, range: Block) -> Result<Payload, Error> {
        match self.place(range.piece) {
            None => self.cached(range).await.map(Payload::Bytes),
            Some((file, start)) if self.is_in_memory(file, start + u64::from(range.offset), range.length) => {
                Ok(Payload::OnFile)
            }
            Some((file, start)) => {
                self.read_ahead(file, start, range);
                self.read(range).await.map(Payload::Bytes)
            }
        }
    }

    /// Appends a block to `out` if that takes no waiting; otherwise leaves it
    /// as it was, and false is returned.
    pub(super) fn append_cached(&self, block: Block, out: &mut Vec<u8>) -> bool {
        let Some((file, start)) = self.place(block.piece) else { return false };
        let (begin, offset) = (out.len(), start + u64::from(block.offset));
        out.resize(begin + block.length as usize, 0);
        let into = &mut out[begin..];
        let read = if self.lives_in_memory(file) {
            file.read_at(into, offset).ok()
        } else {
            rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT).ok()
        };
        let whole = read == Some(block.length as usize);
        if !whole {
            out.truncate(begin);
        }
        whole
    }

    /// A range packed; none when it does not shrink.
    pub(super) async fn packed(self: &Arc<Self>, range: Block) -> Result<Option<Bytes>, Error> {
        if let Some(packed) = self.packer.cached(range) {
            return Ok(Some(packed));
        }
        let _turn = self.reads.acquire().await.map_err(|_| Error::Defect)?;
        let store = Arc::clone(self);
        let work = move || {
            let mut plain = vec![0; range.length as usize];
            store.source.read(range.piece, range.offset, &mut plain)?;
            Ok(store.packer.pack(range, &plain))
        };
        spawn_blocking(work).await.map_err(|_| Error::Defect)?
    }

    /// Reads the whole of a piece. Blocks.
    pub(super) fn read_blocking(&self, piece: u32, into: &mut [u8]) -> Result<(), Error> {
        Ok(self.source.read(piece, 0, into)?)
    }

    /// Lets `look` see a piece bit by bit, each a whole number of blocks but the
    /// last: pieces may be larger than what memory is meant for. Blocks.
    pub(super) fn each_stretch(&self, piece: u32, mut look: impl FnMut(&[u8])) -> Result<(), Error> {
        let length = self.shape.piece_bytes(piece);
        let mut stretch = vec![0; STRETCH_BYTES.min(length.into()) as usize];
        for begin in (0..length).step_by(stretch.len().max(1)) {
            let part = stretch.len().min((length - begin) as usize);
            self.source.read(piece, begin, &mut stretch[..part])?;
            look(&stretch[..part]);
        }
        Ok(())
    }

    /// Pieces of `have` that can no longer be read: none when `suspect` can, else
    /// those found from there on in a moment. A file that has shrunk and a disk
    /// that is gone tell so at once, piece by piece. Blocks.
    pub(super) fn unreadable(&self, have: &PieceSet, suspect: u32) -> Vec<u32> {
        if self.each_stretch(suspect, |_| {}).is_ok() {
            return Vec::new();
        }
        let until = Instant::now() + LOOK_TIME;
        let ends = |piece: &u32| {
            let last = self.shape.piece_bytes(*piece).saturating_sub(1);
            self.source.read(*piece, last, &mut [0]).is_err()
        };
        let others = (suspect + 1..self.shape.pieces()).chain((0..suspect).rev()).filter(|piece| have.contains(*piece));
        let lost = others.take_while(|_| Instant::now() < until).filter(ends);
        let mut lost: Vec<u32> = std::iter::once(suspect).chain(lost).collect();
        lost.sort_unstable();
        lost
    }

    /// Keeps a piece that was just verified, if its file cannot give it; hands
    /// the buffer back otherwise.
    pub(super) fn remember(&self, piece: u32, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if self.place(piece).is_some() {
            return Some(bytes);
        }
        let bytes = Bytes::from(bytes);
        let mut cache = self.cache();
        for (number, start) in (0..bytes.len()).step_by(self.stretch_bytes as usize).enumerate() {
            let end = bytes.len().min(start + self.stretch_bytes as usize);
            let cell = Arc::new(OnceCell::new_with(Some(bytes.slice(start..end))));
            cache.insert((piece, number as u32), (end - start) as u64, cell);
        }
        cache.shrink(self.limit_bytes);
        None
    }

    /// Bytes held in memory now.
    pub(super) fn cached_bytes(&self) -> u64 {
        self.cache().bytes + self.packer.bytes()
    }

    /// Whether reading there would not wait: the first and the last page are
    /// looked at, since the system reads and drops whole runs of pages.
    fn is_in_memory(&self, file: &File, offset: u64, length: u32) -> bool {
        self.lives_in_memory(file)
            || [offset, offset + u64::from(length) - 1].into_iter().all(|at| {
                let mut byte = [0];
                let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
                read == Ok(1)
            })
    }

    /// Whether the files of the source are nowhere but in memory.
    fn lives_in_memory(&self, file: &File) -> bool {
        let found = || rustix::fs::fstatfs(file).is_ok_and(|found| MEMORY_FILESYSTEMS.contains(&{ found.f_type }));
        *self.in_memory.get_or_init(found)
    }

    /// Whoever wants a part of a piece wants the rest next.
    fn read_ahead(&self, file: &File, start: u64, range: Block) {
        let end = range.offset + range.length;
        let rest = u64::from(self.shape.piece_bytes(range.piece).saturating_sub(end));
        if let Ok(rest) = rest.try_into() {
            // Only advice; without it the next range is read when it is wanted.
            let _: Result<(), Errno> = rustix::fs::fadvise(file, start + u64::from(end), Some(rest), Advice::WillNeed);
        }
    }

    /// From a source that is no file: a range may cross stretches.
    async fn cached(self: &Arc<Self>, range: Block) -> Result<Bytes, Error> {
        let first = range.offset / self.stretch_bytes;
        let begin = (range.offset % self.stretch_bytes) as usize;
        let end = begin + range.length as usize;
        let stretch = self.stretch((range.piece, first)).await?;
        if end <= stretch.len() {
            return Ok(stretch.slice(begin..end));
        }
        let mut whole = Vec::with_capacity(range.length as usize);
        whole.extend_from_slice(stretch.get(begin..).ok_or(Error::Defect)?);
        for number in first + 1.. {
            let left = range.length as usize - whole.len();
            if left == 0 {
                break;
            }
            let stretch = self.stretch((range.piece, number)).await?;
            if stretch.is_empty() {
                return Err(Error::Defect);
            }
            whole.extend_from_slice(&stretch[..left.min(stretch.len())]);
        }
        Ok(whole.into())
    }

    /// Several connections that want the same stretch wait for one read.
    async fn stretch(self: &Arc<Self>, key: Key) -> Result<Bytes, Error> {
        let length = self.stretch_length(key);
        let cell = {
            let mut cache = self.cache();
            match cache.fresh(key) {
                Some(cell) => cell,
                None => {
                    let cell = Arc::new(OnceCell::new());
                    cache.insert(key, u64::from(length), Arc::clone(&cell));
                    cache.shrink(self.limit_bytes);
                    cell
                }
            }
        };
        let range = Block { piece: key.0, offset: key.1.saturating_mul(self.stretch_bytes), length };
        cell.get_or_try_init(|| self.read(range)).await.cloned()
    }

    /// Reads a range from the disk, without waiting for it on this thread.
    pub(super) async fn read(self: &Arc<Self>, range: Block) -> Result<Bytes, Error> {
        let _turn = self.reads.acquire().await.map_err(|_| Error::Defect)?;
        let store = Arc::clone(self);
        let read = move || {
            let mut bytes = vec![0; range.length as usize];
            store.source.read(range.piece, range.offset, &mut bytes)?;
            Ok(Bytes::from(bytes))
        };
        spawn_blocking(read).await.map_err(|_| Error::Defect)?
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
    fn fresh(&self, key: Key) -> Option<Arc<OnceCell<Bytes>>> {
        let (since, cell) = self.stretches.get(&key)?;
        (since.elapsed() < STRETCH_LASTS).then(|| Arc::clone(cell))
    }

    fn insert(&mut self, key: Key, bytes: u64, cell: Arc<OnceCell<Bytes>>) {
        if self.stretches.insert(key, (Instant::now(), cell)).is_none() {
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
        let (source, store) = store(32 << 20);
        for offset in (0..256 << 10).step_by(16 << 10) {
            let block = Block { piece: 3, offset, length: 16 << 10 };
            assert_eq!(store.cached(block).await.unwrap(), expected(block));
        }
        assert_eq!(source.0.load(Ordering::SeqCst), 1);
        assert_eq!(store.cached_bytes(), 256 << 10);
    }

    #[tokio::test]
    async fn blocks_across_stretches_and_at_the_end_are_right() {
        let (_, store) = store(32 << 20);
        for block in [
            Block { piece: 0, offset: (256 << 10) - 100, length: 16 << 10 },
            Block { piece: 8, offset: 0, length: 1000 },
            Block { piece: 7, offset: PIECE - 1, length: 1 },
        ] {
            assert_eq!(store.cached(block).await.unwrap(), expected(block), "{block:?}");
        }
    }

    #[tokio::test]
    async fn fresh_pieces_need_no_disk_and_memory_stays_within_its_limit() {
        let (source, store) = store(4 << 20);
        for piece in 0..5 {
            let block = Block { piece, offset: 0, length: PIECE };
            assert!(store.remember(piece, expected(block)).is_none());
            assert!(store.cached_bytes() <= 2 << 20);
        }
        let block = Block { piece: 4, offset: 500_000, length: 16 << 10 };
        assert_eq!(store.cached(block).await.unwrap(), expected(block));
        assert_eq!(source.0.load(Ordering::SeqCst), 0);
        let old = Block { piece: 0, offset: 0, length: 100 };
        assert_eq!(store.cached(old).await.unwrap(), expected(old));
        assert_eq!(source.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn budgets_fit_into_their_memory() {
        for memory in [0, MIN_MEMORY_BYTES, 64 << 20, 1 << 30] {
            let budget = Budget::of(memory);
            assert!(budget.active_bytes + budget.cache_bytes <= memory.max(MIN_MEMORY_BYTES) * 3 / 4);
        }
    }
}
