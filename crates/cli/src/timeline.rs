//! `rackswarm node timeline`: what happened to a node, and what happens.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use api::client::{Client, ClientError};
use api::operator::{StreamEvent, TimelineLine};
use clap::Args;
use fleet::ids::NodeName;
use futures_util::StreamExt;

use crate::connect::explain;
use crate::output::{moment, say, show};

/// Pause before the controller is asked again.
const PAUSE: Duration = Duration::from_secs(2);

/// Which node, and how.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The node
    name: NodeName,
    /// Go on with what happens from now on, also when the controller restarts; ends with Ctrl-C
    #[arg(long, short, conflicts_with = "json")]
    follow: bool,
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let lines = client.timeline(&arguments.name).await.map_err(explain)?;
    if !arguments.follow {
        return show(arguments.json, &lines, |lines| text(lines));
    }
    let mut printed = Printed::default();
    printed.print(&lines)?;
    tokio::select! {
        result = follow(client, &arguments.name, &mut printed) => result.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
    }
}

/// Reads the stream, and the whole timeline anew whenever the stream may have missed something.
async fn follow(client: &Client, name: &NodeName, printed: &mut Printed) -> Result<()> {
    loop {
        match follow_once(client, name, printed).await {
            Ok(()) => {}
            Err(Stop::Client(error)) if error.may_pass() => eprintln!("rackswarm: {error}; trying again"),
            Err(Stop::Client(error)) => return Err(explain(error)),
            Err(Stop::Other(error)) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Stop {
    Client(ClientError),
    Other(anyhow::Error),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

async fn follow_once(client: &Client, name: &NodeName, printed: &mut Printed) -> Result<(), Stop> {
    let mut events = pin!(client.events().await?);
    // Only now, so that nothing falls between the two.
    printed.print(&client.timeline(name).await?).map_err(Stop::Other)?;
    while let Some(event) = events.next().await {
        match event? {
            StreamEvent::Timeline(line) if line.node == *name => printed.print(&[line]).map_err(Stop::Other)?,
            StreamEvent::Missed => return Ok(()),
            StreamEvent::NodeGone { name: gone } if gone == *name => {
                return Err(Stop::Other(anyhow::anyhow!("{name} was removed")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What has been printed, so that a line read twice is printed once.
#[derive(Default)]
struct Printed {
    last: Vec<TimelineLine>,
}

impl Printed {
    fn print(&mut self, lines: &[TimelineLine]) -> Result<()> {
        for line in self.fresh(lines) {
            say(sentence(&line))?;
        }
        Ok(())
    }

    /// Lines that are later than what was printed, or of the same moment but not among it.
    fn fresh(&mut self, lines: &[TimelineLine]) -> Vec<TimelineLine> {
        let mut fresh = Vec::new();
        for line in lines {
            let newest = self.last.last().map(|line| line.at);
            if newest.is_some_and(|newest| line.at < newest) || self.last.contains(line) {
                continue;
            }
            if newest.is_some_and(|newest| line.at > newest) {
                self.last.clear();
            }
            self.last.push(line.clone());
            fresh.push(line.clone());
        }
        fresh
    }
}

fn text(lines: &[TimelineLine]) -> String {
    if lines.is_empty() {
        return "nothing has happened yet".to_owned();
    }
    lines.iter().map(sentence).collect::<Vec<_>>().join("\n")
}

fn sentence(line: &TimelineLine) -> String {
    // Outputs of scripts have several lines; the following ones stay under the first.
    let text = line.text.trim_end().replace('\n', "\n    ");
    format!("{}  attempt {:<3} {:<18}  {text}", moment(line.at), line.attempt, line.stage.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fleet::ids::Millis;
    use fleet::life::Stage;

    use super::*;

    fn line(at: u64, text: &str) -> TimelineLine {
        TimelineLine {
            node: "n1".parse().unwrap(),
            at: Millis(at),
            attempt: 1,
            stage: Stage::Fetching,
            kind: "x".into(),
            text: text.into(),
        }
    }

    #[test]
    fn lines_read_twice_are_printed_once() {
        let mut printed = Printed::default();
        assert_eq!(printed.fresh(&[line(1, "a"), line(2, "b"), line(2, "c")]).len(), 3);
        assert_eq!(printed.fresh(&[line(1, "a"), line(2, "b"), line(2, "c"), line(2, "d"), line(3, "e")]).len(), 2);
        assert_eq!(printed.fresh(&[line(3, "e")]).len(), 0);
    }

    #[test]
    fn outputs_of_several_lines_stay_together() {
        assert!(sentence(&line(0, "one\ntwo\n")).ends_with("one\n    two"));
    }
}
