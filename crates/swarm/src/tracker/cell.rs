//! The members of one rack, and who of them holds which lane.

use wire::peer::{PeerId, RackName};

use crate::lanes::{LANES, holders, score};

/// Nobody.
pub(super) const NOBODY: u32 = u32::MAX;

/// Candidates kept for each lane of a large rack: so many deaths are made up
/// for without looking at everybody.
const KEPT: usize = 4;

/// The holder of each lane and who comes next.
pub(super) type Table = [[u32; 2]; LANES as usize];

/// Scores and slots, best first.
type Ranks = Vec<(u64, u32)>;

/// Our own peers of one rack; those that have none share a cell too.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) name: Option<RackName>,
    /// Slots of the members, in no particular order.
    pub(super) members: Vec<u32>,
    /// Links are kept, because not everybody knows everybody.
    pub(super) is_wired: bool,
    /// Of a small rack, when nobody came or went since.
    table: Option<Box<Table>>,
    /// Of a large rack: the best of each lane.
    best: Option<Box<[Ranks; LANES as usize]>>,
}

impl Cell {
    pub(super) fn new(name: Option<RackName>) -> Cell {
        Cell { name, members: Vec::new(), is_wired: false, table: None, best: None }
    }

    /// A member came; `id_of` names slots.
    pub(super) fn entered(&mut self, slot: u32, small: usize, id_of: impl Fn(u32) -> PeerId) {
        self.table = None;
        if self.members.len() <= small {
            self.best = None;
            return;
        }
        let members = &self.members;
        let best =
            self.best.get_or_insert_with(|| Box::new(std::array::from_fn(|lane| ranked(lane as u32, members, &id_of))));
        for (lane, kept) in (0..).zip(best.iter_mut()) {
            let entry = (score(lane, &id_of(slot)), slot);
            let at = kept.partition_point(|other| *other > entry);
            // Behind the last there may be better ones that were let go.
            if at < kept.len() && kept[at] != entry {
                kept.insert(at, entry);
                kept.truncate(KEPT);
            }
        }
    }

    /// A member went, and is no longer in `members`.
    pub(super) fn left(&mut self, slot: u32, small: usize, id_of: impl Fn(u32) -> PeerId) {
        self.table = None;
        if self.members.len() <= small {
            self.best = None;
        }
        let Some(best) = &mut self.best else { return };
        for (lane, kept) in (0..).zip(best.iter_mut()) {
            kept.retain(|(_, member)| *member != slot);
            if kept.len() < 2 {
                *kept = ranked(lane, &self.members, &id_of);
            }
        }
    }

    /// Who holds which lane. In a small rack, where everybody knows everybody,
    /// exactly what its members compute. In a large one members know a part of
    /// the rack each; whoever scores highest of all claims the lane there too.
    pub(super) fn table(&mut self, id_of: impl Fn(u32) -> PeerId) -> Table {
        if let Some(best) = &self.best {
            let of = |lane: usize, place: usize| best[lane].get(place).map_or(NOBODY, |(_, slot)| *slot);
            return std::array::from_fn(|lane| [of(lane, 0), of(lane, 1)]);
        }
        let members = &self.members;
        **self.table.get_or_insert_with(|| Box::new(matched(members, &id_of)))
    }
}

fn matched(members: &[u32], id_of: impl Fn(u32) -> PeerId) -> Table {
    let ids: Vec<PeerId> = members.iter().map(|slot| id_of(*slot)).collect();
    let held = holders(&ids);
    std::array::from_fn(|lane| {
        let others = (0..ids.len()).filter(|at| Some(*at) != held[lane]);
        let next = others.max_by_key(|at| score(lane as u32, &ids[*at]));
        [held[lane], next].map(|at| at.map_or(NOBODY, |at| members[at]))
    })
}

fn ranked(lane: u32, members: &[u32], id_of: impl Fn(u32) -> PeerId) -> Ranks {
    let mut kept: Ranks = Vec::with_capacity(KEPT + 1);
    for slot in members {
        let entry = (score(lane, &id_of(*slot)), *slot);
        let at = kept.partition_point(|other| *other > entry);
        if at < KEPT {
            kept.insert(at, entry);
            kept.truncate(KEPT);
        }
    }
    kept
}
