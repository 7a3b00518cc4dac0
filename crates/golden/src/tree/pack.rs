//! A tree for a layout that each node builds for itself: looked through, and packed again as one archive whatever it came as.
//! The nodes unpack nothing that was not unpacked here before.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use bootenv::cache::{Cache, Lock};
use bootenv::command::Run;
use fleet::disk::Size;
use fleet::layout::{Extent, Kind, Layout};
use tempfile::TempDir;

use super::inside::Inside;
use super::place::{self, Need};
use super::system;
use super::{LOCK, Tree};
use crate::error::{Error, file};

/// Packing some ten GiB.
const PACK: Duration = Duration::from_secs(3600);
/// Owners as numbers, holes, and every attribute (`security.capability`, ACLs, labels), in an order that is always the same.
const TAR: &str = "exec tar --create --file=- --format=posix --numeric-owner --xattrs --xattrs-include='*' --sparse \
    --sort=name --use-compress-program='zstd -q -T0' --directory=\"$0\" . >> \"$1\"";

/// A packed tree. It and all that it was made of go when this is dropped.
#[derive(Debug)]
pub struct Packed {
    /// Its file.
    pub path: PathBuf,
    /// The file's size in bytes.
    pub size_bytes: u64,
    /// The distribution's name and version.
    pub system: String,
    /// The kernel's version.
    pub kernel_version: String,
    /// What could not be kept, in sentences.
    pub notes: Vec<String>,
    _work: TempDir,
    _lock: Lock,
}

impl Tree {
    /// Packs the tree behind the `head` of the layout, which knows what the tree needs by then; `tail` gives what comes behind so many bytes. Blocks for as long as that takes.
    ///
    /// # Errors
    /// When not root; when layout, archive or digests are not right; when the tree does not fit, would not start from this
    /// layout, or lacks what makes it start; when a program is missing. Nothing is left behind.
    pub fn pack(
        &self,
        head: &dyn Fn(&Layout) -> Result<Vec<u8>, String>,
        tail: &dyn Fn(u64) -> Vec<u8>,
        progress: &dyn Fn(&str),
    ) -> Result<Packed, Error> {
        self.layout.check_for_nodes()?;
        if self.size_bytes.is_some() || self.kernel_line.is_some() {
            return Err(Error::Tree("each node makes this layout on its own disks with the tree's own boot loader: leave --size and --kernel-line out, and write kernel parameters into the tree's /etc/default/grub".to_owned()));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let cache = Cache::open(&self.cache)?;
        let lock = cache.lock(LOCK, progress)?;
        let work = cache.work(LOCK)?;

        let (root, notes) = self.unpack(work.path(), None, progress)?;
        let tree = Inside::at(&root)?;
        place::make_points(&tree, &self.layout)?;
        let (system, kernel_version) = system::expect_for_nodes(&tree, &self.layout)?;
        system::complete(&tree)?;

        let needs = place::measure(&root, &self.layout)?;
        let head = head(&self.layout_for(&needs)).map_err(Error::Tree)?;
        progress(&format!("pack {system} with Linux {kernel_version}"));
        let path = work.path().join("tree.tar.zst");
        let mut packed = OpenOptions::new().append(true).create_new(true).open(&path).map_err(file("create", &path))?;
        packed.write_all(&head).map_err(file("write", &path))?;
        Run::new("sh", "dash")
            .args(["-c", TAR])
            .args([&root, &path])
            .to("pack the tree")
            .hint("; it takes tar and zstd")
            .deadline(PACK)
            .output()?;
        let length = || fs::metadata(&path).map(|found| found.len()).map_err(file("measure", &path));
        packed.write_all(&tail(length()?)).map_err(file("write", &path))?;
        let size_bytes = length()?;
        self.expect_volumes(&needs, size_bytes)?;
        Ok(Packed { path, size_bytes, system, kernel_version, notes, _work: work, _lock: lock })
    }

    /// The layout with what the tree needs of each place whose size only the nodes' disks tell.
    fn layout_for(&self, needs: &BTreeMap<String, Need>) -> Layout {
        let mut layout = self.layout.clone();
        for mount in layout.mounts.iter_mut().filter(|mount| mount.kind != Kind::Swap) {
            if !matches!(self.layout.extent(&mount.on), Some(Extent::Bytes(_))) {
                let needed = place::least_bytes(mount.kind, place::need_of(mount, needs));
                let said = mount.least.and_then(Extent::bytes).unwrap_or_default();
                mount.least = Some(Extent::Bytes(needed.max(said)));
            }
        }
        layout
    }

    /// Whether the tree fits where the layout itself says how large a place is. The archive lies on the root file system
    /// until it is unpacked.
    fn expect_volumes(&self, needs: &BTreeMap<String, Need>, packed_bytes: u64) -> Result<(), Error> {
        for mount in &self.layout.mounts {
            let (Some(at), Some(Extent::Bytes(size_bytes))) = (&mount.at, self.layout.extent(&mount.on)) else {
                continue;
            };
            let need = needs.get(at).copied().unwrap_or_default();
            let bytes = need.bytes + if at == "/" { packed_bytes } else { 0 };
            let room = place::capacity(mount.kind, size_bytes, need.files);
            if bytes > room {
                let with = if at == "/" { ", and the archive that it is unpacked from," } else { "" };
                return Err(Error::TreeTooLarge {
                    what: format!("what the tree has under {at}{with} with the {} around it", mount.kind.as_str()),
                    needs: Size((bytes + size_bytes - room).next_multiple_of(1 << 20)),
                    place: format!("{} has", mount.on),
                    has: Size(size_bytes),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::tree::Platform;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    const LAYOUT: &str = r#"
[[disk]]
name = "a"
partition = [{ name = "bios", size = "1MiB", role = "bios_boot" }, { name = "raid", size = "rest" }]
[[disk]]
name = "b"
rule = { path = "/dev/vdb" }
partition = [{ name = "bios", size = "1MiB", role = "bios_boot" }, { name = "raid", size = "rest" }]
[[raid]]
name = "mirror"
level = 1
members = ["a.raid", "b.raid"]
[[group]]
name = "vg"
members = ["mirror"]
volume = [{ name = "root", size = "64MiB" }]
[[mount]]
on = "vg/root"
kind = "ext4"
at = "/"
"#;
    const FILES: [&str; 9] = [
        "etc/os-release",
        "sbin/init",
        "boot/vmlinuz-6.1.0-1-amd64",
        "usr/sbin/update-initramfs",
        "usr/sbin/grub-install",
        "usr/sbin/grub-mkconfig",
        "usr/lib/grub/i386-pc/normal.mod",
        "sbin/mdadm",
        "sbin/lvm",
    ];

    fn archive(root: &std::path::Path, to: &std::path::Path) {
        let status = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(to).arg(".").status().unwrap();
        assert!(status.success());
    }

    /// An archive of these files, and a tree that is to be made of it.
    fn tree(folder: &std::path::Path, files: &[&str]) -> Tree {
        let root = folder.join("made");
        for name in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "ID=debian\nPRETTY_NAME=\"Debian 12\"\n").unwrap();
        }
        let source = folder.join("made.tar");
        archive(&root, &source);
        Tree {
            source,
            layout: toml::from_str(LAYOUT).unwrap(),
            size_bytes: None,
            platform: Platform::own(),
            tag: None,
            kernel_line: None,
            cache: folder.join("cache"),
        }
    }

    #[test]
    fn a_packed_tree_has_head_and_tail_and_is_unpacked_by_tar() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(folder.path(), &FILES);
        std::os::unix::fs::chown(folder.path().join("made/etc/os-release"), Some(7), Some(8)).unwrap();
        archive(&folder.path().join("made"), &tree.source);
        // Skippable frames, as zstd's own tool passes over them.
        let frame = [&[0x5E, 0x2A, 0x4D, 0x18, 4, 0, 0, 0][..], b"head"].concat();
        let packed = tree.pack(&|_| Ok(frame.clone()), &|_| frame.clone(), &|_| ()).unwrap();
        assert_eq!((packed.system.as_str(), packed.kernel_version.as_str()), ("Debian 12", "6.1.0-1-amd64"));
        let bytes = fs::read(&packed.path).unwrap();
        assert!(bytes.starts_with(&frame) && bytes.ends_with(&frame) && bytes.len() as u64 == packed.size_bytes);
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let status =
            Command::new("tar").arg("-C").arg(&out).args(["--zstd", "-xpf"]).arg(&packed.path).status().unwrap();
        assert!(status.success());
        let owner = fs::metadata(out.join("etc/os-release")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (7, 8));
        assert!(out.join("proc").is_dir(), "what a kernel needs is there");
    }

    #[test]
    fn a_tree_that_lacks_what_its_layout_takes_is_refused_with_the_packages() {
        let folder = tempfile::tempdir().unwrap();
        let sentence = |files: &[&str]| {
            let tree = tree(&tempfile::tempdir_in(folder.path()).unwrap().keep(), files);
            tree.pack(&|_| Ok(Vec::new()), &|_| Vec::new(), &|_| ()).map(drop).unwrap_err().to_string()
        };
        let without = |name: &str| FILES.into_iter().filter(|file| !file.contains(name)).collect::<Vec<_>>();
        for (name, package) in [
            ("mdadm", "mdadm"),
            ("lvm", "lvm2"),
            ("update-initramfs", "initramfs-tools"),
            ("normal.mod", "grub-pc-bin"),
        ] {
            let sentence = sentence(&without(name));
            assert!(sentence.contains("would not start") && sentence.contains(package), "{sentence}");
        }
    }

    #[test]
    fn the_layout_is_told_what_the_tree_needs_where_disks_say_the_size() {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = tree(folder.path(), &FILES);
        let least = |tree: &Tree, mib: u64| {
            let needs = BTreeMap::from([("/".to_owned(), Need { bytes: mib << 20, files: 100 })]);
            tree.layout_for(&needs).mounts.first().unwrap().least.and_then(Extent::bytes)
        };
        assert_eq!(least(&tree, 500), None, "its volume has a size");
        tree.layout = toml::from_str(&LAYOUT.replace("\"64MiB\"", "\"rest\"")).unwrap();
        let needed = least(&tree, 500).unwrap();
        assert!((500 << 20..600 << 20).contains(&needed), "{needed}");
        assert!(place::capacity(Kind::Ext4, needed, 100) >= 500 << 20);
        tree.layout = toml::from_str(
            &LAYOUT.replace("\"64MiB\"", "\"rest\"").replace("at = \"/\"", "at = \"/\"\nleast = \"9GiB\""),
        )
        .unwrap();
        assert_eq!(least(&tree, 500), Some(9 << 30), "who wants more says it");
    }

    #[test]
    fn a_tree_that_fits_beside_its_archive_only_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(folder.path(), &FILES);
        let needs = |bytes| BTreeMap::from([("/".to_owned(), Need { bytes, files: 100 })]);
        assert!(tree.expect_volumes(&needs(20 << 20), 10 << 20).is_ok());
        let sentence = tree.expect_volumes(&needs(20 << 20), 60 << 20).unwrap_err().to_string();
        assert!(
            sentence.contains("the archive that it is unpacked from") && sentence.contains("vg/root has 64 MiB"),
            "{sentence}"
        );
    }
}
