//! A whole server on this machine: a controller (our strict Redfish one, or OpenIPMI's ipmi_sim) before a QEMU machine. What
//! the firmware really boots from is read from its console.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod ipmi_sim;

use std::path::Path;
use std::time::{Duration, Instant};

use power::virtual_bmc::{Rules, VirtualBmc};
use power::{BootDevice, NextBoot, Outcome, PowerDriver, State, open};
use rackswarm_power as power;
use tokio::net::TcpListener;

/// From power-on to the firmware's first word about booting, under emulation on a loaded host.
const FIRMWARE: Duration = Duration::from_secs(120);

/// Ends the machine whatever the test says.
struct Machine(power::qemu::Machine);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn machine(folder: &Path) -> Machine {
    let disk = folder.join("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let text = format!(
        "name = \"server\"\nmac = \"52:54:00:00:00:01\"\nuuid = \"00000000-0000-0000-0000-000000000001\"\nmemory_mib = 64\n\
         firmware = \"bios\"\nrun_dir = \"{0}\"\nconsole = \"{0}/console.log\"\n[[disk]]\npath = \"{1}\"\nserial = \"D1\"\n",
        folder.display(),
        disk.display()
    );
    std::fs::write(folder.join("vm.toml"), &text).unwrap();
    Machine(power::qemu::Machine::from_toml(&text).unwrap())
}

fn console(folder: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(folder.join("console.log")).unwrap_or_default()).into_owned()
}

/// What SeaBIOS says to boot from first, after so many bytes of console.
async fn boots_from(folder: &Path, said: usize) -> BootDevice {
    let deadline = Instant::now() + FIRMWARE;
    loop {
        let text = console(folder);
        let new = text.get(said..).unwrap_or_default();
        if let Some((_, after)) = new.split_once("Booting from ") {
            if after.starts_with("ROM") {
                return BootDevice::Network;
            }
            if after.starts_with("Hard Disk") {
                return BootDevice::Disk;
            }
        }
        assert!(Instant::now() < deadline, "the firmware says nothing about booting: {new}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_a_server_behind_a_strict_controller_boots_from_the_network_once() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let _machine = machine(here);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let behind = vec![("1".to_owned(), open(&format!("qemu:{}/vm.toml", here.display())).unwrap())];
    let bmc = VirtualBmc::start(listener, "admin", "secret", Rules::default(), behind).unwrap();
    std::fs::write(here.join("password"), "secret\n").unwrap();
    let driver =
        open(&format!("redfish+http://admin@{}?password_file={}/password", bmc.address(), here.display())).unwrap();

    assert_eq!(driver.state().await.unwrap(), State::Off);
    assert_eq!(driver.boot_next(BootDevice::Network).await.unwrap(), Outcome::Done);
    assert_eq!(driver.cycle().await.unwrap(), Outcome::Done);
    assert_eq!(boots_from(here, 0).await, BootDevice::Network);
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Standing);
    let said = console(here).len();
    assert_eq!(driver.cycle().await.unwrap(), Outcome::Done);
    assert_eq!(boots_from(here, said).await, BootDevice::Disk);
    assert_eq!(driver.off().await.unwrap(), Outcome::Done);
    assert_eq!(driver.state().await.unwrap(), State::Off);
    assert_eq!(bmc.seen().sessions, 0);
}

/// Ends the controller whatever the test says.
struct Simulator(std::process::Child);

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the machine what the chassis script wrote down: on while `on` is there, and `boot` for one start.
async fn obey(folder: &Path, machine: Box<dyn PowerDriver>) {
    let mut is_on = false;
    loop {
        let wanted = folder.join("on").exists();
        if wanted && !is_on {
            let order = std::fs::read_to_string(folder.join("boot")).unwrap_or_default();
            let device = if order.trim() == "pxe" { BootDevice::Network } else { BootDevice::Disk };
            machine.boot_next(device).await.unwrap();
            machine.on().await.unwrap();
            std::fs::write(folder.join("boot"), "default\n").unwrap();
        }
        if !wanted && is_on {
            machine.off().await.unwrap();
        }
        is_on = wanted;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_a_server_behind_ipmi_sim_boots_from_the_network_once() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_owned();
    let _machine = machine(&here);
    let (simulator, address) = ipmi_sim::start(&here, ipmi_sim::CHASSIS);
    let _simulator = Simulator(simulator);
    let behind = open(&format!("qemu:{}/vm.toml", here.display())).unwrap();
    let place = here.clone();
    let obeying = tokio::spawn(async move { obey(&place, behind).await });
    let driver = open(&address).unwrap();

    assert_eq!(driver.state().await.unwrap(), State::Off);
    assert_eq!(driver.boot_next(BootDevice::Network).await.unwrap(), Outcome::Done);
    assert_eq!(driver.cycle().await.unwrap(), Outcome::Done);
    assert_eq!(boots_from(&here, 0).await, BootDevice::Network);
    let said = console(&here).len();
    assert_eq!(driver.off().await.unwrap(), Outcome::Done);
    assert_eq!(driver.cycle().await.unwrap(), Outcome::Done);
    assert_eq!(boots_from(&here, said).await, BootDevice::Disk);
    assert_eq!(driver.off().await.unwrap(), Outcome::Done);
    assert!(!obeying.is_finished(), "the machine refused");
    obeying.abort();
}
