//! A libvirtd of the test's own. It runs in namespaces, so the host's configuration and machines are not touched.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A libvirtd that nobody else sees.
pub(crate) struct Libvirt {
    daemon: Child,
    pub(crate) folder: TempDir,
}

impl Libvirt {
    /// In a network of its own, with the bridge `br0`.
    pub(crate) fn new() -> Libvirt {
        Libvirt::start(
            &["unshare", "--mount", "--net"],
            "ip link set lo up\nip link add br0 type bridge\nip link set br0 up\n",
        )
    }

    /// In a network namespace that is there already.
    pub(crate) fn in_namespace(name: &str) -> Libvirt {
        Libvirt::start(&["ip", "netns", "exec", name, "unshare", "--mount"], "")
    }

    fn start(into: &[&str], network: &str) -> Libvirt {
        assert!(rustix::process::geteuid().is_root(), "libvirtd needs root; run the tests as root");
        for tool in ["libvirtd", "virsh", "qemu-img", "qemu-system-x86_64", "unshare", "ip"] {
            needs(tool);
        }
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        for name in ["run", "lib", "cache", "log", "etc", "sock"] {
            std::fs::create_dir(here.join(name)).unwrap();
        }
        std::fs::write(here.join("etc/qemu.conf"), QEMU).unwrap();
        std::fs::write(here.join("libvirtd.conf"), DAEMON.replace("HERE", &here.display().to_string())).unwrap();
        std::fs::write(
            here.join("up.sh"),
            UP.replace("HERE", &here.display().to_string()).replace("NETWORK\n", network),
        )
        .unwrap();
        let out = std::fs::File::create(here.join("out")).unwrap();
        let daemon = Command::new(into[0])
            .args(&into[1..])
            .arg("sh")
            .arg(here.join("up.sh"))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let libvirt = Libvirt { daemon, folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while libvirt.try_virsh(&["version"]).is_none() {
            assert!(Instant::now() < deadline, "libvirtd does not come up: {}", libvirt.said());
            std::thread::sleep(Duration::from_millis(200));
        }
        libvirt
    }

    pub(crate) fn said(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("out") + &read("log/libvirtd.log")
    }

    pub(crate) fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}/sock/libvirt-sock", self.folder.path().display())
    }

    pub(crate) fn try_virsh(&self, words: &[&str]) -> Option<String> {
        let output = Command::new("virsh").args(["--quiet", "-c", &self.uri()]).args(words).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub(crate) fn virsh(&self, words: &[&str]) -> String {
        self.try_virsh(words).unwrap_or_else(|| panic!("virsh {words:?} failed: {}", self.said()))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for name in self.try_virsh(&["list", "--name"]).unwrap_or_default().lines().filter(|name| !name.is_empty()) {
            let _ = self.try_virsh(&["destroy", name]);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

const QEMU: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\n\
    cgroup_controllers = []\nnamespaces = []\nremember_owner = 0\ndynamic_ownership = 0\n";

const DAEMON: &str = "unix_sock_dir = \"HERE/sock\"\nunix_sock_group = \"root\"\nauth_unix_ro = \"none\"\n\
    auth_unix_rw = \"none\"\nlog_outputs = \"3:file:HERE/log/libvirtd.log\"\n";

/// libvirtd looks for the user of Debian's own machines even where another is
/// configured; only its largest package makes that user.
const UP: &str = "set -e\nmount --make-rprivate /\n\
    (cat /etc/passwd; echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin) > HERE/passwd\n\
    (cat /etc/group; echo libvirt-qemu:x:64055:) > HERE/group\n\
    mount --bind HERE/passwd /etc/passwd\nmount --bind HERE/group /etc/group\n\
    mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt\n\
    mount --bind HERE/run /run/libvirt\nmount --bind HERE/lib /var/lib/libvirt\n\
    mount --bind HERE/cache /var/cache/libvirt\nmount --bind HERE/log /var/log/libvirt\n\
    mount --bind HERE/etc /etc/libvirt\nNETWORK\n\
    exec libvirtd -f HERE/libvirtd.conf -p HERE/libvirtd.pid\n";

pub(crate) fn needs(tool: &str) {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).exists()));
    assert!(found, "{tool} is not installed; run `cargo xtask test`, which installs it");
}
