//! Which capabilities the services need and this process has.

use boot::dhcp::Mode;
use controller::Config;

use super::{Finding, listed};

const CHECK: &str = "capabilities";

/// A capability, its bit (linux/capability.h) and what it is needed for.
struct Capability {
    name: &'static str,
    bit: u32,
    purpose: &'static str,
}

const BIND_SERVICE: Capability = Capability { name: "CAP_NET_BIND_SERVICE", bit: 10, purpose: "ports below 1024" };
const RAW: Capability =
    Capability { name: "CAP_NET_RAW", bit: 13, purpose: "DHCP on one interface, router advertisements" };

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let first_free_port = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024);
    vec![judge(&needed(config, first_free_port), effective(&status))]
}

fn needed(config: &Config, first_free_port: u16) -> Vec<&'static Capability> {
    let mut needed = Vec::new();
    let dhcp = (config.dhcp.mode != Mode::Off).then_some(67);
    let tftp = config.tftp.enabled.then_some(config.tftp.port);
    let mut ports = dhcp.into_iter().chain(tftp).chain([config.server.listen.port(), config.swarm.listen.port()]);
    if ports.any(|port| port < first_free_port) {
        needed.push(&BIND_SERVICE);
    }
    if config.dhcp.mode != Mode::Off {
        needed.push(&RAW);
    }
    needed
}

/// The effective set, `CapEff` in proc(5).
fn effective(status: &str) -> u64 {
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(text.trim(), 16).unwrap_or(0)
}

fn judge(needed: &[&Capability], have: u64) -> Finding {
    let (there, missing): (Vec<_>, Vec<_>) = needed.iter().partition(|capability| have >> capability.bit & 1 == 1);
    let names =
        |list: &[&&Capability]| listed(&list.iter().map(|c| format!("{} ({})", c.name, c.purpose)).collect::<Vec<_>>());
    match (there.is_empty(), missing.is_empty()) {
        (true, true) => Finding::pass(CHECK, "the configured ports need none"),
        (false, true) => Finding::pass(CHECK, format!("this user has {}", names(&there))),
        (_, false) => {
            let words: Vec<&str> = missing.iter().map(|c| c.name).collect();
            Finding::fail(
                CHECK,
                format!("this user lacks {}", names(&missing)),
                format!(
                    "run as root, or give the service its capabilities (systemd: AmbientCapabilities={})",
                    words.join(" ")
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_effective_set_is_read_in_hexadecimal() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000002400\n"), 1 << 10 | 1 << 13);
        assert_eq!(effective(""), 0);
    }

    #[test]
    fn only_what_the_configuration_needs_is_missed() {
        let mut config = Config::default();
        config.tftp.enabled = false;
        assert!(needed(&config, 1024).is_empty());
        assert_eq!(judge(&needed(&config, 1024), 0).verdict, Verdict::Pass);
        config.tftp.enabled = true;
        assert!(needed(&config, 0).is_empty());
        let finding = judge(&needed(&config, 1024), 0);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.fix.is_some_and(|fix| fix.contains("AmbientCapabilities=CAP_NET_BIND_SERVICE")));
        config.dhcp.mode = Mode::Proxy;
        assert_eq!(needed(&config, 1024).len(), 2);
    }
}
