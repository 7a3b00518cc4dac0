//! Builds the real thing from real packages and looks inside. A static busybox stands in for the agent.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, str};

use rackswarm_bootenv::archive::{self, Entry};
use rackswarm_bootenv::cache::sha256_of_file;
use rackswarm_bootenv::{Built, DEFAULT_CACHE, Error, Flavour, Options, build, describe};

fn options(out: &Path, kernel: Flavour) -> Options {
    let agent = PathBuf::from("/usr/bin/busybox");
    assert!(agent.exists(), "busybox-static is missing: run `cargo xtask test`, which installs it");
    Options { kernel, ..Options::new(out.to_owned(), agent) }
}

fn built(out: &Path, kernel: Flavour) -> Built {
    build(&options(out, kernel), &|line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"))
}

fn entries(built: &Built) -> BTreeMap<String, Entry> {
    archive::list(&built.initramfs).unwrap().into_iter().map(|entry| (entry.path.clone(), entry)).collect()
}

#[test]
fn equal_inputs_give_equal_bytes_without_the_cache_of_segments() {
    let folder = tempfile::tempdir().unwrap();
    let first = built(&folder.path().join("first"), Flavour::Cloud);
    // A second cache that shares only what was downloaded: unpacking, choosing and compressing happen anew.
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    for shared in ["packages", "apt"] {
        symlink(Path::new(DEFAULT_CACHE).join(shared), cache.join(shared)).unwrap();
    }
    let again = Options { cache, ..options(&folder.path().join("second"), Flavour::Cloud) };
    let second = build(&again, &|_| ()).unwrap();
    assert_eq!(first.description, second.description);
    for name in ["vmlinuz", "initramfs", "bootenv.json"] {
        let digest = |out: &str| sha256_of_file(&folder.path().join(out).join(name)).unwrap();
        assert_eq!(digest("first"), digest("second"), "{name}");
    }
}

#[test]
fn the_generic_kernel_brings_drivers_for_metal() {
    let folder = tempfile::tempdir().unwrap();
    let built = built(folder.path(), Flavour::Generic);
    let description = describe(folder.path()).unwrap();
    assert_eq!(description, built.description);
    assert_eq!(description.modules_absent, Vec::<String>::new());
    for module in
        ["virtio_net", "e1000e", "mlx5_core", "ixgbe", "nvme", "ahci", "megaraid_sas", "ext4", "xfs", "efivarfs"]
    {
        assert!(description.modules.iter().any(|name| name == module), "{module}");
    }
    assert!(description.firmware_missing["bnx2"].iter().any(|name| name.starts_with("bnx2/")));
    assert!(description.packages.iter().any(|package| package.package == "busybox-static"));
    assert!(description.initramfs.size_bytes < 20 << 20, "{}", description.initramfs.size_bytes);
    for (artifact, path) in [(&description.kernel, &built.kernel), (&description.initramfs, &built.initramfs)] {
        assert_eq!(artifact.sha256, sha256_of_file(path).unwrap());
        assert_eq!(artifact.size_bytes, fs::metadata(path).unwrap().len());
    }

    let entries = entries(&built);
    assert!(entries.values().all(|entry| entry.mtime == description.source_date_epoch));
    assert_eq!(entries["init"].mode, 0o100_755);
    assert_eq!((entries["dev/console"].mode, entries["dev/null"].mode), (0o020_600, 0o020_666));
    assert_eq!(entries["etc/udhcpc/default.script"].mode, 0o100_755);
    for applet in ["sh", "ip", "udhcpc", "mount", "modprobe", "dmesg", "reboot", "poweroff", "switch_root"] {
        assert_eq!(entries[&format!("bin/{applet}")].target.as_deref(), Some("busybox"), "{applet}");
    }
    let modules = entries.keys().filter(|path| path.ends_with(".ko")).count();
    assert_eq!(modules, description.modules.len());
}

#[test]
fn every_dependency_is_on_board_and_every_tool_runs() {
    let folder = tempfile::tempdir().unwrap();
    let built = built(&folder.path().join("out"), Flavour::Cloud);
    let root = folder.path().join("root");
    unpack(&built.initramfs, &root);
    let modules = root.join("lib/modules").join(&built.description.kernel_version);
    let dep = fs::read_to_string(modules.join("modules.dep")).unwrap();
    for path in dep.lines().flat_map(|line| line.split([':', ' '])).filter(|path| !path.is_empty()) {
        assert!(modules.join(path).is_file(), "{path} is named in modules.dep and missing");
    }
    let alias = fs::read_to_string(modules.join("modules.alias")).unwrap();
    assert!(alias.contains("alias virtio:d00000001v* virtio_net\n"), "no alias for virtio network cards");
    let at_start = fs::read_to_string(root.join("etc/rackswarm/modules")).unwrap();
    assert_eq!(at_start.lines().collect::<Vec<_>>(), built.description.modules_at_start);
    assert!(!at_start.lines().any(|name| name == "nvme"), "nvme is part of the cloud kernel");

    fs::write(root.join("proc/mounts"), "").unwrap();
    let disk = root.join("disk");
    fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    assert!(Command::new("mke2fs").arg("-q").arg(&disk).status().unwrap().success());
    fs::File::options().write(true).open(&disk).unwrap().set_len(16 << 20).unwrap();
    run(&root, &["/sbin/e2fsck", "-f", "-y", "/disk"]);
    run(&root, &["/sbin/resize2fs", "/disk"]);
    assert!(run(&root, &["/sbin/blkid", "-p", "/disk"]).contains("TYPE=\"ext2\""));
    assert!(run(&root, &["/usr/sbin/xfs_growfs", "-V"]).contains("version"));
}

#[test]
fn mistakes_get_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = options(&folder.path().join("out"), Flavour::Cloud);
    wrong.modules = vec!["no_such_driver".to_owned()];
    assert!(matches!(build(&wrong, &|_| ()).unwrap_err(), Error::NoModule { .. }));
    wrong.agent = "/nowhere/agent".into();
    assert!(build(&wrong, &|_| ()).unwrap_err().to_string().contains("/nowhere/agent"));
    assert!(!folder.path().join("out/initramfs").exists());
}

/// With the ordinary tools, as a second opinion on the format. GNU cpio stops at the end of a segment, so it gets each alone.
fn unpack(initramfs: &Path, root: &Path) {
    fs::create_dir(root).unwrap();
    let mut packed = BufReader::new(fs::File::open(initramfs).unwrap());
    while !packed.fill_buf().unwrap().is_empty() {
        let mut segment = Vec::new();
        let mut frame = zstd::stream::Decoder::with_buffer(&mut packed).unwrap().single_frame();
        frame.read_to_end(&mut segment).unwrap();
        let path = root.with_extension("cpio");
        fs::write(&path, segment).unwrap();
        let input = fs::File::open(&path).unwrap();
        let cpio = Command::new("cpio").args(["-idm", "--quiet"]).current_dir(root).stdin(input).output().unwrap();
        assert!(cpio.status.success(), "{}", String::from_utf8_lossy(&cpio.stderr));
    }
}

fn run(root: &Path, command: &[&str]) -> String {
    let output = Command::new("chroot").arg(root).args(command).output().unwrap();
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = str::from_utf8(&text).unwrap().to_owned();
    assert!(output.status.success(), "{command:?} (chroot wants root): {text}");
    text
}
