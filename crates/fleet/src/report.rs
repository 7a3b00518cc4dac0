//! What a deployment came to: times by stage, bytes, failures with their reasons, and who was slower than the rest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::deployment::{Deployment, DeploymentState, Line, Outcome};
use crate::ids::{DeploymentId, Digest, ImageName, Millis, NodeName, RackName};
use crate::ledger::Ledger;
use crate::life::Stage;
use crate::run::{Passed, Run};

/// A node is a straggler that takes so many times the median of its rack for a stage.
const STRAGGLER: u64 = 2;
/// Less than this over the median is nobody's trouble, in milliseconds.
const STRAGGLER_LEAST: u64 = 5_000;
/// Of fewer nodes there is no median to speak of.
const STRAGGLER_NODES: usize = 3;

/// What one stage took the nodes that passed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// How many nodes passed it in their last try.
    pub nodes: u32,
    /// Half of them took at most this, in milliseconds.
    pub median_milliseconds: u64,
    /// The slowest took this, in milliseconds.
    pub longest_milliseconds: u64,
    /// The slowest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub slowest: NodeName,
}

/// A node that takes longer than the others of its rack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Straggler {
    /// The node.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// Its rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// The stage.
    pub stage: Stage,
    /// What it took, or has taken so far, in milliseconds.
    pub milliseconds: u64,
    /// The median of its rack, in milliseconds.
    pub median_milliseconds: u64,
    /// True where it still stands in that stage.
    pub still: bool,
}

/// What one rack came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RackReport {
    /// The rack; nothing for nodes that stand in none.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub rack: Option<RackName>,
    /// Its nodes that have started.
    pub nodes: u32,
    /// Those that are proved.
    pub running: u32,
    /// Those that failed.
    pub failed: u32,
    /// From start to proof, half of them took at most this, in milliseconds.
    pub median_milliseconds: Option<u64>,
    /// Payload that its nodes received, in bytes, all tries together.
    pub received_bytes: u64,
    /// Payload that its nodes sent, in bytes.
    pub sent_bytes: u64,
    /// Payload that came into it over its uplink, in bytes, by the ledgers of its nodes.
    #[serde(default)]
    pub entered_bytes: u64,
    /// Payload that left it over its uplink, in bytes.
    #[serde(default)]
    pub left_bytes: u64,
    /// Copies of the image that came into it; nothing where no node has told its ledger.
    #[serde(default)]
    pub entered_copies: Option<f64>,
}

/// Bytes from one rack to another, or within one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LinkReport {
    /// Where they came from; nothing for the controller and whoever else names no rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub from: Option<RackName>,
    /// Where they went; nothing for nodes that stand in no rack.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub to: Option<RackName>,
    /// Payload, in bytes, of use or not.
    pub bytes: u64,
}

/// What a node did, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeReport {
    /// All tries with their stages.
    #[serde(flatten)]
    pub run: Run,
    /// The stage that it stands in and for how long, where it is under way.
    pub present: Option<Passed>,
}

/// What a deployment came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Report {
    /// The deployment.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub deployment: DeploymentId,
    /// The image's name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: ImageName,
    /// The image's digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub digest: Digest,
    /// Whether it goes on.
    pub state: DeploymentState,
    /// When it was asked for, in milliseconds since the Unix epoch.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub created_at: Millis,
    /// When it ended.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub finished_at: Option<Millis>,
    /// How many nodes have each outcome, as a sentence.
    pub summary: String,
    /// Stages by time, in the order of a node's life.
    pub stages: Vec<StageTime>,
    /// Racks.
    pub racks: Vec<RackReport>,
    /// Nodes slower than twice the median of their rack in a stage.
    pub stragglers: Vec<Straggler>,
    /// Nodes that failed, and why.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub failures: BTreeMap<NodeName, String>,
    /// Tries beyond each node's first.
    pub retries: u32,
    /// Payload that all nodes received, in bytes, as their agents reported.
    pub received_bytes: u64,
    /// Payload that all nodes sent to others, in bytes.
    pub sent_bytes: u64,
    /// Bytes of the image that travel to a blank disk.
    #[serde(default)]
    pub image_bytes: u64,
    /// Bytes by link, as receivers told them.
    #[serde(default)]
    pub links: Vec<LinkReport>,
    /// What happened to it as a whole.
    pub log: Vec<Line>,
    /// Every node that has started.
    pub nodes: Vec<NodeReport>,
}

/// The report of a deployment from what its nodes did. `image_bytes` travel to a blank disk; `present` names the stage of each node that is under way.
#[must_use]
pub fn report(
    deployment: &Deployment,
    image_bytes: u64,
    runs: Vec<Run>,
    present: &BTreeMap<NodeName, Passed>,
) -> Report {
    let failures = deployment.outcomes.iter().filter_map(|(name, outcome)| match outcome {
        Outcome::Failed { reason } => Some((name.clone(), reason.clone())),
        _ => None,
    });
    let retries: usize = runs.iter().map(|run| run.tries.len().saturating_sub(1)).sum();
    let (received_bytes, sent_bytes) = bytes(runs.iter());
    Report {
        deployment: deployment.id,
        image: deployment.image.clone(),
        digest: deployment.digest,
        state: deployment.course.state,
        created_at: deployment.created_at,
        finished_at: deployment.course.finished_at,
        summary: deployment.summary(),
        stages: stage_times(&runs),
        racks: racks(&runs, image_bytes),
        stragglers: stragglers(&runs, present),
        failures: failures.collect(),
        retries: count(retries),
        received_bytes,
        sent_bytes,
        image_bytes,
        links: links(&runs),
        log: deployment.course.log.clone(),
        nodes: runs.into_iter().map(|run| NodeReport { present: present.get(&run.node).copied(), run }).collect(),
    }
}

/// What the stages took, each node's last try alone.
#[must_use]
pub fn stage_times(runs: &[Run]) -> Vec<StageTime> {
    let time = |stage: Stage| {
        let mut times: Vec<(u64, &NodeName)> =
            runs.iter().filter_map(|run| passed(run, stage).map(|took| (took, &run.node))).collect();
        times.sort();
        let (longest, slowest) = times.last().copied()?;
        Some(StageTime {
            stage,
            nodes: count(times.len()),
            median_milliseconds: times[(times.len() - 1) / 2].0,
            longest_milliseconds: longest,
            slowest: slowest.clone(),
        })
    };
    Stage::ALL.into_iter().filter_map(time).collect()
}

/// How long a node stood in a stage in its last try, where it has left it for the next one.
fn passed(run: &Run, stage: Stage) -> Option<u64> {
    let last = run.tries.last()?;
    let ended_here = last.reason.is_some().then(|| last.stages.last()).flatten();
    let left = last.stages.iter().filter(|passed| passed.stage == stage && Some(*passed) != ended_here);
    let times: Vec<u64> = left.map(|passed| passed.milliseconds).collect();
    (!times.is_empty()).then(|| times.iter().sum())
}

fn racks(runs: &[Run], image_bytes: u64) -> Vec<RackReport> {
    let mut by_rack: BTreeMap<Option<&RackName>, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        by_rack.entry(run.rack.as_ref()).or_default().push(run);
    }
    let of_rack = |(rack, runs): (Option<&RackName>, Vec<&Run>)| {
        let mut times: Vec<u64> = runs
            .iter()
            .filter_map(|run| match run.outcome {
                Outcome::Running { milliseconds } => Some(milliseconds),
                _ => None,
            })
            .collect();
        times.sort_unstable();
        let failed = runs.iter().filter(|run| matches!(run.outcome, Outcome::Failed { .. })).count();
        let (received_bytes, sent_bytes) = bytes(runs.iter().copied());
        let (entered_bytes, left_bytes) = rack.map_or((0, 0), |rack| over_uplink(rack, &runs));
        let is_told = rack.is_some() && image_bytes > 0 && runs.iter().any(|run| ledgers(run).next().is_some());
        RackReport {
            rack: rack.cloned(),
            nodes: count(runs.len()),
            running: count(times.len()),
            failed: count(failed),
            median_milliseconds: times.get(times.len().saturating_sub(1) / 2).copied(),
            received_bytes,
            sent_bytes,
            entered_bytes,
            left_bytes,
            entered_copies: is_told.then(|| entered_bytes as f64 / image_bytes as f64),
        }
    };
    by_rack.into_iter().map(of_rack).collect()
}

/// What the agents of a rack exchanged with everybody outside of it, in and out.
fn over_uplink(rack: &RackName, runs: &[&Run]) -> (u64, u64) {
    runs.iter().flat_map(|run| ledgers(run)).fold((0, 0), |(entered, left), ledger| {
        let outside = ledger.outside(rack);
        (outside.arrived().saturating_add(entered), outside.sent_bytes.saturating_add(left))
    })
}

fn links(runs: &[Run]) -> Vec<LinkReport> {
    let mut by_link: BTreeMap<(Option<&RackName>, Option<&RackName>), u64> = BTreeMap::new();
    for run in runs {
        for (from, bytes) in ledgers(run).flat_map(Ledger::arrivals) {
            let sum = by_link.entry((from, run.rack.as_ref())).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    let link = |((from, to), bytes): ((Option<&RackName>, Option<&RackName>), u64)| LinkReport {
        from: from.cloned(),
        to: to.cloned(),
        bytes,
    };
    by_link.into_iter().map(link).collect()
}

/// The ledgers of all tries that have one.
fn ledgers(run: &Run) -> impl Iterator<Item = &Ledger> {
    run.tries.iter().map(|one| &one.ledger).filter(|ledger| !ledger.is_empty())
}

fn stragglers(runs: &[Run], present: &BTreeMap<NodeName, Passed>) -> Vec<Straggler> {
    let mut found = Vec::new();
    let mut by_rack: BTreeMap<Option<&RackName>, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        by_rack.entry(run.rack.as_ref()).or_default().push(run);
    }
    for (rack, runs) in by_rack {
        for stage in Stage::ALL {
            let mut times: Vec<u64> = runs.iter().filter_map(|run| passed(run, stage)).collect();
            if times.len() < STRAGGLER_NODES {
                continue;
            }
            times.sort_unstable();
            let median = times[(times.len() - 1) / 2];
            for run in &runs {
                let now = present.get(&run.node).filter(|passed| passed.stage == stage);
                let took = now.map(|passed| passed.milliseconds).or_else(|| passed(run, stage));
                let Some(took) = took.filter(|took| *took > median * STRAGGLER && *took > median + STRAGGLER_LEAST)
                else {
                    continue;
                };
                found.push(Straggler {
                    node: run.node.clone(),
                    rack: rack.cloned(),
                    stage,
                    milliseconds: took,
                    median_milliseconds: median,
                    still: now.is_some(),
                });
            }
        }
    }
    found
}

fn bytes<'a>(runs: impl Iterator<Item = &'a Run>) -> (u64, u64) {
    let tries = runs.flat_map(|run| &run.tries);
    tries.fold((0, 0), |(received, sent), one| {
        (received.saturating_add(one.received_bytes), sent.saturating_add(one.sent_bytes))
    })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::deployment::ImageInfo;
    use crate::ids::Attempt;
    use crate::ledger::Traffic;
    use crate::rollout::{Group, Rollout, Wave, WaveKind};

    const START: Millis = Millis(1_000_000);

    fn run(index: usize, fetching: u64) -> Run {
        let name = format!("n{index}").parse().unwrap();
        let rack = Some("r1".parse().unwrap());
        let mut run = Run::begin(None, DeploymentId(1), &name, rack, Attempt(1), START);
        run.left(Stage::Leasing, 30_000);
        run.left(Stage::Fetching, fetching);
        run.moved(100, 60);
        run.outcome = Outcome::Running { milliseconds: 30_000 + fetching };
        run
    }

    fn deployment(nodes: usize) -> Deployment {
        let image = ImageInfo::sample("golden", Digest([7; 32]));
        let nodes = (0..nodes).map(|index| format!("n{index}").parse().unwrap()).collect();
        let wave = Wave { kind: WaveKind::Racks, groups: vec![Group { rack: None, nodes }] };
        Deployment::new(DeploymentId(1), &image, Rollout::default(), vec![wave], START)
    }

    #[test]
    fn stages_bytes_and_retries_add_up_and_a_failed_try_is_no_time_of_a_stage() {
        let mut runs: Vec<Run> = (0..4).map(|index| run(index, 10_000 + index as u64)).collect();
        runs[3].tries[0].reason = Some("a cable fell out".into());
        runs[3].try_again(Attempt(2), START.plus(50_000));
        runs[3].left(Stage::Leasing, 31_000);
        runs[3].left(Stage::Fetching, 500_000);
        runs[3].broke_off("it stalled");
        runs[3].outcome = Outcome::Failed { reason: "it stalled".into() };
        let mut deployment = deployment(4);
        deployment.outcomes.insert("n3".parse().unwrap(), runs[3].outcome.clone());
        let report = report(&deployment, 1000, runs, &BTreeMap::new());
        let times: Vec<_> =
            report.stages.iter().map(|time| (time.stage, time.nodes, time.median_milliseconds)).collect();
        assert_eq!(times, [(Stage::Leasing, 4, 30_000), (Stage::Fetching, 3, 10_001)]);
        assert_eq!(report.stages[0].slowest.as_str(), "n3");
        assert_eq!((report.retries, report.received_bytes, report.sent_bytes), (1, 400, 240));
        assert_eq!(report.failures.values().collect::<Vec<_>>(), ["it stalled"]);
        let rack = &report.racks[0];
        assert_eq!((rack.nodes, rack.running, rack.failed, rack.median_milliseconds), (4, 3, 1, Some(40_001)));
        assert!(report.stragglers.is_empty());
    }

    #[test]
    fn who_takes_twice_the_median_of_its_rack_is_named_also_while_it_does() {
        let mut runs: Vec<Run> = (0..5).map(|index| run(index, 20_000)).collect();
        runs[1] = run(1, 90_000);
        runs[2] = run(2, 39_000);
        runs[4].tries[0].stages.pop();
        let name: NodeName = "n4".parse().unwrap();
        let present = BTreeMap::from([(name.clone(), Passed { stage: Stage::Fetching, milliseconds: 41_000 })]);
        let found = report(&deployment(5), 1000, runs, &present).stragglers;
        let named: Vec<_> =
            found.iter().map(|one| (one.node.as_str(), one.stage, one.milliseconds, one.still)).collect();
        assert_eq!(named, [("n1", Stage::Fetching, 90_000, false), ("n4", Stage::Fetching, 41_000, true)]);
        assert_eq!(found[0].median_milliseconds, 20_000);
    }

    #[test]
    fn bytes_are_told_by_link_and_copies_by_uplink() {
        let rack = |name: &str| -> RackName { name.parse().unwrap() };
        let of = |received_bytes: u64, sent_bytes: u64| Traffic { received_bytes, sent_bytes, wasted_bytes: 0 };
        let mut runs: Vec<Run> = (0..3).map(|index| run(index, 10_000)).collect();
        // One brings it into the rack, a mate takes it from there, and the third has told nothing.
        let mut first = Ledger::default();
        first.add(None, &of(600, 0));
        first.add(Some(rack("r2")), &of(450, 200));
        first.add(Some(rack("r1")), &of(0, 1000));
        runs[0].booked(first);
        let mut second = Ledger::default();
        second.add(Some(rack("r1")), &of(1000, 0));
        runs[1].booked(second);
        let report = report(&deployment(3), 1000, runs, &BTreeMap::new());
        let entered = &report.racks[0];
        assert_eq!((entered.entered_bytes, entered.left_bytes, entered.entered_copies), (1050, 200, Some(1.05)));
        let told: Vec<_> =
            report.links.iter().map(|link| (link.from.as_ref().map(RackName::as_str), link.bytes)).collect();
        assert_eq!(told, [(None, 600), (Some("r1"), 1000), (Some("r2"), 450)]);
        assert!(report.links.iter().all(|link| link.to == Some(rack("r1"))));
        let silent = super::report(&deployment(1), 1000, vec![run(0, 10_000)], &BTreeMap::new());
        assert!(silent.links.is_empty() && silent.racks[0].entered_copies.is_none());
    }
}
