//! Machines that the controller gets to know by itself: one that shows itself on the network, one that a controller lists.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use api::operator::{NewDeployment, NewSet, NodeSettings, PowerAction, PowerRequest, SyncOptions};
use common::{IMAGE, Site, WHOLE, all_running, assert_untouched, disk_bytes, finished, node_is, small_image};
use fleet::ids::{Mac, NodeName};
use fleet::life::Stage;
use fleet::node::Power;
use futures_util::StreamExt;
use power::BootDevice;
use power::qemu::Firmware;
use power::virtual_bmc::{Identity, Rules, VirtualBmc};
use rackswarm_lab::demo::work;
use rackswarm_lab::netns;
use rackswarm_lab::vm::{Spec, power_address};

/// From power-on until the agent has told what the machine is.
const BOOT: Duration = Duration::from_secs(300);

async fn deploy(client: &api::client::Client, node: &NodeName) -> anyhow::Result<()> {
    work::import(client, IMAGE, &small_image(), |_| ()).await?;
    let wanted = NewDeployment { image: IMAGE.into(), nodes: vec![node.clone()], racks: Vec::new() };
    let begun = client.deploy(&wanted).await?;
    all_running(&finished(client, begun.id, WHOLE).await?);
    Ok(())
}

#[test]
fn vm_an_unknown_machine_is_inventoried_approved_and_deployed() {
    let machines = vec![Spec::new("node1", Firmware::Bios, disk_bytes())];
    let mut site = Site::new(machines, "[discovery]\ninventory = true\n", None);
    site.with_client(async |lab, client| {
        let machine = lab.machines.get("node1")?;
        let mac: Mac = machine.mac.parse()?;
        let name = NodeName::of_stranger(mac);
        let driver = power::open(&power_address(machine))?;
        driver.boot_next(BootDevice::Network).await?;
        driver.on().await?;
        let told = |node: &api::operator::NodeView| node.inventory.is_some();
        // It is no node at all until it shows itself.
        let begun = std::time::Instant::now();
        while client.node(&name).await.is_err() {
            assert!(begun.elapsed() < BOOT, "it does not show itself");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let node = node_is(&client, name.as_str(), "it has told what it is", BOOT, told).await?;
        let inventory = node.inventory.expect("it was waited for");
        assert_eq!((node.approved, node.stage, inventory.disks.len()), (false, Stage::Enrolled, 1));
        assert!(inventory.product.contains("QEMU") && inventory.macs.contains(&mac), "{inventory:?}");
        assert_untouched(&machine.disks[0].path);

        client.approve_node(&name).await?;
        let settings = NodeSettings { power: Some(power_address(machine)), ..NodeSettings::default() };
        client.set_node(&name, &settings).await?;
        deploy(&client, &name).await
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}

#[test]
fn vm_a_machine_that_its_controller_lists_by_uuid_is_recognised_deployed_and_switched_off() {
    let mut site = Site::new(vec![Spec::new("node1", Firmware::Bios, disk_bytes())], "", None);
    site.with_client(async |lab, client| {
        let machine = lab.machines.get("node1")?;
        let password = lab.scratch.path().join("bmc-password");
        std::fs::write(&password, "open sesame\n")?;
        let listener = tokio::net::TcpListener::bind((netns::SERVER, 8800)).await?;
        // As many BMCs do, it does not tell the card that the machine boots through.
        let identity = Identity { macs: Vec::new(), uuid: Some(machine.uuid.to_string()) };
        let front = ("blade1".to_owned(), power::open(&power_address(machine))?, identity);
        let _bmc = VirtualBmc::start_known(listener, "admin", "open sesame", Rules::default(), vec![front])?;
        let set = NewSet {
            name: "chassis".parse()?,
            address: format!("redfish+http://admin@{}:8800", netns::SERVER),
            credentials_file: Some(password),
            rack: Some("r1".parse()?),
            unchecked: false,
        };
        assert_eq!(client.add_set(&set).await?.listed, Some(1));
        let report = client.sync_set(&set.name, SyncOptions::default()).await?;
        let name = report.rows[0].node.clone().expect("it was added");
        assert_eq!((name.as_str(), report.summary.as_str()), ("chassis-blade1", "1 added"));
        assert!(client.node(&name).await?.macs.is_empty());

        deploy(&client, &name).await?;
        let node = client.node(&name).await?;
        assert_eq!((node.stage, node.macs.len(), node.tries), (Stage::Running, 1, 1));
        let off =
            PowerRequest { action: PowerAction::Off, nodes: vec![name], racks: Vec::new(), force: false, attempts: 1 };
        let results: Vec<_> = client.power(&off).await?.collect().await;
        assert!(matches!(&results[..], [Ok(result)] if result.power == Power::Off), "{results:?}");
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}
