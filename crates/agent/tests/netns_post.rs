//! Post actions on real file systems: an image of a small system is written
//! into a file, grown, mounted and made a node's own. Needs root, loop devices
//! and e2fsprogs; everything is mounted in a mount namespace of the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::command::Run;
use agent::{Error, Stop};
use api::agent::ReportKind;
use common::{Bench, Controller, disk, options, provision};
use fleet::post::Script;
use gptman::{GPT, GPTPartitionEntry};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const ROOT_START: u64 = 4 * MIB;
const IMAGE_BYTES: u64 = 32 * MIB;
const DISK_BYTES: u64 = 64 * MIB;

#[test]
fn a_written_image_becomes_the_nodes_own_system() {
    let bench = in_a_namespace(partitioned_image());
    let target = bench.disk("disk", DISK_BYTES, 0);
    let controller = with_runtime(async {
        let (controller, _seeder) = swarm(&bench).await;
        controller.assignment.lock().unwrap().post.script = Some(Script {
            text: "#!/bin/sh\necho \"$RACKSWARM_NODE $RACKSWARM_ATTEMPT\" > /etc/provisioned\necho hello from inside\n\
                   ls /proc/self/exe /dev/null /sys/kernel > /dev/null\nsetsid sleep 600 > /dev/null 2>&1 &\n"
                .into(),
            time_limit_seconds: 30,
        });
        let outcome = provision(options(&controller, vec![disk(&target, "S1")], true)).await;
        outcome.unwrap_or_else(|error| panic!("{error}; {:?}", controller.reports.lock().unwrap()));
        controller
    });
    nothing_is_left(&target);

    let actions = actions(&controller);
    let said =
        |name: &str| actions.iter().find(|(action, _)| action == name).unwrap_or_else(|| panic!("{name}")).1.clone();
    assert!(said("grow_root").contains("partition 2 grown from 27 MiB to 59 MiB"), "{}", said("grow_root"));
    assert_eq!(said("script"), "hello from inside");
    assert!(said("agent").contains("/etc/rackswarm/start"));
    assert_eq!(controller.life().last(), Some(&"post_actions_done"));

    // The disk, looked at by others: table, file system, files.
    let table = Run::new("sgdisk", LIMIT).args(["-v"]).args([&target]).text(&Stop::default()).unwrap();
    assert!(table.contains("No problems found"), "{table}");
    let root = bench.path().join("root.ext4");
    copy_part(&target, &root, ROOT_START, 59 * MIB);
    Run::new("e2fsck", LIMIT).args(["-f", "-n"]).args([&root]).text(&Stop::default()).unwrap();
    let blocks = Run::new("dumpe2fs", LIMIT).args(["-h"]).args([&root]).text(&Stop::default()).unwrap();
    assert!(blocks.contains("Block count:              60416"), "{blocks}");
    assert_eq!(inside(&root, "/etc/hostname"), "node1\n");
    assert_eq!(inside(&root, "/etc/provisioned"), "node1 1\n");
    assert_eq!(inside(&root, "/root/.ssh/authorized_keys"), "ssh-ed25519 AAAA operator\n");
    assert_eq!(inside(&root, "/boot/kernel"), "the kernel");
    assert!(inside(&root, "/etc/rackswarm/agent.json").contains("node-token"));
    assert_eq!(inside(&root, "/run/rackswarm-script"), "", "the script leaves no trace");
    assert_ne!(inside(&root, "/etc/machine-id"), "");
}

#[test]
fn a_script_that_hangs_or_fails_ends_the_attempt_and_leaves_nothing_mounted() {
    let bench = in_a_namespace(partitioned_image());
    let target = bench.disk("disk", DISK_BYTES, 0);
    for (text, limit, word) in [
        ("#!/bin/sh\necho before\nsleep 600\n", 1, "was ended after 1 s, its time limit; it printed: before"),
        ("#!/bin/sh\necho reason\nexit 7\n", 30, "ended with status 7; it printed: reason"),
    ] {
        let (error, controller) = with_runtime(async {
            let (controller, _seeder) = swarm(&bench).await;
            controller.assignment.lock().unwrap().post.script =
                Some(Script { text: text.into(), time_limit_seconds: limit });
            let error = provision(options(&controller, vec![disk(&target, "S1")], true)).await.unwrap_err();
            (error, controller)
        });
        assert!(matches!(error, Error::Post { action: "script", .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(controller.failure(), Some((error.to_string(), true)));
        nothing_is_left(&target);
    }
}

#[test]
fn an_image_without_partitions_is_grown_too_and_one_without_a_system_is_refused() {
    let folder = in_a_namespace(tempfile::tempdir().unwrap());
    let root = folder.path().join("golden.raw");
    make_root(folder.path(), &root, 16 * MIB, true);
    let bench = Bench::sealed(folder, &root);
    let target = bench.disk("disk", DISK_BYTES, 0);
    let controller = with_runtime(async {
        let (controller, _seeder) = swarm(&bench).await;
        provision(options(&controller, vec![disk(&target, "S1")], true)).await.unwrap();
        controller
    });
    nothing_is_left(&target);
    assert!(actions(&controller)[0].1.contains("65536 (1k) blocks"), "{:?}", actions(&controller)[0]);
    assert_eq!(inside(&target, "/etc/hostname"), "node1\n");

    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("golden.raw");
    make_root(folder.path(), &data, 16 * MIB, false);
    let bench = Bench::sealed(folder, &data);
    let target = bench.disk("disk", 16 * MIB, 0);
    let (error, controller) = with_runtime(async {
        let (controller, _seeder) = swarm(&bench).await;
        let error = provision(options(&controller, vec![disk(&target, "S1")], true)).await.unwrap_err();
        (error, controller)
    });
    assert!(error.to_string().contains("no partition of the image has /etc/os-release"), "{error}");
    assert!(!controller.failure().unwrap().1, "another attempt would fail alike");
    nothing_is_left(&target);
}

/// Mounts of this thread, and of those that it starts, are seen by nobody else.
fn in_a_namespace<T>(thing: T) -> T {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts file systems: run `cargo xtask test` as root");
    for program in ["losetup", "mke2fs", "debugfs", "sgdisk", "busybox", "blkid"] {
        assert!(
            agent::command::find(program).is_some(),
            "{program} is missing: run `cargo xtask test`, which installs it"
        );
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    thing
}

/// The runtime's threads are started here, so they are in the test's namespace.
fn with_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

async fn swarm(bench: &Bench) -> (Arc<Controller>, transport::bittorrent::Seeder) {
    let controller = Controller::start(&bench.image).await;
    let (seeder, address) = bench.seeder(false).await;
    *controller.peers.lock().unwrap() = vec![vec![address]];
    (controller, seeder)
}

fn actions(controller: &Controller) -> Vec<(String, String)> {
    let reports = controller.reports.lock().unwrap();
    let done = reports.iter().filter_map(|report| match report {
        ReportKind::PostActionDone { action, output, .. } => Some((action.clone(), output.clone())),
        _ => None,
    });
    done.collect()
}

/// GPT with a boot partition and a root partition behind it.
fn partitioned_image() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("golden.raw");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(IMAGE_BYTES).unwrap();
    let mut table = GPT::new_from(&mut file, 512, [9; 16]).unwrap();
    let boot_end = ROOT_START / 512 - 1;
    let root_end = (IMAGE_BYTES - MIB) / 512 - 1;
    for (number, start, end) in [(1, 2048, boot_end), (2, ROOT_START / 512, root_end)] {
        table[number] = GPTPartitionEntry {
            partition_type_guid: [0xaf; 16],
            unique_partition_guid: [number as u8; 16],
            starting_lba: start,
            ending_lba: end,
            attribute_bits: 0,
            partition_name: if number == 1 { "boot".into() } else { "root".into() },
        };
    }
    table.write_into(&mut file).unwrap();
    GPT::write_protective_mbr_into(&mut file, 512).unwrap();
    let root = folder.path().join("root.part");
    make_root(folder.path(), &root, IMAGE_BYTES - MIB - ROOT_START, true);
    file.write_all_at(&fs::read(&root).unwrap(), ROOT_START).unwrap();
    Bench::sealed(folder, &image)
}

/// An ext4 with a busybox system, or with a file that is none.
fn make_root(scratch: &Path, to: &Path, size_bytes: u64, system: bool) {
    let tree = scratch.join("tree");
    let write = |path: &str, text: &str| {
        fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
        fs::write(tree.join(path), text).unwrap();
    };
    write("boot/kernel", "the kernel");
    if system {
        write("etc/os-release", "ID=small\n");
        write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        write("etc/fstab", "LABEL=elsewhere /srv ext4 defaults 0 0\n");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy(agent::command::find("busybox").unwrap(), tree.join("bin/busybox")).unwrap();
        fs::set_permissions(tree.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        for applet in ["sh", "ls", "echo", "sleep", "setsid", "init"] {
            symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        symlink("bin", tree.join("sbin")).unwrap();
    }
    File::create(to).unwrap().set_len(size_bytes).unwrap();
    let run = Run::new("mke2fs", LIMIT).args(["-q", "-t", "ext4", "-b", "1024", "-d"]).args([&tree]).args([to]);
    run.text(&Stop::default()).unwrap();
}

/// A file of an ext4, read without mounting it.
fn inside(file_system: &Path, path: &str) -> String {
    let run = std::process::Command::new(agent::command::find("debugfs").unwrap())
        .args(["-R", &format!("cat {path}")])
        .arg(file_system)
        .output()
        .unwrap();
    String::from_utf8(run.stdout).unwrap()
}

fn copy_part(from: &Path, to: &Path, start: u64, length: u64) {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    File::open(from).unwrap().read_exact_at(&mut bytes, start).unwrap();
    fs::write(to, bytes).unwrap();
}

fn nothing_is_left(target: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&format!("/run/rackswarm/mount-{}", std::process::id())), "{mounts}");
    let attached = |folder: &PathBuf| {
        let file = fs::read_to_string(folder.join("loop/backing_file")).unwrap_or_default();
        fs::metadata(file.trim()).is_ok_and(|found| found.ino() == fs::metadata(target).unwrap().ino())
    };
    let devices = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path());
    let held: Vec<PathBuf> = devices.filter(attached).collect();
    assert!(held.is_empty(), "{held:?}");
}
