//! The controller as a process of its own: how it ends, and that a second one
//! cannot begin.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod child;
mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::client::{Client, ClientError};
use api::operator::{ImageView, NewDeployment, NewNode, NodeSettings};
use child::Controller;
use common::{config, content, eventually, fake, mac};
use fleet::deployment::DeploymentState;
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
async fn who_announced_last_is_remembered_by_the_next_controller() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let mut controller = Controller::start(&config).await;
    let image = prepare(&controller.operator(), "announces").await;
    let announce = |address: std::net::SocketAddr, port: u16| {
        let hash: String =
            image.infohash.as_bytes().chunks(2).flat_map(|hex| [b'%', hex[0], hex[1]]).map(char::from).collect();
        let me = format!("-XX0000-{port:012}");
        let query =
            format!("info_hash={hash}&peer_id={me}&port={port}&uploaded=0&downloaded=0&left=1&compact=1&numwant=50");
        async move { reqwest::get(format!("http://{address}/announce?{query}")).await.unwrap().bytes().await.unwrap() }
    };
    let peer = [127, 0, 0, 1, 0x1b, 0x39];
    announce(controller.address, 0x1b39).await;
    // At once: the memory is written every few seconds otherwise.
    controller.signal(Signal::SIGTERM);
    assert!(controller.wait().await.success());
    config.server.listen = controller.address;
    let controller = Controller::start(&config).await;
    let answer = announce(controller.address, 7000).await;
    assert!(answer.windows(6).any(|found| found == peer), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_continues_after_its_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let mut controller = Controller::start(&config).await;
    let operator = controller.operator();
    prepare(&operator, "killed").await;
    operator.deploy(&debian_to_n1()).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_during_imports_and_deployments_lose_nothing_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut controller = Controller::start(&config).await;
    let digest = prepare(&controller.operator(), "fifty").await.digest;
    let mut answered = BTreeSet::from(["debian".to_owned()]);
    for round in 0..50 {
        let operator = controller.operator();
        let name = format!("image-{round}");
        let (importer, importing) = (operator.clone(), name.clone());
        let import = tokio::spawn(async move { upload(&importer, &importing).await });
        // A different number of requests each time, so that the kill meets the import at different points.
        for _ in 0..round % 5 {
            let ended = operator.deploy(&debian_to_n1()).await.unwrap();
            operator.cancel(ended.id).await.unwrap();
        }
        let last = operator.deploy(&debian_to_n1()).await.unwrap().id;
        controller.signal(Signal::SIGKILL);
        controller.wait().await;
        if import.await.unwrap().is_ok() {
            answered.insert(name);
        }

        controller = Controller::start(&config).await;
        let operator = controller.operator();
        let deployments = operator.deployments().await.unwrap();
        let active: Vec<_> = deployments.iter().filter(|d| d.state == DeploymentState::Active).map(|d| d.id).collect();
        assert_eq!(active, [last], "round {round}");
        assert_eq!(operator.node(&"n1".parse().unwrap()).await.unwrap().deployment, Some(last), "round {round}");
        let images = operator.images().await.unwrap();
        assert!(images.iter().all(|image| image.digest == digest), "round {round}: a half image is listed");
        let listed: BTreeSet<String> = images.iter().map(|image| image.name.to_string()).collect();
        assert!(listed.is_superset(&answered), "round {round}: {answered:?} were answered, {listed:?} are there");
        operator.cancel(last).await.unwrap();
    }
}

/// A node `n1` behind a fake power driver, and an image `debian`.
async fn prepare(operator: &Client, machine: &str) -> ImageView {
    let settings = NodeSettings {
        macs: Some(vec![mac(1)]),
        power: Some(format!("fake:{}", fake(machine))),
        ..NodeSettings::default()
    };
    operator.add_node(&NewNode { name: "n1".parse().unwrap(), settings }).await.unwrap();
    upload(operator, "debian").await.unwrap()
}

async fn upload(operator: &Client, name: &str) -> Result<ImageView, ClientError> {
    let pieces: Vec<_> = content(1).chunks(64 << 10).map(|part| Ok(bytes::Bytes::copy_from_slice(part))).collect();
    operator.import_image(name, Some("raw"), 1 << 20, futures_util::stream::iter(pieces)).await
}

fn debian_to_n1() -> NewDeployment {
    NewDeployment { image: "debian".into(), nodes: vec!["n1".parse().unwrap()], ..NewDeployment::default() }
}

#[test]
fn controller_process() {
    child::run();
}
