//! What goes wrong while machines fetch: a node or the server is killed, a piece is corrupt, a disk is not the right one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use common::{
    IMAGE, RACK, Site, WHOLE, all_running, assert_untouched, deploy, disk_bytes, finished, has_received, node_is,
    prepare, reason_of, small_image,
};
use fleet::life::Stage;
use power::qemu::Firmware;
use rackswarm_lab::demo::work;
use rackswarm_lab::vm::Spec;

/// Long enough to be caught in the middle, short enough for a test.
const FETCH_SECONDS: u64 = 25;
/// How long a node may take from power-on until it fetches, with its network limited as well.
const BOOT: Duration = Duration::from_secs(300);
/// A dead agent is noticed sooner than on metal.
const IMPATIENT: &str = "[deploy]\nsilence_seconds = 20\npause_seconds = 1\n";
/// One attempt, and a fetch that gets nowhere ends soon.
const ONE_TRY: &str = "[deploy]\nattempts = 1\nstall_seconds = 30\nsilence_seconds = 40\n";

#[test]
fn vm_a_node_killed_while_it_fetches_comes_back_and_completes() {
    let mut site = Site::new(vec![Spec::new("node1", Firmware::Bios, disk_bytes())], IMPATIENT, Some(FETCH_SECONDS));
    site.with_client(async |lab, client| {
        let image = prepare(lab, &client).await?;
        let deployment = work::deploy_to_rack(&client, IMAGE, RACK).await?;
        node_is(&client, "node1", "it has fetched a part", BOOT, |node| {
            node.stage == Stage::Fetching && has_received(node, &image, 40)
        })
        .await?;
        lab.machines.get("node1")?.kill()?;
        all_running(&finished(&client, deployment.id, WHOLE).await?);
        let node = node_is(&client, "node1", "it runs", WHOLE, |node| node.stage == Stage::Running).await?;
        assert_eq!(node.attempt, 2, "it needed a second attempt");
        let received = node.progress.expect("it fetched").received_bytes;
        // At least 40 % had arrived; what the guest's kernel had not written back yet when it died comes again.
        assert!(received <= image.used_bytes * 8 / 10, "{received} bytes for an image of {}", image.used_bytes);
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}

#[test]
fn vm_a_killed_server_goes_on_with_the_deployment_and_nothing_is_fetched_twice() {
    let specs =
        vec![Spec::new("node1", Firmware::Bios, disk_bytes()), Spec::new("node2", Firmware::Bios, disk_bytes())];
    let mut site = Site::new(specs, "", Some(FETCH_SECONDS));
    let (deployment, used) = site.with_client(async |lab, client| {
        let image = prepare(lab, &client).await?;
        let deployment = work::deploy_to_rack(&client, IMAGE, RACK).await?;
        for name in ["node1", "node2"] {
            node_is(&client, name, "it has fetched a part", BOOT, |node| has_received(node, &image, 30)).await?;
        }
        Ok((deployment.id, image.used_bytes))
    });
    site.kill_server();
    site.start_server();
    site.with_client(async move |_, client| {
        all_running(&finished(&client, deployment, WHOLE).await?);
        for name in ["node1", "node2"] {
            let node = node_is(&client, name, "it runs", WHOLE, |node| node.stage == Stage::Running).await?;
            assert_eq!(node.attempt, 1, "{name} went on where it was");
            let received = node.progress.map_or(0, |progress| progress.received_bytes);
            assert!(received <= used * 11 / 10, "{name} received {received} bytes of an image of {used}");
        }
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1", "node2"]);
}

#[test]
fn vm_two_equal_disks_are_refused_and_stay_blank() {
    let spec = Spec {
        disks_bytes: vec![disk_bytes(); 2],
        same_serial: Some("TWIN".into()),
        ..Spec::new("node1", Firmware::Bios, disk_bytes())
    };
    let mut site = Site::new(vec![spec], ONE_TRY, None);
    let reason = site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        Ok(reason_of(&deploy(&client).await?, "node1"))
    });
    assert!(reason.contains("2 disks match"), "{reason}");
    for disk in &site.lab.machines.get("node1").unwrap().disks {
        assert_untouched(&disk.path);
    }
}

#[test]
fn vm_an_image_larger_than_the_disk_is_refused_before_anything_is_written() {
    let small_disk = (std::fs::metadata(small_image()).unwrap().len() / 2).next_multiple_of(1 << 20);
    let mut site = Site::new(vec![Spec::new("node1", Firmware::Bios, small_disk)], ONE_TRY, None);
    let reason = site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        Ok(reason_of(&deploy(&client).await?, "node1"))
    });
    assert!(reason.contains("smaller"), "{reason}");
    assert_untouched(&site.lab.machines.get("node1").unwrap().disks[0].path);
}

#[test]
fn vm_a_corrupt_piece_of_the_seed_never_reaches_a_disk() {
    let mut site = Site::new(vec![Spec::new("node1", Firmware::Bios, disk_bytes())], ONE_TRY, None);
    let stored = site.lab.scratch.path().join("server/images").join(IMAGE).join("disk.raw");
    let reason = site.with_client(async |lab, client| {
        prepare(lab, &client).await?;
        damage(&stored);
        Ok(reason_of(&deploy(&client).await?, "node1"))
    });
    site.lab.machines.kill_all().unwrap();
    let disk = File::open(&site.lab.machines.get("node1").unwrap().disks[0].path).unwrap();
    let (wrong, place) = byte_at_damage(&stored);
    let mut written = [0];
    disk.read_exact_at(&mut written, place).unwrap();
    assert_ne!(wrong, written[0], "the corrupt byte is on the disk ({reason})");

    // With the seed healed, the same node completes. The seeder may have the damage in memory, so it starts anew.
    site.stop_server();
    damage(&stored);
    site.start_server();
    site.with_client(async |_, client| {
        all_running(&deploy(&client).await?);
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["node1"]);
}

/// Flips a bit of the last byte of the image that is neither 0 nor 1, or flips it back.
fn damage(stored: &Path) {
    let (byte, place) = byte_at_damage(stored);
    let file = File::options().write(true).open(stored).unwrap();
    file.write_all_at(&[byte ^ 1], place).unwrap();
}

/// The byte that [`damage`] flips, as it is stored now, and its place.
fn byte_at_damage(stored: &Path) -> (u8, u64) {
    let mut image = std::fs::read(small_image()).unwrap();
    // The backup partition table at the very end is rewritten on the node, so the place is before it.
    image.truncate(image.len() - (64 << 10));
    let place = image.iter().rposition(|byte| *byte > 1).unwrap() as u64;
    let mut byte = [0];
    File::open(stored).unwrap().read_exact_at(&mut byte, place).unwrap();
    (byte[0], place)
}
