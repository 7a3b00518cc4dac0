//! Hashing: pieces as torrents of both versions want them, and a stream of
//! pieces on every core.
//!
//! Of a stream one thread reads and hands buffers over; workers hash them; the
//! buffers come back through a pool, whose size bounds the memory.

use std::num::NonZero;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use wire::metainfo::merkle::{self, FileTree, LEAF_BYTES};

use crate::Error;

/// Memory that buffers in flight may take together, unless two pieces need more.
const BUFFER_BUDGET_BYTES: usize = 64 << 20;

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-1 of some bytes.
pub(crate) fn sha1(bytes: &[u8]) -> [u8; 20] {
    Sha1::digest(bytes).into()
}

/// The leaves of a piece (BEP 52): SHA-256 of each block of 16 KiB.
#[must_use]
pub fn leaf_hashes(piece: &[u8]) -> Vec<[u8; 32]> {
    let blocks: Vec<&[u8]> = piece.chunks(LEAF_BYTES as usize).collect();
    let mut leaves = vec![[0; 32]; blocks.len()];
    hash_blocks(&blocks, &mut leaves);
    leaves
}

/// Hashes independent blocks side by side: twice as fast as one after the
/// other, because the rounds of one hash have to wait for each other.
fn hash_blocks(blocks: &[&[u8]], leaves: &mut [[u8; 32]]) {
    if *LANES_AGREE.get_or_init(lanes_agree) {
        tape_sha256::hash_many(blocks, leaves);
    } else {
        leaves.iter_mut().zip(blocks).for_each(|(leaf, block)| *leaf = sha256(block));
    }
}

static LANES_AGREE: OnceLock<bool> = OnceLock::new();

/// Compares the two implementations once on this processor. The one for many
/// blocks is young and has a kernel for each kind of processor; where one were
/// wrong, no piece would ever be right.
fn lanes_agree() -> bool {
    let content: Vec<u8> = (0..40u32 * 321).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let blocks: Vec<&[u8]> = content.chunks(321).chain(content.chunks(4096)).collect();
    let mut leaves = vec![[0; 32]; blocks.len()];
    tape_sha256::hash_many(&blocks, &mut leaves);
    let agree = leaves.iter().zip(&blocks).all(|(leaf, block)| *leaf == sha256(block));
    if !agree {
        tracing::warn!(kernel = tape_sha256::backend(), "hashes are wrong with this kernel; a slower one is used");
    }
    agree
}

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Whether every byte is zero. Compares with a zero block, which the compiler
/// turns into `memcmp`: near memory speed also in a debug build.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// Feeds `length` zero bytes to a running hash without holding them.
pub(crate) fn update_zeros(hash: &mut impl sha2::digest::Update, mut length: u64) {
    while length > 0 {
        let step = length.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..step as usize]);
        length -= step;
    }
}

/// Which hashes of a piece are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) sha1: bool,
    pub(crate) roots: bool,
}

/// The hashes of one piece, as far as they were wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PieceHash {
    pub(crate) sha1: Option<[u8; 20]>,
    pub(crate) root: Option<[u8; 32]>,
}

/// Bytes that go through both hashes one after the other: enough blocks for
/// side by side hashing, few enough to stay in the nearest caches.
const GROUP_BYTES: usize = 4 * LEAF_BYTES as usize;

/// Hashes a piece in one pass, so that each block comes from memory once for
/// both hashes. Zeros cost next to nothing.
pub(crate) struct PieceHasher {
    sha1: Option<Sha1>,
    /// Zero bytes at the end that SHA-1 has not seen yet: it may never need to.
    zeros: u64,
    leaves: Option<Vec<[u8; 32]>>,
}

impl PieceHasher {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self { sha1: wanted.sha1.then(Sha1::new), zeros: 0, leaves: wanted.roots.then(Vec::new) }
    }

    /// Takes the next bytes, whole blocks of 16 KiB but at the end of the piece.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for group in bytes.chunks(GROUP_BYTES) {
            if group.len() == GROUP_BYTES && is_zero(group) {
                self.zeros += GROUP_BYTES as u64;
                if let Some(leaves) = &mut self.leaves {
                    leaves.extend_from_slice(&[*zero_leaf(); GROUP_BYTES / LEAF_BYTES as usize]);
                }
                continue;
            }
            if let Some(sha1) = &mut self.sha1 {
                update_zeros(sha1, std::mem::take(&mut self.zeros));
                Digest::update(sha1, group);
            }
            if let Some(leaves) = &mut self.leaves {
                leaves.append(&mut leaf_hashes(group));
            }
        }
    }

    pub(crate) fn finish(mut self, tree: FileTree) -> PieceHash {
        if let Some(sha1) = &mut self.sha1 {
            update_zeros(sha1, self.zeros);
        }
        PieceHash {
            sha1: self.sha1.map(|sha1| sha1.finalize().into()),
            root: self.leaves.map(|leaves| tree.piece_root(&leaves)),
        }
    }
}

fn zero_leaf() -> &'static [u8; 32] {
    static LEAF: OnceLock<[u8; 32]> = OnceLock::new();
    LEAF.get_or_init(|| merkle::leaf(&ZEROS[..LEAF_BYTES as usize]))
}

/// Hashes of all-zero pieces, computed once: the common one and the last,
/// which may be shorter.
pub(crate) struct ZeroHashes {
    tree: FileTree,
    common: PieceHash,
    last: PieceHash,
}

impl ZeroHashes {
    pub(crate) fn new(size_bytes: u64, piece_size_bytes: u32) -> Self {
        let tree = FileTree::new(size_bytes, piece_size_bytes);
        let common = zero_hash(u64::from(piece_size_bytes).min(size_bytes), tree);
        let last = match size_bytes % u64::from(piece_size_bytes) {
            0 => common,
            short => zero_hash(short, tree),
        };
        Self { tree, common, last }
    }

    pub(crate) fn tree(&self) -> FileTree {
        self.tree
    }

    pub(crate) fn of(&self, last: bool) -> PieceHash {
        if last { self.last } else { self.common }
    }
}

fn zero_hash(length: u64, tree: FileTree) -> PieceHash {
    let mut sha1 = Sha1::new();
    update_zeros(&mut sha1, length);
    let mut leaves = vec![*zero_leaf(); (length / u64::from(LEAF_BYTES)) as usize];
    let short = (length % u64::from(LEAF_BYTES)) as usize;
    if short > 0 {
        leaves.push(merkle::leaf(&ZEROS[..short]));
    }
    PieceHash { sha1: Some(sha1.finalize().into()), root: Some(tree.piece_root(&leaves)) }
}

/// What is handed to the threads: one piece, or a known run of zeros.
#[derive(Clone)]
enum Work {
    Bytes(u32, Arc<Vec<u8>>),
    Zeros(u64),
}

/// A running pipeline: `T` is what a worker makes of a piece.
pub(crate) struct Pipeline<'scope, T> {
    pieces: Option<SyncSender<Work>>,
    whole: Option<(SyncSender<Work>, ScopedJoinHandle<'scope, [u8; 32]>)>,
    pool: Receiver<Vec<u8>>,
    results: Receiver<(u32, T)>,
    workers: Vec<ScopedJoinHandle<'scope, ()>>,
}

/// What came out of a [`Pipeline`].
pub(crate) struct Hashed<T> {
    /// One result for each piece submitted, in order of arrival.
    pub(crate) results: Vec<(u32, T)>,
    /// SHA-256 over everything in order, if asked for.
    pub(crate) whole: Option<[u8; 32]>,
}

impl<'scope, T: Send + 'scope> Pipeline<'scope, T> {
    /// Starts the threads. `work` makes the result of one piece; with `whole`
    /// another thread hashes all pieces in the order of submission.
    pub(crate) fn start<'env, F>(
        scope: &'scope thread::Scope<'scope, 'env>,
        piece_size_bytes: usize,
        whole: bool,
        work: F,
    ) -> Self
    where
        F: Fn(u32, &[u8]) -> T + Send + Clone + 'scope,
    {
        let cores = thread::available_parallelism().map_or(2, NonZero::get).min(16);
        let buffers = (BUFFER_BUDGET_BYTES / piece_size_bytes.max(1)).clamp(2, cores * 4);
        let (pool_in, pool) = channel();
        for _ in 0..buffers {
            // The receiver lives in this function, so this cannot fail.
            let _ = pool_in.send(Vec::new());
        }
        let (pieces, queue) = sync_channel(buffers);
        let (results_in, results) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let workers = (0..cores)
            .map(|_| {
                let (queue, pool_in, results_in, work) =
                    (Arc::clone(&queue), pool_in.clone(), results_in.clone(), work.clone());
                scope.spawn(move || worker(&queue, &pool_in, &results_in, &work))
            })
            .collect();
        let whole = whole.then(|| {
            let (sender, queue) = sync_channel(buffers);
            (sender, scope.spawn(move || hash_whole(&queue, &pool_in)))
        });
        Self { pieces: Some(pieces), whole, pool, results, workers }
    }

    /// A buffer to fill, with stale content (clearing it would cost a pass over
    /// memory for each piece); waits while all are in use.
    pub(crate) fn buffer(&self) -> Result<Vec<u8>, Error> {
        self.pool.recv().map_err(|_| Error::WorkerDied)
    }

    /// Hands a filled piece over.
    pub(crate) fn submit(&self, index: u32, bytes: Vec<u8>) -> Result<(), Error> {
        let work = Work::Bytes(index, Arc::new(bytes));
        if let Some((whole, _)) = &self.whole {
            whole.send(work.clone()).map_err(|_| Error::WorkerDied)?;
        }
        let pieces = self.pieces.as_ref().ok_or(Error::WorkerDied)?;
        pieces.send(work).map_err(|_| Error::WorkerDied)
    }

    /// Says that the next `length` bytes are zero: they count for the whole only.
    pub(crate) fn skip_zeros(&self, length: u64) -> Result<(), Error> {
        match &self.whole {
            Some((whole, _)) => whole.send(Work::Zeros(length)).map_err(|_| Error::WorkerDied),
            None => Ok(()),
        }
    }

    /// Waits for everything submitted.
    pub(crate) fn finish(mut self) -> Result<Hashed<T>, Error> {
        self.pieces = None;
        let whole = self.whole.take().map(|(sender, thread)| {
            drop(sender);
            thread.join().map_err(|_| Error::WorkerDied)
        });
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| Error::WorkerDied)?;
        }
        Ok(Hashed { results: self.results.try_iter().collect(), whole: whole.transpose()? })
    }
}

fn worker<T>(
    queue: &Mutex<Receiver<Work>>,
    pool: &Sender<Vec<u8>>,
    results: &Sender<(u32, T)>,
    work: &impl Fn(u32, &[u8]) -> T,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(next) = next else { return };
        if let Work::Bytes(index, bytes) = next {
            let result = work(index, &bytes);
            give_back(bytes, pool);
            if results.send((index, result)).is_err() {
                return;
            }
        }
    }
}

fn hash_whole(queue: &Receiver<Work>, pool: &Sender<Vec<u8>>) -> [u8; 32] {
    let mut hash = Sha256::new();
    while let Ok(work) = queue.recv() {
        match work {
            Work::Bytes(_, bytes) => {
                Digest::update(&mut hash, bytes.as_slice());
                give_back(bytes, pool);
            }
            Work::Zeros(length) => update_zeros(&mut hash, length),
        }
    }
    hash.finalize().into()
}

/// The last of the threads that share a buffer returns it. Nobody waits for a
/// buffer once the pipeline is being torn down, hence the ignored result.
fn give_back(bytes: Arc<Vec<u8>>, pool: &Sender<Vec<u8>>) {
    if let Some(bytes) = Arc::into_inner(bytes) {
        let _ = pool.send(bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn zero_hashes_equal_hashing_zeros() {
        for (size, piece) in [(1u64, 16 << 10), (512, 16 << 10), (65_537, 16 << 10), (200_000, 64 << 10)] {
            let zeros = vec![0; size as usize];
            let zero = ZeroHashes::new(size, piece);
            let count = zeros.chunks(piece as usize).count();
            for (index, bytes) in zeros.chunks(piece as usize).enumerate() {
                let mut hasher = PieceHasher::new(Wanted { sha1: true, roots: true });
                hasher.update(bytes);
                assert_eq!(zero.of(index + 1 == count), hasher.finish(zero.tree()), "{size} {index}");
            }
            let expected =
                merkle::subtree(&zeros.chunks(16 << 10).map(sha256).collect::<Vec<_>>(), 0, zero.tree().height());
            let roots: Vec<_> = (1..=count).filter_map(|index| zero.of(index == count).root).collect();
            assert_eq!(zero.tree().root(&roots), expected);
            assert_eq!(zero.of(true).sha1, zeros.chunks(piece as usize).last().map(sha1));
            assert!(is_zero(&zeros));
        }
        let mut one = vec![0; 100_000];
        one[99_999] = 1;
        assert!(!is_zero(&one));
    }

    #[test]
    fn many_blocks_hash_as_one_by_one() {
        assert!(lanes_agree(), "{}", tape_sha256::backend());
        let content: Vec<u8> = (0..1_000_003u32).map(|n| (n >> 9) as u8).collect();
        for length in [1, 55, 64, 16_384, 16_385, 65_536, 100_000, content.len()] {
            let expected: Vec<_> = content[..length].chunks(16 << 10).map(sha256).collect();
            assert_eq!(leaf_hashes(&content[..length]), expected, "{length}");
        }
    }

    #[test]
    fn a_pipeline_hashes_every_piece_and_the_whole_in_order() {
        let pieces: Vec<Vec<u8>> = (0u8..50).map(|n| vec![n; 1000]).collect();
        let hashed = thread::scope(|scope| {
            let pipeline = Pipeline::start(scope, 1000, true, |_, bytes| sha256(bytes));
            for (index, piece) in pieces.iter().enumerate() {
                let mut buffer = pipeline.buffer()?;
                buffer.clear();
                buffer.extend_from_slice(piece);
                pipeline.submit(index as u32, buffer)?;
            }
            pipeline.skip_zeros(70_000)?;
            pipeline.finish()
        })
        .unwrap();
        let mut whole = pieces.concat();
        whole.resize(whole.len() + 70_000, 0);
        assert_eq!(hashed.whole, Some(sha256(&whole)));
        assert_eq!(hashed.results.len(), 50);
        for (index, hash) in hashed.results {
            assert_eq!(hash, sha256(&pieces[index as usize]));
        }
    }
}
