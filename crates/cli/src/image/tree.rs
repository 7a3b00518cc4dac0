//! `rackswarm image import --layout`: a tree of files becomes a disk on this machine before it is sent, or is packed anew
//! where the layout is one that each node builds for itself.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use api::client::{Client, ClientError};
use clap::Args;
use fleet::ids::ImageName;
use fleet::layout::Layout;
use golden::{Assembled, Packed, Platform, Tree};

use crate::connect::explain;
use crate::output::bytes;
use crate::{layout, parse};

/// What was made of a tree.
pub(super) enum Made {
    /// A disk for all nodes.
    Disk(Assembled),
    /// Itself, for nodes that build the layout.
    Tree(Packed),
}

impl Made {
    /// The file to send.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Disk(assembled) => &assembled.path,
            Self::Tree(packed) => &packed.path,
        }
    }

    fn notes(&self) -> &[String] {
        match self {
            Self::Disk(assembled) => &assembled.notes,
            Self::Tree(packed) => &packed.notes,
        }
    }
}

/// How a tree becomes an image.
#[derive(Debug, Args)]
#[command(next_help_heading = "Trees")]
pub(super) struct Arguments {
    /// The file is a tree: make the disk by this layout, or have each node build it
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
    /// Makes what is sent; none where the file is a disk image already.
    pub(super) async fn make(&self, client: &Client, file: &Path, name: &ImageName) -> Result<Option<Made>> {
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
        let made = tokio::task::spawn_blocking(move || make(&tree)).await??;
        for note in made.notes() {
            eprintln!("note: {note}");
        }
        match &made {
            Made::Disk(disk) => eprintln!(
                "made: {}, Linux {}, a disk of {}, {} used: {}",
                disk.system,
                disk.kernel_version,
                bytes(disk.size_bytes),
                bytes(disk.used_bytes),
                disk.file_systems.join(", ")
            ),
            Made::Tree(tree) => eprintln!(
                "packed: {}, Linux {}, {}; each node builds the layout on its own disks",
                tree.system,
                tree.kernel_version,
                bytes(tree.size_bytes)
            ),
        }
        Ok(Some(made))
    }
}

fn make(tree: &Tree) -> Result<Made> {
    let told = |line: &str| eprintln!("{line}");
    Ok(if tree.layout.is_built_by_nodes() {
        let head = |layout: &Layout| image::tree::head(layout).map_err(|error| error.to_string());
        Made::Tree(tree.pack(&head, &image::tree::tail, &told)?)
    } else {
        Made::Disk(tree.assemble(&told)?)
    })
}
