//! Who is in which swarm: the state of a tracker, without its sockets.
//!
//! Other clients get what any tracker gives: a random sample. Our own get a
//! place in a structure: all their rack mates while the rack is small, else
//! neighbours in a near-regular random graph; of other racks whoever holds the
//! same lanes (see [`crate::lanes`]); and seeds that stand in no rack, which
//! are spread over racks and lanes.

mod answer;
mod cell;
mod graph;
mod snapshot;
mod swarm;
pub mod topology;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::announce::{AnnounceRequest, AnnounceResponse, Event, Guidance, ScrapeEntry};
use wire::metainfo::InfoHash;
use wire::peer::{PeerId, RackName};

use crate::chance::Chance;
pub use snapshot::{Damaged, MAX_SNAPSHOT_BYTES};
use swarm::{Member, Place, Swarm};
pub use topology::{Topology, TopologyError};

/// The knobs of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerPolicy {
    /// How often peers shall announce. Default 30 s.
    pub interval: Duration,
    /// How soon our own shall ask again while the swarm around them changes, so
    /// that they learn of whom they have to know now. Default 2 s.
    pub settle: Duration,
    /// Announces that the tracker wants to answer each second; in large swarms
    /// `settle` grows accordingly. Default 1000.
    pub announces_per_second: u32,
    /// Peers in an answer when the request names no number. Default 50.
    pub peers: u32,
    /// Peers in an answer at most. Default 200.
    pub max_peers: u32,
    /// Peers remembered per swarm; more are refused. Default 200 000.
    pub max_swarm: usize,
    /// Links of each of our own in a graph. Default 20: within 1 % of the
    /// shortest time that can be; 12 cost 1.5 %, 40 win 0.3 %.
    pub degree: usize,
    /// Members of a swarm without racks up to which all are told of all.
    /// Default 40.
    pub mesh: usize,
    /// The same for members of one rack. Default 64.
    pub rack_mesh: usize,
    /// Peers that are told of a seed outside all racks, about. Default 128.
    pub seed_fans: usize,
    /// What our own are told: everybody works for the same end. Default true.
    pub cooperative: bool,
}

impl Default for TrackerPolicy {
    fn default() -> TrackerPolicy {
        TrackerPolicy {
            interval: Duration::from_secs(30),
            settle: Duration::from_secs(2),
            announces_per_second: 1000,
            peers: 50,
            max_peers: 200,
            max_swarm: 200_000,
            degree: 20,
            mesh: 40,
            rack_mesh: 64,
            seed_fans: 128,
            cooperative: true,
        }
    }
}

impl TrackerPolicy {
    /// Members up to which all of a cell are told of all.
    fn mesh(&self, in_a_rack: bool) -> usize {
        if in_a_rack { self.rack_mesh } else { self.mesh }
    }

    /// Links of a newcomer. Later ones bring as many again to it on average,
    /// so these are rather more than half of the degree.
    fn newcomer_links(&self) -> usize {
        self.degree.div_ceil(2) + self.degree.div_ceil(10)
    }
}

/// Why an announce is refused; the sentence is for the peer's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The info-hash was never registered, or is retired.
    #[error("this tracker does not serve the torrent {0}: publish the image first")]
    Unknown(InfoHash),
    /// The swarm has no room.
    #[error("this swarm has {0} peers and takes no more")]
    Full(usize),
}

/// All swarms of one tracker.
#[derive(Debug)]
pub struct Tracker {
    policy: TrackerPolicy,
    topology: Topology,
    swarms: BTreeMap<InfoHash, Swarm>,
    /// Other names of swarms.
    aliases: BTreeMap<InfoHash, InfoHash>,
    /// From a snapshot, and not registered yet.
    remembered: BTreeMap<InfoHash, Swarm>,
    chance: Chance,
}

impl Tracker {
    /// A tracker without swarms and racks; `seed` decides its samples.
    #[must_use]
    pub fn new(policy: TrackerPolicy, seed: u64) -> Tracker {
        Tracker {
            policy,
            topology: Topology::default(),
            swarms: BTreeMap::new(),
            aliases: BTreeMap::new(),
            remembered: BTreeMap::new(),
            chance: Chance::new(seed, 2),
        }
    }

    /// Knows racks by their addresses. What it says goes before what a node
    /// says of itself.
    #[must_use]
    pub fn with_topology(self, topology: Topology) -> Tracker {
        Tracker { topology, ..self }
    }

    /// Serves this torrent from now on.
    pub fn register(&mut self, info_hash: InfoHash) {
        if !self.swarms.contains_key(&info_hash) {
            self.swarms.insert(info_hash, self.remembered.remove(&info_hash).unwrap_or_default());
        }
    }

    /// Serves a registered torrent under another name too: a hybrid torrent
    /// has two info-hashes (BEP 52) and one swarm.
    pub fn alias(&mut self, other: InfoHash, info_hash: InfoHash) {
        if other != info_hash {
            self.aliases.insert(other, info_hash);
        }
    }

    /// Serves this torrent no longer, by whatever name, and forgets its peers.
    pub fn retire(&mut self, info_hash: &InfoHash) {
        self.swarms.remove(info_hash);
        self.aliases.retain(|_, named| named != info_hash);
    }

    /// The torrents served.
    pub fn torrents(&self) -> impl Iterator<Item = &InfoHash> {
        self.swarms.keys()
    }

    /// Names a seed that is always there and never announces: one in the same
    /// process. The torrent must be registered.
    ///
    /// # Errors
    /// When the torrent is not registered.
    pub fn anchor(&mut self, info_hash: InfoHash, address: SocketAddr, id: PeerId) -> Result<(), Refusal> {
        let swarm = self.swarms.get_mut(&info_hash).ok_or(Refusal::Unknown(info_hash))?;
        // One from a snapshot, or of a moment ago under another name.
        swarm.leave(address, &self.policy);
        if swarm.slot_of(address).is_none() {
            swarm.put(Member::new(address, id, true, Place::Seed, None));
        }
        Ok(())
    }

    /// Takes an announce from the connection's address `remote` and answers.
    ///
    /// # Errors
    /// When the torrent is not registered or its swarm is full.
    pub fn announce(
        &mut self,
        now: Duration,
        request: &AnnounceRequest,
        remote: IpAddr,
    ) -> Result<AnnounceResponse, Refusal> {
        let unknown = Refusal::Unknown(request.info_hash);
        let (policy, chance) = (&self.policy, &mut self.chance);
        let info_hash = self.aliases.get(&request.info_hash).unwrap_or(&request.info_hash);
        let swarm = self.swarms.get_mut(info_hash).ok_or(unknown)?;
        swarm.sweep(now, policy);
        let remote = remote.to_canonical();
        let address = SocketAddr::new(remote, request.port);
        let mut answer = AnnounceResponse { interval_seconds: whole_seconds(policy.interval), ..Default::default() };
        if request.event == Some(Event::Stopped) {
            swarm.leave(address, policy);
        } else {
            let rack = self.topology.rack_of(remote).or(request.rack.as_ref()).filter(|_| request.own_kind).cloned();
            let slot = swarm.enter(now, address, request, rack.clone(), policy, chance)?;
            let wanted = request.num_want.unwrap_or(policy.peers).min(policy.max_peers) as usize;
            if request.own_kind {
                answer.peers = swarm.guide(slot, wanted, policy, chance);
                answer.interval_seconds = whole_seconds(swarm.answered(slot, policy));
                answer.guidance = Some(Guidance { cooperative: policy.cooperative, rack });
            } else {
                answer.peers = swarm.sample(slot, wanted, chance);
            }
        }
        (answer.complete, answer.incomplete) = (Some(swarm.complete), Some(swarm.incomplete()));
        Ok(answer)
    }

    /// The numbers of a swarm; `None` when the torrent is not served.
    pub fn scrape(&mut self, now: Duration, info_hash: &InfoHash) -> Option<ScrapeEntry> {
        let swarm = self.swarms.get_mut(self.aliases.get(info_hash).unwrap_or(info_hash))?;
        swarm.sweep(now, &self.policy);
        Some(ScrapeEntry { complete: swarm.complete, downloaded: swarm.downloaded, incomplete: swarm.incomplete() })
    }

    /// The rack that an address stands in by the topology.
    #[must_use]
    pub fn rack_of(&self, address: IpAddr) -> Option<&RackName> {
        self.topology.rack_of(address)
    }
}

/// Trackers speak of whole seconds; nobody shall hurry because of a fraction.
fn whole_seconds(interval: Duration) -> u32 {
    u32::try_from(interval.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const IMAGE: InfoHash = InfoHash([1; 20]);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ip(node: u16) -> IpAddr {
        IpAddr::from([10, 0, (node >> 8) as u8, node as u8])
    }

    fn request(node: u16, left: u64, event: Option<Event>) -> AnnounceRequest {
        let mut id = [0; 20];
        id[..2].copy_from_slice(&node.to_be_bytes());
        AnnounceRequest {
            info_hash: IMAGE,
            peer_id: PeerId(id),
            port: 6881,
            uploaded: 0,
            downloaded: 0,
            left,
            event,
            num_want: None,
            compact: true,
            own_kind: false,
            rack: None,
        }
    }

    fn tracker() -> Tracker {
        let mut tracker = Tracker::new(TrackerPolicy::default(), 7);
        tracker.register(IMAGE);
        tracker
    }

    fn announce(tracker: &mut Tracker, now: u64, node: u16, left: u64, event: Option<Event>) -> AnnounceResponse {
        tracker.announce(at(now), &request(node, left, event), ip(node)).unwrap()
    }

    fn nodes(response: &AnnounceResponse) -> BTreeSet<IpAddr> {
        response.peers.iter().map(|peer| peer.address.ip()).collect()
    }

    #[test]
    fn only_registered_torrents_are_served() {
        let mut tracker = Tracker::new(TrackerPolicy::default(), 7);
        let refused = tracker.announce(at(0), &request(1, 1, None), ip(1));
        assert_eq!(refused, Err(Refusal::Unknown(IMAGE)));
        tracker.register(IMAGE);
        announce(&mut tracker, 0, 1, 1, None);
        tracker.register(IMAGE);
        assert_eq!(tracker.scrape(at(0), &IMAGE).unwrap().incomplete, 1, "a second time changes nothing");
        tracker.retire(&IMAGE);
        assert_eq!((tracker.scrape(at(0), &IMAGE), tracker.torrents().count()), (None, 0));
    }

    #[test]
    fn both_names_of_a_hybrid_torrent_mean_one_swarm() {
        let mut tracker = tracker();
        let other = InfoHash([2; 20]);
        tracker.alias(other, IMAGE);
        announce(&mut tracker, 0, 1, 1, None);
        let request = AnnounceRequest { info_hash: other, ..request(2, 1, None) };
        assert_eq!(nodes(&tracker.announce(at(0), &request, ip(2)).unwrap()), BTreeSet::from([ip(1)]));
        assert_eq!(tracker.scrape(at(0), &other), tracker.scrape(at(0), &IMAGE));
        tracker.retire(&IMAGE);
        assert_eq!(tracker.announce(at(0), &request, ip(2)), Err(Refusal::Unknown(other)));
    }

    #[test]
    fn samples_exclude_the_asker_and_differ() {
        let mut tracker = tracker();
        for node in 0..300 {
            announce(&mut tracker, 0, node, 1, Some(Event::Started));
        }
        let mut all = BTreeSet::new();
        for _ in 0..60 {
            let response = announce(&mut tracker, 1, 5, 1, None);
            assert_eq!((response.peers.len(), nodes(&response).len()), (50, 50));
            all.extend(nodes(&response));
        }
        assert!(!all.contains(&ip(5)));
        assert!(all.len() > 290, "{}", all.len());
    }

    #[test]
    fn the_number_wanted_is_honoured_within_bounds() {
        let mut tracker = tracker();
        for node in 0..300 {
            announce(&mut tracker, 0, node, 1, None);
        }
        for (wanted, given) in [(0, 0), (3, 3), (100_000, 200)] {
            let request = AnnounceRequest { num_want: Some(wanted), ..request(1, 1, None) };
            assert_eq!(tracker.announce(at(0), &request, ip(1)).unwrap().peers.len(), given);
        }
    }

    #[test]
    fn seeds_are_not_told_of_seeds() {
        let mut tracker = tracker();
        announce(&mut tracker, 0, 1, 0, None);
        announce(&mut tracker, 0, 2, 0, None);
        let response = announce(&mut tracker, 0, 3, 9, None);
        assert_eq!(nodes(&response), BTreeSet::from([ip(1), ip(2)]));
        assert_eq!((response.complete, response.incomplete), (Some(2), Some(1)));
        assert_eq!(nodes(&announce(&mut tracker, 0, 1, 0, None)), BTreeSet::from([ip(3)]));
    }

    #[test]
    fn peers_expire_after_two_and_a_half_intervals_and_leave_at_once() {
        let mut tracker = tracker();
        announce(&mut tracker, 0, 1, 1, None);
        announce(&mut tracker, 0, 2, 0, None);
        announce(&mut tracker, 60, 3, 1, None);
        assert_eq!(announce(&mut tracker, 75, 3, 1, None).peers.len(), 2);
        assert_eq!(announce(&mut tracker, 91, 3, 1, None).peers.len(), 0);
        assert_eq!(tracker.scrape(at(91), &IMAGE), Some(ScrapeEntry { complete: 0, downloaded: 0, incomplete: 1 }));
        let stopped = announce(&mut tracker, 92, 3, 1, Some(Event::Stopped));
        assert_eq!((stopped.incomplete, stopped.peers.len()), (Some(0), 0));
    }

    #[test]
    fn a_completion_counts_once() {
        let mut tracker = tracker();
        announce(&mut tracker, 0, 1, 1, Some(Event::Started));
        for _ in 0..2 {
            announce(&mut tracker, 1, 1, 0, Some(Event::Completed));
        }
        announce(&mut tracker, 1, 2, 0, Some(Event::Started));
        assert_eq!(tracker.scrape(at(1), &IMAGE), Some(ScrapeEntry { complete: 2, downloaded: 1, incomplete: 0 }));
    }

    #[test]
    fn a_restarted_node_takes_its_own_place() {
        let mut tracker = tracker();
        announce(&mut tracker, 0, 1, 1, None);
        let reborn = AnnounceRequest { peer_id: PeerId([9; 20]), ..request(1, 1, None) };
        tracker.announce(at(1), &reborn, ip(1)).unwrap();
        let response = announce(&mut tracker, 1, 2, 1, None);
        assert_eq!(response.peers.len(), 1);
        assert_eq!(response.peers[0].peer_id, Some(PeerId([9; 20])));
    }

    #[test]
    fn a_full_swarm_refuses_newcomers_only() {
        let mut tracker = Tracker::new(TrackerPolicy { max_swarm: 2, ..TrackerPolicy::default() }, 1);
        tracker.register(IMAGE);
        announce(&mut tracker, 0, 1, 1, None);
        announce(&mut tracker, 0, 2, 1, None);
        assert_eq!(tracker.announce(at(0), &request(3, 1, None), ip(3)), Err(Refusal::Full(2)));
        announce(&mut tracker, 0, 2, 1, None);
        announce(&mut tracker, 100, 3, 1, None);
    }

    proptest! {
        #[test]
        fn the_index_and_the_counts_stay_true(
            seed: u64,
            moves in proptest::collection::vec((0u16..24, 0u64..2, 0u8..4, 0u64..40, 0u8..5), 1..150),
        ) {
            let small = TrackerPolicy { max_swarm: 20, degree: 4, mesh: 5, rack_mesh: 6, seed_fans: 4, ..TrackerPolicy::default() };
            let mut tracker = Tracker::new(small, seed);
            tracker.register(IMAGE);
            let mut now = 0;
            for (node, left, event, wait, kind) in moves {
                now += wait;
                let event = [None, Some(Event::Started), Some(Event::Stopped), Some(Event::Completed)][event as usize];
                let rack = kind.checked_sub(2).map(|rack| RackName::new(&format!("r{rack}")).unwrap());
                let request = AnnounceRequest { own_kind: kind > 0, rack, ..request(node, left, event) };
                let _ = tracker.announce(at(now), &request, ip(node));
                tracker.swarms[&IMAGE].assert_sound();
            }
        }
    }
}
