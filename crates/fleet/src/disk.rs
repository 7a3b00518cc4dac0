//! The disk interlock: which one disk may be written, or why none.
//!
//! It fails closed. A rule must match exactly one disk that can be written and
//! is not what the machine booted from; two equal disks are a refusal.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// The running system was loaded from it or has it mounted.
    #[serde(default)]
    pub boot_medium: bool,
    /// What it holds now, as sentences a person can judge: partition table,
    /// file systems and their labels. Empty for a blank disk.
    #[serde(default)]
    pub contents: Vec<String>,
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
}

impl DiskRule {
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
        if parts.is_empty() { f.write_str("the only disk") } else { f.write_str(&parts.join(", ")) }
    }
}

/// Why no disk may be written. Each sentence says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The node has no disk at all that could be written.
    #[error("the node has no disk that can be written ({seen}); check the controller's driver and the cabling")]
    NoDisk {
        /// What was seen and passed over.
        seen: String,
    },
    /// No disk matches the rule.
    #[error("no disk matches the rule `{rule}`; the node has {seen}; correct the node's disk rule")]
    NoMatch {
        /// The rule as text.
        rule: String,
        /// The disks that were there.
        seen: String,
    },
    /// More than one disk matches the rule.
    #[error(
        "{count} disks match the rule `{rule}`: {seen}; nothing was written; name one by serial, wwn or path in the node's disk rule"
    )]
    Ambiguous {
        /// How many match.
        count: usize,
        /// The rule as text.
        rule: String,
        /// The disks that match.
        seen: String,
    },
    /// The one matching disk is too small for the image.
    #[error(
        "the image needs {image} but {disk} is smaller; nothing was written; choose a larger disk or a smaller image"
    )]
    TooSmall {
        /// The image's size as text.
        image: String,
        /// The disk as text.
        disk: String,
    },
}

/// The one disk that `rule` allows for an image of `image_bytes`.
///
/// # Errors
/// A [`Refusal`] unless exactly one writable, fixed disk that is not the boot
/// medium matches and is large enough.
pub fn choose<'a>(disks: &'a [Disk], rule: &DiskRule, image_bytes: u64) -> Result<&'a Disk, Refusal> {
    let eligible: Vec<&Disk> =
        disks.iter().filter(|d| !d.removable && !d.read_only && !d.boot_medium && d.size_bytes > 0).collect();
    if eligible.is_empty() {
        return Err(Refusal::NoDisk { seen: list(disks.iter(), "no disks seen") });
    }
    let matching: Vec<&Disk> = eligible.iter().copied().filter(|d| rule.matches(d)).collect();
    match matching.as_slice() {
        [] => Err(Refusal::NoMatch { rule: rule.to_string(), seen: list(eligible.into_iter(), "none") }),
        [disk] if disk.size_bytes < image_bytes => {
            Err(Refusal::TooSmall { image: Size(image_bytes).to_string(), disk: disk.to_string() })
        }
        [disk] => Ok(disk),
        several => Err(Refusal::Ambiguous {
            count: several.len(),
            rule: rule.to_string(),
            seen: list(several.iter().copied(), "none"),
        }),
    }
}

fn list<'a>(disks: impl Iterator<Item = &'a Disk>, none: &str) -> String {
    let texts: Vec<String> = disks.map(ToString::to_string).collect();
    if texts.is_empty() { none.to_owned() } else { texts.join("; ") }
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn disk(path: &str, gib: u64, serial: &str) -> Disk {
        Disk {
            path: path.into(),
            size_bytes: gib << 30,
            serial: Some(serial.into()),
            model: Some("QEMU HARDDISK".into()),
            ..Disk::default()
        }
    }

    #[test]
    fn the_only_disk_is_chosen_without_a_rule() {
        let disks = [disk("/dev/vda", 4, "a")];
        assert_eq!(choose(&disks, &DiskRule::default(), 1 << 30).unwrap().path, "/dev/vda");
    }

    #[test]
    fn two_equal_disks_are_refused_and_both_named() {
        let disks = [disk("/dev/sda", 4, "same"), disk("/dev/sdb", 4, "same")];
        let refusal = choose(&disks, &DiskRule { serial: Some("same".into()), ..DiskRule::default() }, 1).unwrap_err();
        let sentence = refusal.to_string();
        assert!(
            sentence.contains("/dev/sda") && sentence.contains("/dev/sdb") && sentence.contains("nothing was written"),
            "{sentence}"
        );
    }

    #[test]
    fn removable_read_only_and_boot_media_are_never_chosen() {
        let passed_over = [
            Disk { removable: true, ..disk("/dev/sdb", 4, "usb") },
            Disk { read_only: true, ..disk("/dev/sdc", 4, "ro") },
            Disk { boot_medium: true, ..disk("/dev/sdd", 4, "boot") },
            Disk { size_bytes: 0, ..disk("/dev/sr0", 0, "empty") },
        ];
        for one in &passed_over {
            let rule = DiskRule { serial: one.serial.clone(), ..DiskRule::default() };
            assert!(matches!(choose(std::slice::from_ref(one), &rule, 1), Err(Refusal::NoDisk { .. })));
        }
        let mut with_good = passed_over.to_vec();
        with_good.push(disk("/dev/sda", 4, "good"));
        assert_eq!(choose(&with_good, &DiskRule::default(), 1).unwrap().path, "/dev/sda");
    }

    #[test]
    fn each_part_of_a_rule_narrows() {
        let disks = [
            Disk {
                wwn: Some("naa.1".into()),
                by_path: vec!["pci-0000:00:1f.2-ata-1".into()],
                ..disk("/dev/sda", 4, "a")
            },
            Disk { model: Some("SAMSUNG PM9A3".into()), ..disk("/dev/nvme0n1", 8, "b") },
        ];
        let pick = |rule: DiskRule| choose(&disks, &rule, 1).map(|d| d.path.clone());
        assert_eq!(pick(DiskRule { wwn: Some("naa.1".into()), ..DiskRule::default() }).unwrap(), "/dev/sda");
        assert_eq!(pick(DiskRule { min_size_bytes: Some(5 << 30), ..DiskRule::default() }).unwrap(), "/dev/nvme0n1");
        assert_eq!(pick(DiskRule { max_size_bytes: Some(5 << 30), ..DiskRule::default() }).unwrap(), "/dev/sda");
        assert_eq!(pick(DiskRule { model: Some("SAMSUNG".into()), ..DiskRule::default() }).unwrap(), "/dev/nvme0n1");
        assert_eq!(
            pick(DiskRule { path: Some("pci-0000:00:1f.2-ata-1".into()), ..DiskRule::default() }).unwrap(),
            "/dev/sda"
        );
        assert!(matches!(
            pick(DiskRule { serial: Some("c".into()), ..DiskRule::default() }),
            Err(Refusal::NoMatch { .. })
        ));
        assert!(matches!(pick(DiskRule::default()), Err(Refusal::Ambiguous { count: 2, .. })));
    }

    #[test]
    fn an_image_larger_than_the_disk_is_refused() {
        let disks = [disk("/dev/vda", 1, "a")];
        let refusal = choose(&disks, &DiskRule::default(), (1 << 30) + 512).unwrap_err();
        assert!(matches!(refusal, Refusal::TooSmall { .. }));
        assert!(refusal.to_string().contains("1.0 GiB (1073742336 bytes)"), "{refusal}");
    }

    #[test]
    fn identity_prefers_what_is_stable() {
        let mut d = disk("/dev/vda", 1, "s");
        assert_eq!(d.identity(), "serial:s");
        d.wwn = Some("eui.1".into());
        assert_eq!(d.identity(), "wwn:eui.1");
        d.wwn = None;
        d.serial = None;
        assert_eq!(d.identity(), "path:/dev/vda:1073741824");
    }
}
