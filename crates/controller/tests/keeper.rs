//! The keeper when the store fails, when somebody else writes, and in a rush.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::director::Lease;
use fleet::change::{Change, Note, Snapshot};
use fleet::deployment::ImageInfo;
use fleet::event::{Event, NodeEdit};
use fleet::ids::{Attempt, DeploymentId, Digest, Mac, Millis, NodeName};
use fleet::intake::Refused;
use fleet::node::{Beat, Firmware, Progress, Rack, TokenHash};
use fleet::plan::Policy;
use fleet::post::PostSettings;
use fleet::rollout::Rollout;
use fleet::run::Run;
use futures_util::future::BoxFuture;
use rackswarm_controller::Error;
use rackswarm_controller::keeper::Keeper;
use rackswarm_controller::store::sql::last_of_each;
use rackswarm_controller::store::{MemoryStore, Revision, SqlStore, Store};
use tokio_util::sync::CancellationToken;

/// A store that fails as it is told to, and counts what it is given to write.
#[derive(Default)]
struct Flaky {
    inner: MemoryStore,
    /// Transactions that fail before anything is stored.
    refuse: AtomicU32,
    /// Transactions that are stored and then answered with an error.
    forget: AtomicU32,
    /// Reads of what changed that fail.
    blind: AtomicU32,
    rows: AtomicU64,
    transactions: AtomicU64,
    /// Whole deployments among the rows.
    deployments: AtomicU64,
}

impl Flaky {
    fn counts(&self) -> [u64; 3] {
        [&self.rows, &self.transactions, &self.deployments].map(|count| count.load(Ordering::SeqCst))
    }

    fn count(&self, changes: &[Change]) {
        let rows = last_of_each(changes);
        let whole = rows.iter().filter(|change| matches!(change, Change::PutDeployment(_))).count();
        self.rows.fetch_add(rows.len() as u64, Ordering::SeqCst);
        self.deployments.fetch_add(whole as u64, Ordering::SeqCst);
        self.transactions.fetch_add(1, Ordering::SeqCst);
    }

    fn due(counter: &AtomicU32) -> bool {
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn broken() -> Error {
        Error::Database { place: "flaky".into(), doing: "store changes", cause: "disk full".into() }
    }
}

impl Store for Flaky {
    fn load(&self) -> BoxFuture<'_, Result<(Snapshot, Revision), Error>> {
        self.inner.load()
    }

    fn apply<'a>(&'a self, base: Revision, changes: &'a [Change]) -> BoxFuture<'a, Result<Revision, Error>> {
        self.count(changes);
        Box::pin(async move {
            if Self::due(&self.refuse) {
                return Err(Self::broken());
            }
            let stored = self.inner.apply(base, changes).await;
            if stored.is_ok() && Self::due(&self.forget) { Err(Self::broken()) } else { stored }
        })
    }

    fn since(&self, base: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), Error>> {
        if Self::due(&self.blind) {
            return Box::pin(async { Err(Self::broken()) });
        }
        self.inner.since(base)
    }

    fn timeline<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<Vec<Note>, Error>> {
        self.inner.timeline(node)
    }

    fn runs(&self, deployment: DeploymentId) -> BoxFuture<'_, Result<Vec<Run>, Error>> {
        self.inner.runs(deployment)
    }

    fn save_leases<'a>(&'a self, leases: &'a [Lease]) -> BoxFuture<'a, Result<(), Error>> {
        self.inner.save_leases(leases)
    }

    fn load_leases(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>> {
        self.inner.load_leases()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

async fn keeper(store: Arc<dyn Store>) -> (Keeper, CancellationToken) {
    let stop = CancellationToken::new();
    let (keeper, _) = Keeper::start(store, Policy::default(), stop.clone()).await.unwrap();
    (keeper, stop)
}

fn put_rack(name: &str) -> Event {
    Event::PutRack(Rack { name: name.parse().unwrap(), post: PostSettings::default() })
}

fn racks(keeper: &Keeper) -> Vec<String> {
    keeper.read(|state| state.snapshot().racks.keys().map(ToString::to_string).collect())
}

async fn stored(store: &dyn Store) -> Vec<String> {
    store.load().await.unwrap().0.racks.keys().map(ToString::to_string).collect()
}

#[tokio::test]
async fn what_could_not_be_stored_is_not_visible_either() {
    let store = Arc::new(Flaky::default());
    let (keeper, _stop) = keeper(store.clone()).await;
    store.refuse.store(1, Ordering::SeqCst);
    let refused = keeper.tell(put_rack("r1")).await.unwrap_err();
    assert!(matches!(&refused, Error::NotStored(why) if why.contains("disk full")), "{refused}");
    assert!(racks(&keeper).is_empty());
    // The next one goes on from what the store holds.
    keeper.tell(put_rack("r2")).await.unwrap();
    assert_eq!(racks(&keeper), ["r2"]);
    assert_eq!(stored(&*store).await, ["r2"]);
}

#[tokio::test]
async fn a_transaction_whose_answer_was_lost_is_found_again() {
    let store = Arc::new(Flaky::default());
    let (keeper, _stop) = keeper(store.clone()).await;
    store.forget.store(1, Ordering::SeqCst);
    assert!(keeper.tell(put_rack("r1")).await.is_err());
    // Even if the store does not answer the first question either.
    store.blind.store(1, Ordering::SeqCst);
    assert!(keeper.tell(put_rack("r2")).await.is_err());
    keeper.tell(put_rack("r3")).await.unwrap();
    assert_eq!(racks(&keeper), ["r1", "r3"]);
    assert_eq!(stored(&*store).await, ["r1", "r3"]);
}

#[tokio::test]
async fn what_another_writer_did_is_taken_in_and_the_event_decided_anew() {
    let store = Arc::new(MemoryStore::default());
    let (one, _stop) = keeper(store.clone()).await;
    let (other, _stop_other) = keeper(store.clone()).await;
    let mac = Mac([2; 6]);
    let add = |name: &str| {
        let edit = NodeEdit { macs: Some(vec![mac]), ..NodeEdit::default() };
        Event::AddNode { node: name.parse().unwrap(), edit }
    };
    other.tell(put_rack("r1")).await.unwrap();
    other.tell(add("n1")).await.unwrap();
    // On the state that it knew, this would have been taken.
    let refused = one.tell(add("n2")).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(Refused::Conflict(why)) if why.contains("n1")), "{refused}");
    assert_eq!(racks(&one), ["r1"]);
    one.tell(put_rack("r2")).await.unwrap();
    other.tell(put_rack("r3")).await.unwrap();
    assert_eq!(racks(&other), ["r1", "r2", "r3"]);
}

#[tokio::test]
async fn a_thousand_machines_at_once_share_few_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqlStore::open_file(&folder.path().join("state.db")).await.unwrap());
    let (keeper, stop) = keeper(store.clone()).await;
    let begun = Instant::now();
    let tell = |number: u16| {
        let [a, b] = number.to_be_bytes();
        let sighted = Event::Sighted { mac: Mac([2, 0, 0, 0, a, b]), firmware: Some(Firmware::Bios), uuid: None };
        let keeper = keeper.clone();
        async move { keeper.tell(sighted).await }
    };
    let all = futures_util::future::join_all((0..1000).map(tell)).await;
    assert!(all.iter().all(Result::is_ok));
    let (snapshot, revision) = store.load().await.unwrap();
    assert_eq!(snapshot.nodes.len(), 1000);
    assert!(revision.0 < 100, "{} transactions", revision.0);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    eprintln!("1000 enrolments in {:?} and {} transactions", begun.elapsed(), revision.0);
    stop.cancel();
}

#[tokio::test]
async fn events_told_before_the_end_are_kept_and_later_ones_refused() {
    let store = Arc::new(MemoryStore::default());
    let stop = CancellationToken::new();
    let (keeper, task) = Keeper::start(store.clone(), Policy::default(), stop.clone()).await.unwrap();
    for number in 0..50 {
        keeper.report(put_rack(&format!("r{number}")));
    }
    stop.cancel();
    task.await.unwrap();
    assert_eq!(stored(&*store).await.len(), 50);
    assert!(matches!(keeper.tell(put_rack("late")).await, Err(Error::Stopping)));
}

/// Tells all of these at once, as machines do.
async fn tell_all(keeper: &Keeper, events: impl Iterator<Item = Event>) {
    let told = futures_util::future::join_all(events.map(|event| keeper.tell(event))).await;
    told.into_iter().for_each(|outcome| drop(outcome.unwrap()));
}

/// Rows, transactions and whole deployments that are written for each step of a deployment to so many nodes.
async fn written(nodes: u16) -> Vec<(&'static str, [u64; 3])> {
    let store = Arc::new(Flaky::default());
    let policy = Policy { starts_per_second: 10_000, starts_per_second_per_rack: 10_000, ..Policy::default() };
    let (keeper, _) = Keeper::start(store.clone(), policy, CancellationToken::new()).await.unwrap();
    let mac = |number: u16| Mac([2, 0, 0, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
    let name = |number: u16| -> NodeName { format!("n{number:05}").parse().unwrap() };
    let image = ImageInfo {
        name: "golden".parse().unwrap(),
        digest: Digest([7; 32]),
        size_bytes: 1 << 30,
        used_bytes: 1 << 29,
        piece_size: 1 << 20,
        infohash: "00".repeat(20),
        sealed_at: Millis(1),
        layout: None,
    };
    keeper.tell(Event::ImageSealed(image)).await.unwrap();
    let add = |number| {
        let edit = NodeEdit { macs: Some(vec![mac(number)]), power: Some("fake:x".into()), ..NodeEdit::default() };
        Event::AddNode { node: name(number), edit }
    };
    tell_all(&keeper, (0..nodes).map(add)).await;
    let all = (0..nodes).map(name).collect();
    let deploy = Event::Deploy { image: "golden".parse().unwrap(), nodes: all, rollout: Rollout::default() };
    let mut steps = Vec::new();
    let mut before = store.counts();
    let mut step = |what| {
        let now = store.counts();
        steps.push((what, [0, 1, 2].map(|at| now[at] - before[at])));
        before = now;
    };
    keeper.tell(deploy).await.unwrap();
    step("deploy");
    let (attempt, text) = (Attempt(1), || "it did".to_owned());
    let token = |word: &str, node: &NodeName| TokenHash(format!("{word}-{node}"));
    let each = |event: &dyn Fn(u16, NodeName) -> Event| (0..nodes).map(|n| event(n, name(n))).collect::<Vec<_>>();
    for (what, events) in [
        ("power", each(&|_, node| Event::PoweredOn { node, attempt, text: text() })),
        ("script", each(&|n, node| Event::ScriptAsked { mac: mac(n), uuid: None, token: token("boot", &node) })),
        (
            "register",
            each(&|_, node| {
                let token = token("node", &node);
                Event::Registered { node, attempt, uuid: None, token, text: text() }
            }),
        ),
        ("fetch", each(&|_, node| Event::FetchStarted { node, attempt, disk: "serial:a".into(), text: text() })),
    ] {
        tell_all(&keeper, events.into_iter()).await;
        step(what);
    }
    for done_bytes in 1..=10 {
        let progress = Progress { done_bytes, ..Progress::default() };
        tell_all(&keeper, each(&|_, node| Event::Progressed { node, attempt, progress }).into_iter()).await;
    }
    step("progress");
    for (what, events) in [
        ("verified", each(&|_, node| Event::ImageVerified { node, attempt, text: text() })),
        ("post actions", each(&|_, node| Event::PostActionsDone { node, attempt, text: text() })),
        ("proof", each(&|_, node| Event::Proved { node, attempt, digest: Digest([7; 32]), disk: "serial:a".into() })),
    ] {
        tell_all(&keeper, events.into_iter()).await;
        step(what);
    }
    tell_all(&keeper, each(&|_, node| Event::Beaten { node, beat: Beat::default() }).into_iter()).await;
    step("beats");
    steps
}

#[tokio::test]
async fn rows_are_written_for_what_changed_and_none_for_progress_and_heartbeats() {
    let (few, many) = (written(100).await, written(1_000).await);
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        let [rows, transactions, deployments] = *many;
        // The deployment is one row at its start, and one when its last node is proved.
        assert!(rows <= 10 * few[0] && deployments <= u64::from(*what == "deploy"), "{what}: {few:?}, {many:?}");
        match *what {
            "progress" | "beats" => assert_eq!((rows, transactions), (0, 0), "{what}"),
            "proof" => assert!(rows <= 4 * 1_000 + 1, "node, outcome, run and line of each: {rows}"),
            _ => assert!(rows <= 2 * 1_000 + 2 && transactions < 50, "{what}: {many:?}"),
        }
    }
}
