//! Changes are the unit of persistence, of replay and of the timeline; a
//! snapshot is all changes so far.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::deployment::{Deployment, ImageInfo};
use crate::ids::{Attempt, DeploymentId, ImageName, Mac, Millis, NodeName, RackName, SetName};
use crate::life::Stage;
use crate::node::{Live, Node, Rack};
use crate::run::Run;
use crate::set::MachineSet;

/// A line of a node's timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The node.
    pub node: NodeName,
    /// When.
    pub at: Millis,
    /// In which attempt.
    pub attempt: Attempt,
    /// The stage after it.
    pub stage: Stage,
    /// What happened, in one word of the field; stable, for programs.
    pub kind: String,
    /// What happened, as a sentence for people.
    pub text: String,
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A node is new or different.
    PutNode(Box<Node>),
    /// A node is gone, with its timeline.
    DropNode(NodeName),
    /// A rack is new or different.
    PutRack(Rack),
    /// A rack is gone.
    DropRack(RackName),
    /// A deployment is new or different.
    PutDeployment(Deployment),
    /// What a node did in a deployment, when that came to its end. Kept for reports, not in the snapshot.
    PutRun(Run),
    /// A set is new or different.
    PutSet(MachineSet),
    /// A set is gone; its nodes stay.
    DropSet(SetName),
    /// A line of a timeline.
    Note(Note),
    /// An image can be deployed. Not stored: the registry is the truth.
    PutImage(ImageInfo),
    /// An image is gone from the registry. Not stored.
    DropImage(ImageName),
    /// What a node said of its progress or health. Not stored.
    PutLive(NodeName, Live),
}

impl Change {
    /// True where the change must survive a restart.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        !matches!(self, Self::PutImage(_) | Self::DropImage(_) | Self::PutLive(..))
    }
}

/// The state at one moment, timelines apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Since when this controller process runs; nobody is called silent for
    /// the time before.
    pub started_at: Millis,
    /// All nodes.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Which node owns a MAC address.
    pub macs: BTreeMap<Mac, NodeName>,
    /// All racks.
    pub racks: BTreeMap<RackName, Rack>,
    /// All deployments, ended ones included.
    pub deployments: BTreeMap<DeploymentId, Deployment>,
    /// All sets of machines.
    pub sets: BTreeMap<SetName, MachineSet>,
    /// Images that can be deployed.
    pub images: BTreeMap<ImageName, ImageInfo>,
    /// What is known only while this process runs.
    pub live: BTreeMap<NodeName, Live>,
}

impl Snapshot {
    /// Applies one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::PutNode(node) => {
                self.forget_macs(&node.name);
                for mac in &node.macs {
                    self.macs.insert(*mac, node.name.clone());
                }
                self.nodes.insert(node.name.clone(), (**node).clone());
            }
            Change::DropNode(name) => {
                self.forget_macs(name);
                self.nodes.remove(name);
                self.live.remove(name);
            }
            Change::PutRack(rack) => {
                self.racks.insert(rack.name.clone(), rack.clone());
            }
            Change::DropRack(name) => {
                self.racks.remove(name);
            }
            Change::PutDeployment(deployment) => {
                self.deployments.insert(deployment.id, deployment.clone());
            }
            Change::PutSet(set) => {
                self.sets.insert(set.name.clone(), set.clone());
            }
            Change::DropSet(name) => {
                self.sets.remove(name);
            }
            Change::PutImage(image) => {
                self.images.insert(image.name.clone(), image.clone());
            }
            Change::DropImage(name) => {
                self.images.remove(name);
            }
            Change::PutLive(name, live) => {
                self.live.insert(name.clone(), live.clone());
            }
            Change::Note(_) | Change::PutRun(_) => {}
        }
    }

    /// The node that owns this MAC address.
    #[must_use]
    pub fn node_of(&self, mac: Mac) -> Option<&Node> {
        self.macs.get(&mac).and_then(|name| self.nodes.get(name))
    }

    /// The node of which nothing but this UUID is known. None where several nodes have the UUID: boards whose maker gave
    /// all the same are not told apart by it.
    #[must_use]
    pub fn awaited(&self, uuid: Uuid) -> Option<&Node> {
        let mut found = self.nodes.values().filter(|node| node.uuid == Some(uuid));
        found.next().filter(|node| node.macs.is_empty() && found.next().is_none())
    }

    /// The deployment that a node takes part in.
    #[must_use]
    pub fn deployment_of(&self, node: &Node) -> Option<&Deployment> {
        node.deployment.and_then(|id| self.deployments.get(&id))
    }

    /// The number for the next deployment.
    #[must_use]
    pub fn next_deployment(&self) -> DeploymentId {
        DeploymentId(self.deployments.keys().next_back().map_or(1, |last| last.0 + 1))
    }

    fn forget_macs(&mut self, name: &NodeName) {
        if let Some(old) = self.nodes.get(name) {
            // Another node may own one of them by now.
            for mac in &old.macs {
                if self.macs.get(mac) == Some(name) {
                    self.macs.remove(mac);
                }
            }
        }
    }
}
