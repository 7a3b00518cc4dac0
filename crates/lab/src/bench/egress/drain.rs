//! Clients that ask for piece after piece and throw away what comes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wire::metainfo::{InfoHash, Metainfo};
use wire::peer::{
    BLOCK_BYTES, Block, ExtensionHandshake, ExtensionIds, HANDSHAKE_BYTES, Handshake, Message, PeerId, RackHello,
};

use super::Load;

/// Bytes that a client has asked for and not yet got.
const AHEAD_BYTES: u64 = 4 << 20;
const READ_BYTES: usize = 1 << 20;
/// A seeder that gives nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Clients begin so many pieces apart.
const APART_PIECES: u64 = 37;

/// All clients of one measurement.
pub(super) struct Drains {
    /// What all of them got until now.
    pub(super) got: AtomicU64,
    seeder: SocketAddr,
    infohash: InfoHash,
    pieces: u64,
    piece_bytes: u32,
    range_bytes: u32,
    over: AtomicBool,
    /// Where the kernel tells what the threads used.
    threads: Mutex<Vec<PathBuf>>,
    why: Mutex<Option<String>>,
}

impl Drains {
    pub(super) fn of(torrent: &[u8], seeder: SocketAddr, load: &Load, range_bytes: u32) -> Result<Drains> {
        let infohash = Metainfo::decode(torrent).context("our own torrent cannot be read")?.info_hash();
        Ok(Drains {
            got: AtomicU64::new(0),
            seeder,
            infohash,
            // The last piece may be short; nobody asks for it.
            pieces: load.bytes / u64::from(load.piece_bytes),
            piece_bytes: load.piece_bytes,
            range_bytes,
            over: AtomicBool::new(false),
            threads: Mutex::default(),
            why: Mutex::default(),
        })
    }

    /// Ends all clients when it goes.
    pub(super) fn over_on_drop(&self) -> Over<'_> {
        Over(&self.over)
    }

    /// CPU seconds of all clients, the kernel's work for them included.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let threads = self.threads.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let nanoseconds = threads.iter().filter_map(|thread| {
            let text = fs::read_to_string(thread.join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        });
        nanoseconds.sum::<f64>() / 1e9
    }

    /// Why a client ended before its time.
    pub(super) fn why(&self) -> String {
        let why = self.why.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        why.clone().unwrap_or_else(|| "a client ended before its time".to_owned())
    }

    /// A client's whole life, on a thread of its own.
    pub(super) fn one(&self, client: usize) {
        if let Err(error) = self.drain(client) {
            let mut why = self.why.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            why.get_or_insert(format!("{error:#}"));
        }
    }

    fn drain(&self, client: usize) -> Result<()> {
        let thread = PathBuf::from("/proc").join(fs::read_link("/proc/thread-self")?);
        self.threads.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(thread);
        let mut stream = self.connect(client)?;
        let ranges_of_piece = u64::from(self.piece_bytes / self.range_bytes);
        let ranges = self.pieces * ranges_of_piece;
        let first = client as u64 * APART_PIECES * ranges_of_piece;
        let (mut asked, mut received) = (0_u64, 0_u64);
        let mut buffer = vec![0; READ_BYTES];
        while !self.over.load(Ordering::Relaxed) {
            let mut requests = Vec::new();
            while asked * u64::from(self.range_bytes) < received + AHEAD_BYTES {
                let range = (first + asked) % ranges;
                let offset = (range % ranges_of_piece) as u32 * self.range_bytes;
                let piece = (range / ranges_of_piece) as u32;
                requests.push(Message::Request(Block { piece, offset, length: self.range_bytes }));
                asked += 1;
            }
            say(&mut stream, &requests)?;
            let count = stream.read(&mut buffer).context("the seeder gives nothing more")?;
            if count == 0 {
                bail!("the seeder closed the connection");
            }
            received += count as u64;
            self.got.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Until the seeder serves it.
    fn connect(&self, client: usize) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.seeder).context("the seeder does not listen")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut id = *b"-RS0100-drain0000000";
        id[13..].copy_from_slice(format!("{client:07}").as_bytes());
        stream.write_all(&Handshake::new(self.infohash, PeerId(id)).encode())?;
        stream.read_exact(&mut [0; HANDSHAKE_BYTES]).context("the seeder does not answer")?;
        // Without it the seeder takes us for an ordinary client.
        let hello = RackHello { rack: None, max_request_bytes: self.piece_bytes, offers: false, zstd: false };
        let ours = ExtensionHandshake {
            ids: ExtensionIds::OURS,
            rack: (self.range_bytes > BLOCK_BYTES).then_some(hello),
            ..ExtensionHandshake::default()
        };
        say(&mut stream, &[ours.into(), Message::HaveNone, Message::Interested])?;
        if self.range_bytes <= BLOCK_BYTES {
            // Our own kind is never choked, and is not told.
            wait_for_unchoke(&mut stream)?;
        }
        Ok(stream)
    }
}

/// See [`Drains::over_on_drop`].
pub(super) struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn say(stream: &mut TcpStream, messages: &[Message]) -> Result<()> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.encode(&ExtensionIds::OURS, &mut bytes));
    if bytes.is_empty() { Ok(()) } else { stream.write_all(&bytes).context("the seeder closed the connection") }
}

/// BEP 3: a frame is its length, four bytes, then its id, which is 1 for unchoke, then the rest.
fn wait_for_unchoke(stream: &mut impl Read) -> Result<()> {
    const UNCHOKE: u8 = 1;
    /// What precedes the first block is short.
    const FRAME_MAX: u64 = 1 << 20;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).context("the seeder does not unchoke")?;
        let length = u64::from(u32::from_be_bytes(length));
        if length > FRAME_MAX {
            bail!("the seeder says {length} bytes before it unchokes");
        }
        let mut body = Vec::new();
        let count = stream.by_ref().take(length).read_to_end(&mut body)? as u64;
        if count < length {
            bail!("the seeder closed the connection before it unchoked");
        }
        if body.first() == Some(&UNCHOKE) {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_unchoke_is_found_among_other_messages() {
        let mut bytes = Vec::new();
        for message in [Message::HaveAll, Message::KeepAlive, Message::Unchoke, Message::Interested] {
            message.encode(&ExtensionIds::OURS, &mut bytes);
        }
        let mut left = bytes.as_slice();
        wait_for_unchoke(&mut left).unwrap();
        assert_eq!(left, [0, 0, 0, 1, 2]);
        assert!(wait_for_unchoke(&mut left).unwrap_err().to_string().contains("does not unchoke"));
        assert!(wait_for_unchoke(&mut [255; 9].as_slice()).is_err());
    }
}
