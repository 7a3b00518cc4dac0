//! Where the nodes of an active deployment stand, counted. The snapshot keeps it and changes it with each of its nodes, so
//! that admission and budgets need not count them all at every event.

use std::collections::BTreeMap;

use super::Wave;
use crate::deployment::{Deployment, Outcome};
use crate::ids::{NodeName, RackName};
use crate::node::Node;

/// Where a node stands in a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its turn is still to come.
    Waiting,
    /// It has begun.
    UnderWay,
    /// It is proved.
    Running,
    /// It failed.
    Failed {
        /// An operator has passed over it, so that it counts for no budget.
        forgiven: bool,
    },
    /// It was let go.
    LetGo {
        /// An operator has passed over it.
        forgiven: bool,
    },
}

impl Place {
    /// Of this node in this deployment; `node` is nothing where it was removed.
    #[must_use]
    pub fn of(deployment: &Deployment, name: &NodeName, outcome: &Outcome, node: Option<&Node>) -> Self {
        let forgiven = || deployment.course.forgiven.contains(name);
        match outcome {
            Outcome::Pending => {
                let begun = node.is_some_and(|n| n.deployment == Some(deployment.id) && n.stage.is_under_way());
                if begun { Self::UnderWay } else { Self::Waiting }
            }
            Outcome::Running { .. } => Self::Running,
            Outcome::Failed { .. } => Self::Failed { forgiven: forgiven() },
            Outcome::LetGo => Self::LetGo { forgiven: forgiven() },
        }
    }
}

/// How many nodes stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub nodes: usize,
    /// [`Place::Waiting`].
    pub waiting: usize,
    /// [`Place::UnderWay`].
    pub under_way: usize,
    /// [`Place::Running`].
    pub running: usize,
    /// [`Place::Failed`].
    pub failed: usize,
    /// Those of them that count for budgets.
    pub counting: usize,
    /// [`Place::LetGo`].
    pub let_go: usize,
}

impl Tally {
    fn slot(&mut self, place: Place) -> &mut usize {
        match place {
            Place::Waiting => &mut self.waiting,
            Place::UnderWay => &mut self.under_way,
            Place::Running => &mut self.running,
            Place::Failed { .. } => &mut self.failed,
            Place::LetGo { .. } => &mut self.let_go,
        }
    }

    /// One node more.
    pub fn add(&mut self, place: Place) {
        self.nodes += 1;
        *self.slot(place) += 1;
        self.counting += usize::from(place == Place::Failed { forgiven: false });
    }

    fn moved(&mut self, from: Place, to: Place) {
        self.nodes -= 1;
        *self.slot(from) -= 1;
        self.counting -= usize::from(from == Place::Failed { forgiven: false });
        self.add(to);
    }

    /// How many nodes have each outcome, as a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let Self { nodes, running, failed, let_go, .. } = self;
        format!("of {nodes} nodes {running} run and have proved it, {failed} failed, {let_go} were let go")
    }

    /// Nodes without an outcome.
    #[must_use]
    pub fn open(&self) -> usize {
        self.waiting + self.under_way
    }
}

/// A node's seat in the order of starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    wave: usize,
    group: usize,
    turn: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    /// Nothing in deployments of earlier versions, which have no waves.
    seat: Option<Seat>,
    rack: usize,
    place: Place,
}

/// Nodes of one rack and wave that wait, by their turns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    rack: usize,
    waiting: BTreeMap<usize, NodeName>,
}

impl Queue {
    /// The first node that waits at or after this turn, and its turn.
    #[must_use]
    pub fn next(&self, turn: usize) -> Option<(usize, &NodeName)> {
        self.waiting.range(turn..).next().map(|(turn, name)| (*turn, name))
    }

    /// The number of its rack, for [`Standing::rack`].
    #[must_use]
    pub fn rack(&self) -> usize {
        self.rack
    }
}

/// Where all nodes of a deployment stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    all: Tally,
    racks: Vec<(Option<RackName>, Tally)>,
    queues: Vec<Vec<Queue>>,
    members: BTreeMap<NodeName, Member>,
}

impl Standing {
    /// Counts all nodes of a deployment.
    #[must_use]
    pub fn of(deployment: &Deployment, nodes: &BTreeMap<NodeName, Node>) -> Self {
        let mut standing = Self::default();
        let mut known: BTreeMap<Option<RackName>, usize> = BTreeMap::new();
        let place = |name: &NodeName, outcome: &Outcome| Place::of(deployment, name, outcome, nodes.get(name));
        for (wave, Wave { groups, .. }) in deployment.waves.iter().enumerate() {
            let mut queues = Vec::with_capacity(groups.len());
            for (group, of_rack) in groups.iter().enumerate() {
                let rack = standing.rack_number(&mut known, of_rack.rack.as_ref());
                queues.push(Queue { rack, waiting: BTreeMap::new() });
                for (turn, name) in of_rack.nodes.iter().enumerate() {
                    if let Some(outcome) = deployment.outcomes.get(name) {
                        let seat = Some(Seat { wave, group, turn });
                        standing.members.insert(name.clone(), Member { seat, rack, place: place(name, outcome) });
                    }
                }
            }
            standing.queues.push(queues);
        }
        for (name, outcome) in &deployment.outcomes {
            if !standing.members.contains_key(name) {
                let rack = standing.rack_number(&mut known, None);
                standing.members.insert(name.clone(), Member { seat: None, rack, place: place(name, outcome) });
            }
        }
        standing.count();
        standing
    }

    fn rack_number(&mut self, known: &mut BTreeMap<Option<RackName>, usize>, rack: Option<&RackName>) -> usize {
        *known.entry(rack.cloned()).or_insert_with(|| {
            self.racks.push((rack.cloned(), Tally::default()));
            self.racks.len() - 1
        })
    }

    fn count(&mut self) {
        for (name, Member { seat, rack, place }) in &self.members {
            for tally in [&mut self.all, &mut self.racks[*rack].1] {
                tally.add(*place);
            }
            if let Some(Seat { wave, group, turn }) = seat.filter(|_| *place == Place::Waiting) {
                self.queues[wave][group].waiting.insert(turn, name.clone());
            }
        }
    }

    /// Notes where a node stands now. One that is not part of it changes nothing.
    pub fn put(&mut self, name: &NodeName, place: Place) {
        let Some(member) = self.members.get_mut(name) else { return };
        let before = std::mem::replace(&mut member.place, place);
        if before == place {
            return;
        }
        self.all.moved(before, place);
        self.racks[member.rack].1.moved(before, place);
        let Some(Seat { wave, group, turn }) = member.seat else { return };
        let waiting = &mut self.queues[wave][group].waiting;
        if place == Place::Waiting {
            waiting.insert(turn, name.clone());
        } else if before == Place::Waiting {
            waiting.remove(&turn);
        }
    }

    /// All nodes.
    #[must_use]
    pub fn all(&self) -> Tally {
        self.all
    }

    /// The nodes of a rack, by its number.
    #[must_use]
    pub fn rack(&self, number: usize) -> (Option<&RackName>, Tally) {
        self.racks.get(number).map_or((None, Tally::default()), |(rack, tally)| (rack.as_ref(), *tally))
    }

    /// Who waits in a wave, rack by rack.
    #[must_use]
    pub fn queues(&self, wave: usize) -> &[Queue] {
        self.queues.get(wave).map_or(&[], Vec::as_slice)
    }

    /// Where a node stands.
    #[must_use]
    pub fn place(&self, name: &NodeName) -> Option<Place> {
        self.members.get(name).map(|member| member.place)
    }

    /// The rack that a node stood in when the deployment was asked for.
    #[must_use]
    pub fn rack_of(&self, name: &NodeName) -> Option<&RackName> {
        self.members.get(name).and_then(|member| self.racks.get(member.rack)?.0.as_ref())
    }

    /// The wave in which a node has its turn.
    #[must_use]
    pub fn wave_of(&self, name: &NodeName) -> Option<usize> {
        self.members.get(name)?.seat.map(|seat| seat.wave)
    }
}

/// A standing with some outcomes more, which the snapshot does not have yet.
#[derive(Debug, Clone)]
pub struct Outlook<'a> {
    standing: &'a Standing,
    all: Tally,
    racks: BTreeMap<usize, Tally>,
    moved: BTreeMap<&'a NodeName, Place>,
}

impl<'a> Outlook<'a> {
    /// As the standing is.
    #[must_use]
    pub fn new(standing: &'a Standing) -> Self {
        Self { standing, all: standing.all, racks: BTreeMap::new(), moved: BTreeMap::new() }
    }

    /// A node will stand there.
    pub fn put(&mut self, name: &'a NodeName, place: Place) {
        let Some(member) = self.standing.members.get(name) else { return };
        let before = self.moved.insert(name, place).unwrap_or(member.place);
        self.all.moved(before, place);
        let rack = self.racks.entry(member.rack).or_insert_with(|| self.standing.rack(member.rack).1);
        rack.moved(before, place);
    }

    /// All nodes.
    #[must_use]
    pub fn all(&self) -> Tally {
        self.all
    }

    /// The nodes that stood in the same rack as this one when the deployment was asked for, and that rack.
    #[must_use]
    pub fn rack_of(&self, name: &NodeName) -> Option<(&'a RackName, Tally)> {
        let number = self.standing.members.get(name)?.rack;
        let (rack, tally) = self.standing.rack(number);
        Some((rack?, self.racks.get(&number).copied().unwrap_or(tally)))
    }

    /// Where a node will stand.
    #[must_use]
    pub fn place(&self, name: &NodeName) -> Option<Place> {
        self.moved.get(name).copied().or_else(|| self.standing.place(name))
    }
}
