//! A newcomer that knows one peer, who has nothing, learns of the others from
//! it (BEP 11).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Condvar, Mutex};

use common::{ANYWHERE, Bench, start, within};
use image::{DiskSink, PieceSet, PieceSink, PieceSource, VerifiedPiece};
use rackswarm_transport::bittorrent::{Download, FetchJob, Limits, Listener};

/// A disk that lets writers wait until it is opened.
struct Gate {
    inner: Arc<DiskSink>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl PieceSink for Gate {
    fn missing(&self) -> PieceSet {
        self.inner.missing()
    }

    fn put(&self, piece: &VerifiedPiece) -> Result<(), image::Error> {
        drop(self.opened.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
        self.inner.put(piece)
    }
}

impl PieceSource for Gate {
    fn read(&self, index: u32, begin: u32, into: &mut [u8]) -> Result<(), image::Error> {
        self.inner.read(index, begin, into)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_learns_of_the_seed_from_a_peer_that_has_nothing() {
    let bench = Bench::new(4 << 20);
    let (seeder, seed) = bench.seeder(&bench.image, vec![]).await;
    let gate = Arc::new(Gate { inner: bench.disk("known"), is_open: Mutex::new(false), opened: Condvar::new() });
    let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
    let known_address = listener.address();
    let job = FetchJob::new(Arc::clone(&bench.manifest), Arc::clone(&gate) as _);
    let known = Download::start(&listener, FetchJob { peers: vec![seed], ..job }).unwrap();
    let mut progress = known.progress();
    let begun_with = progress.borrow().pieces_done;
    within("the known peer meets the seed", progress.wait_for(|progress| progress.peers > 0)).await.unwrap();

    let disk = bench.disk("newcomer");
    let mut newcomer = start(FetchJob { peers: vec![known_address], ..bench.job(&disk) }).await;
    within("the newcomer completes", newcomer.completed()).await.unwrap();
    bench.assert_installed("newcomer");
    assert_eq!(known.progress().borrow().pieces_done, begun_with, "the known peer wrote nothing meanwhile");
    newcomer.stop().await.unwrap();
    *gate.is_open.lock().unwrap() = true;
    gate.opened.notify_all();
    known.stop().await.unwrap();
    seeder.close().await;
}
