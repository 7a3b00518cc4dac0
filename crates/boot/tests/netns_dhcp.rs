//! DHCP against the clients and servers that Debian has, in network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Host, Memory, Network, eventually};
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode, UnknownOption};
use dhcproto::{Decodable as _, Encodable as _};
use fleet::ids::Mac;
use rackswarm_boot::dhcp::{DhcpConfig, Mode};
use rackswarm_boot::director::Stage;
use rackswarm_boot::firmware::{Asker, Firmware};
use rackswarm_boot::tftp::TftpConfig;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn full(range: &str) -> DhcpConfig {
    let text = format!(
        r#"
        mode = "full"
        interface = "eth0"
        lease_seconds = 600
        [[subnets]]
        network = "10.77.0.0/24"
        ranges = ["{range}"]
        router = "10.77.0.1"
        dns = ["10.77.0.1"]
        domain = "lab.example"
        [[subnets]]
        network = "10.78.0.0/24"
        ranges = ["10.78.0.100-10.78.0.109"]
        "#
    );
    toml::from_str(&text).unwrap()
}

fn proxy() -> DhcpConfig {
    DhcpConfig { mode: Mode::Proxy, interface: Some("eth0".to_owned()), ..DhcpConfig::default() }
}

/// Boot files are named whether or not they are there; DHCP is tested alone.
fn tftp() -> TftpConfig {
    TftpConfig { root: PathBuf::from("/tmp"), ..TftpConfig::default() }
}

/// What a DHCP client was told, written by its hook script.
fn hook(folder: &Path) -> PathBuf {
    let path = folder.join("hook");
    let script = "#!/bin/sh\n\
        case \"$1$reason\" in bound|renew|BOUND|REBOOT|RENEW)\n\
        echo \"$ip$new_ip_address ${subnet:-$new_subnet_mask} $router$new_routers $domain$new_domain_name\" >> \"$(dirname \"$0\")/told\";; esac\n\
        exit 0\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn told(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("told")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn udhcpc(client: &Host, folder: &Path) -> String {
    let hook = hook(folder);
    let before = told(folder).len();
    client.must("udhcpc", &["-i", "eth0", "-f", "-q", "-n", "-t", "5", "-T", "1", "-s", hook.to_str().unwrap()]);
    told(folder).split_off(before).pop().expect("udhcpc was not told an address")
}

/// A client of our own, for messages that no tool sends.
struct Client {
    socket: UdpSocket,
}

impl Client {
    /// Must be called inside the client's namespace.
    fn open(port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.set_recv_buffer_size(4 << 20).unwrap();
        socket.bind(&SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))).unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self { socket }
    }

    fn send(&self, message: &Message, to: Ipv4Addr, port: u16) {
        self.socket.send_to(&message.to_vec().unwrap(), (to, port)).unwrap();
    }

    fn next(&self) -> Option<Message> {
        let mut buffer = [0; 1_500];
        let bytes = self.socket.recv(&mut buffer).ok()?;
        assert!(bytes >= 300, "a reply of {bytes} octets is too short for old ROMs");
        Some(Message::from_bytes(&buffer[..bytes]).unwrap())
    }

    /// Sends until the wanted replies are there, as firmware does.
    fn ask(&self, message: &Message, to: Ipv4Addr, port: u16, enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut replies = Vec::new();
        while !enough(&replies) {
            assert!(Instant::now() < deadline, "not the wanted replies in 15 s: {replies:?}");
            replies.clear();
            self.send(message, to, port);
            while let Some(reply) = self.next() {
                if reply.xid() == message.xid() {
                    replies.push(reply);
                }
            }
        }
        replies
    }
}

fn message(kind: MessageType, mac: Mac, xid: u32) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(xid, none, none, none, none, &mac.0);
    message.set_flags(Flags::default().set_broadcast());
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn pxe(kind: MessageType, mac: Mac, xid: u32, architecture: u16) -> Message {
    let mut message = message(kind, mac, xid);
    let class = format!("PXEClient:Arch:{architecture:05}:UNDI:003016");
    let options = message.opts_mut();
    options.insert(DhcpOption::ClassIdentifier(class.into_bytes()));
    options.insert(DhcpOption::ClientSystemArchitecture(architecture.into()));
    options.insert(DhcpOption::ClientMachineIdentifier((0..17).collect()));
    options.insert(DhcpOption::ParameterRequestList([1, 3, 6, 43, 54, 60, 66, 67, 97].map(OptionCode::from).to_vec()));
    options.insert(DhcpOption::MaxMessageSize(1_472));
    message
}

fn request_for(mac: Mac, xid: u32, address: Ipv4Addr) -> Message {
    let mut request = message(MessageType::Request, mac, xid);
    request.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    request.opts_mut().insert(DhcpOption::ServerIdentifier(SERVER));
    request
}

fn machine(number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac([0x52, 0x54, 0, 0xaa, high, low])
}

fn boot_file(message: &Message) -> String {
    match message.opts().get(OptionCode::BootfileName) {
        Some(DhcpOption::BootfileName(name)) => String::from_utf8(name.clone()).unwrap(),
        _ => String::new(),
    }
}

fn has_class(message: &Message, class: &str) -> bool {
    matches!(message.opts().get(OptionCode::ClassIdentifier), Some(DhcpOption::ClassIdentifier(c)) if c == class.as_bytes())
}

#[test]
fn real_clients_get_one_address_for_one_machine() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let client = network.host(None);
    let other = network.host(None);
    let director = Arc::new(Memory::default());
    let service = server.serve(full("10.77.0.100-10.77.0.199"), tftp(), &director).unwrap();
    let folder = tempfile::tempdir().unwrap();

    let first = udhcpc(&client, folder.path());
    assert_eq!(first, "10.77.0.100 255.255.255.0 10.77.0.1 lab.example");
    // Another client identifier, the same machine.
    assert_eq!(udhcpc(&client, folder.path()), first);
    assert_eq!(dhclient(&client, folder.path()), first);
    // Now it has a lease file, and confirms the address without asking for one.
    assert_eq!(dhclient(&client, folder.path()), first);
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(udhcpc(&other, elsewhere.path()).starts_with("10.77.0.101 "));

    service.end();
    let _service = server.serve(full("10.77.0.100-10.77.0.199"), tftp(), &director).unwrap();
    assert!(udhcpc(&other, elsewhere.path()).starts_with("10.77.0.101 "), "leases survive a restart");
    assert_eq!(udhcpc(&client, folder.path()), first);
    eventually("the lease is reported", || {
        let sightings = director.sightings.lock().unwrap();
        sightings.iter().any(|seen| {
            seen.mac == client.mac()
                && seen.asker == Asker::System
                && seen.stage == Stage::Leased(Ipv4Addr::new(10, 77, 0, 100))
        })
    });
    assert!(director.troubles.lock().unwrap().is_empty());
}

fn dhclient(client: &Host, folder: &Path) -> String {
    let hook = hook(folder);
    let (leases, pid) = (folder.join("dhclient.leases"), folder.join("dhclient.pid"));
    let before = told(folder).len();
    let arguments = ["-4", "-d", "-1", "-cf", "/dev/null", "-sf"];
    let files = [hook.to_str().unwrap(), "-lf", leases.to_str().unwrap(), "-pf", pid.to_str().unwrap(), "eth0"];
    let _running = client.start("dhclient", &[&arguments[..], &files].concat());
    eventually("dhclient is told an address", || told(folder).len() > before);
    told(folder).pop().unwrap()
}

#[test]
fn a_lease_that_cannot_be_saved_is_not_given() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let client = network.host(None);
    let director = Arc::new(Memory::default());
    director.refuse_to_save.store(true, Ordering::Relaxed);
    let _service = server.serve(full("10.77.0.100-10.77.0.109"), tftp(), &director).unwrap();
    let held = client.enter(|| {
        let client = Client::open(68);
        let discover = message(MessageType::Discover, machine(1), 1);
        let offer = client.ask(&discover, Ipv4Addr::BROADCAST, 67, |replies| !replies.is_empty()).remove(0);
        client.send(&request_for(machine(1), 2, offer.yiaddr()), Ipv4Addr::BROADCAST, 67);
        let answers: Vec<_> = std::iter::from_fn(|| client.next()).filter(|reply| reply.xid() == 2).collect();
        assert!(answers.is_empty(), "{answers:?}");
        offer.yiaddr()
    });
    let held = held.join().unwrap();
    eventually("the operator is told", || !director.troubles.lock().unwrap().is_empty());
    assert!(director.troubles.lock().unwrap()[0].contains("the disk is full"));
    director.refuse_to_save.store(false, Ordering::Relaxed);
    let acknowledged = client.enter(move || {
        let client = Client::open(68);
        let request = request_for(machine(1), 3, held);
        client.ask(&request, Ipv4Addr::BROADCAST, 67, |replies| !replies.is_empty()).remove(0)
    });
    assert_eq!(acknowledged.join().unwrap().opts().msg_type(), Some(MessageType::Ack));
    assert_eq!(director.leases.lock().unwrap()[&held].mac, machine(1));
}

#[test]
fn two_hundred_machines_in_one_second_get_two_hundred_addresses() {
    const MACHINES: u16 = 200;
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let client = network.host(None);
    let director = Arc::new(Memory::default());
    // Exactly as many addresses as machines.
    let _service = server.serve(full("10.77.0.50-10.77.0.249"), tftp(), &director).unwrap();
    let started = Instant::now();
    let storm = client.enter(|| {
        let client = Client::open(68);
        let begin = Instant::now();
        for number in 0..MACHINES {
            client.send(&pxe(MessageType::Discover, machine(number), number.into(), 7), Ipv4Addr::BROADCAST, 67);
        }
        assert!(begin.elapsed() < Duration::from_secs(1), "the storm took {:?}", begin.elapsed());
        let mut offers = BTreeMap::new();
        while let Some(offer) = client.next() {
            assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
            offers.insert(offer.xid(), offer.yiaddr());
        }
        for (xid, address) in &offers {
            client.send(&request_for(machine(*xid as u16), *xid, *address), Ipv4Addr::BROADCAST, 67);
        }
        let mut acknowledged = BTreeMap::new();
        while let Some(ack) = client.next() {
            assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
            acknowledged.insert(ack.xid(), ack.yiaddr());
        }
        (offers, acknowledged)
    });
    let (offers, acknowledged) = storm.join().unwrap();
    println!(
        "200 machines: offers and leases after {:?}, {} saves",
        started.elapsed(),
        director.saves.load(Ordering::Relaxed)
    );
    assert_eq!(offers.len(), usize::from(MACHINES));
    assert_eq!(offers.values().collect::<BTreeSet<_>>().len(), usize::from(MACHINES), "an address was offered twice");
    assert_eq!(acknowledged, offers);
    let stored = director.leases.lock().unwrap();
    assert_eq!(stored.values().map(|lease| lease.mac).collect::<BTreeSet<_>>().len(), usize::from(MACHINES));
}

#[test]
fn our_proxy_works_beside_dnsmasq() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let foreign = network.host(Some("10.77.0.2/24"));
    let client = network.host(None);
    let director = Arc::new(Memory::default());
    let _service = server.serve(proxy(), tftp(), &director).unwrap();
    let arguments = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=eth0",
        "--bind-interfaces",
        "--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,10m",
        "--no-ping",
        "--leasefile-ro",
        "--user=root",
        "--pid-file=",
    ];
    let _dnsmasq = foreign.start("dnsmasq", &arguments);

    let host = client.clone();
    let booting = client.enter(move || {
        let client = Client::open(68);
        let both = |replies: &[Message]| {
            let addresses = replies.iter().filter(|reply| !reply.yiaddr().is_unspecified()).count();
            addresses > 0 && addresses < replies.len()
        };
        let mac = machine(1);
        let replies = client.ask(&pxe(MessageType::Discover, mac, 11, 7), Ipv4Addr::BROADCAST, 67, both);
        let (offer, ours): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| !reply.yiaddr().is_unspecified());
        let ours = &ours[0];
        assert_eq!(boot_file(ours), "boot/52-54-00-aa-00-01/snponly.efi");
        assert_eq!(ours.siaddr(), SERVER);
        assert!(has_class(ours, "PXEClient"));
        let control = DhcpOption::VendorExtensions(vec![6, 1, 8, 255]);
        assert_eq!(ours.opts().get(OptionCode::VendorExtensions), Some(&control));
        assert_eq!(ours.opts().get(OptionCode::AddressLeaseTime), None);

        // With its address, firmware may ask the proxy again on its own port.
        let address = offer[0].yiaddr();
        host.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
        let mut request = pxe(MessageType::Request, mac, 12, 7);
        request.set_ciaddr(address);
        let ack = Client::open(4011).ask(&request, SERVER, 4011, |replies| !replies.is_empty()).remove(0);
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!(boot_file(&ack), "boot/52-54-00-aa-00-01/snponly.efi");
        host.ip(&["address", "flush", "dev", "eth0"]);

        // The loader asks again, as iPXE.
        let mut ipxe = pxe(MessageType::Discover, mac, 13, 7);
        ipxe.opts_mut().insert(DhcpOption::UserClass(b"iPXE".to_vec()));
        let replies = client.ask(&ipxe, Ipv4Addr::BROADCAST, 67, both);
        let ours = replies.iter().find(|reply| reply.yiaddr().is_unspecified()).unwrap();
        assert_eq!(
            boot_file(ours),
            "http://10.77.0.1:8080/boot/52-54-00-aa-00-01/script?uuid=${uuid}&platform=${platform}"
        );
        assert!(!ours.opts().contains(OptionCode::from(175)));

        // HTTP boot.
        let mut http = pxe(MessageType::Discover, mac, 14, 16);
        http.opts_mut().insert(DhcpOption::ClassIdentifier(b"HTTPClient:Arch:00016:UNDI:003001".to_vec()));
        let replies = client.ask(&http, Ipv4Addr::BROADCAST, 67, both);
        let ours = replies.iter().find(|reply| reply.yiaddr().is_unspecified()).unwrap();
        assert!(has_class(ours, "HTTPClient"));
        assert_eq!(boot_file(ours), "http://10.77.0.1:8080/boot/52-54-00-aa-00-01/snponly.efi");
    });
    booting.join().unwrap();

    // An operating system is left to dnsmasq.
    let folder = tempfile::tempdir().unwrap();
    assert!(udhcpc(&client, folder.path()).starts_with("10.77.0.1"));
    let sightings = director.sightings.lock().unwrap();
    assert!(sightings.iter().all(|seen| seen.mac == machine(1) && seen.stage == Stage::Proxied), "{sightings:?}");
    assert!(sightings.iter().any(|seen| seen.asker == Asker::Firmware(Firmware::UefiX64)));
    assert!(sightings.iter().any(|seen| seen.asker == Asker::Ipxe(Some(Firmware::UefiX64))));
    assert!(sightings.iter().any(|seen| seen.asker == Asker::Firmware(Firmware::UefiX64Http)));
}

#[test]
fn every_stage_of_a_start_is_answered_with_one_address() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let client = network.host(None);
    let reserved = Ipv4Addr::new(10, 77, 0, 42);
    let director = Arc::new(Memory { fixed: BTreeMap::from([(machine(1), reserved)]), ..Memory::default() });
    let _service = server.serve(full("10.77.0.100-10.77.0.109"), tftp(), &director).unwrap();
    let start = client.enter(move || {
        let client = Client::open(68);
        let stages: [(&str, u16, bool, &str); 3] = [
            ("PXEClient:Arch:00000:UNDI:002001", 0, false, "boot/52-54-00-aa-00-01/undionly.kpxe"),
            (
                "PXEClient:Arch:00000:UNDI:002001",
                0,
                true,
                "http://10.77.0.1:8080/boot/52-54-00-aa-00-01/script?uuid=${uuid}&platform=${platform}",
            ),
            ("udhcp 1.35.0", 0, false, ""),
        ];
        for (xid, (class, architecture, ipxe, file)) in (20..).zip(stages) {
            let mut discover = pxe(MessageType::Discover, machine(1), xid, architecture);
            discover.opts_mut().insert(DhcpOption::ClassIdentifier(class.into()));
            if ipxe {
                discover
                    .opts_mut()
                    .insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(175), vec![19, 1, 1])));
            }
            let offer = client.ask(&discover, Ipv4Addr::BROADCAST, 67, |replies| !replies.is_empty()).remove(0);
            assert_eq!(offer.yiaddr(), reserved);
            assert_eq!(boot_file(&offer), file);
            assert_eq!(offer.opts().contains(OptionCode::from(175)), ipxe, "iPXE need not wait for a proxy");
            assert_eq!(has_class(&offer, "PXEClient"), class.starts_with("PXE") && !ipxe);
            let request = request_for(machine(1), xid + 100, reserved);
            let ack = client.ask(&request, Ipv4Addr::BROADCAST, 67, |replies| !replies.is_empty()).remove(0);
            assert_eq!(ack.yiaddr(), reserved);
        }
        let mut elsewhere = message(MessageType::Request, machine(1), 90);
        elsewhere.opts_mut().insert(DhcpOption::RequestedIpAddress(Ipv4Addr::new(192, 168, 1, 9)));
        let nak = client.ask(&elsewhere, Ipv4Addr::BROADCAST, 67, |replies| !replies.is_empty()).remove(0);
        assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
        client.send(&pxe(MessageType::Discover, machine(2), 91, 6), Ipv4Addr::BROADCAST, 67);
    });
    start.join().unwrap();
    assert_eq!(director.saves.load(Ordering::Relaxed), 1, "one write covers the whole start");
    eventually("an architecture without loader is reported", || !director.troubles.lock().unwrap().is_empty());
    assert!(director.troubles.lock().unwrap()[0].contains("architecture 6"));
}

#[test]
fn a_relayed_rack_has_its_own_network() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let relay = network.host(Some("10.77.0.2/24"));
    relay.ip(&["address", "add", "10.78.0.1/24", "dev", "lo"]);
    server.ip(&["route", "add", "10.78.0.0/24", "via", "10.77.0.2"]);
    let director = Arc::new(Memory::default());
    let _service = server.serve(full("10.77.0.100-10.77.0.109"), tftp(), &director).unwrap();
    let relayed = relay.enter(|| {
        let socket = UdpSocket::bind("10.78.0.1:67").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let client = Client { socket };
        let mut discover = pxe(MessageType::Discover, machine(1), 31, 7);
        discover.set_giaddr(Ipv4Addr::new(10, 78, 0, 1));
        let agent = DhcpOption::Unknown(UnknownOption::new(OptionCode::from(82), vec![1, 2, 0xca, 0xfe]));
        discover.opts_mut().insert(agent);
        let offer = client.ask(&discover, SERVER, 67, |replies| !replies.is_empty()).remove(0);
        assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 78, 0, 100));
        assert_eq!(offer.giaddr(), Ipv4Addr::new(10, 78, 0, 1));
        assert!(offer.opts().contains(OptionCode::RelayAgentInformation));
        assert_eq!(boot_file(&offer), "boot/52-54-00-aa-00-01/snponly.efi");
    });
    relayed.join().unwrap();
}

#[test]
fn dnsmasq_relays_a_client_of_another_network_to_us() {
    let (network, rack) = (Network::new(), Network::new());
    let server = network.host(Some("10.77.0.1/24"));
    let relay = network.host(Some("10.77.0.2/24"));
    rack.plug(&relay, "10.78.0.1/24");
    server.ip(&["route", "add", "10.78.0.0/24", "via", "10.77.0.2"]);
    let director = Arc::new(Memory::default());
    let _service = server.serve(full("10.77.0.100-10.77.0.109"), tftp(), &director).unwrap();
    let arguments =
        ["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=", "--leasefile-ro"];
    let _dnsmasq = relay.start("dnsmasq", &[&arguments[..], &["--dhcp-relay=10.78.0.1,10.77.0.1"]].concat());

    let folder = tempfile::tempdir().unwrap();
    let client = rack.host(None);
    let got = udhcpc(&client, folder.path());
    assert!(got.starts_with("10.78.0.100 255.255.255.0"), "{got}");
}

#[test]
fn a_full_pool_and_an_occupied_port_are_explained() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let client = network.host(None);
    let director = Arc::new(Memory::default());
    let _service = server.serve(full("10.77.0.100-10.77.0.101"), tftp(), &director).unwrap();
    let ask = || {
        let client = Client::open(68);
        for number in 1..=3 {
            client.send(&message(MessageType::Discover, machine(number), number.into()), Ipv4Addr::BROADCAST, 67);
        }
    };
    // A datagram may be lost, so clients ask again.
    eventually("the operator is told", || {
        client.enter(ask).join().unwrap();
        !director.troubles.lock().unwrap().is_empty()
    });
    let trouble = director.troubles.lock().unwrap()[0].clone();
    assert!(trouble.contains("10.77.0.0/24") && trouble.contains("enlarge dhcp.subnets"), "{trouble}");

    let other = full("10.77.0.110-10.77.0.111");
    let Err(error) = server.serve(other, tftp(), &director) else { panic!("the port was shared") };
    let error = error.to_string();
    assert!(error.contains("DHCP port 67") && error.contains(&format!("process {}", std::process::id())), "{error}");
    let missing = DhcpConfig { interface: Some("eth9".to_owned()), ..proxy() };
    let Err(error) = server.serve(missing, tftp(), &director) else { panic!("there is no eth9") };
    assert!(error.to_string().contains("eth0"), "{error}");
}

#[test]
fn router_solicitations_are_answered_without_a_route() {
    let network = Network::new();
    let server = network.host(Some("10.77.0.1/24"));
    let client = network.host(None);
    let director = Arc::new(Memory::default());
    // The link-local address must be there before the service starts.
    eventually("IPv6 is up", || server.must("ip", &["-6", "address", "show", "dev", "eth0"]).contains("fe80"));
    let _service = server.serve(proxy(), tftp(), &director).unwrap();
    let soliciting = client.enter(|| {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.set_multicast_if_v6(index).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let socket = UdpSocket::from(socket);
        let routers = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), 0, 0, index);
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            assert!(Instant::now() < deadline, "no router advertisement in 15 s");
            // Fails while duplicate address detection is under way.
            let _ = socket.send_to(&[133, 0, 0, 0, 0, 0, 0, 0], routers);
            let mut buffer = [0; 1_500];
            while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                if buffer[0] == 134 {
                    return (buffer[..bytes].to_vec(), from);
                }
            }
        }
    });
    let (packet, from) = soliciting.join().unwrap();
    assert!(from.to_string().contains("fe80"), "{from}");
    assert_eq!(packet.len(), 24);
    assert_eq!(packet[6..8], [0, 0], "router lifetime");
    assert_eq!(packet[18..], server.mac().0);
    assert_eq!(client.must("ip", &["-6", "route", "show", "default"]), "");
}
