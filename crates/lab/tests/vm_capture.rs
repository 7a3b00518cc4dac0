//! A running machine is captured, and the image is deployed to another one with another firmware and another disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use anyhow::Result;
use api::client::Client;
use api::operator::NewDeployment;
use common::{IMAGE, Site, WHOLE, all_running, disk_bytes, finished, node_is, prepare};
use fleet::capture::Order;
use fleet::life::Stage;
use power::qemu::Firmware;
use rackswarm_lab::vm::Spec;

const CAPTURED: &str = "golden";
/// Generalising and sealing a disk of some MiB.
const SEAL: Duration = Duration::from_secs(120);

#[test]
fn vm_a_captured_bios_machine_boots_as_an_image_on_a_uefi_machine_with_a_larger_disk() {
    capture_and_deploy(Firmware::Bios, Firmware::UefiPxe);
}

#[test]
fn vm_a_captured_uefi_machine_boots_as_an_image_on_a_bios_machine_with_a_larger_disk() {
    capture_and_deploy(Firmware::UefiPxe, Firmware::Bios);
}

fn capture_and_deploy(golden: Firmware, other: Firmware) {
    let machines =
        vec![Spec::new("golden", golden, disk_bytes()), Spec::new("other", other, disk_bytes() + (64 << 20))];
    let mut site = Site::new(machines, "", None);
    let name = "golden".parse().unwrap();
    let (machine, digest) = site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        deploy_to(&client, IMAGE, "golden").await?;
        node_is(&client, "golden", "it beats", WHOLE, |node| node.beat.is_some()).await?;

        // Captured while it runs: it is switched off hard, so its file system is taken whole and put right in the copy.
        let order = Order { image: CAPTURED.parse()?, generalise: true };
        client.capture_node(&name, &order).await?;
        node_is(&client, "golden", "it is being captured", WHOLE, |node| node.stage == Stage::Capturing).await?;
        node_is(&client, "golden", "its disk has been sent", WHOLE, |node| node.stage == Stage::Enrolled).await?;
        let sent = client.status().await?.now;
        let deadline = tokio::time::Instant::now() + SEAL;
        let image = loop {
            match client.image(CAPTURED).await {
                Ok(image) => break image,
                Err(_) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(200)).await
                }
                Err(error) => return Err(error.into()),
            }
        };
        assert_eq!(image.size_bytes, disk_bytes());
        // The golden machine starts its own disk again, and is who it was.
        node_is(&client, "golden", "it beats again", WHOLE, |node| node.heard.is_some_and(|heard| heard > sent))
            .await?;

        deploy_to(&client, CAPTURED, "other").await?;
        let node = node_is(&client, "other", "it beats", WHOLE, |node| node.beat.is_some()).await?;
        Ok((node.deployed.expect("it has proved what it runs"), image.digest))
    });
    assert_eq!(machine.digest, digest);
    assert!(machine.disk.contains("LAB-1-0"), "{}", machine.disk);
    site.stop_server();
}

/// Deploys to one node and waits for its outcome.
async fn deploy_to(client: &Client, image: &str, node: &str) -> Result<()> {
    let wanted = NewDeployment { image: image.to_owned(), nodes: vec![node.parse()?], ..NewDeployment::default() };
    let begun = client.deploy(&wanted).await?;
    all_running(&finished(client, begun.id, WHOLE).await?);
    Ok(())
}
