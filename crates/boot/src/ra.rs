//! Answers to IPv6 router solicitations (RFC 4861), because iPXE waits 13 s for
//! one. The advertisement offers no route, no prefix and no DHCPv6, so nobody
//! sends packets to us or changes its addresses because of it.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use fleet::ids::Mac;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::{debug, warn};

use crate::error::Error;
use crate::interface::Interface;
use crate::socket::remedy;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
/// Neighbour discovery only counts when no router was passed (RFC 4861
/// section 6.1).
const HOP_LIMIT: u32 = 255;
const SOLICITATION_MIN_BYTES: usize = 8;
const PACKET_MAX_BYTES: usize = 1_500;
/// Wait after a failed receive, so that an interface that is down does not
/// turn the loop into a busy one.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// A raw ICMPv6 socket on the boot interface.
#[derive(Debug)]
pub struct Responder {
    /// A raw ICMPv6 socket: tokio has no type for it, and only readiness is
    /// used of this one.
    socket: UdpSocket,
    interface: u32,
    mac: Option<Mac>,
}

impl Responder {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`Error::Bind`] without CAP_NET_RAW, [`Error::Interface`] when IPv6 is
    /// off on the interface.
    pub fn bind(interface: &Interface) -> Result<Self, Error> {
        if interface.link_local.is_none() {
            return Err(Error::Interface {
                interface: interface.name.clone(),
                why: "has no IPv6 link-local address, so router solicitations cannot be answered and iPXE waits \
                      13 s: switch IPv6 on (sysctl net.ipv6.conf.*.disable_ipv6=0), or set \
                      dhcp.router_advertisements = false"
                    .to_owned(),
            });
        }
        let socket = open(interface).map_err(|cause| Error::Bind {
            service: "router advertisement",
            port: 0,
            remedy: remedy(&cause, 0),
            cause,
        })?;
        Ok(Self { socket, interface: interface.index, mac: interface.mac })
    }

    /// Answers solicitations for ever.
    pub async fn run(self) {
        loop {
            match self.solicited().await {
                Ok(Some(from)) => match self.advertise(from).await {
                    Ok(()) => debug!(%from, "router solicitation answered"),
                    Err(cause) => debug!(%from, %cause, "router advertisement not sent"),
                },
                Ok(None) => {}
                Err(cause) => {
                    warn!(%cause, "router solicitations cannot be received");
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }

    /// The sender of the next packet if that is a valid solicitation.
    async fn solicited(&self) -> io::Result<Option<Ipv6Addr>> {
        self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await
    }

    async fn advertise(&self, from: Ipv6Addr) -> io::Result<()> {
        let to = if from.is_unspecified() { ALL_NODES } else { from };
        let to = SockAddr::from(SocketAddrV6::new(to, 0, 0, self.interface));
        let packet = advertisement(self.mac);
        let send = || SockRef::from(&self.socket).send_to(&packet, &to);
        self.socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }
}

fn open(interface: &Interface) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.join_multicast_v6(&ALL_ROUTERS, interface.index)?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    socket.set_unicast_hops_v6(HOP_LIMIT)?;
    socket.set_multicast_if_v6(interface.index)?;
    nix::sys::socket::setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    UdpSocket::from_std(socket.into())
}

fn receive(socket: &UdpSocket) -> io::Result<Option<Ipv6Addr>> {
    let mut buffer = [0; PACKET_MAX_BYTES];
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let hops = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(hops) => Some(hops),
        _ => None,
    });
    let (bytes, from) = (message.bytes, message.address.map(|address| address.ip()));
    Ok(from.filter(|from| hops == Some(255) && is_solicitation(&buffer[..bytes], *from)))
}

/// RFC 4861 section 6.1.1. The kernel has checked the checksum.
fn is_solicitation(packet: &[u8], from: Ipv6Addr) -> bool {
    let local = from.is_unspecified() || from.is_unicast_link_local();
    local && packet.len() >= SOLICITATION_MIN_BYTES && packet.starts_with(&[ROUTER_SOLICITATION, 0])
}

/// RFC 4861 section 4.2. A router lifetime of zero says that we are no default
/// router; the zeros behind it leave every other parameter as it is. The kernel
/// fills in the checksum of raw ICMPv6 sockets (RFC 3542 section 3.1).
fn advertisement(mac: Option<Mac>) -> Vec<u8> {
    let mut packet = vec![0; 16];
    packet[0] = ROUTER_ADVERTISEMENT;
    if let Some(mac) = mac {
        packet.extend_from_slice(&[SOURCE_LINK_LAYER_ADDRESS, 1]);
        packet.extend_from_slice(&mac.0);
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advertisement_offers_nothing() {
        let packet = advertisement(Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(packet.len(), 24);
        assert_eq!(packet[0], 134);
        assert!(packet[1..16].iter().all(|octet| *octet == 0), "no lifetime, no flags, no timers");
        assert_eq!(packet[16..], [1, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(advertisement(None).len(), 16);
    }

    #[test]
    fn only_solicitations_from_this_link_count() {
        let link_local: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let solicitation = [133, 0, 0, 0, 0, 0, 0, 0];
        assert!(is_solicitation(&solicitation, link_local));
        assert!(is_solicitation(&solicitation, Ipv6Addr::UNSPECIFIED));
        assert!(!is_solicitation(&solicitation, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));
        assert!(!is_solicitation(&solicitation[..7], link_local));
        assert!(!is_solicitation(&[135, 0, 0, 0, 0, 0, 0, 0], link_local));
        assert!(!is_solicitation(&[133, 1, 0, 0, 0, 0, 0, 0], link_local));
    }
}
