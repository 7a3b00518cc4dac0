//! A virtual machine of a libvirt host gets the same image by the same command without a network boot: its disk is written
//! from the host that the controller runs on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::operator::{AcquireRequest, NewDeployment, NewSet, SyncOptions};
use common::{IMAGE, Site, WHOLE, all_running, finished, node_is, small_image};
use fleet::life::Stage;
use rackswarm_lab::check::Golden;
use rackswarm_lab::demo::work;
use rackswarm_lab::netns;
use rackswarm_lab::rig::from_environment;

/// A libvirtd in the lab's network, with folders that nobody else sees.
struct Libvirt {
    daemon: Child,
    folder: PathBuf,
}

impl Libvirt {
    fn start(folder: &Path, namespace: &str) -> Libvirt {
        for name in ["run", "lib", "cache", "log", "etc", "sock"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let fill = |text: &str| text.replace("HERE", &folder.display().to_string());
        for (name, text) in [("etc/qemu.conf", QEMU), ("libvirtd.conf", DAEMON), ("up.sh", UP)] {
            std::fs::write(folder.join(name), fill(text)).unwrap();
        }
        let out = std::fs::File::create(folder.join("out")).unwrap();
        let daemon = Command::new("ip")
            .args(["netns", "exec", namespace, "unshare", "--mount", "sh"])
            .arg(folder.join("up.sh"))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .expect("ip and unshare are there; run `cargo xtask test`, which installs what is missing");
        let libvirt = Libvirt { daemon, folder: folder.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !libvirt.virsh(&["version"]) {
            let said = std::fs::read_to_string(folder.join("out")).unwrap_or_default();
            assert!(Instant::now() < deadline, "libvirtd does not come up: {said}");
            std::thread::sleep(Duration::from_millis(200));
        }
        libvirt
    }

    fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}/sock/libvirt-sock", self.folder.display())
    }

    fn virsh(&self, words: &[&str]) -> bool {
        let output = Command::new("virsh").args(["--quiet", "-c", &self.uri()]).args(words).output().unwrap();
        output.status.success()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.virsh(&["destroy", MACHINE]);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

const MACHINE: &str = "rs-web-1";

const QEMU: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\n\
    cgroup_controllers = []\nnamespaces = []\nremember_owner = 0\ndynamic_ownership = 0\n";

const DAEMON: &str = "unix_sock_dir = \"HERE/sock\"\nunix_sock_group = \"root\"\nauth_unix_ro = \"none\"\n\
    auth_unix_rw = \"none\"\nlog_outputs = \"3:file:HERE/log/libvirtd.log\"\n";

/// libvirtd looks for the user of Debian's own machines even where another is configured.
const UP: &str = "set -e\nmount --make-rprivate /\n\
    (cat /etc/passwd; echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin) > HERE/passwd\n\
    (cat /etc/group; echo libvirt-qemu:x:64055:) > HERE/group\n\
    mount --bind HERE/passwd /etc/passwd\nmount --bind HERE/group /etc/group\n\
    mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt\n\
    mount --bind HERE/run /run/libvirt\nmount --bind HERE/lib /var/lib/libvirt\n\
    mount --bind HERE/cache /var/cache/libvirt\nmount --bind HERE/log /var/log/libvirt\n\
    mount --bind HERE/etc /etc/libvirt\n\
    exec libvirtd -f HERE/libvirtd.conf -p HERE/libvirtd.pid\n";

/// The controller's program with the agent beside it, as it is installed.
fn installed(folder: &Path) -> PathBuf {
    let bootenv = from_environment("RACKSWARM_TEST_BOOTENV").unwrap();
    let about: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bootenv.join("bootenv.json")).unwrap()).unwrap();
    let agent = about["agent"]["file"].as_str().expect("bootenv.json names the agent");
    std::fs::copy(agent, folder.join("rackswarm-agent")).unwrap();
    let program = folder.join("rackswarm");
    std::fs::copy(from_environment("RACKSWARM_TEST_PROGRAM").unwrap(), &program).unwrap();
    program
}

#[test]
fn vm_a_libvirt_machine_runs_the_same_image_by_the_same_command_without_a_network_boot() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::of(installed(folder.path()), Vec::new(), "", None);
    let libvirt = Libvirt::start(&folder.path().join("libvirt"), site.lab.namespace.name());
    let disks = folder.path().join("disks");
    site.with_client(async |_, client| {
        let set = NewSet {
            name: "cloud".parse()?,
            address: format!(
                "libvirt:?uri={}&folder={}&bridge={}&type=qemu&attach=http://{}:8080",
                libvirt.uri(),
                disks.display(),
                netns::BRIDGE,
                netns::SERVER
            ),
            credentials_file: None,
            rack: Some("r1".parse()?),
            unchecked: false,
        };
        client.put_rack(&"r1".parse()?, &Default::default()).await?;
        client.add_set(&set).await?;
        let wish = AcquireRequest {
            token: "web".into(),
            count: 1,
            image: None,
            cpus: None,
            memory_mib: Some(512),
            disk_gib: Some(1),
            instance_type: None,
            rack: None,
        };
        let made = client.acquire(&set.name, &wish).await?;
        let name = made.rows[0].node.clone().expect("it became a node");
        work::import(&client, IMAGE, &small_image(), |_| ()).await?;
        let wanted = NewDeployment { image: IMAGE.into(), nodes: vec![name.clone()], ..NewDeployment::default() };
        let begun = client.deploy(&wanted).await?;
        all_running(&finished(&client, begun.id, WHOLE).await?);
        let node = node_is(&client, name.as_str(), "it beats", WHOLE, |node| node.beat.is_some()).await?;
        assert_eq!((node.stage, node.tries, node.unexpected_total), (Stage::Running, 1, 0));
        assert!(node.deployed.expect("it proved it").disk.contains(MACHINE));
        let kinds: Vec<String> = client.timeline(&name).await?.into_iter().map(|line| line.kind).collect();
        for never in ["bootloader_sent", "kernel_sent", "address_asked", "sent_to_disk"] {
            assert!(kinds.iter().all(|kind| kind != never), "{kinds:?}");
        }
        assert_eq!(client.sync_set(&set.name, SyncOptions::default()).await?.rows.len(), 1);
        Ok(())
    });
    site.stop_server();
    drop(libvirt);
    let golden = Golden::read(&small_image(), site.lab.scratch.path()).unwrap();
    golden.compare(&disks.join(format!("{MACHINE}.raw"))).unwrap().verdict().unwrap();
}
