//! Ordinary clients and ours in one swarm: each as seed for our node, each as leecher from our seed, and all together.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod interop;

use interop::{Client, Site, Version, all_complete, report, they_fetch, they_seed, we_fetch, we_seed};

/// Their seed, two nodes of ours.
fn we_fetch_from(client: Client, version: Version) {
    let site = Site::new(2);
    let mut stage = site.stage();
    let torrent = they_seed(&mut stage, client, version);
    (0..2).for_each(|node| we_fetch(&mut stage, node, &torrent));
    all_complete(&mut stage, 2);
    let reports: Vec<_> = (0..2).map(|node| report(&stage, node)).collect();
    assert!(reports.iter().all(|report| report["complete"] == true), "{reports:?}");
    assert!(reports.iter().all(|report| report["dropped"] == serde_json::json!([])), "{reports:?}");
}

/// Our seed, two of their nodes.
fn they_fetch_from_us(client: Client, version: Version) {
    let site = Site::new(2);
    let mut stage = site.stage();
    let torrent = we_seed(&mut stage, version);
    (0..2).for_each(|node| they_fetch(&mut stage, node, client, &torrent));
    all_complete(&mut stage, 2);
}

#[test]
fn interop_aria2_seeds_for_us() {
    we_fetch_from(Client::Aria2, Version::V1);
}

#[test]
fn interop_aria2_fetches_from_us() {
    they_fetch_from_us(Client::Aria2, Version::V1);
}

#[test]
fn interop_transmission_seeds_for_us() {
    we_fetch_from(Client::Transmission, Version::V1);
}

#[test]
fn interop_transmission_fetches_from_us() {
    they_fetch_from_us(Client::Transmission, Version::V1);
}

#[test]
fn interop_rqbit_seeds_for_us() {
    we_fetch_from(Client::Rqbit, Version::V1);
}

#[test]
fn interop_rqbit_fetches_from_us() {
    they_fetch_from_us(Client::Rqbit, Version::V1);
}

#[test]
fn interop_libtorrent_seeds_for_us_in_every_version() {
    for version in [Version::V1, Version::V2, Version::Hybrid] {
        we_fetch_from(Client::Libtorrent, version);
    }
}

#[test]
fn interop_libtorrent_fetches_from_us_in_every_version() {
    for version in [Version::V1, Version::V2, Version::Hybrid] {
        they_fetch_from_us(Client::Libtorrent, version);
    }
}

#[test]
fn interop_a_swarm_half_of_ordinary_clients_completes() {
    let site = Site::new(8);
    let mut stage = site.stage();
    // aria2 1.36 computes another hash of a hybrid torrent than everybody else.
    let torrent = we_seed(&mut stage, Version::V1);
    let clients = [Client::Aria2, Client::Transmission, Client::Libtorrent, Client::Rqbit];
    for (index, client) in clients.into_iter().enumerate() {
        we_fetch(&mut stage, 2 * index, &torrent);
        they_fetch(&mut stage, 2 * index + 1, client, &torrent);
    }
    all_complete(&mut stage, 8);
}
