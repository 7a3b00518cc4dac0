//! Writing to a block device around the page cache.
//!
//! A node that has two GB of memory must not fill it with an image, and a piece
//! that was written this way is on the device when the call returns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Alignment of memory, offsets and lengths: a page, which every device takes.
const ALIGNMENT: usize = 4096;

/// Bytes of one write: large enough for every device's full speed.
const STEP_BYTES: usize = 1 << 20;

/// Buffers kept for the next writes.
const KEPT_BUFFERS: usize = 4;

/// A block device opened for direct writes.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    buffers: Mutex<Vec<Buffer>>,
}

impl Direct {
    /// `None` where the device does not take direct writes; it is then written
    /// as a file is.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path);
        let file = file.inspect_err(|error| tracing::debug!(device = %path.display(), %error, "no direct writes"));
        Some(Self { file: file.ok()?, buffers: Mutex::new(Vec::new()) })
    }

    /// Writes all bytes, or says `false` when they are not aligned (the last
    /// piece of an odd image) or the device refuses direct writes of this kind.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        if !offset.is_multiple_of(ALIGNMENT as u64) || !bytes.len().is_multiple_of(ALIGNMENT) {
            return Ok(false);
        }
        let mut buffer = self.buffers().pop().unwrap_or_else(Buffer::new);
        let mut at = offset;
        let mut written = Ok(true);
        for step in bytes.chunks(STEP_BYTES) {
            let aligned = &mut buffer.aligned()[..step.len()];
            aligned.copy_from_slice(step);
            match self.file.write_all_at(aligned, at) {
                Ok(()) => at += step.len() as u64,
                // Not an error of the medium: the caller writes the same bytes through the page cache.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                    written = Ok(false);
                    break;
                }
                Err(error) => {
                    written = Err(error);
                    break;
                }
            }
        }
        let mut buffers = self.buffers();
        if buffers.len() < KEPT_BUFFERS {
            buffers.push(buffer);
        }
        written
    }

    fn buffers(&self) -> std::sync::MutexGuard<'_, Vec<Buffer>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of which an aligned part is used.
#[derive(Debug)]
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        Self(vec![0; STEP_BYTES + ALIGNMENT])
    }

    fn aligned(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        &mut self.0[start..start + STEP_BYTES]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_only_aligned_writes_are_taken() {
        let mut buffer = Buffer::new();
        assert!((buffer.aligned().as_ptr() as usize).is_multiple_of(ALIGNMENT));
        assert_eq!(buffer.aligned().len(), STEP_BYTES);

        let file = tempfile::NamedTempFile::new().unwrap();
        let direct = Direct { file: file.reopen().unwrap(), buffers: Mutex::new(Vec::new()) };
        let bytes: Vec<u8> = (0..STEP_BYTES + 2 * ALIGNMENT).map(|n| (n % 251) as u8).collect();
        assert!(direct.write(&bytes, 8192).unwrap());
        assert_eq!(std::fs::read(file.path()).unwrap()[8192..], bytes);
        assert!(!direct.write(&bytes[..100], 0).unwrap());
        assert!(!direct.write(&bytes, 512).unwrap());
        assert_eq!(direct.buffers().len(), 1, "used again");
    }
}
