//! Torrents are made in one way, whoever asks for them.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use image::metainfo::{self, CreateOptions, Version};
use wire::magnet::Magnet;
use wire::metainfo::Metainfo;

use crate::parse;

/// How a torrent is to be.
#[derive(Debug, Clone, Args)]
pub(crate) struct Form {
    /// Bytes of a piece, a power of two; by default from the file's size
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    piece_size: Option<u64>,
    /// Kind of torrent
    #[arg(id = "kind", long = "version", value_name = "KIND", value_enum, default_value_t)]
    kind: Kind,
    /// Do not mark the torrent as private (BEP 27): ordinary clients then look for peers beyond the tracker
    #[arg(long)]
    public: bool,
}

/// Versions of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Kind {
    /// SHA-1 of pieces, which every client reads (BEP 3)
    V1,
    /// A tree of SHA-256, by which single blocks are verified (BEP 52)
    V2,
    /// Both in one; aria2 1.36 computes a wrong hash of it
    #[default]
    Hybrid,
}

impl Form {
    /// Reads the file once, on all cores. Blocks.
    pub(crate) fn make(&self, file: &Path, trackers: Vec<String>) -> Result<Metainfo> {
        let about = std::fs::metadata(file).with_context(|| format!("cannot open {}", file.display()))?;
        let (kind, shown) = (about.file_type(), file.display());
        // Opening a pipe would wait for somebody to write into it.
        ensure!(kind.is_file() || kind.is_block_device(), "{shown} is neither a file nor a block device");
        ensure!(!kind.is_file() || about.len() > 0, "{shown} is empty: there is nothing to give");
        let options = CreateOptions {
            name: None,
            version: match self.kind {
                Kind::V1 => Version::V1,
                Kind::V2 => Version::V2,
                Kind::Hybrid => Version::Hybrid,
            },
            piece_length: self.piece_size,
            private: !self.public,
            trackers,
        };
        Ok(metainfo::create(file, &options, &mut image::no_progress)?)
    }

    /// For a person: sizes, hashes, trackers.
    pub(crate) fn describe(&self, file: &Path, metainfo: &Metainfo) -> Vec<String> {
        let info = metainfo.info();
        let chosen = if self.piece_size.is_some() { "as asked for" } else { "from the file's size" };
        let pieces = info.length.div_ceil(info.piece_length.into());
        let mut lines = vec![
            format!("file        {}, {} bytes", file.display(), info.length),
            format!("pieces      {pieces} of {} KiB, {chosen}", info.piece_length >> 10),
        ];
        lines.extend(metainfo.v1().map(|hash| format!("info-hash   {hash} (v1)")));
        lines.extend(metainfo.v2().map(|hash| format!("info-hash   {hash} (v2)")));
        lines.extend(metainfo.announce().iter().map(|url| format!("tracker     {url}")));
        lines
    }
}

/// A tracker's address, for a torrent that any client may read.
pub(crate) fn tracker_url(text: &str) -> Result<String, String> {
    let known = ["http", "https", "udp"];
    match text.split_once("://") {
        Some((scheme, host)) if known.contains(&scheme) && !host.trim_start_matches('/').is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err(format!("`{text}` is no tracker's address: write it as in http://10.0.0.1:6969/announce")),
    }
}

/// Writes a torrent; whoever reads it meanwhile sees the old one or the new one.
pub(crate) fn write(out: &Path, metainfo: &Metainfo) -> Result<()> {
    let mut draft = out.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let failed = || format!("cannot write the torrent {}", out.display());
    std::fs::write(&draft, metainfo.encode()?).with_context(failed)?;
    std::fs::rename(&draft, out).with_context(failed)
}

/// The link by which the torrent is found without its file.
pub(crate) fn magnet(metainfo: &Metainfo) -> Magnet {
    Magnet {
        v1: metainfo.v1(),
        v2: metainfo.v2(),
        name: Some(metainfo.info().name.clone()),
        trackers: metainfo.announce().to_vec(),
        peers: Vec::new(),
    }
}
