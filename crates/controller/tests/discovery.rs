//! Machines that nobody has named, from their first network boot to their approval.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use api::client::ClientError;
use common::{Server, config, content, mac, status};
use fleet::discovery::{Discovery, Rule};
use fleet::life::Stage;

const STRANGER: &str = "node-525400000001";

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_machine_tells_what_it_is_and_waits_for_approval() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.discovery.inventory = true;
    let server = Server::start(&config).await;
    let operator = server.operator();
    let agent = server.boot(mac(1)).await;
    let answer = agent.client.register(&agent.introduction()).await;
    let Err(ClientError::Refused { status: 409, error }) = answer else { panic!("{answer:?}") };
    assert!(error.contains(&format!("noted as `{STRANGER}`")), "{error}");
    assert_eq!(status(agent.client.register(&agent.introduction()).await), 401, "the token was for this only");

    let listed = operator.nodes().await.unwrap();
    let inventory = listed[0].inventory.as_ref().unwrap();
    assert_eq!((inventory.product.as_str(), inventory.processors, inventory.disks.len()), ("Scripted Machine", 2, 1));
    assert_eq!((listed[0].approved, listed[0].stage), (false, Stage::Enrolled));
    assert!(server.script(mac(1)).await.contains("waits for approval"), "it is asked once");
    let kinds = server.kinds(STRANGER).await;
    assert!(
        ["sighted", "inventory_asked", "inventoried"].iter().all(|kind| kinds.iter().any(|k| k == kind)),
        "{kinds:?}"
    );

    operator.approve_node(&STRANGER.parse().unwrap()).await.unwrap();
    assert!(operator.nodes().await.unwrap()[0].inventory.is_none(), "a list of all nodes stays short");
    assert!(server.node(STRANGER).await.inventory.is_some());
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &[STRANGER]).await;
    server.until_stage(STRANGER, Stage::Leasing).await;
    server.boot(mac(1)).await.register().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_approves_what_fits_and_puts_it_into_its_rack() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let rule = |product: &str, rack: &str| Rule {
        name: format!("all of {product}"),
        product: Some(product.to_owned()),
        rack: Some(rack.parse().unwrap()),
        ..Rule::default()
    };
    config.discovery = Discovery {
        inventory: true,
        approve: vec![rule("Other", "r1"), rule("Scripted", "r2")],
        ..Discovery::default()
    };
    let server = Server::start(&config).await;
    let agent = server.boot(mac(1)).await;
    assert_eq!(status(agent.client.register(&agent.introduction()).await), 409);
    let node = server.node(STRANGER).await;
    assert_eq!((node.approved, node.rack), (true, Some("r2".parse().unwrap())));
    let lines = server.operator().timeline(&STRANGER.parse().unwrap()).await.unwrap();
    assert!(lines.iter().any(|line| line.text == "approved by rule `all of Scripted`"), "{lines:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_discovery_an_unknown_machine_boots_its_own_disk() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    for _ in 0..2 {
        assert!(!server.script(mac(1)).await.contains("rackswarm.token"));
    }
    server.stop().await;
}
