//! The boot order around one network boot, and a machine that is deployed again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{RACK, Site, WHOLE, all_running, deploy, disk_bytes, finished, node_is, prepare, small_image, until};
use power::qemu::{Firmware, Machine};
use power::{BootDevice, PowerDriver};
use rackswarm_lab::demo::work;
use rackswarm_lab::netns::{Namespace, Plan};
use rackswarm_lab::scratch::Scratch;
use rackswarm_lab::tool;
use rackswarm_lab::vm::{self, Machines, Spec};

/// What the small image says on the console when its own system is up.
const UP: &str = "is up after";
/// From power-on to the small system's word, under emulation on a loaded host.
const BOOT: Duration = Duration::from_secs(240);
/// The registry's name of the changed image, and how much was added to it: some 4 % of what is used.
const CHANGED: &str = "changed";
const ADDED_BYTES: u64 = 1 << 20;

#[test]
fn vm_a_running_machine_is_given_a_changed_image_of_which_the_change_travels_and_needs_no_server_afterwards() {
    let mut site = Site::new(vec![Spec::new("node1", Firmware::Bios, disk_bytes())], "", None);
    let changed = site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        all_running(&deploy(&client).await?);
        let changed = changed_image(lab.scratch.path());
        let image = work::import(&client, CHANGED, &changed, |_| ()).await?;
        let begun = work::deploy_to_rack(&client, CHANGED, RACK).await?;
        all_running(&finished(&client, begun.id, WHOLE).await?);
        let node = node_is(&client, "node1", "it runs", WHOLE, |node| node.deployed.is_some()).await?;
        assert_eq!(node.attempt, 2, "each deployment took one attempt");
        assert_eq!(node.deployed.map(|deployed| deployed.digest), Some(image.digest));
        let report = client.report_of(begun.id).await?;
        let received = report.received_bytes;
        // The file, what the file system wrote about it, and what the first system had changed on its disk: 1.4 MB of 29.
        assert!(received >= ADDED_BYTES, "{received} bytes are less than the change");
        assert!(received < image.used_bytes / 10, "{received} of {} bytes travelled again", image.used_bytes);
        Ok(changed)
    });
    site.stop_server();
    let machine = site.lab.machines.get("node1").unwrap().clone();
    let said = vm::console(&machine).len();
    act(async |driver| driver.cycle().await, &machine);
    until("the machine boots its disk without the server", BOOT, || vm::console(&machine)[said..].contains(UP));
    site.start_server();
    site.with_client(async |_, client| {
        let begun = client.status().await?.started_at;
        node_is(&client, "node1", "its daemon beats again", BOOT, |node| node.heard.is_some_and(|heard| heard > begun))
            .await?;
        Ok(())
    });
    site.stop_server();
    site.check_disks_of(&changed, &["node1"]);
}

/// The image with one more file in its system.
fn changed_image(folder: &Path) -> PathBuf {
    let (image, content) = (folder.join("changed.raw"), folder.join("content"));
    tool::run("cp", ["--sparse=always", &small_image().display().to_string(), &image.display().to_string()]).unwrap();
    let words = (0..u32::try_from(ADDED_BYTES).unwrap() / 4).map(|n| n.wrapping_mul(2_654_435_761));
    std::fs::write(&content, words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let table = gptman::GPT::find_from(&mut std::fs::File::open(&image).unwrap()).unwrap();
    // The last partition is the root's.
    let root = table.iter().filter(|(_, entry)| entry.is_used()).map(|(_, entry)| entry.starting_lba).max().unwrap();
    let place = format!("{}?offset={}", image.display(), root * table.sector_size);
    tool::run("debugfs", ["-w", "-R", &format!("write {} added", content.display()), &place]).unwrap();
    image
}

#[test]
fn vm_bios_order_is_disk_first_after_one_network_boot() {
    order(Firmware::Bios, "Booting from ROM");
}

#[test]
fn vm_uefi_order_is_disk_first_after_one_network_boot() {
    order(Firmware::UefiPxe, ">>Start PXE over IPv4");
}

/// Without any server: the first start asks the network, a reset of the guest and a power cycle ask the disk.
fn order(firmware: Firmware, asks_network: &str) {
    let scratch = Scratch::new(&std::env::temp_dir()).unwrap();
    let namespace = Namespace::new(&Plan { taps: 1, rate_mbit: None }).unwrap();
    let mut machines = Machines::new(scratch.path(), namespace.name());
    let machine = machines.add(&Spec::new("node1", firmware, 1 << 20)).unwrap().clone();
    let disk = machine.disks[0].path.display().to_string();
    tool::run("cp", ["--sparse=always", &small_image().display().to_string(), &disk]).unwrap();

    act(async |driver| driver.boot_next(BootDevice::Network).await, &machine);
    act(async |driver| driver.on().await, &machine);
    until("the first start asks the network", BOOT, || vm::console(&machine).contains(asks_network));
    let said = vm::console(&machine).len();
    reset(&machine);
    until("the reset machine boots its disk", BOOT, || vm::console(&machine)[said..].contains(UP));
    assert!(!vm::console(&machine)[said..].contains(asks_network));

    let said = vm::console(&machine).len();
    act(async |driver| driver.cycle().await, &machine);
    until("the cycled machine boots its disk", BOOT, || vm::console(&machine)[said..].contains(UP));
    assert!(!vm::console(&machine)[said..].contains(asks_network));
    act(async |driver| driver.off().await, &machine);
}

fn act(work: impl AsyncFnOnce(&dyn PowerDriver) -> power::Result<power::Outcome>, machine: &Machine) {
    let driver = power::open(&vm::power_address(machine)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(work(driver.as_ref())).unwrap(), power::Outcome::Done);
}

/// Resets the guest as its own operating system would.
fn reset(machine: &Machine) {
    let mut stream = UnixStream::connect(machine.run_dir.join("qmp")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    answers.next().unwrap().unwrap();
    for command in ["qmp_capabilities", "system_reset"] {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").unwrap();
        answers.next().unwrap().unwrap();
    }
}
