//! What swarms of other clients need from us: a torrent and a tracker. Both are this program's own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::fabric::{Place, SERVER};
use super::stage::Stage;
use crate::{line, tool};

const TRACKER: u16 = 6969;
const LIMIT: Duration = Duration::from_secs(60);

/// Where the torrent of a run is.
#[must_use]
pub fn torrent(stage: &Stage<'_>) -> PathBuf {
    stage.home(Place::Server).join("image.torrent")
}

/// Makes a torrent of the file and starts a tracker for it.
///
/// # Errors
/// When one of them fails.
pub fn track(stage: &mut Stage<'_>, piece_bytes: u32) -> Result<PathBuf> {
    let torrent = torrent(stage);
    let program = stage.program.display().to_string();
    let announce = format!("http://{SERVER}:{TRACKER}/announce");
    let mut make = line!["torrent", stage.source.display(), "--out", torrent.display(), "--piece-size", piece_bytes];
    // aria2 1.36 computes another hash of a hybrid torrent than everybody else.
    make.extend(line!["--announce", announce, "--version", "v1"]);
    tool::run(&program, make)?;
    let listen = format!("{SERVER}:{TRACKER}");
    stage.start(Place::Server, &line![program, "track", torrent.display(), "--listen", listen, "--interval", 5])?;
    stage.wait_for_port(TRACKER)?;
    Ok(torrent)
}

/// Waits until a seed has announced itself.
///
/// # Errors
/// When it does not.
pub fn wait_for_seed(stage: &Stage<'_>) -> Result<()> {
    stage.wait_for("the seed has announced itself", LIMIT, || {
        stage.fabric.inside(Place::Server, scrape).is_ok_and(|answer| has_seed(&answer))
    })
}

fn scrape() -> Result<Vec<u8>> {
    let address = SocketAddr::new(SERVER.into(), TRACKER);
    let mut stream = TcpStream::connect(address).context("the tracker is away")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET /scrape HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A bencoded number of complete peers (BEP 48) is not zero. A hybrid torrent is two swarms for a tracker.
fn has_seed(answer: &[u8]) -> bool {
    const KEY: &[u8] = b"8:completei";
    answer
        .windows(KEY.len() + 1)
        .any(|window| window.strip_prefix(KEY).is_some_and(|digit| digit[0].is_ascii_digit() && digit[0] != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_shows_in_the_scrape() {
        assert!(has_seed(b"HTTP/1.1 200 OK\r\n\r\nd5:filesd20:01234567890123456789d8:completei1e10:downloadedi0eeee"));
        assert!(!has_seed(b"d5:filesd20:01234567890123456789d8:completei0e10:downloadedi0eeee"));
        assert!(has_seed(b"8:completei0e10:downloadedi0ee20:01234567890123456789d8:completei2e"));
        assert!(!has_seed(b"d5:filesdee"));
    }
}
