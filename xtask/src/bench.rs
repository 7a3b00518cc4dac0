//! `cargo xtask bench`: installs what the bench needs, builds the program as it is released, and starts it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arguments::Arguments;
use crate::packages::{self, For};
use crate::prepare::{self, Places};
use crate::run::{self, Ended, step};

/// Rows that make neither namespaces nor control groups.
const UNPRIVILEGED: [&str; 4] = ["n", "o", "p", "enrol"];

/// The row that needs the agent's program.
const FIGURES: &str = "fig8";

pub(crate) fn command(arguments: Arguments) -> Result<Ended> {
    let words = arguments.rest();
    if needs_root(&words) && !run::is_root() {
        bail!("the bench makes network namespaces and must run as root: sudo -E env PATH=\"$PATH\" cargo xtask bench");
    }
    let places = Places::find()?;
    if needs_root(&words) {
        step("Debian packages", || packages::install(For::Bench))?;
    }
    step("build rackswarm", || prepare::build_rackswarm("release"))?;
    let program = places.target.join("release/rackswarm");
    let agent = match runs_agents(&words) {
        true => Some(step("build the agent", || prepare::build_agent(&places))?),
        false => None,
    };
    // The bench takes this process's place: signals and the exit status are its own.
    let mut bench = Command::new(&program);
    bench.current_dir(&places.root).args(["lab", "bench"]).args(words);
    if let Some(agent) = agent {
        bench.arg("--agent").arg(agent);
    }
    Err(bench.exec()).with_context(|| format!("cannot start {}", program.display()))
}

/// Rows stand before options, whose values may look like rows; without rows all of them run.
fn needs_root(words: &[String]) -> bool {
    let mut rows = rows(words).peekable();
    rows.peek().is_none() || rows.any(|row| !UNPRIVILEGED.contains(&row))
}

/// The paper's figures are drawn from agents; whoever names another has none built.
fn runs_agents(words: &[String]) -> bool {
    let mut rows = rows(words).peekable();
    let is_asked = rows.peek().is_none() || rows.any(|row| row == FIGURES);
    is_asked && !words.iter().any(|word| word == "--agent" || word.starts_with("--agent="))
}

fn rows(words: &[String]) -> impl Iterator<Item = &str> {
    words.iter().map(String::as_str).take_while(|word| !word.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulations_and_enrolment_need_no_root() {
        let needs = |text: &str| needs_root(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(needs("") && needs("a") && needs("n m") && needs("--runs 1"));
        assert!(!needs("n") && !needs("n o p enrol --runs 1"));
        assert!(needs("--work o"));
    }

    #[test]
    fn the_agent_is_built_for_the_papers_figures() {
        let builds = |text: &str| runs_agents(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(builds("") && builds("a fig8 --quick") && !builds("a b --runs 1"));
        assert!(!builds("fig8 --agent target/agent") && !builds("fig8 --agent=x"));
    }
}
