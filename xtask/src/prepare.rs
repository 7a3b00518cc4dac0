//! What the demo and the tests need before they can begin: programs, agent, boot environment, golden image.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::run::{self, Ended};

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";
/// A target is 40 MB; without an answer after this time the other way is taken.
const TARGET_LIMIT: Duration = Duration::from_secs(180);

/// Where everything is.
pub(crate) struct Places {
    /// The workspace.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    /// What is built once and kept: boot environment and golden image.
    pub(crate) cache: PathBuf,
}

impl Places {
    pub(crate) fn find() -> Result<Self> {
        let text = run::output(cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
        let metadata: Value = serde_json::from_str(&text).context("cargo metadata did not print JSON")?;
        let place = |key: &str| {
            metadata[key].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata names no {key}"))
        };
        let target = place("target_directory")?;
        Ok(Self { root: place("workspace_root")?, cache: target.join("rackswarm-cache"), target })
    }

    /// The `rackswarm` program of the dev profile.
    pub(crate) fn rackswarm(&self) -> PathBuf {
        self.target.join("debug/rackswarm")
    }

    /// Kernel and initramfs.
    pub(crate) fn bootenv(&self) -> PathBuf {
        self.cache.join("bootenv")
    }

    /// The bootable Debian.
    pub(crate) fn golden(&self) -> PathBuf {
        self.cache.join("golden-debian.raw")
    }

    /// The image of some MiB that the tests deploy.
    pub(crate) fn small(&self) -> PathBuf {
        self.cache.join("golden-small.raw")
    }
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds the `rackswarm` program in a profile of Cargo.toml.
pub(crate) fn build_rackswarm(profile: &str) -> Result<()> {
    run::must(cargo().args(["build", "--locked", "-p", "rackswarm", "--profile", profile]))
}

/// A Python environment of the tests: its folder in `target`, what must be importable, what installs it.
struct PythonEnvironment {
    folder: &'static str,
    imports: &'static str,
    requirements: &'static [&'static str],
}

/// Debian's, by its path: only this one sees the bindings that are Debian packages, and another may come first in `PATH`.
const PYTHON: &str = "/usr/bin/python3";

const PYTHON_ENVIRONMENTS: &[PythonEnvironment] = &[
    // The client that judges torrents of version 2.
    PythonEnvironment { folder: "libtorrent-venv", imports: "import libtorrent", requirements: &["libtorrent>=2,<3"] },
    // A cloud's query API, and a Redfish server before libvirt (whose binding is a Debian package).
    PythonEnvironment {
        folder: "power-venv",
        imports: "import moto.server, sushy_tools, libvirt",
        requirements: &["moto[ec2,server]==5.2.5", "sushy-tools==2.2.0"],
    },
];

/// Counterparts of the tests that are Python programs, each set in an environment where the tests look for it.
pub(crate) fn install_python_programs(places: &Places) -> Result<()> {
    PYTHON_ENVIRONMENTS.iter().try_for_each(|environment| {
        let folder = places.target.join(environment.folder);
        let python = folder.join("bin/python");
        let imports = || Command::new(&python).args(["-c", environment.imports]).stderr(Stdio::null()).status();
        if imports().is_ok_and(|status| status.success()) {
            return Ok(());
        }
        run::must(Command::new(PYTHON).args(["-m", "venv", "--clear", "--system-site-packages"]).arg(&folder))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run::must(Command::new(&python).args(pip).args(environment.requirements))?;
        run::must(Command::new(&python).args(["-c", environment.imports]))
    })
}

/// Builds the static agent and returns its path.
pub(crate) fn build_agent(places: &Places) -> Result<PathBuf> {
    let target = if musl_is_there() { MUSL } else { GNU };
    let mut command = cargo();
    command.args(["build", "--locked", "-p", "rackswarm-agent", "--profile", "agent", "--target", target]);
    if target == MUSL {
        command.env("CC_x86_64_unknown_linux_musl", "musl-gcc");
    } else {
        println!(
            "    the target {MUSL} cannot be had; the agent is linked statically with glibc instead, about 1 MB larger"
        );
        command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    run::must(&mut command)?;
    let agent = places.target.join(target).join("agent/rackswarm-agent");
    ensure!(agent.is_file(), "cargo built no {}", agent.display());
    Ok(agent)
}

/// Builds kernel and initramfs. Downloads are cached, and equal input gives equal files, so this is done each time.
pub(crate) fn build_bootenv(places: &Places, agent: &Path) -> Result<()> {
    let mut command = Command::new(places.rackswarm());
    command.args(["bootenv", "build", "--out"]).arg(places.bootenv()).arg("--agent").arg(agent);
    run::must(&mut command)
}

/// Builds an image with our own tool, which keeps what it has built and only copies it the next time.
pub(crate) fn build_image(places: &Places, kind: &str, out: &Path) -> Result<()> {
    std::fs::create_dir_all(&places.cache).with_context(|| format!("cannot create {}", places.cache.display()))?;
    run::must(Command::new(places.rackswarm()).args(["image", "build", kind, "--out"]).arg(out))
}

/// rqbit from its registry, where the tests look for it. Not optimised, which would take twice as long to compile, without
/// what a debugger reads, which would take half as long again, and without its web pages and databases, which need more
/// compilers.
pub(crate) fn install_rqbit(places: &Places) -> Result<()> {
    let tools = places.target.join("tools");
    if tools.join("bin/rqbit").is_file() {
        return Ok(());
    }
    const LEAST: [&str; 3] = ["--no-default-features", "--features", "rust-tls"];
    let mut command = cargo();
    command.args(["install", "rqbit", "--locked", "--debug", "--root"]).arg(&tools).args(LEAST);
    run::must(command.env("CARGO_PROFILE_DEV_DEBUG", "0")).context("rqbit cannot be had; its tests will say so")
}

fn musl_is_there() -> bool {
    let sysroot = run::output(Command::new("rustc").args(["--print", "sysroot"])).unwrap_or_default();
    let there = || Path::new(&sysroot).join("lib/rustlib").join(MUSL).join("lib").is_dir();
    if there() {
        return true;
    }
    if !run::has_program("rustup") {
        return false;
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", MUSL]).stdin(Stdio::null());
    matches!(run::wait(&mut add, Some(TARGET_LIMIT)), Ok(Ended::Exited(0))) && there()
}
