//! The keeper when the store fails, when somebody else writes, and in a rush.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use boot::director::Lease;
use fleet::change::{Change, Note, Snapshot};
use fleet::event::{Event, NodeEdit};
use fleet::ids::{DeploymentId, Mac, NodeName};
use fleet::intake::Refused;
use fleet::node::{Firmware, Rack};
use fleet::plan::Policy;
use fleet::post::PostSettings;
use fleet::run::Run;
use futures_util::future::BoxFuture;
use rackswarm_controller::Error;
use rackswarm_controller::keeper::Keeper;
use rackswarm_controller::store::{MemoryStore, Revision, SqlStore, Store};
use tokio_util::sync::CancellationToken;

/// A store that fails as it is told to.
#[derive(Default)]
struct Flaky {
    inner: MemoryStore,
    /// Transactions that fail before anything is stored.
    refuse: AtomicU32,
    /// Transactions that are stored and then answered with an error.
    forget: AtomicU32,
    /// Reads of what changed that fail.
    blind: AtomicU32,
}

impl Flaky {
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
