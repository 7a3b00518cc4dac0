//! The independent check: is what lies on a disk the image?
//!
//! It shares no code with the server or the agent. Partition tables are read by `gptman`, every partition but the root is
//! compared byte for byte, boot code included, and the root file system is read by e2fsprogs' `debugfs`, file by file:
//! content, kind, mode and owner. What post actions and a booted system change is a list with reasons ([`EXCEPTED`]);
//! everything else must be as in the image. Extended attributes and time stamps are not compared.
//!
//! Machines must be off while their disks are read.

mod ext4;
mod partitions;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::ext4::{Kind, Tree};
use self::partitions::{Partition, Table};

/// Paths of the root file system that may differ, with what is below them, and who changes them. A star at the end stands
/// for any rest of the name.
pub const EXCEPTED: &[(&str, &str)] = &[
    ("/etc/hostname", "post action: host name"),
    ("/etc/hosts", "post action: host name"),
    ("/etc/machine-id", "post action: machine-id"),
    ("/var/lib/dbus", "machine-id's second place"),
    ("/etc/ssh/ssh_host_*", "post action: SSH host keys"),
    ("/root/.ssh", "post action: authorised keys"),
    ("/etc/systemd/network", "post action: network configuration"),
    ("/etc/network", "post action: network configuration"),
    ("/etc/resolv.conf", "written by the DHCP client"),
    ("/var/lib/cloud", "post action: cloud-init seed"),
    ("/etc/rackswarm", "post action: the agent's identity"),
    ("/usr/local/sbin/rackswarm-agent", "post action: the monitoring daemon"),
    ("/etc/systemd/system/rackswarm-agent.service", "post action: the monitoring daemon"),
    ("/etc/systemd/system/multi-user.target.wants", "post action: links of enabled units"),
    ("/var/log", "written by the booted system"),
    ("/var/lib/systemd", "written by the booted system"),
    ("/var/lib/private", "written by the booted system"),
    ("/var/lib/dhcp", "written by the DHCP client"),
    ("/var/cache", "written by the booted system"),
    ("/run", "written by the booted system"),
    ("/tmp", "written by the booted system"),
    ("/var/tmp", "written by the booted system"),
    ("/lost+found", "belongs to the file system, not to the image"),
];

/// Differences that are told one by one; the rest is only counted.
const TOLD: usize = 20;
const CHUNK_BYTES: usize = 1 << 20;

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Regular files compared by content, mode and owner.
    pub files_compared: u64,
    /// Folders, links and special files compared by kind, mode, owner and target.
    pub others_compared: u64,
    /// Content compared, in bytes, of files and of partitions.
    pub bytes_compared: u64,
    /// Partitions compared byte for byte.
    pub partitions_compared: u64,
    /// Entries of the image that were passed over because of [`EXCEPTED`].
    pub excepted: u64,
    /// How many differences there are.
    pub differing: u64,
    /// The first differences, as sentences.
    pub differences: Vec<String>,
}

impl Report {
    /// Success only when nothing differs and something was compared.
    ///
    /// # Errors
    /// A sentence with the first differences.
    pub fn verdict(&self) -> Result<()> {
        if self.differing > 0 {
            bail!("{} differences from the image: {}", self.differing, self.differences.join("; "));
        }
        if self.files_compared == 0 || self.partitions_compared == 0 {
            bail!("nothing was compared; has the image partitions and a root file system?");
        }
        Ok(())
    }

    fn differs(&mut self, sentence: String) {
        self.differing += 1;
        if self.differences.len() < TOLD {
            self.differences.push(sentence);
        }
    }
}

/// An image, read once and compared with any number of disks.
#[derive(Debug)]
pub struct Golden {
    image: PathBuf,
    table: Table,
    root: Partition,
    tree: Tree,
    scratch: PathBuf,
}

impl Golden {
    /// Reads the raw image; `scratch` is an existing folder with room for the root file system twice.
    ///
    /// # Errors
    /// When the image has no partition table or no ext4 root, or a tool fails.
    pub fn read(image: &Path, scratch: &Path) -> Result<Golden> {
        crate::tool::need(&["debugfs", "e2fsck", "dd"])?;
        let table = Table::read(image)?;
        let root = table.root(image)?;
        let tree = Tree::dump(image, &root, &scratch.join("image"))?;
        Ok(Golden { image: image.to_owned(), table, root, tree, scratch: scratch.to_owned() })
    }

    /// Compares a disk of a machine that is off.
    ///
    /// # Errors
    /// When the disk cannot be read as one with partitions and an ext4 root. Differences are no errors; see
    /// [`Report::verdict`].
    pub fn compare(&self, disk: &Path) -> Result<Report> {
        let mut report = Report::default();
        let table = Table::read(disk)?;
        self.compare_boot_code(disk, &mut report)?;
        for want in &self.table.partitions {
            let Some(have) = table.partitions.iter().find(|have| have.number == want.number) else {
                report.differs(format!("partition {} is missing", want.number));
                continue;
            };
            self.compare_partition(want, have, disk, &mut report)?;
        }
        if let Some(root) = table.partitions.iter().find(|have| have.number == self.root.number) {
            let tree = Tree::dump(disk, root, &self.scratch.join("disk"))?;
            compare_trees(&self.tree, &tree, &mut report)?;
        }
        Ok(report)
    }

    /// The boot loader's first sector and whatever lies between the partition table and the first partition.
    fn compare_boot_code(&self, disk: &Path, report: &mut Report) -> Result<()> {
        let gap = self.table.first_usable_byte..self.table.first_partition_byte();
        for (what, range) in
            [("the boot sector's code", 0..partitions::BOOT_CODE_BYTES), ("the gap behind the partition table", gap)]
        {
            if let Some(offset) = self.first_difference(disk, range.clone(), report)? {
                report.differs(format!("{what} differs at byte {offset}"));
            }
        }
        Ok(())
    }

    fn compare_partition(&self, want: &Partition, have: &Partition, disk: &Path, report: &mut Report) -> Result<()> {
        let number = want.number;
        if (want.start_byte, want.kind, want.id, &want.name) != (have.start_byte, have.kind, have.id, &have.name) {
            report.differs(format!("partition {number} has another place, type, identity or name"));
            return Ok(());
        }
        if number == self.root.number {
            if have.length_bytes < want.length_bytes {
                report.differs(format!("partition {number} is smaller than in the image"));
            }
            return Ok(());
        }
        if want.length_bytes != have.length_bytes {
            report.differs(format!("partition {number} has another size"));
        }
        report.partitions_compared += 1;
        let range = want.start_byte..want.start_byte + want.length_bytes;
        if let Some(offset) = self.first_difference(disk, range, report)? {
            report.differs(format!("partition {number} differs at its byte {}", offset - want.start_byte));
        }
        Ok(())
    }

    fn first_difference(&self, disk: &Path, range: std::ops::Range<u64>, report: &mut Report) -> Result<Option<u64>> {
        let (image, disk) = (open(&self.image)?, open(disk)?);
        let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut offset = range.start;
        while offset < range.end {
            let length = usize::try_from(range.end - offset).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            image
                .read_exact_at(&mut left[..length], offset)
                .context("the image is shorter than its partition table says")?;
            disk.read_exact_at(&mut right[..length], offset)
                .context("the disk is shorter than its partition table says")?;
            if let Some(place) = place_of_difference(&left[..length], &right[..length]) {
                return Ok(Some(offset + place));
            }
            report.bytes_compared += length as u64;
            offset += length as u64;
        }
        Ok(None)
    }
}

/// Whether `path` may differ.
fn is_excepted(path: &str) -> bool {
    EXCEPTED.iter().any(|(excepted, _)| match excepted.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path.strip_prefix(excepted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    })
}

fn compare_trees(image: &Tree, disk: &Tree, report: &mut Report) -> Result<()> {
    for (path, want) in &image.entries {
        if is_excepted(path) {
            report.excepted += 1;
            continue;
        }
        let Some(have) = disk.entries.get(path) else {
            report.differs(format!("{path} is missing"));
            continue;
        };
        if want.mode != have.mode {
            report.differs(format!("{path} has mode {:o} instead of {:o}", have.mode, want.mode));
        }
        if want.owner != have.owner {
            let ((uid, gid), (wanted_uid, wanted_gid)) = (have.owner, want.owner);
            report.differs(format!("{path} belongs to {uid}:{gid} instead of {wanted_uid}:{wanted_gid}"));
        }
        if want.kind() != have.kind() {
            continue;
        }
        match want.kind() {
            Kind::File => {
                report.files_compared += 1;
                if !same_content(&image.content(path), &disk.content(path), report)? {
                    report.differs(format!("{path} has another content"));
                }
            }
            Kind::Link => {
                report.others_compared += 1;
                if std::fs::read_link(image.content(path)).ok() != std::fs::read_link(disk.content(path)).ok() {
                    report.differs(format!("{path} leads elsewhere"));
                }
            }
            Kind::Other => report.others_compared += 1,
        }
    }
    Ok(())
}

fn same_content(image: &Path, disk: &Path, report: &mut Report) -> Result<bool> {
    let (mut image, mut disk) = (open(image)?, open(disk)?);
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let length = read_up_to(&mut image, &mut left)?;
        if length != read_up_to(&mut disk, &mut right)? || left[..length] != right[..length] {
            return Ok(false);
        }
        report.bytes_compared += length as u64;
        if length < CHUNK_BYTES {
            return Ok(true);
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

fn place_of_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    if left == right {
        return None;
    }
    left.iter().zip(right).position(|(a, b)| a != b).map(|place| place as u64)
}

#[cfg(test)]
mod tests;
