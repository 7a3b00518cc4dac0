//! A whole data centre knocks at one controller: the real process on loopback, and machines that speak the agents' API as
//! firmware, loader, agent and deployed system do. What takes a machine minutes (self-test, kernel, fetching) takes them
//! no time or a set time, so that all of them are at the same point at once.

mod crowd;
mod machine;
mod server;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use api::operator::NewDeployment;
use fleet::deployment::DeploymentState;
use fleet::rollout::Rollout;
use serde::{Deserialize, Serialize};

use super::machine::{Watch, wait_until_idle};
use crate::scratch::Scratch;
use crate::stop::Stop;
use crowd::{Crowd, IMAGE};
use machine::{Call, Clocks, Phase};
use server::Controller;

/// Where the controller's database is: on a disk, because it waits for one at each transaction.
const DATA: &str = "/var/tmp";
/// From the first machine to the last report; whoever needs longer has failed.
const LIMIT: Duration = Duration::from_secs(1200);

/// What comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Machines.
    pub nodes: usize,
    /// Machines of a rack.
    pub nodes_per_rack: usize,
    /// Machines that boot at the same time while they are enrolled.
    pub at_once: usize,
    /// Machines that the controller may switch on in one second.
    pub starts_per_second: u32,
    /// How long a machine fetches.
    pub fetching: Duration,
    /// How long all of them run and beat at the end.
    pub running: Duration,
}

/// What came of it. Milliseconds as the machines see them, with what the bench itself takes on the same cores.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Enrolment {
    /// Every machine was enrolled, deployed and proved.
    pub ok: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Others used the machine.
    pub noisy: bool,
    /// CPU seconds of others.
    pub foreign_cpu: f64,
    /// Machines.
    pub nodes: usize,
    /// Racks.
    pub racks: usize,
    /// Machines enrolled in a minute: boot script asked, inventory taken in, approved by rule.
    pub enrolments_per_minute: f64,
    /// Until the last one was enrolled, in seconds.
    pub enrol_seconds: f64,
    /// From the order to deploy to the last proof, in seconds.
    pub deploy_seconds: f64,
    /// The order to deploy to all of them, in milliseconds.
    pub deploy_call: f64,
    /// A machine's first words: script, and inventory.
    pub enrol_call: Spread,
    /// From a node's assignment in its timeline to the call at its power hook.
    pub assigned_to_power: Spread,
    /// From that call to the node's orders: script and registration.
    pub power_to_orders: Spread,
    /// Reports while all machines fetch.
    pub report: Spread,
    /// Heartbeats while all machines run.
    pub beat: Spread,
    /// Seconds between two reports of a machine that fetches, as its orders say. 0 in records from before they said so.
    pub report_seconds: u32,
    /// Reports answered in a second while all machines fetch.
    pub reports_per_second: f64,
    /// An operator meanwhile: status.
    pub status: Spread,
    /// An operator meanwhile: the deployment with all outcomes.
    pub deployment: Spread,
    /// An operator meanwhile: the list of all nodes.
    pub list: Spread,
    /// Events that an operator's console heard, and their bytes.
    pub console_events: u64,
    /// The console was told to read everything anew.
    pub console_missed: u64,
    /// Requests that failed and were sent again.
    pub repeated: u64,
    /// Most resident memory of the controller, in bytes.
    pub resident_peak: u64,
    /// CPU seconds of the controller while machines were enrolled.
    pub cpu_enrol: f64,
    /// While an operator named power drivers and racks.
    pub cpu_settings: f64,
    /// From the order to deploy to the last proof.
    pub cpu_deploy: f64,
    /// While all of them ran, for each second.
    pub cpu_beats_per_second: f64,
    /// Bytes of the database at the end.
    pub database_bytes: u64,
}

/// Of many times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The middle.
    pub p50: f64,
    /// Of a hundred the second to last.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    fn of(mut times: Vec<f64>) -> Spread {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
        let value = |share: f64| at(share).copied().unwrap_or(0.0);
        Spread { count: times.len(), p50: value(0.5), p99: value(0.99), max: value(1.0) }
    }
}

/// How it is done.
pub struct Setting<'a> {
    /// Our own program.
    pub program: &'a Path,
    /// Others give way to us.
    pub others_give_way: bool,
    /// How long to wait for an idle machine.
    pub patience: Duration,
    /// Asked to end?
    pub stop: &'a Stop,
}

/// Enrols and deploys once.
#[must_use]
pub fn run(load: &Load, setting: &Setting<'_>) -> Enrolment {
    let failed = |error| Enrolment { error: Some(format!("{error:#}")), nodes: load.nodes, ..Enrolment::default() };
    attempt(load, setting).unwrap_or_else(failed)
}

fn attempt(load: &Load, setting: &Setting<'_>) -> Result<Enrolment> {
    let folder = Scratch::new(Path::new(DATA))?;
    let _free = wait_until_idle(setting.patience);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime for the machines")?;
    let whole = async {
        tokio::select! {
            outcome = tokio::time::timeout(LIMIT, all(load, setting, folder.path())) => {
                outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not done after {} s", LIMIT.as_secs())))
            }
            () = asked(setting.stop) => Err(anyhow::anyhow!("interrupted")),
        }
    };
    runtime.block_on(whole)
}

async fn asked(stop: &Stop) {
    while stop.check().is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn all(load: &Load, setting: &Setting<'_>, folder: &Path) -> Result<Enrolment> {
    let hooks = server::Hooks::start(load.nodes).await?;
    let mut controller = Controller::start(setting.program, folder, load, &hooks).await?;
    let watch = Watch::begin([controller.pid()]);
    let operator = controller.operator()?;
    let crowd = Crowd::new(load, controller.url(), &hooks)?;
    let mut told = Enrolment { nodes: load.nodes, racks: crowd.racks(), ..Enrolment::default() };

    crowd.prepare(&operator).await?;
    let mut cpu = controller.cpu_seconds();
    let mut spent = |controller: &Controller| {
        let before = std::mem::replace(&mut cpu, controller.cpu_seconds());
        cpu - before
    };
    let begun = Instant::now();
    crowd.enrol(load.at_once).await?;
    told.enrol_seconds = begun.elapsed().as_secs_f64();
    told.enrolments_per_minute = 60.0 * load.nodes as f64 / told.enrol_seconds;
    told.cpu_enrol = spent(&controller);
    println!("    {} machines enrolled in {:.1} s", load.nodes, told.enrol_seconds);
    controller.check()?;

    crowd.settle(&operator, controller.hooks_file()).await?;
    told.cpu_settings = spent(&controller);
    let console = crowd.console(&operator).await?;
    let begun = Instant::now();
    let wanted = NewDeployment {
        image: IMAGE.to_owned(),
        nodes: crowd.names(),
        rollout: Rollout::default(),
        ..NewDeployment::default()
    };
    let made = operator.deploy(&wanted).await.context("the deployment was refused")?;
    told.deploy_call = begun.elapsed().as_secs_f64() * 1e3;
    let operating = crowd.operate(&operator, made.id);
    crowd.proved().await?;
    told.deploy_seconds = begun.elapsed().as_secs_f64();
    told.cpu_deploy = spent(&controller);
    println!("    all of them deployed and proved in {:.1} s", told.deploy_seconds);
    controller.check()?;

    tokio::time::sleep(load.running).await;
    told.cpu_beats_per_second = spent(&controller) / load.running.as_secs_f64();
    operating.abort();
    crowd.end().await;
    (told.console_events, told.console_missed) = console.end();

    let view = operator.deployment(made.id).await?;
    ensure!(view.state == DeploymentState::Done, "the deployment is {:?} at the end", view.state);
    let running = view.outcomes.values().filter(|o| matches!(o, fleet::deployment::Outcome::Running { .. })).count();
    ensure!(running == load.nodes, "only {running} of {} nodes run in the end", load.nodes);
    let clocks = crowd.clocks();
    told.assigned_to_power = Spread::of(crowd.waits(&operator).await?);
    told.read(clocks);
    told.resident_peak = controller.resident_peak();
    told.database_bytes = controller.database_bytes();
    let used = watch.end([controller.pid()], setting.others_give_way);
    (told.noisy, told.foreign_cpu) = (used.noisy, used.foreign);
    controller.stop().await?;
    told.ok = true;
    Ok(told)
}

impl Enrolment {
    /// Reports that all machines together mean to send in a second while they fetch.
    #[must_use]
    pub fn reports_offered_per_second(&self) -> f64 {
        self.nodes as f64 / f64::from(self.report_seconds.max(1))
    }

    fn read(&mut self, clocks: &Clocks) {
        let of = |phase, call| Spread::of(clocks.times(phase, call));
        self.enrol_call = of(Phase::Enrol, Call::Boot);
        self.power_to_orders = of(Phase::Deploy, Call::Orders);
        self.report = of(Phase::AllFetch, Call::Report);
        self.beat = of(Phase::AllRun, Call::Beat);
        self.status = of(Phase::AllFetch, Call::Status);
        self.deployment = of(Phase::AllFetch, Call::Deployment);
        self.list = of(Phase::AllFetch, Call::List);
        let together = clocks.length(Phase::AllFetch).as_secs_f64();
        self.report_seconds = clocks.report_seconds();
        self.reports_per_second = self.report.count as f64 / together.max(0.001);
        self.repeated = clocks.repeated();
    }
}

/// Milliseconds since the Unix epoch, by the clock that the controller starts from too.
fn wall() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_middle_the_second_to_last_and_the_longest() {
        let spread = Spread::of((1..=1000).rev().map(f64::from).collect());
        assert_eq!((spread.count, spread.p50, spread.p99, spread.max), (1000, 501.0, 991.0, 1000.0));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
