//! Which block to ask a given peer for: started pieces are finished first,
//! then the rarest piece among the neighbours is begun, and when nothing is
//! left to begin, blocks that others owe us are asked for twice (end game).

use std::collections::{BTreeMap, BTreeSet};

use fixedbitset::FixedBitSet;

use crate::chance::Chance;
use crate::io::Peer;
use crate::pieceset::PieceSet;
use crate::policy::Policy;
use crate::shape::Shape;

/// Candidates compared per new piece. A sample of 64 is already as good as
/// all (p2p.md 2.1); smaller images are compared whole.
const SAMPLE: usize = 128;

/// A block by piece and number within the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) piece: u32,
    pub(crate) index: u32,
}

/// Who asks, as far as the choice depends on it.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) peer: Peer,
    pub(crate) has: &'a PieceSet,
    /// Blocks it owes us already.
    pub(crate) outstanding: &'a [Place],
    /// It took part in a piece that failed: whole pieces from it alone.
    pub(crate) on_parole: bool,
}

/// What became of an arrived block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is not needed.
    Wasted,
    /// It is needed; others were asked for it too if `also_asked`.
    Kept { also_asked: bool, completes: bool },
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
    slots: Vec<Slot>,
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
    availability: Vec<u16>,
    /// Pieces missing and not begun.
    idle: FixedBitSet,
    idle_count: usize,
    active: BTreeMap<u32, Active>,
    /// Active pieces with a free block.
    open: BTreeSet<u32>,
    /// Pieces that failed with several contributors.
    suspect: BTreeSet<u32>,
    max_active: usize,
    endgame_copies: u8,
}

impl Picker {
    pub(crate) fn new(shape: Shape, have: &PieceSet, policy: &Policy) -> Picker {
        let mut idle = have.bits().clone();
        idle.toggle_range(..);
        let idle_count = idle.count_ones(..);
        let fitting = policy.active_bytes / u64::from(shape.piece_length());
        Picker {
            shape,
            availability: vec![0; shape.pieces() as usize],
            idle,
            idle_count,
            active: BTreeMap::new(),
            open: BTreeSet::new(),
            suspect: BTreeSet::new(),
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
        self.idle_count == 0 && self.open.is_empty() && !self.active.is_empty()
    }

    pub(crate) fn add_holder(&mut self, piece: u32) {
        let count = &mut self.availability[piece as usize];
        *count = count.saturating_add(1);
    }

    pub(crate) fn remove_holders(&mut self, has: &PieceSet) {
        for piece in has.iter() {
            let count = &mut self.availability[piece as usize];
            *count = count.saturating_sub(1);
        }
    }

    /// The next block to ask this peer for, which is then asked. Pieces given
    /// up to make room are appended to `forgotten`.
    pub(crate) fn pick(
        &mut self,
        asker: &Asker<'_>,
        chance: &mut Chance,
        forgotten: &mut Vec<Forgotten>,
    ) -> Option<Place> {
        let piece = self
            .started_piece(asker)
            .or_else(|| self.begin_piece(asker, chance, forgotten))
            .or_else(|| self.take_over(asker, forgotten));
        match piece {
            Some(piece) => self.ask_free_block(piece),
            None => self.ask_twice(asker, chance),
        }
    }

    /// The piece this peer is already busy with, else the one nearest to its
    /// end.
    fn started_piece(&self, asker: &Asker<'_>) -> Option<u32> {
        let usable = |piece: &u32| {
            asker.has.contains(*piece) && self.active.get(piece).is_some_and(|active| active.open_to(asker))
        };
        let busy = asker.outstanding.last().map(|place| place.piece);
        busy.filter(|piece| self.open.contains(piece) && usable(piece)).or_else(|| {
            let free = |piece: &u32| self.active.get(piece).map_or(u32::MAX, |active| active.free);
            self.open.iter().copied().filter(usable).min_by_key(free)
        })
    }

    fn begin_piece(&mut self, asker: &Asker<'_>, chance: &mut Chance, forgotten: &mut Vec<Forgotten>) -> Option<u32> {
        let suspect = self.suspect.iter().copied().find(|&piece| self.can_begin(asker, piece));
        let piece = suspect.or_else(|| self.rarest(asker.has, chance))?;
        if self.is_full() {
            forgotten.push(self.make_room(asker)?);
        }
        let exclusive = asker.on_parole || self.suspect.contains(&piece);
        self.activate(piece, exclusive.then_some(asker.peer));
        Some(piece)
    }

    fn can_begin(&self, asker: &Asker<'_>, piece: u32) -> bool {
        self.idle.contains(piece as usize) && asker.has.contains(piece)
    }

    fn activate(&mut self, piece: u32, owner: Option<Peer>) {
        let blocks = self.shape.blocks(piece);
        self.set_idle(piece, false);
        self.open.insert(piece);
        self.active.insert(piece, Active { slots: vec![Slot::Free; blocks as usize], free: blocks, kept: 0, owner });
    }

    /// The rarest of the first [`SAMPLE`] candidates after a random start,
    /// ties broken by chance.
    fn rarest(&self, has: &PieceSet, chance: &mut Chance) -> Option<u32> {
        let start = chance.below(self.shape.pieces());
        let mut best: Option<(u16, u32)> = None;
        let mut ties = 0;
        for piece in common_bits(has.bits(), &self.idle, start).take(SAMPLE) {
            let holders = self.availability[piece as usize];
            match best {
                Some((fewest, _)) if holders > fewest => continue,
                Some((fewest, _)) if holders == fewest => ties += 1,
                _ => ties = 1,
            }
            if chance.below(ties) == 0 {
                best = Some((holders, piece));
            }
        }
        best.map(|(_, piece)| piece)
    }

    /// Memory is full: give up the piece with the fewest blocks that nobody
    /// is about to deliver and this peer cannot finish. Without this, pieces
    /// whose only holder died would block all others for ever.
    fn make_room(&mut self, asker: &Asker<'_>) -> Option<Forgotten> {
        let stuck = |piece: &u32| {
            let active = self.active.get(piece);
            active.is_some_and(|active| active.asked() == 0 && (!asker.has.contains(*piece) || !active.open_to(asker)))
        };
        let kept = |piece: &u32| self.active.get(piece).map_or(0, |active| active.kept);
        let piece = self.open.iter().copied().filter(stuck).min_by_key(kept)?;
        Some(self.give_up(piece))
    }

    /// A peer on parole may not add to pieces that others began; when nothing
    /// else is left, it begins one of them anew.
    fn take_over(&mut self, asker: &Asker<'_>, forgotten: &mut Vec<Forgotten>) -> Option<u32> {
        if !asker.on_parole {
            return None;
        }
        let untouched = |piece: &u32| {
            asker.has.contains(*piece) && self.active.get(piece).is_some_and(|active| active.asked() == 0)
        };
        let piece = self.open.iter().copied().find(untouched)?;
        forgotten.push(self.give_up(piece));
        self.activate(piece, Some(asker.peer));
        Some(piece)
    }

    /// A block to ask a snubbed peer for, only to see whether it answers: it
    /// stays free for others.
    pub(crate) fn probe(&self, asker: &Asker<'_>) -> Option<Place> {
        let missing = |active: &Active| active.slots.iter().position(|slot| !matches!(slot, Slot::Kept(_)));
        let started = self
            .active
            .iter()
            .filter(|(piece, active)| asker.has.contains(**piece) && active.open_to(asker))
            .find_map(|(piece, active)| Some(Place { piece: *piece, index: missing(active)? as u32 }));
        let other = || common_bits(asker.has.bits(), &self.idle, 0).next();
        started.or_else(|| other().map(|piece| Place { piece, index: 0 }))
    }

    fn ask_free_block(&mut self, piece: u32) -> Option<Place> {
        let active = self.active.get_mut(&piece)?;
        let index = active.slots.iter().position(|slot| *slot == Slot::Free)?;
        active.slots[index] = Slot::Asked(1);
        active.free -= 1;
        if active.free == 0 {
            self.open.remove(&piece);
        }
        Some(Place { piece, index: index as u32 })
    }

    /// End game: only peers that owe us nothing are asked, so no uplink that
    /// has better to do is taken, and never more than `endgame_copies` for
    /// one block.
    fn ask_twice(&mut self, asker: &Asker<'_>, chance: &mut Chance) -> Option<Place> {
        if !self.is_endgame() || !asker.outstanding.is_empty() || asker.on_parole {
            return None;
        }
        let copies = self.endgame_copies;
        let again = |slot: &Slot| matches!(slot, Slot::Asked(count) if *count < copies);
        let pieces: Vec<u32> = self
            .active
            .iter()
            .filter(|(piece, active)| {
                active.owner.is_none() && asker.has.contains(**piece) && active.slots.iter().any(again)
            })
            .map(|(piece, _)| *piece)
            .collect();
        let piece = *pieces.get(chance.index(pieces.len()))?;
        let active = self.active.get_mut(&piece)?;
        let index = active.slots.iter().rposition(again)?;
        if let Slot::Asked(count) = &mut active.slots[index] {
            *count += 1;
        }
        Some(Place { piece, index: index as u32 })
    }

    /// A block came from a peer that owes it to us (`asked`), or owed it until
    /// we took the request back.
    pub(crate) fn arrived(&mut self, from: Peer, place: Place, asked: bool) -> Arrival {
        let Some(active) = self.active.get_mut(&place.piece) else {
            return Arrival::Wasted;
        };
        if active.owner.is_some_and(|owner| owner != from) {
            return Arrival::Wasted;
        }
        let slot = &mut active.slots[place.index as usize];
        let also_asked = match *slot {
            Slot::Kept(_) => return Arrival::Wasted,
            Slot::Free => {
                active.free -= 1;
                false
            }
            Slot::Asked(count) => count > u8::from(asked),
        };
        *slot = Slot::Kept(from);
        active.kept += 1;
        if active.free == 0 {
            self.open.remove(&place.piece);
        }
        Arrival::Kept { also_asked, completes: active.is_complete() }
    }

    /// A request for this block was taken back or lost.
    pub(crate) fn released(&mut self, place: Place) {
        let Some(active) = self.active.get_mut(&place.piece) else { return };
        let slot = &mut active.slots[place.index as usize];
        match *slot {
            Slot::Asked(count) if count > 1 => *slot = Slot::Asked(count - 1),
            Slot::Asked(_) => {
                *slot = Slot::Free;
                active.free += 1;
                self.open.insert(place.piece);
            }
            Slot::Free | Slot::Kept(_) => {}
        }
    }

    /// Gives up the unfinished pieces that only this peer might supply: half
    /// of a piece from somebody else would hide who lied. Their requests must
    /// have been released.
    pub(crate) fn disowned(&mut self, peer: Peer) -> Vec<Forgotten> {
        let owned = |active: &Active| active.owner == Some(peer) && !active.is_complete();
        let pieces: Vec<u32> =
            self.active.iter().filter(|(_, active)| owned(active)).map(|(piece, _)| *piece).collect();
        pieces.into_iter().map(|piece| self.give_up(piece)).collect()
    }

    fn give_up(&mut self, piece: u32) -> Forgotten {
        let supply = self.supply(piece);
        self.active.remove(&piece);
        self.open.remove(&piece);
        self.set_idle(piece, true);
        Forgotten { piece, supply }
    }

    fn set_idle(&mut self, piece: u32, idle: bool) {
        let was = self.idle.contains(piece as usize);
        self.idle.set(piece as usize, idle);
        self.idle_count = self.idle_count + usize::from(idle) - usize::from(was);
    }

    /// Whether all blocks are kept and the verdict is awaited.
    pub(crate) fn awaits_verdict(&self, piece: u32) -> bool {
        self.active.get(&piece).is_some_and(Active::is_complete)
    }

    /// The piece is had, by whatever way.
    pub(crate) fn succeeded(&mut self, piece: u32) -> Supply {
        let supply = self.supply(piece);
        self.active.remove(&piece);
        self.open.remove(&piece);
        self.suspect.remove(&piece);
        self.set_idle(piece, false);
        supply
    }

    /// The piece failed verification and has to be fetched again; with several
    /// contributors from one peer alone.
    pub(crate) fn failed(&mut self, piece: u32) -> Supply {
        let Forgotten { supply, .. } = self.give_up(piece);
        if supply.contributors.len() > 1 {
            self.suspect.insert(piece);
        }
        supply
    }

    fn supply(&self, piece: u32) -> Supply {
        let mut contributors = BTreeMap::new();
        let slots = self.active.get(&piece).map(|active| active.slots.as_slice()).unwrap_or_default();
        for (index, slot) in slots.iter().enumerate() {
            if let Slot::Kept(peer) = slot {
                *contributors.entry(*peer).or_insert(0) += self.shape.block(piece, index as u32).length;
            }
        }
        Supply { contributors }
    }
}

/// The bits set in both, ascending from `start` and around.
fn common_bits<'a>(a: &'a FixedBitSet, b: &'a FixedBitSet, start: u32) -> impl Iterator<Item = u32> + 'a {
    const WIDTH: usize = usize::BITS as usize;
    let (a, b) = (a.as_slice(), b.as_slice());
    let words = a.len().min(b.len());
    let (first, bit) = (start as usize / WIDTH, start as usize % WIDTH);
    (0..=words).filter(move |_| words > 0).flat_map(move |step| {
        let at = (first + step) % words;
        let mut word = a[at] & b[at];
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
    use proptest::prelude::*;
    use wire::peer::BLOCK_BYTES;

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
        fn pick(&mut self, peer: Peer, has: &PieceSet, outstanding: &[Place]) -> Option<Place> {
            let asker = Asker { peer, has, outstanding, on_parole: false };
            self.picker.pick(&asker, &mut self.chance, &mut self.forgotten)
        }

        fn pick_on_parole(&mut self, peer: Peer, has: &PieceSet) -> Option<Place> {
            let asker = Asker { peer, has, outstanding: &[], on_parole: true };
            self.picker.pick(&asker, &mut self.chance, &mut self.forgotten)
        }

        fn add_holders(&mut self, has: &PieceSet) {
            has.iter().for_each(|piece| self.picker.add_holder(piece));
        }

        fn keep(&mut self, peer: Peer, place: Place) -> Arrival {
            self.picker.arrived(peer, place, true)
        }
    }

    fn set(pieces: u32, of: &[u32]) -> PieceSet {
        let mut set = PieceSet::empty(pieces);
        of.iter().for_each(|&piece| assert!(set.insert(piece)));
        set
    }

    #[test]
    fn the_rarest_piece_is_begun_first() {
        let mut bench = bench(8, &Policy::default());
        let all = PieceSet::full(8);
        bench.add_holders(&all);
        bench.add_holders(&set(8, &[0, 1, 2, 3, 4, 6, 7]));
        assert_eq!(bench.pick(A, &all, &[]), Some(Place { piece: 5, index: 0 }));
    }

    #[test]
    fn ties_are_broken_by_chance() {
        let all = PieceSet::full(16);
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
        let all = PieceSet::full(8);
        let first = bench.pick(A, &all, &[]).unwrap();
        let rest: Vec<Place> = (0..3).map(|_| bench.pick(B, &all, &[]).unwrap()).collect();
        assert!(rest.iter().all(|place| place.piece == first.piece));
        assert_ne!(bench.pick(B, &all, &rest).unwrap().piece, first.piece);
    }

    #[test]
    fn a_released_block_is_asked_for_again() {
        let mut bench = bench(1, &Policy::default());
        let all = PieceSet::full(1);
        let places: Vec<Place> = (0..4).map(|_| bench.pick(A, &all, &[]).unwrap()).collect();
        bench.picker.released(places[2]);
        assert_eq!(bench.pick(B, &all, &[]), Some(places[2]));
    }

    #[test]
    fn the_end_game_asks_idle_peers_for_at_most_two_copies() {
        let mut bench = bench(1, &Policy::default());
        let all = PieceSet::full(1);
        let places: Vec<Place> = (0..4).map(|_| bench.pick(A, &all, &[]).unwrap()).collect();
        assert!(bench.picker.is_endgame());
        assert_eq!(bench.pick(B, &all, &places[..1]), None);
        let again: BTreeSet<Place> = (0..4).map(|_| bench.pick(B, &all, &[]).unwrap()).collect();
        assert_eq!(again.len(), 4);
        assert_eq!(bench.pick(B, &all, &[]), None);
        assert_eq!(bench.keep(B, places[0]), Arrival::Kept { also_asked: true, completes: false });
        assert_eq!(bench.keep(A, places[0]), Arrival::Wasted);
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

        let place = bench.pick(B, &PieceSet::full(2), &[]).unwrap();
        assert_eq!(place.piece, 1, "the suspect piece goes first");
        assert_eq!(bench.pick(A, &one, &[]), None, "and only one peer supplies it");
        bench.picker.released(place);
        assert_eq!(bench.picker.disowned(B).iter().map(|given_up| given_up.piece).collect::<Vec<_>>(), [1]);
        assert_eq!(bench.pick(A, &one, &[]).unwrap().piece, 1);
    }

    #[test]
    fn a_peer_on_parole_gets_pieces_of_its_own() {
        let mut bench = bench(2, &Policy::default());
        let all = PieceSet::full(2);
        let started = bench.pick(A, &all, &[]).unwrap();
        bench.keep(A, started);
        let own = bench.pick_on_parole(B, &all).unwrap();
        assert_ne!(own.piece, started.piece);
        for _ in 0..3 {
            assert_eq!(bench.pick_on_parole(B, &all).unwrap().piece, own.piece);
        }
        let taken = bench.pick_on_parole(B, &all).unwrap();
        assert_eq!((taken.piece, taken.index), (started.piece, 0), "nothing else is left: begun anew");
        let supply = Supply { contributors: BTreeMap::from([(A, BLOCK_BYTES)]) };
        assert_eq!(bench.forgotten, [Forgotten { piece: started.piece, supply }]);
    }

    #[test]
    fn memory_is_bounded_and_never_blocks_for_ever() {
        let policy = Policy { active_bytes: 0, ..Policy::default() };
        let mut bench = bench(6, &policy);
        let (mine, others) = (set(6, &[0, 1, 2]), set(6, &[3, 4]));
        let asked: Vec<Place> = std::iter::from_fn(|| bench.pick(A, &mine, &[])).collect();
        assert_eq!((asked.len(), bench.picker.active_pieces()), (8, 2));
        assert_eq!(bench.pick(B, &others, &[]), None, "both places are being filled");
        asked.iter().for_each(|&place| bench.picker.released(place));
        assert!(others.contains(bench.pick(B, &others, &[]).unwrap().piece), "nobody fills them any more");
        assert_eq!(bench.forgotten.len(), 1);
    }

    #[test]
    fn a_piece_had_by_other_means_is_no_longer_picked() {
        let mut bench = bench(1, &Policy::default());
        let all = PieceSet::full(1);
        let place = bench.pick(A, &all, &[]).unwrap();
        bench.picker.succeeded(0);
        assert_eq!(bench.keep(A, place), Arrival::Wasted);
        assert_eq!(bench.pick(A, &all, &[]), None);
    }

    proptest! {
        #[test]
        fn common_bits_visits_each_once(a: [bool; 150], b: [bool; 150], start in 0u32..150) {
            let bits = |of: [bool; 150]| -> FixedBitSet { (0..150).filter(|&bit| of[bit]).collect() };
            let (mut left, mut right) = (bits(a), bits(b));
            left.grow(150);
            right.grow(150);
            let found: Vec<u32> = common_bits(&left, &right, start).collect();
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
            let sets = [PieceSet::full(5), set(5, &[1, 3]), set(5, &[0, 1, 4])];
            let mut owed: Vec<(Peer, Place)> = Vec::new();
            for (what, which) in moves {
                let number = which as usize % sets.len();
                let peer = Peer(number as u32);
                match what {
                    0 | 1 => {
                        let mine: Vec<Place> = owed.iter().filter(|(p, _)| *p == peer).map(|(_, at)| *at).collect();
                        let endgame = bench.picker.is_endgame();
                        if let Some(place) = bench.pick(peer, &sets[number], &mine) {
                            prop_assert!(endgame || owed.iter().all(|(_, at)| *at != place));
                            prop_assert!(sets[number].contains(place.piece));
                            owed.push((peer, place));
                        }
                    }
                    2 if !owed.is_empty() => {
                        let (from, place) = owed.swap_remove(which as usize % owed.len());
                        if let Arrival::Kept { also_asked, completes } = bench.keep(from, place) {
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
                for (piece, active) in &bench.picker.active {
                    let count = |is: fn(&Slot) -> bool| active.slots.iter().filter(|slot| is(slot)).count() as u32;
                    prop_assert_eq!(active.free, count(|slot| *slot == Slot::Free));
                    prop_assert_eq!(active.kept, count(|slot| matches!(slot, Slot::Kept(_))));
                    prop_assert_eq!(bench.picker.open.contains(piece), active.free > 0);
                }
            }
        }
    }
}
