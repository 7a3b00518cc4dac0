//! `rackswarm image import`: a file on its way to the controller.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::ImportArguments;
use crate::connect::{Connection, explain};
use crate::output::{bytes, percent, rate, show, span};

const CHUNK_BYTES: usize = 1 << 20;
/// The controller takes nothing for this long: it or the network hangs.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// What the controller gets for checking and sealing, and for each GiB in addition.
const SEAL_LIMIT: Duration = Duration::from_secs(300);
const SEAL_SECONDS_PER_GIB: u64 = 60;
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(100);

pub(super) async fn run(connection: &Connection, arguments: &ImportArguments) -> Result<ExitCode> {
    let client = connection.client()?;
    // Held until what was made has arrived.
    let made = arguments.tree.make(&client, &arguments.file, &arguments.name).await?;
    let (path, format) = match &made {
        Some(made) => (made.path(), Some("raw")),
        None => (arguments.file.as_path(), arguments.format.as_deref()),
    };
    let (file, length) = open(path).await?;
    let sent = Arc::new(AtomicU64::new(0));
    let body = chunks(file, Arc::clone(&sent));
    let import = client.import_image(arguments.name.as_str(), format, length, body);
    let image = tokio::select! {
        image = import => image.map_err(explain)?,
        stuck = watch(&sent, length) => bail!(stuck),
        _ = tokio::signal::ctrl_c() => {
            bail!("interrupted; nothing was added to the registry");
        }
    };
    show(arguments.json, &image, |image| {
        format!(
            "{} is sealed: {}, {} used, {}",
            image.name,
            bytes(image.size_bytes),
            bytes(image.used_bytes),
            image.digest
        )
    })
}

async fn open(path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let file = File::open(path).await.with_context(|| format!("cannot open {shown}"))?;
    let metadata = file.metadata().await.with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        !metadata.is_dir(),
        "{shown} is not a file but a folder; an OCI layout is imported with --layout, which says what disk it goes onto"
    );
    ensure!(metadata.is_file(), "{shown} is not a file; copy a disk into a file first, as with `qemu-img convert`");
    ensure!(metadata.len() > 0, "{shown} is empty");
    Ok((file, metadata.len()))
}

/// The file in chunks, counted as they are taken.
fn chunks(file: File, sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, sent), |(mut file, sent)| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        if file.read_buf(&mut chunk).await? == 0 {
            return Ok(None);
        }
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(Some((chunk.freeze(), (file, sent))))
    })
}

/// Shows how far it is; ends with a sentence when nothing moves any more.
async fn watch(sent: &AtomicU64, length: u64) -> String {
    let seal_limit = SEAL_LIMIT + Duration::from_secs((length >> 30).saturating_mul(SEAL_SECONDS_PER_GIB));
    let mut shown = Shown::new(length);
    let mut last = (0, Instant::now());
    loop {
        tokio::time::sleep(GLANCE).await;
        let now = sent.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        let complete = now >= length;
        shown.update(now, complete);
        let limit = if complete { seal_limit } else { STALL_LIMIT };
        if last.1.elapsed() > limit {
            let what = if complete { "has not sealed the image" } else { "has taken nothing" };
            return format!("the controller {what} for {}; its log says why", span(limit));
        }
    }
}

/// A bar for a person, a line now and then for a log.
struct Shown {
    bar: ProgressBar,
    length: u64,
    start: Instant,
    last_line: Instant,
    sealing: bool,
}

impl Shown {
    fn new(length: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} {bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
        ) {
            bar.set_style(style);
        }
        bar.set_message("sending");
        Self { bar, length, start: Instant::now(), last_line: Instant::now(), sealing: false }
    }

    fn update(&mut self, sent: u64, complete: bool) {
        if complete && !self.sealing {
            self.sealing = true;
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} the controller checks and seals the image  {elapsed}")
            {
                self.bar.set_style(style);
            }
            self.bar.enable_steady_tick(GLANCE);
        }
        self.bar.set_position(sent);
        if self.bar.is_hidden() && self.last_line.elapsed() > LINE_EVERY {
            self.last_line = Instant::now();
            let seconds = self.start.elapsed().as_secs().max(1);
            let speed = (sent / seconds).max(1);
            let left = span(Duration::from_secs((self.length - sent.min(self.length)) / speed));
            let line = if complete {
                "the controller checks and seals the image".to_owned()
            } else {
                format!("{} % of {}, {}, {left} left", percent(sent, self.length), bytes(self.length), rate(speed))
            };
            eprintln!("{line}");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
