//! Seeded chance whose values never change between releases: the generator
//! is `rand_pcg`'s, and the reduction to a range is fixed here.

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

/// A stream of random choices that replays from its seed.
#[derive(Debug, Clone)]
pub(crate) struct Chance(Pcg32);

impl Chance {
    /// `stream` separates users of one seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Chance {
        Chance(Pcg32::new(seed, stream))
    }

    /// A number below `bound`; 0 when the bound is 0. The bias is below
    /// `bound` / 2^32, which no choice of ours can notice.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        let wide = u64::from(self.0.next_u32()) * u64::from(bound);
        (wide >> 32) as u32
    }

    /// An index into a sequence of `length` items.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.below(u32::try_from(length).unwrap_or(u32::MAX)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_every_value() {
        let mut chance = Chance::new(1, 1);
        let mut seen = [0_u32; 7];
        for _ in 0..7_000 {
            seen[chance.index(7)] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
        assert_eq!(chance.below(0), 0);
        assert_eq!(chance.below(1), 0);
    }

    /// A change here would silently change every recorded scenario. The raw
    /// values are those of the PCG authors' demonstration for this seed and
    /// stream: a15c02b7 7b47f409 ba1d3330 83d2f293.
    #[test]
    fn the_first_values_are_pinned() {
        let mut chance = Chance::new(42, 54);
        let first: Vec<u32> = (0..4).map(|_| chance.below(1000)).collect();
        assert_eq!(first, [630, 481, 727, 514]);
    }
}
