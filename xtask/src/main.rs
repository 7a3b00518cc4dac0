//! `cargo xtask`: the commands of this repository, for newcomers, developers and CI.
//!
//! Each command does its own set-up, prints every step with its time, and ends with the exit status of what it ran.

mod arguments;
mod bench;
mod demo;
mod fuzz;
mod generated;
mod install;
mod packages;
mod prepare;
mod run;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;

use arguments::{Arguments, Usage};
use run::Ended;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [--nodes N] [--json FILE]   a rack of virtual machines, from power-on to a proved system (default: 4 nodes);
                                   as root; installs, builds and caches what it needs first
  bench [ROW...] [--runs N]        deliveries in network namespaces, measured beside other programs on the same work;
        [--quick] [--peers]        as root; installs and builds what it needs; row m is one process, n, o and p are
                                   simulated. More options: target/release/rackswarm lab bench --help
  test [--tier a|interop|b|c|long|vm|all]
                                   every check of this repository (default: all);
                                   a: formatting, lints, tests without virtual machines, documents
                                   interop: with aria2, transmission, libtorrent and rqbit as they come
                                   b: one virtual machine for each way to boot and each fault
                                   c: ten virtual machines at once
                                   vm: b and c
  install [--prefix DIR]           build rackswarm and its agent and put them into DIR/bin (default: /usr/local);
          [--profile release|dev]  dev builds faster and runs slower
  tidy                             ARCHITECTURE.md, SPECIFICATION.md and the sources against each other
  generated [--check]              write docs/generated anew, or compare it
  fuzz [SECONDS] [TARGET]          every fuzz target, or one, for SECONDS each (default: 30)
";

fn main() -> ExitCode {
    match dispatch(Arguments::from_env()) {
        Ok(ended) => ended.exit_code(),
        Err(error) => match error.downcast_ref::<Usage>() {
            Some(usage) => {
                eprint!("xtask: {usage}\n\n{USAGE}");
                ExitCode::from(2)
            }
            None => {
                eprintln!("xtask: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn dispatch(mut arguments: Arguments) -> Result<Ended> {
    run::catch_signals()?;
    match arguments.positional().as_deref() {
        Some("demo") => demo::command(arguments),
        Some("bench") => bench::command(arguments),
        Some("test") => test::command(arguments),
        Some("install") => install::command(arguments),
        Some("tidy") => tidy::command(arguments),
        Some("generated") => generated::command(arguments),
        Some("fuzz") => fuzz::command(arguments),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(Ended::SUCCESS)
        }
        Some(other) => Err(Usage::error(format!("there is no command `{other}`"))),
        None => Err(Usage::error("a command is missing")),
    }
}
