//! Machines that the controller gets to know by itself: one behind an IPMI controller that shows itself on the network, and
//! one that a Redfish controller lists.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "../../power/tests/ipmi_sim/mod.rs"]
mod ipmi_sim;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::operator::{NewDeployment, NewSet, NodeSettings, PowerAction, PowerRequest, SyncOptions};
use common::{IMAGE, Site, WHOLE, all_running, assert_untouched, disk_bytes, finished, node_is, small_image};
use fleet::discovery::CheckOutcome;
use fleet::ids::{Mac, NodeName};
use fleet::life::Stage;
use fleet::node::Power;
use futures_util::StreamExt;
use power::BootDevice;
use power::qemu::{Firmware, Machine};
use power::virtual_bmc::{Identity, Rules, VirtualBmc};
use rackswarm_lab::demo::work;
use rackswarm_lab::netns;
use rackswarm_lab::rig::{Lab, from_environment};
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
        end(&mut self.0);
    }
}

/// An IPMI controller before one of the lab's machines, ended with its value.
struct Controller(Child);

impl Controller {
    /// Answers its power address as well.
    fn start(lab: &Lab, machine: &Machine) -> (Controller, String) {
        let folder = lab.scratch.path().join("ipmi");
        std::fs::create_dir(&folder).unwrap();
        let program = from_environment("RACKSWARM_TEST_PROGRAM").unwrap().canonicalize().unwrap();
        let chassis = CHASSIS
            .replace("PROGRAM", &program.display().to_string())
            .replace("MACHINE", &power_address(machine))
            .replace("PID", &machine.pid_file().display().to_string());
        let address = SocketAddr::from((netns::SERVER, 8623));
        let (simulator, power) = ipmi_sim::start_in(lab.namespace.name(), &folder, &chassis, address);
        (Controller(simulator), power)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The boot device counts for one start, which the simulator leaves to its script.
const CHASSIS: &str = r#"
shift; verb=$1; shift
if [ "$verb" = get ]; then
  for what in "$@"; do
    case $what in
      power) if [ -f PID ] && kill -0 "$(cat PID)" 2>/dev/null; then echo power:1; else echo power:0; fi ;;
      boot) echo "boot:$(cat FOLDER/boot 2>/dev/null || echo default)" ;;
    esac
  done
  exit 0
fi
exec >>FOLDER/said 2>&1
case $1 in
  power)
    if [ "$2" = 1 ]; then
      if [ "$(cat FOLDER/boot 2>/dev/null)" = pxe ]; then PROGRAM lab power next-boot MACHINE network; fi
      rm -f FOLDER/boot
      PROGRAM lab power on MACHINE
    else
      PROGRAM lab power off MACHINE
    fi ;;
  boot) echo "$2" > FOLDER/boot ;;
esac
"#;

async fn deploy(client: &api::client::Client, node: &NodeName) -> anyhow::Result<()> {
    work::import(client, IMAGE, &small_image(), |_| ()).await?;
    let wanted = NewDeployment { image: IMAGE.into(), nodes: vec![node.clone()], ..NewDeployment::default() };
    let begun = client.deploy(&wanted).await?;
    all_running(&finished(client, begun.id, WHOLE).await?);
    Ok(())
}

#[test]
fn vm_an_unknown_machine_behind_ipmi_is_inventoried_approved_and_deployed() {
    let machines = vec![Spec::new("node1", Firmware::Bios, disk_bytes())];
    let mut site = Site::new(machines, "[discovery]\ninventory = true\n", None);
    site.with_client(async |lab, client| {
        let _switch = Switch::start(lab);
        let machine = lab.machines.get("node1")?;
        let mac: Mac = machine.mac.parse()?;
        let name = NodeName::of_stranger(mac);
        // Somebody starts it from the network by its controller.
        let (_controller, address) = Controller::start(lab, machine);
        let driver = power::open(&address)?;
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
        client.set_node(&name, &NodeSettings { power: Some(address), ..NodeSettings::default() }).await?;
        deploy(&client, &name).await?;
        let node = client.node(&name).await?;
        assert_eq!((node.stage, node.tries, node.unexpected_total), (Stage::Running, 1, 0));
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}

#[test]
fn vm_a_machine_that_its_redfish_controller_lists_by_uuid_is_recognised_deployed_and_switched_off() {
    // Over UEFI, whose own request comes before that of iPXE.
    let mut site = Site::new(vec![Spec::new("node1", Firmware::UefiPxe, disk_bytes())], "", None);
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
        assert_eq!((node.stage, node.macs.len(), node.tries, node.unexpected_total), (Stage::Running, 1, 1, 0));
        let off =
            PowerRequest { action: PowerAction::Off, nodes: vec![name], racks: Vec::new(), force: false, attempts: 1 };
        let results: Vec<_> = client.power(&off).await?.collect().await;
        assert!(matches!(&results[..], [Ok(result)] if result.power == Power::Off), "{results:?}");
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}
