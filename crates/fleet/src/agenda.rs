//! What is to be looked at, and when: the plan of [`crate::plan`] without asking nodes to which nothing has happened.
//!
//! A node or deployment is looked at when something has changed it ([`Agenda::touch`]) and when its own next moment has
//! come. What it asks for is derived from the snapshot, so an agenda may be forgotten at any time and made anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::{Change, Snapshot};
use crate::ids::{DeploymentId, Millis, NodeName};
use crate::plan::{Drivers, Plan, Policy, look_at_deployment, look_at_node};

/// An event that came to nothing, for instance because the store was away, is asked for again after this time, in
/// milliseconds.
const AGAIN: u64 = 1_000;

/// Something that may ask for something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Node(NodeName),
    Deployment(DeploymentId),
}

/// What has changed and was not looked at since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched(BTreeSet<Item>);

impl Touched {
    /// Notes what a change concerns. To be asked before `snapshot` has the change.
    pub fn add(&mut self, snapshot: &Snapshot, change: &Change) {
        match change {
            Change::PutNode(node) => {
                // It may have left one deployment for another.
                let before = snapshot.nodes.get(&node.name).and_then(|old| old.deployment);
                self.0.extend([before, node.deployment].into_iter().flatten().map(Item::Deployment));
                self.node(&node.name);
            }
            Change::DropNode(name) => {
                let before = snapshot.nodes.get(name).and_then(|old| old.deployment);
                self.0.extend(before.map(Item::Deployment));
                self.node(name);
            }
            Change::PutLive(name, _) => self.node(name),
            Change::PutDeployment(deployment) => {
                self.0.insert(Item::Deployment(deployment.id));
            }
            Change::PutOutcome(id, ..) | Change::PutCourse(id, _) => {
                self.0.insert(Item::Deployment(*id));
            }
            Change::PutRun(_)
            | Change::Note(_)
            | Change::PutRack(_)
            | Change::DropRack(_)
            | Change::PutSet(_)
            | Change::DropSet(_)
            | Change::PutImage(_)
            | Change::DropImage(_) => {}
        }
    }

    /// What is done for this node outside of the snapshot has changed.
    pub fn node(&mut self, name: &NodeName) {
        self.0.insert(Item::Node(name.clone()));
    }

    /// Everything that there is, as after a start.
    #[must_use]
    pub fn everything(snapshot: &Snapshot) -> Self {
        let nodes = snapshot.nodes.values().filter(|node| node.stage.is_under_way());
        let nodes = nodes.map(|node| Item::Node(node.name.clone()));
        Self(nodes.chain(snapshot.standings.keys().copied().map(Item::Deployment)).collect())
    }
}

/// When each thing is to be looked at again.
#[derive(Debug, Clone, Default)]
pub struct Agenda {
    moments: BTreeMap<Item, Millis>,
    order: BTreeSet<(Millis, Item)>,
}

impl Agenda {
    /// Has what was touched looked at next.
    pub fn touch(&mut self, touched: Touched) {
        touched.0.into_iter().for_each(|item| self.put(item, Some(Millis(0))));
    }

    /// What is to be done now by those that were touched and those whose moment has come.
    pub fn plan(&mut self, snapshot: &Snapshot, policy: &Policy, drivers: Drivers<'_>, now: Millis) -> Plan {
        let mut plan = Plan::default();
        while self.order.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, item)) = self.order.pop_first() else { break };
            self.moments.remove(&item);
            plan.looked_at += 1;
            let before = plan.overdue.len();
            let next = match &item {
                Item::Node(name) => look_at_node(&mut plan, snapshot, policy, drivers, name, now),
                Item::Deployment(id) => look_at_deployment(&mut plan, snapshot, policy, *id, now),
            };
            let again = (plan.overdue.len() > before).then(|| now.plus(AGAIN));
            // Never the present moment again, or this would not end.
            let next = next.into_iter().chain(again).min().map(|at| at.max(now.plus(1)));
            self.put(item, next);
        }
        plan.wake_at = self.order.first().map(|(at, _)| *at);
        plan
    }

    fn put(&mut self, item: Item, moment: Option<Millis>) {
        if let Some(old) = self.moments.remove(&item) {
            self.order.remove(&(old, item.clone()));
        }
        if let Some(at) = moment {
            self.moments.insert(item.clone(), at);
            self.order.insert((at, item));
        }
    }
}
