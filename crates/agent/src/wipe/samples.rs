//! Random marks on a disk, and what became of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use fleet::wipe::Samples;
use rustix::fs::{Advice, OFlags, fadvise};

/// Bytes of a mark, and the alignment of memory and offsets, which every device takes.
const BLOCK_BYTES: usize = 4096;
/// Stretches of the disk that have a mark each.
const STRETCHES: u64 = 256;

/// Memory for direct reads and writes.
pub(super) struct Block {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Block {
    pub(super) fn zeros(length: usize) -> Self {
        let memory = vec![0; length + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self { memory, start, length }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// A disk opened around the page cache, where it can be. What is not whole blocks, and what does not take direct access, goes
/// through the cache and is flushed.
pub(super) struct Opened {
    direct: Option<File>,
    cached: File,
}

pub(super) fn open(path: &Path) -> io::Result<Opened> {
    let options = || OpenOptions::new().read(true).write(true).to_owned();
    let direct = options().custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).ok();
    Ok(Opened { direct, cached: options().open(path)? })
}

impl Opened {
    pub(super) fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let whole = bytes.len().is_multiple_of(BLOCK_BYTES) && at.is_multiple_of(BLOCK_BYTES as u64);
        match self.direct.as_ref().filter(|_| whole) {
            Some(direct) => direct.write_all_at(bytes, at),
            None => {
                self.cached.write_all_at(bytes, at)?;
                self.cached.sync_data()
            }
        }
    }

    /// Reads from the device, not from what the kernel remembers.
    fn read_exact_at(&self, block: &mut Block, at: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) => direct.read_exact_at(block.bytes_mut(), at),
            None => {
                fadvise(&self.cached, 0, None, Advice::DontNeed)?;
                self.cached.read_exact_at(block.bytes_mut(), at)
            }
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.cached.sync_all()
    }
}

/// Marks that were written, with what each is.
pub(super) struct Marks {
    places: u32,
    written: Vec<(u64, Vec<u8>)>,
}

impl Marks {
    pub(super) fn none() -> Self {
        Self { places: 0, written: Vec::new() }
    }

    /// Writes a mark at every place and reads it back from the device. A place that does not keep it is counted, not more.
    pub(super) fn write(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let disk = open(path)?;
        let places = places(size_bytes);
        let mut written = Vec::new();
        for at in &places {
            let mut mark = Block::zeros(BLOCK_BYTES);
            rand::fill(mark.bytes_mut());
            disk.write_all_at(mark.bytes(), *at)?;
            written.push((*at, mark.bytes().to_vec()));
        }
        disk.sync()?;
        let mut block = Block::zeros(BLOCK_BYTES);
        written.retain(|(at, mark)| disk.read_exact_at(&mut block, *at).is_ok() && block.bytes() == mark);
        Ok(Self { places: u32::try_from(places.len()).unwrap_or(u32::MAX), written })
    }

    /// What is at the places now.
    pub(super) fn read_back(&self, path: &Path) -> Samples {
        let marked = u32::try_from(self.written.len()).unwrap_or(u32::MAX);
        let mut samples =
            Samples { places: self.places, block_bytes: BLOCK_BYTES as u32, marked, ..Samples::default() };
        let Ok(disk) = open(path) else {
            samples.unreadable = marked;
            return samples;
        };
        let mut block = Block::zeros(BLOCK_BYTES);
        for (at, mark) in &self.written {
            let count = match disk.read_exact_at(&mut block, *at) {
                Err(_) => &mut samples.unreadable,
                Ok(()) if block.bytes() == mark => &mut samples.unchanged,
                Ok(()) if block.bytes().iter().all(|byte| *byte == 0) => &mut samples.zero,
                Ok(()) => &mut samples.other,
            };
            *count += 1;
        }
        samples
    }
}

/// The first and the last whole block, and one at a random place of each stretch.
fn places(size_bytes: u64) -> Vec<u64> {
    let blocks = size_bytes / BLOCK_BYTES as u64;
    let Some(last) = blocks.checked_sub(1) else { return Vec::new() };
    let stretch = blocks.div_ceil(STRETCHES).max(1);
    let mut places = vec![0, last];
    for first in (0..blocks).step_by(usize::try_from(stretch).unwrap_or(usize::MAX)) {
        places.push(rand::random_range(first..(first + stretch).min(blocks)));
    }
    places.sort_unstable();
    places.dedup();
    places.into_iter().map(|block| block * BLOCK_BYTES as u64).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn every_stretch_and_both_ends_have_a_place() {
        let size = 10 << 30;
        let places = places(size);
        assert!(places.len() > 250 && places.len() <= 258, "{}", places.len());
        assert_eq!((places[0], places[places.len() - 1]), (0, size - 4096));
        let stretch = size / STRETCHES;
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] < 2 * stretch + 4096));
        assert!(super::places(4095).is_empty());
        assert_eq!(super::places(8192 + 512), [0, 4096]);
    }

    #[test]
    fn what_became_of_the_marks_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![1; 4 * BLOCK_BYTES]).unwrap();
        let marks = Marks::write(&path, 4 * BLOCK_BYTES as u64).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; BLOCK_BYTES], 0).unwrap();
        file.write_all_at(&[7; BLOCK_BYTES], BLOCK_BYTES as u64).unwrap();
        file.set_len(3 * BLOCK_BYTES as u64).unwrap();
        let samples = marks.read_back(&path);
        let Samples { places, marked, zero, other, unchanged, unreadable, .. } = samples;
        assert_eq!((places, marked, zero, other, unchanged, unreadable), (4, 4, 1, 1, 1, 1));
    }
}
