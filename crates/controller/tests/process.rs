//! The controller as a process of its own: how it ends, and that a second one
//! cannot begin.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod child;
mod common;

use std::time::{Duration, Instant};

use child::Controller;
use common::{config, content, eventually, fake, mac};
use fleet::life::Stage;
use nix::sys::signal::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_within_five_seconds_also_with_a_reader_and_an_upload() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(&config(folder.path())).await;
    let operator = controller.operator();
    let _events = operator.events().await.unwrap();
    let upload = operator.clone();
    // An upload that never ends.
    let stalled = futures_util::stream::iter([Ok(bytes::Bytes::from(vec![1; 4096]))]);
    let stalled = futures_util::StreamExt::chain(stalled, futures_util::stream::pending());
    let upload = tokio::spawn(async move { upload.import_image("stuck", Some("raw"), 1 << 30, stalled).await });
    let images = folder.path().join("data/images");
    eventually("the import", || async { std::fs::read_dir(&images).ok()?.next().map(drop) }).await;
    let begun = Instant::now();
    controller.signal(Signal::SIGTERM);
    assert!(controller.wait().await.success());
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    assert!(upload.await.unwrap().is_err());
    let mut controller = Controller::start(&config(folder.path())).await;
    controller.signal(Signal::SIGINT);
    assert!(controller.wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_continues_after_its_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let mut controller = Controller::start(&config).await;
    let power = format!("fake:{}", fake("killed"));
    let settings = api::operator::NodeSettings {
        macs: Some(vec![mac(1)]),
        power: Some(power),
        ..api::operator::NodeSettings::default()
    };
    let operator = controller.operator();
    operator.add_node(&api::operator::NewNode { name: "n1".parse().unwrap(), settings }).await.unwrap();
    let bytes = content(1);
    let length = bytes.len() as u64;
    let body = futures_util::stream::iter([Ok(bytes::Bytes::from(bytes))]);
    operator.import_image("debian", Some("raw"), length, body).await.unwrap();
    let wanted =
        api::operator::NewDeployment { image: "debian".into(), nodes: vec!["n1".parse().unwrap()], racks: vec![] };
    operator.deploy(&wanted).await.unwrap();
    let token = controller.token();
    config.server.listen = controller.address;
    controller.signal(Signal::SIGKILL);
    controller.wait().await;

    let controller = Controller::start(&config).await;
    assert_eq!(controller.token(), token);
    let operator = controller.operator();
    let node = eventually("the machine to be on", || async {
        operator.node(&"n1".parse().unwrap()).await.ok().filter(|node| node.stage == Stage::Leasing)
    })
    .await;
    assert_eq!((node.tries, node.deployment.map(|d| d.0)), (1, Some(1)));
}

#[test]
fn controller_process() {
    child::run();
}
