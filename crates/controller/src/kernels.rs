//! What machines are provisioned with: kernel and initramfs of the boot environment, and the words of the kernel line.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use fleet::ids::Mac;

use crate::config::Config;
use crate::keeper::Keeper;

/// The boot environment, and what every machine's kernel line says.
#[derive(Debug, Clone)]
pub struct Kernels {
    environment: PathBuf,
    server: String,
    arguments: Vec<String>,
}

impl Kernels {
    /// Those of this configuration, for machines that reach the server at `advertise`.
    #[must_use]
    pub fn new(config: &Config, advertise: SocketAddrV4) -> Self {
        Self {
            environment: config.environment(),
            server: format!("http://{advertise}"),
            arguments: config.boot.kernel_arguments.clone(),
        }
    }

    /// The kernel's file.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.environment.join("vmlinuz")
    }

    /// The initramfs' file.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.environment.join("initramfs")
    }

    /// The archive of programs that build layouts.
    #[must_use]
    pub fn layout_tools(&self) -> PathBuf {
        self.environment.join("layout-tools")
    }

    /// What is missing of the boot environment for images that are a tree of files, as a sentence. An agent of an older one
    /// knows no layouts.
    pub async fn lack_for_layouts(&self) -> Option<String> {
        let tools = self.layout_tools();
        let missing = tokio::fs::metadata(&tools).await.err();
        missing.map(|error| lacking(&tools, &error))
    }

    /// What is missing of the boot environment, as a sentence.
    pub async fn lack(&self) -> Option<String> {
        for file in [self.kernel(), self.initramfs()] {
            if let Err(error) = tokio::fs::metadata(&file).await {
                return Some(lacking(&file, &error));
            }
        }
        None
    }

    /// The words of a machine's kernel line, without `initrd=`.
    #[must_use]
    pub fn arguments(&self, keeper: &Keeper, mac: Mac, token: &str) -> Vec<String> {
        let ours = [
            format!("rackswarm.server={}", self.server),
            format!("rackswarm.token={token}"),
            format!("rackswarm.mac={mac}"),
        ];
        let discovery = &keeper.policy().discovery;
        let looks = keeper.read(|state| state.snapshot().node_of(mac).map(|node| discovery.looks_at(node)));
        let looks = looks.unwrap_or_default();
        let listen = (looks.listen_seconds > 0).then(|| format!("rackswarm.listen={}", looks.listen_seconds));
        let check = looks.checks.then(|| "rackswarm.check=1".to_owned());
        ours.into_iter().chain(listen).chain(check).chain(self.arguments.iter().cloned()).collect()
    }

    /// All of it, for a platform that hands it to a machine.
    #[must_use]
    pub fn whole(&self, keeper: &Keeper, mac: Mac, token: &str) -> power::Kernel {
        let line = self.arguments(keeper, mac, token).join(" ");
        power::Kernel { kernel: self.kernel(), initramfs: self.initramfs(), line }
    }
}

/// The sentence for a file of the boot environment that cannot be had.
#[must_use]
pub fn lacking(file: &Path, error: &io::Error) -> String {
    format!("the boot environment lacks {}: {error}; make it with `rackswarm bootenv build`", file.display())
}
