//! The real server as a child process inside the lab's network.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::agent::Token;
use api::client::Client;
use rustix::process::{Pid, Signal, kill_process};

/// How long the server may take until its API answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// What is needed to start a server.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program `rackswarm`.
    pub executable: PathBuf,
    /// Its configuration file.
    pub configuration: PathBuf,
    /// Where its output goes, over all starts.
    pub log: PathBuf,
    /// The namespace that it runs in.
    pub namespace: String,
    /// Where its API answers.
    pub url: String,
    /// The file with the operator's token, which the server writes at its first start.
    pub token_file: PathBuf,
}

/// A running server. It is killed with its value.
#[derive(Debug)]
pub struct Server {
    plan: Plan,
    child: Child,
}

impl Server {
    /// Starts the server; does not wait for it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(plan: &Plan) -> Result<Server> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&plan.log)
            .with_context(|| format!("cannot write the log {}", plan.log.display()))?;
        let errors = log.try_clone().context("cannot share the log")?;
        let child = Command::new("ip")
            .args(["netns", "exec", &plan.namespace])
            .arg(&plan.executable)
            .args(["serve", "--config"])
            .arg(&plan.configuration)
            // A Ctrl-C of the terminal is for the lab alone, which then ends the server in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .context("cannot run `ip netns exec`; is iproute2 installed?")?;
        Ok(Server { plan: plan.clone(), child })
    }

    /// Waits until the API answers. Must be called inside the namespace.
    ///
    /// # Errors
    /// When the server ended or does not answer in time; the end of its log is in the error.
    pub async fn ready(&mut self) -> Result<Client> {
        let deadline = Instant::now() + START_LIMIT;
        let mut last = String::from("it has not written its token yet");
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("the server cannot be watched")? {
                bail!("the server ended ({status}):\n{}", self.last_words());
            }
            match self.client() {
                Ok(client) => match client.status().await {
                    Ok(_) => return Ok(client),
                    Err(error) => last = error.to_string(),
                },
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the server did not answer within {} s ({last}):\n{}", START_LIMIT.as_secs(), self.last_words())
    }

    /// A client with the operator's token.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub fn client(&self) -> Result<Client> {
        let path = &self.plan.token_file;
        let token =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the token {}", path.display()))?;
        Client::new(&self.plan.url, Token(token.trim().to_owned())).context("cannot make a client")
    }

    /// Its process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Most memory that it has had, in bytes.
    #[must_use]
    pub fn resident_peak_bytes(&self) -> Option<u64> {
        resident_peak_bytes(self.child.id())
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub fn stop(mut self) -> Result<ExitStatus> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("the server cannot be watched")? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        bail!("the server did not end within {} s after SIGTERM:\n{}", STOP_LIMIT.as_secs(), self.last_words())
    }

    /// Ends it as a power failure would.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("the server cannot be killed")?;
        self.child.wait().context("the server cannot be waited for").map(drop)
    }

    fn last_words(&self) -> String {
        tail(&self.plan.log, 20)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last lines of a text file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Most resident memory that a process has had so far, in bytes (`VmHWM`, proc(5)).
pub(crate) fn resident_peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
