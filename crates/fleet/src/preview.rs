//! What a deployment would do, before anything is done: a dry run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::change::Snapshot;
use crate::deployment::ImageInfo;
use crate::disk::{Purpose, choose};
use crate::ids::{Digest, ImageName, Millis, NodeName, RackName};
use crate::intake::{Refused, check_free, check_hardware, draw_up};
use crate::node::Node;
use crate::plan::{Drivers, NO_NETWORK_BOOT, Policy};
use crate::report::StageTime;
use crate::rollout::{Opening, Rollout, Wave, opening};

/// What would become of a node's disk, as far as the node has told of its disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum DiskPreview {
    /// This one would be written, or these.
    Written {
        /// The disk, or the disks of a layout: path, size, model, serial number.
        disk: String,
        /// What it held when the node last told; all of it would be lost.
        contents: Vec<String>,
        /// When that was, in milliseconds since the Unix epoch.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        told_at: Millis,
    },
    /// None would be written, and why.
    Refused {
        /// A sentence.
        reason: String,
    },
    /// The node has not told of its disks yet; the rule alone decides.
    Unknown {
        /// The rule.
        rule: String,
    },
}

/// What would happen to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodePreview {
    /// The rack that it stands in.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// Why it would be refused now, and with it the whole deployment.
    pub refused: Option<String>,
    /// What it runs now.
    pub runs: Option<String>,
    /// Its disk.
    pub disk: DiskPreview,
}

/// What a deployment would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Preview {
    /// The image's name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// The image's digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Size in bytes of the disk that it describes.
    pub size_bytes: u64,
    /// Bytes of it that travel.
    pub used_bytes: u64,
    /// Bytes per piece.
    pub piece_size: u32,
    /// How it would go on.
    pub rollout: Rollout,
    /// The waves, in order.
    pub waves: Vec<Wave>,
    /// What would happen to each node.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, NodePreview>))]
    pub nodes: BTreeMap<NodeName, NodePreview>,
    /// When the first node may start, where a maintenance window decides; in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub opens_at: Option<Millis>,
    /// Machines that start per second, in all.
    pub starts_per_second: u32,
    /// Machines that start per second in one rack.
    pub starts_per_second_per_rack: u32,
    /// What the stages took in the last deployment that came to its end; empty where there is none.
    pub measured: Vec<StageTime>,
}

/// What a deployment would do; nothing is changed.
///
/// # Errors
/// [`Refused`] where image, nodes or settings will not do. Nodes that are not free are told one by one.
pub fn preview(
    snapshot: &Snapshot,
    policy: &Policy,
    drivers: Drivers<'_>,
    now: Millis,
    image: &ImageName,
    nodes: &[NodeName],
    rollout: &Rollout,
) -> Result<Preview, Refused> {
    let deployment = draw_up(snapshot, now, image, nodes, rollout)?;
    let info =
        snapshot.images.get(image).ok_or_else(|| Refused::NotFound { what: "image", name: image.to_string() })?;
    let known = deployment.outcomes.keys().filter_map(|name| snapshot.nodes.get(name));
    let previews = known.map(|node| (node.name.clone(), of_node(snapshot, drivers, node, info, rollout)));
    Ok(Preview {
        image: image.clone(),
        digest: info.digest,
        size_bytes: info.size_bytes,
        used_bytes: info.used_bytes,
        piece_size: info.piece_size,
        rollout: rollout.clone(),
        nodes: previews.collect(),
        waves: deployment.waves,
        opens_at: match opening(&rollout.windows, now) {
            Opening::At(at) => Some(at),
            Opening::Open | Opening::Never => None,
        },
        starts_per_second: policy.starts_per_second,
        starts_per_second_per_rack: policy.starts_per_second_per_rack,
        measured: Vec::new(),
    })
}

fn of_node(
    snapshot: &Snapshot,
    drivers: Drivers<'_>,
    node: &Node,
    image: &ImageInfo,
    rollout: &Rollout,
) -> NodePreview {
    let free = check_free(snapshot, &node.name).and_then(|()| check_hardware(snapshot, &node.name, rollout));
    let refused = match free {
        Err(refused) => Some(refused.to_string()),
        Ok(()) if !drivers(&node.power).network_boot => Some(NO_NETWORK_BOOT.to_owned()),
        Ok(()) => None,
    };
    NodePreview {
        rack: node.rack.clone(),
        refused,
        runs: node.deployed.as_ref().map(|deployed| format!("{} ({})", deployed.image, deployed.digest)),
        disk: disk(node, image),
    }
}

fn disk(node: &Node, image: &ImageInfo) -> DiskPreview {
    let Some(inventory) = &node.inventory else { return DiskPreview::Unknown { rule: node.disk.to_string() } };
    let chosen = match &image.layout {
        Some(layout) => {
            let chosen = layout.choose_disks(&inventory.disks, &node.disk, node.own_disk());
            chosen.map_err(|refusal| refusal.to_string()).and_then(|disks| {
                let sizes: Vec<u64> = disks.iter().map(|disk| disk.size_bytes).collect();
                let fits = layout.with_archive(image.size_bytes).check_room(&sizes);
                fits.map(|()| disks).map_err(|wrong| wrong.to_string())
            })
        }
        None => {
            let purpose = Purpose::Write { image_bytes: image.size_bytes, own: node.own_disk() };
            let chosen = choose(&inventory.disks, &node.disk, purpose);
            chosen.map(|disk| vec![disk]).map_err(|refusal| refusal.to_string())
        }
    };
    match chosen {
        Ok(disks) => DiskPreview::Written {
            disk: disks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
            contents: disks.iter().flat_map(|disk| disk.contents.iter().cloned()).collect(),
            told_at: inventory.at,
        },
        Err(reason) => DiskPreview::Refused { reason },
    }
}
