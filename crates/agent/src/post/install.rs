//! The monitoring daemon: this very program, its configuration, and what
//! starts it.

use std::fs::File;

use api::agent::DeployedConfig;

use super::Context;
use crate::Error;
use crate::monitor::CONFIG;

const PROGRAM: &str = "usr/local/sbin/rackswarm-agent";
const UNIT: &str = "etc/systemd/system/rackswarm-agent.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/rackswarm-agent.service";
/// What an image without systemd calls from its own start-up.
const START: &str = "etc/rackswarm/start";

/// Nothing of the boot waits for it: it needs no network to be ready and asks
/// again by itself, so it is ordered after nothing that may take long. It only
/// reads /proc, /sys and its configuration, so nearly everything is taken away.
const UNIT_TEXT: &str = "\
# Written by Rackswarm when this node was provisioned.
[Unit]
Description=Rackswarm agent: proves what this node runs and reports its health
After=network.target

[Service]
Type=notify
ExecStart=/usr/local/sbin/rackswarm-agent monitor
Restart=always
RestartSec=5
MemoryMax=64M
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
";

const START_TEXT: &str = "\
#!/bin/sh
# Written by Rackswarm when this node was provisioned. Run this once the network is coming up; it does not return.
exec /usr/local/sbin/rackswarm-agent monitor
";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let root = context.root;
    let own = "/proc/self/exe";
    let mut program = File::open(own).map_err(Error::io("open", own))?;
    root.write_from(PROGRAM, 0o755, &mut program)?;
    root.folder("etc/rackswarm", 0o755)?;
    root.write(CONFIG, 0o600, config(context)?)?;
    if ["lib", "usr/lib"].iter().any(|lib| root.has(&format!("{lib}/systemd/systemd"))) {
        root.write(UNIT, 0o644, UNIT_TEXT)?;
        root.link("/etc/systemd/system/rackswarm-agent.service", WANTED)?;
        Ok(Some(format!("agent {} starts with systemd", crate::VERSION)))
    } else {
        root.write(START, 0o755, START_TEXT)?;
        Ok(Some(format!("the image has no systemd: its start-up must run /{START}")))
    }
}

fn config(context: &Context<'_>) -> Result<String, Error> {
    let plan = &context.subject.plan;
    let config = DeployedConfig {
        node: context.subject.node.clone(),
        controller_url: plan.controller_url.clone(),
        node_token: plan.node_token.clone(),
        digest: context.subject.digest,
        attempt: context.subject.attempt,
        heartbeat_seconds: plan.heartbeat_seconds,
        watch_processes: plan.watch_processes.clone(),
    };
    serde_json::to_string_pretty(&config).map_err(|error| Error::Defect(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn with_systemd_a_unit_is_enabled() {
        let tree = Tree::new();
        tree.file("usr/lib/systemd/systemd", "");
        tree.act(act).unwrap();
        assert_eq!(tree.mode(PROGRAM), 0o755);
        assert_eq!(
            std::fs::read(tree.path().join(PROGRAM)).unwrap(),
            std::fs::read(std::env::current_exe().unwrap()).unwrap()
        );
        assert_eq!(tree.mode("etc/rackswarm/agent.json"), 0o600);
        let config = crate::monitor::read_config(&tree.path().join("etc/rackswarm/agent.json")).unwrap();
        assert_eq!((config.node.as_str(), config.attempt.0, config.node_token.0.as_str()), ("node7", 3, "secret"));
        assert!(tree.text(UNIT).contains("Restart=always"));
        assert_eq!(
            std::fs::read_link(tree.path().join(WANTED)).unwrap().to_str(),
            Some("/etc/systemd/system/rackswarm-agent.service")
        );
        assert!(!tree.path().join(START).exists());
    }

    #[test]
    fn without_systemd_there_is_a_program_to_call() {
        let tree = Tree::new();
        assert!(tree.act(act).unwrap().unwrap().contains("/etc/rackswarm/start"));
        assert_eq!(tree.mode(START), 0o755);
        assert!(!tree.path().join(UNIT).exists());
    }
}
