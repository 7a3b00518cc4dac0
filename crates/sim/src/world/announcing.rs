//! Nodes and their tracker.

use std::net::SocketAddr;
use std::time::Duration;

use swarm::{Input, Progress};
use wire::announce::AnnounceRequest;
use wire::peer::RackName;

use super::node::Brain;
use super::{Due, IMAGE, NO_ANSWER, PORT, World, address};
use crate::chance::{Stream, below};
use crate::net::Network;

impl<N: Network> World<N> {
    pub(super) fn announce(&mut self, number: u32, progress: &Progress) {
        let life = self.nodes[number as usize].lives;
        let there_and_back = 2 * self.way(number, 0).min(NO_ANSWER);
        if self.tracker_dead {
            let failed = Due::Input(life, Input::AnnounceFailed);
            return self.later(number, self.now() + there_and_back, failed);
        }
        let node = &self.nodes[number as usize];
        let own_kind = matches!(node.brain, Brain::Ours(_));
        let request = AnnounceRequest {
            info_hash: IMAGE,
            peer_id: node.id,
            port: PORT,
            uploaded: progress.uploaded,
            downloaded: progress.downloaded,
            left: progress.left,
            event: progress.event,
            num_want: Some(progress.num_want),
            compact: true,
            own_kind,
            rack: self.rack_name(number).filter(|_| own_kind),
        };
        let now = Duration::from_nanos(self.now());
        let input = match self.tracker.announce(now, &request, address(number).ip()) {
            Ok(answer) => {
                let mut peers: Vec<SocketAddr> = answer.peers.iter().map(|peer| peer.address).collect();
                if self.tracker_stale {
                    self.add_strangers(&mut peers, number);
                }
                let interval = Duration::from_secs(answer.interval_seconds.into());
                Input::Announced { interval, peers, guidance: answer.guidance }
            }
            Err(_) => Input::AnnounceFailed,
        };
        let at = self.now() + there_and_back + self.tracker_by;
        self.later(number, at, Due::Input(life, input));
    }

    /// As many addresses again at which nobody is.
    fn add_strangers(&self, peers: &mut Vec<SocketAddr>, number: u32) {
        let everybody = self.nodes.len() as u32;
        for index in 0..peers.len() as u64 {
            let stranger = everybody + below(self.seed, number, Stream::Conduct, index ^ self.now(), 1 << 16) as u32;
            peers.insert((2 * index) as usize, address(stranger));
        }
    }

    pub(super) fn rack_name(&self, number: u32) -> Option<RackName> {
        let rack = self.scenario.rack_of(number).filter(|_| self.scenario.fabric.racks_are_known)?;
        self.rack_names.get(rack as usize).cloned()
    }
}
