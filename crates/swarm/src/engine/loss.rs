//! What the disk no longer gives.

use super::Engine;
use crate::io::{Output, Why};

impl Engine {
    /// These pieces are given to nobody any more, and are not fetched: there is
    /// nowhere to put them. No message takes a `have` back, so all connections
    /// begin anew.
    pub(super) fn lost(&mut self, pieces: &[u32], out: &mut Vec<Output>) {
        let lost: Vec<u32> = pieces.iter().copied().filter(|&piece| self.have.remove(piece)).collect();
        if lost.is_empty() {
            return;
        }
        for &piece in &lost {
            self.left += u64::from(self.shape.piece_bytes(piece));
            self.twins.insert(piece);
        }
        for peer in self.links.peers(|_| true) {
            self.drop_peer(peer, Why::Lost, out);
        }
        // Whoever offers decides about all of the image; what is left is asked for.
        self.offering = None;
    }
}
