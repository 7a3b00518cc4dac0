//! Writing a machine's disk from this host in place of a network boot.
//!
//! The agent that the machine would have booted runs here, with the machine's disk file as its only disk: it shows the
//! token of the machine's own boot script, fetches and verifies the image with everybody else, does the post actions and
//! reports as any agent does. Then the machine is started from its disk, and its system proves itself. The controller does
//! not notice a difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::task::AbortHandle;

use super::virsh::Virsh;
use super::xml::Shape;
use crate::http::Http;
use crate::{Error, Result};

/// The agent's program, beside this one or in the search path.
const AGENT: &str = "rackswarm-agent";
/// Longer than any attempt may take; the controller's deadlines come first.
const WORK_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// A boot script has some hundred bytes.
const SCRIPT_BYTES: usize = 64 << 10;
const SCRIPT_LIMIT: Duration = Duration::from_secs(30);

/// Machines whose disks are being written. One at a time for each: a second begin ends the first.
static AT_WORK: LazyLock<Mutex<BTreeMap<String, AbortHandle>>> = LazyLock::new(Mutex::default);

/// A machine that is off, and whose disk is to be written.
pub(super) struct Job {
    /// The machine, for sentences and as the key of its work.
    pub(super) target: String,
    pub(super) name: String,
    pub(super) virsh: Virsh,
    /// Base URL of the controller.
    pub(super) server: String,
    pub(super) shape: Shape,
}

/// Begins in the background; the end shows as the machine's start.
pub(super) fn begin(job: Job) {
    let key = job.target.clone();
    let work = tokio::spawn(async move {
        match tokio::time::timeout(WORK_LIMIT, job.run()).await {
            Ok(Ok(())) => tracing::info!(machine = job.name, "its disk was written; it is started"),
            Ok(Err(error)) => tracing::warn!(machine = job.name, "it stays off: {error}"),
            Err(_) => tracing::warn!(machine = job.name, "it stays off: its disk was not written in time"),
        }
    });
    let former = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).insert(key, work.abort_handle());
    if let Some(former) = former {
        former.abort();
    }
}

/// Ends whatever is being written on a machine's disk. The program ends with its task.
pub(super) fn end(target: &str) {
    if let Some(work) = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).remove(target) {
        work.abort();
    }
}

impl Job {
    async fn run(&self) -> Result<()> {
        if let Some(token) = self.token().await? {
            self.write(&token).await?;
        }
        self.virsh.run(&["start", &self.name]).await.map(drop)
    }

    /// The token in the machine's boot script; none where that leads to its own disk.
    async fn token(&self) -> Result<Option<String>> {
        let platform = if self.shape.uefi { "efi" } else { "pcbios" };
        let (mac, uuid) = (self.shape.mac.replace(':', "-"), &self.shape.uuid);
        let url = format!("{}/boot/{mac}/script?uuid={uuid}&platform={platform}", self.server.trim_end_matches('/'));
        let http = Http::new(&self.target, SCRIPT_LIMIT, SCRIPT_BYTES)?;
        let answer = http.send("its boot script", http.request(reqwest::Method::GET, &url)).await?;
        if !answer.is_success() {
            return Err(Error::transient(
                &self.target,
                format!("the controller at {} gives no boot script: {}", self.server, answer.excerpt()),
            ));
        }
        Ok(token_of(&String::from_utf8_lossy(&answer.body)))
    }

    async fn write(&self, token: &str) -> Result<()> {
        let list = Path::new("/run").join(format!("rackswarm-attach-{}.json", self.name));
        let trouble = |error: std::io::Error| Error::refused(&self.target, format!("{}: {error}", list.display()));
        let size_bytes = std::fs::metadata(&self.shape.disk).map_err(trouble)?.len();
        let (path, serial) = (&self.shape.disk, &self.shape.serial);
        let disks = serde_json::json!([{ "path": path, "size_bytes": size_bytes, "serial": serial }]);
        std::fs::write(&list, disks.to_string()).map_err(trouble)?;
        let mut agent = Command::new(program());
        agent.args(["run", "--server", &self.server, "--token", token, "--mac", &self.shape.mac, "--disks"]).arg(&list);
        // What it has to say goes into the machine's timeline.
        agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = agent.spawn().map_err(|error| {
            Error::refused(
                &self.target,
                format!("{AGENT} cannot be run ({error}); `cargo xtask install` puts it in place"),
            )
        })?;
        let ended = child.wait_with_output().await.map_err(trouble);
        let _ = std::fs::remove_file(&list);
        let ended = ended?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        let last = said.lines().last().unwrap_or_default();
        Err(Error::transient(&self.target, format!("its disk was not written: {}", crate::http::excerpt(last))))
    }
}

fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(AGENT));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| AGENT.into())
}

fn token_of(script: &str) -> Option<String> {
    script.split_whitespace().find_map(|word| word.strip_prefix("rackswarm.token=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_where_the_script_starts_our_kernel() {
        let script =
            "#!ipxe\nkernel http://x/vmlinuz initrd=i rackswarm.server=http://x rackswarm.token=abc quiet || goto x\n";
        assert_eq!(token_of(script).as_deref(), Some("abc"));
        assert_eq!(token_of("#!ipxe\necho its own disk\nexit\n"), None);
    }
}
