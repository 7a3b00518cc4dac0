//! A whole lab: folder, network, machines and the server's configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use crate::netns::{self, Namespace};
use crate::scratch::Scratch;
use crate::serve::{Plan, Server};
use crate::vm::{Machines, Spec};
use crate::{leftovers, tool};

/// The server's HTTP port.
const HTTP_PORT: u16 = 8080;
/// The programs without which there is no lab.
const TOOLS: &[&str] = &["ip", "tc", "qemu-system-x86_64", "debugfs", "e2fsck", "dd"];

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program `rackswarm`.
    pub executable: PathBuf,
    /// Folder with `vmlinuz` and `initramfs`.
    pub bootenv: PathBuf,
    /// Folder in which the lab makes its own.
    pub parent: PathBuf,
    /// The machines.
    pub machines: Vec<Spec>,
    /// Limit of what each machine receives, in Mbit/s.
    pub rate_mbit: Option<u32>,
    /// TOML that is laid over the server's configuration.
    pub settings: String,
}

/// A lab. All of it goes with its value: machines first, then the network, then the folder.
#[derive(Debug)]
pub struct Lab {
    /// Its machines; all are off at first.
    pub machines: Machines,
    /// Its network.
    pub namespace: Namespace,
    /// Its folder.
    pub scratch: Scratch,
    plan: Plan,
}

impl Lab {
    /// Builds everything but starts nothing. Removes first what killed labs left behind.
    ///
    /// # Errors
    /// When this process is not root, a program or a file is missing, or something cannot be made.
    pub fn new(setup: &Setup) -> Result<Lab> {
        tool::need_root()?;
        tool::need(TOOLS)?;
        for (what, path) in
            [("the program", &setup.executable), ("the boot environment's kernel", &setup.bootenv.join("vmlinuz"))]
        {
            ensure!(path.is_file(), "{what} is not there: {}", path.display());
        }
        let removed = leftovers::remove(&setup.parent)?;
        if removed != leftovers::Removed::default() {
            tracing::warn!(?removed, "an earlier lab was killed; what it left is removed");
        }
        let scratch = Scratch::new(&setup.parent)?;
        let namespace = Namespace::new(&netns::Plan { taps: setup.machines.len(), rate_mbit: setup.rate_mbit })?;
        let mut machines = Machines::new(scratch.path(), namespace.name());
        for spec in &setup.machines {
            machines.add(spec)?;
        }
        let plan = write_configuration(setup, scratch.path(), namespace.name())?;
        Ok(Lab { machines, namespace, scratch, plan })
    }

    /// Starts the server; does not wait for it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start_server(&self) -> Result<Server> {
        Server::start(&self.plan)
    }

    /// How the server is started.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs asynchronous work inside the lab's network, on a runtime of its own.
    ///
    /// # Errors
    /// As the work, or when the network cannot be entered.
    pub fn block_on<T: Send>(&self, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.namespace.inside(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.context("cannot make an async runtime")?.block_on(work)
        })?
    }

    /// Copies the server's log and the machines' consoles into a folder.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn copy_logs(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let consoles = self.machines.list().iter().map(|machine| (format!("{}.log", machine.name), &machine.console));
        for (name, from) in
            consoles.chain([("server.log".to_owned(), &self.plan.log)]).filter(|(_, from)| from.exists())
        {
            let to = folder.join(name);
            std::fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
        Ok(())
    }
}

fn write_configuration(setup: &Setup, folder: &Path, namespace: &str) -> Result<Plan> {
    let data = folder.join("server");
    let file = folder.join("rackswarm.toml");
    let mut table: toml::Table =
        configuration(&data, &setup.bootenv).parse().context("the lab's own configuration is wrong")?;
    lay_over(&mut table, setup.settings.parse().context("the settings are no TOML")?);
    std::fs::write(&file, toml::to_string(&table)?).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Plan {
        executable: setup.executable.canonicalize()?,
        configuration: file,
        log: folder.join("server.log"),
        namespace: namespace.to_owned(),
        url: format!("http://{}:{HTTP_PORT}", netns::SERVER),
        token_file: data.join("operator.token"),
    })
}

/// Deadlines are shorter than for metal, because virtual firmware has no self-test of minutes; emulation still needs room.
/// `no_timer_check` keeps kernels from giving up when the host is too loaded for their timer to tick.
fn configuration(data: &Path, bootenv: &Path) -> String {
    let (server, bridge) = (netns::SERVER, netns::BRIDGE);
    let [a, b, c, _] = server.octets();
    format!(
        "[server]\n\
         data_dir = {data:?}\n\
         listen = \"{server}:{HTTP_PORT}\"\n\
         [dhcp]\n\
         mode = \"full\"\n\
         interface = \"{bridge}\"\n\
         server_address = \"{server}\"\n\
         [[dhcp.subnets]]\n\
         network = \"{a}.{b}.{c}.0/{prefix}\"\n\
         ranges = [\"{a}.{b}.{c}.10-{a}.{b}.{c}.209\"]\n\
         [boot]\n\
         environment = {bootenv:?}\n\
         kernel_arguments = [\"console=ttyS0,115200\", \"quiet\", \"no_timer_check\", \"panic=1\"]\n\
         [swarm]\n\
         listen = \"{server}:6881\"\n\
         [deploy]\n\
         leasing_seconds = 180\n\
         loading_bootloader_seconds = 180\n\
         loading_kernel_seconds = 240\n\
         rebooting_seconds = 600\n\
         [node]\n\
         heartbeat_seconds = 5\n",
        prefix = netns::PREFIX_LENGTH,
    )
}

/// Tables are merged, everything else is replaced.
fn lay_over(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => lay_over(inner, value),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// The file that an environment variable of `cargo xtask test` names.
///
/// # Errors
/// A sentence that says how to run the test.
pub fn from_environment(variable: &str) -> Result<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| anyhow!("{variable} is not set; run `cargo xtask test --tier vm`, which builds what machines boot and says where it is"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_laid_over_the_configuration() {
        let mut table: toml::Table = configuration(Path::new("/data"), Path::new("/boot \"env\"")).parse().unwrap();
        lay_over(&mut table, "[deploy]\nattempts = 1\nleasing_seconds = 7".parse().unwrap());
        assert_eq!(table["deploy"]["attempts"].as_integer(), Some(1));
        assert_eq!(table["deploy"]["leasing_seconds"].as_integer(), Some(7));
        assert_eq!(table["deploy"]["loading_kernel_seconds"].as_integer(), Some(240));
        assert_eq!(table["boot"]["environment"].as_str(), Some("/boot \"env\""));
        assert_eq!(table["dhcp"]["subnets"][0]["network"].as_str(), Some("10.77.0.0/24"));
    }
}
