//! Ctrl-C is seen instead of ending the process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rackswarm_lab::stop::Stop;
use rustix::process::{Signal, getpid, kill_process};

#[test]
fn a_signal_is_seen_by_every_clone_and_a_second_one_does_no_harm() {
    let stop = Stop::on_signals().unwrap();
    let clone = stop.clone();
    stop.check().unwrap();
    kill_process(getpid(), Signal::TERM).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), clone.asked()).await }).unwrap();
    assert!(stop.check().is_err());
    kill_process(getpid(), Signal::INT).unwrap();
    assert!(stop.check().is_err());
}
