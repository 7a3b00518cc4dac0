//! Ten machines at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::{Site, all_running, deploy, disk_bytes, prepare};
use power::qemu::Firmware;
use rackswarm_lab::vm::Spec;

#[test]
fn vm_fleet_ten_machines_start_at_once_and_none_is_lost_to_a_dhcp_race() {
    let names: Vec<String> = (1..=10).map(|number| format!("node{number}")).collect();
    let spec = |name: &String| Spec { memory_mib: 256, ..Spec::new(name, Firmware::Bios, disk_bytes()) };
    let mut site = Site::new(names.iter().map(spec).collect(), "", None);
    site.with_client(async |lab, client| {
        let image = prepare(lab, &client).await?;
        all_running(&deploy(&client).await?);
        let nodes = client.nodes().await?;
        let addresses: BTreeSet<_> = nodes.iter().filter_map(|node| node.address).collect();
        assert_eq!(addresses.len(), 10, "every machine has an address of its own");
        for node in &nodes {
            let lines = client.timeline(&node.name).await?;
            let lost: Vec<_> = lines
                .iter()
                .filter(|line| line.kind == "deadline_passed" && line.text.contains("ask for an address"))
                .collect();
            assert!(lost.is_empty(), "{}: {lost:?}", node.name);
        }
        // Under emulation their agents start tens of seconds apart, so how much they share is left to chance; some of it
        // they must.
        let given: u64 = nodes.iter().filter_map(|node| node.progress).map(|progress| progress.sent_bytes).sum();
        assert!(given > 0, "nobody gave anything to anybody");
        let sent: u64 = client.status().await?.seeded_bytes.values().sum();
        assert!(sent < image.used_bytes * 10, "the server sent {sent} bytes, as if there were no swarm");
        Ok(())
    });
    site.stop_server();
    site.check_disks(&names.iter().map(String::as_str).collect::<Vec<_>>());
}
