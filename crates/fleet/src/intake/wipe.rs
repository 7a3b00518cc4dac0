//! A node whose disks are wiped: asked for, begun, certified, done.

use crate::change::{Change, Snapshot};
use crate::disk::{Purpose, choose};
use crate::ids::{Attempt, Millis, NodeName};
use crate::intake::draft::Draft;
use crate::intake::{Refused, check_free, find};
use crate::life::Cause;
use crate::wipe::{Certificate, MAX_CERTIFICATES, Wipe};

pub(super) fn wipe(snapshot: &Snapshot, now: Millis, name: &NodeName, order: &Wipe) -> Result<Vec<Change>, Refused> {
    check_free(snapshot, name)?;
    order.check().map_err(Refused::Invalid)?;
    let node = find(snapshot, name)?;
    // The agent looks again; what is known already to be refused need not be booted for.
    for rule in &order.disks {
        let known = node.inventory.as_ref().map(|inventory| choose(&inventory.disks, rule, Purpose::Wipe));
        if let Some(Err(refusal)) = known {
            return Err(Refused::Conflict(refusal.to_string()));
        }
    }
    let mut draft = Draft::new(snapshot, now, node.clone());
    draft.begin();
    draft.node.wipe = Some(order.clone());
    let disks: Vec<String> = order.disks.iter().map(ToString::to_string).collect();
    let text = format!("to be wiped ({}): the disk with {}", order.method, disks.join("; the disk with "));
    draft.advance(Cause::Assigned, "wipe_assigned", &text);
    Ok(draft.finish())
}

pub(super) fn started(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
    text: &str,
) -> Result<Vec<Change>, Refused> {
    let mut draft = being_wiped(snapshot, now, name, attempt)?;
    if draft.advance(Cause::WipeStarted, "wipe_started", text) {
        // What ran there is gone with the first block.
        draft.node.deployed = None;
        draft.node.node_token = None;
        draft.node.written_before = false;
        draft.node.written_disk = None;
    }
    draft.heard();
    Ok(draft.finish())
}

pub(super) fn certified(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
    certificate: &Certificate,
) -> Result<Vec<Change>, Refused> {
    let mut draft = being_wiped(snapshot, now, name, attempt)?;
    let certificate = Certificate { node: name.clone(), attempt, at: now, ..certificate.clone() };
    let certificates = &mut draft.node.certificates;
    // A report that is sent again is the same certificate.
    let again = certificates.iter().any(|old| Certificate { at: now, ..old.clone() } == certificate);
    if !again {
        let excess = (certificates.len() + 1).saturating_sub(MAX_CERTIFICATES);
        certificates.drain(..excess);
        draft.note("disk_wiped", &certificate.sentence());
        draft.node.certificates.push(certificate);
    }
    draft.heard();
    Ok(draft.finish())
}

pub(super) fn done(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
    text: &str,
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::of(snapshot, now, name, attempt)?;
    if draft.advance(Cause::Wiped, "wiped", text) {
        draft.node.wipe = None;
        draft.rest();
        // What it told of its disks is not true any more.
        if let Some(inventory) = &mut draft.node.inventory {
            let wiped: Vec<&str> =
                draft.node.certificates.iter().filter(|c| c.attempt == attempt).map(|c| c.disk.as_str()).collect();
            for disk in inventory.disks.iter_mut().filter(|disk| wiped.contains(&disk.identity().as_str())) {
                disk.contents.clear();
                disk.signatures.clear();
            }
        }
    }
    Ok(draft.finish())
}

fn being_wiped<'a>(
    snapshot: &'a Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
) -> Result<Draft<'a>, Refused> {
    let draft = Draft::of(snapshot, now, name, attempt)?;
    if draft.node.wiped().is_none() {
        return Err(Refused::Conflict(format!("node `{name}` is not to be wiped; stop and reboot")));
    }
    Ok(draft)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::DiskRule;
    use crate::event::Event;
    use crate::intake::for_tests::{NOW, World, name};
    use crate::life::Stage;
    use crate::wipe::{Method, Samples, Used, Worth};

    impl World {
        fn start(&mut self) -> Result<(), Refused> {
            let attempt = self.node().attempt;
            self.take(Event::WipeStarted { node: name(), attempt, text: "x".into() })
        }

        fn certify(&mut self) -> Result<(), Refused> {
            let attempt = self.node().attempt;
            self.take(Event::DiskWiped { node: name(), attempt, certificate: Box::new(certificate()) })
        }

        fn done(&mut self) -> Result<(), Refused> {
            let attempt = self.node().attempt;
            self.take(Event::Wiped { node: name(), attempt, text: "x".into() })
        }
    }

    fn order() -> Wipe {
        let rule = DiskRule { serial: Some("a".into()), ..DiskRule::default() };
        Wipe { disks: vec![rule], method: Method::Auto }
    }

    fn certificate() -> Certificate {
        Certificate {
            node: "someone".parse().unwrap(),
            attempt: Attempt(99),
            at: Millis(7),
            disk: "serial:a".into(),
            path: "/dev/sda".into(),
            model: None,
            serial: Some("a".into()),
            wwn: None,
            size_bytes: 1 << 30,
            asked: Method::Auto,
            used: Used::Discard,
            milliseconds: 5,
            samples: Samples::default(),
            worth: Worth::NotSanitised,
            reasons: vec!["why".into()],
            notes: Vec::new(),
            failed: false,
            agent_version: "1".into(),
        }
    }

    #[test]
    fn a_wipe_is_certified_under_the_controllers_name_and_clock_and_kept() {
        let mut world = World::with_node();
        world.take(Event::Wipe { node: name(), order: order() }).unwrap();
        assert_eq!(world.node().wiped(), Some(&order()));
        world.boot();
        world.start().unwrap();
        assert_eq!(world.node().stage, Stage::Wiping);
        world.certify().unwrap();
        world.certify().unwrap();
        let kept = world.node().certificates.clone();
        assert_eq!(kept.len(), 1, "sent twice, it is one");
        assert_eq!((&kept[0].node, kept[0].attempt, kept[0].at), (&name(), world.node().attempt, NOW));
        assert!(world.notes.iter().any(|note| note.starts_with("disk_wiped:") && note.contains("not sanitised: why")));
        world.done().unwrap();
        assert_eq!((world.node().stage, world.node().wiped()), (Stage::Enrolled, None));
        assert_eq!(world.node().certificates.len(), 1, "the certificate stays");
    }

    #[test]
    fn an_order_is_for_one_time_and_never_carried_out_again() {
        let mut world = World::with_node();
        assert!(world.start().is_err(), "nobody has asked");
        world.take(Event::Wipe { node: name(), order: order() }).unwrap();
        world.boot();
        world.start().unwrap();
        world.done().unwrap();
        assert!(world.start().is_err() && world.certify().is_err(), "it is done");
        world.take(Event::Wipe { node: name(), order: order() }).unwrap();
        world.boot();
        world.take(Event::Release { node: name() }).unwrap();
        assert!(world.start().is_err(), "it was let go");
        let capture = crate::capture::Order { image: "web".parse().unwrap(), generalise: true };
        world.take(Event::Capture { node: name(), order: capture }).unwrap();
        world.boot();
        assert_eq!(world.node().wiped(), None);
        assert!(world.start().is_err(), "it is being captured");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_at_once() {
        let mut world = World::with_node();
        let nothing = Wipe { disks: vec![DiskRule::default()], method: Method::Auto };
        assert!(world.take(Event::Wipe { node: name(), order: nothing }).is_err());
        let disk = crate::disk::Disk {
            path: "/dev/sda".into(),
            size_bytes: 1 << 30,
            serial: Some("a".into()),
            read_only: true,
            ..Default::default()
        };
        let mut node = world.node().clone();
        node.inventory = Some(crate::discovery::Inventory { disks: vec![disk], ..Default::default() });
        world.snapshot.apply(&Change::PutNode(Box::new(node)));
        let refused = world.take(Event::Wipe { node: name(), order: order() }).unwrap_err();
        assert!(refused.to_string().contains("refuses writes"), "{refused}");
    }
}
