//! The oracle of determinism: a hash over everything that engines put out.

use std::fmt;

use sha2::{Digest, Sha256};
use swarm::Output;
use wire::peer::{Block, Extended, Message, RackMessage};

/// Words gathered before they are hashed together.
const BUFFER_BYTES: usize = 1 << 16;

/// A running hash of outputs in order.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: Sha256,
    buffer: Vec<u8>,
}

/// The first 16 bytes of the hash; prints as hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct TraceHash([u8; 16]);

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Trace {
    pub(crate) fn new() -> Trace {
        Trace { hasher: Sha256::new(), buffer: Vec::with_capacity(BUFFER_BYTES + 256) }
    }

    pub(crate) fn step(&mut self, now: u64, node: u32) {
        self.buffer.extend_from_slice(&now.to_le_bytes());
        self.word(node);
    }

    pub(crate) fn output(&mut self, output: &Output) {
        match output {
            Output::Say(peer, message) => {
                self.word(peer.0);
                self.message(message);
            }
            Output::Send(peer, block) => self.block(1, peer.0, *block),
            Output::Keep(peer, block) => self.block(2, peer.0, *block),
            Output::Verify(piece) => self.pair(3, *piece),
            Output::Forget(piece) => self.pair(4, *piece),
            rare => {
                self.word(5);
                self.text(&format!("{rare:?}"));
            }
        }
        if self.buffer.len() >= BUFFER_BYTES {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }

    pub(crate) fn finish(mut self) -> TraceHash {
        self.hasher.update(&self.buffer);
        let digest = self.hasher.finalize();
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        TraceHash(hash)
    }

    fn message(&mut self, message: &Message) {
        match message {
            Message::Have(piece) => self.pair(6, *piece),
            Message::Request(block) => self.block(7, 0, *block),
            Message::Suggest(piece) => self.pair(9, *piece),
            Message::Extended(Extended::Rack(RackMessage::Have { piece, backlog })) => {
                self.pair(10, *piece);
                self.word((*backlog).into());
            }
            Message::Extended(Extended::Rack(RackMessage::Decline { piece, needless, backlog })) => {
                self.pair(11, *piece);
                self.word(u32::from(*needless) << 8 | u32::from(*backlog));
            }
            rare => {
                self.word(8);
                self.text(&format!("{rare:?}"));
            }
        }
    }

    fn block(&mut self, tag: u32, peer: u32, block: Block) {
        [tag, peer, block.piece, block.offset, block.length].iter().for_each(|word| self.word(*word));
    }

    fn pair(&mut self, tag: u32, value: u32) {
        self.word(tag);
        self.word(value);
    }

    fn word(&mut self, word: u32) {
        self.buffer.extend_from_slice(&word.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }
}
