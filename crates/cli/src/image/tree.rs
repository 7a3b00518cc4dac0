//! `rackswarm image import --layout`: a tree of files becomes a disk on this machine before it is sent.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use api::client::{Client, ClientError};
use clap::Args;
use fleet::ids::ImageName;
use golden::{Assembled, Platform, Tree};

use crate::connect::explain;
use crate::output::bytes;
use crate::{layout, parse};

/// How a tree becomes a disk.
#[derive(Debug, Args)]
#[command(next_help_heading = "Trees")]
pub(super) struct Arguments {
    /// The file is a tree: make the disk by this layout
    #[arg(long, value_name = "TOML", conflicts_with = "format")]
    layout: Option<PathBuf>,
    /// Size of the disk, such as 8G; what layout and tree need, where it is not given
    #[arg(long, value_parser = parse::size, requires = "layout")]
    size: Option<u64>,
    /// Which platform of a container image; this machine's, where it is not given
    #[arg(long, value_name = "OS/ARCH", requires = "layout")]
    platform: Option<Platform>,
    /// Which image, where a container archive holds several
    #[arg(long, requires = "layout")]
    tag: Option<String>,
    /// The kernel's parameters; those of the tree's /etc/default/grub, where they are not given
    #[arg(long, value_name = "PARAMETERS", requires = "layout")]
    kernel_line: Option<String>,
    /// Where the tree is unpacked and the disk put together
    #[arg(long, value_name = "DIR", default_value = golden::DEFAULT_CACHE, requires = "layout")]
    cache: PathBuf,
}

impl Arguments {
    /// Makes the disk; none where the file is a disk image already.
    pub(super) async fn assemble(&self, client: &Client, file: &Path, name: &ImageName) -> Result<Option<Assembled>> {
        let Some(layout) = &self.layout else { return Ok(None) };
        let tree = Tree {
            source: file.to_owned(),
            layout: layout::read(layout)?,
            size_bytes: self.size,
            platform: self.platform.clone().unwrap_or_else(Platform::own),
            tag: self.tag.clone(),
            kernel_line: self.kernel_line.clone(),
            cache: self.cache.clone(),
        };
        // Minutes of work would be lost on a name that is taken.
        match client.image(name.as_str()).await {
            Ok(_) => bail!("there is an image {name} already; `rackswarm image remove {name}`, or another --name"),
            Err(ClientError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(explain(error)),
        }
        let assembled = tokio::task::spawn_blocking(move || tree.assemble(&|line| eprintln!("{line}"))).await??;
        for note in &assembled.notes {
            eprintln!("note: {note}");
        }
        eprintln!(
            "made: {}, Linux {}, a disk of {}, {} used: {}",
            assembled.system,
            assembled.kernel_version,
            bytes(assembled.size_bytes),
            bytes(assembled.used_bytes),
            assembled.file_systems.join(", ")
        );
        Ok(Some(assembled))
    }
}
