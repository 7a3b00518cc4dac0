//! What can go wrong with an image, each with the sentence a person reads.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

/// Every failure of this crate. The sentence says what was wrong and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An operating system call on a file or folder failed.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Reading or writing a disk failed at one place.
    #[error("cannot {action} {} at byte {offset}: {source}{}", device.display(), advice(source))]
    Device {
        /// `read` or `write` or `zero`.
        action: &'static str,
        /// The device or file.
        device: PathBuf,
        /// Byte offset from the beginning of the device.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk that a file is written to is full.
    #[error(
        "no space left in {}: the image needs up to {needed_bytes} bytes and {free_bytes} are free; \
         make room or choose another folder, then try again",
        folder.display()
    )]
    NoSpace {
        /// The folder that was written to.
        folder: PathBuf,
        /// Upper bound of what the image takes (its raw size), in bytes.
        needed_bytes: u64,
        /// What was free after the failure, in bytes.
        free_bytes: u64,
    },
    /// The target disk is smaller than the image; nothing was written.
    #[error(
        "{} has {device_bytes} bytes but the image has {image_bytes}: choose a larger disk; nothing was written",
        device.display()
    )]
    TooSmall {
        /// The target.
        device: PathBuf,
        /// Its size in bytes.
        device_bytes: u64,
        /// The image's size in bytes.
        image_bytes: u64,
    },
    /// The target is mounted or held by something else.
    #[error("{} is in use (mounted, or held by RAID, LVM or another program): release it first", .0.display())]
    Busy(PathBuf),
    /// The target is neither a block device nor a regular file.
    #[error("{} is neither a block device nor a regular file", .0.display())]
    NotADisk(PathBuf),
    /// The target takes no writes; nothing was written.
    #[error("{name} is write-protected: choose another disk, or run `blockdev --setrw {name}`", name = .0.display())]
    WriteProtected(PathBuf),
    /// A manifest is not acceptable.
    #[error("the manifest of this image cannot be used: {0}")]
    BadManifest(String),
    /// A manifest is from a newer version of this program.
    #[error("the manifest has version {found}, this program reads version {known}: update the program")]
    ManifestVersion {
        /// Version found in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// A manifest is from an older version of this program.
    #[error(
        "the manifest has version {found}, this program reads version {known}: start the server of this version once, \
         which seals the image anew"
    )]
    OldManifest {
        /// Version found in the file.
        found: u32,
        /// Version that is read here.
        known: u32,
    },
    /// A .torrent cannot describe an image.
    #[error("this .torrent cannot be used as an image: {0}")]
    BadTorrent(String),
    /// The size of the source cannot be an image's.
    #[error("{} {}", what.display(), bad_size(*size_bytes))]
    BadSize {
        /// The source.
        what: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// The image is larger than any this program handles.
    #[error("{} would be {size_bytes} bytes as a raw disk; the limit is {limit_bytes}", what.display())]
    TooLarge {
        /// The source.
        what: PathBuf,
        /// Its raw size in bytes.
        size_bytes: u64,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// A piece size that the formats do not allow.
    #[error("piece size {0} is not a power of two from 16384 to 67108864")]
    BadPieceSize(u64),
    /// The source is in a format that is refused, with the reason and what to do.
    #[error("{} is refused: {why}", what.display())]
    Refused {
        /// The source.
        what: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A stream ended too early or went on too long.
    #[error("the upload announced {expected_bytes} bytes but carried {got_bytes}: send it again")]
    StreamLength {
        /// Announced length in bytes.
        expected_bytes: u64,
        /// Bytes read; for a longer stream, where reading stopped.
        got_bytes: u64,
    },
    /// `qemu-img` is not installed.
    #[error("qemu-img is needed to import {format} images: install the package qemu-utils")]
    NoQemuImg {
        /// The format that needs it.
        format: &'static str,
    },
    /// `qemu-img` failed.
    #[error("qemu-img could not {action} {}: {message}", what.display())]
    QemuImg {
        /// `read` or `convert`.
        action: &'static str,
        /// The source.
        what: PathBuf,
        /// Its own words.
        message: String,
    },
    /// A program that knows a file system is not installed.
    #[error("{program} is needed here: install the package {package}")]
    NoTool {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program that knows a file system failed.
    #[error("{program} failed: {message}")]
    Tool {
        /// The program.
        program: &'static str,
        /// Its own words.
        message: String,
    },
    /// A chunk of a capture is not what its sender says.
    #[error("chunk {chunk} of the capture {why}: send it again")]
    BadChunk {
        /// The chunk.
        chunk: u32,
        /// What is wrong.
        why: String,
    },
    /// What is said about a captured disk cannot be true.
    #[error("this disk cannot be captured: {0}")]
    BadOriginal(String),
    /// A capture lacks chunks.
    #[error("{missing} chunks of the capture have not arrived: send them first")]
    CaptureIncomplete {
        /// How many.
        missing: u64,
    },
    /// Nothing could be generalised.
    #[error("the image cannot be generalised: {0}; `--as-is` publishes it as it was captured")]
    NotGeneralised(String),
    /// The name is in use.
    #[error("an image named `{0}` exists already: choose another name or remove it first")]
    NameTaken(String),
    /// No image of this name.
    #[error("there is no image named `{0}`")]
    NotFound(String),
    /// Pieces that are not what the manifest says.
    #[error("{} is corrupt: {} differ from the manifest, the first is piece {first}", what.display(), plural(*count))]
    CorruptPieces {
        /// File or device.
        what: PathBuf,
        /// How many pieces differ.
        count: usize,
        /// The lowest of them.
        first: u32,
    },
    /// All pieces agree but the whole does not: the manifest contradicts itself.
    #[error("{} has digest {found}, the manifest says {expected}", what.display())]
    WrongDigest {
        /// File or device.
        what: PathBuf,
        /// Digest of the content.
        found: fleet::ids::Digest,
        /// Digest in the manifest.
        expected: fleet::ids::Digest,
    },
    /// A piece of one image was given to the sink of another.
    #[error("piece {index} was verified against another image than the one this disk gets")]
    ForeignPiece {
        /// The piece.
        index: u32,
    },
    /// A piece was asked for that is not on this disk (yet), or a range outside it.
    #[error("piece {index} bytes {begin}..{end} are not held here")]
    NotHeld {
        /// The piece.
        index: u32,
        /// First byte within the piece.
        begin: u32,
        /// Byte after the last.
        end: u64,
    },
    /// The disk was declared finished before every piece was written.
    #[error("{} lacks {} of the image", device.display(), plural(*missing))]
    Incomplete {
        /// The target.
        device: PathBuf,
        /// How many pieces are missing.
        missing: usize,
    },
    /// The progress callback asked to stop.
    #[error("cancelled on request")]
    Cancelled,
    /// A worker thread died; a defect of this program.
    #[error("a hashing thread ended unexpectedly; please report this")]
    WorkerDied,
}

/// What to do about an error of the system, where that is not plain.
fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::IO) => "; the medium fails: replace it, or choose another one",
        Some(Errno::ROFS) => "; it is write-protected: lift the protection, or choose another place",
        Some(Errno::ACCESS) => "; become root, or choose another place",
        Some(Errno::PERM) => "; become root, lift what protects it (`lsattr` shows that), or choose another place",
        _ => "",
    }
}

fn bad_size(size_bytes: u64) -> String {
    match size_bytes {
        0 => "is empty: is it the right file?".to_owned(),
        _ => format!(
            "has {size_bytes} bytes, and a disk image is a whole number of 512-byte sectors: is it whole? Get it \
             again, or fill it up with `truncate -s %512`"
        ),
    }
}

fn plural(count: usize) -> String {
    if count == 1 { "1 piece".to_owned() } else { format!("{count} pieces") }
}

impl Error {
    /// Wraps an operating system error; a full disk becomes [`Error::NoSpace`]
    /// at the place that knows the size (see [`Error::or_no_space`]).
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn device(action: &'static str, device: &Path, offset: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Device { action, device: device.to_owned(), offset, source }
    }

    /// Turns "no space" from the system into the sentence that names folder and
    /// bytes; any other error stays as it is.
    pub(crate) fn or_no_space(self, folder: &Path, needed_bytes: u64) -> Self {
        let full = match &self {
            Self::Io { source, .. } | Self::Device { source, .. } => is_full(source),
            Self::QemuImg { message, .. } => message.contains("No space left on device"),
            _ => false,
        };
        if !full {
            return self;
        }
        let free_bytes = rustix::fs::statvfs(folder).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        Self::NoSpace { folder: folder.to_owned(), needed_bytes, free_bytes }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
