//! What disks hold now, as sentences: shown to the operator before any of it
//! is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fleet::disk::Disk;

use crate::Stop;
use crate::command::{CommandError, Run};

/// How long looking at all disks may take: a failing disk answers slowly.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// The most sentences for one disk.
const MOST: usize = 32;

/// What `blkid` found at one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Device or file.
    pub(crate) device: String,
    /// Kind of the file system or of what else is there, such as `ext4`.
    pub(crate) kind: Option<String>,
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
        disk.contents = match probe(&devices, LOOK_LIMIT, &Stop::default()) {
            Ok(found) => sentences(&found),
            Err(error) => vec![format!("unknown, it could not be looked at: {error}")],
        };
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
            probe.kind = Some("more than one kind of data".to_owned());
        }
        found.push(probe);
    }
    Ok(found)
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
        label: take("LABEL"),
        uuid: take("UUID"),
        table: take("PTTYPE"),
        name: take("PART_ENTRY_NAME"),
        part_uuid: take("PART_ENTRY_UUID"),
    }
}

/// The kernel's own names for the partitions of a disk.
fn partitions(disk: &str) -> Vec<String> {
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
    fn long_lists_are_cut() {
        let many: Vec<Probe> = (0..40)
            .map(|n| Probe { device: format!("/dev/sda{n}"), kind: Some("ext4".into()), ..Probe::default() })
            .collect();
        let sentences = sentences(&many);
        assert_eq!(sentences.len(), MOST + 1);
        assert_eq!(sentences[MOST], "and 8 more");
    }
}
