//! Runs a controller in another process: this test program once more, with
//! the configuration in its environment.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use api::agent::Token;
use api::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rackswarm_controller::{Config, bind};

use crate::common::eventually;

const FOLDER: &str = "RACKSWARM_TEST_CONTROLLER";
const LISTEN: &str = "RACKSWARM_TEST_LISTEN";
const USER: &str = "RACKSWARM_TEST_USER";
const POLICY: &str = "RACKSWARM_TEST_POLICY";

pub struct Controller {
    pub address: SocketAddr,
    data_dir: PathBuf,
    process: Child,
}

impl Controller {
    /// Starts one and waits until it answers. The data folder must be `data`
    /// in a folder as [`crate::common::config`] makes it.
    pub async fn start(config: &Config) -> Self {
        let folder = config.server.data_dir.parent().unwrap();
        let address_file = folder.join("address");
        let _ = std::fs::remove_file(&address_file);
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "controller_process", "--nocapture"])
            .env(FOLDER, folder)
            .env(LISTEN, config.server.listen.to_string())
            .env(USER, config.server.user.clone().unwrap_or_default())
            .env(POLICY, serde_json::to_string(&config.deploy).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let read = || async { std::fs::read_to_string(&address_file).ok()?.parse().ok() };
        let address = eventually("the controller's address", read).await;
        let controller = Self { address, data_dir: config.server.data_dir.clone(), process };
        eventually("an answer", || async {
            let token = std::fs::read_to_string(controller.data_dir.join("operator.token")).ok()?;
            let client = Client::new(&format!("http://{address}"), Token(token.trim().to_owned())).ok()?;
            client.status().await.ok()
        })
        .await;
        controller
    }

    pub fn token(&self) -> Token {
        let text = std::fs::read_to_string(self.data_dir.join("operator.token")).unwrap();
        Token(text.trim().to_owned())
    }

    pub fn operator(&self) -> Client {
        Client::new(&format!("http://{}", self.address), self.token()).unwrap()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    pub async fn wait(&mut self) -> ExitStatus {
        let process = std::sync::Mutex::new(&mut self.process);
        eventually("the controller's end", || async { process.lock().unwrap().try_wait().unwrap() }).await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other process's whole work; returns at once in an ordinary test run.
pub fn run() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let mut config = crate::common::config(&folder);
    config.server.listen = std::env::var(LISTEN).unwrap().parse().unwrap();
    config.server.user = std::env::var(USER).ok().filter(|user| !user.is_empty());
    config.deploy = serde_json::from_str(&std::env::var(POLICY).unwrap()).unwrap();
    let bound = bind(config).unwrap();
    let unfinished = folder.join("address.new");
    std::fs::write(&unfinished, bound.http_address().to_string()).unwrap();
    std::fs::rename(&unfinished, folder.join("address")).unwrap();
    bound.run().unwrap();
}
