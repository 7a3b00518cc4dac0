//! What passed every node's port, second by second.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::super::fabric::{Counters, Fabric};
use super::super::machine::Times;
use super::Installed;

const GLANCE: Duration = Duration::from_millis(50);
/// Seconds that the idle share is taken over where it is least.
const WINDOW: f64 = 10.0;
/// A node gives once it has sent a block beside its acknowledgements and messages.
const BLOCK: u64 = 16_384;

/// One look.
struct Look {
    /// Seconds since the order.
    at: f64,
    counters: Counters,
    times: Times,
}

/// All of them, in order.
pub(super) struct Traffic {
    looks: Vec<Look>,
    nodes: usize,
}

impl Traffic {
    /// Does the work while the ports are looked at, a look each `step`.
    pub(super) fn watch(
        fabric: &Fabric,
        begun: Instant,
        step: Duration,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Traffic> {
        let done = AtomicBool::new(false);
        let looks = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| look_until(fabric, begun, step, &done));
            let outcome = work();
            done.store(true, Ordering::Relaxed);
            let looks = watcher.join().unwrap_or_else(|_| Err(anyhow!("the look at the ports panicked")));
            outcome.and(looks)
        })?;
        Ok(Traffic { looks, nodes: fabric.plan().nodes() })
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    /// Seconds since the order, and what each node received per second until then since the look before, in bytes.
    pub(super) fn downloads(&self) -> Vec<(f64, Vec<f64>)> {
        let rate = |pair: &[Look], node: usize| {
            let bytes = pair[1].counters.node_received_since(&pair[0].counters, node);
            bytes as f64 / (pair[1].at - pair[0].at).max(1e-3)
        };
        let pairs = self.looks.windows(2);
        pairs.map(|pair| (pair[1].at, (0..self.nodes).map(|node| rate(pair, node)).collect())).collect()
    }

    /// Share of the cores that nobody used in the busiest stretch.
    pub(super) fn idle_least(&self) -> f64 {
        let share = |first: usize| {
            let last = self.looks[first..].iter().find(|look| look.at - self.looks[first].at >= WINDOW)?;
            Some(last.times.since(&self.looks[first].times).free_share())
        };
        (0..self.looks.len()).filter_map(share).fold(1.0, f64::min)
    }

    /// One node against the share of an image of so many bytes that it has received.
    pub(super) fn curve(&self, node: usize, bytes: u64) -> Curve {
        let Some(first) = self.looks.first() else { return Curve { points: Vec::new() } };
        let point = |pair: &[Look]| {
            let seconds = (pair[1].at - pair[0].at).max(1e-3);
            let received = pair[1].counters.node_received_since(&first.counters, node);
            Point {
                seconds: pair[1].at,
                percent: (100.0 * received as f64 / bytes as f64).min(100.0),
                down: pair[1].counters.node_received_since(&pair[0].counters, node) as f64 / seconds,
                up: pair[1].counters.node_sent_since(&pair[0].counters, node) as f64 / seconds,
                sent: pair[1].counters.node_sent_since(&first.counters, node),
            }
        };
        Curve { points: self.looks.windows(2).map(point).collect() }
    }

    /// Figure 9 as numbers: a line for each look, a column for each node, in kB/s.
    pub(super) fn table(&self, nodes: &[Installed]) -> String {
        let mut text = "seconds".to_owned();
        nodes.iter().for_each(|node| text += &format!(",{}", node.name));
        text.push('\n');
        for (at, rates) in self.downloads() {
            let _ = write!(text, "{at:.1}");
            rates.iter().for_each(|rate| text += &format!(",{:.0}", rate / 1000.0));
            text.push('\n');
        }
        text
    }
}

fn look_until(fabric: &Fabric, begun: Instant, step: Duration, done: &AtomicBool) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    let mut due = begun;
    while !done.load(Ordering::Relaxed) {
        if Instant::now() >= due {
            due += step;
            let counters = fabric.ports()?;
            looks.push(Look { at: begun.elapsed().as_secs_f64(), counters, times: Times::now() });
        }
        std::thread::sleep(GLANCE);
    }
    Ok(looks)
}

/// One node's way through the image.
pub(super) struct Curve {
    pub(super) points: Vec<Point>,
}

/// One look at it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Since the order.
    pub(super) seconds: f64,
    /// Received, of the image.
    pub(super) percent: f64,
    /// Bytes a second.
    pub(super) down: f64,
    /// Bytes a second.
    pub(super) up: f64,
    /// Bytes sent so far.
    sent: u64,
}

impl Curve {
    /// Per cent that it had when it began to give.
    pub(super) fn gives_from(&self) -> f64 {
        // Its own messages are in what it sends, so a hundredth of what came is not counted either.
        let all: f64 = self.points.iter().map(|point| point.down).sum();
        let slack = BLOCK as f64 + all / 100.0;
        let before = self.points.iter().take_while(|point| (point.sent as f64) < slack);
        before.last().map_or(0.0, |point| point.percent)
    }

    /// Figure 10 as numbers.
    pub(super) fn table(&self) -> String {
        let mut text = "seconds,percent,download_kilobytes_per_second,upload_kilobytes_per_second\n".to_owned();
        for Point { seconds, percent, down, up, .. } in &self.points {
            let _ = writeln!(text, "{seconds:.1},{percent:.2},{:.1},{:.1}", down / 1000.0, up / 1000.0);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gives_from_where_more_than_messages_leave_it() {
        let point = |percent: f64, sent: u64| Point { seconds: percent, percent, down: 10_000.0, up: 0.0, sent };
        let curve = Curve { points: vec![point(0.0, 0), point(3.0, 900), point(5.0, 40_000), point(9.0, 90_000)] };
        assert!((curve.gives_from() - 3.0).abs() < 1e-9);
        assert_eq!(curve.table().lines().count(), 5);
        let never = Curve { points: vec![point(50.0, 0), point(100.0, 0)] };
        assert!((never.gives_from() - 100.0).abs() < 1e-9);
    }
}
