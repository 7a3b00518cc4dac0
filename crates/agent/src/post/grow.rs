//! Grows the root partition and its file system to the disk. Never shrinks
//! anything; a layout that it does not know stays as it is, and it says so.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use fleet::disk::Size;
use gptman::GPT;

use super::Root;
use super::partitions::{System, WrittenDisk};
use crate::command::{Run, find};
use crate::{Error, Stop};

/// Partitions end at multiples of this, as partitioning tools make them.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Where the MBR keeps its four entries, and how long each is.
const MBR_ENTRIES: u64 = 446;
const MBR_ENTRY_BYTES: u64 = 16;
/// The type of the MBR entry that protects a GPT (UEFI 2.10, 5.2.3).
const PROTECTIVE: u8 = 0xee;

/// What can be done while the file system is not mounted: the partition, and
/// ext2 to ext4, which are checked first as resize2fs demands.
pub(super) fn before_mount(disk: &mut WrittenDisk, system: &mut System) -> Result<String, Error> {
    let number = system.partition.number;
    let mut said = match (number, disk.table()) {
        (None, _) => "the image has no partitions".to_owned(),
        (Some(number), Ok(table)) => {
            let (said, changed) = grow_partition(&disk.path, table, number)?;
            if changed {
                disk.look_again()?;
                system.partition = disk
                    .partition(Some(number))
                    .cloned()
                    .ok_or_else(|| Error::Defect(format!("partition {number} is gone after it was grown")))?;
            }
            said
        }
        (Some(_), Err(why)) => format!("the partition stays as it is, the disk has no GPT ({why})"),
    };
    if system.partition.kind.as_deref().is_some_and(|kind| kind.starts_with("ext")) {
        let grown = grow_ext(&system.partition.device, disk.limit, &disk.stop)?;
        said = format!("{said}; {grown}");
    }
    Ok(said)
}

/// File systems that grow while they are mounted.
pub(super) fn mounted(system: &System, root: &Root, limit: Duration, stop: &Stop) -> Result<Option<String>, Error> {
    let run = match system.partition.kind.as_deref() {
        Some("xfs") if find("xfs_growfs").is_some() => Run::new("xfs_growfs", limit).args([root.path()]),
        Some("xfs") => Run::inside(root.path(), "xfs_growfs", limit).args(["/"]),
        Some("btrfs") => Run::inside(root.path(), "btrfs", limit).args(["filesystem", "resize", "max", "/"]),
        Some("f2fs") => return Ok(Some("f2fs cannot grow while it is mounted; it stays as it is".to_owned())),
        _ => return Ok(None),
    };
    Ok(Some(run.text(stop)?))
}

/// Moves the backup table to the disk's end and the partition's end with it,
/// if it is the last. Says what it did, and whether the table changed.
fn grow_partition(disk: &Path, mut table: GPT, number: u32) -> Result<(String, bool), Error> {
    let failed = |error: gptman::Error| Error::io("grow the partition table of", disk)(std::io::Error::other(error));
    let sector = table.sector_size;
    let mut file = OpenOptions::new().read(true).write(true).open(disk).map_err(Error::io("open", disk))?;
    let before = (table.header.backup_lba, table.header.last_usable_lba);
    table.header.update_from(&mut file, sector).map_err(failed)?;
    let last_usable = table.header.last_usable_lba;
    // A table with a partition beyond what the disk has room for is damaged, or the disk is too small: not ours to mend.
    let last = table.iter().map(|(_, entry)| entry.ending_lba).max().unwrap_or(0);
    if last > last_usable {
        return Ok(("the partition table reaches beyond the disk; it stays as it is".to_owned(), false));
    }
    let mut said = String::new();
    let mut changed = before != (table.header.backup_lba, last_usable);
    let entry = &mut table[number];
    let (old_end, old_bytes) = (entry.ending_lba, (entry.ending_lba + 1 - entry.starting_lba) * sector);
    let steps = ALIGNMENT_BYTES.div_ceil(sector);
    let new_end = (last_usable + 1) / steps * steps - 1;
    if old_end < last {
        said.push_str("the root partition is not the last one and stays as it is");
    } else if new_end > old_end {
        entry.ending_lba = new_end;
        changed = true;
        let new_bytes = old_bytes + (new_end - old_end) * sector;
        said = format!("partition {number} grown from {} to {}", Size(old_bytes), Size(new_bytes));
    } else {
        said = format!("partition {number} fills the disk already");
    }
    if changed {
        table.write_into(&mut file).map_err(failed)?;
        stretch_protection(&file, sector).map_err(Error::io("write", disk))?;
        file.sync_all().map_err(Error::io("make durable", disk))?;
    }
    Ok((said, changed))
}

/// The MBR's protective entry covers the whole disk. Boot code and a hybrid
/// MBR's other entries stay.
fn stretch_protection(disk: &File, sector: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut end = disk;
    let sectors = end.seek(SeekFrom::End(0))? / sector;
    let mut entries = [0; 4 * MBR_ENTRY_BYTES as usize];
    disk.read_exact_at(&mut entries, MBR_ENTRIES)?;
    let (entries, _) = entries.as_chunks::<{ MBR_ENTRY_BYTES as usize }>();
    let types: Vec<u8> = entries.iter().map(|entry| entry[4]).filter(|kind| *kind != 0).collect();
    let Some(at) = entries.iter().position(|entry| entry[4] == PROTECTIVE) else { return Ok(()) };
    if types != [PROTECTIVE] {
        return Ok(());
    }
    // It begins at sector 1; what 32 bits cannot say is said by all ones.
    let count = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    disk.write_all_at(&count.to_le_bytes(), MBR_ENTRIES + at as u64 * MBR_ENTRY_BYTES + 12)
}

fn grow_ext(device: &Path, limit: Duration, stop: &Stop) -> Result<String, Error> {
    // 1: it found something and corrected it.
    Run::new("e2fsck", limit).args(["-f", "-y"]).args([device]).fine(&[0, 1]).text(stop)?;
    let text = Run::new("resize2fs", limit).args([device]).text(stop)?;
    // Its first line is its version.
    Ok(text.lines().last().unwrap_or_default().trim_end_matches('.').to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use gptman::GPTPartitionEntry;

    const MIB: u64 = 1 << 20;
    const LIMIT: Duration = Duration::from_secs(60);

    /// A disk file of `disk_mib` with a table made for `image_mib`: partition 1
    /// of 1 MiB, partition 2 behind it to the image's end, and boot code.
    fn disk(image_mib: u64, disk_mib: u64, root_first: bool) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(image_mib * MIB).unwrap();
        let mut table = GPT::new_from(&mut file, 512, [7; 16]).unwrap();
        let (small, large) = if root_first { (2, 1) } else { (1, 2) };
        let place = |start: u64, end: u64, id: u8| GPTPartitionEntry {
            partition_type_guid: [id; 16],
            unique_partition_guid: [id + 10; 16],
            starting_lba: start,
            ending_lba: end,
            attribute_bits: 0,
            partition_name: "p".into(),
        };
        let last = table.header.last_usable_lba;
        table[if root_first { large } else { small }] = place(2048, 4095, 1);
        table[if root_first { small } else { large }] = place(4096, last, 2);
        table.write_into(&mut file).unwrap();
        GPT::write_protective_mbr_into(&mut file, 512).unwrap();
        file.write_all_at(b"boot code", 0).unwrap();
        file.set_len(disk_mib * MIB).unwrap();
        (folder, path)
    }

    fn table(path: &Path) -> GPT {
        GPT::read_from(&mut File::open(path).unwrap(), 512).unwrap()
    }

    fn check(path: &Path) {
        let text = Run::new("sgdisk", LIMIT).args(["-v"]).args([path]).text(&Stop::default()).unwrap();
        assert!(text.contains("No problems found"), "{text}");
    }

    #[test]
    fn the_last_partition_grows_to_the_disk_and_tools_agree() {
        let (_folder, path) = disk(8, 32, false);
        let (said, changed) = grow_partition(&path, table(&path), 2).unwrap();
        assert!(changed && said.starts_with("partition 2 grown from 5.") || said.contains("bytes to 29 MiB"), "{said}");
        let grown = table(&path);
        assert_eq!((grown[2].ending_lba + 1) * 512, 31 * MIB);
        assert_eq!(grown.header.backup_lba, 32 * MIB / 512 - 1);
        assert_eq!((grown[1].starting_lba, grown[1].ending_lba), (2048, 4095));
        check(&path);
        let mut head = [0; 9];
        File::open(&path).unwrap().read_exact_at(&mut head, 0).unwrap();
        assert_eq!(&head, b"boot code");
        // A second time nothing is left to do.
        let (said, changed) = grow_partition(&path, table(&path), 2).unwrap();
        assert!(!changed && said == "partition 2 fills the disk already", "{said}");
    }

    #[test]
    fn a_partition_in_the_middle_stays() {
        let (_folder, path) = disk(8, 32, true);
        let (said, changed) = grow_partition(&path, table(&path), 1).unwrap();
        assert!(changed && said.contains("not the last"), "{said}");
        assert_eq!(table(&path)[1].ending_lba, 4095);
        check(&path);
    }

    #[test]
    fn a_disk_smaller_than_its_table_is_left_alone() {
        let (_folder, path) = disk(8, 4, false);
        let before = std::fs::read(&path).unwrap();
        let (said, changed) = grow_partition(&path, table(&path), 2).unwrap();
        assert!(!changed && said.contains("stays as it is"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn ext4_grows_to_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.ext4");
        let stop = Stop::default();
        File::create(&path).unwrap().set_len(16 * MIB).unwrap();
        Run::new("mke2fs", LIMIT).args(["-q", "-t", "ext4"]).args([&path]).text(&stop).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(48 * MIB).unwrap();
        let said = grow_ext(&path, LIMIT, &stop).unwrap();
        assert!(said.contains("is now 49152 (1k) blocks long") || said.contains("is now 12288 (4k)"), "{said}");
        Run::new("e2fsck", LIMIT).args(["-f", "-n"]).args([&path]).text(&stop).unwrap();
    }
}
