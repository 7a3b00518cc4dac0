//! `rackswarm image capture`, against a real controller, with the real agent and files in place of disks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::Error;
use api::agent::Token;
use api::client::Client;
use common::{Server, boot_token, json, on, run_agent, until};
use fleet::disk::Disk;

const MIB: u64 = 1 << 20;
const KEY: &[u8] = b"PRIVATE-KEY-OF-THE-GOLDEN-MACHINE";
const MAC: &str = "52:54:00:00:00:01";

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: run `cargo xtask test`, which installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn noise(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A disk of 320 MiB with one ext4 partition, a small system and `mib` MiB of files in it.
fn golden(folder: &Path, mib: u32) -> PathBuf {
    let (path, tree) = (folder.join("golden.raw"), folder.join("tree"));
    for folder in ["etc/ssh", "var/log", "usr"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    fs::write(tree.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    fs::write(tree.join("etc/ssh/ssh_host_rsa_key"), KEY).unwrap();
    fs::write(tree.join("usr/data"), noise(mib as usize * MIB as usize, mib)).unwrap();
    File::create(&path).unwrap().set_len(320 * MIB).unwrap();
    let name = path.to_str().unwrap();
    run("sgdisk", &["-n", "1:2048:616447", name]);
    run("mke2fs", &["-q", "-t", "ext4", "-d", tree.to_str().unwrap(), "-E", "offset=1048576", name, "300m"]);
    path
}

fn disk_of(server: &Server, image: &str) -> PathBuf {
    server.folder.join("data/images").join(image).join("disk.raw")
}

fn holds(path: &Path, text: &[u8]) -> bool {
    fs::read(path).unwrap().windows(text.len()).any(|window| window == text)
}

fn assert_sound(image: &Path, mib: u32) {
    let target = format!("{}?offset=1048576", image.display());
    run("e2fsck", &["-fn", &target]);
    let copy = tempfile::NamedTempFile::new().unwrap();
    run("debugfs", &["-R", &format!("dump /usr/data {}", copy.path().display()), &target]);
    assert!(fs::read(copy.path()).unwrap() == noise(mib as usize * MIB as usize, mib));
}

#[test]
fn a_disk_of_this_machine_becomes_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let golden = golden(folder.path(), 20);
    let before = run("sha256sum", &[golden.to_str().unwrap()]);
    let server = Server::start(folder.path(), "");
    let capture = |name: &str, more: &[&str]| {
        let arguments = [&["image", "capture", "--from", golden.to_str().unwrap(), "--name", name], more].concat();
        server.run(&arguments)
    };
    let ran = capture("web", &[]);
    assert!(ran.stderr.contains("partition 1: ext4"), "{}", ran.stderr);
    assert!(ran.ok().contains("web is captured and sealed"));
    assert_eq!(before, run("sha256sum", &[golden.to_str().unwrap()]));
    assert_sound(&disk_of(&server, "web"), 20);
    assert!(!holds(&disk_of(&server, "web"), KEY) && holds(&golden, KEY));
    let image = json(&server.run(&["image", "show", "web", "--json"]).ok());
    assert_eq!(image["size_bytes"], 320 * MIB);
    assert!(image["used_bytes"].as_u64().unwrap() < 60 * MIB, "{image}");
    let again = capture("web", &[]);
    assert!(again.code == 1 && again.stderr.contains("exists already"), "{}", again.stderr);

    // As it is, with its keys; and the answer as JSON.
    let image = json(&capture("whole", &["--as-is", "--json"]).ok());
    assert_eq!(image["name"], "whole");
    assert!(holds(&disk_of(&server, "whole"), KEY));
    assert!(server.run(&["image", "list"]).ok().lines().count() >= 3);

    // A disk without a system cannot be generalised; what has arrived can be thrown away.
    let blank = folder.path().join("blank");
    File::create(&blank).unwrap().set_len(8 * MIB).unwrap();
    let failed = server.run(&["image", "capture", "--from", blank.to_str().unwrap(), "--name", "blank"]);
    assert!(failed.code == 1 && failed.stderr.contains("--as-is"), "{}", failed.stderr);
    assert!(server.run(&["image", "list"]).ok().contains("blank is captured from blank: failed"));
    assert!(server.run(&["image", "remove", "blank"]).ok().contains("removed"));
    assert_eq!(server.run(&["image", "remove", "blank"]).code, 1);
    assert_eq!(server.run(&["image", "capture", "--name", "x"]).code, 2);
}

#[test]
fn a_capture_survives_the_death_of_the_server_and_of_its_sender() {
    let folder = tempfile::tempdir().unwrap();
    let golden = golden(folder.path(), 240);
    let server = Server::start(folder.path(), "");
    let arguments = ["image", "capture", "--from", golden.to_str().unwrap(), "--name", "web"];
    let held = |server: &Server| {
        let token = Token(fs::read_to_string(server.token_file()).unwrap().trim().to_owned());
        let captures = on(Client::new(&server.url, token).unwrap().captures());
        captures.ok().and_then(|captures| captures.first().map(|capture| capture.held_chunks)).unwrap_or(0)
    };
    let mut sender = server.command(&arguments).spawn().unwrap();
    until("a chunk has arrived", || held(&server) > 0);
    sender.kill().unwrap();
    sender.wait().unwrap();
    let arrived = held(&server);
    assert!(arrived < 60, "{arrived} chunks: it was over before it was interrupted");

    // Begun again; this time the server dies in the middle and comes back.
    let sender = server.command(&arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    until("more has arrived", || held(&server) > arrived);
    let port = server.port();
    server.kill();
    let server = Server::start_on(folder.path(), "", port);
    let ended = sender.wait_with_output().unwrap();
    let words = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{words}");
    let kept: u64 = words.split(" were there already").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(kept >= arrived, "{words}");
    assert_sound(&disk_of(&server, "web"), 240);
}

#[test]
fn a_node_is_captured_by_its_agent_and_is_where_it_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let golden = golden(folder.path(), 20);
    let before = run("sha256sum", &[golden.to_str().unwrap()]);
    let server = Server::start(folder.path(), "");
    server.run(&["node", "add", "n1", "--mac", MAC, "--power", "fake:cli-capture"]).ok();
    let watching =
        server.command(&["image", "capture", "n1", "--name", "web"]).stdout(std::process::Stdio::piped()).spawn();
    let watching = watching.unwrap();
    provision(&server, &golden).unwrap();
    let ended = watching.wait_with_output().unwrap();
    assert!(ended.status.success() && String::from_utf8(ended.stdout).unwrap().contains("web is captured and sealed"));
    assert_sound(&disk_of(&server, "web"), 20);
    assert!(!holds(&disk_of(&server, "web"), KEY));
    assert_eq!(before, run("sha256sum", &[golden.to_str().unwrap()]));

    let node = json(&server.run(&["node", "show", "n1", "--json"]).ok());
    assert_eq!(node["stage"], "enrolled");
    let timeline = server.run(&["node", "timeline", "n1"]).ok();
    for words in ["captured as image web", "partition 1: ext4", "chunks are with the server", "is image web now"] {
        assert!(timeline.contains(words), "{words}: {timeline}");
    }
    let taken = server.run(&["image", "capture", "n1", "--name", "web"]);
    assert!(taken.code == 1 && taken.stderr.contains("an image `web` already"), "{}", taken.stderr);

    // Released in the middle: its agent's token is worth nothing any more, and the node can be captured anew.
    server.run(&["image", "capture", "n1", "--name", "web2", "--detach"]).ok();
    let second = server.run(&["image", "capture", "n1", "--name", "web3", "--detach"]);
    assert!(second.code == 1, "{}", second.stdout);
    let old = boot_token(&server, MAC);
    server.run(&["node", "release", "n1"]).ok();
    assert!(matches!(agent(&server, old, &golden), Err(Error::Refused(_))));
    server.run(&["image", "capture", "n1", "--name", "web2", "--detach", "--as-is"]).ok();
    provision(&server, &golden).unwrap();
    until("it is sealed", || server.run(&["image", "show", "web2"]).code == 0);
    assert!(holds(&disk_of(&server, "web2"), KEY));
}

#[test]
fn a_node_whose_disk_cannot_be_captured_fails_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.run(&["node", "add", "n1", "--mac", MAC, "--power", "fake:cli-capture-fails"]).ok();
    server.run(&["image", "capture", "n1", "--name", "web", "--detach"]).ok();
    // The machine sleeps: its memory is in the swap area.
    let asleep = folder.path().join("asleep");
    let file = File::create(&asleep).unwrap();
    file.set_len(16 * MIB).unwrap();
    file.write_all_at(b"S1SUSPEND", 4086).unwrap();
    assert!(provision(&server, &asleep).is_err());
    let node = json(&server.run(&["node", "show", "n1", "--json"]).ok());
    assert!(node["reason"].as_str().unwrap().contains("put to sleep"), "{node}");
}

/// Boots the node's machine and lets its agent do what it is told.
fn provision(server: &Server, disk: &Path) -> Result<(), Error> {
    agent(server, boot_token(server, MAC), disk)
}

/// The token of the kernel line that the machine is given.
fn agent(server: &Server, token: String, disk: &Path) -> Result<(), Error> {
    let size_bytes = fs::metadata(disk).unwrap().len();
    let disk =
        Disk { path: disk.display().to_string(), size_bytes, serial: Some("GOLDEN-1".into()), ..Disk::default() };
    run_agent(server, MAC, token, &[disk])
}
