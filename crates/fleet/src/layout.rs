//! Partition layouts as data: what disks are divided into, what is made of the parts, and where file systems go.
//!
//! A layout is a list of disks with their partitions, then arrays, encrypted devices and volume groups made of what was named
//! before, then file systems on what is left. Everything has one name: `DISK.PARTITION`, an array's, an encrypted device's or
//! `GROUP/VOLUME`. Arrays are made first, then encrypted devices, then groups. [`Layout::check`] refuses what cannot be built or would not boot; [`plan()`] says with which commands it is
//! built. Both are pure.

mod check;
mod on_node;
mod plan;
mod room;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::disk::{DiskRule, Size};

pub use check::Wrong;
pub use on_node::Firmware;
pub use plan::{Expected, Input, Plan, Step, Target, plan};

/// Partitions begin and end at multiples of so many bytes: the erase blocks of flash and the stripes of arrays.
pub const ALIGNMENT_BYTES: u64 = 1 << 20;

/// A layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Kind of the partition tables.
    #[serde(default)]
    pub table: Table,
    /// The disks, with their partitions in order.
    #[serde(rename = "disk")]
    pub disks: Vec<LaidDisk>,
    /// Software RAID.
    #[serde(default, rename = "raid", skip_serializing_if = "Vec::is_empty")]
    pub arrays: Vec<Array>,
    /// Encrypted devices.
    #[serde(default, rename = "luks", skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<Locked>,
    /// LVM volume groups.
    #[serde(default, rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// File systems and swap.
    #[serde(rename = "mount")]
    pub mounts: Vec<Mount>,
}

/// Kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// GUID partition table.
    #[default]
    Gpt,
    /// Master boot record: four partitions, up to 2 TiB.
    Mbr,
}

/// A disk of the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaidDisk {
    /// What the layout calls it.
    pub name: String,
    /// Which of the node's disks it is; the node's own disk rule where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<DiskRule>,
    /// Its partitions, in order.
    #[serde(rename = "partition")]
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its name, in the table too where that keeps names.
    pub name: String,
    /// Its size.
    pub size: Extent,
    /// What firmware and boot loaders take it for.
    #[serde(default)]
    pub role: Role,
}

/// What a partition is to firmware and boot loaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing special.
    #[default]
    Data,
    /// EFI system partition.
    Esp,
    /// Where GRUB's core lies on a GPT disk of a BIOS machine; it has no file system.
    BiosBoot,
}

/// A size, or what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many bytes.
    Bytes(u64),
    /// All that is left. The last one of a disk or group only.
    Rest,
}

impl Extent {
    /// The bytes, where it is that many.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Rest => None,
        }
    }
}

impl FromStr for Extent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "rest" {
            return Ok(Self::Rest);
        }
        let wrong =
            || format!("`{text}` is not a size: write a whole number with MiB, GiB or TiB, such as 512MiB, or rest");
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(at);
        let shift = match unit.trim() {
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).map(Self::Bytes).ok_or_else(wrong)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Sizes are whole MiB by construction, and are read again as they are written.
            Self::Bytes(bytes) => write!(f, "{}", Size(*bytes).to_string().replace(' ', "")),
            Self::Rest => f.write_str("rest"),
        }
    }
}

impl Serialize for Extent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Software RAID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Array {
    /// Its name.
    pub name: String,
    /// 0, 1 or 10.
    pub level: u8,
    /// What it is made of.
    pub members: Vec<String>,
}

/// A device that is encrypted with LUKS2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Its name, once it is unlocked.
    pub name: String,
    /// What it is on.
    pub on: String,
    /// File with the key, as the deployed system finds it, such as `/etc/cryptsetup-keys.d/data.key`.
    pub key_file: String,
}

/// An LVM volume group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its physical volumes.
    pub members: Vec<String>,
    /// Its logical volumes, in order.
    #[serde(rename = "volume")]
    pub volumes: Vec<Volume>,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name within the group.
    pub name: String,
    /// Its size.
    pub size: Extent,
}

/// A file system, or swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What it is on.
    pub on: String,
    /// Its kind.
    pub kind: Kind,
    /// Where the deployed system has it, such as `/`; nothing for swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Mount options; `defaults` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// What the device must have at least, so that what is put there fits. Importing a tree says it of devices whose size
    /// follows from the disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<Extent>,
}

/// Kinds of file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// FAT32, for EFI system partitions.
    Vfat,
    /// Swap.
    Swap,
}

impl Kind {
    /// Its name, as `blkid` and fstab(5) have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Vfat => "vfat",
            Self::Swap => "swap",
        }
    }

    /// The least that it fits on, in bytes.
    fn least_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 8 << 20,
            // mkfs.xfs refuses less since 5.19.
            Self::Xfs => 300 << 20,
            // FAT32 has at least 65525 clusters.
            Self::Vfat => 36 << 20,
            Self::Swap => 1 << 20,
        }
    }

    /// The longest label, in bytes.
    fn label_bytes(self) -> usize {
        match self {
            Self::Ext4 | Self::Swap => 16,
            Self::Xfs => 12,
            Self::Vfat => 11,
        }
    }
}

#[cfg(test)]
mod tests;
