//! Files to deliver, the same on every machine and in every run.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

/// What a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing repeats and nothing compresses.
    Random,
    /// As a system disk: half of the stretches are zeros, a tenth repeat the random one before, the rest is random.
    /// A stretch is this many bytes.
    System(u32),
}

/// Writes a file of this size.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, bytes: u64, content: Content) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let stretch = match content {
        Content::Random => 1 << 20,
        Content::System(stretch) => stretch as usize,
    };
    let mut repeated = Vec::new();
    let mut left = bytes;
    let mut number = 0u64;
    while left > 0 {
        let mut part = match (content, number % 10) {
            // Interleaved, as blocks of a file system are: five of ten are zero, one repeats.
            (Content::System(_), 1 | 3 | 5 | 7 | 9) => vec![0; stretch],
            (Content::System(_), 4) => std::mem::take(&mut repeated),
            (Content::Random, _) => chance.bytes(stretch),
            (Content::System(_), _) => {
                repeated = chance.bytes(stretch);
                repeated.clone()
            }
        };
        part.truncate(left.min(stretch as u64) as usize);
        out.write_all(&part).with_context(|| format!("cannot write {}", path.display()))?;
        left -= part.len() as u64;
        number += 1;
    }
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}

/// Overwrites one of every `every` stretches with something else; how many bytes that are.
///
/// # Errors
/// When it cannot be read or written.
pub fn change(path: &Path, stretch: u32, every: u64) -> Result<u64> {
    let file =
        File::options().read(true).write(true).open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    let mut chance = Chance(0xd1b5_4a32_d192_ed03);
    let mut changed = 0;
    // From the middle of the first group, so that the first piece, which partition tables share, stays.
    let mut at = u64::from(stretch) * (every / 2);
    while at < size {
        let length = (size - at).min(stretch.into());
        file.write_all_at(&chance.bytes(length as usize), at)?;
        changed += length;
        at += u64::from(stretch) * every;
    }
    Ok(changed)
}

/// Whether two files have the same bytes.
///
/// # Errors
/// When one cannot be read.
pub fn same(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (mut one, mut other) = (open(one)?, open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let got = one.read(&mut here)?;
        if got == 0 {
            return Ok(true);
        }
        other.read_exact(&mut there[..got])?;
        if here[..got] != there[..got] {
            return Ok(false);
        }
    }
}

/// SplitMix64: fast, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_system_disk_is_half_zero_and_a_tenth_repeats() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        write(&path, 40 * 4096, Content::System(4096)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let stretches: Vec<&[u8]> = bytes.chunks(4096).collect();
        let zeros = stretches.iter().filter(|stretch| stretch.iter().all(|byte| *byte == 0)).count();
        let distinct: std::collections::BTreeSet<&&[u8]> = stretches.iter().collect();
        // Sixteen random ones, of which four come twice, and the zeros.
        assert_eq!((stretches.len(), zeros, distinct.len()), (40, 20, 17));
    }

    #[test]
    fn a_change_touches_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write(&one, 100 * 1000, Content::Random).unwrap();
        write(&other, 100 * 1000, Content::Random).unwrap();
        assert!(same(&one, &other).unwrap());
        assert_eq!(change(&other, 1000, 20).unwrap(), 5000);
        assert!(!same(&one, &other).unwrap());
        let (one, other) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
        let differ = one.chunks(1000).zip(other.chunks(1000)).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 5);
    }
}
