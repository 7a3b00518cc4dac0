//! The doctor on a network of its own, with and without a foreign DHCP server. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::until;
use serde_json::Value;

const CONFIG: &str = "[dhcp]\nmode = \"MODE\"\ninterface = \"boot0\"\n[[dhcp.subnets]]\nnetwork = \"10.91.0.0/24\"\n\
                      [tftp]\nenabled = false\n";

/// Two machines on one wire: `here` is ours with `boot0` and 10.91.0.1, `there` a stranger's with 10.91.0.2.
struct Wire {
    here: String,
    there: String,
    server: Option<Child>,
    folder: tempfile::TempDir,
}

impl Wire {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let wire = Self {
            here: format!("rs-doc-h-{tag}"),
            there: format!("rs-doc-t-{tag}"),
            server: None,
            folder: tempfile::tempdir().unwrap(),
        };
        ip(&["netns", "add", &wire.here]);
        ip(&["netns", "add", &wire.there]);
        ip(&["-n", &wire.here, "link", "add", "boot0", "type", "veth", "peer", "name", "far0", "netns", &wire.there]);
        for (namespace, name, address) in [(&wire.here, "boot0", "10.91.0.1/24"), (&wire.there, "far0", "10.91.0.2/24")]
        {
            ip(&["-n", namespace, "address", "add", address, "dev", name]);
            ip(&["-n", namespace, "link", "set", name, "up"]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        wire
    }

    /// A dnsmasq that gives addresses, and a boot file where `boots`.
    fn with_foreign_server(mut self, boots: bool) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.there, "dnsmasq", "--no-daemon", "--port=0", "--conf-file=/dev/null"]);
        command.args(["--no-ping", "--bind-interfaces", "--interface=far0", "--dhcp-range=10.91.0.50,10.91.0.60,1h"]);
        command.arg(format!("--dhcp-leasefile={}", self.folder.path().join("leases").display()));
        if boots {
            command.arg("--dhcp-boot=undionly.kpxe");
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.server = Some(child.expect("dnsmasq can be started; `cargo xtask test` installs it"));
        let name = self.there.clone();
        until("dnsmasq listens", || {
            let sockets = Command::new("ip").args(["netns", "exec", &name, "cat", "/proc/net/udp"]).output().unwrap();
            String::from_utf8_lossy(&sockets.stdout).contains(":0043 ")
        });
        self
    }

    /// Findings of one check.
    fn doctor(&self, mode: &str, check: &str) -> Vec<Value> {
        let config = self.folder.path().join("rackswarm.toml");
        std::fs::write(&config, CONFIG.replace("MODE", mode)).unwrap();
        let program = env!("CARGO_BIN_EXE_rackswarm");
        let output = Command::new("ip")
            .args(["netns", "exec", &self.here, program, "doctor", "--json", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let findings = report["findings"].as_array().unwrap();
        findings.iter().filter(|finding| finding["check"] == check).cloned().collect()
    }

    fn foreign(&self, mode: &str) -> (String, String) {
        let findings = self.doctor(mode, "foreign DHCP");
        assert_eq!(findings.len(), 1, "{findings:?}");
        let word = |key: &str| findings[0][key].as_str().unwrap().to_owned();
        (word("verdict"), word("text"))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
        for namespace in [&self.here, &self.there] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output =
        Command::new("ip").args(arguments).output().expect("ip can be started; `cargo xtask test` installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said} (run the tests as root)", arguments.join(" "));
}

#[test]
fn a_quiet_network_suits_full_mode_only() {
    let wire = Wire::new();
    let (verdict, text) = wire.foreign("full");
    assert_eq!(verdict, "pass", "{text}");
    let (verdict, text) = wire.foreign("proxy");
    assert_eq!(verdict, "fail", "{text}");
    assert!(text.contains("no DHCP server gives addresses"), "{text}");
}

#[test]
fn a_foreign_server_is_named_and_suits_proxy_mode_only() {
    let wire = Wire::new().with_foreign_server(false);
    let (verdict, text) = wire.foreign("full");
    assert_eq!(verdict, "fail", "{text}");
    assert!(text.contains("10.91.0.2") && text.contains("offers 10.91.0."), "{text}");
    let (verdict, text) = wire.foreign("proxy");
    assert_eq!(verdict, "pass", "{text}");
}

#[test]
fn a_foreign_boot_file_is_noticed() {
    let wire = Wire::new().with_foreign_server(true);
    let (verdict, text) = wire.foreign("proxy");
    assert_eq!(verdict, "warn", "{text}");
    assert!(text.contains("boot file"), "{text}");
}

#[test]
fn ports_and_interface_are_those_of_the_namespace() {
    let wire = Wire::new();
    let ports = wire.doctor("full", "ports");
    assert!(ports.iter().any(|finding| finding["text"] == "UDP port 67 (DHCP) is free"), "{ports:?}");
    ip(&["-n", &wire.here, "link", "set", "boot0", "down"]);
    let interface = wire.doctor("full", "interface");
    assert_eq!(interface[0]["verdict"], "fail", "{interface:?}");
    assert!(interface[0]["fix"].as_str().unwrap().contains("ip link set boot0 up"), "{interface:?}");
}
