//! Changes are the unit of persistence, of replay and of the timeline; a
//! snapshot is all changes so far.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::deployment::{Course, Deployment, DeploymentState, ImageInfo, Outcome};
use crate::ids::{Attempt, DeploymentId, ImageName, Mac, Millis, NodeName, RackName, SetName};
use crate::life::Stage;
use crate::node::{Live, Node, Rack, either_order};
use crate::rollout::{Place, Standing, Starts};
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
    /// A deployment is new, or different as a whole.
    PutDeployment(Deployment),
    /// One node of a deployment has another outcome.
    PutOutcome(DeploymentId, NodeName, Outcome),
    /// A deployment goes on in another way; its nodes' outcomes are as they were.
    PutCourse(DeploymentId, Box<Course>),
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
    /// Where the nodes of each active deployment stand. Follows from the rest, as everything below.
    pub standings: BTreeMap<DeploymentId, Standing>,
    /// How many machines are switched on in which second.
    pub starts: Starts,
    /// Which nodes have a UUID; the key is [`either_order`] of it.
    pub uuids: BTreeMap<Uuid, BTreeSet<NodeName>>,
    /// Which nodes stand in a rack.
    pub in_racks: BTreeMap<RackName, BTreeSet<NodeName>>,
    /// Machines that wait for approval.
    pub strangers: BTreeSet<NodeName>,
}

impl Snapshot {
    /// Applies one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::PutNode(node) => self.put_node(node),
            Change::DropNode(name) => {
                self.live.remove(name);
                if let Some(old) = self.nodes.remove(name) {
                    self.forget(&old);
                    self.stand(old.deployment, name);
                }
            }
            Change::PutRack(rack) => {
                self.racks.insert(rack.name.clone(), rack.clone());
            }
            Change::DropRack(name) => {
                self.racks.remove(name);
            }
            Change::PutDeployment(deployment) => {
                self.deployments.insert(deployment.id, deployment.clone());
                self.count(deployment.id);
            }
            Change::PutOutcome(id, name, outcome) => {
                if let Some(slot) = self.deployments.get_mut(id).and_then(|d| d.outcomes.get_mut(name)) {
                    *slot = outcome.clone();
                    self.stand(Some(*id), name);
                }
            }
            Change::PutCourse(id, course) => {
                let Some(deployment) = self.deployments.get_mut(id) else { return };
                let before = std::mem::replace(&mut deployment.course, (**course).clone());
                if before.state != course.state || before.forgiven != course.forgiven {
                    self.count(*id);
                }
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

    /// The node of which nothing but this UUID is known. None where several nodes have the UUID:
    /// boards whose maker gave all the same are not told apart by it.
    #[must_use]
    pub fn awaited(&self, uuid: Uuid) -> Option<&Node> {
        let mut found = self.with_uuid(uuid);
        found.next().filter(|node| node.macs.is_empty() && found.next().is_none())
    }

    /// The nodes that have this UUID, in either byte order.
    pub fn with_uuid(&self, uuid: Uuid) -> impl Iterator<Item = &Node> {
        self.uuids.get(&either_order(uuid)).into_iter().flatten().filter_map(|name| self.nodes.get(name))
    }

    /// The nodes that stand in this rack.
    pub fn in_rack(&self, rack: &RackName) -> impl Iterator<Item = &Node> {
        self.in_racks.get(rack).into_iter().flatten().filter_map(|name| self.nodes.get(name))
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

    fn put_node(&mut self, node: &Node) {
        let name = &node.name;
        let old = self.nodes.insert(name.clone(), node.clone());
        if let Some(old) = &old {
            self.forget(old);
        }
        for mac in &node.macs {
            self.macs.insert(*mac, name.clone());
        }
        if let Some(uuid) = node.uuid {
            self.uuids.entry(either_order(uuid)).or_default().insert(name.clone());
        }
        if let Some(rack) = &node.rack {
            self.in_racks.entry(rack.clone()).or_default().insert(name.clone());
        }
        if !node.approved {
            self.strangers.insert(name.clone());
        }
        self.starts.add(node);
        let before = old.and_then(|old| old.deployment);
        self.stand(node.deployment, name);
        if before != node.deployment {
            self.stand(before, name);
        }
    }

    /// Takes a node out of what follows from it.
    fn forget(&mut self, old: &Node) {
        let name = &old.name;
        for mac in &old.macs {
            // Another node may own one of them by now.
            if self.macs.get(mac) == Some(name) {
                self.macs.remove(mac);
            }
        }
        if let Some(uuid) = old.uuid {
            take_out(&mut self.uuids, &either_order(uuid), name);
        }
        if let Some(rack) = &old.rack {
            take_out(&mut self.in_racks, rack, name);
        }
        self.strangers.remove(name);
        self.starts.remove(old);
    }

    /// Where this node stands now in a deployment.
    fn stand(&mut self, id: Option<DeploymentId>, name: &NodeName) {
        let Some((id, standing)) = id.and_then(|id| Some((id, self.standings.get_mut(&id)?))) else { return };
        let Some(deployment) = self.deployments.get(&id) else { return };
        if let Some(outcome) = deployment.outcomes.get(name) {
            standing.put(name, Place::of(deployment, name, outcome, self.nodes.get(name)));
        }
    }

    /// Counts a deployment anew, or no more where it has ended.
    fn count(&mut self, id: DeploymentId) {
        match self.deployments.get(&id).filter(|deployment| deployment.course.state == DeploymentState::Active) {
            Some(deployment) => self.standings.insert(id, Standing::of(deployment, &self.nodes)),
            None => self.standings.remove(&id),
        };
    }
}

fn take_out<K: Ord>(index: &mut BTreeMap<K, BTreeSet<NodeName>>, key: &K, name: &NodeName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
