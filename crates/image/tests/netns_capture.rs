//! Captures that need root: block devices, xfs, and a server whose disk is full.
//! Each test has a mount namespace of its own, so nothing stays mounted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::run;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use rackswarm_image::capture::{Disk, Kind};
use rackswarm_image::{Capture, Error, Registry};

const MIB: u64 = 1 << 20;

fn own_mounts() {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts and attaches devices: run `cargo xtask test` as root");
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path, offset: u64, size: u64) -> Self {
        let (offset, size) = (offset.to_string(), size.to_string());
        let arguments = ["--find", "--show", "--offset", &offset, "--sizelimit", &size, file.to_str().unwrap()];
        Self(run("losetup", &arguments).trim().into())
    }

    fn mounted<T>(&self, kind: &str, options: &str, at: &Path, work: impl FnOnce() -> T) -> T {
        fs::create_dir_all(at).unwrap();
        mount(Some(&self.0), at, Some(kind), MsFlags::empty(), Some(options)).unwrap();
        let result = work();
        umount(at).unwrap();
        result
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn noise(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn send(disk: &Disk, capture: &Capture) -> Result<(), Error> {
    let held = capture.held_hashes(0, u32::MAX);
    let mut buffer = Vec::new();
    for chunk in capture.original().wanted() {
        let at = chunk as usize * 32;
        let packed = disk.pack(chunk, held[at..at + 32].try_into().ok(), &mut buffer).unwrap();
        if let Some(bytes) = packed.bytes {
            capture.put(chunk, packed.hash, &bytes)?;
        }
    }
    Ok(())
}

const SECRET: &[u8] = b"was deleted, must not travel;   ";
const START: u64 = MIB;
const LENGTH: u64 = 400 * MIB;

/// A disk with one xfs partition that holds a system and the blocks of a file that was deleted.
fn xfs_disk(folder: &Path) -> PathBuf {
    let path = folder.join("golden.raw");
    File::create(&path).unwrap().set_len(402 * MIB).unwrap();
    run("sgdisk", &["-n", "1:2048:821247", path.to_str().unwrap()]);
    let device = Loop::attach(&path, START, LENGTH);
    run("mkfs.xfs", &["-q", device.0.to_str().unwrap()]);
    let point = folder.join("point");
    device.mounted("xfs", "", &point, || {
        for folder in ["etc/ssh", "var/log", "usr"] {
            fs::create_dir_all(point.join(folder)).unwrap();
        }
        fs::write(point.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::write(point.join("etc/ssh/ssh_host_rsa_key"), "PRIVATE-KEY-OF-THE-GOLDEN-MACHINE\n").unwrap();
        // A link of the image must not lead out of it.
        std::os::unix::fs::symlink("/etc", point.join("var/lib")).unwrap();
        for number in 0..8 {
            fs::write(point.join(format!("usr/file{number}")), noise(1 << 20, number)).unwrap();
        }
        fs::write(point.join("usr/deleted"), SECRET.repeat(300_000)).unwrap();
        rustix::fs::sync();
        fs::remove_file(point.join("usr/deleted")).unwrap();
    });
    path
}

#[test]
fn xfs_is_captured_by_its_used_blocks_and_generalised() {
    own_mounts();
    let folder = tempfile::tempdir().unwrap();
    let path = xfs_disk(folder.path());
    let disk = Disk::open(&path).unwrap();
    let part = &disk.survey().parts[0];
    assert_eq!((part.kind, &part.whole_because), (Kind::Xfs, &None), "{part}");
    assert!(part.used_bytes < 120 * MIB, "{part}");

    let registry = Registry::open(folder.path().join("images")).unwrap();
    let capture = registry.begin_capture(&"golden".parse().unwrap(), &disk.original("golden.raw", true)).unwrap();
    send(&disk, &capture).unwrap();
    capture.receive().unwrap();
    let image = capture.finish(&mut |_| ControlFlow::Continue(())).unwrap();
    let content = fs::read(image.disk_path()).unwrap();
    assert!(!content.windows(SECRET.len()).any(|window| window == SECRET));
    let key = b"PRIVATE-KEY-OF-THE-GOLDEN-MACHINE";
    assert!(!content.windows(key.len()).any(|window| window == key));

    let copy = folder.path().join("copy.raw");
    run("cp", &["--sparse=always", image.disk_path().to_str().unwrap(), copy.to_str().unwrap()]);
    run("chmod", &["u+w", copy.to_str().unwrap()]);
    let device = Loop::attach(&copy, START, LENGTH);
    run("xfs_repair", &["-n", device.0.to_str().unwrap()]);
    let point = folder.path().join("restored");
    device.mounted("xfs", "nouuid", &point, || {
        assert!(!point.join("etc/ssh/ssh_host_rsa_key").exists());
        assert_eq!(fs::metadata(point.join("etc/machine-id")).unwrap().len(), 0);
        for number in 0..8 {
            assert_eq!(fs::read(point.join(format!("usr/file{number}"))).unwrap(), noise(1 << 20, number));
        }
    });
}

#[test]
fn a_disk_that_was_switched_off_hard_is_put_right_in_the_copy() {
    own_mounts();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("golden.raw");
    File::create(&path).unwrap().set_len(130 * MIB).unwrap();
    run("sgdisk", &["-n", "1:2048:264191", path.to_str().unwrap()]);
    let device = Loop::attach(&path, START, 128 * MIB);
    run("mkfs.ext4", &["-q", device.0.to_str().unwrap()]);
    let (point, dirty) = (folder.path().join("point"), folder.path().join("dirty.raw"));
    device.mounted("ext4", "", &point, || {
        fs::create_dir_all(point.join("etc/ssh")).unwrap();
        fs::write(point.join("etc/ssh/ssh_host_rsa_key"), "PRIVATE-KEY-OF-THE-GOLDEN-MACHINE\n").unwrap();
        fs::write(point.join("etc/data"), noise(3 << 20, 1)).unwrap();
        fs::write(point.join("etc/deleted"), SECRET.repeat(100_000)).unwrap();
        rustix::fs::sync();
        fs::remove_file(point.join("etc/deleted")).unwrap();
        fs::write(point.join("etc/late"), noise(3 << 20, 2)).unwrap();
        // What is on the disk at this moment is what a machine without power has.
        rustix::fs::sync();
        run("cp", &["--sparse=always", path.to_str().unwrap(), dirty.to_str().unwrap()]);
    });
    let disk = Disk::open(&dirty).unwrap();
    let part = &disk.survey().parts[0];
    assert!(part.whole_because.is_some() && part.used_bytes == 128 * MIB, "its journal is pending: {part}");
    let registry = Registry::open(folder.path().join("images")).unwrap();
    let capture = registry.begin_capture(&"golden".parse().unwrap(), &disk.original("dirty", true)).unwrap();
    send(&disk, &capture).unwrap();
    capture.receive().unwrap();
    let image = capture.finish(&mut |_| ControlFlow::Continue(())).unwrap();
    let target = format!("{}?offset={START}", image.disk_path().display());
    run("e2fsck", &["-fn", &target]);
    for (file, seed) in [("data", 1), ("late", 2)] {
        let copy = folder.path().join(file);
        run("debugfs", &["-R", &format!("dump /etc/{file} {}", copy.display()), &target]);
        assert!(fs::read(copy).unwrap() == noise(3 << 20, seed), "{file}");
    }
    let content = fs::read(image.disk_path()).unwrap();
    for text in [SECRET, b"PRIVATE-KEY-OF-THE-GOLDEN-MACHINE"] {
        assert!(!content.windows(text.len()).any(|window| window == text));
    }
    let files: Vec<_> = fs::read_dir(image.disk_path().parent().unwrap()).unwrap().collect();
    assert_eq!(files.len(), 3);
}

#[test]
fn a_disk_that_is_mounted_is_refused_and_one_that_is_not_is_never_written() {
    own_mounts();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    run("mkfs.ext4", &["-q", path.to_str().unwrap()]);
    let device = Loop::attach(&path, 0, 64 * MIB);
    let point = folder.path().join("point");
    device.mounted("ext4", "", &point, || {
        assert!(matches!(Disk::open(&device.0), Err(Error::Busy(_))));
    });
    let before = fs::read(&path).unwrap();
    let disk = Disk::open(&device.0).unwrap();
    assert_eq!(disk.survey().parts[0].kind, Kind::Ext);
    let mut buffer = Vec::new();
    (0..16).for_each(|chunk| disk.read(chunk, &mut buffer).unwrap());
    assert!(before == fs::read(&path).unwrap());
}

#[test]
fn a_full_server_disk_is_named_and_what_arrived_is_kept() {
    own_mounts();
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    mount(Some("tmpfs"), &images, Some("tmpfs"), MsFlags::empty(), Some("size=20m")).unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, noise(40 << 20, 9)).unwrap();
    let disk = Disk::open(&path).unwrap();
    let registry = Registry::open(&images).unwrap();
    let name = "big".parse().unwrap();
    let original = disk.original("disk", false);
    let capture = registry.begin_capture(&name, &original).unwrap();
    let error = send(&disk, &capture).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    let held = capture.held_chunks();
    assert!((3..=4).contains(&held), "{held} chunks");
    drop(capture);
    // Room is made, and it goes on where it was.
    mount(None::<&str>, &images, None::<&str>, MsFlags::MS_REMOUNT, Some("size=100m")).unwrap();
    let capture = registry.begin_capture(&name, &original).unwrap();
    assert_eq!(capture.held_chunks(), held);
    send(&disk, &capture).unwrap();
    capture.receive().unwrap();
    let image = capture.finish(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(fs::read(image.disk_path()).unwrap() == fs::read(&path).unwrap());
}
