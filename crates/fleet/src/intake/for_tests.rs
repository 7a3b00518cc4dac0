//! What tests share: an image, and one controller's knowledge of one machine.

use crate::change::{Change, Snapshot};
use crate::deployment::ImageInfo;
use crate::event::{Event, NodeEdit};
use crate::ids::{Digest, Mac, Millis, NodeName};
use crate::intake::{Refused, intake};
use crate::life::Stage;
use crate::node::{Firmware, Node, TokenHash};
use crate::plan::Policy;

pub(super) const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
pub(super) const DIGEST: Digest = Digest([7; 32]);
pub(super) const NOW: Millis = Millis(1_000_000);

impl ImageInfo {
    /// Of 1 GiB, a quarter of it used.
    pub(crate) fn sample(name: &str, digest: Digest) -> Self {
        Self {
            name: name.parse().unwrap(),
            digest,
            size_bytes: 1 << 30,
            used_bytes: 1 << 28,
            piece_size: 1 << 20,
            infohash: "00".repeat(20),
            sealed_at: Millis(0),
            layout: None,
        }
    }
}

#[derive(Default)]
pub(super) struct World {
    pub(super) snapshot: Snapshot,
    pub(super) policy: Policy,
    /// What the timeline says, each with its kind.
    pub(super) notes: Vec<String>,
}

impl World {
    /// The machine is enrolled, and there is an image `debian`.
    pub(super) fn with_node() -> Self {
        let mut world = Self::default();
        let image = ImageInfo::sample("debian", DIGEST);
        world.take(Event::ImageSealed(image)).unwrap();
        let edit = NodeEdit { macs: Some(vec![MAC]), ..NodeEdit::default() };
        world.take(Event::AddNode { node: name(), edit }).unwrap();
        world
    }

    pub(super) fn take(&mut self, event: Event) -> Result<(), Refused> {
        for change in intake(&self.snapshot, &self.policy, NOW, &event)? {
            self.snapshot.apply(&change);
            if let Change::Note(note) = &change {
                self.notes.push(format!("{}: {}", note.kind, note.text));
            }
        }
        Ok(())
    }

    pub(super) fn node(&self) -> &Node {
        &self.snapshot.nodes[&name()]
    }

    /// From the assignment to the agent's registration.
    pub(super) fn boot(&mut self) {
        let (node, attempt) = (name(), self.node().attempt);
        let token = || TokenHash("t".to_owned());
        for event in [
            Event::PoweredOn { node: node.clone(), attempt, text: "on".into() },
            Event::Sighted { mac: MAC, firmware: Some(Firmware::Bios), uuid: None },
            Event::ScriptAsked { mac: MAC, uuid: None, token: token() },
            Event::Registered { node, attempt, uuid: None, token: token(), text: "up".into() },
        ] {
            self.take(event).unwrap();
        }
        assert_eq!(self.node().stage, Stage::AgentUp);
    }
}

pub(super) fn name() -> NodeName {
    "n1".parse().unwrap()
}
