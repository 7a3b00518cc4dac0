//! The contract of every power driver, checked by one suite that iterates over the driver table: against machines in
//! memory, a real QEMU without a disk, a real `ipmi_sim`, and our own Redfish controller. The drivers that need a whole
//! platform keep it in `libvirt.rs` and `ec2.rs`; those that ask a person for a part of it, in their own files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod ipmi_sim;

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use power::virtual_bmc::{Rules, VirtualBmc};
use power::{Advice, BootDevice, DRIVERS, NextBoot, Outcome, PowerDriver, State, open};
use rackswarm_power as power;
use tempfile::TempDir;

/// A machine under test and what keeps it alive.
struct Rig {
    address: String,
    simulator: Option<Child>,
    _controller: Option<VirtualBmc>,
    folder: TempDir,
}

/// Drivers whose contract is checked elsewhere.
const ELSEWHERE: [&str; 5] = ["manual", "wol", "webhook", "libvirt", "ec2"];

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(simulator) = &mut self.simulator {
            let _ = simulator.kill();
            let _ = simulator.wait();
        }
        let definition = std::fs::read_to_string(self.folder.path().join("vm.toml")).ok();
        let machine = definition.and_then(|text| power::qemu::Machine::from_toml(&text).ok());
        if let Some(machine) = machine {
            let _ = machine.kill();
        }
    }
}

async fn rig(scheme: &str) -> Rig {
    match scheme {
        "fake" => Rig {
            address: "fake:contract?readback=yes".into(),
            simulator: None,
            _controller: None,
            folder: tempfile::tempdir().unwrap(),
        },
        "redfish" => redfish_rig().await,
        "qemu" => qemu_rig(),
        "ipmi" => ipmi_rig(),
        other => panic!("the driver `{other}` has no rig in the contract suite; add one"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_driver_keeps_the_contract() {
    for row in DRIVERS.iter().filter(|row| !ELSEWHERE.contains(&row.scheme)) {
        let rig = rig(row.scheme).await;
        let driver = open(&rig.address).unwrap();
        let driver = driver.as_ref();
        expect(driver, row.scheme, State::Off).await;
        done(row.scheme, driver.off().await);
        done(row.scheme, driver.on().await);
        expect(driver, row.scheme, State::On).await;
        done(row.scheme, driver.on().await);
        done(row.scheme, driver.boot_next(BootDevice::Network).await);
        done(row.scheme, driver.boot_next(BootDevice::Network).await);
        let told = driver.next_boot().await.unwrap();
        // ipmi_sim keeps the device, but not the bit that says that it counts.
        let silent = [NextBoot::Unknown, NextBoot::Standing].contains(&told) && ["qemu", "ipmi"].contains(&row.scheme);
        assert!(silent || told == NextBoot::Once(BootDevice::Network), "{}: {told:?}", row.scheme);
        done(row.scheme, driver.cycle().await);
        expect(driver, row.scheme, State::On).await;
        done(row.scheme, driver.boot_next(BootDevice::Disk).await);
        done(row.scheme, driver.reset().await);
        expect(driver, row.scheme, State::On).await;
        done(row.scheme, driver.off().await);
        expect(driver, row.scheme, State::Off).await;
        done(row.scheme, driver.off().await);
        done(row.scheme, driver.cycle().await);
        expect(driver, row.scheme, State::On).await;
        done(row.scheme, driver.off().await);
        expect(driver, row.scheme, State::Off).await;
    }
}

fn done(scheme: &str, answer: power::Result<Outcome>) {
    assert_eq!(answer.unwrap_or_else(|error| panic!("{scheme}: {error}")), Outcome::Done, "{scheme}");
}

async fn expect(driver: &dyn PowerDriver, scheme: &str, wanted: State) {
    assert_eq!(driver.state().await.unwrap_or_else(|error| panic!("{scheme}: {error}")), wanted, "{scheme}");
}

fn qemu_machine(folder: &Path) -> power::qemu::Machine {
    let text = format!(
        "name = \"tiny\"\nmac = \"52:54:00:00:00:01\"\nuuid = \"00000000-0000-0000-0000-000000000001\"\nmemory_mib = 32\n\
         firmware = \"bios\"\nrun_dir = \"{0}\"\nconsole = \"{0}/console.log\"\n",
        folder.display()
    );
    std::fs::write(folder.join("vm.toml"), &text).unwrap();
    power::qemu::Machine::from_toml(&text).unwrap()
}

fn qemu_rig() -> Rig {
    needs("qemu-system-x86_64");
    let folder = tempfile::tempdir().unwrap();
    qemu_machine(folder.path());
    Rig { address: format!("qemu:{}/vm.toml", folder.path().display()), simulator: None, _controller: None, folder }
}

#[tokio::test]
async fn a_network_boot_of_a_virtual_machine_is_forgotten_after_one_start() {
    let rig = qemu_rig();
    let machine = qemu_machine(rig.folder.path());
    let driver = open(&rig.address).unwrap();
    driver.boot_next(BootDevice::Network).await.unwrap();
    driver.on().await.unwrap();
    assert!(words(machine.process_id().unwrap()).contains("mac=52:54:00:00:00:01,bootindex=0"));
    driver.cycle().await.unwrap();
    assert!(words(machine.process_id().unwrap()).contains("mac=52:54:00:00:00:01,bootindex=100"));
    driver.off().await.unwrap();
}

#[tokio::test]
async fn a_killed_virtual_machine_is_off_and_its_pid_file_names_nobody_else() {
    let rig = qemu_rig();
    let machine = qemu_machine(rig.folder.path());
    let driver = open(&rig.address).unwrap();
    std::fs::write(rig.folder.path().join("pid"), format!("{}\n", std::process::id())).unwrap();
    assert_eq!(driver.state().await.unwrap(), State::Off, "this test is not a virtual machine");
    driver.on().await.unwrap();
    machine.kill().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while driver.state().await.unwrap() != State::Off {
        assert!(Instant::now() < deadline, "a killed machine still counts as on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    driver.on().await.unwrap();
    assert_eq!(driver.state().await.unwrap(), State::On);
    driver.off().await.unwrap();
}

#[tokio::test]
async fn two_callers_start_one_virtual_machine_once() {
    let rig = qemu_rig();
    let (one, two) = (open(&rig.address).unwrap(), open(&rig.address).unwrap());
    let (first, second) = tokio::join!(one.on(), two.on());
    first.unwrap();
    second.unwrap();
    one.off().await.unwrap();
    assert_eq!(two.state().await.unwrap(), State::Off);
}

#[tokio::test]
async fn what_qemu_complains_about_is_in_the_error() {
    let rig = qemu_rig();
    let mut machine = qemu_machine(rig.folder.path());
    machine.extra = vec!["-device".into(), "no-such-device".into()];
    std::fs::write(rig.folder.path().join("vm.toml"), machine.to_toml().unwrap()).unwrap();
    let error = open(&rig.address).unwrap().on().await.unwrap_err();
    assert!(error.to_string().contains("no-such-device"), "{error}");
    assert_eq!(error.advice(), Advice::Refuse);
}

fn words(pid: i32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap()).replace('\0', " ")
}

fn ipmi_rig() -> Rig {
    ipmi_rig_with(ipmi_sim::CHASSIS)
}

fn ipmi_rig_with(chassis: &str) -> Rig {
    needs("ipmi_sim");
    needs("ipmitool");
    let folder = tempfile::tempdir().unwrap();
    let (simulator, address) = ipmi_sim::start(folder.path(), chassis);
    Rig { address, simulator: Some(simulator), _controller: None, folder }
}

/// Our own controller before a machine in memory.
async fn redfish_rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let machine = open("fake:contract-redfish").unwrap();
    let controller =
        VirtualBmc::start(listener, "admin", "secret", Rules::default(), vec![("1".into(), machine)]).unwrap();
    std::fs::write(folder.path().join("password"), "secret\n").unwrap();
    let at = controller.address();
    let address = format!("redfish+http://admin@{at}?password_file={}/password&off_seconds=0", folder.path().display());
    Rig { address, simulator: None, _controller: Some(controller), folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_boot_reaches_the_controller() {
    let rig = ipmi_rig();
    open(&format!("{}&efi=yes", rig.address)).unwrap().boot_next(BootDevice::Network).await.unwrap();
    assert_eq!(std::fs::read_to_string(rig.folder.path().join("boot")).unwrap().trim(), "pxe");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_lies_or_answers_late_is_not_believed() {
    let deaf = ipmi_rig_with(&ipmi_sim::CHASSIS.replace("touch FOLDER/on", "true"));
    let short = deaf.address.replace("settle_seconds=20", "settle_seconds=2");
    let error = open(&short).unwrap().on().await.unwrap_err();
    assert!(error.to_string().contains("accepted `power on`, but 2 s later"), "{error}");
    assert_eq!(error.advice(), Advice::Retry);

    let forgetful = ipmi_rig_with(&ipmi_sim::CHASSIS.replace("echo \"$2\" > FOLDER/boot", "true"));
    let error = open(&forgetful.address).unwrap().boot_next(BootDevice::Network).await.unwrap_err();
    assert!(error.to_string().contains("accepted the boot order `pxe`, but reports"), "{error}");

    let late = ipmi_rig_with(
        &ipmi_sim::CHASSIS.replace("touch FOLDER/on", "(sleep 2; touch FOLDER/on) >/dev/null 2>&1 & true"),
    );
    let driver = open(&late.address).unwrap();
    done("ipmi", driver.on().await);
    expect(driver.as_ref(), "ipmi", State::On).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_login_is_refused_with_what_to_do() {
    let rig = ipmi_rig();
    open(&rig.address).unwrap().state().await.unwrap();
    std::fs::write(rig.folder.path().join("password"), "wrong\n").unwrap();
    let error = open(&rig.address).unwrap().state().await.unwrap_err();
    assert!(error.to_string().contains("password is wrong"), "{error}");
    assert_eq!(error.advice(), Advice::Refuse);
    let nobody = rig.address.replace("admin@", "nobody@");
    assert!(open(&nobody).unwrap().state().await.unwrap_err().to_string().contains("does not know this user"));
    std::fs::remove_file(rig.folder.path().join("password")).unwrap();
    assert!(open(&rig.address).unwrap().state().await.unwrap_err().to_string().contains("password file"));
    let name = format!("ipmi admin@{}", rig.address.split(['@', '?']).nth(1).unwrap());
    let counts = power::controllers().into_iter().find(|counts| counts.controller == name).unwrap();
    assert_eq!(counts.logins_refused, 1, "a refused password is not tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_or_unknown_controller_is_given_up_in_time() {
    let rig = ipmi_rig();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let password = rig.folder.path().join("password");
    let at = |host: &str| {
        format!(
            "ipmi://admin@{host}?password_file={}&cipher=3&attempts=1&call_seconds=2&limit_seconds=10",
            password.display()
        )
    };
    let started = Instant::now();
    let error = open(&at(&silent.local_addr().unwrap().to_string())).unwrap().state().await.unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    let error = open(&at("no-such-host.invalid")).unwrap().state().await.unwrap_err();
    assert!(error.to_string().contains("no route"), "{error}");
}

fn needs(tool: &str) {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).exists()));
    assert!(found, "{tool} is not installed; run `cargo xtask test`, which installs it");
}
