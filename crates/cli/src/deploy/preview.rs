//! `rackswarm deploy --dry-run`: what would happen, how long it takes, and what would be lost.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use fleet::life::Stage;
use fleet::preview::{DiskPreview, NodePreview, Preview};
use fleet::rollout::Wave;
use serde::Serialize;
use sim::plan::{Question, plan};
use sim::units::{Rate, Span};

use super::show::settings;
use crate::output::{self, Meaning, bytes, count, moment, painted, say, span};

/// What the prediction is made for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Dry run")]
pub(super) struct Links {
    /// A node's link, each way, for the prediction
    #[arg(long, value_name = "RATE", default_value = "1Gbit", requires = "dry_run")]
    rate: Rate,
    /// The controller's link [default: as the nodes']
    #[arg(long, value_name = "RATE", requires = "dry_run")]
    seed_rate: Option<Rate>,
    /// A rack's uplink, each way [default: no limit]
    #[arg(long, value_name = "RATE", requires = "dry_run")]
    uplink: Option<Rate>,
    /// What a node's disk writes, such as 500MB/s [default: no limit]
    #[arg(long, value_name = "RATE", requires = "dry_run")]
    disk: Option<Rate>,
    /// All that a node does but fetching: firmware, kernel, post actions, reboot
    /// [default: as the last deployment took, else 180s]
    #[arg(long, value_name = "TIME", requires = "dry_run")]
    boot: Option<Span>,
}

/// Firmware, kernel, post actions and reboot where nothing was measured, in seconds. A guess for a server.
const BOOT_SECONDS: f64 = 180.0;

/// How long it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Prediction {
    /// The transfer to all nodes at once cannot be faster, in seconds.
    bound_seconds: f64,
    /// What limits it.
    limited_by: &'static str,
    /// All that a node does but fetching, in seconds.
    boot_seconds: f64,
    /// Each wave, in seconds.
    wave_seconds: Vec<f64>,
    /// From the first start to the last proof, in seconds.
    predicted_seconds: f64,
}

/// Everything that `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    preview: &'a Preview,
    prediction: &'a Prediction,
}

/// Prints it. The exit status says whether the deployment would be taken.
pub(super) fn show(json: bool, seen: &Preview, links: &Links) -> Result<ExitCode> {
    let prediction = predict(seen, links);
    if json {
        let answer = Answer { preview: seen, prediction: &prediction };
        say(serde_json::to_string_pretty(&answer).context("cannot write JSON")?)?;
    } else {
        say(text(seen, links, &prediction))?;
    }
    let is_refused = seen.nodes.values().any(|node| node.refused.is_some());
    Ok(if is_refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn predict(seen: &Preview, links: &Links) -> Prediction {
    let boot_seconds = links.boot.map(|boot| boot.0 as f64 / 1e9).or_else(|| measured(seen)).unwrap_or(BOOT_SECONDS);
    let racks: BTreeSet<_> = seen.nodes.values().map(|node| &node.rack).collect();
    let whole = plan(&question(seen, links, seen.nodes.len(), racks.len()));
    let wave_seconds: Vec<f64> = seen.waves.iter().map(|wave| of_wave(seen, links, wave, boot_seconds)).collect();
    Prediction {
        bound_seconds: whole.bound,
        limited_by: whole.limited_by,
        boot_seconds,
        predicted_seconds: wave_seconds.iter().sum(),
        wave_seconds,
    }
}

/// Rounds of as many nodes as may be under way at once, each started at the rate that is allowed.
fn of_wave(seen: &Preview, links: &Links, wave: &Wave, boot_seconds: f64) -> f64 {
    let nodes = wave.nodes().count();
    let largest = wave.groups.iter().map(|group| group.nodes.len()).max().unwrap_or(0);
    let racks = wave.groups.len().max(1);
    let in_all = seen.rollout.at_once.map_or(nodes, |limit| (limit as usize).min(nodes)).max(1);
    let per_rack = seen.rollout.at_once_per_rack.map_or(largest, |limit| (limit as usize).min(largest)).max(1);
    let rounds = nodes.div_ceil(in_all).max(largest.div_ceil(per_rack));
    let at_once = in_all.min(per_rack * racks);
    let rate = f64::from(seen.starts_per_second).min(f64::from(seen.starts_per_second_per_rack) * racks as f64);
    let transfer = plan(&question(seen, links, at_once, racks.min(at_once))).predicted;
    rounds as f64 * ((at_once - 1) as f64 / rate.max(1.0) + boot_seconds + transfer)
}

fn question(seen: &Preview, links: &Links, nodes: usize, racks: usize) -> Question {
    let count = |number: usize| u32::try_from(number.max(1)).unwrap_or(u32::MAX);
    let bytes = seen.used_bytes.max(1);
    Question {
        racks: count(racks),
        seed_rate: links.seed_rate.map(|rate| rate.0.max(1)),
        uplink: links.uplink.map(|rate| rate.0.max(1)).filter(|_| racks > 1),
        disk: links.disk.map(|rate| rate.0.max(1)),
        ..Question::new(count(nodes), bytes, u64::from(seen.piece_size).clamp(1, bytes), links.rate.0.max(1))
    }
}

/// All stages but fetching, as the last deployment took them; nothing where it took none of them.
fn measured(seen: &Preview) -> Option<f64> {
    let stages = seen.measured.iter().filter(|time| time.stage != Stage::Fetching);
    let milliseconds: u64 = stages.map(|time| time.median_milliseconds).sum();
    (milliseconds > 0).then_some(milliseconds as f64 / 1e3)
}

fn text(seen: &Preview, links: &Links, prediction: &Prediction) -> String {
    let time = |seconds: f64| span(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    let mut parts = vec![
        format!(
            "This is what would happen; nothing is changed.\n{} ({}, {} of it travel) onto {}; {}",
            seen.image,
            bytes(seen.size_bytes),
            bytes(seen.used_bytes),
            count(seen.nodes.len(), "node"),
            settings(&seen.rollout)
        ),
        waves(seen, prediction),
    ];
    if let Some(at) = seen.opens_at {
        parts.push(format!("the first node starts at {}, when its maintenance window opens", moment(at)));
    }
    let whence = match (links.boot.is_some(), measured(seen).is_some()) {
        (true, _) => "as you say",
        (false, true) => "as the last deployment took",
        (false, false) => "assumed; say --boot",
    };
    parts.push(format!(
        "bound {}: nobody brings it to all of them faster ({}, links of {}bit/s)\n\
         predicted {}: with {} for all that is not fetching ({whence})",
        time(prediction.bound_seconds),
        prediction.limited_by,
        si(links.rate.0),
        time(prediction.predicted_seconds),
        time(prediction.boot_seconds),
    ));
    parts.push(disks(seen));
    let refused = seen.nodes.values().filter(|node| node.refused.is_some()).count();
    if refused > 0 {
        parts.push(format!("{} would be refused, and with it the whole deployment", count(refused, "node")));
    }
    parts.join("\n")
}

fn waves(seen: &Preview, prediction: &Prediction) -> String {
    let mut table = output::table(["WAVE", "NODES", "RACKS", "PREDICTED", "WHO"]);
    for (wave, seconds) in seen.waves.iter().zip(&prediction.wave_seconds) {
        let names: Vec<&str> = wave.nodes().map(|(_, name)| name.as_str()).collect();
        let shown = names.iter().take(6).copied().collect::<Vec<_>>().join(", ");
        table.add_row([
            wave.kind.as_str().to_owned(),
            names.len().to_string(),
            wave.groups.len().to_string(),
            span(Duration::from_secs_f64(seconds.clamp(0.0, 1e9))),
            if names.len() > 6 { format!("{shown} and {} more", names.len() - 6) } else { shown },
        ]);
    }
    output::text_of(&table, "no waves")
}

fn disks(seen: &Preview) -> String {
    let mut table = output::table(["NODE", "RACK", "WOULD BE WRITTEN", "WOULD BE LOST"]);
    for (name, node) in &seen.nodes {
        let (disk, lost, meaning) = of_disk(node);
        let rack = output::or_dash(node.rack.as_ref());
        table.add_row([name.to_string().into(), rack.into(), painted(disk, meaning), lost.into()]);
    }
    output::text_of(&table, "no nodes")
}

fn of_disk(node: &NodePreview) -> (String, String, Meaning) {
    let runs = node.runs.iter().map(|image| format!("the system that runs: {image}"));
    match (&node.refused, &node.disk) {
        (Some(why), _) => ("nothing".to_owned(), format!("refused: {why}"), Meaning::Bad),
        (None, DiskPreview::Written { disk, contents, told_at }) => {
            let held: Vec<String> = contents.iter().cloned().chain(runs).collect();
            let held = if held.is_empty() { "nothing; it was blank".to_owned() } else { held.join("; ") };
            (disk.clone(), format!("{held} (seen {})", moment(*told_at)), Meaning::Plain)
        }
        (None, DiskPreview::Refused { reason }) => {
            ("nothing".to_owned(), format!("it would fail: {reason}"), Meaning::Bad)
        }
        (None, DiskPreview::Unknown { rule }) => {
            let lost: Vec<String> =
                std::iter::once("not known; it has never told of its disks".to_owned()).chain(runs).collect();
            (rule.clone(), lost.join("; "), Meaning::Busy)
        }
    }
}

/// A number with its prefix, as in `1 G`.
fn si(number: u64) -> String {
    let (divisor, prefix) = match number {
        1_000_000_000.. => (1e9, "G"),
        1_000_000.. => (1e6, "M"),
        _ => (1e3, "k"),
    };
    format!("{} {prefix}", (number as f64 / divisor * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fleet::ids::Digest;
    use fleet::rollout::{Rollout, waves};

    use super::*;

    fn preview(nodes: usize, rollout: Rollout) -> Preview {
        let name = |index: usize| format!("n{index}").parse().unwrap();
        let rack = |index: usize| Some(format!("r{}", index % 2).parse().unwrap());
        let racks = (0..nodes).map(|index| (name(index), rack(index))).collect();
        Preview {
            image: "debian".parse().unwrap(),
            digest: Digest([1; 32]),
            size_bytes: 4 << 30,
            used_bytes: 1 << 30,
            piece_size: 1 << 20,
            waves: waves(&rollout, &racks).unwrap(),
            rollout,
            nodes: racks
                .into_iter()
                .map(|(name, rack)| {
                    let disk = DiskPreview::Unknown { rule: "the only disk".into() };
                    (name, NodePreview { rack, refused: None, runs: None, disk })
                })
                .collect(),
            opens_at: None,
            starts_per_second: 20,
            starts_per_second_per_rack: 5,
            measured: Vec::new(),
        }
    }

    fn links() -> Links {
        Links {
            rate: Rate(1_000_000_000),
            seed_rate: None,
            uplink: None,
            disk: None,
            boot: Some(Span(100_000_000_000)),
        }
    }

    #[test]
    fn more_rounds_and_more_waves_take_longer_and_nothing_is_faster_than_the_bound() {
        let all = predict(&preview(40, Rollout::default()), &links());
        assert!(all.predicted_seconds > all.bound_seconds + 100.0 && all.predicted_seconds < 140.0, "{all:?}");
        let four = predict(&preview(40, Rollout { at_once: Some(10), ..Rollout::default() }), &links());
        assert!(four.predicted_seconds > 3.8 * all.predicted_seconds, "{four:?}");
        let per_rack = predict(&preview(40, Rollout { at_once_per_rack: Some(5), ..Rollout::default() }), &links());
        assert!((per_rack.predicted_seconds / four.predicted_seconds - 1.0).abs() < 0.05, "{per_rack:?}");
        let canary = Rollout { canary: Some(fleet::rollout::Canary::Count(2)), ..Rollout::default() };
        let two = predict(&preview(40, canary), &links());
        assert_eq!(two.wave_seconds.len(), 2);
        assert!(two.predicted_seconds > 1.8 * all.predicted_seconds, "{two:?}");
    }

    #[test]
    fn what_would_be_lost_is_said_or_that_it_is_not_known() {
        let mut seen = preview(2, Rollout::default());
        let told = DiskPreview::Written {
            disk: "/dev/sda (480 GiB)".into(),
            contents: vec!["ext4 `data`".into()],
            told_at: fleet::ids::Millis(0),
        };
        seen.nodes.get_mut(&"n0".parse().unwrap()).unwrap().disk = told;
        let text = text(&seen, &links(), &predict(&seen, &links()));
        for part in ["nothing is changed", "/dev/sda (480 GiB)", "ext4 `data`", "never told of its disks", "as you say"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
