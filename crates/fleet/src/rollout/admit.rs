//! Which nodes of a deployment start now.

use std::collections::BTreeMap;

use super::standing::{Place, Standing};
use super::starts::{Second, second, switched_at};
use super::window::{Opening, opening, over_at};
use super::{Order, Wave, WaveKind};
use crate::change::Snapshot;
use crate::deployment::{Deployment, DeploymentState};
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
    /// When a window is over for good, while nodes wait.
    pub over_at: Option<Millis>,
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

/// The deployment in which a node has its turn still to come.
#[must_use]
pub fn waits_in<'a>(snapshot: &'a Snapshot, name: &NodeName) -> Option<&'a Deployment> {
    let waits = |standing: &Standing| standing.place(name) == Some(Place::Waiting);
    let (id, _) = snapshot.standings.iter().find(|(_, standing)| waits(standing))?;
    snapshot.deployments.get(id)
}

/// Which nodes start now, and what the others wait for. Of an active deployment of the snapshot it looks at racks and at
/// those who start, not at all nodes; one that is only drawn up is counted first.
#[must_use]
pub fn admit(snapshot: &Snapshot, policy: &Policy, deployment: &Deployment, now: Millis) -> Admission {
    let mut admission = Admission::default();
    if deployment.course.state != DeploymentState::Active {
        return admission;
    }
    let counted;
    let standing = match snapshot.standings.get(&deployment.id) {
        Some(standing) => standing,
        None => {
            counted = Standing::of(deployment, &snapshot.nodes);
            &counted
        }
    };
    if standing.all().waiting == 0 {
        return admission;
    }
    if let Some(pause) = &deployment.course.paused {
        return admission.holds(format!("paused: {}", pause.reason));
    }
    match opening(&deployment.rollout.windows, now) {
        Opening::Open => admission.over_at = over_at(&deployment.rollout.windows, now),
        Opening::At(at) => {
            admission.wake_at = Some(at);
            return admission.holds("its maintenance window");
        }
        Opening::Never => {
            admission.windows_over = true;
            return admission.holds("a maintenance window; all of its own are over");
        }
    }
    let pace = Pace::at(snapshot, policy, now);
    Gate { snapshot, deployment, standing, taken: 0, taken_in: BTreeMap::new(), pace, admission }.pass()
}

/// Everything that is counted while nodes pass.
struct Gate<'a> {
    snapshot: &'a Snapshot,
    deployment: &'a Deployment,
    standing: &'a Standing,
    /// Those that pass, and by number of their rack.
    taken: usize,
    taken_in: BTreeMap<usize, usize>,
    pace: Pace<'a>,
    admission: Admission,
}

/// Why a node does not start, and whether others behind it may.
enum Held {
    All(String),
    Rack(String),
}

impl<'a> Gate<'a> {
    fn pass(mut self) -> Admission {
        for (number, wave) in self.deployment.waves.iter().enumerate() {
            // By turns each rack gets its part of a small number; the paper's way is one rack after the other.
            let by_turns = wave.kind != WaveKind::Racks || self.deployment.rollout.order == Order::Lanes;
            if let Some(why) = self.pass_wave(number, wave.kind, by_turns) {
                return self.admission.holds(why);
            }
            if wave.kind == WaveKind::Canary && !self.is_proved(wave) {
                return self.admission.holds("its canaries to be proved");
            }
        }
        self.admission
    }

    /// A rack that is held stays held while others pass, because what holds it only grows; so the rest of it is passed over.
    fn pass_wave(&mut self, wave: usize, kind: WaveKind, by_turns: bool) -> Option<String> {
        let queues = self.standing.queues(wave);
        let key = |turn: usize, queue: usize| if by_turns { (turn, queue) } else { (queue, turn) };
        let mut heads: BTreeMap<(usize, usize), (usize, usize, &'a NodeName)> = BTreeMap::new();
        for (queue, waiting) in queues.iter().enumerate() {
            heads.extend(waiting.next(0).map(|(turn, name)| (key(turn, queue), (queue, turn, name))));
        }
        while let Some((_, (queue, turn, name))) = heads.pop_first() {
            match self.held(kind, queues[queue].rack()) {
                Some(Held::All(why)) => return Some(why),
                Some(Held::Rack(why)) => {
                    self.admission.waits_for.get_or_insert(why);
                }
                None => {
                    self.take(queues[queue].rack(), name);
                    let next = queues[queue].next(turn + 1);
                    heads.extend(next.map(|(turn, name)| (key(turn, queue), (queue, turn, name))));
                }
            }
        }
        None
    }

    fn is_proved(&self, wave: &Wave) -> bool {
        let passed = |place| {
            matches!(place, Place::Running | Place::Failed { forgiven: true } | Place::LetGo { forgiven: true })
        };
        wave.nodes().all(|(_, name)| self.standing.place(name).is_some_and(passed))
    }

    fn held(&mut self, kind: WaveKind, number: usize) -> Option<Held> {
        let rollout = &self.deployment.rollout;
        let (rack, tally) = self.standing.rack(number);
        if let Some(pause) = rack.and_then(|rack| self.deployment.course.paused_racks.get(rack)) {
            return Some(Held::Rack(format!("its rack, which is paused: {}", pause.reason)));
        }
        let under_way = self.standing.all().under_way + self.taken;
        if let Some(limit) = rollout.at_once.filter(|limit| under_way >= *limit as usize) {
            return Some(Held::All(format!("others to end; {limit} may be under way at once")));
        }
        let inside = tally.under_way + self.taken_in.get(&number).copied().unwrap_or(0);
        if let Some(limit) = rollout.at_once_per_rack.filter(|limit| inside >= *limit as usize) {
            return Some(Held::Rack(format!("others of its rack to end; {limit} may be under way at once")));
        }
        let is_led = kind != WaveKind::Canary && rollout.order == Order::Leaders;
        if is_led && tally.running == 0 && inside > 0 {
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

    fn take(&mut self, number: usize, name: &NodeName) {
        if let Err(why) = fit(self.snapshot, self.deployment, name) {
            self.admission.unfit.push((name.clone(), why));
            return;
        }
        self.taken += 1;
        *self.taken_in.entry(number).or_default() += 1;
        self.pace.take(self.standing.rack(number).0);
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
    // The node's own last start takes no room.
    let before = snapshot.nodes.get(&node.name);
    let own_second = before.and_then(switched_at).map(second);
    let is_full = |at: &u64| {
        let Some(booked) = snapshot.starts.at(*at) else { return false };
        let own = u32::from(own_second == Some(*at));
        let own_rack = if before.is_some_and(|before| before.rack == node.rack) { own } else { 0 };
        let inside = booked.of(node.rack.as_ref()).saturating_sub(own_rack);
        booked.all() - own >= policy.starts_per_second || inside >= policy.starts_per_second_per_rack
    };
    // One more than there are bookings is always free.
    match (first..=first + snapshot.starts.seconds_from(first) as u64).find(|at| !is_full(at)) {
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

/// How many machines are switched on in one second, in all and by rack.
struct Pace<'a> {
    second: u64,
    /// Those that were switched on before.
    booked: Option<&'a Second>,
    all: u32,
    /// Those that pass now.
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
        let second = second(now);
        let booked = snapshot.starts.at(second);
        Self {
            second,
            booked,
            all: booked.map_or(0, Second::all),
            racks: BTreeMap::new(),
            limit: policy.starts_per_second,
            rack_limit: policy.starts_per_second_per_rack,
        }
    }

    fn take(&mut self, rack: Option<&'a RackName>) {
        self.all += 1;
        if let Some(rack) = rack {
            *self.racks.entry(rack).or_default() += 1;
        }
    }

    fn room(&self, rack: Option<&RackName>) -> Room {
        let before = self.booked.map_or(0, |booked| booked.of(rack));
        let inside = before + rack.and_then(|rack| self.racks.get(rack)).copied().unwrap_or(0);
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
