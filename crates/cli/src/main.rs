//! `rackswarm`: the controller, its client and its tools in one program.

mod bootenv;
mod completions;
mod connect;
mod deploy;
mod doctor;
mod expected;
mod fetch;
mod generate;
mod image;
mod lab;
mod layout;
mod node;
mod output;
mod parse;
mod plan;
mod post;
mod power;
mod rack;
mod seed;
mod serve;
mod set;
mod sim;
mod swarming;
mod timeline;
mod torrent;
mod track;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use connect::Connection;

const EXAMPLES: &str = "\
A first rack, step by step:
  rackswarm serve --print-config > /etc/rackswarm.toml   every key with its default
  rackswarm doctor                                       what is missing here, and how to fix it
  rackswarm bootenv build                                what machines boot over the network
  rackswarm serve
  rackswarm rack set r1
  rackswarm node add n1 --rack r1 --mac 52:54:00:12:34:56 --power manual:
  rackswarm image import debian.qcow2 --name debian
  rackswarm deploy debian --rack r1 --watch

Exit status: 0 when it is done, 1 when it failed (a sentence on standard error says why),
2 when the command line is wrong.";

/// Turns racks of bare machines into running, verified systems.
#[derive(Debug, Parser)]
#[command(name = "rackswarm", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller: DHCP, TFTP, HTTP boot, tracker, seeder and API in one process
    Serve(serve::Arguments),
    /// Machines: add, change, approve, look at, release
    #[command(subcommand)]
    Node(node::Command),
    /// Sets of machines that one owner lists: a chassis, a cloud, a file
    #[command(subcommand)]
    Set(set::Command),
    /// The power of nodes, through the controller
    #[command(subcommand)]
    Power(power::Command),
    /// Racks and the settings that their nodes share
    #[command(subcommand)]
    Rack(rack::Command),
    /// Disk images: import, look at, remove, build
    #[command(subcommand)]
    Image(image::Command),
    /// Partition layouts: check, build
    #[command(subcommand)]
    Layout(layout::Command),
    /// Put an image on nodes, and follow it until their booted systems have proved it
    Deploy(deploy::Arguments),
    /// Seed one file and track its swarm, without a controller
    Seed(seed::Arguments),
    /// Fetch a file through a swarm onto a disk or into a file, verified, without a controller
    Fetch(fetch::Arguments),
    /// Make the .torrent of a file
    Torrent(torrent::Arguments),
    /// Track swarms that others seed
    Track(track::Arguments),
    /// Simulate a swarm of 1 to 100,000 nodes in virtual time, with the production engine
    Sim(sim::Arguments),
    /// What a delivery takes at least, what limits it, and what to expect
    Plan(plan::Arguments),
    /// Kernel and initramfs that machines start over the network
    #[command(subcommand)]
    Bootenv(bootenv::Command),
    /// Find out what is missing on this machine and its network, and how to fix it
    Doctor(doctor::Arguments),
    /// A rack of virtual machines, virtual controllers, and power drivers by hand
    #[command(subcommand)]
    Lab(lab::Command),
    /// Print the OpenAPI document of the controller's HTTP interface
    Openapi,
    /// Print a script that completes commands in your shell
    Completions(completions::Arguments),
    /// Write the documents that are printed by the program itself
    #[command(hide = true)]
    Generate(generate::Arguments),
}

/// Commands that ask no controller, and so do not show how to reach one.
const ALONE: [&str; 11] =
    ["serve", "seed", "fetch", "torrent", "track", "sim", "plan", "bootenv", "lab", "openapi", "completions"];
/// What the parser finds wrong, and what we find of that kind.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rackswarm: {}", output::sentence(&error));
            if error.is::<output::WrongUsage>() { WRONG_USAGE.into() } else { ExitCode::FAILURE }
        }
    }
}

fn parse() -> Result<Cli, ExitCode> {
    let mut line = command_line();
    let matches = line.try_get_matches_from_mut(std::env::args_os());
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| {
        let error = error.format(&mut line);
        // Where standard output or error is closed there is nobody to tell.
        let _ = error.print();
        let is_cut = std::env::args().any(|word| word.starts_with("magnet:"));
        if is_cut && error.kind() == ErrorKind::MissingRequiredArgument {
            eprintln!("\n  tip: put the magnet link between quotes; the shell cuts it at its first `&` otherwise");
        }
        u8::try_from(error.exit_code()).unwrap_or(WRONG_USAGE).into()
    })
}

/// The command line as it is parsed and documented.
fn command_line() -> clap::Command {
    let line = Cli::command();
    let of_all: Vec<Arg> = line.get_arguments().filter(|option| option.is_global_set()).cloned().collect();
    let hidden = |option: &Arg| option.clone().hide(true);
    line.mut_subcommands(|command| {
        if ALONE.contains(&command.get_name()) { command.args(of_all.iter().map(hidden)) } else { command }
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let connection = cli.connection;
    match cli.command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Node(command) => wait(node::run(&connection, command)),
        Command::Set(command) => wait(set::run(&connection, command)),
        Command::Power(command) => wait(power::run(&connection, command)),
        Command::Rack(command) => wait(rack::run(&connection, command)),
        Command::Image(image::Command::Build(arguments)) => image::build::run(&arguments),
        Command::Image(command) => wait(image::run(&connection, command)),
        Command::Deploy(arguments) => wait(deploy::run(&connection, arguments)),
        Command::Seed(arguments) => seed::run(&arguments),
        Command::Fetch(arguments) => fetch::run(&arguments),
        Command::Torrent(arguments) => torrent::run(&arguments),
        Command::Track(arguments) => track::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Layout(command) => layout::run(command),
        Command::Bootenv(command) => bootenv::run(&command),
        Command::Doctor(arguments) => doctor::run(&connection, &arguments),
        Command::Lab(command) => lab::run(command),
        Command::Openapi => generate::print_openapi(),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
    }
}

/// Runs a command that waits for the network. One thread is enough for a client.
fn wait(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command_line().debug_assert();
    }
}
