//! Memory for pieces that come: a bounded pool of buffers, and the places in
//! them where connections let their bytes land without any copy.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fixedbitset::FixedBitSet;
use swarm::{Peer, Shape};
use wire::peer::{BLOCK_BYTES, Block};

/// Buffers for pieces, used again and again, and shorter ones. There are only as
/// many as the engine's requests can fill: see [`Yard::claim`].
#[derive(Debug)]
pub(super) struct Pool {
    piece_bytes: usize,
    /// Idle buffers that are kept.
    keep: usize,
    state: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    /// Bytes of all buffers, idle and lent.
    bytes: u64,
}

impl Pool {
    pub(super) fn new(piece_bytes: usize, keep: usize) -> Self {
        Self { piece_bytes, keep, state: Mutex::default() }
    }

    /// A buffer of this length with anything in it.
    pub(super) fn take(&self, length: usize) -> Vec<u8> {
        let mut state = self.state();
        let idle = if length == self.piece_bytes { state.buffers.pop() } else { None };
        idle.unwrap_or_else(|| {
            let buffer = vec![0; length];
            state.bytes += buffer.capacity() as u64;
            buffer
        })
    }

    /// Takes back what [`take`](Self::take) gave.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut state = self.state();
        if buffer.len() == self.piece_bytes && state.buffers.len() < self.keep {
            state.buffers.push(buffer);
        } else {
            state.bytes = state.bytes.saturating_sub(buffer.capacity() as u64);
        }
    }

    /// A buffer of this length that [`take`](Self::take) gave now belongs to
    /// somebody else.
    pub(super) fn lose(&self, length: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(length as u64);
    }

    /// Bytes of all its buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    fn state(&self) -> MutexGuard<'_, Idle> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back by itself.
#[derive(Debug)]
pub(super) struct Lent {
    pool: Arc<Pool>,
    bytes: Vec<u8>,
}

impl Lent {
    /// A buffer of this length with anything in it.
    pub(super) fn of(pool: &Arc<Pool>, length: usize) -> Self {
        Self { pool: Arc::clone(pool), bytes: pool.take(length) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.bytes));
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// The pieces of one swarm that are on their way.
#[derive(Debug)]
pub(super) struct Yard {
    shape: Shape,
    pool: Arc<Pool>,
    sites: Mutex<HashMap<u32, Site>>,
    /// For each piece the blocks that were requested of each peer, until the
    /// piece is there or the peer is gone.
    asked: Mutex<HashMap<u32, Vec<(Peer, FixedBitSet)>>>,
}

/// A piece that was requested.
#[derive(Debug, Default)]
struct Site {
    /// None until the first byte comes.
    bytes: Option<Arc<Mutex<Vec<u8>>>>,
    /// Blocks of 16 KiB that came, or that a connection is receiving.
    taken: FixedBitSet,
}

/// Where a connection puts a payload that is about to come.
#[derive(Debug)]
pub(super) enum Landing {
    /// Straight into its piece; nobody else writes there.
    Place(Claim),
    /// Aside: somebody else is sending the same, or nothing of the piece is
    /// wanted at the moment.
    Aside(Lent),
    /// Nowhere: this peer was not asked for it, and the engine will drop it.
    Nowhere,
}

/// The right to write one range of a piece. Given up when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    yard: Arc<Yard>,
    block: Block,
    bytes: Arc<Mutex<Vec<u8>>>,
    kept: bool,
}

impl Claim {
    /// Lets `fill` write into the range.
    pub(super) fn with<T>(&self, fill: impl FnOnce(&mut [u8]) -> T) -> T {
        fill(range_of(self.block, &mut lock(&self.bytes)).unwrap_or_default())
    }

    /// The bytes stay.
    pub(super) fn keep(mut self) {
        self.kept = true;
        self.yard.settle(self.block, &self.bytes);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            self.yard.release(self.block, &self.bytes);
        }
    }
}

impl Yard {
    pub(super) fn new(shape: Shape, pool: Arc<Pool>) -> Self {
        Self { shape, pool, sites: Mutex::default(), asked: Mutex::default() }
    }

    /// This range is being requested of this peer.
    pub(super) fn expect(&self, peer: Peer, range: Block) {
        let blocks = self.shape.blocks(range.piece) as usize;
        let site = || Site { bytes: None, taken: FixedBitSet::with_capacity(blocks) };
        self.sites().entry(range.piece).or_insert_with(site);
        let mut asked = self.asked();
        let peers = asked.entry(range.piece).or_default();
        let at = peers.iter().position(|(known, _)| *known == peer).unwrap_or_else(|| {
            peers.push((peer, FixedBitSet::with_capacity(blocks)));
            peers.len() - 1
        });
        peers[at].1.insert_range(blocks_of(range));
    }

    /// This piece is there: what still comes of it is thrown away.
    pub(super) fn done(&self, piece: u32) {
        self.asked().remove(&piece);
    }

    /// This peer is gone.
    pub(super) fn gone(&self, peer: Peer) {
        self.asked().retain(|_, peers| {
            peers.retain(|(known, _)| *known != peer);
            !peers.is_empty()
        });
    }

    /// Finds the place for a block inside the image. Only what was requested of
    /// this very peer takes a place or memory, so that nobody can keep others'
    /// bytes out or make us hold what nobody wants.
    pub(super) fn claim(self: &Arc<Self>, peer: Peer, block: Block) -> Landing {
        if !self.was_asked(peer, block) {
            return Landing::Nowhere;
        }
        let mut sites = self.sites();
        let range = blocks_of(block);
        let aligned = block.offset.is_multiple_of(BLOCK_BYTES);
        let site = sites.get_mut(&block.piece);
        let Some(site) = site.filter(|site| aligned && site.taken.count_ones(range.clone()) == 0) else {
            drop(sites);
            return Landing::Aside(Lent::of(&self.pool, block.length as usize));
        };
        site.taken.insert_range(range);
        let length = self.shape.piece_bytes(block.piece) as usize;
        let bytes = site.bytes.get_or_insert_with(|| Arc::new(Mutex::new(self.pool.take(length))));
        Landing::Place(Claim { yard: Arc::clone(self), block, bytes: Arc::clone(bytes), kept: false })
    }

    /// Copies bytes that came aside into their piece.
    pub(super) fn put(&self, block: Block, from: &[u8]) {
        let mut sites = self.sites();
        let Some(site) = sites.get_mut(&block.piece) else { return };
        let length = self.shape.piece_bytes(block.piece) as usize;
        let bytes = site.bytes.get_or_insert_with(|| Arc::new(Mutex::new(self.pool.take(length))));
        if site.taken.count_ones(blocks_of(block)) > 0 {
            // A connection is still writing there, and must not spoil what was
            // kept: the piece moves, and the connection is left behind.
            let mut moved = self.pool.take(length);
            moved.copy_from_slice(&lock(bytes));
            self.pool.lose(length);
            *bytes = Arc::new(Mutex::new(moved));
        }
        if let Some(place) = range_of(block, &mut lock(bytes)) {
            place.copy_from_slice(from);
            site.taken.insert_range(blocks_of(block));
        }
    }

    /// A range was kept; if its piece has moved meanwhile, the bytes follow.
    fn settle(&self, block: Block, bytes: &Arc<Mutex<Vec<u8>>>) {
        let moved = match self.sites().get(&block.piece).and_then(|site| site.bytes.as_ref()) {
            Some(current) => !Arc::ptr_eq(current, bytes),
            None => false,
        };
        if moved && let Some(range) = range_of(block, &mut lock(bytes)) {
            self.put(block, range);
        }
    }

    /// Takes a piece out, whole as far as it came.
    pub(super) fn take(&self, piece: u32) -> Option<Vec<u8>> {
        let bytes = self.sites().remove(&piece)?.bytes?;
        // Somebody may be at a claim that the engine no longer counts; they
        // keep the original, which nobody reads again.
        Some(Arc::try_unwrap(bytes).map_or_else(
            |shared| {
                let original = lock(&shared);
                let mut own = self.pool.take(original.len());
                own.copy_from_slice(&original);
                self.pool.lose(original.len());
                own
            },
            |whole| whole.into_inner().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Gives a piece's bytes back of which these blocks are to be had again.
    pub(super) fn restore(&self, piece: u32, bytes: Vec<u8>, again: &[u32]) {
        let mut taken = FixedBitSet::with_capacity(self.shape.blocks(piece) as usize);
        taken.insert_range(..);
        for &block in again {
            if (block as usize) < taken.len() {
                taken.remove(block as usize);
            }
        }
        self.sites().insert(piece, Site { bytes: Some(Arc::new(Mutex::new(bytes))), taken });
    }

    /// Nothing of this piece is wanted.
    pub(super) fn forget(&self, piece: u32) {
        if let Some(bytes) = self.take(piece) {
            self.pool.give(bytes);
        }
    }

    /// Gives up a range; the memory goes when nothing of the piece is there.
    fn release(&self, block: Block, bytes: &Arc<Mutex<Vec<u8>>>) {
        let mut sites = self.sites();
        let Some(site) = sites.get_mut(&block.piece) else { return };
        if site.bytes.as_ref().is_none_or(|current| !Arc::ptr_eq(current, bytes)) {
            return;
        }
        site.taken.remove_range(blocks_of(block));
        if site.taken.is_clear()
            && let Some(bytes) = site.bytes.take()
        {
            // The claim that is being dropped still holds it.
            let bytes = std::mem::take(&mut *lock(&bytes));
            self.pool.give(bytes);
        }
    }

    fn was_asked(&self, peer: Peer, block: Block) -> bool {
        let asked = self.asked();
        let mut peers = asked.get(&block.piece).into_iter().flatten();
        let (range, length) = (blocks_of(block), blocks_of(block).len());
        peers.any(|(known, blocks)| *known == peer && blocks.count_ones(range.clone()) == length)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<u32, Vec<(Peer, FixedBitSet)>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sites(&self) -> MutexGuard<'_, HashMap<u32, Site>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn range_of(block: Block, piece: &mut [u8]) -> Option<&mut [u8]> {
    let start = block.offset as usize;
    piece.get_mut(start..start + block.length as usize)
}

/// The blocks of 16 KiB that a range touches.
fn blocks_of(block: Block) -> std::ops::Range<usize> {
    let end = block.offset.saturating_add(block.length).div_ceil(BLOCK_BYTES);
    (block.offset / BLOCK_BYTES) as usize..end as usize
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const PIECE: u32 = 64 << 10;

    fn yard() -> (Arc<Pool>, Arc<Yard>) {
        let pool = Arc::new(Pool::new(PIECE as usize, 2));
        let shape = Shape::new(u64::from(PIECE) * 4 + 1000, PIECE).unwrap();
        (Arc::clone(&pool), Arc::new(Yard::new(shape, pool)))
    }

    fn block(piece: u32, offset: u32, length: u32) -> Block {
        Block { piece, offset, length }
    }

    const ASKED: Peer = Peer(1);

    /// Requests a whole piece.
    fn expect(yard: &Yard, piece: u32) {
        yard.expect(ASKED, block(piece, 0, yard.shape.piece_bytes(piece)));
    }

    fn claim(yard: &Arc<Yard>, block: Block) -> Landing {
        yard.claim(ASKED, block)
    }

    #[test]
    fn bytes_land_in_their_piece_and_nobody_else_gets_their_place() {
        let (pool, yard) = yard();
        assert!(matches!(claim(&yard, block(1, 0, BLOCK_BYTES)), Landing::Nowhere));
        expect(&yard, 1);
        let Landing::Place(first) = claim(&yard, block(1, 0, 2 * BLOCK_BYTES)) else { panic!() };
        assert!(matches!(claim(&yard, block(1, BLOCK_BYTES, BLOCK_BYTES)), Landing::Aside(_)));
        let Landing::Place(second) = claim(&yard, block(1, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES)) else { panic!() };
        first.with(|bytes| bytes.fill(1));
        second.with(|bytes| bytes.fill(2));
        first.keep();
        second.keep();
        let bytes = yard.take(1).unwrap();
        assert!(bytes[..32768].iter().all(|byte| *byte == 1) && bytes[32768..].iter().all(|byte| *byte == 2));
        assert!(pool.bytes() <= 2 * u64::from(PIECE));
    }

    #[test]
    fn a_claim_given_up_frees_its_place_and_its_memory() {
        let (pool, yard) = yard();
        expect(&yard, 0);
        drop(claim(&yard, block(0, 0, BLOCK_BYTES)));
        assert!(matches!(claim(&yard, block(0, 0, BLOCK_BYTES)), Landing::Place(_)));
        assert_eq!(pool.bytes(), u64::from(PIECE), "one buffer, used again");
    }

    #[test]
    fn bad_blocks_are_had_again_and_the_rest_stays() {
        let (_, yard) = yard();
        expect(&yard, 2);
        yard.restore(2, vec![7; PIECE as usize], &[1]);
        assert!(matches!(claim(&yard, block(2, 0, BLOCK_BYTES)), Landing::Aside(_)));
        yard.put(block(2, BLOCK_BYTES, BLOCK_BYTES), &[8; BLOCK_BYTES as usize]);
        let bytes = yard.take(2).unwrap();
        assert_eq!((bytes[0], bytes[16384], bytes[32768]), (7, 8, 7));
    }

    #[test]
    fn a_slow_sender_cannot_spoil_what_a_quicker_one_gave() {
        let (_, yard) = yard();
        expect(&yard, 3);
        let Landing::Place(slow) = claim(&yard, block(3, 0, BLOCK_BYTES)) else { panic!() };
        let Landing::Place(other) = claim(&yard, block(3, BLOCK_BYTES, 3 * BLOCK_BYTES)) else { panic!() };
        yard.put(block(3, 0, BLOCK_BYTES), &[1; BLOCK_BYTES as usize]);
        slow.with(|bytes| bytes.fill(9));
        other.with(|bytes| bytes.fill(2));
        drop(slow);
        other.keep();
        let bytes = yard.take(3).unwrap();
        assert!(bytes[..16384].iter().all(|byte| *byte == 1) && bytes[16384..].iter().all(|byte| *byte == 2));
    }

    #[test]
    fn who_was_not_asked_takes_neither_places_nor_memory() {
        let (pool, yard) = yard();
        let (honest, liar) = (Peer(1), Peer(2));
        yard.expect(honest, block(0, 0, 3 * BLOCK_BYTES));
        yard.expect(liar, block(0, 3 * BLOCK_BYTES, BLOCK_BYTES));
        let other_blocks = [block(0, 0, BLOCK_BYTES), block(0, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES), block(1, 0, 1)];
        for lie in other_blocks {
            assert!(matches!(yard.claim(liar, lie), Landing::Nowhere), "{lie:?}");
        }
        assert_eq!(pool.bytes(), 0);
        assert!(matches!(yard.claim(liar, block(0, 3 * BLOCK_BYTES, BLOCK_BYTES)), Landing::Place(_)));
        assert!(matches!(yard.claim(honest, block(0, 0, 3 * BLOCK_BYTES)), Landing::Place(_)));
        yard.gone(liar);
        assert!(matches!(yard.claim(liar, block(0, 3 * BLOCK_BYTES, BLOCK_BYTES)), Landing::Nowhere));
        yard.done(0);
        assert!(matches!(yard.claim(honest, block(0, 0, BLOCK_BYTES)), Landing::Nowhere));
    }

    #[test]
    fn what_comes_late_is_kept_aside_for_a_piece_that_is_wanted_again() {
        let (pool, yard) = yard();
        expect(&yard, 0);
        yard.forget(0);
        let Landing::Aside(late) = claim(&yard, block(0, 0, BLOCK_BYTES)) else { panic!() };
        assert_eq!(pool.bytes(), u64::from(BLOCK_BYTES), "no more than what comes");
        yard.expect(Peer(2), block(0, 0, PIECE));
        yard.put(block(0, 0, BLOCK_BYTES), &late);
        drop(late);
        assert_eq!(pool.bytes(), u64::from(PIECE));
        assert!(yard.take(0).is_some());
    }

    #[test]
    fn the_short_last_piece_has_its_length() {
        let (_, yard) = yard();
        expect(&yard, 4);
        let Landing::Place(claim) = claim(&yard, block(4, 0, 1000)) else { panic!() };
        claim.keep();
        assert_eq!(yard.take(4).unwrap().len(), 1000);
    }
}
