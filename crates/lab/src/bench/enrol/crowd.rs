//! All machines together, and the operator who deploys to them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use api::agent::Token;
use api::client::Client;
use api::operator::{NodeSettings, RackSettings, StreamEvent};
use bytes::Bytes;
use fleet::ids::{DeploymentId, NodeName, RackName};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Load;
use super::machine::{self, Call, Clocks, Machine};
use super::server::Hooks;

/// The image's name.
pub(super) const IMAGE: &str = "debian";
const IMAGE_BYTES: usize = 4 << 20;
/// Requests of the operator at once.
const AT_ONCE: usize = 32;
/// Nodes whose timelines are read for the time from assignment to power.
const SAMPLE: usize = 500;
const ANSWER_BYTES: usize = 512 << 20;

pub(super) struct Crowd {
    load: Load,
    clients: Vec<Client>,
    clocks: Arc<Clocks>,
    lines: Vec<watch::Receiver<u64>>,
    lives: tokio::sync::Mutex<JoinSet<Result<()>>>,
}

impl Crowd {
    /// Machines with a connection each.
    pub(super) fn new(load: &Load, url: &str, hooks: &Hooks) -> Result<Crowd> {
        let client = |_| Client::new(url, Token(String::new())).map_err(anyhow::Error::from);
        Ok(Crowd {
            load: *load,
            clients: (0..load.nodes).map(client).collect::<Result<_>>()?,
            clocks: Arc::new(Clocks::new(load.nodes)),
            lines: (0..load.nodes).map(|number| hooks.line(number)).collect(),
            lives: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn racks(&self) -> usize {
        self.load.nodes.div_ceil(self.load.nodes_per_rack)
    }

    pub(super) fn names(&self) -> Vec<NodeName> {
        (0..self.load.nodes).map(machine::name).collect()
    }

    pub(super) fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// Racks and an image.
    pub(super) async fn prepare(&self, operator: &Client) -> Result<()> {
        for rack in 0..self.racks() {
            operator.put_rack(&rack_name(rack)?, &RackSettings::default()).await?;
        }
        let content: Vec<u8> = (0..IMAGE_BYTES).map(|at| (at / 251 % 256) as u8).collect();
        let body = stream::iter([Ok(Bytes::from(content))]);
        operator.import_image(IMAGE, Some("raw"), IMAGE_BYTES as u64, body).await.context("the image was refused")?;
        Ok(())
    }

    /// All machines come, so many at once.
    pub(super) async fn enrol(&self, at_once: usize) -> Result<()> {
        let (sender, mut ended) = mpsc::channel(64);
        let waiting = stream::iter(0..self.load.nodes).map(|number| {
            let machine = self.machine(number);
            tokio::spawn(async move { machine.enrol().await })
        });
        let run = waiting.buffer_unordered(at_once).for_each(|joined| {
            let sender = sender.clone();
            async move {
                // The receiver stays until all have ended.
                let _ = sender.send(joined.map_err(anyhow::Error::from).and_then(|outcome| outcome)).await;
            }
        });
        let collect = async {
            for _ in 0..self.load.nodes {
                ended.recv().await.context("a machine was lost")??;
            }
            Ok(())
        };
        tokio::join!(run, collect).1
    }

    /// The operator says where each machine stands and how it is switched; then they wait for their power.
    pub(super) async fn settle(&self, operator: &Client, hooks: PathBuf) -> Result<()> {
        let hooks = &hooks;
        stream::iter(0..self.load.nodes)
            .map(|number| async move {
                let settings = NodeSettings {
                    rack: Some(rack_name(number / self.load.nodes_per_rack)?),
                    power: Some(format!("webhook:{number}?file={}", hooks.display())),
                    ..NodeSettings::default()
                };
                operator.set_node(&machine::name(number), &settings).await.map_err(anyhow::Error::from)
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        let mut lives = self.lives.lock().await;
        for number in 0..self.load.nodes {
            lives.spawn(self.machine(number).live());
        }
        Ok(())
    }

    fn machine(&self, number: usize) -> Machine {
        let (client, line) = (self.clients[number].clone(), self.lines[number].clone());
        Machine::new(number, client, Arc::clone(&self.clocks), line, self.load.fetching)
    }

    /// Waits until all machines run. One that ends before has failed.
    pub(super) async fn proved(&self) -> Result<()> {
        let mut lives = self.lives.lock().await;
        while self.clocks.running() < self.load.nodes {
            tokio::select! {
                ended = lives.join_next() => {
                    let ended = ended.context("there are no machines")?.context("a machine was lost")?;
                    return Err(ended.err().unwrap_or_else(|| anyhow!("a machine ended by itself")));
                }
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        Ok(())
    }

    /// All machines fall silent.
    pub(super) async fn end(&self) {
        self.lives.lock().await.shutdown().await;
    }

    /// An operator with a console open, until it is dropped or ended.
    pub(super) async fn console(&self, operator: &Client) -> Result<Console> {
        let mut events = Box::pin(operator.events().await?);
        let (heard, missed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&heard), Arc::clone(&missed));
        let task = tokio::spawn(async move {
            while let Ok(Some(event)) = events.try_next().await {
                heard.fetch_add(1, Ordering::Relaxed);
                missed.fetch_add(u64::from(matches!(event, StreamEvent::Missed)), Ordering::Relaxed);
            }
        });
        Ok(Console { counts, task })
    }

    /// An operator looks at the state every second, and at the list of all nodes every five.
    pub(super) fn operate(&self, operator: &Client, id: DeploymentId) -> JoinHandle<()> {
        let (operator, clocks) = (operator.clone(), Arc::clone(&self.clocks));
        tokio::spawn(async move {
            for round in 0u64.. {
                let deployment = format!("/api/v1/deployments/{id}");
                let looks = [
                    (Call::Status, "/api/v1/status", 1),
                    (Call::Deployment, deployment.as_str(), 1),
                    (Call::List, "/api/v1/nodes", 5),
                ];
                for (call, path, _) in looks.into_iter().filter(|(.., every)| round % every == 0) {
                    let (phase, begun) = (clocks.phase(), Instant::now());
                    match operator.read(path, ANSWER_BYTES).await {
                        Ok(_) => clocks.add(phase, call, begun.elapsed()),
                        Err(error) => tracing::warn!(%error, path, "an operator's look failed"),
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    }

    /// Milliseconds from assignment to power hook, of nodes spread over all.
    pub(super) async fn waits(&self, operator: &Client) -> Result<Vec<f64>> {
        let every = self.load.nodes.div_ceil(SAMPLE);
        let chosen = (0..self.load.nodes).step_by(every);
        stream::iter(chosen)
            .map(|number| async move {
                let lines = operator.timeline(&machine::name(number)).await?;
                let assigned =
                    lines.iter().rev().find(|line| line.kind == "assigned").context("it was not assigned")?;
                let switched = *self.lines[number].borrow();
                Ok(switched.saturating_sub(assigned.at.0) as f64)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }
}

/// An operator's open console.
pub(super) struct Console {
    counts: (Arc<AtomicU64>, Arc<AtomicU64>),
    task: JoinHandle<()>,
}

impl Console {
    /// Events that it heard, and how often it missed some.
    pub(super) fn end(self) -> (u64, u64) {
        self.task.abort();
        (self.counts.0.load(Ordering::Relaxed), self.counts.1.load(Ordering::Relaxed))
    }
}

fn rack_name(rack: usize) -> Result<RackName> {
    Ok(format!("r{rack:04}").parse()?)
}
