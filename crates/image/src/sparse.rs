//! Holes: keeping them, finding them, making them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::hash::is_zero;

/// Granularity of holes in files that we write: the block size of ext4, xfs
/// and the page cache; smaller holes do not save anything.
const BLOCK_BYTES: usize = 4096;

/// A shorter run of zeros is written over old content rather than punched out:
/// one system call and one extent less.
const PUNCH_AT_LEAST_BYTES: usize = 64 << 10;

/// Zeros are punched in steps of this, so that one call does not last minutes
/// on a device that zeroes slowly.
const ZERO_STEP_BYTES: u64 = 1 << 30;

/// Whether `offset .. offset + length` lies wholly in a hole. Anything that
/// cannot say so (old file systems, block devices) counts as data.
pub(crate) fn in_hole(file: &File, offset: u64, length: u64) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data >= offset + length,
        Err(error) => error == Errno::NXIO,
    }
}

/// Writes into a file that is still a hole there: blocks of zeros stay holes.
pub(crate) fn write_into_hole(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    for (range, zero) in runs(bytes, BLOCK_BYTES) {
        if !zero {
            file.write_all_at(&bytes[range.clone()], offset + range.start as u64)?;
        }
    }
    Ok(())
}

/// The runs of data and of zeros long enough to be worth a hole, as `true`.
pub(crate) fn long_runs(bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    runs(bytes, PUNCH_AT_LEAST_BYTES).collect()
}

/// Everything as one run of data: zeros cost a device that is no file more in
/// requests than they save in bytes.
pub(crate) fn whole(bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    vec![(0..bytes.len(), false)]
}

/// Makes a range read as zeros, by the cheapest way the file or device has.
///
/// On a block device the kernel turns PUNCH_HOLE into discard-or-write-zeroes
/// without a fallback, so success means zeros (`blkdev_fallocate`), and
/// ZERO_RANGE into zeroing with fallback. BLKDISCARD is not used: it promises
/// nothing about what is read afterwards.
pub(crate) fn zero_range(file: &File, range: Range<u64>) -> io::Result<()> {
    let mut offset = range.start;
    while offset < range.end {
        let length = ZERO_STEP_BYTES.min(range.end - offset);
        zero_step(file, offset, length)?;
        offset += length;
    }
    Ok(())
}

fn zero_step(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
    for way in ways {
        match rustix::fs::fallocate(file, way | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => return Ok(()),
            // Not offered here, or not at this alignment (4096-byte sectors).
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
    write_zeros(file, offset, length)
}

fn write_zeros(file: &File, mut offset: u64, length: u64) -> io::Result<()> {
    let zeros = vec![0; length.min(1 << 20) as usize];
    let end = offset + length;
    while offset < end {
        let step = (end - offset).min(zeros.len() as u64);
        file.write_all_at(&zeros[..step as usize], offset)?;
        offset += step;
    }
    Ok(())
}

/// Splits bytes into runs of zero and other blocks; neighbours are merged.
fn runs(bytes: &[u8], block: usize) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let start = at;
        let kind = is_zero(&bytes[at..bytes.len().min(at + block)]);
        while at < bytes.len() && is_zero(&bytes[at..bytes.len().min(at + block)]) == kind {
            at = bytes.len().min(at + block);
        }
        Some((start..at, kind))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn runs_are_merged_and_cover_everything() {
        let mut bytes = vec![0; 10 * 4096 + 100];
        bytes[3 * 4096 + 5] = 1;
        bytes[10 * 4096 + 50] = 1;
        let found: Vec<_> = runs(&bytes, 4096).collect();
        assert_eq!(
            found,
            vec![
                (0..3 * 4096, true),
                (3 * 4096..4 * 4096, false),
                (4 * 4096..10 * 4096, true),
                (10 * 4096..bytes.len(), false)
            ]
        );
        assert_eq!(runs(&[], 4096).count(), 0);
    }

    #[test]
    fn a_zeroed_range_reads_as_zeros_and_its_neighbours_do_not() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0xff; 1 << 20], 0).unwrap();
        zero_range(&file, 1000..700_000).unwrap();
        let mut content = vec![0; 1 << 20];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(is_zero(&content[1000..700_000]));
        assert!(content[..1000].iter().chain(&content[700_000..]).all(|&b| b == 0xff));
    }

    #[test]
    fn zeros_written_into_a_hole_stay_a_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let mut bytes = vec![0; 8 << 20];
        bytes[5 << 20] = 9;
        write_into_hole(&file, 0, &bytes).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 <= 64 << 10);
        assert!(in_hole(&file, 0, 4 << 20));
        assert!(!in_hole(&file, 5 << 20, 4096));
        assert!(in_hole(&file, 6 << 20, 2 << 20));
    }
}
