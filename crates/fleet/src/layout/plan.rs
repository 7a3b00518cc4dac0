//! The commands that build a layout, in order, and what is there afterwards.

use std::collections::BTreeMap;

use super::check::Wrong;
use super::{ALIGNMENT_BYTES, Extent, Kind, Layout, Locked, Mount, Role, Table};
use crate::disk::Size;

/// What a table and the space before the first partition take, in bytes: 1 MiB at each end.
pub(super) const TABLE_BYTES: u64 = 2 * ALIGNMENT_BYTES;
/// An MBR table counts sectors of 512 bytes in 32 bits.
const MBR_BYTES: u64 = 2 << 40;
/// Commands that only write tables and headers.
const SHORT_SECONDS: u32 = 120;
/// Commands that write inode tables, or discard a whole device before.
const LONG_SECONDS: u32 = 1800;

/// A disk of the machine for a disk of the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What the layout calls it.
    pub name: String,
    /// Its device.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is for, as a sentence without a full stop.
    pub what: String,
    /// The program.
    pub program: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it reads.
    pub input: Input,
    /// Its deadline in seconds.
    pub limit_seconds: u32,
}

/// What a command reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// This text.
    Text(String),
    /// The key of the encrypted device of this name. Never an argument: everybody sees those.
    Key(String),
}

/// What is to be found on a device afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The device.
    pub device: String,
    /// What `blkid` calls its content; none for a partition of which only the name counts.
    pub kind: Option<&'static str>,
    /// The label of its file system.
    pub label: Option<String>,
    /// The partition's name in a GPT.
    pub part_name: Option<String>,
}

/// How a layout is built on certain disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Commands that build it.
    pub steps: Vec<Step>,
    /// Commands that let go of the disks again: volumes, locks and arrays are closed, nothing is lost.
    pub release: Vec<Step>,
    /// What is there afterwards.
    pub expected: Vec<Expected>,
    /// File systems with their devices, the outer mount points first, swap last.
    pub mounts: Vec<(Mount, String)>,
    /// Arrays by their names, each with its device while it is built; the deployed system may number it otherwise.
    pub arrays: Vec<(String, String)>,
    /// Encrypted devices, each with what it is on.
    pub locked: Vec<(Locked, String)>,
}

/// How `layout` is built on `targets`.
///
/// # Errors
/// [`Wrong`] where it does not fit, would not boot, or a disk is missing.
pub fn plan(layout: &Layout, targets: &[Target], uefi: bool) -> Result<Plan, Wrong> {
    layout.check(uefi)?;
    let mut build = Build::default();
    let mut sizes = Vec::new();
    for disk in &layout.disks {
        let target = targets.iter().find(|target| target.name == disk.name);
        let target = target.ok_or_else(|| Wrong(format!("no disk was chosen for `{}` of the layout", disk.name)))?;
        build.partitions(layout, disk, target)?;
        sizes.push(target.size_bytes);
    }
    layout.check_room(&sizes)?;
    build.make_arrays(layout);
    build.make_locked(layout);
    build.groups(layout);
    build.file_systems(layout);
    build.release.reverse();
    build.mounts.sort_by_key(|(mount, _)| mount.at.as_ref().map_or(usize::MAX, |at| at.trim_end_matches('/').len()));
    Ok(Plan {
        steps: build.steps,
        release: build.release,
        expected: build.expected,
        mounts: build.mounts,
        arrays: build.arrays,
        locked: build.locked,
    })
}

#[derive(Default)]
struct Build {
    /// Devices by the layout's names.
    devices: BTreeMap<String, String>,
    steps: Vec<Step>,
    release: Vec<Step>,
    expected: Vec<Expected>,
    mounts: Vec<(Mount, String)>,
    arrays: Vec<(String, String)>,
    locked: Vec<(Locked, String)>,
}

impl Build {
    fn partitions(&mut self, layout: &Layout, disk: &super::LaidDisk, target: &Target) -> Result<(), Wrong> {
        let fixed: u64 = disk.partitions.iter().filter_map(|part| part.size.bytes()).sum();
        let has_rest = disk.partitions.iter().any(|part| part.size == Extent::Rest);
        let needed = fixed + TABLE_BYTES + if has_rest { ALIGNMENT_BYTES } else { 0 };
        if needed > target.size_bytes {
            let (needed, has) = (Size(needed), Size(target.size_bytes));
            return Err(Wrong(format!("disk `{}` needs {needed}, and {} has {has}", disk.name, target.path)));
        }
        if layout.table == Table::Mbr && target.size_bytes > MBR_BYTES {
            let path = &target.path;
            return Err(Wrong(format!(
                "{path} is larger than 2 TiB, which an MBR table cannot describe: use table = \"gpt\""
            )));
        }
        match layout.table {
            Table::Gpt => self.gpt(layout, disk, target),
            Table::Mbr => self.mbr(layout, disk, target),
        }
        // Kernels without a parser for the table learn of the partitions this way too.
        self.step(format!("show the kernel the partitions of {}", target.path), "partx", &["--update", &target.path]);
        for (index, part) in disk.partitions.iter().enumerate() {
            let device = partition_device(&target.path, index + 1);
            self.expected.push(Expected {
                device: device.clone(),
                kind: None,
                label: None,
                part_name: (layout.table == Table::Gpt).then(|| part.name.clone()),
            });
            self.devices.insert(format!("{}.{}", disk.name, part.name), device);
        }
        Ok(())
    }

    fn gpt(&mut self, layout: &Layout, disk: &super::LaidDisk, target: &Target) {
        let mut arguments = vec!["--clear".to_owned()];
        let mut start = 1;
        for (index, part) in disk.partitions.iter().enumerate() {
            let number = index + 1;
            let end = match part.size {
                Extent::Bytes(bytes) => format!("+{}M", bytes >> 20),
                Extent::Rest => "0".to_owned(),
            };
            arguments.push(format!("--new={number}:{start}M:{end}"));
            arguments.push(format!("--typecode={number}:{}", code(layout, disk, part).0));
            arguments.push(format!("--change-name={number}:{}", part.name));
            start += part.size.bytes().unwrap_or_default() >> 20;
        }
        arguments.push(target.path.clone());
        self.push(format!("divide {} by GPT", target.path), "sgdisk", arguments, Input::Nothing, SHORT_SECONDS);
    }

    fn mbr(&mut self, layout: &Layout, disk: &super::LaidDisk, target: &Target) {
        let boot = ["/boot", "/"].iter().find_map(|at| layout.mounts.iter().find(|m| m.at.as_deref() == Some(*at)));
        let mut script = "label: dos\n".to_owned();
        let mut start = 1;
        for part in &disk.partitions {
            let size = match part.size {
                Extent::Bytes(bytes) => format!("size={}MiB, ", bytes >> 20),
                Extent::Rest => String::new(),
            };
            let is_boot = boot.is_some_and(|mount| mount.on == format!("{}.{}", disk.name, part.name));
            let active = if is_boot { ", bootable" } else { "" };
            script.push_str(&format!("start={start}MiB, {size}type={}{active}\n", code(layout, disk, part).1));
            start += part.size.bytes().unwrap_or_default() >> 20;
        }
        let arguments = vec!["--quiet".into(), "--wipe=always".into(), "--no-reread".into(), target.path.clone()];
        self.push(format!("divide {} by MBR", target.path), "sfdisk", arguments, Input::Text(script), SHORT_SECONDS);
    }

    fn make_arrays(&mut self, layout: &Layout) {
        for (number, array) in layout.arrays.iter().enumerate() {
            let device = format!("/dev/md{number}");
            // With its description at the end each member begins as a file system does, which is what firmware reads.
            let metadata = if layout.mirrors_esp(array) { "1.0" } else { "1.2" };
            let mut arguments = vec![
                "--create".into(),
                device.clone(),
                "--run".into(),
                format!("--metadata={metadata}"),
                "--homehost=any".into(),
                format!("--name={}", array.name),
                format!("--level={}", array.level),
                format!("--raid-devices={}", array.members.len()),
            ];
            arguments.extend(self.devices_of(&array.members));
            self.push(format!("make array {}", array.name), "mdadm", arguments, Input::Nothing, SHORT_SECONDS);
            self.let_go(format!("stop array {}", array.name), "mdadm", &["--stop", &device]);
            self.arrays.push((array.name.clone(), device.clone()));
            self.devices.insert(array.name.clone(), device);
        }
    }

    fn make_locked(&mut self, layout: &Layout) {
        for locked in &layout.locked {
            let Some(on) = self.devices.get(&locked.on).cloned() else { continue };
            let key = || Input::Key(locked.name.clone());
            let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
            let format = ["luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--key-file", "-", &on];
            self.push(format!("encrypt {on}"), "cryptsetup", words(&format), key(), LONG_SECONDS);
            let open = ["open", "--key-file", "-", &on, &locked.name];
            self.push(format!("unlock {on} as {}", locked.name), "cryptsetup", words(&open), key(), SHORT_SECONDS);
            self.let_go(format!("lock {}", locked.name), "cryptsetup", &["close", &locked.name]);
            self.devices.insert(locked.name.clone(), format!("/dev/mapper/{}", locked.name));
            self.locked.push((locked.clone(), on));
        }
    }

    fn groups(&mut self, layout: &Layout) {
        for group in &layout.groups {
            let members = self.devices_of(&group.members);
            let with = |words: &[&str]| -> Vec<String> {
                words.iter().map(ToString::to_string).chain(members.iter().cloned()).collect()
            };
            let name = &group.name;
            let what = format!("make {} physical volumes", members.join(" and "));
            self.push(what, "lvm", with(&["pvcreate", "--yes", "--force", "--force"]), Input::Nothing, SHORT_SECONDS);
            let what = format!("make volume group {name}");
            self.push(what, "lvm", with(&["vgcreate", "--yes", name]), Input::Nothing, SHORT_SECONDS);
            self.let_go(format!("close volume group {name}"), "lvm", &["vgchange", "--activate", "n", name]);
            for volume in &group.volumes {
                let size = match volume.size {
                    Extent::Bytes(bytes) => ["--size".to_owned(), format!("{}m", bytes >> 20)],
                    Extent::Rest => ["--extents".to_owned(), "100%FREE".to_owned()],
                };
                let mut arguments = vec!["lvcreate".to_owned(), "--yes".into(), "--name".into(), volume.name.clone()];
                arguments.extend(size);
                arguments.push(name.clone());
                let what = format!("make volume {name}/{}", volume.name);
                self.push(what, "lvm", arguments, Input::Nothing, SHORT_SECONDS);
                // Device mapper doubles hyphens within names.
                let mapped = |text: &str| text.replace('-', "--");
                let device = format!("/dev/mapper/{}-{}", mapped(name), mapped(&volume.name));
                self.devices.insert(format!("{name}/{}", volume.name), device);
            }
        }
    }

    fn file_systems(&mut self, layout: &Layout) {
        for mount in &layout.mounts {
            let Some(device) = self.devices.get(&mount.on).cloned() else { continue };
            let (program, fixed, label): (_, &[&str], _) = match mount.kind {
                Kind::Ext4 => ("mkfs.ext4", &["-q", "-F"], "-L"),
                Kind::Xfs => ("mkfs.xfs", &["-q", "-f"], "-L"),
                Kind::Vfat => ("mkfs.vfat", &["-F", "32"], "-n"),
                Kind::Swap => ("mkswap", &["--force"], "--label"),
            };
            let mut arguments: Vec<String> = fixed.iter().map(ToString::to_string).collect();
            if let Some(text) = &mount.label {
                arguments.extend([label.to_owned(), text.clone()]);
            }
            arguments.push(device.clone());
            let what = format!("make {} on {device}", mount.kind.as_str());
            self.push(what, program, arguments, Input::Nothing, LONG_SECONDS);
            let label = mount.label.clone();
            let part_name = self.expected.iter().find(|e| e.device == device).and_then(|e| e.part_name.clone());
            self.expected.retain(|expected| expected.device != device);
            self.expected.push(Expected { device: device.clone(), kind: Some(mount.kind.as_str()), label, part_name });
            self.mounts.push((mount.clone(), device));
        }
    }

    fn devices_of(&self, names: &[String]) -> Vec<String> {
        names.iter().filter_map(|name| self.devices.get(name).cloned()).collect()
    }

    fn step(&mut self, what: String, program: &'static str, arguments: &[&str]) {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.push(what, program, arguments, Input::Nothing, SHORT_SECONDS);
    }

    fn push(&mut self, what: String, program: &'static str, arguments: Vec<String>, input: Input, limit_seconds: u32) {
        self.steps.push(Step { what, program, arguments, input, limit_seconds });
    }

    fn let_go(&mut self, what: String, program: &'static str, arguments: &[&str]) {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.release.push(Step { what, program, arguments, input: Input::Nothing, limit_seconds: SHORT_SECONDS });
    }
}

/// Types in a GPT (as sgdisk numbers them) and in an MBR.
fn code(layout: &Layout, disk: &super::LaidDisk, part: &super::Partition) -> (&'static str, &'static str) {
    let name = format!("{}.{}", disk.name, part.name);
    let mount = layout.mounts.iter().find(|mount| mount.on == name);
    match part.role {
        Role::Esp => ("ef00", "ef"),
        Role::BiosBoot => ("ef02", "da"),
        Role::Data if layout.arrays.iter().any(|array| array.members.contains(&name)) => ("fd00", "fd"),
        Role::Data if layout.locked.iter().any(|locked| locked.on == name) => ("8309", "e8"),
        Role::Data if layout.groups.iter().any(|group| group.members.contains(&name)) => ("8e00", "8e"),
        Role::Data if mount.is_some_and(|mount| mount.kind == Kind::Swap) => ("8200", "82"),
        Role::Data => ("8300", "83"),
    }
}

/// `/dev/sda` has `/dev/sda1`, `/dev/nvme0n1` has `/dev/nvme0n1p1`.
fn partition_device(disk: &str, number: usize) -> String {
    let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{separator}{number}")
}
