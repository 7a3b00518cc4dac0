//! Boots the images from disk alone, as a machine does after it was provisioned: by SeaBIOS and by OVMF.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rackswarm_golden::{Debian, Options, Recipe, Small, build};
use tempfile::TempDir;

#[path = "../../bootenv/tests/support/vm.rs"]
mod vm;
use vm::Vm;

const OVMF: &str = "/usr/share/OVMF";

fn image(recipe: &Recipe, folder: &TempDir) -> PathBuf {
    let options = Options::new(folder.path().join("disk.raw"));
    build(recipe, &options, &|line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}")).path
}

/// A machine with this disk, a network card behind QEMU's own DHCP server, and firmware: OVMF or, by default, SeaBIOS.
fn start(memory_mib: u32, disk: &Path, uefi: bool, network: &str) -> Vm {
    let drive = format!("file={},if=none,id=d0,format=raw,cache=unsafe", disk.display());
    let network = format!("user,id=n0{network}");
    let mut args = vec!["-machine", if uefi { "q35" } else { "pc" }];
    args.extend(["-drive", &drive, "-device", "virtio-blk-pci,drive=d0,bootindex=1"]);
    args.extend(["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,romfile="]);
    let code = format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd");
    let variables = disk.with_extension("vars");
    let store = format!("if=pflash,unit=1,format=raw,file={}", variables.display());
    if uefi {
        std::fs::copy(Path::new(OVMF).join("OVMF_VARS_4M.fd"), &variables)
            .expect("ovmf is missing: run `cargo xtask test`, which installs it");
        args.extend(["-drive", &code, "-drive", &store]);
    }
    Vm::start(memory_mib, &args)
}

#[test]
fn vm_debian_starts_by_bios_gets_an_address_and_serves_ssh() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(&Recipe::Debian(Debian::default()), &folder);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut vm = start(512, &disk, false, &format!(",hostfwd=tcp:127.0.0.1:{port}-:22"));
    vm.wait_for("debian login:");
    // QEMU accepts at once and hangs up until sshd answers, which takes an address and host keys.
    let end = Instant::now() + Duration::from_secs(120);
    let greeting = loop {
        match greeting(port) {
            Some(line) => break line,
            None if Instant::now() > end => panic!("sshd never answered"),
            None => std::thread::sleep(Duration::from_millis(500)),
        }
    };
    assert!(greeting.starts_with("SSH-2.0-OpenSSH"), "{greeting}");
}

#[test]
fn vm_debian_starts_by_uefi() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(&Recipe::Debian(Debian::default()), &folder);
    start(512, &disk, true, "").wait_for("debian login:");
}

#[test]
fn vm_small_starts_by_bios_and_runs_the_hook() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(&Recipe::Small(Small::default()), &folder);
    put_hook(&disk, folder.path());
    let mut vm = start(160, &disk, false, "");
    let shown = vm.wait_for("root on /dev/vda3");
    assert!(shown.contains("small is up after") && shown.contains("eth0=10.0.2.15"), "{shown}");
    vm.wait_for("the hook runs as 0");
    eprintln!("{shown}");
}

#[test]
fn vm_small_starts_by_uefi_and_lets_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(&Recipe::Small(Small::default()), &folder);
    let mut vm = start(320, &disk, true, "");
    vm.wait_for("root on /dev/vda3");
    vm.wait_for("small login:");
    vm.type_line("root");
    vm.wait_for("Password:");
    vm.type_line("");
    let refused = vm.wait_for("small login:");
    assert!(!refused.contains('#') && !refused.contains('$'), "{refused}");
}

fn greeting(port: u16) -> Option<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    (!line.is_empty()).then_some(line)
}

/// Writes the hook as post actions would, without mounting.
fn put_hook(disk: &Path, folder: &Path) {
    let hook = folder.join("start");
    std::fs::write(&hook, "#!/bin/sh\necho the hook runs as $(id -u)\n").unwrap();
    let script = folder.join("script");
    let commands = format!("mkdir /etc/rackswarm\nwrite {} /etc/rackswarm/start\n", hook.display());
    std::fs::write(&script, commands + "sif /etc/rackswarm/start mode 0100755\n").unwrap();
    let address = format!("{}?offset={}", disk.display(), 10 << 20);
    let output = Command::new("debugfs").args(["-w", "-f"]).args([&script]).arg(address).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
