//! `rackswarm node wipe` and `rackswarm layout`, against a real controller, with the real agent and files in place of disks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use agent::Error;
use common::{Server, boot_token, json, rackswarm, run_agent};
use fleet::disk::Disk;

const MAC: &str = "52:54:00:00:00:01";

fn disk(folder: &Path, name: &str, fill: u8) -> Disk {
    let path = folder.join(name);
    fs::write(&path, vec![fill; 6 << 20]).unwrap();
    let contents = vec![format!("{name}: ext4 `precious`")];
    Disk {
        path: path.display().to_string(),
        size_bytes: 6 << 20,
        serial: Some(name.into()),
        contents,
        ..Disk::default()
    }
}

fn is_all(disk: &Disk, byte: u8) -> bool {
    fs::read(&disk.path).unwrap().iter().all(|other| *other == byte)
}

#[test]
fn a_named_disk_is_wiped_by_command_and_its_certificate_stays() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let disks = [disk(folder.path(), "ONE", 1), disk(folder.path(), "TWO", 2)];
    server.run(&["node", "add", "n1", "--mac", MAC, "--power", "fake:cli-wipe"]).ok();
    // It has never told of its disks.
    let unnamed = server.run(&["node", "wipe", "n1", "--yes"]);
    assert!(unnamed.code == 1 && unnamed.stderr.contains("--serial"), "{}", unnamed.stderr);
    let unasked = server.run(&["node", "wipe", "n1", "--serial", "ONE"]);
    assert!(unasked.code == 2 && unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    assert!(server.run(&["node", "certificates", "n1"]).ok().contains("no disk of n1 was wiped"));

    let wiping = server.command(&["node", "wipe", "n1", "--serial", "ONE", "--yes", "--json"]);
    let wiping = { wiping }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    run_agent(&server, MAC, boot_token(&server, MAC), &disks).unwrap();
    let ended = wiping.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let certificates = json(&String::from_utf8(ended.stdout).unwrap());
    let certificate = &certificates[0];
    for (field, value) in [("node", "n1"), ("serial", "ONE"), ("used", "overwrite"), ("worth", "cleared")] {
        assert_eq!(certificate[field], value, "{certificate}");
    }
    assert_eq!(certificate["samples"]["zero"], certificate["samples"]["places"], "{certificate}");
    assert!(is_all(&disks[0], 0) && is_all(&disks[1], 2), "the named disk and no other");
    let node = json(&server.run(&["node", "show", "n1", "--json"]).ok());
    assert_eq!(node["stage"], "enrolled");
    let timeline = server.run(&["node", "timeline", "n1"]).ok();
    assert!(timeline.contains("ext4 `precious`") && timeline.contains("is cleared"), "{timeline}");

    // It has told of its disks now: two fit, and what cannot be done is not done.
    let two = server.run(&["node", "wipe", "n1", "--yes"]);
    assert!(two.code == 1 && two.stderr.contains("2 disks match"), "{}", two.stderr);
    let wiping = server.command(&["node", "wipe", "n1", "--serial", "TWO", "--method", "sanitise", "--yes"]);
    let wiping = { wiping }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(run_agent(&server, MAC, boot_token(&server, MAC), &disks).is_err());
    let ended = wiping.wait_with_output().unwrap();
    let (said, why) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!(ended.status.code(), Some(1));
    assert!(said.contains("NOT SANITISED") && why.contains("n1 is not wiped"), "{said}{why}");
    assert_eq!(json(&server.run(&["node", "certificates", "n1", "--json"]).ok()).as_array().unwrap().len(), 2);

    // All at once; released in the middle, the order is worth nothing any more.
    server.run(&["node", "wipe", "n1", "--all", "--yes", "--detach"]).ok();
    let old = boot_token(&server, MAC);
    server.run(&["node", "release", "n1"]).ok();
    fs::write(&disks[1].path, vec![2; 6 << 20]).unwrap();
    assert!(matches!(run_agent(&server, MAC, old, &disks), Err(Error::Refused(_))));
    assert!(is_all(&disks[1], 2));
    server.run(&["node", "wipe", "n1", "--all", "--yes", "--detach"]).ok();
    run_agent(&server, MAC, boot_token(&server, MAC), &disks).unwrap();
    assert!(is_all(&disks[0], 0) && is_all(&disks[1], 0));
}

#[test]
fn what_a_rule_allows_is_kept_apart_from_what_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let shown = || json(&server.run(&["node", "show", "n1", "--json"]).ok())["disk"].clone();
    let add = ["node", "add", "n1", "--mac", MAC, "--power", "fake:cli-allow", "--disk-serial", "S1"];
    server.run(&add).ok();
    server.run(&["node", "set", "n1", "--disk-allow", "signatures,removable"]).ok();
    assert_eq!(shown(), serde_json::json!({"serial": "S1", "allow": ["signatures", "removable"]}));
    server.run(&["node", "set", "n1", "--disk-allow", "none"]).ok();
    assert_eq!(shown(), serde_json::json!({"serial": "S1"}));
    let wrong = server.run(&["node", "set", "n1", "--disk-allow", "everything"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("signatures, removable, multipath"), "{}", wrong.stderr);
}

#[test]
fn a_layout_is_checked_and_its_commands_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.toml");
    let text = r#"
[[disk]]
name = "sys"
partition = [{ name = "esp", size = "100MiB", role = "esp" }, { name = "root", size = "rest" }]
[[mount]]
on = "sys.root"
kind = "ext4"
at = "/"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
"#;
    fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    assert!(rackswarm(&["layout", "check", path]).ok().contains("can be built"));
    let commands = rackswarm(&["layout", "check", path, "--disk", "sys=480GB"]).ok();
    assert!(commands.contains("sgdisk --clear --new=1:1M:+100M"), "{commands}");
    for (arguments, code, word) in [
        (vec!["layout", "check", path, "--bios"], 1, "bios_boot"),
        (vec!["layout", "check", path, "--disk", "sys=50MiB"], 1, "needs"),
        (vec!["layout", "check", path, "--disk", "other=50GiB"], 1, "no disk was chosen for `sys`"),
        (vec!["layout", "check", path, "--disk", "sys"], 2, "NAME=VALUE"),
        (vec!["layout", "build", path, "--disk", "sys=/dev/no-such-disk", "--yes"], 1, "/dev/no-such-disk"),
    ] {
        let ran = rackswarm(&arguments);
        assert!(ran.code == code && ran.stderr.contains(word), "{arguments:?}: {} {}", ran.code, ran.stderr);
    }
    fs::write(&file, text.replace("kind", "sort")).unwrap();
    let ran = rackswarm(&["layout", "check", path]);
    assert!(ran.code == 1 && ran.stderr.contains("sort"), "{}", ran.stderr);
}
