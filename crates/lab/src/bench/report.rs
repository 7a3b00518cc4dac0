//! Results as lines of JSON for programs and as tables for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::egress::{Egress, Load};
use super::enrol::{self, Enrolment, Spread};
use super::figures;
use super::record::{OURS, Origin, Outcome, Record, Session, median, middle};
use super::rows::{self, Figure, Goal, Job, Row, Task};
use super::run::{Course, Measured};
use super::simulate::{self, Simulated};

const MIB: f64 = 1_048_576.0;

/// Writes `ROW.json`, a line of JSON for each run, and `ROW.md`.
///
/// # Errors
/// When they cannot be written.
pub fn write(folder: &Path, row: &Row, session: &Session) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut lines = String::new();
    for record in records(row, session) {
        lines += &serde_json::to_string(record).context("cannot write JSON")?;
        lines.push('\n');
    }
    put(folder, &format!("{}.json", row.id), &lines)?;
    let mut text = format!("# Row {}: {}\n\n{}\n{}", row.id, row.what, head(), line(row, session));
    row.jobs.iter().for_each(|job| text += &details(job, session));
    text += &closing(row, session);
    put(folder, &format!("{}.md", row.id), &text)
}

/// Writes `README.md` of the results: every row that a folder holds, with where and with what it was measured.
///
/// # Errors
/// When it cannot be written.
pub fn summary(folder: &Path) -> Result<()> {
    let mut text = "# Results\n\nWritten by `rackswarm lab bench`. ROW.md has the details and the command, ROW.json every run.\n\n\
                    | row | figure | median | worst | runs | required | aim | verdict | kind | measured (UTC) | commit |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows::all() {
        let session = Session::load(folder, row.id);
        let Some(origin) = origin(&row, &session) else { continue };
        for line in line(&row, &session).lines() {
            let _ = writeln!(text, "{line} {} | {} | {} |", row.kind.name(), origin.date, origin.commit);
        }
    }
    put(folder, "README.md", &text)
}

/// Writes one file of the results.
///
/// # Errors
/// When it cannot be written.
pub fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Every run that a row's figures come from.
fn records<'a>(row: &Row, session: &'a Session) -> Vec<&'a Record> {
    let names = row.jobs.iter().flat_map(|job| match job {
        Job::Twin(task) => vec![job.name(), task.name.to_owned()],
        _ => vec![job.name()],
    });
    names.flat_map(|name| session.of_job(&name).flat_map(|(_, records)| records).collect::<Vec<_>>()).collect()
}

/// Of the first run of a row's own.
fn origin<'a>(row: &Row, session: &'a Session) -> Option<&'a Origin> {
    let first = row.jobs.iter().find_map(|job| session.of_job(&job.name()).find_map(|(_, records)| records.first()));
    first.map(|record| &record.origin)
}

/// The head of the table of rows.
#[must_use]
pub fn head() -> String {
    "| row | figure | median | worst | runs | required | aim | verdict |\n|---|---|---|---|---|---|---|---|".to_owned()
}

/// A row's lines in it, one for each figure.
#[must_use]
pub fn line(row: &Row, session: &Session) -> String {
    row.figures.iter().map(|figure| format!("{}\n", figure_line(row, figure, session))).collect()
}

fn figure_line(row: &Row, figure: &Figure, session: &Session) -> String {
    let mut values = (figure.of)(session);
    values.sort_by(f64::total_cmp);
    let (required, aim, worst) = match figure.goal {
        Goal::AtMost { required, aim } => (required.to_string(), aim.to_string(), values.last()),
        Goal::AtLeast { required, aim } => (required.to_string(), aim.to_string(), values.first()),
        Goal::Told => ("-".to_owned(), "-".to_owned(), None),
    };
    let middle = median(&values);
    let verdict = match figure.goal {
        Goal::Told => "-",
        _ if values.is_empty() => "**failed**",
        Goal::AtMost { aim, .. } if middle <= aim => "aim",
        Goal::AtLeast { aim, .. } if middle >= aim => "aim",
        _ if figure.is_met(session) => "required",
        _ => "**short**",
    };
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let (middle, worst) = (number((!values.is_empty()).then_some(middle)), number(worst.copied()));
    format!(
        "| {} | {}: {} | {middle} | {worst} | {} | {required} | {aim} | {verdict} |",
        row.id,
        row.what,
        figure.what,
        values.len()
    )
}

fn details(job: &Job, session: &Session) -> String {
    match job {
        Job::Delivery(task) => delivery(task, session),
        Job::Egress(load) => egress(load, &job.name(), session),
        Job::Enrolment(load) => enrolment(load, &job.name(), session),
        Job::Figures(_) => session.drawn(&job.name()).into_iter().map(figures::page).collect(),
        Job::Scenario(name, _) => format!(
            "\n{name}: `rackswarm sim bench/scenarios/{name}.toml`, without its limits\n\n{}",
            simulations(&job.name(), session)
        ),
        Job::Twin(task) => twin(task, &job.name(), session),
    }
}

/// What each method did in a task, fastest first.
fn delivery(task: &Task, session: &Session) -> String {
    let (work, plan) = (task.work(), &task.plan);
    let mut text = format!(
        "\n{}: {} rack(s) of {} nodes, {} Mbit/s, uplink {}, {} MiB in pieces of {} KiB; F/U {:.2} s, T* {:.2} s, T_LB {:.2} s\n\n",
        task.name,
        plan.racks,
        plan.nodes_per_rack,
        plan.link / 1_000_000,
        if plan.uplink == 0 { "unlimited".to_owned() } else { format!("{} Mbit/s", plan.uplink / 1_000_000) },
        work.bytes as f64 / MIB,
        work.piece_bytes >> 10,
        work.once(),
        work.best(),
        work.bound()
    );
    text += "| method | runs | makespan s | range s | median node s | / T* | / T_LB | server images | rack images | \
             port images | received images | wasted % | half s | CPU-s/GB/node | server CPU-s | peak MiB | server MiB | idle | drops |\n";
    let _ = writeln!(text, "|{}", "---|".repeat(19));
    let mut methods: Vec<(&str, &[Record])> = session.of_job(task.name).collect();
    let fastest = |records: &[Record]| {
        let makespans = records.iter().filter_map(|record| measured(record)).filter(|run| run.ok);
        makespans.map(|run| run.makespan).fold(f64::INFINITY, f64::min)
    };
    methods.sort_by(|one, other| fastest(one.1).total_cmp(&fastest(other.1)));
    for (method, records) in &methods {
        text += &method_line(method, records, &session.delivered(task.name, method));
    }
    if task.course == Course::Faulty {
        let killed = session.delivered(task.name, OURS).into_iter().filter_map(|run| run.killed);
        let killed: Vec<String> = killed.map(|at| format!("{at:.1} s")).collect();
        let _ = writeln!(text, "\nKilled after {}.", killed.join(", "));
    }
    let versions: Vec<String> = methods
        .iter()
        .filter_map(|(method, records)| Some(format!("{method}: {}", records.first()?.version)))
        .collect();
    let _ = writeln!(text, "\nVersions: {}.", versions.join("; "));
    text
}

fn measured(record: &Record) -> Option<&Measured> {
    if let Outcome::Namespaces(run) = &record.outcome { Some(run) } else { None }
}

fn method_line(method: &str, all: &[Record], good: &[&Measured]) -> String {
    let name = if method == OURS { format!("**{method}**") } else { method.to_owned() };
    let disturbed = if good.iter().any(|run| run.noisy) { "*" } else { "" };
    let mut line = format!("| {name} | {} of {}{disturbed} |", good.len(), all.len());
    if good.is_empty() {
        let why = all.iter().filter_map(measured).rev().find_map(|run| run.error.clone()).unwrap_or_default();
        let _ = writeln!(line, " failed: {} |{}", on_one_line(&why), " |".repeat(16));
        return line;
    }
    let cell = |digits: usize, figure: &dyn Fn(&Measured) -> Option<f64>| {
        let value = middle(good.iter().filter_map(|run| figure(run)));
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let cells = [
        cell(2, &|run| Some(run.makespan)),
        range(good.iter().map(|run| run.makespan)),
        cell(2, &|run| Some(run.ours_median.unwrap_or(run.median))),
        cell(3, &|run| run.over_best),
        cell(3, &|run| run.over_bound),
        cell(3, &|run| Some(run.server_images)),
        cell(3, &|run| run.rack_images),
        cell(4, &|run| Some(run.port_images)),
        cell(4, &|run| run.received_images),
        cell(2, &|run| run.wasted_share.map(|share| share * 100.0)),
        cell(1, &|run| run.half),
        cell(2, &|run| Some(run.cpu_per_gb_and_node)),
        cell(2, &|run| Some(run.cpu_server)),
        cell(1, &|run| Some(run.resident_peak as f64 / MIB)),
        cell(1, &|run| Some(run.server_resident_peak as f64 / MIB)),
        cell(2, &|run| Some(run.idle_share)),
        cell(0, &|run| Some(run.drops as f64)),
    ];
    let _ = writeln!(line, " {} |", cells.join(" | "));
    line
}

fn egress(load: &Load, name: &str, session: &Session) -> String {
    let mut text = format!(
        "\n{} MiB in pieces of {} KiB, in memory; `rackswarm seed` and {} clients at once. Those that drain are threads of the bench \
         which ask for piece after piece for {} s and throw away what comes; downloads are `rackswarm fetch` into memory, each the \
         whole file once, the start of its process included.\n\n",
        load.bytes as f64 / MIB,
        load.piece_bytes >> 10,
        load.clients,
        load.length.as_secs_f64()
    );
    text += "| clients | runs | GB/s | range | seeder CPU-s/GB | clients CPU-s/GB | from each other % | seeder MiB | idle |\n";
    let _ = writeln!(text, "|{}", "---|".repeat(9));
    for (way, records) in session.of_job(name) {
        let good = session.given(name, way);
        let disturbed = if good.iter().any(|run| run.noisy) { "*" } else { "" };
        let _ = write!(text, "| {way} | {} of {}{disturbed} |", good.len(), records.len());
        if good.is_empty() {
            let failed = |record: &Record| match &record.outcome {
                Outcome::Loopback(run) => run.error.clone(),
                _ => None,
            };
            let why = records.iter().rev().find_map(failed).unwrap_or_default();
            let _ = writeln!(text, " failed: {} |{}", on_one_line(&why), " |".repeat(6));
            continue;
        }
        let cell = |digits: usize, figure: &dyn Fn(&Egress) -> f64| {
            format!("{:.digits$}", middle(good.iter().map(|run| figure(run))).unwrap_or(0.0))
        };
        let exchanged = |run: &Egress| 100.0 * run.exchanged_bytes as f64 / (run.bytes + run.exchanged_bytes) as f64;
        let cells = [
            cell(2, &|run| run.gigabytes_per_second),
            range(good.iter().map(|run| run.gigabytes_per_second)),
            cell(2, &|run| run.seeder_cpu_per_gb),
            cell(2, &|run| run.clients_cpu_per_gb),
            cell(1, &exchanged),
            cell(1, &|run| run.seeder_resident_peak as f64 / MIB),
            cell(2, &|run| run.idle_share),
        ];
        let _ = writeln!(text, " {} |", cells.join(" | "));
    }
    text
}

fn enrolment(load: &enrol::Load, name: &str, session: &Session) -> String {
    let runs = session.of_job(name).flat_map(|(_, records)| records).filter_map(|record| match &record.outcome {
        Outcome::Enrolment(run) => Some(run),
        _ => None,
    });
    let mut text = format!(
        "\n`rackswarm serve` as a process with its database on a disk, and machines that are tasks of the bench, each with a connection of \
         its own. First they boot as strangers, {} at once: script, inventory, approval by rule. An operator gives each a rack and a power hook. \
         Then one deployment to all: the controller calls the hook (at most {} machines a second), the machine asks for its script, registers, \
         reports as often as it is told to while it fetches for {} s, proves itself and beats. Self-test, kernel and pieces are left out.\n",
        load.at_once,
        load.starts_per_second,
        load.fetching.as_secs()
    );
    for (number, run) in (1..).zip(runs) {
        let disturbed = if run.noisy { "*" } else { "" };
        if let Some(error) = &run.error {
            let _ = writeln!(text, "\nRun {number} failed: {}", on_one_line(error));
            continue;
        }
        let _ = write!(
            text,
            "\nRun {number}{disturbed}: {} machines in {} racks; enrolled in {:.1} s, deployed and proved in {:.1} s; the order to deploy was \
             answered after {:.0} ms. While all fetched, each was told to report every {} s: {:.0} reports a second were offered, {:.0} \
             answered. Controller: {:.0} MiB at its most; CPU {:.1} s enrolling, {:.1} s \
             for racks and power hooks, {:.1} s deploying, {:.2} cores while all ran; database {:.0} MiB. A console heard {} events and missed \
             some {} times. {} requests were sent again.\n\n| ms | count | p50 | p99 | longest |\n|---|---|---|---|---|\n",
            run.nodes,
            run.racks,
            run.enrol_seconds,
            run.deploy_seconds,
            run.deploy_call,
            run.report_seconds,
            run.reports_offered_per_second(),
            run.reports_per_second,
            run.resident_peak as f64 / MIB,
            run.cpu_enrol,
            run.cpu_settings,
            run.cpu_deploy,
            run.cpu_beats_per_second,
            run.database_bytes as f64 / MIB,
            run.console_events,
            run.console_missed,
            run.repeated
        );
        spreads(run).into_iter().for_each(|(what, spread)| text += &spread_line(what, &spread));
    }
    text
}

fn spreads(run: &Enrolment) -> [(&'static str, Spread); 8] {
    [
        ("enrolment: script and inventory", run.enrol_call),
        ("assignment to the power hook's call", run.assigned_to_power),
        ("power hook to orders: script and registration", run.power_to_orders),
        ("a report, while all fetch", run.report),
        ("a heartbeat, while all run", run.beat),
        ("operator: status, while all fetch", run.status),
        ("operator: the deployment with all outcomes, while all fetch", run.deployment),
        ("operator: the list of all nodes, while all fetch", run.list),
    ]
}

fn spread_line(what: &str, spread: &Spread) -> String {
    format!("| {what} | {} | {:.1} | {:.1} | {:.1} |\n", spread.count, spread.p50, spread.p99, spread.max)
}

fn simulations(name: &str, session: &Session) -> String {
    let mut text = "| seed | nodes | pieces | makespan s | / T* | / T_LB | server images | rack images | wall s | memory MB | events | trace |\n"
        .to_owned();
    let _ = writeln!(text, "|{}", "---|".repeat(12));
    let records = session.of_job(name).flat_map(|(_, records)| records);
    let runs = records.filter_map(|record| match &record.outcome {
        Outcome::Simulated(run) => Some(run),
        _ => None,
    });
    for run in runs {
        if let Some(error) = &run.error {
            let _ = writeln!(text, "| {} | failed: {} |{}", run.seed, on_one_line(error), " |".repeat(10));
            continue;
        }
        let Simulated { seed, nodes, pieces, makespan, over_best, over_bound, .. } = run;
        let Simulated { server_images, rack_images, wall, events, trace, .. } = run;
        let (disturbed, memory) = (if run.noisy { "*" } else { "" }, run.resident_peak as f64 / 1e6);
        let _ = writeln!(
            text,
            "| {seed} | {nodes} | {pieces} | {makespan:.3} | {over_best:.4} | {over_bound:.4} | {server_images:.4} | {rack_images:.4} | \
             {wall:.1}{disturbed} | {memory:.0} | {events} | {trace} |"
        );
    }
    text
}

/// The simulator beside the network.
fn twin(task: &Task, name: &str, session: &Session) -> String {
    let bound = task.work().bound();
    let mut text = format!("\n{}, bound {bound:.2} s: ", task.name);
    let from = session.of_job(task.name).find(|(method, _)| *method == OURS).and_then(|(_, records)| records.first());
    let _ = match (rows::both_makespans(session, task.name), from) {
        (Some((simulated, measured)), Some(Record { origin, .. })) => writeln!(
            text,
            "measured {measured:.2} s = {:.3} (commit {}, {} UTC), simulated {simulated:.2} s = {:.3}, which is {:+.1} %.",
            measured / bound,
            origin.commit,
            origin.date,
            simulated / bound,
            100.0 * (simulated / measured - 1.0)
        ),
        _ => writeln!(
            text,
            "there is no good measured run of the same work; `rackswarm lab bench {}` makes one.",
            rows::measured_by(task.name).unwrap_or("a")
        ),
    };
    let _ = write!(text, "\n{}\n```toml\n{}```\n", simulations(name, session), simulate::scenario_of(task));
    text
}

/// Where everything comes from, and what the words mean.
fn closing(row: &Row, session: &Session) -> String {
    let Some(Origin { command, machine, kernel, commit, built, date, nice }) = origin(row, session) else {
        return String::new();
    };
    let mut text = format!(
        "\nKind: {}. Command: `{command}`. {date} UTC, program built {built} UTC of commit {commit}, {machine}, Linux {kernel}, priority {nice}.\n",
        row.kind.name()
    );
    if row.jobs.iter().any(|job| matches!(job, Job::Delivery(_))) {
        text += "Images are TCP's payload, counted at the switch's ports, over the file's size; *received* is what our own nodes say came from \
                 peers, messages and all. *Half* is when half of all bytes had arrived. CPU is that of the nodes' control groups, the kernel's network \
                 work in them included.\n";
    }
    if row.jobs.iter().any(|job| matches!(job, Job::Egress(_))) {
        text += "CPU is that of the processes, kernel included; loopback does most of a receiver's network work where the packet is sent.\n";
    }
    if row.jobs.iter().any(|job| matches!(job, Job::Enrolment(_))) {
        text += "Milliseconds are those that the machines see; the bench's own work on the same cores is in them.\n";
    }
    text + "A run with * was disturbed by others.\n"
}

fn range(values: impl Iterator<Item = f64>) -> String {
    let (least, most) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    format!("{least:.2} to {most:.2}")
}

fn on_one_line(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn session(ratio: f64) -> Session {
        let origin = Origin { commit: "abc1234".into(), date: "2026-11-23 05:00:00".into(), ..Origin::default() };
        let ten = rows::all()[0].jobs[0].delivery().unwrap();
        let measured = Measured {
            ok: true,
            makespan: ratio * ten.work().best(),
            over_best: Some(ratio),
            server_images: 1.01,
            ..Measured::default()
        };
        let simulated = Simulated { ok: true, makespan: 1.05 * ten.work().best(), nodes: 10, ..Simulated::default() };
        let mut session = Session::default();
        for (job, outcome) in [("ten", Outcome::Namespaces(measured)), ("simulated ten", Outcome::Simulated(simulated))]
        {
            session.add(Record {
                job: job.into(),
                method: OURS.into(),
                version: "rackswarm 0.1.0".into(),
                run: 1,
                work: Some(ten.work()),
                outcome,
                origin: origin.clone(),
            });
        }
        session
    }

    fn row(id: &str) -> Row {
        rows::all().into_iter().find(|row| row.id == id).unwrap()
    }

    #[test]
    fn a_figure_is_judged_by_its_middle() {
        let verdict = |ratio| line(&row("a"), &session(ratio));
        assert!(verdict(1.01).trim_end().ends_with("| 1.010 | 1.010 | 1 | 1.06 | 1.02 | aim |"));
        assert!(verdict(1.05).trim_end().ends_with("| required |"));
        assert!(verdict(1.07).trim_end().ends_with("| **short** |"));
        assert!(line(&row("b"), &session(1.0)).trim_end().ends_with("| - | - | 0 | 1.1 | 1.04 | **failed** |"));
        // Nothing is asked of it, so it is neither.
        assert!(line(&row("m"), &session(1.0)).trim_end().ends_with("| - | - | 0 | - | - | - |"));
    }

    #[test]
    fn a_file_names_where_it_comes_from_and_the_summary_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        write(folder.path(), &row("a"), &session(1.0)).unwrap();
        write(folder.path(), &row("p"), &session(1.0)).unwrap();
        let page = read("a.md");
        for word in [
            "Kind: namespaces.",
            "commit abc1234",
            "2026-11-23 05:00:00 UTC",
            "Command: `",
            "| **rackswarm** | 1 of 1 |",
        ] {
            assert!(page.contains(word), "{word} in {page}");
        }
        // The comparison keeps both sides, so that the file stands for itself.
        assert_eq!((read("a.json").lines().count(), read("p.json").lines().count()), (1, 2));
        assert!(read("p.md").contains(" s = 1.050, which is +5.0 %."), "{}", read("p.md"));
        assert!(read("p.md").contains("there is no good measured run of the same work; `rackswarm lab bench b`"));
        summary(folder.path()).unwrap();
        let table = read("README.md");
        let of = |start: &str| table.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((of("| a |"), of("| p |"), of("| b |")), (1, 3, 0), "{table}");
        assert!(table.contains("| aim | namespaces | 2026-11-23 05:00:00 | abc1234 |"));
    }
}
