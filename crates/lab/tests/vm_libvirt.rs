//! A virtual machine of a libvirt host gets the same image by the same command without a network boot: libvirt hands our
//! kernel to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "../../power/tests/libvirtd/mod.rs"]
mod libvirtd;

use api::operator::{AcquireRequest, NewDeployment, NewSet, SyncOptions};
use common::{IMAGE, Site, WHOLE, all_running, finished, node_is, small_image};
use fleet::life::Stage;
use libvirtd::Libvirt;
use rackswarm_lab::check::Golden;
use rackswarm_lab::demo::work;
use rackswarm_lab::{netns, tool};

const MACHINE: &str = "rs-web-1";

#[test]
fn vm_a_libvirt_machine_runs_the_same_image_by_the_same_command_without_a_network_boot() {
    let mut site = Site::new(Vec::new(), "", None);
    let libvirt = Libvirt::in_namespace(site.lab.namespace.name());
    let disks = libvirt.folder.path().join("disks");
    site.with_client(async |_, client| {
        let set = NewSet {
            name: "cloud".parse()?,
            address: format!(
                "libvirt:?uri={}&folder={}&bridge={}&type=qemu&boot=kernel",
                libvirt.uri(),
                disks.display(),
                netns::BRIDGE
            ),
            credentials_file: None,
            rack: Some("r1".parse()?),
            unchecked: false,
        };
        client.add_set(&set).await?;
        let wish = AcquireRequest {
            token: "web".into(),
            count: 1,
            image: None,
            cpus: None,
            memory_mib: Some(512),
            disk_gib: Some(1),
            instance_type: None,
            rack: None,
        };
        let made = client.acquire(&set.name, &wish).await?;
        let name = made.rows[0].node.clone().expect("it became a node");
        work::import(&client, IMAGE, &small_image(), |_| ()).await?;
        let before = libvirt.virsh(&["dumpxml", "--inactive", MACHINE]);

        let wanted = NewDeployment { image: IMAGE.into(), nodes: vec![name.clone()], ..NewDeployment::default() };
        let begun = client.deploy(&wanted).await?;
        all_running(&finished(&client, begun.id, WHOLE).await?);
        let node = node_is(&client, name.as_str(), "it beats", WHOLE, |node| node.beat.is_some()).await?;
        assert_eq!((node.stage, node.tries, node.unexpected_total), (Stage::Running, 1, 0));
        assert!(node.deployed.expect("it proved it").disk.contains(MACHINE));
        let kinds: Vec<String> = client.timeline(&name).await?.into_iter().map(|line| line.kind).collect();
        assert!(kinds.iter().any(|kind| kind == "kernel_handed"), "{kinds:?}");
        for never in ["bootloader_sent", "script_sent", "kernel_sent", "address_asked", "sent_to_disk"] {
            assert!(kinds.iter().all(|kind| kind != never), "{kinds:?}");
        }
        assert_eq!(libvirt.virsh(&["dumpxml", "--inactive", MACHINE]), before, "its definition stayed as it was");
        assert!(!libvirt.virsh(&["dumpxml", MACHINE]).contains("<kernel>"), "it runs from its own disk");
        assert_eq!(client.sync_set(&set.name, SyncOptions::default()).await?.rows.len(), 1);
        Ok(())
    });
    site.stop_server();
    libvirt.virsh(&["destroy", MACHINE]);
    let raw = site.lab.scratch.path().join("disk.raw");
    let words = ["convert", "-O", "raw", &disks.join(format!("{MACHINE}.qcow2")).display().to_string()];
    tool::run("qemu-img", words.into_iter().chain([raw.display().to_string().as_str()])).unwrap();
    let golden = Golden::read(&small_image(), site.lab.scratch.path()).unwrap();
    golden.compare(&raw).unwrap().verdict().unwrap();
}
