//! What an operator does, through the API: add machines, import an image, deploy it.

use std::path::Path;

use anyhow::{Context, Result};
use api::client::Client;
use api::operator::{DeploymentView, ImageView, NewDeployment, NewNode, NodeSettings, NodeView, RackSettings};
use bytes::Bytes;
use fleet::ids::{NodeName, RackName};
use futures_util::{Stream, StreamExt};
use power::qemu::Machine;
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::vm;

const CHUNK_BYTES: usize = 256 << 10;

/// Adds a rack and its machines, each with the power driver that switches it.
///
/// # Errors
/// When the server refuses.
pub async fn add_machines(client: &Client, rack: &str, machines: &[Machine]) -> Result<Vec<NodeView>> {
    let rack: RackName = rack.parse().context("the rack's name is wrong")?;
    client.put_rack(&rack, &RackSettings::default()).await.context("the rack cannot be added")?;
    let mut nodes = Vec::new();
    for machine in machines {
        let node = new_node(machine, Some(rack.clone()))?;
        nodes.push(client.add_node(&node).await.with_context(|| format!("node {} cannot be added", machine.name))?);
    }
    Ok(nodes)
}

/// A machine as the server is told of it.
///
/// # Errors
/// When its name or address is none.
pub fn new_node(machine: &Machine, rack: Option<RackName>) -> Result<NewNode> {
    let name: NodeName = machine.name.parse().with_context(|| format!("`{}` is no node name", machine.name))?;
    let mac = machine.mac.parse().with_context(|| format!("`{}` is no MAC address", machine.mac))?;
    let settings = NodeSettings {
        rack,
        macs: Some(vec![mac]),
        uuid: Some(machine.uuid),
        power: Some(vm::power_address(machine)),
        ..NodeSettings::default()
    };
    Ok(NewNode { name, settings })
}

/// Imports a raw image as `rackswarm image import` does; `progress` hears how many bytes have been sent.
///
/// # Errors
/// When the file cannot be read or the server refuses.
pub async fn import(
    client: &Client,
    name: &str,
    path: &Path,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<ImageView> {
    let file = File::open(path).await.with_context(|| format!("cannot open {}", path.display()))?;
    let length = file.metadata().await?.len();
    let body = counted(ReaderStream::with_capacity(file, CHUNK_BYTES), progress);
    client
        .import_image(name, Some("raw"), length, body)
        .await
        .with_context(|| format!("{} cannot be imported", path.display()))
}

fn counted(
    body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    progress: impl Fn(u64) + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let mut sent = 0;
    body.inspect(move |chunk| {
        sent += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        progress(sent);
    })
}

/// Deploys an image to all nodes of a rack.
///
/// # Errors
/// When the server refuses.
pub async fn deploy_to_rack(client: &Client, image: &str, rack: &str) -> Result<DeploymentView> {
    let racks = vec![rack.parse().context("the rack's name is wrong")?];
    let wanted = NewDeployment { image: image.to_owned(), racks, ..NewDeployment::default() };
    client.deploy(&wanted).await.context("the image cannot be deployed")
}
