//! The interface that the node was provisioned through, configured by whatever
//! configures the network in the image. It is named by its MAC address: its
//! name in the booted system is not known here.

use std::net::IpAddr;

use fleet::ids::Mac;
use fleet::post::Network;

use super::{Context, Root, wrong};
use crate::Error;

/// What the configuration is called where it has a name.
pub(super) const NAME: &str = "rackswarm";
/// What the image's own files are called afterwards.
const SET_ASIDE: &str = "before-rackswarm";
const HEADER: &str = "# Written by Rackswarm when this node was provisioned.\n";

/// Who configures the network; the first one found counts.
const MANAGERS: &[Manager] = &[
    Manager { name: "netplan", found: has_netplan, write: write_netplan },
    Manager { name: "NetworkManager", found: has_network_manager, write: write_network_manager },
    Manager { name: "systemd-networkd", found: has_networkd, write: write_networkd },
    Manager { name: "ifupdown", found: has_ifupdown, write: write_ifupdown },
];

struct Manager {
    name: &'static str,
    found: fn(&Root) -> bool,
    write: fn(&Root, &Wanted) -> Result<(), Error>,
}

/// One interface's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) mac: Mac,
    /// None: by DHCP.
    pub(super) fixed: Option<Fixed>,
}

/// A fixed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fixed {
    /// With its prefix length.
    pub(super) address: String,
    pub(super) gateway: Option<IpAddr>,
    pub(super) dns: Vec<IpAddr>,
}

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let Some(wanted) = wanted(context)? else { return Ok(None) };
    let Some(manager) = MANAGERS.iter().find(|manager| (manager.found)(context.root)) else {
        return Ok(Some("nothing in the image that configures networks is known; left as it is".to_owned()));
    };
    (manager.write)(context.root, &wanted)?;
    let how = wanted.fixed.as_ref().map_or_else(|| "DHCP".to_owned(), |fixed| fixed.address.clone());
    Ok(Some(format!("{} by {}: {how}", wanted.mac, manager.name)))
}

/// What the plan says; nothing where the image's own is to be kept.
///
/// # Errors
/// When an address is none.
pub(super) fn wanted(context: &Context<'_>) -> Result<Option<Wanted>, Error> {
    let Network::Static { address, gateway, dns } = &context.subject.plan.network else {
        let by_dhcp = context.subject.plan.network == Network::Dhcp;
        return Ok(context.subject.mac.filter(|_| by_dhcp).map(|mac| Wanted { mac, fixed: None }));
    };
    let Some(mac) = context.subject.mac else {
        return Err(wrong("network", "a fixed address needs the MAC address of its interface"));
    };
    let parse =
        |text: &String| text.parse::<IpAddr>().map_err(|_| wrong("network", format!("`{text}` is not an IP address")));
    let gateway = gateway.as_ref().map(parse).transpose()?;
    let dns = dns.iter().map(parse).collect::<Result<_, _>>()?;
    let fixed = Fixed { address: checked(address)?, gateway, dns };
    Ok(Some(Wanted { mac, fixed: Some(fixed) }))
}

fn checked(address: &str) -> Result<String, Error> {
    let parts = address.split_once('/').and_then(|(ip, length)| Some((ip.parse().ok()?, length.parse().ok()?)));
    match parts {
        Some((IpAddr::V4(_), 1..=32u8)) | Some((IpAddr::V6(_), 1..=128u8)) => Ok(address.to_owned()),
        _ => Err(wrong("network", format!("`{address}` is not an address with its prefix length, as in 10.0.0.7/24"))),
    }
}

fn has_netplan(root: &Root) -> bool {
    root.has("etc/netplan") && (root.has("usr/sbin/netplan") || root.has("usr/bin/netplan"))
}

fn has_network_manager(root: &Root) -> bool {
    (root.has("usr/sbin/NetworkManager") || root.has("usr/bin/NetworkManager")) && is_enabled(root, "NetworkManager")
}

fn has_networkd(root: &Root) -> bool {
    let installed = ["lib", "usr/lib"].iter().any(|lib| root.has(&format!("{lib}/systemd/systemd-networkd")));
    installed && is_enabled(root, "systemd-networkd")
}

/// busybox has an `ifup` too, which does not know interfaces by MAC address.
fn has_ifupdown(root: &Root) -> bool {
    let program = root.outside("sbin/ifup").or_else(|| root.outside("usr/sbin/ifup"));
    program.is_some_and(|path| !path.ends_with("busybox")) && root.has("etc/network")
}

/// Enabled is a link in some target's `wants`, or the name that D-Bus starts it by.
fn is_enabled(root: &Root, unit: &str) -> bool {
    let units = "etc/systemd/system";
    let wanted = root.list(units).into_iter().filter(|name| name.ends_with(".wants"));
    wanted.map(|folder| format!("{units}/{folder}/{unit}.service")).any(|path| root.has_entry(&path))
}

/// systemd-networkd takes the first file, by name, that matches.
fn write_networkd(root: &Root, wanted: &Wanted) -> Result<(), Error> {
    let mut text = format!("{HEADER}[Match]\nMACAddress={}\n\n[Network]\n", wanted.mac);
    match &wanted.fixed {
        // The server knows the machine by its MAC address since its firmware asked.
        None => text.push_str("DHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n"),
        Some(fixed) => {
            text.push_str(&format!("Address={}\n", fixed.address));
            text.extend(fixed.gateway.iter().map(|gateway| format!("Gateway={gateway}\n")));
            text.extend(fixed.dns.iter().map(|server| format!("DNS={server}\n")));
        }
    }
    root.write("etc/systemd/network/05-rackswarm.network", 0o644, text)
}

/// netplan.io: other files could claim the same interface, so they are set aside.
fn write_netplan(root: &Root, wanted: &Wanted) -> Result<(), Error> {
    for name in root.list("etc/netplan").into_iter().filter(|name| name.ends_with(".yaml")) {
        root.rename(&format!("etc/netplan/{name}"), &format!("{name}.{SET_ASIDE}"))?;
    }
    let managed = has_network_manager(root) && !has_networkd(root);
    let renderer = if managed { "  renderer: NetworkManager\n" } else { "" };
    let text = format!("{HEADER}network:\n  version: 2\n{renderer}{}", ethernets(wanted, "  "));
    root.write("etc/netplan/90-rackswarm.yaml", 0o600, text)
}

/// The `ethernets:` part of netplan's and cloud-init's version 2 format.
pub(super) fn ethernets(wanted: &Wanted, indent: &str) -> String {
    let mut lines = vec![
        "ethernets:".to_owned(),
        format!("  {NAME}:"),
        "    match:".to_owned(),
        format!("      macaddress: \"{}\"", wanted.mac),
    ];
    match &wanted.fixed {
        None => lines.extend(["    dhcp4: true".to_owned(), "    dhcp-identifier: mac".to_owned()]),
        Some(fixed) => {
            lines.push(format!("    addresses: [\"{}\"]", fixed.address));
            if let Some(gateway) = fixed.gateway {
                let all = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                lines.push("    routes:".to_owned());
                lines.push(format!("      - to: \"{all}\""));
                lines.push(format!("        via: \"{gateway}\""));
            }
            if !fixed.dns.is_empty() {
                let servers: Vec<String> = fixed.dns.iter().map(|server| format!("\"{server}\"")).collect();
                lines.push("    nameservers:".to_owned());
                lines.push(format!("      addresses: [{}]", servers.join(", ")));
            }
        }
    }
    lines.iter().map(|line| format!("{indent}{line}\n")).collect()
}

/// nm-settings-keyfile(5). It ignores files that others may read.
fn write_network_manager(root: &Root, wanted: &Wanted) -> Result<(), Error> {
    let id = uuid::Uuid::new_v4();
    let mut text = format!(
        "{HEADER}[connection]\nid={NAME}\nuuid={id}\ntype=ethernet\nautoconnect-priority=100\n\n\
         [ethernet]\nmac-address={}\n\n",
        wanted.mac
    );
    match &wanted.fixed {
        None => text.push_str("[ipv4]\nmethod=auto\ndhcp-client-id=mac\n\n[ipv6]\nmethod=auto\n"),
        Some(fixed) => {
            let four = fixed.address.contains('.');
            let (own, other) = if four { ("ipv4", "ipv6") } else { ("ipv6", "ipv4") };
            let gateway = fixed.gateway.map_or_else(String::new, |gateway| format!(",{gateway}"));
            text.push_str(&format!("[{own}]\nmethod=manual\naddress1={}{gateway}\n", fixed.address));
            let dns: String = fixed.dns.iter().filter(|s| s.is_ipv4() == four).map(|s| format!("{s};")).collect();
            if !dns.is_empty() {
                text.push_str(&format!("dns={dns}\n"));
            }
            let method = if four { "auto" } else { "disabled" };
            text.push_str(&format!("\n[{other}]\nmethod={method}\n"));
        }
    }
    root.write("etc/NetworkManager/system-connections/rackswarm.nmconnection", 0o600, text)
}

/// interfaces(5), "pattern matching interfaces": `mac/ADDRESS=LOGICAL`. The
/// image's own file could claim the same interface under its name.
fn write_ifupdown(root: &Root, wanted: &Wanted) -> Result<(), Error> {
    let own = "etc/network/interfaces";
    let aside = format!("interfaces.{SET_ASIDE}");
    if root.has(own) && !root.has(&format!("etc/network/{aside}")) {
        root.rename(own, &aside)?;
    }
    let mut text = format!("{HEADER}auto lo\niface lo inet loopback\n\nauto mac/{}={NAME}\n", wanted.mac);
    match &wanted.fixed {
        None => text.push_str(&format!("iface {NAME} inet dhcp\n")),
        Some(fixed) => {
            let family = if fixed.address.contains('.') { "inet" } else { "inet6" };
            text.push_str(&format!("iface {NAME} {family} static\n    address {}\n", fixed.address));
            text.extend(fixed.gateway.iter().map(|gateway| format!("    gateway {gateway}\n")));
            if !fixed.dns.is_empty() {
                let servers: Vec<String> = fixed.dns.iter().map(ToString::to_string).collect();
                text.push_str(&format!("    dns-nameservers {}\n", servers.join(" ")));
                write_resolvers(root, &fixed.dns)?;
            }
        }
    }
    root.write(own, 0o644, text)
}

/// ifupdown passes name servers to resolvconf only; without one the file is ours.
fn write_resolvers(root: &Root, dns: &[IpAddr]) -> Result<(), Error> {
    if root.has("sbin/resolvconf") || root.has("usr/sbin/resolvconf") || is_enabled(root, "systemd-resolved") {
        return Ok(());
    }
    let text: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    root.write("etc/resolv.conf", 0o644, text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    fn fixed() -> Network {
        Network::Static {
            address: "10.0.0.7/24".into(),
            gateway: Some("10.0.0.1".into()),
            dns: vec!["10.0.0.2".into(), "10.0.0.3".into()],
        }
    }

    fn enable(tree: &Tree, unit: &str) {
        tree.link("/nowhere", &format!("etc/systemd/system/multi-user.target.wants/{unit}.service"));
    }

    #[test]
    fn networkd_is_used_only_where_it_is_enabled() {
        let mut tree = Tree::new();
        tree.file("usr/lib/systemd/systemd-networkd", "");
        tree.link("usr/lib", "lib");
        assert!(tree.act(act).unwrap().unwrap().contains("left as it is"));
        enable(&tree, "systemd-networkd");
        assert_eq!(tree.act(act).unwrap().unwrap(), "52:54:00:00:00:07 by systemd-networkd: DHCP");
        let text = tree.text("etc/systemd/network/05-rackswarm.network");
        assert!(
            text.ends_with("MACAddress=52:54:00:00:00:07\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n")
        );
        tree.subject.plan.network = fixed();
        tree.act(act).unwrap();
        let text = tree.text("etc/systemd/network/05-rackswarm.network");
        assert!(
            text.ends_with("[Network]\nAddress=10.0.0.7/24\nGateway=10.0.0.1\nDNS=10.0.0.2\nDNS=10.0.0.3\n"),
            "{text}"
        );
    }

    #[test]
    fn ifupdown_gets_a_whole_file_and_keeps_the_images_first() {
        let mut tree = Tree::new();
        tree.file("usr/sbin/ifup", "");
        tree.file("etc/network/interfaces", "golden");
        for _ in 0..2 {
            tree.act(act).unwrap();
        }
        assert!(tree.text("etc/network/interfaces").ends_with(
            "auto lo\niface lo inet loopback\n\nauto mac/52:54:00:00:00:07=rackswarm\niface rackswarm inet dhcp\n"
        ));
        assert_eq!(tree.text("etc/network/interfaces.before-rackswarm"), "golden");
        tree.subject.plan.network = fixed();
        tree.act(act).unwrap();
        assert!(tree.text("etc/network/interfaces").contains("    address 10.0.0.7/24\n    gateway 10.0.0.1\n"));
        assert_eq!(tree.text("etc/resolv.conf"), "nameserver 10.0.0.2\nnameserver 10.0.0.3\n");
    }

    #[test]
    fn an_ifup_of_busybox_is_another_program() {
        let tree = Tree::new();
        tree.file("bin/busybox", "");
        tree.link("/bin/busybox", "sbin/ifup");
        tree.file("etc/network/interfaces", "golden");
        assert!(tree.act(act).unwrap().unwrap().contains("left as it is"));
        assert_eq!(tree.text("etc/network/interfaces"), "golden");
    }

    #[test]
    fn netplan_sets_others_aside() {
        let mut tree = Tree::new();
        tree.file("usr/sbin/netplan", "");
        tree.file("etc/netplan/50-cloud-init.yaml", "golden");
        tree.subject.plan.network = fixed();
        for _ in 0..2 {
            assert!(tree.act(act).unwrap().unwrap().contains("netplan"));
        }
        let text = tree.text("etc/netplan/90-rackswarm.yaml");
        let body = "network:\n  version: 2\n  ethernets:\n    rackswarm:\n      match:\n        \
                    macaddress: \"52:54:00:00:00:07\"\n      addresses: [\"10.0.0.7/24\"]\n      routes:\n        \
                    - to: \"0.0.0.0/0\"\n          via: \"10.0.0.1\"\n      nameservers:\n        \
                    addresses: [\"10.0.0.2\", \"10.0.0.3\"]\n";
        assert!(text.ends_with(body), "{text}");
        assert_eq!(tree.mode("etc/netplan/90-rackswarm.yaml"), 0o600);
        assert_eq!(tree.text("etc/netplan/50-cloud-init.yaml.before-rackswarm"), "golden");
    }

    #[test]
    fn network_manager_gets_a_key_file_that_it_accepts() {
        let mut tree = Tree::new();
        tree.file("usr/sbin/NetworkManager", "");
        enable(&tree, "NetworkManager");
        tree.subject.plan.network = fixed();
        tree.act(act).unwrap();
        let path = "etc/NetworkManager/system-connections/rackswarm.nmconnection";
        let text = tree.text(path);
        assert!(
            text.contains("[ipv4]\nmethod=manual\naddress1=10.0.0.7/24,10.0.0.1\ndns=10.0.0.2;10.0.0.3;\n"),
            "{text}"
        );
        assert_eq!(tree.mode(path), 0o600);
    }

    #[test]
    fn keeping_writes_nothing_and_bad_addresses_are_refused() {
        let mut tree = Tree::new();
        tree.file("usr/sbin/ifup", "");
        tree.file("etc/network/interfaces", "golden");
        tree.subject.plan.network = Network::Keep;
        assert_eq!(tree.act(act).unwrap(), None);
        assert_eq!(tree.text("etc/network/interfaces"), "golden");
        for (address, gateway) in
            [("10.0.0.7", None), ("10.0.0.7/33", None), ("x/24", None), ("10.0.0.7/24", Some("gw"))]
        {
            let gateway = gateway.map(str::to_owned);
            tree.subject.plan.network = Network::Static { address: address.into(), gateway, dns: Vec::new() };
            assert!(!tree.act(act).unwrap_err().retry(), "{address}");
        }
        assert_eq!(tree.text("etc/network/interfaces"), "golden");
    }
}
