//! `rackswarm image capture`: the disk of a golden machine becomes an image.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent::Stop;
use agent::capture::{Pace, send};
use anyhow::{Context, Result, anyhow, bail};
use api::capture::{CaptureState, CaptureView};
use api::client::{Client, ClientError};
use api::operator::{ImageView, NodeView};
use clap::Args;
use fleet::capture::Order;
use fleet::ids::{ImageName, NodeName};
use fleet::life::Stage;
use fleet::node::Progress;
use image::capture::Disk;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::connect::{Connection, explain};
use crate::output::{WrongUsage, bytes, percent, rate, say, show, span};

const EXAMPLES: &str = "\
Examples:
  rackswarm image capture golden1 --name web
  rackswarm image capture --from /dev/sdb --name web
  rackswarm image capture --from /var/lib/libvirt/images/web.raw --name web

A node boots into memory once through the network; its disk is only read. Only blocks that are in use are
read: those of ext4, xfs and vfat; of swap nothing but its header; everything else whole. Shut the machine
down before: a file system that was not shut down cleanly is taken whole. What belongs to the one machine
(machine-id, host keys, logs, leases, cloud-init's state, seeds) is taken out of the copy on the server.
Whatever interrupts it, the same command goes on where it was. `rackswarm node release NODE` ends it.";

/// What is captured.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The node whose disk it is
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    node: Option<NodeName>,
    /// A disk of this machine that is not in use, or a file with a raw disk, instead of a node's
    #[arg(long, value_name = "DISK")]
    from: Option<PathBuf>,
    /// Name of the image in the controller's registry
    #[arg(long)]
    name: ImageName,
    /// Keep the machine's identity, keys and logs in the image
    #[arg(long)]
    as_is: bool,
    /// Do not wait until a node is captured
    #[arg(long, conflicts_with = "from")]
    detach: bool,
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
}

/// How long the controller may be away.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked.
const GLANCE: Duration = Duration::from_millis(500);
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn run(connection: &Connection, arguments: &Arguments) -> Result<ExitCode> {
    let client = connection.client()?;
    let shown = Shown::new();
    match (&arguments.from, &arguments.node) {
        (Some(path), _) => {
            let captured = async {
                from_here(&client, path, arguments, &shown).await?;
                published(&client, &arguments.name, &shown).await
            };
            tokio::select! {
                image = captured => tell(arguments, &shown, &image?),
                _ = tokio::signal::ctrl_c() => bail!("interrupted; what has arrived is kept, the same command goes on"),
            }
        }
        (None, Some(node)) => {
            let order = Order { image: arguments.name.clone(), generalise: !arguments.as_is };
            let view = client.capture_node(node, &order).await.map_err(explain)?;
            if arguments.detach {
                return show(arguments.json, &view, |_| {
                    format!(
                        "{node} is being captured as {}; `rackswarm node show {node}` tells how far it is",
                        order.image
                    )
                });
            }
            let captured = async {
                of_node(&client, node, &shown).await?;
                published(&client, &arguments.name, &shown).await
            };
            tokio::select! {
                image = captured => tell(arguments, &shown, &image?),
                _ = tokio::signal::ctrl_c() => {
                    bail!("nobody watches any more, and the capture goes on; `rackswarm node release {node}` ends it")
                }
            }
        }
        (None, None) => Err(WrongUsage::error("name a node, or a disk by --from")),
    }
}

/// Captures under way, for the list of images.
pub(super) fn under_way(captures: &[CaptureView]) -> String {
    let line = |capture: &CaptureView| {
        let from = capture.node.as_ref().map_or_else(|| capture.original.disk.clone(), ToString::to_string);
        let state = match &capture.state {
            CaptureState::Receiving => {
                format!("{} % has arrived", percent(capture.held_chunks, capture.wanted_chunks))
            }
            CaptureState::Generalising => "being generalised".to_owned(),
            CaptureState::Sealing { done_bytes, total_bytes } => {
                format!("being sealed, {} %", percent(*done_bytes, *total_bytes))
            }
            CaptureState::Failed { reason } => format!("failed: {reason}"),
        };
        format!("\n{} is captured from {from}: {state}", capture.image)
    };
    captures.iter().map(line).collect()
}

fn tell(arguments: &Arguments, shown: &Shown, image: &ImageView) -> Result<ExitCode> {
    shown.bar.finish_and_clear();
    show(arguments.json, image, |image| {
        format!(
            "{0} is captured and sealed: {1}, {2} used, {3}\n`rackswarm deploy {0} --nodes …` deploys it",
            image.name,
            bytes(image.size_bytes),
            bytes(image.used_bytes),
            image.digest
        )
    })
}

/// Reads a disk of this machine and sends it.
async fn from_here(client: &Client, path: &Path, arguments: &Arguments, shown: &Shown) -> Result<()> {
    shown.says("asking the file systems what they use");
    let opened = path.to_owned();
    let disk =
        tokio::task::spawn_blocking(move || Disk::open(&opened)).await.context("reading the disk broke off")??;
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let original = disk.original(&name, !arguments.as_is);
    shown.line(&original.sentence());
    let pace = Pace::default();
    let told = |sent| shown.sending(&pace.progress(sent, &original));
    let (sent, _) = send(client, &arguments.name, Arc::new(disk), &original, PATIENCE, &Stop::default(), &told).await?;
    shown.line(&format!(
        "{} chunks sent, {} were there already, {} travelled",
        sent.chunks - sent.kept_chunks,
        sent.kept_chunks,
        bytes(sent.sent_bytes)
    ));
    Ok(())
}

/// Watches a node until its disk has been sent.
async fn of_node(client: &Client, node: &NodeName, shown: &Shown) -> Result<()> {
    let mut patience = Patience::default();
    loop {
        tokio::time::sleep(GLANCE).await;
        let Some(view) = patience.of(client.node(node).await)? else { continue };
        let reason = || view.reason.clone().unwrap_or_else(|| "the timeline says why".to_owned());
        match (view.stage, &view.progress) {
            (Stage::Failed, _) => bail!("{node} was not captured: {}; what has arrived is kept", reason()),
            (Stage::Capturing, Some(progress)) if progress.total_bytes > 0 => shown.sending(progress),
            (stage, _) if stage.is_under_way() => shown.says(&waits(&view)),
            _ => return Ok(()),
        }
    }
}

fn waits(node: &NodeView) -> String {
    let attempt = match (&node.reason, node.tries) {
        (Some(reason), 2..) => format!(" (attempt {} after: {reason})", node.tries),
        _ => String::new(),
    };
    format!("{} waits for {}{attempt}", node.name, node.waits_for)
}

/// Waits until the copy has become an image.
async fn published(client: &Client, name: &ImageName, shown: &Shown) -> Result<ImageView> {
    let mut patience = Patience::default();
    loop {
        let found = match client.capture(name).await {
            Err(ClientError::Refused { status: 404, .. }) => None,
            capture => match patience.of(capture)? {
                Some(capture) => Some(capture.state),
                None => continue,
            },
        };
        match found {
            None => {
                return client.image(name.as_str()).await.map_err(|error| match error {
                    ClientError::Refused { status: 404, .. } => anyhow!("the capture was ended before all had arrived"),
                    error => explain(error),
                });
            }
            Some(CaptureState::Receiving) => {
                bail!("the capture has stopped before all had arrived; the same command goes on where it was")
            }
            Some(CaptureState::Failed { reason }) => bail!("{reason}"),
            Some(CaptureState::Generalising) => shown.says("the server takes out what belongs to the one machine"),
            Some(CaptureState::Sealing { done_bytes, total_bytes }) => {
                shown.says(&format!("the server seals the image: {} %", percent(done_bytes, total_bytes)));
            }
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// The controller may restart while it is watched.
#[derive(Default)]
struct Patience {
    away_since: Option<Instant>,
}

impl Patience {
    /// The answer; none while there is none.
    fn of<T>(&mut self, answer: Result<T, ClientError>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => {
                self.away_since = None;
                Ok(Some(answer))
            }
            Err(error) if error.may_pass() && self.away_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                Ok(None)
            }
            Err(error) => Err(explain(error)),
        }
    }
}

/// A line that changes for a person, a line now and then for a log.
struct Shown {
    bar: ProgressBar,
    said: Mutex<Said>,
}

/// What a log was told last, and when it was told of progress.
#[derive(Default)]
struct Said {
    what: String,
    progress_at: Option<Instant>,
}

impl Shown {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, said: Mutex::default() }
    }

    /// Something that stays.
    fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// What it waits for, once for a log.
    fn says(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        let what = text.trim_end_matches(|c: char| c.is_ascii_digit() || " %".contains(c));
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bar.is_hidden() && said.what != what {
            what.clone_into(&mut said.what);
            eprintln!("{text}");
        }
    }

    fn sending(&self, progress: &Progress) {
        let text = sending(progress);
        self.bar.set_message(text.clone());
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bar.is_hidden() && said.progress_at.is_none_or(|at| at.elapsed() > LINE_EVERY) {
            said.progress_at = Some(Instant::now());
            eprintln!("{text}");
        }
    }
}

/// How far a disk is, at what rate, and how long it still takes.
pub(crate) fn sending(progress: &Progress) -> String {
    let left = progress.total_bytes.saturating_sub(progress.done_bytes);
    let left = match progress.down_bytes_per_second {
        0 => "nothing moves".to_owned(),
        speed => format!("{} left", span(Duration::from_secs(left.div_ceil(speed)))),
    };
    format!(
        "{} % of {} read at {}, {} sent, {left}",
        percent(progress.done_bytes, progress.total_bytes),
        bytes(progress.total_bytes),
        rate(progress.down_bytes_per_second),
        bytes(progress.sent_bytes),
    )
}

/// Ends a capture that has not become an image; whether there was one.
pub(super) async fn discard(client: &Client, name: &ImageName) -> Result<bool> {
    match client.discard_capture(name).await {
        Ok(()) => {
            say(format_args!("what had arrived of {name} is removed"))?;
            Ok(true)
        }
        Err(ClientError::Refused { status: 404, .. }) => Ok(false),
        Err(error) => Err(explain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_rate_and_time_left() {
        let progress = Progress {
            done_bytes: 1 << 30,
            total_bytes: 4 << 30,
            sent_bytes: 300 << 20,
            down_bytes_per_second: 100 << 20,
            ..Progress::default()
        };
        let text = sending(&progress);
        assert!(text.starts_with("25 % of 4") && text.contains("31 s left") && text.contains("300"), "{text}");
        assert!(sending(&Progress { down_bytes_per_second: 0, ..progress }).contains("nothing moves"));
    }
}
