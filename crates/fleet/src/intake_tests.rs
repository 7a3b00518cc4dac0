#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::change::Note;
use crate::deployment::{DeploymentState, ImageInfo, Outcome};
use crate::event::NodeEdit;
use crate::ids::{DeploymentId, Digest};
use crate::node::{Firmware, Progress, Rack, TokenHash};

const START: Millis = Millis(1_000_000);

/// A controller's state driven by events, as the keeper drives it.
struct World {
    snapshot: Snapshot,
    policy: Policy,
    now: Millis,
    notes: Vec<Note>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            snapshot: Snapshot { started_at: START, ..Snapshot::default() },
            policy: Policy::default(),
            now: START,
            notes: Vec::new(),
        };
        world.take(Event::PutRack(Rack { name: "r1".parse().unwrap(), post: Default::default() })).unwrap();
        for image in ["golden", "other"] {
            world.take(Event::ImageSealed(image_info(image))).unwrap();
        }
        world
    }

    fn with_node() -> Self {
        let mut world = Self::new();
        let edit = NodeEdit { macs: Some(vec![mac()]), rack: Some("r1".parse().unwrap()), ..NodeEdit::default() };
        world.take(Event::AddNode { node: name(), edit }).unwrap();
        world
    }

    fn take(&mut self, event: Event) -> Result<(), Refused> {
        let changes = intake(&self.snapshot, &self.policy, self.now, &event)?;
        for change in &changes {
            self.snapshot.apply(change);
            if let Change::Note(note) = change {
                self.notes.push(note.clone());
            }
        }
        Ok(())
    }

    fn deploy(&mut self, image: &str) -> Result<(), Refused> {
        self.take(Event::Deploy { image: image.parse().unwrap(), nodes: vec![name()], rollout: Default::default() })
    }

    fn node(&self) -> &Node {
        &self.snapshot.nodes[&name()]
    }

    fn outcome(&self) -> &Outcome {
        &self.snapshot.deployments.values().next_back().unwrap().outcomes[&name()]
    }

    fn reach(&mut self, stage: Stage) {
        self.deploy("golden").unwrap();
        for event in path(self.node().attempt) {
            if self.node().stage == stage {
                return;
            }
            self.take(event).unwrap();
        }
        assert_eq!(self.node().stage, stage);
    }
}

fn name() -> NodeName {
    "n1".parse().unwrap()
}
fn mac() -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, 1])
}
fn hash(text: &str) -> TokenHash {
    TokenHash(text.to_owned())
}
fn digest_of(image: &str) -> Digest {
    Digest([image.len() as u8; 32])
}
fn image_info(image: &str) -> ImageInfo {
    ImageInfo::sample(image, digest_of(image))
}

/// The main path of one attempt, without the assignment.
fn path(attempt: Attempt) -> Vec<Event> {
    let node = name();
    vec![
        Event::PoweredOn { node: node.clone(), attempt, text: "on".into() },
        Event::Sighted { mac: mac(), firmware: Some(Firmware::Bios), uuid: None },
        Event::BootloaderSent { mac: mac(), file: "undionly.kpxe".into(), bytes: 1 },
        Event::ScriptAsked { mac: mac(), uuid: None, token: hash("boot") },
        Event::KernelSent { mac: mac(), file: "vmlinuz".into(), bytes: 1 },
        Event::Registered { node: node.clone(), attempt, uuid: None, token: hash("node"), text: "up".into() },
        Event::FetchStarted { node: node.clone(), attempt, disk: "serial:a".into(), text: "writes".into() },
        Event::Progressed { node: node.clone(), attempt, progress: Progress { done_bytes: 1, ..Progress::default() } },
        Event::ImageVerified { node: node.clone(), attempt, text: "verified".into() },
        Event::PostActionDone { node: node.clone(), attempt, text: "host name".into() },
        Event::PostActionsDone { node: node.clone(), attempt, text: "done".into() },
        Event::Proved { node, attempt, digest: digest_of("golden"), disk: "serial:a".into() },
    ]
}

#[test]
fn the_main_path_ends_in_running_with_what_was_proved() {
    let mut world = World::with_node();
    world.reach(Stage::Running);
    let deployed = world.node().deployed.clone().unwrap();
    assert_eq!((deployed.digest, deployed.disk.as_str()), (digest_of("golden"), "serial:a"));
    assert_eq!(world.node().node_token, Some(hash("node")));
    assert!(matches!(world.outcome(), Outcome::Running { .. }));
    assert_eq!(world.node().unexpected_total, 0);
    assert!(world.notes.iter().all(|n| n.kind != "unexpected"));
}

#[test]
fn a_proof_of_another_image_disk_or_attempt_is_refused() {
    let mut world = World::with_node();
    world.reach(Stage::Rebooting);
    let attempt = world.node().attempt;
    let proof = |digest, disk: &str, attempt| Event::Proved { node: name(), attempt, digest, disk: disk.into() };
    for wrong in [
        proof(digest_of("other"), "serial:a", attempt),
        proof(digest_of("golden"), "serial:b", attempt),
        proof(digest_of("golden"), "serial:a", attempt.next()),
    ] {
        assert!(world.take(wrong).is_err());
        assert_eq!(world.node().stage, Stage::Rebooting);
    }
    world.take(proof(digest_of("golden"), "serial:a", attempt)).unwrap();
    assert_eq!(world.node().stage, Stage::Running);
}

#[test]
fn a_failed_attempt_is_followed_by_another_until_they_are_used_up() {
    let mut world = World::with_node();
    world.deploy("golden").unwrap();
    for tries in 1..=3 {
        let attempt = world.node().attempt;
        assert_eq!(world.node().tries, tries);
        let failed = Event::StageFailed { node: name(), attempt, reason: "no carrier".into(), retry: true };
        world.take(failed.clone()).unwrap();
        if tries < 3 {
            assert_eq!(world.node().stage, Stage::PoweringOn);
            assert!(world.node().not_before.unwrap() > world.now);
            assert!(matches!(world.take(failed), Err(Refused::OldAttempt { .. })), "an older attempt is refused");
        }
    }
    assert_eq!(world.node().stage, Stage::Failed);
    assert_eq!(*world.outcome(), Outcome::Failed { reason: "no carrier".into() });
}

#[test]
fn a_refusal_that_would_repeat_is_not_repeated() {
    let mut world = World::with_node();
    world.reach(Stage::AgentUp);
    let attempt = world.node().attempt;
    let reason = "2 disks match".to_owned();
    world.take(Event::StageFailed { node: name(), attempt, reason, retry: false }).unwrap();
    assert_eq!(world.node().stage, Stage::Failed);
    assert_eq!(world.node().tries, 1);
}

#[test]
fn a_machine_that_restarts_in_the_middle_begins_its_next_attempt() {
    for stage in [Stage::AgentUp, Stage::Fetching, Stage::PostActions] {
        let mut world = World::with_node();
        world.reach(stage);
        let before = world.node().attempt;
        world.take(Event::ScriptAsked { mac: mac(), uuid: None, token: hash("second") }).unwrap();
        assert_eq!(world.node().stage, Stage::LoadingKernel);
        assert_eq!(world.node().attempt, before.next());
        assert_eq!(world.node().boot_token, Some(hash("second")));
    }
}

#[test]
fn a_written_machine_that_network_boots_again_is_sent_to_its_disk() {
    for stage in [Stage::Rebooting, Stage::Running] {
        let mut world = World::with_node();
        world.reach(stage);
        assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { .. }));
        world.take(Event::ScriptAsked { mac: mac(), uuid: None, token: hash("x") }).unwrap();
        assert_eq!(world.node().stage, stage);
        assert_eq!(world.notes.last().unwrap().kind, "sent_to_disk");
    }
}

#[test]
fn unknown_unapproved_and_unassigned_machines_boot_their_disks() {
    let mut world = World::new();
    assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { .. }));
    world.take(Event::Sighted { mac: mac(), firmware: Some(Firmware::UefiX64), uuid: None }).unwrap();
    let stranger = NodeName::of_stranger(mac());
    assert!(!world.snapshot.nodes[&stranger].approved);
    assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { .. }));
    let deploy =
        Event::Deploy { image: "golden".parse().unwrap(), nodes: vec![stranger.clone()], rollout: Default::default() };
    assert!(matches!(world.take(deploy.clone()), Err(Refused::Conflict(_))));
    world.take(Event::Approve { node: stranger }).unwrap();
    assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { .. }));
    world.take(deploy).unwrap();
    assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::Agent { .. }));
}

#[test]
fn a_stranger_becomes_the_node_that_is_added_with_its_mac() {
    let mut world = World::new();
    let uuid = Uuid::from_u128(7);
    world.take(Event::Sighted { mac: mac(), firmware: Some(Firmware::Bios), uuid: Some(uuid) }).unwrap();
    world
        .take(Event::AddNode { node: name(), edit: NodeEdit { macs: Some(vec![mac()]), ..NodeEdit::default() } })
        .unwrap();
    assert_eq!(world.snapshot.nodes.len(), 1);
    assert_eq!(world.node().uuid, Some(uuid));
}

#[test]
fn an_edit_that_takes_over_a_strangers_mac_keeps_it() {
    let mut world = World::with_node();
    let second = Mac([0x52, 0x54, 0, 0, 0, 2]);
    world.take(Event::Sighted { mac: second, firmware: Some(Firmware::Bios), uuid: None }).unwrap();
    assert_eq!(world.snapshot.nodes.len(), 2);
    let edit = NodeEdit { macs: Some(vec![mac(), second]), ..NodeEdit::default() };
    world.take(Event::EditNode { node: name(), edit }).unwrap();
    assert_eq!(world.snapshot.nodes.len(), 1);
    assert_eq!(world.snapshot.node_of(second).map(|n| &n.name), Some(&name()));
}

#[test]
fn a_registration_out_of_turn_changes_no_token() {
    let mut world = World::with_node();
    world.reach(Stage::Rebooting);
    let (attempt, before) = (world.node().attempt, world.node().pending_token.clone());
    let late = Event::Registered { node: name(), attempt, uuid: None, token: hash("late"), text: "late".into() };
    world.take(late).unwrap();
    assert_eq!(world.node().pending_token, before);
    assert_eq!(world.node().unexpected_total, 1);
}

#[test]
fn cancelling_frees_the_node_for_another_image_and_refuses_the_old_agent() {
    let mut world = World::with_node();
    world.reach(Stage::Fetching);
    let old = world.node().attempt;
    world.take(Event::Cancel(DeploymentId(1))).unwrap();
    assert_eq!(world.node().stage, Stage::Enrolled);
    world.deploy("other").unwrap();
    assert_eq!(world.node().stage, Stage::PoweringOn);
    let late = Event::ImageVerified { node: name(), attempt: old, text: "late".into() };
    assert!(matches!(world.take(late), Err(Refused::OldAttempt { .. })));
    assert_eq!(world.snapshot.deployments[&DeploymentId(1)].course.state, DeploymentState::Cancelled);
    assert!(world.take(Event::Cancel(DeploymentId(1))).is_err());
}

#[test]
fn nodes_and_images_in_use_are_not_removed_or_taken_twice() {
    let mut world = World::with_node();
    world.deploy("golden").unwrap();
    assert!(matches!(world.deploy("other"), Err(Refused::Conflict(_))));
    assert!(matches!(world.take(Event::RemoveNode { node: name() }), Err(Refused::Conflict(_))));
    assert!(matches!(world.take(Event::ImageRemoved("golden".parse().unwrap())), Err(Refused::Conflict(_))));
    assert!(matches!(world.take(Event::RemoveRack("r1".parse().unwrap())), Err(Refused::Conflict(_))));
    world.take(Event::Release { node: name() }).unwrap();
    assert_eq!(*world.outcome(), Outcome::LetGo);
    world.take(Event::RemoveNode { node: name() }).unwrap();
}

#[test]
fn one_mac_or_address_never_belongs_to_two_nodes() {
    let mut world = World::with_node();
    let other: NodeName = "n2".parse().unwrap();
    let add = |macs: Vec<Mac>| Event::AddNode {
        node: other.clone(),
        edit: NodeEdit { macs: Some(macs), ..NodeEdit::default() },
    };
    assert!(matches!(world.take(add(vec![mac()])), Err(Refused::Conflict(_))));
    assert!(matches!(world.take(add(vec![])), Err(Refused::Invalid(_))));
    world.take(add(vec![Mac([2; 6])])).unwrap();
    let address = NodeEdit { address: Some("10.0.0.9".parse().unwrap()), ..NodeEdit::default() };
    world.take(Event::EditNode { node: name(), edit: address.clone() }).unwrap();
    assert!(matches!(world.take(Event::EditNode { node: other, edit: address }), Err(Refused::Conflict(_))));
}

#[test]
fn another_machine_behind_a_known_mac_is_noticed() {
    let mut world = World::with_node();
    for id in [1, 2] {
        let uuid = Some(Uuid::from_u128(id));
        world.take(Event::Sighted { mac: mac(), firmware: Some(Firmware::Bios), uuid }).unwrap();
    }
    assert_eq!(world.node().uuid, Some(Uuid::from_u128(1)));
    assert_eq!(world.node().unexpected_total, 1);
}

fn any_event() -> impl Strategy<Value = (u8, u32, bool)> {
    (0u8..18, 0u32..6, any::<bool>())
}

/// Any event an attempt number may come with, right or wrong.
fn event((kind, attempt, flag): (u8, u32, bool)) -> Event {
    let attempt = Attempt(attempt);
    let mut events = path(attempt);
    match kind {
        0..=11 => events.remove(usize::from(kind)),
        12 => Event::Deploy {
            image: if flag { "golden" } else { "other" }.parse().unwrap(),
            nodes: vec![name()],
            rollout: Default::default(),
        },
        13 => Event::Cancel(DeploymentId(u64::from(attempt.0))),
        14 => Event::StageFailed { node: name(), attempt, reason: "x".into(), retry: flag },
        15 => Event::Release { node: name() },
        16 => Event::BootTokenMade { node: name(), attempt, token: hash("handed") },
        _ => Event::KernelHanded { node: name(), attempt },
    }
}

#[test]
fn a_kernel_that_is_handed_over_stands_for_the_way_from_lease_to_script() {
    let mut world = World::with_node();
    world.deploy("golden").unwrap();
    let attempt = world.node().attempt;
    let made = |attempt| Event::BootTokenMade { node: name(), attempt, token: hash("handed") };
    let handed = |attempt| Event::KernelHanded { node: name(), attempt };
    assert!(world.take(handed(attempt.next())).is_err(), "another attempt's");
    world.take(made(attempt)).unwrap();
    assert_eq!((world.node().stage, world.node().boot_token.clone()), (Stage::PoweringOn, Some(hash("handed"))));
    world.take(handed(attempt)).unwrap();
    assert_eq!(
        (world.node().stage, world.notes.last().unwrap().kind.as_str()),
        (Stage::LoadingKernel, "kernel_handed")
    );
    // Who has begun to boot gets no other token, and a late event counts as nothing unexpected.
    assert!(world.take(made(attempt)).is_err());
    world.take(handed(attempt)).unwrap();
    let registered = Event::Registered { node: name(), attempt, uuid: None, token: hash("node"), text: "up".into() };
    world.take(registered).unwrap();
    world.take(handed(attempt)).unwrap();
    assert_eq!((world.node().stage, world.node().unexpected_total), (Stage::AgentUp, 0));
}

proptest! {
    /// Whatever happens in whatever order: Running only by a proof of the
    /// deployed image from the written disk, bounded attempts, attempt numbers
    /// that never fall, and no deployment that is done while a node is pending.
    #[test]
    fn no_order_of_events_breaks_a_promise(kinds in proptest::collection::vec(any_event(), 0..120)) {
        let mut world = World::with_node();
        for kind in kinds {
            let before = world.node().clone();
            let taken = event(kind);
            let accepted = world.take(taken.clone()).is_ok();
            let node = world.node();
            prop_assert!(node.attempt >= before.attempt);
            prop_assert!(node.tries <= world.policy.attempts);
            if !accepted {
                prop_assert_eq!(node, &before);
            }
            if node.stage == Stage::Running && before.stage != Stage::Running {
                let digest = world.snapshot.deployments[&node.deployment.unwrap()].digest;
                let is_proof = matches!(&taken, Event::Proved { digest: d, disk, .. }
                    if *d == digest && node.deployed.as_ref().is_some_and(|p| &p.disk == disk));
                prop_assert!(is_proof);
            }
            for deployment in world.snapshot.deployments.values() {
                let pending = deployment.outcomes.values().any(|o| *o == Outcome::Pending);
                prop_assert_eq!(deployment.course.state == DeploymentState::Active, pending);
                if pending {
                    prop_assert!(node.stage.is_under_way() && node.deployment == Some(deployment.id));
                }
            }
        }
    }
}

#[test]
fn a_stranger_tells_what_it_is_once_and_waits_or_is_approved_by_rule() {
    use crate::discovery::{Discovery, INVENTORY_TRIES, Inventory, Rule};
    let mut world = World::new();
    let seen = Event::Sighted { mac: mac(), firmware: Some(Firmware::Bios), uuid: None };
    world.take(seen.clone()).unwrap();
    assert!(
        matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { .. }),
        "not unless asked for"
    );
    let rule =
        Rule { name: "big".into(), min_memory_gib: Some(64), rack: Some("r9".parse().unwrap()), ..Rule::default() };
    world.policy.discovery = Discovery { inventory: true, approve: vec![rule], ..Discovery::default() };
    let stranger = NodeName::of_stranger(mac());
    let asked = |token: &str| Event::ScriptAsked { mac: mac(), uuid: None, token: TokenHash(token.into()) };
    let told = |gib: u64| Event::Inventoried {
        node: NodeName::of_stranger(mac()),
        attempt: Attempt(0),
        uuid: None,
        inventory: Box::new(Inventory {
            at: START,
            product: "Box".into(),
            processors: 4,
            memory_bytes: gib << 30,
            macs: vec![mac()],
            disks: Vec::new(),
            ..Inventory::default()
        }),
        text: "a box".into(),
    };
    world.take(asked("first")).unwrap();
    assert_eq!(world.snapshot.nodes[&stranger].boot_token, Some(TokenHash("first".into())));
    world.take(told(8)).unwrap();
    let node = &world.snapshot.nodes[&stranger];
    assert_eq!((node.approved, node.boot_token.is_none(), node.stage), (false, true, Stage::Enrolled));
    assert!(
        matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { why } if why.contains("approval"))
    );
    world.take(told(64)).unwrap();
    let node = &world.snapshot.nodes[&stranger];
    assert_eq!((node.approved, node.rack.clone()), (true, Some("r9".parse().unwrap())));
    assert!(world.snapshot.racks.contains_key(&"r9".parse().unwrap()));

    // One whose kernel does not come up is left to its disk in the end.
    world.take(Event::RemoveNode { node: stranger }).unwrap();
    world.take(seen).unwrap();
    for _ in 0..INVENTORY_TRIES {
        assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::Inventory { .. }));
        world.take(asked("again")).unwrap();
    }
    assert!(matches!(boot_wish(&world.snapshot, &world.policy, mac()), BootWish::LocalDisk { .. }));
}

#[test]
fn failed_checks_keep_a_node_from_deployment_until_it_is_mended_or_they_are_passed_over() {
    use crate::discovery::{Check, CheckOutcome, Findings, Inventory};
    use crate::rollout::Rollout;
    let mut world = World::with_node();
    let check = |outcome| Check { name: "disk read".into(), outcome, text: "/dev/sda: cannot be read".into() };
    let told = |checks: Vec<Check>| Event::Inventoried {
        node: name(),
        attempt: Attempt(0),
        uuid: None,
        inventory: Box::new(Inventory {
            memory_bytes: 7 << 30,
            findings: Findings { checks, ..Findings::default() },
            ..Inventory::default()
        }),
        text: "a box".into(),
    };
    let looks = |world: &World| world.policy.discovery.looks_at(world.node()).checks;
    assert!(looks(&world), "before the first use");
    world.take(told(vec![check(CheckOutcome::Passed), check(CheckOutcome::NotMade)])).unwrap();
    assert!(!looks(&world), "once is enough");
    world.take(told(vec![check(CheckOutcome::Failed)])).unwrap();
    assert!(looks(&world), "again while something is bad");
    let deploy = |despite_checks| Event::Deploy {
        image: "golden".parse().unwrap(),
        nodes: vec![name()],
        rollout: Rollout { despite_checks, ..Rollout::default() },
    };
    let sentence = world.take(deploy(false)).unwrap_err().to_string();
    for part in ["disk read (/dev/sda: cannot be read)", "rackswarm node approve", "--despite-checks"] {
        assert!(sentence.contains(part), "{sentence}");
    }
    // An agent that was not to check says nothing about it.
    world.take(told(Vec::new())).unwrap();
    assert!(world.take(deploy(false)).is_err());
    world.take(Event::Approve { node: name() }).unwrap();
    assert!(looks(&world));

    // Memory is judged by what is expected of this node.
    let edit = NodeEdit { memory_gib: Some(16), ..NodeEdit::default() };
    world.take(Event::EditNode { node: name(), edit }).unwrap();
    world.take(told(vec![check(CheckOutcome::Passed)])).unwrap();
    let sentence = world.take(deploy(false)).unwrap_err().to_string();
    assert!(sentence.contains("memory (7 GiB found, 16 GiB expected)"), "{sentence}");
    world.take(deploy(true)).unwrap();
}

#[test]
fn a_machine_stands_in_the_rack_that_its_switch_is_named_after() {
    use crate::discovery::{Card, Findings, Inventory, Rule, SwitchPort};
    let mut world = World::new();
    let edit = NodeEdit { macs: Some(vec![mac()]), ..NodeEdit::default() };
    world.take(Event::AddNode { node: name(), edit }).unwrap();
    let switch = Some("leaf-{rack}".to_owned().try_into().unwrap());
    world.policy.discovery.approve = vec![Rule { name: "leaves".into(), switch, ..Rule::default() }];
    let inventory = Box::new(Inventory::default());
    let told = Event::Inventoried { node: name(), attempt: Attempt(0), uuid: None, inventory, text: "a box".into() };
    world.take(told.clone()).unwrap();
    assert_eq!(world.node().rack, None);
    let switch = Some(SwitchPort { name: "leaf-r7".into(), port: "e1".into(), description: None });
    let cards = vec![Card { mac: mac(), name: "eth0".into(), link: true, rate_mbit: Some(1000), switch }];
    world.take(Event::SwitchesHeard { node: name(), attempt: Attempt(0), cards: cards.clone() }).unwrap();
    assert_eq!(world.node().rack, Some("r7".parse().unwrap()));
    assert!(world.snapshot.racks.contains_key(&"r7".parse().unwrap()));
    // The next agent boots and has not listened for long; what is known of a card with a link stands.
    let mut silent = cards.clone();
    silent[0].switch = None;
    let findings = Findings { cards: silent, ..Findings::default() };
    let inventory = Box::new(Inventory { findings, ..Inventory::default() });
    let told = Event::Inventoried { node: name(), attempt: Attempt(0), uuid: None, inventory, text: "a box".into() };
    world.take(told).unwrap();
    assert_eq!(world.node().inventory.as_ref().unwrap().findings.cards, cards);
}

#[test]
fn a_node_may_be_added_by_its_uuid_alone() {
    let mut world = World::new();
    let uuid = Uuid::from_u128(5);
    let edit = NodeEdit { uuid: Some(uuid), ..NodeEdit::default() };
    world.take(Event::AddNode { node: name(), edit: edit.clone() }).unwrap();
    assert!(world.node().macs.is_empty());
    world.take(Event::Sighted { mac: mac(), firmware: Some(Firmware::Bios), uuid: Some(uuid) }).unwrap();
    assert_eq!(world.node().macs, [mac()]);
    let again = world.take(Event::AddNode { node: "n2".parse().unwrap(), edit });
    assert!(again.unwrap_err().to_string().contains("already"));
    let nothing = world.take(Event::AddNode { node: "n2".parse().unwrap(), edit: NodeEdit::default() });
    assert!(nothing.unwrap_err().to_string().contains("or its UUID"));
}

#[test]
fn a_uuid_is_the_same_in_either_byte_order() {
    let told: Uuid = "4c4c4544-0042-3510-8056-b4c04f4e3332".parse().unwrap();
    let shown: Uuid = "44454c4c-4200-1035-8056-b4c04f4e3332".parse().unwrap();
    let mut world = World::new();
    let edit = NodeEdit { uuid: Some(told), ..NodeEdit::default() };
    world.take(Event::AddNode { node: name(), edit: edit.clone() }).unwrap();
    world.take(Event::Sighted { mac: mac(), firmware: Some(Firmware::UefiX64), uuid: Some(shown) }).unwrap();
    world.take(Event::Sighted { mac: mac(), firmware: Some(Firmware::UefiX64), uuid: Some(told) }).unwrap();
    let node = world.node();
    assert_eq!((node.macs.as_slice(), node.uuid, node.unexpected_total), (&[mac()][..], Some(told), 0));
    let edit = NodeEdit { uuid: Some(shown), ..edit };
    let again = world.take(Event::AddNode { node: "n2".parse().unwrap(), edit });
    assert!(again.unwrap_err().to_string().contains("already"));
}
