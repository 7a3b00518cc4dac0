//! Takes events in: what each one changes, or why it is refused.

mod boot;
mod capture;
mod draft;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod for_tests;
mod nodes;
mod rollouts;
mod wipe;

use thiserror::Error;

use crate::change::{Change, Snapshot};
use crate::discovery::INVENTORY_TRIES;
use crate::event::Event;
use crate::ids::{Attempt, BadId, Mac, Millis, NodeName};
use crate::life::{Cause, Stage};
use crate::node::Node;
use crate::plan::Policy;
use crate::set::compare;
use boot::{by_mac, inventoried, proved, registered, script_asked, sighted, switches_heard};
use draft::Draft;
pub use nodes::image_user;
use nodes::{
    add_node, approve, edit_node, find_set, put_set, release, remove_image, remove_node, remove_rack, remove_set,
};
use rollouts::{cancel, deploy, pause, proceed, resume, retry};
pub use rollouts::{check_free, check_hardware, draw_up, failed_checks};

/// Why an event changes nothing. Grouped by what the sender should do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// It names something that does not exist.
    #[error("there is no {what} `{name}`; `rackswarm {what} list` shows what there is")]
    NotFound {
        /// node, rack, set, image or deployment.
        what: &'static str,
        /// What was named.
        name: String,
    },
    /// It contradicts the present state.
    #[error("{0}")]
    Conflict(String),
    /// It belongs to an attempt that is over; the sender must stop.
    #[error("attempt {got} of {node} is over (the present one is {present}); stop and reboot")]
    OldAttempt {
        /// The node.
        node: NodeName,
        /// The attempt that the sender named.
        got: Attempt,
        /// The attempt that counts.
        present: Attempt,
    },
    /// It is not a valid request.
    #[error("{0}")]
    Invalid(String),
}

impl From<BadId> for Refused {
    fn from(bad: BadId) -> Self {
        Self::Invalid(bad.to_string())
    }
}

/// What a network-booting machine is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootWish {
    /// Our kernel and agent, for this node and attempt.
    Agent {
        /// The node.
        node: NodeName,
        /// The attempt that the script's token will belong to.
        attempt: Attempt,
    },
    /// Our kernel and agent, only to tell what the machine is.
    Inventory {
        /// The node, which waits for approval.
        node: NodeName,
    },
    /// Its own disk.
    LocalDisk {
        /// Why, as a sentence for the machine's console.
        why: String,
    },
}

/// What the machine behind `mac` is to boot now.
#[must_use]
pub fn boot_wish(snapshot: &Snapshot, policy: &Policy, mac: Mac) -> BootWish {
    let local = |why: String| BootWish::LocalDisk { why };
    let Some(node) = snapshot.node_of(mac) else {
        return local(format!("{mac} is not known here; it waits for approval"));
    };
    let name = &node.name;
    match node.stage {
        Stage::PoweringOn | Stage::Leasing | Stage::LoadingBootloader | Stage::LoadingKernel => {
            BootWish::Agent { node: name.clone(), attempt: node.attempt }
        }
        // A machine that asks again while its agent should be at work has restarted.
        Stage::AgentUp | Stage::Capturing | Stage::Wiping | Stage::Fetching | Stage::PostActions => {
            BootWish::Agent { node: name.clone(), attempt: node.attempt.next() }
        }
        Stage::Enrolled if is_to_tell(policy, node) => BootWish::Inventory { node: name.clone() },
        Stage::Enrolled if !node.approved => local(format!("{name} waits for approval")),
        Stage::Enrolled => local(format!("nothing is assigned to {name}")),
        Stage::Rebooting => local(format!("{name} has been written and boots its own disk")),
        Stage::Running => local(format!("{name} is deployed and boots its own disk")),
        Stage::Failed => local(format!("the last deployment of {name} failed")),
    }
}

/// Whether this machine is to tell what it is before anybody decides about it.
fn is_to_tell(policy: &Policy, node: &Node) -> bool {
    policy.discovery.inventory && !node.approved && node.inventory.is_none() && node.inventory_tries < INVENTORY_TRIES
}

/// What `event` changes.
///
/// # Errors
/// [`Refused`] where it must change nothing; the sentence is for its sender.
pub fn intake(snapshot: &Snapshot, policy: &Policy, now: Millis, event: &Event) -> Result<Vec<Change>, Refused> {
    match event {
        Event::AddNode { node, edit } => add_node(snapshot, now, node, edit),
        Event::EditNode { node, edit } => edit_node(snapshot, now, node, edit),
        Event::Approve { node } => approve(snapshot, now, node),
        Event::Release { node } => release(snapshot, now, node),
        Event::RemoveNode { node } => remove_node(snapshot, node),
        Event::PutRack(rack) => Ok(vec![Change::PutRack(rack.clone())]),
        Event::RemoveRack(rack) => remove_rack(snapshot, rack),
        Event::PutSet(set) => put_set(snapshot, set),
        Event::RemoveSet { set, configured } => remove_set(snapshot, set, *configured),
        Event::SetListed { set, listed, force } => {
            Ok(compare(snapshot, now, find_set(snapshot, set)?, listed, *force)?.changes)
        }
        Event::Deploy { image, nodes, rollout } => deploy(snapshot, policy, now, image, nodes, rollout),
        Event::Proceed(id) => proceed(snapshot, policy, now, *id),
        Event::Pause { deployment, rack } => pause(snapshot, now, *deployment, rack.as_ref()),
        Event::Resume { deployment, rack, windows } => {
            resume(snapshot, now, *deployment, rack.as_ref(), windows.as_deref())
        }
        Event::Retry { deployment, nodes } => retry(snapshot, now, *deployment, nodes),
        Event::Cancel(id) => cancel(snapshot, now, *id),
        Event::ImageSealed(image) => Ok(vec![Change::PutImage(image.clone())]),
        Event::ImageRemoved(name) => remove_image(snapshot, name),
        Event::Sighted { mac, firmware, uuid } => sighted(snapshot, policy, now, *mac, *firmware, *uuid),
        Event::BootloaderSent { mac, file, bytes } => by_mac(
            snapshot,
            now,
            *mac,
            Cause::BootloaderSent,
            "bootloader_sent",
            &format!("{file} sent, {bytes} bytes"),
        ),
        Event::KernelSent { mac, file, bytes } => {
            by_mac(snapshot, now, *mac, Cause::KernelSent, "kernel_sent", &format!("{file} sent, {bytes} bytes"))
        }
        Event::ScriptAsked { mac, uuid, token } => script_asked(snapshot, policy, now, *mac, *uuid, token),
        Event::PowerBegun { node, attempt } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage == Stage::PoweringOn {
                draft.live.switching = Some(now);
            }
            Ok(draft.finish())
        }
        Event::PowerRead { node, power, text } => {
            let mut draft = Draft::any_attempt(snapshot, now, node)?;
            draft.live.power = Some((*power, now));
            if let Some(text) = text {
                draft.note("power", text);
            }
            Ok(draft.finish())
        }
        Event::PoweredOn { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::PoweredOn, "powered_on", text);
            Ok(draft.finish())
        }
        Event::BootTokenMade { node, attempt, token } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage != Stage::PoweringOn {
                return Err(Refused::Conflict(format!("`{node}` is not to be started any more")));
            }
            draft.node.boot_token = Some(token.clone());
            Ok(draft.finish())
        }
        Event::KernelHanded { node, attempt } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            // Its agent may have been faster than this event.
            if draft.node.stage == Stage::PoweringOn {
                let text = "its platform has started it with our kernel, without a network boot";
                draft.advance(Cause::ScriptSent, "kernel_handed", text);
            }
            Ok(draft.finish())
        }
        Event::PowerFailed { node, attempt, reason } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage == Stage::PoweringOn {
                draft.end_attempt(policy, "power_failed", reason, true);
            } else {
                draft.note("power_failed", reason);
            }
            Ok(draft.finish())
        }
        Event::Registered { node, attempt, uuid, token, text } => {
            registered(snapshot, now, node, *attempt, *uuid, token, text)
        }
        Event::Inventoried { node, attempt, uuid, inventory, text } => {
            inventoried(snapshot, policy, now, node, *attempt, *uuid, inventory, text)
        }
        Event::SwitchesHeard { node, attempt, cards } => switches_heard(snapshot, policy, now, node, *attempt, cards),
        Event::Capture { node, order } => capture::capture(snapshot, now, node, order),
        Event::CaptureStarted { node, attempt, text } => capture::started(snapshot, now, node, *attempt, text),
        Event::Captured { node, attempt, text } => capture::done(snapshot, now, node, *attempt, text),
        Event::Wipe { node, order } => wipe::wipe(snapshot, now, node, order),
        Event::WipeStarted { node, attempt, text } => wipe::started(snapshot, now, node, *attempt, text),
        Event::DiskWiped { node, attempt, certificate } => wipe::certified(snapshot, now, node, *attempt, certificate),
        Event::Wiped { node, attempt, text } => wipe::done(snapshot, now, node, *attempt, text),
        Event::FetchStarted { node, attempt, disk, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::FetchStarted, "fetch_started", text);
            draft.node.target = Some(disk.clone());
            draft.node.written_before = true;
            draft.node.written_disk = Some(disk.clone());
            // What ran there before is being overwritten.
            draft.node.deployed = None;
            draft.node.node_token = None;
            draft.heard();
            Ok(draft.finish())
        }
        Event::Progressed { node, attempt, progress } => {
            let known = find(snapshot, node)?;
            draft::is_present(known, *attempt)?;
            Ok(draft::heard(snapshot, now, known, |live| {
                if live.progress.is_none_or(|p| p.done_bytes != progress.done_bytes) {
                    live.advanced = Some(now);
                }
                live.progress = Some(*progress);
            }))
        }
        Event::Booked { node, attempt, ledger } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.heard();
            if let Some(run) = &mut draft.node.run {
                run.booked(ledger.clone());
            }
            Ok(draft.finish())
        }
        Event::ImageVerified { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::ImageVerified, "image_verified", text);
            draft.keep_bytes();
            draft.heard();
            Ok(draft.finish())
        }
        Event::PostActionDone { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.note("post_action_done", text);
            draft.heard();
            Ok(draft.finish())
        }
        Event::PostActionsDone { node, attempt, text } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.advance(Cause::PostActionsDone, "post_actions_done", text);
            draft.keep_bytes();
            draft.heard();
            Ok(draft.finish())
        }
        Event::StageFailed { node, attempt, reason, retry } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            draft.end_attempt(policy, "stage_failed", reason, *retry);
            Ok(draft.finish())
        }
        Event::Proved { node, attempt, digest, disk } => proved(snapshot, now, node, *attempt, digest, disk),
        Event::Beaten { node, beat } => {
            Ok(draft::heard(snapshot, now, find(snapshot, node)?, |live| live.beat = Some(beat.clone())))
        }
        Event::DeadlinePassed { node, attempt, stage, reason } => {
            let mut draft = Draft::of(snapshot, now, node, *attempt)?;
            if draft.node.stage == *stage {
                draft.end_attempt(policy, "deadline_passed", reason, true);
            }
            Ok(draft.finish())
        }
    }
}

fn find<'a>(snapshot: &'a Snapshot, name: &NodeName) -> Result<&'a Node, Refused> {
    snapshot.nodes.get(name).ok_or_else(|| Refused::NotFound { what: "node", name: name.to_string() })
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
