//! How a watched deployment is shown: a bar for each node for a person, plain lines for a log.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fleet::ids::NodeName;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::board::{Board, Row};
use crate::output::{count, moment, now, say, span};

/// How often a log gets a line of summary while nothing else happens.
const SUMMARY_EVERY: Duration = Duration::from_secs(15);
/// More bars than this do not fit a screen; then only the summary moves, and news are lines above it.
const BARS_MAX: usize = 32;

pub(super) struct Screen {
    kind: Kind,
    start: Instant,
    lost: bool,
}

enum Kind {
    Bars { all: MultiProgress, nodes: BTreeMap<NodeName, ProgressBar>, summary: ProgressBar },
    Lines { last_summary: Instant },
}

impl Screen {
    pub(super) fn new(board: &Board) -> Result<Self> {
        let deployment = board.deployment();
        say(format_args!("{}: {} onto {}", deployment.id, deployment.image, count(deployment.outcomes.len(), "node")))?;
        let kind = if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
            bars(board)?
        } else {
            Kind::Lines { last_summary: Instant::now() }
        };
        Ok(Self { kind, start: Instant::now(), lost: false })
    }

    /// Something happened that a log should keep.
    pub(super) fn tell(&mut self, news: &str) {
        match &self.kind {
            // The bars show it.
            Kind::Bars { nodes, .. } if !nodes.is_empty() => {}
            Kind::Bars { all, .. } => drop(all.println(news)),
            Kind::Lines { .. } => line(news),
        }
    }

    /// The controller does not answer.
    pub(super) fn lost(&mut self, why: &str) {
        if !self.lost {
            self.lost = true;
            self.note(&format!("{why}; trying again"));
        }
    }

    /// The controller answers.
    pub(super) fn found(&mut self) {
        if self.lost {
            self.lost = false;
            self.note("the controller answers again");
        }
    }

    fn note(&self, text: &str) {
        match &self.kind {
            Kind::Bars { all, .. } => drop(all.println(text)),
            Kind::Lines { .. } => line(text),
        }
    }

    pub(super) fn draw(&mut self, board: &Board) {
        let text = format!("{}, {}", board.summary(), span(self.start.elapsed()));
        match &mut self.kind {
            Kind::Bars { nodes, summary, .. } => {
                for row in board.rows() {
                    if let Some(bar) = nodes.get(&row.node) {
                        draw_row(bar, &row);
                    }
                }
                summary.set_message(text);
            }
            Kind::Lines { last_summary } => {
                if last_summary.elapsed() > SUMMARY_EVERY {
                    *last_summary = Instant::now();
                    line(&text);
                }
            }
        }
    }

    /// Leaves what was drawn last on the screen.
    pub(super) fn finish(&self) {
        if let Kind::Bars { nodes, summary, .. } = &self.kind {
            nodes.values().for_each(ProgressBar::abandon);
            summary.abandon();
        }
    }
}

fn bars(board: &Board) -> Result<Kind> {
    let all = MultiProgress::new();
    let style =
        ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}").context("template")?.progress_chars("=> ");
    let rows = board.rows();
    let width = rows.iter().map(|row| row.node.as_str().len()).max().unwrap_or(0);
    let mut nodes = BTreeMap::new();
    if rows.len() <= BARS_MAX {
        for row in &rows {
            let bar = all.add(
                ProgressBar::new(1).with_style(style.clone()).with_prefix(format!("{:width$}", row.node.as_str())),
            );
            draw_row(&bar, row);
            nodes.insert(row.node.clone(), bar);
        }
    }
    let summary =
        all.add(ProgressBar::new(1).with_style(ProgressStyle::with_template("{wide_msg}").context("template")?));
    Ok(Kind::Bars { all, nodes, summary })
}

fn draw_row(bar: &ProgressBar, row: &Row) {
    bar.set_length(row.done.1);
    bar.set_position(row.done.0);
    bar.set_message(row.text.clone());
}

/// A line of a log. A reader who has gone is noticed at the end.
fn line(text: &str) {
    let _ = say(format_args!("{}  {text}", moment(now())));
}

/// The outcome in words and as exit status.
pub(super) fn result(board: &Board) -> Result<ExitCode> {
    let deployment = board.deployment();
    let took =
        deployment.finished_at.map_or(Duration::ZERO, |end| Duration::from_millis(end.since(deployment.created_at)));
    let losses = board.losses();
    if losses.is_empty() {
        let nodes = match deployment.outcomes.len() {
            1 => "its node runs it and has".to_owned(),
            several => format!("all {several} nodes run it and have"),
        };
        say(format_args!("{}: {}: {nodes} proved it, after {}", deployment.id, deployment.image, span(took)))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!("{}: {} after {}", deployment.id, board.summary(), span(took)))?;
    for (node, reason) in losses {
        eprintln!("rackswarm: {node}: {reason}");
    }
    eprintln!("rackswarm: what happened to a node: rackswarm node timeline NODE");
    Ok(ExitCode::FAILURE)
}
