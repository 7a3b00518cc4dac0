//! DHCP for network boot: RFC 2131 and 2132, the PXE options of RFC 4578, and
//! iPXE's option 175.
//!
//! `dhcproto` has the codec. Three things are done here instead, each for a
//! reason that was found by trying:
//! - its owned decoder stops silently at a damaged option, and has length
//!   assertions that a hostile packet trips in debug builds. Requests are read
//!   through its borrowed view, and every option that we act on has its length
//!   checked here;
//! - its options come out in ascending order, 43 before 53, and old ROMs look
//!   at option 53 first. Replies are put in order here, each option encoded by
//!   `dhcproto`;
//! - RFC 1542 section 2.1 wants at least 300 octets, which it does not pad to.

use std::net::Ipv4Addr;

use dhcproto::Encodable;
use dhcproto::v4::{self, DhcpOption, HType, Opcode, OptionCode, UnknownOption, borrowed};
use thiserror::Error;

/// Smallest reply that old relays and ROMs accept, octets (RFC 1542 section 2.1).
pub const REPLY_MIN_BYTES: usize = 300;

/// Longest request that is read, octets: an Ethernet frame with jumbo payload
/// would hold more, no boot client sends it.
pub const REQUEST_MAX_BYTES: usize = 1_500;

/// Fixed fields and magic cookie.
const HEADER_BYTES: usize = 240;
/// What a client that says nothing in option 57 accepts: a 576 octet datagram
/// less IP and UDP headers (RFC 2131 section 2).
const MESSAGE_DEFAULT_BYTES: usize = 548;
/// `file` holds 128 octets with the terminating zero.
const FILE_FIELD_MAX_BYTES: usize = 127;
const SNAME_FIELD_MAX_BYTES: usize = 63;
const OPTION_MAX_BYTES: usize = 255;

const OPTION_IPXE: u8 = 175;
const IPXE_NO_PROXY_DHCP: u8 = 176;
const PXE_DISCOVERY_CONTROL: u8 = 6;
/// Bit 3: take the boot file name of this offer, ask no boot server and show
/// no menu (PXE 2.1 section 2.2.3).
const PXE_USE_OFFERED_FILE: u8 = 8;
const PXE_END: u8 = 255;

/// Why a datagram is not a request that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadRequest {
    /// Shorter than the fixed fields.
    #[error("DHCP message of {0} octets is shorter than its {HEADER_BYTES} octet header")]
    Short(usize),
    /// Longer than any boot client sends.
    #[error("DHCP message of {0} octets is longer than {REQUEST_MAX_BYTES}")]
    Long(usize),
    /// A reply of some other server.
    #[error("not a request")]
    NotARequest,
    /// Not an Ethernet hardware address.
    #[error("hardware address is not Ethernet")]
    NotEthernet,
    /// Multicast or all-zero hardware address.
    #[error("hardware address is not a station's")]
    NotAStation,
    /// The magic cookie of RFC 2131 section 3 is missing: BOOTP, not DHCP.
    #[error("no DHCP magic cookie; plain BOOTP is not served")]
    NoCookie,
    /// Option 53 is missing, damaged or not a client's.
    #[error("option 53 (message type) is missing or not a client's")]
    NoMessageType,
    /// An option that we act on has an impossible length.
    #[error("option {0} has a wrong length")]
    Damaged(u8),
}

/// What the client wants: the message types that clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Looks for servers.
    Discover,
    /// Selects an offer, confirms an address after a restart, or extends a lease.
    Request,
    /// Has found the address in use by somebody else.
    Decline,
    /// Gives the address back.
    Release,
    /// Has an address and asks for the other parameters.
    Inform,
}

/// A client's message, reduced to what boot service needs. Its size is bounded:
/// each text or list came out of one message of at most
/// [`REQUEST_MAX_BYTES`] octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Option 53.
    pub kind: RequestKind,
    /// Transaction number, copied into the reply.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client cannot receive unicast yet and wants the reply broadcast.
    pub broadcast: bool,
    /// Address the client already uses (renewal), or unspecified.
    pub ciaddr: Ipv4Addr,
    /// Relay that forwarded the message, or unspecified.
    pub giaddr: Ipv4Addr,
    /// Relays passed so far.
    pub hops: u8,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Option 50.
    pub requested_address: Option<Ipv4Addr>,
    /// Option 54: the server whose offer is selected.
    pub server_id: Option<Ipv4Addr>,
    /// Option 55, at most 255 codes.
    pub parameters: Vec<u8>,
    /// Option 57, octets; at least 576 (RFC 2132 section 9.10).
    pub max_message_bytes: Option<u16>,
    /// Option 60, as in `PXEClient:Arch:00000:UNDI:002001`.
    pub vendor_class: Vec<u8>,
    /// Option 77 as sent; iPXE sends the bare text `iPXE`.
    pub user_class: Vec<u8>,
    /// Option 93, the first architecture of the list (RFC 4578 section 2.1).
    pub architecture: Option<u16>,
    /// Option 97, the 16 octets behind the type octet 0, in the byte order of
    /// the sender: mixed as in SMBIOS from firmware, network order from iPXE.
    pub machine_id: Option<[u8; 16]>,
    /// Option 175 is there, or the user class is iPXE's.
    pub ipxe: bool,
    /// Option 82 as the relay wrote it; a reply carries it back (RFC 3046).
    pub relay_agent: Vec<u8>,
}

impl Request {
    /// Reads a datagram that arrived on a server port.
    ///
    /// # Errors
    /// [`BadRequest`] for whatever is not a client's DHCP message over Ethernet.
    /// Options after a damaged one are not seen; an option we act on that is
    /// itself damaged refuses the message.
    pub fn parse(datagram: &[u8]) -> Result<Self, BadRequest> {
        if datagram.len() > REQUEST_MAX_BYTES {
            return Err(BadRequest::Long(datagram.len()));
        }
        let message = borrowed::Message::new(datagram).map_err(|_| BadRequest::Short(datagram.len()))?;
        if message.opcode() != Opcode::BootRequest {
            return Err(BadRequest::NotARequest);
        }
        if message.htype() != HType::Eth || message.hlen() != 6 {
            return Err(BadRequest::NotEthernet);
        }
        if datagram.get(236..HEADER_BYTES) != Some(&v4::MAGIC) {
            return Err(BadRequest::NoCookie);
        }
        let mac = station(message.chaddr())?;
        let mut request = Self {
            kind: RequestKind::Discover,
            xid: message.xid(),
            secs: message.secs(),
            broadcast: message.flags().broadcast(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            hops: message.hops(),
            mac,
            requested_address: None,
            server_id: None,
            parameters: Vec::new(),
            max_message_bytes: None,
            vendor_class: Vec::new(),
            user_class: Vec::new(),
            architecture: None,
            machine_id: None,
            ipxe: false,
            relay_agent: Vec::new(),
        };
        let mut kind = None;
        for option in message.opts() {
            let code = u8::from(option.code());
            if code == u8::from(OptionCode::MessageType) {
                kind = Some(request_kind(option.data())?);
            } else {
                request.take(code, option.data())?;
            }
        }
        request.kind = kind.ok_or(BadRequest::NoMessageType)?;
        Ok(request)
    }

    /// Octets of DHCP message that the client accepts, IP and UDP headers not
    /// counted.
    #[must_use]
    pub fn reply_max_bytes(&self) -> usize {
        self.max_message_bytes
            .map_or(MESSAGE_DEFAULT_BYTES, |bytes| usize::from(bytes).max(576) - 28)
            .min(REQUEST_MAX_BYTES)
    }

    fn take(&mut self, code: u8, data: &[u8]) -> Result<(), BadRequest> {
        let damaged = BadRequest::Damaged(code);
        match OptionCode::from(code) {
            OptionCode::RequestedIpAddress => self.requested_address = Some(address(data).ok_or(damaged)?),
            OptionCode::ServerIdentifier => self.server_id = Some(address(data).ok_or(damaged)?),
            OptionCode::ParameterRequestList => self.parameters = bounded(data),
            OptionCode::MaxMessageSize => {
                self.max_message_bytes = Some(u16::from_be_bytes(data.try_into().map_err(|_| damaged)?));
            }
            OptionCode::ClassIdentifier => self.vendor_class = bounded(data),
            OptionCode::UserClass => {
                self.user_class = bounded(data);
                self.ipxe |= is_ipxe(data);
            }
            OptionCode::ClientSystemArchitecture => {
                let first = data.first_chunk::<2>().ok_or(damaged)?;
                self.architecture = Some(u16::from_be_bytes(*first));
            }
            // Some firmware sends other types or lengths here; the identifier
            // is then of no use, but the machine can still boot.
            OptionCode::ClientMachineIdentifier => {
                self.machine_id = data.strip_prefix(&[0]).and_then(|id| id.try_into().ok());
            }
            OptionCode::RelayAgentInformation => self.relay_agent = bounded(data),
            _ if code == OPTION_IPXE => self.ipxe = true,
            _ => {}
        }
        Ok(())
    }
}

fn station(chaddr: &[u8]) -> Result<[u8; 6], BadRequest> {
    let mac: [u8; 6] = chaddr.try_into().map_err(|_| BadRequest::NotEthernet)?;
    if mac == [0; 6] || mac[0] & 1 == 1 { Err(BadRequest::NotAStation) } else { Ok(mac) }
}

fn request_kind(data: &[u8]) -> Result<RequestKind, BadRequest> {
    match data {
        [1] => Ok(RequestKind::Discover),
        [3] => Ok(RequestKind::Request),
        [4] => Ok(RequestKind::Decline),
        [7] => Ok(RequestKind::Release),
        [8] => Ok(RequestKind::Inform),
        _ => Err(BadRequest::NoMessageType),
    }
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}

fn bounded(data: &[u8]) -> Vec<u8> {
    data[..data.len().min(OPTION_MAX_BYTES)].to_vec()
}

/// iPXE sends the bare text; RFC 3004 wants a length octet before each class,
/// which some ROM builds and relays add.
fn is_ipxe(user_class: &[u8]) -> bool {
    user_class == b"iPXE" || user_class == b"\x04iPXE"
}

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplyKind {
    /// Proposes an address or, from a proxy, only a boot file.
    Offer,
    /// Confirms.
    Ack,
    /// Refuses; the client starts again.
    Nak,
}

/// How long an address may be used, seconds. T1 and T2 are a half and seven
/// eighths, as RFC 2131 section 4.4.5 proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTime(pub u32);

/// The parameters of an interface that gets an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Option 1.
    pub mask: Ipv4Addr,
    /// Option 28.
    pub broadcast: Ipv4Addr,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6; at most 63 fit.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
}

/// What a boot client is told to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// File name or URL: header field `file` when it fits there, and option 67.
    pub name: String,
    /// TFTP server: header fields `siaddr` and `sname`, and option 66.
    pub tftp_server: Option<Ipv4Addr>,
    /// Option 60, `PXEClient` or `HTTPClient`: firmware drops an offer without
    /// the class that it sent.
    pub vendor_class: Option<&'static str>,
    /// Option 43 with discovery control 8: boot this file at once, ask no boot
    /// server (PXE 2.1).
    pub pxe_discovery_control: bool,
    /// Option 175 with sub-option 176 = 1: iPXE does not wait two seconds for
    /// a ProxyDHCP offer.
    pub ipxe_no_proxy_wait: bool,
}

/// A server's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Option 53.
    pub kind: ReplyKind,
    /// The server's address, option 54.
    pub server_id: Ipv4Addr,
    /// The address given, or unspecified.
    pub yiaddr: Ipv4Addr,
    /// Options 51, 58 and 59.
    pub lease: Option<LeaseTime>,
    /// Options 1, 3, 6, 15 and 28.
    pub network: Option<Network>,
    /// What to boot.
    pub boot: Option<BootFile>,
    /// Option 56, why an address is refused.
    pub message: Option<&'static str>,
}

/// A reply does not fit into what the client accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the DHCP reply needs {needed} octets and the client accepts {accepted}: shorten file name, domain or name servers"
)]
pub struct ReplyTooLong {
    /// Size of the reply, octets.
    pub needed: usize,
    /// What option 57 or its default allows, octets.
    pub accepted: usize,
}

impl Reply {
    /// Octets of the reply to this request: transaction number, flags, relay
    /// address and hardware address are the request's.
    ///
    /// # Errors
    /// [`ReplyTooLong`] when the client accepts less.
    pub fn encode(&self, request: &Request) -> Result<Vec<u8>, ReplyTooLong> {
        let accepted = request.reply_max_bytes();
        let mut bytes = self.header(request);
        for option in self.options(request) {
            put(&option, &mut bytes);
        }
        put(&DhcpOption::End, &mut bytes);
        let needed = bytes.len();
        if needed > accepted {
            return Err(ReplyTooLong { needed, accepted });
        }
        bytes.resize(needed.max(REPLY_MIN_BYTES), 0);
        Ok(bytes)
    }

    fn header(&self, request: &Request) -> Vec<u8> {
        let tftp_server = self.boot.as_ref().and_then(|boot| boot.tftp_server);
        // RFC 2131 table 3: a NAK leaves ciaddr zero, an ACK repeats it.
        let ciaddr = if self.kind == ReplyKind::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED };
        let mut message = v4::Message::new_with_id(
            request.xid,
            ciaddr,
            self.yiaddr,
            tftp_server.unwrap_or(Ipv4Addr::UNSPECIFIED),
            request.giaddr,
            &request.mac,
        );
        message.set_opcode(Opcode::BootReply);
        if request.broadcast || (self.kind == ReplyKind::Nak && !request.giaddr.is_unspecified()) {
            // RFC 2131 section 4.3.2: a relayed NAK sets the flag, so that the
            // relay broadcasts it.
            message.set_flags(v4::Flags::default().set_broadcast());
        }
        if let Some(server) = tftp_server {
            let name = server.to_string();
            debug_assert!(name.len() <= SNAME_FIELD_MAX_BYTES);
            message.set_sname(name.as_bytes());
        }
        if let Some(boot) = &self.boot
            && boot.name.len() <= FILE_FIELD_MAX_BYTES
        {
            message.set_fname(boot.name.as_bytes());
        }
        let mut bytes = Vec::with_capacity(MESSAGE_DEFAULT_BYTES);
        put(&message, &mut bytes);
        bytes
    }

    /// Options in the order in which they are sent: 53 and 54 first, the PXE
    /// ones next to each other, the relay's last (RFC 3046 section 2.1).
    fn options(&self, request: &Request) -> Vec<DhcpOption> {
        let mut options = vec![
            DhcpOption::MessageType(match self.kind {
                ReplyKind::Offer => v4::MessageType::Offer,
                ReplyKind::Ack => v4::MessageType::Ack,
                ReplyKind::Nak => v4::MessageType::Nak,
            }),
            DhcpOption::ServerIdentifier(self.server_id),
        ];
        if let Some(LeaseTime(seconds)) = self.lease {
            options.push(DhcpOption::AddressLeaseTime(seconds));
            options.push(DhcpOption::Renewal(seconds / 2));
            options.push(DhcpOption::Rebinding(seconds - seconds / 8));
        }
        options.extend(self.network.iter().flat_map(Network::options));
        options.extend(self.boot.iter().flat_map(|boot| boot.options(request)));
        if let Some(text) = self.message {
            options.push(DhcpOption::Message(text.to_owned()));
        }
        if !request.relay_agent.is_empty() {
            options.push(raw(u8::from(OptionCode::RelayAgentInformation), &request.relay_agent));
        }
        options
    }
}

impl Network {
    fn options(&self) -> Vec<DhcpOption> {
        let mut options = vec![DhcpOption::SubnetMask(self.mask)];
        options.extend(self.router.map(|router| DhcpOption::Router(vec![router])));
        if !self.dns.is_empty() {
            options.push(DhcpOption::DomainNameServer(self.dns.iter().copied().take(63).collect()));
        }
        options.extend(self.domain.clone().map(DhcpOption::DomainName));
        options.push(DhcpOption::BroadcastAddr(self.broadcast));
        options
    }
}

impl BootFile {
    fn options(&self, request: &Request) -> Vec<DhcpOption> {
        let mut options = Vec::new();
        if let Some(class) = self.vendor_class {
            options.push(DhcpOption::ClassIdentifier(class.as_bytes().to_vec()));
        }
        if self.pxe_discovery_control {
            let control = vec![PXE_DISCOVERY_CONTROL, 1, PXE_USE_OFFERED_FILE, PXE_END];
            options.push(DhcpOption::VendorExtensions(control));
        }
        if let Some(server) = self.tftp_server {
            options.push(DhcpOption::TFTPServerName(server.to_string().into_bytes()));
        }
        options.push(DhcpOption::BootfileName(self.name.clone().into_bytes()));
        // RFC 4578 section 2.3: a server that got option 97 repeats it.
        if let Some(id) = request.machine_id {
            options.push(DhcpOption::ClientMachineIdentifier([&[0][..], &id].concat()));
        }
        if self.ipxe_no_proxy_wait {
            options.push(raw(OPTION_IPXE, &[IPXE_NO_PROXY_DHCP, 1, 1]));
        }
        options
    }
}

fn raw(code: u8, data: &[u8]) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::Unknown(code), data.to_vec()))
}

/// Encoding into a growing vector fails only for a length above `usize`.
fn put(part: &impl Encodable, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let mut encoded = Vec::new();
    if part.encode(&mut dhcproto::Encoder::new(&mut encoded)).is_ok() {
        bytes.extend_from_slice(&encoded);
    }
    debug_assert!(bytes.len() > start);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use dhcproto::Decodable;
    use dhcproto::v4::Message;
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// A DISCOVER as a BIOS PXE ROM sends it.
    fn pxe_discover() -> Vec<u8> {
        let mut message = header(1);
        for option in [
            &[53u8, 1, 1][..],
            &[55, 4, 1, 3, 66, 67],
            &[57, 2, 0x04, 0xec],
            &[97, 17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
            &[93, 2, 0, 7],
            &[94, 3, 1, 2, 1],
            b"\x3c\x20PXEClient:Arch:00007:UNDI:003016",
            &[255],
        ] {
            message.extend_from_slice(option);
        }
        message
    }

    fn header(opcode: u8) -> Vec<u8> {
        let mut message = vec![0; HEADER_BYTES];
        message[..4].copy_from_slice(&[opcode, 1, 6, 0]);
        message[4..8].copy_from_slice(&0xdead_beef_u32.to_be_bytes());
        message[10] = 0x80;
        message[28..34].copy_from_slice(&MAC);
        message[236..240].copy_from_slice(&v4::MAGIC);
        message
    }

    fn with_options(options: &[&[u8]]) -> Vec<u8> {
        let mut message = header(1);
        message.extend(options.concat());
        message.push(255);
        message
    }

    fn offer() -> Reply {
        Reply {
            kind: ReplyKind::Offer,
            server_id: SERVER,
            yiaddr: Ipv4Addr::new(10, 77, 0, 100),
            lease: Some(LeaseTime(3600)),
            network: Some(Network {
                mask: Ipv4Addr::new(255, 255, 255, 0),
                broadcast: Ipv4Addr::new(10, 77, 0, 255),
                router: Some(SERVER),
                dns: vec![SERVER],
                domain: Some("lab.example".to_owned()),
            }),
            boot: Some(BootFile {
                name: "boot/52-54-00-01-02-03/snponly.efi".to_owned(),
                tftp_server: Some(SERVER),
                vendor_class: Some("PXEClient"),
                pxe_discovery_control: true,
                ipxe_no_proxy_wait: false,
            }),
            message: None,
        }
    }

    #[test]
    fn a_pxe_discover_is_read_completely() {
        let request = Request::parse(&pxe_discover()).unwrap();
        assert_eq!(request.kind, RequestKind::Discover);
        assert_eq!(request.mac, MAC);
        assert_eq!(request.xid, 0xdead_beef);
        assert!(request.broadcast);
        assert_eq!(request.architecture, Some(7));
        assert_eq!(request.machine_id, Some([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]));
        assert!(request.vendor_class.starts_with(b"PXEClient"));
        assert_eq!(request.parameters, [1, 3, 66, 67]);
        assert_eq!(request.reply_max_bytes(), 1260 - 28);
        assert!(!request.ipxe);
    }

    #[test]
    fn ipxe_is_known_by_user_class_or_option_175() {
        let ipxe = |option: &[u8]| Request::parse(&with_options(&[&[53, 1, 1], option])).unwrap().ipxe;
        assert!(ipxe(b"\x4d\x04iPXE"));
        assert!(ipxe(b"\x4d\x05\x04iPXE"));
        assert!(ipxe(&[175, 3, 19, 1, 1]));
        assert!(!ipxe(b"\x4d\x05linux"));
    }

    #[test]
    fn whatever_cannot_be_answered_is_refused_by_name() {
        let cases: Vec<(Vec<u8>, BadRequest)> = vec![
            (vec![], BadRequest::Short(0)),
            (vec![1; 239], BadRequest::Short(239)),
            (vec![1; 1501], BadRequest::Long(1501)),
            (header(2), BadRequest::NotARequest),
            (header(1), BadRequest::NoMessageType),
            (with_options(&[&[53, 1, 2]]), BadRequest::NoMessageType),
            (with_options(&[&[53, 0]]), BadRequest::NoMessageType),
            (with_options(&[&[53, 1, 3], &[50, 3, 1, 2, 3]]), BadRequest::Damaged(50)),
            (with_options(&[&[53, 1, 3], &[54, 5, 1, 2, 3, 4, 5]]), BadRequest::Damaged(54)),
            (with_options(&[&[53, 1, 3], &[57, 1, 1]]), BadRequest::Damaged(57)),
            (with_options(&[&[53, 1, 3], &[93, 1, 1]]), BadRequest::Damaged(93)),
        ];
        for (datagram, why) in cases {
            assert_eq!(Request::parse(&datagram), Err(why));
        }
        let changed = |at: usize, value: u8| {
            let mut datagram = pxe_discover();
            datagram[at] = value;
            Request::parse(&datagram)
        };
        assert_eq!(changed(1, 6), Err(BadRequest::NotEthernet));
        assert_eq!(changed(2, 16), Err(BadRequest::NotEthernet));
        assert_eq!(changed(2, 255), Err(BadRequest::NotEthernet));
        assert_eq!(changed(28, 0x53), Err(BadRequest::NotAStation));
        assert_eq!(changed(236, 0), Err(BadRequest::NoCookie));
    }

    #[test]
    fn options_before_a_cut_are_kept_and_a_missing_type_is_noticed() {
        let whole = pxe_discover();
        for cut in HEADER_BYTES..whole.len() {
            match Request::parse(&whole[..cut]) {
                Ok(request) => assert_eq!(request.mac, MAC),
                Err(why) => assert_eq!(why, BadRequest::NoMessageType, "cut at {cut}"),
            }
        }
    }

    #[test]
    fn a_reply_has_53_first_ends_with_82_and_is_padded() {
        let mut request = Request::parse(&pxe_discover()).unwrap();
        request.relay_agent = vec![1, 2, 0xca, 0xfe];
        let bytes = offer().encode(&request).unwrap();
        assert!(bytes.len() >= REPLY_MIN_BYTES);
        let codes: Vec<u8> = borrowed::Message::new(&bytes).unwrap().opts().map(|o| u8::from(o.code())).collect();
        assert_eq!(codes, [53, 54, 51, 58, 59, 1, 3, 6, 15, 28, 60, 43, 66, 67, 97, 82]);
    }

    #[test]
    fn an_independent_decoder_reads_the_same() {
        let request = Request::parse(&pxe_discover()).unwrap();
        let bytes = offer().encode(&request).unwrap();
        let message = Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.opcode(), Opcode::BootReply);
        assert_eq!(message.xid(), 0xdead_beef);
        assert_eq!(message.chaddr(), MAC);
        assert_eq!(message.siaddr(), SERVER);
        // This decoder keeps the terminating zero.
        assert_eq!(message.fname(), Some(&b"boot/52-54-00-01-02-03/snponly.efi\0"[..]));
        assert_eq!(message.sname(), Some(&b"10.77.0.1\0"[..]));
        let options = message.opts();
        assert_eq!(options.msg_type(), Some(v4::MessageType::Offer));
        assert_eq!(options.get(OptionCode::VendorExtensions), Some(&DhcpOption::VendorExtensions(vec![6, 1, 8, 255])));
        assert_eq!(options.get(OptionCode::Rebinding), Some(&DhcpOption::Rebinding(3150)));
        assert_eq!(
            options.get(OptionCode::BootfileName),
            Some(&DhcpOption::BootfileName(b"boot/52-54-00-01-02-03/snponly.efi".to_vec()))
        );
    }

    #[test]
    fn ipxe_is_told_not_to_wait_for_a_proxy() {
        let request = Request::parse(&pxe_discover()).unwrap();
        let mut reply = offer();
        if let Some(boot) = &mut reply.boot {
            boot.ipxe_no_proxy_wait = true;
        }
        let bytes = reply.encode(&request).unwrap();
        assert!(bytes.windows(5).any(|window| window == [175, 3, 176, 1, 1]));
    }

    #[test]
    fn a_long_name_leaves_the_header_field_and_a_small_client_is_refused() {
        let request = Request::parse(&pxe_discover()).unwrap();
        let mut reply = offer();
        if let Some(boot) = &mut reply.boot {
            boot.name = "x".repeat(200);
        }
        let message = Message::from_bytes(&reply.encode(&request).unwrap()).unwrap();
        assert_eq!(message.fname(), None);
        assert!(message.opts().contains(OptionCode::BootfileName));

        if let Some(boot) = &mut reply.boot {
            boot.name = "x".repeat(2_000);
        }
        assert!(reply.encode(&request).is_err());
    }

    #[test]
    fn a_relayed_nak_asks_the_relay_to_broadcast() {
        let mut request = Request::parse(&pxe_discover()).unwrap();
        request.broadcast = false;
        request.giaddr = Ipv4Addr::new(10, 78, 0, 1);
        let nak = Reply {
            kind: ReplyKind::Nak,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            lease: None,
            network: None,
            boot: None,
            message: Some("that address is not yours"),
            ..offer()
        };
        let message = Message::from_bytes(&nak.encode(&request).unwrap()).unwrap();
        assert!(message.flags().broadcast());
        assert_eq!(message.giaddr(), request.giaddr);
        assert_eq!(message.opts().msg_type(), Some(v4::MessageType::Nak));
    }

    proptest! {
        #[test]
        fn no_datagram_panics(datagram in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = Request::parse(&datagram);
        }

        #[test]
        fn no_options_panic_and_every_request_can_be_answered(
            options in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut datagram = with_options(&[&[53, 1, 3]]);
            datagram.pop();
            datagram.extend(options);
            if let Ok(request) = Request::parse(&datagram)
                && let Ok(bytes) = offer().encode(&request)
            {
                prop_assert!(bytes.len() >= REPLY_MIN_BYTES);
                prop_assert!(bytes.len() <= request.reply_max_bytes());
            }
        }
    }
}
