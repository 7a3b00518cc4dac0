//! Which blocks are missing, asked for and kept, and which to ask a given peer
//! for: started pieces are finished first, then the rarest piece among the
//! neighbours is begun, and when nothing is left to begin, blocks that others
//! owe us are asked for twice (end game).

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use wire::peer::{BLOCK_BYTES, Block};

use crate::chance::Chance;
use crate::holding::Holding;
use crate::io::Peer;
use crate::pieceset::PieceSet;
use crate::policy::Policy;
use crate::shape::Shape;

/// Candidates compared per new piece. A sample of 64 is already as good as
/// all (p2p.md 2.1); smaller images are compared whole.
pub(crate) const SAMPLE: usize = 128;

const WIDTH: usize = usize::BITS as usize;

/// Neighbouring blocks of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) piece: u32,
    /// Number of the first block within the piece.
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Run {
    pub(crate) fn one(piece: u32, index: u32) -> Run {
        Run { piece, first: index, count: 1 }
    }

    fn end(self) -> u32 {
        self.first + self.count
    }

    pub(crate) fn covers(self, other: Run) -> bool {
        self.piece == other.piece && self.first <= other.first && other.end() <= self.end()
    }

    /// What is left before and behind a part of it.
    pub(crate) fn without(self, part: Run) -> (Option<Run>, Option<Run>) {
        let before = Run { count: part.first - self.first, ..self };
        let after = Run { first: part.end(), count: self.end() - part.end(), ..self };
        ((before.count > 0).then_some(before), (after.count > 0).then_some(after))
    }

    pub(crate) fn place(self, shape: &Shape) -> Block {
        let first = shape.block(self.piece, self.first);
        let last = shape.block(self.piece, self.end() - 1);
        Block { length: last.offset + last.length - first.offset, ..first }
    }

    /// The whole blocks that a place in the file is; none when it is not.
    pub(crate) fn of(block: Block, shape: &Shape) -> Option<Run> {
        if !shape.contains(block) || !block.offset.is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let run =
            Run { piece: block.piece, first: block.offset / BLOCK_BYTES, count: block.length.div_ceil(BLOCK_BYTES) };
        (run.place(shape) == block).then_some(run)
    }
}

/// Who asks, as far as the choice depends on it.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) peer: Peer,
    pub(crate) has: &'a Holding,
    /// The piece of which it owes us blocks already.
    pub(crate) busy_with: Option<u32>,
    /// It took part in a piece that failed: whole pieces from it alone.
    pub(crate) on_parole: bool,
}

/// What became of arrived blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Arrival {
    /// Blocks that are needed; others were asked for some of them too if
    /// `also_asked`.
    pub(crate) kept: u32,
    pub(crate) also_asked: bool,
    pub(crate) completes: bool,
}

/// The verdict on a piece, and who supplied it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Supply {
    /// Bytes by contributor, each named once.
    pub(crate) contributors: BTreeMap<Peer, u32>,
}

/// A piece given up, and who supplied its blocks for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) piece: u32,
    pub(crate) supply: Supply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Asked(u8),
    Kept(Peer),
}

#[derive(Debug)]
struct Active {
    piece: u32,
    slots: Box<[Slot]>,
    free: u32,
    kept: u32,
    /// Only this peer may supply the piece.
    owner: Option<Peer>,
}

impl Active {
    fn asked(&self) -> u32 {
        self.slots.len() as u32 - self.free - self.kept
    }

    fn is_complete(&self) -> bool {
        self.kept as usize == self.slots.len()
    }

    fn open_to(&self, asker: &Asker<'_>) -> bool {
        match self.owner {
            Some(owner) => owner == asker.peer,
            None => !asker.on_parole,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Picker {
    shape: Shape,
    /// How many connected peers have each piece.
    availability: Box<[u16]>,
    /// Pieces missing and not begun.
    idle: FixedBitSet,
    idle_count: usize,
    /// Begun and not verified, in no order: there are few.
    active: Vec<Active>,
    /// Pieces that failed with several contributors.
    suspect: Vec<u32>,
    max_active: usize,
    endgame_copies: u8,
}

impl Picker {
    /// `given` are the pieces that need not be fetched.
    pub(crate) fn new(shape: Shape, given: &PieceSet, policy: &Policy) -> Picker {
        let mut idle = given.bits().clone();
        idle.toggle_range(..);
        let idle_count = idle.count_ones(..);
        let fitting = policy.active_bytes / u64::from(shape.piece_length());
        Picker {
            shape,
            availability: vec![0; shape.pieces() as usize].into(),
            idle,
            idle_count,
            active: Vec::new(),
            suspect: Vec::new(),
            max_active: usize::try_from(fitting).unwrap_or(usize::MAX).max(2),
            endgame_copies: policy.endgame_copies,
        }
    }

    pub(crate) fn active_pieces(&self) -> usize {
        self.active.len()
    }

    /// Blocks that active pieces can have in all.
    pub(crate) fn memory_blocks(&self) -> usize {
        self.max_active.saturating_mul(self.shape.blocks(0) as usize)
    }

    /// No other piece can be begun before one is verified or given up.
    pub(crate) fn is_full(&self) -> bool {
        self.active.len() >= self.max_active
    }

    /// Nothing is left to be asked for a first time.
    pub(crate) fn is_endgame(&self) -> bool {
        self.idle_count == 0 && !self.active.is_empty() && self.active.iter().all(|active| active.free == 0)
    }

    /// Everything missing has been begun.
    pub(crate) fn is_almost_done(&self) -> bool {
        self.idle_count == 0
    }

    /// Missing and not begun.
    pub(crate) fn is_idle(&self, piece: u32) -> bool {
        self.idle.contains(piece as usize)
    }

    /// Pieces missing and not begun, as machine words.
    pub(crate) fn idle_words(&self) -> &[usize] {
        self.idle.as_slice()
    }

    pub(crate) fn holders(&self, piece: u32) -> u16 {
        self.availability[piece as usize]
    }

    pub(crate) fn add_holder(&mut self, piece: u32) {
        let count = &mut self.availability[piece as usize];
        *count = count.saturating_add(1);
    }

    pub(crate) fn remove_holders(&mut self, has: &Holding) {
        for piece in has.iter() {
            let count = &mut self.availability[piece as usize];
            *count = count.saturating_sub(1);
        }
    }

    fn find(&self, piece: u32) -> Option<&Active> {
        self.active.iter().find(|active| active.piece == piece)
    }

    fn find_mut(&mut self, piece: u32) -> Option<&mut Active> {
        self.active.iter_mut().find(|active| active.piece == piece)
    }

    fn open(&self) -> impl Iterator<Item = &Active> {
        self.active.iter().filter(|active| active.free > 0)
    }

    /// The next block to ask this peer for, which is then asked. Pieces given
    /// up to make room are appended to `forgotten`; `spare` places for pieces
    /// are left to others.
    pub(crate) fn pick(
        &mut self,
        asker: &Asker<'_>,
        spare: usize,
        chance: &mut Chance,
        forgotten: &mut Vec<Forgotten>,
    ) -> Option<Run> {
        let piece = self
            .started_piece(asker)
            .or_else(|| self.begin_piece(asker, spare, chance, forgotten))
            .or_else(|| self.take_over(asker, forgotten));
        match piece {
            Some(piece) => self.ask_free_block(piece),
            None => self.ask_twice(asker, chance),
        }
    }

    /// The piece this peer is already busy with, else the one nearest to its
    /// end.
    fn started_piece(&self, asker: &Asker<'_>) -> Option<u32> {
        let usable = |active: &&Active| asker.has.contains(active.piece) && active.open_to(asker);
        let busy = self.open().filter(usable).find(|active| Some(active.piece) == asker.busy_with);
        let nearest = || self.open().filter(usable).min_by_key(|active| (active.free, active.piece));
        busy.or_else(nearest).map(|active| active.piece)
    }

    fn begin_piece(
        &mut self,
        asker: &Asker<'_>,
        spare: usize,
        chance: &mut Chance,
        forgotten: &mut Vec<Forgotten>,
    ) -> Option<u32> {
        let suspect = self.suspect.iter().copied().find(|&piece| self.can_begin(asker, piece));
        let piece = suspect.or_else(|| self.rarest(asker.has, chance))?;
        if self.is_full() {
            forgotten.push(self.make_room(asker)?);
        } else if self.active.len() + spare >= self.max_active && !self.active.is_empty() {
            return None;
        }
        let exclusive = asker.on_parole || self.suspect.contains(&piece);
        self.activate(piece, exclusive.then_some(asker.peer));
        Some(piece)
    }

    fn can_begin(&self, asker: &Asker<'_>, piece: u32) -> bool {
        self.is_idle(piece) && asker.has.contains(piece)
    }

    fn activate(&mut self, piece: u32, owner: Option<Peer>) {
        let blocks = self.shape.blocks(piece);
        self.set_idle(piece, false);
        let slots = vec![Slot::Free; blocks as usize].into();
        self.active.push(Active { piece, slots, free: blocks, kept: 0, owner });
    }

    /// The rarest of the first [`SAMPLE`] candidates after a random start,
    /// ties broken by chance.
    pub(crate) fn rarest(&self, has: &Holding, chance: &mut Chance) -> Option<u32> {
        let idle = self.idle.as_slice();
        let candidates = rotated(self.shape.pieces(), chance, |at| has.word(at) & idle[at]);
        least(candidates, |piece| u32::from(self.holders(piece)), chance)
    }

    /// Memory is full: give up the piece with the fewest blocks that nobody
    /// is about to deliver and this peer cannot finish. Without this, pieces
    /// whose only holder died would block all others for ever.
    fn make_room(&mut self, asker: &Asker<'_>) -> Option<Forgotten> {
        let stuck =
            |active: &&Active| active.asked() == 0 && (!asker.has.contains(active.piece) || !active.open_to(asker));
        let piece = self.open().filter(stuck).min_by_key(|active| (active.kept, active.piece))?.piece;
        Some(self.give_up(piece))
    }

    /// A peer on parole may not add to pieces that others began; when nothing
    /// else is left, it begins one of them anew.
    fn take_over(&mut self, asker: &Asker<'_>, forgotten: &mut Vec<Forgotten>) -> Option<u32> {
        if !asker.on_parole {
            return None;
        }
        let untouched = |active: &&Active| asker.has.contains(active.piece) && active.asked() == 0;
        let piece = self.open().filter(untouched).map(|active| active.piece).min()?;
        forgotten.push(self.give_up(piece));
        self.activate(piece, Some(asker.peer));
        Some(piece)
    }

    /// All free blocks of a piece, which are then asked of this peer; it is
    /// begun if need be. Nothing when there is no room or others are at it.
    pub(crate) fn take(&mut self, asker: &Asker<'_>, piece: u32, forgotten: &mut Vec<Forgotten>) -> Vec<Run> {
        if self.is_idle(piece) {
            if self.is_full() {
                match self.make_room(asker) {
                    Some(given_up) => forgotten.push(given_up),
                    None => return Vec::new(),
                }
            }
            let exclusive = asker.on_parole || self.suspect.contains(&piece);
            self.activate(piece, exclusive.then_some(asker.peer));
        }
        let Some(active) = self.active.iter_mut().find(|active| active.piece == piece) else { return Vec::new() };
        if !active.open_to(asker) {
            return Vec::new();
        }
        let mut runs: Vec<Run> = Vec::new();
        for (index, slot) in active.slots.iter_mut().enumerate().filter(|(_, slot)| **slot == Slot::Free) {
            *slot = Slot::Asked(1);
            match runs.last_mut() {
                Some(run) if run.end() == index as u32 => run.count += 1,
                _ => runs.push(Run::one(piece, index as u32)),
            }
        }
        active.free = 0;
        runs
    }

    /// Whether `take` would find something, room for another piece provided.
    pub(crate) fn can_take(&self, asker: &Asker<'_>, piece: u32) -> bool {
        self.is_idle(piece) || self.find(piece).is_some_and(|active| active.free > 0 && active.open_to(asker))
    }

    /// A piece that was begun and that nobody is about to finish.
    pub(crate) fn orphan(&self, has: impl Fn(u32) -> bool) -> Option<u32> {
        let orphans = self.open().filter(|active| active.asked() == 0 && active.owner.is_none());
        orphans.map(|active| active.piece).filter(|piece| has(*piece)).min()
    }

    /// A block to ask a snubbed peer for, only to see whether it answers: it
    /// stays free for others.
    pub(crate) fn probe(&self, asker: &Asker<'_>) -> Option<Run> {
        let missing = |active: &Active| active.slots.iter().position(|slot| !matches!(slot, Slot::Kept(_)));
        let started = self
            .active
            .iter()
            .filter(|active| asker.has.contains(active.piece) && active.open_to(asker))
            .filter_map(|active| Some(Run::one(active.piece, missing(active)? as u32)))
            .min();
        let idle = self.idle.as_slice();
        let other = || bits(0, idle.len(), |at| asker.has.word(at) & idle[at]).next();
        started.or_else(|| other().map(|piece| Run::one(piece, 0)))
    }

    fn ask_free_block(&mut self, piece: u32) -> Option<Run> {
        let active = self.find_mut(piece)?;
        let index = active.slots.iter().position(|slot| *slot == Slot::Free)?;
        active.slots[index] = Slot::Asked(1);
        active.free -= 1;
        Some(Run::one(piece, index as u32))
    }

    /// End game: only peers that owe us nothing are asked, so no uplink that
    /// has better to do is taken, and never more than `endgame_copies` for
    /// one block.
    fn ask_twice(&mut self, asker: &Asker<'_>, chance: &mut Chance) -> Option<Run> {
        if !self.is_endgame() || asker.busy_with.is_some() || asker.on_parole {
            return None;
        }
        let copies = self.endgame_copies;
        let again = |slot: &Slot| matches!(slot, Slot::Asked(count) if *count < copies);
        let open = |active: &&Active| {
            active.owner.is_none() && asker.has.contains(active.piece) && active.slots.iter().any(again)
        };
        let mut pieces: Vec<u32> = self.active.iter().filter(open).map(|active| active.piece).collect();
        pieces.sort_unstable();
        let piece = *pieces.get(chance.index(pieces.len()))?;
        let active = self.find_mut(piece)?;
        let index = active.slots.iter().rposition(again)?;
        if let Slot::Asked(count) = &mut active.slots[index] {
            *count += 1;
        }
        Some(Run::one(piece, index as u32))
    }

    /// The same for a whole piece, of which the peer shall send what others
    /// owe us.
    pub(crate) fn take_twice(&mut self, asker: &Asker<'_>, piece: u32) -> Option<Run> {
        let copies = self.endgame_copies;
        let active = self.active.iter_mut().find(|active| active.piece == piece)?;
        if active.owner.is_some() || asker.on_parole {
            return None;
        }
        let again = |slot: &Slot| matches!(slot, Slot::Asked(count) if *count < copies);
        let last = active.slots.iter().rposition(again)?;
        let first = active.slots[..last].iter().rposition(|slot| !again(slot)).map_or(0, |at| at + 1);
        for slot in &mut active.slots[first..=last] {
            if let Slot::Asked(count) = slot {
                *count += 1;
            }
        }
        Some(Run { piece, first: first as u32, count: (last - first + 1) as u32 })
    }

    /// Blocks came from a peer that owes them to us (`asked`), or owed them
    /// until we took the request back. What is needed of them is appended to
    /// `fresh`.
    pub(crate) fn arrived(&mut self, from: Peer, run: Run, asked: bool, fresh: &mut Vec<Run>) -> Arrival {
        let Some(active) = self.find_mut(run.piece) else { return Arrival::default() };
        if active.owner.is_some_and(|owner| owner != from) {
            return Arrival::default();
        }
        let mut arrival = Arrival::default();
        for index in run.first..run.end() {
            let slot = &mut active.slots[index as usize];
            match *slot {
                Slot::Kept(_) => continue,
                Slot::Free => active.free -= 1,
                Slot::Asked(count) => arrival.also_asked |= count > u8::from(asked),
            }
            *slot = Slot::Kept(from);
            arrival.kept += 1;
            match fresh.last_mut() {
                Some(run) if run.end() == index => run.count += 1,
                _ => fresh.push(Run::one(run.piece, index)),
            }
        }
        active.kept += arrival.kept;
        arrival.completes = arrival.kept > 0 && active.is_complete();
        arrival
    }

    /// A request for these blocks was taken back or lost.
    pub(crate) fn released(&mut self, run: Run) {
        let Some(active) = self.find_mut(run.piece) else { return };
        for slot in &mut active.slots[run.first as usize..run.end() as usize] {
            match *slot {
                Slot::Asked(count) if count > 1 => *slot = Slot::Asked(count - 1),
                Slot::Asked(_) => {
                    *slot = Slot::Free;
                    active.free += 1;
                }
                Slot::Free | Slot::Kept(_) => {}
            }
        }
    }

    /// Gives up the unfinished pieces that only this peer might supply: half
    /// of a piece from somebody else would hide who lied. Their requests must
    /// have been released.
    pub(crate) fn disowned(&mut self, peer: Peer) -> Vec<Forgotten> {
        let owned = |active: &&Active| active.owner == Some(peer) && !active.is_complete();
        let mut pieces: Vec<u32> = self.active.iter().filter(owned).map(|active| active.piece).collect();
        pieces.sort_unstable();
        pieces.into_iter().map(|piece| self.give_up(piece)).collect()
    }

    fn give_up(&mut self, piece: u32) -> Forgotten {
        let supply = self.remove(piece);
        self.set_idle(piece, true);
        Forgotten { piece, supply }
    }

    fn remove(&mut self, piece: u32) -> Supply {
        let supply = self.supply(piece);
        self.active.retain(|active| active.piece != piece);
        supply
    }

    fn set_idle(&mut self, piece: u32, idle: bool) {
        let was = self.idle.contains(piece as usize);
        self.idle.set(piece as usize, idle);
        self.idle_count = self.idle_count + usize::from(idle) - usize::from(was);
    }

    /// Whether all blocks are kept and the verdict is awaited.
    pub(crate) fn awaits_verdict(&self, piece: u32) -> bool {
        self.find(piece).is_some_and(Active::is_complete)
    }

    /// The piece is had, by whatever way.
    pub(crate) fn succeeded(&mut self, piece: u32) -> Supply {
        let supply = self.remove(piece);
        self.suspect.retain(|suspect| *suspect != piece);
        self.set_idle(piece, false);
        supply
    }

    /// The piece failed verification and has to be fetched again; with several
    /// contributors from one peer alone.
    pub(crate) fn failed(&mut self, piece: u32) -> Supply {
        let Forgotten { supply, .. } = self.give_up(piece);
        if supply.contributors.len() > 1 {
            self.suspect.push(piece);
        }
        supply
    }

    /// Of a piece that failed only these blocks are wrong: they are free
    /// again. Who supplied them, and how many bytes.
    pub(crate) fn failed_blocks(&mut self, piece: u32, blocks: &[u32]) -> Supply {
        let shape = self.shape;
        let mut contributors = BTreeMap::new();
        let Some(active) = self.find_mut(piece) else { return Supply { contributors } };
        for &index in blocks {
            let Some(slot) = active.slots.get_mut(index as usize) else { continue };
            if let Slot::Kept(peer) = *slot {
                *slot = Slot::Free;
                active.free += 1;
                active.kept -= 1;
                *contributors.entry(peer).or_insert(0) += shape.block(piece, index).length;
            }
        }
        Supply { contributors }
    }

    fn supply(&self, piece: u32) -> Supply {
        let mut contributors = BTreeMap::new();
        let slots = self.find(piece).map(|active| &active.slots[..]).unwrap_or_default();
        for (index, slot) in slots.iter().enumerate() {
            if let Slot::Kept(peer) = slot {
                *contributors.entry(*peer).or_insert(0) += self.shape.block(piece, index as u32).length;
            }
        }
        Supply { contributors }
    }
}

/// The pieces of the words that `word` gives, ascending from a random place
/// and around.
pub(crate) fn rotated<'a>(
    pieces: u32,
    chance: &mut Chance,
    word: impl Fn(usize) -> usize + 'a,
) -> impl Iterator<Item = u32> + 'a {
    let start = chance.below(pieces);
    bits(start, (pieces as usize).div_ceil(WIDTH), word).filter(move |piece| *piece < pieces)
}

/// The least of the first [`SAMPLE`] candidates, ties broken by chance.
pub(crate) fn least<R: Ord + Copy>(
    candidates: impl Iterator<Item = u32>,
    rank: impl Fn(u32) -> R,
    chance: &mut Chance,
) -> Option<u32> {
    let mut best: Option<(R, u32)> = None;
    let mut ties = 0;
    for piece in candidates.take(SAMPLE) {
        let rank = rank(piece);
        match best {
            Some((least, _)) if rank > least => continue,
            Some((least, _)) if rank == least => ties += 1,
            _ => ties = 1,
        }
        if chance.below(ties) == 0 {
            best = Some((rank, piece));
        }
    }
    best.map(|(_, piece)| piece)
}

/// The bits set in so many words, ascending from `start` and around.
fn bits<'a>(start: u32, words: usize, word: impl Fn(usize) -> usize + 'a) -> impl Iterator<Item = u32> + 'a {
    let (first, bit) = (start as usize / WIDTH, start as usize % WIDTH);
    (0..=words).filter(move |_| words > 0).flat_map(move |step| {
        let at = (first + step) % words;
        let mut word = word(at);
        if step == 0 {
            word &= usize::MAX << bit;
        } else if step == words {
            word &= !(usize::MAX << bit);
        }
        std::iter::from_fn(move || {
            let bit = word.trailing_zeros();
            word &= word.wrapping_sub(1);
            (bit < usize::BITS).then_some((at * WIDTH) as u32 + bit)
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const A: Peer = Peer(1);
    const B: Peer = Peer(2);

    struct Bench {
        picker: Picker,
        chance: Chance,
        forgotten: Vec<Forgotten>,
    }

    /// Pieces of four blocks.
    fn bench(pieces: u32, policy: &Policy) -> Bench {
        let shape = Shape::new(u64::from(pieces * 4 * BLOCK_BYTES), 4 * BLOCK_BYTES).unwrap();
        let picker = Picker::new(shape, &PieceSet::empty(pieces), policy);
        Bench { picker, chance: Chance::new(1, 1), forgotten: Vec::new() }
    }

    impl Bench {
        fn pick(&mut self, peer: Peer, has: &Holding, outstanding: &[Run]) -> Option<Run> {
            let busy_with = outstanding.last().map(|run| run.piece);
            let asker = Asker { peer, has, busy_with, on_parole: false };
            self.picker.pick(&asker, 0, &mut self.chance, &mut self.forgotten)
        }

        fn pick_on_parole(&mut self, peer: Peer, has: &Holding) -> Option<Run> {
            let asker = Asker { peer, has, busy_with: None, on_parole: true };
            self.picker.pick(&asker, 0, &mut self.chance, &mut self.forgotten)
        }

        fn add_holders(&mut self, has: &Holding) {
            has.iter().for_each(|piece| self.picker.add_holder(piece));
        }

        fn keep(&mut self, peer: Peer, run: Run) -> Arrival {
            self.picker.arrived(peer, run, true, &mut Vec::new())
        }
    }

    fn full(pieces: u32) -> Holding {
        set(pieces, &(0..pieces).collect::<Vec<_>>())
    }

    fn set(pieces: u32, of: &[u32]) -> Holding {
        let mut set = Holding::nothing(pieces);
        of.iter().for_each(|&piece| assert!(set.insert(piece)));
        set
    }

    #[test]
    fn the_rarest_piece_is_begun_first() {
        let mut bench = bench(8, &Policy::default());
        let all = full(8);
        bench.add_holders(&all);
        bench.add_holders(&set(8, &[0, 1, 2, 3, 4, 6, 7]));
        assert_eq!(bench.pick(A, &all, &[]), Some(Run::one(5, 0)));
    }

    #[test]
    fn ties_are_broken_by_chance() {
        let all = full(16);
        let firsts: BTreeSet<u32> = (0..200)
            .map(|seed| {
                let mut bench = bench(16, &Policy::default());
                bench.chance = Chance::new(seed, 1);
                bench.pick(A, &all, &[]).unwrap().piece
            })
            .collect();
        assert_eq!(firsts.len(), 16);
    }

    #[test]
    fn a_started_piece_is_finished_before_another_is_begun() {
        let mut bench = bench(8, &Policy::default());
        let all = full(8);
        let first = bench.pick(A, &all, &[]).unwrap();
        let rest: Vec<Run> = (0..3).map(|_| bench.pick(B, &all, &[]).unwrap()).collect();
        assert!(rest.iter().all(|place| place.piece == first.piece));
        assert_ne!(bench.pick(B, &all, &rest).unwrap().piece, first.piece);
    }

    #[test]
    fn a_released_block_is_asked_for_again() {
        let mut bench = bench(1, &Policy::default());
        let all = full(1);
        let places: Vec<Run> = (0..4).map(|_| bench.pick(A, &all, &[]).unwrap()).collect();
        bench.picker.released(places[2]);
        assert_eq!(bench.pick(B, &all, &[]), Some(places[2]));
    }

    #[test]
    fn the_end_game_asks_idle_peers_for_at_most_two_copies() {
        let mut bench = bench(1, &Policy::default());
        let all = full(1);
        let places: Vec<Run> = (0..4).map(|_| bench.pick(A, &all, &[]).unwrap()).collect();
        assert!(bench.picker.is_endgame());
        assert_eq!(bench.pick(B, &all, &places[..1]), None);
        let again: BTreeSet<Run> = (0..4).map(|_| bench.pick(B, &all, &[]).unwrap()).collect();
        assert_eq!(again.len(), 4);
        assert_eq!(bench.pick(B, &all, &[]), None);
        assert_eq!(bench.keep(B, places[0]), Arrival { kept: 1, also_asked: true, completes: false });
        assert_eq!(bench.keep(A, places[0]), Arrival::default());
    }

    #[test]
    fn a_whole_piece_is_taken_in_runs_around_what_is_there() {
        let mut bench = bench(2, &Policy::default());
        let all = full(2);
        let asker = |peer| Asker { peer, has: &all, busy_with: None, on_parole: false };
        let runs = bench.picker.take(&asker(A), 1, &mut Vec::new());
        assert_eq!(runs, [Run { piece: 1, first: 0, count: 4 }]);
        assert_eq!(bench.picker.take(&asker(B), 1, &mut Vec::new()), [], "somebody is at it");
        assert!(!bench.picker.can_take(&asker(B), 1));
        bench.keep(A, Run { piece: 1, first: 1, count: 1 });
        for rest in [Run::one(1, 0), Run { piece: 1, first: 2, count: 2 }] {
            bench.picker.released(rest);
        }
        assert_eq!(bench.picker.orphan(|_| true), Some(1));
        let runs = bench.picker.take(&asker(B), 1, &mut Vec::new());
        assert_eq!(runs, [Run::one(1, 0), Run { piece: 1, first: 2, count: 2 }]);
        assert_eq!(bench.picker.take_twice(&asker(A), 1), Some(Run { piece: 1, first: 2, count: 2 }));
    }

    #[test]
    fn of_a_part_that_repeats_only_the_new_is_kept() {
        let mut bench = bench(1, &Policy::default());
        let all = full(1);
        let asker = Asker { peer: A, has: &all, busy_with: None, on_parole: false };
        bench.picker.take(&asker, 0, &mut Vec::new());
        bench.keep(B, Run::one(0, 1));
        let mut fresh = Vec::new();
        let arrival = bench.picker.arrived(A, Run { piece: 0, first: 0, count: 4 }, true, &mut fresh);
        assert_eq!(arrival, Arrival { kept: 3, also_asked: false, completes: true });
        assert_eq!(fresh, [Run::one(0, 0), Run { piece: 0, first: 2, count: 2 }]);
    }

    #[test]
    fn of_a_piece_with_known_bad_blocks_only_those_are_free_again() {
        let mut bench = bench(1, &Policy::default());
        let all = full(1);
        for peer in [A, A, B, B] {
            let run = bench.pick(peer, &all, &[]).unwrap();
            bench.keep(peer, run);
        }
        let supply = bench.picker.failed_blocks(0, &[2]);
        assert_eq!(supply.contributors, BTreeMap::from([(B, BLOCK_BYTES)]));
        assert_eq!(bench.pick(A, &all, &[]), Some(Run::one(0, 2)));
    }

    #[test]
    fn a_failed_piece_of_several_comes_back_from_one() {
        let mut bench = bench(2, &Policy::default());
        let one = set(2, &[1]);
        for peer in [A, A, A, B] {
            let place = bench.pick(peer, &one, &[]).unwrap();
            bench.keep(peer, place);
        }
        assert!(bench.picker.awaits_verdict(1));
        let supply = bench.picker.failed(1);
        assert_eq!(supply.contributors, BTreeMap::from([(A, 3 * BLOCK_BYTES), (B, BLOCK_BYTES)]));

        let place = bench.pick(B, &full(2), &[]).unwrap();
        assert_eq!(place.piece, 1, "the suspect piece goes first");
        assert_eq!(bench.pick(A, &one, &[]), None, "and only one peer supplies it");
        bench.picker.released(place);
        assert_eq!(bench.picker.disowned(B).iter().map(|given_up| given_up.piece).collect::<Vec<_>>(), [1]);
        assert_eq!(bench.pick(A, &one, &[]).unwrap().piece, 1);
    }

    #[test]
    fn a_peer_on_parole_gets_pieces_of_its_own() {
        let mut bench = bench(2, &Policy::default());
        let all = full(2);
        let started = bench.pick(A, &all, &[]).unwrap();
        bench.keep(A, started);
        let own = bench.pick_on_parole(B, &all).unwrap();
        assert_ne!(own.piece, started.piece);
        for _ in 0..3 {
            assert_eq!(bench.pick_on_parole(B, &all).unwrap().piece, own.piece);
        }
        let taken = bench.pick_on_parole(B, &all).unwrap();
        assert_eq!((taken.piece, taken.first), (started.piece, 0), "nothing else is left: begun anew");
        let supply = Supply { contributors: BTreeMap::from([(A, BLOCK_BYTES)]) };
        assert_eq!(bench.forgotten, [Forgotten { piece: started.piece, supply }]);
    }

    #[test]
    fn memory_is_bounded_and_never_blocks_for_ever() {
        let policy = Policy { active_bytes: 0, ..Policy::default() };
        let mut bench = bench(6, &policy);
        let (mine, others) = (set(6, &[0, 1, 2]), set(6, &[3, 4]));
        let asked: Vec<Run> = std::iter::from_fn(|| bench.pick(A, &mine, &[])).collect();
        assert_eq!((asked.len(), bench.picker.active_pieces()), (8, 2));
        assert_eq!(bench.pick(B, &others, &[]), None, "both places are being filled");
        asked.iter().for_each(|&place| bench.picker.released(place));
        assert!(others.contains(bench.pick(B, &others, &[]).unwrap().piece), "nobody fills them any more");
        assert_eq!(bench.forgotten.len(), 1);
    }

    #[test]
    fn a_piece_had_by_other_means_is_no_longer_picked() {
        let mut bench = bench(1, &Policy::default());
        let all = full(1);
        let place = bench.pick(A, &all, &[]).unwrap();
        bench.picker.succeeded(0);
        assert_eq!(bench.keep(A, place), Arrival::default());
        assert_eq!(bench.pick(A, &all, &[]), None);
    }

    proptest! {
        #[test]
        fn bits_visits_each_once(a: [bool; 150], b: [bool; 150], start in 0u32..150) {
            let of = |of: [bool; 150]| -> Vec<usize> {
                let mut words = vec![0; 150_usize.div_ceil(WIDTH)];
                (0..150).filter(|&bit| of[bit]).for_each(|bit| words[bit / WIDTH] |= 1 << (bit % WIDTH));
                words
            };
            let (left, right) = (of(a), of(b));
            let found: Vec<u32> = bits(start, left.len(), |at| left[at] & right[at]).collect();
            let expected: Vec<u32> = (start..150).chain(0..start)
                .filter(|&bit| a[bit as usize] && b[bit as usize]).collect();
            prop_assert_eq!(found, expected);
        }

        /// However peers ask, deliver and vanish: no block is asked for twice
        /// outside the end game, and the free counts stay true.
        #[test]
        fn the_books_balance(seed: u64, moves in proptest::collection::vec((0u8..4, any::<u8>()), 1..300)) {
            let mut bench = bench(5, &Policy { active_bytes: 3 << 16, ..Policy::default() });
            bench.chance = Chance::new(seed, 1);
            let sets = [full(5), set(5, &[1, 3]), set(5, &[0, 1, 4])];
            let mut owed: Vec<(Peer, Run)> = Vec::new();
            for (what, which) in moves {
                let number = which as usize % sets.len();
                let peer = Peer(number as u32);
                match what {
                    0 | 1 => {
                        let mine: Vec<Run> = owed.iter().filter(|(p, _)| *p == peer).map(|(_, at)| *at).collect();
                        let endgame = bench.picker.is_endgame();
                        if let Some(place) = bench.pick(peer, &sets[number], &mine) {
                            prop_assert!(endgame || owed.iter().all(|(_, at)| *at != place));
                            prop_assert!(sets[number].contains(place.piece));
                            owed.push((peer, place));
                        }
                    }
                    2 if !owed.is_empty() => {
                        let (from, place) = owed.swap_remove(which as usize % owed.len());
                        let Arrival { kept, also_asked, completes } = bench.keep(from, place);
                        if kept > 0 {
                            prop_assert_eq!(also_asked, owed.iter().any(|(_, at)| *at == place));
                            owed.retain(|(_, at)| *at != place);
                            if completes && which & 1 == 0 {
                                bench.picker.succeeded(place.piece);
                            } else if completes {
                                bench.picker.failed(place.piece);
                                bench.picker.suspect.clear();
                            }
                        } else {
                            prop_assert!(false, "a block that was owed is wanted");
                        }
                    }
                    _ if !owed.is_empty() => {
                        let (_, place) = owed.swap_remove(which as usize % owed.len());
                        bench.picker.released(place);
                    }
                    _ => {}
                }
                prop_assert_eq!(bench.picker.idle_count, bench.picker.idle.count_ones(..));
                for active in &bench.picker.active {
                    let count = |is: fn(&Slot) -> bool| active.slots.iter().filter(|slot| is(slot)).count() as u32;
                    prop_assert_eq!(active.free, count(|slot| *slot == Slot::Free));
                    prop_assert_eq!(active.kept, count(|slot| matches!(slot, Slot::Kept(_))));
                }
            }
        }
    }
}
