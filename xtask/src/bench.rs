//! `cargo xtask bench`: installs what the bench needs, builds the program as it is released, and starts it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arguments::Arguments;
use crate::packages::{self, For};
use crate::prepare::{self, Places};
use crate::run::{self, Ended, step};

/// Rows that the simulator measures, with their scenarios; they need no namespaces.
const SIMULATED: [(&str, &[&str]); 3] = [("n", &["10k"]), ("o", &["100k"]), ("p", &["a", "b", "d"])];

pub(crate) fn command(arguments: Arguments) -> Result<Ended> {
    let words = arguments.rest();
    let (simulated, delivered): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| SIMULATED.iter().any(|(row, _)| row == word));
    let only_simulated = !simulated.is_empty() && !delivered.iter().any(|word| !word.starts_with('-'));
    if !only_simulated && !run::is_root() {
        bail!("the bench makes network namespaces and must run as root: sudo -E env PATH=\"$PATH\" cargo xtask bench");
    }
    let places = Places::find()?;
    step("Debian packages", || packages::install(For::Tests))?;
    step("build rackswarm", || prepare::build_rackswarm("release"))?;
    let program = places.target.join("release/rackswarm");
    for row in &simulated {
        simulate(&places, &program, row)?;
    }
    if only_simulated {
        return Ok(Ended::SUCCESS);
    }
    // The bench takes this process's place: signals and the exit status are its own.
    let mut bench = Command::new(&program);
    bench.current_dir(&places.root).args(["lab", "bench"]).args(delivered);
    Err(bench.exec()).with_context(|| format!("cannot start {}", program.display()))
}

/// Runs a row's scenarios and keeps what the simulator prints.
fn simulate(places: &Places, program: &std::path::Path, row: &str) -> Result<()> {
    let scenarios = SIMULATED.iter().filter(|(known, _)| *known == row).flat_map(|(_, names)| *names);
    let mut page = format!("# Row {row}, simulated\n");
    for name in scenarios {
        let scenario = places.root.join("bench/scenarios").join(format!("{name}.toml"));
        let mut command = Command::new(program);
        command.arg("sim").arg(&scenario);
        let text = step(&format!("simulate {name}"), || run::output(&mut command))?;
        println!("{text}");
        page += &format!("\n`rackswarm sim bench/scenarios/{name}.toml`\n\n```text\n{text}\n```\n");
    }
    let commit = run::output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
    let date = run::output(Command::new("date").args(["-u", "+%F %T UTC"]))?;
    page += &format!("\n{date}, commit {commit}.\n");
    let folder = places.root.join("bench/results");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{row}.md"));
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
