//! The programs on board: busybox and the disk tools with the shared libraries they need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::Tree;
use crate::cache::Cache;
use crate::command::Run;
use crate::packages::{self, PackageVersion, Unpacked};
use crate::{Error, elf, error::file};

/// Programs by the package that has them.
pub(crate) type Programs = &'static [(&'static str, &'static [&'static str])];

/// Programs that busybox does not have or does worse, by package. Their libraries follow by themselves.
pub(crate) const PROGRAMS: Programs = &[
    ("e2fsprogs", &["sbin/resize2fs", "sbin/e2fsck", "sbin/dumpe2fs"]),
    ("hdparm", &["sbin/hdparm"]),
    ("nvme-cli", &["usr/sbin/nvme"]),
    ("util-linux", &["sbin/blkid", "sbin/wipefs", "sbin/blkdiscard", "sbin/blockdev"]),
    ("efibootmgr", &["bin/efibootmgr"]),
    ("kexec-tools", &["sbin/kexec"]),
    ("smartmontools", &["usr/sbin/smartctl"]),
    ("xfsprogs", &["usr/sbin/xfs_growfs", "usr/sbin/xfs_db", "usr/sbin/xfs_logprint"]),
];

/// Programs that only those machines need that build a layout and unpack a tree of files on it.
pub(crate) const LAYOUT_PROGRAMS: Programs = &[
    ("cryptsetup-bin", &["sbin/cryptsetup"]),
    ("dosfstools", &["sbin/mkfs.vfat"]),
    ("e2fsprogs", &["sbin/mkfs.ext4"]),
    ("fdisk", &["sbin/sfdisk"]),
    ("gdisk", &["sbin/sgdisk"]),
    ("lvm2", &["sbin/lvm"]),
    ("mdadm", &["sbin/mdadm"]),
    // busybox's keeps no extended attributes.
    ("tar", &["bin/tar"]),
    ("util-linux", &["usr/bin/partx", "sbin/mkswap"]),
    ("xfsprogs", &["sbin/mkfs.xfs"]),
    ("zstd", &["usr/bin/zstd"]),
];

/// Where a package may keep its shared libraries.
const LIBRARY_FOLDERS: &[&str] = &["lib", "usr/lib", "lib64", "usr/lib64"];

/// A static busybox with the names it answers to.
#[derive(Debug, Clone)]
pub struct Busybox {
    /// The package it came from.
    pub package: PackageVersion,
    program: PathBuf,
    applets: Vec<String>,
}

impl Busybox {
    /// Gets Debian's static busybox.
    ///
    /// # Errors
    /// When the package cannot be had or its program does not run here.
    pub fn get(cache: &Cache, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let package = packages::unpack(cache, &packages::lookup(cache, "busybox-static")?, progress)?;
        let program = package.file("bin/busybox").or_else(|_| package.file("usr/bin/busybox"))?;
        let list = Run::new(&program.to_string_lossy(), "busybox-static").args(["--list"]).text()?;
        let applets = list.lines().filter(|applet| *applet != "busybox").map(str::to_owned).collect();
        Ok(Busybox { package: package.record.package, program, applets })
    }

    /// Adds it as `/bin/busybox` with a link for each of its names.
    pub fn add_to(&self, tree: &mut Tree) {
        tree.copy("bin/busybox", 0o755, &self.program);
        for applet in &self.applets {
            tree.link(&format!("bin/{applet}"), "busybox");
        }
    }
}

/// Adds programs as `/bin/NAME`, their libraries and the dynamic loader, and gives the packages they came from.
pub(crate) fn add_programs(
    cache: &Cache,
    tree: &mut Tree,
    programs: Programs,
    progress: &dyn Fn(&str),
) -> Result<Vec<PackageVersion>, Error> {
    let mut sources = Sources { cache, progress, unpacked: BTreeMap::new() };
    let mut open = VecDeque::new();
    for (package, programs) in programs {
        for program in *programs {
            let path = sources.get(package)?.file(program).or_else(|_| sources.get(package)?.file(&merged(program)))?;
            let name = program.rsplit('/').next().unwrap_or(program);
            tree.copy(&format!("bin/{name}"), 0o755, &path);
            open.push_back((path, (*package).to_owned()));
        }
    }
    let mut placed = BTreeSet::new();
    while let Some((path, owner)) = open.pop_front() {
        let needs = elf::needs(&path)?;
        let loader = needs.interpreter.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
        if let (Some(interpreter), Some(name)) = (&needs.interpreter, &loader) {
            let (library, _) = sources.library(name, &path, &owner)?;
            tree.copy(interpreter.trim_start_matches('/'), 0o755, &library);
        }
        for name in needs.libraries.into_iter().filter(|name| Some(name) != loader.as_ref()) {
            if placed.insert(name.clone()) {
                let (library, owner) = sources.library(&name, &path, &owner)?;
                tree.copy(&format!("lib/{name}"), 0o644, &library);
                open.push_back((library, owner));
            }
        }
    }
    Ok(sources.unpacked.into_values().map(|package| package.record.package).collect())
}

/// Since Debian 13 everything is below `/usr`.
fn merged(path: &str) -> String {
    format!("usr/{path}")
}

/// The packages unpacked so far, and the means to get more.
struct Sources<'a> {
    cache: &'a Cache,
    progress: &'a dyn Fn(&str),
    unpacked: BTreeMap<String, Unpacked>,
}

impl Sources<'_> {
    fn get(&mut self, package: &str) -> Result<Unpacked, Error> {
        if let Some(unpacked) = self.unpacked.get(package) {
            return Ok(unpacked.clone());
        }
        let unpacked = packages::unpack(self.cache, &packages::lookup(self.cache, package)?, self.progress)?;
        self.unpacked.insert(package.to_owned(), unpacked.clone());
        Ok(unpacked)
    }

    /// Finds a library in what is unpacked, else in the dependencies of the package that needs it, likeliest name first.
    fn library(&mut self, name: &str, program: &Path, owner: &str) -> Result<(PathBuf, String), Error> {
        for (package, unpacked) in &self.unpacked {
            if let Some(path) = find_library(&unpacked.root, name)? {
                return Ok((path, package.clone()));
            }
        }
        let mut candidates = self.get(owner)?.record.depends;
        // `zlib1g` has one too.
        candidates.retain(|package| package.contains("lib") && !self.unpacked.contains_key(package));
        candidates.sort_by_key(|package| (!plain(package).starts_with(&stem(name)), package.clone()));
        for package in candidates {
            let unpacked = packages::unpack(self.cache, &packages::lookup(self.cache, &package)?, self.progress)?;
            if let Some(path) = find_library(&unpacked.root, name)? {
                self.unpacked.insert(package.clone(), unpacked);
                return Ok((path, package));
            }
        }
        Err(Error::NoLibrary { program: program.display().to_string(), library: name.to_owned() })
    }
}

/// `libcom_err.so.2` is probably in `libcom-err2`: both begin with `libcomerr`.
fn stem(library: &str) -> String {
    plain(library.split(".so").next().unwrap_or(library))
}

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// Looks in the library folders and in the one below each that is named after the architecture.
fn find_library(root: &Path, name: &str) -> Result<Option<PathBuf>, Error> {
    for folder in LIBRARY_FOLDERS.iter().map(|folder| root.join(folder)).filter(|folder| folder.is_dir()) {
        let mut below = vec![folder.clone()];
        for entry in fs::read_dir(&folder).map_err(file("list", &folder))? {
            let entry = entry.map_err(file("list", &folder))?;
            if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
                below.push(entry.path());
            }
        }
        // Links may lead to absolute paths of the installed system; then the real file is met in another folder.
        if let Some(found) = below.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_are_guessed_from_library_names() {
        assert!(plain("libcom-err2").starts_with(&stem("libcom_err.so.2")));
        assert!(plain("libext2fs2t64").starts_with(&stem("libext2fs.so.2")));
        assert!(!plain("libblkid1").starts_with(&stem("libc.so.6")));
    }
}
