//! What disks hold now, as sentences: shown to the operator before any of it
//! is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fleet::disk::{Disk, Signature};

use crate::Stop;
use crate::command::{CommandError, Run};

/// How long looking at all disks may take: a failing disk answers slowly.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// The most sentences for one disk, and the most marks.
const MOST: usize = 32;

/// What `blkid` found at one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Device or file.
    pub(crate) device: String,
    /// Kind of the file system or of what else is there, such as `ext4`.
    pub(crate) kind: Option<String>,
    /// It is part of something larger, or locked.
    pub(crate) is_member: bool,
    /// Label of the file system.
    pub(crate) label: Option<String>,
    /// Identifier of the file system.
    pub(crate) uuid: Option<String>,
    /// Kind of the partition table.
    pub(crate) table: Option<String>,
    /// Name of the partition.
    pub(crate) name: Option<String>,
    /// Identifier of the partition.
    pub(crate) part_uuid: Option<String>,
}

/// Fills in what each disk holds. A disk that cannot be looked at says so.
pub(crate) fn describe(disks: &mut [Disk]) {
    for disk in disks {
        let mut devices = vec![disk.path.clone()];
        devices.extend(partitions(&disk.path));
        match probe(&devices, LOOK_LIMIT, &Stop::default()) {
            Ok(found) => {
                disk.contents = sentences(&found);
                disk.signatures = found.iter().filter_map(signature).take(MOST).collect();
            }
            Err(error) => disk.contents = vec![format!("unknown, it could not be looked at: {error}")],
        }
    }
}

/// Looks at devices or files.
pub(crate) fn probe<P: AsRef<Path>>(devices: &[P], limit: Duration, stop: &Stop) -> Result<Vec<Probe>, CommandError> {
    let mut found = Vec::new();
    for device in devices {
        // One at a time: with several, blkid tells only the last one's status. 2: nothing there, or nothing that
        // is known; 8: two file systems claim the place.
        let run = Run::new("blkid", limit).args(["-p", "-o", "export"]).args([device.as_ref()]).fine(&[0, 2, 8]);
        let (text, status) = run.run(stop)?;
        let mut probe = parse(&text);
        probe.device = device.as_ref().display().to_string();
        if status == 8 {
            let all = all_kinds(device.as_ref(), limit, stop)?;
            let member = all.iter().find(|kind| Signature::is_one(kind)).cloned();
            probe.is_member = member.is_some();
            probe.kind = member.or_else(|| Some(format!("more than one kind of data ({})", all.join(", "))));
        }
        found.push(probe);
    }
    Ok(found)
}

/// Every kind of data that has left its mark on a device; `blkid` says nothing where two claim it.
fn all_kinds(device: &Path, limit: Duration, stop: &Stop) -> Result<Vec<String>, CommandError> {
    let run = Run::new("wipefs", limit).args(["--no-act", "--noheadings", "--output", "TYPE"]).args([device]);
    Ok(run.text(stop)?.split_whitespace().map(str::to_owned).collect())
}

fn signature(probe: &Probe) -> Option<Signature> {
    let kind = probe.kind.clone().filter(|_| probe.is_member)?;
    Some(Signature { device: probe.device.clone(), kind, label: probe.label.clone() })
}

fn parse(text: &str) -> Probe {
    let values: BTreeMap<&str, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key, value.replace('\\', "").trim().to_owned()))
        .collect();
    let take = |key: &str| values.get(key).filter(|value| !value.is_empty()).cloned();
    Probe {
        device: String::new(),
        kind: take("TYPE"),
        is_member: take("TYPE").is_some_and(|kind| Signature::is_one(&kind))
            || take("USAGE").is_some_and(|usage| usage == "raid" || usage == "crypto"),
        label: take("LABEL"),
        uuid: take("UUID"),
        table: take("PTTYPE"),
        name: take("PART_ENTRY_NAME"),
        part_uuid: take("PART_ENTRY_UUID"),
    }
}

/// Takes every mark off a disk and its partitions. Where something is written over marks of an array, group or pool, those
/// that it does not happen to cover would have the new system put parts of the old one together.
pub(crate) fn erase_marks(disk: &str, stop: &Stop) -> Result<(), CommandError> {
    let devices = partitions(disk).into_iter().chain([disk.to_owned()]);
    for device in devices {
        // The image's writer has the disk open for itself alone, which is what `--force` is about.
        Run::new("wipefs", LOOK_LIMIT).args(["--all", "--force", "--quiet", &device]).text(stop)?;
    }
    Ok(())
}

/// The kernel's own names for the partitions of a disk.
pub(crate) fn partitions(disk: &str) -> Vec<String> {
    let Some(name) = disk.strip_prefix("/dev/") else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(Path::new("/sys/block").join(name.replace('/', "!"))) else {
        return Vec::new();
    };
    let mut found: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("partition").exists())
        .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy().replace('!', "/")))
        .collect();
    found.sort_by_key(|path| (path.len(), path.clone()));
    found
}

fn sentences(found: &[Probe]) -> Vec<String> {
    let mut sentences: Vec<String> = found.iter().filter_map(sentence).collect();
    if sentences.len() > MOST {
        let more = sentences.len() - MOST;
        sentences.truncate(MOST);
        sentences.push(format!("and {more} more"));
    }
    sentences
}

fn sentence(probe: &Probe) -> Option<String> {
    let named = |name: &Option<String>| name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
    match (&probe.kind, &probe.table) {
        (Some(kind), _) => Some(format!("{}: {kind}{}", probe.device, named(&probe.label))),
        (None, Some(table)) => Some(format!("{}: {} partition table", probe.device, table_name(table))),
        (None, None) => probe.name.as_ref().map(|name| format!("{}: partition `{name}`", probe.device)),
    }
}

fn table_name(table: &str) -> &str {
    match table {
        "gpt" => "GPT",
        "dos" => "MBR",
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn blkids_answers_become_sentences() {
        let disk = Probe { device: "/dev/vda".into(), ..parse("DEVNAME=/dev/vda\nPTUUID=1\nPTTYPE=gpt\n") };
        let root = "DEVNAME=/dev/vda2\nLABEL=my\\ root\nUUID=7\nTYPE=ext4\nPART_ENTRY_NAME=linux\nPTTYPE=\n";
        let root = Probe { device: "/dev/vda2".into(), ..parse(root) };
        let bare = Probe { device: "/dev/vda1".into(), ..parse("PART_ENTRY_NAME=bios\n") };
        let blank = Probe { device: "/dev/vdb".into(), ..Probe::default() };
        assert_eq!(root.uuid.as_deref(), Some("7"));
        assert_eq!(
            sentences(&[disk, bare, root, blank]),
            ["/dev/vda: GPT partition table", "/dev/vda1: partition `bios`", "/dev/vda2: ext4 `my root`"]
        );
    }

    #[test]
    fn a_real_blkid_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::File::create(&file).unwrap().set_len(4 << 20).unwrap();
        let stop = Stop::default();
        assert_eq!(probe(&[&file], LOOK_LIMIT, &stop).unwrap()[0].kind, None);
        Run::new("mke2fs", LOOK_LIMIT).args(["-q", "-t", "ext4", "-L", "keep me"]).args([&file]).text(&stop).unwrap();
        let mut disks = [Disk { path: file.display().to_string(), ..Disk::default() }];
        describe(&mut disks);
        assert_eq!(disks[0].contents, [format!("{}: ext4 `keep me`", file.display())]);
    }

    #[test]
    fn marks_of_larger_things_are_found_and_taken_off() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        let stop = Stop::default();
        let written = |offset: usize, mark: &[u8]| {
            let mut bytes = vec![0; 4 << 20];
            bytes[offset..offset + mark.len()].copy_from_slice(mark);
            fs::write(&file, bytes).unwrap();
            let mut disks = [Disk { path: file.display().to_string(), ..Disk::default() }];
            describe(&mut disks);
            disks[0].signatures.iter().map(|s| s.kind.clone()).collect::<Vec<_>>()
        };
        // A LUKS2 header: magic, version, header size of 16 KiB.
        let luks = b"LUKS\xba\xbe\x00\x02\x00\x00\x00\x00\x00\x00\x40\x00";
        assert_eq!(written(0, luks), ["crypto_LUKS"]);
        assert!(written(0, b"nothing").is_empty());
        // The label of a physical volume in sector 1, which blkid believes with its checksum only.
        let mut label = b"LABELONE\x01\x00\x00\x00\x00\x00\x00\x00".to_vec();
        label.extend([0; 4]);
        label.extend(32u32.to_le_bytes());
        label.extend(b"LVM2 001");
        label.resize(512, 0);
        label[32..64].copy_from_slice(b"fMb9f1UnWOVrEkb2kUoGkn3vjcyzTLma");
        let sum = lvm_checksum(&label[20..512]);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(written(512, &label), ["LVM2_member"]);
        erase_marks(&file.display().to_string(), &stop).unwrap();
        assert_eq!(probe(&[&file], LOOK_LIMIT, &stop).unwrap()[0].kind, None);
    }

    /// CRC-32 as LVM begins it, with 0xf597a6cf.
    fn lvm_checksum(bytes: &[u8]) -> u32 {
        bytes.iter().fold(0xf597_a6cf, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
        })
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<Probe> = (0..40)
            .map(|n| Probe { device: format!("/dev/sda{n}"), kind: Some("ext4".into()), ..Probe::default() })
            .collect();
        let sentences = sentences(&many);
        assert_eq!(sentences.len(), MOST + 1);
        assert_eq!(sentences[MOST], "and 8 more");
    }
}
