//! Disks, and the rule that says which one of a machine's disks is meant.
//!
//! The interlock ([`choose`]) fails closed. A rule must match exactly one disk
//! that can be written and is not what the machine booted from; two equal disks
//! are a refusal.

mod interlock;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use interlock::{Purpose, Refusal, candidates, choose};

/// A disk as the agent found it on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Disk {
    /// Device path on the node, such as `/dev/sda`. Not stable over boots.
    pub path: String,
    /// Stable paths that lead to it, from `/dev/disk/by-path` or sysfs.
    #[serde(default)]
    pub by_path: Vec<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Serial number, if the device tells one.
    pub serial: Option<String>,
    /// World wide name, if the device tells one.
    pub wwn: Option<String>,
    /// Model, if the device tells one.
    pub model: Option<String>,
    /// Marked removable by the kernel (USB sticks, card readers, CD drives).
    #[serde(default)]
    pub removable: bool,
    /// The device refuses writes.
    #[serde(default)]
    pub read_only: bool,
    /// It hangs on USB, or is a memory card in a slot: anybody can pull it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pluggable: bool,
    /// The running system was loaded from it or has it mounted.
    #[serde(default)]
    pub boot_medium: bool,
    /// What has it in use now, such as `sda2 is mounted at /srv` or `sda3 is part of md127`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,
    /// Marks on it of storage that is made of several devices or is locked: RAID, LVM, LUKS, bcache, ZFS and their like.
    /// Nothing has them in use, but what they belong to may be worth something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
    /// What it holds now, as sentences a person can judge: partition table,
    /// file systems and their labels. Empty for a blank disk.
    #[serde(default)]
    pub contents: Vec<String>,
}

/// A mark that a disk or partition belongs to something larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Signature {
    /// The device that carries it: the disk or one of its partitions.
    pub device: String,
    /// What it is, as `blkid` calls it, such as `linux_raid_member` or `LVM2_member`.
    pub kind: String,
    /// Its label: the name of the array, group or pool where it tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Signature {
    /// What people call the kind.
    #[must_use]
    pub fn what(&self) -> &str {
        match self.kind.as_str() {
            "linux_raid_member" => "software RAID (md)",
            "LVM2_member" | "LVM1_member" => "LVM",
            "crypto_LUKS" => "LUKS encryption",
            "BitLocker" => "BitLocker encryption",
            "bcache" => "bcache",
            "zfs_member" => "ZFS",
            "ceph_bluestore" => "Ceph",
            "drbd" | "drbdmanage_control_volume" | "drbdproxy_datalog" => "DRBD",
            "VMFS_volume_member" => "VMware VMFS",
            "stratis" => "Stratis",
            kind if kind.ends_with("_raid_member") => "firmware RAID",
            other => other,
        }
    }

    /// Whether `blkid`'s name for a kind is of something that spans devices or is locked. Its usage `raid` or `crypto` says
    /// so too, but not for all of these.
    #[must_use]
    pub fn is_one(kind: &str) -> bool {
        const KINDS: &[&str] = &[
            "LVM2_member",
            "LVM1_member",
            "crypto_LUKS",
            "BitLocker",
            "bcache",
            "zfs_member",
            "ceph_bluestore",
            "drbd",
            "drbdmanage_control_volume",
            "drbdproxy_datalog",
            "VMFS_volume_member",
            "stratis",
            "DM_snapshot_cow",
            "DM_verity_hash",
            "DM_integrity",
            "mpath_member",
        ];
        kind.ends_with("_raid_member") || KINDS.contains(&kind)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.what(), self.device)?;
        self.label.as_ref().map_or(Ok(()), |label| write!(f, " (`{label}`)"))
    }
}

impl Disk {
    /// What tells this disk from any other: WWN, else serial with the model,
    /// else path and size.
    #[must_use]
    pub fn identity(&self) -> String {
        match (&self.wwn, &self.serial) {
            (Some(wwn), _) => format!("wwn:{wwn}"),
            (None, Some(serial)) => format!("serial:{serial}"),
            (None, None) => format!("path:{}:{}", self.path, self.size_bytes),
        }
    }
}

/// Between the identities of several disks in one text.
const AND: &str = " + ";

/// The identities of several disks as one text ([`Disk::identity`]), in an order that does not depend on theirs.
#[must_use]
pub fn identities<'a>(disks: impl IntoIterator<Item = &'a Disk>) -> String {
    let mut all: Vec<String> = disks.into_iter().map(Disk::identity).collect();
    all.sort();
    all.join(AND)
}

/// Whether every disk that `some` names is among those that `all` names; both as [`identities`] writes them.
#[must_use]
pub fn are_among(some: &str, all: &str) -> bool {
    some.split(AND).all(|one| all.split(AND).any(|other| one == other))
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.path, Size(self.size_bytes))?;
        for (label, value) in [("model", &self.model), ("serial", &self.serial), ("wwn", &self.wwn)] {
            if let Some(value) = value {
                write!(f, ", {label} {value}")?;
            }
        }
        f.write_str(")")
    }
}

/// What is refused unless a rule allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Allow {
    /// Marks of RAID, LVM, encryption and their like are overwritten.
    Signatures,
    /// Removable media, memory cards and disks on USB are disks like others.
    Removable,
    /// A device that is reached by several paths is written through one of them.
    Multipath,
}

impl Allow {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Signatures, Self::Removable, Self::Multipath];

    /// The word for it in the CLI and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signatures => "signatures",
            Self::Removable => "removable",
            Self::Multipath => "multipath",
        }
    }
}

/// Which disk may be written. Every field that is set must hold; a rule with
/// nothing set means "the only disk".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    /// At least this many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_size_bytes: Option<u64>,
    /// At most this many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
    /// Exactly this serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Exactly this world wide name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// The model begins with this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Exactly this device path or one of its stable paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is not refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
}

impl DiskRule {
    fn allows(&self, what: Allow) -> bool {
        self.allow.contains(&what)
    }

    fn matches(&self, disk: &Disk) -> bool {
        let same = |want: &Option<String>, have: &Option<String>| want.is_none() || want == have;
        self.min_size_bytes.is_none_or(|min| disk.size_bytes >= min)
            && self.max_size_bytes.is_none_or(|max| disk.size_bytes <= max)
            && same(&self.serial, &disk.serial)
            && same(&self.wwn, &disk.wwn)
            && self.model.as_ref().is_none_or(|want| disk.model.as_ref().is_some_and(|m| m.starts_with(want.as_str())))
            && self.path.as_ref().is_none_or(|want| &disk.path == want || disk.by_path.contains(want))
    }
}

impl fmt::Display for DiskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(min) = self.min_size_bytes {
            parts.push(format!("at least {}", Size(min)));
        }
        if let Some(max) = self.max_size_bytes {
            parts.push(format!("at most {}", Size(max)));
        }
        for (label, value) in
            [("serial", &self.serial), ("wwn", &self.wwn), ("model", &self.model), ("path", &self.path)]
        {
            if let Some(value) = value {
                parts.push(format!("{label} {value}"));
            }
        }
        if parts.is_empty() {
            f.write_str("the only disk")?
        } else {
            f.write_str(&parts.join(", "))?
        }
        match self.allow.as_slice() {
            [] => Ok(()),
            allowed => write!(f, ", allowing {}", allowed.iter().map(|a| a.as_str()).collect::<Vec<_>>().join(" and ")),
        }
    }
}

/// A number of bytes, printed with its exact count when it is not a whole
/// number of MiB or GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        match self.0 {
            n if n >= GIB && n % GIB == 0 => write!(f, "{} GiB", n / GIB),
            n if n >= MIB && n % MIB == 0 => write!(f, "{} MiB", n / MIB),
            n if n >= GIB => write!(f, "{}.{} GiB ({n} bytes)", n / GIB, n % GIB * 10 / GIB),
            n => write!(f, "{n} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_prefers_what_is_stable() {
        let mut d = Disk { path: "/dev/vda".into(), size_bytes: 1 << 30, serial: Some("s".into()), ..Disk::default() };
        assert_eq!(d.identity(), "serial:s");
        d.wwn = Some("eui.1".into());
        assert_eq!(d.identity(), "wwn:eui.1");
        d.wwn = None;
        d.serial = None;
        assert_eq!(d.identity(), "path:/dev/vda:1073741824");
    }

    #[test]
    fn several_disks_are_named_in_one_text() {
        let disk = |serial: &str| Disk { serial: Some(serial.into()), ..Disk::default() };
        let (a, b) = (disk("a"), disk("b"));
        let both = identities([&b, &a]);
        assert_eq!(both, "serial:a + serial:b");
        assert_eq!(identities([&a]), a.identity());
        assert!(are_among("serial:a", &both) && are_among(&both, &both) && are_among("serial:b + serial:a", &both));
        assert!(!are_among(&both, "serial:a") && !are_among("serial:c", &both) && !are_among("none", &both));
        assert!(!are_among("serial", &both) && !are_among("", &both));
    }

    #[test]
    fn marks_of_larger_things_are_known_and_named() {
        for kind in ["linux_raid_member", "isw_raid_member", "LVM2_member", "crypto_LUKS", "bcache", "zfs_member"] {
            assert!(Signature::is_one(kind), "{kind}");
        }
        for kind in ["ext4", "xfs", "vfat", "swap", "btrfs"] {
            assert!(!Signature::is_one(kind), "{kind}");
        }
        let text = |kind: &str, label: Option<&str>| {
            Signature { device: "/dev/sda2".into(), kind: kind.into(), label: label.map(Into::into) }.to_string()
        };
        assert_eq!(text("linux_raid_member", Some("old:0")), "software RAID (md) on /dev/sda2 (`old:0`)");
        assert_eq!(text("isw_raid_member", None), "firmware RAID on /dev/sda2");
    }
}
