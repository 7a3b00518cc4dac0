//! One suite over every store: memory, SQLite and a private PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod postgres;

use std::collections::BTreeMap;
use std::sync::Arc;

use boot::director::Lease;
use fleet::change::{Change, Note, Snapshot};
use fleet::deployment::{Deployment, ImageInfo, Outcome};
use fleet::ids::{Attempt, DeploymentId, Digest, Mac, Millis};
use fleet::life::Stage;
use fleet::node::{Live, Node, Rack, TokenHash};
use fleet::post::PostSettings;
use fleet::rollout::{Budget, Group, PausedBy, Rollout, Wave, WaveKind};
use fleet::run::Run;
use fleet::set::{MachineSet, Synced};
use rackswarm_controller::Error;
use rackswarm_controller::store::{MemoryStore, Revision, SqlStore, Store, TIMELINE_LINES};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{Connection, Executor};

#[tokio::test]
async fn memory_keeps_the_contract() {
    for (name, scenario) in SCENARIOS {
        eprintln!("memory: {name}");
        scenario(Arc::new(MemoryStore::default())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    for (name, scenario) in SCENARIOS {
        eprintln!("sqlite: {name}");
        let folder = tempfile::tempdir().unwrap();
        scenario(Arc::new(SqlStore::open_file(&folder.path().join("a b%20?#.db")).await.unwrap())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_keeps_the_contract() {
    let server = postgres::Server::start();
    for (name, scenario) in SCENARIOS {
        eprintln!("postgresql: {name}");
        let url = server.create(name);
        scenario(Arc::new(SqlStore::open(&url, None).await.unwrap())).await;
        let again = SqlStore::open(&url, None).await.unwrap();
        again.load().await.unwrap();
    }
    two_writers(&server.create("writers")).await;
    newer(&server.create("newer")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_remembers_after_it_was_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = SqlStore::open_file(&path).await.unwrap();
    let changes = vec![Change::PutNode(Box::new(node("n1", 1))), note("n1", 1)];
    store.apply(Revision(0), &changes).await.unwrap();
    store.save_leases(&[lease(1, 1, 10)]).await.unwrap();
    let before = store.load().await.unwrap();
    store.close().await;
    let store = SqlStore::open_file(&path).await.unwrap();
    assert_eq!(store.load().await.unwrap(), before);
    assert_eq!(store.timeline(&"n1".parse().unwrap()).await.unwrap().len(), 1);
    assert_eq!(store.load_leases().await.unwrap(), [lease(1, 1, 10)]);
    store.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_serves_two_writers_and_refuses_a_newer_database_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite://{}?mode=rwc", folder.path().join(name).display());
    two_writers(&url("writers.db")).await;
    newer(&url("newer.db")).await;
    let path = folder.path().join("newer.db");
    let before = std::fs::read(&path).unwrap();
    assert!(SqlStore::open_file(&path).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn what_is_no_database_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letter.db");
    std::fs::write(&path, "Dear Sir, this is not a database. ".repeat(100)).unwrap();
    let before = std::fs::read(&path).unwrap();
    let sentence = SqlStore::open_file(&path).await.unwrap_err().to_string();
    assert!(sentence.contains("letter.db") && sentence.contains("not a database"), "{sentence}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let sentence = SqlStore::open_file(&folder.path().join("none/state.db")).await.unwrap_err().to_string();
    assert!(sentence.contains("none/state.db"), "{sentence}");
    let sentence = SqlStore::open("mysql://x/y", None).await.unwrap_err().to_string();
    assert!(sentence.contains("mysql://x/y") && sentence.contains("postgres://"), "{sentence}");
}

type Scenario = fn(Arc<dyn Store>) -> futures_util::future::BoxFuture<'static, ()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("empty", |store| Box::pin(empty(store))),
    ("applied", |store| Box::pin(applied(store))),
    ("conflict", |store| Box::pin(conflict(store))),
    ("since", |store| Box::pin(since(store))),
    ("timelines", |store| Box::pin(timelines(store))),
    ("runs", |store| Box::pin(runs(store))),
    ("outcomes", |store| Box::pin(outcomes(store))),
    ("leases", |store| Box::pin(leases(store))),
    ("readers", |store| Box::pin(readers(store))),
    ("oracle", |store| Box::pin(oracle(store))),
];

async fn empty(store: Arc<dyn Store>) {
    assert_eq!(store.load().await.unwrap(), (Snapshot::default(), Revision(0)));
    assert_eq!(store.since(Revision(0)).await.unwrap(), (Vec::new(), Revision(0)));
    assert!(store.timeline(&"n1".parse().unwrap()).await.unwrap().is_empty());
    assert!(store.load_leases().await.unwrap().is_empty());
}

async fn applied(store: Arc<dyn Store>) {
    let changes = [
        Change::PutNode(Box::new(node("n1", 1))),
        Change::PutRack(rack("r1")),
        Change::PutDeployment(deployment(1)),
        Change::PutLive("n1".parse().unwrap(), Live::default()),
        note("n1", 1),
    ];
    assert_eq!(store.apply(Revision(0), &changes).await.unwrap(), Revision(1));
    let mut full = node("n1", 1);
    full.boot_token = Some(TokenHash("ab'c\"\\ä\u{1F600}".to_owned()));
    full.post.user_data = Some("x".repeat(100_000));
    assert_eq!(store.apply(Revision(1), &[Change::PutNode(Box::new(full.clone()))]).await.unwrap(), Revision(2));
    let (snapshot, revision) = store.load().await.unwrap();
    assert_eq!(revision, Revision(2));
    assert_eq!(snapshot.nodes.values().collect::<Vec<_>>(), [&full]);
    assert_eq!(snapshot.racks.values().collect::<Vec<_>>(), [&rack("r1")]);
    assert_eq!(snapshot.deployments.values().collect::<Vec<_>>(), [&deployment(1)]);
    assert!(snapshot.live.is_empty() && snapshot.node_of(full.macs[0]).is_some());
}

async fn runs(store: Arc<dyn Store>) {
    let run = |deployment: u64, node: &str, at: u64| {
        let node = node.parse().unwrap();
        let mut run = Run::begin(None, DeploymentId(deployment), &node, None, Attempt(1), Millis(at));
        run.left(Stage::Fetching, 5);
        run.ended_at = Some(Millis(at + 9));
        run
    };
    let changes = [run(1, "n2", 1), run(1, "n1", 2), run(2, "n1", 3)].map(Change::PutRun);
    let base = store.apply(Revision(0), &changes).await.unwrap();
    store.apply(base, &[Change::PutRun(run(1, "n2", 4))]).await.unwrap();
    assert_eq!(store.runs(DeploymentId(1)).await.unwrap(), [run(1, "n1", 2), run(1, "n2", 4)]);
    assert_eq!(store.runs(DeploymentId(2)).await.unwrap(), [run(2, "n1", 3)]);
    assert!(store.runs(DeploymentId(3)).await.unwrap().is_empty());
    // Of several in one transaction the last counts.
    let mut ended = deployment(1);
    ended.course.finished_at = Some(Millis(7));
    let changes = [Change::PutDeployment(deployment(1)), note("n1", 1), Change::PutDeployment(ended.clone())];
    store.apply(base.next(), &changes).await.unwrap();
    assert_eq!(store.load().await.unwrap().0.deployments.values().collect::<Vec<_>>(), [&ended]);
}

/// What changes of a deployment is kept beside its body, until the body is written anew.
async fn outcomes(store: Arc<dyn Store>) {
    let n1 = || "n1".parse().unwrap();
    let mut expected = deployment(1);
    let base = store.apply(Revision(0), &[Change::PutDeployment(expected.clone())]).await.unwrap();
    expected.outcomes.insert(n1(), Outcome::Running { milliseconds: 5 });
    expected.course.pause(None, PausedBy::Operator, "an operator asked for it", Millis(9));
    let changes = [
        Change::PutOutcome(DeploymentId(1), n1(), Outcome::LetGo),
        Change::PutCourse(DeploymentId(1), Box::new(expected.course.clone())),
        Change::PutOutcome(DeploymentId(1), n1(), Outcome::Running { milliseconds: 5 }),
    ];
    let base = store.apply(base, &changes).await.unwrap();
    assert_eq!(store.load().await.unwrap().0.deployments[&DeploymentId(1)], expected);
    let whole = deployment(1);
    let base = store.apply(base, &[Change::PutDeployment(whole.clone())]).await.unwrap();
    assert_eq!(store.load().await.unwrap().0.deployments[&DeploymentId(1)], whole);
    store.apply(base, &[Change::PutOutcome(DeploymentId(1), n1(), Outcome::LetGo)]).await.unwrap();
    assert_eq!(store.load().await.unwrap().0.deployments[&DeploymentId(1)].outcomes[&n1()], Outcome::LetGo);
}

async fn conflict(store: Arc<dyn Store>) {
    let first = [Change::PutRack(rack("r1"))];
    store.apply(Revision(0), &first).await.unwrap();
    for base in [Revision(0), Revision(2)] {
        let refused = store.apply(base, &[Change::PutRack(rack("r2")), note("n1", 1)]).await.unwrap_err();
        assert!(matches!(refused, Error::Conflict { present: 1, .. }), "{refused}");
    }
    let (snapshot, revision) = store.load().await.unwrap();
    assert_eq!((snapshot.racks.len(), revision), (1, Revision(1)));
    assert!(store.timeline(&"n1".parse().unwrap()).await.unwrap().is_empty());
}

async fn since(store: Arc<dyn Store>) {
    let steps = [
        vec![Change::PutNode(Box::new(node("n1", 1))), Change::PutNode(Box::new(node("n2", 2))), note("n1", 1)],
        vec![Change::PutRack(rack("r1")), Change::PutRack(rack("r2"))],
        vec![Change::DropNode("n2".parse().unwrap()), Change::DropRack("r1".parse().unwrap())],
        // Its MAC address comes back under another name, and the name with another address.
        vec![Change::PutNode(Box::new(node("n3", 2))), Change::PutNode(Box::new(node("n2", 4)))],
        vec![Change::PutDeployment(deployment(1)), note("n2", 4), note("n3", 4)],
        vec![Change::DropNode("n1".parse().unwrap())],
    ];
    let mut history = vec![Snapshot::default()];
    for (base, changes) in steps.iter().enumerate() {
        store.apply(Revision(base as u64), changes).await.unwrap();
        history.push(store.load().await.unwrap().0);
    }
    for (revision, old) in history.iter().enumerate() {
        let (changes, present) = store.since(Revision(revision as u64)).await.unwrap();
        assert_eq!(present, Revision(steps.len() as u64));
        let mut caught_up = old.clone();
        changes.iter().for_each(|change| caught_up.apply(change));
        assert_eq!(Some(&caught_up), history.last(), "from revision {revision}");
    }
    let (changes, _) = store.since(Revision(4)).await.unwrap();
    assert_eq!(changes.iter().filter(|c| matches!(c, Change::Note(_))).count(), 2);
    assert_eq!(store.since(Revision(6)).await.unwrap().0, []);
}

async fn timelines(store: Arc<dyn Store>) {
    let mut base = Revision(0);
    base = store.apply(base, &[note("n1", 1), note("n2", 2), note("n1", 3)]).await.unwrap();
    base = store.apply(base, &[note("n1", 4)]).await.unwrap();
    let moments = |notes: Vec<Note>| notes.into_iter().map(|note| note.at.0).collect::<Vec<_>>();
    assert_eq!(moments(store.timeline(&"n1".parse().unwrap()).await.unwrap()), [1, 3, 4]);
    base = store.apply(base, &[Change::DropNode("n1".parse().unwrap())]).await.unwrap();
    assert!(store.timeline(&"n1".parse().unwrap()).await.unwrap().is_empty());
    assert_eq!(moments(store.timeline(&"n2".parse().unwrap()).await.unwrap()), [2]);

    let many = TIMELINE_LINES as u64 + 600;
    for from in (0..many).step_by(100) {
        let lines: Vec<Change> = (from..from + 100).map(|at| note("n3", at)).collect();
        base = store.apply(base, &lines).await.unwrap();
    }
    let kept = moments(store.timeline(&"n3".parse().unwrap()).await.unwrap());
    assert_eq!((kept.len(), kept.first(), kept.last()), (TIMELINE_LINES, Some(&600), Some(&(many - 1))));
    assert_eq!(moments(store.timeline(&"n2".parse().unwrap()).await.unwrap()), [2]);
}

async fn leases(store: Arc<dyn Store>) {
    store.save_leases(&[lease(1, 1, 10), lease(2, 2, 20)]).await.unwrap();
    store.save_leases(&[lease(2, 3, 30)]).await.unwrap();
    store.save_leases(&[]).await.unwrap();
    let mut found = store.load_leases().await.unwrap();
    found.sort_by_key(|lease| lease.address);
    assert_eq!(found, [lease(1, 1, 10), lease(2, 3, 30)]);
}

/// Reads and leases go on beside a writer, and nobody sees half a transaction.
async fn readers(store: Arc<dyn Store>) {
    let writer = async {
        for base in 0..60 {
            let (mut a, mut b) = (node("a", 1), node("b", 2));
            (a.tries, b.tries) = (base as u32, base as u32);
            let changes = [Change::PutNode(Box::new(a)), Change::PutNode(Box::new(b)), note("a", base)];
            store.apply(Revision(base), &changes).await.unwrap();
        }
    };
    let reader = async {
        for round in 0..40 {
            let (snapshot, revision) = store.load().await.unwrap();
            let tries: Vec<u32> = snapshot.nodes.values().map(|node| node.tries).collect();
            assert!(tries.iter().all(|t| u64::from(*t) + 1 == revision.0), "{tries:?} at {revision:?}");
            store.save_leases(&[lease(round, 1, 5)]).await.unwrap();
        }
    };
    tokio::join!(writer, reader);
    assert_eq!(store.load_leases().await.unwrap().len(), 40);
}

/// Any series of changes leaves what it leaves in memory.
async fn oracle(store: Arc<dyn Store>) {
    let memory = MemoryStore::default();
    let mut random = StdRng::seed_from_u64(7);
    let mut base = Revision(0);
    let mut marks: BTreeMap<Revision, Snapshot> = BTreeMap::new();
    for _ in 0..120 {
        let changes: Vec<Change> = (0..random.random_range(1..6)).map(|_| any_change(&mut random)).collect();
        let next = memory.apply(base, &changes).await.unwrap();
        assert_eq!(store.apply(base, &changes).await.unwrap(), next);
        base = next;
        marks.insert(base, memory.load().await.unwrap().0);
    }
    assert_eq!(store.load().await.unwrap(), memory.load().await.unwrap());
    for name in ["n0", "n1", "n2", "n3"] {
        let name = name.parse().unwrap();
        assert_eq!(store.timeline(&name).await.unwrap(), memory.timeline(&name).await.unwrap());
    }
    let last = memory.load().await.unwrap().0;
    for (revision, snapshot) in marks {
        let mut caught_up = snapshot;
        store.since(revision).await.unwrap().0.iter().for_each(|change| caught_up.apply(change));
        assert_eq!(caught_up, last, "from {revision:?}");
    }
}

fn any_change(random: &mut StdRng) -> Change {
    let number: u8 = random.random_range(0..4);
    let name = format!("n{number}");
    match random.random_range(0..15) {
        0..4 => {
            // Each node has a MAC address of its own, as intake sees to.
            let mut node = node(&name, number);
            node.tries = random.random();
            Change::PutNode(Box::new(node))
        }
        4 => Change::DropNode(name.parse().unwrap()),
        5 => Change::PutRack(rack(&name)),
        6 => Change::DropRack(name.parse().unwrap()),
        7 => Change::PutDeployment(deployment(u64::from(number) + 1)),
        8 => Change::PutSet(set(&name)),
        9 => Change::DropSet(name.parse().unwrap()),
        10 => {
            let running = Outcome::Running { milliseconds: random.random_range(0..1000) };
            Change::PutOutcome(
                DeploymentId(u64::from(number) + 1),
                format!("n{}", random.random_range(1..4)).parse().unwrap(),
                running,
            )
        }
        11 => {
            let mut course = deployment(1).course;
            course.pause(None, PausedBy::Operator, &name, Millis(random.random_range(0..1000)));
            Change::PutCourse(DeploymentId(u64::from(number) + 1), Box::new(course))
        }
        _ => note(&name, random.random_range(0..1000)),
    }
}

/// Two controllers at one database: each change is made by exactly one.
async fn two_writers(url: &str) {
    let stores = [SqlStore::open(url, None).await.unwrap(), SqlStore::open(url, None).await.unwrap()];
    let race = |index: usize| {
        let store = &stores[index];
        async move {
            let mut won = 0u64;
            while won < 30 {
                let (_, base) = store.load().await.unwrap();
                match store.apply(base, &[note(&format!("w{index}"), won)]).await {
                    Ok(_) => won += 1,
                    Err(Error::Conflict { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
    };
    tokio::join!(race(0), race(1));
    assert_eq!(stores[0].load().await.unwrap().1, Revision(60));
    for who in ["w0", "w1"] {
        assert_eq!(stores[1].timeline(&who.parse().unwrap()).await.unwrap().len(), 30);
    }
}

/// A database of a version that this program does not know is refused.
async fn newer(url: &str) {
    let store = SqlStore::open(url, None).await.unwrap();
    store.apply(Revision(0), &[Change::PutRack(rack("r1"))]).await.unwrap();
    store.close().await;
    let mut connection = sqlx::AnyConnection::connect(url).await.unwrap();
    connection
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             SELECT 4711, 'future', success, checksum, 1 FROM _sqlx_migrations WHERE version = 1",
        )
        .await
        .unwrap();
    connection.close().await.unwrap();
    let refused = SqlStore::open(url, None).await.unwrap_err();
    assert!(matches!(refused, Error::NewerDatabase { found: 4711, known: 4, .. }), "{refused}");
    let sentence = refused.to_string();
    assert!(sentence.contains("version 4711") && sentence.contains("up to 4"), "{sentence}");
}

fn node(name: &str, mac: u8) -> Node {
    Node::new(name.parse().unwrap(), vec![Mac([2, 0, 0, 0, 0, mac])], true, Millis(1))
}

fn rack(name: &str) -> Rack {
    Rack { name: name.parse().unwrap(), post: PostSettings::default() }
}

fn set(name: &str) -> MachineSet {
    MachineSet {
        name: name.parse().unwrap(),
        address: format!("fake:{name}"),
        rack: Some("r1".parse().unwrap()),
        configured: name == "n0",
        synced: Some(Synced { at: Millis(7), text: "it's one \"added\"".to_owned() }),
    }
}

fn note(node: &str, at: u64) -> Change {
    Change::Note(Note {
        node: node.parse().unwrap(),
        at: Millis(at),
        attempt: Attempt(1),
        stage: Stage::Leasing,
        kind: "test".to_owned(),
        text: "it's a \"test\"\n".to_owned(),
    })
}

fn lease(last: u8, mac: u8, expires: u64) -> Lease {
    Lease { address: [10, 0, 0, last].into(), mac: Mac([2, 0, 0, 0, 0, mac]), expires: Millis(expires) }
}

fn deployment(id: u64) -> Deployment {
    let image = ImageInfo {
        name: "debian".parse().unwrap(),
        digest: Digest([3; 32]),
        size_bytes: 1 << 40,
        used_bytes: 1 << 30,
        piece_size: 1 << 20,
        infohash: "00".repeat(20),
        sealed_at: Millis(1),
        layout: None,
    };
    let nodes = vec!["n1".parse().unwrap(), "n2".parse().unwrap()];
    let wave = Wave { kind: WaveKind::Racks, groups: vec![Group { rack: Some("r1".parse().unwrap()), nodes }] };
    let rollout = Rollout { failure_budget_per_rack: Some(Budget::Percent(50)), ..Rollout::default() };
    let mut deployment = Deployment::new(DeploymentId(id), &image, rollout, vec![wave], Millis(1_700_000_000_000));
    let failed = Outcome::Failed { reason: "no disk".to_owned() };
    deployment.outcomes.insert("n2".parse().unwrap(), failed);
    deployment.course.pause(Some("r1".parse().unwrap()), PausedBy::Failures, "no disk", Millis(1_700_000_000_001));
    deployment
}
