//! Who is in one swarm, and who knows whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use wire::announce::{AnnounceRequest, Event};
use wire::peer::{PeerId, RackName};

use super::cell::Cell;
use super::graph::Graph;
use super::{Refusal, TrackerPolicy};
use crate::chance::Chance;

/// Seeds without a rack that are kept outside all racks; more than these are
/// nodes that are done, and stand with the others.
const MAX_SEEDS: usize = 16;

/// Racks of one swarm; a name beyond is passed over.
const MAX_RACKS: usize = 8192;

/// Racks that each rack exchanges lanes with; up to one more, all do.
pub(super) const RACK_DEGREE: usize = 24;

/// Draws for a newcomer's link: few, so that chance prevails.
const NEWCOMER_DRAWS: usize = 3;

/// One swarm.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    /// By slot; a slot is used again after its member left.
    pub(super) members: Vec<Option<Member>>,
    free: Vec<u32>,
    index: BTreeMap<SocketAddr, u32>,
    /// All slots in use, in no particular order.
    pub(super) everybody: Vec<u32>,
    /// Clients of other kinds.
    pub(super) strangers: Vec<u32>,
    /// Our own seeds that stand in no rack, with those who were told of them.
    pub(super) seeds: Vec<Seed>,
    pub(super) cells: Vec<Cell>,
    cell_names: BTreeMap<Option<RackName>, u32>,
    /// Cells with members.
    pub(super) inhabited: Vec<u32>,
    /// Who knows whom within wired cells.
    pub(super) graph: Graph,
    /// Which cells exchange lanes, once there are too many for all to do so.
    pub(super) cell_graph: Graph,
    /// Counts arrivals and departures of our own.
    pub(super) version: u32,
    pub(super) complete: u32,
    pub(super) downloaded: u32,
    next_sweep: Duration,
}

/// A peer as the tracker knows it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) address: SocketAddr,
    pub(super) id: PeerId,
    pub(super) complete: bool,
    pub(super) place: Place,
    /// When it announced last; none for a seed of this process.
    pub(super) seen: Option<Duration>,
    /// It has been answered before.
    pub(super) is_known: bool,
    /// The swarm's version when it was answered last.
    pub(super) version: u32,
    /// Where it stands in `everybody`.
    at: u32,
    /// Where it stands in its place's list; meaningless for a seed.
    at_home: u32,
}

/// Where a member belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Stranger,
    Seed,
    Cell(u32),
}

/// A seed outside all racks.
#[derive(Debug)]
pub(super) struct Seed {
    pub(super) slot: u32,
    /// Who was told of it.
    pub(super) fans: Vec<Fan>,
}

/// Somebody who was told of a seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fan {
    pub(super) slot: u32,
    /// The lanes it held then.
    pub(super) lanes: u64,
}

impl Swarm {
    pub(super) fn member(&self, slot: u32) -> Option<&Member> {
        self.members.get(slot as usize)?.as_ref()
    }

    /// Slot of an address.
    pub(super) fn slot_of(&self, address: SocketAddr) -> Option<u32> {
        self.index.get(&address).copied()
    }

    pub(super) fn incomplete(&self) -> u32 {
        u32::try_from(self.everybody.len()).unwrap_or(u32::MAX).saturating_sub(self.complete)
    }

    /// Takes an announce in. A node that restarted has a new id at its old
    /// address: the address is the identity, but its neighbours are gone.
    pub(super) fn enter(
        &mut self,
        now: Duration,
        address: SocketAddr,
        request: &AnnounceRequest,
        rack: Option<RackName>,
        policy: &TrackerPolicy,
        chance: &mut Chance,
    ) -> Result<u32, Refusal> {
        let known = self.slot_of(address);
        let before = known.and_then(|slot| self.member(slot)).cloned();
        if before.is_none() && self.everybody.len() >= policy.max_swarm {
            return Err(Refusal::Full(policy.max_swarm));
        }
        let complete = request.left == 0;
        let was_complete = before.as_ref().is_some_and(|member| member.complete);
        if request.event == Some(Event::Completed) && complete && !was_complete {
            self.downloaded = self.downloaded.saturating_add(1);
        }
        if let (Some(slot), Some(before)) = (known, before) {
            if before.seen.is_none() {
                return Ok(slot);
            }
            if before.id == request.peer_id && self.still_fits(&before, complete, request.own_kind, rack.as_ref()) {
                self.complete = self.complete + u32::from(complete) - u32::from(was_complete);
                self.members[slot as usize] = Some(Member { complete, seen: Some(now), ..before });
                return Ok(slot);
            }
            self.leave(address, policy);
        }
        let place = self.place_for(complete, request.own_kind, rack);
        let slot = self.put(Member::new(address, request.peer_id, complete, place, Some(now)));
        self.wire(slot, policy, chance);
        Ok(slot)
    }

    fn still_fits(&self, member: &Member, complete: bool, own_kind: bool, rack: Option<&RackName>) -> bool {
        match member.place {
            Place::Stranger => !own_kind,
            Place::Seed => own_kind && complete && rack.is_none(),
            Place::Cell(cell) => own_kind && self.cells[cell as usize].name.as_ref() == rack,
        }
    }

    pub(super) fn place_for(&mut self, complete: bool, own_kind: bool, rack: Option<RackName>) -> Place {
        if !own_kind {
            Place::Stranger
        } else if complete && rack.is_none() && self.seeds.len() < MAX_SEEDS {
            Place::Seed
        } else {
            Place::Cell(self.cell(rack))
        }
    }

    /// The cell of a name, made when it is new and there is room.
    fn cell(&mut self, name: Option<RackName>) -> u32 {
        if let Some(cell) = self.cell_names.get(&name) {
            return *cell;
        }
        let name = name.filter(|_| self.cells.len() < MAX_RACKS);
        let cells = &mut self.cells;
        *self.cell_names.entry(name.clone()).or_insert_with(|| {
            cells.push(Cell::new(name));
            cells.len() as u32 - 1
        })
    }

    /// Gives a member its slot; [`Swarm::wire`] gives it neighbours.
    pub(super) fn put(&mut self, mut member: Member) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.members.push(None);
            self.members.len() as u32 - 1
        });
        member.at = self.everybody.len() as u32;
        self.everybody.push(slot);
        self.index.insert(member.address, slot);
        self.complete += u32::from(member.complete);
        match member.place {
            Place::Seed => self.seeds.push(Seed { slot, fans: Vec::new() }),
            Place::Stranger => {
                member.at_home = self.strangers.len() as u32;
                self.strangers.push(slot);
            }
            Place::Cell(cell) => {
                self.version = self.version.wrapping_add(1);
                let home = &mut self.cells[cell as usize];
                member.at_home = home.members.len() as u32;
                home.members.push(slot);
            }
        }
        self.members[slot as usize] = Some(member);
        slot
    }

    /// Finds a newcomer's place among its rack mates and, with the first of
    /// its rack, among the racks.
    pub(super) fn wire(&mut self, slot: u32, policy: &TrackerPolicy, chance: &mut Chance) {
        let Some(cell) = self.rewire(slot, policy, chance) else { return };
        let home = &mut self.cells[cell as usize];
        let is_mesh = home.members.len() <= policy.mesh(home.name.is_some());
        let was_wired = home.is_wired;
        home.is_wired |= !is_mesh;
        if home.is_wired && !was_wired {
            // Until now they were all told of each other.
            let known: Vec<u32> = home.members.iter().copied().filter(|mate| *mate != slot).collect();
            known.iter().enumerate().for_each(|(at, a)| known[..at].iter().for_each(|b| self.graph.connect(*a, *b)));
        }
        if home.is_wired && is_mesh {
            home.members.iter().for_each(|mate| self.graph.connect(slot, *mate));
        } else if home.is_wired {
            self.graph.attach(slot, &home.members, policy.newcomer_links(), NEWCOMER_DRAWS, chance);
        }
    }

    /// The same for one whose links are remembered; its cell, if it has one.
    pub(super) fn rewire(&mut self, slot: u32, policy: &TrackerPolicy, chance: &mut Chance) -> Option<u32> {
        let Place::Cell(cell) = self.member(slot)?.place else { return None };
        let home = &mut self.cells[cell as usize];
        home.is_wired |= !self.graph.of(slot).is_empty();
        let (members, mesh) = (&self.members, policy.mesh(home.name.is_some()));
        home.entered(slot, mesh, |slot| id_in(members, slot));
        if home.members.len() == 1 {
            self.inhabit(cell, chance);
        }
        Some(cell)
    }

    /// A rack has its first member: it shall exchange lanes with others.
    fn inhabit(&mut self, cell: u32, chance: &mut Chance) {
        if self.inhabited.len() > RACK_DEGREE {
            self.cell_graph.attach(cell, &self.inhabited, RACK_DEGREE / 2, NEWCOMER_DRAWS, chance);
        } else {
            self.inhabited.iter().for_each(|other| self.cell_graph.connect(cell, *other));
        }
        self.inhabited.push(cell);
    }

    /// Forgets a member and all its links; a seed of this process stays.
    pub(super) fn leave(&mut self, address: SocketAddr, policy: &TrackerPolicy) {
        let Some(slot) = self.slot_of(address) else { return };
        let Some(member) = self.members[slot as usize].take_if(|member| member.seen.is_some()) else { return };
        self.index.remove(&address);
        self.free.push(slot);
        self.complete -= u32::from(member.complete);
        self.seeds.iter_mut().for_each(|seed| seed.fans.retain(|fan| fan.slot != slot));
        if let Some(moved) = self.moved(|swarm| &mut swarm.everybody, member.at) {
            moved.at = member.at;
        }
        match member.place {
            Place::Seed => self.seeds.retain(|seed| seed.slot != slot),
            Place::Stranger => {
                if let Some(moved) = self.moved(|swarm| &mut swarm.strangers, member.at_home) {
                    moved.at_home = member.at_home;
                }
            }
            Place::Cell(cell) => {
                if let Some(moved) = self.moved(|swarm| &mut swarm.cells[cell as usize].members, member.at_home) {
                    moved.at_home = member.at_home;
                }
                self.unwire(slot, cell, policy);
            }
        }
    }

    /// Removes the entry at `at` from a list; who stands there now.
    fn moved(&mut self, list: impl Fn(&mut Swarm) -> &mut Vec<u32>, at: u32) -> Option<&mut Member> {
        let list = list(self);
        list.swap_remove(at as usize);
        let moved = *list.get(at as usize)?;
        self.members[moved as usize].as_mut()
    }

    fn unwire(&mut self, slot: u32, cell: u32, policy: &TrackerPolicy) {
        self.version = self.version.wrapping_add(1);
        self.graph.leave(slot);
        let home = &mut self.cells[cell as usize];
        let (members, mesh) = (&self.members, policy.mesh(home.name.is_some()));
        home.left(slot, mesh, |slot| id_in(members, slot));
        if home.members.is_empty() {
            home.is_wired = false;
            self.cell_graph.leave(cell);
            self.inhabited.retain(|other| *other != cell);
        }
    }

    /// Forgets peers that missed two announces. Done twice an interval, so
    /// its cost per announce stays constant.
    pub(super) fn sweep(&mut self, now: Duration, policy: &TrackerPolicy) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + policy.interval / 2;
        let lost = |member: &&Member| member.seen.is_some_and(|seen| seen + policy.interval * 5 / 2 < now);
        let lost: Vec<SocketAddr> = self.members.iter().flatten().filter(lost).map(|member| member.address).collect();
        lost.into_iter().for_each(|address| self.leave(address, policy));
    }
}

impl Member {
    pub(super) fn new(address: SocketAddr, id: PeerId, complete: bool, place: Place, seen: Option<Duration>) -> Member {
        Member { address, id, complete, place, seen, is_known: false, version: 0, at: 0, at_home: 0 }
    }
}

pub(super) fn id_in(members: &[Option<Member>], slot: u32) -> PeerId {
    members.get(slot as usize).and_then(Option::as_ref).map_or(PeerId([0; 20]), |member| member.id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
impl Swarm {
    /// Every list, index and count agrees with the members.
    pub(super) fn assert_sound(&self) {
        let here: Vec<u32> = (0..self.members.len() as u32).filter(|slot| self.member(*slot).is_some()).collect();
        let sorted = |list: &[u32]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list
        };
        let at = |place: Place| {
            here.iter().copied().filter(move |slot| self.member(*slot).is_some_and(|member| member.place == place))
        };
        assert_eq!(sorted(&self.everybody), here);
        assert_eq!(sorted(&self.index.values().copied().collect::<Vec<_>>()), here);
        assert_eq!(sorted(&self.strangers), at(Place::Stranger).collect::<Vec<_>>());
        assert_eq!(self.seeds.len(), at(Place::Seed).count());
        assert_eq!(
            self.complete as usize,
            here.iter().filter(|slot| self.member(**slot).is_some_and(|member| member.complete)).count()
        );
        for (cell, home) in self.cells.iter().enumerate() {
            assert_eq!(sorted(&home.members), at(Place::Cell(cell as u32)).collect::<Vec<_>>());
            assert_eq!(self.inhabited.contains(&(cell as u32)), !home.members.is_empty());
        }
        for slot in 0..self.members.len() as u32 {
            let linked = self.graph.of(slot);
            let home = self.member(slot).map(|member| member.place);
            assert!(linked.iter().all(|other| self.graph.of(*other).contains(&slot)));
            assert!(linked.iter().all(|other| self.member(*other).map(|member| member.place) == home), "{home:?}");
        }
        let fans = self.seeds.iter().flat_map(|seed| &seed.fans);
        assert!(fans.into_iter().all(|fan| self.member(fan.slot).is_some()));
    }
}
