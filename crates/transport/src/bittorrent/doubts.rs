//! Pieces whose hash is wrong, while their leaves are asked for (BEP 52): with
//! the leaves the bad blocks are known, and with them who sent them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use image::Manifest;
use swarm::Peer;
use wire::peer::{HashRange, Message};

/// How long the question may take. The piece's memory is held meanwhile.
const DEADLINE: Duration = Duration::from_secs(2);

/// Pieces in doubt at once; further ones are thrown away whole.
const MOST_DOUBTS: usize = 4;

/// Peers asked about one piece at once: one may be the liar.
const WITNESSES: usize = 3;

/// All pieces in doubt.
#[derive(Default)]
pub(super) struct Doubts {
    pieces: BTreeMap<u32, Doubt>,
}

struct Doubt {
    bytes: Vec<u8>,
    until: Instant,
    ranges: Vec<HashRange>,
    /// What each witness has answered so far.
    answers: BTreeMap<Peer, Vec<Option<Vec<[u8; 32]>>>>,
}

/// A piece that can be judged again, its bytes, and whether its leaves are
/// known now.
type Settled = Vec<(u32, Vec<u8>, bool)>;

impl Doubts {
    /// Whom to ask what about a corrupt piece; the bytes come back when there
    /// is nobody or nothing to ask.
    pub(super) fn raise(
        &mut self,
        manifest: &Manifest,
        piece: u32,
        bytes: Vec<u8>,
        able: Vec<Peer>,
    ) -> Result<Vec<(Peer, Message)>, Vec<u8>> {
        let ranges = manifest.leaf_ranges(piece);
        if ranges.is_empty() || able.is_empty() || self.pieces.len() >= MOST_DOUBTS {
            return Err(bytes);
        }
        let witnesses = able.into_iter().take(WITNESSES);
        let answers: BTreeMap<_, _> = witnesses.map(|peer| (peer, vec![None; ranges.len()])).collect();
        let ask = |peer: &Peer| {
            let peer = *peer;
            ranges.iter().map(move |range| (peer, Message::HashRequest(Box::new(*range))))
        };
        let questions = answers.keys().flat_map(ask).collect();
        self.pieces.insert(piece, Doubt { bytes, until: Instant::now() + DEADLINE, ranges, answers });
        Ok(questions)
    }

    /// A witness answered, or refused.
    pub(super) fn heard(
        &mut self,
        manifest: &Manifest,
        peer: Peer,
        range: &HashRange,
        hashes: Option<&Vec<[u8; 32]>>,
    ) -> Settled {
        let asked = |doubt: &Doubt| doubt.ranges.contains(range) && doubt.answers.contains_key(&peer);
        let Some(piece) = self.pieces.iter().find(|(_, doubt)| asked(doubt)).map(|(piece, _)| *piece) else {
            return Settled::new();
        };
        let known = match self.pieces.get_mut(&piece) {
            Some(doubt) => doubt.learn(manifest, piece, peer, range, hashes),
            None => false,
        };
        let exhausted = self.pieces.get(&piece).is_some_and(|doubt| doubt.answers.is_empty());
        if known || exhausted {
            return self.pieces.remove(&piece).map(|doubt| (piece, doubt.bytes, known)).into_iter().collect();
        }
        Settled::new()
    }

    /// Those whose time is over.
    pub(super) fn overdue(&mut self, now: Instant) -> Settled {
        let over: Vec<u32> =
            self.pieces.iter().filter(|(_, doubt)| doubt.until <= now).map(|(piece, _)| *piece).collect();
        over.into_iter().filter_map(|piece| Some((piece, self.pieces.remove(&piece)?.bytes, false))).collect()
    }
}

impl Doubt {
    /// True when the leaves are known.
    fn learn(
        &mut self,
        manifest: &Manifest,
        piece: u32,
        peer: Peer,
        range: &HashRange,
        hashes: Option<&Vec<[u8; 32]>>,
    ) -> bool {
        let Some(answers) = self.answers.get_mut(&peer) else { return false };
        let place = self.ranges.iter().position(|asked| asked == range).and_then(|at| answers.get_mut(at));
        if let (Some(place), Some(hashes)) = (place, hashes) {
            *place = Some(hashes.iter().take(range.length as usize).copied().collect());
            if answers.iter().any(Option::is_none) {
                return false;
            }
            let leaves = answers.iter().flatten().flatten().copied().collect();
            if manifest.learn_leaves(piece, leaves) {
                return true;
            }
        }
        // It refused or lied: it cannot be asked again about this piece.
        self.answers.remove(&peer);
        false
    }
}
