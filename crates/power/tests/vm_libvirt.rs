//! The libvirt driver and set against a real libvirtd with QEMU, and the Redfish driver against sushy-tools before it.
//! libvirtd runs in namespaces of its own, so the host's configuration and machines are not touched. The machines are
//! started and looked at, but boot nothing: what they would boot from is read from QEMU itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod libvirtd;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libvirtd::Libvirt;
use power::{BootDevice, NextBoot, Outcome, PowerDriver, Source, State, Wish, open, open_set};
use rackswarm_power as power;

impl Libvirt {
    fn set(&self) -> String {
        format!("libvirt:?uri={}&folder={}/disks&bridge=br0&type=qemu", self.uri(), self.folder.path().display())
    }

    /// What a running machine was started to boot from first, as QEMU was told: the device with `bootindex` 1.
    fn started_from(&self, name: &str) -> BootDevice {
        let pid = std::fs::read_to_string(self.folder.path().join(format!("run/qemu/{name}.pid"))).unwrap();
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap();
        let line = String::from_utf8_lossy(&line).replace('\0', "\n");
        let first = line.lines().find(|word| word.contains("\"bootindex\":1,") || word.contains("\"bootindex\":1}"));
        if first.unwrap_or_else(|| panic!("nothing is first: {line}")).contains("virtio-net") {
            BootDevice::Network
        } else {
            BootDevice::Disk
        }
    }

    /// What the network card's place in the order is for the guest's next restart.
    fn card_now(&self, name: &str) -> i64 {
        let ask = r#"{"execute":"qom-get","arguments":{"path":"/machine/peripheral/net0","property":"bootindex"}}"#;
        let answer: serde_json::Value =
            serde_json::from_str(&self.virsh(&["qemu-monitor-command", name, ask])).unwrap();
        answer["return"].as_i64().unwrap()
    }
}

fn wish(token: &str, count: u32) -> Wish {
    Wish { token: token.into(), count, memory_mib: 32, disk_gib: 1, ..Wish::default() }
}

async fn done(answer: impl Future<Output = power::Result<Outcome>>) {
    assert_eq!(answer.await.unwrap(), Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_libvirt_machines_are_made_driven_and_unmade() {
    let libvirt = Libvirt::new();
    let set = open_set(&libvirt.set()).unwrap();
    assert_eq!(set.list().await.unwrap(), []);
    let taken = set.acquire(&wish("web", 2)).await.unwrap();
    assert_eq!(set.acquire(&wish("web", 2)).await.unwrap(), taken, "the same token, the same machines");
    assert_eq!(set.list().await.unwrap(), taken);
    assert_eq!((taken[0].id.as_str(), taken[0].state), ("rs-web-1", State::Off));
    assert_eq!(taken[0].macs.len(), 1);

    let name = &taken[0].id;
    let driver = open(&taken[0].power).unwrap();
    done(driver.off()).await;
    done(driver.on()).await;
    done(driver.on()).await;
    assert_eq!(driver.state().await.unwrap(), State::On);
    assert_eq!(libvirt.started_from(name), BootDevice::Disk);
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Standing);
    for _ in 0..2 {
        done(driver.boot_next(BootDevice::Network)).await;
    }
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Once(BootDevice::Network));
    done(driver.cycle()).await;
    assert_eq!(libvirt.started_from(name), BootDevice::Network);
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Standing);
    assert_eq!(libvirt.card_now(name), 100, "a guest that restarts itself finds its disk");
    done(driver.cycle()).await;
    assert_eq!(libvirt.started_from(name), BootDevice::Disk);
    done(driver.boot_next(BootDevice::Network)).await;
    done(driver.boot_next(BootDevice::Disk)).await;
    done(driver.cycle()).await;
    assert_eq!(libvirt.started_from(name), BootDevice::Disk);

    images(&libvirt, set.as_ref(), name).await;
    refusals(&libvirt, set.as_ref()).await;
    done(set.release(name)).await;
    done(set.release(name)).await;
    done(set.release("rs-web-2")).await;
    let disks: Vec<PathBuf> =
        std::fs::read_dir(libvirt.folder.path().join("disks")).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(disks.iter().all(|path| path.ends_with("images")), "disks are left behind: {disks:?}");
}

/// An image of a machine's disk, and a machine that starts from it without a network boot.
async fn images(libvirt: &Libvirt, set: &dyn power::ResourceSet, name: &str) {
    let error = set.add_image("gold", &Source::Machine(name.into())).await.unwrap_err().to_string();
    assert!(error.contains("switch it off first"), "{error}");
    done(set.power(name).unwrap().off()).await;
    let image = set.add_image("gold", &Source::Machine(name.into())).await.unwrap();
    assert_eq!(set.add_image("gold", &Source::Machine(name.into())).await.unwrap(), image);
    let raw = libvirt.folder.path().join("small.raw");
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    set.add_image("small", &Source::Place(raw.display().to_string())).await.unwrap();
    assert_eq!(set.images().await.unwrap().len(), 2);
    let from = |image: &str| Wish { image: Some(image.into()), ..wish("copy", 1) };
    let error = set.acquire(&from("lead")).await.unwrap_err().to_string();
    assert!(error.contains("gold, small"), "{error}");
    let copy = set.acquire(&from("small")).await.unwrap().remove(0);
    let disk = libvirt.folder.path().join(format!("disks/{}.qcow2", copy.id));
    assert_eq!(first_sector(&disk), vec![7; 512]);
    done(open(&copy.power).unwrap().on()).await;
    done(set.release(&copy.id)).await;
}

fn first_sector(disk: &Path) -> Vec<u8> {
    let out = disk.with_extension("sector");
    let status = Command::new("qemu-img")
        .args(["dd", "-f", "qcow2", "-O", "raw", "bs=512", "count=1"])
        .arg(format!("if={}", disk.display()))
        .arg(format!("of={}", out.display()))
        .status()
        .unwrap();
    assert!(status.success());
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    bytes
}

async fn refusals(libvirt: &Libvirt, set: &dyn power::ResourceSet) {
    let foreign = "<domain type='qemu'><name>theirs</name><memory unit='MiB'>32</memory>\
        <os><type>hvm</type></os></domain>";
    let file = libvirt.folder.path().join("theirs.xml");
    std::fs::write(&file, foreign).unwrap();
    libvirt.virsh(&["define", &file.display().to_string()]);
    let error = set.release("theirs").await.unwrap_err().to_string();
    assert!(error.contains("not made by us"), "{error}");
    assert!(libvirt.virsh(&["list", "--all", "--name"]).contains("theirs"));
    let theirs = set.power("theirs").unwrap();
    let error = theirs.boot_next(BootDevice::Network).await.unwrap_err().to_string();
    assert!(error.contains("no network interface"), "{error}");
    let error = set.power("nobody").unwrap().on().await.unwrap_err().to_string();
    assert!(error.contains("no such machine"), "{error}");
    let nowhere = format!("libvirt:x?uri=qemu+unix:///system?socket={}/none", libvirt.folder.path().display());
    let error = open(&nowhere).unwrap().state().await.unwrap_err().to_string();
    assert!(error.contains("start libvirtd"), "{error}");
}

/// sushy-tools before the same libvirtd.
struct Sushy(Child);

impl Drop for Sushy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sushy(libvirt: &Libvirt) -> (Sushy, u16) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/power-venv/bin/sushy-emulator");
    assert!(program.exists(), "sushy-tools is not in target/power-venv; run `cargo xtask test`, which installs it");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let here = libvirt.folder.path();
    let settings = format!(
        "SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\nSUSHY_EMULATOR_SSL_CERT = None\n\
         SUSHY_EMULATOR_LIBVIRT_URI = '{}'\nSUSHY_EMULATOR_STATE_DIR = '{}'\n",
        libvirt.uri(),
        here.display()
    );
    std::fs::write(here.join("sushy.conf"), settings).unwrap();
    let out = std::fs::File::create(here.join("sushy.out")).unwrap();
    let child = Command::new(program)
        .arg("--config")
        .arg(here.join("sushy.conf"))
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap();
    let sushy = Sushy(child);
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        let said = std::fs::read_to_string(here.join("sushy.out")).unwrap();
        assert!(Instant::now() < deadline, "sushy-tools does not come up: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
    (sushy, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_redfish_drives_sushy_tools() {
    let libvirt = Libvirt::new();
    let set = open_set(&libvirt.set()).unwrap();
    let name = set.acquire(&wish("bmc", 1)).await.unwrap().remove(0).id;
    let (_sushy, port) = sushy(&libvirt);
    let password = libvirt.folder.path().join("password");
    std::fs::write(&password, "unused\n").unwrap();
    let address = format!("redfish+http://admin@127.0.0.1:{port}?password_file={}&off_seconds=0", password.display());
    let listed = open_set(&address).unwrap().list().await.unwrap();
    assert_eq!(listed.len(), 1);
    // It has no HostName until its system says one; its UUID and its cards identify it.
    assert!(listed[0].name.is_empty() && listed[0].uuid.is_some() && listed[0].macs.len() == 1, "{listed:?}");
    let driver = open(&listed[0].power).unwrap();
    drive(&libvirt, driver.as_ref(), &name).await;
    assert_eq!(open(&address).unwrap().state().await.unwrap(), State::Off, "the only system needs no path");
    done(set.release(&name)).await;
}

async fn drive(libvirt: &Libvirt, driver: &dyn PowerDriver, name: &str) {
    assert_eq!(driver.state().await.unwrap(), State::Off);
    done(driver.boot_next(BootDevice::Network)).await;
    // Stored as a lasting order, which the driver knows and takes back once the machine is on.
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Always(BootDevice::Network));
    done(driver.cycle()).await;
    assert_eq!(libvirt.started_from(name), BootDevice::Network);
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Always(BootDevice::Disk));
    done(driver.on()).await;
    done(driver.cycle()).await;
    assert_eq!(libvirt.started_from(name), BootDevice::Disk);
    done(driver.off()).await;
    done(driver.off()).await;
    assert_eq!(driver.state().await.unwrap(), State::Off);
}
