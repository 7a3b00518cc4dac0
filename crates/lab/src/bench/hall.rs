//! The hall: the real server with its operator, and machines that are a real agent's process each. Power, firmware, loader,
//! kernel and reboot are played: see [`Hall::attend`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::agent::{DeployedConfig, Proof, Token};
use api::client::{Client, ClientError};
use api::deployment::NewDeployment;
use api::operator::{NewNode, NodeSettings, NodeView, RackSettings};
use fleet::deployment::DeploymentState;
use fleet::ids::{DeploymentId, Mac, NodeName, RackName};
use fleet::life::Stage as NodeStage;
use fleet::report::Report;
use fleet::rollout::Rollout;
use futures_util::future::try_join_all;
use tokio::runtime::Runtime;

use super::fabric::{Place, SERVER};
use super::stage::Stage;
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
/// How often agents are looked at: a fraction of a per cent of what a node takes.
const GLANCE: Duration = Duration::from_millis(100);
/// A boot script has a few hundred bytes.
const SCRIPT_LIMIT_BYTES: usize = 64 << 10;

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// It has no power yet: its agent waits at the gate.
    Off,
    /// Its agent is at work.
    Agent,
    /// The written system has been proved in its place.
    Booted,
    /// It has no power and never comes back.
    Dead,
}

/// Server and machines on a stage.
pub struct Hall<'a> {
    /// Where they are.
    pub stage: Stage<'a>,
    agent: PathBuf,
    runtime: Runtime,
    client: Client,
    machines: Vec<Machine>,
    numbers: BTreeMap<NodeName, usize>,
    /// The calling thread is in the server's namespace.
    is_at_the_server: bool,
}

impl<'a> Hall<'a> {
    /// Starts the server and waits until it answers. Complete nodes give for at most `linger_seconds` more; `settings` are
    /// further lines of its configuration.
    ///
    /// # Errors
    /// When it does not start.
    pub fn open(mut stage: Stage<'a>, agent: &Path, linger_seconds: u32, settings: &str) -> Result<Hall<'a>> {
        let home = stage.home(Place::Server);
        let (data, configuration) = (home.join("data"), home.join("rackswarm.toml"));
        let text = format!(
            "[server]\ndata_dir = {data:?}\nlisten = \"{SERVER}:{HTTP}\"\n[tftp]\nenabled = false\n\
             [swarm]\nlisten = \"{SERVER}:{PEERS}\"\nlinger_seconds = {linger_seconds}\n{settings}"
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
        let nodes = stage.fabric.plan().nodes();
        let machines = vec![Machine::Off; nodes];
        let numbers = (0..nodes).map(|node| Ok((name(node)?, node))).collect::<Result<_>>()?;
        Ok(Hall { stage, agent: agent.to_owned(), runtime, client, machines, numbers, is_at_the_server: false })
    }

    /// Tells the server of racks and nodes and gives it the image; how large its pieces are.
    ///
    /// # Errors
    /// When it refuses.
    pub fn fill(&self) -> Result<u64> {
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

    /// Brings every machine as far as its power switch: disk, control group, namespace, and the agent's command line but
    /// for what the boot script will add. Making hundreds of processes while the first ones fetch already would take the
    /// cores that all of them share.
    ///
    /// # Errors
    /// When a file or a process cannot be made.
    pub fn line_up(&mut self) -> Result<()> {
        let bytes = fs::metadata(&self.stage.source)?.len();
        for node in 0..self.machines.len() {
            File::create(self.disk(node))?.set_len(bytes)?;
            self.hold(node)?;
        }
        Ok(())
    }

    fn hold(&mut self, node: usize) -> Result<()> {
        let listen = format!("{}:{PEERS}", self.address(node));
        let mut agent = line![self.agent.display(), "run", "--mac", self.mac(node)?, "--listen", listen];
        agent.extend(line!["--disk", self.disk(node).display(), "--no-post", "--booted", self.booted(node).display()]);
        self.stage.hold(node, &agent)
    }

    /// Gives the order to put the image on every node.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn deploy(&self, rollout: Rollout) -> Result<DeploymentId> {
        let racks: Result<Vec<RackName>> = (0..self.stage.fabric.plan().racks).map(rack_name).collect();
        let new = NewDeployment { image: IMAGE.to_owned(), racks: racks?, rollout, ..NewDeployment::default() };
        Ok(self.ask(self.client.deploy(&new))?.id)
    }

    /// Is firmware, kernel and reboot of all machines until the deployment is done. It asks the server very often, so it
    /// works in the server's namespace from the beginning to the end. `meddle` may do what it likes in between.
    ///
    /// # Errors
    /// When an agent fails, `meddle` does, or it takes longer than `limit`.
    pub fn attend(
        &mut self,
        id: DeploymentId,
        limit: Duration,
        meddle: impl FnMut(&mut Hall<'a>) -> Result<()> + Send,
    ) -> Result<()> {
        let fabric = self.stage.fabric;
        self.is_at_the_server = true;
        let outcome = fabric.inside(Place::Server, || self.attend_there(id, limit, meddle));
        self.is_at_the_server = false;
        outcome
    }

    fn attend_there(
        &mut self,
        id: DeploymentId,
        limit: Duration,
        mut meddle: impl FnMut(&mut Hall<'a>) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        let (mut looked, mut sampled) = (begun, begun);
        loop {
            self.stage.stop.check()?;
            self.prove_those_that_ended()?;
            meddle(self)?;
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if self.machines.contains(&Machine::Off) {
                    self.boot_those_with_power()?;
                } else if !self.machines.contains(&Machine::Agent) {
                    match self.ask(self.client.deployment(id))?.state {
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

    /// What the server says of a node.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn view(&self, node: usize) -> Result<NodeView> {
        let name = name(node)?;
        self.ask(self.client.node(&name))
    }

    /// Takes the power from a machine. What was written stays on its disk; it starts again when the server switches it on.
    ///
    /// # Errors
    /// When its agent does not end.
    pub fn cut_power(&mut self, node: usize) -> Result<()> {
        self.stage.end(Place::Node(node))?;
        self.hold(node)?;
        self.machines[node] = Machine::Off;
        Ok(())
    }

    /// Takes the power from a machine for ever.
    ///
    /// # Errors
    /// When its agent does not end.
    pub fn destroy(&mut self, node: usize) -> Result<()> {
        self.stage.end(Place::Node(node))?;
        self.machines[node] = Machine::Dead;
        Ok(())
    }

    /// What the deployment came to.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn report(&self, id: DeploymentId) -> Result<Report> {
        self.ask(self.client.report_of(id))
    }

    /// The file that stands for a node's disk.
    #[must_use]
    pub fn disk(&self, node: usize) -> PathBuf {
        self.stage.home(Place::Node(node)).join(format!("disk-{node}"))
    }

    /// Everybody's processes.
    pub fn pids(&mut self) -> Vec<u32> {
        self.stage.groups().flat_map(|(_, group)| group.pids()).collect()
    }

    /// Lets the agent of every machine begin that the server has switched on. All of them ask for their scripts at once, as
    /// machines do: one after the other, on cores that agents use already, the last of 230 waited for two minutes.
    fn boot_those_with_power(&mut self) -> Result<()> {
        let mut nodes = Vec::new();
        for view in self.ask(self.client.nodes())?.into_iter().filter(|view| view.stage == NodeStage::Leasing) {
            let node = *self.numbers.get(&view.name).with_context(|| format!("nobody made {}", view.name))?;
            if self.machines[node] == Machine::Off {
                nodes.push(node);
            }
        }
        let paths =
            nodes.iter().map(|node| Ok(format!("/boot/{}/script?uuid=&platform=pcbios", self.mac(*node)?.dashed())));
        let paths: Vec<String> = paths.collect::<Result<_>>()?;
        let scripts = self.ask(try_join_all(paths.iter().map(|path| self.client.read(path, SCRIPT_LIMIT_BYTES))))?;
        for (node, script) in nodes.into_iter().zip(scripts) {
            self.boot(node, &String::from_utf8(script)?)?;
            self.machines[node] = Machine::Agent;
        }
        Ok(())
    }

    /// What loader and kernel do: the agent starts with what the script's line says.
    fn boot(&mut self, node: usize, script: &str) -> Result<()> {
        let word = |key: &str| {
            let found = script.split_whitespace().find_map(|word| word.strip_prefix(key));
            found.map(str::to_owned).with_context(|| format!("the boot script of node {node} has no {key}: {script}"))
        };
        let (server, token) = (word("rackswarm.server=")?, word("rackswarm.token=")?);
        self.stage.release_with(node, &line!["--server", server, "--token", token])
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

    /// Says what the booted systems would say, in place of all whose agents have ended.
    fn prove_those_that_ended(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        for node in 0..self.machines.len() {
            if self.machines[node] == Machine::Agent && self.has_ended(node)? {
                let (client, proof) = self.proof(node)?;
                ended.push((node, client, proof));
            }
        }
        self.ask(try_join_all(ended.iter().map(|(_, client, proof)| client.prove(proof))))?;
        ended.into_iter().for_each(|(node, ..)| self.machines[node] = Machine::Booted);
        Ok(())
    }

    fn proof(&self, node: usize) -> Result<(Client, Proof)> {
        let text = fs::read(self.booted(node)).context("the agent left nothing to prove")?;
        let deployed: DeployedConfig = serde_json::from_slice(&text)?;
        let proof = Proof {
            digest: deployed.digest,
            disk: format!("serial:disk-{node}"),
            attempt: deployed.attempt,
            boot_id: format!("figures-{node}"),
            kernel: "none: nothing boots in this bench".to_owned(),
        };
        Ok((self.client.with_token(deployed.node_token), proof))
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
