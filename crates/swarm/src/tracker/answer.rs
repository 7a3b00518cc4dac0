//! Whom a peer is told of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wire::announce::AnnouncedPeer;

use super::TrackerPolicy;
use super::cell::{NOBODY, Table};
use super::swarm::{Fan, Place, RACK_DEGREE, Swarm, id_in};
use crate::chance::Chance;
use crate::lanes::LANES;

/// Draws for a link that replaces a lost one: many, so that it goes to
/// somebody who lost one too.
const REPAIR_DRAWS: usize = 8;

/// Peers of other racks for a member without a lane: when its rack mates die,
/// it shall not starve.
const SPARE_CROSSINGS: usize = 2;

/// Peers of other racks below which each lane gets a second one.
const FEW_CROSSINGS: usize = 24;

/// Clients of other kinds in an answer to our own.
const STRANGERS: usize = 10;

/// Members that hold a lane and know a seed, wanted for each lane.
const LANE_FANS: usize = 2;

impl Swarm {
    /// For one of our own: seeds, whom to exchange lanes with, rack mates.
    pub(super) fn guide(
        &mut self,
        slot: u32,
        wanted: usize,
        policy: &TrackerPolicy,
        chance: &mut Chance,
    ) -> Vec<AnnouncedPeer> {
        let Some(Place::Cell(cell)) = self.member(slot).map(|member| member.place) else {
            return self.sample(slot, wanted, chance);
        };
        if wanted == 0 {
            return Vec::new();
        }
        let lanes = self.lanes_of(slot, cell);
        let mut peers = self.tell_of_seeds(slot, cell, lanes, policy);
        peers.extend(self.crossings(slot, cell, lanes, chance));
        peers.extend(self.mates(slot, cell, wanted, policy, chance));
        let strangers = STRANGERS.max(policy.degree.saturating_sub(peers.len()));
        peers.extend(drawn(&self.strangers, strangers, chance, |_| true));
        peers.truncate(policy.max_peers as usize);
        self.named(slot, &peers)
    }

    /// For clients of other kinds, and for seeds: a random sample. Seeds are
    /// not told of seeds.
    pub(super) fn sample(&self, slot: u32, wanted: usize, chance: &mut Chance) -> Vec<AnnouncedPeer> {
        let is_seed = self.member(slot).is_some_and(|member| member.complete);
        let useful =
            |other: u32| other != slot && self.member(other).is_some_and(|member| !(is_seed && member.complete));
        self.named(slot, &drawn(&self.everybody, wanted, chance, useful))
    }

    /// Notes that a member has its answer; when it shall ask again. While our
    /// own come and go, lanes move and links are missing.
    pub(super) fn answered(&mut self, slot: u32, policy: &TrackerPolicy) -> Duration {
        let version = self.version;
        let is_wired = self.cell_of(slot).is_some_and(|cell| self.cells[cell as usize].is_wired);
        let lacks = is_wired && self.graph.of(slot).len() < policy.degree;
        let matters = self.inhabited.len() > 1 || lacks;
        let Some(Some(member)) = self.members.get_mut(slot as usize) else { return policy.interval };
        let changed = !member.is_known || member.version != version;
        (member.is_known, member.version) = (true, version);
        if !(changed && matters) {
            return policy.interval;
        }
        let paced = Duration::from_secs((self.everybody.len() / policy.announces_per_second.max(1) as usize) as u64);
        policy.settle.max(paced).min(policy.interval)
    }

    /// Everybody of a small rack; in a large one the neighbours in a graph,
    /// with new ones for those that died.
    fn mates(&mut self, slot: u32, cell: u32, wanted: usize, policy: &TrackerPolicy, chance: &mut Chance) -> Vec<u32> {
        let home = &self.cells[cell as usize];
        if home.members.len() <= policy.mesh(home.name.is_some()) {
            return home.members.iter().copied().filter(|mate| *mate != slot).collect();
        }
        let has = self.graph.of(slot).len();
        let missing = policy.degree.saturating_sub(has).min(wanted);
        // A newcomer's links were just drawn; others will be drawn to it.
        if self.member(slot).is_some_and(|member| member.is_known) {
            self.graph.attach(slot, &home.members, missing, REPAIR_DRAWS, chance);
        }
        self.graph.of(slot).to_vec()
    }

    /// The lanes that a member holds, as a set; none where there is nothing to
    /// let in.
    fn lanes_of(&mut self, slot: u32, cell: u32) -> u64 {
        if self.inhabited.len() < 2 && self.seeds.is_empty() {
            return 0;
        }
        let holds = |(lane, holders): (usize, &[u32; 2])| u64::from(holders[0] == slot) << lane;
        self.table_of(cell).iter().enumerate().map(holds).sum()
    }

    /// Holders of these lanes in other racks.
    fn crossings(&mut self, slot: u32, cell: u32, lanes: u64, chance: &mut Chance) -> BTreeSet<u32> {
        let mut racks = self.other_racks(cell, chance);
        let mut lanes: Vec<usize> = (0..LANES as usize).filter(|lane| lanes & 1 << lane != 0).collect();
        let mut places = if lanes.len() * racks.len() < FEW_CROSSINGS { 2 } else { 1 };
        if lanes.is_empty() {
            // The same each time, or links would pile up.
            let turn = slot as usize % racks.len().max(1);
            racks.rotate_left(turn);
            racks.truncate(SPARE_CROSSINGS);
            lanes.push((slot % LANES) as usize);
            places = 1;
        }
        let mut crossings = BTreeSet::new();
        for rack in racks {
            let table = self.table_of(rack);
            lanes.iter().for_each(|lane| crossings.extend(&table[*lane][..places]));
        }
        crossings.remove(&NOBODY);
        crossings
    }

    /// All racks while they are few, else this rack's neighbours among them.
    fn other_racks(&mut self, cell: u32, chance: &mut Chance) -> Vec<u32> {
        if self.inhabited.len() <= RACK_DEGREE + 1 {
            return self.inhabited.iter().copied().filter(|other| *other != cell).collect();
        }
        let missing = (RACK_DEGREE / 2).saturating_sub(self.cell_graph.of(cell).len());
        self.cell_graph.attach(cell, &self.inhabited, missing, REPAIR_DRAWS, chance);
        self.cell_graph.of(cell).to_vec()
    }

    /// Seeds with room for one more, or that this member's rack or lanes need.
    fn tell_of_seeds(&mut self, slot: u32, cell: u32, lanes: u64, policy: &TrackerPolicy) -> Vec<u32> {
        let crosses = self.inhabited.len() > 1 || self.cells[cell as usize].name.is_some();
        let share = policy.seed_fans / self.inhabited.len().max(1);
        let mut told = Vec::new();
        for at in 0..self.seeds.len() {
            let seed = &mut self.seeds[at];
            if let Some(fan) = seed.fans.iter_mut().find(|fan| fan.slot == slot) {
                fan.lanes = lanes;
                told.push(seed.slot);
                continue;
            }
            let has_room = seed.fans.len() < policy.seed_fans;
            if has_room || crosses && lanes != 0 && self.is_needed(at, cell, lanes, share) {
                if !has_room {
                    self.let_go_a_fan(at);
                }
                told.push(self.seeds[at].slot);
                self.seeds[at].fans.push(Fan { slot, lanes });
            }
        }
        told
    }

    /// The rack has fewer fans than its share, or a lane too few in all racks.
    fn is_needed(&self, seed: usize, cell: u32, lanes: u64, share: usize) -> bool {
        let fans = &self.seeds[seed].fans;
        let mates = fans.iter().filter(|fan| self.cell_of(fan.slot) == Some(cell)).count();
        let lacks = |lane: u64| fans.iter().filter(|fan| fan.lanes & lane != 0).count() < LANE_FANS;
        mates < share || (0..LANES).any(|lane| lanes & 1 << lane != 0 && lacks(1 << lane))
    }

    /// One of the rack with the most fans; rather one without a lane.
    fn let_go_a_fan(&mut self, seed: usize) {
        let fans = &self.seeds[seed].fans;
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        fans.iter().filter_map(|fan| self.cell_of(fan.slot)).for_each(|cell| *counts.entry(cell).or_default() += 1);
        let crowd = |fan: &Fan| self.cell_of(fan.slot).and_then(|cell| counts.get(&cell));
        let superfluous = (0..fans.len()).max_by_key(|at| (crowd(&fans[*at]), fans[*at].lanes == 0));
        if let Some(at) = superfluous {
            self.seeds[seed].fans.swap_remove(at);
        }
    }

    fn cell_of(&self, slot: u32) -> Option<u32> {
        match self.member(slot)?.place {
            Place::Cell(cell) => Some(cell),
            Place::Stranger | Place::Seed => None,
        }
    }

    fn table_of(&mut self, cell: u32) -> Table {
        let members = &self.members;
        self.cells[cell as usize].table(|slot| id_in(members, slot))
    }

    fn named(&self, asker: u32, slots: &[u32]) -> Vec<AnnouncedPeer> {
        let asker = id_in(&self.members, asker);
        let members = slots.iter().filter_map(|slot| self.member(*slot)).filter(|member| member.id != asker);
        members.map(|member| AnnouncedPeer { address: member.address, peer_id: Some(member.id) }).collect()
    }
}

/// Up to `count` different entries of a list by chance, of those that `pass`.
fn drawn(list: &[u32], count: usize, chance: &mut Chance, pass: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut drawn = Vec::with_capacity(count.min(list.len()));
    if list.len() <= 2 * count {
        let mut rest = list.to_vec();
        while drawn.len() < count && !rest.is_empty() {
            let entry = rest.swap_remove(chance.index(rest.len()));
            drawn.extend(Some(entry).filter(|entry| pass(*entry)));
        }
        return drawn;
    }
    // Some draws repeat or do not pass; a list where hardly any passes gives
    // fewer rather than taking long.
    for _ in 0..4 * count {
        let entry = list[chance.index(list.len())];
        if drawn.len() < count && pass(entry) && !drawn.contains(&entry) {
            drawn.push(entry);
        }
    }
    drawn
}
