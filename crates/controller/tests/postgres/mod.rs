//! A private PostgreSQL on a socket in a temporary folder, gone with the test.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    folder: TempDir,
    programs: PathBuf,
    process: Child,
}

impl Server {
    pub(crate) fn start() -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("rackswarm-pg").tempdir().unwrap();
        if Uid::effective().is_root() {
            // PostgreSQL refuses to run as root.
            let nobody = User::from_name("nobody").unwrap().expect("Debian has the account `nobody`");
            chown(folder.path(), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
        }
        let data = folder.path().join("data");
        let made = unprivileged(&programs.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = unprivileged(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=50"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { folder, programs, process };
        server.wait();
        server
    }

    /// An empty database; its address.
    pub(crate) fn create(&self, name: &str) -> String {
        let made = self.client("createdb").arg(name).output().unwrap();
        assert!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr));
        format!("postgres://postgres@localhost/{name}?host={}", self.folder.path().display())
    }

    fn wait(&self) {
        let begun = Instant::now();
        while !self.client("pg_isready").stdout(Stdio::null()).status().unwrap().success() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START_LIMIT, "PostgreSQL is not ready after {START_LIMIT:?}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-h").arg(self.folder.path()).args(["-U", "postgres"]);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The folder goes next; there is nothing to be kept.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs as nobody, and ends with the thread that started it, however that ends.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if Uid::effective().is_root() {
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    }
    command.arg("--pdeathsig=QUIT").arg("--").arg(program).current_dir("/");
    command
}

fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
    found.expect("PostgreSQL is not installed: run `cargo xtask test`, which installs the package `postgresql`")
}
