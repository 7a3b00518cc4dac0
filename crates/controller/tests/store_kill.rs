//! A process that writes without pause is killed fifty times; each time the
//! database opens, is sound, and holds everything that was acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use boot::director::Lease;
use fleet::change::{Change, Note};
use fleet::ids::{Attempt, Mac, Millis};
use fleet::life::Stage;
use fleet::node::Node;
use rackswarm_controller::store::{Revision, SqlStore, Store};

const ROUNDS: u64 = 50;
/// Names the database to the process that is going to be killed.
const WRITER: &str = "RACKSWARM_TEST_WRITER";

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_lose_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut before = Revision(0);
    for round in 0..ROUNDS {
        let acknowledged = write_and_die(&path, 1 + round % 13);
        let store = SqlStore::open_file(&path).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        store.check().await.unwrap();
        let (snapshot, revision) = store.load().await.unwrap();
        assert!(revision.0 >= acknowledged && revision > before, "{revision:?}, {acknowledged} acknowledged");
        // Each transaction wrote two nodes and a line; all of it is there, or none.
        for node in snapshot.nodes.values() {
            assert_eq!(u64::from(node.attempt.0), revision.0, "round {round}: {}", node.name);
        }
        let lines = store.timeline(&"a".parse().unwrap()).await.unwrap();
        let moments: Vec<u64> = lines.iter().map(|note| note.at.0).collect();
        let expected: Vec<u64> = (1..=revision.0).collect();
        assert!(expected.ends_with(&moments) && moments.last() == Some(&revision.0), "{moments:?} at {revision:?}");
        let lease = store.load_leases().await.unwrap()[0];
        assert!(lease.expires.0 >= acknowledged && lease.expires.0 <= revision.0 + 1, "{lease:?} at {revision:?}");
        before = revision;
        store.close().await;
    }
    eprintln!("{} transactions in {ROUNDS} lives", before.0);
}

/// Starts this test program as the writer and kills it after some
/// acknowledgements; the last one that was seen.
fn write_and_die(path: &Path, acknowledgements: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(WRITER, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("stored ")?.parse::<u64>().ok());
    let mut last = seen.by_ref().take(acknowledgements as usize).last().expect("the writer stores something");
    child.kill().unwrap();
    // What was written to the pipe before the end was acknowledged too.
    last = seen.last().unwrap_or(last);
    child.wait().unwrap();
    last
}

/// Not a test by itself: what the test above kills.
#[tokio::test]
async fn writer() {
    let Some(path) = std::env::var_os(WRITER) else { return };
    let store = SqlStore::open_file(&PathBuf::from(path)).await.unwrap();
    let (_, mut revision) = store.load().await.unwrap();
    loop {
        let number = revision.0 + 1;
        let nodes = ["a", "b"].map(|name| {
            let mut node = Node::new(name.parse().unwrap(), vec![Mac([2; 6])], true, Millis(number));
            node.attempt = Attempt(number as u32);
            node.post.user_data = Some("x".repeat(5_000));
            Change::PutNode(Box::new(node))
        });
        let line = Change::Note(Note {
            node: "a".parse().unwrap(),
            at: Millis(number),
            attempt: Attempt(1),
            stage: Stage::Fetching,
            kind: "test".to_owned(),
            text: "written".to_owned(),
        });
        let lease = Lease { address: [10, 0, 0, 1].into(), mac: Mac([2; 6]), expires: Millis(number) };
        store.save_leases(&[lease]).await.unwrap();
        let [a, b] = nodes;
        revision = store.apply(revision, &[a, b, line]).await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "stored {}", revision.0).unwrap();
        out.flush().unwrap();
    }
}
