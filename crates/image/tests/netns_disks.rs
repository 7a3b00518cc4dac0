//! What needs root: a small file system that fills up, and block devices.
//! Each test has a mount namespace of its own, so nothing stays mounted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rackswarm_image::seal::seal_file;
use rackswarm_image::{DiskSink, Error, ImportOptions, Manifest, PieceSink, PieceSource, Registry, no_progress};

fn expect_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts and attaches devices: run `cargo xtask test` as root");
}

/// Mounts a small tmpfs that only this thread and its children see.
fn small_file_system(at: &Path, size: &str) {
    expect_root();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let options = format!("size={size}");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

/// A loop device on a file, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Self {
        expect_root();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let output = output.expect("losetup of util-linux: run `cargo xtask test`, which installs it");
        assert!(output.status.success(), "no loop device: {}", String::from_utf8_lossy(&output.stderr));
        Self(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// 8 MiB: data, 4 MiB of zeros, data.
fn content() -> Vec<u8> {
    let mut content: Vec<u8> = (0..8 << 20).map(|n: usize| (n % 253) as u8 + 1).collect();
    content[2 << 20..6 << 20].fill(0);
    content
}

fn manifest_of(folder: &Path, content: &[u8]) -> Arc<Manifest> {
    let path = folder.join("content");
    fs::write(&path, content).unwrap();
    let sealed = seal_file(&path, None, &mut no_progress).unwrap();
    Arc::new(Manifest::from_sealed(&"disk".parse().unwrap(), &sealed).unwrap())
}

fn put_all(sink: &DiskSink, content: &[u8]) {
    let size = sink.manifest().piece_size_bytes() as usize;
    for index in sink.missing().ones() {
        let bytes = content.chunks(size).nth(index).unwrap().to_vec();
        sink.put(&sink.manifest().verify(index as u32, bytes).unwrap()).unwrap();
    }
}

#[test]
fn a_full_server_disk_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let source = tempfile::NamedTempFile::new().unwrap();
    source.as_file().write_all_at(&content(), 0).unwrap();
    let qcow2 = tempfile::NamedTempFile::new().unwrap();
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([source.path(), qcow2.path()])
        .status()
        .expect("qemu-img: run `cargo xtask test`, which installs it");
    assert!(converted.success());

    small_file_system(folder.path(), "3m");
    let registry = Registry::open(folder.path().join("images")).unwrap();
    let options = ImportOptions::named("full".parse().unwrap());
    for path in [source.path(), qcow2.path()] {
        let error = registry.import(path, &options, &mut no_progress).unwrap_err();
        assert!(matches!(error, Error::NoSpace { needed_bytes: 8_388_608, .. }), "{error}");
        assert!(error.to_string().contains("/images"), "{error}");
        assert_eq!(fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }
    for length in [Some(8 << 20), None] {
        let body = content();
        let error = registry.import_stream(&mut body.as_slice(), length, &options, &mut no_progress).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }
}

#[test]
fn a_block_device_becomes_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    let backing = folder.path().join("backing");
    fs::write(&backing, vec![0xff; 16 << 20]).unwrap();
    let device = Loop::attach(&backing);
    let manifest = manifest_of(folder.path(), &content);
    {
        let sink = DiskSink::open(&device.0, Arc::clone(&manifest)).unwrap();
        assert_eq!(sink.scan(&mut no_progress).unwrap().count_ones(..), 0);
        sink.prepare(&mut no_progress).unwrap();
        put_all(&sink, &content);
        sink.finish(1).unwrap();
        let mut block = vec![0; 4096];
        sink.read(3, 8192, &mut block).unwrap();
        assert_eq!(block, content[3 * (16 << 10) + 8192..][..4096]);
    }
    let disk = fs::read(&device.0).unwrap();
    assert!(disk[..content.len()] == content[..], "the image");
    let gpt = disk.len() - 33 * 512;
    assert!(disk[content.len()..gpt].iter().all(|&byte| byte == 0xff), "what lies beyond is left alone");
    assert!(disk[gpt..].iter().all(|&byte| byte == 0), "but for a stale backup partition table");

    let sink = DiskSink::open(&device.0, Arc::clone(&manifest)).unwrap();
    assert!(sink.scan(&mut no_progress).unwrap().is_full(), "everything is kept the second time");
    drop(sink);

    let protect = |how| Command::new("blockdev").arg(how).arg(&device.0).status().expect("blockdev of util-linux");
    assert!(protect("--setro").success());
    let refused = DiskSink::open(&device.0, manifest).and_then(|sink| sink.prepare(&mut no_progress));
    // The device keeps this for whatever is attached to it next.
    assert!(protect("--setrw").success());
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("choose another"), "{error}");
}

#[test]
fn a_file_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room() {
    let content = content();
    let elsewhere = tempfile::tempdir().unwrap();
    let manifest = manifest_of(elsewhere.path(), &content);
    let folder = tempfile::tempdir().unwrap();
    small_file_system(folder.path(), "3m");
    let filler = folder.path().join("filler");
    let sink = DiskSink::create(&folder.path().join("disk"), Arc::clone(&manifest)).unwrap();
    sink.prepare(&mut no_progress).unwrap();
    assert_eq!(sink.missing().count_ones(..), 256, "4 MiB of zeros are there already");
    fs::write(&filler, vec![1; 1 << 20]).unwrap();
    let size = manifest.piece_size_bytes() as usize;
    let mut full = None;
    for index in sink.missing().ones() {
        let bytes = content.chunks(size).nth(index).unwrap().to_vec();
        if let Err(error) = sink.put(&manifest.verify(index as u32, bytes).unwrap()) {
            full = Some(error);
            break;
        }
    }
    let error = full.expect("2 MiB cannot hold 4");
    assert!(matches!(error, Error::NoSpace { needed_bytes: 4_194_304, .. }), "{error}");
    assert!(sink.missing().count_ones(..) > 100, "what was not written is not counted");
    mount(None::<&str>, folder.path(), None::<&str>, MsFlags::MS_REMOUNT, Some("size=16m")).unwrap();
    put_all(&sink, &content);
    sink.finish(1).unwrap();
    assert!(fs::read(folder.path().join("disk")).unwrap() == content);
}

#[test]
fn a_disk_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    fs::File::create(&backing).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-F"]).arg(&backing).status();
    assert!(made.expect("mke2fs: run `cargo xtask test`, which installs it").success());
    let device = Loop::attach(&backing);
    let manifest = manifest_of(folder.path(), &content());
    let at = folder.path().join("mounted");
    fs::create_dir(&at).unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some(&device.0), &at, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    let error = DiskSink::open(&device.0, Arc::clone(&manifest)).unwrap_err();
    nix::mount::umount(&at).unwrap();
    assert!(matches!(error, Error::Busy(_)), "{error}");
    DiskSink::open(&device.0, manifest).unwrap();
}

#[test]
fn a_device_that_is_too_small_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    fs::write(&backing, vec![0xff; 4 << 20]).unwrap();
    let device = Loop::attach(&backing);
    let error = DiskSink::open(&device.0, manifest_of(folder.path(), &content())).unwrap_err().to_string();
    assert!(error.contains("4194304") && error.contains("8388608") && error.contains("nothing was written"), "{error}");
    assert!(fs::read(&backing).unwrap().iter().all(|&byte| byte == 0xff));
}

#[test]
fn a_write_protected_device_is_named_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    fs::write(&backing, vec![0xff; 16 << 20]).unwrap();
    let device = Loop::attach(&backing);
    let protect = Command::new("blockdev").arg("--setro").arg(&device.0).status();
    assert!(protect.expect("blockdev of util-linux: run `cargo xtask test`, which installs it").success());
    let manifest = manifest_of(folder.path(), &content());
    let error = DiskSink::open(&device.0, Arc::clone(&manifest)).unwrap_err();
    assert!(matches!(error, Error::WriteProtected(_)), "{error}");
    let (said, name) = (error.to_string(), device.0.display().to_string());
    assert!(said.contains(&format!("blockdev --setrw {name}")), "{said}");
    assert!(Command::new("blockdev").arg("--setrw").arg(&device.0).status().unwrap().success());
    DiskSink::open(&device.0, manifest).unwrap();
}
