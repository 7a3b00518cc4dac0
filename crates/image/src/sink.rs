//! Where verified pieces go: a block device or a file.
//!
//! What is held is known only in memory and only after the write: a process
//! that was killed and a machine that lost power begin with a scan, which
//! believes nothing but the bytes.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::num::NonZero;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use crate::direct::Direct;
use crate::hash::{PieceHasher, Wanted, is_zero, sha256};
use crate::manifest::{Manifest, PieceHashes, VerifiedPiece};
use crate::{Error, PieceSet, Progress, spans, sparse};

/// Pieces that [`DiskSink::finish`] reads again, besides the first and the last:
/// one of so many, within these limits. Reading and hashing them costs about a
/// hundredth of what the whole image costs.
const SAMPLED_ONE_OF: u64 = 128;
const SAMPLED_PIECES: std::ops::RangeInclusive<u64> = 4..=16;

/// Sectors at the end of a disk that a backup GPT takes: 32 of entries and the
/// header (UEFI 2.10, 5.3.1) for 512-byte sectors; fewer for larger ones.
const BACKUP_GPT_SECTORS: u64 = 33;

/// Takes verified pieces, in any order, from several threads.
pub trait PieceSink: Send + Sync {
    /// The pieces that have not been put yet.
    fn missing(&self) -> PieceSet;

    /// Writes one piece. Putting a piece twice is harmless. Blocks.
    ///
    /// # Errors
    /// When the piece is of another image, or the device fails; the error names
    /// the device and the offset.
    fn put(&self, piece: &VerifiedPiece) -> Result<(), Error>;
}

/// Gives bytes of pieces that are held, for serving them to others.
pub trait PieceSource: Send + Sync {
    /// Fills `into` from byte `begin` of a piece. Blocks.
    ///
    /// # Errors
    /// When the piece is not held, the range leaves it, or the device fails.
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), Error>;

    /// The open file or device that holds a piece and the offset in it at which
    /// the piece begins, for sending bytes straight from there; none when the
    /// piece is not held or can only be [`read`](Self::read).
    fn place(&self, _index: u32) -> Option<(&File, u64)> {
        None
    }
}

/// The disk, or a file in its place, that becomes an image.
///
/// In this order: [`open`](Self::open) (refuses what does not fit),
/// [`scan`](Self::scan) (keeps what is there already; may be left out),
/// [`prepare`](Self::prepare) (zeroes, copies twins), [`put`](PieceSink::put) each missing
/// piece, [`finish`](Self::finish).
#[derive(Debug)]
pub struct DiskSink {
    file: File,
    path: PathBuf,
    block_device: bool,
    /// Writes around the page cache, where the target allows it.
    direct: Option<Direct>,
    /// What was not written yet is a hole and reads as zeros.
    fresh: AtomicBool,
    size_bytes: u64,
    manifest: Arc<Manifest>,
    have: Mutex<PieceSet>,
}

/// What [`DiskSink::finish`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Pieces that were read back from the medium and compared.
    pub pieces_read_back: u32,
}

impl DiskSink {
    /// Opens an existing block device or regular file for this image. A block
    /// device is opened exclusively, which the kernel refuses while it is
    /// mounted or part of something larger. Nothing is written.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::Busy`], [`Error::NotADisk`],
    /// [`Error::WriteProtected`], or the system's.
    pub fn open(path: &Path, manifest: Arc<Manifest>) -> Result<Self, Error> {
        let opened = Error::io("open", path);
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return Err(opened(error)),
        };
        let kind = metadata.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            return Err(Error::NotADisk(path.to_owned()));
        }
        if is_write_protected(&metadata) {
            return Err(Error::WriteProtected(path.to_owned()));
        }
        let flags = if block_device { OFlags::EXCL } else { OFlags::empty() };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(path);
        let file = file.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Error::Busy(path.to_owned()),
            _ => opened(error),
        })?;
        // The blocks of a file stay in the page cache, which serves them to others; see decision 14.
        let direct = if block_device { Direct::open(path) } else { None };
        Self::of_file(file, path, direct, manifest)
    }

    /// Creates a sparse file of the image's size; for images on files.
    ///
    /// # Errors
    /// When the file exists or cannot be made.
    pub fn create(path: &Path, manifest: Arc<Manifest>) -> Result<Self, Error> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(Error::io("create", path))?;
        file.set_len(manifest.size_bytes()).map_err(Error::io("set the size of", path))?;
        let sink = Self::of_file(file, path, None, manifest)?;
        sink.fresh.store(true, Ordering::Relaxed);
        Ok(sink)
    }

    fn of_file(mut file: File, path: &Path, direct: Option<Direct>, manifest: Arc<Manifest>) -> Result<Self, Error> {
        let block_device = file.metadata().map_err(Error::io("look at", path))?.file_type().is_block_device();
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(Error::io("measure", path))?;
        if size_bytes < manifest.size_bytes() {
            return Err(Error::TooSmall {
                device: path.to_owned(),
                device_bytes: size_bytes,
                image_bytes: manifest.size_bytes(),
            });
        }
        let have = Mutex::new(PieceSet::with_capacity(manifest.piece_count() as usize));
        let (path, fresh) = (path.to_owned(), AtomicBool::new(false));
        Ok(Self { file, path, block_device, direct, fresh, size_bytes, manifest, have })
    }

    /// The image this disk gets.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Device or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pieces that are on the disk.
    #[must_use]
    pub fn held(&self) -> PieceSet {
        self.have().clone()
    }

    /// Reads the disk from front to back, on all cores, and keeps the pieces
    /// that are right already; returns all that are held then. Holes are not
    /// read and zeros not hashed. Writes nothing, and leaves the page cache to
    /// others.
    ///
    /// # Errors
    /// When cancelled by `progress`. A range that cannot be read is not held,
    /// and shows when it is written.
    pub fn scan(&self, progress: &mut Progress<'_>) -> Result<PieceSet, Error> {
        let source = spans::Source {
            file: &self.file,
            path: &self.path,
            size_bytes: self.manifest.size_bytes(),
            piece_size_bytes: self.manifest.piece_size_bytes(),
            keep_cached: false,
        };
        let mut good = PieceSet::with_capacity(self.manifest.piece_count() as usize);
        let look = |index: u32, span: &mut Vec<u8>| Ok(self.is_right(&source, index, span));
        spans::each_piece(&source, look, progress, |index, right| good.set(index as usize, right))?;
        let mut have = self.have();
        have.union_with(&good);
        Ok(have.clone())
    }

    /// Makes everything that need not come from elsewhere: zeroes the zero
    /// pieces that are not held yet, neighbours in one go, copies pieces of
    /// which the disk holds a twin, and wipes a stale backup partition table.
    /// Nothing is to be zeroed in a file that was just created.
    ///
    /// On a disk larger than the image nothing beyond the image is touched but
    /// the last 33 sectors: a backup GPT that an earlier system left there
    /// contradicts the image's own table, and firmware and partition tools may
    /// then "repair" the disk from the old one.
    ///
    /// # Errors
    /// When the device fails; names the offset. Or when cancelled.
    pub fn prepare(&self, progress: &mut Progress<'_>) -> Result<(), Error> {
        let mut wanted = self.manifest.zero_pieces().clone();
        wanted.difference_with(&self.have());
        let total = self.manifest.bytes_of(&wanted);
        let mut done = 0;
        for run in runs(&wanted) {
            let start = self.manifest.piece_offset(run.start);
            let end = self.manifest.piece_offset(run.end).min(self.manifest.size_bytes());
            if !self.fresh.load(Ordering::Relaxed) {
                sparse::zero_range(&self.file, start..end)
                    .map_err(Error::device("zero", &self.path, start))
                    .map_err(|error| self.or_full(error))?;
            }
            self.have().insert_range(run.start as usize..run.end as usize);
            done += end - start;
            if let ControlFlow::Break(()) = progress(done, total) {
                return Err(Error::Cancelled);
            }
        }
        self.copy_twins(progress)?;
        self.wipe_backup_gpt()
    }

    /// Makes everything durable, then reads the first, the last and a sample of
    /// pieces back from the medium and compares them. `seed` chooses the sample.
    ///
    /// # Errors
    /// [`Error::Incomplete`] while pieces are missing, [`Error::CorruptPieces`]
    /// when the medium did not keep what was written, or the device's.
    pub fn finish(&self, seed: u64) -> Result<Finished, Error> {
        let missing = self.missing().count_ones(..);
        if missing > 0 {
            return Err(Error::Incomplete { device: self.path.clone(), missing });
        }
        self.file.sync_all().map_err(Error::io("make durable", &self.path))?;
        let sample = sample(self.manifest.piece_count(), seed);
        let mut corrupt = Vec::new();
        for &index in &sample {
            if !self.read_back(index)? {
                corrupt.push(index);
            }
        }
        if let Some(&first) = corrupt.first() {
            let mut have = self.have();
            for &index in &corrupt {
                have.remove(index as usize);
            }
            // What such a disk holds is no longer what it was left with.
            self.fresh.store(false, Ordering::Relaxed);
            return Err(Error::CorruptPieces { what: self.path.clone(), count: corrupt.len(), first });
        }
        Ok(Finished { pieces_read_back: sample.len() as u32 })
    }

    /// Whether a piece is on the disk as it should be.
    fn is_right(&self, source: &spans::Source<'_>, index: u32, span: &mut Vec<u8>) -> bool {
        let zeros = self.manifest.zero_pieces().contains(index as usize);
        if !self.block_device && sparse::in_hole(&self.file, source.offset(index), source.length(index)) {
            return zeros;
        }
        let (sha1, roots) = match self.manifest.pieces() {
            PieceHashes::Roots(_) => (false, true),
            PieceHashes::Sha1(_) => (true, false),
        };
        let mut hasher = PieceHasher::new(Wanted { sha1: sha1 && !zeros, roots: roots && !zeros });
        let mut all_zero = true;
        let read = source.read(index, span, &mut |bytes| {
            all_zero = all_zero && is_zero(bytes);
            hasher.update(bytes);
        });
        match read {
            Ok(()) if zeros => all_zero,
            Ok(()) => !all_zero && self.manifest.is_hash_of(index, &hasher.finish(self.manifest.tree())),
            Err(error) => {
                tracing::warn!(%error, "unreadable; its piece will be fetched");
                false
            }
        }
    }

    /// Writes pieces of which the disk holds an equal one elsewhere.
    fn copy_twins(&self, progress: &mut Progress<'_>) -> Result<(), Error> {
        let manifest = &self.manifest;
        for first in manifest.twins().ones().filter_map(|copy| manifest.twin_of(copy as u32)).collect::<BTreeSet<_>>() {
            let alike = || std::iter::once(first).chain(manifest.twins_of(first).iter().copied());
            let have = self.held();
            let (held, missing): (Vec<u32>, Vec<u32>) = alike().partition(|&index| have.contains(index as usize));
            let Some(&held) = held.first().filter(|_| !missing.is_empty()) else { continue };
            let mut bytes = vec![0; manifest.piece_length(held) as usize];
            self.read(held, 0, &mut bytes)?;
            // Nobody but this program writes to the disk now, so this agrees; if it does not, the pieces are fetched.
            let Ok(mut piece) = manifest.verify(held, bytes) else { continue };
            for index in missing {
                let Some(twin) = manifest.as_twin(piece, index) else { break };
                self.put(&twin)?;
                piece = twin;
            }
            let copied = manifest.bytes_of(&self.held());
            if let ControlFlow::Break(()) = progress(copied, manifest.size_bytes()) {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    /// A full disk is said with the folder and the bytes.
    fn or_full(&self, error: Error) -> Error {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if self.block_device { error } else { error.or_no_space(folder, self.manifest.payload_bytes()) }
    }

    /// Long runs of zeros become holes of a file, the rest is written.
    fn write(&self, piece: &VerifiedPiece) -> io::Result<()> {
        let fresh = self.fresh.load(Ordering::Relaxed);
        let runs = if self.block_device { sparse::whole(piece.bytes()) } else { sparse::long_runs(piece.bytes()) };
        for (range, zero) in runs {
            let offset = piece.offset() + range.start as u64;
            if !zero {
                self.write_run(&piece.bytes()[range], offset)?;
            } else if !fresh {
                sparse::zero_range(&self.file, offset..offset + range.len() as u64)?;
            }
        }
        Ok(())
    }

    fn write_run(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct
            && direct.write(bytes, offset)?
        {
            return Ok(());
        }
        self.file.write_all_at(bytes, offset)?;
        // Starts writing back at once (the pages are dirty, so they stay and can be served): memory does not fill with
        // dirty pages, a machine that loses power resumes with nearly all that it had, and the final sync is short.
        let _ = rustix::fs::fadvise(&self.file, offset, NonZero::new(bytes.len() as u64), Advice::DontNeed);
        Ok(())
    }

    /// Whether the medium holds a piece as it should.
    fn read_back(&self, index: u32) -> Result<bool, Error> {
        let (offset, length) = (self.manifest.piece_offset(index), self.manifest.piece_length(index));
        // Otherwise memory would be compared with itself. Only advice: where it
        // is not taken, the read still proves that the write was accepted.
        let _ = rustix::fs::fadvise(&self.file, offset, u64::from(length).try_into().ok(), Advice::DontNeed);
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::device("read back", &self.path, offset))?;
        Ok(self.manifest.agrees(index, &bytes))
    }

    fn wipe_backup_gpt(&self) -> Result<(), Error> {
        let sector = match self.block_device {
            true => rustix::fs::ioctl_blksszget(&self.file).map_or(512, u64::from),
            false => 512,
        };
        let table = self.size_bytes.saturating_sub(BACKUP_GPT_SECTORS * sector);
        let start = table.max(self.manifest.size_bytes());
        if start >= self.size_bytes {
            return Ok(());
        }
        let zeros = vec![0; (self.size_bytes - start) as usize];
        self.file.write_all_at(&zeros, start).map_err(Error::device("zero", &self.path, start))
    }

    fn have(&self) -> MutexGuard<'_, PieceSet> {
        self.have.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PieceSink for DiskSink {
    fn missing(&self) -> PieceSet {
        let mut missing = self.held();
        missing.toggle_range(..);
        missing
    }

    fn put(&self, piece: &VerifiedPiece) -> Result<(), Error> {
        if piece.content_id() != self.manifest.content_id() {
            return Err(Error::ForeignPiece { index: piece.index() });
        }
        let written = self.write(piece).map_err(Error::device("write", &self.path, piece.offset()));
        written.map_err(|error| self.or_full(error))?;
        self.have().insert(piece.index() as usize);
        Ok(())
    }
}

impl PieceSource for DiskSink {
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), Error> {
        let held = self.have().contains(index as usize);
        read_piece(&self.file, &self.path, &self.manifest, held, (index, begin), into)
    }

    fn place(&self, index: u32) -> Option<(&File, u64)> {
        self.have().contains(index as usize).then(|| (&self.file, self.manifest.piece_offset(index)))
    }
}

/// A sealed image's file as a source of all its pieces.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    manifest: Arc<Manifest>,
}

impl FileSource {
    /// Opens the raw content of an image.
    ///
    /// # Errors
    /// When it cannot be opened or has another size.
    pub fn open(path: &Path, manifest: Arc<Manifest>) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let size = file.metadata().map_err(Error::io("measure", path))?.len();
        if size != manifest.size_bytes() {
            return Err(Error::BadManifest(format!(
                "{} has {size} bytes, the manifest says {}",
                path.display(),
                manifest.size_bytes()
            )));
        }
        Ok(Self { file, path: path.to_owned(), manifest })
    }
}

impl PieceSource for FileSource {
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), Error> {
        read_piece(&self.file, &self.path, &self.manifest, true, (index, begin), into)
    }

    fn place(&self, index: u32) -> Option<(&File, u64)> {
        (index < self.manifest.piece_count()).then(|| (&self.file, self.manifest.piece_offset(index)))
    }
}

/// Whether the kernel refuses to write to this block device, which it tells
/// only at the first write otherwise.
#[must_use]
pub fn is_write_protected(device: &Metadata) -> bool {
    let number = device.rdev();
    let about = format!("/sys/dev/block/{}:{}/ro", rustix::fs::major(number), rustix::fs::minor(number));
    device.file_type().is_block_device() && std::fs::read_to_string(about).is_ok_and(|text| text.trim() == "1")
}

fn read_piece(
    file: &File,
    path: &Path,
    manifest: &Manifest,
    held: bool,
    (index, begin): (u32, u32),
    into: &mut [u8],
) -> Result<(), Error> {
    let end = u64::from(begin) + into.len() as u64;
    if !held || end > u64::from(manifest.piece_length(index)) {
        return Err(Error::NotHeld { index, begin, end });
    }
    let offset = manifest.piece_offset(index) + u64::from(begin);
    let ends = |error: io::Error| match (error.kind(), file.metadata()) {
        (io::ErrorKind::UnexpectedEof, Ok(now)) if now.is_file() => {
            io::Error::new(error.kind(), format!("it has shrunk to {} bytes", now.len()))
        }
        _ => error,
    };
    file.read_exact_at(into, offset).map_err(ends).map_err(Error::device("read", path, offset))
}

/// Consecutive members of a set as ranges.
fn runs(set: &PieceSet) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for index in set.ones().map(|index| index as u32) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

/// First, last and some others, ascending. The choice must not be guessable by
/// a device, only repeatable, so a hash of the seed serves as chance.
fn sample(piece_count: u32, seed: u64) -> Vec<u32> {
    let draws = (u64::from(piece_count) / SAMPLED_ONE_OF).clamp(*SAMPLED_PIECES.start(), *SAMPLED_PIECES.end());
    let mut sample: Vec<u32> = (0..draws)
        .map(|draw| {
            let hash = sha256(&[seed.to_le_bytes(), draw.to_le_bytes()].concat());
            let (head, _) = hash.as_chunks::<8>();
            (u64::from_le_bytes(head[0]) % u64::from(piece_count.max(1))) as u32
        })
        .chain([0, piece_count.saturating_sub(1)])
        .collect();
    sample.sort_unstable();
    sample.dedup();
    sample
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::hash::leaf_hashes;
    use crate::manifest::Parts;
    use crate::no_progress;
    use proptest::prelude::*;
    use std::fs;
    use wire::metainfo::merkle::FileTree;

    const PIECE: usize = 16 << 10;

    fn manifest_of(content: &[u8]) -> Arc<Manifest> {
        let tree = FileTree::new(content.len() as u64, PIECE as u32);
        let roots = content.chunks(PIECE).map(|piece| tree.piece_root(&leaf_hashes(piece))).collect();
        Arc::new(
            Manifest::new(Parts {
                name: "test".into(),
                size_bytes: content.len() as u64,
                piece_size_bytes: PIECE as u64,
                digest: None,
                pieces: PieceHashes::Roots(roots),
                v1: None,
                v2: None,
            })
            .unwrap(),
        )
    }

    /// 40 pieces: 0..10 data, 10..30 zeros, 30..40 data, and a short last one.
    fn content() -> Vec<u8> {
        let mut content: Vec<u8> = (0..40 * PIECE + 1024).map(|n| (n % 253) as u8 + 1).collect();
        content[10 * PIECE..30 * PIECE].fill(0);
        content
    }

    fn put_all(sink: &DiskSink, content: &[u8]) {
        for index in sink.missing().ones() {
            let bytes = content.chunks(PIECE).nth(index).unwrap().to_vec();
            sink.put(&sink.manifest().verify(index as u32, bytes).unwrap()).unwrap();
        }
    }

    fn old_disk(size: usize) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![0xff; size]).unwrap();
        (folder, path)
    }

    #[test]
    fn a_used_disk_becomes_the_image_and_keeps_what_is_beyond_but_a_backup_gpt() {
        let content = content();
        let beyond = 1 << 20;
        let (_folder, path) = old_disk(content.len() + beyond);
        let sink = DiskSink::open(&path, manifest_of(&content)).unwrap();
        sink.prepare(&mut no_progress).unwrap();
        assert_eq!(sink.missing().count_ones(..), 21, "zero pieces need not be fetched");
        put_all(&sink, &content);
        assert_eq!(sink.finish(1).unwrap().pieces_read_back, sample(41, 1).len() as u32);

        let disk = fs::read(&path).unwrap();
        assert_eq!(&disk[..content.len()], content);
        let gpt = disk.len() - 33 * 512;
        assert!(disk[content.len()..gpt].iter().all(|&byte| byte == 0xff));
        assert!(is_zero(&disk[gpt..]));
    }

    #[test]
    fn zero_pieces_are_holes_in_a_file() {
        let mut content = vec![0; 4 << 20];
        content[0] = 1;
        let (_folder, path) = old_disk(content.len());
        let sink = DiskSink::open(&path, manifest_of(&content)).unwrap();
        sink.prepare(&mut no_progress).unwrap();
        put_all(&sink, &content);
        sink.finish(0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 128 << 10);
    }

    #[test]
    fn a_wiped_gpt_never_reaches_into_the_image() {
        let content = content();
        let (_folder, path) = old_disk(content.len() + 512);
        let sink = DiskSink::open(&path, manifest_of(&content)).unwrap();
        put_all(&sink, &content);
        sink.prepare(&mut no_progress).unwrap();
        assert_eq!(&fs::read(&path).unwrap()[..content.len()], content);
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_before_anything_is_written() {
        let content = content();
        let (_folder, path) = old_disk(content.len() - 1);
        let error = DiskSink::open(&path, manifest_of(&content)).unwrap_err().to_string();
        assert!(
            error.contains(&(content.len() - 1).to_string()) && error.contains(&content.len().to_string()),
            "{error}"
        );
        assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0xff));
        assert!(matches!(DiskSink::open(Path::new("/dev/null"), manifest_of(&content)), Err(Error::NotADisk(_))));
        let absent = path.with_extension("absent");
        assert!(DiskSink::open(&absent, manifest_of(&content)).unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn a_scan_keeps_exactly_what_is_right() {
        let content = content();
        let (_folder, path) = old_disk(content.len());
        let manifest = manifest_of(&content);
        {
            let sink = DiskSink::open(&path, Arc::clone(&manifest)).unwrap();
            assert_eq!(sink.scan(&mut no_progress).unwrap().count_ones(..), 0);
            sink.prepare(&mut no_progress).unwrap();
            for index in [0u32, 5, 35, 40] {
                let bytes = content.chunks(PIECE).nth(index as usize).unwrap().to_vec();
                sink.put(&manifest.verify(index, bytes).unwrap()).unwrap();
            }
            // A torn write: half a piece.
            sink.file.write_all_at(&content[PIECE..PIECE + 100], PIECE as u64).unwrap();
        }
        let sink = DiskSink::open(&path, manifest).unwrap();
        let held: Vec<_> = sink.scan(&mut no_progress).unwrap().ones().collect();
        let expected: Vec<_> = [0, 5].into_iter().chain(10..30).chain([35, 40]).collect();
        assert_eq!(held, expected);
        put_all(&sink, &content);
        sink.finish(3).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
    }

    #[test]
    fn what_the_disk_holds_elsewhere_is_copied_not_fetched() {
        let mut content = content();
        let (first, rest) = content.split_at_mut(5 * PIECE);
        rest[..PIECE].copy_from_slice(&first[..PIECE]);
        rest[30 * PIECE..31 * PIECE].copy_from_slice(&first[..PIECE]);
        let manifest = manifest_of(&content);
        assert_eq!(manifest.twins_of(0), [5, 35]);
        let (_folder, path) = old_disk(content.len());
        let sink = DiskSink::open(&path, Arc::clone(&manifest)).unwrap();
        sink.file.write_all_at(&content[35 * PIECE..36 * PIECE], 35 * PIECE as u64).unwrap();
        assert_eq!(sink.scan(&mut no_progress).unwrap().ones().collect::<Vec<_>>(), [35]);
        sink.prepare(&mut no_progress).unwrap();
        assert!(sink.held().contains(0) && sink.held().contains(5));
        put_all(&sink, &content);
        sink.finish(0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
    }

    #[test]
    fn a_torrent_of_version_1_is_scanned_and_written_as_well() {
        let content = content();
        let sha1 = content.chunks(PIECE).map(crate::hash::sha1).collect();
        let manifest = Arc::new(
            Manifest::new(Parts {
                name: "test".into(),
                size_bytes: content.len() as u64,
                piece_size_bytes: PIECE as u64,
                digest: None,
                pieces: PieceHashes::Sha1(sha1),
                v1: None,
                v2: None,
            })
            .unwrap(),
        );
        let (_folder, path) = old_disk(content.len());
        let sink = DiskSink::open(&path, Arc::clone(&manifest)).unwrap();
        sink.prepare(&mut no_progress).unwrap();
        put_all(&sink, &content);
        sink.finish(0).unwrap();
        let again = DiskSink::open(&path, manifest).unwrap();
        assert!(again.scan(&mut no_progress).unwrap().is_full());
    }

    #[test]
    fn zeros_where_data_belongs_are_not_held() {
        let content = content();
        let folder = tempfile::tempdir().unwrap();
        let sink = DiskSink::create(&folder.path().join("new"), manifest_of(&content)).unwrap();
        assert_eq!(sink.scan(&mut no_progress).unwrap().ones().collect::<Vec<_>>(), (10..30).collect::<Vec<_>>());
    }

    #[test]
    fn a_disk_that_forgets_is_found_out_and_not_finished_early() {
        let content = content();
        let (_folder, path) = old_disk(content.len());
        let sink = DiskSink::open(&path, manifest_of(&content)).unwrap();
        sink.prepare(&mut no_progress).unwrap();
        assert!(matches!(sink.finish(0), Err(Error::Incomplete { missing: 21, .. })));
        put_all(&sink, &content);
        sink.file.write_all_at(&[0], 40 * PIECE as u64 + 5).unwrap();
        assert!(matches!(sink.finish(0), Err(Error::CorruptPieces { first: 40, count: 1, .. })));
        assert_eq!(sink.missing().ones().collect::<Vec<_>>(), [40], "to be fetched again");
    }

    #[test]
    fn pieces_of_another_image_are_refused() {
        let content = content();
        let other = manifest_of(&vec![7; 2 * PIECE]);
        let piece = other.verify(0, vec![7; PIECE]).unwrap();
        let (_folder, path) = old_disk(content.len());
        let sink = DiskSink::open(&path, manifest_of(&content)).unwrap();
        assert!(matches!(sink.put(&piece), Err(Error::ForeignPiece { index: 0 })));
        assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn only_held_pieces_are_read_and_only_within() {
        let content = content();
        let (_folder, path) = old_disk(content.len());
        let manifest = manifest_of(&content);
        let sink = DiskSink::open(&path, Arc::clone(&manifest)).unwrap();
        let mut block = [0; 100];
        assert!(matches!(sink.read(3, 0, &mut block), Err(Error::NotHeld { .. })));
        put_all(&sink, &content);
        sink.read(3, 50, &mut block).unwrap();
        assert_eq!(block, content[3 * PIECE + 50..3 * PIECE + 150]);
        for (index, begin) in [(40, 1000), (41, 0), (u32::MAX, 0), (0, u32::MAX)] {
            assert!(matches!(sink.read(index, begin, &mut block), Err(Error::NotHeld { .. })), "{index} {begin}");
        }
        let source = FileSource::open(&path, manifest).unwrap();
        source.read(40, 924, &mut block).unwrap();
        assert_eq!(block, content[content.len() - 100..]);
    }

    #[test]
    fn samples_are_in_range_repeatable_and_have_both_ends() {
        for count in [1, 2, 17, 100_000] {
            let drawn = sample(count, 9);
            assert_eq!(drawn, sample(count, 9));
            assert!(drawn.contains(&0) && drawn.contains(&(count - 1)));
            assert!(drawn.iter().all(|&index| index < count));
        }
        assert_ne!(sample(100_000, 1), sample(100_000, 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_disk_becomes_any_image(
            image in prop::collection::vec(0u8..3, 1..20), old in prop::collection::vec(0u8..3, 20), short in 1usize..PIECE
        ) {
            let expand = |kinds: &[u8]| -> Vec<u8> { kinds.iter().flat_map(|&kind| vec![kind; PIECE]).collect() };
            let mut content = expand(&image);
            content.truncate(content.len() - PIECE + short);
            let (_folder, path) = old_disk(0);
            fs::write(&path, expand(&old)).unwrap();
            let sink = DiskSink::open(&path, manifest_of(&content)).unwrap();
            sink.scan(&mut no_progress).unwrap();
            sink.prepare(&mut no_progress).unwrap();
            put_all(&sink, &content);
            sink.finish(5).unwrap();
            prop_assert_eq!(&fs::read(&path).unwrap()[..content.len()], &content[..]);

            let new = path.with_extension("new");
            let sink = DiskSink::create(&new, manifest_of(&content)).unwrap();
            sink.prepare(&mut no_progress).unwrap();
            put_all(&sink, &content);
            sink.finish(5).unwrap();
            prop_assert_eq!(&fs::read(&new).unwrap(), &content);
        }
    }
}
