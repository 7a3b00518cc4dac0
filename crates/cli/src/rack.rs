//! `rackswarm rack`: racks and what their nodes have in common.

use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::operator::{RackSettings, RackView};
use clap::Subcommand;
use fleet::ids::RackName;

use crate::connect::{Connection, explain};
use crate::output::{self, say, show};
use crate::post;

/// What is done with racks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All racks: how many of their nodes are in which stage
    #[command(visible_alias = "ls")]
    List {
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a rack, or change the post actions of its nodes; options that are not given keep what is set
    #[command(after_help = "Example:\n  rackswarm rack set r1 --authorized-keys ~/.ssh/id_ed25519.pub")]
    Set {
        /// The rack
        name: RackName,
        #[command(flatten)]
        post: Box<post::Options>,
    },
    /// Remove a rack that holds no nodes
    #[command(visible_alias = "rm")]
    Remove {
        /// The rack
        name: RackName,
    },
}

pub(crate) async fn run(connection: &Connection, command: Command) -> Result<ExitCode> {
    let client = connection.client()?;
    match command {
        Command::List { json } => {
            let racks = client.racks().await.map_err(explain)?;
            show(json, &racks, |racks| list(racks))
        }
        Command::Set { name, post } => set(&client, &name, &post).await,
        Command::Remove { name } => {
            client.remove_rack(&name).await.map_err(explain)?;
            say(format_args!("{name} is removed"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn set(client: &Client, name: &RackName, options: &post::Options) -> Result<ExitCode> {
    let racks = client.racks().await.map_err(explain)?;
    let former = racks.into_iter().find(|rack| rack.name == *name).map(|rack| rack.post);
    let is_new = former.is_none();
    let former = former.unwrap_or_default();
    let post = options.settings(&former)?.unwrap_or(former);
    let rack = client.put_rack(name, &RackSettings { post }).await.map_err(explain)?;
    say(format_args!("{} is {}", rack.name, if is_new { "added" } else { "set" }))?;
    for (action, value) in post::describe(&rack.post) {
        say(format_args!("  {action}: {value}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(racks: &[RackView]) -> String {
    let mut table = output::table(["RACK", "NODES", "STAGES", "POST ACTIONS"]);
    for rack in racks {
        let stages: Vec<String> =
            rack.stages.iter().filter(|(_, n)| **n > 0).map(|(stage, n)| format!("{n} {stage}")).collect();
        let post: Vec<&str> = post::describe(&rack.post).into_iter().map(|(action, _)| action).collect();
        let nodes: u32 = rack.stages.values().sum();
        table.add_row([rack.name.to_string(), nodes.to_string(), stages.join(", "), post.join(", ")]);
    }
    output::text_of(&table, "no racks yet: `rackswarm rack set NAME` adds one")
}
