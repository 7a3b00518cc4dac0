//! A machine that nobody has named shows itself on the network, tells what it is and where it is plugged in, and is deployed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::operator::{NewDeployment, NodeSettings};
use common::{IMAGE, Site, WHOLE, all_running, assert_untouched, disk_bytes, finished, node_is, small_image};
use fleet::discovery::CheckOutcome;
use fleet::ids::{Mac, NodeName};
use fleet::life::Stage;
use power::BootDevice;
use power::qemu::Firmware;
use rackswarm_lab::demo::work;
use rackswarm_lab::netns;
use rackswarm_lab::rig::Lab;
use rackswarm_lab::vm::{Spec, power_address};

/// From power-on until the agent has told what the machine is.
const BOOT: Duration = Duration::from_secs(300);

/// A switch that says where machines are plugged in (LLDP), ended with its value.
struct Switch(Child);

impl Switch {
    fn start(lab: &Lab) -> Switch {
        let say = format!(
            "import socket, time\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind(('{}', 0))\n\
             tlv = lambda kind, value: ((kind << 9) | len(value)).to_bytes(2, 'big') + value\n\
             said = tlv(1, b'\\x04RT\\0\\0\\0\\1') + tlv(2, b'\\x05Ethernet7') + tlv(3, b'\\0\\x78')\n\
             said += tlv(5, b'leaf-r7') + tlv(0, b'')\n\
             while True:\n  s.send(b'\\x01\\x80\\xc2\\0\\0\\x0eRT\\0\\0\\0\\1\\x88\\xcc' + said)\n  time.sleep(1)\n",
            netns::BRIDGE
        );
        let words = ["netns", "exec", lab.namespace.name(), "/usr/bin/python3", "-c", &say];
        Switch(Command::new("ip").args(words).stdin(Stdio::null()).spawn().expect("ip and python3 are there"))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn deploy(client: &api::client::Client, node: &NodeName) -> anyhow::Result<()> {
    work::import(client, IMAGE, &small_image(), |_| ()).await?;
    let wanted = NewDeployment { image: IMAGE.into(), nodes: vec![node.clone()], ..NewDeployment::default() };
    let begun = client.deploy(&wanted).await?;
    all_running(&finished(client, begun.id, WHOLE).await?);
    Ok(())
}

#[test]
fn vm_an_unknown_machine_is_inventoried_approved_and_deployed() {
    let machines = vec![Spec::new("node1", Firmware::Bios, disk_bytes())];
    let mut site = Site::new(machines, "[discovery]\ninventory = true\n", None);
    site.with_client(async |lab, client| {
        let _switch = Switch::start(lab);
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
        let card = &inventory.findings.cards[0];
        let switch = card.switch.as_ref().expect("it was heard");
        assert_eq!(
            (card.mac, card.link, switch.name.as_str(), switch.port.as_str()),
            (mac, true, "leaf-r7", "Ethernet7")
        );
        let of =
            |name: &str| inventory.findings.checks.iter().find(|check| check.name == name).map(|check| check.outcome);
        assert_eq!((of("disk read"), of("network")), (Some(CheckOutcome::Passed), Some(CheckOutcome::Passed)));
        assert_eq!(of("disk health"), Some(CheckOutcome::NotMade), "a virtual disk has no SMART");
        assert_untouched(&machine.disks[0].path);

        client.approve_node(&name).await?;
        let settings = NodeSettings { power: Some(power_address(machine)), ..NodeSettings::default() };
        client.set_node(&name, &settings).await?;
        deploy(&client, &name).await
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}
