//! Which queued request is served next.

use std::collections::BTreeMap;
use std::time::Duration;

use wire::peer::Block;

use crate::choker::Discipline;
use crate::io::Peer;
use crate::peer::Link;
use crate::policy::Policy;

/// Pieces being sent at once when service is serial. Two: while the first
/// peer's socket is full the second's keeps the uplink busy.
const TRANSFERS: usize = 2;

/// Requests at the head of a peer's queue among which the next piece is
/// chosen.
const LOOK_AHEAD: usize = 64;

#[derive(Debug)]
pub(crate) struct Uplink {
    discipline: Discipline,
    /// Blocks with the driver, those of stalled peers not counted.
    in_flight: usize,
    transfers: Vec<(Peer, u32)>,
    /// How often each piece was begun to be sent.
    begun: Vec<u16>,
    served: u64,
    limit: usize,
    peer_limit: usize,
    stall: Duration,
    patience: Duration,
}

impl Uplink {
    pub(crate) fn new(pieces: u32, discipline: Discipline, policy: &Policy) -> Uplink {
        Uplink {
            discipline,
            in_flight: 0,
            transfers: Vec::new(),
            begun: vec![0; pieces as usize],
            served: 0,
            limit: policy.uplink_blocks.max(1),
            peer_limit: policy.peer_uplink_blocks.max(1),
            stall: policy.uplink_stall,
            patience: policy.uplink_patience,
        }
    }

    /// Takes the next block to send out of its queue.
    pub(crate) fn next(&mut self, links: &mut BTreeMap<Peer, Link>, now: Duration) -> Option<(Peer, Block)> {
        let (peer, piece) = match self.discipline {
            Discipline::Serial if self.in_flight >= self.limit => return None,
            Discipline::Serial => self.running_transfer(links).or_else(|| self.begin_transfer(links, now))?,
            Discipline::Fair => self.least_recently_served(links)?,
        };
        let link = links.get_mut(&peer)?;
        let at = link.queue.iter().position(|block| block.piece == piece)?;
        let block = link.queue.remove(at)?;
        self.served += 1;
        link.served = self.served;
        link.waiting_since = now;
        if link.in_flight == 0 {
            link.sending_since = now;
        }
        link.in_flight += 1;
        self.in_flight += 1;
        Some((peer, block))
    }

    /// The first transfer that can go on; finished ones are closed.
    fn running_transfer(&mut self, links: &BTreeMap<Peer, Link>) -> Option<(Peer, u32)> {
        self.transfers.retain(|(peer, piece)| {
            let goes_on = |link: &Link| !link.stalled && link.queue.iter().any(|block| block.piece == *piece);
            links.get(peer).is_some_and(goes_on)
        });
        let takes_more = |peer: &Peer| links.get(peer).is_some_and(|link| link.in_flight < self.peer_limit);
        self.transfers.iter().find(|(peer, _)| takes_more(peer)).copied()
    }

    /// The piece that was sent least often goes first: a piece that is out
    /// can come from others, one that is not can come only from here. Nobody
    /// waits longer than `patience` for that.
    fn begin_transfer(&mut self, links: &BTreeMap<Peer, Link>, now: Duration) -> Option<(Peer, u32)> {
        if self.transfers.len() >= TRANSFERS {
            return None;
        }
        let busy = |peer: &Peer| self.transfers.iter().any(|(taken, _)| taken == peer);
        let mut best = None;
        for (peer, link) in links.iter().filter(|(peer, link)| self.can_take(link) && !busy(peer)) {
            let patient = now.saturating_sub(link.waiting_since) < self.patience;
            let Some(piece) = self.least_sent(link) else { continue };
            let begun = if patient { self.begun[piece as usize] } else { 0 };
            let rank = (patient, begun, link.served);
            if best.is_none_or(|(first, _, _)| rank < first) {
                best = Some((rank, *peer, piece));
            }
        }
        let (_, peer, piece) = best?;
        self.transfers.push((peer, piece));
        let begun = &mut self.begun[piece as usize];
        *begun = begun.saturating_add(1);
        Some((peer, piece))
    }

    fn least_sent(&self, link: &Link) -> Option<u32> {
        let pieces = link.queue.iter().take(LOOK_AHEAD).map(|block| block.piece);
        pieces.min_by_key(|&piece| self.begun[piece as usize])
    }

    fn least_recently_served(&self, links: &BTreeMap<Peer, Link>) -> Option<(Peer, u32)> {
        let (peer, link) = links.iter().filter(|(_, link)| self.can_take(link)).min_by_key(|(_, link)| link.served)?;
        Some((*peer, link.queue.front()?.piece))
    }

    fn can_take(&self, link: &Link) -> bool {
        !link.queue.is_empty() && !link.stalled && link.in_flight < self.peer_limit
    }

    /// The driver sent a block.
    pub(crate) fn sent(&mut self, link: &mut Link, now: Duration) {
        if link.in_flight == 0 {
            return;
        }
        link.in_flight -= 1;
        link.sending_since = now;
        if link.stalled {
            link.stalled = false;
            self.in_flight += link.in_flight;
        } else {
            self.in_flight -= 1;
        }
    }

    /// When this peer counts as stalled unless a block is sent before.
    pub(crate) fn stalls_at(&self, link: &Link) -> Option<Duration> {
        (link.in_flight > 0 && !link.stalled).then_some(link.sending_since + self.stall)
    }

    pub(crate) fn stalled(&mut self, link: &mut Link) {
        link.stalled = true;
        self.in_flight -= link.in_flight;
    }

    pub(crate) fn gone(&mut self, link: &Link) {
        if !link.stalled {
            self.in_flight -= link.in_flight;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use wire::peer::PeerId;

    use super::*;
    use crate::io::Side;

    const NOW: Duration = Duration::from_secs(100);

    fn block(piece: u32, index: u32) -> Block {
        Block { piece, offset: index * 16384, length: 16384 }
    }

    /// Two peers: 1 asks for three blocks of piece 0, 2 for two of piece 0 and
    /// one of piece 1.
    fn two_peers() -> BTreeMap<Peer, Link> {
        let link = |queue: &[Block]| {
            let address = "10.0.0.1:1".parse().unwrap();
            let mut link = Link::new(PeerId([0; 20]), address, Side::Inbound, 4, NOW);
            link.queue.extend(queue);
            link
        };
        let first = link(&[block(0, 0), block(0, 1), block(0, 2)]);
        let second = link(&[block(0, 0), block(0, 1), block(1, 0)]);
        BTreeMap::from([(Peer(1), first), (Peer(2), second)])
    }

    fn order(uplink: &mut Uplink, links: &mut BTreeMap<Peer, Link>) -> Vec<(u32, u32)> {
        let mut order = Vec::new();
        while let Some((peer, block)) = uplink.next(links, NOW) {
            order.push((peer.0, block.piece));
            uplink.sent(links.get_mut(&peer).unwrap(), NOW);
        }
        order
    }

    #[test]
    fn serial_service_finishes_a_piece_and_prefers_the_unsent() {
        let mut uplink = Uplink::new(4, Discipline::Serial, &Policy::default());
        let order = order(&mut uplink, &mut two_peers());
        assert_eq!(order, [(1, 0), (1, 0), (1, 0), (2, 1), (2, 0), (2, 0)]);
        assert_eq!(uplink.in_flight, 0);
    }

    #[test]
    fn fair_service_takes_turns() {
        let mut uplink = Uplink::new(4, Discipline::Fair, &Policy::default());
        let order = order(&mut uplink, &mut two_peers());
        assert_eq!(order, [(1, 0), (2, 0), (1, 0), (2, 0), (1, 0), (2, 1)]);
    }

    #[test]
    fn the_uplink_is_bounded_in_all_and_per_peer() {
        let policy = Policy { uplink_blocks: 3, peer_uplink_blocks: 2, ..Policy::default() };
        let mut uplink = Uplink::new(4, Discipline::Serial, &policy);
        let mut links = two_peers();
        let given: Vec<u32> = std::iter::from_fn(|| uplink.next(&mut links, NOW)).map(|(peer, _)| peer.0).collect();
        assert_eq!(given, [1, 1, 2]);
    }

    #[test]
    fn a_stalled_peer_gives_its_share_back_until_it_moves() {
        let policy = Policy { uplink_blocks: 2, peer_uplink_blocks: 2, ..Policy::default() };
        let mut uplink = Uplink::new(4, Discipline::Serial, &policy);
        let mut links = two_peers();
        while uplink.next(&mut links, NOW).is_some() {}
        assert_eq!(uplink.stalls_at(&links[&Peer(1)]), Some(NOW + policy.uplink_stall));
        uplink.stalled(links.get_mut(&Peer(1)).unwrap());
        assert_eq!(uplink.next(&mut links, NOW).unwrap().0, Peer(2));
        uplink.sent(links.get_mut(&Peer(1)).unwrap(), NOW);
        assert_eq!((uplink.in_flight, links[&Peer(1)].stalled), (2, false));
        uplink.gone(&links[&Peer(1)]);
        uplink.gone(&links[&Peer(2)]);
        assert_eq!(uplink.in_flight, 0);
    }

    #[test]
    fn nobody_waits_longer_than_patience() {
        let mut uplink = Uplink::new(4, Discipline::Serial, &Policy::default());
        let mut links = two_peers();
        uplink.begun = vec![9, 0, 0, 0];
        links.get_mut(&Peer(1)).unwrap().waiting_since = NOW - Policy::default().uplink_patience;
        assert_eq!(uplink.next(&mut links, NOW).unwrap().0, Peer(1));
    }
}
