#![allow(clippy::unwrap_used)]

use super::*;
use crate::deployment::ImageInfo;
use crate::event::{Event, NodeEdit};
use crate::ids::{Attempt, Digest};
use crate::intake::intake;
use crate::node::Firmware;
use crate::plan::Policy;

const NOW: Millis = Millis(1_000);

struct World {
    snapshot: Snapshot,
    set: MachineSet,
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn listed(id: &str, macs: &[u8]) -> Listed {
    Listed {
        id: id.to_owned(),
        name: id.to_owned(),
        macs: macs.iter().map(|last| mac(*last)).collect(),
        power: format!("fake:{id}"),
        ..Listed::default()
    }
}

impl World {
    fn new() -> Self {
        let set = MachineSet {
            name: "s1".parse().unwrap(),
            address: "fake:s1".into(),
            rack: None,
            configured: false,
            synced: None,
        };
        let mut world = Self { snapshot: Snapshot::default(), set };
        world.tell(Event::PutSet(world.set.clone())).unwrap();
        world
    }

    fn tell(&mut self, event: Event) -> Result<(), Refused> {
        for change in intake(&self.snapshot, &Policy::default(), NOW, &event)? {
            self.snapshot.apply(&change);
        }
        Ok(())
    }

    /// What a listing comes to, as words; it is taken in as well.
    fn sync(&mut self, machines: &[Listed]) -> Vec<String> {
        let comparison = compare(&self.snapshot, NOW, &self.set, machines, true).unwrap();
        self.tell(Event::SetListed { set: self.set.name.clone(), listed: machines.to_vec(), force: true }).unwrap();
        let word = |row: &Row| format!("{} {}", row.node.as_ref().map_or("-", NodeName::as_str), row.what.as_str());
        comparison.rows.iter().map(word).collect()
    }

    fn node(&self, name: &str) -> &Node {
        &self.snapshot.nodes[&name.parse::<NodeName>().unwrap()]
    }

    fn add(&mut self, name: &str, last: u8) {
        let edit = NodeEdit { macs: Some(vec![mac(last)]), ..NodeEdit::default() };
        self.tell(Event::AddNode { node: name.parse().unwrap(), edit }).unwrap();
    }
}

#[test]
fn a_listing_is_taken_in_once_and_again_changes_nothing() {
    let mut world = World::new();
    let machines = [
        Listed { rack: Some("r1".into()), ..listed("n2", &[2]) },
        Listed { name: "Web 1".into(), ..listed("n1", &[1]) },
    ];
    assert_eq!(world.sync(&machines), ["web-1 added", "n2 added"]);
    assert_eq!(world.sync(&machines), ["web-1 unchanged", "n2 unchanged"]);
    let node = world.node("n2");
    assert_eq!((node.power.as_str(), node.approved, node.stage), ("fake:n2", true, Stage::Enrolled));
    assert_eq!(node.rack, Some("r1".parse().unwrap()));
    assert_eq!(world.snapshot.sets[&world.set.name].synced.as_ref().unwrap().text, "2 unchanged");
    let moved =
        [Listed { power: "fake:other".into(), rack: Some("r2".into()), ..machines[0].clone() }, machines[1].clone()];
    let comparison = compare(&world.snapshot, NOW, &world.set, &moved, false).unwrap();
    let text = &comparison.rows[1].text;
    assert!(text.contains("fake:n2 becomes fake:other") && text.contains("rack r1 becomes r2"), "{text}");
    assert_eq!(world.sync(&moved), ["web-1 unchanged", "n2 changed"]);
}

#[test]
fn a_machine_that_is_known_already_is_the_same_node() {
    let mut world = World::new();
    world.add("by-mac", 1);
    world.add("by-uuid", 2);
    let uuid = Uuid::from_u128(7);
    world
        .tell(Event::EditNode {
            node: "by-uuid".parse().unwrap(),
            edit: NodeEdit { uuid: Some(uuid), ..NodeEdit::default() },
        })
        .unwrap();
    world.add("by-name", 3);
    world.tell(Event::Sighted { mac: mac(4), firmware: Some(Firmware::Bios), uuid: None }).unwrap();
    let machines = [
        listed("a", &[1, 9]),
        Listed { uuid: Some(uuid), ..listed("b", &[]) },
        listed("by-name", &[]),
        listed("stranger", &[4]),
    ];
    assert_eq!(world.sync(&machines), ["by-mac changed", "by-uuid changed", "by-name changed", "stranger added"]);
    assert_eq!(world.node("by-mac").macs, [mac(1), mac(9)]);
    assert_eq!(world.node("stranger").firmware, Some(Firmware::Bios));
    assert_eq!(world.snapshot.nodes.len(), 4, "the stranger is no node of its own any more");
}

#[test]
fn what_is_not_sure_is_refused_with_the_names() {
    let mut world = World::new();
    for (name, last) in [("n1", 1), ("n2", 2), ("n3", 3)] {
        world.add(name, last);
    }
    let uuid = Uuid::from_u128(7);
    world
        .tell(Event::EditNode {
            node: "n3".parse().unwrap(),
            edit: NodeEdit { uuid: Some(uuid), ..NodeEdit::default() },
        })
        .unwrap();
    let machines = [
        listed("a", &[1, 2]),
        Listed { uuid: Some(uuid), ..listed("b", &[8]) },
        listed("n2", &[7]),
        Listed { rack: Some("Rack 9".into()), ..listed("r", &[6]) },
        listed("x", &[5]),
        listed("x", &[4]),
    ];
    let rows = compare(&world.snapshot, NOW, &world.set, &machines, false).unwrap().rows;
    let words = ["`n1` and `n2`", "n3", "there is a node `n2`", "not a name", "power fake:x", "twice"];
    for (row, word) in rows.iter().zip(words) {
        assert!(row.text.contains(word), "{row:?}");
        assert_eq!(row.what == What::Refused, !word.contains("fake:x"), "{row:?}");
    }
}

#[test]
fn machines_with_the_same_name_or_uuid_are_told_apart() {
    let mut world = World::new();
    let same = |id: &str, last| Listed { name: "node".into(), uuid: Some(Uuid::from_u128(1)), ..listed(id, &[last]) };
    assert_eq!(world.sync(&[same("i-0123456789", 1), same("2", 2)]), ["s1-2 added", "i-0123456789 added"]);
    assert_eq!(world.sync(&[same("i-0123456789", 1), same("2", 2)]), ["s1-2 unchanged", "i-0123456789 unchanged"]);
}

#[test]
fn a_deployed_node_is_never_removed_and_an_untouched_one_is() {
    let mut world = World::new();
    world.add("older", 4);
    world.sync(&[listed("a", &[1]), listed("b", &[2]), listed("c", &[3]), listed("o", &[4])]);
    let image = ImageInfo::sample("golden", Digest([1; 32]));
    world.tell(Event::ImageSealed(image)).unwrap();
    world
        .tell(Event::Deploy {
            image: "golden".parse().unwrap(),
            nodes: vec!["a".parse().unwrap()],
            rollout: Default::default(),
        })
        .unwrap();
    let mut written = world.node("b").clone();
    written.written_before = true;
    world.snapshot.apply(&Change::PutNode(Box::new(written)));

    let error = compare(&world.snapshot, NOW, &world.set, &[], false).unwrap_err().to_string();
    assert!(error.contains("does not list 4 of its 4 nodes") && error.contains("--force"), "{error}");
    assert_eq!(world.sync(&[]), ["a missing", "b missing", "c retired", "older missing"]);
    assert!(!world.snapshot.nodes.contains_key(&"c".parse::<NodeName>().unwrap()));
    assert_eq!(world.node("a").member.as_ref().unwrap().missing_since, Some(NOW));
    let refused = world.tell(Event::Deploy {
        image: "golden".parse().unwrap(),
        nodes: vec!["b".parse().unwrap()],
        rollout: Default::default(),
    });
    assert!(refused.unwrap_err().to_string().contains("does not list"), "a missing machine is not deployed");
    let marked = compare(&world.snapshot, NOW, &world.set, &[], false).unwrap();
    assert_eq!(marked.summary(), "3 missing", "what is marked is not counted again");
    let again = world.sync(&[listed("a", &[1])]);
    assert_eq!(again, ["a changed", "b missing", "older missing"]);
    assert_eq!(world.node("a").member.as_ref().unwrap().missing_since, None);
    assert_eq!(world.node("a").attempt, Attempt(1));
}

#[test]
fn a_set_that_is_removed_leaves_its_nodes() {
    let mut world = World::new();
    world.sync(&[listed("a", &[1])]);
    let again = world.tell(Event::PutSet(world.set.clone())).unwrap_err().to_string();
    assert!(again.contains("there is a set `s1` already"), "{again}");
    world.tell(Event::RemoveSet { set: world.set.name.clone(), configured: false }).unwrap();
    assert_eq!((world.node("a").member.clone(), world.snapshot.sets.len()), (None, 0));
    let missing = world.tell(Event::SetListed { set: world.set.name.clone(), listed: vec![], force: false });
    assert!(matches!(missing, Err(Refused::NotFound { what: "set", .. })));
    let configured = MachineSet { configured: true, ..world.set.clone() };
    world.tell(Event::PutSet(configured.clone())).unwrap();
    world.tell(Event::PutSet(configured)).unwrap();
    let error = world.tell(Event::RemoveSet { set: world.set.name.clone(), configured: false }).unwrap_err();
    assert!(error.to_string().contains("configuration"), "{error}");
}

#[test]
fn a_machine_of_which_only_the_uuid_is_known_is_recognised_when_it_boots() {
    let mut world = World::new();
    let uuid = Uuid::from_u128(9);
    world.sync(&[Listed { uuid: Some(uuid), ..listed("blade", &[]) }]);
    let seen = Event::Sighted { mac: mac(1), firmware: Some(Firmware::UefiX64), uuid: Some(uuid) };
    world.tell(seen).unwrap();
    assert_eq!((world.node("blade").macs.as_slice(), world.snapshot.nodes.len()), (&[mac(1)][..], 1));
    // Another machine with the same UUID is another machine.
    world.tell(Event::Sighted { mac: mac(2), firmware: Some(Firmware::UefiX64), uuid: Some(uuid) }).unwrap();
    assert_eq!((world.node("blade").macs.len(), world.snapshot.nodes.len()), (1, 2));
}

#[test]
fn names_are_made_of_what_sets_say() {
    for (text, name) in [("Web 1", "web-1"), ("NODE_7.rack", "node-7.rack"), ("--", ""), ("ä1", "1")] {
        assert_eq!(node_name(text), name);
    }
    assert_eq!(node_name(&"x".repeat(80)).len(), 63);
}
