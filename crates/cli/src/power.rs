//! `rackswarm power`: the power of nodes, through the controller.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use api::operator::{PowerAction, PowerOutcome, PowerRequest, PowerResult};
use clap::{Args, Subcommand};
use fleet::ids::{NodeName, RackName};
use futures_util::StreamExt;

use crate::connect::{Connection, explain};
use crate::output::{self, say, span};

/// What is done with power.
#[derive(Debug, Subcommand)]
#[command(after_help = HELP)]
pub(crate) enum Command {
    /// Give nodes power
    On(Arguments),
    /// Take the power of nodes at once, without asking their operating systems
    Off(Arguments),
    /// Take the power of nodes and give it again
    Cycle(Arguments),
    /// Start nodes anew without taking their power, where their controllers can do that; otherwise as cycle
    Reset(Arguments),
    /// Say whether nodes have power
    Status(Arguments),
}

const HELP: &str = "\
Examples:
  rackswarm power status --rack r1
  rackswarm power cycle n1 n2
  rackswarm power off --nodes n1,n2 --rack r2

Every change is read back. The exit status is 0 only when all nodes did as asked; a node that a person has to switch
did not. What was begun is done to its end, also when this command is ended before.";

/// Which nodes, and how.
#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = true, args = ["names", "nodes", "racks"])]
pub(crate) struct Arguments {
    /// Nodes
    #[arg(value_name = "NODE")]
    names: Vec<NodeName>,
    /// Nodes, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    nodes: Vec<NodeName>,
    /// Racks, all nodes of each; separated by commas
    #[arg(long = "rack", value_delimiter = ',', value_name = "RACK")]
    racks: Vec<RackName>,
    /// Switch nodes that are being deployed as well
    #[arg(long)]
    force: bool,
    /// How often each is tried where that may help
    #[arg(long, value_name = "TIMES", default_value_t = PowerRequest::ATTEMPTS, value_parser = clap::value_parser!(u32).range(1..=5))]
    attempts: u32,
    /// Print the API's JSON once all are done
    #[arg(long)]
    json: bool,
}

impl Command {
    fn parts(self) -> (PowerAction, Arguments) {
        match self {
            Self::On(arguments) => (PowerAction::On, arguments),
            Self::Off(arguments) => (PowerAction::Off, arguments),
            Self::Cycle(arguments) => (PowerAction::Cycle, arguments),
            Self::Reset(arguments) => (PowerAction::Reset, arguments),
            Self::Status(arguments) => (PowerAction::Status, arguments),
        }
    }
}

pub(crate) async fn run(connection: &Connection, command: Command) -> Result<ExitCode> {
    let (action, arguments) = command.parts();
    let nodes = arguments.names.into_iter().chain(arguments.nodes).collect();
    let request =
        PowerRequest { action, nodes, racks: arguments.racks, force: arguments.force, attempts: arguments.attempts };
    let mut results = std::pin::pin!(connection.client()?.power(&request).await.map_err(explain)?);
    let mut all = Vec::new();
    while let Some(result) = results.next().await {
        let result = result.map_err(explain)?;
        if !arguments.json {
            say(line(&result))?;
        }
        all.push(result);
    }
    if arguments.json {
        all.sort_by(|a, b| a.node.cmp(&b.node));
        output::show(true, &all, |_| String::new())?;
    }
    let short = shortfall(&all);
    if short.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("rackswarm: of {}, {short}", output::count(all.len(), "node"));
    Ok(ExitCode::FAILURE)
}

fn line(result: &PowerResult) -> String {
    let word = match result.outcome {
        PowerOutcome::Done => "",
        PowerOutcome::Asked => "a person is needed: ",
        PowerOutcome::Refused => "left alone: ",
        PowerOutcome::Failed => "failed: ",
    };
    let tries = if result.tries > 1 { format!(", {} tries", result.tries) } else { String::new() };
    let took = Duration::from_millis(result.milliseconds);
    let took = if took >= Duration::from_secs(1) { format!(" ({}{tries})", span(took)) } else { String::new() };
    format!("{}: {word}{}{took}", result.node, result.text)
}

/// How many did not do as asked, by kind.
fn shortfall(all: &[PowerResult]) -> String {
    let kinds = [
        (PowerOutcome::Failed, "failed"),
        (PowerOutcome::Refused, "left alone"),
        (PowerOutcome::Asked, "for a person to do"),
    ];
    let count = |outcome| all.iter().filter(|result| result.outcome == outcome).count();
    let parts = kinds.into_iter().map(|(outcome, word)| (count(outcome), word)).filter(|(count, _)| *count > 0);
    parts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fleet::node::Power;

    use super::*;

    #[test]
    fn a_line_tells_the_reason_and_the_end_how_many_fell_short() {
        let result = |outcome, text: &str| PowerResult {
            node: "n1".parse().unwrap(),
            outcome,
            power: Power::On,
            text: text.into(),
            tries: 2,
            milliseconds: 4_200,
        };
        let done = result(PowerOutcome::Done, "on");
        assert_eq!(line(&done), "n1: on (4 s, 2 tries)");
        let failed = result(PowerOutcome::Failed, "no answer");
        assert_eq!(line(&failed), "n1: failed: no answer (4 s, 2 tries)");
        let asked = result(PowerOutcome::Asked, "Please switch it on.");
        assert_eq!(shortfall(&[done.clone(), failed.clone(), failed, asked]), "2 failed, 1 for a person to do");
        assert_eq!(shortfall(&[done]), "");
    }
}
