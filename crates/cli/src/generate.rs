//! Documents that the program prints about itself, so that they cannot be wrong for long.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use fleet::life::{LIFE, Stage};

use crate::output::say;

/// Width of the help texts in the documents, in characters.
const WIDTH: usize = 100;

/// Where to.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder; made where it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let folder = &arguments.out;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, text) in [
        ("openapi.json", controller::openapi_json()),
        ("rackswarm.toml", controller::print_config()),
        ("commands.md", commands()),
        ("life.md", life()),
        ("power.md", power_drivers()),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn print_openapi() -> Result<ExitCode> {
    say(controller::openapi_json().trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// The help of every command.
fn commands() -> String {
    let mut text = "# Commands\n\nPrinted by `cargo xtask generated`.\n".to_owned();
    let mut root = crate::command_line().term_width(WIDTH);
    root.build();
    add_command(&mut text, &root);
    text
}

fn add_command(text: &mut String, command: &clap::Command) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.clone().term_width(WIDTH).render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        add_command(text, sub);
    }
}

/// The table of a node's life.
fn life() -> String {
    let mut text = "# A node's life\n\nPrinted by `cargo xtask generated` from the table in crates/fleet/src/life.rs. Whatever stands in \
                    no row is unexpected: it is counted, kept in the timeline and changes nothing.\n\n\
                    | stage | waits for |\n|---|---|\n"
        .to_owned();
    for stage in Stage::ALL {
        let _ = writeln!(text, "| {stage} | {} |", stage.waits_for());
    }
    text.push_str("\n| from | cause | to |\n|---|---|---|\n");
    for row in LIFE {
        let from: Vec<&str> = row.from.iter().map(|stage| stage.as_str()).collect();
        let to = row.to.map_or("stays", Stage::as_str);
        let _ = writeln!(text, "| {} | {:?} | {to} |", from.join(", "), row.cause);
    }
    text
}

/// The table of power drivers.
fn power_drivers() -> String {
    let mut text = "# Power drivers\n\nPrinted by `cargo xtask generated` from the table in crates/power/src/lib.rs. Every address takes \
                    `limit_seconds=1..600`, the deadline of one operation.\n\n\
                    | driver | what it is | example | seconds |\n|---|---|---|---|\n"
        .to_owned();
    for driver in power::DRIVERS {
        let help = driver.help.replace('|', "\\|");
        let _ = writeln!(text, "| {} | {help} | `{}` | {} |", driver.scheme, driver.example, driver.limit.as_secs());
    }
    text.push_str(
        "\n## Sets\n\nPrinted from the table in crates/power/src/set.rs. Every address takes `limit_seconds=1..3600`. The file of the \
         secret may be given apart, as `--credentials-file` or `credentials_file`.\n\n\
         | set | what it is | example | secret | seconds |\n|---|---|---|---|---|\n",
    );
    for set in power::SETS {
        let (help, secret) = (set.help.replace('|', "\\|"), set.credentials.unwrap_or("-"));
        let _ = writeln!(text, "| {} | {help} | `{}` | {secret} | {} |", set.scheme, set.example, set.limit.as_secs());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_is_documented() {
        let text = commands();
        for command in [
            "rackswarm serve",
            "rackswarm node add",
            "rackswarm deploy status",
            "rackswarm lab power",
            "rackswarm set sync",
            "rackswarm power reset",
            "rackswarm lab bmc",
        ] {
            assert!(text.contains(&format!("\n## {command}\n")), "{command}");
        }
        assert!(!text.contains("## rackswarm generate"));
    }

    #[test]
    fn the_life_has_every_stage() {
        let text = life();
        assert!(Stage::ALL.iter().all(|stage| text.contains(stage.as_str())));
    }
}
