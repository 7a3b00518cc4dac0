//! `rackswarm completions`: commands completed by the shell.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  rackswarm completions bash > /etc/bash_completion.d/rackswarm
  rackswarm completions zsh  > ~/.zfunc/_rackswarm
  rackswarm completions fish > ~/.config/fish/completions/rackswarm.fish";

/// Which shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // The generator panics when it cannot write, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::command_line(), "rackswarm", &mut script);
    std::io::stdout().lock().write_all(&script).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
