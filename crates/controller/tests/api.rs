//! The API from the outside: operators over the real client, machines by
//! script, power by the fake driver.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::pin::pin;
use std::time::Duration;

use api::agent::{Heartbeat, ReportKind, Token};
use api::operator::{NewDeployment, NewNode, NodeSettings, RackSettings, StreamEvent};
use common::{Server, config, content, disk, eventually, fake, mac, proof, status};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::Digest;
use fleet::life::Stage;
use fleet::node::Beat;
use fleet::post::PostSettings;
use futures_util::StreamExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_from_deploy_to_running() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.post.authorized_keys = Some(vec!["ssh-ed25519 AAAA all".to_owned()]);
    let server = Server::start(&config).await;
    let operator = server.operator();
    let machine = fake("life");

    let rack =
        RackSettings { post: PostSettings { user_data: Some("#cloud-config\n".into()), ..PostSettings::default() } };
    operator.put_rack(&"r1".parse().unwrap(), &rack).await.unwrap();
    server.add_node("n1", mac(1), &format!("fake:{machine}")).await;
    let in_rack = NodeSettings { rack: Some("r1".parse().unwrap()), ..NodeSettings::default() };
    operator.set_node(&"n1".parse().unwrap(), &in_rack).await.unwrap();
    let image = server.import("debian", content(7)).await.unwrap();
    assert_eq!((image.size_bytes, image.used_bytes < image.size_bytes), (1 << 20, true));

    let mut events = pin!(operator.events().await.unwrap());
    let wanted =
        NewDeployment { image: "debian".into(), racks: vec!["r1".parse().unwrap()], ..NewDeployment::default() };
    let deployment = operator.deploy(&wanted).await.unwrap();
    server.until_stage("n1", Stage::Leasing).await;
    let powered = power::fake::machine(&machine).unwrap();
    assert_eq!((powered.on, powered.booted_from, powered.starts), (true, Some(power::BootDevice::Network), 1));

    let agent = server.boot(mac(1)).await;
    let assignment = agent.register().await;
    assert_eq!((assignment.node.as_str(), assignment.digest), ("n1", image.digest));
    assert_eq!(assignment.post.authorized_keys, ["ssh-ed25519 AAAA all"]);
    assert_eq!(assignment.post.user_data.as_deref(), Some("#cloud-config\n"));
    assert_eq!(assignment.trackers, [server.url("/announce?rack=r1")]);
    assert!(!assignment.keep_what_is_right && assignment.post.grow_root && assignment.linger_seconds == 0);
    let manifest = agent.client.read(&assignment.manifest_path, 1 << 20).await.unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["digest"], image.digest.to_string());

    let deployed = agent.install(&assignment).await;
    server.until_stage("n1", Stage::Rebooting).await;
    let daemon = server.client(deployed.node_token.clone());
    assert_eq!(status(daemon.beat(&Heartbeat { beat: Beat::default() }).await), 409);
    daemon.prove(&proof(&deployed)).await.unwrap();
    let beat = Beat { load1: 0.5, processes_missing: vec!["nginx".into()], ..Beat::default() };
    daemon.beat(&Heartbeat { beat: beat.clone() }).await.unwrap();

    let node = server.node("n1").await;
    assert_eq!((node.stage, node.beat, node.tries), (Stage::Running, Some(beat), 1));
    let running = node.deployed.unwrap();
    assert_eq!((running.digest, running.disk), (image.digest, disk().identity()));
    let ended = operator.deployment(deployment.id).await.unwrap();
    assert_eq!(ended.state, DeploymentState::Done);
    assert!(matches!(ended.outcomes.values().next(), Some(Outcome::Running { .. })));
    let kinds = server.kinds("n1").await;
    let told = [
        "assigned",
        "powered_on",
        "script_sent",
        "agent_registered",
        "fetch_started",
        "image_verified",
        "post_action_done",
        "post_actions_done",
        "proved",
    ];
    assert!(told.iter().all(|kind| kinds.iter().any(|k| k == kind)), "{kinds:?}");
    assert_eq!(operator.racks().await.unwrap()[0].stages.get("running"), Some(&1));
    let now = operator.status().await.unwrap();
    assert_eq!((now.stages.get("running"), now.dhcp_mode.as_str()), (Some(&1), "off"));
    assert_eq!(now.seeded_bytes.get("debian"), Some(&0));

    let mut seen = Vec::new();
    while !seen.contains(&Stage::Running) {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
        if let StreamEvent::Node(node) = event {
            seen.push(node.stage);
        }
    }
    assert!(seen.is_sorted() && seen.contains(&Stage::Fetching), "{seen:?}");
    // With a subscriber still connected.
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_tried_again_and_then_failed_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.deploy.silence_seconds = 1;
    config.deploy.attempts = 2;
    let server = Server::start(&config).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("silent"))).await;
    server.import("debian", content(1)).await.unwrap();
    let deployment = server.deploy("debian", &["n1"]).await;
    for tries in [1, 2] {
        server.until("n1", "the next attempt", |n| n.stage == Stage::Leasing && n.tries == tries).await;
        server.boot(mac(1)).await.register().await;
    }
    let node = server.until_stage("n1", Stage::Failed).await;
    assert!(node.reason.as_deref().unwrap().contains("said nothing for 1 s"), "{:?}", node.reason);
    let ended = server.operator().deployment(deployment.id).await.unwrap();
    assert!(
        matches!(ended.outcomes.values().next(), Some(Outcome::Failed { reason }) if reason.contains("said nothing"))
    );
    assert_eq!(ended.state, DeploymentState::Done);
    assert!(server.script(mac(1)).await.contains("the last deployment of n1 failed"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_cancelled_midway_and_another_image_deployed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    let machine = fake("cancel");
    server.add_node("n1", mac(1), &format!("fake:{machine}")).await;
    server.import("first", content(1)).await.unwrap();
    let second_image = server.import("second", content(2)).await.unwrap();
    let first = server.deploy("first", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    let old = server.boot(mac(1)).await;
    let old_assignment = old.register().await;
    let fetching = ReportKind::FetchStarted { disk: disk().identity(), text: "begins".to_owned() };
    old.say(&old_assignment, fetching).await.unwrap();

    let again =
        NewDeployment { image: "second".into(), nodes: vec!["n1".parse().unwrap()], ..NewDeployment::default() };
    assert_eq!(status(operator.deploy(&again).await), 409);
    assert_eq!(status(operator.remove_image("first").await), 409);
    let cancelled = operator.cancel(first.id).await.unwrap();
    assert_eq!(cancelled.state, DeploymentState::Cancelled);
    let second = operator.deploy(&again).await.unwrap();
    assert_ne!(second.id, first.id);

    // The old agent must stop; nothing that it says changes anything.
    assert_eq!(status(old.say(&old_assignment, ReportKind::Alive).await), 401);
    let old_daemon = server.client(old_assignment.post.node_token.clone());
    assert_eq!(status(old_daemon.beat(&Heartbeat { beat: Beat::default() }).await), 401);
    operator.remove_image("first").await.unwrap();

    server.until_stage("n1", Stage::Leasing).await;
    assert_eq!(power::fake::machine(&machine).unwrap().starts, 2);
    let agent = server.boot(mac(1)).await;
    let assignment = agent.register().await;
    assert_eq!(assignment.digest, second_image.digest);
    assert!(assignment.keep_what_is_right && assignment.attempt > old_assignment.attempt);
    let deployed = agent.install(&assignment).await;
    server.client(deployed.node_token.clone()).prove(&proof(&deployed)).await.unwrap();
    assert_eq!(server.node("n1").await.stage, Stage::Running);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_attempts_are_refused_and_repeated_words_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("old"))).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    let first = server.boot(mac(1)).await;
    let first_assignment = first.register().await;
    let failed = ReportKind::Failed { reason: "a cable fell out".to_owned(), retry: true };
    first.say(&first_assignment, failed.clone()).await.unwrap();
    assert_eq!(status(first.say(&first_assignment, failed).await), 401);

    server.until("n1", "the second attempt", |n| n.stage == Stage::Leasing && n.tries == 2).await;
    let agent = server.boot(mac(1)).await;
    let lost = agent.register().await;
    let assignment = agent.register().await;
    assert_eq!(lost.attempt, assignment.attempt);
    let mut stale = assignment.clone();
    stale.attempt = first_assignment.attempt;
    assert_eq!(status(agent.say(&stale, ReportKind::Alive).await), 409);

    let deployed = agent.install(&assignment).await;
    agent.say(&assignment, ReportKind::PostActionsDone).await.unwrap();
    assert_eq!(server.node("n1").await.stage, Stage::Rebooting);
    let daemon = server.client(deployed.node_token.clone());
    assert_eq!(status(server.client(lost.post.node_token).prove(&proof(&deployed)).await), 401);
    daemon.prove(&proof(&deployed)).await.unwrap();
    daemon.prove(&proof(&deployed)).await.unwrap();
    let node = server.node("n1").await;
    assert_eq!((node.stage, node.unexpected_total), (Stage::Running, 0));
    assert_eq!(status(agent.client.register(&agent.introduction()).await), 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_controller_continues_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let server = Server::start(&config).await;
    let machine = fake("restart");
    server.add_node("n1", mac(1), &format!("fake:{machine}")).await;
    server.add_node("n2", mac(2), "manual:rack 1").await;
    let image = server.import("debian", content(1)).await.unwrap();
    let deployment = server.deploy("debian", &["n1", "n2"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    server.until_stage("n2", Stage::Leasing).await;
    let agent = server.boot(mac(1)).await;
    let assignment = agent.register().await;
    assert_eq!(assignment.linger_seconds, config.swarm.linger_seconds);
    let token = server.token();
    // The agents know this address.
    config.server.listen = server.address;
    server.stop().await;

    let server = Server::start(&config).await;
    assert_eq!(server.token(), token);
    assert_eq!(server.operator().images().await.unwrap()[0].digest, image.digest);
    let node = server.node("n1").await;
    assert_eq!((node.stage, node.attempt), (Stage::AgentUp, assignment.attempt.0));
    let deployed = agent.install(&assignment).await;
    server.client(deployed.node_token.clone()).prove(&proof(&deployed)).await.unwrap();
    assert_eq!(server.node("n1").await.stage, Stage::Running);
    assert_eq!(power::fake::machine(&machine).unwrap().starts, 1);
    let second = server.deploy("debian", &["n1"]).await;
    assert!(second.id > deployment.id);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tampered_proof_makes_a_node_running() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("tamper"))).await;
    server.add_node("n2", mac(2), &format!("fake:{}", fake("tamper2"))).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1", "n2"]).await;
    let mut installed = Vec::new();
    for (name, mac) in [("n1", mac(1)), ("n2", mac(2))] {
        server.until_stage(name, Stage::Leasing).await;
        let agent = server.boot(mac).await;
        let assignment = agent.register().await;
        // A proof that comes before anything was written.
        let early = server.client(assignment.post.node_token.clone());
        let mut claim = agent.install(&assignment).await;
        claim.node_token = assignment.post.node_token.clone();
        installed.push((agent, claim, early));
    }
    let (agent, deployed, daemon) = &installed[0];
    let good = proof(deployed);
    let mut wrong_digest = good.clone();
    wrong_digest.digest = Digest([9; 32]);
    assert_eq!(status(daemon.prove(&wrong_digest).await), 409);
    let mut wrong_disk = good.clone();
    wrong_disk.disk = "serial:another".to_owned();
    assert_eq!(status(daemon.prove(&wrong_disk).await), 409);
    let mut wrong_attempt = good.clone();
    wrong_attempt.attempt = wrong_attempt.attempt.next();
    assert_eq!(status(daemon.prove(&wrong_attempt).await), 409);
    for token in [Token("0".repeat(64)), Token(String::new()), server.token()] {
        assert_eq!(status(server.client(token).prove(&good).await), 401);
    }
    // The boot token is for the agent alone.
    assert_eq!(status(agent.client.prove(&good).await), 401);
    for name in ["n1", "n2"] {
        assert_eq!(server.node(name).await.stage, Stage::Rebooting);
    }
    // Another node's token proves only that other node.
    installed[1].2.prove(&good).await.unwrap();
    assert_eq!(server.node("n1").await.stage, Stage::Rebooting);
    assert_eq!(server.node("n2").await.stage, Stage::Running);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_the_node_gets_no_assignment() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("stranger"))).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    let agent = server.boot(mac(1)).await;
    let mut introduction = agent.introduction();
    introduction.macs = vec![mac(9).to_string(), "nonsense".to_owned()];
    assert_eq!(status(agent.client.register(&introduction).await), 409);
    assert_ne!(server.node("n1").await.stage, Stage::AgentUp);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_restarts_by_itself_begins_the_next_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.deploy.attempts = 2;
    let server = Server::start(&config).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("self"))).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    let first = server.boot(mac(1)).await.register().await;
    let agent = server.boot(mac(1)).await;
    let second = agent.register().await;
    assert_eq!(second.attempt, first.attempt.next());
    // That was the last attempt: the third boot leads to the disk.
    assert!(server.script(mac(1)).await.contains("the last deployment of n1 failed"));
    assert_eq!(server.node("n1").await.stage, Stage::Failed);
    assert_eq!(status(agent.say(&second, ReportKind::Alive).await), 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_power_driver_is_tried_again_and_its_words_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}?fail=1", fake("flaky"))).await;
    server.add_node("n2", mac(2), "manual:rack 3, unit 12").await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1", "n2"]).await;
    let node = server.until_stage("n1", Stage::Leasing).await;
    assert_eq!(node.tries, 2);
    assert!(node.reason.unwrap().contains("as its address asks"));
    server.until_stage("n2", Stage::Leasing).await;
    let lines = server.operator().timeline(&"n2".parse().unwrap()).await.unwrap();
    let asked = lines.iter().find(|line| line.kind == "powered_on").unwrap();
    assert!(asked.text.contains("operator is needed") && asked.text.contains("rack 3, unit 12"), "{}", asked.text);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_sentence_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    let http = reqwest::Client::new();
    let token = server.token().0;
    let ask = |method: &str, path: &str, body: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = http.request(method, server.url(path)).bearer_auth(&token).body(body.to_owned());
        async move {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let body: api::Problem = answer.json().await.expect("a problem in JSON");
            (status, body.error)
        }
    };
    for (method, path, body, expected, part) in [
        ("GET", "/api/v1/nothing", "", 404, "/api/v1/nothing"),
        ("GET", "/", "", 404, "openapi.json"),
        ("PUT", "/api/v1/nodes", "", 405, "does not take PUT"),
        ("POST", "/api/v1/nodes", "{\"name\": \"n1\",\n \"macs\": [", 400, "line 2 column"),
        ("POST", "/api/v1/nodes", "", 400, "line 1 column 0"),
        ("POST", "/api/v1/nodes", "{\"name\": \"N 1\"}", 400, "`N 1` is not a name"),
        ("POST", "/api/v1/nodes", "{\"name\": \"n1\"}", 400, "at least one MAC"),
        ("POST", "/api/v1/nodes", "{\"name\": \"n1\", \"macs\": [\"zz\"]}", 400, "not a MAC address"),
        (
            "POST",
            "/api/v1/nodes",
            "{\"name\": \"n1\", \"macs\": [\"52:54:00:00:00:01\"], \"power\": \"magic:x\"}",
            400,
            "magic:x",
        ),
        (
            "POST",
            "/api/v1/nodes",
            "{\"name\": \"n1\", \"macs\": [\"52:54:00:00:00:01\"], \"rack\": \"r9\"}",
            404,
            "no rack `r9`",
        ),
        ("GET", "/api/v1/nodes/n9", "", 404, "no node `n9`"),
        ("GET", "/api/v1/nodes/N9", "", 400, "`N9` is not a name"),
        ("GET", "/api/v1/deployments/12", "", 400, "d-12"),
        ("GET", "/api/v1/deployments/d-12", "", 404, "no deployment `d-12`"),
        ("PUT", "/api/v1/racks/r1", "{\"post\": {\"script\": {\"text\": \"echo\"}}}", 400, "interpreter"),
        ("PUT", "/api/v1/racks/r1", "{\"colour\": 1}", 400, "unknown field `colour`"),
        ("POST", "/api/v1/deployments", "{\"image\": \"none\", \"nodes\": []}", 404, "no image `none`"),
        ("POST", "/api/v1/images/i1?format=floppy", "x", 400, "floppy"),
        ("POST", "/api/v1/images/i1?format=raw", "x", 400, "512-byte sectors"),
        ("DELETE", "/api/v1/images/i1", "", 404, "no image `i1`"),
    ] {
        let (status, error) = ask(method, path, body).await;
        assert_eq!(status, expected, "{method} {path}: {error}");
        assert!(error.contains(part), "{method} {path}: {error}");
    }
    let (status_large, _) = ask("POST", "/api/v1/nodes", &" ".repeat(2 << 20)).await;
    assert_eq!(status_large, 413);
    for token in ["", "wrong", &"0".repeat(64)] {
        assert_eq!(status(server.client(Token(token.to_owned())).nodes().await), 401);
    }
    let bare = http.get(server.url("/api/v1/nodes")).send().await.unwrap();
    assert_eq!(bare.headers()["www-authenticate"], "Bearer");
    let document = reqwest::get(server.url("/api/v1/openapi.json")).await.unwrap().text().await.unwrap();
    assert_eq!(document, rackswarm_controller::openapi_json());
    assert!(operator.nodes().await.unwrap().is_empty() && operator.images().await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_does_not_disturb_others() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    for garbage in [
        &b"\0\xff\x16\x03\x01 nonsense\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        // Refused or reset, but never kept waiting.
        let _ = read.expect("the connection is closed");
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(server.operator().nodes().await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_listed_tracked_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    let image = server.import("debian", content(3)).await.unwrap();
    assert_eq!(status(server.import("debian", content(4)).await), 409);
    assert_eq!(operator.image("debian").await.unwrap(), image);

    let torrent = reqwest::get(server.url(&format!("/torrents/{}.torrent", image.infohash))).await.unwrap();
    assert_eq!(torrent.headers()["content-type"], "application/x-bittorrent");
    let metainfo = wire::metainfo::Metainfo::decode(&torrent.bytes().await.unwrap()).unwrap();
    assert_eq!(metainfo.info_hash().to_string(), image.infohash);
    assert_eq!(metainfo.announce(), [server.url("/announce")]);
    let none = reqwest::get(server.url(&format!("/torrents/{}.torrent", "0".repeat(40)))).await.unwrap();
    assert_eq!(none.status(), 404);

    let mut request = wire::announce::AnnounceRequest {
        info_hash: metainfo.info_hash(),
        peer_id: wire::peer::PeerId([1; 20]),
        port: 5000,
        uploaded: 0,
        downloaded: 0,
        left: 100,
        event: Some(wire::announce::Event::Started),
        num_want: None,
        compact: true,
        own_kind: false,
        rack: None,
    };
    let announce = |request: &wire::announce::AnnounceRequest| {
        let url = server.url(&format!("/announce?{}", request.encode_query()));
        async move {
            let body = reqwest::get(url).await.unwrap().bytes().await.unwrap();
            wire::announce::Answer::decode(&body).unwrap()
        }
    };
    let wire::announce::Answer::Peers(first) = announce(&request).await else { panic!("refused") };
    assert_eq!(first.peers.len(), 1, "the seeder alone");
    assert!(tokio::net::TcpStream::connect(first.peers[0].address).await.is_ok());
    request.port = 5001;
    request.peer_id.0[0] = 2;
    let wire::announce::Answer::Peers(second) = announce(&request).await else { panic!("refused") };
    assert_eq!((second.peers.len(), second.incomplete), (2, Some(2)));
    request.info_hash.0[0] ^= 1;
    assert!(matches!(announce(&request).await, wire::announce::Answer::Failure(_)));
    let nonsense = reqwest::get(server.url("/announce?info_hash=x")).await.unwrap().bytes().await.unwrap();
    assert!(matches!(wire::announce::Answer::decode(&nonsense).unwrap(), wire::announce::Answer::Failure(_)));
    let scrape = reqwest::get(server.url("/scrape")).await.unwrap().bytes().await.unwrap();
    assert_eq!(wire::announce::decode_scrape(&scrape).unwrap()[0].1.incomplete, 2);

    operator.remove_image("debian").await.unwrap();
    assert!(operator.images().await.unwrap().is_empty());
    request.info_hash.0[0] ^= 1;
    assert!(matches!(announce(&request).await, wire::announce::Answer::Failure(_)));
    // The name is free again.
    server.import("debian", content(4)).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let broken = futures_util::stream::iter([
        Ok(bytes::Bytes::from(vec![1; 100_000])),
        Err(std::io::Error::other("the cable was pulled")),
    ]);
    let outcome = server.operator().import_image("half", Some("raw"), 1 << 20, broken).await;
    assert!(outcome.is_err());
    let images = server.config.server.data_dir.join("images");
    eventually("an empty registry", || async { std::fs::read_dir(&images).unwrap().next().is_none().then_some(()) })
        .await;
    assert!(server.operator().images().await.unwrap().is_empty());
    server.import("half", content(1)).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_wait_for_approval_and_nodes_can_be_released_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    assert!(server.script(mac(7)).await.contains("not enrolled"));
    let name = "node-525400000007";
    let node = server.until(name, "the stranger", |_| true).await;
    assert!(!node.approved && node.waits_for.contains("approve"));
    server.import("debian", content(1)).await.unwrap();
    let wanted =
        NewDeployment { image: "debian".into(), nodes: vec![name.parse().unwrap()], ..NewDeployment::default() };
    assert_eq!(status(operator.deploy(&wanted).await), 409);
    assert!(operator.approve_node(&name.parse().unwrap()).await.unwrap().approved);
    operator.deploy(&wanted).await.unwrap();
    assert_eq!(status(operator.remove_node(&name.parse().unwrap()).await), 409);
    let released = operator.release_node(&name.parse().unwrap()).await.unwrap();
    assert_eq!(released.stage, Stage::Enrolled);
    operator.remove_node(&name.parse().unwrap()).await.unwrap();
    assert!(operator.nodes().await.unwrap().is_empty());

    // A stranger becomes the node that an operator adds with its MAC address.
    server.script(mac(8)).await;
    server.until("node-525400000008", "the second stranger", |_| true).await;
    let settings = NodeSettings { macs: Some(vec![mac(8)]), ..NodeSettings::default() };
    operator.add_node(&NewNode { name: "n8".parse().unwrap(), settings }).await.unwrap();
    let names: Vec<String> = operator.nodes().await.unwrap().into_iter().map(|n| n.name.to_string()).collect();
    assert_eq!(names, ["n8"]);
    server.stop().await;
}
