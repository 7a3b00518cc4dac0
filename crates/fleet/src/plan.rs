//! What is to be done next, derived from the snapshot alone: a restart in the
//! middle of a job is the same path as an ordinary tick.

use serde::{Deserialize, Serialize};

use crate::agenda::{Agenda, Touched};
use crate::change::Snapshot;
use crate::discovery::Discovery;
use crate::event::Event;
use crate::ids::{Attempt, DeploymentId, Millis, NodeName};
use crate::life::Stage;
use crate::node::{Live, Node};
use crate::rollout::admit;

/// Attempts, deadlines and pauses. The `[deploy]` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Attempts per node and deployment, 1 to 10.
    pub attempts: u32,
    /// Pause before the second attempt, in seconds; doubles with each further
    /// one, with up to half as much again added so that nodes do not return
    /// all at once.
    pub pause_seconds: u32,
    /// Machines that are switched on per second, all deployments together, 1 to 1000: DHCP, HTTP and power supplies are to
    /// bear it.
    pub starts_per_second: u32,
    /// The same for one rack.
    pub starts_per_second_per_rack: u32,
    /// The least time that a power driver gets once its turn has come, in
    /// seconds. Drivers with longer deadlines of their own get those.
    pub powering_on_seconds: u32,
    /// From power-on to the first DHCP request, in seconds: POST and the boot
    /// order of a large server.
    pub leasing_seconds: u32,
    /// The same where a person must press the button (`manual:` power).
    pub manual_leasing_seconds: u32,
    /// From the first DHCP request to the boot script, in seconds.
    pub loading_bootloader_seconds: u32,
    /// From the boot script to the agent's registration, in seconds.
    pub loading_kernel_seconds: u32,
    /// An agent that says nothing for this long is dead, in seconds.
    pub silence_seconds: u32,
    /// A fetch that verifies no new piece for this long has stalled, in seconds.
    pub stall_seconds: u32,
    /// All post actions together, in seconds.
    pub post_actions_seconds: u32,
    /// From reboot to proof, in seconds.
    pub rebooting_seconds: u32,
    /// Machines that nobody has named; a section of its own.
    #[serde(skip)]
    pub discovery: Discovery,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 3,
            pause_seconds: 5,
            starts_per_second: 20,
            starts_per_second_per_rack: 5,
            powering_on_seconds: 120,
            leasing_seconds: 600,
            manual_leasing_seconds: 86_400,
            loading_bootloader_seconds: 180,
            loading_kernel_seconds: 300,
            silence_seconds: 60,
            stall_seconds: 300,
            post_actions_seconds: 1200,
            rebooting_seconds: 900,
            discovery: Discovery::default(),
        }
    }
}

/// What the plan knows of a power driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Driver {
    /// Deadline of one operation, in seconds.
    pub limit_seconds: u32,
    /// Whether it can make a machine boot from the network.
    pub network_boot: bool,
    /// Whether a person does it.
    pub by_hand: bool,
}

/// Reports of progress that a controller asks for in one second, of all nodes of a deployment together. A fifth of what
/// two cores bear that also play the nodes (`bench/results/enrol.md`).
const REPORTS_PER_SECOND: usize = 1_000;

/// Tells of the driver that a power address names.
pub type Drivers<'a> = &'a dyn Fn(&str) -> Driver;

/// Operations of one attempt: the boot order, then the power.
const OPERATIONS: u32 = 2;
/// A turn at a power controller that has not come after this time, in seconds,
/// never comes: before it are as many jobs as there are machines, each with a
/// deadline.
const TURN_SECONDS: u32 = 86_400;

impl Policy {
    /// The `[deploy]` section with its defaults, commented.
    pub const DEFAULT_TOML: &str = "\
[deploy]
# Attempts per node and deployment.
attempts = 3
# Pause before the second attempt, in seconds. It doubles with each further one; up to half of it is added at random.
pause_seconds = 5
# Machines that are switched on per second, all deployments together, and in one rack: what DHCP, HTTP and the power supply
# bear. A mass power-on is spread over time; so are attempts that follow a common failure.
starts_per_second = 20
starts_per_second_per_rack = 5
# Deadlines in seconds. A node that stands in a stage for longer begins its next attempt.
# Power drivers with longer deadlines of their own (limit_seconds= of the address) get those.
powering_on_seconds = 120
# From power-on to the first DHCP request: large servers take minutes for their self-test.
leasing_seconds = 600
# The same for nodes that a person switches on (power = \"manual:\").
manual_leasing_seconds = 86400
loading_bootloader_seconds = 180
loading_kernel_seconds = 300
# An agent that says nothing for this long is dead.
silence_seconds = 60
# A fetch in which no further piece is verified for this long has stalled.
stall_seconds = 300
post_actions_seconds = 1200
rebooting_seconds = 900
";

    /// Seconds between two reports of progress of a node, where so many are provisioned together. Never more than a
    /// quarter of the silence that ends an attempt, so that lost reports do not make an agent seem dead.
    #[must_use]
    pub fn report_seconds(&self, nodes: usize) -> u32 {
        let shared = u32::try_from(nodes.div_ceil(REPORTS_PER_SECOND)).unwrap_or(u32::MAX);
        shared.clamp(1, (self.silence_seconds / 4).max(1))
    }

    /// Pause before the attempt after `tries` ones, in milliseconds. The jitter
    /// comes from the node's name, so that a plan stays a function of the state.
    #[must_use]
    pub fn pause_milliseconds(&self, node: &NodeName, tries: u32) -> u64 {
        let pause = (u64::from(self.pause_seconds) * 1000) << tries.saturating_sub(1).min(6);
        // FNV-1a over name and try: spread is all that is asked of it.
        let hash = node
            .as_str()
            .bytes()
            .chain(tries.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        pause + if pause == 0 { 0 } else { hash % (pause / 2 + 1) }
    }

    fn deadline(
        &self,
        node: &Node,
        live: Option<&Live>,
        drivers: Drivers<'_>,
        started_at: Millis,
    ) -> Option<(Millis, String)> {
        let after = |seconds: u32, from: Millis| from.plus(u64::from(seconds) * 1000);
        let in_stage = |seconds: u32| {
            let text = format!("after {seconds} s it still waited for {}", node.stage.waits_for());
            // A controller that was away, or whose clock has jumped since, knows nothing of that time.
            (after(seconds, node.stage_since.max(started_at)), text)
        };
        let heard = live.and_then(|l| l.heard).unwrap_or(node.stage_since.max(started_at));
        let silence = (
            after(self.silence_seconds, heard),
            format!(
                "its agent said nothing for {} s while it waited for {}",
                self.silence_seconds,
                node.stage.waits_for()
            ),
        );
        Some(match node.stage {
            Stage::Enrolled | Stage::Running | Stage::Failed => return None,
            Stage::PoweringOn => {
                let from = node.not_before.unwrap_or(node.stage_since).max(node.stage_since).max(started_at);
                match live.and_then(|l| l.switching) {
                    None => {
                        let text = format!("its turn at its power controller did not come within {TURN_SECONDS} s");
                        (after(TURN_SECONDS, from), text)
                    }
                    Some(begun) => {
                        // A second more for each, so that the driver's own sentence comes first.
                        let own = (drivers(&node.power).limit_seconds + 1) * OPERATIONS;
                        let seconds = own.max(self.powering_on_seconds);
                        (after(seconds, begun), format!("its power driver did not finish within {seconds} s"))
                    }
                }
            }
            Stage::Leasing if drivers(&node.power).by_hand => in_stage(self.manual_leasing_seconds),
            Stage::Leasing => in_stage(self.leasing_seconds),
            Stage::LoadingBootloader => in_stage(self.loading_bootloader_seconds),
            Stage::LoadingKernel => in_stage(self.loading_kernel_seconds),
            // A device that sanitises itself tells nothing for hours; the agent has deadlines of its own.
            Stage::AgentUp | Stage::Wiping => silence,
            Stage::Capturing | Stage::Fetching => {
                let advanced = live.and_then(|l| l.advanced).unwrap_or(node.stage_since.max(started_at));
                let stall = (
                    after(self.stall_seconds, advanced),
                    match node.stage {
                        Stage::Capturing => format!("nothing more of its disk was sent for {} s", self.stall_seconds),
                        _ => format!("no further piece was verified for {} s", self.stall_seconds),
                    },
                );
                if stall.0 < silence.0 { stall } else { silence }
            }
            Stage::PostActions => {
                let all = in_stage(self.post_actions_seconds);
                if all.0 < silence.0 { all } else { silence }
            }
            Stage::Rebooting => in_stage(self.rebooting_seconds),
        })
    }
}

/// Something to do in the world. (node, attempt) is its idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Boot the node from the network once, whatever its power state is.
    NetworkBoot {
        /// The node.
        node: NodeName,
        /// The attempt that it is for.
        attempt: Attempt,
        /// Address of its power driver.
        power: String,
    },
}

/// What follows from a snapshot.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// What is to be done now.
    pub actions: Vec<Action>,
    /// Deadlines that have passed, deployments that start more nodes, and what cannot be done at all, as events.
    pub overdue: Vec<Event>,
    /// When to plan again if nothing happens before.
    pub wake_at: Option<Millis>,
    /// How many nodes and deployments were looked at for it.
    pub looked_at: usize,
}

/// When a node's present stage must have ended, for people to see.
#[must_use]
pub fn deadline(snapshot: &Snapshot, policy: &Policy, drivers: Drivers<'_>, node: &Node) -> Option<Millis> {
    policy.deadline(node, snapshot.live.get(&node.name), drivers, snapshot.started_at).map(|(at, _)| at)
}

/// What is to be done now, by everybody. [`Agenda`] gives the same of those alone to which something has happened.
#[must_use]
pub fn plan(snapshot: &Snapshot, policy: &Policy, drivers: Drivers<'_>, now: Millis) -> Plan {
    let mut agenda = Agenda::default();
    agenda.touch(Touched::everything(snapshot));
    agenda.plan(snapshot, policy, drivers, now)
}

/// Adds what a node asks for now; returns when it is to be looked at again if nothing happens before.
pub(crate) fn look_at_node(
    plan: &mut Plan,
    snapshot: &Snapshot,
    policy: &Policy,
    drivers: Drivers<'_>,
    name: &NodeName,
    now: Millis,
) -> Option<Millis> {
    let node = snapshot.nodes.get(name).filter(|node| node.stage.is_under_way())?;
    let power = if node.stage == Stage::PoweringOn { power_on(plan, drivers, node, now) } else { None };
    let deadline = match policy.deadline(node, snapshot.live.get(name), drivers, snapshot.started_at) {
        Some((at, reason)) if at <= now => {
            plan.overdue.push(Event::DeadlinePassed {
                node: name.clone(),
                attempt: node.attempt,
                stage: node.stage,
                reason,
            });
            None
        }
        other => other.map(|(at, _)| at),
    };
    power.into_iter().chain(deadline).min()
}

/// The same for a deployment.
pub(crate) fn look_at_deployment(
    plan: &mut Plan,
    snapshot: &Snapshot,
    policy: &Policy,
    id: DeploymentId,
    now: Millis,
) -> Option<Millis> {
    let admission = admit(snapshot, policy, snapshot.deployments.get(&id)?, now);
    if admission.is_due() {
        plan.overdue.push(Event::Proceed(id));
    }
    admission.wake_at.into_iter().chain(admission.over_at).min()
}

/// Returns when its power is due, where that is not now.
fn power_on(plan: &mut Plan, drivers: Drivers<'_>, node: &Node, now: Millis) -> Option<Millis> {
    if !drivers(&node.power).network_boot {
        plan.overdue.push(Event::StageFailed {
            node: node.name.clone(),
            attempt: node.attempt,
            reason: NO_NETWORK_BOOT.to_owned(),
            retry: false,
        });
        return None;
    }
    let later = node.not_before.filter(|at| *at > now);
    if later.is_none() {
        plan.actions.push(Action::NetworkBoot {
            node: node.name.clone(),
            attempt: node.attempt,
            power: node.power.clone(),
        });
    }
    later
}

/// Why a machine cannot be deployed whose platform starts it from images of its own.
pub const NO_NETWORK_BOOT: &str = "its power driver cannot make it boot from the network, so nothing can be deployed onto \
     it: add the image to its platform and start it from that";

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
