//! Golden images made from packages: a Debian server, and a tiny busybox system for tests with many machines; and images
//! made from an operator's own tree of files and partition layout ([`Tree`]).
//!
//! [`build`] gives a raw disk that boots by BIOS and by UEFI, Secure Boot included, and grows on larger disks: the root
//! partition is the last one. The same recipe and packages give the same bytes. Nothing is mounted where others would see it.
//! The images hold nothing of Rackswarm's; what a node needs beyond them is put in by post actions.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootenv::cache::{self, Cache};
use bootenv::command::Run;
use serde::{Deserialize, Serialize};

mod debian;
mod disk;
mod error;
mod ids;
mod small;
mod tree;

pub use bootenv::{DEFAULT_CACHE, source_date_epoch};
pub use debian::Debian;
pub use error::Error;
pub use small::Small;
pub use tree::{Assembled, Packed, Platform, Tree};

use error::file;

/// Raised when the same recipe shall give another disk than before: it is part of the cache's keys.
const FORMAT: u32 = 1;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// A minimal Debian server.
    Debian(Debian),
    /// A busybox system of a few MiB.
    Small(Small),
}

impl Recipe {
    /// The recipe's name, as the command line has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Recipe::Debian(_) => "debian",
            Recipe::Small(_) => "small",
        }
    }
}

/// Where to build, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The disk file to write; an existing one is replaced when the new one is complete.
    pub out: PathBuf,
    /// Where packages and finished images are kept, usually [`DEFAULT_CACHE`].
    pub cache: PathBuf,
    /// Build anew with today's packages even when the cache has an image of this recipe.
    pub refresh: bool,
    /// The time stamp of what the build itself makes, in seconds since 1970.
    pub source_date_epoch: u32,
}

impl Options {
    /// The usual build: the default cache, used when it can be, and `SOURCE_DATE_EPOCH` from the process's environment.
    #[must_use]
    pub fn new(out: PathBuf) -> Self {
        Options { out, cache: DEFAULT_CACHE.into(), refresh: false, source_date_epoch: source_date_epoch() }
    }
}

/// What is known about an image without opening it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The recipe it was made by.
    pub recipe: Recipe,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// The disk's GPT identifier.
    pub disk_id: String,
    /// The root file system's UUID, on partition 3.
    pub root_id: String,
    /// The kernel's version, as `uname -r` will say.
    pub kernel_version: String,
    /// Packages with versions.
    pub packages: BTreeMap<String, String>,
}

/// The result of [`build`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The disk file.
    pub path: PathBuf,
    /// What is in it.
    pub description: Description,
    /// The space it takes on this machine, in bytes; less than its size, because it is sparse.
    pub used_bytes: u64,
    /// Whether the cache had it.
    pub from_cache: bool,
}

/// Makes the image, or takes it from the cache.
///
/// # Errors
/// When not root, when packages cannot be had, when the recipe's size is too small, or when a program is missing.
pub fn build(recipe: &Recipe, options: &Options, progress: &dyn Fn(&str)) -> Result<Built, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let cache = Cache::open(&options.cache)?;
    let _lock = cache.lock("golden", progress)?;
    let key = key(&(FORMAT, recipe, options.source_date_epoch))?;
    let folder = cache.folder("golden")?;
    let kept = folder.join(format!("{}-{key}.raw", recipe.name()));
    let from_cache = !options.refresh && kept.exists() && kept.with_extension("json").exists();
    if from_cache {
        progress(&format!("the cache has {}", kept.display()));
    } else {
        make(recipe, options, &cache, &key, &kept, progress)?;
    }

    let description = read_description(&kept)?;
    copy_sparse(&kept, &options.out)?;
    let used_bytes = fs::metadata(&options.out).map_err(file("look at", &options.out))?.blocks() * 512;
    progress(&format!(
        "{}: {} MiB, {} MiB of them used, kernel {}",
        options.out.display(),
        description.size_bytes >> 20,
        used_bytes >> 20,
        description.kernel_version
    ));
    Ok(Built { path: options.out.clone(), description, used_bytes, from_cache })
}

/// Builds into the cache; the image appears there only when it is complete.
fn make(
    recipe: &Recipe,
    options: &Options,
    cache: &Cache,
    key: &str,
    kept: &Path,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    let work = cache.work("golden")?;
    let ids = ids::Ids::derive(key);
    let root = work.path().join("root");
    let system = match recipe {
        Recipe::Debian(recipe) => debian::install(recipe, options, cache, work.path(), &root, &ids, progress)?,
        Recipe::Small(recipe) => small::install(recipe, options, cache, &root, &ids, progress)?,
    };
    settle_times(&root, options.source_date_epoch)?;
    let fresh = work.path().join("disk.raw");
    disk::write(&fresh, &root, &system.loaders, system.layout, &ids, options.source_date_epoch, progress)?;

    let description = Description {
        recipe: recipe.clone(),
        size_bytes: system.layout.disk_bytes,
        disk_id: ids.disk.to_string(),
        root_id: ids.root_file_system.to_string(),
        kernel_version: system.kernel_version,
        packages: system.packages,
    };
    let json = serde_json::to_vec_pretty(&description).map_err(|error| file("describe", kept)(error.into()))?;
    cache::write_whole(&kept.with_extension("json"), &json)?;
    fs::rename(&fresh, kept).map_err(file("keep", kept))
}

/// A system in a folder, ready to become a disk.
#[derive(Debug)]
struct System {
    loaders: disk::Loaders,
    layout: disk::Layout,
    kernel_version: String,
    packages: BTreeMap<String, String>,
}

/// The first half of a SHA-256 over what a result depends on.
fn key(parts: &impl Serialize) -> Result<String, Error> {
    let bytes = serde_json::to_vec(parts).map_err(|error| file("describe", "recipe")(error.into()))?;
    let mut key = cache::sha256(&bytes);
    key.truncate(32);
    Ok(key)
}

fn read_description(kept: &Path) -> Result<Description, Error> {
    let path = kept.with_extension("json");
    let bytes = fs::read(&path).map_err(file("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|error| file("understand", path)(error.into()))
}

/// What this build wrote carries the time of the recipe; older files of packages keep theirs.
fn settle_times(root: &Path, epoch: u32) -> Result<(), Error> {
    let at = format!("@{epoch}");
    Run::new("find", "findutils")
        .args([root.as_os_str()])
        .args(["-newermt", &at, "-exec", "touch", "--no-dereference", "--date", &at, "{}", "+"])
        .to("set the times of files")
        .output()?;
    Ok(())
}

fn copy_sparse(from: &Path, to: &Path) -> Result<(), Error> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(file("make the folder", folder))?;
    let new = tempfile::Builder::new().prefix(".image").tempfile_in(folder).map_err(file("write into", folder))?;
    Run::new("cp", "coreutils")
        .args(["--sparse=always", "--reflink=auto", "--"])
        .args([from, new.path()])
        .to("copy the image out of the cache")
        .deadline(Duration::from_secs(900))
        .output()?;
    cache::set_mode(new.path(), 0o644)?;
    new.persist(to).map_err(|error| file("write", to)(error.error))?;
    Ok(())
}

/// Writes one file of an image with its permission bits, in place of whatever link or file stood there.
fn put(root: &Path, path: &str, mode: u32, text: &str) -> Result<(), Error> {
    let target = root.join(path);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(file("make the folder", folder))?;
    }
    if target.is_symlink() {
        fs::remove_file(&target).map_err(file("remove", &target))?;
    }
    fs::write(&target, text).map_err(file("write", &target))?;
    Ok(cache::set_mode(&target, mode)?)
}

/// Copies one file into an image with its permission bits.
fn copy(root: &Path, path: &str, mode: u32, source: &Path) -> Result<(), Error> {
    let target = root.join(path);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(file("make the folder", folder))?;
    }
    fs::copy(source, &target).map_err(file("copy", source))?;
    Ok(cache::set_mode(&target, mode)?)
}

/// GRUB's configuration. The serial terminal is used only where there is a serial port.
fn grub_config(title: &str, kernel: &str, initramfs: &str, ids: &ids::Ids, kernel_line: &str) -> String {
    let root = ids.root_file_system.to_string();
    menu(title, kernel, initramfs, &root, &root, kernel_line)
}

/// The same for a kernel that may lie on a file system of its own.
fn menu(title: &str, kernel: &str, initramfs: &str, boot_id: &str, root_id: &str, kernel_line: &str) -> String {
    include_str!("../files/grub.cfg")
        .replace("@TITLE@", title)
        .replace("@BOOT@", boot_id)
        .replace("@ROOT@", root_id)
        .replace("@KERNEL@", kernel)
        .replace("@INITRAMFS@", initramfs)
        .replace("@LINE@", kernel_line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_every_part_of_a_recipe() {
        let debian = Debian::default();
        let larger = Debian { size_mib: debian.size_mib + 1, ..debian.clone() };
        let more = Debian { packages: vec!["nginx".to_owned()], ..debian.clone() };
        let keys: Vec<_> = [&debian, &larger, &more].map(|recipe| key(recipe).unwrap()).to_vec();
        assert!(keys[0] != keys[1] && keys[0] != keys[2]);
        assert_eq!(keys[0], key(&debian).unwrap());
        assert_eq!(keys[0].len(), 32);
    }

    #[test]
    fn a_recipe_survives_json() {
        for recipe in [Recipe::Debian(Debian::default()), Recipe::Small(Small::default())] {
            let text = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
        }
    }

    #[test]
    fn files_replace_links_instead_of_following_them() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.path().join("resolv.conf")).unwrap();
        put(root.path(), "resolv.conf", 0o600, "text").unwrap();
        let found = fs::symlink_metadata(root.path().join("resolv.conf")).unwrap();
        assert!(found.is_file());
        assert_eq!(found.mode() & 0o777, 0o600);
    }
}
