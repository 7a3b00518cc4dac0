//! A switch and hosts in network namespaces, and a director that remembers.
//!
//! Needs root and the tools of iproute2. Names carry the process number, and
//! everything is removed when the network is dropped.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fleet::ids::Mac;
use nix::sched::{CloneFlags, setns};
use rackswarm_boot::dhcp::DhcpConfig;
use rackswarm_boot::director::{Director, DirectorError, Lease, Reservations, Sighting};
use rackswarm_boot::tftp::TftpConfig;
use rackswarm_boot::{Error, Services};
use tokio::sync::oneshot;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A switch in a namespace of its own, and the hosts that are plugged into it.
pub(crate) struct Network {
    switch: String,
    hosts: Mutex<Vec<String>>,
}

impl Network {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network tests need root: run `sudo cargo xtask test`");
        let switch = format!("rsb{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        Self { switch, hosts: Mutex::new(Vec::new()) }
    }

    /// A host with the interface `eth0` on the switch.
    pub(crate) fn host(&self, address: Option<&str>) -> Host {
        let mut hosts = self.hosts.lock().unwrap();
        let name = format!("{}h{}", self.switch, hosts.len());
        let port = format!("p{}", hosts.len());
        ip(&["netns", "add", &name]);
        hosts.push(name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        let veth = ["-n", &self.switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name];
        ip(&veth);
        ip(&["-n", &self.switch, "link", "set", &port, "master", "br0", "up"]);
        if let Some(address) = address {
            ip(&["-n", &name, "address", "add", address, "dev", "eth0"]);
        }
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        Host { name }
    }

    /// A second interface, `eth1`, of a host that stands on another switch.
    pub(crate) fn plug(&self, host: &Host, address: &str) {
        let veth =
            ["-n", &self.switch, "link", "add", "second", "type", "veth", "peer", "name", "eth1", "netns", &host.name];
        ip(&veth);
        ip(&["-n", &self.switch, "link", "set", "second", "master", "br0", "up"]);
        host.ip(&["address", "add", address, "dev", "eth1"]);
        host.ip(&["link", "set", "eth1", "up"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let hosts = self.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for name in hosts.iter().chain([&self.switch]) {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("`ip` is not installed: run `cargo xtask test`, which installs it");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A host in its namespace.
#[derive(Clone)]
pub(crate) struct Host {
    name: String,
}

impl Host {
    pub(crate) fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    pub(crate) fn mac(&self) -> Mac {
        let text = self.run("cat", &["/sys/class/net/eth0/address"]);
        String::from_utf8(text.stdout).unwrap().trim().parse().unwrap()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let found = Command::new("which").arg(program).output().unwrap().status.success();
        assert!(found, "{program} is not installed: run `cargo xtask test`, which installs it");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    /// Runs a program that must succeed.
    pub(crate) fn must(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
        said
    }

    /// Starts a program that is ended when the guard is dropped.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> Running {
        let child = self.command(program, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Running(child)
    }

    /// Runs a function on a thread that lives in this namespace.
    pub(crate) fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name);
        thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Starts the boot services here.
    pub(crate) fn serve(&self, dhcp: DhcpConfig, tftp: TftpConfig, director: &Arc<Memory>) -> Result<Service, Error> {
        let (ready, bound) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let director = Arc::clone(director);
        let thread = self.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                match Services::bind(&dhcp, &tftp, 8080, director).await {
                    Ok(services) => {
                        ready.send(Ok(())).unwrap();
                        services
                            .run(async {
                                let _ = stopped.await;
                            })
                            .await
                            .unwrap();
                    }
                    Err(error) => ready.send(Err(error)).unwrap(),
                }
            });
        });
        bound.recv().unwrap().map(|()| Service { stop: Some(stop), thread: Some(thread) })
    }
}

/// A started program.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Running boot services.
pub(crate) struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Ends the services and waits for it.
    pub(crate) fn end(mut self) {
        self.finish().unwrap();
    }

    fn finish(&mut self) -> thread::Result<()> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// A director that keeps everything in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) fixed: BTreeMap<Mac, Ipv4Addr>,
    pub(crate) refuse_to_save: AtomicBool,
    pub(crate) leases: Mutex<BTreeMap<Ipv4Addr, Lease>>,
    pub(crate) saves: AtomicU32,
    pub(crate) sightings: Mutex<Vec<Sighting>>,
    pub(crate) sent: Mutex<Vec<(Option<Mac>, String, u64)>>,
    pub(crate) troubles: Mutex<Vec<String>>,
}

impl Reservations for Memory {
    fn reservation(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.fixed.reservation(mac)
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<Mac> {
        self.fixed.reserved_for(address)
    }
}

impl Director for Memory {
    fn sighted(&self, sighting: Sighting) {
        self.sightings.lock().unwrap().push(sighting);
    }

    fn loader_sent(&self, mac: Option<Mac>, file: &str, bytes: u64) {
        self.sent.lock().unwrap().push((mac, file.to_owned(), bytes));
    }

    fn trouble(&self, _: Option<Mac>, sentence: &str) {
        self.troubles.lock().unwrap().push(sentence.to_owned());
    }

    async fn save_leases(&self, leases: Vec<Lease>) -> Result<(), DirectorError> {
        if self.refuse_to_save.load(Ordering::Relaxed) {
            return Err("the disk is full".into());
        }
        self.saves.fetch_add(1, Ordering::Relaxed);
        self.leases.lock().unwrap().extend(leases.into_iter().map(|lease| (lease.address, lease)));
        Ok(())
    }

    async fn load_leases(&self) -> Result<Vec<Lease>, DirectorError> {
        Ok(self.leases.lock().unwrap().values().copied().collect())
    }
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: did not happen within 20 s");
        thread::sleep(Duration::from_millis(20));
    }
}
