//! Whether the configured ports can be had, and who has them.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use boot::dhcp::Mode;
use controller::Config;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Finding, listed};

const CHECK: &str = "ports";

/// A port that `rackswarm serve` would open.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    service: &'static str,
    kind: Kind,
    address: SocketAddr,
    interface: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Udp,
    Tcp,
}

pub(super) fn check(config: &Config) -> Vec<Finding> {
    wanted(config).iter().map(examine).collect()
}

fn wanted(config: &Config) -> Vec<Port> {
    let udp = |service, port, address: Ipv4Addr, interface: &Option<String>| Port {
        service,
        kind: Kind::Udp,
        address: SocketAddr::from((address, port)),
        interface: interface.clone(),
    };
    let any = Ipv4Addr::UNSPECIFIED;
    let mut ports = Vec::new();
    if config.dhcp.mode != Mode::Off {
        ports.push(udp("DHCP", 67, any, &config.dhcp.interface));
    }
    // A PXE client asks here once more when its address came from another server (PXE 2.1 section 2.2).
    if config.dhcp.mode == Mode::Proxy {
        ports.push(udp("PXE", 4011, any, &config.dhcp.interface));
    }
    if config.tftp.enabled {
        ports.push(udp("TFTP", config.tftp.port, config.tftp.address, &None));
    }
    for (service, address) in [("HTTP", config.server.listen), ("swarm", config.swarm.listen)] {
        ports.push(Port { service, kind: Kind::Tcp, address, interface: None });
    }
    ports
}

fn examine(port: &Port) -> Finding {
    let error = match open(port) {
        Ok(()) => return Finding::pass(CHECK, format!("{} is free", named(port))),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::AddrInUse => taken(port, &holders(port)),
        ErrorKind::PermissionDenied => Finding::warn(
            CHECK,
            format!("{} may not be opened by this user, so it is not known whether it is free", named(port)),
            "run this as root",
        ),
        ErrorKind::AddrNotAvailable => Finding::fail(
            CHECK,
            format!("{}: this machine does not have the address {}", named(port), port.address.ip()),
            "correct the address in the configuration",
        ),
        _ => Finding::fail(
            CHECK,
            format!("{} cannot be opened: {error}", named(port)),
            "check interface and address in the configuration",
        ),
    }
}

/// Opens the port as the service would, and closes it again.
fn open(port: &Port) -> std::io::Result<()> {
    let domain = Domain::for_address(port.address);
    let socket = match port.kind {
        Kind::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?,
        Kind::Tcp => {
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            // Connections of the last run that are still closing do not count.
            socket.set_reuse_address(true)?;
            socket
        }
    };
    if let Some(interface) = &port.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.bind(&port.address.into())?;
    if port.kind == Kind::Tcp {
        socket.listen(1)?;
    }
    Ok(())
}

fn named(port: &Port) -> String {
    let kind = if port.kind == Kind::Udp { "UDP" } else { "TCP" };
    format!("{kind} port {} ({})", port.address.port(), port.service)
}

fn taken(port: &Port, holders: &[Holder]) -> Finding {
    if !holders.is_empty() && holders.iter().all(|holder| holder.name == "rackswarm") {
        return Finding::pass(CHECK, format!("{} is in use by rackswarm itself, which runs", named(port)));
    }
    let who = match holders {
        [] => "another process".to_owned(),
        some => listed(&some.iter().map(|h| format!("`{}` (process {})", h.name, h.process)).collect::<Vec<_>>()),
    };
    let fix = match port.service {
        "DHCP" | "PXE" => format!(
            "stop {who} or keep it off this interface; or set dhcp.mode = \"off\" and let it serve with the lines of `rackswarm serve --print-dhcp-lines`"
        ),
        "TFTP" => format!("stop {who}, or set tftp.enabled = false where machines boot by UEFI HTTP"),
        _ => format!("stop {who}, or choose another port in the configuration"),
    };
    Finding::fail(CHECK, format!("{} is in use by {who}", named(port)), fix)
}

#[derive(Debug, PartialEq, Eq)]
struct Holder {
    name: String,
    process: u32,
}

/// Processes with the port open, as far as this user may see them (proc(5), /proc/net/udp).
fn holders(port: &Port) -> Vec<Holder> {
    let tables = if port.kind == Kind::Udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| {
            let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
            inodes_on(&text, port.address.port(), port.kind)
        })
        .collect();
    if inodes.is_empty() {
        return Vec::new();
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let number = process.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            has_socket(&process.path(), &inodes).then(|| Holder { name: name.trim().to_owned(), process: number })
        })
        .collect()
}

/// Column 1 is the local address, `00000000:0043`, column 3 the state (0A: listening), column 9 the inode.
fn inodes_on(table: &str, port: u16, kind: Kind) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|columns| columns.len() > 9 && columns[1].ends_with(&suffix))
        .filter(|columns| kind == Kind::Udp || columns[3] == "0A")
        .map(|columns| columns[9].to_owned())
        .collect()
}

fn has_socket(process: &Path, inodes: &[String]) -> bool {
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| {
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.iter().any(|known| known == inode))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, UdpSocket};

    use super::super::Verdict;
    use super::*;

    fn port(kind: Kind, address: SocketAddr) -> Port {
        Port { service: "HTTP", kind, address, interface: None }
    }

    #[test]
    fn a_port_in_use_names_its_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let finding = examine(&port(Kind::Tcp, listener.local_addr().unwrap()));
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.text.contains(&format!("process {}", std::process::id())), "{finding:?}");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(examine(&port(Kind::Udp, socket.local_addr().unwrap())).verdict, Verdict::Fail);
    }

    #[test]
    fn a_free_port_and_a_foreign_address_are_told_apart() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(examine(&port(Kind::Tcp, free)).verdict, Verdict::Pass);
        let finding = examine(&port(Kind::Tcp, "192.0.2.1:1234".parse().unwrap()));
        assert!(finding.text.contains("does not have the address"), "{finding:?}");
    }

    #[test]
    fn the_controller_itself_is_no_stranger() {
        let own = Holder { name: "rackswarm".into(), process: 7 };
        let port = port(Kind::Tcp, "0.0.0.0:8080".parse().unwrap());
        assert_eq!(taken(&port, &[own]).verdict, Verdict::Pass);
        assert_eq!(taken(&port, &[]).verdict, Verdict::Fail);
    }

    #[test]
    fn the_mode_decides_which_ports_are_wanted() {
        let mut config = Config::default();
        assert_eq!(wanted(&config).len(), 3);
        config.dhcp.mode = Mode::Full;
        assert_eq!(wanted(&config).len(), 4);
        config.dhcp.mode = Mode::Proxy;
        assert_eq!(wanted(&config).len(), 5);
    }
}
