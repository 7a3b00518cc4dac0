//! An image from a tree of files and a partition layout: the tree is an archive or a container image, and brings its own
//! kernel and boot loader. What comes out is a whole disk like any other, so that everything after it is the same path;
//! where the layout belongs to one machine, it is the tree, packed anew ([`Tree::pack`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bootenv::cache::{Cache, Lock};
use fleet::disk::Size;
use fleet::layout::{Firmware, Layout, Table};
use tempfile::TempDir;

mod inside;
mod oci;
mod pack;
mod packed;
mod place;
mod system;
mod unpack;
mod write;

pub use oci::Platform;
pub use pack::Packed;

use crate::disk::{MBR_CODE, place_core, write_sparse};
use crate::error::{Error, file};
use inside::Inside;
use place::Slot;
use system::{BiosLoader, System};
use unpack::Unpacker;

/// What stays free on the server while a tree is unpacked, in bytes.
const RESERVE_BYTES: u64 = 512 << 20;
/// The lock of builds of this kind, and the name of their work folders.
const LOCK: &str = "tree";
/// Disks larger than this are none that a tree is laid out for: 64 TiB.
const MOST_BYTES: u64 = 64 << 40;

/// What is made into an image, and how.
#[derive(Debug, Clone)]
pub struct Tree {
    /// An archive (tar, also packed by gzip, zstd, xz or bzip2), an OCI layout as a folder or an archive, or what
    /// `docker save` writes.
    pub source: PathBuf,
    /// Partitions and file systems of the one disk.
    pub layout: Layout,
    /// The disk's size in bytes; what layout and tree need where it is not given.
    pub size_bytes: Option<u64>,
    /// Which of a container image's platforms.
    pub platform: Platform,
    /// Which image, where a container archive holds several.
    pub tag: Option<String>,
    /// The kernel's parameters; those of the tree's `/etc/default/grub` where they are not given.
    pub kernel_line: Option<String>,
    /// Where it is unpacked and put together, usually [`crate::DEFAULT_CACHE`].
    pub cache: PathBuf,
}

/// A finished disk. It and all that it was made of go when this is dropped.
#[derive(Debug)]
pub struct Assembled {
    /// The disk's file, sparse.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it takes on this machine, in bytes.
    pub used_bytes: u64,
    /// The distribution's name and version.
    pub system: String,
    /// The kernel's version.
    pub kernel_version: String,
    /// The file systems, in a word each.
    pub file_systems: Vec<String>,
    /// What could not be kept, in sentences.
    pub notes: Vec<String>,
    _work: TempDir,
    _lock: Lock,
}

impl Tree {
    /// Makes the disk. Blocks for as long as the tree takes to be unpacked and written.
    ///
    /// # Errors
    /// When not root; when layout, archive or digests are not right; when the tree does not fit or would not start; when a
    /// program is missing. Nothing is left behind.
    pub fn assemble(&self, progress: &dyn Fn(&str)) -> Result<Assembled, Error> {
        let (disk, firmware) = place::check(&self.layout)?;
        if self.size_bytes.is_some_and(|size| size > MOST_BYTES) {
            return Err(Error::Tree(format!("a disk of more than {} is none", Size(MOST_BYTES))));
        }
        if let Some(asked) = self.size_bytes {
            place::expect_size(disk, asked)?;
        }
        if let Some(line) = self.kernel_line.as_deref().filter(|line| !system::is_kernel_line(line)) {
            return Err(Error::Tree(format!(
                "`{line}` is no kernel line: letters, digits, blanks and = , . _ : / + % @ - make one"
            )));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let cache = Cache::open(&self.cache)?;
        let lock = cache.lock(LOCK, progress)?;
        let work = cache.work(LOCK)?;

        let limit_bytes = place::limit_bytes(&self.layout, disk, self.size_bytes);
        let (root, notes) = self.unpack(work.path(), limit_bytes, progress)?;
        let tree = Inside::at(&root)?;
        place::make_points(&tree, &self.layout)?;
        let identities = identities(&self.layout);
        let system = System::find(&tree, &self.layout, &identities, firmware, self.kernel_line.as_deref())?;
        progress(&format!("make {} with Linux {} start by {}", system.name, system.kernel_version, named(firmware)));
        let loader = system.install()?;

        let needs = place::measure(&root, &self.layout)?;
        let size_bytes = place::disk_bytes(&self.layout, disk, &needs, self.size_bytes)?;
        let image = work.path().join("disk.raw");
        let made = File::create_new(&image).map_err(file("create", &image))?;
        made.set_len(size_bytes).map_err(file("size", &image))?;
        let slots = place::divide(&image, &self.layout, disk, firmware, work.path())?;
        place::expect_to_fit(&slots, &needs)?;
        let parts = write::split(&root, &self.layout, work.path())?;
        let mut file_systems = Vec::new();
        for slot in &slots {
            let Some(mount) = &slot.mount else { continue };
            let at = mount.at.as_deref();
            let shown = format!(
                "{} of {}{}",
                mount.kind.as_str(),
                Size(slot.size_bytes >> 20 << 20),
                at.map_or(String::new(), |at| format!(" at {at}"))
            );
            progress(&format!("write {shown}"));
            let identity = identities.get(at.unwrap_or(&mount.on)).map_or("", String::as_str);
            let need = at.and_then(|at| needs.get(at)).copied().unwrap_or_default();
            let part = at.and_then(|at| parts.get(at)).map(PathBuf::as_path);
            write::file_system(&image, slot, part, identity, need, work.path())?;
            file_systems.push(shown);
        }
        if let Some(loader) = loader {
            write_bios_loader(&image, loader, &self.layout, &slots)?;
        }
        made.sync_all().map_err(file("write", &image))?;
        let used_bytes = fs::metadata(&image).map_err(file("look at", &image))?.blocks() * 512;
        let (name, kernel_version) = (system.name.clone(), system.kernel_version.clone());
        Ok(Assembled {
            path: image,
            size_bytes,
            used_bytes,
            system: name,
            kernel_version,
            file_systems,
            notes,
            _work: work,
            _lock: lock,
        })
    }

    /// Gives the tree's folder, and what could not be kept.
    fn unpack(
        &self,
        work: &Path,
        limit_bytes: Option<u64>,
        progress: &dyn Fn(&str),
    ) -> Result<(PathBuf, Vec<String>), Error> {
        let (root, layers) = (work.join("root"), work.join("layers"));
        fs::create_dir(&root).map_err(file("make the folder", &root))?;
        let source = &self.source;
        let folder = if fs::metadata(source).map_err(file("open", source))?.is_dir() {
            if !oci::is_container(source) {
                let shown = source.display();
                return Err(Error::Tree(format!(
                    "{shown} is a folder and no OCI layout; make an archive of a tree with `tar --numeric-owner --xattrs --xattrs-include='*' -C {shown} -cf tree.tar .`"
                )));
            }
            source.clone()
        } else {
            progress(&format!("unpack {}", source.display()));
            let archive = File::open(source).map_err(file("open", source))?;
            let mut unpacker = Unpacker::new(&root, limit_bytes, RESERVE_BYTES)?;
            unpacker.unpack(&mut packed::read(archive, source)?, source, false)?;
            if !oci::is_container(&root) {
                return Ok((root, unpacker.notes().cloned().collect()));
            }
            fs::rename(&root, &layers).map_err(file("move", &root))?;
            fs::create_dir(&root).map_err(file("make the folder", &root))?;
            layers
        };
        let container = oci::Container::open(&folder, &self.platform, self.tag.as_deref())?;
        progress("compare every layer with its digest");
        container.verify()?;
        // A layer may bring what the next one takes away, so only the whole is compared with the layout.
        let mut unpacker = Unpacker::new(&root, None, RESERVE_BYTES)?;
        container.unpack(&mut unpacker, progress)?;
        Ok((root, unpacker.notes().cloned().collect()))
    }
}

/// A fresh identity for every file system, by mount point or by the partition of swap.
fn identities(layout: &Layout) -> BTreeMap<String, String> {
    let key = |at: &Option<String>, on: &str| at.clone().unwrap_or_else(|| on.to_owned());
    layout.mounts.iter().map(|mount| (key(&mount.at, &mount.on), write::new_identity(mount.kind))).collect()
}

fn named(firmware: Firmware) -> &'static str {
    match (firmware.bios, firmware.uefi) {
        (true, true) => "BIOS and UEFI",
        (true, false) => "BIOS",
        (false, _) => "UEFI",
    }
}

/// GRUB's core lies in its own partition of a GPT disk, and between table and first partition of an MBR disk.
fn write_bios_loader(image: &Path, mut loader: BiosLoader, layout: &Layout, slots: &[Slot]) -> Result<(), Error> {
    let own = slots.iter().find(|slot| slot.role == fleet::layout::Role::BiosBoot);
    let first = slots.iter().map(|slot| slot.start_bytes).min().unwrap_or_default();
    let (start_bytes, room_bytes) = match (layout.table, own) {
        (Table::Gpt, Some(own)) => (own.start_bytes, own.size_bytes),
        _ => (crate::disk::SECTOR, first.saturating_sub(crate::disk::SECTOR)),
    };
    place_core(&mut loader.core, &mut loader.boot, start_bytes, room_bytes)?;
    write_sparse(image, start_bytes, &loader.core)?;
    // Code of zeros would be skipped, and the table's tool may have put a code of its own there.
    let disk = File::options().write(true).open(image).map_err(file("open", image))?;
    disk.write_all_at(loader.boot.get(..MBR_CODE).unwrap_or(&loader.boot), 0).map_err(file("write", image))
}
