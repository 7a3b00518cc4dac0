//! A disk's partition table, as far as the check needs it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

/// The boot sector's code; behind it are the disk signature and the protective partition table (UEFI 2.10, 5.2.1).
pub(super) const BOOT_CODE_BYTES: u64 = 440;
/// Where an ext4 superblock has its magic number, counted from the partition's start.
const EXT4_MAGIC_BYTE: u64 = 1024 + 0x38;
const EXT4_MAGIC: [u8; 2] = [0x53, 0xef];

#[derive(Debug)]
pub(super) struct Table {
    pub(super) partitions: Vec<Partition>,
    pub(super) first_usable_byte: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) start_byte: u64,
    pub(super) length_bytes: u64,
    pub(super) kind: [u8; 16],
    pub(super) id: [u8; 16],
    pub(super) name: String,
}

impl Table {
    pub(super) fn read(path: &Path) -> Result<Table> {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let gpt = gptman::GPT::find_from(&mut file)
            .map_err(|error| anyhow!("{} has no readable GUID partition table: {error}", path.display()))?;
        let sector = gpt.sector_size;
        let partitions = gpt.iter().filter(|(_, entry)| entry.is_used()).map(|(number, entry)| Partition {
            number,
            start_byte: entry.starting_lba * sector,
            length_bytes: (entry.ending_lba + 1).saturating_sub(entry.starting_lba) * sector,
            kind: entry.partition_type_guid,
            id: entry.unique_partition_guid,
            name: entry.partition_name.as_str().to_owned(),
        });
        Ok(Table { partitions: partitions.collect(), first_usable_byte: gpt.header.first_usable_lba * sector })
    }

    pub(super) fn first_partition_byte(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.start_byte).min().unwrap_or(self.first_usable_byte)
    }

    /// The root: the last partition that holds an ext4 file system.
    pub(super) fn root(&self, image: &Path) -> Result<Partition> {
        let file = File::open(image)?;
        let is_ext4 = |partition: &&Partition| {
            let mut magic = [0; 2];
            file.read_exact_at(&mut magic, partition.start_byte + EXT4_MAGIC_BYTE).is_ok() && magic == EXT4_MAGIC
        };
        let root = self.partitions.iter().filter(is_ext4).max_by_key(|partition| partition.start_byte);
        root.cloned().ok_or_else(|| anyhow!("{} has no ext4 file system in any partition", image.display()))
    }
}
