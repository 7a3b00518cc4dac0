//! Captures on their way into the registry.
//!
//! ```text
//! <folder>/.capture-web/disk.raw       the chunks that have arrived, holes for the others
//! <folder>/.capture-web/held           the hash of each chunk, zeros for one that has not arrived
//! <folder>/.capture-web/capture.json   what is captured, and whether all of it is there
//! ```
//! A chunk's hash is written after the chunk. That order holds when this process is killed; after the machine itself went
//! down (another boot id) every chunk is hashed once before it is believed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleet::capture::{CHUNK_BYTES, Original};
use fleet::ids::ImageName;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{DISK, Image, MANIFEST, Registry, TORRENT, describe, read_bounded, replace, settle, sync_folder};
use crate::capture::{Generalised, generalise, hash_of};
use crate::manifest::piece_size_for;
use crate::seal::{Seal, Source};
use crate::{Error, Progress, sparse};

const CAPTURE: &str = ".capture-";
const HELD: &str = "held";
const DESCRIPTION: &str = "capture.json";
/// A description larger than this is not ours.
const MAX_DESCRIPTION_BYTES: u64 = 4 << 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const HASH_BYTES: usize = 32;
/// No chunk has this hash.
const NOTHING: [u8; HASH_BYTES] = [0; HASH_BYTES];

/// What a capture's folder says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    original: Original,
    /// The boot of this server in which chunks were written.
    boot_id: String,
    /// Every chunk has arrived; the copy is being changed, and nothing more is taken in.
    received: bool,
}

/// How far [`Capture::finish`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finishing {
    /// What belonged to the machine was taken out.
    Generalised(Generalised),
    /// Bytes that are hashed, and all of them.
    Sealing(u64, u64),
}

/// A disk that is being captured. Chunks may come from several threads.
#[derive(Debug)]
pub struct Capture {
    registry: PathBuf,
    folder: PathBuf,
    name: ImageName,
    original: Original,
    disk: File,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    file: File,
    hashes: Vec<[u8; HASH_BYTES]>,
    received: bool,
}

impl Registry {
    /// Begins a capture, or goes on with one of this name: chunks that are held already need not come again, unless they
    /// are of a disk of another size. What the disk does not use any more becomes a hole.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::BadOriginal`], or the system's.
    pub fn begin_capture(&self, name: &ImageName, original: &Original) -> Result<Capture, Error> {
        original.check().map_err(Error::BadOriginal)?;
        self.expect_free(name)?;
        let folder = self.capture_folder(name);
        match Description::read(&folder) {
            Ok(Some(old)) if !old.received && old.original.size_bytes == original.size_bytes => {}
            Ok(None) => {}
            // Another disk, one that was changed already, or a folder that is damaged.
            Ok(Some(_)) | Err(_) => discard(&folder)?,
        }
        let capture = Capture::open(&self.folder, folder, name.clone(), original.clone())?;
        capture.forget_unwanted()?;
        Ok(capture)
    }

    /// The captures that an earlier process left, those that cannot be read left out with a warning.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn captures(&self) -> Result<Vec<Capture>, Error> {
        let mut found = Vec::new();
        for name in self.file_names()?.iter().filter_map(|name| name.strip_prefix(CAPTURE)?.parse::<ImageName>().ok()) {
            let folder = self.capture_folder(&name);
            let opened = Description::read(&folder).and_then(|description| match description {
                Some(old) => Capture::open(&self.folder, folder.clone(), name.clone(), old.original).map(Some),
                None => Ok(None),
            });
            match opened {
                Ok(capture) => found.extend(capture),
                Err(error) => tracing::warn!(image = %name, %error, "this capture cannot go on; begin it again"),
            }
        }
        Ok(found)
    }

    /// Removes a capture with all that has arrived; one that is not there is fine.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn discard_capture(&self, name: &ImageName) -> Result<(), Error> {
        discard(&self.capture_folder(name))
    }

    fn capture_folder(&self, name: &ImageName) -> PathBuf {
        self.folder.join(format!("{CAPTURE}{name}"))
    }
}

impl Capture {
    fn open(registry: &Path, folder: PathBuf, name: ImageName, original: Original) -> Result<Self, Error> {
        let used_bytes = original.used_bytes;
        let full = |error: Error| error.or_no_space(registry, used_bytes);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder)).map_err(full)?;
        let old = Description::read(&folder)?;
        let disk = open_file(&folder.join(DISK), original.size_bytes).map_err(full)?;
        let held = open_file(&folder.join(HELD), u64::from(original.chunks()) * HASH_BYTES as u64).map_err(full)?;
        let mut hashes = vec![NOTHING; original.chunks() as usize];
        for (chunk, hash) in hashes.iter_mut().enumerate() {
            held.read_exact_at(hash, (chunk * HASH_BYTES) as u64).map_err(Error::io("read", folder.join(HELD)))?;
        }
        let received = old.as_ref().is_some_and(|old| old.received);
        let capture = Self {
            registry: registry.to_owned(),
            folder,
            name,
            original,
            disk,
            held: Mutex::new(Held { file: held, hashes, received }),
        };
        if !received && old.is_some_and(|old| old.boot_id != boot_id()) {
            capture.believe_nothing()?;
        }
        capture.describe(received).map_err(full)?;
        Ok(capture)
    }

    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// What is captured.
    #[must_use]
    pub fn original(&self) -> &Original {
        &self.original
    }

    /// Whether every chunk has arrived and [`Capture::finish`] is to come.
    #[must_use]
    pub fn is_received(&self) -> bool {
        self.held().received
    }

    /// How many of the wanted chunks have arrived.
    #[must_use]
    pub fn held_chunks(&self) -> u64 {
        let held = self.held();
        self.original.wanted().filter(|chunk| held.hashes[*chunk as usize] != NOTHING).count() as u64
    }

    /// The hashes of chunks from `first` on, 32 bytes each, zeros for one that has not arrived.
    #[must_use]
    pub fn held_hashes(&self, first: u32, count: u32) -> Vec<u8> {
        let held = self.held();
        let end = (first as usize).saturating_add(count as usize).min(held.hashes.len());
        held.hashes.get(first as usize..end).unwrap_or_default().concat()
    }

    /// Takes in one chunk, a zstd frame, after comparing it with its hash. Taking one in twice is harmless.
    ///
    /// # Errors
    /// [`Error::BadChunk`], [`Error::NoSpace`]: what has arrived stays, and the chunk may be sent again.
    pub fn put(&self, chunk: u32, hash: [u8; HASH_BYTES], packed: &[u8]) -> Result<(), Error> {
        let bad = |why: &str| Error::BadChunk { chunk, why: why.to_owned() };
        if !self.original.wants(chunk) {
            return Err(bad("was not announced"));
        }
        let length = self.original.length(chunk) as usize;
        let content =
            zstd::bulk::decompress(packed, length).map_err(|error| bad(&format!("cannot be unpacked ({error})")))?;
        if content.len() != length {
            return Err(bad(&format!("has {} bytes instead of {length}", content.len())));
        }
        if hash_of(&content) != hash {
            return Err(bad("is not what its hash says"));
        }
        let offset = u64::from(chunk) * CHUNK_BYTES;
        let path = self.folder.join(DISK);
        let full = |error: Error| error.or_no_space(&self.registry, self.original.used_bytes);
        let mut held = self.held();
        if held.received {
            return Err(bad("comes after the last one"));
        }
        if held.hashes[chunk as usize] == hash {
            return Ok(());
        }
        if held.hashes[chunk as usize] != NOTHING {
            // The disk has changed since: nothing of the old content may show through the new one's zeros.
            held.set(chunk, NOTHING, &self.folder)?;
            sparse::zero_range(&self.disk, offset..offset + length as u64)
                .map_err(Error::device("zero", &path, offset))?;
        }
        sparse::write_into_hole(&self.disk, offset, &content)
            .map_err(Error::device("write", &path, offset))
            .map_err(full)?;
        held.set(chunk, hash, &self.folder).map_err(full)
    }

    /// Says that the last chunk was sent: from now on the copy is this server's, and [`Capture::finish`] may change it.
    ///
    /// # Errors
    /// [`Error::CaptureIncomplete`] when some have not arrived.
    pub fn receive(&self) -> Result<(), Error> {
        let missing = self.original.wanted_chunks() - self.held_chunks();
        if missing > 0 {
            return Err(Error::CaptureIncomplete { missing });
        }
        self.held().received = true;
        self.describe(true)
    }

    /// Generalises the copy where that was asked for, seals and publishes it. A second call after a failure or a restart
    /// does what is left.
    ///
    /// # Errors
    /// The copy stays.
    pub fn finish(&self, progress: &mut dyn FnMut(Finishing) -> ControlFlow<()>) -> Result<Image, Error> {
        if !self.is_received() {
            return Err(Error::CaptureIncomplete { missing: self.original.wanted_chunks() - self.held_chunks() });
        }
        let path = self.folder.join(DISK);
        if self.original.generalise {
            let done = generalise(&path)?;
            if progress(Finishing::Generalised(done)).is_break() {
                return Err(Error::Cancelled);
            }
        }
        let sealing: &mut Progress<'_> = &mut |done, all| progress(Finishing::Sealing(done, all));
        let size_bytes = self.original.size_bytes;
        let disk = File::open(&path).map_err(Error::io("open", &path))?;
        let seal = Seal {
            source: Source::File(&disk),
            source_path: &path,
            size_bytes,
            piece_size_bytes: piece_size_for(size_bytes),
            copy: None,
        };
        let sealed = seal.run(sealing)?;
        let (manifest, torrent) = describe(&self.name, &sealed)?;
        let full = |error: Error| error.or_no_space(&self.registry, self.original.used_bytes);
        replace(&self.folder.join(TORRENT), &torrent).map_err(full)?;
        replace(&self.folder.join(MANIFEST), manifest.to_json().as_bytes()).map_err(full)?;
        settle(&path).map_err(full)?;
        sync_folder(&self.folder)?;
        let folder = self.registry.join(self.name.as_str());
        match rustix::fs::renameat_with(CWD, &self.folder, CWD, &folder, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::NameTaken(self.name.to_string())),
            Err(error) => return Err(Error::io("publish", &folder)(error.into())),
        }
        sync_folder(&self.registry)?;
        for rest in [HELD, DESCRIPTION] {
            // They would only take room.
            let _ = fs::remove_file(folder.join(rest));
        }
        Ok(Image { manifest: Arc::new(manifest), folder })
    }

    /// Chunks that hold something and are not wanted any more become holes.
    fn forget_unwanted(&self) -> Result<(), Error> {
        let mut held = self.held();
        for chunk in 0..self.original.chunks() {
            if held.hashes[chunk as usize] != NOTHING && !self.original.wants(chunk) {
                held.set(chunk, NOTHING, &self.folder)?;
                let offset = u64::from(chunk) * CHUNK_BYTES;
                let range = offset..offset + self.original.length(chunk);
                let failed = Error::device("zero", &self.folder, offset);
                sparse::zero_range(&self.disk, range).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Hashes every chunk that is said to be held; one that is not what it should be is gone.
    fn believe_nothing(&self) -> Result<(), Error> {
        tracing::info!(image = %self.name, "this server went down in the middle of a capture: what arrived is hashed again");
        let mut held = self.held();
        let mut content = Vec::new();
        for chunk in 0..self.original.chunks() {
            let hash = held.hashes[chunk as usize];
            if hash == NOTHING {
                // It may have been written all the same.
                self.zero(chunk)?;
                continue;
            }
            content.resize(self.original.length(chunk) as usize, 0);
            let offset = u64::from(chunk) * CHUNK_BYTES;
            let read = self.disk.read_exact_at(&mut content, offset);
            if read.is_err() || hash_of(&content) != hash {
                held.set(chunk, NOTHING, &self.folder)?;
                self.zero(chunk)?;
            }
        }
        Ok(())
    }

    fn zero(&self, chunk: u32) -> Result<(), Error> {
        let offset = u64::from(chunk) * CHUNK_BYTES;
        let length = self.original.length(chunk);
        if sparse::in_hole(&self.disk, offset, length) {
            return Ok(());
        }
        let failed = Error::device("zero", &self.folder, offset);
        sparse::zero_range(&self.disk, offset..offset + length).map_err(failed)
    }

    fn describe(&self, received: bool) -> Result<(), Error> {
        let description = Description { original: self.original.clone(), boot_id: boot_id(), received };
        let path = self.folder.join(DESCRIPTION);
        let json = serde_json::to_vec(&description).map_err(|error| Error::io("describe", &path)(error.into()))?;
        if received {
            self.disk.sync_data().map_err(Error::io("write", self.folder.join(DISK)))?;
        }
        replace(&path, &json)?;
        sync_folder(&self.folder)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn set(&mut self, chunk: u32, hash: [u8; HASH_BYTES], folder: &Path) -> Result<(), Error> {
        let at = u64::from(chunk) * HASH_BYTES as u64;
        self.file.write_all_at(&hash, at).map_err(Error::io("write", folder.join(HELD)))?;
        self.hashes[chunk as usize] = hash;
        Ok(())
    }
}

impl Description {
    fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(DESCRIPTION);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_bounded(&path, MAX_DESCRIPTION_BYTES)?;
        let description: Self =
            serde_json::from_slice(&text).map_err(|error| Error::io("understand", &path)(error.into()))?;
        description.original.check().map_err(Error::BadOriginal)?;
        Ok(Some(description))
    }
}

fn open_file(path: &Path, size_bytes: u64) -> Result<File, Error> {
    // A capture that failed while it was published is protected already.
    let _ = fs::set_permissions(path, Permissions::from_mode(0o600));
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(Error::io("create", path))?;
    file.set_len(size_bytes).map_err(Error::io("set the size of", path))?;
    Ok(file)
}

fn discard(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Where it cannot be read, nothing written before is believed.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}
