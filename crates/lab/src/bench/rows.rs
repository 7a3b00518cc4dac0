//! The rows: what is delivered, which figure of it counts, and what that figure must be.

use std::collections::BTreeMap;
use std::time::Duration;

use super::content::Content;
use super::fabric::Plan;
use super::run::{Course, Measured, median};
use super::theory::Work;

const MBIT: u64 = 1_000_000;
const MIB: u64 = 1 << 20;
const KIB: u32 = 1 << 10;

/// Who delivers beside us, in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nobody.
    Nobody,
    /// The plain TCP chain.
    Chain,
    /// nginx and curl.
    Http,
}

/// One thing to deliver. Rows may share a task; it runs once for all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Task {
    /// Its name.
    pub name: &'static str,
    /// The network.
    pub plan: Plan,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of a piece of ours.
    pub piece_bytes: u32,
    /// What the file is made of.
    pub content: Content,
    /// What happens meanwhile.
    pub course: Course,
    /// The comparison of the same run.
    pub beside: Beside,
    /// Other clients take part with `--peers`.
    pub peers: bool,
    /// The tracker is a process of its own.
    pub tracker_apart: bool,
    /// Half of the nodes are ordinary clients.
    pub mixed: bool,
}

impl Task {
    /// For the bounds.
    #[must_use]
    pub fn work(&self) -> Work {
        let Plan { racks, link, uplink, .. } = self.plan;
        Work { bytes: self.bytes, piece_bytes: self.piece_bytes, nodes: self.plan.nodes(), racks, link, uplink }
    }

    /// Whoever needs longer has failed.
    #[must_use]
    pub fn limit(&self) -> Duration {
        let star = if self.plan.link == 0 { 0.0 } else { self.work().bound() };
        Duration::from_secs_f64(60.0 + 8.0 * star)
    }

    fn ten() -> Task {
        Task {
            name: "ten",
            plan: fabric(1, 10, 100 * MBIT, 0),
            bytes: 128 * MIB,
            piece_bytes: 128 * KIB,
            content: Content::Random,
            course: Course::Plain,
            beside: Beside::Chain,
            peers: true,
            tracker_apart: false,
            mixed: false,
        }
    }

    fn twenty() -> Task {
        let plan = fabric(1, 20, 50 * MBIT, 0);
        Task { plan, beside: Beside::Nobody, peers: false, ..Task::ten() }
    }
}

fn fabric(racks: usize, nodes_per_rack: usize, link: u64, uplink: u64) -> Plan {
    Plan { racks, nodes_per_rack, link, server_link: link, uplink, slow_nodes: 0 }
}

fn web(name: &'static str, nodes: usize, course: Course, slow_nodes: usize) -> Task {
    let plan = Plan { slow_nodes, ..fabric(1, nodes, 100 * MBIT, 0) };
    Task { name, plan, bytes: 64 * MIB, course, beside: Beside::Http, peers: false, ..Task::ten() }
}

/// All runs of a session, by task and method.
#[derive(Debug, Default)]
pub struct Session(pub BTreeMap<(String, String), Vec<Measured>>);

impl Session {
    /// The good runs of a method, the quiet ones where there are any.
    #[must_use]
    pub fn good(&self, task: &str, method: &str) -> Vec<&Measured> {
        let runs = self.0.get(&(task.to_owned(), method.to_owned())).map(Vec::as_slice).unwrap_or_default();
        let good: Vec<&Measured> = runs.iter().filter(|run| run.ok).collect();
        let quiet: Vec<&Measured> = good.iter().copied().filter(|run| !run.noisy).collect();
        if quiet.is_empty() { good } else { quiet }
    }

    fn ours(&self, task: &str, figure: impl Fn(&Measured) -> Option<f64>) -> Vec<f64> {
        self.good(task, OURS).into_iter().filter_map(figure).collect()
    }

    /// Ours over the median of another.
    fn ratio(&self, task: &str, other: (&str, &str), figure: impl Fn(&Measured) -> f64) -> Vec<f64> {
        let mut theirs: Vec<f64> = self.good(other.0, other.1).into_iter().map(&figure).collect();
        theirs.sort_by(f64::total_cmp);
        let base = median(&theirs);
        if base > 0.0 { self.ours(task, |run| Some(figure(run) / base)) } else { Vec::new() }
    }
}

/// Our own method's name.
pub const OURS: &str = "rackswarm";

/// A row of the table.
pub struct Row {
    /// Its letter.
    pub id: &'static str,
    /// What it says.
    pub what: &'static str,
    /// What runs for it.
    pub tasks: Vec<Task>,
    /// Its figure in every good run; smaller is better.
    pub figure: fn(&Session) -> Vec<f64>,
    /// It must not be larger than this.
    pub required: f64,
    /// And should not be larger than this.
    pub aim: f64,
}

/// All rows.
#[must_use]
pub fn all() -> Vec<Row> {
    let ten = Task::ten();
    let plan = fabric(5, 10, 20 * MBIT, 40 * MBIT);
    let racks = Task { name: "racks", plan, bytes: 32 * MIB, piece_bytes: 64 * KIB, ..ten };
    vec![
        Row {
            id: "a",
            what: "makespan over T*, 10 nodes, 100 Mbit/s, 128 MiB",
            tasks: vec![ten],
            figure: |session| session.ours("ten", |run| run.over_best),
            required: 1.06,
            aim: 1.02,
        },
        Row {
            id: "b",
            what: "makespan over T*, 50 nodes in one rack, 20 Mbit/s, 128 MiB",
            tasks: vec![Task { name: "fifty", plan: fabric(1, 50, 20 * MBIT, 0), ..ten }],
            figure: |session| session.ours("fifty", |run| run.over_best),
            required: 1.10,
            aim: 1.04,
        },
        Row {
            id: "c",
            what: "makespan over T*, 230 nodes, 10 racks, 5 Mbit/s, 32 MiB",
            tasks: vec![Task {
                name: "many",
                plan: fabric(10, 23, 5 * MBIT, 0),
                bytes: 32 * MIB,
                piece_bytes: 128 * KIB,
                ..ten
            }],
            figure: |session| session.ours("many", |run| run.over_best),
            required: 1.15,
            aim: 1.06,
        },
        Row {
            id: "d",
            what: "makespan over the bound, 5 racks of 10 nodes, 20 Mbit/s, a rack's uplink is two node links, 32 MiB",
            tasks: vec![racks],
            figure: |session| session.ours("racks", |run| run.over_bound),
            required: 1.15,
            aim: 1.05,
        },
        Row {
            id: "e",
            what: "images into the busiest rack over its uplink, same runs as d",
            tasks: vec![racks],
            figure: |session| session.ours("racks", |run| run.rack_images),
            required: 1.10,
            aim: 1.02,
        },
        Row {
            id: "f",
            what: "images sent by the server, same runs as a",
            tasks: vec![ten],
            figure: |session| session.ours("ten", |run| Some(run.server_images)),
            required: 1.10,
            aim: 1.02,
        },
        Row {
            id: "g",
            what: "CPU seconds per GB and node over the chain's, same runs as a",
            tasks: vec![ten],
            figure: |session| session.ratio("ten", ("ten", "chain"), |run| run.cpu_per_gb_and_node),
            required: 1.1,
            aim: 0.9,
        },
        Row {
            id: "h",
            what: "peak resident memory of a node in MiB, 512 MiB, 10 nodes, 200 Mbit/s",
            tasks: vec![Task {
                name: "memory",
                plan: fabric(1, 10, 200 * MBIT, 0),
                bytes: 512 * MIB,
                piece_bytes: 1024 * KIB,
                beside: Beside::Nobody,
                peers: false,
                ..ten
            }],
            figure: |session| session.ours("memory", |run| Some(run.resident_peak as f64 / MIB as f64)),
            required: 48.0,
            aim: 24.0,
        },
        Row {
            id: "i",
            what: "makespan over that of nginx and curl, worst of 1, 2, 4 nodes, 4 that start 2 s after each other, 4 of which one is slow",
            tasks: vec![
                web("web-1", 1, Course::Plain, 0),
                web("web-2", 2, Course::Plain, 0),
                web("web-4", 4, Course::Plain, 0),
                web("web-late", 4, Course::Staggered(Duration::from_secs(2)), 0),
                web("web-slow", 4, Course::Plain, 1),
            ],
            figure: |session| {
                let over = |task| {
                    let mut ratios = session.ratio(task, (task, "http"), |run| run.makespan);
                    ratios.sort_by(f64::total_cmp);
                    (!ratios.is_empty()).then(|| median(&ratios))
                };
                ["web-1", "web-2", "web-4", "web-late", "web-slow"]
                    .into_iter()
                    .filter_map(over)
                    .reduce(f64::max)
                    .into_iter()
                    .collect()
            },
            required: 1.05,
            aim: 1.0,
        },
        Row {
            id: "j",
            what: "images received by a node, half of the image zero, a tenth repeated",
            tasks: vec![Task {
                name: "system",
                content: Content::System(1024 * KIB),
                beside: Beside::Nobody,
                peers: false,
                ..ten
            }],
            figure: |session| session.ours("system", |run| run.received_images),
            required: 0.42,
            aim: 0.405,
        },
        Row {
            id: "k",
            what: "images received by a node that holds an older one, 5 % of the pieces changed",
            tasks: vec![Task { name: "again", course: Course::Again, beside: Beside::Nobody, peers: false, ..ten }],
            figure: |session| session.ours("again", |run| run.received_images),
            required: 0.06,
            aim: 0.052,
        },
        Row {
            id: "l",
            what: "makespan over the calm one, tracker and a tenth of 20 nodes killed half-way",
            tasks: vec![
                Task { name: "calm", tracker_apart: true, ..Task::twenty() },
                Task {
                    name: "fault",
                    tracker_apart: true,
                    course: Course::Faulty(Duration::from_secs(12)),
                    ..Task::twenty()
                },
            ],
            figure: |session| session.ratio("fault", ("calm", OURS), |run| run.makespan),
            required: 1.10,
            aim: 1.03,
        },
        Row {
            id: "mixed",
            what: "median of our nodes over that of an unmixed swarm, every second of 20 nodes is aria2",
            tasks: vec![
                Task { name: "unmixed", ..Task::twenty() },
                Task { name: "mixed", mixed: true, ..Task::twenty() },
            ],
            figure: |session| session.ratio("mixed", ("unmixed", OURS), |run| run.ours_median.unwrap_or(run.median)),
            required: 1.3,
            aim: 1.1,
        },
    ]
}

/// The same with a quarter of the bytes, for a first look.
#[must_use]
pub fn quick(task: Task) -> Task {
    let course = match task.course {
        Course::Faulty(at) => Course::Faulty(at / 4),
        Course::Staggered(pause) => Course::Staggered(pause / 4),
        course => course,
    };
    Task { bytes: task.bytes / 4, course, ..task }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_own_letter_and_equal_tasks_equal_names() {
        let rows = all();
        let ids: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), rows.len());
        let mut named: BTreeMap<&str, Task> = BTreeMap::new();
        for task in rows.iter().flat_map(|row| &row.tasks) {
            assert_eq!(*named.entry(task.name).or_insert(*task), *task);
        }
        assert!(rows.iter().all(|row| row.aim <= row.required));
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        let run = |makespan| Measured { ok: true, makespan, ..Measured::default() };
        let mut session = Session::default();
        session.0.insert(("calm".into(), OURS.into()), vec![run(10.0), run(12.0), run(11.0)]);
        assert!((all()[11].figure)(&session).is_empty());
        session.0.insert(("fault".into(), OURS.into()), vec![run(22.0)]);
        assert_eq!((all()[11].figure)(&session), [2.0]);
    }
}
