//! Which nodes of a deployment start now.

use std::collections::{BTreeMap, BTreeSet};

use super::window::{Opening, opening};
use super::{Order, Wave, WaveKind};
use crate::change::Snapshot;
use crate::deployment::{Deployment, DeploymentState, Outcome};
use crate::ids::{Millis, NodeName, RackName};
use crate::node::Node;
use crate::plan::Policy;

/// What follows for a deployment at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admission {
    /// Nodes that start now.
    pub start: Vec<NodeName>,
    /// Nodes whose turn it is and that cannot be deployed, and why.
    pub unfit: Vec<(NodeName, String)>,
    /// True where the last maintenance window is over and nodes still wait.
    pub windows_over: bool,
    /// When more may start if nothing happens before.
    pub wake_at: Option<Millis>,
    /// Why not all nodes that wait start now, as a sentence.
    pub waits_for: Option<String>,
}

impl Admission {
    /// True where something is to be done.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.start.is_empty() || !self.unfit.is_empty() || self.windows_over
    }

    fn holds(mut self, why: impl Into<String>) -> Self {
        self.waits_for = Some(why.into());
        self
    }
}

/// True for a node that has its turn still to come in this deployment.
#[must_use]
pub fn is_waiting(snapshot: &Snapshot, deployment: &Deployment, name: &NodeName) -> bool {
    deployment.outcomes.get(name) == Some(&Outcome::Pending)
        && !snapshot.nodes.get(name).is_some_and(|node| is_under_way(deployment, node))
}

/// The deployment in which a node has its turn still to come.
#[must_use]
pub fn waits_in<'a>(snapshot: &'a Snapshot, name: &NodeName) -> Option<&'a Deployment> {
    let mut active = snapshot.deployments.values().filter(|deployment| deployment.state == DeploymentState::Active);
    active.find(|deployment| is_waiting(snapshot, deployment, name))
}

fn is_under_way(deployment: &Deployment, node: &Node) -> bool {
    node.deployment == Some(deployment.id) && node.stage.is_under_way()
}

/// Which nodes start now, and what the others wait for.
#[must_use]
pub fn admit(snapshot: &Snapshot, policy: &Policy, deployment: &Deployment, now: Millis) -> Admission {
    let mut admission = Admission::default();
    let waits = |name: &NodeName| is_waiting(snapshot, deployment, name);
    if deployment.state != DeploymentState::Active || !deployment.outcomes.keys().any(waits) {
        return admission;
    }
    if let Some(pause) = &deployment.paused {
        return admission.holds(format!("paused: {}", pause.reason));
    }
    match opening(&deployment.rollout.windows, now) {
        Opening::Open => {}
        Opening::At(at) => {
            admission.wake_at = Some(at);
            return admission.holds("its maintenance window");
        }
        Opening::Never => {
            admission.windows_over = true;
            return admission.holds("a maintenance window; all of its own are over");
        }
    }
    Gate::new(snapshot, policy, deployment, now).pass()
}

/// Everything that is counted while nodes pass.
struct Gate<'a> {
    snapshot: &'a Snapshot,
    deployment: &'a Deployment,
    under_way: u32,
    under_way_in: BTreeMap<Option<&'a RackName>, u32>,
    /// Racks in which some node of this deployment is proved.
    proved_in: BTreeSet<Option<&'a RackName>>,
    pace: Pace<'a>,
    admission: Admission,
}

/// Why a node does not start, and whether others behind it may.
enum Held {
    All(String),
    Rack(String),
}

impl<'a> Gate<'a> {
    fn new(snapshot: &'a Snapshot, policy: &Policy, deployment: &'a Deployment, now: Millis) -> Self {
        let mut gate = Self {
            snapshot,
            deployment,
            under_way: 0,
            under_way_in: BTreeMap::new(),
            proved_in: BTreeSet::new(),
            pace: Pace::at(snapshot, policy, now),
            admission: Admission::default(),
        };
        for (rack, name) in deployment.waves.iter().flat_map(|wave| wave.nodes()) {
            match deployment.outcomes.get(name) {
                Some(Outcome::Running { .. }) => {
                    gate.proved_in.insert(rack);
                }
                Some(Outcome::Pending) if !is_waiting(snapshot, deployment, name) => {
                    gate.under_way += 1;
                    *gate.under_way_in.entry(rack).or_default() += 1;
                }
                _ => {}
            }
        }
        gate
    }

    fn pass(mut self) -> Admission {
        for wave in &self.deployment.waves {
            // By turns each rack gets its part of a small number; the paper's way is one rack after the other.
            let by_turns = wave.kind != WaveKind::Racks || self.deployment.rollout.order == Order::Lanes;
            let nodes: Vec<_> = if by_turns { wave.nodes_by_turns().collect() } else { wave.nodes().collect() };
            for (rack, name) in nodes {
                if !is_waiting(self.snapshot, self.deployment, name) {
                    continue;
                }
                match self.held(wave.kind, rack) {
                    Some(Held::All(why)) => return self.admission.holds(why),
                    Some(Held::Rack(why)) => {
                        self.admission.waits_for.get_or_insert(why);
                    }
                    None => self.take(rack, name),
                }
            }
            if wave.kind == WaveKind::Canary && !self.is_proved(wave) {
                return self.admission.holds("its canaries to be proved");
            }
        }
        self.admission
    }

    fn is_proved(&self, wave: &Wave) -> bool {
        wave.nodes().all(|(_, name)| match self.deployment.outcomes.get(name) {
            Some(Outcome::Running { .. }) => true,
            Some(Outcome::Pending) => false,
            _ => self.deployment.forgiven.contains(name),
        })
    }

    fn held(&mut self, kind: WaveKind, rack: Option<&'a RackName>) -> Option<Held> {
        let rollout = &self.deployment.rollout;
        if let Some(pause) = rack.and_then(|rack| self.deployment.paused_racks.get(rack)) {
            return Some(Held::Rack(format!("its rack, which is paused: {}", pause.reason)));
        }
        if let Some(limit) = rollout.at_once.filter(|limit| self.under_way >= *limit) {
            return Some(Held::All(format!("others to end; {limit} may be under way at once")));
        }
        let inside = self.under_way_in.get(&rack).copied().unwrap_or(0);
        if let Some(limit) = rollout.at_once_per_rack.filter(|limit| inside >= *limit) {
            return Some(Held::Rack(format!("others of its rack to end; {limit} may be under way at once")));
        }
        let is_led = kind != WaveKind::Canary && rollout.order == Order::Leaders;
        if is_led && !self.proved_in.contains(&rack) && inside > 0 {
            return Some(Held::Rack("the leader of its rack to be proved".to_owned()));
        }
        let next = self.pace.next();
        match self.pace.room(rack) {
            Room::Free => None,
            Room::RackFull => {
                self.admission.wake_at = Some(next);
                Some(Held::Rack("its turn; only so many of a rack start per second".to_owned()))
            }
            Room::Full => {
                self.admission.wake_at = Some(next);
                Some(Held::All("its turn; only so many start per second".to_owned()))
            }
        }
    }

    fn take(&mut self, rack: Option<&'a RackName>, name: &NodeName) {
        if let Err(why) = fit(self.snapshot, self.deployment, name) {
            self.admission.unfit.push((name.clone(), why));
            return;
        }
        self.under_way += 1;
        *self.under_way_in.entry(rack).or_default() += 1;
        self.pace.take(rack);
        self.admission.start.push(name.clone());
    }
}

fn fit(snapshot: &Snapshot, deployment: &Deployment, name: &NodeName) -> Result<(), String> {
    let Some(node) = snapshot.nodes.get(name) else { return Err("the node was removed before its turn came".into()) };
    if node.stage.is_under_way() {
        let other = node.deployment.map_or_else(|| "another deployment".to_owned(), |id| id.to_string());
        return Err(format!("{other} was at work on it when its turn came in {}", deployment.id));
    }
    fitness(node)
}

/// Whether a node can be deployed at all: approved, listed by its set, and recognisable when it boots.
///
/// # Errors
/// Why not and what to do, as a sentence.
pub fn fitness(node: &Node) -> Result<(), String> {
    let name = &node.name;
    if !node.approved {
        return Err(format!("node `{name}` is not approved; `rackswarm node approve {name}` first"));
    }
    if let Some(member) = node.member.as_ref().filter(|member| member.missing_since.is_some()) {
        return Err(format!(
            "set `{0}` does not list node `{name}` any more; `rackswarm set sync {0}` when it is back",
            member.set
        ));
    }
    if node.macs.is_empty() && node.uuid.is_none() {
        return Err(format!(
            "node `{name}` could not be recognised when it boots; `rackswarm node set {name} --mac` first"
        ));
    }
    Ok(())
}

/// When the attempt of a node that failed may begin again: the first moment from `earliest` on in whose second there is
/// room. A rack that lost its power would otherwise come back all at once.
#[must_use]
pub fn book(snapshot: &Snapshot, policy: &Policy, node: &Node, earliest: Millis) -> Millis {
    let first = second(earliest);
    // Of each second: bookings in all, and of this node's rack.
    let mut booked: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    for other in snapshot.nodes.values().filter(|other| other.name != node.name) {
        if let Some(at) = switched_at(other).map(second).filter(|at| *at >= first) {
            let (all, inside) = booked.entry(at).or_default();
            *all += 1;
            *inside += u32::from(node.rack.is_some() && other.rack == node.rack);
        }
    }
    let is_full = |at: &u64| {
        let (all, inside) = booked.get(at).copied().unwrap_or_default();
        all >= policy.starts_per_second || inside >= policy.starts_per_second_per_rack
    };
    // One more than there are bookings is always free.
    match (first..=first + booked.len() as u64).find(|at| !is_full(at)) {
        Some(at) if at > first => Millis(at * 1000 + earliest.0 % 1000),
        _ => earliest,
    }
}

/// In which second from now on each of these machines is switched on, by their racks, in the order in which they are named.
#[must_use]
pub fn spread<'a>(policy: &Policy, racks: impl Iterator<Item = Option<&'a RackName>>) -> Vec<u64> {
    let mut all: BTreeMap<u64, u32> = BTreeMap::new();
    let mut inside: BTreeMap<(&RackName, u64), u32> = BTreeMap::new();
    let mut second_of = |rack: Option<&'a RackName>| {
        let mut at = 0;
        while all.get(&at).is_some_and(|count| *count >= policy.starts_per_second)
            || rack.is_some_and(|rack| {
                inside.get(&(rack, at)).is_some_and(|count| *count >= policy.starts_per_second_per_rack)
            })
        {
            at += 1;
        }
        *all.entry(at).or_default() += 1;
        if let Some(rack) = rack {
            *inside.entry((rack, at)).or_default() += 1;
        }
        at
    };
    racks.map(&mut second_of).collect()
}

fn second(at: Millis) -> u64 {
    at.0 / 1000
}

/// When the power of the present attempt was or is to be switched.
fn switched_at(node: &Node) -> Option<Millis> {
    node.not_before.filter(|_| node.stage.is_under_way())
}

/// How many machines are switched on in one second, in all and by rack.
struct Pace<'a> {
    second: u64,
    all: u32,
    racks: BTreeMap<&'a RackName, u32>,
    limit: u32,
    rack_limit: u32,
}

enum Room {
    Free,
    RackFull,
    Full,
}

impl<'a> Pace<'a> {
    fn at(snapshot: &'a Snapshot, policy: &Policy, now: Millis) -> Self {
        let mut pace = Self {
            second: second(now),
            all: 0,
            racks: BTreeMap::new(),
            limit: policy.starts_per_second,
            rack_limit: policy.starts_per_second_per_rack,
        };
        for node in snapshot.nodes.values() {
            if switched_at(node).map(second) == Some(pace.second) {
                pace.take(node.rack.as_ref());
            }
        }
        pace
    }

    fn take(&mut self, rack: Option<&'a RackName>) {
        self.all += 1;
        if let Some(rack) = rack {
            *self.racks.entry(rack).or_default() += 1;
        }
    }

    fn room(&self, rack: Option<&RackName>) -> Room {
        let inside = rack.and_then(|rack| self.racks.get(rack)).copied().unwrap_or(0);
        match (self.all >= self.limit, inside >= self.rack_limit) {
            (true, _) => Room::Full,
            (false, true) => Room::RackFull,
            (false, false) => Room::Free,
        }
    }

    fn next(&self) -> Millis {
        Millis((self.second + 1) * 1000)
    }
}
