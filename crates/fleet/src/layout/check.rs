//! What is wrong with a layout, before a disk is touched.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{ALIGNMENT_BYTES, Array, Extent, Kind, Layout, Mount, Role, Table};
use crate::disk::Size;

/// Most disks, partitions of a disk, arrays, groups, volumes of a group, and file systems.
const MOST: usize = 64;
/// GRUB's core with the modules for LVM and RAID fits in there.
const BIOS_BOOT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 20;

/// Why a layout is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Wrong(pub(super) String);

fn wrong<T>(text: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(text.into()))
}

/// Where a name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Partition(Role),
    Array,
    Locked,
    Volume,
}

impl Layout {
    /// Whether this can be built on machines that boot by UEFI, or by BIOS, and would boot.
    ///
    /// # Errors
    /// [`Wrong`], a sentence with what to do.
    pub fn check(&self, uefi: bool) -> Result<(), Wrong> {
        self.check_counts()?;
        let mut names = self.check_disks()?;
        let mut taken = BTreeSet::new();
        for array in &self.arrays {
            let (least, even) = match array.level {
                0 | 1 => (2, false),
                10 => (4, true),
                other => {
                    return wrong(format!("array `{}`: level {other} is not offered; 0, 1 and 10 are", array.name));
                }
            };
            let count = array.members.len();
            if count < least || (even && count % 2 == 1) {
                return wrong(format!(
                    "array `{}` of level {} cannot be made of {count} members",
                    array.name, array.level
                ));
            }
            let user = format!("array `{}`", array.name);
            if self.mirrors_esp(array) {
                // Firmware reads each member by itself, so the array is one to everything else as well.
                claim(&mut taken, &array.members, &user)?;
                add(&mut names, array.name.clone(), What::Partition(Role::Esp))?;
            } else {
                take_all(&names, &mut taken, &array.members, &user)?;
                add(&mut names, array.name.clone(), What::Array)?;
            }
        }
        for locked in &self.locked {
            let user = format!("encrypted device `{}`", locked.name);
            take_all(&names, &mut taken, std::slice::from_ref(&locked.on), &user)?;
            let is_path = locked.key_file.starts_with('/') && !locked.key_file.contains(char::is_whitespace);
            if !is_path {
                return wrong(format!("{user}: key_file must be a path from /, without blanks"));
            }
            add(&mut names, locked.name.clone(), What::Locked)?;
        }
        for group in &self.groups {
            let user = format!("volume group `{}`", group.name);
            check_name(&group.name)?;
            take_all(&names, &mut taken, &group.members, &user)?;
            if group.members.is_empty() || group.volumes.is_empty() {
                return wrong(format!("{user} needs members and volumes"));
            }
            check_extents(&user, group.volumes.iter().map(|volume| volume.size))?;
            for volume in &group.volumes {
                check_name(&volume.name)?;
                insert(&mut names, format!("{}/{}", group.name, volume.name), What::Volume)?;
            }
        }
        self.check_mounts(&names, &mut taken)?;
        self.check_boot(uefi)
    }

    fn check_counts(&self) -> Result<(), Wrong> {
        let counts = [
            ("disks", self.disks.len()),
            ("arrays", self.arrays.len()),
            ("encrypted devices", self.locked.len()),
            ("volume groups", self.groups.len()),
            ("file systems", self.mounts.len()),
        ];
        let inner = self.disks.iter().map(|disk| ("partitions of a disk", disk.partitions.len()));
        let volumes = self.groups.iter().map(|group| ("volumes of a group", group.volumes.len()));
        match counts.into_iter().chain(inner).chain(volumes).find(|(_, count)| *count > MOST) {
            Some((what, count)) => wrong(format!("{count} {what} are more than {MOST}")),
            None if self.disks.is_empty() => wrong("a layout needs a disk: [[disk]]"),
            None => Ok(()),
        }
    }

    fn check_disks(&self) -> Result<BTreeMap<String, What>, Wrong> {
        let mut names = BTreeMap::new();
        let mut disks = BTreeSet::new();
        for disk in &self.disks {
            check_name(&disk.name)?;
            if !disks.insert(&disk.name) {
                return wrong(format!("two disks are called `{}`", disk.name));
            }
            if disk.partitions.is_empty() {
                return wrong(format!("disk `{}` has no partitions", disk.name));
            }
            if self.table == Table::Mbr && disk.partitions.len() > 4 {
                return wrong(format!(
                    "disk `{}`: an MBR table has at most four partitions; use table = \"gpt\"",
                    disk.name
                ));
            }
            check_extents(&format!("disk `{}`", disk.name), disk.partitions.iter().map(|part| part.size))?;
            for part in &disk.partitions {
                check_name(&part.name)?;
                insert(&mut names, format!("{}.{}", disk.name, part.name), What::Partition(part.role))?;
            }
        }
        match self.disks.iter().filter(|disk| disk.rule.is_none()).count() {
            0 | 1 => Ok(names),
            many => wrong(format!(
                "{many} disks have no rule, and only one can be the node's own disk: give the others one"
            )),
        }
    }

    fn check_mounts(&self, names: &BTreeMap<String, What>, taken: &mut BTreeSet<String>) -> Result<(), Wrong> {
        let mut points = BTreeSet::new();
        let mut labels = BTreeSet::new();
        for mount in &self.mounts {
            let user = format!("{} on `{}`", mount.kind.as_str(), mount.on);
            take_file_system(names, taken, mount, &user)?;
            match (&mount.at, mount.kind) {
                (None, Kind::Swap) => {}
                (Some(_), Kind::Swap) => return wrong(format!("{user} is mounted nowhere; leave `at` out")),
                (None, _) => return wrong(format!("{user} is mounted nowhere: give `at`")),
                (Some(at), _) if !is_mount_point(at) => {
                    return wrong(format!("{user}: `{at}` is not a path to mount at, such as / or /var/lib"));
                }
                (Some(at), _) if !points.insert(at) => return wrong(format!("two file systems are mounted at {at}")),
                (Some(_), _) => {}
            }
            if mount.options.as_ref().is_some_and(|text| text.is_empty() || text.contains(char::is_whitespace)) {
                return wrong(format!("{user}: mount options are separated by commas, without blanks"));
            }
            if let Some(label) = &mount.label {
                let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                let most = mount.kind.label_bytes();
                if label.is_empty() || label.len() > most || !label.chars().all(fine) {
                    return wrong(format!("{user}: a label has 1 to {most} letters, digits, - _ and ., not `{label}`"));
                }
                if !labels.insert(label) {
                    return wrong(format!("two file systems have the label `{label}`"));
                }
            }
            if mount.least == Some(Extent::Rest) {
                return wrong(format!("{user}: least is a size, such as 20GiB"));
            }
            if let Some(Extent::Bytes(bytes)) = self.extent(&mount.on)
                && bytes < mount.kind.least_bytes()
            {
                let least = Size(mount.kind.least_bytes());
                return wrong(format!("{user} needs at least {least}, and has {}", Size(bytes)));
            }
        }
        if !points.contains(&"/".to_owned()) {
            return wrong("nothing is mounted at /");
        }
        Ok(())
    }

    /// Firmware reads what a boot loader needs before anything is unlocked or put together by a kernel.
    fn check_boot(&self, uefi: bool) -> Result<(), Wrong> {
        let parts = || self.disks.iter().flat_map(|disk| disk.partitions.iter().map(move |part| (disk, part)));
        for (disk, part) in parts() {
            let name = format!("{}.{}", disk.name, part.name);
            match (part.role, part.size, self.table) {
                (Role::BiosBoot, _, Table::Mbr) => {
                    return wrong(format!("`{name}`: an MBR disk needs no BIOS boot partition; leave it out"));
                }
                (Role::BiosBoot, Extent::Bytes(bytes), _) if BIOS_BOOT_BYTES.contains(&bytes) => {}
                (Role::BiosBoot, ..) => return wrong(format!("`{name}`: a BIOS boot partition has 1MiB to 64MiB")),
                _ => {}
            }
        }
        if uefi && self.esp().is_none_or(|mount| mount.kind != Kind::Vfat) {
            return wrong("UEFI machines need a partition with role = \"esp\" and vfat on it, mounted at /boot/efi");
        }
        let has_bios_boot = parts().any(|(_, part)| part.role == Role::BiosBoot);
        if !uefi && self.table == Table::Gpt && !has_bios_boot {
            return wrong("BIOS machines need a partition with role = \"bios_boot\" of 1MiB on a GPT disk");
        }
        let at = |point: &str| self.mounts.iter().find(|mount| mount.at.as_deref() == Some(point));
        let boot = at("/boot").or_else(|| at("/"));
        match boot {
            Some(boot) if self.is_locked(&boot.on) => wrong(format!(
                "the kernel would lie in `{}`, which is encrypted, and no boot loader would get at it: mount a plain partition at /boot",
                boot.on
            )),
            _ => Ok(()),
        }
    }

    /// Whether an array keeps EFI system partitions equal: a mirror of nothing else.
    #[must_use]
    pub fn mirrors_esp(&self, array: &Array) -> bool {
        let is_esp = |name: &String| self.role(name) == Some(Role::Esp);
        array.level == 1 && !array.members.is_empty() && array.members.iter().all(is_esp)
    }

    /// The file system that the firmware starts the boot loader from.
    #[must_use]
    pub fn esp(&self) -> Option<&Mount> {
        let is_mirror = |name: &str| self.arrays.iter().any(|array| array.name == name && self.mirrors_esp(array));
        self.mounts.iter().find(|mount| self.role(&mount.on) == Some(Role::Esp) || is_mirror(&mount.on))
    }

    /// What a partition is to firmware.
    fn role(&self, name: &str) -> Option<Role> {
        let (disk, part) = name.split_once('.')?;
        let disk = self.disks.iter().find(|other| other.name == disk)?;
        Some(disk.partitions.iter().find(|other| other.name == part)?.role)
    }

    /// Whether anything below this device is encrypted.
    pub(super) fn is_locked(&self, name: &str) -> bool {
        if self.locked.iter().any(|locked| locked.name == name) {
            return true;
        }
        let below = self.arrays.iter().find(|array| array.name == name).map(|array| &array.members);
        let group = name.split_once('/').and_then(|(group, _)| self.groups.iter().find(|g| g.name == group));
        below.or(group.map(|group| &group.members)).is_some_and(|members| members.iter().any(|m| self.is_locked(m)))
    }

    /// The size that the layout itself gives a partition or volume.
    #[must_use]
    pub fn extent(&self, name: &str) -> Option<Extent> {
        if let Some((disk, part)) = name.split_once('.') {
            let disk = self.disks.iter().find(|other| other.name == disk)?;
            return Some(disk.partitions.iter().find(|other| other.name == part)?.size);
        }
        let (group, volume) = name.split_once('/')?;
        let group = self.groups.iter().find(|other| other.name == group)?;
        Some(group.volumes.iter().find(|other| other.name == volume)?.size)
    }
}

/// Names become device names and labels, so they are short and plain.
fn check_name(name: &str) -> Result<(), Wrong> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(fine) && name.len() <= 32;
    if is_word {
        return Ok(());
    }
    wrong(format!("`{name}` cannot be a name: 1 to 32 letters, digits, - and _, beginning with a letter"))
}

fn add(names: &mut BTreeMap<String, What>, name: String, what: What) -> Result<(), Wrong> {
    check_name(&name)?;
    insert(names, name, what)
}

fn insert(names: &mut BTreeMap<String, What>, name: String, what: What) -> Result<(), Wrong> {
    match names.contains_key(&name) {
        true => wrong(format!("two things are called `{name}`")),
        false => {
            names.insert(name, what);
            Ok(())
        }
    }
}

/// Whole MiB, and only the last takes the rest.
fn check_extents(whose: &str, sizes: impl Iterator<Item = Extent>) -> Result<(), Wrong> {
    let sizes: Vec<Extent> = sizes.collect();
    for (index, size) in sizes.iter().enumerate() {
        match size {
            Extent::Rest if index + 1 < sizes.len() => {
                return wrong(format!("{whose}: only the last one can have size = \"rest\""));
            }
            Extent::Bytes(bytes) if *bytes == 0 || !bytes.is_multiple_of(ALIGNMENT_BYTES) => {
                return wrong(format!("{whose}: {bytes} bytes are not a whole number of MiB"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes devices for something that is made of them.
fn take_all(
    names: &BTreeMap<String, What>,
    taken: &mut BTreeSet<String>,
    wanted: &[String],
    user: &str,
) -> Result<(), Wrong> {
    for name in wanted {
        match names.get(name) {
            None => return wrong(format!("{user} is made of `{name}`, and nothing before it is called that")),
            Some(What::Partition(Role::Esp | Role::BiosBoot)) => {
                return wrong(format!("{user} cannot be made of `{name}`, which firmware or boot loader read"));
            }
            Some(_) => claim(taken, std::slice::from_ref(name), user)?,
        }
    }
    Ok(())
}

/// Nothing is used twice.
fn claim(taken: &mut BTreeSet<String>, wanted: &[String], user: &str) -> Result<(), Wrong> {
    match wanted.iter().find(|name| !taken.insert((*name).clone())) {
        Some(name) => wrong(format!("`{name}` is used twice, also by {user}")),
        None => Ok(()),
    }
}

fn take_file_system(
    names: &BTreeMap<String, What>,
    taken: &mut BTreeSet<String>,
    mount: &Mount,
    user: &str,
) -> Result<(), Wrong> {
    match (names.get(&mount.on), mount.kind) {
        (None, _) => wrong(format!("{user}: nothing is called `{}`", mount.on)),
        (Some(What::Partition(Role::BiosBoot)), _) => {
            wrong(format!("{user}: a BIOS boot partition has no file system"))
        }
        (Some(What::Partition(Role::Esp)), kind) if kind != Kind::Vfat => {
            wrong(format!("{user}: an EFI system partition has vfat"))
        }
        _ if !taken.insert(mount.on.clone()) => wrong(format!("`{}` is used twice, also by {user}", mount.on)),
        _ => Ok(()),
    }
}

fn is_mount_point(at: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    at == "/"
        || (at.starts_with('/')
            && at.chars().all(fine)
            && at[1..].split('/').all(|part| !part.is_empty() && part != "." && part != ".."))
}
