//! Running the program as an operator does.
#![allow(dead_code, unreachable_pub)]

use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::Watchdog;
use agent::run::{Options, Place};
use api::agent::Token;
use api::client::Client;
use fleet::disk::Disk;
use serde_json::Value;

/// How long a server may take to start or to end on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How a command ended.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// What it printed, if it succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// What a command printed with `--json`.
pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program, with nothing of the tester's environment that it would read.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackswarm"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    for name in ["RACKSWARM_SERVER", "RACKSWARM_TOKEN_FILE", "NO_COLOR", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command
}

pub fn rackswarm(arguments: &[&str]) -> Ran {
    command().args(arguments).output().expect("the program can be started").into()
}

/// A controller on loopback with everything off that needs a privilege.
pub struct Server {
    child: Child,
    pub url: String,
    pub folder: PathBuf,
}

impl Server {
    /// Starts one in `folder`, with `settings` added to its configuration, and waits until it answers.
    pub fn start(folder: &Path, settings: &str) -> Self {
        let http = free_port();
        Self::start_on(folder, settings, http)
    }

    /// As [`Server::start`], on a port that was used before.
    pub fn start_on(folder: &Path, settings: &str, http: u16) -> Self {
        let config = folder.join("rackswarm.toml");
        let text = format!(
            "[server]\ndata_dir = \"{}\"\nlisten = \"127.0.0.1:{http}\"\n[tftp]\nenabled = false\n[swarm]\nlisten = \"127.0.0.1:{}\"\n{settings}",
            folder.join("data").display(),
            free_port()
        );
        std::fs::write(&config, text).expect("the configuration can be written");
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
        let child = command().arg("serve").arg("--config").arg(&config).stdout(Stdio::null()).stderr(log).spawn();
        let mut server = Self {
            child: child.expect("the program can be started"),
            url: format!("http://127.0.0.1:{http}"),
            folder: folder.to_owned(),
        };
        until("the controller answers", || {
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!("the controller ended with {status}:\n{}", server.log());
            }
            server.run(&["node", "list"]).code == 0
        });
        server
    }

    /// Runs a command against this controller.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().expect("the program can be started").into()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.env("RACKSWARM_SERVER", &self.url).env("RACKSWARM_TOKEN_FILE", self.token_file());
        command.args(arguments);
        command
    }

    pub fn token_file(&self) -> PathBuf {
        self.folder.join("data/operator.token")
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        let file = std::fs::File::open(self.folder.join("log"));
        let _ = file.expect("the log can be opened").read_to_string(&mut text);
        text
    }

    /// Ends it as a power failure would.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Ends it as a service manager would, and returns its exit status.
    pub fn terminate(mut self) -> Option<i32> {
        let script = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().expect("sh").success());
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "it does not end after SIGTERM:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the controller's log:\n{}", self.log());
        }
    }
}

/// Waits for a condition, with a deadline.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Waits for what a client or an agent does.
pub fn on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// The token of the kernel line that the machine with this address is given.
pub fn boot_token(server: &Server, mac: &str) -> String {
    let path = format!("/boot/{}/script?uuid=&platform=pcbios", mac.replace(':', "-"));
    let client = Client::new(&server.url, Token("none".into())).expect("an address");
    let mut token = None;
    until("the machine is sent our kernel", || {
        let script = on(client.read(&path, 1 << 16)).expect("a boot script");
        let script = String::from_utf8(script).expect("text");
        token = script.split_whitespace().find_map(|word| word.strip_prefix("rackswarm.token=")).map(str::to_owned);
        token.is_some()
    });
    token.expect("a token")
}

/// Runs the real agent for this machine, with files in place of its disks.
pub fn run_agent(server: &Server, mac: &str, token: String, disks: &[Disk]) -> Result<(), agent::Error> {
    let options = Options {
        place: Place::Trial { disks: disks.to_vec(), listen: "127.0.0.1:0".parse().expect("an address") },
        server: server.url.clone(),
        token: Token(token),
        mac: Some(mac.parse().expect("a MAC address")),
        post: false,
        listen: Duration::ZERO,
        check: false,
        booted: None,
    };
    on(agent::run::run(options, &Watchdog::default()))
}
