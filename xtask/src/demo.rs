//! `cargo xtask demo`: everything from a clone to a rack of proved systems.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arguments::{Arguments, Usage};
use crate::packages::{self, For};
use crate::prepare::{self, Places};
use crate::run::{self, Ended, step};

/// Two cores carry this many machines before their timers fail.
const NODES_MAX: u32 = 64;

pub(crate) fn command(mut arguments: Arguments) -> Result<Ended> {
    let nodes = arguments.value::<u32>("--nodes")?.unwrap_or(4);
    let json = arguments.value::<String>("--json")?;
    arguments.finish()?;
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(Usage::error(format!("--nodes is {nodes}, write 1 to {NODES_MAX}")));
    }
    if !run::is_root() {
        bail!("the demo makes network namespaces and must run as root: sudo -E env PATH=\"$PATH\" cargo xtask demo");
    }

    let places = Places::find()?;
    step("Debian packages", || packages::install(For::Demo))?;
    step("build rackswarm", || prepare::build_rackswarm("dev"))?;
    let agent = step("build the agent", || prepare::build_agent(&places))?;
    step("boot environment", || prepare::build_bootenv(&places, &agent))?;
    step("golden image", || prepare::build_image(&places, "debian", &places.golden()))?;

    println!("==> {nodes} machines");
    let mut demo = Command::new(places.rackswarm());
    demo.args(["lab", "demo", "--nodes", &nodes.to_string()]);
    demo.arg("--bootenv").arg(places.bootenv()).arg("--image").arg(places.golden());
    if let Some(file) = json {
        demo.args(["--json", &file]);
    }
    // The demo takes this process's place: signals and the exit status are its own.
    Err(demo.exec()).with_context(|| format!("cannot start {}", places.rackswarm().display()))
}
