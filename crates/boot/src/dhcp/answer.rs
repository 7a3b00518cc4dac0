//! What a request is answered with. Pure: mode, request and outcome in, reply
//! out.
//!
//! Every boot file name carries the hardware address that the machine boots
//! from, so that the TFTP and HTTP servers know the node without asking for a
//! lease, and a machine with several interfaces stays the same machine through
//! all stages.

use std::net::{Ipv4Addr, SocketAddrV4};

use fleet::ids::Mac;
use uuid::Uuid;
use wire::dhcp::{BootFile, LeaseTime, Network, Reply, ReplyKind, Request, RequestKind};

use crate::decide;
use crate::dhcp::config::Subnet;
use crate::firmware::{Asker, Firmware, is_http_boot};
use crate::tftp::TftpConfig;

/// UDP port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;
/// UDP port on which firmware asks a proxy (PXE 2.1 section 2.2.3).
pub const PROXY_PORT: u16 = 4_011;

const PXE_CLASS: &str = "PXEClient";
const HTTP_CLASS: &str = "HTTPClient";

/// Where the machines find us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Our address on the boot network: DHCP server identifier and TFTP server.
    pub server: Ipv4Addr,
    /// TCP port of our HTTP server, on the same address.
    pub http_port: u16,
    /// Names of the loaders.
    pub tftp: TftpConfig,
}

impl Site {
    /// Address of our HTTP server as the machines see it.
    #[must_use]
    pub fn http(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.server, self.http_port)
    }
}

/// Which program of the boot chain sent the request.
#[must_use]
pub fn asker(request: &Request) -> Asker {
    let pxe = request.vendor_class.starts_with(PXE_CLASS.as_bytes());
    let http = request.vendor_class.starts_with(HTTP_CLASS.as_bytes());
    let architecture = request.architecture.or_else(|| architecture_in_class(&request.vendor_class));
    if request.ipxe {
        return Asker::Ipxe(architecture.and_then(firmware));
    }
    if !pxe && !http {
        return Asker::System;
    }
    // ROMs from before RFC 4578 say only `PXEClient`; all of them are PCs.
    let architecture = architecture.unwrap_or(0);
    firmware(architecture).map_or(Asker::Unsupported(architecture), Asker::Firmware)
}

/// IANA "Processor Architecture Types". UEFI on x86-64 is 7 in the errata of
/// RFC 4578 and 9 in its text; firmware sends both.
fn firmware(architecture: u16) -> Option<Firmware> {
    match architecture {
        0 => Some(Firmware::Bios),
        7 | 9 => Some(Firmware::UefiX64),
        11 => Some(Firmware::UefiArm64),
        16 | 17 => Some(Firmware::UefiX64Http),
        19 => Some(Firmware::UefiArm64Http),
        _ => None,
    }
}

/// `PXEClient:Arch:00007:UNDI:003016` (PXE 2.1 section 2.2.1).
fn architecture_in_class(vendor_class: &[u8]) -> Option<u16> {
    let mut parts = std::str::from_utf8(vendor_class).ok()?.split(':');
    parts.find(|part| *part == "Arch")?;
    parts.next()?.parse().ok()
}

/// SMBIOS UUID of option 97, whose first three fields are little-endian: edk2
/// copies the bytes as they stand in SMBIOS, and iPXE (`src/net/udp/dhcp.c`,
/// since 2013 at least) puts them into that order because RFC 4578 leans on the
/// EFI specification. Boards from before SMBIOS 2.6 may mean the other order,
/// which `fleet` allows for. All-zero and all-one values are the placeholders of
/// boards without an identity.
#[must_use]
pub fn machine_uuid(request: &Request) -> Option<Uuid> {
    let bytes = request.machine_id?;
    if bytes == [0; 16] || bytes == [0xff; 16] {
        return None;
    }
    Some(Uuid::from_bytes_le(bytes))
}

/// The reply of the whole server to a request that found an address.
#[must_use]
pub fn with_address(
    site: &Site,
    subnet: &Subnet,
    lease_seconds: u32,
    request: &Request,
    kind: ReplyKind,
    address: Ipv4Addr,
) -> Reply {
    Reply {
        kind,
        server_id: site.server,
        yiaddr: address,
        lease: Some(LeaseTime(lease_seconds)),
        network: Some(network(subnet)),
        boot: boot_file(site, request, Role::Full),
        message: None,
    }
}

/// The reply to a machine that has an address and asks for the rest
/// (DHCPINFORM, RFC 2131 section 4.3.5).
#[must_use]
pub fn parameters(site: &Site, subnet: &Subnet, request: &Request) -> Reply {
    Reply {
        kind: ReplyKind::Ack,
        server_id: site.server,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        lease: None,
        network: Some(network(subnet)),
        boot: boot_file(site, request, Role::Full),
        message: None,
    }
}

/// The refusal of an address.
#[must_use]
pub fn refusal(site: &Site, why: &'static str) -> Reply {
    Reply {
        kind: ReplyKind::Nak,
        server_id: site.server,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        lease: None,
        network: None,
        boot: None,
        message: Some(why),
    }
}

/// Where a message arrived in proxy mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyPort {
    /// 67, where machines look for servers.
    Dhcp,
    /// 4011, where firmware asks a proxy whose offer it took.
    Pxe,
}

/// The reply beside another DHCP server: no address, only what to boot. Answers
/// the machines that boot, and nobody else.
#[must_use]
pub fn proxy(site: &Site, request: &Request, port: ProxyPort) -> Option<Reply> {
    let kind = match (port, request.kind) {
        (ProxyPort::Dhcp, RequestKind::Discover) => ReplyKind::Offer,
        (ProxyPort::Pxe, RequestKind::Request | RequestKind::Inform) => ReplyKind::Ack,
        _ => return None,
    };
    Some(Reply {
        kind,
        server_id: site.server,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        lease: None,
        network: None,
        boot: Some(boot_file(site, request, Role::Proxy)?),
        message: None,
    })
}

/// Where a reply is sent (RFC 2131 section 4.1): to the relay; to a machine that
/// has its address and therefore answers ARP; else to everybody, because a
/// machine without an address cannot be reached otherwise through a socket,
/// whether or not it set the broadcast flag. What came to port 4011 came from
/// a machine with an address.
#[must_use]
pub fn destination(request: &Request, kind: ReplyKind, from: SocketAddrV4, port: ProxyPort) -> SocketAddrV4 {
    if port == ProxyPort::Pxe && !from.ip().is_unspecified() {
        from
    } else if !request.giaddr.is_unspecified() {
        SocketAddrV4::new(request.giaddr, SERVER_PORT)
    } else if kind != ReplyKind::Nak && !request.ciaddr.is_unspecified() {
        SocketAddrV4::new(request.ciaddr, CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Full,
    Proxy,
}

fn boot_file(site: &Site, request: &Request, role: Role) -> Option<BootFile> {
    let mac = Mac(request.mac);
    match asker(request) {
        Asker::Firmware(firmware) if is_http_boot(firmware) => Some(BootFile {
            name: decide::file_url(mac, site.http(), site.tftp.loader(firmware)),
            tftp_server: None,
            vendor_class: Some(HTTP_CLASS),
            pxe_discovery_control: false,
            ipxe_no_proxy_wait: false,
        }),
        Asker::Firmware(firmware) if site.tftp.enabled => Some(BootFile {
            name: format!("boot/{}/{}", mac.dashed(), site.tftp.loader(firmware)),
            tftp_server: Some(site.server),
            vendor_class: Some(PXE_CLASS),
            pxe_discovery_control: true,
            ipxe_no_proxy_wait: false,
        }),
        Asker::Ipxe(_) => Some(BootFile {
            name: decide::script_url(mac, site.http()),
            // A next-server beside the URL: without it iPXE takes a proxy's
            // offer as incomplete and asks port 4011 first.
            tftp_server: Some(site.server),
            // iPXE knows a proxy's offer by this class.
            vendor_class: (role == Role::Proxy).then_some(PXE_CLASS),
            pxe_discovery_control: role == Role::Proxy,
            // A proxy that said this would switch itself off.
            ipxe_no_proxy_wait: role == Role::Full,
        }),
        Asker::Firmware(_) | Asker::Unsupported(_) | Asker::System => None,
    }
}

fn network(subnet: &Subnet) -> Network {
    Network {
        mask: subnet.network.netmask(),
        broadcast: subnet.network.broadcast(),
        router: subnet.router,
        dns: subnet.dns.clone(),
        domain: subnet.domain.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn site() -> Site {
        Site { server: SERVER, http_port: 8080, tftp: TftpConfig::default() }
    }

    fn subnet() -> Subnet {
        Subnet {
            network: "10.77.0.0/24".parse().unwrap(),
            ranges: vec![],
            router: Some(SERVER),
            dns: vec![],
            domain: None,
        }
    }

    fn request(kind: RequestKind, vendor_class: &str, architecture: Option<u16>, ipxe: bool) -> Request {
        Request {
            kind,
            xid: 7,
            secs: 0,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            hops: 0,
            mac: [0x52, 0x54, 0, 1, 2, 3],
            requested_address: None,
            server_id: None,
            parameters: vec![],
            max_message_bytes: Some(1_260),
            vendor_class: vendor_class.as_bytes().to_vec(),
            user_class: vec![],
            architecture,
            machine_id: Some([0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 8, 9, 10, 11, 12, 13, 14, 15]),
            ipxe,
            relay_agent: vec![],
        }
    }

    fn boot_of(vendor_class: &str, architecture: Option<u16>, ipxe: bool) -> Option<BootFile> {
        let request = request(RequestKind::Discover, vendor_class, architecture, ipxe);
        let address = Ipv4Addr::new(10, 77, 0, 50);
        with_address(&site(), &subnet(), 3_600, &request, ReplyKind::Offer, address).boot
    }

    #[test]
    fn every_asker_is_known_by_what_it_sends() {
        for (vendor_class, architecture, ipxe, expected) in [
            ("PXEClient:Arch:00000:UNDI:002001", Some(0), false, Asker::Firmware(Firmware::Bios)),
            ("PXEClient:Arch:00007:UNDI:003016", Some(7), false, Asker::Firmware(Firmware::UefiX64)),
            ("PXEClient:Arch:00007:UNDI:003016", None, false, Asker::Firmware(Firmware::UefiX64)),
            ("PXEClient", Some(9), false, Asker::Firmware(Firmware::UefiX64)),
            ("PXEClient", None, false, Asker::Firmware(Firmware::Bios)),
            ("PXEClient:Arch:00011:UNDI:003000", Some(11), false, Asker::Firmware(Firmware::UefiArm64)),
            ("HTTPClient:Arch:00016:UNDI:003001", Some(16), false, Asker::Firmware(Firmware::UefiX64Http)),
            ("HTTPClient:Arch:00019:UNDI:003001", Some(19), false, Asker::Firmware(Firmware::UefiArm64Http)),
            ("PXEClient:Arch:00006:UNDI:003016", Some(6), false, Asker::Unsupported(6)),
            ("PXEClient:Arch:00000:UNDI:002001", Some(0), true, Asker::Ipxe(Some(Firmware::Bios))),
            ("", None, true, Asker::Ipxe(None)),
            ("", None, false, Asker::System),
            ("udhcp 1.35.0", None, false, Asker::System),
            ("d-i", Some(7), false, Asker::System),
        ] {
            let request = request(RequestKind::Discover, vendor_class, architecture, ipxe);
            assert_eq!(asker(&request), expected, "{vendor_class} {architecture:?} {ipxe}");
        }
    }

    #[test]
    fn each_firmware_gets_its_loader_under_its_mac() {
        let bios = boot_of("PXEClient", Some(0), false).unwrap();
        assert_eq!(bios.name, "boot/52-54-00-01-02-03/undionly.kpxe");
        assert_eq!(bios.tftp_server, Some(SERVER));
        assert_eq!(bios.vendor_class, Some("PXEClient"));
        assert!(bios.pxe_discovery_control);

        let uefi = boot_of("PXEClient", Some(7), false).unwrap();
        assert_eq!(uefi.name, "boot/52-54-00-01-02-03/snponly.efi");

        let http = boot_of("HTTPClient:Arch:00016", Some(16), false).unwrap();
        assert_eq!(http.name, "http://10.77.0.1:8080/boot/52-54-00-01-02-03/snponly.efi");
        assert_eq!(http.vendor_class, Some("HTTPClient"));
        assert!(!http.pxe_discovery_control);
    }

    #[test]
    fn ipxe_gets_its_script_and_does_not_wait() {
        let ipxe = boot_of("PXEClient:Arch:00000", Some(0), true).unwrap();
        assert_eq!(ipxe.name, "http://10.77.0.1:8080/boot/52-54-00-01-02-03/script?uuid=${uuid}&platform=${platform}");
        assert!(ipxe.ipxe_no_proxy_wait);
        assert_eq!(ipxe.vendor_class, None);
    }

    #[test]
    fn an_operating_system_gets_an_address_and_nothing_to_boot() {
        let request = request(RequestKind::Discover, "udhcp", None, false);
        let address = Ipv4Addr::new(10, 77, 0, 50);
        let reply = with_address(&site(), &subnet(), 3_600, &request, ReplyKind::Ack, address);
        assert_eq!(reply.boot, None);
        assert_eq!(reply.yiaddr, address);
        assert_eq!(reply.network.unwrap().broadcast, Ipv4Addr::new(10, 77, 0, 255));
    }

    #[test]
    fn a_proxy_gives_no_address_and_answers_only_who_boots() {
        let pxe = request(RequestKind::Discover, "PXEClient", Some(7), false);
        let offer = proxy(&site(), &pxe, ProxyPort::Dhcp).unwrap();
        assert_eq!((offer.kind, offer.yiaddr), (ReplyKind::Offer, Ipv4Addr::UNSPECIFIED));
        assert_eq!((offer.lease, offer.network), (None, None));

        let ipxe = request(RequestKind::Discover, "PXEClient", Some(0), true);
        let boot = proxy(&site(), &ipxe, ProxyPort::Dhcp).unwrap().boot.unwrap();
        assert_eq!(boot.vendor_class, Some("PXEClient"));
        assert!(!boot.ipxe_no_proxy_wait, "it would switch the proxy off");
        assert_eq!(boot.tftp_server, Some(SERVER));

        let asked = request(RequestKind::Request, "PXEClient", Some(7), false);
        assert_eq!(proxy(&site(), &asked, ProxyPort::Pxe).unwrap().kind, ReplyKind::Ack);
        assert_eq!(proxy(&site(), &asked, ProxyPort::Dhcp), None, "the other server answers this one");
        let system = request(RequestKind::Discover, "udhcp", None, false);
        assert_eq!(proxy(&site(), &system, ProxyPort::Dhcp), None);
        let unsupported = request(RequestKind::Discover, "PXEClient", Some(6), false);
        assert_eq!(proxy(&site(), &unsupported, ProxyPort::Dhcp), None);
    }

    #[test]
    fn without_tftp_only_http_boot_and_ipxe_are_served() {
        let mut site = site();
        site.tftp.enabled = false;
        let of = |vendor_class, architecture, ipxe| {
            let request = request(RequestKind::Discover, vendor_class, Some(architecture), ipxe);
            proxy(&site, &request, ProxyPort::Dhcp).is_some()
        };
        assert!(!of("PXEClient", 7, false));
        assert!(of("HTTPClient", 16, false));
        assert!(of("PXEClient", 7, true));
    }

    #[test]
    fn the_uuid_is_the_same_whether_firmware_or_ipxe_asks() {
        let firmware = request(RequestKind::Discover, "PXEClient", Some(7), false);
        assert_eq!(machine_uuid(&firmware).unwrap().to_string(), "00112233-4455-6677-0809-0a0b0c0d0e0f");
        let ipxe = request(RequestKind::Discover, "PXEClient", Some(7), true);
        assert_eq!(machine_uuid(&ipxe), machine_uuid(&firmware));
        let blank = Request { machine_id: Some([0xff; 16]), ..firmware };
        assert_eq!(machine_uuid(&blank), None);
    }

    #[test]
    fn replies_go_where_the_machine_can_hear_them() {
        let from: SocketAddrV4 = "10.77.0.9:4011".parse().unwrap();
        let relay = Ipv4Addr::new(10, 78, 0, 1);
        let current = Ipv4Addr::new(10, 77, 0, 60);
        let fresh = Request { broadcast: false, ..request(RequestKind::Request, "", None, false) };
        let relayed = Request { giaddr: relay, ..fresh.clone() };
        let renewing = Request { ciaddr: current, ..fresh.clone() };
        for (request, kind, port, expected) in [
            (&fresh, ReplyKind::Ack, ProxyPort::Dhcp, "255.255.255.255:68"),
            (&relayed, ReplyKind::Ack, ProxyPort::Dhcp, "10.78.0.1:67"),
            (&relayed, ReplyKind::Nak, ProxyPort::Dhcp, "10.78.0.1:67"),
            (&renewing, ReplyKind::Ack, ProxyPort::Dhcp, "10.77.0.60:68"),
            (&renewing, ReplyKind::Nak, ProxyPort::Dhcp, "255.255.255.255:68"),
            (&renewing, ReplyKind::Ack, ProxyPort::Pxe, "10.77.0.9:4011"),
        ] {
            assert_eq!(destination(request, kind, from, port), expected.parse().unwrap());
        }
    }

    #[test]
    fn every_reply_fits_into_what_a_client_must_accept() {
        for (vendor_class, architecture, ipxe) in
            [("PXEClient", 0, false), ("HTTPClient", 16, false), ("PXEClient", 7, true), ("udhcp", 0, false)]
        {
            let mut request = request(RequestKind::Discover, vendor_class, Some(architecture), ipxe);
            request.max_message_bytes = None;
            let address = Ipv4Addr::new(255, 255, 255, 250);
            let mut site = site();
            site.server = Ipv4Addr::new(255, 255, 255, 251);
            site.http_port = 65_535;
            let reply = with_address(&site, &subnet(), 3_600, &request, ReplyKind::Ack, address);
            reply.encode(&request).unwrap();
        }
    }
}
