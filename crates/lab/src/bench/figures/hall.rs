//! The hall: the server with its operator, and machines that are an agent's process each.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::agent::{DeployedConfig, Proof, Token};
use api::client::{Client, ClientError};
use api::deployment::NewDeployment;
use api::operator::{NewNode, NodeSettings, RackSettings};
use fleet::deployment::DeploymentState;
use fleet::ids::{DeploymentId, Mac, NodeName, RackName};
use fleet::life::Stage as NodeStage;
use fleet::report::Report;
use tokio::runtime::Runtime;

use super::super::fabric::{Place, SERVER};
use super::super::stage::Stage;
use super::Load;
use crate::demo::work;
use crate::line;

const HTTP: u16 = 8080;
const PEERS: u16 = 6881;
const IMAGE: &str = "golden";
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often the operator looks which machines were switched on, and whether all are done.
const LOOK: Duration = Duration::from_secs(1);
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(50);
/// A boot script has a few hundred bytes.
const SCRIPT_LIMIT_BYTES: usize = 64 << 10;

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// It has no power yet.
    Off,
    /// Its agent is at work.
    Agent,
    /// The written system has been proved in its place.
    Booted,
}

pub(super) struct Hall<'a> {
    pub(super) stage: Stage<'a>,
    agent: PathBuf,
    runtime: Runtime,
    client: Client,
    machines: Vec<Machine>,
    /// The calling thread is in the server's namespace.
    is_at_the_server: bool,
}

impl<'a> Hall<'a> {
    /// Starts the server and waits until it answers.
    pub(super) fn open(mut stage: Stage<'a>, agent: &Path, load: &Load) -> Result<Hall<'a>> {
        let home = stage.home(Place::Server);
        let (data, configuration) = (home.join("data"), home.join("rackswarm.toml"));
        let text = format!(
            "[server]\ndata_dir = {data:?}\nlisten = \"{SERVER}:{HTTP}\"\n[tftp]\nenabled = false\n\
             [swarm]\nlisten = \"{SERVER}:{PEERS}\"\nlinger_seconds = {}\n",
            load.linger_seconds()
        );
        fs::write(&configuration, text)?;
        let program = stage.program.display().to_string();
        stage.start(Place::Server, &line![program, "serve", "--config", configuration.display()])?;
        let token = data.join("operator.token");
        stage.wait_for("the server writes its operator's token", START_LIMIT, || token.exists())?;
        stage.wait_for_port(HTTP)?;
        let token = Token(fs::read_to_string(&token)?.trim().to_owned());
        let client = Client::new(&format!("http://{SERVER}:{HTTP}"), token)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let machines = vec![Machine::Off; load.nodes];
        Ok(Hall { stage, agent: agent.to_owned(), runtime, client, machines, is_at_the_server: false })
    }

    /// Tells the server of racks and nodes and gives it the image; how large its pieces are.
    pub(super) fn fill(&self) -> Result<u64> {
        for rack in 0..self.stage.fabric.plan().racks {
            self.ask(self.client.put_rack(&rack_name(rack)?, &RackSettings::default()))?;
        }
        for node in 0..self.machines.len() {
            let settings = NodeSettings {
                rack: Some(self.rack(node)?),
                macs: Some(vec![self.mac(node)?]),
                power: Some(format!("fake:figures-{}-{node}", std::process::id())),
                ..NodeSettings::default()
            };
            let new = NewNode { name: name(node)?, settings };
            self.ask(self.client.add_node(&new))?;
        }
        let source = self.stage.source.clone();
        let image = self
            .stage
            .fabric
            .inside(Place::Server, || self.runtime.block_on(work::import(&self.client, IMAGE, &source, |_| {})))?;
        Ok(image.piece_size.into())
    }

    /// Gives the order.
    pub(super) fn deploy(&self) -> Result<DeploymentId> {
        let racks: Result<Vec<RackName>> = (0..self.stage.fabric.plan().racks).map(rack_name).collect();
        let new = NewDeployment { image: IMAGE.to_owned(), racks: racks?, ..NewDeployment::default() };
        Ok(self.ask(self.client.deploy(&new))?.id)
    }

    /// Is firmware, kernel and reboot of all machines until every one is proved. It asks the server very often, so it
    /// works in the server's namespace from the beginning to the end.
    pub(super) fn attend(&mut self, id: DeploymentId, limit: Duration) -> Result<()> {
        let fabric = self.stage.fabric;
        self.is_at_the_server = true;
        let outcome = fabric.inside(Place::Server, || self.attend_there(id, limit));
        self.is_at_the_server = false;
        outcome
    }

    fn attend_there(&mut self, id: DeploymentId, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let (mut looked, mut sampled) = (begun, begun);
        loop {
            self.stage.stop.check()?;
            for node in 0..self.machines.len() {
                if self.machines[node] == Machine::Agent && self.has_ended(node)? {
                    self.prove(node)?;
                    self.machines[node] = Machine::Booted;
                }
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if self.machines.contains(&Machine::Off) {
                    self.boot_those_with_power()?;
                } else if self.machines.iter().all(|machine| *machine == Machine::Booted) {
                    let deployment = self.ask(self.client.deployment(id))?;
                    match deployment.state {
                        DeploymentState::Done => return Ok(()),
                        DeploymentState::Active => {}
                        DeploymentState::Cancelled => bail!("the deployment was cancelled"),
                    }
                }
            }
            if sampled.elapsed() >= SAMPLE {
                sampled = Instant::now();
                self.stage.groups().for_each(|(_, group)| group.sample());
            }
            if begun.elapsed() > limit {
                let left = self.machines.iter().filter(|machine| **machine != Machine::Booted).count();
                bail!("{left} of {} nodes are not installed after {} s", self.machines.len(), limit.as_secs());
            }
            std::thread::sleep(GLANCE);
        }
    }

    pub(super) fn report(&self, id: DeploymentId) -> Result<Report> {
        self.ask(self.client.report_of(id))
    }

    /// The file that stands for a node's disk.
    pub(super) fn disk(&self, node: usize) -> PathBuf {
        self.stage.home(Place::Node(node)).join(format!("disk-{node}"))
    }

    pub(super) fn pids(&mut self) -> Vec<u32> {
        self.stage.groups().flat_map(|(_, group)| group.pids()).collect()
    }

    /// Starts the agent of every machine that the server has switched on.
    fn boot_those_with_power(&mut self) -> Result<()> {
        let views = self.ask(self.client.nodes())?;
        for node in 0..self.machines.len() {
            let name = name(node)?;
            let has_power = views.iter().any(|view| view.name == name && view.stage == NodeStage::Leasing);
            if self.machines[node] == Machine::Off && has_power {
                self.boot(node)?;
                self.machines[node] = Machine::Agent;
            }
        }
        Ok(())
    }

    /// What firmware, loader and kernel do: the script is asked for, and the agent starts with what its line says.
    fn boot(&mut self, node: usize) -> Result<()> {
        let mac = self.mac(node)?;
        let path = format!("/boot/{}/script?uuid=&platform=pcbios", mac.to_string().replace(':', "-"));
        let script = String::from_utf8(self.ask(self.client.read(&path, SCRIPT_LIMIT_BYTES))?)?;
        let word = |key: &str| {
            let found = script.split_whitespace().find_map(|word| word.strip_prefix(key));
            found.map(str::to_owned).with_context(|| format!("the boot script of node {node} has no {key}: {script}"))
        };
        let (server, token) = (word("rackswarm.server=")?, word("rackswarm.token=")?);
        let disk = self.disk(node);
        File::create(&disk)?.set_len(fs::metadata(&self.stage.source)?.len())?;
        let listen = format!("{}:{PEERS}", self.address(node));
        let mut agent = line![self.agent.display(), "run", "--server", server, "--token", token, "--mac", mac];
        agent.extend(line!["--listen", listen, "--disk", disk.display(), "--no-post"]);
        agent.extend(line!["--booted", self.booted(node).display()]);
        self.stage.start_by_itself(Place::Node(node), &agent)
    }

    fn has_ended(&mut self, node: usize) -> Result<bool> {
        match self.stage.ended(Place::Node(node)) {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => {
                bail!("the agent of node {node} ended with {status}: {}", self.stage.last_words(Place::Node(node)))
            }
        }
    }

    /// Says what the booted system would say.
    fn prove(&self, node: usize) -> Result<()> {
        let text = fs::read(self.booted(node)).context("the agent left nothing to prove")?;
        let deployed: DeployedConfig = serde_json::from_slice(&text)?;
        let proof = Proof {
            digest: deployed.digest,
            disk: format!("serial:disk-{node}"),
            attempt: deployed.attempt,
            boot_id: format!("figures-{node}"),
            kernel: "none: nothing boots in this bench".to_owned(),
        };
        self.ask(self.client.with_token(deployed.node_token).prove(&proof))
    }

    fn booted(&self, node: usize) -> PathBuf {
        self.stage.home(Place::Node(node)).join("booted.json")
    }

    fn address(&self, node: usize) -> Ipv4Addr {
        self.stage.fabric.address(Place::Node(node))
    }

    fn rack(&self, node: usize) -> Result<RackName> {
        rack_name(self.stage.fabric.plan().rack_of(node))
    }

    /// Locally administered, with the node's address in it.
    fn mac(&self, node: usize) -> Result<Mac> {
        let [a, b, c, d] = self.address(node).octets();
        Ok(format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}").parse()?)
    }

    /// Asks the server as a program on its own machine does, so that no link of the fabric carries it.
    fn ask<T: Send>(&self, request: impl Future<Output = Result<T, ClientError>> + Send) -> Result<T> {
        match self.is_at_the_server {
            true => Ok(self.runtime.block_on(request)?),
            false => self.stage.fabric.inside(Place::Server, || Ok(self.runtime.block_on(request)?)),
        }
    }
}

fn name(node: usize) -> Result<NodeName> {
    Ok(format!("n{:03}", node + 1).parse()?)
}

fn rack_name(rack: usize) -> Result<RackName> {
    Ok(format!("r{:02}", rack + 1).parse()?)
}
