//! Which foreign clients may download from us. The engine asks at once when
//! somebody becomes interested, and again at every round.

use std::cmp::Reverse;
use std::time::Duration;

use crate::chance::Chance;
use crate::io::Peer;
use crate::policy::Policy;

/// What a choker knows of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its key.
    pub(crate) peer: Peer,
    /// It wants something of us.
    pub(crate) interested: bool,
    /// It owes us blocks and has not sent any for too long.
    pub(crate) snubbed: bool,
    /// It has been connected for less than a few rounds.
    pub(crate) new: bool,
    /// Bytes it sent us in the last two rounds.
    pub(crate) received: u64,
    /// Bytes we sent it in the last two rounds.
    pub(crate) sent: u64,
}

/// BEP 3: the interested peers with the best rates get all slots but one,
/// which goes to somebody by chance.
#[derive(Debug)]
pub(crate) struct TitForTat {
    slots: usize,
    round: Duration,
    optimistic_round: Duration,
    next: Duration,
    next_optimistic: Duration,
    optimistic: Option<Peer>,
}

impl TitForTat {
    pub(crate) fn new(policy: &Policy) -> TitForTat {
        TitForTat {
            slots: policy.upload_slots,
            round: policy.choke_round,
            optimistic_round: policy.optimistic_round,
            next: Duration::ZERO,
            next_optimistic: Duration::ZERO,
            optimistic: None,
        }
    }

    /// Whether a peer that became interested is unchoked at once, when
    /// `unchoked` interested peers already are.
    pub(crate) fn admits(&self, unchoked: usize) -> bool {
        unchoked < self.slots
    }

    /// When to call `round`.
    pub(crate) fn deadline(&self) -> Duration {
        self.next
    }

    /// The peers that are unchoked from now on, in ascending order.
    pub(crate) fn round(
        &mut self,
        now: Duration,
        standings: &[Standing],
        seeding: bool,
        chance: &mut Chance,
    ) -> Vec<Peer> {
        self.next = now + self.round;
        let mut unchoked = regular(standings, seeding, self.slots.saturating_sub(1));
        self.choose_optimistic(now, standings, &unchoked, chance);
        unchoked.extend(self.optimistic.filter(|peer| !unchoked.contains(peer)));
        unchoked.sort_unstable();
        unchoked
    }

    fn choose_optimistic(&mut self, now: Duration, standings: &[Standing], regular: &[Peer], chance: &mut Chance) {
        let stays = self.optimistic.is_some_and(|peer| {
            let waits = |standing: &Standing| standing.peer == peer && standing.interested;
            !regular.contains(&peer) && standings.iter().any(waits)
        });
        if stays && now < self.next_optimistic {
            return;
        }
        self.next_optimistic = now + self.optimistic_round;
        let mut lots: Vec<Peer> = Vec::new();
        for standing in standings.iter().filter(|s| s.interested && !regular.contains(&s.peer)) {
            // BEP 3: newcomers are three times as likely, to get a first piece.
            let weight = if standing.new { 3 } else { 1 };
            lots.extend(std::iter::repeat_n(standing.peer, weight));
        }
        self.optimistic = lots.get(chance.index(lots.len())).copied();
    }
}

/// The best until `slots` of them are interested. Better ones without
/// interest are unchoked too, so that they can begin at once (BEP 3).
fn regular(standings: &[Standing], seeding: bool, slots: usize) -> Vec<Peer> {
    let rate = |standing: &Standing| if seeding { standing.sent } else { standing.received };
    let mut ranked: Vec<&Standing> = standings.iter().filter(|standing| seeding || !standing.snubbed).collect();
    ranked.sort_by_key(|standing| (Reverse(rate(standing)), standing.peer));
    let mut taken = 0;
    let mut unchoked = Vec::new();
    for standing in ranked {
        if taken == slots {
            break;
        }
        if standing.interested {
            taken += 1;
        } else if rate(standing) == 0 {
            continue;
        }
        unchoked.push(standing.peer);
    }
    unchoked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(peer: u32, interested: bool, received: u64) -> Standing {
        Standing { peer: Peer(peer), interested, snubbed: false, new: false, received, sent: 1000 - received }
    }

    fn tit_for_tat() -> TitForTat {
        TitForTat::new(&Policy::default())
    }

    fn numbers(peers: &[Peer]) -> Vec<u32> {
        peers.iter().map(|peer| peer.0).collect()
    }

    #[test]
    fn the_best_three_and_one_by_chance() {
        let mut chance = Chance::new(3, 0);
        let standings: Vec<Standing> = (0..10).map(|n| standing(n, true, u64::from(n) * 10)).collect();
        let mut optimistic = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let unchoked = numbers(&tit_for_tat().round(Duration::ZERO, &standings, false, &mut chance));
            assert_eq!(unchoked.len(), 4);
            assert_eq!(unchoked[1..], [7, 8, 9]);
            optimistic.insert(unchoked[0]);
        }
        assert_eq!(optimistic.len(), 7);
    }

    #[test]
    fn a_seed_ranks_by_what_it_sends() {
        let standings: Vec<Standing> = (0..10).map(|n| standing(n, true, u64::from(n) * 10)).collect();
        let unchoked = numbers(&tit_for_tat().round(Duration::ZERO, &standings, true, &mut Chance::new(3, 0)));
        assert_eq!(unchoked[..3], [0, 1, 2]);
    }

    #[test]
    fn the_uninterested_take_no_slot_and_the_snubbed_none_at_all() {
        let mut standings = vec![
            standing(1, false, 900),
            standing(2, true, 800),
            standing(3, true, 700),
            standing(4, false, 0),
            standing(5, true, 600),
            standing(6, true, 500),
        ];
        standings[1].snubbed = true;
        let unchoked = numbers(&tit_for_tat().round(Duration::ZERO, &standings, false, &mut Chance::new(3, 0)));
        assert_eq!(unchoked, [1, 2, 3, 5, 6], "2 is there by chance alone");
    }

    #[test]
    fn the_one_by_chance_stays_for_three_rounds() {
        let standings: Vec<Standing> = (0..50).map(|n| standing(n, true, u64::from(n))).collect();
        let (mut choker, mut chance) = (tit_for_tat(), Chance::new(1, 0));
        let at = |seconds| Duration::from_secs(seconds);
        let mut firsts = Vec::new();
        for round in 0..6 {
            firsts.push(choker.round(at(round * 10), &standings, false, &mut chance)[0]);
            assert_eq!(choker.deadline(), at(round * 10 + 10));
        }
        assert!(firsts[..3].iter().all(|peer| *peer == firsts[0]), "{firsts:?}");
        assert!(firsts[3..].iter().all(|peer| *peer == firsts[3]) && firsts[3] != firsts[0], "{firsts:?}");
    }

    #[test]
    fn a_free_slot_is_given_at_once() {
        assert!(tit_for_tat().admits(3) && !tit_for_tat().admits(4));
    }
}
