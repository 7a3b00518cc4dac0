//! Racks, and which pieces may cross into them. A piece enters a rack through
//! the one member that claims the piece's lane.

use wire::peer::{Message, PeerId, RackMessage, RackName};

use super::Engine;
use crate::io::{Output, Peer, Why};
use crate::lanes::{self, LANES, lane_of};
use crate::peer::Link;

const WIDTH: u32 = usize::BITS;

/// The racks that we know. The one without a name is where those stand that
/// have none, a seed mostly.
#[derive(Debug)]
pub(super) struct Racks {
    known: Vec<Rack>,
    /// Ours, as an index.
    pub(super) mine: u16,
    /// The lanes that we claim.
    pub(super) claimed: u64,
    /// What others were told of that.
    pub(super) told: u64,
    /// Somebody came or went since that was computed.
    pub(super) changed: bool,
}

#[derive(Debug)]
struct Rack {
    name: Option<RackName>,
    /// Pieces that a kin neighbour there has or is about to get from us.
    seen: Box<[usize]>,
}

impl Racks {
    pub(super) fn new(mine: Option<RackName>) -> Racks {
        let mine = Rack { name: mine, seen: Box::default() };
        Racks { known: vec![mine], mine: 0, claimed: 0, told: 0, changed: true }
    }

    pub(super) fn name(&self, rack: u16) -> Option<&RackName> {
        self.known[usize::from(rack)].name.as_ref()
    }

    /// Racks other than ours that anybody was seen in.
    pub(super) fn others(&self) -> usize {
        self.known.len() - 1
    }

    /// The index of a rack; beyond 65,535 racks all are one.
    pub(super) fn index(&mut self, name: Option<&RackName>) -> u16 {
        if let Some(at) = self.known.iter().position(|rack| rack.name.as_ref() == name) {
            return at as u16;
        }
        if self.known.len() > usize::from(u16::MAX) {
            return u16::MAX;
        }
        self.known.push(Rack { name: name.cloned(), seen: Box::default() });
        (self.known.len() - 1) as u16
    }

    pub(super) fn seen_word(&self, rack: u16, at: usize) -> usize {
        self.known[usize::from(rack)].seen.get(at).copied().unwrap_or(0)
    }

    pub(super) fn has_seen(&self, rack: u16, piece: u32) -> bool {
        self.seen_word(rack, (piece / WIDTH) as usize) & (1 << (piece % WIDTH)) != 0
    }

    pub(super) fn see(&mut self, rack: u16, piece: u32, pieces: u32) {
        let seen = self.seen(rack, pieces);
        if let Some(word) = seen.get_mut((piece / WIDTH) as usize) {
            *word |= 1 << (piece % WIDTH);
        }
    }

    fn seen(&mut self, rack: u16, pieces: u32) -> &mut [usize] {
        let seen = &mut self.known[usize::from(rack)].seen;
        if seen.is_empty() {
            *seen = vec![0; pieces.div_ceil(WIDTH) as usize].into();
        }
        seen
    }

    /// Somebody came or left, and what it has with it.
    fn review<'a>(&mut self, rack: u16, pieces: u32, links: impl Iterator<Item = &'a Link>) {
        let seen = self.seen(rack, pieces);
        seen.fill(0);
        for link in links.filter(|link| link.is_kin() && link.rack == rack) {
            seen.iter_mut().enumerate().for_each(|(at, word)| *word |= link.has.word(at));
        }
    }
}

/// The lanes as a mask for the machine word number `at` of pieces: piece p is
/// in lane p mod 64.
pub(super) fn lane_mask(lanes: u64, at: usize) -> usize {
    let words = (LANES / WIDTH).max(1) as usize;
    (lanes >> (at % words * WIDTH as usize)) as usize
}

impl Engine {
    pub(super) fn is_near(&self, link: &Link) -> bool {
        link.rack == self.racks.mine
    }

    /// Our rack became known, or another.
    pub(super) fn stand_in(&mut self, rack: Option<&RackName>, out: &mut Vec<Output>) {
        let index = self.racks.index(rack);
        if index == self.racks.mine {
            return;
        }
        self.racks.mine = index;
        self.roster_changed();
        let peers = self.links.peers(|link| link.speaks.extended);
        peers.into_iter().for_each(|peer| self.greet(peer, out));
    }

    /// A kin neighbour has this piece.
    pub(super) fn seen_in_rack(&mut self, rack: u16, piece: u32) {
        self.racks.see(rack, piece, self.shape.pieces());
    }

    pub(super) fn roster_changed(&mut self) {
        self.racks.changed = true;
        // Many come at once; their first claims would soon be wrong.
        self.wake(self.now + super::upkeep::ROSTER_SETTLES);
    }

    /// Computes our claim anew and tells those in other racks.
    pub(super) fn claim_lanes(&mut self, out: &mut Vec<Output>) {
        if !std::mem::take(&mut self.racks.changed) {
            return;
        }
        let mates: Vec<PeerId> =
            self.links.iter().filter(|link| link.is_kin() && self.is_near(link)).map(|link| link.id).collect();
        let claimed = lanes::claims(&mates, self.me);
        self.has_room |= claimed != self.racks.claimed;
        self.racks.claimed = claimed;
        self.tell_lanes(claimed, out);
        self.shed_needless(out);
    }

    /// A member of another rack that lets in other lanes than we do.
    pub(super) fn is_needless(&self, link: &Link) -> bool {
        let ours = self.racks.claimed | self.racks.told;
        let is_across = link.is_kin() && !link.offers && !self.is_near(link);
        is_across && ours != 0 && link.lanes != 0 && link.lanes & ours == 0
    }

    /// While racks fill lanes move, and connections that serve none any more pile
    /// up until there is no room for rack mates.
    fn shed_needless(&mut self, out: &mut Vec<Output>) {
        let surplus = self.links.len().saturating_sub(self.policy.dial_peers);
        if surplus == 0 {
            return;
        }
        let needless = self.links.peers(|link| link.is_at_rest() && self.is_needless(link));
        needless.into_iter().take(surplus).for_each(|peer| self.drop_peer(peer, Why::Displaced, out));
    }

    pub(super) fn tell_lanes(&mut self, claimed: u64, out: &mut Vec<Output>) {
        if std::mem::replace(&mut self.racks.told, claimed) == claimed {
            return;
        }
        let others = self.links.peers(|link| link.is_kin() && link.rack != self.racks.mine);
        others.into_iter().for_each(|peer| self.say(peer, RackMessage::Lanes { claimed }.into(), out));
    }

    /// Nobody near has what we miss, nor anybody of whom we heard: asks other
    /// racks to tell of more than our lanes, until a piece has come.
    pub(super) fn ask_around(&mut self, out: &mut Vec<Output>) {
        let lacks = |piece: &u32| self.wants(*piece) && !self.racks.has_seen(self.racks.mine, *piece);
        let lanes = (0..self.shape.pieces()).filter(lacks).fold(0, |lanes, piece| lanes | 1 << lane_of(piece));
        self.tell_lanes(self.racks.claimed | lanes, out);
    }

    /// A peer in another rack lets these in: it hears what we have of them.
    pub(super) fn claims_lanes(&mut self, peer: Peer, claimed: u64, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        let new = claimed & !std::mem::replace(&mut link.lanes, claimed);
        // Who is complete said so.
        if link.rack != self.racks.mine && !link.offers && !self.have.is_full() {
            let is_news = |piece: &u32| new & (1 << lane_of(*piece)) != 0 && !link.has.contains(*piece);
            let unheard: Vec<u32> = self.have.iter().filter(is_news).collect();
            unheard.into_iter().for_each(|piece| self.say(peer, Message::Have(piece), out));
        }
        self.shed_needless(out);
        self.offer_anew(out);
    }

    /// Somebody came into a rack or left it.
    pub(super) fn members_changed(&mut self, rack: u16) {
        self.racks.review(rack, self.shape.pieces(), self.links.iter());
        if rack == self.racks.mine {
            self.roster_changed();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn each_word_of_pieces_has_its_mask_of_lanes() {
        let lanes = 0x8000_0001_9000_0006;
        for piece in 0..3 * LANES {
            let word = lane_mask(lanes, (piece / WIDTH) as usize);
            assert_eq!(word & (1 << (piece % WIDTH)) != 0, lanes & (1 << lane_of(piece)) != 0, "{piece}");
        }
    }

    #[test]
    fn racks_are_told_apart_by_name() {
        let name = |name: &str| RackName::new(name).unwrap();
        let mut racks = Racks::new(None);
        let a = racks.index(Some(&name("a")));
        assert_eq!((racks.index(None), racks.index(Some(&name("a")))), (racks.mine, a));
        assert_ne!(racks.index(Some(&name("b"))), a);
        racks.see(a, 69, 70);
        assert!(racks.has_seen(a, 69) && !racks.has_seen(a, 68) && !racks.has_seen(racks.mine, 69));
    }
}
