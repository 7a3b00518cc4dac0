//! Deployments as text.

use std::time::Duration;

use api::operator::{Counts, DeploymentView};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::RackName;
use fleet::rollout::{Canary, Order, Rollout, Window};

use crate::output::{self, Meaning, moment, or_dash, painted, span};

pub(super) fn started(deployment: &DeploymentView) -> String {
    let mut text = format!(
        "{0} puts {1} on {2}; follow it with: rackswarm deploy status {0} --watch",
        deployment.id,
        deployment.image,
        output::count(deployment.outcomes.len(), "node")
    );
    if let Some(why) = waits(deployment) {
        text.push_str(&format!("\n{why}"));
    }
    text
}

pub(super) fn paused(deployment: &DeploymentView, rack: Option<&RackName>) -> String {
    let of_rack = |rack: &RackName| deployment.racks.iter().find(|one| one.rack.as_ref() == Some(rack));
    let (what, counts) = match rack {
        Some(rack) => (format!("rack {rack} of {}", deployment.id), of_rack(rack).map(|one| one.counts)),
        None => (deployment.id.to_string(), Some(all(deployment))),
    };
    let Counts { under_way, waiting, .. } = counts.unwrap_or_default();
    format!(
        "{what} is paused; {}, {waiting} {} not started",
        match under_way {
            0 => "nothing is under way".to_owned(),
            1 => "1 node goes on to its end".to_owned(),
            more => format!("{more} nodes go on to their end"),
        },
        if waiting == 1 { "has" } else { "have" }
    )
}

pub(super) fn goes_on(deployment: &DeploymentView) -> String {
    let counts = all(deployment);
    let still = match (&deployment.waits_for, deployment.goes_on_at) {
        (Some(why), Some(at)) => format!("; waits for {why} (until {})", moment(at)),
        (Some(why), None) => format!("; waits for {why}"),
        (None, _) => String::new(),
    };
    format!(
        "{} goes on: {} to start, {} under way{still}",
        deployment.id,
        output::count(counts.waiting as usize, "node"),
        counts.under_way
    )
}

pub(super) fn list(deployments: &[DeploymentView]) -> String {
    let head = ["DEPLOYMENT", "IMAGE", "STATE", "NODES", "WAITING", "RUNNING", "FAILED", "SINCE", "TOOK"];
    let mut table = output::table(head);
    for deployment in deployments {
        let count =
            |wanted: fn(&Outcome) -> bool| deployment.outcomes.values().filter(|o| wanted(o)).count().to_string();
        let took = deployment.finished_at.map(|end| span(Duration::from_millis(end.since(deployment.created_at))));
        table.add_row([
            deployment.id.to_string(),
            deployment.image.to_string(),
            output::state(deployment).to_owned(),
            deployment.outcomes.len().to_string(),
            all(deployment).waiting.to_string(),
            count(|o| matches!(o, Outcome::Running { .. })),
            count(|o| matches!(o, Outcome::Failed { .. })),
            moment(deployment.created_at),
            or_dash(took),
        ]);
    }
    output::text_of(&table, "no deployments yet: `rackswarm deploy --help`")
}

pub(super) fn describe(deployment: &DeploymentView) -> String {
    let ended = match (deployment.state, deployment.finished_at) {
        (DeploymentState::Active, _) | (_, None) => String::new(),
        (_, Some(end)) => format!(", took {}", span(Duration::from_millis(end.since(deployment.created_at)))),
    };
    let mut parts = vec![format!(
        "{}: {} ({}), {}, since {}{ended}",
        deployment.id,
        deployment.image,
        deployment.digest,
        output::state(deployment),
        moment(deployment.created_at),
    )];
    if deployment.rollout != Rollout::default() {
        parts.push(format!("rollout: {}", settings(&deployment.rollout)));
    }
    parts.extend(waits(deployment));
    if deployment.racks.len() > 1 || deployment.racks.iter().any(|rack| rack.paused.is_some()) {
        parts.push(racks(deployment));
    }
    let mut table = output::table(["NODE", "OUTCOME", "NOTE"]);
    for (node, outcome) in &deployment.outcomes {
        let (word, note, meaning) = output::outcome(outcome);
        table.add_row([node.to_string().into(), painted(word, meaning), note.into()]);
    }
    parts.push(output::text_of(&table, "no nodes"));
    let lines: Vec<String> = deployment.log.iter().map(|line| format!("{}  {}", moment(line.at), line.text)).collect();
    if !lines.is_empty() {
        parts.push(lines.join("\n"));
    }
    parts.join("\n")
}

fn racks(deployment: &DeploymentView) -> String {
    let mut table = output::table(["RACK", "NODES", "WAITING", "UNDER WAY", "RUNNING", "FAILED", "NOTE"]);
    for rack in &deployment.racks {
        let counts = rack.counts;
        let numbers = [counts.nodes, counts.waiting, counts.under_way, counts.running, counts.failed];
        let mut row = vec![or_dash(rack.rack.as_ref()).into()];
        row.extend(numbers.map(comfy_table::Cell::new));
        row.push(match &rack.paused {
            Some(pause) => painted(format!("paused: {}", pause.reason), Meaning::Bad),
            None => "".into(),
        });
        table.add_row(row);
    }
    output::text_of(&table, "no racks")
}

/// What nodes that have not started wait for.
fn waits(deployment: &DeploymentView) -> Option<String> {
    let waiting = all(deployment).waiting;
    let why = deployment.waits_for.as_ref().filter(|_| waiting > 0)?;
    let until = deployment.goes_on_at.map(|at| format!(" (until {})", moment(at))).unwrap_or_default();
    let what = output::count(waiting as usize, "node");
    Some(match &deployment.paused {
        Some(pause) => format!(
            "{what} not started, because it is paused: {}\nrackswarm deploy resume {id}, retry {id} or cancel {id}",
            pause.reason,
            id = deployment.id
        ),
        None => format!("{what} not started; waits for {why}{until}"),
    })
}

/// How far all nodes are.
pub(super) fn all(deployment: &DeploymentView) -> Counts {
    deployment.racks.iter().fold(Counts::default(), |sum, rack| Counts {
        nodes: sum.nodes + rack.counts.nodes,
        waiting: sum.waiting + rack.counts.waiting,
        under_way: sum.under_way + rack.counts.under_way,
        running: sum.running + rack.counts.running,
        failed: sum.failed + rack.counts.failed,
        let_go: sum.let_go + rack.counts.let_go,
    })
}

/// What an operator said of it, in words.
pub(super) fn settings(rollout: &Rollout) -> String {
    let mut parts = vec![match rollout.order {
        Order::Lanes => "lanes".to_owned(),
        Order::Leaders => "leaders first".to_owned(),
    }];
    match &rollout.canary {
        None => {}
        Some(Canary::Count(count)) => {
            parts.push(output::count(*count as usize, "canary").replace("canarys", "canaries"))
        }
        Some(Canary::Nodes(names)) => {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            parts.push(format!("canary {}", names.join(", ")));
        }
    }
    if let Some(limit) = rollout.at_once {
        parts.push(format!("{limit} at once"));
    }
    if let Some(limit) = rollout.at_once_per_rack {
        parts.push(format!("{limit} at once per rack"));
    }
    if let Some(budget) = rollout.failure_budget {
        parts.push(format!("failure budget {budget}"));
    }
    if let Some(budget) = rollout.failure_budget_per_rack {
        parts.push(format!("failure budget per rack {budget}"));
    }
    parts.extend(rollout.windows.iter().map(window));
    parts.join("; ")
}

fn window(window: &Window) -> String {
    match window {
        Window::Once { from, until } => format!("from {} to {}", moment(*from), moment(*until)),
        daily @ Window::Daily { .. } => daily.to_string(),
    }
}
