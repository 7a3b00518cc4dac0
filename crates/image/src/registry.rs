//! The images this server has, one folder each.
//!
//! ```text
//! <folder>/debian/disk.raw        the raw content, with holes
//! <folder>/debian/manifest.json   what it is
//! <folder>/debian/image.torrent   the swarm's name for it, without trackers
//! <folder>/.incoming-<pid>-<n>/   an import that is going on, or was killed
//! ```
//! An import appears by one rename after everything is on stable storage, so a
//! crash at any instant leaves either nothing or a whole image.

mod capture;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fleet::ids::{Digest, ImageName};
use fleet::layout::Layout;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::format::{self, Format};
use crate::manifest::{MAX_IMAGE_BYTES, Manifest, PieceHashes, check_piece_size, piece_size_for};
use crate::seal::{Seal, Sealed, Source, read_full, seal_file};
use crate::{Error, Progress, metainfo, sparse, tree};

pub use capture::{Capture, Finishing};

const DISK: &str = "disk.raw";
const MANIFEST: &str = "manifest.json";
const TORRENT: &str = "image.torrent";
const INCOMING: &str = ".incoming-";
const REMOVED: &str = ".removed-";
/// A manifest larger than this is not ours: a million pieces take 43 MiB.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// The folder of images.
#[derive(Debug, Clone)]
pub struct Registry {
    folder: PathBuf,
}

/// How an image is to be imported.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The name it gets.
    pub name: ImageName,
    /// The source's format; found by its first bytes when not given. A raw disk
    /// whose content looks like another format needs `Some(Format::Raw)`.
    pub format: Option<Format>,
    /// Piece size in bytes, a power of two; chosen by the size when not given.
    pub piece_size_bytes: Option<u64>,
}

impl ImportOptions {
    /// A name, and everything else found out.
    #[must_use]
    pub fn named(name: ImageName) -> Self {
        Self { name, format: None, piece_size_bytes: None }
    }
}

/// One image of the registry.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is.
    pub manifest: Arc<Manifest>,
    folder: PathBuf,
}

impl Image {
    /// The raw content. Sparse and never written again.
    #[must_use]
    pub fn disk_path(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Bytes that the content takes on this server's disk.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn stored_bytes(&self) -> Result<u64, Error> {
        let path = self.disk_path();
        Ok(fs::metadata(&path).map_err(Error::io("look at", path))?.blocks() * 512)
    }

    /// How nodes divide their disks, where the content is a tree of files and no disk.
    ///
    /// # Errors
    /// When the file cannot be read, or its head is not understood.
    pub fn layout(&self) -> Result<Option<Layout>, Error> {
        tree::layout_of(&self.disk_path())
    }

    /// The torrent as stored: the info dictionary, no tracker.
    ///
    /// # Errors
    /// When the file is gone or damaged.
    pub fn metainfo(&self) -> Result<wire::metainfo::Metainfo, Error> {
        let path = self.folder.join(TORRENT);
        metainfo::parse(&read_bounded(&path, MAX_MANIFEST_BYTES)?)
    }

    /// The bytes of a .torrent for ordinary clients, announcing to these URLs.
    ///
    /// # Errors
    /// When the stored one is gone or damaged.
    pub fn torrent(&self, announce: &[String]) -> Result<Vec<u8>, Error> {
        metainfo::with_trackers(self.metainfo()?, announce)
    }
}

/// An entry of [`Registry::list`]: a damaged image is listed, not hidden.
#[derive(Debug)]
pub struct Entry {
    /// The name of its folder.
    pub name: ImageName,
    /// The image, or what is wrong with it.
    pub image: Result<Image, Error>,
}

impl Registry {
    /// Opens the folder of images, creating it when it is not there, and
    /// removes what killed imports left behind. Images that an older version
    /// sealed are sealed anew, which reads them once.
    ///
    /// # Errors
    /// When the folder cannot be made or read. An image that cannot be sealed
    /// anew is left as it is, and is listed with its error.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        // Absolute, so that no path given to qemu-img can look like a protocol.
        let folder = folder.canonicalize().map_err(Error::io("open", &folder))?;
        let registry = Self { folder };
        for name in registry.file_names()? {
            if name.starts_with(INCOMING) || name.starts_with(REMOVED) {
                remove_leftover(&registry.folder.join(name))?;
            } else if let Ok(name) = name.parse() {
                registry.renew(&name);
            }
        }
        Ok(registry)
    }

    /// Seals an image anew if its manifest is of an older format.
    fn renew(&self, name: &ImageName) {
        let Err(Error::OldManifest { found, .. }) = self.get(name) else { return };
        tracing::info!(image = %name, version = found, "sealing an image of an older version anew; this happens once");
        match self.reseal(name) {
            Ok(()) => tracing::info!(image = %name, "sealed anew"),
            Err(error) => tracing::error!(image = %name, %error, "cannot be sealed anew: import it again"),
        }
    }

    /// Writes manifest and torrent of the present format for content whose
    /// digest is still what the old manifest says.
    fn reseal(&self, name: &ImageName) -> Result<(), Error> {
        let folder = self.folder.join(name.as_str());
        let old = OldManifest::read(&read_bounded(&folder.join(MANIFEST), MAX_MANIFEST_BYTES)?)?;
        let disk = folder.join(DISK);
        let sealed = seal_file(&disk, Some(old.piece_size_bytes), &mut crate::no_progress)?;
        if sealed.digest != old.digest {
            return Err(Error::WrongDigest { what: disk, found: sealed.digest, expected: old.digest });
        }
        let (manifest, torrent) = describe(name, &sealed)?;
        // The torrent first: while the manifest is the old one, all of this happens again.
        replace(&folder.join(TORRENT), &torrent)?;
        replace(&folder.join(MANIFEST), manifest.to_json().as_bytes())?;
        sync_folder(&folder)
    }

    /// Imports a file or block device: raw is copied, other formats are
    /// converted; then it is sealed and published under its name.
    /// Progress counts the bytes of every pass.
    ///
    /// # Errors
    /// Nothing is left behind by any of them.
    pub fn import(&self, path: &Path, options: &ImportOptions, progress: &mut Progress<'_>) -> Result<Image, Error> {
        self.expect_free(&options.name)?;
        let path = path.canonicalize().map_err(Error::io("open", path))?;
        let incoming = Incoming::create(&self.folder)?;
        let sealed = self.import_file(&path, options, &incoming, progress);
        self.publish(incoming, options, sealed)
    }

    /// Imports a stream, such as an upload, of `length_bytes` when known.
    /// Raw content of known length is sealed as it arrives; anything else is
    /// first stored.
    ///
    /// # Errors
    /// Nothing is left behind by any of them.
    pub fn import_stream(
        &self,
        stream: &mut dyn Read,
        length_bytes: Option<u64>,
        options: &ImportOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Image, Error> {
        self.expect_free(&options.name)?;
        let incoming = Incoming::create(&self.folder)?;
        let sealed = self.receive(stream, length_bytes, options, &incoming, progress);
        self.publish(incoming, options, sealed)
    }

    /// All images, sorted by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut names: Vec<ImageName> = self.file_names()?.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort();
        Ok(names.into_iter().map(|name| Entry { image: self.get(&name), name }).collect())
    }

    /// One image.
    ///
    /// # Errors
    /// When there is none of this name, or its manifest or file is damaged.
    pub fn get(&self, name: &ImageName) -> Result<Image, Error> {
        let folder = self.folder.join(name.as_str());
        if !folder.is_dir() {
            return Err(Error::NotFound(name.to_string()));
        }
        let manifest = Manifest::from_json(&read_bounded(&folder.join(MANIFEST), MAX_MANIFEST_BYTES)?)?;
        let disk = folder.join(DISK);
        let size = fs::metadata(&disk).map_err(Error::io("look at", &disk))?.len();
        if size != manifest.size_bytes() {
            return Err(Error::BadManifest(format!(
                "{} has {size} bytes, the manifest says {}",
                disk.display(),
                manifest.size_bytes()
            )));
        }
        Ok(Image { manifest: Arc::new(manifest), folder })
    }

    /// Removes an image. Open files stay readable until they are closed.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove(&self, name: &ImageName) -> Result<(), Error> {
        let from = self.folder.join(name.as_str());
        let to = self.folder.join(format!("{REMOVED}{}-{}", process::id(), unique()));
        fs::rename(&from, &to).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(name.to_string()),
            _ => Error::io("remove", &from)(error),
        })?;
        sync_folder(&self.folder)?;
        fs::remove_dir_all(&to).map_err(Error::io("remove", &to))
    }

    /// Reads an image again and compares every hash with its manifest.
    ///
    /// # Errors
    /// [`Error::CorruptPieces`] or [`Error::WrongDigest`] when it is damaged.
    pub fn verify(&self, name: &ImageName, progress: &mut Progress<'_>) -> Result<(), Error> {
        let image = self.get(name)?;
        let path = image.disk_path();
        let manifest = &image.manifest;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let sealed = Seal {
            source: Source::File(&file),
            source_path: &path,
            size_bytes: manifest.size_bytes(),
            piece_size_bytes: manifest.piece_size_bytes(),
            copy: None,
        }
        .run(progress)?;
        compare(&path, manifest, &sealed)
    }

    fn import_file(
        &self,
        path: &Path,
        options: &ImportOptions,
        incoming: &Incoming,
        progress: &mut Progress<'_>,
    ) -> Result<Sealed, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let kind = file.metadata().map_err(Error::io("look at", path))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::NotADisk(path.to_owned()));
        }
        match format_of(path, &file, options)? {
            Format::Raw => {
                let size_bytes = (&file).seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
                check_size(path, size_bytes)?;
                incoming.copy_and_seal(Source::File(&file), path, size_bytes, options, progress)
            }
            other => {
                let size_bytes = format::inspect(path, &file, other)?;
                check_size(path, size_bytes)?;
                let disk = incoming.path.join(DISK);
                format::convert(path, other, size_bytes, &disk, &mut |done, all| progress(done, 2 * all))
                    .map_err(|error| error.or_no_space(&self.folder, size_bytes))?;
                incoming.seal_in_place(size_bytes, options, &mut |done, all| progress(all + done, 2 * all))
            }
        }
    }

    fn receive(
        &self,
        stream: &mut dyn Read,
        length_bytes: Option<u64>,
        options: &ImportOptions,
        incoming: &Incoming,
        progress: &mut Progress<'_>,
    ) -> Result<Sealed, Error> {
        let upload = Path::new("the upload");
        let mut head = vec![0; format::PROBE_BYTES];
        let got = read_full(stream, &mut head).map_err(Error::io("read", upload))?;
        head.truncate(got);
        let format = match options.format {
            Some(format) => format,
            None => format::probe(upload, &head)?,
        };
        let mut whole = head.as_slice().chain(stream);
        match (format, length_bytes) {
            (Format::Raw, Some(size_bytes)) => {
                check_size(upload, size_bytes)?;
                incoming.copy_and_seal(Source::Stream(&mut whole), upload, size_bytes, options, progress)
            }
            (Format::Raw, None) => {
                let size_bytes = incoming.spool(DISK, &mut whole, None, progress)?;
                check_size(upload, size_bytes)?;
                incoming.seal_in_place(size_bytes, options, progress)
            }
            (format, _) => {
                incoming.spool("upload", &mut whole, length_bytes, progress)?;
                let path = incoming.path.join("upload");
                let options = ImportOptions { format: Some(format), ..options.clone() };
                let sealed = self.import_file(&path, &options, incoming, progress)?;
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                Ok(sealed)
            }
        }
    }

    /// Writes manifest and torrent beside the content, makes all of it durable,
    /// and gives it its name.
    fn publish(
        &self,
        incoming: Incoming,
        options: &ImportOptions,
        sealed: Result<Sealed, Error>,
    ) -> Result<Image, Error> {
        let sealed = sealed?;
        let name = options.name.as_str();
        let (manifest, torrent) = describe(&options.name, &sealed)?;
        let full = |error: Error| error.or_no_space(&self.folder, sealed.size_bytes);
        incoming.write(MANIFEST, manifest.to_json().as_bytes()).map_err(full)?;
        incoming.write(TORRENT, &torrent).map_err(full)?;
        settle(&incoming.path.join(DISK)).map_err(full)?;
        sync_folder(&incoming.path)?;
        let folder = self.folder.join(name);
        match rustix::fs::renameat_with(CWD, &incoming.path, CWD, &folder, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::NameTaken(name.to_owned())),
            Err(error) => return Err(Error::io("publish", &folder)(error.into())),
        }
        sync_folder(&self.folder)?;
        Ok(Image { manifest: Arc::new(manifest), folder })
    }

    fn expect_free(&self, name: &ImageName) -> Result<(), Error> {
        let folder = self.folder.join(name.as_str());
        match folder.symlink_metadata() {
            Ok(_) => Err(Error::NameTaken(name.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("look at", folder)(error)),
        }
    }

    fn file_names(&self) -> Result<Vec<String>, Error> {
        let read = Error::io("read", &self.folder);
        let names = fs::read_dir(&self.folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
        Ok(names.map_err(read)?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }
}

/// The manifest and the torrent without trackers.
fn describe(name: &ImageName, sealed: &Sealed) -> Result<(Manifest, Vec<u8>), Error> {
    let torrent = metainfo::with_trackers(metainfo::of_sealed(name.as_str(), sealed)?, &[])?;
    Ok((Manifest::from_sealed(name, sealed)?, torrent))
}

/// What is needed of a manifest of version 1: how it was cut, and what proves
/// that the content is still the same.
#[derive(Deserialize)]
struct OldManifest {
    piece_size_bytes: u64,
    digest: Digest,
}

impl OldManifest {
    fn read(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|error| Error::BadManifest(error.to_string()))
    }
}

/// Replaces a small file so that a crash leaves the old or the new one.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let next = path.with_extension("new");
    let mut file = File::create(&next).map_err(Error::io("create", &next))?;
    io::Write::write_all(&mut file, content).map_err(Error::io("write", &next))?;
    file.sync_all().map_err(Error::io("write", &next))?;
    fs::rename(&next, path).map_err(Error::io("replace", path))
}

fn format_of(path: &Path, file: &File, options: &ImportOptions) -> Result<Format, Error> {
    if let Some(format) = options.format {
        return Ok(format);
    }
    let mut head = [0; format::PROBE_BYTES];
    let got = format::read_at_most(file, &mut head).map_err(Error::io("read", path))?;
    format::probe(path, &head[..got])
}

fn check_size(what: &Path, size_bytes: u64) -> Result<(), Error> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) {
        return Err(Error::BadSize { what: what.to_owned(), size_bytes });
    }
    if size_bytes > MAX_IMAGE_BYTES {
        return Err(Error::TooLarge { what: what.to_owned(), size_bytes, limit_bytes: MAX_IMAGE_BYTES });
    }
    Ok(())
}

fn compare(path: &Path, manifest: &Manifest, sealed: &Sealed) -> Result<(), Error> {
    let differs = |index: &usize| match manifest.pieces() {
        PieceHashes::Roots(hashes) => hashes[*index] != sealed.roots[*index],
        PieceHashes::Sha1(hashes) => hashes[*index] != sealed.sha1[*index],
    };
    let mut corrupt = (0..sealed.roots.len()).filter(differs);
    if let Some(first) = corrupt.next() {
        return Err(Error::CorruptPieces { what: path.to_owned(), count: 1 + corrupt.count(), first: first as u32 });
    }
    match manifest.digest() {
        Some(expected) if expected != sealed.digest => {
            Err(Error::WrongDigest { what: path.to_owned(), found: sealed.digest, expected })
        }
        _ => Ok(()),
    }
}

/// The folder of an import that is going on. It is locked while its process
/// lives, so that another process that opens the registry tells it from a
/// leftover, and removed unless it was published.
struct Incoming {
    path: PathBuf,
    _lock: File,
}

impl Incoming {
    fn create(registry: &Path) -> Result<Self, Error> {
        loop {
            let path = registry.join(format!("{INCOMING}{}-{}", process::id(), unique()));
            match fs::create_dir(&path) {
                // Left by a process that had our number; it is ours to remove.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    remove_leftover(&path)?;
                    continue;
                }
                outcome => outcome.map_err(|error| Error::io("create", &path)(error).or_no_space(registry, 0))?,
            }
            let lock = File::open(&path).map_err(Error::io("open", &path))?;
            lock.lock().map_err(Error::io("lock", &path))?;
            // Between creation and lock another process may have taken it for a
            // leftover; then it has no name any more.
            if path.is_dir() {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    fn copy_and_seal(
        &self,
        source: Source<'_>,
        source_path: &Path,
        size_bytes: u64,
        options: &ImportOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Sealed, Error> {
        let piece_size_bytes = piece_size(size_bytes, options)?;
        let (disk, path) = self.create_file(DISK)?;
        Seal { source, source_path, size_bytes, piece_size_bytes, copy: Some((&disk, &path)) }
            .run(progress)
            .map_err(|error| error.or_no_space(self.registry(), size_bytes))
    }

    fn seal_in_place(
        &self,
        size_bytes: u64,
        options: &ImportOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Sealed, Error> {
        let piece_size_bytes = piece_size(size_bytes, options)?;
        let path = self.path.join(DISK);
        let disk = File::open(&path).map_err(Error::io("open", &path))?;
        Seal { source: Source::File(&disk), source_path: &path, size_bytes, piece_size_bytes, copy: None }.run(progress)
    }

    /// Stores a stream with holes where it has zeros; its length in bytes.
    fn spool(
        &self,
        name: &str,
        stream: &mut dyn Read,
        length_bytes: Option<u64>,
        progress: &mut Progress<'_>,
    ) -> Result<u64, Error> {
        let (file, path) = self.create_file(name)?;
        let mut buffer = vec![0; 1 << 20];
        let mut stored = 0u64;
        loop {
            let got = read_full(stream, &mut buffer).map_err(Error::io("read", "the upload"))?;
            if got == 0 {
                break;
            }
            let full = |error: Error| error.or_no_space(self.registry(), length_bytes.unwrap_or(stored + got as u64));
            sparse::write_into_hole(&file, stored, &buffer[..got])
                .map_err(Error::device("write", &path, stored))
                .map_err(full)?;
            stored += got as u64;
            if stored > MAX_IMAGE_BYTES {
                return Err(Error::TooLarge { what: path, size_bytes: stored, limit_bytes: MAX_IMAGE_BYTES });
            }
            if let ControlFlow::Break(()) = progress(stored, length_bytes.unwrap_or(stored)) {
                return Err(Error::Cancelled);
            }
        }
        if let Some(expected_bytes) = length_bytes.filter(|&length| length != stored) {
            return Err(Error::StreamLength { expected_bytes, got_bytes: stored });
        }
        // Zeros at the end were skipped, not written.
        file.set_len(stored).map_err(Error::io("set the size of", &path))?;
        Ok(stored)
    }

    fn create_file(&self, name: &str) -> Result<(File, PathBuf), Error> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        match file {
            Ok(file) => Ok((file, path)),
            Err(error) => Err(Error::io("create", &path)(error).or_no_space(self.registry(), 0)),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let (mut file, path) = self.create_file(name)?;
        io::Write::write_all(&mut file, content).map_err(Error::io("write", &path))?;
        file.sync_all().map_err(Error::io("write", path))
    }

    fn registry(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After publishing it has another name and there is nothing to remove.
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.path.display(), %error, "cannot remove a failed import; the next start will");
        }
    }
}

/// Read-only, because every later write would be a mistake; and durable.
fn settle(path: &Path) -> Result<(), Error> {
    let disk = File::open(path).map_err(Error::io("open", path))?;
    disk.set_permissions(Permissions::from_mode(0o444)).map_err(Error::io("protect", path))?;
    disk.sync_all().map_err(Error::io("write", path))
}

fn piece_size(size_bytes: u64, options: &ImportOptions) -> Result<u32, Error> {
    check_piece_size(options.piece_size_bytes.unwrap_or_else(|| u64::from(piece_size_for(size_bytes))))
}

/// Removes a folder that a killed process left; one that is locked is in use.
fn remove_leftover(path: &Path) -> Result<(), Error> {
    let lock = match File::open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if lock.try_lock().is_err() {
        return Ok(());
    }
    tracing::info!(folder = %path.display(), "removing what an interrupted import left");
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("make durable", path))
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.take(limit).read_to_end(&mut content).map_err(Error::io("read", path))?;
    Ok(content)
}

/// A number that this process uses once.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
