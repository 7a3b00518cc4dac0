//! The DHCP sockets of one interface.
//!
//! One task owns the leases and answers at once whatever needs no storage.
//! Acknowledgements that need it go to a second task, which stores everything
//! that has gathered with one call and then sends the answers: a thousand
//! machines that start together cost a few writes, and no machine is told about
//! a lease that could be lost.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet::ids::{Mac, Millis};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use wire::dhcp::{REQUEST_MAX_BYTES, Reply, ReplyKind, Request, RequestKind};

use crate::dhcp::answer::{self, PROXY_PORT, ProxyPort, SERVER_PORT, Site};
use crate::dhcp::config::{DhcpConfig, Mode};
use crate::dhcp::leases::{Leases, Outcome, Silence};
use crate::director::{Director, Lease, Sighting, Stage};
use crate::error::Error;
use crate::firmware::Asker;
use crate::interface::Interface;
use crate::socket::{bind, receive, send};
use crate::tftp::TftpConfig;

/// Acknowledgements that may wait for storage; a machine beyond it asks again.
const SAVE_QUEUE_MAX: usize = 4_096;
/// Acknowledgements stored with one call.
const SAVE_BATCH_MAX: usize = 512;
/// A machine's same trouble is reported once in this time, milliseconds.
const TROUBLE_PAUSE_MS: u64 = 30_000;
/// Machines whose troubles are remembered.
const TROUBLES_MAX: usize = 4_096;
/// Wait after a failed receive; an interface that is down fails at once.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Failed receives in a row before the server gives up.
const FAILURES_MAX: u32 = 60;

/// A DHCP server with open ports.
#[derive(Debug)]
pub struct Server<D> {
    config: DhcpConfig,
    link: Arc<Link>,
    proxy: Option<UdpSocket>,
    leases: Leases,
    director: Arc<D>,
    troubles: Troubles,
}

/// Where replies leave.
#[derive(Debug)]
struct Link {
    site: Site,
    socket: UdpSocket,
}

/// An acknowledgement that waits until its lease is stored.
#[derive(Debug)]
struct Waiting {
    save: Vec<Lease>,
    /// Nothing is sent for a release.
    answer: Option<(Vec<u8>, SocketAddrV4)>,
    sighting: Sighting,
}

impl<D: Director> Server<D> {
    /// Opens the ports and, in mode `full`, loads the stored leases.
    ///
    /// # Errors
    /// [`Error`] for a configuration, an interface or a port that cannot be
    /// used, and when the leases cannot be loaded.
    pub async fn bind(config: DhcpConfig, tftp: TftpConfig, http_port: u16, director: Arc<D>) -> Result<Self, Error> {
        config.check()?;
        let name = match (&config.interface, config.mode) {
            (Some(name), Mode::Proxy | Mode::Full) => name,
            _ => return Err(Error::Config("dhcp.mode is off, there is nothing to serve".to_owned())),
        };
        let server = Interface::find(name)?.server_address(config.server_address)?;
        if config.mode == Mode::Full && config.subnet_of(Ipv4Addr::UNSPECIFIED, server).is_none() {
            // Every machine may be behind a relay, so this is no error.
            warn!(%server, "no dhcp.subnets holds our own address: machines on {name} itself get no address");
        }
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let socket = bind("DHCP", any(SERVER_PORT), Some(name))?;
        let proxy = match config.mode {
            Mode::Proxy => Some(bind("DHCP proxy", any(PROXY_PORT), Some(name))?),
            _ => None,
        };
        let mut leases = Leases::new(&config, server);
        if config.mode == Mode::Full {
            let stored = director.load_leases().await.map_err(Error::Leases)?;
            info!(leases = stored.len(), "DHCP leases loaded");
            leases.restore(stored);
        }
        let link = Arc::new(Link { site: Site { server, http_port, tftp }, socket });
        Ok(Self { config, link, proxy, leases, director, troubles: Troubles::default() })
    }

    /// Our address as the machines see it.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.link.site
    }

    /// Serves until `stop` is ready, then stores and answers what is waiting.
    ///
    /// # Errors
    /// [`Error::Socket`] when the interface stays unusable for a minute.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let (queue, waiting) = mpsc::channel(SAVE_QUEUE_MAX);
        let (stored, mut confirmed) = mpsc::channel(SAVE_QUEUE_MAX);
        let saver = tokio::spawn(save(waiting, stored, Arc::clone(&self.link), Arc::clone(&self.director)));
        let result = self.serve(stop, &queue, &mut confirmed).await;
        drop((queue, confirmed));
        if let Err(failed) = saver.await {
            warn!(%failed, "the task that stores DHCP leases ended badly");
        }
        result
    }

    async fn serve(
        &mut self,
        stop: impl Future<Output = ()>,
        queue: &mpsc::Sender<Waiting>,
        confirmed: &mut mpsc::Receiver<Vec<Lease>>,
    ) -> Result<(), Error> {
        tokio::pin!(stop);
        let link = Arc::clone(&self.link);
        let proxy = self.proxy.take();
        let (mut buffer, mut proxy_buffer) = ([0; REQUEST_MAX_BYTES + 1], [0; REQUEST_MAX_BYTES + 1]);
        let mut failures = 0;
        loop {
            let (received, port) = tokio::select! {
                () = &mut stop => return Ok(()),
                Some(leases) = confirmed.recv() => {
                    self.leases.saved(&leases);
                    continue;
                }
                received = receive(&link.socket, &mut buffer) => (received, ProxyPort::Dhcp),
                received = receive_some(proxy.as_ref(), &mut proxy_buffer) => (received, ProxyPort::Pxe),
            };
            match received {
                Ok(received) => {
                    failures = 0;
                    let datagram = match port {
                        ProxyPort::Dhcp => &buffer[..received.bytes],
                        ProxyPort::Pxe => &proxy_buffer[..received.bytes],
                    };
                    self.arrived(datagram, received.from, port, proxy.as_ref(), queue).await;
                }
                Err(cause) if failures < FAILURES_MAX => {
                    warn!(%cause, "DHCP request cannot be received");
                    failures += 1;
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
                Err(cause) => return Err(Error::Socket { service: "DHCP", cause }),
            }
        }
    }

    async fn arrived(
        &mut self,
        datagram: &[u8],
        from: SocketAddrV4,
        port: ProxyPort,
        proxy: Option<&UdpSocket>,
        queue: &mpsc::Sender<Waiting>,
    ) {
        let request = match Request::parse(datagram) {
            Ok(request) => request,
            Err(why) => {
                debug!(%from, %why, "DHCP datagram ignored");
                return;
            }
        };
        let asker = answer::asker(&request);
        debug!(mac = %Mac(request.mac), kind = ?request.kind, asker = asker.as_str(), giaddr = %request.giaddr, "DHCP");
        if let Asker::Unsupported(architecture) = asker {
            let sentence =
                format!("asks to boot with architecture {architecture} (DHCP option 93), for which there is no loader");
            self.trouble(&request, &sentence);
        }
        if self.config.mode == Mode::Full {
            self.answer_in_full(&request, asker, from, queue).await;
        } else {
            self.answer_as_proxy(&request, asker, from, port, proxy).await;
        }
    }

    async fn answer_as_proxy(
        &mut self,
        request: &Request,
        asker: Asker,
        from: SocketAddrV4,
        port: ProxyPort,
        proxy: Option<&UdpSocket>,
    ) {
        let Some(reply) = answer::proxy(&self.link.site, request, port) else { return };
        let Some(bytes) = self.encoded(&reply, request) else { return };
        let to = answer::destination(request, reply.kind, from, port);
        let socket = match (port, proxy) {
            (ProxyPort::Pxe, Some(proxy)) => proxy,
            _ => &self.link.socket,
        };
        if sent(socket, &bytes, self.link.site.server, to).await {
            self.director.sighted(sighting(request, asker, Stage::Proxied));
        }
    }

    async fn answer_in_full(
        &mut self,
        request: &Request,
        asker: Asker,
        from: SocketAddrV4,
        queue: &mpsc::Sender<Waiting>,
    ) {
        let to = |kind| answer::destination(request, kind, from, ProxyPort::Dhcp);
        match self.leases.step(now(), request, self.director.as_ref()) {
            Outcome::Offer(address) => {
                let Some(bytes) = self.reply_with(request, ReplyKind::Offer, address) else { return };
                if sent(&self.link.socket, &bytes, self.link.site.server, to(ReplyKind::Offer)).await {
                    self.director.sighted(sighting(request, asker, Stage::Offered(address)));
                }
            }
            Outcome::Ack { address, save } => {
                let Some(bytes) = self.reply_with(request, ReplyKind::Ack, address) else { return };
                let sighting = sighting(request, asker, Stage::Leased(address));
                let answer = Some((bytes, to(ReplyKind::Ack)));
                enqueue(queue, Waiting { save, answer, sighting });
            }
            Outcome::Inform => {
                let Some(subnet) = self.config.subnet_of(request.giaddr, request.ciaddr) else { return };
                let reply = answer::parameters(&self.link.site, subnet, request);
                let Some(bytes) = self.encoded(&reply, request) else { return };
                sent(&self.link.socket, &bytes, self.link.site.server, to(ReplyKind::Ack)).await;
            }
            Outcome::Nak(why) => {
                info!(mac = %Mac(request.mac), why, "DHCP address refused");
                let Some(bytes) = self.encoded(&answer::refusal(&self.link.site, why), request) else { return };
                sent(&self.link.socket, &bytes, self.link.site.server, to(ReplyKind::Nak)).await;
            }
            Outcome::Released { address, save } => {
                let sighting = sighting(request, asker, Stage::Released(address));
                enqueue(queue, Waiting { save, answer: None, sighting });
            }
            Outcome::Declined { address, save } => {
                let sentence =
                    format!("found {address} in use by something that we did not give it to; it rests for ten minutes");
                self.trouble(request, &sentence);
                let sighting = sighting(request, asker, Stage::Declined(address));
                enqueue(queue, Waiting { save, answer: None, sighting });
            }
            Outcome::Silent(silence) => self.explain(request, silence),
        }
    }

    /// Silence that an operator can do something about is reported.
    fn explain(&mut self, request: &Request, silence: Silence) {
        let sentence = match silence {
            Silence::OtherServer if request.kind == RequestKind::Request => {
                "took the offer of another DHCP server although dhcp.mode is full: switch the other server off, or use proxy".to_owned()
            }
            Silence::NoSubnet(near) => {
                format!("asks for an address from the network of {near}, which no [[dhcp.subnets]] holds: add one")
            }
            Silence::Exhausted(network) => {
                let (used, size) = self.leases.usage(now());
                format!(
                    "gets no address: all of {network} are in use ({used} of {size} in all ranges): enlarge dhcp.subnets ranges or shorten dhcp.lease_seconds"
                )
            }
            Silence::ReservedInUse { address, holder } => format!(
                "gets no address: its reserved address {address} is still held by {holder}; it is free when that lease ends"
            ),
            Silence::OtherServer | Silence::NoRecord | Silence::Malformed => {
                debug!(mac = %Mac(request.mac), ?silence, "DHCP request not answered");
                return;
            }
        };
        self.trouble(request, &sentence);
    }

    fn reply_with(&mut self, request: &Request, kind: ReplyKind, address: Ipv4Addr) -> Option<Vec<u8>> {
        let subnet = self.config.subnets.iter().find(|subnet| subnet.network.contains(&address))?;
        let seconds = self.config.lease_seconds;
        let reply = answer::with_address(&self.link.site, subnet, seconds, request, kind, address);
        self.encoded(&reply, request)
    }

    fn encoded(&mut self, reply: &Reply, request: &Request) -> Option<Vec<u8>> {
        match reply.encode(request) {
            Ok(bytes) => Some(bytes),
            Err(too_long) => {
                self.trouble(request, &too_long.to_string());
                None
            }
        }
    }

    fn trouble(&mut self, request: &Request, sentence: &str) {
        let mac = Mac(request.mac);
        if self.troubles.is_new(now(), mac, sentence) {
            warn!(%mac, "{sentence}");
            self.director.trouble(Some(mac), sentence);
        }
    }
}

/// Stores what has gathered, then answers.
async fn save<D: Director>(
    mut waiting: mpsc::Receiver<Waiting>,
    stored: mpsc::Sender<Vec<Lease>>,
    link: Arc<Link>,
    director: Arc<D>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, SAVE_BATCH_MAX).await > 0 {
        let leases: Vec<Lease> = batch.iter().flat_map(|one: &Waiting| one.save.iter().copied()).collect();
        if !leases.is_empty() {
            if let Err(cause) = director.save_leases(leases.clone()).await {
                let sentence = format!("gets no answer over DHCP, because its lease cannot be stored: {cause}");
                warn!(machines = batch.len(), "{sentence}");
                for one in batch.drain(..) {
                    director.trouble(Some(one.sighting.mac), &sentence);
                }
                continue;
            }
            // The receiver is gone only when the server stops.
            let _ = stored.try_send(leases);
        }
        for one in batch.drain(..) {
            if let Some((bytes, to)) = one.answer
                && !sent(&link.socket, &bytes, link.site.server, to).await
            {
                continue;
            }
            director.sighted(one.sighting);
        }
    }
}

fn enqueue(queue: &mpsc::Sender<Waiting>, waiting: Waiting) {
    if let Err(full) = queue.try_send(waiting) {
        debug!(%full, "DHCP acknowledgement dropped, the machine asks again");
    }
}

async fn receive_some(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> std::io::Result<crate::socket::Received> {
    match socket {
        Some(socket) => receive(socket, buffer).await,
        None => std::future::pending().await,
    }
}

async fn sent(socket: &UdpSocket, bytes: &[u8], from: Ipv4Addr, to: SocketAddrV4) -> bool {
    match send(socket, bytes, from, to).await {
        Ok(()) => true,
        Err(cause) => {
            warn!(%to, %cause, "DHCP reply cannot be sent");
            false
        }
    }
}

fn sighting(request: &Request, asker: Asker, stage: Stage) -> Sighting {
    Sighting { mac: Mac(request.mac), asker, uuid: answer::machine_uuid(request), stage }
}

/// Leases outlive this process, so they are counted by the wall clock.
fn now() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Keeps a machine that repeats its request from repeating its trouble.
#[derive(Debug, Default)]
struct Troubles(BTreeMap<Mac, (Millis, String)>);

impl Troubles {
    fn is_new(&mut self, now: Millis, mac: Mac, sentence: &str) -> bool {
        if let Some((last, known)) = self.0.get(&mac)
            && known == sentence
            && now.since(*last) < TROUBLE_PAUSE_MS
        {
            return false;
        }
        if self.0.len() >= TROUBLES_MAX {
            self.0.clear();
        }
        self.0.insert(mac, (now, sentence.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once_in_a_while() {
        let mut troubles = Troubles::default();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert!(troubles.is_new(Millis(0), mac, "no address"));
        assert!(!troubles.is_new(Millis(10_000), mac, "no address"));
        assert!(troubles.is_new(Millis(10_000), mac, "no loader"));
        assert!(troubles.is_new(Millis(40_000), mac, "no loader"));
        assert!(troubles.is_new(Millis(40_000), Mac([2, 0, 0, 0, 0, 2]), "no loader"));
    }
}
