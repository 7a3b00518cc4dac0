//! `rackswarm lab demo`: a rack of machines from power-on to proved systems, watched as it happens.

mod show;
mod summary;
pub mod work;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::client::Client;
use api::operator::{DeploymentView, ImageView, NodeView};
use fleet::deployment::{DeploymentState, Outcome};
use power::qemu::Firmware;

use self::show::Show;
use self::summary::{NodeSummary, Summary};
use crate::check::{Golden, Report};
use crate::rig::{Lab, Setup};
use crate::serve::{self, Server};
use crate::stop::Stop;
use crate::vm::{self, Spec};

/// The rack's name.
const RACK: &str = "r1";
/// The image's name in the registry.
const IMAGE: &str = "golden";
/// Firmware kinds take turns, so three machines show them all.
const FIRMWARE: [Firmware; 3] = [Firmware::Bios, Firmware::UefiPxe, Firmware::UefiHttp];
/// Two cores carry this many machines before their timers fail.
const NODES_MAX: u32 = 64;
const POLL: Duration = Duration::from_millis(500);

/// What to show.
#[derive(Debug, Clone)]
pub struct Options {
    /// Machines, 1 to 64.
    pub nodes: u32,
    /// The raw golden image.
    pub image: PathBuf,
    /// Folder with `vmlinuz` and `initramfs`, as `rackswarm bootenv build` makes it.
    pub bootenv: PathBuf,
    /// The program whose `serve` is started, usually the one that runs.
    pub executable: PathBuf,
    /// Where the table goes as JSON.
    pub json: Option<PathBuf>,
    /// Where the server's log and the machines' consoles are copied to at the end.
    pub logs: Option<PathBuf>,
    /// Folder for disks and everything else that goes away again.
    pub parent: PathBuf,
    /// Guest memory, in MiB.
    pub memory_mib: u32,
    /// Size of each machine's disk, in bytes; at least the image's.
    pub disk_bytes: u64,
    /// Limit of what each machine receives, in Mbit/s.
    pub rate_mbit: Option<u32>,
    /// After this time the demo fails.
    pub limit: Duration,
}

impl Options {
    /// The usual demo: 512 MiB and a disk of 4 GiB each, an hour at most.
    #[must_use]
    pub fn new(nodes: u32, image: PathBuf, bootenv: PathBuf, executable: PathBuf) -> Options {
        Options {
            nodes,
            image,
            bootenv,
            executable,
            json: None,
            logs: None,
            parent: std::env::temp_dir(),
            memory_mib: 512,
            disk_bytes: 4 << 30,
            rate_mbit: None,
            limit: Duration::from_secs(3600),
        }
    }
}

/// Runs the demo on the calling thread, which must not be one of an async runtime.
///
/// Returns only when nothing is left running, mounted or lying about, also after Ctrl-C.
///
/// # Errors
/// Unless every node is running *and* every disk has passed the independent check.
pub fn run(options: &Options) -> Result<()> {
    let stop = Stop::on_signals()?;
    let show = Show::new();
    let begin = Instant::now();
    let result = play(options, &stop, &show);
    show.end();
    let summary = result?;
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&summary).context("cannot write JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{}", summary.text(begin.elapsed()));
    summary.verdict()
}

/// Everything between set-up and clean-up; the lab goes when this ends.
fn play(options: &Options, stop: &Stop, show: &Show) -> Result<Summary> {
    let length = check(options)?;
    show.step(&format!(
        "{} machines with blank disks of {} MiB, one switch, one server",
        options.nodes,
        options.disk_bytes >> 20
    ));
    let lab = Lab::new(&setup(options))?;
    let mut server = lab.start_server()?;
    let watched = lab.block_on(async {
        tokio::select! {
            result = tokio::time::timeout(options.limit, deploy(options, &lab, &mut server, length, show)) => {
                result.unwrap_or_else(|_| bail!("the demo took longer than {} s", options.limit.as_secs()))
            }
            () = stop.asked() => bail!("interrupted; everything is taken down"),
        }
    });
    if let Some(folder) = &options.logs {
        lab.copy_logs(folder)?;
    }
    let mut summary = match watched {
        Ok(summary) => summary,
        Err(error) => {
            return Err(error.context(format!("the server's last words:\n{}", serve::tail(&lab.plan().log, 10))));
        }
    };
    if !summary.all_running() {
        show.step(&last_words(&lab, &summary));
    }
    show.step("the server and the machines are switched off; the disks are compared with the image");
    server.stop()?;
    lab.machines.kill_all()?;
    let reports = compare(options, &lab, &summary, stop, show)?;
    summary.put_reports(reports);
    Ok(summary)
}

/// Refuses what cannot work before anything is built; returns the image's length in bytes.
fn check(options: &Options) -> Result<u64> {
    ensure!(
        (1..=NODES_MAX).contains(&options.nodes),
        "{} nodes are asked for; 1 to {NODES_MAX} are possible",
        options.nodes
    );
    let image = std::fs::metadata(&options.image)
        .with_context(|| format!("cannot find the image {}", options.image.display()))?;
    ensure!(image.is_file(), "the image {} is not a file", options.image.display());
    ensure!(
        image.len() <= options.disk_bytes,
        "the image has {} MiB, the machines' disks only {} MiB",
        image.len() >> 20,
        options.disk_bytes >> 20
    );
    Ok(image.len())
}

fn setup(options: &Options) -> Setup {
    let firmware = FIRMWARE.iter().cycle();
    let machines = (1..=options.nodes).zip(firmware).map(|(number, firmware)| Spec {
        memory_mib: options.memory_mib,
        ..Spec::new(&format!("node{number}"), *firmware, options.disk_bytes)
    });
    Setup {
        executable: options.executable.clone(),
        bootenv: options.bootenv.clone(),
        parent: options.parent.clone(),
        machines: machines.collect(),
        rate_mbit: options.rate_mbit,
        settings: String::new(),
    }
}

/// From the server's first answer to the outcome of every node.
async fn deploy(options: &Options, lab: &Lab, server: &mut Server, length: u64, show: &Show) -> Result<Summary> {
    let client = server.ready().await?;
    show.step(&format!(
        "the server answers; look at it from another terminal:\n    ip netns exec {} {} --server {} --token-file {} node list",
        lab.namespace.name(),
        options.executable.display(),
        lab.plan().url,
        lab.plan().token_file.display()
    ));
    work::add_machines(&client, RACK, lab.machines.list()).await?;
    let begin = Instant::now();
    let bar = show.bytes("import the golden image", length);
    let image = work::import(&client, IMAGE, &options.image, move |sent| bar.set(sent)).await?;
    let import_seconds = begin.elapsed().as_secs_f64();
    show.step(&format!(
        "image {} imported: {} MiB, {} MiB of them travel, {:.1} s",
        image.name,
        image.size_bytes >> 20,
        image.used_bytes >> 20,
        import_seconds
    ));
    let deployment = work::deploy_to_rack(&client, IMAGE, RACK).await?;
    let (ended, peaks) = watch(&client, lab, &deployment, &image, show).await?;
    summarise(&client, lab, server, &ended, &image, import_seconds, peaks).await
}

/// Draws what happens until the deployment has ended. Also keeps each machine's peak of memory, which is gone with it.
async fn watch(
    client: &Client,
    lab: &Lab,
    deployment: &DeploymentView,
    image: &ImageView,
    show: &Show,
) -> Result<(DeploymentView, Vec<u64>)> {
    let mut peaks = vec![0; lab.machines.list().len()];
    show.begin_nodes(lab.machines.list());
    loop {
        let nodes = client.nodes().await?;
        let status = client.status().await?;
        let sent: u64 = status.seeded_bytes.values().sum();
        show.nodes(&nodes, sent as f64 / image.used_bytes.max(1) as f64);
        for (peak, machine) in peaks.iter_mut().zip(lab.machines.list()) {
            *peak = vm::resident_peak_bytes(machine).unwrap_or(0).max(*peak);
        }
        let now = client.deployment(deployment.id).await?;
        if now.state != DeploymentState::Active {
            return Ok((now, peaks));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn summarise(
    client: &Client,
    lab: &Lab,
    server: &Server,
    deployment: &DeploymentView,
    image: &ImageView,
    import_seconds: f64,
    peaks: Vec<u64>,
) -> Result<Summary> {
    let status = client.status().await?;
    let nodes = client.nodes().await?;
    let mut summary = Summary::new(image, deployment, &status, import_seconds, server.resident_peak_bytes());
    for (machine, peak) in lab.machines.list().iter().zip(peaks) {
        let Some(node) = nodes.iter().find(|node| node.name.as_str() == machine.name) else { continue };
        let timeline = client.timeline(&node.name).await?;
        let outcome = deployment.outcomes.get(&node.name).unwrap_or(&Outcome::Pending);
        summary.nodes.push(NodeSummary::new(machine, node, &timeline, outcome, peak));
    }
    Ok(summary)
}

/// Compares the disk of every node that claims to run.
fn compare(options: &Options, lab: &Lab, summary: &Summary, stop: &Stop, show: &Show) -> Result<Vec<(String, Report)>> {
    let golden = Golden::read(&options.image, lab.scratch.path())?;
    let mut reports = Vec::new();
    for node in summary.nodes.iter().filter(|node| node.is_running) {
        stop.check()?;
        let machine = lab.machines.get(&node.name)?;
        let disk = machine.disks.first().with_context(|| format!("{} has no disk", node.name))?;
        let report =
            golden.compare(&disk.path).with_context(|| format!("the disk of {} cannot be compared", node.name))?;
        show.step(&format!("{}: {}", node.name, summary::report_line(&report)));
        reports.push((node.name.clone(), report));
    }
    Ok(reports)
}

/// The consoles of machines that did not make it.
fn last_words(lab: &Lab, summary: &Summary) -> String {
    let failed = summary.nodes.iter().filter(|node| !node.is_running);
    let text = failed.filter_map(|node| {
        let machine = lab.machines.get(&node.name).ok()?;
        Some(format!(
            "{}: {}\n{}\n",
            node.name,
            node.reason.as_deref().unwrap_or("no reason known"),
            serve::tail(&machine.console, 12)
        ))
    });
    text.collect()
}

/// The stage of a node in a word, with what it does now.
fn stage_of(node: &NodeView) -> String {
    if node.attempt > 1 && node.stage.is_under_way() {
        return format!("{} (attempt {})", node.stage, node.attempt);
    }
    node.stage.to_string()
}
