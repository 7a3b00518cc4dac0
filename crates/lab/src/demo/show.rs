//! What is seen while the demo runs: bars on a terminal, lines everywhere else.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use api::operator::NodeView;
use fleet::life::Stage;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use power::qemu::Machine;

use super::stage_of;

/// Between two summary lines where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(15);

/// The show.
pub(super) struct Show {
    begin: Instant,
    bars: Option<MultiProgress>,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    bars: BTreeMap<String, ProgressBar>,
    summary: Option<ProgressBar>,
    said: BTreeMap<String, String>,
    summed_at: Option<Instant>,
}

/// A bar for bytes that go one way.
pub(super) struct Bytes {
    bar: ProgressBar,
}

impl Show {
    pub(super) fn new() -> Show {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4)));
        Show { begin: Instant::now(), bars, nodes: Mutex::default() }
    }

    /// Says that something begins or has happened.
    pub(super) fn step(&self, text: &str) {
        let line = format!("{:>4} s  {text}", self.begin.elapsed().as_secs());
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => println!("{line}"),
        }
    }

    pub(super) fn bytes(&self, text: &str, length: u64) -> Bytes {
        let bar = match &self.bars {
            Some(bars) => bars.add(ProgressBar::new(length)),
            None => ProgressBar::hidden(),
        };
        bar.set_style(style("{prefix:<28} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}"));
        bar.set_prefix(text.to_owned());
        Bytes { bar }
    }

    pub(super) fn begin_nodes(&self, machines: &[Machine]) {
        let Some(bars) = &self.bars else { return };
        let mut nodes = self.lock();
        for machine in machines {
            let bar = bars.add(ProgressBar::new(100));
            bar.set_style(style("{prefix:<20} {bar:30} {msg}"));
            bar.set_prefix(format!("{} {}", machine.name, machine.firmware));
            nodes.bars.insert(machine.name.clone(), bar);
        }
        let summary = bars.add(ProgressBar::new(0));
        summary.set_style(style("{msg}"));
        nodes.summary = Some(summary);
    }

    /// Draws the nodes; `egress` is what the server has sent, in images.
    pub(super) fn nodes(&self, nodes: &[NodeView], egress: f64) {
        let mut state = self.lock();
        for node in nodes {
            let name = node.name.as_str();
            match state.bars.get(name) {
                Some(bar) => {
                    bar.set_position(percent(node));
                    bar.set_message(words(node));
                }
                None => self.line(&mut state.said, node),
            }
        }
        let summary = sum(nodes, egress, self.begin.elapsed());
        match &state.summary {
            Some(bar) => bar.set_message(summary),
            None if state.summed_at.is_none_or(|at| at.elapsed() >= LINE_PAUSE) => {
                state.summed_at = Some(Instant::now());
                println!("{summary}");
            }
            None => {}
        }
    }

    /// One line per change of a node's stage.
    fn line(&self, said: &mut BTreeMap<String, String>, node: &NodeView) {
        let now = stage_of(node);
        if said.get(node.name.as_str()) != Some(&now) {
            let reason =
                node.reason.as_ref().filter(|_| node.stage == Stage::Failed || node.stage == Stage::PoweringOn);
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            println!("{:>4} s  {} {now}{reason}", self.begin.elapsed().as_secs(), node.name);
            said.insert(node.name.to_string(), now);
        }
    }

    /// Leaves the terminal as it should be.
    pub(super) fn end(&self) {
        let nodes = self.lock();
        for bar in nodes.bars.values().chain(&nodes.summary) {
            bar.abandon();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Bytes {
    pub(super) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// How far a node has come, as a share of its whole way: seconds per stage of a machine under emulation, roughly.
fn percent(node: &NodeView) -> u64 {
    let fetched = node.progress.map_or(0.0, |progress| progress.done_bytes as f64 / progress.total_bytes.max(1) as f64);
    match node.stage {
        Stage::Enrolled => 0,
        Stage::PoweringOn => 2,
        Stage::Leasing => 4,
        Stage::LoadingBootloader => 8,
        Stage::LoadingKernel => 14,
        Stage::AgentUp => 24,
        Stage::Capturing | Stage::Wiping | Stage::Fetching => 26 + (34.0 * fetched) as u64,
        Stage::PostActions => 62,
        Stage::Rebooting => 72,
        Stage::Running | Stage::Failed => 100,
    }
}

fn words(node: &NodeView) -> String {
    let mut text = stage_of(node);
    if let (Stage::Fetching, Some(progress)) = (node.stage, &node.progress) {
        text.push_str(&format!(
            " {}%, {:.1} MB/s in, {:.1} MB/s out, {} peers",
            progress.done_bytes * 100 / progress.total_bytes.max(1),
            progress.down_bytes_per_second as f64 / 1e6,
            progress.up_bytes_per_second as f64 / 1e6,
            progress.peers
        ));
    } else if let (true, Some(reason)) = (node.stage == Stage::Failed, &node.reason) {
        text.push_str(&format!(": {reason}"));
    }
    text
}

fn sum(nodes: &[NodeView], egress: f64, elapsed: Duration) -> String {
    let count = |test: fn(&Stage) -> bool| nodes.iter().filter(|node| test(&node.stage)).count();
    let (running, failed) = (count(|stage| *stage == Stage::Running), count(|stage| *stage == Stage::Failed));
    let rate: u64 = nodes
        .iter()
        .filter(|node| node.stage == Stage::Fetching)
        .filter_map(|node| node.progress)
        .map(|p| p.down_bytes_per_second)
        .sum();
    format!(
        "{:>4} s  {running} of {} running, {failed} failed; {:.1} MB/s arrive; the server has sent {egress:.2} images",
        elapsed.as_secs(),
        nodes.len(),
        rate as f64 / 1e6
    )
}
