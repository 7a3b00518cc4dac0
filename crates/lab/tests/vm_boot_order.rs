//! The order in which deployed machines boot, who sets it, and what happens where firmware ignores it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use anyhow::Result;
use api::client::Client;
use api::operator::NewDeployment;
use common::{IMAGE, Site, WHOLE, all_running, deploy, disk_bytes, finished, node_is, prepare};
use fleet::life::Stage;
use fleet::rollout::Rollout;
use power::qemu::{Firmware, Machine, StandingOrder};
use rackswarm_lab::vm::{self, Spec, power_address};

/// What firmware says before it asks the network.
const ASKS_NETWORK: &str = ">>Start PXE over IPv4";
/// What the small image says on the console when its own system is up.
const UP: &str = "is up after";
/// What process 1 says when it starts the deployed kernel by itself.
const JUMP: &str = "the deployed kernel is started without the firmware";
/// From power-on to the small system's word; edk2 tries all ways of the network first where it ignores the order.
const BOOT: Duration = Duration::from_secs(400);

fn machine(firmware: Firmware, order: StandingOrder) -> Vec<Spec> {
    vec![Spec { order, ..Spec::new("node1", firmware, disk_bytes()) }]
}

/// The lines of a kind in its timeline.
async fn told(client: &Client, kind: &str, begins: &str) -> Result<Vec<String>> {
    let lines = client.timeline(&"node1".parse()?).await?;
    Ok(lines.into_iter().filter(|l| l.kind == kind && l.text.starts_with(begins)).map(|l| l.text).collect())
}

/// Waits until the console has said this behind `said`, without holding up connections.
async fn says(machine: &Machine, said: usize, what: &str) {
    let begun = Instant::now();
    while !vm::console(machine)[said..].contains(what) {
        assert!(begun.elapsed() < BOOT, "it never says `{what}`");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn vm_the_agent_puts_the_disk_first_in_the_firmware_and_kexec_goes_without_it() {
    let mut site = Site::new(machine(Firmware::UefiPxe, StandingOrder::Firmware), "", None);
    site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        // The one-time network boot leaves the network in front of what this firmware remembers.
        all_running(&deploy(&client).await?);
        let set = told(&client, "post_action_done", "boot_order done").await?;
        assert!(
            set[0].contains("set and read back from the firmware: Boot") && set[0].contains("(Rackswarm)"),
            "{set:?}"
        );
        assert!(told(&client, "sent_to_disk", "").await?.is_empty(), "it booted its disk at once");

        // A power cycle by hand, with no order from outside: what the firmware remembers rules.
        let machine = lab.machines.get("node1")?;
        let said = vm::console(machine).len();
        power::open(&power_address(machine))?.cycle().await?;
        says(machine, said, UP).await;
        assert!(!vm::console(machine)[said..].contains(ASKS_NETWORK), "it asked the network first");

        // A second agent finds what the first one left, after boots of the firmware in between. It does not need it now.
        let rollout = Rollout { kexec: Some(true), ..Rollout::default() };
        let wanted =
            NewDeployment { image: IMAGE.into(), nodes: vec!["node1".parse()?], rollout, ..NewDeployment::default() };
        let begun = client.deploy(&wanted).await?;
        all_running(&finished(&client, begun.id, WHOLE).await?);
        let set = told(&client, "post_action_done", "boot_order done").await?;
        assert_eq!(set.len(), 2, "{set:?}");
        let loaded = told(&client, "post_action_done", "kexec done").await?;
        assert!(loaded.len() == 1 && loaded[0].contains("is started without the firmware"), "{loaded:?}");
        let console = vm::console(machine);
        let (_, after) = console.split_once(JUMP).expect("it says so");
        assert!(after.contains(UP), "{after}");
        for firmware in ["BdsDxe", ASKS_NETWORK, "GRUB"] {
            assert!(!after.contains(firmware), "{firmware}: {after}");
        }
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}

#[test]
fn vm_a_uefi_machine_whose_firmware_ignores_the_order_reaches_its_disk() {
    ignores_the_order(Firmware::UefiPxe);
}

#[test]
fn vm_a_bios_machine_whose_firmware_ignores_the_order_reaches_its_disk() {
    ignores_the_order(Firmware::Bios);
}

fn ignores_the_order(firmware: Firmware) {
    let mut site = Site::new(machine(firmware, StandingOrder::Network), "", None);
    site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        all_running(&deploy(&client).await?);
        // UEFI tries the card's PXE and its HTTP boot, one after the other, before it comes to the disk.
        let sent = told(&client, "sent_to_disk", "asked for a boot script").await?;
        assert!((1..=2).contains(&sent.len()), "{sent:?}");
        let node = node_is(&client, "node1", "it beats", WHOLE, |node| node.beat.is_some()).await?;
        assert_eq!((node.stage, node.tries, node.unexpected_total), (Stage::Running, 1, 0));
        let deployed = node.deployed.expect("a running node has proved what it runs");
        assert_eq!(deployed.digest, client.image(IMAGE).await?.digest);
        assert!(deployed.disk.contains("LAB-0-0"), "{}", deployed.disk);

        // Running machines that start again by themselves do so too, for ever.
        let machine = lab.machines.get("node1")?;
        let said = vm::console(machine).len();
        power::open(&power_address(machine))?.cycle().await?;
        says(machine, said, UP).await;
        let again = told(&client, "sent_to_disk", "asked for a boot script").await?;
        assert!(again.len() > sent.len() && again[sent.len()].contains("is deployed"), "{again:?}");
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}
