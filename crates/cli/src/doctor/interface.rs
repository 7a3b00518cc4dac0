//! The interface of the boot network: there, up, with an address that fits.

use boot::dhcp::Mode;
use boot::interface::Interface;
use controller::Config;

use super::Finding;

const CHECK: &str = "interface";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    if config.dhcp.mode == Mode::Off {
        return vec![Finding::pass(
            CHECK,
            "DHCP is off, so none is needed; `rackswarm serve --print-dhcp-lines` prints what your DHCP server needs",
        )];
    }
    // The configuration is refused without an interface in these modes.
    let Some(name) = &config.dhcp.interface else { return Vec::new() };
    let interface = match Interface::find(name) {
        Ok(interface) => interface,
        Err(error) => {
            return vec![Finding::fail(CHECK, error.to_string(), "correct dhcp.interface in the configuration")];
        }
    };
    let state = std::fs::read_to_string(format!("/sys/class/net/{name}/operstate")).unwrap_or_default();
    vec![link(name, state.trim()), address(config, &interface)]
}

/// Drivers that do not tell their state say `unknown`, as the loopback does.
fn link(name: &str, state: &str) -> Finding {
    match state {
        "up" | "unknown" => Finding::pass(CHECK, format!("{name} is up")),
        "lowerlayerdown" | "dormant" => {
            Finding::fail(CHECK, format!("{name} has no carrier ({state})"), "check the cable and the switch's port")
        }
        _ => Finding::fail(
            CHECK,
            format!("{name} is not up (state `{state}`)"),
            format!("ip link set {name} up, and check the cable; a bridge is down until it has a port that is up"),
        ),
    }
}

fn address(config: &Config, interface: &Interface) -> Finding {
    let dhcp = &config.dhcp;
    let server = match interface.server_address(dhcp.server_address) {
        Ok(server) => server,
        Err(error) => {
            return Finding::fail(
                "address",
                error.to_string(),
                format!("ip address add ADDRESS/PREFIX dev {}", interface.name),
            );
        }
    };
    if dhcp.mode == Mode::Full && !dhcp.subnets.iter().any(|subnet| subnet.network.contains(&server)) {
        let networks: Vec<String> = dhcp.subnets.iter().map(|subnet| subnet.network.to_string()).collect();
        return Finding::warn(
            "address",
            format!(
                "{server} of {} is in none of dhcp.subnets ({}); only relayed machines are served",
                interface.name,
                networks.join(", ")
            ),
            "add the subnet of the interface, or give the interface an address in one of them",
        );
    }
    Finding::pass("address", format!("machines see this controller as {server}"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(std::path::Path::new("test"), text).unwrap_or_default()
    }

    fn loopback(subnets: &str) -> Vec<Finding> {
        check(&config(&format!("[dhcp]\nmode = \"full\"\ninterface = \"lo\"\n{subnets}")))
    }

    #[test]
    fn an_address_outside_of_every_subnet_is_a_warning() {
        let inside = loopback("[[dhcp.subnets]]\nnetwork = \"127.0.0.0/8\"\n");
        assert!(inside.iter().all(|finding| finding.verdict == Verdict::Pass), "{inside:?}");
        let outside = loopback("[[dhcp.subnets]]\nnetwork = \"10.0.0.0/8\"\n");
        assert_eq!(outside[1].verdict, Verdict::Warn, "{outside:?}");
    }

    #[test]
    fn a_missing_interface_names_those_there_are() {
        let findings = check(&config("[dhcp]\nmode = \"proxy\"\ninterface = \"nonesuch0\"\n"));
        assert_eq!(findings[0].verdict, Verdict::Fail);
        assert!(findings[0].text.contains("lo"), "{findings:?}");
    }

    #[test]
    fn a_link_without_carrier_cannot_serve() {
        assert_eq!(link("eth1", "up").verdict, Verdict::Pass);
        assert_eq!(link("eth1", "down").verdict, Verdict::Fail);
        assert_eq!(link("eth1", "lowerlayerdown").verdict, Verdict::Fail);
    }
}
