//! Reading a file or disk piece by piece on every core, without passing bytes
//! between cores: a worker reads a span of its piece and hashes it while it is
//! still in that core's cache. Memory is a span for each worker, however large
//! the pieces are.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::num::NonZero;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use rustix::fs::Advice;

use crate::hash::{PieceHash, PieceHasher, Wanted, ZeroHashes};
use crate::manifest::MAX_IMAGE_BYTES;
use crate::{Error, Progress, sparse};

/// Bytes read at once: a whole number of leaves, small enough for the cache of
/// one core, large enough that system calls do not count.
pub(crate) const SPAN_BYTES: usize = 256 << 10;

/// Content that is read and hashed where it lies.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a File,
    /// Named in errors.
    pub(crate) path: &'a Path,
    pub(crate) size_bytes: u64,
    pub(crate) piece_size_bytes: u32,
    /// Whether what was read is wanted again soon. If not, it leaves the page
    /// cache as it is hashed, so that the memory stays for others.
    pub(crate) keep_cached: bool,
}

/// The hashes of all pieces of a [`Source`].
pub(crate) struct Hashes {
    pub(crate) sha1: Option<Vec<[u8; 20]>>,
    pub(crate) roots: Option<Vec<[u8; 32]>>,
}

/// Opens a file or block device that is to be hashed, and measures it.
pub(crate) fn open_source(path: &Path) -> Result<(File, u64), Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let kind = file.metadata().map_err(Error::io("look at", path))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotADisk(path.to_owned()));
    }
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(Error::io("measure", path))?;
    if size_bytes == 0 {
        return Err(Error::BadSize { what: path.to_owned(), size_bytes });
    }
    if size_bytes > MAX_IMAGE_BYTES {
        return Err(Error::TooLarge { what: path.to_owned(), size_bytes, limit_bytes: MAX_IMAGE_BYTES });
    }
    Ok((file, size_bytes))
}

/// Hashes every piece.
pub(crate) fn hash(source: &Source<'_>, wanted: Wanted, progress: &mut Progress<'_>) -> Result<Hashes, Error> {
    let zero = ZeroHashes::new(source.size_bytes, source.piece_size_bytes);
    let count = source.piece_count();
    let mut sha1 = wanted.sha1.then(|| vec![[0; 20]; count as usize]);
    let mut roots = wanted.roots.then(|| vec![[0; 32]; count as usize]);
    let work = |index: u32, span: &mut Vec<u8>| {
        let last = index + 1 == count;
        if sparse::in_hole(source.file, source.offset(index), source.length(index)) {
            return Ok(zero.of(last));
        }
        let mut hasher = PieceHasher::new(wanted);
        source.read(index, span, &mut |bytes| hasher.update(bytes))?;
        Ok(hasher.finish(zero.tree()))
    };
    each_piece(source, work, progress, |index, hash: PieceHash| {
        if let (Some(all), Some(one)) = (&mut sha1, hash.sha1) {
            all[index as usize] = one;
        }
        if let (Some(all), Some(one)) = (&mut roots, hash.root) {
            all[index as usize] = one;
        }
    })?;
    source.expect_whole()?;
    Ok(Hashes { sha1, roots })
}

/// Calls `work` for every piece, on all cores and in order of beginning, and
/// `done` with what it made, here, in any order. The first error ends it.
pub(crate) fn each_piece<T: Send>(
    source: &Source<'_>,
    work: impl Fn(u32, &mut Vec<u8>) -> Result<T, Error> + Sync,
    progress: &mut Progress<'_>,
    mut done: impl FnMut(u32, T),
) -> Result<(), Error> {
    let count = source.piece_count();
    let cores = thread::available_parallelism().map_or(2, NonZero::get).min(count as usize).max(1);
    let (next, ended) = (AtomicU32::new(0), AtomicBool::new(false));
    let worker = |made: Sender<(u32, Result<T, Error>)>| {
        let mut span = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || made.send((index, work(index, &mut span))).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        let (made, results) = channel();
        for _ in 0..cores {
            let made = made.clone();
            scope.spawn(|| worker(made));
        }
        drop(made);
        let mut hashed_bytes = 0;
        let outcome = results.iter().try_for_each(|(index, result)| {
            done(index, result?);
            hashed_bytes += source.length(index);
            match progress(hashed_bytes, source.size_bytes) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Cancelled),
            }
        });
        ended.store(true, Ordering::Relaxed);
        match outcome {
            Ok(()) if hashed_bytes < source.size_bytes => Err(Error::WorkerDied),
            outcome => outcome,
        }
    })
}

impl Source<'_> {
    pub(crate) fn piece_count(&self) -> u32 {
        u32::try_from(self.size_bytes.div_ceil(u64::from(self.piece_size_bytes))).unwrap_or(u32::MAX)
    }

    pub(crate) fn offset(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.piece_size_bytes)
    }

    pub(crate) fn length(&self, index: u32) -> u64 {
        self.size_bytes.saturating_sub(self.offset(index)).min(u64::from(self.piece_size_bytes))
    }

    /// What lies beyond the end of a file looks like a hole, so a file that was
    /// cut while it was read would pass for zeros.
    fn expect_whole(&self) -> Result<(), Error> {
        let metadata = self.file.metadata().map_err(Error::io("measure", self.path))?;
        if metadata.is_file() && metadata.len() < self.size_bytes {
            return Err(Error::device("read", self.path, metadata.len())(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// Shows the bytes of a piece, span after span.
    pub(crate) fn read(&self, index: u32, span: &mut Vec<u8>, show: &mut impl FnMut(&[u8])) -> Result<(), Error> {
        span.resize(SPAN_BYTES, 0);
        let (mut offset, end) = (self.offset(index), self.offset(index) + self.length(index));
        while offset < end {
            let length = (end - offset).min(SPAN_BYTES as u64);
            let bytes = &mut span[..length as usize];
            self.file.read_exact_at(bytes, offset).map_err(Error::device("read", self.path, offset))?;
            // The disk fetches the next span while this one is hashed. Advice only, hence the ignored results.
            let ahead = NonZero::new((SPAN_BYTES as u64).min(self.size_bytes - offset - length));
            if ahead.is_some() {
                let _ = rustix::fs::fadvise(self.file, offset + length, ahead, Advice::WillNeed);
            }
            if !self.keep_cached {
                let _ = rustix::fs::fadvise(self.file, offset, NonZero::new(length), Advice::DontNeed);
            }
            show(bytes);
            offset += length;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::hash::{leaf_hashes, sha1};
    use crate::no_progress;
    use proptest::prelude::*;
    use wire::metainfo::merkle::FileTree;

    const ALL: Wanted = Wanted { sha1: true, roots: true };

    #[test]
    fn cancelling_and_failing_end_every_worker() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        let source = |size_bytes| Source {
            file: &file,
            path: Path::new("disk"),
            size_bytes,
            piece_size_bytes: 16 << 10,
            keep_cached: false,
        };
        let cancelled = hash(&source(1 << 20), ALL, &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(cancelled, Err(Error::Cancelled)));
        for end in [1 << 20, (1 << 20) + 5] {
            file.set_len(end).unwrap();
            let cut = hash(&source(2 << 20), ALL, &mut no_progress);
            assert!(matches!(cut, Err(Error::Device { action: "read", .. })), "no zeros beyond the end of the file");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Data, zeros and holes in any mixture: the same answer as hashing
        /// everything naively.
        #[test]
        fn hashing_in_parallel_equals_hashing_naively(
            parts in prop::collection::vec((any::<u8>(), 1usize..400_000, 0..3), 1..6), shift in 14u32..20
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut content = Vec::new();
            for (byte, length, kind) in parts {
                let at = content.len();
                content.resize(at + length, if kind == 0 { byte } else { 0 });
                if kind < 2 {
                    file.write_all_at(&content[at..], at as u64).unwrap();
                }
            }
            file.set_len(content.len() as u64).unwrap();
            let source = Source {
                file: &file,
                path: Path::new("disk"),
                size_bytes: content.len() as u64,
                piece_size_bytes: 1 << shift,
                keep_cached: shift % 2 == 0,
            };
            let hashes = hash(&source, ALL, &mut no_progress).unwrap();
            let tree = FileTree::new(content.len() as u64, 1 << shift);
            let expected = content.chunks(1 << shift).map(|piece| tree.piece_root(&leaf_hashes(piece)));
            prop_assert_eq!(hashes.roots.unwrap(), expected.collect::<Vec<_>>());
            let expected = content.chunks(1 << shift).map(sha1);
            prop_assert_eq!(hashes.sha1.unwrap(), expected.collect::<Vec<_>>());
        }
    }
}
