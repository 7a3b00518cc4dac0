//! Sets of machines and the power of nodes, from the outside: operators over the real client, sets and machines in memory,
//! and a cloud of moto's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use api::client::ClientError;
use api::operator::{
    AcquireRequest, GiveBackRequest, NewDeployment, NewSet, NodeSettings, PowerAction, PowerOutcome, PowerRequest,
    PowerResult, RackSettings, SetView, SyncOptions, SyncReport,
};
use common::{Server, config, content, eventually, fake, mac, status};
use fleet::life::Stage;
use fleet::node::Power;
use fleet::set::What;
use futures_util::StreamExt;
use rackswarm_controller::config::SetConfig;

const DRY: SyncOptions = SyncOptions { dry_run: true, force: false };
const REAL: SyncOptions = SyncOptions { dry_run: false, force: false };

fn set(name: &str, address: &str) -> NewSet {
    NewSet {
        name: name.parse().unwrap(),
        address: address.to_owned(),
        credentials_file: None,
        rack: None,
        unchecked: false,
    }
}

async fn sync(server: &Server, name: &str, options: SyncOptions) -> SyncReport {
    server.operator().sync_set(&name.parse().unwrap(), options).await.unwrap()
}

fn words(report: &SyncReport) -> Vec<(String, What)> {
    let name = |row: &fleet::set::Row| row.node.as_ref().map_or(row.id.clone(), ToString::to_string);
    report.rows.iter().map(|row| (name(row), row.what)).collect()
}

async fn power(
    server: &Server,
    action: PowerAction,
    nodes: &[&str],
    change: impl FnOnce(&mut PowerRequest),
) -> Vec<PowerResult> {
    let nodes = nodes.iter().map(|name| name.parse().unwrap()).collect();
    let mut request = PowerRequest { action, nodes, racks: Vec::new(), force: false, attempts: 1 };
    change(&mut request);
    let mut results: Vec<PowerResult> =
        server.operator().power(&request).await.unwrap().map(Result::unwrap).collect().await;
    results.sort_by(|a, b| a.node.cmp(&b.node));
    results
}

fn sentence<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> String {
    outcome.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_added_synced_and_removed_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let server = Server::start(&config).await;
    let operator = server.operator();
    let shelf = fake("shelf");
    let address = format!("fake:{shelf}?machines=3&rack=r9&rules=latency_ms:1");
    let added = operator.add_set(&set("cloud", &address)).await.unwrap();
    assert_eq!((added.listed, added.nodes, added.synced), (Some(3), 0, None));
    assert_eq!(status(operator.add_set(&set("cloud", "fake:other")).await), 409);
    assert!(sentence(operator.add_set(&set("same", &address)).await).contains("`cloud` has this address"));

    let dry = sync(&server, "cloud", DRY).await;
    assert!(dry.dry_run && dry.summary == "3 added", "{dry:?}");
    assert!(operator.nodes().await.unwrap().is_empty());
    let real = sync(&server, "cloud", REAL).await;
    assert_eq!(real.rows, dry.rows);
    let nodes = operator.nodes().await.unwrap();
    assert!(nodes.iter().all(|node| node.approved && node.rack == Some("r9".parse().unwrap()) && node.macs.len() == 1));
    assert_eq!(nodes[0].power, format!("fake:{shelf}-1?latency_ms=1"));
    assert_eq!(server.kinds(&format!("{shelf}-1")).await, ["added"]);

    let released = power::open_set(&address).unwrap().release(&format!("{shelf}-2")).await;
    released.unwrap();
    let report = sync(&server, "cloud", REAL).await;
    assert_eq!(report.summary, "2 unchanged, 1 retired");
    server.stop().await;

    let server = Server::start(&config).await;
    let operator = server.operator();
    let sets = operator.sets().await.unwrap();
    let SetView { nodes, missing, synced, configured, .. } = sets[0].clone();
    assert_eq!((nodes, missing, synced.as_deref(), configured), (2, 0, Some("2 unchanged, 1 retired"), false));
    operator.remove_set(&"cloud".parse().unwrap()).await.unwrap();
    assert_eq!(status(operator.remove_set(&"cloud".parse().unwrap()).await), 404);
    let nodes = operator.nodes().await.unwrap();
    assert!(nodes.len() == 2 && nodes.iter().all(|node| node.member.is_none()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_set_is_said_when_it_is_added() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    let password = folder.path().join("password");
    let bmc =
        NewSet { credentials_file: Some(password.clone()), ..set("c", "redfish+http://admin@127.0.0.1:9?attempts=1") };
    for (new, part) in [
        (set("c", "pigeon:x"), "the kinds are machines, redfish"),
        (set("c", "redfish+http://admin@127.0.0.1:9"), "password_file"),
        (set("c", "machines:/nonexistent/machines.toml"), "/nonexistent/machines.toml"),
        (bmc.clone(), "password file"),
        (
            NewSet { credentials_file: Some(password.clone()), ..set("c", "libvirt:?uri=test:///x") },
            "no credentials file",
        ),
    ] {
        let refused = operator.add_set(&new).await;
        assert!(matches!(refused, Err(ClientError::Refused { .. })), "{refused:?}");
        let said = sentence(refused);
        assert!(said.contains(part), "{said}");
    }
    std::fs::write(&password, "secret\n").unwrap();
    let said = sentence(operator.add_set(&bmc).await);
    assert!(said.contains("no connection") && !said.contains("secret"), "{said}");
    assert!(operator.sets().await.unwrap().is_empty());
    operator.add_set(&NewSet { unchecked: true, ..bmc }).await.unwrap();
    assert_eq!(status(operator.sync_set(&"c".parse().unwrap(), REAL).await), 502);
    assert_eq!(status(operator.sync_set(&"d".parse().unwrap(), REAL).await), 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_made_taken_in_and_given_back_by_their_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    operator.add_set(&set("cloud", &format!("fake:{}?machines=0", fake("makes")))).await.unwrap();
    let cloud = "cloud".parse().unwrap();
    let wish = |count| AcquireRequest {
        token: "web".into(),
        count,
        image: None,
        cpus: None,
        memory_mib: None,
        disk_gib: None,
        instance_type: None,
        rack: None,
    };
    let made = operator.acquire(&cloud, &wish(2)).await.unwrap();
    assert_eq!(words(&made).iter().filter(|(_, what)| *what == What::Added).count(), 2, "{made:?}");
    // The same wish again makes nothing; a larger one only what is missing.
    assert_eq!(
        words(&operator.acquire(&cloud, &wish(2)).await.unwrap()).iter().filter(|(_, w)| *w == What::Added).count(),
        0
    );
    let more = operator.acquire(&cloud, &wish(3)).await.unwrap();
    assert_eq!(more.rows.len(), 3, "{more:?}");

    let first = made.rows[0].node.clone().unwrap();
    let stranger = GiveBackRequest { nodes: vec!["nobody".parse().unwrap()] };
    assert_eq!(status(operator.give_back(&cloud, &stranger).await), 404);
    operator.give_back(&cloud, &GiveBackRequest { nodes: vec![first.clone()] }).await.unwrap();
    assert_eq!(status(operator.node(&first).await), 404, "nothing was ever written to it");
    assert_eq!(operator.nodes().await.unwrap().len(), 2);
    assert_eq!(status(operator.acquire(&cloud, &wish(0)).await), 409);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_are_asked_again_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let machines = folder.path().join("machines.toml");
    std::fs::write(&machines, "").unwrap();
    let mut config = config(folder.path());
    config.discovery.sync_seconds = 1;
    let server = Server::start(&config).await;
    server.operator().add_set(&set("hall", &format!("machines:{}", machines.display()))).await.unwrap();
    let entry = format!("[[machine]]\nname = \"n1\"\npower = \"fake:{}\"\nmac = [\"{}\"]\n", fake("n1"), mac(1));
    std::fs::write(&machines, entry).unwrap();
    let name = "n1".parse().unwrap();
    eventually("its machine is a node", || async { server.operator().node(&name).await.ok() }).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configurations_sets_come_and_go_with_it_and_their_nodes_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let machines = folder.path().join("machines.toml");
    let entry = |name: &str, rack: &str| {
        format!(
            "[[machine]]\nname = \"{name}\"\npower = \"fake:{}\"\nmac = [\"{}\"]\nrack = \"{rack}\"\n",
            fake(name),
            mac(name.len() as u8)
        )
    };
    std::fs::write(&machines, [entry("n1", "r1"), entry("n22", "r2")].concat()).unwrap();
    let address = format!("machines:{}", machines.display());
    config.set = vec![SetConfig { name: "hall".parse().unwrap(), address, credentials_file: None, rack: None }];
    let server = Server::start(&config).await;
    assert_eq!(words(&sync(&server, "hall", REAL).await), [("n1".into(), What::Added), ("n22".into(), What::Added)]);
    let refused = server.operator().remove_set(&"hall".parse().unwrap()).await;
    assert!(sentence(refused).contains("configuration"));
    std::fs::write(&machines, entry("n1", "r3")).unwrap();
    let report = sync(&server, "hall", REAL).await;
    assert!(report.rows[0].text.contains("rack r1 becomes r3"), "{report:?}");
    assert_eq!(words(&report), [("n1".into(), What::Changed), ("n22".into(), What::Retired)]);
    server.stop().await;
    config.set.clear();
    let server = Server::start(&config).await;
    assert!(server.operator().sets().await.unwrap().is_empty());
    assert_eq!(server.node("n1").await.member, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_node_that_its_set_does_not_list_is_kept_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let shelf = fake("kept");
    let address = format!("fake:{shelf}?machines=2");
    server.operator().add_set(&set("cloud", &address)).await.unwrap();
    sync(&server, "cloud", REAL).await;
    server.import("debian", content(3)).await.unwrap();
    let name = format!("{shelf}-1");
    server.deploy("debian", &[&name]).await;
    server.until_stage(&name, Stage::Leasing).await;
    let owner = power::open_set(&address).unwrap();
    for id in [&name, &format!("{shelf}-2")] {
        owner.release(id).await.unwrap();
    }
    let refused = server.operator().sync_set(&"cloud".parse().unwrap(), REAL).await;
    assert!(sentence(refused).contains("2 of its 2 nodes"));
    let report = sync(&server, "cloud", SyncOptions { force: true, ..REAL }).await;
    assert_eq!(words(&report), [(name.clone(), What::Missing), (format!("{shelf}-2"), What::Retired)]);
    let node = server.node(&name).await;
    assert!(node.member.unwrap().missing_since.is_some() && node.stage == Stage::Leasing);
    assert_eq!(server.operator().sets().await.unwrap()[0].missing, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_is_switched_read_back_and_told_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let rack = "r1".parse().unwrap();
    server.operator().put_rack(&rack, &RackSettings::default()).await.unwrap();
    let names = ["n1", "n2", "n3", "n4"];
    let rules = ["", "?fail=1", "?lie=on", "?fail=9"];
    for (index, (name, rule)) in names.iter().zip(rules).enumerate() {
        server.add_node(name, mac(index as u8), &format!("fake:{}{rule}", fake(&format!("power-{name}")))).await;
        let settings = NodeSettings { rack: Some(rack.clone()), ..NodeSettings::default() };
        server.operator().set_node(&name.parse().unwrap(), &settings).await.unwrap();
    }
    server.add_node("by-hand", mac(9), "manual:rack 7").await;
    let in_rack = |request: &mut PowerRequest| {
        request.racks = vec![rack.clone()];
        request.attempts = 2;
    };
    let results = power(&server, PowerAction::On, &["by-hand"], in_rack).await;
    let ends: Vec<_> =
        results.iter().map(|result| (result.node.as_str(), result.outcome, result.power, result.tries)).collect();
    let (done, asked, failed) = (PowerOutcome::Done, PowerOutcome::Asked, PowerOutcome::Failed);
    assert_eq!(
        ends,
        [
            ("by-hand", asked, Power::Unknown, 1),
            ("n1", done, Power::On, 1),
            ("n2", done, Power::On, 2),
            ("n3", failed, Power::Off, 1),
            ("n4", failed, Power::Unknown, 2),
        ]
    );
    assert!(results[3].text.contains("still reports off") && results[0].text.contains("rack 7"), "{results:?}");
    let node = server.node("n1").await;
    assert!(node.power_state == Some(Power::On) && node.power_read_at.is_some());
    assert_eq!(server.kinds("n1").await.last().unwrap(), "power");
    let read = power(&server, PowerAction::Status, &["n1"], |_| {}).await;
    assert_eq!((read[0].text.as_str(), read[0].power), ("on", Power::On));
    for (action, state) in
        [(PowerAction::Reset, Power::On), (PowerAction::Cycle, Power::On), (PowerAction::Off, Power::Off)]
    {
        assert_eq!(power(&server, action, &["n1"], |_| {}).await[0].power, state);
    }
    assert_eq!(power::fake::machine(&fake("power-n1")).unwrap().starts, 3);

    let operator = server.operator();
    let ask = |nodes: Vec<&str>, attempts| PowerRequest {
        action: PowerAction::On,
        nodes: nodes.into_iter().map(|name| name.parse().unwrap()).collect(),
        racks: vec![],
        force: false,
        attempts,
    };
    assert_eq!(status(operator.power(&ask(vec!["nobody"], 1)).await.map(drop)), 404);
    assert_eq!(status(operator.power(&ask(vec![], 1)).await.map(drop)), 409);
    assert_eq!(status(operator.power(&ask(vec!["n1"], 9)).await.map(drop)), 400);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_being_deployed_is_left_alone_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    server.add_node("n1", mac(1), &format!("fake:{}", fake("left-alone"))).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
    let refused = power(&server, PowerAction::Off, &["n1"], |_| {}).await;
    assert_eq!((refused[0].outcome, refused[0].tries), (PowerOutcome::Refused, 0));
    assert!(refused[0].text.contains("leasing") && refused[0].text.contains("--force"), "{refused:?}");
    assert_eq!(power(&server, PowerAction::Status, &["n1"], |_| {}).await[0].power, Power::On);
    assert_eq!(power(&server, PowerAction::Off, &["n1"], |r| r.force = true).await[0].power, Power::Off);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_operations_sessions_and_refused_logins() {
    use power::virtual_bmc::{Rules, VirtualBmc};
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let machine = power::open(&format!("fake:{}", fake("metered"))).unwrap();
    let bmc = VirtualBmc::start(listener, "admin", "right", Rules::default(), vec![("1".into(), machine)]).unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "right\n").unwrap();
    let address = format!("redfish+http://admin@{}?password_file={}&off_seconds=0", bmc.address(), password.display());
    server.add_node("n1", mac(1), &address).await;
    assert_eq!(power(&server, PowerAction::Cycle, &["n1"], |_| {}).await[0].power, Power::On);
    std::fs::write(&password, "wrong\n").unwrap();
    let locked_out = power(&server, PowerAction::On, &["n1"], |r| r.attempts = 5).await;
    assert_eq!((locked_out[0].outcome, locked_out[0].tries), (PowerOutcome::Failed, 1), "a refusal is not tried again");
    power(&server, PowerAction::On, &["n1"], |_| {}).await;
    assert_eq!(bmc.seen().refused, 1, "a refused password is not sent again");

    let metrics = server.operator().read("/metrics", 1 << 20).await.unwrap();
    let metrics = String::from_utf8(metrics).unwrap();
    let controller = format!("redfish admin@{}", bmc.address());
    for line in [
        "rackswarm_power_operations_total{driver=\"redfish\",operation=\"cycle\",outcome=\"done\"} 1",
        "rackswarm_power_operations_total{driver=\"redfish\",operation=\"on\",outcome=\"failed\"} 2",
        "rackswarm_power_operations_under_way 0",
        "rackswarm_power_controller_events_total{driver=\"redfish\",event=\"session_opened\"}",
        &format!("rackswarm_power_controller_troubles_total{{controller=\"{controller}\",event=\"login_refused\"}} 1"),
        &format!("rackswarm_power_controller_troubles_total{{controller=\"{controller}\",event=\"login_withheld\"}} 1"),
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    server.stop().await;
}

/// A cloud of moto's with two instances, and its address.
async fn moto(folder: &Path) -> (Child, String) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/power-venv/bin/moto_server");
    assert!(program.exists(), "moto is not in target/power-venv; run `cargo xtask test`, which installs it");
    let credentials = folder.join("credentials");
    std::fs::write(&credentials, "aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = hunter2\n").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Child(
        std::process::Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    let address = format!("ec2+http://127.0.0.1:{port}?region=us-east-1&settle_seconds=60");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "moto's server does not come up");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    (child, address)
}

struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_a_cloud_become_nodes_and_are_never_asked_to_boot_from_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let (_moto, address) = moto(folder.path()).await;
    let server = Server::start(&config(folder.path())).await;
    let operator = server.operator();
    let credentials = folder.path().join("credentials");
    let cloud = NewSet {
        credentials_file: Some(credentials.clone()),
        rack: Some("cloud".parse().unwrap()),
        ..set("moto", &address)
    };
    assert_eq!(operator.add_set(&cloud).await.unwrap().listed, Some(0));
    let owner = power::open_set(&power::set_address(&address, Some(&credentials)).unwrap()).unwrap();
    // An image that moto knows from the start.
    let wish =
        power::Wish { token: "web".into(), count: 2, image: Some("ami-12c6146b".into()), ..power::Wish::default() };
    let made = owner.acquire(&wish).await.unwrap();
    let report = sync(&server, "moto", REAL).await;
    assert_eq!(report.summary, "2 added");
    let (first, second) = (made[0].id.as_str(), made[1].id.as_str());
    let node = server.node(first).await;
    assert!(!node.macs.is_empty() && node.rack == Some("cloud".parse().unwrap()), "{node:?}");

    assert_eq!(power(&server, PowerAction::Off, &[first], |_| {}).await[0].power, Power::Off);
    let all = power(&server, PowerAction::Status, &[], |r| r.racks = vec!["cloud".parse().unwrap()]).await;
    let states: std::collections::BTreeMap<_, _> =
        all.iter().map(|result| (result.node.as_str(), result.power)).collect();
    assert_eq!((states[first], states[second]), (Power::Off, Power::On));
    assert_eq!(power(&server, PowerAction::Reset, &[first], |_| {}).await[0].power, Power::On);

    server.import("debian", content(1)).await.unwrap();
    let wanted =
        NewDeployment { image: "debian".into(), nodes: vec![first.parse().unwrap()], ..NewDeployment::default() };
    let refused = operator.deploy(&wanted).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 409, .. })), "{refused:?}");
    assert!(sentence(refused).contains("cannot make it boot from the network"));

    owner.release(second).await.unwrap();
    let report = sync(&server, "moto", REAL).await;
    assert_eq!(report.summary, "1 unchanged, 1 retired");
    server.stop().await;
}
