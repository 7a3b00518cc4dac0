//! Layouts and wipes on real block devices: loop devices, with the real tools. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::process::Command;

use agent::Stop;
use agent::layout::build;
use agent::wipe::wipe;
use fleet::disk::Disk;
use fleet::layout::{Layout, Target, plan};
use fleet::wipe::{Method, Used, Worth};

/// A loop device over a file of its own, taken away with it.
struct Loop {
    device: String,
    _folder: tempfile::TempDir,
}

impl Loop {
    fn new(mib: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        let device = text("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Self { device: device.trim().to_owned(), _folder: folder }
    }

    fn target(&self) -> Target {
        Target { name: "sys".into(), path: self.device.clone(), size_bytes: self.size() }
    }

    fn size(&self) -> u64 {
        text("blockdev", &["--getsize64", &self.device]).trim().parse().unwrap()
    }

    fn disk(&self) -> Disk {
        Disk { path: self.device.clone(), size_bytes: self.size(), serial: Some("loop".into()), ..Disk::default() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("partx").args(["--delete", &self.device]).output();
        let _ = Command::new("losetup").args(["--detach", &self.device]).output();
    }
}

fn text(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; run `cargo xtask test`, which installs it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} needs root and block devices: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn layout(text: &str) -> Layout {
    toml::from_str(text).unwrap()
}

#[test]
fn a_gpt_layout_is_built_and_read_back_and_built_again_over_what_was_there() {
    let disk = Loop::new(512);
    let layout = layout(
        r#"
[[disk]]
name = "sys"
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "swap", size = "32MiB" },
    { name = "root", size = "rest" },
]
[[mount]]
on = "sys.root"
kind = "ext4"
at = "/"
label = "root"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
label = "ESP"
[[mount]]
on = "sys.swap"
kind = "swap"
"#,
    );
    let plan = plan(&layout, &[disk.target()], true).unwrap();
    for _ in 0..2 {
        build(&plan, std::slice::from_ref(&disk.device), &|_| None, &Stop::default(), &|_| {})
            .unwrap()
            .close()
            .unwrap();
    }
    let listed = text("lsblk", &["--noheadings", "--raw", "--output", "NAME", &disk.device]);
    assert_eq!(listed.lines().count(), 5, "{listed}");
    let table = text("sgdisk", &["--verify", "--print", &disk.device]);
    assert!(table.contains("No problems found"), "{table}");
    for code in ["EF02", "EF00", "8200", "8300"] {
        assert!(table.contains(code), "{table}");
    }
    let checked = text("e2fsck", &["-n", "-f", &format!("{}p4", disk.device)]);
    assert!(checked.contains("root: "), "{checked}");
}

#[test]
fn an_mbr_layout_is_built_and_one_that_does_not_come_out_is_an_error() {
    let disk = Loop::new(400);
    let mbr = layout(
        r#"
table = "mbr"
[[disk]]
name = "sys"
partition = [{ name = "root", size = "rest" }]
[[mount]]
on = "sys.root"
kind = "xfs"
at = "/"
label = "root"
"#,
    );
    let mut plan = plan(&mbr, &[disk.target()], false).unwrap();
    build(&plan, std::slice::from_ref(&disk.device), &|_| None, &Stop::default(), &|_| {}).unwrap().close().unwrap();
    let table = text("sfdisk", &["--dump", &disk.device]);
    assert!(table.contains("label: dos") && table.contains("type=83, bootable"), "{table}");
    // A tool that says yes and does nothing.
    plan.steps.retain(|step| step.program != "mkfs.xfs");
    let error = build(&plan, std::slice::from_ref(&disk.device), &|_| None, &Stop::default(), &|_| {}).unwrap_err();
    assert!(error.to_string().contains("content nothing, not xfs"), "{error}");
}

#[test]
fn a_device_is_wiped_and_read_back_from_itself() {
    let disk = Loop::new(64);
    fs::write(&disk.device, vec![0x5a; 64 << 20]).unwrap();
    let node = "n1".parse().unwrap();
    let wiped = |method| wipe(&node, &disk.disk(), method, &Stop::default(), &|_, _| {}).unwrap();

    let discarded = wiped(Method::Discard);
    assert_eq!((discarded.used, discarded.worth, discarded.failed), (Used::Discard, Worth::NotSanitised, false));
    assert_eq!(discarded.samples.unchanged, 0, "the marks are gone from the device's interface: {discarded:?}");
    assert!(discarded.sentence().contains("promises nothing"), "{}", discarded.sentence());

    let overwritten = wiped(Method::Overwrite);
    assert_eq!((overwritten.used, overwritten.worth), (Used::Overwrite, Worth::Cleared), "{overwritten:?}");
    assert_eq!(overwritten.samples.zero, overwritten.samples.places);
    assert!(fs::read(&disk.device).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_device_in_use_is_not_wiped() {
    let disk = Loop::new(64);
    text("mkfs.ext4", &["-q", &disk.device]);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    text("mount", &[&disk.device, at]);
    let error = wipe(&"n1".parse().unwrap(), &disk.disk(), Method::Overwrite, &Stop::default(), &|_, _| {});
    text("umount", &[at]);
    assert!(error.unwrap_err().to_string().contains("cannot claim"), "it was mounted");
    text("e2fsck", &["-n", "-f", &disk.device]);
}
