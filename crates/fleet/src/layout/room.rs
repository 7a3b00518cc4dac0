//! How large the devices of a layout become on certain disks, and whether what belongs on them fits: before anything is written.

use std::collections::BTreeMap;

use super::check::Wrong;
use super::plan::TABLE_BYTES;
use super::{ALIGNMENT_BYTES, Extent, Layout};
use crate::disk::Size;

/// LVM keeps this for itself on each physical volume, and gives the rest in extents (lvm.conf(5): `data_alignment`,
/// `physical_extent_size`), in bytes.
const GROUP_HEAD_BYTES: u64 = 1 << 20;
const EXTENT_BYTES: u64 = 4 << 20;
/// The head of LUKS2 as cryptsetup makes it, in bytes (cryptsetup-luksFormat(8)).
const LOCK_HEAD_BYTES: u64 = 16 << 20;
/// mdadm 4.2 leaves a power of two up to this in front of an array's data, at most a thousandth of the member, and room for
/// what describes the array, all in whole MiB; in bytes.
const MOST_RESERVED_BYTES: u64 = 128 << 20;
const ARRAY_HEAD_BYTES: u64 = 16 << 10;

impl Layout {
    /// The same layout for a tree that comes as an archive of so many bytes, which lies on the root until it is unpacked.
    #[must_use]
    pub fn with_archive(&self, bytes: u64) -> Self {
        let mut layout = self.clone();
        for mount in layout.mounts.iter_mut().filter(|mount| mount.at.as_deref() == Some("/")) {
            let least = mount.least.and_then(Extent::bytes);
            mount.least = least.map(|least| Extent::Bytes((least + bytes).next_multiple_of(ALIGNMENT_BYTES)));
        }
        layout
    }

    /// Whether groups have room for their volumes, and file systems for what belongs on them, on disks of these sizes, in bytes
    /// and in the layout's order.
    ///
    /// # Errors
    /// [`Wrong`] with both sizes.
    pub fn check_room(&self, disks_bytes: &[u64]) -> Result<(), Wrong> {
        let mut sizes = BTreeMap::new();
        for (disk, size_bytes) in self.disks.iter().zip(disks_bytes) {
            let parts = disk.partitions.iter().map(|part| (part.name.as_str(), part.size));
            share(&mut sizes, &format!("{}.", disk.name), size_bytes.saturating_sub(TABLE_BYTES), parts)?;
        }
        let of = |sizes: &BTreeMap<String, u64>, name: &String| sizes.get(name).copied().unwrap_or_default();
        for array in &self.arrays {
            let data = if self.mirrors_esp(array) { data_before_end } else { data_of_member };
            let members = array.members.iter().map(|name| data(of(&sizes, name)));
            let count = array.members.len() as u64;
            let smallest = members.clone().min().unwrap_or_default();
            let size_bytes = match array.level {
                0 => members.sum(),
                10 => smallest * (count / 2),
                _ => smallest,
            };
            sizes.insert(array.name.clone(), size_bytes);
        }
        for locked in &self.locked {
            let size_bytes = of(&sizes, &locked.on).saturating_sub(LOCK_HEAD_BYTES);
            sizes.insert(locked.name.clone(), size_bytes);
        }
        for group in &self.groups {
            let extents = |bytes: u64| bytes / EXTENT_BYTES * EXTENT_BYTES;
            let member = |name| extents(of(&sizes, name).saturating_sub(GROUP_HEAD_BYTES));
            let size_bytes = group.members.iter().map(member).sum();
            let volumes = group.volumes.iter().map(|volume| {
                let size = volume.size.bytes().map(|bytes| Extent::Bytes(bytes.next_multiple_of(EXTENT_BYTES)));
                (volume.name.as_str(), size.unwrap_or(Extent::Rest))
            });
            share(&mut sizes, &format!("{}/", group.name), size_bytes, volumes)?;
        }
        for mount in &self.mounts {
            let has = of(&sizes, &mount.on);
            let least = mount.least.and_then(Extent::bytes).unwrap_or_default().max(mount.kind.least_bytes());
            if has < least {
                let at = mount.at.as_deref().unwrap_or("swap");
                let (on, least, has) = (&mount.on, Size(least), Size(has));
                return Err(Wrong(format!(
                    "`{on}` for {at} would have {has} on these disks, and needs {least} for what is put there: take larger disks, or give less to others"
                )));
            }
        }
        Ok(())
    }
}

/// Shares `size_bytes` out; the last may take what is left.
fn share<'a>(
    sizes: &mut BTreeMap<String, u64>,
    whose: &str,
    size_bytes: u64,
    parts: impl Iterator<Item = (&'a str, Extent)> + Clone,
) -> Result<(), Wrong> {
    let fixed: u64 = parts.clone().filter_map(|(_, size)| size.bytes()).sum();
    let left = size_bytes.checked_sub(fixed).ok_or_else(|| {
        let (name, fixed, has) = (&whose[..whose.len() - 1], Size(fixed), Size(size_bytes));
        Wrong(format!("`{name}` is to hold {fixed} and would have {has} on these disks: make what is in it smaller"))
    })?;
    for (name, size) in parts {
        sizes.insert(format!("{whose}{name}"), size.bytes().unwrap_or(left / ALIGNMENT_BYTES * ALIGNMENT_BYTES));
    }
    Ok(())
}

/// What a member gives to an array whose description lies at the end.
fn data_before_end(size_bytes: u64) -> u64 {
    size_bytes.saturating_sub(ALIGNMENT_BYTES)
}

/// What a member gives to its array.
fn data_of_member(size_bytes: u64) -> u64 {
    let mut reserved = MOST_RESERVED_BYTES;
    while reserved << 10 > size_bytes {
        reserved >>= 1;
    }
    size_bytes.saturating_sub((reserved + ARRAY_HEAD_BYTES).next_multiple_of(ALIGNMENT_BYTES))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const LAYOUT: &str = r#"
        [[disk]]
        name = "a"
        partition = [{ name = "bios", size = "1MiB", role = "bios_boot" }, { name = "raid", size = "rest" }]
        [[disk]]
        name = "b"
        rule = { path = "/dev/vdb" }
        partition = [{ name = "raid", size = "rest" }]
        [[raid]]
        name = "mirror"
        level = 1
        members = ["a.raid", "b.raid"]
        [[luks]]
        name = "secret"
        on = "mirror"
        key_file = "/etc/keys/secret"
        [[group]]
        name = "vg"
        members = ["secret"]
        volume = [{ name = "swap", size = "1GiB" }, { name = "root", size = "rest" }]
        [[mount]]
        on = "vg/root"
        kind = "ext4"
        at = "/"
        least = "3GiB"
        [[mount]]
        on = "vg/swap"
        kind = "swap"
        "#;

    fn refusal(layout: &Layout, disks_bytes: [u64; 2]) -> String {
        layout.check_room(&disks_bytes).map_or_else(|wrong| wrong.to_string(), |()| "fits".to_owned())
    }

    #[test]
    fn what_is_left_for_a_file_system_is_known_before_a_disk_is_written() {
        let layout: Layout = toml::from_str(LAYOUT).unwrap();
        assert_eq!(refusal(&layout, [8 * GIB, 5 * GIB]), "fits");
        let short = refusal(&layout, [8 * GIB, 4 * GIB]);
        assert!(short.contains("`vg/root` for / would have 3048 MiB") && short.contains("needs 3 GiB"), "{short}");
        // The archive lies beside what is unpacked from it.
        let with_archive = layout.with_archive(GIB + 1);
        assert_eq!(with_archive.mounts.first().unwrap().least, Some(Extent::Bytes(4 * GIB + ALIGNMENT_BYTES)));
        assert_eq!(refusal(&with_archive, [6 * GIB, 6 * GIB]), "fits");
        assert_ne!(refusal(&with_archive, [5 * GIB, 6 * GIB]), "fits");
    }

    #[test]
    fn volumes_that_are_more_than_their_group_are_refused_with_both_sizes() {
        let layout: Layout = toml::from_str(&LAYOUT.replace("\"1GiB\"", "\"9GiB\"")).unwrap();
        let sentence = refusal(&layout, [8 * GIB, 8 * GIB]);
        assert!(sentence.contains("`vg` is to hold 9 GiB and would have"), "{sentence}");
    }

    #[test]
    fn arrays_are_as_large_as_mdadm_makes_them() {
        // `/proc/mdstat` of the machine in the lab's test of layouts, in whole MiB.
        for (member_mib, array_mib) in [(160, 159), (1473, 1471)] {
            assert_eq!(data_of_member(member_mib << 20), array_mib << 20);
        }
        assert_eq!(data_of_member(0), 0);
        assert_eq!((data_before_end(64 << 20), data_before_end(0)), (63 << 20, 0));
    }

    #[test]
    fn arrays_add_up_by_their_level() {
        for (level, swap, fits) in [("1", "4GiB", false), ("0", "4GiB", true)] {
            let text =
                LAYOUT.replace("level = 1", &format!("level = {level}")).replace("\"1GiB\"", &format!("\"{swap}\""));
            let layout: Layout = toml::from_str(&text).unwrap();
            assert_eq!(refusal(&layout, [5 * GIB, 5 * GIB]) == "fits", fits, "level {level}");
        }
    }
}
