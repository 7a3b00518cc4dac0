#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::agenda::{Agenda, Touched};
use crate::change::{Change, Snapshot};
use crate::deployment::{Deployment, DeploymentState, ImageInfo, Outcome};
use crate::event::{Event, NodeEdit};
use crate::ids::{DeploymentId, Digest, Mac};
use crate::intake::{Refused, intake};
use crate::life::Stage;
use crate::node::{Node, Progress, Rack, TokenHash};
use crate::plan::{Action, Driver, Plan, Policy, plan};
use crate::run::Run;

const ID: DeploymentId = DeploymentId(1);
const START: Millis = Millis(1_700_000_000_000);

/// Racks of nodes, driven as the keeper and the reconciler drive them.
struct World {
    snapshot: Snapshot,
    policy: Policy,
    now: Millis,
    runs: Vec<Run>,
    agenda: Agenda,
    touched: Touched,
    /// What the agenda has asked for, and when.
    asked: Vec<(Millis, Event)>,
    acted: Vec<Action>,
}

fn node_name(index: usize) -> NodeName {
    format!("n{index:02}").parse().unwrap()
}
fn mac(name: &NodeName) -> Mac {
    let [high, low] = name.as_str()[1..].parse::<u16>().unwrap().to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}
fn rack_name(index: usize) -> RackName {
    format!("r{index}").parse().unwrap()
}

impl World {
    /// `nodes` nodes, one after the other in `racks` racks.
    fn new(nodes: usize, racks: usize) -> Self {
        let snapshot = Snapshot { started_at: START, ..Snapshot::default() };
        let mut world = Self {
            snapshot,
            policy: Policy::default(),
            now: START,
            runs: Vec::new(),
            agenda: Agenda::default(),
            touched: Touched::default(),
            asked: Vec::new(),
            acted: Vec::new(),
        };
        world.policy.pause_seconds = 0;
        world.policy.starts_per_second = 1000;
        world.policy.starts_per_second_per_rack = 1000;
        for rack in 0..racks {
            world.take(Event::PutRack(Rack { name: rack_name(rack), post: Default::default() })).unwrap();
        }
        for index in 0..nodes {
            let name = node_name(index);
            let edit = NodeEdit {
                macs: Some(vec![mac(&name)]),
                rack: Some(rack_name(index % racks)),
                power: Some("fake:x".into()),
                ..NodeEdit::default()
            };
            world.take(Event::AddNode { node: name, edit }).unwrap();
        }
        let image = ImageInfo::sample("golden", Digest([7; 32]));
        world.take(Event::ImageSealed(image)).unwrap();
        world
    }

    fn take(&mut self, event: Event) -> Result<(), Refused> {
        for change in intake(&self.snapshot, &self.policy, self.now, &event)? {
            self.apply(&change);
            if let Change::PutRun(run) = change {
                self.runs.push(run);
            }
        }
        Ok(())
    }

    fn apply(&mut self, change: &Change) {
        self.touched.add(&self.snapshot, change);
        self.snapshot.apply(change);
    }

    fn drivers(_: &str) -> Driver {
        Driver { limit_seconds: 10, network_boot: true, by_hand: false }
    }

    fn plan_of_all(&self) -> Plan {
        plan(&self.snapshot, &self.policy, &Self::drivers, self.now)
    }

    /// The agenda asks for what the plan of everybody asks for, and wakes no later.
    fn check_agenda(&mut self) {
        let all = self.plan_of_all();
        self.agenda.touch(std::mem::take(&mut self.touched));
        let mine = self.agenda.plan(&self.snapshot, &self.policy, &Self::drivers, self.now);
        for event in &mine.overdue {
            assert!(all.overdue.contains(event), "nobody needs {event:?}");
            self.asked.push((self.now, event.clone()));
        }
        self.acted.extend(mine.actions);
        for event in &all.overdue {
            let asked = |(at, asked): &(Millis, Event)| asked == event && at.plus(1_000) > self.now;
            assert!(self.asked.iter().any(asked), "the agenda forgot {event:?}");
        }
        for action in &all.actions {
            assert!(self.acted.contains(action), "the agenda forgot {action:?}");
        }
        if let Some(wake) = all.wake_at {
            assert!(mine.wake_at.is_some_and(|mine| mine <= wake), "{:?} is later than {wake:?}", mine.wake_at);
        }
    }

    /// What the snapshot keeps counted is what there is to count.
    fn check_counts(&self) {
        let Snapshot { nodes, standings, starts, uuids, in_racks, strangers, .. } = &self.snapshot;
        let active = self.snapshot.deployments.values().filter(|d| d.course.state == DeploymentState::Active);
        let counted: BTreeMap<DeploymentId, Standing> = active.map(|d| (d.id, Standing::of(d, nodes))).collect();
        assert_eq!(standings, &counted);
        let mut again = Snapshot::default();
        nodes.values().for_each(|node| again.apply(&Change::PutNode(Box::new(node.clone()))));
        assert_eq!(
            (starts, uuids, in_racks, strangers),
            (&again.starts, &again.uuids, &again.in_racks, &again.strangers)
        );
    }

    fn deploy(&mut self, rollout: Rollout) {
        let nodes = self.snapshot.nodes.keys().cloned().collect();
        self.take(Event::Deploy { image: "golden".parse().unwrap(), nodes, rollout }).unwrap();
        self.settle();
    }

    /// What the reconciler does: plans and tells until nothing is due.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let due = self.plan_of_all().overdue;
            let proceeds: Vec<Event> = due.into_iter().filter(|event| matches!(event, Event::Proceed(_))).collect();
            if proceeds.is_empty() {
                return;
            }
            proceeds.into_iter().for_each(|event| self.take(event).unwrap());
        }
        panic!("the plan asks for the same again and again");
    }

    fn tick(&mut self, milliseconds: u64) {
        self.now = self.now.plus(milliseconds);
        self.settle();
    }

    fn deployment(&self) -> &Deployment {
        &self.snapshot.deployments[&ID]
    }

    fn admission(&self) -> Admission {
        admit(&self.snapshot, &self.policy, self.deployment(), self.now)
    }

    fn under_way(&self) -> Vec<NodeName> {
        let nodes = self.snapshot.nodes.values().filter(|node| node.stage.is_under_way());
        nodes.map(|node| node.name.clone()).collect()
    }

    fn node(&self, index: usize) -> &Node {
        &self.snapshot.nodes[&node_name(index)]
    }

    fn prove(&mut self, name: &NodeName) {
        let node = name.clone();
        let attempt = self.snapshot.nodes[name].attempt;
        let progress = Progress { received_bytes: 100, sent_bytes: 40, done_bytes: 1, ..Progress::default() };
        for event in [
            Event::PoweredOn { node: node.clone(), attempt, text: "on".into() },
            Event::ScriptAsked { mac: mac(name), uuid: None, token: TokenHash("boot".into()) },
            Event::Registered {
                node: node.clone(),
                attempt,
                uuid: None,
                token: TokenHash("t".into()),
                text: "up".into(),
            },
            Event::FetchStarted { node: node.clone(), attempt, disk: "serial:a".into(), text: "writes".into() },
            Event::Progressed { node: node.clone(), attempt, progress },
            Event::ImageVerified { node: node.clone(), attempt, text: "verified".into() },
            Event::PostActionsDone { node: node.clone(), attempt, text: "done".into() },
            Event::Proved { node, attempt, digest: Digest([7; 32]), disk: "serial:a".into() },
        ] {
            self.take(event).unwrap();
        }
        assert_eq!(self.snapshot.nodes[name].stage, Stage::Running);
        self.settle();
    }

    fn fail(&mut self, name: &NodeName, retry: bool) {
        let attempt = self.snapshot.nodes[name].attempt;
        let reason = "two disks match".to_owned();
        self.take(Event::StageFailed { node: name.clone(), attempt, reason, retry }).unwrap();
        self.settle();
    }

    fn resume(&mut self, rack: Option<RackName>) -> Result<(), Refused> {
        let resumed = self.take(Event::Resume { deployment: ID, rack, windows: None });
        self.settle();
        resumed
    }

    /// What is not stored is gone, and what is has been written and read.
    fn restart(&mut self) {
        let mut again = Snapshot { started_at: self.now, images: self.snapshot.images.clone(), ..Snapshot::default() };
        for node in self.snapshot.nodes.values() {
            let text = serde_json::to_string(node).unwrap();
            again.apply(&Change::PutNode(Box::new(serde_json::from_str(&text).unwrap())));
        }
        for deployment in self.snapshot.deployments.values() {
            let text = serde_json::to_string(deployment).unwrap();
            again.apply(&Change::PutDeployment(serde_json::from_str(&text).unwrap()));
        }
        again.racks = self.snapshot.racks.clone();
        self.touched = Touched::everything(&again);
        self.agenda = Agenda::default();
        self.snapshot = again;
    }

    fn kinds(&self) -> Vec<&str> {
        self.deployment().course.log.iter().map(|line| line.kind.as_str()).collect()
    }
}

#[test]
fn all_start_at_once_where_nothing_is_said() {
    let mut world = World::new(6, 2);
    world.deploy(Rollout::default());
    assert_eq!(world.under_way().len(), 6);
    assert_eq!(world.kinds(), ["asked", "wave_begun"]);
}

#[test]
fn everybody_waits_until_the_canaries_are_proved() {
    let mut world = World::new(6, 2);
    world.deploy(Rollout { canary: Some(Canary::Count(2)), ..Rollout::default() });
    assert_eq!(world.under_way(), [node_name(0), node_name(1)], "one of each rack");
    assert!(world.admission().waits_for.unwrap().contains("canaries"));
    world.prove(&node_name(0));
    assert_eq!(world.under_way(), [node_name(1)]);
    world.prove(&node_name(1));
    assert_eq!(world.under_way().len(), 4);
    assert_eq!(world.kinds(), ["asked", "wave_begun", "canaries_proved", "wave_begun"]);
}

#[test]
fn a_canary_that_fails_holds_up_all_others_until_it_is_retried_or_passed_over() {
    for retry in [true, false] {
        let mut world = World::new(4, 2);
        world.deploy(Rollout { canary: Some(Canary::Nodes(vec![node_name(3)])), ..Rollout::default() });
        assert_eq!(world.under_way(), [node_name(3)]);
        world.fail(&node_name(3), false);
        let pause = world.deployment().course.paused.clone().unwrap();
        assert!(pause.by == PausedBy::Failures && pause.reason.contains("canary n03"), "{pause:?}");
        assert!(pause.reason.contains("two disks match"), "{pause:?}");
        world.tick(1_000_000_000);
        assert!(world.under_way().is_empty());
        if retry {
            world.take(Event::Retry { deployment: ID, nodes: vec![] }).unwrap();
            world.settle();
            assert_eq!(world.under_way(), [node_name(3)]);
            world.prove(&node_name(3));
        } else {
            world.resume(None).unwrap();
        }
        assert_eq!(world.under_way().len(), 3);
    }
}

#[test]
fn a_rack_waits_for_its_own_leader_and_another_takes_the_place_of_one_that_failed() {
    let mut world = World::new(6, 2);
    world.deploy(Rollout { order: Order::Leaders, ..Rollout::default() });
    let kinds: Vec<WaveKind> = world.deployment().waves.iter().map(|wave| wave.kind).collect();
    assert_eq!(kinds, [WaveKind::Leaders, WaveKind::Racks]);
    assert_eq!(world.under_way(), [node_name(0), node_name(1)]);
    world.prove(&node_name(0));
    assert_eq!(world.under_way(), [1, 2, 4].map(node_name), "rack 0 goes on alone");
    world.fail(&node_name(1), false);
    assert_eq!(world.under_way(), [2, 3, 4].map(node_name), "the next of rack 1 leads");
    world.prove(&node_name(3));
    assert_eq!(world.under_way(), [2, 4, 5].map(node_name));
}

#[test]
fn a_rack_in_which_no_leader_succeeds_is_paused() {
    let mut world = World::new(12, 2);
    world.deploy(Rollout { order: Order::Leaders, ..Rollout::default() });
    for index in [0, 2, 4] {
        world.fail(&node_name(index), false);
    }
    let pause = &world.deployment().course.paused_racks[&rack_name(0)];
    assert!(pause.reason.contains("3 leaders of rack r0 failed"), "{pause:?}");
    assert_eq!(world.under_way(), [node_name(1)], "the other rack is not held up");
}

#[test]
fn budgets_pause_a_rack_and_the_whole_and_those_under_way_go_on() {
    let mut world = World::new(20, 2);
    let rollout = Rollout {
        at_once_per_rack: Some(3),
        failure_budget: Some("15%".parse().unwrap()),
        failure_budget_per_rack: Some("2".parse().unwrap()),
        ..Rollout::default()
    };
    world.deploy(rollout);
    assert_eq!(world.under_way().len(), 6);
    world.fail(&node_name(0), false);
    world.fail(&node_name(2), false);
    assert!(world.deployment().course.paused_racks[&rack_name(0)].reason.contains("failure budget (2)"));
    assert_eq!(world.deployment().course.paused, None);
    let in_rack = |world: &World, rack: usize| {
        world.under_way().iter().filter(|name| world.snapshot.nodes[*name].rack == Some(rack_name(rack))).count()
    };
    assert_eq!((in_rack(&world, 0), in_rack(&world, 1)), (2, 3), "what was under way goes on, nothing new starts");
    world.fail(&node_name(1), false);
    assert!(world.deployment().course.paused.as_ref().unwrap().reason.contains("3 of 20 nodes"));
    assert_eq!((in_rack(&world, 0), in_rack(&world, 1)), (2, 2));
    world.prove(&node_name(3));
    assert_eq!(world.under_way().len(), 3);
    world.resume(None).unwrap();
    assert_eq!((in_rack(&world, 0), in_rack(&world, 1)), (3, 3), "the failures so far are passed over");
    assert!(world.resume(None).is_err());
}

#[test]
fn an_operator_pauses_resumes_and_retries() {
    let mut world = World::new(4, 2);
    let pause = |rack| Event::Pause { deployment: ID, rack };
    world.deploy(Rollout { at_once: Some(1), ..Rollout::default() });
    world.take(pause(None)).unwrap();
    assert!(world.take(pause(None)).unwrap_err().to_string().contains("paused already"));
    world.fail(&node_name(0), false);
    assert!(world.under_way().is_empty());
    world.take(Event::Retry { deployment: ID, nodes: vec![] }).unwrap();
    world.settle();
    assert!(world.under_way().is_empty(), "an operator's own pause stays");
    world.take(pause(Some(rack_name(0)))).unwrap();
    assert!(world.take(pause(Some(rack_name(9)))).unwrap_err().to_string().contains("no nodes in rack r9"));
    world.resume(None).unwrap();
    assert_eq!(world.under_way(), [node_name(0)]);
    world.prove(&node_name(0));
    for index in 1..4 {
        world.fail(&node_name(index), false);
    }
    assert_eq!(world.deployment().course.state, DeploymentState::Done);
    let others: Vec<NodeName> = vec![node_name(0)];
    let refused = world.take(Event::Retry { deployment: ID, nodes: others }).unwrap_err();
    assert!(refused.to_string().contains("has not failed"), "{refused}");
    world.take(Event::Retry { deployment: ID, nodes: vec![node_name(2)] }).unwrap();
    world.settle();
    assert_eq!((world.deployment().course.state, world.under_way()), (DeploymentState::Active, vec![node_name(2)]));
    world.prove(&node_name(2));
    assert_eq!(world.deployment().course.state, DeploymentState::Done);
    assert!(matches!(world.deployment().outcomes[&node_name(1)], Outcome::Failed { .. }), "only what was named");
    let run = world.runs.last().unwrap();
    assert_eq!((run.tries.len(), run.tries[0].reason.as_deref()), (2, Some("two disks match")));
    assert_eq!((run.tries[1].received_bytes, run.tries[1].sent_bytes), (100, 40));
    let stages: Vec<Stage> = run.tries[1].stages.iter().map(|passed| passed.stage).collect();
    let expected = [
        Stage::PoweringOn,
        Stage::Leasing,
        Stage::LoadingKernel,
        Stage::AgentUp,
        Stage::Fetching,
        Stage::PostActions,
        Stage::Rebooting,
    ];
    assert_eq!(stages, expected);
}

#[test]
fn nodes_that_wait_belong_to_their_deployment() {
    let mut world = World::new(4, 1);
    world.deploy(Rollout { at_once: Some(1), ..Rollout::default() });
    let again = |node: usize| Event::Deploy {
        image: "golden".parse().unwrap(),
        nodes: vec![node_name(node)],
        rollout: Rollout::default(),
    };
    assert!(world.take(again(2)).unwrap_err().to_string().contains("waits for its turn in d-1"));
    let remove = world.take(Event::RemoveNode { node: node_name(2) });
    assert!(remove.unwrap_err().to_string().contains("waits for its turn"));
    world.take(Event::Release { node: node_name(2) }).unwrap();
    assert_eq!(world.deployment().outcomes[&node_name(2)], Outcome::LetGo);
    world.take(again(2)).unwrap();
    // One that is not approved any more, or gone, ends with a reason and holds up nobody.
    let mut changed = world.node(1).clone();
    changed.macs.clear();
    changed.uuid = None;
    world.apply(&Change::PutNode(Box::new(changed)));
    world.prove(&node_name(0));
    let outcome = &world.deployment().outcomes[&node_name(1)];
    assert!(matches!(outcome, Outcome::Failed { reason } if reason.contains("recognised")), "{outcome:?}");
    assert!(world.under_way().contains(&node_name(3)));
    let before = world.node(1).clone();
    world.take(Event::Cancel(ID)).unwrap();
    assert_eq!(world.node(1), &before, "what has not started stays as it is");
    assert_eq!(world.deployment().outcomes[&node_name(3)], Outcome::LetGo);
    assert!(world.take(Event::Retry { deployment: ID, nodes: vec![] }).is_err());
}

#[test]
fn a_mass_power_on_is_spread_and_so_is_what_failed_together() {
    let mut world = World::new(60, 3);
    world.policy.starts_per_second = 10;
    world.policy.starts_per_second_per_rack = 5;
    world.deploy(Rollout::default());
    let mut counts = vec![world.under_way().len()];
    while world.under_way().len() < 60 {
        let wake = world.admission().wake_at.unwrap();
        assert!(wake > world.now && wake.since(world.now) <= 1000);
        world.tick(wake.since(world.now));
        counts.push(world.under_way().len());
    }
    assert_eq!(counts, [10, 20, 30, 40, 50, 60]);
    // All three racks lose their power in the same second.
    world.tick(60_000);
    for name in world.under_way() {
        world.fail(&name, true);
    }
    let mut seconds: BTreeMap<(u64, Option<RackName>), usize> = BTreeMap::new();
    for node in world.snapshot.nodes.values() {
        *seconds.entry((node.not_before.unwrap().0 / 1000, node.rack.clone())).or_default() += 1;
    }
    let mut in_all: BTreeMap<u64, usize> = BTreeMap::new();
    for ((second, _), count) in &seconds {
        assert!(*count <= 5, "{seconds:?}");
        *in_all.entry(*second).or_default() += count;
    }
    assert!(in_all.len() == 6 && in_all.values().all(|count| *count == 10), "{in_all:?}");
}

#[test]
fn machines_that_an_operator_switches_on_are_spread_alike() {
    let policy = Policy { starts_per_second: 3, starts_per_second_per_rack: 2, ..Policy::default() };
    let racks = [rack_name(0), rack_name(1)];
    let of = |racks: &[Option<&RackName>]| spread(&policy, racks.iter().copied());
    let (a, b) = (Some(&racks[0]), Some(&racks[1]));
    assert_eq!(of(&[a, a, a, b, b, a]), [0, 0, 1, 0, 1, 1]);
    assert_eq!(of(&[None; 7]), [0, 0, 0, 1, 1, 1, 2]);
}

#[test]
fn nothing_starts_outside_of_a_window_and_after_the_last_one_it_is_paused() {
    let mut world = World::new(4, 1);
    let (from, until) = (START.plus(3_600_000), START.plus(7_200_000));
    let rollout = Rollout { at_once: Some(1), windows: vec![Window::Once { from, until }], ..Rollout::default() };
    world.deploy(rollout);
    assert_eq!((world.under_way().len(), world.admission().wake_at), (0, Some(from)));
    assert!(world.admission().waits_for.unwrap().contains("maintenance window"));
    world.tick(3_600_000);
    assert_eq!(world.under_way(), [node_name(0)]);
    world.tick(3_600_000);
    assert_eq!(world.deployment().course.paused.as_ref().unwrap().by, PausedBy::Windows);
    world.prove(&node_name(0));
    assert!(world.under_way().is_empty(), "what had started went on to its end, and nothing else");
    let windows = Some(vec![Window::Once { from, until: world.now.plus(10_000) }]);
    world.take(Event::Resume { deployment: ID, rack: None, windows }).unwrap();
    world.settle();
    assert_eq!(world.under_way(), [node_name(1)]);
}

#[test]
fn budgets_are_read_as_they_are_written() {
    for (text, nodes, limit) in
        [("1", 40, 1), ("3", 40, 3), ("10%", 40, 4), ("1%", 40, 1), ("100%", 3, 3), ("34%", 3, 2)]
    {
        let budget: Budget = text.parse().unwrap();
        assert_eq!((budget.of(nodes), budget.to_string().as_str()), (limit, text));
    }
    for wrong in ["", "0", "0%", "101%", "-1", "1.5", "%", "three"] {
        assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
    }
    let rollout = Rollout { at_once: Some(0), ..Rollout::default() };
    assert!(rollout.check(START).unwrap_err().contains("at_once"));
    let over = Window::Once { from: Millis(0), until: Millis(5) };
    assert!(Rollout { windows: vec![over], ..Rollout::default() }.check(START).unwrap_err().contains("over"));
}

#[derive(Debug, Clone)]
enum Step {
    Tick(u64),
    Prove(usize),
    Fail(usize, bool),
    Pause(Option<usize>),
    Resume(Option<usize>),
    Retry,
    Release(usize),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..4000).prop_map(Step::Tick),
        6 => (0usize..24).prop_map(Step::Prove),
        4 => (0usize..24, any::<bool>()).prop_map(|(node, retry)| Step::Fail(node, retry)),
        1 => proptest::option::of(0usize..3).prop_map(Step::Pause),
        2 => proptest::option::of(0usize..3).prop_map(Step::Resume),
        1 => Just(Step::Retry),
        1 => (0usize..24).prop_map(Step::Release),
        1 => Just(Step::Restart),
    ]
}

fn any_rollout() -> impl Strategy<Value = Rollout> {
    let limit = |most| proptest::option::of(1u32..most);
    let budget =
        || proptest::option::of(prop_oneof![(1u32..5).prop_map(Budget::Nodes), (1u32..60).prop_map(Budget::Percent)]);
    (any::<bool>(), limit(4), limit(8), limit(4), budget(), budget(), any::<bool>()).prop_map(
        |(leaders, canary, at_once, at_once_per_rack, failure_budget, failure_budget_per_rack, window)| Rollout {
            order: if leaders { Order::Leaders } else { Order::Lanes },
            canary: canary.map(Canary::Count),
            at_once,
            at_once_per_rack,
            failure_budget,
            failure_budget_per_rack,
            windows: if window {
                vec![Window::Once { from: START.plus(2_000), until: START.plus(6_000) }]
            } else {
                Vec::new()
            },
            ..Rollout::default()
        },
    )
}

impl World {
    fn step(&mut self, step: &Step) {
        let rack = |rack: &Option<usize>| rack.map(rack_name);
        match step {
            Step::Tick(milliseconds) => self.now = self.now.plus(*milliseconds),
            Step::Prove(index) | Step::Fail(index, _) => {
                let under_way = self.under_way();
                if let Some(name) = under_way.get(index % under_way.len().max(1)) {
                    match step {
                        Step::Fail(_, retry) => self.fail(name, *retry),
                        _ => self.prove(name),
                    }
                }
            }
            // Refusals are as good as anything here.
            Step::Pause(which) => drop(self.take(Event::Pause { deployment: ID, rack: rack(which) })),
            Step::Resume(which) => {
                drop(self.take(Event::Resume { deployment: ID, rack: rack(which), windows: None }));
            }
            Step::Retry => drop(self.take(Event::Retry { deployment: ID, nodes: vec![] })),
            Step::Release(index) => drop(self.take(Event::Release { node: node_name(*index) })),
            Step::Restart => {
                let before = self.admission();
                self.restart();
                assert_eq!(self.admission(), before, "a restart decides alike");
            }
        }
    }

    /// Starts that may be made now, asked one by one of the rules themselves and not of the code under test.
    fn check_starts(&self, admission: &Admission) {
        let deployment = self.deployment();
        let rollout = &deployment.rollout;
        let pending = |name: &NodeName| deployment.outcomes[name] == Outcome::Pending;
        let proved = |name: &NodeName| matches!(deployment.outcomes[name], Outcome::Running { .. });
        let failed = |name: &&NodeName| {
            matches!(deployment.outcomes[*name], Outcome::Failed { .. }) && !deployment.course.forgiven.contains(*name)
        };
        let started: Vec<NodeName> = self.under_way().into_iter().chain(admission.start.iter().cloned()).collect();
        if admission.start.is_empty() {
            return;
        }
        assert_eq!(deployment.course.state, DeploymentState::Active);
        assert_eq!(deployment.course.paused, None, "a paused rollout starts nothing");
        assert_eq!(opening(&rollout.windows, self.now), Opening::Open);
        let all = deployment.outcomes.len();
        if let Some(budget) = rollout.failure_budget {
            assert!(deployment.outcomes.keys().filter(failed).count() < budget.of(all), "the budget is used up");
        }
        assert!(rollout.at_once.is_none_or(|limit| started.len() <= limit as usize));
        for name in &admission.start {
            assert!(pending(name) && !self.under_way().contains(name));
            let rack = self.snapshot.nodes[name].rack.clone().unwrap();
            assert!(!deployment.course.paused_racks.contains_key(&rack));
            let of_rack: Vec<&NodeName> = deployment.nodes_of(&rack).collect();
            if let Some(budget) = rollout.failure_budget_per_rack {
                assert!(of_rack.iter().copied().filter(failed).count() < budget.of(of_rack.len()));
            }
            let inside = started.iter().filter(|node| self.snapshot.nodes[*node].rack.as_ref() == Some(&rack)).count();
            assert!(rollout.at_once_per_rack.is_none_or(|limit| inside <= limit as usize));
            let first = &deployment.waves[0];
            let is_canary = first.kind == WaveKind::Canary && first.nodes().any(|(_, node)| node == name);
            if first.kind == WaveKind::Canary && !is_canary {
                assert!(first.nodes().all(|(_, node)| proved(node) || deployment.course.forgiven.contains(node)));
            }
            if rollout.order == Order::Leaders && !is_canary {
                assert!(of_rack.iter().any(|node| proved(node)) || inside == 1, "a rack waits for its leader");
            }
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: no start beyond a budget, a limit, a pause or a window; a wave waits for the one
    /// before; every node has one outcome in the end; and whatever held it up, an operator gets it done.
    #[test]
    fn no_order_of_events_breaks_a_rollout(
        rollout in any_rollout(),
        steps in proptest::collection::vec(any_step(), 0..80),
        per_second in 1u32..9,
    ) {
        let mut world = World::new(24, 3);
        world.policy.starts_per_second = per_second;
        world.policy.starts_per_second_per_rack = 3;
        let nodes: Vec<NodeName> = world.snapshot.nodes.keys().cloned().collect();
        world.take(Event::Deploy { image: "golden".parse().unwrap(), nodes, rollout }).unwrap();
        for step in &steps {
            let admission = world.admission();
            world.check_starts(&admission);
            let before = world.under_way();
            if admission.is_due() {
                world.take(Event::Proceed(ID)).unwrap();
                let new = world.under_way().iter().filter(|name| !before.contains(name)).count();
                prop_assert_eq!(new, if admission.unfit.is_empty() { admission.start.len() } else { 0 });
            }
            world.check_agenda();
            world.step(step);
            world.check_agenda();
            world.check_counts();
            let deployment = world.deployment();
            prop_assert_eq!(deployment.outcomes.len(), 24);
            let pending = deployment.outcomes.values().filter(|o| **o == Outcome::Pending).count();
            prop_assert_eq!(deployment.course.state == DeploymentState::Active, pending > 0);
            for name in world.under_way() {
                prop_assert_eq!(&deployment.outcomes[&name], &Outcome::Pending);
            }
        }
        for _ in 0..400 {
            if world.deployment().course.state != DeploymentState::Active {
                break;
            }
            drop(world.take(Event::Resume { deployment: ID, rack: None, windows: Some(vec![]) }));
            world.tick(1_000);
            for name in world.under_way() {
                world.prove(&name);
            }
        }
        prop_assert_eq!(world.deployment().course.state, DeploymentState::Done);
        let running = world.snapshot.nodes.values().filter(|node| node.stage == Stage::Running).count();
        let proved = world.deployment().outcomes.values().filter(|o| matches!(o, Outcome::Running { .. })).count();
        // A node that was released after its proof runs no more, and its outcome stays.
        prop_assert!(running <= proved);
    }
}

/// What the events of one node cost in a fleet of this size: changes, bytes of what is stored, and how many things the plan
/// looks at.
fn cost(nodes: usize) -> Vec<(usize, usize, usize)> {
    let mut world = World::new(nodes, 10);
    world.policy.starts_per_second = 50;
    world.policy.starts_per_second_per_rack = 5;
    world.deploy(Rollout { failure_budget: Some("90%".parse().unwrap()), ..Rollout::default() });
    // All of the first second have begun, nothing is due.
    world.check_agenda();
    let (node, lost) = (node_name(3), node_name(4));
    let attempt = world.snapshot.nodes[&node].attempt;
    let progress = Progress { done_bytes: 9, ..Progress::default() };
    let events = [
        Event::PoweredOn { node: node.clone(), attempt, text: "on".into() },
        Event::ScriptAsked { mac: mac(&node), uuid: None, token: TokenHash("boot".into()) },
        Event::Registered { node: node.clone(), attempt, uuid: None, token: TokenHash("t".into()), text: "up".into() },
        Event::FetchStarted { node: node.clone(), attempt, disk: "serial:a".into(), text: "writes".into() },
        Event::Progressed { node: node.clone(), attempt, progress },
        Event::ImageVerified { node: node.clone(), attempt, text: "verified".into() },
        Event::PostActionsDone { node: node.clone(), attempt, text: "done".into() },
        Event::Proved { node, attempt, digest: Digest([7; 32]), disk: "serial:a".into() },
        Event::StageFailed { node: lost, attempt, reason: "no disk".into(), retry: false },
        Event::Proceed(ID),
    ];
    let costs = events.into_iter().map(|event| {
        let changes = intake(&world.snapshot, &world.policy, world.now, &event).unwrap();
        changes.iter().for_each(|change| world.apply(change));
        let bytes = changes.iter().filter(|change| change.is_stored()).map(bytes_of).sum();
        world.agenda.touch(std::mem::take(&mut world.touched));
        let plan = world.agenda.plan(&world.snapshot, &world.policy, &World::drivers, world.now);
        (changes.len(), bytes, plan.looked_at)
    });
    costs.collect()
}

fn bytes_of(change: &Change) -> usize {
    match change {
        Change::PutNode(node) => serde_json::to_string(node).unwrap().len(),
        Change::PutDeployment(deployment) => serde_json::to_string(deployment).unwrap().len(),
        Change::PutCourse(_, course) => serde_json::to_string(course).unwrap().len(),
        Change::PutOutcome(_, _, outcome) => serde_json::to_string(outcome).unwrap().len(),
        Change::PutRun(run) => serde_json::to_string(run).unwrap().len(),
        Change::Note(note) => serde_json::to_string(note).unwrap().len(),
        other => panic!("{other:?} is no part of a deployment"),
    }
}

#[test]
fn an_event_costs_what_it_changes_however_many_nodes_there_are() {
    let (few, many) = (cost(100), cost(4_000));
    assert_eq!(few.len(), many.len());
    for (event, (few, many)) in few.iter().zip(&many).enumerate() {
        // Bytes may differ by the digits of numbers.
        assert!(few.0 == many.0 && few.2 == many.2 && few.1.abs_diff(many.1) < 40, "event {event}: {few:?}, {many:?}");
        // The last one starts two others in the place of those that have ended.
        assert!(many.2 <= 3, "the plan looks at the nodes of the event and their deployment, event {event}: {many:?}");
    }
}

#[test]
fn a_dry_run_says_what_would_be_lost_and_changes_nothing() {
    use crate::discovery::Inventory;
    use crate::disk::Disk;
    use crate::preview::{DiskPreview, preview};
    let mut world = World::new(4, 2);
    let disk = |serial: &str| Disk {
        path: format!("/dev/{serial}"),
        size_bytes: 4 << 30,
        serial: Some(serial.into()),
        contents: vec!["ext4 `data`".into()],
        ..Disk::default()
    };
    for (index, disks) in [(0, vec![disk("a")]), (1, vec![disk("b"), disk("c")])] {
        let mut node = world.node(index).clone();
        node.inventory = Some(Inventory {
            at: START,
            product: "Box".into(),
            processors: 4,
            memory_bytes: 1 << 30,
            macs: Vec::new(),
            disks,
            ..Inventory::default()
        });
        world.snapshot.apply(&Change::PutNode(Box::new(node)));
    }
    let mut cloud = world.node(3).clone();
    cloud.power = "cloud:x".into();
    world.snapshot.apply(&Change::PutNode(Box::new(cloud)));
    let before = world.snapshot.clone();
    let drivers = |power: &str| Driver { limit_seconds: 10, network_boot: power != "cloud:x", by_hand: false };
    let nodes: Vec<NodeName> = world.snapshot.nodes.keys().cloned().collect();
    let rollout = Rollout { canary: Some(Canary::Count(1)), ..Rollout::default() };
    let image = "golden".parse().unwrap();
    let seen = preview(&world.snapshot, &world.policy, &drivers, world.now, &image, &nodes, &rollout).unwrap();
    assert_eq!(world.snapshot, before);
    let of = |index: usize| &seen.nodes[&node_name(index)];
    assert!(
        matches!(&of(0).disk, DiskPreview::Written { disk, contents, .. } if disk.contains("serial a") && contents.len() == 1)
    );
    assert!(matches!(&of(1).disk, DiskPreview::Refused { reason } if reason.contains("2 disks match")));
    assert!(matches!(&of(2).disk, DiskPreview::Unknown { rule } if rule == "the only disk"));
    assert!(of(3).refused.as_ref().unwrap().contains("network") && of(0).refused.is_none());
    assert_eq!(seen.waves.iter().map(|wave| wave.kind).collect::<Vec<_>>(), [WaveKind::Canary, WaveKind::Racks]);
    // What an archive is unpacked on must have room for both, and the disk has 4 GiB.
    let layout = "[[disk]]\nname = \"a\"\npartition = [{ name = \"root\", size = \"rest\" }]\n\
        [[mount]]\non = \"a.root\"\nkind = \"ext4\"\nat = \"/\"\nleast = \"3584MiB\"";
    let mut tree = ImageInfo::sample("tree", Digest([8; 32]));
    tree.layout = Some(toml::from_str(layout).unwrap());
    let mut with_tree = before.clone();
    with_tree.apply(&Change::PutImage(tree.clone()));
    let seen_tree =
        preview(&with_tree, &world.policy, &drivers, world.now, &tree.name, &nodes, &Rollout::default()).unwrap();
    let disk = &seen_tree.nodes[&node_name(0)].disk;
    assert!(matches!(disk, DiskPreview::Refused { reason } if reason.contains("needs 4608 MiB")), "{disk:?}");
    // The real one makes the same waves.
    world.deploy(rollout);
    assert_eq!(world.deployment().waves, seen.waves);
}
