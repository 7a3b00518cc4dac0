//! The boot loaders, read from one folder and kept in memory: when a rack
//! starts, a few small files are asked for thousands of times.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use fleet::ids::Mac;

use crate::error::Error;

/// Largest loader, octets. A signed kernel under Secure Boot is the largest
/// thing that ever comes this way.
pub const LOADER_MAX_BYTES: u64 = 64 << 20;

/// Octets of loaders kept in memory; reading beyond it drops all and starts
/// again.
const CACHE_MAX_BYTES: u64 = 128 << 20;

/// Why a file is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No such file below the folder.
    #[error("there is no such loader")]
    NotFound,
    /// The name leads, or would lead, out of the folder.
    #[error("that name is not allowed")]
    NotAllowed,
    /// Larger than [`LOADER_MAX_BYTES`].
    #[error("the file is larger than a loader may be")]
    TooLarge,
    /// The folder cannot be read.
    #[error("the loader cannot be read: {0}")]
    Unreadable(String),
}

/// What a machine asks for, `boot/<mac>/<file>` or `<file>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderName {
    /// The machine, when the name carries it.
    pub mac: Option<Mac>,
    /// Path below the folder, of plain names only.
    pub file: String,
}

impl LoaderName {
    /// Reads a requested name. Slashes before the name count from the folder:
    /// shim and GRUB build such names from the place they were loaded from.
    ///
    /// # Errors
    /// [`NotServed::NotAllowed`] for `..`, `.`, backslashes and everything else
    /// that is not a plain name.
    pub fn parse(requested: &str) -> Result<Self, NotServed> {
        let parts: Vec<&str> = requested.split('/').filter(|part| !part.is_empty()).collect();
        let plain =
            |part: &&str| !matches!(*part, "." | "..") && !part.contains(['\\', '\0', ':']) && part.len() <= 128;
        if parts.is_empty() || parts.len() > 8 || !parts.iter().all(plain) {
            return Err(NotServed::NotAllowed);
        }
        match parts.as_slice() {
            ["boot", mac, rest @ ..] if !rest.is_empty() => match mac.parse() {
                Ok(mac) => Ok(Self { mac: Some(mac), file: rest.join("/") }),
                Err(_) => Ok(Self { mac: None, file: parts.join("/") }),
            },
            _ => Ok(Self { mac: None, file: parts.join("/") }),
        }
    }
}

#[derive(Debug, Default)]
struct Cache {
    files: BTreeMap<String, Kept>,
    bytes: u64,
}

#[derive(Debug)]
struct Kept {
    modified: Option<SystemTime>,
    content: Bytes,
}

/// The folder of boot loaders. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Loaders {
    root: Arc<PathBuf>,
    cache: Arc<Mutex<Cache>>,
}

impl Loaders {
    /// Opens the folder.
    ///
    /// # Errors
    /// [`Error::Loaders`] when it is not a readable folder.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Loaders { root: root.to_owned(), cause };
        let canonical = root.canonicalize().map_err(failed)?;
        fs::read_dir(&canonical).map_err(failed)?;
        Ok(Self { root: Arc::new(canonical), cache: Arc::new(Mutex::new(Cache::default())) })
    }

    /// The content of a loader, from memory when the file has not changed.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn read(&self, name: &LoaderName) -> Result<Bytes, NotServed> {
        let this = self.clone();
        let file = name.file.clone();
        tokio::task::spawn_blocking(move || this.read_blocking(&file))
            .await
            .map_err(|failed| NotServed::Unreadable(failed.to_string()))?
    }

    fn read_blocking(&self, file: &str) -> Result<Bytes, NotServed> {
        let path = self.locate(file)?;
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(NotServed::NotFound);
        }
        if metadata.len() > LOADER_MAX_BYTES {
            return Err(NotServed::TooLarge);
        }
        if let Some(content) = self.kept(file, &metadata) {
            return Ok(content);
        }
        let content = read_bounded(&path)?;
        self.keep(file, &metadata, content.clone());
        Ok(content)
    }

    /// The real path, with every symbolic link resolved and still inside.
    fn locate(&self, file: &str) -> Result<PathBuf, NotServed> {
        let relative = Path::new(file);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(NotServed::NotAllowed);
        }
        let path = self.root.join(relative).canonicalize().map_err(unreadable)?;
        if path.starts_with(self.root.as_path()) { Ok(path) } else { Err(NotServed::NotAllowed) }
    }

    fn kept(&self, file: &str, metadata: &Metadata) -> Option<Bytes> {
        let cache = self.lock();
        let kept = cache.files.get(file)?;
        let same = kept.modified == metadata.modified().ok() && kept.content.len() as u64 == metadata.len();
        same.then(|| kept.content.clone())
    }

    fn keep(&self, file: &str, metadata: &Metadata, content: Bytes) {
        let mut cache = self.lock();
        if let Some(former) = cache.files.remove(file) {
            cache.bytes -= former.content.len() as u64;
        }
        if cache.bytes + content.len() as u64 > CACHE_MAX_BYTES {
            *cache = Cache::default();
        }
        cache.bytes += content.len() as u64;
        cache.files.insert(file.to_owned(), Kept { modified: metadata.modified().ok(), content });
    }

    /// The cache holds nothing that a panic could leave half done.
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_bounded(path: &Path) -> Result<Bytes, NotServed> {
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(LOADER_MAX_BYTES + 1).read_to_end(&mut content)).map_err(unreadable)?;
    if content.len() as u64 > LOADER_MAX_BYTES { Err(NotServed::TooLarge) } else { Ok(content.into()) }
}

fn unreadable(cause: io::Error) -> NotServed {
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NotServed::NotFound,
        _ => NotServed::Unreadable(cause.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name(text: &str) -> LoaderName {
        LoaderName::parse(text).unwrap()
    }

    #[test]
    fn names_with_and_without_a_mac() {
        let mac: Mac = "52:54:00:01:02:03".parse().unwrap();
        let with_mac = LoaderName { mac: Some(mac), file: "snponly.efi".to_owned() };
        assert_eq!(name("boot/52-54-00-01-02-03/snponly.efi"), with_mac);
        assert_eq!(name("/boot/52-54-00-01-02-03//snponly.efi"), with_mac);
        assert_eq!(name("undionly.kpxe"), LoaderName { mac: None, file: "undionly.kpxe".to_owned() });
        assert_eq!(name("grub/x86_64-efi/net.mod").file, "grub/x86_64-efi/net.mod");
        assert_eq!(name("boot/readme"), LoaderName { mac: None, file: "boot/readme".to_owned() });
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "",
            "/",
            "..",
            "../secret",
            "boot/52-54-00-01-02-03/../../secret",
            "a/./b",
            "..\\secret",
            "C:\\boot",
            "a\0b",
            "a/b/c/d/e/f/g/h/i",
        ] {
            assert_eq!(LoaderName::parse(bad), Err(NotServed::NotAllowed), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn only_files_of_the_folder_are_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("loader"), "one").unwrap();
        std::os::unix::fs::symlink(folder.path().join("loader"), folder.path().join("alias")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), folder.path().join("leak")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("way")).unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let loaders = Loaders::open(folder.path()).unwrap();

        assert_eq!(loaders.read(&name("loader")).await.unwrap(), "one");
        assert_eq!(loaders.read(&name("alias")).await.unwrap(), "one");
        assert_eq!(loaders.read(&name("leak")).await, Err(NotServed::NotAllowed));
        assert_eq!(loaders.read(&name("way/secret")).await, Err(NotServed::NotAllowed));
        assert_eq!(loaders.read(&name("sub")).await, Err(NotServed::NotFound));
        assert_eq!(loaders.read(&name("none")).await, Err(NotServed::NotFound));
        assert_eq!(loaders.read(&name("loader/x")).await, Err(NotServed::NotFound));
        let outside_name = LoaderName { mac: None, file: "/etc/passwd".to_owned() };
        assert_eq!(loaders.read(&outside_name).await, Err(NotServed::NotAllowed));
    }

    #[tokio::test]
    async fn a_replaced_loader_is_read_again_and_a_huge_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let loaders = Loaders::open(folder.path()).unwrap();
        fs::write(folder.path().join("loader"), "one").unwrap();
        assert_eq!(loaders.read(&name("loader")).await.unwrap(), "one");
        fs::write(folder.path().join("loader"), "three").unwrap();
        assert_eq!(loaders.read(&name("loader")).await.unwrap(), "three");
        File::create(folder.path().join("huge")).unwrap().set_len(LOADER_MAX_BYTES + 1).unwrap();
        assert_eq!(loaders.read(&name("huge")).await, Err(NotServed::TooLarge));
    }

    #[test]
    fn a_missing_folder_says_what_to_install() {
        let error = Loaders::open(Path::new("/nonexistent/ipxe")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ipxe") && error.contains("tftp.root"), "{error}");
    }
}
