//! A tree of files is deployed to a machine that makes the layout itself: a mirror, volumes on it, and an encrypted file
//! system whose key lies on the root. The machine starts from it, proves that it runs it, and says what it is made of; by
//! UEFI it does so again when its first disk is gone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Command;

use api::operator::{NewDeployment, NodeSettings};
use common::{RACK, Site, all_running, finished, must, node_is, pack_debian, until};
use fleet::post::{PostSettings, Script};
use power::qemu::{Firmware, Machine, StandingOrder};
use rackswarm_lab::demo::work;
use rackswarm_lab::rig::from_environment;
use rackswarm_lab::vm::{self, Spec, power_address};
use std::time::Duration;

const TREE: &str = "tree";
const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 1700 * MIB;
/// Unpacking ten thousand files and making an initramfs take most of it under emulation.
const WHOLE: Duration = Duration::from_secs(1200);
const LAYOUT: &str = r#"
[[disk]]
name = "a"
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "vault", size = "160MiB" },
    { name = "raid", size = "rest" },
]
[[disk]]
name = "b"
rule = { path = "/dev/vdb" }
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "vault", size = "160MiB" },
    { name = "raid", size = "rest" },
]
[[raid]]
name = "mirror"
level = 1
members = ["a.raid", "b.raid"]
[[raid]]
name = "vault"
level = 1
members = ["a.vault", "b.vault"]
[[raid]]
name = "efi"
level = 1
members = ["a.esp", "b.esp"]
[[luks]]
name = "secret"
on = "vault"
key_file = "/etc/cryptsetup-keys.d/secret.key"
[[group]]
name = "vg"
members = ["mirror"]
volume = [{ name = "swap", size = "64MiB" }, { name = "root", size = "rest" }]
[[mount]]
on = "vg/root"
kind = "ext4"
at = "/"
[[mount]]
on = "vg/swap"
kind = "swap"
[[mount]]
on = "secret"
kind = "ext4"
at = "/srv"
[[mount]]
on = "efi"
kind = "vfat"
at = "/boot/efi"
"#;
const PACKAGES: [&str; 4] = ["mdadm", "lvm2", "cryptsetup", "xfsprogs"];
/// Has the system tell on its console what it is made of, at every start.
const SCRIPT: &str = r#"#!/bin/sh
set -e
cat > /usr/local/sbin/tell <<'END'
#!/bin/sh
echo "TOLD begins"
cat /proc/mdstat
for array in /dev/md/mirror /dev/md/vault /dev/md/efi; do mdadm --detail "$array" | grep -E 'Raid Devices|Working Devices|Failed Devices|Raid Level'; done
echo "TOLD root $(findmnt -no SOURCE,FSTYPE /)"
echo "TOLD srv $(findmnt -no SOURCE,FSTYPE /srv)"
echo "TOLD efi $(findmnt -no FSTYPE /boot/efi) $(ls /boot/efi/EFI/BOOT/BOOTX64.EFI)"
echo "TOLD swap $(swapon --show=NAME --noheadings | xargs -n1 realpath | xargs -n1 lsblk -no NAME)"
echo "TOLD $(cryptsetup status secret | grep -E 'type|device' | xargs)"
echo "TOLD key $(stat -c '%a %U %s' /etc/cryptsetup-keys.d/secret.key)"
echo "TOLD left $(ls -A / | grep -c rackswarm)"
echo "TOLD ends"
END
chmod 755 /usr/local/sbin/tell
cat > /etc/systemd/system/tell.service <<'END'
[Unit]
After=local-fs.target swap.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/tell
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
[Install]
WantedBy=multi-user.target
END
ln -s ../tell.service /etc/systemd/system/multi-user.target.wants/tell.service
"#;

#[test]
fn vm_long_a_tree_is_deployed_to_a_mirror_with_volumes_and_an_encrypted_file_system_by_bios() {
    // The second time its own arrays of the first are in the way, and nobody is asked about them.
    deployed_to_a_layout("bios", Firmware::Bios, 2).stop_server();
}

#[test]
fn vm_a_tree_is_deployed_to_mirrors_by_uefi_and_starts_again_without_its_first_disk() {
    let mut site = deployed_to_a_layout("uefi", Firmware::UefiPxe, 1);
    site.with_client(async |lab, client| {
        let lines = client.timeline(&"uefi".parse()?).await?;
        let set = lines.into_iter().find(|line| line.text.starts_with("boot_order done")).expect("it says so").text;
        assert_eq!(set.matches("(Rackswarm)").count(), 2, "an entry for each disk: {set}");

        let machine = lab.machines.get("uefi")?;
        let said = vm::console(machine).len();
        lab.machines.kill_all()?;
        let left = Machine { disks: machine.disks[1..].to_vec(), ..machine.clone() };
        assert_eq!(left.disks[0].serial, "LAB-0-1");
        lab.machines.redefine(&left)?;
        power::open(&power_address(machine))?.on().await?;
        let told = || vm::console(machine).split_off(said);
        until("the system has told what it is made of", WHOLE, || told().contains("TOLD ends"));
        assert!(!told().contains("PXE"), "the second entry started it, before the network was asked");
        expect_layout(&told(), 1);
        Ok(())
    });
    site.stop_server();
}

/// Deploys and waits for the proof, so many times.
fn deployed_to_a_layout(name: &str, firmware: Firmware, times: u32) -> Site {
    let disks_bytes = vec![DISK_BYTES; 2];
    // By UEFI what the agent has told the firmware rules, and nothing from outside.
    let order = if firmware.is_uefi() { StandingOrder::Firmware } else { StandingOrder::Disk };
    let machine = Spec { memory_mib: 768, disks_bytes, order, ..Spec::new(name, firmware, DISK_BYTES) };
    let mut site = Site::new(vec![machine], "", None);
    let folder = site.lab.scratch.path().to_owned();
    let (archive, layout) = (folder.join("tree.tar.zst"), folder.join("layout.toml"));
    pack_debian(&folder, &archive, &PACKAGES);
    std::fs::write(&layout, LAYOUT).unwrap();

    site.with_client(async |lab, client| {
        let mut import = Command::new(from_environment("RACKSWARM_TEST_PROGRAM").unwrap());
        import.args(["image", "import", "--name", TREE, "--layout"]).arg(&layout).arg(&archive);
        must(import.env("RACKSWARM_SERVER", &lab.plan().url).env("RACKSWARM_TOKEN_FILE", &lab.plan().token_file));
        let image = client.image(TREE).await?;
        assert_eq!(image.layout.as_ref().map(|layout| layout.arrays.len()), Some(3));
        work::add_machines(&client, RACK, lab.machines.list()).await?;
        let node = name.parse()?;
        let script = Script { text: SCRIPT.to_owned(), time_limit_seconds: 120 };
        let post = Some(PostSettings { script: Some(script), ..PostSettings::default() });
        client.set_node(&node, &NodeSettings { post, ..NodeSettings::default() }).await?;

        for attempt in 1..=times {
            let nodes = vec![node.clone()];
            let begun =
                client.deploy(&NewDeployment { image: TREE.to_owned(), nodes, ..NewDeployment::default() }).await?;
            all_running(&finished(&client, begun.id, WHOLE).await?);
            let running = node_is(&client, name, "it beats", WHOLE, |node| node.beat.is_some()).await?;
            let deployed = running.deployed.expect("it has proved what it runs");
            assert_eq!((deployed.digest, deployed.attempt), (image.digest, attempt));
            assert_eq!(deployed.disk, "serial:LAB-0-0 + serial:LAB-0-1", "the root lies on both members");
            let told = || vm::console(lab.machines.get(name).unwrap());
            until("the system has told what it is made of", WHOLE, || {
                told().matches("TOLD ends").count() >= attempt as usize
            });
            expect_layout(told().rsplit("TOLD begins").next().unwrap(), 2);
        }
        Ok(())
    });
    site
}

/// What the system says of itself, with so many disks.
fn expect_layout(told: &str, disks: usize) {
    eprintln!("{told}");
    let count = |text: &str| told.matches(text).count();
    // One that nothing was written to yet is "active (auto-read-only)".
    assert_eq!(count(" : active "), 3, "{told}");
    assert_eq!(count("Raid Devices : 2"), 3, "{told}");
    assert_eq!(count(&format!("Working Devices : {disks}")), 3, "{told}");
    assert_eq!(count("Failed Devices : 0"), 3, "{told}");
    for line in [
        "TOLD root /dev/mapper/vg-root ext4",
        "TOLD srv /dev/mapper/secret ext4",
        "TOLD efi vfat /boot/efi/EFI/BOOT/BOOTX64.EFI",
        "TOLD swap vg-swap",
        "type: LUKS2",
        "TOLD key 400 root 64",
        "TOLD left 0",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
}
