//! `rackswarm doctor`: what is missing on this machine and its network, and how to fix it.

mod clock;
mod files;
mod foreign_dhcp;
mod interface;
mod ports;
mod privileges;
mod programs;
mod space;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use controller::Config;
use serde::Serialize;

use crate::connect::Connection;
use crate::output::{self, Meaning, say};
use crate::serve;

const HELP: &str = "\
Each finding says what was looked at, and what to do where something is wrong. Run it as root: as
somebody else it sees less. The exit status is 1 when something must be fixed before
`rackswarm serve` can work, and 0 when there are warnings only.

It sends a DHCP DISCOVER from the interface of the configuration, as a new machine would, to find
foreign DHCP servers.";

/// What is looked at.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// The configuration of the controller; without it the default file, or the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Send nothing: do not look for foreign DHCP servers
    #[arg(long)]
    quiet_wire: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Pass,
    /// It works, but not everything, or not for long.
    Warn,
    /// It cannot work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What, in one or two words; stable.
    check: &'static str,
    verdict: Verdict,
    /// What was found, as a sentence.
    text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn pass(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Pass, text: text.into(), fix: None }
    }

    fn warn(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, text: text.into(), fix: Some(fix.into()) }
    }

    fn fail(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, text: text.into(), fix: Some(fix.into()) }
    }
}

/// The whole answer of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    verdict: Verdict,
    findings: &'a [Finding],
}

pub(crate) fn run(connection: &Connection, arguments: &Arguments) -> Result<ExitCode> {
    let findings = match serve::configuration(arguments.config.as_deref()) {
        Ok((config, from)) => {
            let mut findings = vec![Finding::pass("configuration", from)];
            findings.extend(examine(connection, &config, arguments.quiet_wire));
            findings
        }
        Err(error) => vec![Finding::fail(
            "configuration",
            output::sentence(&error),
            "correct the file; `rackswarm serve --print-config` prints one with every key",
        )],
    };
    let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Pass);
    if arguments.json {
        say(serde_json::to_string_pretty(&Report { verdict, findings: &findings })?)?;
    } else {
        print(&findings, verdict)?;
    }
    Ok(if verdict == Verdict::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// In the order in which a machine would run into them.
fn examine(connection: &Connection, config: &Config, quiet_wire: bool) -> Vec<Finding> {
    let mut findings = privileges::check(config);
    findings.extend(interface::check(config));
    findings.extend(ports::check(config));
    if !quiet_wire {
        findings.extend(foreign_dhcp::check(config));
    }
    findings.extend(space::check(config));
    findings.extend(clock::check(config));
    findings.extend(files::check(config));
    findings.extend(programs::check(connection));
    findings
}

fn print(findings: &[Finding], verdict: Verdict) -> Result<()> {
    let mut table = output::table(["CHECK", "RESULT", "FINDING"]);
    for finding in findings {
        let (word, meaning) = match finding.verdict {
            Verdict::Pass => ("pass", Meaning::Good),
            Verdict::Warn => ("warn", Meaning::Busy),
            Verdict::Fail => ("FAIL", Meaning::Bad),
        };
        let text = match &finding.fix {
            Some(fix) => format!("{}\n-> {fix}", finding.text),
            None => finding.text.clone(),
        };
        table.add_row([finding.check.into(), output::painted(word, meaning), text.into()]);
    }
    say(output::text_of(&table, ""))?;
    say(match verdict {
        Verdict::Pass => "everything is as it should be",
        Verdict::Warn => "it works, with the warnings above",
        Verdict::Fail => "something must be fixed first",
    })
}

/// `a`, `a and b`, `a, b and c`.
fn listed(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
