//! Captures of real file systems, judged by the programs that own them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Bench, run};
use fleet::capture::{CHUNK_BYTES, Original};
use rackswarm_image::capture::{Disk, Kind, hash_of};
use rackswarm_image::{Capture, Error, Finishing, Registry, no_progress};

const MIB: u64 = 1 << 20;

fn sha256sum(path: &Path) -> String {
    run("sha256sum", &[path.to_str().unwrap()]).split(' ').next().unwrap().to_owned()
}

fn noise(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Text that stands in blocks that were freed, and must not travel.
const SECRET: &[u8] = b"was deleted, must not travel;   ";

fn holds_secret(path: &Path) -> bool {
    let content = fs::read(path).unwrap();
    content.windows(SECRET.len()).step_by(1).any(|window| window == SECRET)
}

/// A disk of 160 MiB with GPT: a loader's partition, an ESP, an ext4 system, swap that was used, and free space behind.
struct Golden {
    path: PathBuf,
    tree: PathBuf,
}

const ESP: u64 = 2 * MIB;
const ROOT: u64 = 40 * MIB;
const SWAP: u64 = 120 * MIB;

impl Golden {
    fn make(bench: &Bench) -> Self {
        let (path, tree) = (bench.path("golden.raw"), bench.path("tree"));
        for folder in
            ["etc/ssh", "var/log/journal/0123", "var/log/apt", "var/lib/dhcp", "var/lib/cloud/instances/i-1", "usr"]
        {
            fs::create_dir_all(tree.join(folder)).unwrap();
        }
        for (name, text) in [
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("etc/fstab", "LABEL=root / ext4 defaults 0 1\n"),
            ("etc/ssh/ssh_host_ed25519_key", "PRIVATE-KEY-OF-THE-GOLDEN-MACHINE\n"),
            ("etc/ssh/sshd_config", "Port 22\n"),
            ("var/log/syslog", "a line\n"),
            ("var/log/syslog.1", "an old line\n"),
            ("var/log/journal/0123/system.journal", "journal\n"),
            ("var/lib/dhcp/dhclient.leases", "lease {}\n"),
            ("var/lib/cloud/instances/i-1/user-data.txt", "#cloud-config\n"),
        ] {
            fs::write(tree.join(name), text).unwrap();
        }
        for number in 0..12 {
            fs::write(tree.join(format!("usr/file{number}")), noise(1 << 20, number)).unwrap();
        }
        fs::write(tree.join("usr/deleted"), SECRET.repeat(200_000)).unwrap();
        let golden = Self { path, tree };
        let name = golden.name();
        File::create(&golden.path).unwrap().set_len(160 * MIB).unwrap();
        run(
            "sgdisk",
            &[
                "-a",
                "2048",
                "-n",
                "1:2048:4095",
                "-t",
                "1:ef02",
                "-n",
                "2:4096:77823",
                "-t",
                "2:ef00",
                "-n",
                "3:81920:245759",
                "-n",
                "4:245760:262143",
                "-t",
                "4:8200",
                name,
            ],
        );
        let file = File::options().write(true).open(&golden.path).unwrap();
        file.write_all_at(b"a loader lies here", MIB).unwrap();
        run("mkfs.vfat", &["-F", "32", "--offset", &(ESP / 512).to_string(), name, "36864"]);
        let esp = format!("{name}@@{ESP}");
        fs::write(bench.path("loader.efi"), noise(3 << 20, 77)).unwrap();
        fs::write(bench.path("deleted.efi"), SECRET.repeat(60_000)).unwrap();
        for file in ["loader.efi", "deleted.efi"] {
            run("mcopy", &["-i", &esp, bench.path(file).to_str().unwrap(), "::/"]);
        }
        run("mdel", &["-i", &esp, "::/deleted.efi"]);
        run(
            "mke2fs",
            &["-q", "-t", "ext4", "-d", golden.tree.to_str().unwrap(), "-E", &format!("offset={ROOT}"), name, "80m"],
        );
        golden.debugfs("rm /usr/deleted");
        fs::remove_file(golden.tree.join("usr/deleted")).unwrap();
        let swap = bench.path("swap");
        File::create(&swap).unwrap().set_len(8 * MIB).unwrap();
        run("mkswap", &["-q", swap.to_str().unwrap()]);
        file.write_all_at(&fs::read(&swap).unwrap()[..8192], SWAP).unwrap();
        file.write_all_at(&SECRET.repeat(1000), SWAP + MIB).unwrap();
        file.write_all_at(&SECRET.repeat(1000), 140 * MIB).unwrap();
        golden
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn debugfs(&self, command: &str) {
        run("debugfs", &["-w", "-R", command, &format!("{}?offset={ROOT}", self.name())]);
    }
}

/// Sends what is not held; gives how many chunks travelled.
fn send(disk: &Disk, capture: &Capture, most: usize) -> usize {
    let held = capture.held_hashes(0, u32::MAX);
    let mut buffer = Vec::new();
    let mut sent = 0;
    for chunk in capture.original().wanted() {
        let at = chunk as usize * 32;
        let packed = disk.pack(chunk, held[at..at + 32].try_into().ok(), &mut buffer).unwrap();
        if let Some(bytes) = packed.bytes {
            if sent == most {
                return sent;
            }
            capture.put(chunk, packed.hash, &bytes).unwrap();
            sent += 1;
        }
    }
    sent
}

fn finish(capture: &Capture) -> rackswarm_image::Image {
    capture.receive().unwrap();
    capture.finish(&mut |_: Finishing| ControlFlow::Continue(())).unwrap()
}

fn debugfs_dump(image: &Path, offset: u64, into: &Path) {
    fs::create_dir_all(into).unwrap();
    run("debugfs", &["-R", &format!("rdump / {}", into.display()), &format!("{}?offset={offset}", image.display())]);
}

fn name(text: &str) -> fleet::ids::ImageName {
    text.parse().unwrap()
}

#[test]
fn used_blocks_alone_travel_and_the_file_systems_are_whole() {
    let bench = Bench::new();
    let golden = Golden::make(&bench);
    assert!(holds_secret(&golden.path));
    let before = (sha256sum(&golden.path), fs::metadata(&golden.path).unwrap().mtime_nsec());

    let disk = Disk::open(&golden.path).unwrap();
    let kinds: Vec<Kind> = disk.survey().parts.iter().map(|part| part.kind).collect();
    assert_eq!(kinds, [Kind::Unknown, Kind::Fat, Kind::Ext, Kind::Swap]);
    let used: Vec<u64> = disk.survey().parts.iter().map(|part| part.used_bytes).collect();
    assert_eq!((used[0], used[3]), (MIB, 4096), "unknown is taken whole, of swap the header");
    assert!((3 * MIB..5 * MIB).contains(&used[1]) && (12 * MIB..30 * MIB).contains(&used[2]), "{used:?}");
    assert!(disk.survey().parts.iter().all(|part| part.whole_because.is_none()));

    let original = disk.original("golden.raw", false);
    let capture = bench.registry.begin_capture(&name("golden"), &original).unwrap();
    let sent = send(&disk, &capture, usize::MAX) as u64;
    assert_eq!(sent, original.wanted_chunks());
    assert!(sent * CHUNK_BYTES < 80 * MIB, "{sent} chunks");
    let image = finish(&capture);
    assert_eq!(
        before,
        (sha256sum(&golden.path), fs::metadata(&golden.path).unwrap().mtime_nsec()),
        "the source is untouched"
    );

    let copy = image.disk_path();
    assert!(!holds_secret(&copy), "blocks that are free must not travel");
    assert_eq!(fs::metadata(&copy).unwrap().len(), 160 * MIB);
    assert!(image.stored_bytes().unwrap() < 40 * MIB);
    let target = format!("{}?offset={ROOT}", copy.display());
    run("e2fsck", &["-fn", &target]);
    run("sgdisk", &["--verify", copy.to_str().unwrap()]);
    let dumped = bench.path("dumped");
    debugfs_dump(&copy, ROOT, &dumped);
    fs::remove_dir(dumped.join("lost+found")).unwrap();
    run("diff", &["-r", golden.tree.to_str().unwrap(), dumped.to_str().unwrap()]);
    let esp = format!("{}@@{ESP}", copy.display());
    run("mcopy", &["-i", &esp, "::/loader.efi", bench.path("copied.efi").to_str().unwrap()]);
    assert_eq!(fs::read(bench.path("copied.efi")).unwrap(), fs::read(bench.path("loader.efi")).unwrap());
    let mut head = [0; 18];
    File::open(&copy).unwrap().read_exact_at(&mut head, MIB).unwrap();
    assert_eq!(&head, b"a loader lies here");
    let files: Vec<_> = fs::read_dir(copy.parent().unwrap()).unwrap().collect();
    assert_eq!(files.len(), 3);
    bench.registry.verify(&name("golden"), &mut no_progress).unwrap();
}

#[test]
fn a_generalised_image_holds_nothing_of_the_one_machine() {
    let bench = Bench::new();
    let golden = Golden::make(&bench);
    let disk = Disk::open(&golden.path).unwrap();
    let capture = bench.registry.begin_capture(&name("golden"), &disk.original("golden.raw", true)).unwrap();
    send(&disk, &capture, usize::MAX);
    let image = finish(&capture);
    run("e2fsck", &["-fn", &format!("{}?offset={ROOT}", image.disk_path().display())]);
    let dumped = bench.path("dumped");
    debugfs_dump(&image.disk_path(), ROOT, &dumped);
    let exists = |path: &str| dumped.join(path).exists();
    for gone in [
        "etc/ssh/ssh_host_ed25519_key",
        "var/log/syslog.1",
        "var/log/journal/0123",
        "var/lib/dhcp/dhclient.leases",
        "var/lib/cloud/instances",
    ] {
        assert!(!exists(gone), "{gone}");
    }
    for empty in ["etc/machine-id", "var/log/syslog"] {
        assert_eq!(fs::metadata(dumped.join(empty)).unwrap().len(), 0, "{empty}");
    }
    for kept in ["etc/ssh/sshd_config", "etc/fstab", "var/log/apt", "usr/file11"] {
        assert!(exists(kept), "{kept}");
    }
    let content = fs::read(image.disk_path()).unwrap();
    let key = b"PRIVATE-KEY-OF-THE-GOLDEN-MACHINE";
    assert!(!content.windows(key.len()).any(|window| window == key), "nor in blocks that were freed");
    assert!(golden.tree.join("etc/ssh/ssh_host_ed25519_key").exists());
    let source = fs::read(&golden.path).unwrap();
    assert!(source.windows(key.len()).any(|window| window == key), "the golden machine keeps its own");
}

#[test]
fn a_capture_goes_on_where_it_was_and_takes_what_changed_since() {
    let bench = Bench::new();
    let golden = Golden::make(&bench);
    let disk = Disk::open(&golden.path).unwrap();
    let original = disk.original("golden.raw", false);
    let capture = bench.registry.begin_capture(&name("golden"), &original).unwrap();
    assert_eq!(send(&disk, &capture, 3), 3);
    assert!(matches!(capture.receive(), Err(Error::CaptureIncomplete { .. })));
    drop(capture);

    // The server starts again, and then the machine.
    let registry = Registry::open(bench.path("images")).unwrap();
    let left = registry.captures().unwrap();
    assert_eq!((left.len(), left[0].held_chunks(), left[0].is_received()), (1, 3, false));
    drop(left);
    let capture = registry.begin_capture(&name("golden"), &original).unwrap();
    let rest = send(&disk, &capture, usize::MAX) as u64;
    assert_eq!(rest, original.wanted_chunks() - 3, "what is there is not sent again");
    drop(capture);

    // Between two attempts the machine has run: a file is gone and another one has changed.
    golden.debugfs("rm /usr/file3");
    golden.debugfs("write /etc/hostname /usr/new");
    let disk = Disk::open(&golden.path).unwrap();
    let original = disk.original("golden.raw", false);
    let capture = registry.begin_capture(&name("golden"), &original).unwrap();
    let changed = send(&disk, &capture, usize::MAX) as u64;
    assert!(changed > 0 && changed < original.wanted_chunks() / 2, "{changed}");
    let image = finish(&capture);
    run("e2fsck", &["-fn", &format!("{}?offset={ROOT}", image.disk_path().display())]);
    let mut buffer = Vec::new();
    let content = fs::read(image.disk_path()).unwrap();
    for chunk in 0..original.chunks() {
        disk.read(chunk, &mut buffer).unwrap();
        let at = (u64::from(chunk) * CHUNK_BYTES) as usize;
        assert!(content[at..at + buffer.len()] == buffer[..], "chunk {chunk} shows something old");
    }
    assert!(matches!(registry.begin_capture(&name("golden"), &original), Err(Error::NameTaken(_))));
}

#[test]
fn a_file_system_that_was_not_shut_down_is_taken_whole() {
    let bench = Bench::new();
    let golden = Golden::make(&bench);
    golden.debugfs("feature needs_recovery");
    let disk = Disk::open(&golden.path).unwrap();
    let part = &disk.survey().parts[2];
    assert_eq!(part.used_bytes, 80 * MIB);
    assert!(part.whole_because.as_ref().unwrap().contains("not shut down cleanly"), "{part}");
    // Its journal is played back in the copy, and then its free space is known.
    let capture = bench.registry.begin_capture(&name("golden"), &disk.original("golden.raw", true)).unwrap();
    send(&disk, &capture, usize::MAX);
    let image = finish(&capture);
    assert!(!holds_secret(&image.disk_path()));
    run("e2fsck", &["-fn", &format!("{}?offset={ROOT}", image.disk_path().display())]);
}

#[test]
fn what_is_not_as_announced_is_refused_and_loses_nothing() {
    let bench = Bench::new();
    let original = Original {
        disk: "test".into(),
        size_bytes: 3 * CHUNK_BYTES,
        used_bytes: 1,
        parts: Vec::new(),
        runs: vec![fleet::capture::Run { first: 1, count: 2 }],
        generalise: false,
    };
    let capture = bench.registry.begin_capture(&name("x"), &original).unwrap();
    let content = noise(CHUNK_BYTES as usize, 5);
    let pack = |content: &[u8]| zstd::bulk::compress(content, 1).unwrap();
    capture.put(1, hash_of(&content), &pack(&content)).unwrap();
    let bomb = vec![0; 64 << 20];
    for (chunk, hash, packed) in [
        (0, hash_of(&content), pack(&content)),
        (3, hash_of(&content), pack(&content)),
        (u32::MAX, hash_of(&content), pack(&content)),
        (2, [1; 32], pack(&content)),
        (2, hash_of(&content[1..]), pack(&content[1..])),
        (2, hash_of(&bomb), pack(&bomb)),
        (2, hash_of(&content), content.clone()),
        (2, hash_of(&content), Vec::new()),
    ] {
        assert!(matches!(capture.put(chunk, hash, &packed), Err(Error::BadChunk { .. })), "{chunk}");
    }
    assert_eq!(capture.held_chunks(), 1);
    assert_eq!(capture.held_hashes(0, 10).len(), 96);
    assert!(capture.held_hashes(7, 10).is_empty());
    let other = Original { size_bytes: 0, ..original.clone() };
    assert!(matches!(bench.registry.begin_capture(&name("x"), &other), Err(Error::BadOriginal(_))));
    // A disk of another size is another disk: what was held is gone.
    let larger = Original { size_bytes: 4 * CHUNK_BYTES, ..original };
    assert_eq!(bench.registry.begin_capture(&name("x"), &larger).unwrap().held_chunks(), 0);
    bench.registry.discard_capture(&name("x")).unwrap();
    assert!(bench.registry.captures().unwrap().is_empty());
}

#[test]
fn what_is_no_disk_to_capture_is_named() {
    let bench = Bench::new();
    let qcow2 = bench.path("disk.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), "10M"]);
    let error = Disk::open(&qcow2).unwrap_err().to_string();
    assert!(error.contains("qemu-img convert -f qcow2 -O raw"), "{error}");
    let odd = bench.path("odd");
    fs::write(&odd, [1; 100]).unwrap();
    assert!(matches!(Disk::open(&odd), Err(Error::BadSize { .. })));
    assert!(matches!(Disk::open(bench.folder.path()), Err(Error::NotADisk(_))));
    // A disk without any system can be captured, and not generalised.
    let blank = bench.path("blank");
    File::create(&blank).unwrap().set_len(MIB).unwrap();
    let disk = Disk::open(&blank).unwrap();
    let capture = bench.registry.begin_capture(&name("blank"), &disk.original("blank", true)).unwrap();
    send(&disk, &capture, usize::MAX);
    capture.receive().unwrap();
    let error = capture.finish(&mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("/etc") && error.contains("--as-is"), "{error}");
}
