//! Capturing a machine's disk: what is said about it before its content travels.

use serde::{Deserialize, Serialize};

use crate::disk::Size;
use crate::ids::ImageName;

/// Content travels, is hashed and is kept in chunks of so many bytes; the disk's last one may be shorter.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// Largest disk that is captured, in bytes: 16 TiB, the largest image.
pub const MAX_DISK_BYTES: u64 = 16 << 40;

/// Most runs of chunks that a description may have: a disk that is used so raggedly is sent with the holes between.
pub const MAX_RUNS: usize = 16_384;

/// What an operator wants of a node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Order {
    /// The image that it becomes.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// Whether what belongs to this one machine is taken out of the image.
    pub generalise: bool,
}

/// Neighbouring chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Run {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Run {
    /// The chunk after the last.
    #[must_use]
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// A disk that is being captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Original {
    /// Which disk ([`crate::disk::Disk::identity`]), or the file's name.
    pub disk: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes of it that are in use.
    pub used_bytes: u64,
    /// What is on it, a sentence for each partition.
    pub parts: Vec<String>,
    /// The chunks in which something is used, in order; the others are zeros.
    pub runs: Vec<Run>,
    /// Whether what belongs to this one machine is taken out of the image.
    pub generalise: bool,
}

impl Original {
    /// Whether this can be true, so that nothing is allocated for what cannot.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(512) || self.size_bytes > MAX_DISK_BYTES {
            return Err(format!("a disk of {} bytes cannot be captured", self.size_bytes));
        }
        if self.disk.len() > 512 || self.parts.len() > 256 || self.parts.iter().any(|part| part.len() > 512) {
            return Err("the description of the disk is too long".to_owned());
        }
        if self.runs.len() > MAX_RUNS {
            return Err(format!("{} runs of chunks are more than {MAX_RUNS}", self.runs.len()));
        }
        let mut end = 0;
        for (index, run) in self.runs.iter().enumerate() {
            if run.count == 0 || (index > 0 && u64::from(run.first) <= end) || run.end() > u64::from(self.chunks()) {
                return Err(format!("chunks {} to {} cannot follow chunk {end}", run.first, run.end()));
            }
            end = run.end();
        }
        Ok(())
    }

    /// How many chunks the disk has.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.size_bytes.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX)
    }

    /// Length of a chunk in bytes.
    #[must_use]
    pub fn length(&self, chunk: u32) -> u64 {
        CHUNK_BYTES.min(self.size_bytes.saturating_sub(u64::from(chunk) * CHUNK_BYTES))
    }

    /// The chunks that travel, in order.
    pub fn wanted(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|run| run.first..run.first.saturating_add(run.count))
    }

    /// Whether something in this chunk is used.
    #[must_use]
    pub fn wants(&self, chunk: u32) -> bool {
        let after = self.runs.partition_point(|run| run.first <= chunk);
        after.checked_sub(1).is_some_and(|at| u64::from(chunk) < self.runs[at].end())
    }

    /// How many chunks travel.
    #[must_use]
    pub fn wanted_chunks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The disk in a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let parts = if self.parts.is_empty() { "nothing known".to_owned() } else { self.parts.join("; ") };
        format!("{} of {} are used on {}: {parts}", Size(self.used_bytes), Size(self.size_bytes), self.disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original(size_bytes: u64, runs: &[(u32, u32)]) -> Original {
        Original {
            disk: "serial:1".to_owned(),
            size_bytes,
            used_bytes: 0,
            parts: Vec::new(),
            runs: runs.iter().map(|(first, count)| Run { first: *first, count: *count }).collect(),
            generalise: true,
        }
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        let size = 10 * CHUNK_BYTES + 512;
        for runs in [&[][..], &[(0, 11)], &[(0, 1), (2, 3), (10, 1)]] {
            assert_eq!(original(size, runs).check(), Ok(()), "{runs:?}");
        }
        for runs in [
            &[(0, 12)][..],
            &[(0, 0)],
            &[(3, 2), (4, 1)],
            &[(3, 2), (5, 1)],
            &[(4, 1), (0, 1)],
            &[(u32::MAX, u32::MAX)],
        ] {
            assert!(original(size, runs).check().is_err(), "{runs:?}");
        }
        for size in [0, 511, MAX_DISK_BYTES + 512] {
            assert!(original(size, &[]).check().is_err(), "{size}");
        }
    }

    #[test]
    fn wanted_chunks_are_those_of_the_runs() {
        let original = original(10 * CHUNK_BYTES + 512, &[(1, 2), (5, 1), (10, 1)]);
        assert_eq!(original.wanted().collect::<Vec<_>>(), [1, 2, 5, 10]);
        assert_eq!((0..12).filter(|chunk| original.wants(*chunk)).collect::<Vec<_>>(), [1, 2, 5, 10]);
        assert_eq!(original.wanted_chunks(), 4);
        assert_eq!((original.length(9), original.length(10), original.length(11)), (CHUNK_BYTES, 512, 0));
    }
}
