//! Which one disk may be written, read or wiped, or why none.

use thiserror::Error;

use super::{Allow, Disk, DiskRule, Size, are_among};

/// What the disk is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// An image is written to it.
    Write {
        /// The image's size in bytes.
        image_bytes: u64,
        /// The disks that we have written before ([`super::identities`]): what is on them came from us.
        own: Option<&'a str>,
    },
    /// It is read; nothing changes.
    Read,
    /// All that is on it goes.
    Wipe,
}

/// Why no disk may be used. Each sentence says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The node has no disk at all that could be used.
    #[error("the node has no disk that can be written ({seen}); check the controller's driver and the cabling")]
    NoDisk {
        /// What was seen, and why it was passed over.
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
    /// The rule matches only disks that cannot be used.
    #[error("the rule `{rule}` leads to no disk that may be used: {reasons}; nothing was written")]
    NotATarget {
        /// The rule as text.
        rule: String,
        /// For each disk why.
        reasons: String,
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
    /// The matching disks are paths to one device.
    #[error(
        "{disk} is one of several paths to the same device (the others: {others}), which is storage on a network or with two \
         controllers; nothing was written; name a local disk in the node's disk rule, or allow one path to be used with \
         `rackswarm node set NODE --disk-allow multipath` and set multipath up in the image"
    )]
    Multipath {
        /// The first path.
        disk: String,
        /// The other paths.
        others: String,
    },
    /// Two disks of a layout are one.
    #[error(
        "{disk} would be both `{first}` and `{second}` of the layout; nothing was written; give them rules that lead to different disks"
    )]
    Twice {
        /// The disk as text.
        disk: String,
        /// One of the layout's names.
        first: String,
        /// The other.
        second: String,
    },
    /// The disk belongs, or belonged, to something larger.
    #[error(
        "{disk} carries marks of {found}, which may be part of an array, group or pool with data; nothing was written; if that \
         is old, wipe the disk with `rackswarm node wipe NODE`, or have it overwritten with `rackswarm node set NODE --disk-allow signatures`"
    )]
    Signatures {
        /// The disk as text.
        disk: String,
        /// What was found.
        found: String,
    },
}

/// The one disk that `rule` allows for `purpose`.
///
/// Media and devices that can never be meant (no medium, in use, read-only, removable) are passed over. What is left must be
/// one device; that it carries marks of RAID or LVM makes it no less likely to be meant, so these do not narrow, they refuse.
///
/// # Errors
/// A [`Refusal`] unless exactly one disk matches and may be used.
pub fn choose<'a>(disks: &'a [Disk], rule: &DiskRule, purpose: Purpose<'_>) -> Result<&'a Disk, Refusal> {
    let (usable, passed_over): (Vec<&Disk>, Vec<&Disk>) =
        disks.iter().partition(|disk| obstacle(disk, rule, purpose).is_none());
    let reasons = |over: &[&Disk]| {
        let why = |disk: &&Disk| Some(format!("{disk} {}", obstacle(disk, rule, purpose)?));
        over.iter().filter_map(why).collect::<Vec<_>>().join("; ")
    };
    let matching: Vec<&Disk> = usable.iter().copied().filter(|disk| rule.matches(disk)).collect();
    let Some(first) = matching.first().copied() else {
        let meant: Vec<&Disk> = passed_over.iter().copied().filter(|disk| rule.matches(disk)).collect();
        return Err(match (usable.is_empty(), meant.is_empty() || *rule == any(rule)) {
            (true, true) if disks.is_empty() => Refusal::NoDisk { seen: "no disks seen".to_owned() },
            (true, true) => Refusal::NoDisk { seen: reasons(&passed_over) },
            (_, false) => Refusal::NotATarget { rule: rule.to_string(), reasons: reasons(&meant) },
            (false, true) => Refusal::NoMatch { rule: rule.to_string(), seen: list(&usable) },
        });
    };
    let others = other_paths(first, disks);
    if matching.iter().skip(1).any(|disk| !others.contains(disk)) {
        return Err(Refusal::Ambiguous { count: matching.len(), rule: rule.to_string(), seen: list(&matching) });
    }
    judge(first, &others, rule, purpose)?;
    Ok(first)
}

/// All disks that `rule` matches and that can be meant for `purpose`; marks and several paths are not judged.
#[must_use]
pub fn candidates<'a>(disks: &'a [Disk], rule: &DiskRule, purpose: Purpose<'_>) -> Vec<&'a Disk> {
    disks.iter().filter(|disk| rule.matches(disk) && obstacle(disk, rule, purpose).is_none()).collect()
}

/// What is refused although it may well be the disk that is meant.
fn judge(disk: &Disk, others: &[&Disk], rule: &DiskRule, purpose: Purpose<'_>) -> Result<(), Refusal> {
    if purpose == Purpose::Read {
        return Ok(());
    }
    if !others.is_empty() && !rule.allows(Allow::Multipath) {
        return Err(Refusal::Multipath { disk: disk.to_string(), others: list(others) });
    }
    let Purpose::Write { image_bytes, own } = purpose else { return Ok(()) };
    let is_own = own.is_some_and(|own| are_among(&disk.identity(), own));
    if !disk.signatures.is_empty() && !rule.allows(Allow::Signatures) && !is_own {
        let found: Vec<String> = disk.signatures.iter().map(ToString::to_string).collect();
        return Err(Refusal::Signatures { disk: disk.to_string(), found: found.join(" and ") });
    }
    if disk.size_bytes < image_bytes {
        return Err(Refusal::TooSmall { image: Size(image_bytes).to_string(), disk: disk.to_string() });
    }
    Ok(())
}

/// Why a disk cannot be meant, with what to do about it.
fn obstacle(disk: &Disk, rule: &DiskRule, purpose: Purpose<'_>) -> Option<String> {
    if disk.size_bytes == 0 {
        return Some("has no medium in it".to_owned());
    }
    if !disk.held_by.is_empty() {
        return Some(format!("is in use ({}); end that, or restart the machine", disk.held_by.join(", ")));
    }
    if disk.boot_medium {
        return Some("is what the running system was started from".to_owned());
    }
    if disk.read_only && purpose != Purpose::Read {
        return Some("refuses writes; unlock it at the drive or its controller, or name another disk".to_owned());
    }
    if (disk.removable || disk.pluggable) && !rule.allows(Allow::Removable) {
        let what = if disk.removable { "is removable" } else { "hangs on USB or is a memory card" };
        return Some(format!(
            "{what}; name another disk, or allow it with `rackswarm node set NODE --disk-allow removable`"
        ));
    }
    None
}

/// The other paths to the same device. One world wide name at two disks is one device, unless their serial numbers say that
/// the maker gave it twice.
fn other_paths<'a>(disk: &Disk, disks: &'a [Disk]) -> Vec<&'a Disk> {
    let same = |other: &&Disk| {
        other.path != disk.path
            && other.wwn.is_some()
            && other.wwn == disk.wwn
            && other.size_bytes == disk.size_bytes
            && (other.serial == disk.serial || other.serial.is_none() || disk.serial.is_none())
    };
    disks.iter().filter(same).collect()
}

/// A rule that names nothing, allowing what this one does.
fn any(rule: &DiskRule) -> DiskRule {
    DiskRule { allow: rule.allow.clone(), ..DiskRule::default() }
}

fn list(disks: &[&Disk]) -> String {
    let texts: Vec<String> = disks.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join("; ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::Signature;

    fn disk(path: &str, gib: u64, serial: &str) -> Disk {
        Disk {
            path: path.into(),
            size_bytes: gib << 30,
            serial: Some(serial.into()),
            model: Some("QEMU HARDDISK".into()),
            ..Disk::default()
        }
    }

    fn write(image_bytes: u64) -> Purpose<'static> {
        Purpose::Write { image_bytes, own: None }
    }

    fn signed(path: &str, kind: &str) -> Disk {
        let signature = Signature { device: format!("{path}2"), kind: kind.into(), label: Some("old".into()) };
        Disk { signatures: vec![signature], ..disk(path, 4, "signed") }
    }

    #[test]
    fn the_only_disk_is_chosen_without_a_rule() {
        let disks = [disk("/dev/vda", 4, "a")];
        assert_eq!(choose(&disks, &DiskRule::default(), write(1 << 30)).unwrap().path, "/dev/vda");
    }

    #[test]
    fn two_equal_disks_are_refused_and_both_named() {
        let disks = [disk("/dev/sda", 4, "same"), disk("/dev/sdb", 4, "same")];
        let rule = DiskRule { serial: Some("same".into()), ..DiskRule::default() };
        let sentence = choose(&disks, &rule, write(1)).unwrap_err().to_string();
        assert!(
            sentence.contains("/dev/sda") && sentence.contains("/dev/sdb") && sentence.contains("nothing was written"),
            "{sentence}"
        );
    }

    #[test]
    fn what_cannot_be_meant_is_passed_over_and_told_why_when_it_is_all_there_is() {
        let passed_over = [
            (Disk { removable: true, ..disk("/dev/sdb", 4, "card") }, "is removable"),
            (Disk { pluggable: true, ..disk("/dev/sdf", 4, "usb") }, "hangs on USB"),
            (Disk { read_only: true, ..disk("/dev/sdc", 4, "ro") }, "refuses writes"),
            (Disk { boot_medium: true, ..disk("/dev/sdd", 4, "boot") }, "was started from"),
            (
                Disk { held_by: vec!["sde1 is part of md0".into()], boot_medium: true, ..disk("/dev/sde", 4, "held") },
                "in use (sde1 is part of md0)",
            ),
            (Disk { size_bytes: 0, ..disk("/dev/sr0", 0, "empty") }, "no medium"),
        ];
        for (one, why) in &passed_over {
            let alone = std::slice::from_ref(one);
            let refusal = choose(alone, &DiskRule::default(), write(1)).unwrap_err();
            assert!(matches!(refusal, Refusal::NoDisk { .. }) && refusal.to_string().contains(why), "{refusal}");
            let rule = DiskRule { serial: one.serial.clone(), ..DiskRule::default() };
            for purpose in [write(1), Purpose::Wipe] {
                let refusal = choose(alone, &rule, purpose).unwrap_err();
                assert!(matches!(refusal, Refusal::NotATarget { .. }), "{refusal}");
                let sentence = refusal.to_string();
                assert!(sentence.contains(why) && sentence.contains(&one.path), "{sentence}");
            }
        }
        let mut with_good: Vec<Disk> = passed_over.iter().map(|(disk, _)| disk.clone()).collect();
        with_good.push(disk("/dev/sda", 4, "good"));
        assert_eq!(choose(&with_good, &DiskRule::default(), write(1)).unwrap().path, "/dev/sda");
    }

    #[test]
    fn removable_media_are_disks_where_they_are_allowed_and_nothing_allows_a_disk_in_use() {
        let allow = DiskRule { allow: Allow::ALL.to_vec(), ..DiskRule::default() };
        let usb = [Disk { pluggable: true, removable: true, ..disk("/dev/sdb", 4, "usb") }];
        assert!(choose(&usb, &allow, write(1)).is_ok());
        for never in [
            Disk { read_only: true, ..disk("/dev/sda", 4, "a") },
            Disk { boot_medium: true, ..disk("/dev/sda", 4, "a") },
            Disk { held_by: vec!["sda is mounted at /".into()], ..disk("/dev/sda", 4, "a") },
        ] {
            assert!(choose(&[never], &allow, write(1)).is_err());
        }
    }

    #[test]
    fn old_marks_refuse_until_allowed_and_never_make_another_disk_the_one() {
        for kind in ["linux_raid_member", "LVM2_member", "crypto_LUKS", "bcache", "zfs_member"] {
            let disks = [signed("/dev/sda", kind)];
            let refusal = choose(&disks, &DiskRule::default(), write(1)).unwrap_err();
            let sentence = refusal.to_string();
            assert!(matches!(refusal, Refusal::Signatures { .. }), "{sentence}");
            assert!(
                sentence.contains("/dev/sda2 (`old`)") && sentence.contains("--disk-allow signatures"),
                "{sentence}"
            );
            let rule = DiskRule { allow: vec![Allow::Signatures], ..DiskRule::default() };
            assert!(choose(&disks, &rule, write(1)).is_ok());
            assert!(choose(&disks, &DiskRule::default(), Purpose::Read).is_ok(), "reading harms nothing");
            assert!(choose(&disks, &DiskRule::default(), Purpose::Wipe).is_ok(), "wiping is what takes them off");
            let own = Purpose::Write { image_bytes: 1, own: Some("serial:signed") };
            assert!(choose(&disks, &DiskRule::default(), own).is_ok(), "they came with our own image");
            let other = Purpose::Write { image_bytes: 1, own: Some("serial:other") };
            assert!(choose(&disks, &DiskRule::default(), other).is_err());
        }
        let with_blank = [signed("/dev/sda", "LVM2_member"), disk("/dev/sdb", 4, "blank")];
        let refusal = choose(&with_blank, &DiskRule::default(), write(1)).unwrap_err();
        assert!(matches!(refusal, Refusal::Ambiguous { count: 2, .. }), "{refusal}");
    }

    #[test]
    fn paths_to_one_device_are_recognised() {
        let path = |name: &str, serial: &str| Disk { wwn: Some("naa.6".into()), ..disk(name, 4, serial) };
        let disks = [path("/dev/sdb", "lun"), path("/dev/sdc", "lun")];
        let rules = [
            DiskRule::default(),
            DiskRule { wwn: Some("naa.6".into()), ..DiskRule::default() },
            DiskRule { path: Some("/dev/sdb".into()), ..DiskRule::default() },
        ];
        for rule in rules {
            for purpose in [write(1), Purpose::Wipe] {
                let refusal = choose(&disks, &rule, purpose).unwrap_err();
                assert!(matches!(refusal, Refusal::Multipath { .. }), "{refusal}");
                assert!(refusal.to_string().contains("/dev/sdc"), "{refusal}");
            }
            let allowed = DiskRule { allow: vec![Allow::Multipath], ..rule };
            assert_eq!(choose(&disks, &allowed, write(1)).unwrap().path, "/dev/sdb");
        }
        let mut with_local = disks.to_vec();
        with_local.push(disk("/dev/sda", 4, "local"));
        assert!(matches!(choose(&with_local, &DiskRule::default(), write(1)), Err(Refusal::Ambiguous { .. })));
        let local = DiskRule { serial: Some("local".into()), ..DiskRule::default() };
        assert_eq!(choose(&with_local, &local, write(1)).unwrap().path, "/dev/sda");
        // A maker that gives all its disks the same name.
        let cheap = [path("/dev/sdb", "one"), path("/dev/sdc", "two")];
        let rule = DiskRule { serial: Some("two".into()), ..DiskRule::default() };
        assert_eq!(choose(&cheap, &rule, write(1)).unwrap().path, "/dev/sdc");
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
        let pick = |rule: DiskRule| choose(&disks, &rule, write(1)).map(|d| d.path.clone());
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
        let refusal = choose(&disks, &DiskRule::default(), write((1 << 30) + 512)).unwrap_err();
        assert!(matches!(refusal, Refusal::TooSmall { .. }));
        assert!(refusal.to_string().contains("1.0 GiB (1073742336 bytes)"), "{refusal}");
    }
}
