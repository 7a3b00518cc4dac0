//! A layout becomes partitions of one disk image: which there are, how large they must be, whether a tree fits.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bootenv::command::Run;
use fleet::disk::Size;
use fleet::layout::{Extent, Firmware, Input, Kind, LaidDisk, Layout, Mount, Partition, Role, Table, Target, plan};
use gptman::GPT;

use super::inside::Inside;
use crate::disk::SECTOR;
use crate::error::{Error, file};

const MIB: u64 = 1 << 20;
/// What the table at each end takes, as the layout's planner has it.
const TABLE_BYTES: u64 = 2 * MIB;
/// Bytes for each inode of ext4 that mke2fs makes room for, and an inode's own.
const INODE_RATIO: u64 = 16384;
const INODE_BYTES: u64 = 256;
/// mkfs.xfs makes no smaller one, and no smaller log.
const XFS_BYTES: u64 = 300 * MIB;
const XFS_LOG_BYTES: u64 = 64 * MIB;
/// FAT32 has at least 65525 clusters.
const FAT_BYTES: u64 = 36 * MIB;
/// What is left free where the image's size follows from the tree: the nodes grow the last partition to their disks.
const SLACK_BYTES: u64 = 64 * MIB;

/// A partition of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The layout's name for it, `DISK.PARTITION`.
    pub(crate) name: String,
    pub(crate) start_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) role: Role,
    pub(crate) mount: Option<Mount>,
}

/// What a part of the tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Blocks of 4 KiB, in bytes.
    pub(crate) bytes: u64,
    /// Files, folders and the like.
    pub(crate) files: u64,
}

/// The one disk of the layout, and who can start it.
pub(crate) fn check(layout: &Layout) -> Result<(&LaidDisk, Firmware), Error> {
    let refuse = |what: String| Err(Error::Tree(what));
    if layout.is_built_by_nodes() {
        return refuse("arrays, volume groups, encrypted devices and several disks are made by each node and are in no image of a disk".to_owned());
    }
    let [disk] = layout.disks.as_slice() else {
        return refuse(format!("the layout has {} disks, and an image is one disk", layout.disks.len()));
    };
    if disk.rule.is_some() {
        return refuse(format!(
            "disk `{}` of the layout has a rule; which disk is written is the node's rule: `rackswarm node set`",
            disk.name
        ));
    }
    let firmware = layout.firmware();
    if !firmware.bios && !firmware.uefi {
        return refuse("no machine would start this layout: give it a partition with role = \"esp\" for UEFI, one with role = \"bios_boot\" for BIOS, or both".to_owned());
    }
    for uefi in [true, false] {
        if if uefi { firmware.uefi } else { firmware.bios } {
            layout.check(uefi)?;
        }
    }
    Ok((disk, firmware))
}

/// Whether the layout can be made on a disk of the size that was asked for, as far as that is known without the tree.
pub(crate) fn expect_size(disk: &LaidDisk, asked: u64) -> Result<(), Error> {
    let rest = if disk.partitions.iter().any(|part| part.size == Extent::Rest) { MIB } else { 0 };
    let needed = fixed_bytes(disk) + TABLE_BYTES + rest;
    if asked < needed {
        let (asked, needed) = (Size(asked), Size(needed));
        return Err(Error::Tree(format!("the layout needs a disk of {needed} at least, and --size says {asked}")));
    }
    Ok(())
}

/// Makes the folders that file systems are mounted at. A link in their place would lead the file system's content astray.
pub(crate) fn make_points(tree: &Inside, layout: &Layout) -> Result<(), Error> {
    for at in points(layout) {
        if !tree.is_plain_folder(at) {
            return Err(Error::Tree(format!(
                "the layout mounts a file system at {at}, and in the tree that is, or leads through, a link or a file; mount it where the link leads"
            )));
        }
        tree.folder(at)?;
    }
    Ok(())
}

/// Mount points, the deepest first.
pub(crate) fn points(layout: &Layout) -> Vec<&str> {
    let mut points: Vec<&str> = layout.mounts.iter().filter_map(|mount| mount.at.as_deref()).collect();
    points.sort_by_key(|at| std::cmp::Reverse(at.trim_end_matches('/').matches('/').count()));
    points
}

/// What lies under each mount point and not under a deeper one.
pub(crate) fn measure(root: &Path, layout: &Layout) -> Result<BTreeMap<String, Need>, Error> {
    let points: BTreeMap<_, _> = points(layout).into_iter().map(|at| (root.join(&at[1..]), at)).collect();
    let mut needs: BTreeMap<String, Need> = points.values().map(|at| ((*at).to_owned(), Need::default())).collect();
    let mut seen = HashSet::new();
    let mut left = vec![(root.to_owned(), "/")];
    while let Some((folder, above)) = left.pop() {
        let at = points.get(&folder).copied().unwrap_or(above);
        for entry in fs::read_dir(&folder).map_err(file("list", &folder))? {
            let entry = entry.map_err(file("list", &folder))?;
            let found = entry.metadata().map_err(file("look at", entry.path()))?;
            if found.is_dir() {
                left.push((entry.path(), at));
            } else if found.nlink() > 1 && !seen.insert((at, found.ino())) {
                continue;
            }
            let Some(need) = needs.get_mut(at) else { continue };
            need.files += 1;
            // Holes take nothing; folders are written anew.
            let whole = found.len().next_multiple_of(4096);
            let stored = (found.blocks() * 512).next_multiple_of(4096);
            need.bytes += if found.is_file() { whole.min(stored.max(4096)) } else { whole.max(4096) };
        }
    }
    Ok(needs)
}

/// The image's size in bytes: what was asked for, or what the layout and the tree need.
pub(crate) fn disk_bytes(
    layout: &Layout,
    disk: &LaidDisk,
    needs: &BTreeMap<String, Need>,
    asked: Option<u64>,
) -> Result<u64, Error> {
    if let Some(asked) = asked {
        return Ok(asked);
    }
    let rest = disk.partitions.iter().find(|part| part.size == Extent::Rest);
    let rest = rest.map_or(0, |part| {
        let mount = layout.mounts.iter().find(|mount| mount.on == full_name(disk, part));
        mount.map_or(MIB, |mount| least(mount.kind, need_of(mount, needs)))
    });
    Ok(fixed_bytes(disk) + TABLE_BYTES + rest)
}

/// The most that a tree may have, as far as that is known without it, in bytes.
pub(crate) fn limit_bytes(layout: &Layout, disk: &LaidDisk, asked: Option<u64>) -> Option<u64> {
    let size = |part: &Partition| match (part.size, asked) {
        (Extent::Bytes(bytes), _) => Some(bytes),
        (Extent::Rest, Some(asked)) => Some(asked.saturating_sub(fixed_bytes(disk) + TABLE_BYTES)),
        (Extent::Rest, None) => None,
    };
    let holds = |part: &&Partition| {
        layout.mounts.iter().any(|mount| mount.on == full_name(disk, part) && mount.kind != Kind::Swap)
    };
    disk.partitions.iter().filter(holds).map(size).sum()
}

fn fixed_bytes(disk: &LaidDisk) -> u64 {
    let bytes = |part: &Partition| if let Extent::Bytes(bytes) = part.size { bytes } else { 0 };
    disk.partitions.iter().map(bytes).sum()
}

fn full_name(disk: &LaidDisk, part: &Partition) -> String {
    format!("{}.{}", disk.name, part.name)
}

pub(super) fn need_of(mount: &Mount, needs: &BTreeMap<String, Need>) -> Need {
    mount.at.as_ref().and_then(|at| needs.get(at)).copied().unwrap_or_default()
}

/// Divides the image, with the commands that `layout build` uses, and reads back what is there.
pub(crate) fn divide(
    image: &Path,
    layout: &Layout,
    disk: &LaidDisk,
    firmware: Firmware,
    work: &Path,
) -> Result<Vec<Slot>, Error> {
    let size_bytes = fs::metadata(image).map_err(file("measure", image))?.len();
    let target = Target { name: disk.name.clone(), path: image.display().to_string(), size_bytes };
    let plan = plan(layout, &[target], firmware.uefi)?;
    for step in plan.steps.iter().filter(|step| ["sgdisk", "sfdisk"].contains(&step.program)) {
        let run = match &step.input {
            Input::Text(text) => {
                let script = work.join("table");
                fs::write(&script, text).map_err(file("write", &script))?;
                Run::new("sh", "dash").args(["-c", "exec \"$@\" < \"$0\"", &script.to_string_lossy(), step.program])
            }
            Input::Nothing | Input::Key(_) => Run::new(step.program, "gdisk"),
        };
        run.args(&step.arguments).to("divide the image").hint("; sfdisk is in the package fdisk").output()?;
    }
    let places = match layout.table {
        Table::Gpt => gpt(image)?,
        Table::Mbr => mbr(image)?,
    };
    if places.len() != disk.partitions.len() {
        return Err(Error::Tree(format!(
            "{} partitions were made, and the image has {}",
            disk.partitions.len(),
            places.len()
        )));
    }
    let slot = |(part, (start_bytes, size_bytes)): (&Partition, (u64, u64))| {
        let name = full_name(disk, part);
        let mount = layout.mounts.iter().find(|mount| mount.on == name).cloned();
        Slot { name, start_bytes, size_bytes, role: part.role, mount }
    };
    Ok(disk.partitions.iter().zip(places).map(slot).collect())
}

/// Start and size of each partition, in bytes.
fn gpt(image: &Path) -> Result<Vec<(u64, u64)>, Error> {
    let mut source = File::open(image).map_err(file("open", image))?;
    let table = GPT::read_from(&mut source, SECTOR)?;
    let used = table.iter().filter(|(_, entry)| entry.is_used());
    Ok(used
        .map(|(_, entry)| (entry.starting_lba * SECTOR, (entry.ending_lba + 1 - entry.starting_lba) * SECTOR))
        .collect())
}

/// The same of the four entries of a master boot record.
fn mbr(image: &Path) -> Result<Vec<(u64, u64)>, Error> {
    let mut record = [0; 512];
    let source = File::open(image).map_err(file("open", image))?;
    std::os::unix::fs::FileExt::read_exact_at(&source, &mut record, 0).map_err(file("read", image))?;
    let number = |entry: &[u8], at: usize| {
        let bytes = entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u64::from(u32::from_le_bytes(bytes.unwrap_or_default())) * SECTOR
    };
    let entries = record.get(446..510).unwrap_or_default().chunks(16);
    Ok(entries.map(|entry| (number(entry, 8), number(entry, 12))).filter(|(_, size)| *size > 0).collect())
}

/// Whether everything fits, before a file system is made.
pub(crate) fn expect_to_fit(slots: &[Slot], needs: &BTreeMap<String, Need>) -> Result<(), Error> {
    for slot in slots {
        let Some(mount) = &slot.mount else { continue };
        let need = need_of(mount, needs);
        if need.bytes > capacity(mount.kind, slot.size_bytes, need.files) {
            let at = mount.at.as_deref().unwrap_or_default();
            let overhead = slot.size_bytes - capacity(mount.kind, slot.size_bytes, need.files);
            return Err(Error::TreeTooLarge {
                what: format!("what the tree has under {at}, with the {} around it,", mount.kind.as_str()),
                needs: Size((need.bytes + overhead).next_multiple_of(MIB)),
                place: format!("partition {} has", slot.name),
                has: Size(slot.size_bytes),
            });
        }
    }
    Ok(())
}

/// How many inodes an ext4 of this size is to have.
pub(crate) fn inodes(size_bytes: u64, files: u64) -> u64 {
    (size_bytes / INODE_RATIO).max(files + files / 4 + 64)
}

/// What a file system of this size has room for, in bytes; a little less than it really has.
pub(super) fn capacity(kind: Kind, size_bytes: u64, files: u64) -> u64 {
    let around = match kind {
        Kind::Ext4 => inodes(size_bytes, files) * INODE_BYTES + journal(size_bytes) + size_bytes / 128 + 4 * MIB,
        Kind::Xfs => XFS_LOG_BYTES.max(size_bytes / 2048) + files * 512 + size_bytes / 50,
        Kind::Vfat => size_bytes / 64 + MIB,
        Kind::Swap => 0,
    };
    size_bytes.saturating_sub(around)
}

/// The journal's size as mke2fs chooses it (`ext2fs_default_journal_size`), in bytes.
fn journal(size_bytes: u64) -> u64 {
    match size_bytes / MIB {
        0..8 => 0,
        8..128 => 4 * MIB,
        128..1024 => 16 * MIB,
        1024..2048 => 32 * MIB,
        2048..16384 => 64 * MIB,
        16384..32768 => 128 * MIB,
        32768..65536 => 256 * MIB,
        _ => 1024 * MIB,
    }
}

/// The smallest size of a file system that this part of the tree fits in with some room to spare, in bytes.
fn least(kind: Kind, need: Need) -> u64 {
    least_bytes(kind, Need { bytes: need.bytes + need.bytes / 10 + SLACK_BYTES, ..need }).max(SLACK_BYTES)
}

/// The smallest size of a file system that this part of the tree fits in, in bytes.
pub(super) fn least_bytes(kind: Kind, need: Need) -> u64 {
    let mut size_bytes = match kind {
        Kind::Ext4 | Kind::Swap => MIB,
        Kind::Xfs => XFS_BYTES,
        Kind::Vfat => FAT_BYTES,
    };
    while capacity(kind, size_bytes, need.files) < need.bytes {
        size_bytes += (size_bytes / 64).next_multiple_of(MIB);
    }
    size_bytes.next_multiple_of(MIB)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"
[[disk]]
name = "sys"
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "root", size = "700MiB" },
    { name = "var", size = "rest" },
]
[[mount]]
on = "sys.root"
kind = "ext4"
at = "/"
[[mount]]
on = "sys.var"
kind = "xfs"
at = "/var"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
"#;

    fn layout(text: &str) -> Layout {
        toml::from_str(text).unwrap()
    }

    fn refused(text: &str) -> String {
        check(&layout(text)).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn what_belongs_to_one_machine_is_refused_with_the_reason() {
        assert_eq!(check(&layout(PLAIN)).unwrap().1, Firmware { bios: true, uefi: true });
        for more in [
            "[[luks]]\nname = \"x\"\non = \"sys.var\"\nkey_file = \"/k\"",
            "[[raid]]\nname = \"m\"\nlevel = 1\nmembers = [\"sys.var\", \"sys.root\"]",
            "[[group]]\nname = \"vg\"\nmembers = [\"sys.var\"]\nvolume = []",
            "[[disk]]\nname = \"two\"\npartition = [{ name = \"x\", size = \"rest\" }]",
        ] {
            assert!(refused(&format!("{PLAIN}\n{more}")).contains("made by each node"), "{more}");
        }
        let ruled = PLAIN.replace("name = \"sys\"", "name = \"sys\"\nrule = { serial = \"S1\" }");
        assert!(refused(&ruled).contains("the node's rule"));
        let unstartable = PLAIN.replace(", role = \"bios_boot\"", "").replace(", role = \"esp\"", "");
        assert!(refused(&unstartable).contains("no machine would start"));
    }

    #[test]
    fn a_tree_is_measured_by_mount_point_and_hard_links_once() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: usize| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![7; bytes]).unwrap();
        };
        put("etc/a", 5000);
        put("var/log/b", 100);
        fs::hard_link(root.path().join("etc/a"), root.path().join("etc/b")).unwrap();
        fs::hard_link(root.path().join("etc/a"), root.path().join("var/c")).unwrap();
        File::create(root.path().join("var/hole")).unwrap().set_len(1 << 30).unwrap();
        fs::create_dir_all(root.path().join("boot/efi")).unwrap();
        let needs = measure(root.path(), &layout(PLAIN)).unwrap();
        // etc, etc/a, boot, boot/efi and var themselves.
        assert_eq!(needs["/"], Need { bytes: 8192 + 4 * 4096, files: 5 });
        assert_eq!(needs["/var"], Need { bytes: 4096 + 4096 + 8192 + 4096, files: 4 });
        assert_eq!(needs["/boot/efi"], Need::default());
    }

    #[test]
    fn sizes_follow_from_the_tree_unless_they_are_given() {
        let layout = layout(PLAIN);
        let (disk, _) = check(&layout).unwrap();
        let needs = |root, var| {
            let need = |bytes| Need { bytes, files: 1000 };
            BTreeMap::from([("/".to_owned(), need(root)), ("/var".to_owned(), need(var))])
        };
        assert_eq!(disk_bytes(&layout, disk, &needs(0, 0), Some(5 << 30)).unwrap(), 5 << 30);
        assert_eq!(disk_bytes(&layout, disk, &needs(0, 0), None).unwrap(), (300 + 767) * MIB);
        let large = disk_bytes(&layout, disk, &needs(0, 1 << 30), None).unwrap();
        assert!((1220 * MIB..1400 * MIB).contains(&(large - 767 * MIB)), "{}", large >> 20);
        assert_eq!(limit_bytes(&layout, disk, None), None);
        assert_eq!(limit_bytes(&layout, disk, Some(2000 * MIB)), Some((64 + 700 + 2000 - 767) * MIB));

        let slots = [(1u64, 64u64, "sys.esp"), (65, 700, "sys.root")].map(|(start, size, name)| Slot {
            name: name.to_owned(),
            start_bytes: start * MIB,
            size_bytes: size * MIB,
            role: Role::Data,
            mount: layout.mounts.iter().find(|mount| mount.on == name).cloned(),
        });
        assert!(expect_to_fit(&slots, &needs(600 * MIB, 0)).is_ok());
        let sentence = expect_to_fit(&slots, &needs(812 * MIB, 0)).unwrap_err().to_string();
        assert!(sentence.contains("under /,") && sentence.contains("partition sys.root has 700 MiB"), "{sentence}");
    }

    #[test]
    fn tables_are_made_by_the_tools_and_read_back() {
        let work = tempfile::tempdir().unwrap();
        let image = work.path().join("disk1");
        File::create(&image).unwrap().set_len(1200 * MIB).unwrap();
        let wanted = layout(PLAIN);
        let (disk, firmware) = check(&wanted).unwrap();
        let slots = divide(&image, &wanted, disk, firmware, work.path()).unwrap();
        let places: Vec<_> = slots.iter().map(|slot| (slot.start_bytes / MIB, slot.size_bytes / MIB)).collect();
        assert_eq!(places, [(1, 1), (2, 64), (66, 700), (766, 433)]);

        let text = "table = \"mbr\"\n[[disk]]\nname = \"d\"\npartition = [{ name = \"swap\", size = \"8MiB\" }, { name = \"root\", size = \"rest\" }]\n\
            [[mount]]\non = \"d.root\"\nkind = \"ext4\"\nat = \"/\"\n[[mount]]\non = \"d.swap\"\nkind = \"swap\"";
        let wanted = layout(text);
        let (disk, firmware) = check(&wanted).unwrap();
        assert_eq!(firmware, Firmware { bios: true, uefi: false });
        let slots = divide(&image, &wanted, disk, firmware, work.path()).unwrap();
        assert_eq!((slots[0].start_bytes, slots[0].size_bytes, slots[1].start_bytes), (MIB, 8 * MIB, 9 * MIB));
        assert!(expect_size(disk, 11 * MIB).is_ok());
        let sentence = expect_size(disk, 11 * MIB - 1).unwrap_err().to_string();
        assert!(sentence.contains("a disk of 11 MiB at least"), "{sentence}");
    }
}
