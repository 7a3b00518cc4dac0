//! What was measured, kept: every run with its conditions is a line of JSON, and a session is all of its lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::egress::Egress;
use super::enrol::Enrolment;
use super::figures::Figures;
use super::machine;
use super::run::Measured;
use super::simulate::Simulated;
use super::theory::Work;
use crate::tool;

/// Our own method's name.
pub const OURS: &str = "rackswarm";

/// What decides what a build is.
const SOURCES: [&str; 3] = ["crates", "Cargo.toml", "Cargo.lock"];

/// Where and with what it was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Origin {
    /// As it was typed.
    pub command: String,
    /// Hardware.
    pub machine: String,
    /// Release of the kernel.
    pub kernel: String,
    /// The newest commit when the program was built; with a mark where its sources differ now from what is committed.
    pub commit: String,
    /// When the measured program was built, in UTC.
    pub built: String,
    /// When the measurement began, in UTC.
    pub date: String,
    /// Priority of all measured processes; below 0 others give way.
    pub nice: i32,
}

impl Origin {
    /// Of this process, which measures `program`.
    #[must_use]
    pub fn find(command: String, program: &Path, nice: i32) -> Origin {
        let said = |program: &str, words: &[&str]| tool::run(program, words).unwrap_or_default().trim().to_owned();
        let modified = program.metadata().and_then(|there| there.modified()).unwrap_or(SystemTime::now());
        let built = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let newest = said("git", &["rev-list", "-1", &format!("--before={built}"), "HEAD"]);
        let commit = said("git", &["rev-parse", "--short", &newest]);
        let status = [&["status", "--porcelain", "--untracked-files=no", "--"], SOURCES.as_slice()].concat();
        let changed = if said("git", &status).is_empty() { "" } else { "+" };
        Origin {
            command,
            machine: machine::describe(),
            kernel: machine::kernel(),
            commit: format!("{commit}{changed}"),
            built: said("date", &["-u", &format!("--date=@{built}"), "+%F %T"]),
            date: said("date", &["-u", "+%F %T"]),
            nice,
        }
    }
}

/// What a run gave, by the kind of place where it ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Outcome {
    /// A delivery in network namespaces.
    Namespaces(Measured),
    /// One seeder on loopback.
    Loopback(Egress),
    /// In virtual time.
    Simulated(Simulated),
    /// The controller on loopback, with machines that only talk.
    Enrolment(Enrolment),
    /// The paper's figures, in network namespaces.
    Figures(Box<Figures>),
}

impl Outcome {
    /// It came to its end, and its result was right.
    #[must_use]
    pub fn ok(&self) -> bool {
        match self {
            Outcome::Namespaces(run) => run.ok,
            Outcome::Loopback(run) => run.ok,
            Outcome::Simulated(run) => run.ok,
            Outcome::Enrolment(run) => run.ok,
            Outcome::Figures(run) => run.ok,
        }
    }

    /// Others used the machine.
    #[must_use]
    pub fn noisy(&self) -> bool {
        match self {
            Outcome::Namespaces(run) => run.noisy,
            Outcome::Loopback(run) => run.noisy,
            Outcome::Simulated(run) => run.noisy,
            Outcome::Enrolment(run) => run.noisy,
            Outcome::Figures(run) => run.noisy,
        }
    }

    /// CPU seconds of others meanwhile.
    #[must_use]
    pub fn foreign_cpu(&self) -> f64 {
        match self {
            Outcome::Namespaces(run) => run.foreign_cpu,
            Outcome::Loopback(run) => run.foreign_cpu,
            Outcome::Simulated(run) => run.foreign_cpu,
            Outcome::Enrolment(run) => run.foreign_cpu,
            Outcome::Figures(run) => run.foreign_cpu,
        }
    }
}

/// One run with everything that belongs to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// What ran.
    pub job: String,
    /// How.
    pub method: String,
    /// What exactly.
    pub version: String,
    /// Counted from 1.
    pub run: usize,
    /// What was to be done, where it is the delivery of a file.
    pub work: Option<Work>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Where and with what.
    #[serde(flatten)]
    pub origin: Origin,
}

/// All runs of a session, by job and method.
#[derive(Debug, Default)]
pub struct Session(BTreeMap<(String, String), Vec<Record>>);

impl Session {
    /// Adds a run.
    pub fn add(&mut self, record: Record) {
        self.0.entry((record.job.clone(), record.method.clone())).or_default().push(record);
    }

    /// The runs that a folder holds for a row; none where it was never measured, or with an older form of results.
    #[must_use]
    pub fn load(folder: &Path, row: &str) -> Session {
        let text = fs::read_to_string(folder.join(format!("{row}.json"))).unwrap_or_default();
        let mut session = Session::default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).for_each(|record| session.add(record));
        session
    }

    /// Everything of one job.
    pub fn of_job(&self, job: &str) -> impl Iterator<Item = (&str, &[Record])> {
        let of_job = self.0.iter().filter(move |((name, _), _)| name == job);
        of_job.map(|((_, method), records)| (method.as_str(), records.as_slice()))
    }

    /// Whether a job ran.
    #[must_use]
    pub fn has(&self, job: &str) -> bool {
        self.of_job(job).next().is_some()
    }

    /// The good deliveries of a method.
    #[must_use]
    pub fn delivered(&self, job: &str, method: &str) -> Vec<&Measured> {
        self.good(job, method)
            .into_iter()
            .filter_map(|run| if let Outcome::Namespaces(run) = run { Some(run) } else { None })
            .collect()
    }

    /// The good runs on loopback.
    #[must_use]
    pub fn given(&self, job: &str, method: &str) -> Vec<&Egress> {
        self.good(job, method)
            .into_iter()
            .filter_map(|run| if let Outcome::Loopback(run) = run { Some(run) } else { None })
            .collect()
    }

    /// The good runs in virtual time.
    #[must_use]
    pub fn simulated(&self, job: &str) -> Vec<&Simulated> {
        self.good(job, OURS)
            .into_iter()
            .filter_map(|run| if let Outcome::Simulated(run) = run { Some(run) } else { None })
            .collect()
    }

    /// The good enrolments.
    #[must_use]
    pub fn enrolled(&self, job: &str) -> Vec<&Enrolment> {
        self.good(job, OURS)
            .into_iter()
            .filter_map(|run| if let Outcome::Enrolment(run) = run { Some(run) } else { None })
            .collect()
    }

    /// The good runs of the paper's figures.
    #[must_use]
    pub fn drawn(&self, job: &str) -> Vec<&Figures> {
        self.good(job, OURS)
            .into_iter()
            .filter_map(|run| if let Outcome::Figures(run) = run { Some(run.as_ref()) } else { None })
            .collect()
    }

    /// The good runs, the quiet ones where there are any.
    fn good(&self, job: &str, method: &str) -> Vec<&Outcome> {
        let records = self.0.get(&(job.to_owned(), method.to_owned())).map(Vec::as_slice).unwrap_or_default();
        let good: Vec<&Outcome> = records.iter().map(|record| &record.outcome).filter(|run| run.ok()).collect();
        let quiet: Vec<&Outcome> = good.iter().copied().filter(|run| !run.noisy()).collect();
        if quiet.is_empty() { good } else { quiet }
    }
}

/// The middle of numbers in order; 0 of none.
#[must_use]
pub fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The middle of numbers in any order, if there are some.
#[must_use]
pub fn middle(numbers: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    (!numbers.is_empty()).then(|| median(&numbers))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(ok: bool, noisy: bool, makespan: f64) -> Record {
        let measured = Measured { ok, noisy, makespan, ..Measured::default() };
        Record {
            job: "ten".into(),
            method: OURS.into(),
            version: String::new(),
            run: 1,
            work: Some(Work { bytes: 1, ..Work::default() }),
            outcome: Outcome::Namespaces(measured),
            origin: Origin { commit: "abc".into(), ..Origin::default() },
        }
    }

    #[test]
    fn quiet_runs_count_and_failed_ones_do_not() {
        let mut session = Session::default();
        [record(true, true, 1.0), record(false, false, 2.0)].into_iter().for_each(|record| session.add(record));
        let makespans = |session: &Session| -> Vec<f64> {
            session.delivered("ten", OURS).into_iter().map(|run| run.makespan).collect()
        };
        assert_eq!(makespans(&session), [1.0]);
        session.add(record(true, false, 3.0));
        assert_eq!(makespans(&session), [3.0]);
        assert!(session.simulated("ten").is_empty() && session.has("ten") && !session.has("many"));
    }

    #[test]
    fn a_line_of_json_is_read_as_it_was_written_and_older_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let line = serde_json::to_string(&record(true, false, 4.5)).unwrap();
        assert!(line.contains("\"kind\":\"namespaces\""), "{line}");
        std::fs::write(folder.path().join("a.json"), format!("{{\"task\":\"ten\"}}\n{line}\n")).unwrap();
        let session = Session::load(folder.path(), "a");
        let (_, records) = session.of_job("ten").next().unwrap();
        assert_eq!((records.len(), records[0].origin.commit.as_str()), (1, "abc"));
        assert_eq!(records[0].work.unwrap().bytes, 1);
        assert!((session.delivered("ten", OURS)[0].makespan - 4.5).abs() < 1e-9);
        assert!(!Session::load(folder.path(), "b").has("ten"));
    }

    #[test]
    fn the_middle_needs_no_order() {
        assert_eq!(middle([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(middle([4.0, 1.0]), Some(2.5));
        assert_eq!(middle([]), None);
    }
}
