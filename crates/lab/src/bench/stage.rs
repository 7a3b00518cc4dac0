//! One run's place: folders, control groups, processes in their namespaces, and the gate that releases the nodes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::fabric::{Fabric, Place};
use super::group::Group;
use crate::scratch;
use crate::stop::Stop;

/// The name of the file at the server and at every node.
pub const FILE: &str = "image.bin";
/// How often something that is waited for is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// Everything of one run; it is gone with its value.
pub struct Stage<'a> {
    /// The network.
    pub fabric: &'a Fabric,
    /// The file to deliver.
    pub source: PathBuf,
    /// Our own program.
    pub program: PathBuf,
    /// A folder for the run.
    pub folder: PathBuf,
    /// Asked to end?
    pub stop: &'a Stop,
    groups: BTreeMap<Place, Group>,
    children: BTreeMap<Place, Vec<Child>>,
    gates: BTreeMap<usize, ChildStdin>,
}

/// A command line.
pub type Line = Vec<String>;

/// Makes a command line of words of any kind.
#[macro_export]
macro_rules! line {
    ($($word:expr),* $(,)?) => { ::std::vec::Vec::from([$($word.to_string()),*]) };
}

impl<'a> Stage<'a> {
    /// Folders and groups for the server and all nodes, below `parent`.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new(fabric: &'a Fabric, source: &Path, program: &Path, parent: &Path, stop: &'a Stop) -> Result<Stage<'a>> {
        let name = scratch::unique_name();
        let folder = parent.join(&name);
        let mut groups = BTreeMap::new();
        fs::create_dir_all(&folder)?;
        for place in std::iter::once(Place::Server).chain((0..fabric.plan().nodes()).map(Place::Node)) {
            fs::create_dir(folder.join(word(place)))?;
            groups.insert(place, Group::new(&format!("{name}-{}", word(place)))?);
        }
        let (children, gates) = (BTreeMap::new(), BTreeMap::new());
        let (source, program) = (source.to_owned(), program.to_owned());
        Ok(Stage { fabric, source, program, folder, stop, groups, children, gates })
    }

    /// The folder of one place.
    #[must_use]
    pub fn home(&self, place: Place) -> PathBuf {
        self.folder.join(word(place))
    }

    /// Where a node puts the file.
    #[must_use]
    pub fn destination(&self, node: usize) -> PathBuf {
        self.home(Place::Node(node)).join(FILE)
    }

    /// What a place's first process wrote to its standard output until now.
    #[must_use]
    pub fn said(&self, place: Place) -> String {
        let bytes = fs::read(self.home(place).join("out")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last words of a place's processes, for a failure's sentence.
    #[must_use]
    pub fn last_words(&self, place: Place) -> String {
        let bytes = fs::read(self.home(place).join("err")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Starts a process at a place.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, place: Place, line: &[String]) -> Result<()> {
        self.spawn(place, line, false).map(drop)
    }

    /// Starts a node's process up to the gate: it waits there for [`Stage::release`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn hold(&mut self, node: usize, line: &[String]) -> Result<()> {
        let gate = self.spawn(Place::Node(node), line, true)?;
        gate.map(|gate| self.gates.insert(node, gate));
        Ok(())
    }

    /// Opens the gate for one node.
    ///
    /// # Errors
    /// When its process has ended already.
    pub fn release(&mut self, node: usize) -> Result<()> {
        self.release_with(node, &[])
    }

    /// Opens the gate for one node, with words that its command line lacks so far.
    ///
    /// # Errors
    /// When its process has ended already.
    pub fn release_with(&mut self, node: usize, words: &[String]) -> Result<()> {
        let Some(mut gate) = self.gates.remove(&node) else { return Ok(()) };
        let line = words.join(" ") + "\n";
        gate.write_all(line.as_bytes()).with_context(|| format!("node {node} did not wait at the gate"))
    }

    /// The groups of all places.
    pub fn groups(&mut self) -> impl Iterator<Item = (&Place, &mut Group)> {
        self.groups.iter_mut()
    }

    /// The group of one place.
    #[must_use]
    pub fn group(&self, place: Place) -> Option<&Group> {
        self.groups.get(&place)
    }

    /// Ends all processes at a place as a power failure would, and forgets them.
    ///
    /// # Errors
    /// When they do not end.
    pub fn end(&mut self, place: Place) -> Result<()> {
        if let Some(group) = self.groups.get(&place) {
            self.wait_for("killed processes end", Duration::from_secs(10), || {
                group.signal(Signal::KILL);
                group.pids().is_empty()
            })?;
        }
        for mut child in self.children.remove(&place).into_iter().flatten() {
            child.wait().context("a killed process cannot be waited for")?;
        }
        Ok(())
    }

    /// How the first process at a place ended, if it did.
    pub fn ended(&mut self, place: Place) -> Option<ExitStatus> {
        self.children.get_mut(&place)?.first_mut()?.try_wait().ok().flatten()
    }

    /// Sends a signal to the process that was started as number `index` at a place; false when there is none.
    pub fn signal_child(&self, place: Place, index: usize, signal: Signal) -> bool {
        let child = self.children.get(&place).and_then(|children| children.get(index));
        let pid = child.and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw);
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// When a file that is not empty was written last.
    #[must_use]
    pub fn written(&self, path: &Path) -> Option<SystemTime> {
        path.metadata().ok().filter(|there| there.len() > 0).and_then(|there| there.modified().ok())
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// After the limit, or when somebody asked us to stop.
    pub fn wait_for(&self, what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !holds() {
            self.stop.check()?;
            if start.elapsed() > limit {
                bail!("not within {} s: {what} ({})", limit.as_secs(), self.last_words(Place::Server));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Waits until the server listens on a TCP port.
    ///
    /// # Errors
    /// As [`Stage::wait_for`].
    pub fn wait_for_port(&self, port: u16) -> Result<()> {
        let address = SocketAddr::new(self.fabric.address(Place::Server).into(), port);
        let fabric = self.fabric;
        self.wait_for(&format!("the server listens on port {port}"), Duration::from_secs(30), || {
            fabric.inside(Place::Server, || Ok(TcpStream::connect(address).is_ok())).unwrap_or(false)
        })
    }

    fn spawn(&mut self, place: Place, line: &[String], gated: bool) -> Result<Option<ChildStdin>> {
        let mut command = self.command(place, line, gated)?;
        let mut child = self
            .fabric
            .inside(place, || command.spawn().with_context(|| format!("cannot start {}", line.join(" "))))?;
        let gate = child.stdin.take();
        self.children.entry(place).or_default().push(child);
        Ok(gate)
    }

    fn command(&self, place: Place, line: &[String], gated: bool) -> Result<Command> {
        let Some(group) = self.groups.get(&place) else { bail!("there is no {}", word(place)) };
        let home = self.home(place);
        let append = |name: &str| File::options().create(true).append(true).open(home.join(name));
        let (out, err) = (append("out")?, append("err")?);
        let mut command = group.command(line, gated);
        command.current_dir(&home).env("HOME", &home).stdout(out).stderr(err);
        Ok(command)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // The groups end every process, those that the children started too; only then can all be waited for.
        self.gates.clear();
        self.groups.clear();
        for child in self.children.values_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "a folder of the bench is left over");
        }
    }
}

fn word(place: Place) -> String {
    match place {
        Place::Server => "srv".to_owned(),
        Place::Node(node) => format!("n{node:03}"),
    }
}
