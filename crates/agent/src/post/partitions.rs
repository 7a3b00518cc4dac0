//! The written disk's partitions, and which of them holds the system.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use gptman::GPT;
use gptman::linux::{BlockError, reread_partition_table};
use rustix::mount::MountFlags;

use super::mount::Mount;
use super::{Root, wrong};
use crate::command::Run;
use crate::contents::probe;
use crate::{Error, Stop};

/// How long the kernel may take to let go of a disk that was just closed.
const REREAD_LIMIT: Duration = Duration::from_secs(10);
/// `losetup` only talks to the kernel.
const LOOP_LIMIT: Duration = Duration::from_secs(30);

/// "Root partition (x86-64)" and "(arm64)" of the Discoverable Partitions
/// Specification, as they stand on the disk.
const ROOT_TYPES: [[u8; 16]; 2] = [
    // 4f68bce3-e8cd-4db1-96e7-fbcaf984b709
    [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09],
    // b921b045-1df0-41c3-af44-4c6f280d3fae
    [0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae],
];

/// c12a7328-f81f-11d2-ba4b-00a0c93ec93b, the EFI system partition (UEFI 2.10, table 5.7).
const EFI_SYSTEM_TYPE: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// File systems that a system may be on, and where in them it may begin.
const SYSTEM_KINDS: &[(&str, &[&str])] = &[
    ("ext4", &[""]),
    ("ext3", &[""]),
    ("ext2", &[""]),
    ("xfs", &[""]),
    // As Debian and Fedora name the subvolume.
    ("btrfs", &["", "subvol=@", "subvol=root"]),
    ("f2fs", &[""]),
];

/// A disk that holds a verified image.
#[derive(Debug)]
pub(super) struct WrittenDisk {
    pub(super) path: PathBuf,
    pub(super) partitions: Vec<Partition>,
    pub(super) limit: Duration,
    pub(super) stop: Stop,
    is_device: bool,
    loops: Vec<Loop>,
}

/// A partition, or the whole disk where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its number; none for the whole disk.
    pub(super) number: Option<u32>,
    pub(super) device: PathBuf,
    pub(super) size_bytes: u64,
    /// Kind of its file system.
    pub(super) kind: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) label: Option<String>,
    pub(super) part_uuid: Option<String>,
    pub(super) part_name: Option<String>,
}

impl Partition {
    /// What people call it.
    pub(super) fn name(&self) -> String {
        let device = self.device.display().to_string();
        match self.number {
            Some(number) if device.starts_with("/dev/loop") => format!("partition {number}"),
            _ => device,
        }
    }
}

/// The partition with the system, and the mount options that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    pub(super) partition: Partition,
    pub(super) options: &'static str,
}

impl WrittenDisk {
    /// Makes the kernel see the partitions that the image brought. For a file in
    /// place of a disk, loop devices stand for the partitions until it is dropped.
    pub(super) fn open(path: &Path, limit: Duration, stop: &Stop) -> Result<Self, Error> {
        let is_device = fs::metadata(path).map_err(Error::io("open", path))?.file_type().is_block_device();
        let partitions = Vec::new();
        let mut disk =
            Self { path: path.to_owned(), partitions, limit, stop: stop.clone(), is_device, loops: Vec::new() };
        disk.look_again()?;
        Ok(disk)
    }

    /// Reads the partition table anew.
    pub(super) fn look_again(&mut self) -> Result<(), Error> {
        self.loops.clear();
        self.partitions = if self.is_device { self.of_device()? } else { self.of_file()? };
        for partition in &mut self.partitions {
            let found = probe(&[&partition.device], self.limit, &self.stop)?;
            let found = found.into_iter().next().unwrap_or_default();
            partition.kind = found.kind;
            partition.uuid = found.uuid;
            partition.label = found.label;
            partition.part_uuid = partition.part_uuid.take().or(found.part_uuid);
            partition.part_name = partition.part_name.take().or(found.name);
        }
        Ok(())
    }

    /// The partition of this number, or the whole disk.
    pub(super) fn partition(&self, number: Option<u32>) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.number == number)
    }

    /// Finds the partition with the system: the one whose file system has
    /// `/etc/os-release` and `/sbin/init`. Its type only says where to look first.
    pub(super) fn system(&self) -> Result<System, Error> {
        let hinted = self.hinted();
        let mut order: Vec<&Partition> = self.partitions.iter().collect();
        order.sort_by_key(|p| (!hinted.contains(&p.number), std::cmp::Reverse(p.size_bytes)));
        for partition in &order {
            let kind = SYSTEM_KINDS.iter().find(|(kind, _)| Some(*kind) == partition.kind.as_deref());
            for options in kind.map_or(&[][..], |(_, options)| options) {
                if holds_system(partition, options) {
                    return Ok(System { partition: (*partition).clone(), options });
                }
            }
        }
        Err(no_system(&order))
    }

    fn hinted(&self) -> Vec<Option<u32>> {
        let Ok(gpt) = self.table() else { return Vec::new() };
        let rooted = gpt.iter().filter(|(_, entry)| ROOT_TYPES.contains(&entry.partition_type_guid));
        rooted.map(|(number, _)| Some(number)).collect()
    }

    /// Number and GUID of the EFI system partition; none where the disk has no GPT.
    pub(super) fn efi_system_partition(&self) -> Option<(u32, uuid::Uuid)> {
        let table = self.table().ok()?;
        let (number, entry) = table.iter().find(|(_, entry)| entry.partition_type_guid == EFI_SYSTEM_TYPE)?;
        Some((number, uuid::Uuid::from_bytes_le(entry.unique_partition_guid)))
    }

    /// The disk's GPT.
    pub(super) fn table(&self) -> Result<GPT, String> {
        let mut file = File::open(&self.path).map_err(|error| error.to_string())?;
        GPT::read_from(&mut file, self.sector_bytes()).map_err(|error| error.to_string())
    }

    /// The disk's logical sector size in bytes.
    pub(super) fn sector_bytes(&self) -> u64 {
        let size = File::open(&self.path).ok().and_then(|file| rustix::fs::ioctl_blksszget(file).ok());
        size.map_or(512, u64::from)
    }

    /// A short while after it was closed the kernel may still hold a disk.
    fn of_device(&self) -> Result<Vec<Partition>, Error> {
        let deadline = Instant::now() + REREAD_LIMIT;
        loop {
            let mut file = OpenOptions::new().read(true).open(&self.path).map_err(Error::io("open", &self.path))?;
            match reread_partition_table(&mut file) {
                Ok(()) => break,
                // A disk that cannot have partitions answers so.
                Err(BlockError::RereadTable(errno)) if errno as i32 == libc_einval() => break,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
                Err(error) => {
                    let source = std::io::Error::other(error.to_string());
                    return Err(Error::io("read the partitions of", &self.path)(source));
                }
            }
        }
        Ok(sysfs_partitions(Path::new("/sys/block"), &self.path))
    }

    fn of_file(&mut self) -> Result<Vec<Partition>, Error> {
        let size_bytes = fs::metadata(&self.path).map_err(Error::io("measure", &self.path))?.len();
        let Ok(gpt) = self.table() else {
            let whole = self.attach(0, size_bytes)?;
            return Ok(vec![Partition { device: whole, size_bytes, ..Partition::default() }]);
        };
        let mut partitions = Vec::new();
        let used: Vec<_> = gpt.iter().filter(|(_, entry)| entry.is_used()).map(|(n, e)| (n, e.clone())).collect();
        for (number, entry) in used {
            let start = entry.starting_lba * gpt.sector_size;
            let size_bytes = (entry.ending_lba + 1).saturating_sub(entry.starting_lba) * gpt.sector_size;
            partitions.push(Partition {
                number: Some(number),
                device: self.attach(start, size_bytes)?,
                size_bytes,
                part_uuid: Some(guid(&entry.unique_partition_guid)),
                part_name: Some(entry.partition_name.as_str().to_owned()).filter(|name| !name.is_empty()),
                ..Partition::default()
            });
        }
        Ok(partitions)
    }

    fn attach(&mut self, start: u64, size_bytes: u64) -> Result<PathBuf, Error> {
        let run = Run::new("losetup", LOOP_LIMIT)
            .args(["--find", "--show", "--offset", &start.to_string(), "--sizelimit", &size_bytes.to_string()])
            .args([&self.path]);
        let device = PathBuf::from(run.text(&self.stop)?);
        self.loops.push(Loop(device.clone()));
        Ok(device)
    }
}

/// A loop device, let go when dropped.
#[derive(Debug)]
struct Loop(PathBuf);

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Run::new("losetup", LOOP_LIMIT).args(["--detach"]).args([&self.0]).text(&Stop::default());
        if let Err(error) = detached {
            tracing::warn!("{} stays attached: {error}", self.0.display());
        }
    }
}

/// EINVAL is 22 on every Linux.
fn libc_einval() -> i32 {
    rustix::io::Errno::INVAL.raw_os_error()
}

/// The kernel's view; the whole disk where it sees none.
fn sysfs_partitions(block: &Path, disk: &Path) -> Vec<Partition> {
    let name = disk.strip_prefix("/dev").unwrap_or(disk).display().to_string().replace('/', "!");
    let folder = block.join(name);
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let size = |folder: &Path| number(folder.join("size")).unwrap_or(0) * 512;
    let mut found: Vec<Partition> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some(Partition {
                number: Some(u32::try_from(number(entry.path().join("partition"))?).ok()?),
                device: Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/")),
                size_bytes: size(&entry.path()),
                ..Partition::default()
            })
        })
        .collect();
    found.sort_by_key(|partition| partition.number);
    if found.is_empty() {
        found.push(Partition { device: disk.to_owned(), size_bytes: size(&folder), ..Partition::default() });
    }
    found
}

fn holds_system(partition: &Partition, options: &str) -> bool {
    match Mount::of(partition, options, MountFlags::RDONLY) {
        Ok(mount) => Root::at(mount.point()).is_ok_and(|root| is_system(&root)),
        Err(error) => {
            tracing::info!("{} is passed over: {error}", partition.name());
            false
        }
    }
}

fn is_system(root: &Root) -> bool {
    let named = root.has("etc/os-release") || root.has("usr/lib/os-release");
    named && (root.has("sbin/init") || root.has("usr/sbin/init"))
}

fn no_system(partitions: &[&Partition]) -> Error {
    let of_kind = |kind: &str| partitions.iter().find(|p| p.kind.as_deref() == Some(kind)).map(|p| p.name());
    if let Some(name) = of_kind("LVM2_member") {
        let why =
            format!("{name} is an LVM volume; images on LVM are not supported: use one with a plain root partition");
        return wrong("partitions", why);
    }
    if let Some(name) = of_kind("crypto_LUKS") {
        let why = format!("{name} is encrypted; nothing can be set in it: use an image that is not");
        return wrong("partitions", why);
    }
    let seen: Vec<String> = partitions
        .iter()
        .map(|p| format!("{} ({})", p.name(), p.kind.as_deref().unwrap_or("no known file system")))
        .collect();
    let why = format!(
        "no partition of the image has /etc/os-release and /sbin/init ({}); an image must hold a bootable system",
        seen.join(", ")
    );
    wrong("partitions", why)
}

/// A GUID's usual form; its first three fields are little-endian on the disk
/// (UEFI 2.10, appendix A).
fn guid(bytes: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes_le(*bytes).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        let sysfs = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = sysfs.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, number) in [("nvme0n1p10", "10"), ("nvme0n1p2", "2")] {
            file(&format!("nvme0n1/{name}/partition"), number);
            file(&format!("nvme0n1/{name}/size"), "8\n");
        }
        file("nvme0n1/queue/size", "1");
        file("vda/size", "2048");
        let devices = |disk: &str| {
            let found = sysfs_partitions(sysfs.path(), Path::new(disk));
            found.iter().map(|p| (p.number, p.name(), p.size_bytes)).collect::<Vec<_>>()
        };
        assert_eq!(
            devices("/dev/nvme0n1"),
            [(Some(2), "/dev/nvme0n1p2".to_owned(), 4096), (Some(10), "/dev/nvme0n1p10".to_owned(), 4096)]
        );
        assert_eq!(devices("/dev/vda"), [(None, "/dev/vda".to_owned(), 1 << 20)]);
    }

    #[test]
    fn a_system_has_a_name_and_an_init() {
        let tree = Tree::new();
        assert!(!is_system(&tree.root()));
        tree.link("/lib/systemd/systemd", "usr/sbin/init");
        tree.link("usr/sbin", "sbin");
        assert!(!is_system(&tree.root()), "the link leads nowhere");
        tree.file("lib/systemd/systemd", "");
        assert!(is_system(&tree.root()));
    }

    #[test]
    fn images_that_cannot_be_handled_are_refused_with_the_reason() {
        let one = |kind: Option<&str>| Partition {
            number: Some(3),
            device: "/dev/vda3".into(),
            kind: kind.map(str::to_owned),
            ..Partition::default()
        };
        for (kind, word) in [
            (Some("LVM2_member"), "LVM"),
            (Some("crypto_LUKS"), "encrypted"),
            (Some("vfat"), "(vfat)"),
            (None, "no known"),
        ] {
            let error = no_system(&[&one(kind)]);
            assert!(error.to_string().contains(word) && error.to_string().contains("/dev/vda3"), "{error}");
            assert!(!error.retry());
        }
    }

    #[test]
    fn type_guids_are_as_written_on_disks() {
        assert_eq!(guid(&ROOT_TYPES[0]), "4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
        assert_eq!(guid(&ROOT_TYPES[1]), "b921b045-1df0-41c3-af44-4c6f280d3fae");
    }
}
