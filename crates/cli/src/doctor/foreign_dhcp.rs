//! Which DHCP servers answer on the boot network.
//!
//! A new machine is imitated: one DISCOVER with a random hardware address, repeated once, and three seconds of
//! listening. Answers are asked for as broadcasts, since the address that is offered is not ours.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use boot::dhcp::Mode;
use boot::interface::Interface;
use controller::Config;
use dhcproto::v4::{Opcode, OptionCode, borrowed};
use rand::Rng as _;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Finding, listed};

const CHECK: &str = "foreign DHCP";
const LISTEN: Duration = Duration::from_secs(3);
/// The first packet after a link comes up may be lost to the switch.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const MESSAGE_MAX_BYTES: usize = 1500;

/// A server that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offer {
    server: Ipv4Addr,
    /// The address it offers; unspecified from a proxy.
    address: Ipv4Addr,
    /// It also says what to boot.
    has_boot_file: bool,
}

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let Some(name) = &config.dhcp.interface else {
        return vec![Finding::pass(CHECK, "not looked for: no dhcp.interface is configured")];
    };
    // The interface has its own check.
    let Ok(interface) = Interface::find(name) else { return Vec::new() };
    vec![match probe(name) {
        Ok(offers) => judge(config.dhcp.mode, name, &interface.ipv4, &offers),
        Err(error) => {
            let fix = match error.kind() {
                ErrorKind::AddrInUse => {
                    format!("stop the DHCP client on {name} for a moment (it has UDP port {CLIENT_PORT})")
                }
                ErrorKind::PermissionDenied => "run this as root".to_owned(),
                _ => format!("check that {name} is up"),
            };
            Finding::warn(CHECK, format!("cannot look for DHCP servers on {name}: {error}"), fix)
        }
    }]
}

fn probe(interface: &str) -> std::io::Result<Vec<Offer>> {
    let socket = open(interface)?;
    let mut random = rand::rng();
    let xid: u32 = random.next_u32();
    let mut mac = [0u8; 6];
    random.fill_bytes(&mut mac);
    // Locally administered, and a station's.
    mac[0] = mac[0] & 0xfc | 0x02;
    let discover = discover(xid, mac);

    let mut offers = BTreeMap::new();
    let start = Instant::now();
    let mut sent = 0;
    let mut buffer = [0; MESSAGE_MAX_BYTES];
    while start.elapsed() < LISTEN {
        if sent == 0 || (sent == 1 && start.elapsed() > AGAIN_AFTER && offers.is_empty()) {
            socket.send_to(&discover, (Ipv4Addr::BROADCAST, SERVER_PORT))?;
            sent += 1;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(offer) = read_offer(&buffer[..length], xid, mac) {
                    offers.insert(offer.server, offer);
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(offers.into_values().collect())
}

fn open(interface: &str) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // A DHCP client on another interface may have the port.
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// RFC 2131 section 4.1 and table 5, with the broadcast flag; option 61 is left out, so that servers go by the hardware
/// address alone.
fn discover(xid: u32, mac: [u8; 6]) -> Vec<u8> {
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&xid.to_be_bytes());
    message[10] = 0x80;
    message[28..34].copy_from_slice(&mac);
    message.extend(COOKIE);
    message.extend([53, 1, 1]);
    message.extend([55, 5, 1, 3, 54, 66, 67]);
    message.push(255);
    // Old relays drop what is shorter (RFC 1542 section 2.1).
    message.resize(300, 0);
    message
}

/// An OFFER to our question, or `None`.
fn read_offer(datagram: &[u8], xid: u32, mac: [u8; 6]) -> Option<Offer> {
    let message = borrowed::Message::new(datagram).ok()?;
    // The length says how much of the field counts; a wrong one must not be trusted.
    let ours =
        message.opcode() == Opcode::BootReply && message.hlen() == 6 && message.xid() == xid && message.chaddr() == mac;
    if !ours {
        return None;
    }
    let (mut kind, mut server, mut has_boot_file) = (None, None, message.fname().iter().any(|byte| *byte != 0));
    for option in message.opts() {
        match (option.code(), option.data()) {
            (OptionCode::MessageType, [value]) => kind = Some(*value),
            (OptionCode::ServerIdentifier, data) => server = <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from),
            (OptionCode::BootfileName, data) => has_boot_file |= !data.is_empty(),
            _ => {}
        }
    }
    let server = server.or(Some(message.siaddr())).filter(|server| !server.is_unspecified())?;
    (kind == Some(2)).then(|| Offer { server, address: message.yiaddr(), has_boot_file })
}

fn judge(mode: Mode, interface: &str, own: &[Ipv4Addr], offers: &[Offer]) -> Finding {
    let foreign: Vec<&Offer> = offers.iter().filter(|offer| !own.contains(&offer.server)).collect();
    let names = listed(&foreign.iter().map(|offer| describe(offer)).collect::<Vec<_>>());
    let gives_addresses = foreign.iter().any(|offer| !offer.address.is_unspecified());
    let boots = foreign.iter().any(|offer| offer.has_boot_file);
    match (mode, foreign.is_empty()) {
        (Mode::Full, true) => Finding::pass(CHECK, format!("no foreign DHCP server answers on {interface}")),
        (Mode::Full, false) => Finding::fail(
            CHECK,
            format!("{names} on {interface}; machines would listen to either server"),
            "switch that server off on this network, or set dhcp.mode = \"proxy\"",
        ),
        (Mode::Proxy, _) if !gives_addresses => Finding::fail(
            CHECK,
            format!("no DHCP server gives addresses on {interface}, and in proxy mode we give none either"),
            "check the cable and the VLAN, or set dhcp.mode = \"full\"",
        ),
        (Mode::Proxy, _) if boots => Finding::warn(
            CHECK,
            format!("{names} on {interface}; a machine may follow either"),
            "take the boot file out of that server's configuration",
        ),
        (Mode::Proxy, _) => Finding::pass(CHECK, format!("{names} on {interface}, as proxy mode needs it")),
        (Mode::Off, true) => Finding::warn(
            CHECK,
            format!("no DHCP server answers on {interface}, so machines do not start"),
            "check the cable and the VLAN, or set dhcp.mode = \"full\"",
        ),
        (Mode::Off, false) if boots => Finding::pass(CHECK, format!("{names} on {interface}")),
        (Mode::Off, false) => Finding::warn(
            CHECK,
            format!("{names} on {interface}, without a boot file for unknown firmware"),
            "add the lines of `rackswarm serve --print-dhcp-lines` to that server, unless it has them already",
        ),
    }
}

fn describe(offer: &Offer) -> String {
    let what = if offer.address.is_unspecified() { "no address".to_owned() } else { offer.address.to_string() };
    let boot = if offer.has_boot_file { " and a boot file" } else { "" };
    format!("the DHCP server {} offers {what}{boot}", offer.server)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn reply(kind: u8) -> Vec<u8> {
        let mut message = discover(7, MAC);
        message[0] = 2;
        message[16..20].copy_from_slice(&[10, 0, 0, 9]);
        message[242] = kind;
        message[243..249].copy_from_slice(&[54, 4, 10, 0, 0, 1]);
        message[249] = 255;
        message
    }

    #[test]
    fn only_offers_to_our_question_count() {
        let offer = Offer { server: SERVER, address: Ipv4Addr::new(10, 0, 0, 9), has_boot_file: false };
        assert_eq!(read_offer(&reply(2), 7, MAC), Some(offer));
        assert_eq!(read_offer(&reply(5), 7, MAC), None);
        assert_eq!(read_offer(&reply(2), 8, MAC), None);
        assert_eq!(read_offer(&reply(2), 7, [2, 0, 0, 0, 0, 8]), None);
        assert_eq!(read_offer(&discover(7, MAC), 7, MAC), None);
    }

    #[test]
    fn a_damaged_answer_is_no_answer() {
        let whole = reply(2);
        for length in 0..whole.len() {
            let _ = read_offer(&whole[..length], 7, MAC);
        }
        let mut long_address = reply(2);
        long_address[2] = 255;
        assert_eq!(read_offer(&long_address, 7, MAC), None);
    }

    #[test]
    fn our_own_question_is_a_discover_that_we_would_answer() {
        let request = wire::dhcp::Request::parse(&discover(7, MAC)).unwrap();
        assert_eq!(request.kind, wire::dhcp::RequestKind::Discover);
        assert!(request.broadcast);
        assert_eq!(request.mac, MAC);
    }

    #[test]
    fn each_mode_wants_something_else() {
        let plain = Offer { server: SERVER, address: Ipv4Addr::new(10, 0, 0, 9), has_boot_file: false };
        let boot = Offer { has_boot_file: true, ..plain.clone() };
        let verdict = |mode, own: &[Ipv4Addr], offers: &[Offer]| judge(mode, "eth1", own, offers).verdict;
        let one = std::slice::from_ref(&plain);
        assert_eq!(verdict(Mode::Full, &[], &[]), Verdict::Pass);
        assert_eq!(verdict(Mode::Full, &[SERVER], one), Verdict::Pass);
        assert_eq!(verdict(Mode::Full, &[], one), Verdict::Fail);
        assert_eq!(verdict(Mode::Proxy, &[], &[]), Verdict::Fail);
        assert_eq!(verdict(Mode::Proxy, &[], one), Verdict::Pass);
        assert_eq!(verdict(Mode::Proxy, &[], std::slice::from_ref(&boot)), Verdict::Warn);
        assert_eq!(verdict(Mode::Off, &[], &[]), Verdict::Warn);
        assert_eq!(verdict(Mode::Off, &[], one), Verdict::Warn);
        assert_eq!(verdict(Mode::Off, &[], &[boot]), Verdict::Pass);
    }
}
