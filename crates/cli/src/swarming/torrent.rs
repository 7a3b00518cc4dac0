//! Where a torrent comes from: a file, an HTTP server, or the swarm itself.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use wire::magnet::Magnet;
use wire::metainfo::{MAX_METAINFO_BYTES, Metainfo};

/// How long a server may take to give a .torrent.
const GET_DEADLINE: Duration = Duration::from_secs(30);

/// The magnet link, if it is one.
pub(crate) fn magnet(place: &str) -> Result<Option<Magnet>> {
    if !place.starts_with("magnet:") {
        return Ok(None);
    }
    place.parse().map(Some).with_context(|| format!("{place} cannot be used; copy all of it, between quotes"))
}

/// Reads the torrent at a path or an address.
pub(crate) async fn read(place: &str) -> Result<Metainfo> {
    if magnet(place)?.is_some() {
        bail!("a magnet link names no piece: give the .torrent file or its http:// address");
    }
    let bytes = match place.split_once("://") {
        Some(("http", _)) => get(place).await?,
        Some((scheme, _)) => {
            bail!("{place} is {scheme}, and only http:// is understood: get the .torrent with another program first")
        }
        None => from_file(place)?,
    };
    Metainfo::decode(&bytes).with_context(|| format!("{place} is no .torrent that can be used"))
}

/// The trackers that can be asked; says what is left out.
pub(crate) fn trackers(announce: &[String], knows_peers: bool) -> Vec<String> {
    let (usable, other): (Vec<String>, Vec<String>) =
        announce.iter().cloned().partition(|url| is_usable(&url.to_ascii_lowercase()));
    if usable.is_empty() && !knows_peers {
        let named = if other.is_empty() { "no tracker".to_owned() } else { format!("only {}", other.join(", ")) };
        tracing::warn!("the torrent names {named}: peers must be given with --peer, or come to us");
    }
    usable
}

fn is_usable(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("udp://")
}

fn from_file(path: &str) -> Result<Vec<u8>> {
    let cannot = || format!("cannot open the torrent {path}");
    // Opening a pipe would wait for somebody to write into it.
    ensure!(std::fs::metadata(path).with_context(cannot)?.is_file(), "{path} is no file");
    let file = File::open(path).with_context(cannot)?;
    let mut bytes = Vec::new();
    let limit = MAX_METAINFO_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).with_context(|| format!("cannot read the torrent {path}"))?;
    ensure!(bytes.len() <= MAX_METAINFO_BYTES, "{path} is larger than any .torrent ({MAX_METAINFO_BYTES} bytes)");
    Ok(bytes)
}

async fn get(url: &str) -> Result<Vec<u8>> {
    let failed = || format!("cannot get the torrent {url}");
    // A proxy from the environment would be the wrong way into the provisioning network.
    let client = reqwest::Client::builder().no_proxy().timeout(GET_DEADLINE).build().with_context(failed)?;
    let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let mut answer = answer.map_err(reqwest::Error::without_url).with_context(failed)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.with_context(failed)? {
        ensure!(bytes.len() + chunk.len() <= MAX_METAINFO_BYTES, "{url} gives more than any .torrent has");
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
