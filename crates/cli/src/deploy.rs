//! `rackswarm deploy`: an image onto nodes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use api::operator::{DeploymentView, NewDeployment};
use clap::{ArgGroup, Args, Subcommand};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::{DeploymentId, ImageName, NodeName, RackName};

use crate::connect::{Connection, explain};
use crate::output::{self, moment, or_dash, say, show, span};
use crate::watch;

const EXAMPLES: &str = "\
Examples:
  rackswarm deploy debian --rack r1 --watch       all approved nodes of a rack, followed to the end
  rackswarm deploy debian --nodes n1,n2
  rackswarm deploy status                         all deployments
  rackswarm deploy status d-3 --watch             follow one
  rackswarm deploy cancel d-3

A node counts as running only when its booted system has proved which image it runs and from
which disk.
With --watch the exit status is 0 only when every node does.";

/// What to deploy and where, or what to do with a deployment.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = EXAMPLES,
    group = ArgGroup::new("targets").args(["nodes", "racks"]).required(true).multiple(true)
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The image
    #[arg(required = true)]
    image: Option<ImageName>,
    /// Nodes, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    nodes: Vec<NodeName>,
    /// Racks, all approved nodes of each; separated by commas
    #[arg(long = "rack", value_delimiter = ',', value_name = "RACK")]
    racks: Vec<RackName>,
    /// Follow it until every node has an outcome
    #[arg(long, short)]
    watch: bool,
    /// Print the API's JSON
    #[arg(long, conflicts_with = "watch")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All deployments, or one with its nodes
    Status {
        /// The deployment, such as d-3; without it all are listed, and --watch follows the last
        id: Option<DeploymentId>,
        /// Follow it until every node has an outcome
        #[arg(long, short, conflicts_with = "json")]
        watch: bool,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// End a deployment; nodes that are proved stay as they are
    Cancel {
        /// The deployment, such as d-3
        id: DeploymentId,
    },
}

pub(crate) async fn run(connection: &Connection, arguments: Arguments) -> Result<ExitCode> {
    let client = connection.client()?;
    match (arguments.command, arguments.image) {
        (Some(Command::Status { id: None, watch: false, json }), _) => {
            let deployments = client.deployments().await.map_err(explain)?;
            show(json, &deployments, |deployments| list(deployments))
        }
        (Some(Command::Status { id: None, watch: true, .. }), _) => {
            match client.deployments().await.map_err(explain)?.last() {
                Some(last) => watch::run(&client, last.id).await,
                None => bail!("there is no deployment to watch: `rackswarm deploy --help`"),
            }
        }
        (Some(Command::Status { id: Some(id), watch: true, .. }), _) => watch::run(&client, id).await,
        (Some(Command::Status { id: Some(id), json, .. }), _) => {
            let deployment = client.deployment(id).await.map_err(explain)?;
            show(json, &deployment, describe)
        }
        (Some(Command::Cancel { id }), _) => {
            let deployment = client.cancel(id).await.map_err(explain)?;
            say(format_args!("{} is {}", deployment.id, output::state(deployment.state)))?;
            Ok(ExitCode::SUCCESS)
        }
        (None, Some(image)) => {
            let wanted = NewDeployment { image: image.to_string(), nodes: arguments.nodes, racks: arguments.racks };
            let deployment = client.deploy(&wanted).await.map_err(explain)?;
            if arguments.watch {
                return watch::run(&client, deployment.id).await;
            }
            show(arguments.json, &deployment, started)
        }
        (None, None) => bail!("name an image: `rackswarm deploy --help`"),
    }
}

fn started(deployment: &DeploymentView) -> String {
    format!(
        "{0} puts {1} on {2}; follow it with: rackswarm deploy status {0} --watch",
        deployment.id,
        deployment.image,
        output::count(deployment.outcomes.len(), "node")
    )
}

fn list(deployments: &[DeploymentView]) -> String {
    let mut table = output::table(["DEPLOYMENT", "IMAGE", "STATE", "NODES", "RUNNING", "FAILED", "SINCE", "TOOK"]);
    for deployment in deployments {
        let count =
            |wanted: fn(&Outcome) -> bool| deployment.outcomes.values().filter(|o| wanted(o)).count().to_string();
        let took = deployment.finished_at.map(|end| span(Duration::from_millis(end.since(deployment.created_at))));
        table.add_row([
            deployment.id.to_string(),
            deployment.image.to_string(),
            output::state(deployment.state).to_owned(),
            deployment.outcomes.len().to_string(),
            count(|o| matches!(o, Outcome::Running { .. })),
            count(|o| matches!(o, Outcome::Failed { .. })),
            moment(deployment.created_at),
            or_dash(took),
        ]);
    }
    output::text_of(&table, "no deployments yet: `rackswarm deploy --help`")
}

fn describe(deployment: &DeploymentView) -> String {
    let ended = match (deployment.state, deployment.finished_at) {
        (DeploymentState::Active, _) | (_, None) => String::new(),
        (_, Some(end)) => format!(", took {}", span(Duration::from_millis(end.since(deployment.created_at)))),
    };
    let mut table = output::table(["NODE", "OUTCOME", "NOTE"]);
    for (node, outcome) in &deployment.outcomes {
        let (word, note, meaning) = output::outcome(outcome);
        table.add_row([node.to_string().into(), output::painted(word, meaning), note.into()]);
    }
    format!(
        "{}: {} ({}), {}, since {}{ended}\n{}",
        deployment.id,
        deployment.image,
        deployment.digest,
        output::state(deployment.state),
        moment(deployment.created_at),
        output::text_of(&table, "no nodes")
    )
}
