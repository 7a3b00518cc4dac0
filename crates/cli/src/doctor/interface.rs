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
    vec![link(name, &Link::read(name)), address(config, &interface)]
}

/// What the kernel tells of an interface in /sys/class/net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    is_up: bool,
    has_carrier: bool,
    is_bridge: bool,
}

impl Link {
    fn read(name: &str) -> Self {
        let folder = std::path::Path::new("/sys/class/net").join(name);
        let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let flags = u32::from_str_radix(text("flags").trim().trim_start_matches("0x"), 16).unwrap_or(0);
        Self {
            // IFF_UP of netdevice(7).
            is_up: flags & 1 == 1,
            has_carrier: text("carrier").trim() == "1",
            is_bridge: folder.join("bridge").is_dir(),
        }
    }
}

fn link(name: &str, link: &Link) -> Finding {
    match link {
        Link { is_up: false, .. } => {
            Finding::fail(CHECK, format!("{name} is switched off"), format!("ip link set {name} up"))
        }
        Link { has_carrier: true, .. } => Finding::pass(CHECK, format!("{name} is up")),
        // As long as all virtual machines behind it are off, that is so.
        Link { is_bridge: true, .. } => Finding::warn(
            CHECK,
            format!("{name} is a bridge without a port that is up"),
            "start a machine behind it, or give it a port: ip link set PORT master BRIDGE up",
        ),
        _ => Finding::fail(CHECK, format!("{name} has no carrier"), "check the cable and the switch's port"),
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
        let verdict = |is_up, has_carrier, is_bridge| link("eth1", &Link { is_up, has_carrier, is_bridge }).verdict;
        assert_eq!(verdict(true, true, false), Verdict::Pass);
        assert_eq!(verdict(true, false, false), Verdict::Fail);
        assert_eq!(verdict(true, false, true), Verdict::Warn);
        assert_eq!(verdict(false, false, true), Verdict::Fail);
    }
}
