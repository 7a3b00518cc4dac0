//! Finding peers in the local network without a tracker (BEP 14).
//!
//! Whoever's tracker is silent calls into the multicast group. Everybody of
//! the swarm hears it and may dial; a few answer with a call of their own, so
//! that the lonely one can dial them. While trackers answer nobody calls.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use wire::lsd::{GROUP_V4, GROUP_V6, LsdAnnounce, MAX_LSD_BYTES};
use wire::metainfo::InfoHash;

/// A swarm's calls from one node are at least this far apart, but the second.
const CALM: Duration = Duration::from_secs(5);

/// The second call follows the first so soon, because datagrams get lost.
const REPEAT: Duration = Duration::from_secs(1);

/// Answers are spread over this time.
const ANSWER_SPREAD: Duration = Duration::from_secs(1);

/// So many answers of others make ours needless.
const ENOUGH: u32 = 4;

/// Datagrams taken in a second, and of one address; what comes beyond is
/// dropped.
const READ_PER_SECOND: usize = 100;
const READ_PER_SECOND_OF_ONE: usize = 10;

/// The calls of one swarm.
#[derive(Debug)]
pub(crate) struct Lsd {
    socket: UdpSocket,
    group: SocketAddr,
    ways: Vec<Way>,
    listen: SocketAddr,
    names: Vec<InfoHash>,
    cookie: String,
}

/// An interface to call into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    V4(Ipv4Addr),
    /// By its index.
    V6(u32),
}

impl Lsd {
    /// Joins the group on the interface of `listen`, or on all when that is no
    /// certain one.
    pub(crate) fn open(listen: SocketAddr, names: Vec<InfoHash>) -> io::Result<Self> {
        // A dual-stack listener is found by its IPv4 addresses.
        let is_v4 = listen.is_ipv4() || listen.ip().is_unspecified();
        let group = if is_v4 { GROUP_V4 } else { GROUP_V6 };
        let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
        // Other programs of this machine listen to the group too.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        let ways: Vec<Way> = ways(listen.ip(), is_v4)?.into_iter().filter(|way| join(&socket, *way).is_ok()).collect();
        if ways.is_empty() {
            return Err(io::Error::other("no interface takes part in multicast: see `ip maddress`"));
        }
        if is_v4 {
            socket.set_multicast_ttl_v4(1)?;
            // Bound to the group, it hears nothing else.
            socket.bind(&group.into())?;
        } else {
            socket.set_only_v6(true)?;
            socket.set_multicast_hops_v6(1)?;
            socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, group.port(), 0, 0).into())?;
        }
        let socket = UdpSocket::from_std(socket.into())?;
        let cookie = format!("rackswarm-{:016x}", rand::random::<u64>());
        Ok(Self { socket, group, ways, listen, names, cookie })
    }

    /// Hears and calls until nobody takes what is found: every address that was
    /// heard, as `told` puts it. `lonely` is told when no tracker answers.
    pub(crate) async fn run<T>(self, lonely: &Notify, found: mpsc::Sender<T>, told: fn(SocketAddr) -> T) {
        let mut manners = Manners::default();
        let (began, mut datagram) = (Instant::now(), vec![0; MAX_LSD_BYTES + 1]);
        let mut ration = Ration::default();
        loop {
            let due = manners.due.map(|due| began + due);
            tokio::select! {
                received = self.socket.recv_from(&mut datagram) => {
                    let Ok((bytes, from)) = received else {
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    if !ration.takes(from.ip(), began.elapsed()) {
                        continue;
                    }
                    if let Some(address) = self.heard(&datagram[..bytes], from) {
                        manners.heard(began.elapsed(), rand::random());
                        if found.send(told(address)).await.is_err() {
                            return;
                        }
                    }
                }
                () = lonely.notified() => manners.lonely(began.elapsed()),
                () = sleep_until(due.unwrap_or(began)), if due.is_some() => {
                    manners.called(began.elapsed());
                    self.call().await;
                }
            }
        }
    }

    /// Who calls for our swarm, unless it is ourselves.
    fn heard(&self, datagram: &[u8], from: SocketAddr) -> Option<SocketAddr> {
        let call = LsdAnnounce::decode(datagram).ok()?;
        let ours = call.hashes.iter().any(|name| self.names.contains(name));
        let mut address = from;
        address.set_port(call.port);
        (ours && call.cookie.as_ref() != Some(&self.cookie) && address != self.listen).then_some(address)
    }

    async fn call(&self) {
        let call =
            LsdAnnounce { port: self.listen.port(), hashes: self.names.clone(), cookie: Some(self.cookie.clone()) };
        let datagram = call.encode(self.group);
        for way in &self.ways {
            let chosen = match *way {
                Way::V4(address) => SockRef::from(&self.socket).set_multicast_if_v4(&address),
                Way::V6(index) => SockRef::from(&self.socket).set_multicast_if_v6(index),
            };
            let sent = match chosen {
                Ok(()) => self.socket.send_to(&datagram, self.group).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::debug!(?way, %error, "a call into the local network was not sent");
            }
        }
    }
}

/// Datagrams of the current second, so that nobody's flood keeps us from hearing
/// others.
#[derive(Debug, Default)]
struct Ration {
    second: u64,
    senders: Vec<IpAddr>,
}

impl Ration {
    /// Whether a datagram that comes now is taken.
    fn takes(&mut self, from: IpAddr, now: Duration) -> bool {
        if self.second != now.as_secs() {
            self.second = now.as_secs();
            self.senders.clear();
        }
        let of_one = self.senders.iter().filter(|sender| **sender == from).count();
        let takes = self.senders.len() < READ_PER_SECOND && of_one < READ_PER_SECOND_OF_ONE;
        if takes {
            self.senders.push(from);
        }
        takes
    }
}

/// When to call: not often, and not all at once.
#[derive(Debug, Default)]
struct Manners {
    /// The next call.
    due: Option<Duration>,
    /// No call but the repetition before this.
    calm_until: Duration,
    /// The call that is due may be left to others, of whom so many called.
    answers: Option<u32>,
    /// Calls so far.
    calls: u32,
}

impl Manners {
    /// No tracker answers.
    fn lonely(&mut self, now: Duration) {
        let at = now.max(self.calm_until);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
        self.answers = None;
    }

    /// Somebody else called for the swarm; `spread` is chance.
    fn heard(&mut self, now: Duration, spread: u32) {
        match (&mut self.answers, self.due) {
            (Some(answers), Some(_)) => {
                *answers += 1;
                if *answers >= ENOUGH {
                    (self.due, self.answers, self.calm_until) = (None, None, now + CALM);
                }
            }
            (None, None) if now >= self.calm_until => {
                self.due = Some(now + ANSWER_SPREAD.mul_f64(f64::from(spread) / f64::from(u32::MAX)));
                self.answers = Some(0);
            }
            _ => {}
        }
    }

    /// A call goes out now.
    fn called(&mut self, now: Duration) {
        let was_answer = self.answers.take().is_some();
        self.calls = self.calls.saturating_add(1);
        self.due = (self.calls == 1 && !was_answer).then_some(now + REPEAT);
        self.calm_until = now + CALM;
    }
}

/// The interfaces by which calls go. Loopback only when asked for by address.
fn ways(listen: IpAddr, is_v4: bool) -> io::Result<Vec<Way>> {
    if let IpAddr::V4(address) = listen
        && !listen.is_unspecified()
    {
        return Ok(vec![Way::V4(address)]);
    }
    let mut ways = Vec::new();
    for interface in getifaddrs()? {
        let usable = interface.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| SocketAddrV4::from(*address));
        let v6 = address.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address));
        let way = match (v4, v6) {
            (Some(address), _) if is_v4 && usable => Some(Way::V4(*address.ip())),
            (_, Some(address)) if !is_v4 && IpAddr::V6(*address.ip()) == listen => {
                if_nametoindex(interface.interface_name.as_str()).ok().map(Way::V6)
            }
            _ => None,
        };
        ways.extend(way.filter(|way| !ways.contains(way)));
    }
    Ok(ways)
}

fn join(socket: &Socket, way: Way) -> io::Result<()> {
    let joined = match (way, GROUP_V4.ip(), GROUP_V6.ip()) {
        (Way::V4(address), IpAddr::V4(group), _) => socket.join_multicast_v4(&group, &address),
        (Way::V6(index), _, IpAddr::V6(group)) => socket.join_multicast_v6(&group, index),
        _ => Ok(()),
    };
    joined.inspect_err(|error| tracing::debug!(?way, %error, "an interface takes no part in multicast"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_lonely_call_at_once_twice_and_then_rarely() {
        let mut manners = Manners::default();
        let mut calls = Vec::new();
        for now in (0..20_000).step_by(100) {
            manners.lonely(at(now));
            if manners.due.is_some_and(|due| due <= at(now)) {
                manners.called(at(now));
                calls.push(now);
            }
        }
        assert_eq!(calls, [0, 1000, 6000, 11_000, 16_000]);
    }

    #[test]
    fn a_call_is_answered_within_a_second_by_a_few() {
        let mut hearers: Vec<Manners> = (0..200).map(|_| Manners::default()).collect();
        let spread = |at: usize| (at as u32).wrapping_mul(0x9e37_79b9);
        hearers.iter_mut().enumerate().for_each(|(at_, manners)| manners.heard(at(0), spread(at_)));
        let mut answers = 0;
        for now in 0..3000 {
            for caller in 0..hearers.len() {
                if hearers[caller].due.is_some_and(|due| due <= at(now)) {
                    hearers[caller].called(at(now));
                    answers += 1;
                    for (other, manners) in hearers.iter_mut().enumerate() {
                        if other != caller {
                            manners.heard(at(now), spread(other));
                        }
                    }
                }
            }
        }
        assert_eq!(answers, ENOUGH);
        assert!(hearers.iter().all(|manners| manners.due.is_none()), "nobody answers answers");
    }

    #[test]
    fn a_flood_of_one_address_leaves_room_for_others() {
        let mut ration = Ration::default();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let taken = (0..1000).filter(|_| ration.takes(address(1), at(100))).count();
        assert_eq!(taken, READ_PER_SECOND_OF_ONE);
        assert!(ration.takes(address(2), at(100)));
        let taken = (0..200).filter(|last| ration.takes(address(*last), at(200))).count();
        assert_eq!(taken, READ_PER_SECOND - READ_PER_SECOND_OF_ONE - 1);
        assert!(ration.takes(address(1), at(1100)), "the next second");
    }

    async fn open(name: u8, port: u16) -> Lsd {
        Lsd::open(SocketAddr::from(([127, 0, 0, 1], port)), vec![InfoHash([name; 20])]).unwrap()
    }

    /// Loopback passes multicast to those who join on its address.
    #[tokio::test]
    async fn a_lonely_node_finds_its_swarm_and_nobody_else() {
        let (ours, other) = (rand::random(), rand::random());
        let (report, mut reports) = mpsc::channel(64);
        for (name, port, is_lonely) in [(ours, 1001, false), (other, 1002, false), (ours, 1003, true)] {
            let (lsd, report) = (open(name, port).await, report.clone());
            tokio::spawn(async move {
                let lonely = Notify::new();
                if is_lonely {
                    lonely.notify_one();
                }
                let (found, mut finds) = mpsc::channel(64);
                let forward = async {
                    while let Some(found) = finds.recv().await {
                        report.send((port, found)).await.unwrap();
                    }
                };
                tokio::join!(lsd.run(&lonely, found, |address| address.port()), forward)
            });
        }
        let mut heard = Vec::new();
        while !heard.contains(&(1003, 1001)) {
            heard.push(timeout(Duration::from_secs(10), reports.recv()).await.unwrap().unwrap());
        }
        assert!(heard.contains(&(1001, 1003)));
        assert!(heard.iter().all(|(_, found)| [1001, 1003].contains(found)), "{heard:?}");
    }

    #[tokio::test]
    async fn nonsense_and_our_own_calls_are_passed_over() {
        let lsd = open(1, 1001).await;
        let from: SocketAddr = "10.0.0.9:6771".parse().unwrap();
        let call = |port, cookie: &str| {
            let hashes = vec![InfoHash([1; 20])];
            LsdAnnounce { port, hashes, cookie: Some(cookie.to_owned()) }.encode(GROUP_V4)
        };
        assert_eq!(lsd.heard(&call(7, "x"), from), Some("10.0.0.9:7".parse().unwrap()));
        assert_eq!(lsd.heard(&call(7, &lsd.cookie.clone()), from), None);
        assert_eq!(lsd.heard(&call(1001, "x"), "127.0.0.1:6771".parse().unwrap()), None);
        assert_eq!(lsd.heard(b"GET / HTTP/1.1\r\n\r\n", from), None);
        assert_eq!(lsd.heard(&[0xff; 100], from), None);
    }
}
