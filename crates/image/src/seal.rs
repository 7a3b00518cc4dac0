//! Sealing: one pass over raw content that writes it sparsely and hashes it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use fleet::ids::Digest;

use crate::hash::{Hashed, PieceHash, PieceHasher, Pipeline, Wanted, ZeroHashes, is_zero};
use crate::manifest::{check_piece_size, piece_size_for};
use crate::{Error, Progress, spans, sparse};

/// Everything that hashing an image's raw content yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Raw size in bytes.
    pub size_bytes: u64,
    /// Bytes of each piece but the last.
    pub piece_size_bytes: u32,
    /// SHA-256 of the whole, zeros included.
    pub digest: Digest,
    /// The root of each piece in the tree of SHA-256 (BEP 52).
    pub roots: Vec<[u8; 32]>,
    /// SHA-1 of each piece, for ordinary clients (BEP 3).
    pub sha1: Vec<[u8; 20]>,
}

impl Sealed {
    fn set(&mut self, index: usize, hash: PieceHash) {
        if let (Some(root), Some(sha1)) = (hash.root, hash.sha1) {
            self.roots[index] = root;
            self.sha1[index] = sha1;
        }
    }
}

/// Hashes a raw file where it lies, for images outside a registry.
///
/// # Errors
/// When the file cannot be read, is empty, or the piece size is not allowed.
pub fn seal_file(path: &Path, piece_size_bytes: Option<u64>, progress: &mut Progress<'_>) -> Result<Sealed, Error> {
    let (file, size_bytes) = spans::open_source(path)?;
    let piece_size_bytes = check_piece_size(piece_size_bytes.unwrap_or_else(|| piece_size_for(size_bytes).into()))?;
    Seal { source: Source::File(&file), source_path: path, size_bytes, piece_size_bytes, copy: None }.run(progress)
}

/// Where raw content comes from.
pub(crate) enum Source<'a> {
    /// A file of known size with holes.
    File(&'a File),
    /// A stream that must carry exactly the announced bytes.
    Stream(&'a mut dyn Read),
}

/// One job of sealing.
pub(crate) struct Seal<'a, 's> {
    pub(crate) source: Source<'s>,
    /// Named in errors.
    pub(crate) source_path: &'a Path,
    pub(crate) size_bytes: u64,
    pub(crate) piece_size_bytes: u32,
    /// Where the content is copied to, a new empty file; none to hash in place.
    pub(crate) copy: Option<(&'a File, &'a Path)>,
}

impl Seal<'_, '_> {
    /// Reads everything once; hashing happens beside it on all cores.
    pub(crate) fn run(mut self, progress: &mut Progress<'_>) -> Result<Sealed, Error> {
        if let Some((copy, path)) = self.copy {
            copy.set_len(self.size_bytes).map_err(Error::io("set the size of", path))?;
        }
        let piece = u64::from(self.piece_size_bytes);
        let count = self.size_bytes.div_ceil(piece) as usize;
        let zero = ZeroHashes::new(self.size_bytes, self.piece_size_bytes);
        let mut sealed = Sealed {
            size_bytes: self.size_bytes,
            piece_size_bytes: self.piece_size_bytes,
            digest: Digest([0; 32]),
            roots: vec![[0; 32]; count],
            sha1: vec![[0; 20]; count],
        };
        for index in 0..count {
            sealed.set(index, zero.of(index + 1 == count));
        }
        let hash = |_: u32, bytes: &[u8]| {
            let mut hasher = PieceHasher::new(Wanted { sha1: true, roots: true });
            hasher.update(bytes);
            hasher.finish(zero.tree())
        };
        let hashed = thread::scope(|scope| {
            let pipeline = Pipeline::start(scope, self.piece_size_bytes as usize, true, &hash);
            let mut buffer = pipeline.buffer()?;
            for index in 0..count {
                let offset = index as u64 * piece;
                let length = piece.min(self.size_bytes - offset) as usize;
                if self.read_piece(offset, length, &mut buffer)? {
                    self.copy_piece(offset, &buffer)?;
                    let full = std::mem::replace(&mut buffer, pipeline.buffer()?);
                    pipeline.submit(index as u32, full)?;
                } else {
                    pipeline.skip_zeros(length as u64)?;
                }
                if let ControlFlow::Break(()) = progress(offset + length as u64, self.size_bytes) {
                    return Err(Error::Cancelled);
                }
            }
            self.expect_end()?;
            pipeline.finish()
        })?;
        let Hashed { results, whole } = hashed;
        for (index, hash) in results {
            sealed.set(index as usize, hash);
        }
        sealed.digest = Digest(whole.ok_or(Error::WorkerDied)?);
        Ok(sealed)
    }

    /// Fills the buffer; `false` when the piece is all zeros.
    fn read_piece(&mut self, offset: u64, length: usize, buffer: &mut Vec<u8>) -> Result<bool, Error> {
        match &mut self.source {
            Source::File(file) => {
                if sparse::in_hole(file, offset, length as u64) {
                    return Ok(false);
                }
                buffer.resize(length, 0);
                file.read_exact_at(buffer, offset).map_err(Error::device("read", self.source_path, offset))?;
            }
            Source::Stream(stream) => {
                buffer.resize(length, 0);
                let got = read_full(stream, buffer).map_err(Error::io("read the upload for", self.source_path))?;
                if got < length {
                    let got_bytes = offset + got as u64;
                    return Err(Error::StreamLength { expected_bytes: self.size_bytes, got_bytes });
                }
            }
        }
        Ok(!is_zero(buffer))
    }

    fn copy_piece(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        match self.copy {
            Some((copy, path)) => {
                sparse::write_into_hole(copy, offset, bytes).map_err(Error::device("write", path, offset))
            }
            None => Ok(()),
        }
    }

    fn expect_end(&mut self) -> Result<(), Error> {
        let Source::Stream(stream) = &mut self.source else { return Ok(()) };
        let mut more = [0];
        match read_full(stream, &mut more).map_err(Error::io("read the upload for", self.source_path))? {
            0 => Ok(()),
            _ => Err(Error::StreamLength { expected_bytes: self.size_bytes, got_bytes: self.size_bytes + 1 }),
        }
    }
}

/// Reads until the buffer is full or the stream ends.
pub(crate) fn read_full(stream: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match stream.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::hash::{leaf_hashes, sha1, sha256};
    use crate::no_progress;
    use proptest::prelude::*;
    use wire::metainfo::merkle::FileTree;

    fn naive(content: &[u8], piece: usize) -> Sealed {
        let tree = FileTree::new(content.len() as u64, piece as u32);
        Sealed {
            size_bytes: content.len() as u64,
            piece_size_bytes: piece as u32,
            digest: Digest(sha256(content)),
            roots: content.chunks(piece).map(|piece| tree.piece_root(&leaf_hashes(piece))).collect(),
            sha1: content.chunks(piece).map(sha1).collect(),
        }
    }

    fn seal_stream(content: &[u8], announced: u64, copy: &File) -> Result<Sealed, Error> {
        Seal {
            source: Source::Stream(&mut &*content),
            source_path: Path::new("upload"),
            size_bytes: announced,
            piece_size_bytes: 16 << 10,
            copy: Some((copy, Path::new("copy"))),
        }
        .run(&mut no_progress)
    }

    #[test]
    fn a_stream_of_another_length_is_refused() {
        let copy = tempfile::tempfile().unwrap();
        let content = vec![3; 100_000];
        assert!(matches!(
            seal_stream(&content, 100_001, &copy),
            Err(Error::StreamLength { expected_bytes: 100_001, got_bytes: 100_000 })
        ));
        let copy = tempfile::tempfile().unwrap();
        assert!(matches!(seal_stream(&content, 99_999, &copy), Err(Error::StreamLength { .. })));
    }

    #[test]
    fn progress_can_cancel() {
        let content = vec![3; 100_000];
        let outcome = Seal {
            source: Source::Stream(&mut content.as_slice()),
            source_path: Path::new("upload"),
            size_bytes: 100_000,
            piece_size_bytes: 16 << 10,
            copy: None,
        }
        .run(&mut |done, _| if done > 40_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        assert!(matches!(outcome, Err(Error::Cancelled)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Holes, zeros and data in any mixture: the same answer as hashing
        /// everything naively, from a stream and from a sparse file.
        #[test]
        fn sealing_equals_hashing_naively(
            parts in prop::collection::vec((any::<u8>(), 1usize..60_000, any::<bool>()), 1..8)
        ) {
            let mut content = Vec::new();
            for (byte, length, zero) in parts {
                content.resize(content.len() + length, if zero { 0 } else { byte });
            }
            let expected = naive(&content, 16 << 10);
            let copy = tempfile::tempfile().unwrap();
            prop_assert_eq!(&seal_stream(&content, content.len() as u64, &copy).unwrap(), &expected);
            let mut copied = vec![1; content.len()];
            copy.read_exact_at(&mut copied, 0).unwrap();
            prop_assert_eq!(&copied, &content);
            let again = Seal {
                source: Source::File(&copy),
                source_path: Path::new("copy"),
                size_bytes: content.len() as u64,
                piece_size_bytes: 16 << 10,
                copy: None,
            }.run(&mut no_progress).unwrap();
            prop_assert_eq!(&again, &expected);
        }
    }
}
