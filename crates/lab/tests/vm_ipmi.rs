//! A machine behind an IPMI controller (OpenIPMI's simulator, which drives the lab's machine): found on the network,
//! approved, deployed, and given a changed image of which only the change travels.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use api::client::Client;
use api::operator::{NewDeployment, NodeSettings};
use common::{IMAGE, Site, WHOLE, all_running, assert_untouched, disk_bytes, finished, node_is, small_image};
use fleet::discovery::CheckOutcome;
use fleet::ids::{Mac, NodeName};
use fleet::life::Stage;
use power::BootDevice;
use power::qemu::{Firmware, Machine};
use rackswarm_lab::check::Golden;
use rackswarm_lab::demo::work;
use rackswarm_lab::rig::{Lab, from_environment};
use rackswarm_lab::vm::{Spec, power_address};
use rackswarm_lab::{netns, tool};

const CHANGED: &str = "changed";
const PORT: u16 = 8623;

/// The simulator, ended with its value.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the simulator in the lab's network, before this machine; answers its power address.
fn ipmi(lab: &Lab, machine: &Machine) -> (Controller, String) {
    let folder = lab.scratch.path().join("ipmi");
    std::fs::create_dir(&folder).unwrap();
    let program = from_environment("RACKSWARM_TEST_PROGRAM").unwrap().canonicalize().unwrap();
    let fill = |text: &str| {
        text.replace("FOLDER", &folder.display().to_string())
            .replace("PROGRAM", &program.display().to_string())
            .replace("MACHINE", &power_address(machine))
            .replace("PID", &machine.pid_file().display().to_string())
            .replace("ADDRESS", &format!("{} {PORT}", netns::SERVER))
    };
    for (name, text) in [("chassis.sh", CHASSIS), ("lan.conf", LAN), ("commands", COMMANDS), ("password", "secret\n")] {
        std::fs::write(folder.join(name), fill(text)).unwrap();
    }
    let here = folder.display();
    let simulator = Command::new("ip")
        .args(["netns", "exec", lab.namespace.name(), "ipmi_sim", "-n"])
        .args(["-c", &format!("{here}/lan.conf"), "-f", &format!("{here}/commands"), "-s", &here.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address = format!(
        "ipmi://admin@{}:{PORT}?password_file={here}/password&cipher=3&attempts=5&settle_seconds=20",
        netns::SERVER
    );
    (Controller(simulator), address)
}

const COMMANDS: &str = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";

const LAN: &str = r#"
name "node1"
set_working_mc 0x20
  startlan 1
    addr ADDRESS
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "/bin/sh FOLDER/chassis.sh 0x20"
  user 2 true "admin" "secret" admin 10 none md2 md5 straight
"#;

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
else
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
fi >/dev/null 2>&1
exit 0
"#;

/// The image with one more file of a megabyte in its system.
fn changed_image(lab: &Lab) -> PathBuf {
    let (image, content) = (lab.scratch.path().join("changed.raw"), lab.scratch.path().join("content"));
    tool::run("cp", ["--sparse=always", &small_image().display().to_string(), &image.display().to_string()]).unwrap();
    let bytes: Vec<u8> = (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&content, bytes).unwrap();
    let start = root_start_bytes(&image);
    let file = format!("{}?offset={start}", image.display());
    tool::run("debugfs", ["-w", "-R", &format!("write {} added", content.display()), &file]).unwrap();
    image
}

/// The last partition is the root's.
fn root_start_bytes(image: &Path) -> u64 {
    let table = gptman::GPT::find_from(&mut std::fs::File::open(image).unwrap()).unwrap();
    let last = table.iter().filter(|(_, entry)| entry.is_used()).map(|(_, entry)| entry.starting_lba).max().unwrap();
    last * table.sector_size
}

async fn deploy(client: &Client, image: &str, node: &NodeName) -> Result<()> {
    let wanted = NewDeployment { image: image.into(), nodes: vec![node.clone()], ..NewDeployment::default() };
    let begun = client.deploy(&wanted).await?;
    all_running(&finished(client, begun.id, WHOLE).await?);
    Ok(())
}

#[test]
fn vm_a_machine_behind_ipmi_is_found_approved_deployed_and_given_a_changed_image_of_which_the_change_travels() {
    let machines = vec![Spec::new("node1", Firmware::Bios, disk_bytes())];
    let mut site = Site::new(machines, "[discovery]\ninventory = true\nlisten_seconds = 0\n", None);
    let changed = site.with_client(async |lab, client| {
        let machine = lab.machines.get("node1")?;
        let (_controller, address) = ipmi(lab, machine);
        let name = NodeName::of_stranger(machine.mac.parse::<Mac>()?);
        // Somebody starts it from the network by its controller.
        let driver = power::open(&address)?;
        driver.boot_next(BootDevice::Network).await?;
        driver.on().await?;
        let begun = Instant::now();
        while client.node(&name).await.is_err() {
            assert!(begun.elapsed() < WHOLE, "it does not show itself");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let told = |node: &api::operator::NodeView| node.inventory.is_some();
        let node = node_is(&client, name.as_str(), "it has told what it is", WHOLE, told).await?;
        let checks = node.inventory.expect("it was waited for").findings.checks;
        assert!(
            checks.iter().any(|check| check.name == "disk read" && check.outcome == CheckOutcome::Passed),
            "{checks:?}"
        );
        assert!(checks.iter().all(|check| check.outcome != CheckOutcome::Failed), "{checks:?}");
        assert_untouched(&machine.disks[0].path);

        client.approve_node(&name).await?;
        client.set_node(&name, &NodeSettings { power: Some(address), ..NodeSettings::default() }).await?;
        work::import(&client, IMAGE, &small_image(), |_| ()).await?;
        deploy(&client, IMAGE, &name).await?;
        let node = client.node(&name).await?;
        assert_eq!((node.stage, node.tries), (Stage::Running, 1));

        let changed = changed_image(lab);
        let image = work::import(&client, CHANGED, &changed, |_| ()).await?;
        deploy(&client, CHANGED, &name).await?;
        let node = client.node(&name).await?;
        assert_eq!(node.deployed.as_ref().map(|deployed| deployed.digest), Some(image.digest));
        let received = node.progress.expect("it fetched").received_bytes;
        // The file, what the file system wrote about it, and what the first deployment's post actions had changed.
        assert!(received < image.used_bytes / 3, "{received} of {} bytes travelled again", image.used_bytes);
        Ok(changed)
    });
    site.stop_server();
    site.lab.machines.kill_all().unwrap();
    let golden = Golden::read(&changed, site.lab.scratch.path()).unwrap();
    let disk = &site.lab.machines.get("node1").unwrap().disks[0].path;
    golden.compare(disk).unwrap().verdict().unwrap();
}
