//! `cargo xtask generated`: documents that are printed by the program itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arguments::Arguments;
use crate::prepare::{self, Places};
use crate::run::{self, Ended};

/// Folder in the repository.
const FOLDER: &str = "docs/generated";

pub(crate) fn command(mut arguments: Arguments) -> Result<Ended> {
    let check_only = arguments.flag("--check");
    arguments.finish()?;
    let places = Places::find()?;
    prepare::build_rackswarm("dev")?;
    if check_only {
        check(&places)?
    } else {
        write(&places, &places.root.join(FOLDER))?
    }
    Ok(Ended::SUCCESS)
}

fn write(places: &Places, folder: &Path) -> Result<()> {
    run::must(Command::new(places.rackswarm()).args(["generate", "--out"]).arg(folder))
}

/// Compares the tracked documents with what the program prints now.
pub(crate) fn check(places: &Places) -> Result<()> {
    let fresh = places.target.join("generated-documents");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    write(places, &fresh)?;
    let mut compare = Command::new("diff");
    compare.args(["-u", "-r"]).arg(places.root.join(FOLDER)).arg(&fresh);
    match run::wait(&mut compare, None)? {
        Ended::Exited(0) => Ok(()),
        _ => bail!("{FOLDER} is not what the program prints: run `cargo xtask generated` and commit the result"),
    }
}
