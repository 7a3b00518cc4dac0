//! The controller as a process of its own, and the power hooks that it calls.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::agent::Token;
use api::client::Client;
use axum::Router;
use axum::extract::{Path as Part, State};
use axum::routing::post;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Load, wall};
use crate::bench::machine::cpu_seconds_of;
use crate::serve::{resident_peak_bytes, tail};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Where the controller switches machines: each has a line that tells how often, and when last.
#[derive(Clone)]
pub(super) struct Hooks {
    address: SocketAddr,
    lines: Arc<Vec<watch::Sender<u64>>>,
}

impl Hooks {
    /// Listens for the power of so many machines.
    pub(super) async fn start(machines: usize) -> Result<Hooks> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port for the power hooks")?;
        let address = listener.local_addr()?;
        let lines = Arc::new((0..machines).map(|_| watch::Sender::new(0)).collect::<Vec<_>>());
        let router = Router::new().route("/{machine}/{what}", post(called)).with_state(Arc::clone(&lines));
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the power hooks ended");
            }
        });
        Ok(Hooks { address, lines })
    }

    /// The moment at which a machine was last switched on, as milliseconds since the Unix epoch; 0 before.
    pub(super) fn line(&self, machine: usize) -> watch::Receiver<u64> {
        self.lines[machine].subscribe()
    }

    fn file(&self) -> String {
        let call = |what: &str| format!("[{what}]\nurl = \"http://{}/{{{{machine}}}}/{what}\"\n", self.address);
        ["on", "cycle", "boot_network"].map(call).concat()
    }
}

async fn called(State(lines): State<Arc<Vec<watch::Sender<u64>>>>, Part((machine, what)): Part<(usize, String)>) {
    if let Some(line) = lines.get(machine).filter(|_| what == "cycle") {
        line.send_replace(wall());
    }
}

/// The controller. It is killed with its value.
pub(super) struct Controller {
    child: Child,
    url: String,
    folder: PathBuf,
}

impl Controller {
    pub(super) async fn start(program: &Path, folder: &Path, load: &Load, hooks: &Hooks) -> Result<Controller> {
        // Nobody else takes it between here and there, or the start fails and says so.
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        fs::write(folder.join("hooks.toml"), hooks.file())?;
        fs::write(folder.join("rackswarm.toml"), configuration(folder, port, load))?;
        let log = File::create(folder.join("log"))?;
        let child = Command::new(program)
            .args(["serve", "--config"])
            .arg(folder.join("rackswarm.toml"))
            .process_group(0)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let url = format!("http://127.0.0.1:{port}");
        let mut controller = Controller { child, url, folder: folder.to_owned() };
        controller.ready().await?;
        Ok(controller)
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            self.check()?;
            if let Ok(client) = self.operator()
                && client.status().await.is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the controller did not answer within {} s:\n{}", START_LIMIT.as_secs(), self.last_words())
    }

    /// Fails when it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("the controller cannot be watched")? {
            Some(status) => bail!("the controller ended ({status}):\n{}", self.last_words()),
            None => Ok(()),
        }
    }

    pub(super) fn operator(&self) -> Result<Client> {
        let token = fs::read_to_string(self.folder.join("data/operator.token"))?;
        Ok(Client::new(&self.url, Token(token.trim().to_owned()))?)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn hooks_file(&self) -> PathBuf {
        self.folder.join("hooks.toml")
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn cpu_seconds(&self) -> f64 {
        cpu_seconds_of(self.child.id()).unwrap_or(0.0)
    }

    pub(super) fn resident_peak(&self) -> u64 {
        resident_peak_bytes(self.child.id()).unwrap_or(0)
    }

    pub(super) fn database_bytes(&self) -> u64 {
        let length = |name: &str| fs::metadata(self.folder.join("data").join(name)).map_or(0, |found| found.len());
        length("rackswarm.db") + length("rackswarm.db-wal")
    }

    /// Ends it in order.
    pub(super) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the controller did not end within {} s of SIGTERM:\n{}", STOP_LIMIT.as_secs(), self.last_words())
    }

    fn last_words(&self) -> String {
        tail(&self.folder.join("log"), 20)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(folder: &Path, port: u16, load: &Load) -> String {
    format!(
        "[server]\ndata_dir = {:?}\nlisten = \"127.0.0.1:{port}\"\n[tftp]\nenabled = false\n[swarm]\nlisten = \"127.0.0.1:0\"\n\
         [deploy]\nstarts_per_second = {}\n\
         [discovery]\ninventory = true\n[[discovery.approve]]\nname = \"everybody\"\nproduct = {:?}\nmin_disks = 1\n",
        folder.join("data"),
        load.starts_per_second,
        super::machine::PRODUCT
    )
}
