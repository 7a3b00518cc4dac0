//! Debian packages as raw material: found, downloaded and unpacked by the ordinary tools, never installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, sha256_of_file};
use crate::command::Run;
use crate::{Error, error::file};

const DOWNLOAD: Duration = Duration::from_secs(600);

/// A package with the version that went into a build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageVersion {
    /// The package's name.
    pub package: String,
    /// Its version in Debian's form.
    pub version: String,
    /// SHA-256 of the package file, in hexadecimal.
    pub sha256: String,
}

/// What the package index says about the version that apt would install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Name, version and digest.
    pub package: PackageVersion,
    /// The first alternative of each dependency, pre-dependencies first.
    pub depends: Vec<String>,
    architecture: String,
}

/// An unpacked package.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// What was unpacked.
    pub record: Record,
    /// The folder with its files; shared with other builds, so never written to.
    pub root: PathBuf,
}

impl Unpacked {
    /// A file of the package by its absolute path.
    ///
    /// # Errors
    /// [`Error::NotInPackage`].
    pub fn file(&self, path: &str) -> Result<PathBuf, Error> {
        let found = self.root.join(path.trim_start_matches('/'));
        if found.is_file() { Ok(found) } else { Err(self.lacks(path)) }
    }

    /// The error for something that the package should contain.
    #[must_use]
    pub fn lacks(&self, wanted: &str) -> Error {
        let PackageVersion { package, version, .. } = &self.record.package;
        Error::NotInPackage { package: format!("{package} {version}"), wanted: wanted.to_owned() }
    }
}

/// Looks a package up in apt's index, without the network.
///
/// # Errors
/// [`Error::UnknownPackage`] when the index is empty or lacks it.
pub fn lookup(cache: &Cache, package: &str) -> Result<Record, Error> {
    // Container images switch apt's own index cache off; without one each look-up parses the whole index anew.
    let apt = cache.folder("apt")?;
    let kept = |name: &str| format!("-oDir::Cache::{name}={}", apt.join(name).display());
    let show = Run::new("apt-cache", "apt").args([kept("pkgcache"), kept("srcpkgcache")]);
    match show.args(["show", "--no-all-versions", "--", package]).to(&format!("look up {package}")).text() {
        Ok(text) => parse(package, &text),
        Err(Error::Program { .. }) => Err(Error::UnknownPackage { package: package.to_owned() }),
        Err(other) => Err(other),
    }
}

/// Follows a meta-package to the package it stands for: the first dependency whose name starts with `prefix`.
///
/// # Errors
/// When the index lacks either of them.
pub fn newest(cache: &Cache, meta: &str, prefix: &str) -> Result<Record, Error> {
    let record = lookup(cache, meta)?;
    let real = record.depends.iter().find(|name| name.starts_with(prefix));
    lookup(cache, real.ok_or_else(|| Error::PackageField { package: meta.to_owned(), field: "Depends" })?)
}

/// Downloads a package unless the cache has it, checks its digest and unpacks it.
///
/// # Errors
/// When the network, the disk or the package index fails.
pub fn unpack(cache: &Cache, record: &Record, progress: &dyn Fn(&str)) -> Result<Unpacked, Error> {
    let PackageVersion { package, version, sha256 } = &record.package;
    let digest = sha256.get(..16).unwrap_or(sha256);
    let root = cache.folder("unpacked")?.join(format!("{package}_{}_{digest}", file_safe(version)));
    if !root.exists() {
        let archive = download(cache, record, progress)?;
        progress(&format!("unpack {package} {version}"));
        let work = cache.work("packages")?;
        let fresh = work.path().join("root");
        Run::new("dpkg-deb", "dpkg")
            .args(["--extract".as_ref(), archive.as_os_str(), fresh.as_os_str()])
            .to(&format!("unpack {package}"))
            .output()?;
        decompress_modules(&fresh)?;
        // Another build may have been faster; its folder holds the same files.
        if let Err(source) = fs::rename(&fresh, &root)
            && !root.exists()
        {
            return Err(file("make the folder", root)(source));
        }
    }
    Ok(Unpacked { record: record.clone(), root })
}

/// Since Debian 13 kernel modules are compressed; our initramfs compresses better as a whole.
fn decompress_modules(root: &Path) -> Result<(), Error> {
    Run::new("find", "findutils")
        .args([root.as_os_str()])
        .args(["-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"])
        .to("decompress kernel modules, by xz of the package xz-utils")
        .output()?;
    Ok(())
}

/// The package file in the cache, downloaded when it is not there yet.
fn download(cache: &Cache, record: &Record, progress: &dyn Fn(&str)) -> Result<PathBuf, Error> {
    let PackageVersion { package, version, sha256 } = &record.package;
    let name = format!("{package}_{}_{}.deb", file_safe(version), record.architecture);
    let kept = cache.folder("packages")?.join(name);
    if kept.exists() && sha256_of_file(&kept)? == *sha256 {
        return Ok(kept);
    }
    progress(&format!("download {package} {version}"));
    let work = cache.work("packages")?;
    // apt would drop to its own user, who cannot write into our folder, and warn about it.
    Run::new("apt-get", "apt")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
        .args([format!("{package}={version}")])
        .within(work.path())
        .to(&format!("download {package}"))
        .hint("; run `apt-get update` if the index is old, and check that the package registry can be reached")
        .deadline(DOWNLOAD)
        .output()?;
    let fresh = only_file(work.path())?;
    let found = sha256_of_file(&fresh)?;
    if found != *sha256 {
        return Err(Error::WrongDigest { path: fresh, expected: sha256.clone(), found });
    }
    fs::rename(&fresh, &kept).map_err(file("keep", &kept))?;
    Ok(kept)
}

fn only_file(folder: &Path) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(folder).map_err(file("list", folder))?;
    let found = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    found.ok_or_else(|| Error::NotInPackage { package: "download".to_owned(), wanted: ".deb file".to_owned() })
}

/// An epoch's colon is awkward in paths that go through shells and lists.
fn file_safe(version: &str) -> String {
    version.replace(':', "%3a")
}

/// Reads the first paragraph of `apt-cache show`.
fn parse(package: &str, text: &str) -> Result<Record, Error> {
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines().take_while(|line| !line.is_empty()) {
        // Continuation lines start with a space; none of the fields used here has any.
        if let Some((key, value)) = line.split_once(':')
            && !key.starts_with(' ')
        {
            fields.insert(key, value.trim());
        }
    }
    if fields.is_empty() {
        return Err(Error::UnknownPackage { package: package.to_owned() });
    }
    let need = |field: &'static str| {
        let value = fields.get(field).filter(|value| !value.is_empty());
        value.map(|value| (*value).to_owned()).ok_or(Error::PackageField { package: package.to_owned(), field })
    };
    let depends = ["Pre-Depends", "Depends"].iter().filter_map(|field| fields.get(field));
    Ok(Record {
        package: PackageVersion { package: need("Package")?, version: need("Version")?, sha256: need("SHA256")? },
        depends: depends.flat_map(|list| list.split(',')).filter_map(dependency_name).collect(),
        architecture: need("Architecture")?,
    })
}

/// `libc6 (>= 2.34) | other` is `libc6`.
fn dependency_name(dependency: &str) -> Option<String> {
    let name = dependency.split(['|', '(', ':']).next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const SHOW: &str = "Package: e2fsprogs\nVersion: 1:2.3-4\nArchitecture: amd64\nDepends: logsave | other, x:any\n\
        Pre-Depends: libblkid1 (>= 2.36), libc6 (>= 2.34)\nDescription: tools\n more: text\nSHA256: 00ff\n\nPackage: b\n";

    #[test]
    fn the_index_is_read() {
        let record = parse("e2fsprogs", SHOW).unwrap();
        assert_eq!(record.package.version, "1:2.3-4");
        assert_eq!(record.package.sha256, "00ff");
        assert_eq!(record.depends, ["libblkid1", "libc6", "logsave", "x"]);
    }

    #[test]
    fn an_empty_index_says_what_to_run() {
        let sentence = parse("linux-image-amd64", "").unwrap_err().to_string();
        assert!(sentence.contains("apt-get update"), "{sentence}");
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let sentence = lookup(&cache, "rackswarm-no-such-package").unwrap_err().to_string();
        assert!(sentence.contains("apt-get update"), "{sentence}");
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let root = tempfile::tempdir().unwrap();
        let module = root.path().join("kernel").join("a.ko");
        fs::create_dir(root.path().join("kernel")).unwrap();
        fs::write(&module, "module").unwrap();
        Run::new("xz", "xz-utils").args([&module]).output().unwrap();
        assert!(!module.exists());
        decompress_modules(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&module).unwrap(), "module");
    }

    #[test]
    fn a_record_without_a_digest_is_refused() {
        let error = parse("a", "Package: a\nVersion: 1\nArchitecture: all\n").unwrap_err();
        assert!(error.to_string().contains("SHA256"), "{error}");
    }
}
