//! `rackswarm deploy report`: what a deployment came to.

use std::time::Duration;

use fleet::report::{NodeReport, Report};

use crate::output::{self, bytes, moment, or_dash, painted, span};

pub(super) fn text(report: &Report, nodes: bool) -> String {
    let took =
        report.finished_at.map(|end| format!(", took {}", time(end.since(report.created_at)))).unwrap_or_default();
    let mut parts = vec![
        format!(
            "{}: {} ({}), since {}{took}",
            report.deployment,
            report.image,
            report.digest,
            moment(report.created_at)
        ),
        report.summary.clone(),
        moved(report),
        stages(report),
        racks(report),
    ];
    if !report.stragglers.is_empty() {
        parts.push(stragglers(report));
    }
    if !report.failures.is_empty() {
        let lines: Vec<String> = report.failures.iter().map(|(node, why)| format!("{node} failed: {why}")).collect();
        parts.push(lines.join("\n"));
    }
    if nodes {
        parts.push(every_node(report));
    }
    let log: Vec<String> = report.log.iter().map(|line| format!("{}  {}", moment(line.at), line.text)).collect();
    parts.push(log.join("\n"));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn moved(report: &Report) -> String {
    let from_seeds = report.received_bytes.saturating_sub(report.sent_bytes);
    let retries = match report.retries {
        0 => "no retries".to_owned(),
        1 => "1 retry".to_owned(),
        more => format!("{more} retries"),
    };
    format!(
        "{} received by the nodes, {} of it from each other, {} from the controller and other seeds; {retries}",
        bytes(report.received_bytes),
        bytes(report.sent_bytes.min(report.received_bytes)),
        bytes(from_seeds)
    )
}

fn stages(report: &Report) -> String {
    let mut table = output::table(["STAGE", "NODES", "MEDIAN", "LONGEST", "SLOWEST"]);
    for stage in &report.stages {
        table.add_row([
            stage.stage.to_string(),
            stage.nodes.to_string(),
            time(stage.median_milliseconds),
            time(stage.longest_milliseconds),
            stage.slowest.to_string(),
        ]);
    }
    output::text_of(&table, "no node has passed a stage yet")
}

fn racks(report: &Report) -> String {
    let columns = ["RACK", "NODES", "RUNNING", "FAILED", "MEDIAN", "RECEIVED", "SENT", "UPLINK IN", "OUT", "COPIES IN"];
    let mut table = output::table(columns);
    for rack in &report.racks {
        table.add_row([
            or_dash(rack.rack.as_ref()),
            rack.nodes.to_string(),
            rack.running.to_string(),
            rack.failed.to_string(),
            or_dash(rack.median_milliseconds.map(time)),
            bytes(rack.received_bytes),
            bytes(rack.sent_bytes),
            or_dash(rack.entered_copies.map(|_| bytes(rack.entered_bytes))),
            or_dash(rack.entered_copies.map(|_| bytes(rack.left_bytes))),
            or_dash(rack.entered_copies.map(|copies| format!("{copies:.3}"))),
        ]);
    }
    output::text_of(&table, "no node has started yet")
}

fn stragglers(report: &Report) -> String {
    let lines = report.stragglers.iter().map(|one| {
        let rack = one.rack.as_ref().map(|rack| format!(" of rack {rack}")).unwrap_or_default();
        format!(
            "straggler {}{rack}: {} {} for {}, the median is {}",
            one.node,
            if one.still { "has stood in" } else { "took" },
            if one.still { one.stage.to_string() } else { time(one.milliseconds) },
            if one.still { time(one.milliseconds) } else { one.stage.to_string() },
            time(one.median_milliseconds)
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn every_node(report: &Report) -> String {
    let mut table = output::table(["NODE", "RACK", "OUTCOME", "TRIES", "RECEIVED", "SENT", "STAGES OF THE LAST TRY"]);
    for NodeReport { run, present } in &report.nodes {
        let (word, _, meaning) = output::outcome(&run.outcome);
        let last = run.tries.last();
        let passed = last.map(|last| &last.stages[..]).unwrap_or_default().iter();
        let mut stages: Vec<String> = passed.map(|p| format!("{} {}", p.stage, time(p.milliseconds))).collect();
        stages.extend(present.iter().map(|p| format!("{} so far {}", p.stage, time(p.milliseconds))));
        table.add_row([
            run.node.to_string().into(),
            or_dash(run.rack.as_ref()).into(),
            painted(word, meaning),
            run.tries.len().to_string().into(),
            bytes(run.tries.iter().map(|one| one.received_bytes).sum()).into(),
            bytes(run.tries.iter().map(|one| one.sent_bytes).sum()).into(),
            stages.join(", ").into(),
        ]);
    }
    output::text_of(&table, "no node has started yet")
}

fn time(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        _ => span(Duration::from_millis(milliseconds)),
    }
}
