//! A layout that was built, mounted as the system that a tree of files becomes on it: the tree is unpacked, told of its file
//! systems, arrays and keys, and given an initramfs and a boot loader by its own programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use fleet::layout::{Layout, Mount, Plan, Role, Table, Target};

use super::mount::MountedRoot;
use super::{Done, Root, of_action, timed, wrong};
use crate::command::Run;
use crate::contents::probe;
use crate::layout::{Built, WITHOUT_UDEV};
use crate::{Error, Stop};

/// Where the archive lies until it is unpacked, on the root file system.
const ARCHIVE: &str = ".rackswarm-tree.tar.zst";
/// Millions of files on slow disks.
const UNPACK_LIMIT: Duration = Duration::from_secs(3600);
/// Packing the modules of several kernels.
const INITRAMFS_LIMIT: Duration = Duration::from_secs(1800);
/// GRUB's installer looks at every disk.
const LOADER_LIMIT: Duration = Duration::from_secs(600);
/// Looking at one device.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Where GRUB's own script looks before it finds a root file system by its UUID.
const BY_UUID: &str = "/dev/disk/by-uuid";

/// A layout with everything mounted. Dropping it unmounts and closes everything.
#[derive(Debug)]
pub(crate) struct LaidRoot {
    /// Dropped first: mounts keep devices open.
    mounted: MountedRoot,
    built: Built,
    plan: Plan,
}

impl LaidRoot {
    /// Mounts the layout's file systems in each other.
    pub(crate) fn mount(built: Built, plan: Plan) -> Result<Self, Error> {
        let mounted = MountedRoot::mount_laid(&plan.mounts).map_err(|error| of_action("mount", error))?;
        Ok(Self { mounted, built, plan })
    }

    /// Where the archive is to be put.
    pub(crate) fn archive(&self) -> PathBuf {
        self.root().path().join(ARCHIVE)
    }

    pub(super) fn root(&self) -> &Root {
        self.mounted.root()
    }

    /// Unpacks the archive and removes it.
    pub(crate) fn unpack(&mut self, stop: &Stop, done: &Done<'_>) -> Result<(), Error> {
        let archive = self.archive();
        step("unpack", stop, done, || {
            Run::new("tar", UNPACK_LIMIT)
                .args(["--extract", "--use-compress-program=zstd -dcq", "--numeric-owner", "--same-owner"])
                .args(["--preserve-permissions", "--xattrs", "--xattrs-include=*", "--delay-directory-restore"])
                .args(["--directory".as_ref(), self.root().path().as_os_str(), "--file".as_ref(), archive.as_os_str()])
                .text(stop)?;
            fs::remove_file(&archive).map_err(Error::io("remove", &archive))?;
            Ok("the tree is unpacked on its file systems".to_owned())
        })?;
        // Only now: the archive's own /dev and /run are not for the kernel's.
        self.mounted.mount_special().map_err(|error| of_action("mount", error))
    }

    /// Makes the tree start from these disks.
    pub(crate) fn make_start(
        &self,
        layout: &Layout,
        targets: &[Target],
        keys: &BTreeMap<String, Vec<u8>>,
        stop: &Stop,
        done: &Done<'_>,
    ) -> Result<(), Error> {
        step("file_systems", stop, done, || self.tell_of_devices(layout, keys, stop))?;
        step("initramfs", stop, done, || {
            self.inside("update-initramfs", INITRAMFS_LIMIT).args(["-u", "-k", "all"]).text(stop)?;
            Ok("made by the tree's own update-initramfs".to_owned())
        })?;
        step("boot_loader", stop, done, || self.install_loader(layout, targets, stop))
    }

    /// Writes what the system is to find its file systems, arrays and keys by.
    fn tell_of_devices(&self, layout: &Layout, keys: &BTreeMap<String, Vec<u8>>, stop: &Stop) -> Result<String, Error> {
        let root = self.root();
        let mut known = BTreeMap::new();
        for (mount, device) in &self.plan.mounts {
            known.insert(mount.on.as_str(), uuid(device, stop)?);
        }
        let identity = |mount: &Mount| known.get(mount.on.as_str()).cloned().unwrap_or_default();
        let old = root.read("etc/fstab")?.unwrap_or_default();
        root.write("etc/fstab", 0o644, layout.table_of_mounts(&identity, &old))?;

        if !self.plan.locked.is_empty() {
            let mut table = String::new();
            for (locked, device) in &self.plan.locked {
                table.push_str(&format!("{} UUID={} {} luks\n", locked.name, uuid(device, stop)?, locked.key_file));
                let missing = || Error::Defect(format!("the key of {} is gone", locked.name));
                root.write(&locked.key_file, 0o400, keys.get(&locked.name).ok_or_else(missing)?)?;
            }
            root.write("etc/crypttab", 0o644, table)?;
        }
        if !self.plan.arrays.is_empty() {
            let mut table = "HOMEHOST <ignore>\nMAILADDR root\n".to_owned();
            for (name, device) in &self.plan.arrays {
                let about = Run::new("mdadm", LOOK_LIMIT).args(["--detail", "--export", device]).text(stop)?;
                let id = about.lines().find_map(|line| line.strip_prefix("MD_UUID="));
                let id = id.ok_or_else(|| Error::Layout(format!("{device} does not tell its UUID")))?;
                table.push_str(&format!("ARRAY /dev/md/{name} UUID={id}\n"));
            }
            root.write("etc/mdadm/mdadm.conf", 0o644, table)?;
        }
        let of = |count: usize, what: &str| format!("{count} {what}");
        Ok([
            of(self.plan.mounts.len(), "file systems"),
            of(self.plan.arrays.len(), "arrays"),
            of(self.plan.locked.len(), "encrypted devices with keys made here"),
        ]
        .join(", "))
    }

    /// On every disk that firmware may start: the system is to start with any one member of a mirror.
    fn install_loader(&self, layout: &Layout, targets: &[Target], stop: &Stop) -> Result<String, Error> {
        self.show_root_by_uuid(stop)?;
        let mut said = Vec::new();
        for (disk, target) in layout.disks.iter().zip(targets) {
            if layout.table == Table::Mbr || disk.has(Role::BiosBoot) {
                self.inside("grub-install", LOADER_LIMIT).args(["--target=i386-pc", &target.path]).text(stop)?;
                said.push(format!("BIOS on {}", target.path));
            }
        }
        if let Some(esp) = layout.esp().and_then(|mount| mount.at.as_deref()) {
            // The standing order is the agent's, set when everything is closed; firmware without entries starts the copy.
            self.inside("grub-install", LOADER_LIMIT)
                .args(["--target=x86_64-efi", "--no-nvram", "--force-extra-removable"])
                .args([format!("--efi-directory={esp}")])
                .text(stop)?;
            said.push(format!("UEFI at {esp}"));
        }
        self.inside("grub-mkconfig", LOADER_LIMIT).args(["-o", "/boot/grub/grub.cfg"]).text(stop)?;
        Ok(format!("GRUB, by the tree's own grub-install: {}", said.join(", ")))
    }

    /// No udev makes these links here, and without its own GRUB's script would name a device that may be called otherwise
    /// after the next start.
    fn show_root_by_uuid(&self, stop: &Stop) -> Result<(), Error> {
        let (_, device) = self.plan.mounts.first().ok_or_else(|| wrong("boot_loader", "there is no root"))?;
        let link = PathBuf::from(BY_UUID).join(uuid(device, stop)?);
        fs::create_dir_all(BY_UUID).map_err(Error::io("make the folder", BY_UUID))?;
        if !link.exists() {
            std::os::unix::fs::symlink(device, &link).map_err(Error::io("link", &link))?;
        }
        Ok(())
    }

    fn inside(&self, program: &str, limit: Duration) -> Run {
        let run = Run::inside(self.root().path(), program, limit);
        WITHOUT_UDEV.iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// Unmounts everything, then closes every device.
    pub(super) fn close(self) -> Result<(), Error> {
        self.mounted.unmount().map_err(|error| of_action("unmount", error))?;
        self.built.close()
    }
}

/// A step that may take minutes, named before it begins.
fn step(
    name: &'static str,
    stop: &Stop,
    done: &Done<'_>,
    act: impl FnOnce() -> Result<String, Error>,
) -> Result<(), Error> {
    tracing::info!("{name}");
    timed(name, stop, done, || act().map(Some))
}

/// The identity of what a device holds, read from it.
fn uuid(device: &str, stop: &Stop) -> Result<String, Error> {
    let found = probe(&[device], LOOK_LIMIT, stop)?;
    let uuid = found.into_iter().next().and_then(|found| found.uuid);
    uuid.ok_or_else(|| Error::Layout(format!("{device} has no UUID")))
}
