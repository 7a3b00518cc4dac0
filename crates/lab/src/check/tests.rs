#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use tempfile::TempDir;

use super::*;
use crate::tool::run;

const MIB: u64 = 1 << 20;
const ESP_AT: u64 = 2 * MIB;
const ROOT_AT: u64 = 4 * MIB;
const DISK_BYTES: u64 = 24 * MIB;
const CONTENT: &[u8] = b"a file that is longer than what ext4 keeps inside of an inode, so that it has a block of its own: 0123456789 0123456789 0123456789 0123456789 0123456789";

/// An image with boot code, a BIOS boot partition, an "ESP" and an ext4 root, made by the real tools.
fn build(folder: &Path, edit: impl FnOnce(&Path)) -> PathBuf {
    crate::tool::need_root().unwrap();
    let root = folder.join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    std::fs::write(root.join("etc/hostname"), "golden\n").unwrap();
    std::fs::write(root.join("usr/bin/tool"), CONTENT).unwrap();
    // chown(2) takes the set-user-id bit away, so it comes first.
    chown(root.join("usr/bin/tool"), Some(5), Some(6)).unwrap();
    std::fs::set_permissions(root.join("usr/bin/tool"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("tool", root.join("usr/bin/link")).unwrap();
    edit(&root);
    let image = folder.join("disk.raw");
    let file = File::create(&image).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let name = image.display().to_string();
    run("sgdisk", ["-n1:2048:+512K", "-t1:ef02", "-n2:4096:+1M", "-t2:ef00", "-n3:8192:0", "-t3:8304", &name]).unwrap();
    // The same identities each time, as a copy of the image would have.
    run(
        "sgdisk",
        ["-u1:1111", "-u2:2222", "-u3:3333"]
            .map(|word| word.replace(':', ":00000000-0000-0000-0000-00000000"))
            .iter()
            .chain([&name]),
    )
    .unwrap();
    file.write_all_at(&[0x90; 440], 0).unwrap();
    file.write_all_at(&[7; 4096], ESP_AT).unwrap();
    let blocks = (DISK_BYTES - ROOT_AT - MIB) / 4096;
    let offset = format!("offset={ROOT_AT}");
    run(
        "mke2fs",
        [
            "-q",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-E",
            &offset,
            "-d",
            &root.display().to_string(),
            &name,
            &blocks.to_string(),
        ],
    )
    .unwrap();
    image
}

struct Pair {
    _folders: [TempDir; 3],
    golden: Golden,
    disk: PathBuf,
}

fn pair(edit: impl FnOnce(&Path)) -> Pair {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let image = build(folders[0].path(), |_| ());
    let disk = build(folders[1].path(), edit);
    let golden = Golden::read(&image, folders[2].path()).unwrap();
    Pair { _folders: folders, golden, disk }
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn only_difference(pair: &Pair) -> String {
    let report = pair.golden.compare(&pair.disk).unwrap();
    assert_eq!(report.differing, 1, "{report:?}");
    assert!(report.verdict().is_err());
    report.differences[0].clone()
}

#[test]
fn an_equal_disk_passes_and_everything_was_looked_at() {
    let pair = pair(|_| ());
    let report = pair.golden.compare(&pair.disk).unwrap();
    report.verdict().unwrap();
    // etc/hostname and lost+found are excepted; etc, usr, usr/bin and the link are not files.
    assert_eq!((report.files_compared, report.others_compared, report.excepted), (1, 4, 2), "{report:?}");
    assert_eq!(report.partitions_compared, 2);
    assert!(report.bytes_compared > MIB);
}

#[test]
fn post_actions_may_change_what_is_excepted() {
    let pair = pair(|root| {
        std::fs::write(root.join("etc/hostname"), "node1\n").unwrap();
        std::fs::create_dir_all(root.join("etc/rackswarm")).unwrap();
        std::fs::write(root.join("etc/rackswarm/token"), "x").unwrap();
    });
    pair.golden.compare(&pair.disk).unwrap().verdict().unwrap();
}

#[test]
fn a_single_flipped_byte_in_a_file_is_found() {
    let pair = pair(|_| ());
    let disk = std::fs::read(&pair.disk).unwrap();
    let place = disk.windows(CONTENT.len()).position(|window| window == CONTENT).unwrap();
    flip(&pair.disk, place as u64 + 77);
    assert_eq!(only_difference(&pair), "/usr/bin/tool has another content");
}

#[test]
fn a_single_flipped_byte_in_the_esp_is_found() {
    let pair = pair(|_| ());
    flip(&pair.disk, ESP_AT + 4000);
    assert_eq!(only_difference(&pair), "partition 2 differs at its byte 4000");
}

#[test]
fn a_single_flipped_byte_of_boot_code_is_found() {
    let pair = pair(|_| ());
    flip(&pair.disk, 439);
    assert_eq!(only_difference(&pair), "the boot sector's code differs at byte 439");
}

#[test]
fn modes_owners_links_and_missing_files_are_found() {
    type Edit = fn(&Path);
    let edits: [(&str, Edit); 4] = [
        ("/usr/bin/tool has mode 100755 instead of 104755", |root| {
            std::fs::set_permissions(root.join("usr/bin/tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        }),
        ("/usr/bin/tool belongs to 5:7 instead of 5:6", |root| {
            chown(root.join("usr/bin/tool"), Some(5), Some(7)).unwrap();
            std::fs::set_permissions(root.join("usr/bin/tool"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        }),
        ("/usr/bin/link leads elsewhere", |root| {
            std::fs::remove_file(root.join("usr/bin/link")).unwrap();
            symlink("loot", root.join("usr/bin/link")).unwrap();
        }),
        ("/usr/bin/link is missing", |root| std::fs::remove_file(root.join("usr/bin/link")).unwrap()),
    ];
    for (sentence, edit) in edits {
        assert_eq!(only_difference(&pair(edit)), sentence);
    }
}

#[test]
fn a_blank_disk_is_an_error_with_its_name() {
    let pair = pair(|_| ());
    File::create(&pair.disk).unwrap().set_len(DISK_BYTES).unwrap();
    assert!(pair.golden.compare(&pair.disk).unwrap_err().to_string().contains("disk.raw"));
}

#[test]
fn exceptions_end_at_name_boundaries() {
    assert!(is_excepted("/tmp") && is_excepted("/tmp/x/y") && is_excepted("/etc/ssh/ssh_host_rsa_key"));
    assert!(!is_excepted("/tmpx") && !is_excepted("/etc/hostname2") && !is_excepted("/etc/ssh/sshd_config"));
}
