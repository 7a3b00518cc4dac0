//! Boots what is built in an emulated machine with a SATA disk and an e1000 card, whose drivers must come by hardware alias.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rackswarm_bootenv::{Options, build};

#[path = "support/vm.rs"]
mod vm;
use vm::Vm;

const LOAD: &str = "mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; \
    for m in $(cat /etc/rackswarm/modules); do modprobe $m || echo not loaded: $m; done; \
    for i in 1 2 3; do find /sys/devices -name modalias -exec cat {} + | sort -u | while read a; do modprobe -q $a; done; done; \
    echo LOAD''ED";
const USE: &str = "mkdir /disk; mount -t ext4 /dev/sda /disk && cat /disk/greeting; \
    until [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do ip link set eth0 up; sleep 1; done; udhcpc -q -n -i eth0; \
    cat /run/dhcp-eth0 /etc/resolv.conf; ip route; free; echo US''ED";

#[test]
fn vm_kernel_and_initramfs_find_disk_and_network() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().to_owned(), "/usr/bin/busybox".into());
    let built = build(&options, &|line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"));
    let disk = make_disk(folder.path());

    let drive = format!("file={},if=none,id=d0,format=raw", disk.display());
    let mut vm = Vm::start(
        512,
        &[
            "-machine",
            "q35",
            "-drive",
            &drive,
            "-device",
            "ide-hd,drive=d0,bus=ide.0",
            "-netdev",
            "user,id=n0",
            "-device",
            "e1000,netdev=n0,romfile=",
            "-kernel",
            &built.kernel.to_string_lossy(),
            "-initrd",
            &built.initramfs.to_string_lossy(),
            "-append",
            "console=ttyS0 quiet no_timer_check panic=1 rdinit=/bin/sh",
        ],
    );
    vm.wait_for("# ");
    vm.type_line(LOAD);
    let loaded = vm.wait_for("LOADED");
    assert!(!loaded.contains("not loaded: virtio") && !loaded.contains("not loaded: ext4"), "{loaded}");
    vm.type_line(USE);
    let used = vm.wait_for("USED");
    assert!(used.contains("the disk says hello"), "no AHCI disk: {used}");
    assert!(used.contains("ip=10.0.2.15") && used.contains("nameserver 10.0.2.3"), "no lease over e1000: {used}");
    assert!(used.contains("default via 10.0.2.2 dev eth0"), "no route: {used}");
    eprintln!("{used}");
}

fn make_disk(folder: &Path) -> PathBuf {
    let (disk, root) = (folder.join("disk.raw"), folder.join("root"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("greeting"), "the disk says hello\n").unwrap();
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([&root, &disk]).status().unwrap();
    assert!(made.success());
    disk
}
