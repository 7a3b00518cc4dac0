//! What needs root: a disk that is full, and an account to work as.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod child;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use api::operator::{NewNode, NodeSettings};
use child::Controller;
use common::{Server, config, content, mac, status};
use fleet::post::PostSettings;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

/// A small file system of its own; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        expect_root();
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).status();
        assert!(done.unwrap().success(), "cannot mount a small file system at {}", at.display());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn expect_root() {
    assert!(Uid::effective().is_root(), "this test needs root: run `cargo xtask test` as root");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let _disk = SmallDisk::mount(&config.server.data_dir, "8m");
    let server = Server::start(&config).await;
    let operator = server.operator();
    let large = vec![7u8; 16 << 20];
    let refused = server.import("large", large).await.unwrap_err();
    let sentence = refused.to_string();
    assert!(sentence.contains("no space left") && sentence.contains("make room"), "{sentence}");
    assert_eq!(status::<()>(Err(refused)), 507);
    assert!(std::fs::read_dir(config.server.data_dir.join("images")).unwrap().next().is_none());
    server.import("small", content(1)).await.unwrap();

    let filler = config.server.data_dir.join("filler");
    let mut block = vec![0u8; 64 << 10];
    block[0] = 1;
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    let post = PostSettings { user_data: Some("x".repeat(200_000)), ..PostSettings::default() };
    let settings = NodeSettings { macs: Some(vec![mac(1)]), post: Some(post), ..NodeSettings::default() };
    let node = NewNode { name: "n1".parse().unwrap(), settings };
    let refused = operator.add_node(&node).await.unwrap_err();
    let sentence = refused.to_string();
    assert!(sentence.contains("disk is full") && sentence.contains("make room"), "{sentence}");
    assert_eq!(status::<()>(Err(refused)), 503);
    assert!(operator.nodes().await.unwrap().is_empty());

    drop(file);
    std::fs::remove_file(&filler).unwrap();
    operator.add_node(&node).await.unwrap();
    server.stop().await;
    let server = Server::start(&config).await;
    assert_eq!(server.operator().nodes().await.unwrap().len(), 1);
    assert_eq!(server.operator().images().await.unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_as_an_ordinary_account_with_two_capabilities() {
    expect_root();
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    let mut config = config(folder.path());
    config.server.user = Some("nobody".to_owned());
    let mut controller = Controller::start(&config).await;
    assert!(controller.operator().nodes().await.unwrap().is_empty());
    let mut sets = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", controller.id())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        assert!(field("Uid:").split_whitespace().all(|uid| uid == nobody.uid.to_string()), "{status}");
        let set = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
        assert_eq!(field("NoNewPrivs:"), if set == 0 { "0" } else { "1" });
        sets.push(set);
    }
    // CAP_NET_BIND_SERVICE is 10, CAP_NET_RAW is 13; the thread of the test program itself has none.
    let kept = 1 << 10 | 1 << 13;
    assert!(sets.contains(&kept) && sets.iter().all(|set| *set == kept || *set == 0), "{sets:x?}");
    controller.signal(Signal::SIGTERM);
    assert!(controller.wait().await.success());
}

#[test]
fn controller_process() {
    child::run();
}
