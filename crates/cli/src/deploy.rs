//! `rackswarm deploy`: an image onto nodes.

mod options;
mod preview;
mod report;
mod show;

use std::process::ExitCode;

use anyhow::{Result, bail};
use api::operator::{NewDeployment, PauseRequest, ResumeRequest, RetryRequest};
use clap::{ArgGroup, Args, Subcommand};
use fleet::ids::{DeploymentId, ImageName, NodeName, RackName};
use fleet::rollout::Window;

use crate::connect::{Connection, explain};
use crate::output::{self, say, show};
use crate::watch;
use options::RolloutOptions;

const EXAMPLES: &str = "\
Examples:
  rackswarm deploy debian --rack r1 --watch       all approved nodes of a rack, followed to the end
  rackswarm deploy debian --nodes n1,n2
  rackswarm deploy debian --rack r1,r2,r3 --canary 3 --at-once-per-rack 10 --failure-budget 5%
                                                  three nodes first; the rest when these are proved
  rackswarm deploy debian --rack r1 --dry-run     the waves, how long it takes, what is lost on each disk
  rackswarm deploy debian --rack r1 --window 22:00-06:00
  rackswarm deploy status                         all deployments
  rackswarm deploy status d-3 --watch             follow one
  rackswarm deploy pause d-3                      nothing new starts; then resume, retry or cancel
  rackswarm deploy retry d-3                      the failed nodes once more
  rackswarm deploy report d-3                     times, bytes, failures, stragglers

A node counts as running only when its booted system has proved which image it runs and from
which disk.
With --watch the exit status is 0 only when every node does; a deployment that is paused with
nothing under way is not waited for.";

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
    #[command(flatten)]
    rollout: RolloutOptions,
    /// Say what would happen, how long it takes and what would be lost on each disk; change nothing
    #[arg(long, conflicts_with = "watch")]
    dry_run: bool,
    #[command(flatten)]
    links: preview::Links,
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
    /// Start no more nodes; those that have started go on to their end
    Pause {
        /// The deployment, such as d-3
        id: DeploymentId,
        /// Only in this rack
        #[arg(long)]
        rack: Option<RackName>,
    },
    /// Go on after a pause, in spite of the failures so far
    ///
    /// Nodes that have failed count for no failure budget any more, and a canary that failed holds up nobody.
    Resume {
        /// The deployment, such as d-3
        id: DeploymentId,
        /// Only in this rack
        #[arg(long)]
        rack: Option<RackName>,
        /// Maintenance windows instead of those that it has, as for `deploy --window`
        #[arg(long = "window", value_name = "WINDOW", value_parser = options::window)]
        windows: Vec<Window>,
        /// Without maintenance windows from now on
        #[arg(long, conflicts_with = "windows")]
        any_time: bool,
    },
    /// Try failed nodes once more: all of a deployment, or those that are named
    Retry {
        /// The deployment, such as d-3
        id: DeploymentId,
        /// Only these nodes, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "NODE")]
        nodes: Vec<NodeName>,
    },
    /// What a deployment came to: times by stage, bytes, failures with their reasons, stragglers
    Report {
        /// The deployment, such as d-3
        id: DeploymentId,
        /// Also each node with the time of each of its stages
        #[arg(long, conflicts_with = "json")]
        nodes: bool,
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
    let Arguments { command, image, nodes, racks, rollout, dry_run, links, watch, json } = arguments;
    let command = match (command, image) {
        (Some(command), _) => command,
        (None, None) => bail!("name an image: `rackswarm deploy --help`"),
        (None, Some(image)) => {
            let wanted = NewDeployment { image: image.to_string(), nodes, racks, rollout: rollout.into_rollout() };
            if dry_run {
                let seen = client.preview(&wanted).await.map_err(explain)?;
                return preview::show(json, &seen, &links);
            }
            let deployment = client.deploy(&wanted).await.map_err(explain)?;
            if watch {
                return watch::run(&client, deployment.id).await;
            }
            return show(json, &deployment, show::started);
        }
    };
    match command {
        Command::Status { id: None, watch: false, json } => {
            let deployments = client.deployments().await.map_err(explain)?;
            show(json, &deployments, |deployments| show::list(deployments))
        }
        Command::Status { id: None, watch: true, .. } => match client.deployments().await.map_err(explain)?.last() {
            Some(last) => watch::run(&client, last.id).await,
            None => bail!("there is no deployment to watch: `rackswarm deploy --help`"),
        },
        Command::Status { id: Some(id), watch: true, .. } => watch::run(&client, id).await,
        Command::Status { id: Some(id), json, .. } => {
            let deployment = client.deployment(id).await.map_err(explain)?;
            show(json, &deployment, show::describe)
        }
        Command::Pause { id, rack } => {
            let deployment = client.pause(id, &PauseRequest { rack: rack.clone() }).await.map_err(explain)?;
            say(show::paused(&deployment, rack.as_ref()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Resume { id, rack, windows, any_time } => {
            let windows = (any_time || !windows.is_empty()).then_some(windows);
            let deployment = client.resume(id, &ResumeRequest { rack, windows }).await.map_err(explain)?;
            say(show::goes_on(&deployment))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Retry { id, nodes } => {
            let deployment = client.retry(id, &RetryRequest { nodes }).await.map_err(explain)?;
            say(show::goes_on(&deployment))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Report { id, nodes, json } => {
            let report = client.report_of(id).await.map_err(explain)?;
            show(json, &report, |found| report::text(found, nodes))
        }
        Command::Cancel { id } => {
            let deployment = client.cancel(id).await.map_err(explain)?;
            say(format_args!("{} is {}", deployment.id, output::state(&deployment)))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
