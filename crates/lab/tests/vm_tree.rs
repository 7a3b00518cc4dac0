//! An image made of a tar archive and a layout is deployed by BIOS and by UEFI, and the machines prove that they run it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use api::operator::NewDeployment;
use common::{RACK, Site, WHOLE, all_running, finished, must, node_is, pack_debian};
use gptman::GPT;
use power::qemu::Firmware;
use rackswarm_lab::demo::work;
use rackswarm_lab::rig::from_environment;
use rackswarm_lab::vm::Spec;

const TREE: &str = "tree";
const MIB: u64 = 1 << 20;
/// Larger than the image, so that growing has something to do.
const DISK_BYTES: u64 = 1400 * MIB;
/// A root of ext4 and an xfs for `/var`: a machine that does not mount both never gets to its proof.
const LAYOUT: &str = r#"
[[disk]]
name = "sys"
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "var", size = "400MiB" },
    { name = "root", size = "rest" },
]
[[mount]]
on = "sys.root"
kind = "ext4"
at = "/"
label = "root"
[[mount]]
on = "sys.var"
kind = "xfs"
at = "/var"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
"#;

#[test]
fn vm_an_image_made_of_a_tar_archive_and_a_layout_starts_by_bios_and_uefi_and_proves_itself() {
    let machines = [("bios", Firmware::Bios), ("uefi", Firmware::UefiPxe)];
    let machines = machines.map(|(name, firmware)| Spec { memory_mib: 640, ..Spec::new(name, firmware, DISK_BYTES) });
    let mut site = Site::new(machines.into(), "", None);
    let folder = site.lab.scratch.path().to_owned();
    let archive = folder.join("tree.tar.zst");
    pack_debian(&folder, &archive, &[]);
    std::fs::write(folder.join("layout.toml"), LAYOUT).unwrap();

    let cut = folder.join("cut.tar.zst");
    let whole = std::fs::read(&archive).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();

    let digest = site.with_client(async |lab, client| {
        let import = |archive: &Path| {
            let mut import = Command::new(from_environment("RACKSWARM_TEST_PROGRAM").unwrap());
            import.args(["image", "import", "--name", TREE, "--layout"]).arg(folder.join("layout.toml")).arg(archive);
            import.env("RACKSWARM_SERVER", &lab.plan().url).env("RACKSWARM_TOKEN_FILE", &lab.plan().token_file);
            import
        };
        let refused = import(&cut).output()?;
        let sentence = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && sentence.contains("cut off"), "{sentence}");
        assert!(client.images().await?.is_empty(), "nothing of it is registered");
        must(&mut import(&archive));
        work::add_machines(&client, RACK, lab.machines.list()).await?;
        let nodes = vec!["bios".parse()?, "uefi".parse()?];
        let begun = client.deploy(&NewDeployment { image: TREE.to_owned(), nodes, ..NewDeployment::default() }).await?;
        all_running(&finished(&client, begun.id, WHOLE).await?);
        let digest = client.image(TREE).await?.digest;
        for name in ["bios", "uefi"] {
            let node = node_is(&client, name, "it beats", WHOLE, |node| node.beat.is_some()).await?;
            assert_eq!(node.deployed.expect("it has proved what it runs").digest, digest);
        }
        Ok(digest)
    });
    eprintln!("both run {digest}");
    site.stop_server();
    site.lab.machines.kill_all().unwrap();
    for machine in site.lab.machines.list() {
        let table = GPT::read_from(&mut File::open(&machine.disks[0].path).unwrap(), 512).unwrap();
        let end = (table[4].ending_lba + 1) * 512;
        assert!(end + 2 * MIB > DISK_BYTES, "{}: the root partition ends at {} MiB", machine.name, end / MIB);
    }
}
