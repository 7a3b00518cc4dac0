//! The disk that is captured, opened read-only.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::num::NonZero;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fleet::capture::{CHUNK_BYTES, MAX_RUNS, Original, Run};
use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;
use zstd::bulk::Compressor;

use super::survey::{Survey, survey};
use crate::hash::sha256;
use crate::{Error, Format, format};

/// The quickest level: the network is faster than the others, and the machine has better to do.
const LEVEL: i32 = 1;

/// A disk, or a file with a raw disk in it, and what of it is used.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    survey: Survey,
}

/// A chunk that is ready to travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// SHA-256 of the chunk as it is on the disk, free space as zeros.
    pub hash: [u8; 32],
    /// The chunk, one zstd frame; none where the receiver has it already.
    pub bytes: Option<Vec<u8>>,
}

impl Disk {
    /// Opens a disk or a file read-only and asks its file systems what is used. A block device is opened exclusively,
    /// which the kernel refuses while it or a part of it is mounted.
    ///
    /// # Errors
    /// [`Error::Busy`] for a disk in use, [`Error::Refused`] for a file that is no raw disk, and what [`survey`] says.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = path.canonicalize().map_err(Error::io("open", path))?;
        let kind = path.metadata().map_err(Error::io("look at", &path))?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(Error::NotADisk(path));
        }
        let flags = if kind.is_block_device() { OFlags::EXCL } else { OFlags::empty() };
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let mut file = opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Error::Busy(path.clone()),
            _ => Error::io("open", &path)(error),
        })?;
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(Error::io("measure", &path))?;
        if kind.is_file() {
            expect_raw(&file, &path)?;
        }
        if size_bytes == 0 || !size_bytes.is_multiple_of(512) {
            return Err(Error::BadSize { what: path, size_bytes });
        }
        let sector_bytes =
            rustix::fs::ioctl_blksszget(&file).ok().filter(|_| kind.is_block_device()).map_or(512, u64::from);
        let survey = survey(&file, &path, size_bytes, sector_bytes)?;
        Ok(Self { file, path, survey })
    }

    /// What is on it.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// What is told about it before anything travels. `disk` names it for people.
    #[must_use]
    pub fn original(&self, disk: &str, generalise: bool) -> Original {
        Original {
            disk: disk.chars().take(128).collect(),
            size_bytes: self.survey.size_bytes,
            used_bytes: self.survey.used.bytes(),
            parts: self
                .survey
                .parts
                .iter()
                .take(256)
                .map(|part| part.to_string().chars().take(300).collect())
                .collect(),
            runs: runs(&self.survey),
            generalise,
        }
    }

    /// Reads one chunk, with zeros for what is free.
    ///
    /// # Errors
    /// When the disk cannot be read; the error names the place.
    pub fn read(&self, chunk: u32, into: &mut Vec<u8>) -> Result<(), Error> {
        let start = u64::from(chunk) * CHUNK_BYTES;
        let end = (start + CHUNK_BYTES).min(self.survey.size_bytes);
        into.clear();
        into.resize(end.saturating_sub(start) as usize, 0);
        for range in self.survey.used.within(start..end) {
            let bytes = &mut into[(range.start - start) as usize..(range.end - start) as usize];
            self.file.read_exact_at(bytes, range.start).map_err(Error::device("read", &self.path, range.start))?;
        }
        // Nobody reads it twice. Advice only, hence the ignored result.
        let _ = rustix::fs::fadvise(&self.file, start, NonZero::new(end - start), Advice::DontNeed);
        Ok(())
    }

    /// Reads one chunk and packs it, unless the receiver holds it (`held` is the hash of what it holds).
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn pack(&self, chunk: u32, held: Option<[u8; 32]>, buffer: &mut Vec<u8>) -> Result<Packed, Error> {
        self.read(chunk, buffer)?;
        let hash = hash_of(buffer);
        let bytes = match held {
            Some(held) if held == hash => None,
            _ => Some(pack(buffer).map_err(Error::io("pack a chunk of", &self.path))?),
        };
        Ok(Packed { hash, bytes })
    }
}

/// SHA-256 of a chunk, as both sides compute it.
#[must_use]
pub fn hash_of(chunk: &[u8]) -> [u8; 32] {
    sha256(chunk)
}

fn pack(chunk: &[u8]) -> std::io::Result<Vec<u8>> {
    Compressor::new(LEVEL)?.compress(chunk)
}

fn expect_raw(file: &File, path: &Path) -> Result<(), Error> {
    let mut head = [0; format::PROBE_BYTES];
    let got = format::read_range(file, &mut head, 0);
    match format::probe(path, &head[..got])? {
        Format::Raw => Ok(()),
        other => {
            let why = format!(
                "it is {0}, and a capture needs the raw disk: `qemu-img convert -f {0} -O raw` makes one",
                other.name()
            );
            Err(Error::Refused { what: path.to_owned(), why })
        }
    }
}

/// The runs of chunks in which something is used; the shortest gaps are closed while there are too many.
fn runs(survey: &Survey) -> Vec<Run> {
    let mut chunks: Vec<(u64, u64)> = Vec::new();
    for range in survey.used.iter() {
        let (first, end) = (range.start / CHUNK_BYTES, range.end.div_ceil(CHUNK_BYTES));
        match chunks.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => chunks.push((first, end)),
        }
    }
    let mut gap = 1;
    while chunks.len() > MAX_RUNS {
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(chunks.len());
        for (first, end) in chunks {
            match joined.last_mut() {
                Some(last) if first - last.1 <= gap => last.1 = end,
                _ => joined.push((first, end)),
            }
        }
        chunks = joined;
        gap *= 2;
    }
    let run = |(first, end): (u64, u64)| Run { first: first as u32, count: (end - first) as u32 };
    chunks.into_iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Extents;

    #[test]
    fn too_many_runs_are_joined_over_the_shortest_gaps() {
        let used = (0..40_000u64).map(|n| {
            let at = (n * 2 + n / 100 * 10) * CHUNK_BYTES;
            at..at + 4096
        });
        let survey = Survey { size_bytes: 1 << 42, parts: Vec::new(), used: Extents::of(used) };
        let runs = runs(&survey);
        assert_eq!(runs.len(), 400);
        assert_eq!((runs[0].first, runs[0].count), (0, 199));
        let disk = Original {
            disk: String::new(),
            size_bytes: 1 << 42,
            used_bytes: 0,
            parts: Vec::new(),
            runs,
            generalise: true,
        };
        assert_eq!(disk.check(), Ok(()));
    }
}
