//! A node whose disk is captured: asked for, begun, done.

use crate::capture::Order;
use crate::change::{Change, Snapshot};
use crate::ids::{Attempt, Millis, NodeName};
use crate::intake::draft::Draft;
use crate::intake::{Refused, check_free, find};
use crate::life::Cause;

pub(super) fn capture(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    order: &Order,
) -> Result<Vec<Change>, Refused> {
    check_free(snapshot, name)?;
    let image = &order.image;
    if snapshot.images.contains_key(image) {
        return Err(Refused::Conflict(format!(
            "there is an image `{image}` already; choose another name, or `rackswarm image remove {image}` first"
        )));
    }
    if let Some(other) = snapshot.nodes.values().find(|node| node.captured().is_some_and(|o| o.image == *image)) {
        return Err(Refused::Conflict(format!("node `{}` is being captured as `{image}` already", other.name)));
    }
    let node = find(snapshot, name)?;
    let mut draft = Draft::new(snapshot, now, node.clone());
    draft.begin();
    draft.node.capture = Some(order.clone());
    let how = if order.generalise { "generalised" } else { "as it is" };
    let text = format!("its disk is to be captured as image {image}, {how}; nothing is written to it");
    draft.advance(Cause::Assigned, "capture_assigned", &text);
    Ok(draft.finish())
}

pub(super) fn started(
    snapshot: &Snapshot,
    now: Millis,
    name: &NodeName,
    attempt: Attempt,
    text: &str,
) -> Result<Vec<Change>, Refused> {
    let mut draft = Draft::of(snapshot, now, name, attempt)?;
    if draft.node.captured().is_none() {
        return Err(Refused::Conflict(format!("node `{name}` is not being captured; stop and reboot")));
    }
    draft.advance(Cause::CaptureStarted, "capture_started", text);
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
    if draft.advance(Cause::Captured, "captured", text) {
        draft.node.capture = None;
        draft.rest();
    }
    Ok(draft.finish())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::{Event, NodeEdit};
    use crate::ids::{Digest, Mac};
    use crate::intake::for_tests::{DIGEST, MAC, World, name};
    use crate::intake::{BootWish, boot_wish};
    use crate::life::Stage;

    impl World {
        fn capture(&mut self, image: &str) -> Result<(), Refused> {
            let order = Order { image: image.parse().unwrap(), generalise: true };
            self.take(Event::Capture { node: name(), order })
        }

        fn deploy(&mut self) -> Result<(), Refused> {
            let image = "debian".parse().unwrap();
            self.take(Event::Deploy { image, nodes: vec![name()], rollout: Default::default() })?;
            for id in self.snapshot.deployments.keys().copied().collect::<Vec<_>>() {
                self.take(Event::Proceed(id))?;
            }
            Ok(())
        }

        fn run_debian(&mut self) {
            self.deploy().unwrap();
            self.boot();
            let (node, attempt) = (name(), self.node().attempt);
            for event in [
                Event::FetchStarted { node: node.clone(), attempt, disk: "serial:1".into(), text: "x".into() },
                Event::ImageVerified { node: node.clone(), attempt, text: "x".into() },
                Event::PostActionsDone { node: node.clone(), attempt, text: "x".into() },
            ] {
                self.take(event).unwrap();
            }
            self.prove(attempt, DIGEST).unwrap();
        }

        fn prove(&mut self, attempt: Attempt, digest: Digest) -> Result<(), Refused> {
            self.take(Event::Proved { node: name(), attempt, digest, disk: "serial:1".into() })
        }

        fn say(&mut self, captured: bool) -> Result<(), Refused> {
            let (node, attempt, text) = (name(), self.node().attempt, "x".to_owned());
            self.take(match captured {
                false => Event::CaptureStarted { node, attempt, text },
                true => Event::Captured { node, attempt, text },
            })
        }
    }

    #[test]
    fn a_capture_leaves_the_node_and_what_runs_on_it_as_they_were() {
        let mut world = World::with_node();
        world.run_debian();
        let before = world.node().clone();
        assert_eq!(before.stage, Stage::Running);
        world.capture("web").unwrap();
        assert_eq!(world.node().captured().unwrap().image.as_str(), "web");
        world.boot();
        world.say(false).unwrap();
        assert_eq!(world.node().stage, Stage::Capturing);
        assert!(
            matches!(boot_wish(&world.snapshot, &world.policy, MAC), BootWish::Agent { attempt, .. } if attempt == world.node().attempt.next())
        );
        world.say(true).unwrap();
        let after = world.node().clone();
        assert_eq!((after.stage, &after.capture, &after.boot_token), (Stage::Enrolled, &None, &None));
        assert_eq!(
            (&after.deployed, &after.node_token, after.written_before),
            (&before.deployed, &before.node_token, true)
        );
        assert!(matches!(boot_wish(&world.snapshot, &world.policy, MAC), BootWish::LocalDisk { .. }));
        // Its system boots again and proves what it was.
        world.prove(before.attempt, DIGEST).unwrap();
        assert_eq!(world.node().stage, Stage::Enrolled);
        assert!(world.prove(before.attempt, Digest([8; 32])).is_err());
        world.deploy().unwrap();
        assert_eq!(world.node().stage, Stage::PoweringOn);
        assert!(world.prove(before.attempt, DIGEST).is_err(), "another deployment is under way");
    }

    #[test]
    fn what_cannot_be_captured_is_refused_and_an_old_order_is_never_carried_out() {
        let mut world = World::with_node();
        assert!(matches!(world.capture("debian"), Err(Refused::Conflict(_))), "the image is there");
        world.capture("web").unwrap();
        assert!(matches!(world.capture("other"), Err(Refused::Conflict(_))), "it is under way");
        assert!(world.deploy().is_err(), "it is being captured");
        let edit = NodeEdit { macs: Some(vec![Mac([2; 6])]), ..NodeEdit::default() };
        world.take(Event::AddNode { node: "n2".parse().unwrap(), edit }).unwrap();
        let order = Order { image: "web".parse().unwrap(), generalise: false };
        let second = world.take(Event::Capture { node: "n2".parse().unwrap(), order });
        assert!(matches!(second, Err(Refused::Conflict(_))), "the name is taken");
        world.take(Event::Release { node: name() }).unwrap();
        assert!(world.node().captured().is_none());
        world.deploy().unwrap();
        world.boot();
        assert!(world.node().stage.is_under_way() && world.node().captured().is_none());
        assert!(matches!(world.say(false), Err(Refused::Conflict(_))));
        assert_eq!(world.node().stage, Stage::AgentUp);
    }

    #[test]
    fn a_capture_that_fails_is_tried_again_and_touches_no_deployment() {
        let mut world = World::with_node();
        world.run_debian();
        let deployments = world.snapshot.deployments.clone();
        world.capture("web").unwrap();
        for tries in 1..=world.policy.attempts {
            assert_eq!((world.node().tries, world.node().stage), (tries, Stage::PoweringOn));
            world.boot();
            world.say(false).unwrap();
            let (node, attempt) = (name(), world.node().attempt);
            world.take(Event::StageFailed { node, attempt, reason: "the network broke".into(), retry: true }).unwrap();
        }
        assert_eq!(world.node().stage, Stage::Failed);
        assert_eq!(world.snapshot.deployments, deployments);
        assert!(world.node().deployed.is_some());
    }
}
