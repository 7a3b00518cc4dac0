//! Mounts the written system with what programs inside it need, and always
//! unmounts it again.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fleet::layout::{Kind, Mount as LaidMount};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{Pid, Signal, kill_process};

use super::Root;
use super::partitions::{Partition, System, WrittenDisk};
use crate::Error;

/// Where file systems are mounted while they are worked on.
const MOUNT_FOLDER: &str = "/run/rackswarm/mount";
/// How long something may keep a file system busy after it was ended.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Kinds besides the system's own that its file system table may name.
const OTHER_KINDS: &[&str] = &["ext4", "ext3", "ext2", "xfs", "btrfs", "vfat"];

/// One mounted file system, unmounted when dropped.
#[derive(Debug)]
pub(super) struct Mount {
    point: PathBuf,
    /// A folder that was made for it and goes with it.
    own_folder: bool,
    /// It is the host's own tree seen here, with all that is mounted in it.
    bound: bool,
    closed: bool,
}

impl Mount {
    /// Mounts a partition at a folder of its own.
    pub(super) fn of(partition: &Partition, options: &str, flags: MountFlags) -> Result<Self, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let point = PathBuf::from(format!("{MOUNT_FOLDER}-{}-{number}", std::process::id()));
        fs::create_dir_all(&point).map_err(Error::io("make the folder", &point))?;
        match Self::partition_at(partition, options, flags, &point) {
            Ok(mut mount) => {
                mount.own_folder = true;
                Ok(mount)
            }
            Err(error) => {
                let _ = fs::remove_dir(&point);
                Err(error)
            }
        }
    }

    fn partition_at(partition: &Partition, options: &str, flags: MountFlags, at: &Path) -> Result<Self, Error> {
        let options = CString::new(options).unwrap_or_default();
        let kind = partition.kind.as_deref().unwrap_or("auto");
        mount(&partition.device, at, kind, flags, Some(options.as_c_str()))
            .map_err(Error::sys("mount", &partition.device))?;
        Ok(Self::at(at))
    }

    fn special(kind: &str, at: &Path) -> Result<Self, Error> {
        mount(kind, at, kind, MountFlags::empty(), None).map_err(Error::sys("mount", at))?;
        Ok(Self::at(at))
    }

    fn bind(from: &str, at: &Path) -> Result<Self, Error> {
        mount_bind_recursive(from, at).map_err(Error::sys("mount", at))?;
        let mut mounted = Self::at(at);
        mounted.bound = true;
        // Otherwise unmounting here would unmount on the host what is mounted below `from`.
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(at, alone).map_err(Error::sys("mount", at))?;
        Ok(mounted)
    }

    fn at(point: &Path) -> Self {
        Self { point: point.to_owned(), own_folder: false, bound: false, closed: false }
    }

    /// Where it is mounted.
    pub(super) fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts. What something still holds after a while goes when that ends,
    /// and is an error.
    fn close(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let failed = Error::sys("unmount", &self.point);
        let outcome = if self.bound {
            unmount(&self.point, UnmountFlags::DETACH).map_err(failed)
        } else {
            self.unmount_patiently().map_err(failed)
        };
        if self.own_folder {
            let _ = fs::remove_dir(&self.point);
        }
        outcome
    }

    fn unmount_patiently(&self) -> Result<(), Errno> {
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            match unmount(&self.point, UnmountFlags::empty()) {
                Err(Errno::BUSY) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(errno) => {
                    let _ = unmount(&self.point, UnmountFlags::DETACH);
                    return Err(errno);
                }
                Ok(()) => return Ok(()),
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!("{error}");
        }
    }
}

/// Mounts that lie in each other, the outermost first.
#[derive(Debug)]
struct Mounts(Vec<Mount>);

impl Mounts {
    /// Unmounts all, also after a failure, and gives the first one.
    fn close(&mut self) -> Result<(), Error> {
        if let Some(outermost) = self.0.first() {
            end_processes_in(outermost.point());
        }
        let mut outcome = Ok(());
        while let Some(mut mount) = self.0.pop() {
            let closed = mount.close();
            outcome = outcome.and(closed);
        }
        rustix::fs::sync();
        outcome
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!("{error}");
        }
    }
}

/// The written system, mounted. Dropping it unmounts everything.
#[derive(Debug)]
pub(super) struct MountedRoot {
    /// Dropped first: an open folder keeps a file system busy.
    root: Root,
    mounts: Mounts,
}

impl MountedRoot {
    /// Mounts the system, other partitions of the disk that its file system
    /// table names, and the kernel's file systems.
    pub(super) fn mount(disk: &WrittenDisk, system: &System) -> Result<Self, Error> {
        let own = Mount::of(&system.partition, system.options, MountFlags::empty())?;
        let root = Root::at(own.point())?;
        let mut mounted = Self { root, mounts: Mounts(vec![own]) };
        mounted.mount_table(disk)?;
        mounted.mount_special()?;
        Ok(mounted)
    }

    /// Mounts the file systems of a layout that was built just now, `/` first, with their devices.
    pub(super) fn mount_laid(mounts: &[(LaidMount, String)]) -> Result<Self, Error> {
        let mut mounts = mounts.iter().filter_map(|(mount, device)| Some((mount, mount.at.as_deref()?, device)));
        let partition = |mount: &LaidMount, device: &str| Partition {
            device: device.into(),
            kind: Some(mount.kind.as_str().to_owned()),
            ..Partition::default()
        };
        let (root, _, device) = mounts.next().ok_or_else(|| Error::Layout("nothing is mounted at /".into()))?;
        let own = Mount::of(&partition(root, device), "", MountFlags::empty())?;
        let root = Root::at(own.point())?;
        let mut mounted = Self { root, mounts: Mounts(vec![own]) };
        for (mount, at, device) in mounts {
            // FAT keeps neither owners nor all modes, and `quiet` makes setting them no error.
            let options = if mount.kind == Kind::Vfat { "quiet,umask=0077" } else { "" };
            let point = mounted.point(at)?;
            let partition = partition(mount, device);
            mounted.mounts.0.push(Mount::partition_at(&partition, options, MountFlags::empty(), &point)?);
        }
        Ok(mounted)
    }

    /// Mounts the kernel's file systems. `/run` and `/tmp` get memory: what programs leave there must not be in the image.
    pub(super) fn mount_special(&mut self) -> Result<(), Error> {
        for (kind, at) in [("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run"), ("tmpfs", "tmp")] {
            let at = self.point(at)?;
            self.mounts.0.push(Mount::special(kind, &at)?);
        }
        let devices = self.point("dev")?;
        self.mounts.0.push(Mount::bind("/dev", &devices)?);
        Ok(())
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// Unmounts everything and makes it durable.
    pub(super) fn unmount(self) -> Result<(), Error> {
        let Self { root, mut mounts } = self;
        drop(root);
        mounts.close()
    }

    fn mount_table(&mut self, disk: &WrittenDisk) -> Result<(), Error> {
        let table = self.root.read("etc/fstab")?.unwrap_or_default();
        for (source, at, options) in entries(&table) {
            let Some(partition) = disk.partitions.iter().find(|partition| is_source(partition, source)) else {
                continue;
            };
            let known = partition.kind.as_deref().is_some_and(|kind| OTHER_KINDS.contains(&kind));
            let Some(point) = self.root.outside(at).filter(|_| known) else { continue };
            let subvolume = options.split(',').find(|option| option.starts_with("subvol")).unwrap_or_default();
            // The EFI system partition belongs to the firmware too: only looked at, unless a script remounts it.
            let flags =
                if partition.kind.as_deref() == Some("vfat") { MountFlags::RDONLY } else { MountFlags::empty() };
            // A post action may not need it; one that does says so itself.
            match Mount::partition_at(partition, subvolume, flags, &point) {
                Ok(mount) => self.mounts.0.push(mount),
                Err(error) => tracing::warn!("{at} of the image is not mounted: {error}"),
            }
        }
        Ok(())
    }

    /// A folder of the system to mount at, made if need be.
    fn point(&self, path: &str) -> Result<PathBuf, Error> {
        if !self.root.has(path) {
            self.root.folder(path, if path == "tmp" { 0o1777 } else { 0o755 })?;
        }
        let missing = || Error::Defect(format!("/{path} of the image cannot be found"));
        self.root.outside(path).ok_or_else(missing)
    }
}

/// Entries of a file system table (fstab(5)) below `/`, outer ones first.
fn entries(table: &str) -> Vec<(&str, &str, &str)> {
    let mut found: Vec<(&str, &str, &str)> = table
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (source, at, _kind, options) =
                (words.next()?, words.next()?, words.next()?, words.next().unwrap_or(""));
            let wanted = at.starts_with('/') && at != "/" && !options.split(',').any(|o| o == "noauto" || o == "bind");
            wanted.then_some((source, at, options))
        })
        .collect();
    found.sort_by_key(|(_, at, _)| at.len());
    found
}

fn is_source(partition: &Partition, source: &str) -> bool {
    let source = source.replace('"', "");
    let Some((key, value)) = source.split_once('=') else { return partition.device == Path::new(&source) };
    let same = |have: &Option<String>| have.as_ref().is_some_and(|have| have.eq_ignore_ascii_case(value));
    match key {
        "UUID" => same(&partition.uuid),
        "LABEL" => partition.label.as_deref() == Some(value),
        "PARTUUID" => same(&partition.part_uuid),
        "PARTLABEL" => partition.part_name.as_deref() == Some(value),
        _ => false,
    }
}

/// Programs that a script left behind, in process groups of their own, would
/// keep the file system busy.
fn end_processes_in(root: &Path) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        if fs::read_link(process.path().join("root")).is_ok_and(|its_root| its_root.starts_with(root)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_table_is_read() {
        let table = "# <file system>\nUUID=1 / ext4 defaults 0 1\nPARTLABEL=esp /boot/efi vfat umask=0077 0 1\n\
                     LABEL=boot /boot ext4\nUUID=2 none swap sw 0 0\n/dev/sr0 /media vfat user,noauto 0 0\n\
                     UUID=3 /home btrfs subvol=@home,compress=zstd 0 0\n";
        let found = entries(table);
        assert_eq!(found.iter().map(|(_, at, _)| *at).collect::<Vec<_>>(), ["/boot", "/home", "/boot/efi"]);
        assert_eq!(found[1], ("UUID=3", "/home", "subvol=@home,compress=zstd"));
    }

    #[test]
    fn partitions_are_found_by_every_name() {
        let partition = Partition {
            device: "/dev/vda1".into(),
            uuid: Some("ABCD-1234".into()),
            label: Some("boot".into()),
            part_uuid: Some("0a".into()),
            part_name: Some("esp".into()),
            ..Partition::default()
        };
        for source in ["UUID=abcd-1234", "LABEL=\"boot\"", "PARTUUID=0A", "PARTLABEL=esp", "/dev/vda1"] {
            assert!(is_source(&partition, source), "{source}");
        }
        for source in ["UUID=x", "LABEL=BOOT", "ID=esp", "/dev/vda"] {
            assert!(!is_source(&partition, source), "{source}");
        }
    }
}
