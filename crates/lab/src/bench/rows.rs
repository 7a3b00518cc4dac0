//! The rows: what runs, which figures of it count, and what those figures must be.

use std::time::Duration;

use super::content::Content;
use super::egress::{Load, Way};
use super::enrol::{self, Enrolment};
use super::fabric::Plan;
use super::figures::{self, Figures};
use super::record::{OURS, Session, middle};
use super::run::{Course, Measured};
use super::simulate::Simulated;
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

/// One thing to deliver.
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

/// Something that runs. Rows may share one; it runs once for all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Job {
    /// A file goes through network namespaces.
    Delivery(Task),
    /// One seeder on loopback.
    Egress(Load),
    /// One controller on loopback, and machines that only talk.
    Enrolment(enrol::Load),
    /// Server and agents together, drawn as the paper's figures.
    Figures(figures::Load),
    /// A file of bench/scenarios in virtual time, once for each run or once for all.
    Scenario(&'static str, Times),
    /// A delivery's own work in virtual time.
    Twin(Task),
}

/// How often a scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// As often as everything else, each time with another seed.
    Each,
    /// It takes many minutes.
    Once,
}

impl Job {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Job::Delivery(task) => task.name.to_owned(),
            Job::Egress(_) => EGRESS.to_owned(),
            Job::Enrolment(_) => ENROLMENT.to_owned(),
            Job::Figures(_) => FIGURES.to_owned(),
            Job::Scenario(name, _) => (*name).to_owned(),
            Job::Twin(task) => twin_of(task.name),
        }
    }

    /// The task, where it is a delivery.
    #[must_use]
    pub fn delivery(self) -> Option<Task> {
        if let Job::Delivery(task) = self { Some(task) } else { None }
    }

    /// It makes namespaces or control groups.
    #[must_use]
    pub fn needs_root(&self) -> bool {
        matches!(self, Job::Delivery(_) | Job::Egress(_) | Job::Figures(_))
    }

    /// The same with a quarter of the bytes or a tenth of the machines, for a first look.
    #[must_use]
    pub fn quick(self) -> Job {
        match self {
            Job::Delivery(task) => Job::Delivery(quick(task)),
            Job::Egress(load) => Job::Egress(Load { bytes: load.bytes / 4, length: load.length / 4, ..load }),
            Job::Enrolment(load) => self.with_nodes(load.nodes / 10),
            Job::Figures(load) => Job::Figures(figures::Load { nodes: 20, racks: 2, bytes: load.bytes / 4, ..load }),
            Job::Scenario(..) => self,
            Job::Twin(task) => Job::Twin(quick(task)),
        }
    }

    /// The same with other pieces.
    #[must_use]
    pub fn with_pieces(self, piece_bytes: u32) -> Job {
        match self {
            Job::Delivery(task) => Job::Delivery(Task { piece_bytes, ..task }),
            Job::Egress(load) => Job::Egress(Load { piece_bytes, ..load }),
            Job::Enrolment(_) | Job::Figures(_) | Job::Scenario(..) => self,
            Job::Twin(task) => Job::Twin(Task { piece_bytes, ..task }),
        }
    }

    /// The same with so many machines, where the row is one of machines and not of links.
    #[must_use]
    pub fn with_nodes(self, nodes: usize) -> Job {
        match self {
            Job::Enrolment(load) => Job::Enrolment(enrol::Load { nodes: nodes.max(1), ..load }),
            Job::Figures(load) => Job::Figures(figures::Load { nodes, ..load }),
            other => other,
        }
    }
}

const EGRESS: &str = "egress";
const ENROLMENT: &str = "enrolment";
const FIGURES: &str = "figures";

fn twin_of(task: &str) -> String {
    format!("simulated {task}")
}

fn quick(task: Task) -> Task {
    let course = match task.course {
        Course::Staggered(pause) => Course::Staggered(pause / 4),
        course => course,
    };
    Task { bytes: task.bytes / 4, course, ..task }
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Small.
    AtMost {
        /// It must not be larger than this.
        required: f64,
        /// And should not be larger than this.
        aim: f64,
    },
    /// Large.
    AtLeast {
        /// It must not be smaller than this.
        required: f64,
        /// And should not be smaller than this.
        aim: f64,
    },
    /// Nothing is asked of it; it explains the others.
    Told,
}

/// One number of a row.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// What it is, with its unit.
    pub what: &'static str,
    /// Its value in every good run.
    pub of: fn(&Session) -> Vec<f64>,
    /// What it is to be.
    pub goal: Goal,
}

impl Figure {
    fn at_most(what: &'static str, required: f64, aim: f64, of: fn(&Session) -> Vec<f64>) -> Figure {
        Figure { what, of, goal: Goal::AtMost { required, aim } }
    }

    fn at_least(what: &'static str, required: f64, aim: f64, of: fn(&Session) -> Vec<f64>) -> Figure {
        Figure { what, of, goal: Goal::AtLeast { required, aim } }
    }

    fn told(what: &'static str, of: fn(&Session) -> Vec<f64>) -> Figure {
        Figure { what, of, goal: Goal::Told }
    }

    /// Whether the middle of its values is as required; never where there are none.
    #[must_use]
    pub fn is_met(&self, session: &Session) -> bool {
        match (self.goal, middle((self.of)(session))) {
            (Goal::Told, _) => true,
            (_, None) => false,
            (Goal::AtMost { required, .. }, Some(value)) => value <= required,
            (Goal::AtLeast { required, .. }, Some(value)) => value >= required,
        }
    }
}

/// Where a row's figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Processes in network namespaces.
    Namespaces,
    /// Processes on loopback.
    Loopback,
    /// The simulator.
    Simulated,
    /// The simulator held against namespaces.
    Compared,
}

impl Kind {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Namespaces => "namespaces",
            Kind::Loopback => "loopback",
            Kind::Simulated => "simulated",
            Kind::Compared => "simulated against namespaces",
        }
    }
}

/// A row of the table.
pub struct Row {
    /// Its letter.
    pub id: &'static str,
    /// What it says.
    pub what: &'static str,
    /// Where its figures come from.
    pub kind: Kind,
    /// What runs for it.
    pub jobs: Vec<Job>,
    /// What counts.
    pub figures: Vec<Figure>,
}

/// The rows whose deliveries are simulated over again, with the tasks of them.
const COMPARED: [(&str, &str); 3] = [("a", "ten"), ("b", "fifty"), ("d", "racks")];

/// The row that measured a task which the simulator is held against.
#[must_use]
pub fn measured_by(task: &str) -> Option<&'static str> {
    COMPARED.iter().find(|(_, name)| *name == task).map(|(row, _)| *row)
}

/// All rows.
#[must_use]
pub fn all() -> Vec<Row> {
    [delivered(), web(), bytes(), faults(), apart(), vec![control(), paper()]].into_iter().flatten().collect()
}

/// Makespan, egress, CPU and memory of one rack and of several.
fn delivered() -> Vec<Row> {
    let [ten, fifty, racks] = compared();
    let many = Task { name: "many", plan: fabric(10, 23, 5 * MBIT, 0), bytes: 64 * MIB, ..ten };
    let memory = Task {
        name: "memory",
        plan: fabric(1, 10, 200 * MBIT, 0),
        bytes: 512 * MIB,
        piece_bytes: 1024 * KIB,
        beside: Beside::Nobody,
        peers: false,
        ..ten
    };
    let row = |id, what, task, figure| Row {
        id,
        what,
        kind: Kind::Namespaces,
        jobs: vec![Job::Delivery(task)],
        figures: vec![figure],
    };
    vec![
        row(
            "a",
            "10 nodes, 100 Mbit/s, 128 MiB",
            ten,
            Figure::at_most("makespan / T*", 1.06, 1.02, |session| ours(session, "ten", |run| run.over_best)),
        ),
        row(
            "b",
            "50 nodes in one rack, 20 Mbit/s, 128 MiB",
            fifty,
            Figure::at_most("makespan / T*", 1.10, 1.04, |session| ours(session, "fifty", |run| run.over_best)),
        ),
        row(
            "c",
            "230 nodes, 10 racks, 5 Mbit/s, 64 MiB",
            many,
            Figure::at_most("makespan / T*", 1.15, 1.06, |session| ours(session, "many", |run| run.over_best)),
        ),
        row(
            "d",
            "5 racks of 10 nodes, 20 Mbit/s, a rack's uplink is two node links, 128 MiB",
            racks,
            Figure::at_most("makespan / T_LB", 1.15, 1.05, |session| ours(session, "racks", |run| run.over_bound)),
        ),
        row(
            "e",
            "into the busiest rack over its uplink, same runs as d",
            racks,
            Figure::at_most("images", 1.10, 1.02, |session| ours(session, "racks", |run| run.rack_images)),
        ),
        row(
            "f",
            "sent by the server, same runs as a",
            ten,
            Figure::at_most("images", 1.10, 1.02, |session| ours(session, "ten", |run| Some(run.server_images))),
        ),
        row(
            "g",
            "CPU of receive, send, hash and write, same runs as a",
            ten,
            Figure::at_most("CPU seconds per GB and node / the chain's", 1.1, 0.9, |session| {
                ratio(session, "ten", ("ten", "chain"), |run| run.cpu_per_gb_and_node)
            }),
        ),
        row(
            "h",
            "memory of a node, 512 MiB, 10 nodes, 200 Mbit/s",
            memory,
            Figure::at_most("peak resident MiB of the largest", 48.0, 24.0, |session| {
                ours(session, "memory", |run| Some(run.resident_peak as f64 / MIB as f64))
            }),
        ),
    ]
}

/// The deliveries that are simulated over again, in the order of [`COMPARED`].
fn compared() -> [Task; 3] {
    let ten = Task::ten();
    let plan = fabric(5, 10, 20 * MBIT, 40 * MBIT);
    [ten, Task { name: "fifty", plan: fabric(1, 50, 20 * MBIT, 0), ..ten }, Task { name: "racks", plan, ..ten }]
}

/// Few nodes beside a web server.
fn web() -> Vec<Row> {
    let task = |name, nodes, course, slow_nodes| {
        let plan = Plan { slow_nodes, ..fabric(1, nodes, 100 * MBIT, 0) };
        let beside = Beside::Http;
        Job::Delivery(Task { name, plan, bytes: 64 * MIB, course, beside, peers: false, ..Task::ten() })
    };
    let late = Course::Staggered(Duration::from_secs(2));
    vec![Row {
        id: "i",
        what: "few nodes, 100 Mbit/s, 64 MiB, beside nginx and curl",
        kind: Kind::Namespaces,
        jobs: vec![
            task("web-1", 1, Course::Plain, 0),
            task("web-2", 2, Course::Plain, 0),
            task("web-4", 4, Course::Plain, 0),
            task("web-late", 4, late, 0),
            task("web-slow", 4, Course::Plain, 1),
        ],
        figures: vec![
            Figure::at_most("makespan / theirs, 1 node", 1.05, 1.0, |session| over_web(session, "web-1")),
            Figure::at_most("2 nodes", 1.05, 1.0, |session| over_web(session, "web-2")),
            Figure::at_most("4 nodes", 1.05, 1.0, |session| over_web(session, "web-4")),
            Figure::at_most("4 nodes, 2 s after each other", 1.05, 1.0, |session| over_web(session, "web-late")),
            Figure::at_most("4 nodes, one at half the rate", 1.05, 1.0, |session| over_web(session, "web-slow")),
            Figure::told("the same, the middle of the nodes", |session| {
                ratio(session, "web-slow", ("web-slow", "http"), |run| run.median)
            }),
        ],
    }]
}

/// Bytes that need not travel.
fn bytes() -> Vec<Row> {
    let alone = Task { beside: Beside::Nobody, peers: false, ..Task::ten() };
    // A whole number of tens of stretches, so that the parts are exact.
    let system = Task { name: "system", bytes: 160 * MIB, content: Content::System(1024 * KIB), ..alone };
    let again = Task { name: "again", course: Course::Again, ..alone };
    vec![
        Row {
            id: "j",
            what: "half of the image is zero, a tenth repeats; 10 nodes, 160 MiB",
            kind: Kind::Namespaces,
            jobs: vec![Job::Delivery(system)],
            figures: vec![
                Figure::at_most("images received by a node, messages and all", 0.42, 0.405, |session| {
                    ours(session, "system", |run| run.received_images)
                }),
                Figure::told("payload among it", |session| ours(session, "system", |run| run.payload_images)),
            ],
        },
        Row {
            id: "k",
            what: "nodes hold an older image, 5 % of the pieces changed; 10 nodes, 128 MiB",
            kind: Kind::Namespaces,
            jobs: vec![Job::Delivery(again)],
            figures: vec![
                Figure::at_most("images received by a node, messages and all", 0.06, 0.052, |session| {
                    ours(session, "again", |run| run.received_images)
                }),
                Figure::told("payload among it", |session| ours(session, "again", |run| run.payload_images)),
            ],
        },
    ]
}

/// What goes wrong, and who is foreign.
fn faults() -> Vec<Row> {
    let calm = Task { name: "calm", tracker_apart: true, ..Task::twenty() };
    let fault = Task { name: "fault", course: Course::Faulty, ..calm };
    let unmixed = Task { name: "unmixed", ..Task::twenty() };
    let mixed = Task { name: "mixed", mixed: true, ..Task::twenty() };
    vec![
        Row {
            id: "l",
            what: "tracker and a tenth of 20 nodes killed when half of all bytes have arrived",
            kind: Kind::Namespaces,
            jobs: vec![Job::Delivery(calm), Job::Delivery(fault)],
            figures: vec![
                Figure::at_most("makespan of the rest / the calm one", 1.10, 1.03, |session| {
                    ratio(session, "fault", ("calm", OURS), |run| run.makespan)
                }),
                Figure::told("killed at / the calm one's half-way", |session| {
                    let half = middle(session.delivered("calm", OURS).into_iter().filter_map(|run| run.half));
                    half.map_or_else(Vec::new, |half| ours(session, "fault", |run| Some(run.killed? / half)))
                }),
            ],
        },
        Row {
            id: "mixed",
            what: "every second of 20 nodes is aria2",
            kind: Kind::Namespaces,
            jobs: vec![Job::Delivery(unmixed), Job::Delivery(mixed)],
            figures: vec![Figure::at_most("median of our nodes / an unmixed swarm's", 1.3, 1.1, |session| {
                ratio(session, "mixed", ("unmixed", OURS), |run| run.ours_median.unwrap_or(run.median))
            })],
        },
    ]
}

/// One process, and the simulator.
fn apart() -> Vec<Row> {
    let load = Load { bytes: 512 * MIB, piece_bytes: 1024 * KIB, clients: 2, length: Duration::from_secs(5) };
    let [ten, fifty, racks] = compared();
    vec![
        Row {
            id: "m",
            what: "one seeder on loopback, all in memory, two clients",
            kind: Kind::Loopback,
            jobs: vec![Job::Egress(load)],
            figures: vec![
                Figure::at_least("GB/s given to clients that only drain", 1.5, 2.5, |session| {
                    given(session, Way::Pieces)
                }),
                Figure::told("GB/s to ordinary clients that only drain", |session| given(session, Way::Blocks)),
                Figure::told("GB/s to whole downloads into memory", |session| given(session, Way::Downloads)),
            ],
        },
        Row {
            id: "n",
            what: "10,000 nodes, 256 pieces",
            kind: Kind::Simulated,
            jobs: vec![Job::Scenario("10k", Times::Each)],
            figures: vec![
                Figure::at_most("makespan / T*", 1.05, 1.02, |session| simulated(session, "10k", |run| run.over_best)),
                Figure::at_most("seconds to simulate", 120.0, 40.0, |session| {
                    simulated(session, "10k", |run| run.wall)
                }),
                Figure::at_most("MB of memory", 512.0, 512.0, |session| simulated(session, "10k", megabytes)),
            ],
        },
        Row {
            id: "o",
            what: "100,000 nodes, 256 pieces",
            kind: Kind::Simulated,
            jobs: vec![Job::Scenario("100k", Times::Once)],
            figures: vec![
                Figure::at_most("makespan / T*", 1.10, 1.05, |session| simulated(session, "100k", |run| run.over_best)),
                Figure::at_most("minutes to simulate", 20.0, 8.0, |session| {
                    simulated(session, "100k", |run| run.wall / 60.0)
                }),
                Figure::at_most("MB of memory", 4000.0, 1000.0, |session| simulated(session, "100k", megabytes)),
            ],
        },
        Row {
            id: "p",
            what: "makespan by the simulator against the measured one, same work",
            kind: Kind::Compared,
            jobs: vec![Job::Twin(ten), Job::Twin(fifty), Job::Twin(racks)],
            figures: vec![
                Figure::at_most("% between them, a", 8.0, 3.0, |session| apart_by(session, "ten")),
                Figure::at_most("% between them, b", 8.0, 3.0, |session| apart_by(session, "fifty")),
                Figure::at_most("% between them, d", 8.0, 3.0, |session| apart_by(session, "racks")),
            ],
        },
    ]
}

/// The control plane.
fn control() -> Row {
    let load = enrol::Load {
        nodes: 10_000,
        nodes_per_rack: 40,
        at_once: 256,
        starts_per_second: 200,
        fetching: Duration::from_secs(90),
        running: Duration::from_secs(30),
    };
    Row {
        id: "enrol",
        what: "10,000 machines that only talk, one controller",
        kind: Kind::Loopback,
        jobs: vec![Job::Enrolment(load)],
        figures: vec![
            Figure::at_least("enrolments a minute", 1000.0, 10_000.0, |session| {
                enrolled(session, |run| run.enrolments_per_minute)
            }),
            Figure::at_most("MiB of memory at its most", 1024.0, 512.0, |session| {
                enrolled(session, |run| run.resident_peak as f64 / MIB as f64)
            }),
            Figure::at_most("ms for a report while all fetch, p99", 1000.0, 100.0, |session| {
                enrolled(session, |run| run.report.p99)
            }),
            Figure::told("p50", |session| enrolled(session, |run| run.report.p50)),
            Figure::told("reports a second that all of them mean to send", |session| {
                enrolled(session, Enrolment::reports_offered_per_second)
            }),
            Figure::told("reports a second that were answered", |session| {
                enrolled(session, |run| run.reports_per_second)
            }),
            Figure::at_most("ms from assignment to power, p99", 2000.0, 500.0, |session| {
                enrolled(session, |run| run.assigned_to_power.p99)
            }),
            Figure::at_most("ms from power to orders, p99", 2000.0, 500.0, |session| {
                enrolled(session, |run| run.power_to_orders.p99)
            }),
            Figure::told("CPU seconds from the order to deploy to the last proof", |session| {
                enrolled(session, |run| run.cpu_deploy)
            }),
        ],
    }
}

/// The paper's Figures 8 to 10.
fn paper() -> Row {
    let load = figures::Load { nodes: 230, racks: 10, bytes: 32 * MIB, link: 4 * MBIT };
    Row {
        id: "fig8",
        what: "the paper's Figures 8 to 10: server, tracker and agents, 230 nodes in 10 racks",
        kind: Kind::Namespaces,
        jobs: vec![Job::Figures(load)],
        figures: vec![
            Figure::at_least("every node proved with the whole image on its disk: runs", 1.0, 1.0, |session| {
                drawn(session, |run| Some(f64::from(u8::from(run.ok))))
            }),
            Figure::told("s from the order to the proof, mean of the nodes", |session| {
                drawn(session, |run| Some(run.installed.mean))
            }),
            Figure::told("the same, the slowest", |session| drawn(session, |run| Some(run.installed.most))),
            Figure::told("first fetch to last verified image / bound", |session| {
                drawn(session, |run| Some(run.over_bound))
            }),
            Figure::told("into the busiest rack over its uplink, by the agents' ledgers: images", |session| {
                drawn(session, |run| run.reported_rack_images)
            }),
            Figure::told("simulated, 1 Gbit/s, stages of virtual machines: min, mean of the nodes", |session| {
                drawn(session, |run| run.simulated.first().map(|run| run.installed.mean / 60.0))
            }),
        ],
    }
}

fn drawn(session: &Session, figure: impl Fn(&Figures) -> Option<f64>) -> Vec<f64> {
    session.drawn(FIGURES).into_iter().filter_map(figure).collect()
}

fn enrolled(session: &Session, figure: impl Fn(&Enrolment) -> f64) -> Vec<f64> {
    session.enrolled(ENROLMENT).into_iter().map(figure).collect()
}

fn ours(session: &Session, task: &str, figure: impl Fn(&Measured) -> Option<f64>) -> Vec<f64> {
    session.delivered(task, OURS).into_iter().filter_map(figure).collect()
}

/// Ours over the median of another.
fn ratio(session: &Session, task: &str, other: (&str, &str), figure: impl Fn(&Measured) -> f64) -> Vec<f64> {
    let base = middle(session.delivered(other.0, other.1).into_iter().map(&figure));
    let over = |base: f64| ours(session, task, |run| Some(figure(run) / base));
    base.filter(|base| *base > 0.0).map_or_else(Vec::new, over)
}

fn over_web(session: &Session, task: &str) -> Vec<f64> {
    ratio(session, task, (task, "http"), |run| run.makespan)
}

fn given(session: &Session, way: Way) -> Vec<f64> {
    session.given(EGRESS, way.name()).into_iter().map(|run| run.gigabytes_per_second).collect()
}

fn simulated(session: &Session, job: &str, figure: impl Fn(&Simulated) -> f64) -> Vec<f64> {
    session.simulated(job).into_iter().map(figure).collect()
}

fn megabytes(run: &Simulated) -> f64 {
    run.resident_peak as f64 / 1e6
}

/// The middle of a task's makespans, simulated and measured.
#[must_use]
pub fn both_makespans(session: &Session, task: &str) -> Option<(f64, f64)> {
    let simulated = middle(session.simulated(&twin_of(task)).into_iter().map(|run| run.makespan))?;
    let measured = middle(ours(session, task, |run| Some(run.makespan)))?;
    (measured > 0.0).then_some((simulated, measured))
}

/// Both are over the same bound, so the ratios differ by as much as the makespans.
fn apart_by(session: &Session, task: &str) -> Vec<f64> {
    let percent = |(simulated, measured): (f64, f64)| 100.0 * (simulated / measured - 1.0).abs();
    both_makespans(session, task).map(percent).into_iter().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::record::{Origin, Outcome, Record};
    use super::*;

    fn add(session: &mut Session, job: &str, method: &str, outcome: Outcome) {
        let (job, method, origin) = (job.to_owned(), method.to_owned(), Origin::default());
        session.add(Record { job, method, version: String::new(), run: 1, work: None, outcome, origin });
    }

    fn delivery(makespan: f64) -> Outcome {
        Outcome::Namespaces(Measured { ok: true, makespan, ..Measured::default() })
    }

    fn row(id: &str) -> Row {
        all().into_iter().find(|row| row.id == id).unwrap()
    }

    #[test]
    fn every_row_has_its_own_letter_and_equal_jobs_equal_names() {
        let rows = all();
        let ids: BTreeSet<&str> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), rows.len());
        assert!(('a'..='p').all(|letter| ids.contains(letter.to_string().as_str())), "the issue's rows are there");
        let mut named: BTreeMap<String, Job> = BTreeMap::new();
        for job in rows.iter().flat_map(|row| &row.jobs) {
            assert_eq!(*named.entry(job.name()).or_insert(*job), *job);
        }
        for figure in rows.iter().flat_map(|row| &row.figures) {
            match figure.goal {
                Goal::AtMost { required, aim } => assert!(aim <= required, "{}", figure.what),
                Goal::AtLeast { required, aim } => assert!(aim >= required, "{}", figure.what),
                Goal::Told => {}
            }
        }
    }

    #[test]
    fn what_is_simulated_over_again_is_what_its_row_delivers() {
        for job in row("p").jobs {
            let Job::Twin(task) = job else { panic!("{job:?} is no delivery over again") };
            let delivers = row(measured_by(task.name).unwrap());
            assert!(delivers.jobs.contains(&Job::Delivery(task)));
        }
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        let figure = row("l").figures[0];
        let mut session = Session::default();
        [10.0, 12.0, 11.0].into_iter().for_each(|makespan| add(&mut session, "calm", OURS, delivery(makespan)));
        assert!((figure.of)(&session).is_empty() && !figure.is_met(&session));
        add(&mut session, "fault", OURS, delivery(22.0));
        assert_eq!((figure.of)(&session), [2.0]);
        assert!(!figure.is_met(&session));
        add(&mut session, "fault", OURS, delivery(11.0));
        add(&mut session, "fault", OURS, delivery(11.0));
        assert!(figure.is_met(&session));
    }

    #[test]
    fn the_simulator_is_held_against_the_middle_of_the_measured_runs() {
        let figure = row("p").figures[0];
        let mut session = Session::default();
        let simulated = |makespan| Outcome::Simulated(Simulated { ok: true, makespan, ..Simulated::default() });
        add(&mut session, "simulated ten", OURS, simulated(9.5));
        assert!((figure.of)(&session).is_empty());
        [10.0, 8.0, 30.0].into_iter().for_each(|makespan| add(&mut session, "ten", OURS, delivery(makespan)));
        assert!(((figure.of)(&session)[0] - 5.0).abs() < 1e-9);
        assert!(figure.is_met(&session) && !row("p").figures[1].is_met(&session));
    }

    #[test]
    fn more_is_better_where_a_seeder_gives() {
        let figure = row("m").figures[0];
        let mut session = Session::default();
        let given = |gigabytes_per_second| {
            Outcome::Loopback(crate::bench::egress::Egress { ok: true, gigabytes_per_second, ..Default::default() })
        };
        add(&mut session, EGRESS, Way::Downloads.name(), given(9.0));
        assert!(!figure.is_met(&session));
        add(&mut session, EGRESS, Way::Pieces.name(), given(1.4));
        assert!(!figure.is_met(&session));
        [1.6, 1.5].into_iter().for_each(|rate| add(&mut session, EGRESS, Way::Pieces.name(), given(rate)));
        assert!(figure.is_met(&session));
    }
}
