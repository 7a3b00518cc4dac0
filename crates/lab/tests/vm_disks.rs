//! A disk that fails half-way and one that is slow, in one rack with a good one: QEMU gives the errors and holds the writes
//! up, the agent and its kernel are the real ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use api::operator::TimelineLine;
use common::{IMAGE, RACK, Site, WHOLE, disk_bytes, finished, prepare, reason_of, small_image};
use fleet::deployment::Outcome;
use fleet::life::Stage;
use power::qemu::Firmware;
use rackswarm_lab::demo::work;
use rackswarm_lab::vm::{DiskFault, Spec};

const SECTOR_BYTES: u64 = 512;
/// What the slow disk writes, in bytes a second: half a minute for the image, in which the good one fetches many times.
const SLOW: u64 = 1_000_000;
const ONE_TRY: &str = "[deploy]\nattempts = 1\n";

#[test]
fn vm_a_disk_that_fails_half_way_and_one_that_is_slow_hold_up_nobody_else() {
    let machine = |name: &str, fault| Spec { fault, ..Spec::new(name, Firmware::Bios, disk_bytes()) };
    let broken = DiskFault::WriteError(sector_in_the_middle());
    let machines =
        vec![machine("broken", Some(broken)), machine("slow", Some(DiskFault::Slow(SLOW))), machine("good", None)];
    let mut site = Site::new(machines, ONE_TRY, None);
    site.with_client(async |lab, client| {
        let image = prepare(lab, &client).await?;
        let begun = work::deploy_to_rack(&client, IMAGE, RACK).await?;
        let ended = finished(&client, begun.id, WHOLE).await?;

        // The device and the reason are named, and what was begun is no system.
        let reason = reason_of(&ended, "broken");
        eprintln!("{reason}");
        assert!(reason.contains("/dev/vda") && reason.contains("I/O error"), "{reason}");
        let lines = client.timeline(&"broken".parse()?).await?;
        assert!(lines.iter().any(|line| line.kind == "fetch_started"), "it failed before it wrote: {lines:?}");
        let passed = |line: &&TimelineLine| line.kind == "image_verified" || line.stage == Stage::Running;
        assert_eq!(lines.iter().find(passed), None, "a half-written disk was called whole");

        // The others run by one try each, and the good one had everything before the slow one had.
        let mut verified = Vec::new();
        for name in ["good", "slow"] {
            let node = name.parse()?;
            assert!(matches!(ended.outcomes[&node], Outcome::Running { .. }), "{name}: {:?}", ended.outcomes[&node]);
            let view = client.node(&node).await?;
            assert_eq!(view.attempt, 1, "{name}");
            let received = view.progress.expect("it fetched").received_bytes;
            assert!(received <= image.used_bytes * 11 / 10, "{name} received {received} of {}", image.used_bytes);
            let lines = client.timeline(&node).await?;
            verified.push(lines.iter().find(|line| line.kind == "image_verified").expect("it is verified").at);
        }
        assert!(
            verified[0] < verified[1],
            "the good disk was complete at {:?}, the slow one at {:?}",
            verified[0],
            verified[1]
        );
        Ok(())
    });
    site.stop_server();
    site.check_disks(&["good", "slow"]);
}

/// A sector in the middle of what is used of the image: neither zero nor the partition table.
fn sector_in_the_middle() -> u64 {
    const STEP: u64 = 64 << 10;
    let image = File::open(small_image()).unwrap();
    let is_used = |place: &u64| {
        let mut bytes = [0; SECTOR_BYTES as usize];
        image.read_exact_at(&mut bytes, *place).unwrap();
        bytes.iter().any(|byte| *byte != 0)
    };
    let used: Vec<u64> = (0..image.metadata().unwrap().len() / STEP).map(|step| step * STEP).filter(is_used).collect();
    used[used.len() / 2] / SECTOR_BYTES
}
