//! What goes wrong around a deployment: the controller dies again and again, machines never boot or share an address,
//! their power controllers lie. Nothing is silently successful, nothing is stuck, and what can finish finishes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod child;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::agent::{Orders, Report, ReportKind, Token};
use api::client::{Client, ClientError};
use api::operator::{NewDeployment, NewNode, NodeSettings, NodeView};
use child::Controller;
use common::{Agent, Server, config, content, disk, fake, mac, proof, status};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::{Mac, NodeName};
use fleet::life::Stage;
use nix::sys::signal::Signal;
use tokio::sync::watch;

/// The paper's machines.
const MACHINES: usize = 230;
/// One of so many never boots.
const DEAD_EVERY: usize = 10;
const KILLS: usize = 8;
/// Whoever needs longer is stuck.
const DEADLINE: Duration = Duration::from_secs(150);

fn address(number: usize) -> Mac {
    let [high, low] = (number as u16).to_be_bytes();
    Mac([0x52, 0x54, 0, 1, high, low])
}

fn name(number: usize) -> NodeName {
    format!("n{number:03}").parse().unwrap()
}

/// A machine that boots whenever it is switched on, and what it was answered.
struct Machine {
    number: usize,
    client: Client,
    /// The attempt for which it was switched on last.
    power: watch::Receiver<u32>,
    /// What the controller has accepted: attempt, and the word of the line in the timeline.
    accepted: Arc<Mutex<BTreeSet<(u32, &'static str)>>>,
}

impl Machine {
    /// Boots until a system of it has proved itself.
    async fn live(mut self) {
        loop {
            self.power.changed().await.unwrap();
            if self.attempt().await.is_some() {
                return;
            }
        }
    }

    /// Nothing where the attempt is over.
    async fn attempt(&self) -> Option<()> {
        let path = format!("/boot/{}/script?uuid=&platform=pcbios", address(self.number).dashed());
        let script = insist(|| self.client.read(&path, 65_536)).await?;
        let script = String::from_utf8(script).unwrap();
        let token = script.split_whitespace().find_map(|word| word.strip_prefix("rackswarm.token="))?;
        let agent = Agent { client: self.client.with_token(Token(token.to_owned())), mac: address(self.number) };
        let introduction = agent.introduction();
        let Orders::Install(orders) = insist(|| agent.client.register(&introduction)).await? else { panic!() };
        let attempt = orders.attempt;
        for (what, kind) in [
            (ReportKind::FetchStarted { disk: disk().identity(), text: "it writes".into() }, "fetch_started"),
            (ReportKind::ImageVerified { text: "verified".into() }, "image_verified"),
            (ReportKind::PostActionsDone, "post_actions_done"),
        ] {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let report = Report { attempt, what };
            insist(|| agent.client.report(&report)).await?;
            self.accepted.lock().unwrap().insert((attempt.0, kind));
        }
        let proof = api::agent::Proof {
            digest: orders.digest,
            disk: disk().identity(),
            attempt,
            boot_id: "b".into(),
            kernel: "6.12".into(),
        };
        let daemon = self.client.with_token(orders.post.node_token.clone());
        insist(|| daemon.prove(&proof)).await?;
        self.accepted.lock().unwrap().insert((attempt.0, "proved"));
        Some(())
    }
}

/// Asks again while the controller is away; nothing where it refuses.
async fn insist<T, F: Future<Output = Result<T, ClientError>>>(mut ask: impl FnMut() -> F) -> Option<T> {
    loop {
        match ask().await {
            Ok(answer) => return Some(answer),
            Err(error) if error.may_pass() => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(_) => return None,
        }
    }
}

/// Switches machines on as the controller has had them switched, and looks that nobody stands past its deadline.
async fn watch_over(operator: Client, power: BTreeMap<NodeName, watch::Sender<u32>>) {
    loop {
        if let (Ok(now), Ok(nodes)) = (operator.status().await.map(|status| status.now), operator.nodes().await) {
            for NodeView { name, stage, attempt, deadline, .. } in nodes {
                let late = deadline.map_or(0, |deadline| now.since(deadline));
                assert!(late < 10_000, "{name} stands in {stage} for {late} ms past its deadline");
                if stage == Stage::Leasing {
                    power[&name].send_if_modified(|last| std::mem::replace(last, attempt) != attempt);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_again_and_again_and_machines_that_never_boot_leave_every_node_decided() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    (config.deploy.attempts, config.deploy.leasing_seconds) = (2, 6);
    (config.deploy.starts_per_second, config.deploy.starts_per_second_per_rack) = (60, 60);
    let mut controller = Controller::start(&config).await;
    config.server.listen = controller.address;
    let operator = controller.operator();
    let image = bytes::Bytes::from(content(3));
    let body = futures_util::stream::iter([Ok(image.clone())]);
    let digest = operator.import_image("debian", Some("raw"), image.len() as u64, body).await.unwrap().digest;
    let mut power = BTreeMap::new();
    let mut machines = Vec::new();
    let accepted: Vec<_> = (0..MACHINES).map(|_| Arc::default()).collect();
    for (number, accepted) in accepted.iter().enumerate() {
        let settings = NodeSettings {
            macs: Some(vec![address(number)]),
            power: Some(format!("fake:{}", fake(&format!("kill-{number}")))),
            ..NodeSettings::default()
        };
        operator.add_node(&NewNode { name: name(number), settings }).await.unwrap();
        let line = watch::Sender::new(0);
        let (client, accepted) = (operator.clone(), Arc::clone(accepted));
        if number % DEAD_EVERY != 0 {
            machines.push(tokio::spawn(Machine { number, client, power: line.subscribe(), accepted }.live()));
        }
        power.insert(name(number), line);
    }
    let wanted =
        NewDeployment { image: "debian".into(), nodes: (0..MACHINES).map(name).collect(), ..NewDeployment::default() };
    let id = operator.deploy(&wanted).await.unwrap().id;
    let mut watching = tokio::spawn(watch_over(operator.clone(), power));

    let begun = Instant::now();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        controller.signal(Signal::SIGKILL);
        controller.wait().await;
        controller = Controller::start(&config).await;
    }
    let view = loop {
        assert!(begun.elapsed() < DEADLINE, "it is not done after {DEADLINE:?}");
        assert!(!watching.is_finished(), "{:?}", (&mut watching).await);
        match operator.deployment(id).await {
            Ok(view) if view.state == DeploymentState::Done => break view,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    watching.abort();
    for machine in machines {
        machine.await.unwrap();
    }
    for (number, accepted) in accepted.iter().enumerate() {
        let node = operator.node(&name(number)).await.unwrap();
        if number % DEAD_EVERY == 0 {
            let Outcome::Failed { reason } = &view.outcomes[&name(number)] else { panic!("{:?}", view.outcomes) };
            assert!(reason.contains("to ask for an address by DHCP"), "{reason}");
            assert_eq!((node.stage, node.tries), (Stage::Failed, 2));
            continue;
        }
        assert!(matches!(view.outcomes[&name(number)], Outcome::Running { .. }), "{number}: {:?}", node.reason);
        let deployed = node.deployed.unwrap();
        assert_eq!((node.stage, deployed.digest, deployed.attempt), (Stage::Running, digest, node.attempt));
        // What was answered is there, whenever the controller died.
        let timeline = operator.timeline(&name(number)).await.unwrap();
        for (attempt, kind) in accepted.lock().unwrap().iter() {
            let found = timeline.iter().any(|line| line.attempt == *attempt && line.kind == *kind);
            assert!(found, "{kind} of attempt {attempt} of {number} is lost");
        }
    }
    let report = operator.report_of(id).await.unwrap();
    assert_eq!((report.nodes.len(), report.failures.len()), (MACHINES, MACHINES.div_ceil(DEAD_EVERY)));
    controller.signal(Signal::SIGTERM);
    controller.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_address_never_count_as_one_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("twins"))).await;
    server.import("debian", content(7)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    let first = server.boot(mac(1)).await;
    let orders = first.register().await;
    let deployed = first.install(&orders).await;
    // The twin boots its own disk, because what has the address has been written; so nothing is written to the twin.
    assert!(!server.script(mac(1)).await.contains("rackswarm.token="));
    server.client(deployed.node_token.clone()).prove(&proof(&deployed)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    // While both are up, the one that asked last has the attempt, and the other is told to stop.
    let mut agents = vec![server.boot(mac(1)).await];
    let mut orders = vec![agents[0].register().await];
    for _ in 1..server.config.deploy.attempts {
        agents.push(server.boot(mac(1)).await);
        orders.push(agents.last().unwrap().register().await);
        let [.., (before, old), (last, new)] = &agents.iter().zip(&orders).collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!(status(before.say(old, ReportKind::Alive).await), 401);
        last.say(new, ReportKind::Alive).await.unwrap();
    }
    server.script(mac(1)).await;
    let node = server.until_stage("n1", Stage::Failed).await;
    assert!(node.reason.unwrap().contains("restarted by itself"));
    assert_eq!(status(agents.last().unwrap().say(orders.last().unwrap(), ReportKind::Alive).await), 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_with_another_uuid_behind_the_same_address_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("boards"))).await;
    server.add_node("n2", mac(2), &format!("fake:{}", fake("boards2"))).await;
    server.import("debian", content(7)).await.unwrap();
    server.deploy("debian", &["n1", "n2"]).await;
    let maker = uuid::Uuid::from_u128(0x0003_0003_0003_0003_0003_0003_0003_0003);
    // Both boards have the UUID that their maker gave to all. Each is who its address says.
    for (index, name) in [(1, "n1"), (2, "n2")] {
        server.until_stage(name, Stage::Leasing).await;
        let mut introduction = server.boot(mac(index)).await;
        let mut said = introduction.introduction();
        said.uuid = Some(maker);
        let Orders::Install(orders) = introduction.client.register(&said).await.unwrap() else { panic!() };
        assert_eq!(orders.node.as_str(), name);
        introduction.mac = mac(index);
        let deployed = introduction.install(&orders).await;
        server.client(deployed.node_token.clone()).prove(&proof(&deployed)).await.unwrap();
        assert_eq!(server.node(name).await.uuid, Some(maker));
    }
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    let agent = server.boot(mac(1)).await;
    let mut said = agent.introduction();
    said.uuid = Some(uuid::Uuid::from_u128(99));
    agent.client.register(&said).await.unwrap();
    assert_eq!(server.node("n1").await.unexpected_total, 1);
    let timeline = server.operator().timeline(&"n1".parse().unwrap()).await.unwrap();
    assert!(timeline.iter().any(|line| line.kind == "unexpected" && line.text.contains("another machine")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_controllers_that_fail_lie_and_answer_late_fail_their_own_nodes_alone_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    (config.deploy.attempts, config.deploy.leasing_seconds) = (2, 6);
    let server = Server::start(&config).await;
    server.import("debian", content(7)).await.unwrap();
    // Rules of the controller, and what its node is to end with: nothing where it is to run.
    let rows: [(&str, Option<&str>); 7] = [
        ("", None),
        ("latency_ms=300", None),
        ("late_ms=400&readback=yes", None),
        ("fail=1", None),
        ("login=wrong&lockout=3", Some("password")),
        ("lie=boot&readback=yes", Some("boot")),
        ("lie=order", Some("to ask for an address by DHCP")),
    ];
    let names: Vec<String> = (1..=rows.len()).map(|index| format!("n{index}")).collect();
    for (index, (rules, _)) in rows.iter().enumerate() {
        let power = format!("fake:{}?{rules}", fake(&format!("bmc-{index}")));
        server.add_node(&names[index], mac(index as u8 + 1), power.trim_end_matches('?')).await;
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let id = server.deploy("debian", &all).await.id;
    let boots = rows.iter().enumerate().filter(|(_, (_, end))| end.is_none()).map(|(index, _)| {
        let (server, name) = (&server, &names[index]);
        async move {
            server.until_stage(name, Stage::Leasing).await;
            let agent = server.boot(mac(index as u8 + 1)).await;
            let deployed = agent.install(&agent.register().await).await;
            server.client(deployed.node_token.clone()).prove(&proof(&deployed)).await.unwrap();
        }
    });
    futures_util::future::join_all(boots).await;
    let operator = server.operator();
    let ended = common::eventually("the end", || async {
        operator.deployment(id).await.ok().filter(|view| view.state == DeploymentState::Done)
    });
    let view = ended.await;
    for ((rules, end), name) in rows.iter().zip(&names) {
        match (&view.outcomes[&name.parse().unwrap()], end) {
            (Outcome::Running { .. }, None) => {}
            (Outcome::Failed { reason }, Some(word)) => assert!(reason.contains(word), "{rules}: {reason}"),
            other => panic!("{rules}: {other:?}"),
        }
    }
    server.stop().await;
}

#[test]
fn controller_process() {
    child::run();
}
