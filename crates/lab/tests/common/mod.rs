//! What the tests with virtual machines share. `cargo xtask test --tier vm` builds what they need and says where it is.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use api::client::Client;
use api::operator::{DeploymentView, ImageView, NodeView};
use fleet::deployment::{DeploymentState, Outcome};
use fleet::ids::DeploymentId;
use rackswarm_lab::check::Golden;
use rackswarm_lab::demo::work;
use rackswarm_lab::rig::{Lab, Setup, from_environment};
use rackswarm_lab::serve::{self, Server};
use rackswarm_lab::vm::Spec;

/// The image's name in the registry.
pub(crate) const IMAGE: &str = "small";
/// The rack's name.
pub(crate) const RACK: &str = "r1";
/// From power-on to proof under emulation on a loaded host; calm ones need a fifth of it.
pub(crate) const WHOLE: Duration = Duration::from_secs(480);
/// Where the root file system of a Debian image of ours begins, in bytes.
const ROOT_START: u64 = 34 << 20;
const POLL: Duration = Duration::from_millis(200);

/// A lab with its server. When the test fails, the ends of all logs are printed.
pub(crate) struct Site {
    server: Option<Server>,
    pub(crate) lab: Lab,
}

impl Site {
    /// Builds a lab and starts its server. `fetch_seconds` limits each machine's network so that the image takes that long.
    pub(crate) fn new(machines: Vec<Spec>, settings: &str, fetch_seconds: Option<u64>) -> Site {
        let setup = Setup {
            executable: from_environment("RACKSWARM_TEST_PROGRAM").unwrap(),
            bootenv: from_environment("RACKSWARM_TEST_BOOTENV").unwrap(),
            parent: std::env::temp_dir(),
            machines,
            rate_mbit: fetch_seconds.map(rate_for),
            settings: settings.to_owned(),
        };
        let lab = Lab::new(&setup).unwrap();
        let server = Some(lab.start_server().unwrap());
        Site { server, lab }
    }

    /// Runs asynchronous work in the lab's network with a client of the server, once that answers.
    pub(crate) fn with_client<T: Send>(&mut self, work: impl AsyncFnOnce(&Lab, Client) -> Result<T> + Send) -> T {
        let server = self.server.as_mut().expect("the server runs");
        let lab = &self.lab;
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = lab.namespace.inside(move || {
            runtime().block_on(async {
                let client = server.ready().await?;
                work(lab, client).await
            })
        });
        result.and_then(std::convert::identity).unwrap_or_else(|error| panic!("{error:#}"))
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("the server runs")
    }

    /// Ends the server as a power failure would.
    pub(crate) fn kill_server(&mut self) {
        self.server.take().expect("the server runs").kill().unwrap();
    }

    pub(crate) fn stop_server(&mut self) {
        let status = self.server.take().expect("the server runs").stop().unwrap();
        assert!(status.success(), "the server ended with {status}");
    }

    pub(crate) fn start_server(&mut self) {
        assert!(self.server.is_none());
        self.server = Some(self.lab.start_server().unwrap());
    }

    /// Switches everything off and compares the named machines' disks with the image.
    pub(crate) fn check_disks(&mut self, names: &[&str]) {
        self.check_disks_of(&small_image(), names);
    }

    /// The same with another image.
    pub(crate) fn check_disks_of(&mut self, image: &Path, names: &[&str]) {
        self.lab.machines.kill_all().unwrap();
        let golden = Golden::read(image, self.lab.scratch.path()).unwrap();
        for name in names {
            let disk = &self.lab.machines.get(name).unwrap().disks[0];
            golden.compare(&disk.path).unwrap().verdict().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("server:\n{}", serve::tail(&self.lab.plan().log, 60));
            for machine in self.lab.machines.list() {
                eprintln!("{}:\n{}", machine.name, serve::tail(&machine.console, 40));
            }
        }
    }
}

/// The image of some MiB that the tests deploy.
pub(crate) fn small_image() -> PathBuf {
    from_environment("RACKSWARM_TEST_SMALL_IMAGE").unwrap()
}

/// A disk that is larger than the image by a third, so that growing has something to do.
pub(crate) fn disk_bytes() -> u64 {
    let image = std::fs::metadata(small_image()).unwrap().len();
    (image / 3 * 4).next_multiple_of(1 << 20)
}

fn rate_for(fetch_seconds: u64) -> u32 {
    let used = std::fs::metadata(small_image()).unwrap().blocks() * 512;
    u32::try_from((used * 8 / fetch_seconds).div_ceil(1_000_000)).unwrap().max(2)
}

/// Adds all machines to one rack and imports the image.
pub(crate) async fn prepare(lab: &Lab, client: &Client) -> Result<ImageView> {
    work::add_machines(client, RACK, lab.machines.list()).await?;
    work::import(client, IMAGE, &small_image(), |_| ()).await
}

/// Deploys to the rack and waits for the outcomes.
pub(crate) async fn deploy(client: &Client) -> Result<DeploymentView> {
    let begun = work::deploy_to_rack(client, IMAGE, RACK).await?;
    finished(client, begun.id, WHOLE).await
}

/// Waits until every node of a deployment has its outcome.
pub(crate) async fn finished(client: &Client, id: DeploymentId, limit: Duration) -> Result<DeploymentView> {
    let deadline = Instant::now() + limit;
    loop {
        let now = client.deployment(id).await?;
        if now.state != DeploymentState::Active {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            let nodes: Vec<String> = client.nodes().await?.iter().map(describe).collect();
            bail!("after {} s the deployment goes on: {}", limit.as_secs(), nodes.join("; "));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until a node is as wished.
pub(crate) async fn node_is(
    client: &Client,
    name: &str,
    what: &str,
    limit: Duration,
    wish: impl Fn(&NodeView) -> bool,
) -> Result<NodeView> {
    let deadline = Instant::now() + limit;
    let name = name.parse()?;
    loop {
        let node = client.node(&name).await?;
        if wish(&node) {
            return Ok(node);
        }
        if Instant::now() >= deadline {
            bail!("after {} s this is not so: {what}; {}", limit.as_secs(), describe(&node));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until something outside of the server is so.
pub(crate) fn until(what: &str, limit: Duration, wish: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !wish() {
        assert!(Instant::now() < deadline, "after {} s this is not so: {what}", limit.as_secs());
        std::thread::sleep(POLL);
    }
}

/// Whether a share of what travels of the image, in per cent, has arrived on the node. All-zero pieces do not count.
pub(crate) fn has_received(node: &NodeView, image: &ImageView, percent: u64) -> bool {
    node.progress.is_some_and(|progress| progress.received_bytes * 100 >= image.used_bytes * percent)
}

pub(crate) fn all_running(deployment: &DeploymentView) {
    for (node, outcome) in &deployment.outcomes {
        assert!(matches!(outcome, Outcome::Running { .. }), "{node}: {outcome:?}");
    }
}

/// Why a node of a deployment failed.
pub(crate) fn reason_of(deployment: &DeploymentView, node: &str) -> String {
    match &deployment.outcomes[&node.parse().unwrap()] {
        Outcome::Failed { reason } => reason.clone(),
        other => panic!("{node} should have failed but is {other:?}"),
    }
}

/// Nothing was ever written: the sparse file still has no blocks and reads as zeros.
pub(crate) fn assert_untouched(disk: &Path) {
    let blocks = File::open(disk).unwrap().metadata().unwrap().blocks();
    assert_eq!(blocks, 0, "{} was written", disk.display());
}

fn describe(node: &NodeView) -> String {
    let reason = node.reason.as_deref().unwrap_or("no reason");
    format!("{} is {} (attempt {}, {reason}), progress {:?}", node.name, node.stage, node.attempt, node.progress)
}

/// The Debian image that the other tests know, with further packages, as an operator would have it who has only its files.
pub(crate) fn pack_debian(folder: &Path, archive: &Path, packages: &[&str]) {
    const PACK: &str = "mount -t ext4 -o loop,ro,noload,offset=\"$0\" \"$1\" \"$2\" && \
        tar --numeric-owner --xattrs --xattrs-include='*' -C \"$2\" --zstd -cf \"$3\" .";
    let (disk, point) = (folder.join("debian.raw"), folder.join("point"));
    std::fs::create_dir(&point).unwrap();
    let program = from_environment("RACKSWARM_TEST_PROGRAM").unwrap();
    let mut build = Command::new(program);
    build.args(["image", "build", "debian", "--out"]).arg(&disk);
    must(build.args(packages.iter().flat_map(|package| ["--package", package])));
    // The mount goes with its name space.
    let mut pack = Command::new("unshare");
    pack.args(["--mount", "--propagation", "private", "sh", "-c", PACK, &ROOT_START.to_string()]);
    must(pack.args([&disk, &point, archive]));
    std::fs::remove_file(disk).unwrap();
}

/// Runs a program that must succeed.
pub(crate) fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
}
