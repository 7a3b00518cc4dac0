//! UDP sockets that know on which of our addresses a packet arrived, and say
//! from which of them they send.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::error::Error;

/// Room for a burst of requests: a whole row of racks that is switched on
/// together. The kernel doubles it and caps it at `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

/// A datagram's addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Octets in the buffer.
    pub(crate) bytes: usize,
    /// Who sent it.
    pub(crate) from: SocketAddrV4,
    /// Our address on which an answer should be seen.
    pub(crate) local: Ipv4Addr,
}

/// Opens a UDP port, on one interface or on all. The port is not shared: a
/// second server on it would get some of the packets and nobody would notice.
pub(crate) fn bind(service: &'static str, address: SocketAddrV4, interface: Option<&str>) -> Result<UdpSocket, Error> {
    open(address, interface).map_err(|cause| Error::Bind {
        service,
        port: address.port(),
        remedy: remedy(&cause, address.port()),
        cause,
    })
}

fn open(address: SocketAddrV4, interface: Option<&str>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    nix::sys::socket::setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.bind(&SockAddr::from(address))?;
    UdpSocket::from_std(socket.into())
}

/// Waits for a datagram. A longer one than the buffer is cut.
pub(crate) async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    socket.async_io(Interest::READABLE, || receive_now(socket, buffer)).await
}

fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let mut local = Ipv4Addr::UNSPECIFIED;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = control {
            local = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
        }
    }
    let from = message.address.map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), SocketAddrV4::from);
    Ok(Received { bytes: message.bytes, from, local })
}

/// Sends a datagram from one of our addresses.
pub(crate) async fn send(socket: &UdpSocket, bytes: &[u8], from: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(to);
    let send_now = || {
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let slices = [IoSlice::new(bytes)];
        sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    };
    socket.async_io(Interest::WRITABLE, send_now).await
}

/// What to do when a port cannot be opened.
pub(crate) fn remedy(cause: &io::Error, port: u16) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => match holders(port).as_slice() {
            [] => "Another process has this port: stop it, or turn this service off in the configuration".to_owned(),
            found => format!(
                "{} has this port: stop it or keep it off this interface, or turn this service off in the configuration",
                found.join(" and ")
            ),
        },
        io::ErrorKind::PermissionDenied => "Run as root, or give the service CAP_NET_BIND_SERVICE and CAP_NET_RAW \
             (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_NET_RAW)"
            .to_owned(),
        io::ErrorKind::AddrNotAvailable => "This machine does not have that address".to_owned(),
        _ => "Check the interface and the address in the configuration".to_owned(),
    }
}

/// Processes of this thread's network namespace that have the UDP port, as far as we
/// may see them.
fn holders(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default();
    let inodes = inodes_on_port(&table, port);
    if inodes.is_empty() {
        return Vec::new();
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let number: u32 = process.file_name().to_str()?.parse().ok()?;
            if !has_socket(&process.path(), &inodes) {
                return None;
            }
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            Some(format!("`{}` (process {number})", name.trim()))
        })
        .collect()
}

/// Column 1 is the local address in hexadecimal, `00000000:0043`, column 9 the
/// socket's inode.
fn inodes_on_port(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next()?;
            local.ends_with(&suffix).then(|| columns.nth(7).map(str::to_owned))?
        })
        .collect()
}

fn has_socket(process: &Path, inodes: &[String]) -> bool {
    fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|entry| {
        let Ok(target) = fs::read_link(entry.path()) else { return false };
        let target = target.to_string_lossy();
        target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inode| inodes.iter().any(|known| known == inode))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_names_its_holder() {
        let first = bind("DHCP", "127.0.0.1:0".parse().unwrap(), None).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = bind("DHCP", SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), None).unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}")), "{error}");
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[tokio::test]
    async fn packets_tell_and_keep_their_addresses() {
        let server = bind("TFTP", "0.0.0.0:0".parse().unwrap(), None).unwrap();
        let port = server.local_addr().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"hello", ("127.0.0.7", port)).await.unwrap();
        let mut buffer = [0; 16];
        let received = receive(&server, &mut buffer).await.unwrap();
        assert_eq!(&buffer[..received.bytes], b"hello");
        assert_eq!(received.local, Ipv4Addr::new(127, 0, 0, 7));
        send(&server, b"back", received.local, received.from).await.unwrap();
        let (bytes, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..bytes], from.to_string()), (&b"back"[..], format!("127.0.0.7:{port}")));
    }

    #[test]
    fn the_kernels_table_is_read_by_column() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n   \
                     41: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12345 2 0000000000000000 0\n   \
                     42: 0100007F:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2 0000000000000000 0\n";
        assert_eq!(inodes_on_port(table, 67), ["12345"]);
        assert!(inodes_on_port(table, 69).is_empty());
        assert!(inodes_on_port("", 69).is_empty());
    }

    #[test]
    fn a_missing_capability_is_named() {
        let text = remedy(&io::ErrorKind::PermissionDenied.into(), 67);
        assert!(text.contains("CAP_NET_BIND_SERVICE") && text.contains("CAP_NET_RAW"));
    }
}
