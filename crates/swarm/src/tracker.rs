//! Who is in which swarm: the state of a tracker, without its sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::announce::{AnnounceRequest, AnnounceResponse, AnnouncedPeer, Event, ScrapeEntry};
use wire::metainfo::InfoHash;
use wire::peer::PeerId;

use crate::chance::Chance;

/// The knobs of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerPolicy {
    /// How often peers shall announce. Default 30 s.
    pub interval: Duration,
    /// Peers in an answer when the request names no number. Default 50.
    pub peers: u32,
    /// Peers in an answer at most. Default 200.
    pub max_peers: u32,
    /// Peers remembered per swarm; more are refused. Default 200 000.
    pub max_swarm: usize,
}

impl Default for TrackerPolicy {
    fn default() -> TrackerPolicy {
        TrackerPolicy { interval: Duration::from_secs(30), peers: 50, max_peers: 200, max_swarm: 200_000 }
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
    swarms: BTreeMap<InfoHash, Swarm>,
    chance: Chance,
}

#[derive(Debug, Default)]
struct Swarm {
    /// In no particular order: sampling shuffles it.
    members: Vec<Member>,
    /// Where each address stands in `members`.
    index: BTreeMap<SocketAddr, usize>,
    complete: u32,
    downloaded: u32,
    next_sweep: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    address: SocketAddr,
    id: PeerId,
    complete: bool,
    seen: Duration,
}

impl Tracker {
    /// A tracker without swarms; `seed` decides its samples.
    pub fn new(policy: TrackerPolicy, seed: u64) -> Tracker {
        Tracker { policy, swarms: BTreeMap::new(), chance: Chance::new(seed, 2) }
    }

    /// Serves this torrent from now on.
    pub fn register(&mut self, info_hash: InfoHash) {
        self.swarms.entry(info_hash).or_default();
    }

    /// Serves this torrent no longer, and forgets its peers.
    pub fn retire(&mut self, info_hash: &InfoHash) {
        self.swarms.remove(info_hash);
    }

    /// The torrents served.
    pub fn torrents(&self) -> impl Iterator<Item = &InfoHash> {
        self.swarms.keys()
    }

    /// Takes an announce from the connection's address `remote` and answers
    /// with a random sample of the others. Seeds are not told of seeds.
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
        let swarm = self.swarms.get_mut(&request.info_hash).ok_or(unknown)?;
        swarm.sweep(now, self.policy.interval);
        let address = SocketAddr::new(remote, request.port);
        let mut peers = Vec::new();
        if request.event == Some(Event::Stopped) {
            swarm.leave(address);
        } else {
            swarm.enter(now, address, request, self.policy.max_swarm)?;
            let wanted = request.num_want.unwrap_or(self.policy.peers).min(self.policy.max_peers);
            peers = swarm.sample(address, request, wanted as usize, &mut self.chance);
        }
        Ok(AnnounceResponse {
            interval_seconds: u32::try_from(self.policy.interval.as_secs()).unwrap_or(u32::MAX),
            min_interval_seconds: None,
            complete: Some(swarm.complete),
            incomplete: Some(swarm.incomplete()),
            warning: None,
            peers,
            guidance: None,
        })
    }

    /// The numbers of a swarm; `None` when the torrent is not served.
    pub fn scrape(&mut self, now: Duration, info_hash: &InfoHash) -> Option<ScrapeEntry> {
        let swarm = self.swarms.get_mut(info_hash)?;
        swarm.sweep(now, self.policy.interval);
        Some(ScrapeEntry { complete: swarm.complete, downloaded: swarm.downloaded, incomplete: swarm.incomplete() })
    }
}

impl Swarm {
    fn incomplete(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX).saturating_sub(self.complete)
    }

    /// A node that restarted has a new id at its old address: the address is
    /// the identity.
    fn enter(
        &mut self,
        now: Duration,
        address: SocketAddr,
        request: &AnnounceRequest,
        limit: usize,
    ) -> Result<(), Refusal> {
        let member = Member { address, id: request.peer_id, complete: request.left == 0, seen: now };
        let known = self.index.get(&address).copied();
        if known.is_none() && self.members.len() >= limit {
            return Err(Refusal::Full(limit));
        }
        let was_complete = known.is_some_and(|at| self.members[at].complete);
        if request.event == Some(Event::Completed) && member.complete && !was_complete {
            self.downloaded = self.downloaded.saturating_add(1);
        }
        self.complete = self.complete + u32::from(member.complete) - u32::from(was_complete);
        match known {
            Some(at) => self.members[at] = member,
            None => {
                self.index.insert(address, self.members.len());
                self.members.push(member);
            }
        }
        Ok(())
    }

    fn leave(&mut self, address: SocketAddr) {
        let Some(at) = self.index.remove(&address) else { return };
        let member = self.members.swap_remove(at);
        self.complete -= u32::from(member.complete);
        if let Some(moved) = self.members.get(at) {
            self.index.insert(moved.address, at);
        }
    }

    /// Forgets peers that missed two announces. Done twice an interval, so
    /// its cost per announce stays constant.
    fn sweep(&mut self, now: Duration, interval: Duration) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + interval / 2;
        let lost = |member: &&Member| member.seen + interval * 5 / 2 < now;
        let lost: Vec<SocketAddr> = self.members.iter().filter(lost).map(|member| member.address).collect();
        lost.into_iter().for_each(|address| self.leave(address));
    }

    /// The beginning of a shuffle, as far as peers are wanted.
    fn sample(
        &mut self,
        asker: SocketAddr,
        request: &AnnounceRequest,
        wanted: usize,
        chance: &mut Chance,
    ) -> Vec<AnnouncedPeer> {
        let mut peers = Vec::with_capacity(wanted.min(self.members.len()));
        for at in 0..self.members.len() {
            if peers.len() == wanted {
                break;
            }
            self.swap(at, at + chance.index(self.members.len() - at));
            let member = self.members[at];
            let useful = !(member.complete && request.left == 0);
            if useful && member.address != asker && member.id != request.peer_id {
                peers.push(AnnouncedPeer { address: member.address, peer_id: Some(member.id) });
            }
        }
        peers
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.members.swap(a, b);
        self.index.insert(self.members[a].address, a);
        self.index.insert(self.members[b].address, b);
    }
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
            moves in proptest::collection::vec((0u16..12, 0u64..2, 0u8..4, 0u64..40), 1..100),
        ) {
            let mut tracker = Tracker::new(TrackerPolicy { max_swarm: 8, ..TrackerPolicy::default() }, seed);
            tracker.register(IMAGE);
            let mut now = 0;
            for (node, left, event, wait) in moves {
                now += wait;
                let event = [None, Some(Event::Started), Some(Event::Stopped), Some(Event::Completed)][event as usize];
                let _ = tracker.announce(at(now), &request(node, left, event), ip(node));
                let swarm = &tracker.swarms[&IMAGE];
                prop_assert_eq!(swarm.index.len(), swarm.members.len());
                prop_assert_eq!(swarm.complete as usize, swarm.members.iter().filter(|m| m.complete).count());
                for (address, &place) in &swarm.index {
                    prop_assert_eq!(swarm.members[place].address, *address);
                }
            }
        }
    }
}
