//! Rollouts through the API: waves, limits, budgets, windows, and what an operator does about them, over restarts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use api::agent::ReportKind;
use api::operator::{
    DeploymentView, NewDeployment, NodeSettings, PauseRequest, RackSettings, ResumeRequest, RetryRequest,
};
use common::{Server, config, content, eventually, fake, mac, proof, status};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::{DeploymentId, Millis};
use fleet::life::Stage;
use fleet::preview::DiskPreview;
use fleet::rollout::{Canary, Order, Rollout, Window};

/// Racks r1 and r2 with three machines each, n1 to n6 by turns, and an image.
async fn two_racks(server: &Server, word: &str) {
    let operator = server.operator();
    for rack in ["r1", "r2"] {
        operator.put_rack(&rack.parse().unwrap(), &RackSettings::default()).await.unwrap();
    }
    for index in 1..=6u8 {
        let name = format!("n{index}");
        server.add_node(&name, mac(index), &format!("fake:{}", fake(&format!("{word}-{name}")))).await;
        let rack = Some(format!("r{}", 1 + (index + 1) % 2).parse().unwrap());
        operator.set_node(&name.parse().unwrap(), &NodeSettings { rack, ..NodeSettings::default() }).await.unwrap();
    }
    server.import("debian", content(7)).await.unwrap();
}

async fn deploy(server: &Server, rollout: Rollout) -> DeploymentId {
    let racks = vec!["r1".parse().unwrap(), "r2".parse().unwrap()];
    let wanted = NewDeployment { image: "debian".into(), racks, rollout, ..NewDeployment::default() };
    server.operator().deploy(&wanted).await.unwrap().id
}

async fn prove(server: &Server, index: u8) {
    server.until_stage(&format!("n{index}"), Stage::Leasing).await;
    let agent = server.boot(mac(index)).await;
    let assignment = agent.register().await;
    let deployed = agent.install(&assignment).await;
    server.client(deployed.node_token.clone()).prove(&proof(&deployed)).await.unwrap();
}

async fn fail(server: &Server, index: u8) {
    server.until_stage(&format!("n{index}"), Stage::Leasing).await;
    let agent = server.boot(mac(index)).await;
    let assignment = agent.register().await;
    let reason = "2 disks match; nothing was written".to_owned();
    agent.say(&assignment, ReportKind::Failed { reason, retry: false }).await.unwrap();
}

async fn until(
    server: &Server,
    id: DeploymentId,
    what: &str,
    holds: impl Fn(&DeploymentView) -> bool,
) -> DeploymentView {
    let client = server.operator();
    eventually(what, || async { client.deployment(id).await.ok().filter(&holds) }).await
}

fn waiting(view: &DeploymentView) -> u32 {
    view.racks.iter().map(|rack| rack.counts.waiting).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_a_budget_a_restart_and_a_retry_end_with_every_node_proved() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let server = Server::start(&config).await;
    two_racks(&server, "canary").await;
    let rollout = Rollout {
        canary: Some(Canary::Count(1)),
        at_once_per_rack: Some(2),
        failure_budget_per_rack: Some("1".parse().unwrap()),
        ..Rollout::default()
    };
    let id = deploy(&server, rollout).await;
    server.until_stage("n1", Stage::Leasing).await;
    let view = server.operator().deployment(id).await.unwrap();
    assert_eq!((waiting(&view), view.waves.len()), (5, 2));
    assert!(view.waits_for.unwrap().contains("canaries"), "everybody waits for n1");
    let again =
        NewDeployment { image: "debian".into(), nodes: vec!["n2".parse().unwrap()], ..NewDeployment::default() };
    assert_eq!(status(server.operator().deploy(&again).await), 409);
    assert_eq!(server.node("n2").await.stage, Stage::Enrolled);

    // Everything is known again after a restart, also what waits.
    config.server.listen = server.address;
    server.stop().await;
    let server = Server::start(&config).await;
    assert_eq!(waiting(&server.operator().deployment(id).await.unwrap()), 5);
    prove(&server, 1).await;
    let view = until(&server, id, "two nodes of each rack", |view| waiting(view) == 1).await;
    assert!(view.log.iter().any(|line| line.kind == "canaries_proved"), "{:?}", view.log);

    // Rack r1 is n1, n3, n5; all of it has started. Of rack r2 node n6 waits.
    fail(&server, 2).await;
    let view =
        until(&server, id, "rack r2 to be paused", |view| view.racks.iter().any(|rack| rack.paused.is_some())).await;
    let paused = view.racks.iter().find_map(|rack| rack.paused.clone()).unwrap();
    assert!(paused.reason.contains("rack r2") && paused.reason.contains("2 disks match"), "{paused:?}");
    assert_eq!(waiting(&view), 1);
    for index in [3, 4, 5] {
        prove(&server, index).await;
    }
    let view = server.operator().deployment(id).await.unwrap();
    assert_eq!((waiting(&view), view.state), (1, DeploymentState::Active), "n6 does not start in a paused rack");

    let operator = server.operator();
    let refused = operator.resume(id, &ResumeRequest { rack: Some("r1".parse().unwrap()), windows: None }).await;
    assert_eq!(status(refused), 409);
    operator.retry(id, &RetryRequest::default()).await.unwrap();
    for index in [2, 6] {
        prove(&server, index).await;
    }
    let view = until(&server, id, "its end", |view| view.state == DeploymentState::Done).await;
    assert!(view.outcomes.values().all(|outcome| matches!(outcome, Outcome::Running { .. })), "{:?}", view.outcomes);
    assert_eq!(status(operator.retry(id, &RetryRequest::default()).await), 409);

    let report = operator.report_of(id).await.unwrap();
    assert_eq!((report.nodes.len(), report.retries, report.racks.len()), (6, 1, 2));
    let copies: Vec<_> = report.racks.iter().map(|rack| rack.entered_copies).collect();
    assert!(report.image_bytes > 0 && copies.iter().all(|copies| copies.is_some_and(|c| c > 0.0)), "{copies:?}");
    assert!(report.links.iter().all(|link| link.from.is_none() && link.bytes > 0), "{:?}", report.links);
    assert!(
        report.failures.is_empty() && report.stages.iter().any(|time| time.stage == Stage::Rebooting),
        "{report:?}"
    );
    let retried = report.nodes.iter().find(|node| node.run.node.as_str() == "n2").unwrap();
    let reasons: Vec<bool> = retried.run.tries.iter().map(|one| one.reason.is_some()).collect();
    assert_eq!(reasons, [true, false]);

    // What would happen now is known from what was measured and told, and changes nothing.
    let racks = vec!["r1".parse().unwrap(), "r2".parse().unwrap()];
    let wanted = NewDeployment { image: "debian".into(), racks, ..NewDeployment::default() };
    let seen = operator.preview(&wanted).await.unwrap();
    assert!(seen.nodes.values().all(|node| node.refused.is_none() && node.runs.is_some()), "{seen:?}");
    let DiskPreview::Written { contents, .. } = &seen.nodes[&"n1".parse().unwrap()].disk else { panic!("{seen:?}") };
    assert_eq!(contents, &["an old file system"]);
    assert!(!seen.measured.is_empty());
    assert_eq!((operator.deployments().await.unwrap().len(), server.node("n1").await.stage), (1, Stage::Running));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_come_first_and_an_operator_pauses_resumes_and_cancels() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    two_racks(&server, "leaders").await;
    let operator = server.operator();
    let id = deploy(&server, Rollout { order: Order::Leaders, ..Rollout::default() }).await;
    until(&server, id, "both leaders", |view| waiting(view) == 4).await;
    let r1 = PauseRequest { rack: Some("r1".parse().unwrap()) };
    operator.pause(id, &r1).await.unwrap();
    assert_eq!(status(operator.pause(id, &r1).await), 409);
    prove(&server, 1).await;
    prove(&server, 2).await;
    let view = until(&server, id, "rack r2 to start", |view| waiting(view) == 2).await;
    assert!(view.waits_for.as_ref().unwrap().contains("paused"), "{view:?}");
    operator.resume(id, &ResumeRequest::default()).await.unwrap();
    until(&server, id, "rack r1 to start", |view| waiting(view) == 0).await;
    let view = operator.cancel(id).await.unwrap();
    assert_eq!(view.state, DeploymentState::Cancelled);
    let let_go = view.outcomes.values().filter(|outcome| **outcome == Outcome::LetGo).count();
    assert_eq!((let_go, server.node("n3").await.stage), (4, Stage::Enrolled));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_start_at_a_rate_and_within_windows() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.deploy.starts_per_second = 3;
    let server = Server::start(&config).await;
    two_racks(&server, "rate").await;
    let operator = server.operator();
    let now = operator.status().await.unwrap().now;
    let later = Window::Once { from: now.plus(3_600_000), until: now.plus(7_200_000) };
    let id = deploy(&server, Rollout { windows: vec![later], ..Rollout::default() }).await;
    let view = operator.deployment(id).await.unwrap();
    assert_eq!((waiting(&view), view.goes_on_at), (6, Some(now.plus(3_600_000))));
    let over = vec![Window::Once { from: Millis(1), until: Millis(2) }];
    assert_eq!(status(operator.resume(id, &ResumeRequest { rack: None, windows: Some(over) }).await), 400);
    operator.resume(id, &ResumeRequest { rack: None, windows: Some(vec![]) }).await.unwrap();
    for index in 1..=6 {
        server.until_stage(&format!("n{index}"), Stage::Leasing).await;
    }
    let mut seconds = std::collections::BTreeMap::<u64, u32>::new();
    for index in 1..=6 {
        let timeline = operator.timeline(&format!("n{index}").parse().unwrap()).await.unwrap();
        let assigned = timeline.iter().find(|line| line.kind == "assigned").unwrap();
        *seconds.entry(assigned.at.0 / 1000).or_default() += 1;
    }
    assert!(seconds.values().all(|count| *count <= 3), "{seconds:?}");
    let wrong = Rollout { at_once: Some(0), ..Rollout::default() };
    let wanted = NewDeployment {
        image: "debian".into(),
        nodes: vec!["n1".parse().unwrap()],
        rollout: wrong,
        ..NewDeployment::default()
    };
    assert_eq!(status(operator.deploy(&wanted).await), 400);
    server.stop().await;
}
