//! The boot environment: the kernel and the initramfs that machines start over the network, made from Debian packages.
//!
//! [`build`] downloads the newest kernel package, a static busybox and a few disk tools without installing anything, picks
//! kernel modules by the lists in `netboot/initramfs`, puts the agent in as `/init` and packs all of it reproducibly: equal
//! packages, agent and options give equal bytes. `bootenv.json` beside the result says what is in it.
//!
//! The building blocks ([`packages`], [`modules`], [`archive`], [`cache`], [`command`]) also serve the crate that makes
//! golden images.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub mod archive;
pub mod cache;
pub mod command;
mod elf;
mod error;
pub mod modules;
pub mod packages;
pub mod tools;

pub use cache::DEFAULT_CACHE;
pub use error::Error;

use archive::Tree;
use cache::Cache;
use error::file;
use modules::{KernelModules, Selection};
use packages::{PackageVersion, Unpacked};

/// The time stamp of every file in the initramfs unless `SOURCE_DATE_EPOCH` says otherwise: 2025-01-01, in seconds since 1970.
pub const SOURCE_DATE_EPOCH: u32 = 1_735_689_600;

const MODULES_AT_START: &str = include_str!("../../../netboot/initramfs/modules-start");
const MODULES_BY_HARDWARE: &str = include_str!("../../../netboot/initramfs/modules");
const MODULES_FOR_LAYOUTS: &str = include_str!("../../../netboot/initramfs/modules-layout");

/// Files that are copied as they are, with their permission bits.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/udhcpc/default.script", 0o755, include_str!("../../../netboot/initramfs/etc/udhcpc/default.script")),
    ("etc/profile", 0o644, include_str!("../../../netboot/initramfs/etc/profile")),
    ("etc/passwd", 0o644, include_str!("../../../netboot/initramfs/etc/passwd")),
    ("etc/group", 0o644, include_str!("../../../netboot/initramfs/etc/group")),
    ("etc/hosts", 0o644, include_str!("../../../netboot/initramfs/etc/hosts")),
    ("etc/os-release", 0o644, include_str!("../../../netboot/initramfs/etc/os-release")),
];

/// Folders that the kernel, the agent and the tools expect, with their permission bits.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/log", 0o755),
];

/// Symbolic links of every system that we make, with their targets: one tree of programs under all of their usual names,
/// and `/var/run` as everywhere.
pub const LINKS: &[(&str, &str)] = &[
    ("sbin", "bin"),
    ("usr/bin", "../bin"),
    ("usr/sbin", "../bin"),
    ("usr/lib", "../lib"),
    ("var/run", "../run"),
    ("etc/mtab", "../proc/mounts"),
];

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// `linux-image-amd64`: drivers for metal and for virtual machines.
    #[default]
    Generic,
    /// `linux-image-cloud-amd64`: smaller and faster to start, for virtual machines only. It has neither e1000 nor AHCI.
    Cloud,
}

impl Flavour {
    /// The meta-package that depends on the newest kernel of this flavour.
    #[must_use]
    pub fn meta_package(self) -> &'static str {
        match self {
            Flavour::Generic => "linux-image-amd64",
            Flavour::Cloud => "linux-image-cloud-amd64",
        }
    }
}

/// What to build, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder that receives `vmlinuz`, `initramfs`, `layout-tools` and `bootenv.json`.
    pub out: PathBuf,
    /// The agent, a static program; it becomes `/init`.
    pub agent: PathBuf,
    /// Which kernel.
    pub kernel: Flavour,
    /// Where downloads and compressed segments are kept, usually [`DEFAULT_CACHE`].
    pub cache: PathBuf,
    /// Modules to have on board beyond those in `netboot/initramfs`; unlike those, each of them must exist.
    pub modules: Vec<String>,
    /// A folder laid out like `/lib/firmware`; the files that modules on board name are taken from it.
    pub firmware: Option<PathBuf>,
    /// The time stamp of every file, in seconds since 1970.
    pub source_date_epoch: u32,
}

impl Options {
    /// The usual build: the generic kernel, the default cache, `SOURCE_DATE_EPOCH` from the process's environment.
    #[must_use]
    pub fn new(out: PathBuf, agent: PathBuf) -> Self {
        Options {
            out,
            agent,
            kernel: Flavour::Generic,
            cache: DEFAULT_CACHE.into(),
            modules: Vec::new(),
            firmware: None,
            source_date_epoch: source_date_epoch(),
        }
    }
}

/// The time stamp for reproducible output: `SOURCE_DATE_EPOCH` when it is set to a number, else a fixed date.
#[must_use]
pub fn source_date_epoch() -> u32 {
    std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()).unwrap_or(SOURCE_DATE_EPOCH)
}

/// A file with its size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The file's name in the output folder, or the path it was taken from.
    pub file: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What `bootenv.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The kernel's version, as `uname -r` will say.
    pub kernel_version: String,
    /// Which of Debian's kernels it is.
    pub flavour: Flavour,
    /// The kernel.
    pub kernel: Artifact,
    /// The initramfs.
    pub initramfs: Artifact,
    /// What agents fetch that are to build a layout. Earlier versions had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout_tools: Option<Artifact>,
    /// The initramfs when it is unpacked, in bytes: what it costs in the machine's memory.
    pub initramfs_unpacked_bytes: u64,
    /// The agent inside the initramfs.
    pub agent: Artifact,
    /// The time stamp of every file inside, in seconds since 1970.
    pub source_date_epoch: u32,
    /// The packages that files were taken from.
    pub packages: Vec<PackageVersion>,
    /// The modules that the agent loads on every machine, in order.
    pub modules_at_start: Vec<String>,
    /// All modules on board.
    pub modules: Vec<String>,
    /// Modules in the lists of `netboot/initramfs` that this kernel does not have, neither as a module nor built in.
    pub modules_absent: Vec<String>,
    /// Firmware that modules on board may ask for and that is not on board, by module. Most of it is non-free; many of these
    /// devices work without it or carry their own.
    pub firmware_missing: BTreeMap<String, Vec<String>>,
}

/// The result of [`build`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs's file.
    pub initramfs: PathBuf,
    /// What is in them; also in `bootenv.json` beside them.
    pub description: Description,
}

/// Builds kernel and initramfs.
///
/// # Errors
/// When a package cannot be had, a program is missing, the agent is not static or the disk is full. The output folder then
/// holds the former files or none.
pub fn build(options: &Options, progress: &dyn Fn(&str)) -> Result<Built, Error> {
    let agent = check_agent(&options.agent)?;
    let cache = Cache::open(&options.cache)?;
    let _lock = cache.lock("bootenv", progress)?;
    let mut used = Vec::new();

    progress(&format!("look up {}", options.kernel.meta_package()));
    let kernel = Kernel::newest(&cache, options.kernel, progress)?;
    used.push(kernel.package.record.package.clone());

    let mut tree = Tree::default();
    add_skeleton(&mut tree);
    let busybox = tools::Busybox::get(&cache, progress)?;
    busybox.add_to(&mut tree);
    used.push(busybox.package);
    used.extend(tools::add_programs(&cache, &mut tree, tools::PROGRAMS, progress)?);

    progress(&format!("choose modules of {}", kernel.version));
    let modules = KernelModules::open(&kernel.package.root, &kernel.version)?;
    let selection = select_modules(&modules, &options.modules, &kernel.version)?;
    modules.add_to(&mut tree, &selection)?;
    let at_start = modules_at_start(&selection);
    tree.text("etc/rackswarm/modules", 0o644, &lines(&at_start));
    let firmware_missing = add_firmware(&mut tree, options.firmware.as_deref(), modules.firmware(&selection));

    let (layout_tools, more) = layout_tools(&cache, &tree, &modules, &selection, progress)?;
    used.extend(more);
    let layout_tools = archive::compress_cached(&cache, &layout_tools.to_cpio(options.source_date_epoch)?, progress)?;

    let base = tree.to_cpio(options.source_date_epoch)?;
    let agent_segment = agent_tree(&options.agent).to_cpio(options.source_date_epoch)?;
    let mut initramfs = archive::compress_cached(&cache, &base, progress)?;
    initramfs.extend(archive::compress_cached(&cache, &agent_segment, progress)?);

    fs::create_dir_all(&options.out).map_err(file("make the folder", &options.out))?;
    used.sort();
    used.dedup();
    let description = Description {
        kernel: place(&options.out, "vmlinuz", &kernel.image()?)?,
        initramfs: place(&options.out, "initramfs", &initramfs)?,
        layout_tools: Some(place(&options.out, "layout-tools", &layout_tools)?),
        kernel_version: kernel.version,
        flavour: options.kernel,
        initramfs_unpacked_bytes: (base.len() + agent_segment.len()) as u64,
        agent,
        source_date_epoch: options.source_date_epoch,
        packages: used,
        modules_at_start: at_start,
        modules: selection.modules.into_iter().collect(),
        modules_absent: selection.absent,
        firmware_missing,
    };
    let json =
        serde_json::to_vec_pretty(&description).map_err(|error| file("describe", "bootenv.json")(error.into()))?;
    cache::write_whole(&options.out.join("bootenv.json"), &json)?;
    progress(&summary(&description));
    Ok(Built { kernel: options.out.join("vmlinuz"), initramfs: options.out.join("initramfs"), description })
}

/// Reads what an earlier [`build`] left in a folder.
///
/// # Errors
/// When there is no readable `bootenv.json`.
pub fn describe(folder: &Path) -> Result<Description, Error> {
    let path = folder.join("bootenv.json");
    let bytes = fs::read(&path).map_err(file("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|error| file("understand", path)(error.into()))
}

/// A kernel from a Debian package.
#[derive(Debug)]
pub struct Kernel {
    /// Its version, as `uname -r` will say.
    pub version: String,
    /// The unpacked package with the kernel and its modules.
    pub package: Unpacked,
}

impl Kernel {
    /// Gets the newest kernel of a flavour.
    ///
    /// # Errors
    /// When the package cannot be had or holds no kernel.
    pub fn newest(cache: &Cache, flavour: Flavour, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let record = packages::newest(cache, flavour.meta_package(), "linux-image-")?;
        let package = packages::unpack(cache, &record, progress)?;
        let version = record.package.package.trim_start_matches("linux-image-").to_owned();
        Ok(Kernel { version, package })
    }

    /// The kernel itself, a bzImage.
    ///
    /// # Errors
    /// When the package holds none.
    pub fn image(&self) -> Result<Vec<u8>, Error> {
        let path = self.package.file(&format!("boot/vmlinuz-{}", self.version))?;
        fs::read(&path).map_err(file("read", path))
    }
}

/// A dynamic program would end with "not found" on the machine, before it could say anything.
fn check_agent(path: &Path) -> Result<Artifact, Error> {
    if let Some(interpreter) = elf::needs(path)?.interpreter {
        return Err(Error::AgentNotStatic { path: path.to_owned(), interpreter });
    }
    let size_bytes = fs::metadata(path).map_err(file("read", path))?.len();
    Ok(Artifact { file: path.display().to_string(), size_bytes, sha256: cache::sha256_of_file(path)? })
}

fn add_skeleton(tree: &mut Tree) {
    for (path, mode) in FOLDERS {
        tree.folder(path, *mode);
    }
    for (path, target) in LINKS {
        tree.link(path, target);
    }
    for (path, mode, text) in FILES {
        tree.text(path, *mode, text);
    }
    // The kernel opens the console for /init before anything can mount a device file system.
    tree.character("dev/console", 0o600, 5, 1);
    tree.character("dev/null", 0o666, 1, 3);
}

fn agent_tree(agent: &Path) -> Tree {
    let mut tree = Tree::default();
    tree.copy("init", 0o755, agent);
    tree
}

/// Absent names in our own lists are normal, kernels differ; absent names from the caller are mistakes.
fn select_modules(modules: &KernelModules, extra: &[String], version: &str) -> Result<Selection, Error> {
    if let Some(module) = modules.select(extra.iter().map(String::as_str)).absent.first() {
        return Err(Error::NoModule { module: module.clone(), version: version.to_owned() });
    }
    let listed = names(MODULES_AT_START).chain(names(MODULES_BY_HARDWARE));
    Ok(modules.select(listed.chain(extra.iter().map(String::as_str))))
}

/// What machines need beyond `base` to build a layout: programs, modules, and the lists of all modules in place of the base's.
fn layout_tools(
    cache: &Cache,
    base: &Tree,
    modules: &KernelModules,
    on_board: &Selection,
    progress: &dyn Fn(&str),
) -> Result<(Tree, Vec<PackageVersion>), Error> {
    let mut tree = Tree::default();
    let packages = tools::add_programs(cache, &mut tree, tools::LAYOUT_PROGRAMS, progress)?;
    let wanted = || names(MODULES_FOR_LAYOUTS);
    let all = modules.select(on_board.modules.iter().map(String::as_str).chain(wanted()));
    modules.add_to(&mut tree, &all)?;
    let plain = wanted().map(|name| name.replace('-', "_")).filter(|name| all.modules.contains(name));
    tree.text("etc/rackswarm/modules-layout", 0o644, &lines(&plain.collect::<Vec<_>>()));
    tree.leave_out(base);
    Ok((tree, packages))
}

fn modules_at_start(selection: &Selection) -> Vec<String> {
    let plain = names(MODULES_AT_START).map(|name| name.replace('-', "_"));
    plain.filter(|name| selection.modules.contains(name)).collect()
}

/// Takes the wanted firmware from `folder` and gives what is not there.
fn add_firmware(
    tree: &mut Tree,
    folder: Option<&Path>,
    wanted: BTreeMap<String, Vec<String>>,
) -> BTreeMap<String, Vec<String>> {
    let mut missing = BTreeMap::new();
    for (module, files) in wanted {
        for name in files {
            match folder.map(|folder| folder.join(&name)).filter(|path| path.is_file()) {
                Some(path) => tree.copy(&format!("lib/firmware/{name}"), 0o644, &path),
                None => missing.entry(module.clone()).or_insert_with(Vec::new).push(name),
            }
        }
    }
    missing
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.split('#').next()).map(str::trim).filter(|name| !name.is_empty())
}

fn lines(names: &[String]) -> String {
    names.iter().map(|name| format!("{name}\n")).collect()
}

fn place(out: &Path, name: &str, bytes: &[u8]) -> Result<Artifact, Error> {
    cache::write_whole(&out.join(name), bytes)?;
    Ok(Artifact { file: name.to_owned(), size_bytes: bytes.len() as u64, sha256: cache::sha256(bytes) })
}

#[allow(clippy::cast_precision_loss)]
fn summary(built: &Description) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "kernel {} {:.1} MiB, initramfs {:.1} MiB ({:.1} MiB unpacked, {} modules), agent {:.1} MiB, layout tools {:.1} MiB",
        built.kernel_version,
        mib(built.kernel.size_bytes),
        mib(built.initramfs.size_bytes),
        mib(built.initramfs_unpacked_bytes),
        built.modules.len(),
        mib(built.agent.size_bytes),
        mib(built.layout_tools.as_ref().map_or(0, |tools| tools.size_bytes)),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_no_doubles_and_comments_are_skipped() {
        let mut all: Vec<_> = names(MODULES_AT_START).chain(names(MODULES_BY_HARDWARE)).collect();
        assert!(all.contains(&"virtio_net") && all.contains(&"mlx5_core") && !all.iter().any(|n| n.contains('#')));
        all.sort_unstable();
        let before = all.len();
        all.dedup();
        assert_eq!(before, all.len());
    }

    #[test]
    fn firmware_is_taken_or_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bnx2")).unwrap();
        fs::write(folder.path().join("bnx2/a.fw"), "firmware").unwrap();
        let wanted = BTreeMap::from([("bnx2".to_owned(), vec!["bnx2/a.fw".to_owned(), "bnx2/b.fw".to_owned()])]);
        let mut tree = Tree::default();
        let missing = add_firmware(&mut tree, Some(folder.path()), wanted.clone());
        assert_eq!(missing["bnx2"], ["bnx2/b.fw"]);
        assert!(String::from_utf8_lossy(&tree.to_cpio(0).unwrap()).contains("lib/firmware/bnx2/a.fw"));
        assert_eq!(add_firmware(&mut Tree::default(), None, wanted.clone()), wanted);
    }

    #[test]
    fn a_dynamic_agent_is_refused() {
        let error = check_agent(&std::env::current_exe().unwrap()).unwrap_err();
        assert!(error.to_string().contains("must be a static program"), "{error}");
    }
}
