//! `cargo xtask bench`: installs what the bench needs, builds the program as it is released, and starts it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arguments::Arguments;
use crate::packages::{self, For};
use crate::prepare::{self, Places};
use crate::run::{self, Ended, step};

/// Rows without namespaces: what runs for each, by the program or by an example of a crate.
const APART: [(&str, &[Part]); 4] = [
    ("m", &[Part::Example("rackswarm-transport", "egress")]),
    ("n", &[Part::Scenario("10k")]),
    ("o", &[Part::Scenario("100k")]),
    ("p", &[Part::Scenario("a"), Part::Scenario("b"), Part::Scenario("d")]),
];

/// Something that prints a row's figures.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// `rackswarm sim` of a file in bench/scenarios.
    Scenario(&'static str),
    /// A crate's example.
    Example(&'static str, &'static str),
}

pub(crate) fn command(arguments: Arguments) -> Result<Ended> {
    let Chosen { apart, delivered, only_apart } = chosen(arguments.rest());
    if !only_apart && !run::is_root() {
        bail!("the bench makes network namespaces and must run as root: sudo -E env PATH=\"$PATH\" cargo xtask bench");
    }
    let places = Places::find()?;
    step("Debian packages", || packages::install(For::Tests))?;
    step("build rackswarm", || prepare::build_rackswarm("release"))?;
    let program = places.target.join("release/rackswarm");
    for (row, parts) in APART.iter().filter(|(row, _)| apart.iter().any(|wanted| wanted == row)) {
        measure_apart(&places, &program, row, parts)?;
    }
    if only_apart {
        return Ok(Ended::SUCCESS);
    }
    // The bench takes this process's place: signals and the exit status are its own.
    let mut bench = Command::new(&program);
    bench.current_dir(&places.root).args(["lab", "bench"]).args(delivered);
    Err(bench.exec()).with_context(|| format!("cannot start {}", program.display()))
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    apart: Vec<String>,
    /// Other rows, and options, for `rackswarm lab bench`.
    delivered: Vec<String>,
    only_apart: bool,
}

/// Rows stand before options, whose values may look like rows.
fn chosen(words: Vec<String>) -> Chosen {
    let rows = words.iter().take_while(|word| !word.starts_with('-')).count();
    let is_apart = |word: &String| APART.iter().any(|(row, _)| row == word);
    let (apart, mut delivered): (Vec<String>, Vec<String>) = words[..rows].iter().cloned().partition(is_apart);
    let only_apart = !apart.is_empty() && delivered.is_empty();
    delivered.extend_from_slice(&words[rows..]);
    Chosen { apart, delivered, only_apart }
}

/// Keeps what a row's parts print.
fn measure_apart(places: &Places, program: &Path, row: &str, parts: &[Part]) -> Result<()> {
    let mut page = format!("# Row {row}\n");
    for part in parts {
        let mut command = match part {
            Part::Scenario(name) => {
                let mut sim = Command::new(program);
                sim.arg("sim").arg(Path::new("bench/scenarios").join(format!("{name}.toml")));
                sim
            }
            Part::Example(package, name) => {
                let mut example = prepare::cargo();
                example.args(["run", "--quiet", "--release", "--locked", "-p", package, "--example", name]);
                example
            }
        };
        command.current_dir(&places.root);
        let text = step(&format!("row {row}: {part:?}"), || run::output(&mut command))?;
        println!("{text}");
        let typed = run::line(&command).replace(&places.root.display().to_string(), ".");
        page += &format!("\n`{typed}`\n\n```text\n{text}\n```\n");
    }
    let said = |program: &str, arguments: &[&str]| run::output(Command::new(program).args(arguments));
    let (commit, date) = (said("git", &["rev-parse", "--short", "HEAD"])?, said("date", &["-u", "+%F %T UTC"])?);
    page += &format!("\n{date}, commit {commit}, Linux {}.\n", said("uname", &["-r"])?);
    let folder = places.root.join("bench/results");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{row}.md"));
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_an_option_is_no_row() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let given = |text: &str| chosen(words(text));
        let is = |apart: &str, delivered: &str, only_apart: bool| Chosen {
            apart: words(apart),
            delivered: words(delivered),
            only_apart,
        };
        assert_eq!(given(""), is("", "", false));
        assert_eq!(given("n --runs 1"), is("n", "--runs 1", true));
        assert_eq!(given("a m --quick"), is("m", "a --quick", false));
        assert_eq!(given("a --work o"), is("", "a --work o", false));
    }
}
