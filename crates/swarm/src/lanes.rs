//! Which member of a rack lets which pieces in.
//!
//! Piece `p` belongs to lane `p mod LANES`, and each lane of a rack to one of
//! its members. Everybody computes the same from the same roster: the stable
//! matching of lanes and members under scores that both sides agree on
//! (rendezvous hashing), with at most `ceil(LANES / members)` lanes for each.
//! So a member that comes or goes moves few lanes, and whoever scores highest
//! for a lane in a large rack claims it in every smaller roster too.

/// Lanes of every rack. A set of lanes is a `u64` with bit `l` for lane `l`.
pub use wire::peer::LANES;
use wire::peer::PeerId;

/// The lane of a piece.
#[must_use]
pub const fn lane_of(piece: u32) -> u32 {
    piece % LANES
}

/// The lanes that `me` claims among the members of its rack; it counts as one
/// of them whether it is named or not. The order of `members` does not matter.
#[must_use]
pub fn claims(members: &[PeerId], me: PeerId) -> u64 {
    let mut roster = Vec::with_capacity(members.len() + 1);
    roster.push(me);
    roster.extend(members.iter().copied().filter(|member| *member != me));
    holders(&roster)
        .iter()
        .enumerate()
        .filter(|(_, holder)| **holder == Some(0))
        .fold(0, |set, (lane, _)| set | 1 << lane)
}

/// The index in `members`, which must differ, of the holder of each lane; none
/// when there are no members.
#[must_use]
pub fn holders(members: &[PeerId]) -> [Option<usize>; LANES as usize] {
    let digests: Vec<u64> = members.iter().map(digest).collect();
    let mut matching = Matching::new(&digests);
    if !digests.is_empty() {
        (0..LANES).for_each(|lane| matching.place(lane));
    }
    matching.holders
}

/// How much a lane and a member belong together.
#[must_use]
pub fn score(lane: u32, member: &PeerId) -> u64 {
    scored(lane, digest(member))
}

/// Lanes propose to members in the order of their scores; a member keeps the
/// best (Gale and Shapley 1962). Scores differ, so there is one outcome.
struct Matching<'a> {
    digests: &'a [u64],
    most: usize,
    load: Vec<u8>,
    holders: [Option<usize>; LANES as usize],
    /// The score of each lane's last proposal; the next one is below.
    last: [u64; LANES as usize],
}

impl<'a> Matching<'a> {
    fn new(digests: &'a [u64]) -> Self {
        Self {
            digests,
            most: (LANES as usize).div_ceil(digests.len().max(1)),
            load: vec![0; digests.len()],
            holders: [None; LANES as usize],
            last: [u64::MAX; LANES as usize],
        }
    }

    /// Proposes until everybody has a place: there are as many places as lanes.
    fn place(&mut self, lane: u32) {
        let mut homeless = Some(lane);
        while let Some(lane) = homeless {
            let Some((score, member)) = self.next(lane) else { return };
            self.last[lane as usize] = score;
            homeless = self.propose(lane, score, member);
        }
    }

    fn next(&self, lane: u32) -> Option<(u64, usize)> {
        let last = self.last[lane as usize];
        let scores = self.digests.iter().map(|digest| scored(lane, *digest));
        scores.enumerate().map(|(at, score)| (score, at)).filter(|(score, _)| *score < last).max()
    }

    /// Whoever has to look further: nobody, `lane`, or one that it replaced.
    fn propose(&mut self, lane: u32, score: u64, member: usize) -> Option<u32> {
        if usize::from(self.load[member]) < self.most {
            self.load[member] += 1;
            self.holders[lane as usize] = Some(member);
            return None;
        }
        let held = (0..LANES).filter(|held| self.holders[*held as usize] == Some(member));
        let worst = held.min_by_key(|held| self.last[*held as usize]);
        let worst = worst.filter(|worst| self.last[*worst as usize] < score);
        let Some(worst) = worst else { return Some(lane) };
        self.holders[worst as usize] = None;
        self.holders[lane as usize] = Some(member);
        Some(worst)
    }
}

/// FNV-1a over the id: only to make a number of it, `mixed` does the rest.
fn digest(member: &PeerId) -> u64 {
    member.0.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The value is part of the protocol: all members must agree on it.
fn scored(lane: u32, digest: u64) -> u64 {
    mixed(digest ^ mixed(u64::from(lane) + 1))
}

/// The finaliser of SplitMix64.
fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u32) -> PeerId {
        let mut id = *b"-RS0100-............";
        id[8..12].copy_from_slice(&number.to_be_bytes());
        PeerId(id)
    }

    fn rack(from: u32, count: u32) -> Vec<PeerId> {
        (from..from + count).map(id).collect()
    }

    #[test]
    fn one_alone_claims_everything() {
        assert_eq!(claims(&[], id(1)), u64::MAX);
        assert_eq!(claims(&[id(1)], id(1)), u64::MAX);
        assert_eq!(holders(&[]), [None; LANES as usize]);
    }

    /// A change here would split swarms of two releases.
    #[test]
    fn the_claims_are_pinned() {
        let rack = rack(0, 5);
        let claimed: Vec<u64> = rack.iter().map(|me| claims(&rack, *me)).collect();
        assert_eq!(claimed.iter().fold(0, |all, set| all | set), u64::MAX);
        assert_eq!(claimed, PINNED);
    }

    const PINNED: [u64; 5] = [
        4_810_130_557_482_569_744,
        871_660_933_204_689_025,
        598_237_548_675_590,
        81_074_156_659_212_584,
        12_683_280_188_814_404_672,
    ];

    #[test]
    fn a_newcomer_and_a_death_move_few_lanes() {
        let (mut joined, mut left) = (0, 0);
        for trial in 0..100 {
            let before = rack(trial * 1000, 20);
            let after = rack(trial * 1000, 21);
            let moved = |a: &[PeerId], b: &[PeerId]| {
                holders(a)
                    .iter()
                    .zip(holders(b))
                    .filter(|(a_at, b_at)| a_at.map(|at| a[at]) != b_at.map(|at| b[at]))
                    .count()
            };
            joined += moved(&before, &after);
            left += moved(&after, &after[1..]);
        }
        assert!(joined < 1200 && left < 1200, "{joined} {left} of 6400");
    }

    #[test]
    fn the_best_of_a_large_rack_claims_its_lane_in_small_rosters_too() {
        let large = rack(7, 1000);
        for lane in 0..LANES {
            let best = *large.iter().max_by_key(|member| score(lane, member)).unwrap();
            for start in (0..980).step_by(49) {
                let roster = &large[start..start + 20];
                assert_ne!(claims(roster, best) & (1 << lane), 0, "lane {lane}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_lane_has_one_holder_and_nobody_more_than_a_share(
            numbers in proptest::collection::btree_set(0u32..10_000, 1..100), turn in 0usize..100,
        ) {
            let mut members: Vec<PeerId> = numbers.into_iter().map(id).collect();
            let claimed: Vec<u64> = members.iter().map(|me| claims(&members, *me)).collect();
            let most = (LANES as usize).div_ceil(members.len()) as u32;
            prop_assert_eq!(claimed.iter().fold(0, |all, set| all | set), u64::MAX);
            prop_assert_eq!(claimed.iter().map(|set| set.count_ones()).sum::<u32>(), LANES);
            prop_assert!(claimed.iter().all(|set| set.count_ones() <= most));
            let me = members[0];
            let count = members.len();
            members.rotate_left(turn % count);
            prop_assert_eq!(claims(&members, me), claimed[0]);
        }
    }
}
