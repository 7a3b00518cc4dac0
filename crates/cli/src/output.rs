//! What is printed: tables, JSON, and numbers and times as people read them.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use api::operator::DeploymentView;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::Millis;
use fleet::life::Stage;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// Writes a text and a line feed to standard output.
pub(crate) fn say(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("cannot write to standard output")
}

/// True where the reader of a pipe has gone, as in `rackswarm node list | head -1`.
pub(crate) fn is_closed(error: &Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe))
}

/// What went wrong in one sentence. Errors of this workspace name their causes themselves, so a cause that has been said
/// is not said again.
pub(crate) fn sentence(error: &Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.trim_end();
        if sentence.contains(cause) {
            continue;
        }
        if !sentence.is_empty() {
            sentence.push_str(": ");
        }
        sentence.push_str(cause);
    }
    sentence
}

/// A command line that contradicts itself; the exit status is that of the parser's own findings.
#[derive(Debug)]
pub(crate) struct WrongUsage(String);

impl WrongUsage {
    pub(crate) fn error(sentence: impl Into<String>) -> Error {
        Self(sentence.into()).into()
    }
}

impl Display for WrongUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// Finds out before hours of work whether a result can be written there.
pub(crate) fn check_file(path: &Path) -> Result<()> {
    ensure!(!path.is_dir(), "{} is a folder: name a file", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    ensure!(folder.is_dir(), "the folder {} is not there, so {} cannot be written", folder.display(), path.display());
    Ok(())
}

/// Prints the API's JSON where `--json` asks for it, else what `text` makes of the value.
pub(crate) fn show<T: Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> Result<ExitCode> {
    if json {
        say(serde_json::to_string_pretty(value).context("cannot write JSON")?)?;
    } else {
        say(text(value))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A table without lines, so that it can be cut and searched as text.
pub(crate) fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    if !std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table, or a sentence where it would be empty; without blanks at the ends of lines.
pub(crate) fn text_of(table: &Table, nothing: &str) -> String {
    if table.row_iter().next().is_none() {
        return nothing.to_owned();
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A cell in the colour that its meaning has; plain where colours are not wanted.
pub(crate) fn painted(text: impl Display, meaning: Meaning) -> Cell {
    let cell = Cell::new(text);
    if !colours(&std::io::stdout()) {
        return cell;
    }
    match meaning {
        Meaning::Plain => cell,
        Meaning::Good => cell.fg(Color::Green),
        Meaning::Busy => cell.fg(Color::Yellow),
        Meaning::Bad => cell.fg(Color::Red),
    }
}

/// What a colour stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing to say.
    Plain,
    /// As it should be.
    Good,
    /// Under way, or to be looked at.
    Busy,
    /// Failed.
    Bad,
}

impl From<Stage> for Meaning {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Enrolled => Self::Plain,
            Stage::Running => Self::Good,
            Stage::Failed => Self::Bad,
            _ => Self::Busy,
        }
    }
}

/// Colours only for a person who has not said no (the convention of NO_COLOR: set and not empty).
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A moment in local time, to the second.
pub(crate) fn moment(at: Millis) -> String {
    let zoned = i64::try_from(at.0)
        .ok()
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok())
        .map(|timestamp| timestamp.to_zoned(TimeZone::system()));
    zoned.map_or_else(|| "?".to_owned(), |zoned| zoned.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// The clock of this machine.
pub(crate) fn now() -> Millis {
    Millis(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0))
}

/// How long ago, as in `12 s ago`.
pub(crate) fn ago(at: Millis) -> String {
    format!("{} ago", span(Duration::from_millis(now().since(at))))
}

/// A duration in its two largest units.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A number of bytes, as in `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A rate, as in `1.5 MiB/s`.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// Hundredths, rounded down, so that 100 % is only said of what is complete.
pub(crate) fn percent(done: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { u64::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100) }
}

/// A number of things, as in `1 node` or `4 nodes`.
pub(crate) fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// A number of things with its verb, as in `1 node is` or `4 nodes are`.
pub(crate) fn are(number: usize, word: &str) -> String {
    format!("{} {}", count(number, word), if number == 1 { "is" } else { "are" })
}

/// An absent value.
pub(crate) fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A deployment's state in a word.
pub(crate) fn state(deployment: &DeploymentView) -> &'static str {
    match deployment.state {
        DeploymentState::Active if deployment.paused.is_some() => "paused",
        DeploymentState::Active => "active",
        DeploymentState::Done => "done",
        DeploymentState::Cancelled => "cancelled",
    }
}

/// What became of a node, in a word, and why.
pub(crate) fn outcome(outcome: &Outcome) -> (&'static str, String, Meaning) {
    match outcome {
        Outcome::Pending => ("pending", String::new(), Meaning::Busy),
        Outcome::Running { milliseconds } => {
            ("running", format!("after {}", span(Duration::from_millis(*milliseconds))), Meaning::Good)
        }
        Outcome::Failed { reason } => ("failed", reason.clone(), Meaning::Bad),
        Outcome::LetGo => ("let go", "cancelled, released or taken by a later deployment".to_owned(), Meaning::Bad),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let cause = std::io::Error::other("the disk burns\n");
        let error = Error::new(cause).context("cannot write x: the disk burns; buy another").context("no torrent");
        assert_eq!(sentence(&error), "no torrent: cannot write x: the disk burns; buy another");
        assert_eq!(sentence(&Error::msg("one").context("two")), "two: one");
    }

    #[test]
    fn durations_have_two_units() {
        let said = [(5, "5 s"), (65, "1 min 5 s"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h")];
        for (seconds, text) in said {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_hundred_per_cent_is_complete() {
        assert_eq!(percent(999, 1_000), 99);
        assert_eq!(percent(1_000, 1_000), 100);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX - 1, u64::MAX), 99);
    }

    #[test]
    fn an_empty_table_is_a_sentence_and_lines_have_no_blank_ends() {
        let mut table = table(["A", "B"]);
        assert_eq!(text_of(&table, "nothing"), "nothing");
        table.add_row(["1", ""]);
        assert_eq!(text_of(&table, "nothing"), "A  B\n1");
    }

    #[test]
    fn moments_outside_of_the_calendar_do_not_fail() {
        assert_eq!(moment(Millis(u64::MAX)), "?");
        assert!(moment(Millis(0)).starts_with("19"));
    }
}
