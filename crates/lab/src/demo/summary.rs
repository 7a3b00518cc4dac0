//! What the demo says at the end, as a table and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use api::operator::{DeploymentView, ImageView, NodeView, Status, TimelineLine};
use comfy_table::{CellAlignment, Table, presets};
use fleet::deployment::Outcome;
use fleet::life::Stage;
use power::qemu::Machine;
use serde::Serialize;

use crate::check::Report;

/// The stages in which a node spends time, with the table's words for them.
const COLUMNS: [(Stage, &str); 8] = [
    (Stage::PoweringOn, "power"),
    (Stage::Leasing, "lease"),
    (Stage::LoadingBootloader, "loader"),
    (Stage::LoadingKernel, "kernel"),
    (Stage::AgentUp, "agent"),
    (Stage::Fetching, "fetch"),
    (Stage::PostActions, "post"),
    (Stage::Rebooting, "reboot"),
];

/// The result of a demo.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    image_digest: String,
    image_size_bytes: u64,
    image_used_bytes: u64,
    import_seconds: f64,
    deployment: String,
    deployment_seconds: Option<f64>,
    server_sent_bytes: u64,
    server_sent_images: f64,
    server_resident_peak_bytes: Option<u64>,
    server_version: String,
    host_cores: usize,
    pub(super) nodes: Vec<NodeSummary>,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeSummary {
    pub(super) name: String,
    firmware: String,
    pub(super) is_running: bool,
    pub(super) reason: Option<String>,
    attempts: u32,
    stage_seconds: BTreeMap<&'static str, f64>,
    seconds: Option<f64>,
    received_bytes: u64,
    sent_bytes: u64,
    qemu_resident_peak_bytes: u64,
    check: Option<Report>,
}

impl Summary {
    pub(super) fn new(
        image: &ImageView,
        deployment: &DeploymentView,
        status: &Status,
        import_seconds: f64,
        server_resident_peak_bytes: Option<u64>,
    ) -> Summary {
        let sent: u64 = status.seeded_bytes.values().sum();
        Summary {
            image_digest: image.digest.to_string(),
            image_size_bytes: image.size_bytes,
            image_used_bytes: image.used_bytes,
            import_seconds,
            deployment: deployment.id.to_string(),
            deployment_seconds: deployment
                .finished_at
                .map(|end| (end.0.saturating_sub(deployment.created_at.0)) as f64 / 1e3),
            server_sent_bytes: sent,
            server_sent_images: sent as f64 / image.used_bytes.max(1) as f64,
            server_resident_peak_bytes,
            server_version: status.version.clone(),
            host_cores: std::thread::available_parallelism().map_or(0, usize::from),
            nodes: Vec::new(),
        }
    }

    pub(super) fn all_running(&self) -> bool {
        self.nodes.iter().all(|node| node.is_running)
    }

    pub(super) fn put_reports(&mut self, reports: Vec<(String, Report)>) {
        for (name, report) in reports {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) {
                node.check = Some(report);
            }
        }
    }

    /// Success only when every node runs and every disk was compared and is right.
    pub(super) fn verdict(&self) -> Result<()> {
        let wrong: Vec<String> = self.nodes.iter().filter_map(NodeSummary::complaint).collect();
        if !wrong.is_empty() || self.nodes.is_empty() {
            bail!(
                "the demo failed: {}",
                if wrong.is_empty() { "there were no nodes".to_owned() } else { wrong.join("; ") }
            );
        }
        Ok(())
    }

    pub(super) fn text(&self, whole: Duration) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let running = self.nodes.iter().filter(|node| node.is_running).count();
        let mut lines = vec![String::new(), "Seconds per stage:".to_owned(), self.table().to_string(), String::new()];
        lines.push(format!("{running} of {} nodes run and have proved image {}.", self.nodes.len(), self.image_digest));
        lines.push(format!(
            "Deployment {}: {} s. Image: {} MiB on the disk, {} MiB of them travel. The server sent {:.2} images{}.",
            self.deployment,
            self.deployment_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.0}")),
            mib(self.image_size_bytes),
            mib(self.image_used_bytes),
            self.server_sent_images,
            self.server_resident_peak_bytes
                .map_or(String::new(), |bytes| format!(" and had {} MiB of memory at most", mib(bytes)))
        ));
        for node in &self.nodes {
            let line = node.check.as_ref().map_or("its disk was not compared".to_owned(), report_line);
            lines.push(format!("{}: {line}", node.name));
        }
        lines.push(format!("All in {} s. Nothing is left running.", whole.as_secs()));
        lines.push(String::new());
        lines.push("Where to look next:".to_owned());
        lines.push(
            "  rackswarm serve --print-config    the server's configuration, every default with its meaning".to_owned(),
        );
        lines.push("  rackswarm doctor                  what this machine lacks to serve a real network".to_owned());
        lines.push(
            "  rackswarm node timeline NODE      what happened to a node, sentence by sentence, while a server runs"
                .to_owned(),
        );
        lines.push("  rackswarm openapi                 the HTTP interface; a server has it at /api/v1".to_owned());
        lines.join("\n")
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let stages = COLUMNS.iter().map(|(_, word)| (*word).to_owned());
        let fixed = |words: [&str; 3]| words.map(str::to_owned);
        table.set_header(
            fixed(["node", "firmware", "tries"]).into_iter().chain(stages).chain(fixed(["all", "MiB in", "MiB out"])),
        );
        for node in &self.nodes {
            let stages = COLUMNS.iter().map(|(stage, _)| seconds(node.stage_seconds.get(stage.as_str()).copied()));
            let head = [node.name.clone(), node.firmware.clone(), node.attempts.to_string()];
            let all = if node.is_running { seconds(node.seconds) } else { "failed".to_owned() };
            let tail = [all, (node.received_bytes >> 20).to_string(), (node.sent_bytes >> 20).to_string()];
            table.add_row(head.into_iter().chain(stages).chain(tail));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl NodeSummary {
    pub(super) fn new(
        machine: &Machine,
        node: &NodeView,
        timeline: &[TimelineLine],
        outcome: &Outcome,
        peak: u64,
    ) -> NodeSummary {
        let progress = node.progress.unwrap_or_default();
        NodeSummary {
            name: machine.name.clone(),
            firmware: machine.firmware.to_string(),
            is_running: matches!(outcome, Outcome::Running { .. }) && node.stage == Stage::Running,
            reason: node.reason.clone(),
            attempts: node.tries,
            stage_seconds: stage_seconds(timeline),
            seconds: match outcome {
                Outcome::Running { milliseconds } => Some(*milliseconds as f64 / 1e3),
                _ => None,
            },
            received_bytes: progress.received_bytes,
            sent_bytes: progress.sent_bytes,
            qemu_resident_peak_bytes: peak,
            check: None,
        }
    }

    /// What is wrong with this node, if anything is.
    fn complaint(&self) -> Option<String> {
        if !self.is_running {
            return Some(format!(
                "{} does not run ({})",
                self.name,
                self.reason.as_deref().unwrap_or("no reason known")
            ));
        }
        match &self.check {
            None => Some(format!("the disk of {} was not compared", self.name)),
            Some(report) => report.verdict().err().map(|error| format!("{}: {error}", self.name)),
        }
    }
}

/// Seconds in each stage, over all attempts: a stage lasts until a line of the timeline names another.
fn stage_seconds(timeline: &[TimelineLine]) -> BTreeMap<&'static str, f64> {
    let mut sums = BTreeMap::new();
    let mut since: Option<(Stage, u64)> = None;
    for line in timeline {
        match since {
            Some((stage, _)) if stage == line.stage => {}
            Some((stage, at)) => {
                if stage.is_under_way() {
                    *sums.entry(stage.as_str()).or_insert(0.0) += line.at.0.saturating_sub(at) as f64 / 1e3;
                }
                since = Some((line.stage, line.at.0));
            }
            None => since = Some((line.stage, line.at.0)),
        }
    }
    sums
}

/// A comparison in one line.
pub(super) fn report_line(report: &Report) -> String {
    format!(
        "{} files, {} folders and links and {} partitions compared with the image ({} MiB), {} entries excepted, {} differences",
        report.files_compared,
        report.others_compared,
        report.partitions_compared,
        report.bytes_compared >> 20,
        report.excepted,
        report.differing
    )
}

fn seconds(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use fleet::ids::Millis;

    use super::*;

    fn line(at: u64, stage: Stage) -> TimelineLine {
        TimelineLine {
            node: "node1".parse().unwrap(),
            at: Millis(at),
            attempt: 1,
            stage,
            kind: String::new(),
            text: String::new(),
        }
    }

    #[test]
    fn seconds_are_summed_over_attempts_and_idle_stages_do_not_count() {
        let sums = stage_seconds(&[
            line(0, Stage::Enrolled),
            line(5_000, Stage::PoweringOn),
            line(6_000, Stage::Leasing),
            line(7_000, Stage::Leasing),
            line(9_500, Stage::PoweringOn),
            line(11_500, Stage::Running),
            line(99_000, Stage::Running),
        ]);
        assert_eq!(sums, BTreeMap::from([("powering_on", 3.0), ("leasing", 3.5)]));
    }

    fn summary(is_running: bool, check: Option<Report>) -> Summary {
        let node = NodeSummary {
            name: "node1".into(),
            firmware: "BIOS PXE".into(),
            is_running,
            reason: Some("the disk is too small".into()),
            attempts: 1,
            stage_seconds: BTreeMap::new(),
            seconds: Some(61.25),
            received_bytes: 5 << 20,
            sent_bytes: 0,
            qemu_resident_peak_bytes: 0,
            check,
        };
        Summary {
            image_digest: "sha256:00".into(),
            image_size_bytes: 8 << 20,
            image_used_bytes: 5 << 20,
            import_seconds: 1.0,
            deployment: "d-1".into(),
            deployment_seconds: Some(61.0),
            server_sent_bytes: 5 << 20,
            server_sent_images: 1.0,
            server_resident_peak_bytes: None,
            server_version: "0.1.0".into(),
            host_cores: 2,
            nodes: vec![node],
        }
    }

    #[test]
    fn only_running_and_compared_and_equal_is_a_success() {
        let good = Report { files_compared: 1, partitions_compared: 1, ..Report::default() };
        let bad = Report { differing: 1, differences: vec!["/etc/passwd has another content".into()], ..good.clone() };
        summary(true, Some(good.clone())).verdict().unwrap();
        for (wrong, part) in [
            (summary(false, Some(good)), "too small"),
            (summary(true, None), "not compared"),
            (summary(true, Some(bad)), "/etc/passwd"),
            (summary(true, Some(Report::default())), "nothing was compared"),
            (Summary { nodes: Vec::new(), ..summary(true, None) }, "no nodes"),
        ] {
            let why = wrong.verdict().unwrap_err().to_string();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn the_table_has_a_row_per_node_and_says_what_failed() {
        let text = summary(true, None).text(Duration::from_secs(70));
        assert!(text.contains("node1") && text.contains("61.2") && text.contains("BIOS PXE"), "{text}");
        assert!(summary(false, None).text(Duration::ZERO).contains("failed"));
    }
}
