//! The monitoring daemon against a controller that comes and goes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::Ordering;

use api::agent::{DeployedConfig, Token};
use common::{Bench, Controller, content};
use fleet::ids::Attempt;

#[tokio::test]
async fn it_proves_until_accepted_and_then_beats_whatever_the_controller_does() {
    let bench = Bench::of(&content(1));
    let controller = Controller::start(&bench.image).await;
    controller.fail_next.store(2, Ordering::SeqCst);
    let digest = bench.image.manifest.digest().unwrap();
    let config = DeployedConfig {
        node: "node1".parse().unwrap(),
        controller_url: controller.url.clone(),
        node_token: Token("node-token".into()),
        digest,
        attempt: Attempt(4),
        heartbeat_seconds: 1,
        watch_processes: vec!["no-such-process".into()],
    };
    let daemon = tokio::spawn(agent::monitor::run(config));
    controller.until(|c| c.beats.lock().unwrap().len() == 1).await;
    {
        let proofs = controller.proofs.lock().unwrap();
        assert_eq!(proofs.len(), 1, "one is enough once it is accepted");
        assert_eq!((proofs[0].digest, proofs[0].attempt), (digest, Attempt(4)));
        assert_eq!(proofs[0].boot_id.len(), 36);
        let beats = controller.beats.lock().unwrap();
        assert_eq!(beats[0].beat.processes_missing, ["no-such-process"]);
        assert!(beats[0].beat.memory_total_bytes > 0);
    }
    controller.fail_next.store(2, Ordering::SeqCst);
    controller.until(|c| c.beats.lock().unwrap().len() == 3).await;
    assert_eq!(controller.proofs.lock().unwrap().len(), 1);
    daemon.abort();
}
