//! What becomes of payloads: kept, made whole, checked, written, or thrown away.

use std::sync::Arc;
use std::time::Instant;

use swarm::{Input, Peer, Verdict};
use tokio::task::spawn_blocking;
use wire::peer::Block;

use super::super::checking::{self, Checked};
use super::super::pool::Landing;
use super::super::reading::Chunk;
use super::super::writing::Order;
use super::{Drive, Event};
use crate::Error;

impl Drive {
    pub(super) fn arrived(&mut self, peer: Peer, chunk: Chunk) {
        let block = chunk.block;
        self.arrived = Some(chunk);
        self.step(Input::Arrived(peer, block));
        // What the engine does not want.
        self.arrived = None;
    }

    pub(super) fn keep(&mut self, block: Block) {
        let Some(Chunk { block: whole, landed }) = self.arrived.take() else { return };
        match landed {
            Landing::Place(claim) if block == whole => claim.keep(),
            Landing::Aside(bytes) if block == whole => self.yard.put(block, &bytes),
            Landing::Nowhere => {}
            mut landed => {
                let begin = block.offset.saturating_sub(whole.offset) as usize;
                let put = |bytes: &mut [u8]| {
                    let end = begin + block.length as usize;
                    bytes.get(begin..end).map(<[u8]>::to_vec)
                };
                let part = match &mut landed {
                    Landing::Place(claim) => claim.with(put),
                    Landing::Aside(bytes) => put(bytes),
                    Landing::Nowhere => None,
                };
                if let Some(part) = part {
                    self.yard.put(block, &part);
                }
                self.arrived = Some(Chunk { block: whole, landed });
            }
        }
    }

    /// Hashes and writes on a blocking thread, as many at once as there are
    /// cores. Not ended with the swarm: a write that began is finished.
    pub(super) fn verify(&mut self, piece: u32) {
        match self.yard.take(piece) {
            Some(bytes) => self.check(piece, bytes),
            None => self.waiting.push_back(Input::Verified(piece, Verdict::Corrupt)),
        }
    }

    fn check(&mut self, piece: u32, bytes: Vec<u8>) {
        let Some(sink) = self.sink.clone() else {
            self.pool.give(bytes);
            self.waiting.push_back(Input::Verified(piece, Verdict::Corrupt));
            return;
        };
        let (manifest, hashing, events) =
            (Arc::clone(&self.manifest), Arc::clone(&self.hashing), self.events_in.clone());
        self.tasks.spawn(async move {
            let turn = hashing.acquire_owned().await;
            let work = spawn_blocking(move || checking::check(&manifest, &*sink, piece, bytes));
            let checked = work.await.unwrap_or(Checked::Failed(Error::Defect));
            drop(turn);
            // After the swarm's end the piece is on the disk all the same.
            let _ = events.send(Event::Checked(piece, checked)).await;
        });
    }

    /// Finds out, aside, whether the piece is lost and which others are.
    pub(super) fn unreadable(&mut self, piece: u32, error: Error) {
        if self.looking || !self.engine.have().contains(piece) {
            return;
        }
        self.looking = true;
        let (store, have, events) = (Arc::clone(&self.store), self.engine.have().clone(), self.events_in.clone());
        self.tasks.spawn(async move {
            let lost = spawn_blocking(move || store.unreadable(&have, piece)).await.unwrap_or_default();
            let _ = events.send(Event::Lost(lost, error)).await;
        });
    }

    /// Said once for all of them. A seed goes on with the rest; a disk that is
    /// still to be filled is not to be trusted any more.
    pub(super) fn lost(&mut self, pieces: Vec<u32>, error: Error) -> Result<(), Error> {
        self.looking = false;
        if pieces.is_empty() {
            tracing::warn!(%error, "a disk was read only at the second try");
            return Ok(());
        }
        if self.sink.is_some() && !self.engine.have().is_full() {
            return Err(error);
        }
        let (image, lost) = (self.manifest.name().to_owned(), pieces.len());
        self.step(Input::Lost(pieces));
        let left = self.engine.have().count();
        if left == 0 {
            tracing::error!(image, %error, "nothing of the image can be served any more");
            return Err(error);
        }
        tracing::error!(
            image, lost, left, %error,
            "pieces can no longer be read and are not served any more, the others are: \
             put the file or disk right and begin again"
        );
        Ok(())
    }

    pub(super) fn checked(&mut self, piece: u32, checked: Checked) -> Result<(), Error> {
        match checked {
            Checked::Written { bytes, twins } => {
                if let Some(bytes) = bytes {
                    let length = bytes.len();
                    match self.store.remember(piece, bytes) {
                        Some(bytes) => self.pool.give(bytes),
                        None => self.pool.lose(length),
                    }
                }
                self.yard.done(piece);
                self.services.known_good(piece);
                self.step(Input::Verified(piece, Verdict::Good));
                for twin in twins {
                    self.services.known_good(twin);
                    self.step(Input::Verified(twin, Verdict::Good));
                }
            }
            Checked::Known { twins } => {
                for twin in twins {
                    self.step(Input::Verified(twin, Verdict::Good));
                }
            }
            Checked::Corrupt { bytes, blocks } => self.corrupt(piece, bytes, blocks),
            Checked::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// Names the bad blocks, and with them the sender, if anybody can say which
    /// they are.
    fn corrupt(&mut self, piece: u32, bytes: Vec<u8>, blocks: Vec<u32>) {
        tracing::warn!(piece, image = self.manifest.name(), "a piece came corrupt and was thrown away");
        if !blocks.is_empty() {
            self.yard.restore(piece, bytes, &blocks);
            return self.step(Input::Verified(piece, Verdict::CorruptBlocks(blocks)));
        }
        let mut able: Vec<Peer> =
            self.connections.iter().filter(|(_, connection)| connection.speaks_v2).map(|(peer, _)| *peer).collect();
        able.sort_unstable();
        match self.doubts.raise(&self.manifest, piece, bytes, able) {
            Ok(questions) => {
                for (peer, question) in questions {
                    self.order(peer, Order::Say(question));
                }
            }
            Err(bytes) => {
                self.pool.give(bytes);
                self.step(Input::Verified(piece, Verdict::Corrupt));
            }
        }
    }

    /// Doubts that nobody resolved in time end as plain corruption.
    pub(super) fn settle_doubts(&mut self) {
        let settled = self.doubts.overdue(Instant::now());
        self.check_again(settled);
    }

    pub(super) fn check_again(&mut self, settled: Vec<(u32, Vec<u8>, bool)>) {
        for (piece, bytes, leaves_known) in settled {
            if leaves_known {
                self.check(piece, bytes);
            } else {
                self.pool.give(bytes);
                self.step(Input::Verified(piece, Verdict::Corrupt));
            }
        }
    }

    /// Zeros, and twins of pieces that are there, need nobody.
    pub(super) fn write_known(&self, unwritten: Vec<(u32, Vec<u32>)>) {
        let Some(sink) = self.sink.clone().filter(|_| !unwritten.is_empty()) else { return };
        let (manifest, store, events) = (Arc::clone(&self.manifest), Arc::clone(&self.store), self.events_in.clone());
        self.tasks.spawn(async move {
            for (first, twins) in unwritten {
                let (manifest, store, sink) = (Arc::clone(&manifest), Arc::clone(&store), Arc::clone(&sink));
                let work = spawn_blocking(move || checking::write_twins(&manifest, &store, &*sink, first, &twins));
                let checked = work.await.unwrap_or(Checked::Failed(Error::Defect));
                if events.send(Event::Checked(first, checked)).await.is_err() {
                    return;
                }
            }
        });
    }
}
