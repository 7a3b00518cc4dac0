//! The agent's whole life against a controller and a swarm on loopback, with
//! files in place of disks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use agent::Error;
use api::agent::{ReportKind, WipeOrder};
use common::{Bench, Controller, LIMIT, PIECE, change_byte, content, disk, first_bytes, options, provision};
use fleet::disk::{Disk, DiskRule, Signature};
use fleet::ids::Attempt;
use fleet::ledger::Ledger;
use fleet::wipe::{Method, Wipe, Worth};

const PIECES: u64 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_arrives_and_a_second_time_only_what_changed_moves() {
    let content = content(PIECES);
    let bench = Bench::of(&content);
    let controller = Controller::start(&bench.image).await;
    let (_seeder, address) = bench.seeder(false).await;
    *controller.peers.lock().unwrap() = vec![vec![address]];
    // Larger than the image, and full of something else.
    let target = bench.disk("disk", PIECES * PIECE + (3 << 20), 0xaa);

    provision(options(&controller, vec![disk(&target, "S1")], false)).await.unwrap();
    assert_eq!(first_bytes(&target, content.len()), content);
    assert_eq!(controller.life(), ["fetch_started", "image_verified", "post_actions_done"]);
    let machine = controller.registered.lock().unwrap()[0].clone();
    assert_eq!(machine.macs[0], "52:54:00:00:00:01");
    assert_eq!(machine.disks[0].serial.as_deref(), Some("S1"));
    let first = controller.reports.lock().unwrap()[0].clone();
    let ReportKind::FetchStarted { disk: identity, text } = first else { panic!("{first:?}") };
    assert_eq!(identity, "serial:S1");
    assert!(text.contains("to fetch") && text.contains(&target.display().to_string()), "{text}");
    let told: Vec<Ledger> = controller.ledgers();
    assert_eq!(told.len(), 2, "at the end of fetching and of giving");
    assert_eq!(told[1].elsewhere.received_bytes, bench.image.manifest.payload_bytes());
    assert!(told[1].racks.is_empty(), "the seeder names no rack: {told:?}");

    // The disk has lost one piece; the zero pieces are where they should be.
    change_byte(&target, 2 * PIECE + 5);
    controller.reports.lock().unwrap().clear();
    controller.assignment.lock().unwrap().keep_what_is_right = true;
    provision(options(&controller, vec![disk(&target, "S1")], false)).await.unwrap();
    assert_eq!(first_bytes(&target, content.len()), content);
    assert_eq!(controller.received_bytes(), PIECE, "a fetch of a moment tells its bytes as well");
    let first = controller.reports.lock().unwrap()[0].clone();
    let ReportKind::FetchStarted { text, .. } = first else { panic!("{first:?}") };
    assert!(text.contains("16384 bytes to fetch") && text.contains("are right already"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_to_a_disk_that_is_not_the_one() {
    let bench = Bench::of(&content(PIECES));
    let controller = Controller::start(&bench.image).await;
    let (_seeder, address) = bench.seeder(false).await;
    *controller.peers.lock().unwrap() = vec![vec![address]];
    let size = PIECES * PIECE;
    let (one, two) = (bench.disk("one", size, 1), bench.disk("two", size, 2));
    let small = bench.disk("small", size - 512, 3);
    let both = vec![disk(&one, "same"), disk(&two, "same")];
    let rule = |serial: &str| DiskRule { serial: Some(serial.into()), ..DiskRule::default() };
    let removable = vec![Disk { removable: true, ..disk(&one, "usb") }];
    let usb = vec![Disk { pluggable: true, ..disk(&one, "usb") }];
    let locked = vec![Disk { read_only: true, ..disk(&one, "locked") }];
    let old = Signature { device: "/dev/sda2".into(), kind: "linux_raid_member".into(), label: None };
    let member = vec![Disk { signatures: vec![old], ..disk(&one, "member") }];
    let path_of_lun = |path, serial| Disk { wwn: Some("naa.6".into()), ..disk(path, serial) };
    let multipath = vec![path_of_lun(&one, "lun"), path_of_lun(&two, "lun")];

    for (disks, rule, word) in [
        (both.clone(), DiskRule::default(), "2 disks match"),
        (both.clone(), rule("same"), "2 disks match"),
        (both, rule("other"), "no disk matches"),
        (removable, DiskRule::default(), "no disk that can be written"),
        (usb, rule("usb"), "hangs on USB"),
        (locked, rule("locked"), "refuses writes"),
        (member, DiskRule::default(), "marks of software RAID (md)"),
        (multipath, DiskRule::default(), "several paths to the same device"),
        (vec![disk(&small, "small")], DiskRule::default(), "is smaller"),
    ] {
        controller.reports.lock().unwrap().clear();
        controller.assignment.lock().unwrap().disk = rule;
        let error = provision(options(&controller, disks, false)).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(controller.failure(), Some((error.to_string(), false)));
        assert_eq!(controller.life(), ["failed"]);
    }
    for (path, fill) in [(&one, 1), (&two, 2), (&small, 3)] {
        assert!(fs::read(path).unwrap().iter().all(|byte| *byte == fill), "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_named_disk_is_wiped_and_certified_and_no_other_is_touched() {
    let bench = Bench::of(&content(PIECES));
    let controller = Controller::start(&bench.image).await;
    let (mine, other) = (bench.disk("mine", 6 << 20, 1), bench.disk("other", 6 << 20, 2));
    let disks = || vec![disk(&mine, "mine"), disk(&other, "other")];
    let order = |serial: &str, method| {
        let rule = DiskRule { serial: Some(serial.into()), ..DiskRule::default() };
        let wipe = Wipe { disks: vec![rule], method };
        Some(WipeOrder { node: "node1".parse().unwrap(), attempt: Attempt(1), wipe })
    };
    *controller.wipe.lock().unwrap() = order("mine", Method::Auto);
    provision(options(&controller, disks(), false)).await.unwrap();
    assert_eq!(controller.life(), ["wipe_started", "disk_wiped", "wiped"]);
    let certified = controller.reports.lock().unwrap().iter().find_map(|report| match report {
        ReportKind::DiskWiped { certificate } => Some((**certificate).clone()),
        _ => None,
    });
    let certificate = certified.unwrap();
    assert_eq!((certificate.disk.as_str(), certificate.worth), ("serial:mine", Worth::Cleared));
    assert!(fs::read(&mine).unwrap().iter().all(|byte| *byte == 0));
    assert!(fs::read(&other).unwrap().iter().all(|byte| *byte == 2), "the other disk was touched");

    // One of two disks is not there, so nothing is done to the one that is; a way that the disk has not is a failure.
    for (serial, method, word, life) in [
        ("gone", Method::Overwrite, "no disk matches", vec!["failed"]),
        ("other", Method::Sanitise, "not sanitised", vec!["wipe_started", "disk_wiped", "failed"]),
    ] {
        controller.reports.lock().unwrap().clear();
        *controller.wipe.lock().unwrap() = order(serial, method);
        let error = provision(options(&controller, disks(), false)).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(controller.life(), life);
        assert_eq!(controller.failure(), Some((error.to_string(), false)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seeder_that_lies_is_left_and_its_bytes_never_reach_the_disk() {
    let content = content(PIECES);
    let bench = Bench::of(&content);
    let controller = Controller::start(&bench.image).await;
    let (_liar, lies) = bench.seeder(true).await;
    let (_seeder, truth) = bench.seeder(false).await;
    let target = bench.disk("disk", PIECES * PIECE, 0xaa);

    // With nobody else nothing comes, whatever the liar sends.
    *controller.peers.lock().unwrap() = vec![vec![lies]];
    let agent = tokio::spawn(provision(options(&controller, vec![disk(&target, "S1")], false)));
    controller.until(|c| c.received_bytes() > 0).await;
    let written = fs::read(&target).unwrap();
    for (index, piece) in content.chunks(PIECE as usize).enumerate() {
        let found = &written[index * PIECE as usize..][..piece.len()];
        let zeroed = piece.iter().all(|b| *b == 0) && found.iter().all(|b| *b == 0);
        assert!(zeroed || found.iter().all(|b| *b == 0xaa), "piece {index} was written");
    }

    // As soon as somebody honest is there, all goes well.
    *controller.peers.lock().unwrap() = vec![vec![truth]];
    agent.await.unwrap().unwrap();
    assert_eq!(fs::read(&target).unwrap(), content);
    let reports = controller.reports.lock().unwrap();
    let text = reports.iter().find_map(|r| if let ReportKind::ImageVerified { text } = r { Some(text) } else { None });
    assert!(!text.unwrap().contains(" 0 corrupt pieces"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_over_ends_everything_at_once() {
    let bench = Bench::of(&content(PIECES));
    let controller = Controller::start(&bench.image).await;
    // Nobody has the image, so the agent would fetch for ever.
    controller.refuse_after.store(1, Ordering::SeqCst);
    let target = bench.disk("disk", PIECES * PIECE, 0xaa);
    let error = provision(options(&controller, vec![disk(&target, "S1")], false)).await.unwrap_err();
    assert!(matches!(&error, Error::AttemptOver(why) if why.contains("the present one is 2")), "{error}");
    assert_eq!(controller.life(), ["fetch_started"], "nobody is told of a failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_away_is_waited_for() {
    let content = content(PIECES);
    let bench = Bench::of(&content);
    let controller = Controller::start(&bench.image).await;
    let (_seeder, address) = bench.seeder(false).await;
    *controller.peers.lock().unwrap() = vec![vec![address]];
    let target = bench.disk("disk", PIECES * PIECE, 0xaa);
    // Registration and the first report are each answered at the third try.
    controller.fail_next.store(2, Ordering::SeqCst);
    let agent = tokio::spawn(provision(options(&controller, vec![disk(&target, "S1")], false)));
    controller.until(|c| c.life().contains(&"fetch_started")).await;
    controller.fail_next.store(3, Ordering::SeqCst);
    agent.await.unwrap().unwrap();
    assert_eq!(fs::read(&target).unwrap(), content);
    assert_eq!(controller.life(), ["fetch_started", "image_verified", "post_actions_done"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_another_image_is_refused() {
    let bench = Bench::of(&content(PIECES));
    let other = Bench::of(&content(PIECES + 1));
    let controller = Controller::start(&bench.image).await;
    *controller.manifest.lock().unwrap() = other.image.manifest.to_json().into_bytes();
    let target = bench.disk("disk", PIECES * PIECE * 2, 0xaa);
    let error = provision(options(&controller, vec![disk(&target, "S1")], false)).await.unwrap_err();
    assert!(error.to_string().contains("not of the assigned image"), "{error}");
    assert_eq!(controller.failure(), Some((error.to_string(), true)));
    assert!(fs::read(&target).unwrap().iter().all(|byte| *byte == 0xaa));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_takes_a_list_of_disks_and_says_how_it_ended() {
    let content = content(PIECES);
    let bench = Bench::of(&content);
    let controller = Controller::start(&bench.image).await;
    let (_seeder, address) = bench.seeder(false).await;
    *controller.peers.lock().unwrap() = vec![vec![address]];
    let target = bench.disk("disk", PIECES * PIECE, 0xaa);
    let list = bench.path().join("disks.json");
    fs::write(&list, serde_json::to_vec(&[disk(&target, "S1")]).unwrap()).unwrap();
    let program = |rest: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rackswarm-agent"));
        command.args(rest).stdin(Stdio::null()).kill_on_drop(true);
        async move { tokio::time::timeout(LIMIT, command.output()).await.unwrap().unwrap() }
    };
    let version = program(&["--version"]).await;
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("rackswarm-agent "));
    assert_eq!(program(&["walk"]).await.status.code(), Some(2));

    let booted = bench.path().join("booted.json");
    let run = ["run", "--server", &controller.url, "--token", "t", "--listen", "127.0.0.1:0", "--no-post"];
    let run = [&run[..], &["--booted", booted.to_str().unwrap(), "--disks"]].concat();
    let ended = program(&[&run[..], &[list.to_str().unwrap()]].concat()).await;
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{said}");
    assert!(said.lines().all(|line| line.starts_with("rackswarm: ")), "{said}");
    assert_eq!(fs::read(&target).unwrap(), content);
    let deployed = agent::monitor::read_config(&booted).unwrap();
    assert_eq!(
        (deployed.node_token.0.as_str(), deployed.digest),
        ("node-token", bench.image.manifest.digest().unwrap())
    );
    assert_eq!(fs::metadata(&booted).unwrap().permissions().mode() & 0o777, 0o600);

    controller.assignment.lock().unwrap().disk.serial = Some("S2".into());
    let ended = program(&[&run[..], &[list.to_str().unwrap()]].concat()).await;
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("no disk matches the rule `serial S2`"));
}
