//! `cargo xtask install`: the program and its agent, side by side in one folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::arguments::{Arguments, Usage};
use crate::packages::{self, For};
use crate::prepare::{self, Places};
use crate::run::{Ended, step};

pub(crate) fn command(mut arguments: Arguments) -> Result<Ended> {
    let prefix: PathBuf = arguments.value("--prefix")?.unwrap_or_else(|| "/usr/local".into());
    let profile = arguments.value::<String>("--profile")?.unwrap_or_else(|| "release".to_owned());
    arguments.finish()?;
    let built = match profile.as_str() {
        "release" => "release",
        "dev" => "debug",
        other => return Err(Usage::error(format!("there is no profile `{other}`: write release or dev"))),
    };

    let places = Places::find()?;
    step("Debian packages", || packages::install(For::Use))?;
    step("build rackswarm", || prepare::build_rackswarm(&profile))?;
    let agent = step("build the agent", || prepare::build_agent(&places))?;
    let folder = prefix.join("bin");
    put(&places.target.join(built).join("rackswarm"), &folder)?;
    put(&agent, &folder)?;
    println!("installed: {0}/rackswarm and {0}/rackswarm-agent", folder.display());
    println!("next: rackswarm doctor, and docs/guide/first-rack.md");
    Ok(Ended::SUCCESS)
}

/// Copies beside and renames, so that a program that runs is not written over.
fn put(program: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let Some(name) = program.file_name() else { bail!("{} has no name", program.display()) };
    let place = folder.join(name);
    let draft = place.with_extension("new");
    std::fs::copy(program, &draft)
        .with_context(|| format!("cannot copy {} to {}", program.display(), draft.display()))?;
    std::fs::rename(&draft, &place).with_context(|| format!("cannot rename {} to {}", draft.display(), place.display()))
}
