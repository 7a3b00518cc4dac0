//! A newcomer that knows one peer, who has nothing, learns of the others from
//! it (BEP 11).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{ANYWHERE, Bench, Gate, start, within};
use rackswarm_transport::bittorrent::{Download, FetchJob, Limits, Listener};

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_learns_of_the_seed_from_a_peer_that_has_nothing() {
    let bench = Bench::new(4 << 20);
    let (seeder, seed) = bench.seeder(&bench.image, vec![]).await;
    let gate = Gate::new(bench.disk("known"), 0);
    let listener = Listener::bind(ANYWHERE, Limits::default()).await.unwrap();
    let known_address = listener.address();
    let known = Download::start(&listener, FetchJob { peers: vec![seed], ..bench.job(&gate) }).unwrap();
    let mut progress = known.progress();
    let begun_with = progress.borrow().pieces_done;
    within("the known peer meets the seed", progress.wait_for(|progress| progress.peers > 0)).await.unwrap();

    let disk = bench.disk("newcomer");
    let mut newcomer = start(FetchJob { peers: vec![known_address], ..bench.job(&disk) }).await;
    within("the newcomer completes", newcomer.completed()).await.unwrap();
    bench.assert_installed("newcomer");
    assert_eq!(known.progress().borrow().pieces_done, begun_with, "the known peer wrote nothing meanwhile");
    newcomer.stop().await.unwrap();
    gate.open();
    known.stop().await.unwrap();
    seeder.close().await;
}
