//! `rackswarm image`: disk images.

pub(crate) mod build;
pub(crate) mod capture;
mod import;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use api::client::ClientError;
use api::operator::ImageView;
use clap::{Args, Subcommand};
use fleet::ids::ImageName;

use crate::connect::{Connection, explain};
use crate::output::{self, bytes, moment, percent, say, show};

/// What is done with disk images.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send a disk image, or one made of a tree and a layout, to the controller, which checks and seals it
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArguments),
    /// Make an image of a golden machine's disk: used blocks only, generalised
    Capture(capture::Arguments),
    /// All images, and captures under way
    #[command(visible_alias = "ls")]
    List {
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// One image
    Show {
        /// The image
        name: ImageName,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image that nothing deploys, or what has arrived of a capture
    #[command(visible_alias = "rm")]
    Remove {
        /// The image
        name: ImageName,
    },
    /// Make a bootable image on this machine from Debian packages
    Build(build::Arguments),
}

const IMPORT_EXAMPLES: &str = "\
Examples:
  rackswarm image import disk.qcow2 --name debian
  rackswarm image import disk.img --name app --format raw
  rackswarm image import web.tar.zst --name web --layout web.toml
  rackswarm image import oci-folder --name web --layout web.toml --tag web:1.2 --size 8G

With --layout the disk is made here, as root, of a tree that brings its own kernel and GRUB: a tar
(also by gzip, zstd, xz, bzip2), an OCI layout (folder or tar), or what `docker save` writes.
`rackswarm layout check --help` shows what a layout looks like.";

/// What is imported.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The file: raw, qcow2, vmdk, vhdx, vpc (vhd) or vdi; with --layout a tree, as tar or OCI layout
    file: PathBuf,
    /// Name of the image in the controller's registry
    #[arg(long)]
    name: ImageName,
    /// Its format, where the file's beginning does not tell it
    #[arg(long, value_parser = format)]
    format: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tree: tree::Arguments,
}

fn format(text: &str) -> Result<String, String> {
    text.parse::<::image::Format>().map(|format| format.name().to_owned())
}

pub(crate) async fn run(connection: &Connection, command: Command) -> Result<ExitCode> {
    match command {
        Command::Import(arguments) => import::run(connection, &arguments).await,
        Command::Capture(arguments) => capture::run(connection, &arguments).await,
        Command::List { json } => {
            let client = connection.client()?;
            let images = client.images().await.map_err(explain)?;
            let captures = client.captures().await.map_err(explain)?;
            show(json, &images, |images| list(images) + &capture::under_way(&captures))
        }
        Command::Show { name, json } => {
            let image = connection.client()?.image(name.as_str()).await.map_err(explain)?;
            show(json, &image, describe)
        }
        Command::Remove { name } => {
            let client = connection.client()?;
            match client.remove_image(name.as_str()).await {
                Err(ClientError::Refused { status: 404, .. }) if capture::discard(&client, &name).await? => {}
                removed => {
                    removed.map_err(explain)?;
                    say(format_args!("{name} is removed"))?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Build(arguments) => build::run(&arguments),
    }
}

fn list(images: &[ImageView]) -> String {
    let mut table = output::table(["IMAGE", "SIZE", "USED", "SEALED", "DIGEST"]);
    for image in images {
        table.add_row([
            image.name.to_string(),
            bytes(image.size_bytes),
            bytes(image.used_bytes),
            moment(image.sealed_at),
            image.digest.to_string(),
        ]);
    }
    output::text_of(&table, "no images yet: `rackswarm image import --help`")
}

fn describe(image: &ImageView) -> String {
    let kind = image.layout.as_ref().map_or_else(
        || "a disk".to_owned(),
        |layout| {
            let mounts = layout.mounts.iter().map(|mount| {
                let kind = mount.kind.as_str();
                mount.at.as_ref().map_or_else(|| kind.to_owned(), |at| format!("{kind} at {at}"))
            });
            let (disks, mounts) = (layout.disks.len(), mounts.collect::<Vec<_>>().join(", "));
            format!("a tree, for a layout that nodes build on {disks} of their disks: {mounts}")
        },
    );
    let lines = [
        ("image", image.name.to_string()),
        ("kind", kind),
        ("size", format!("{} ({} bytes)", bytes(image.size_bytes), image.size_bytes)),
        (
            "used",
            format!(
                "{} ({} %); the rest is zeros and does not travel",
                bytes(image.used_bytes),
                percent(image.used_bytes, image.size_bytes)
            ),
        ),
        ("pieces", format!("of {}", bytes(u64::from(image.piece_size)))),
        ("digest", image.digest.to_string()),
        ("infohash", image.infohash.clone()),
        ("sealed", moment(image.sealed_at)),
    ];
    lines.iter().map(|(name, value)| format!("{name:8}  {value}")).collect::<Vec<_>>().join("\n")
}
