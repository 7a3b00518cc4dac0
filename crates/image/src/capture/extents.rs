//! Ranges of bytes, in order and apart from each other.

use std::ops::Range;

/// Ranges of bytes of a disk, sorted, none touching another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    /// Sorts and joins ranges that come in any order and may overlap.
    #[must_use]
    pub fn of(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut all: Vec<Range<u64>> = ranges.into_iter().filter(|range| range.start < range.end).collect();
        all.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in all {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// What of `whole` is in none of these.
    #[must_use]
    pub fn outside(&self, whole: Range<u64>) -> Self {
        let mut rest = Vec::new();
        let mut at = whole.start;
        for range in self.within(whole.clone()) {
            rest.push(at..range.start);
            at = range.end;
        }
        rest.push(at..whole.end);
        Self::of(rest)
    }

    /// The parts of these that lie in `window`.
    pub fn within(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.0.partition_point(|range| range.end <= window.start);
        self.0[first..]
            .iter()
            .take_while(move |range| range.start < window.end)
            .map(move |range| range.start.max(window.start)..range.end.min(window.end))
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// How many bytes they have together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_that_touch_are_joined_and_windows_cut() {
        let extents = Extents::of([10..20, 0..5, 20..30, 40..40, 25..28]);
        assert_eq!(extents.0, [0..5, 10..30]);
        assert_eq!(extents.within(3..12).collect::<Vec<_>>(), [3..5, 10..12]);
        assert_eq!(extents.within(5..10).count(), 0);
        assert_eq!(extents.outside(2..50).0, [5..10, 30..50]);
        assert_eq!(extents.outside(0..5).0, []);
        assert_eq!(extents.bytes(), 25);
    }

    proptest! {
        #[test]
        fn every_byte_is_inside_or_outside(ranges in prop::collection::vec((0u64..200, 0u64..40), 0..12)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let inside = Extents::of(ranges.clone());
            let outside = inside.outside(0..250);
            for byte in 0..250 {
                let is_inside = ranges.iter().any(|range| range.contains(&byte));
                prop_assert_eq!(inside.0.iter().any(|range| range.contains(&byte)), is_inside);
                prop_assert_eq!(outside.0.iter().any(|range| range.contains(&byte)), !is_inside);
            }
            prop_assert_eq!(inside.bytes() + outside.bytes(), 250);
        }
    }
}
