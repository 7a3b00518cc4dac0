//! Chance that depends on nothing but its key: the same (seed, node, stream,
//! number) gives the same value however many other values were drawn, so one
//! more fault in a scenario does not change the others.

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

/// What a value is for; two uses never share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Peer ids.
    Identity = 1,
    /// The seed of an engine.
    Engine = 2,
    /// When a node starts.
    Arrival = 3,
    /// Who is chosen by a share or a count.
    Choice = 4,
    /// Which of a liar's blocks are corrupt.
    Lies = 5,
    /// What a faulty driver or an ordinary client does next.
    Conduct = 6,
    /// Which connections are reset.
    Reset = 7,
}

/// The value number `number` of a node's stream.
pub(crate) fn draw(seed: u64, node: u32, stream: Stream, number: u64) -> u64 {
    let key = seed ^ (u64::from(node) << 32) ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let sequence = (u64::from(node) << 4) | stream as u64;
    Pcg32::new(key, sequence).next_u64()
}

/// The same as a number below `bound`; 0 when the bound is 0.
pub(crate) fn below(seed: u64, node: u32, stream: Stream, number: u64, bound: u64) -> u64 {
    let wide = u128::from(draw(seed, node, stream, number)) * u128::from(bound);
    (wide >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_nodes_numbers_and_seeds_differ() {
        let all = [
            draw(1, 1, Stream::Engine, 0),
            draw(2, 1, Stream::Engine, 0),
            draw(1, 2, Stream::Engine, 0),
            draw(1, 1, Stream::Arrival, 0),
            draw(1, 1, Stream::Engine, 1),
        ];
        for (at, value) in all.iter().enumerate() {
            assert!(!all[..at].contains(value));
        }
    }

    #[test]
    fn numbers_spread_over_their_range() {
        let mut seen = [0_u32; 5];
        for number in 0..5_000 {
            seen[below(9, 3, Stream::Choice, number, 5) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert_eq!(below(9, 3, Stream::Choice, 1, 0), 0);
    }
}
