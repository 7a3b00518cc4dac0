//! The TFTP socket, and one task with a port of its own for each transfer.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use wire::tftp::{ErrorCode, FileRequest, Mode, Packet, REQUEST_MAX_BYTES};

use crate::director::Director;
use crate::error::Error;
use crate::socket::{bind, receive, send};
use crate::tftp::TftpConfig;
use crate::tftp::loaders::{LoaderName, Loaders, NotServed};
use crate::tftp::transfer::{End, Input, Transfer};

/// Longest packet that a reading client sends after its request: an error with
/// its text.
const ANSWER_MAX_BYTES: usize = 600;
/// Wait after a failed receive on the well-known port.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Failed receives in a row before the server gives up.
const FAILURES_MAX: u32 = 60;

/// A TFTP server with an open port.
#[derive(Debug)]
pub struct Server<D> {
    socket: UdpSocket,
    shared: Arc<Shared<D>>,
    transfers_max: usize,
}

#[derive(Debug)]
struct Shared<D> {
    loaders: Loaders,
    director: Arc<D>,
}

impl<D: Director> Server<D> {
    /// Opens the port.
    ///
    /// # Errors
    /// [`Error`] for a configuration or a port that cannot be used.
    pub fn bind(config: &TftpConfig, loaders: Loaders, director: Arc<D>) -> Result<Self, Error> {
        config.check()?;
        let socket = bind("TFTP", SocketAddrV4::new(config.address, config.port), None)?;
        Ok(Self { socket, shared: Arc::new(Shared { loaders, director }), transfers_max: config.transfers_max })
    }

    /// Serves until `stop` is ready; transfers that are under way are ended.
    ///
    /// # Errors
    /// [`Error::Socket`] when the port stays unusable for a minute.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        tokio::pin!(stop);
        let mut running = Running::default();
        let mut buffer = [0; REQUEST_MAX_BYTES + 1];
        let mut failures = 0;
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(ended) = running.tasks.join_next() => running.ended(ended),
                received = receive(&self.socket, &mut buffer) => match received {
                    Ok(received) => {
                        failures = 0;
                        let (from, local) = (received.from, received.local);
                        if let Some(request) = self.asked(&buffer[..received.bytes], from, local).await {
                            self.start(&mut running, request, from, local);
                        }
                    }
                    Err(cause) if failures < FAILURES_MAX => {
                        warn!(%cause, "TFTP request cannot be received");
                        failures += 1;
                        tokio::time::sleep(FAILURE_PAUSE).await;
                    }
                    Err(cause) => return Err(Error::Socket { service: "TFTP", cause }),
                },
            }
        }
        running.tasks.shutdown().await;
        Ok(())
    }

    fn start(&self, running: &mut Running, request: FileRequest, client: SocketAddrV4, local: Ipv4Addr) {
        if running.is_repeated(client, &request) {
            return;
        }
        if running.tasks.len() >= self.transfers_max {
            debug!(%client, "TFTP request dropped, {} transfers are under way", running.tasks.len());
            return;
        }
        let shared = Arc::clone(&self.shared);
        running.begin(client, request, |request, heard| async move {
            shared.serve(request, client, local, &heard).await;
        });
    }

    /// The read request in a datagram; everything else is answered here.
    async fn asked(&self, datagram: &[u8], from: SocketAddrV4, local: Ipv4Addr) -> Option<FileRequest> {
        let refusal = match Packet::parse(datagram) {
            Ok(Packet::Read(request)) if request.mode == Mode::Octet => return Some(request),
            Ok(Packet::Read(_)) => Packet::error(
                ErrorCode::IllegalOperation,
                "boot loaders are binary: ask in octet mode (binary, image), netascii would damage them",
            ),
            Ok(Packet::Write(_)) => {
                Packet::error(ErrorCode::AccessViolation, "this server takes no files, it only sends")
            }
            Ok(_) | Err(_) => {
                debug!(%from, "TFTP datagram ignored");
                return None;
            }
        };
        if let Err(cause) = send(&self.socket, &refusal.encode(), local, from).await {
            debug!(%from, %cause, "TFTP refusal cannot be sent");
        }
        None
    }
}

/// The transfers under way, by the client's address and port.
#[derive(Debug, Default)]
struct Running {
    tasks: JoinSet<(SocketAddrV4, u64)>,
    clients: BTreeMap<SocketAddrV4, Client>,
    begun: u64,
}

#[derive(Debug)]
struct Client {
    request: FileRequest,
    /// The client has answered the first packet.
    heard: Arc<AtomicBool>,
    number: u64,
    task: AbortHandle,
}

impl Running {
    /// The same request again, before the first answer can have arrived: the
    /// transfer that is under way answers it. Any other request from that port
    /// is a new transfer; firmware that has asked for the size goes on from the
    /// same port before its farewell to the first transfer was read.
    fn is_repeated(&self, client: SocketAddrV4, request: &FileRequest) -> bool {
        self.clients
            .get(&client)
            .is_some_and(|running| running.request == *request && !running.heard.load(Ordering::Relaxed))
    }

    fn begin<F>(
        &mut self,
        client: SocketAddrV4,
        request: FileRequest,
        transfer: impl FnOnce(FileRequest, Arc<AtomicBool>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.begun += 1;
        let (number, heard) = (self.begun, Arc::new(AtomicBool::new(false)));
        let work = transfer(request.clone(), Arc::clone(&heard));
        let task = self.tasks.spawn(async move {
            work.await;
            (client, number)
        });
        if let Some(former) = self.clients.insert(client, Client { request, heard, number, task }) {
            former.task.abort();
        }
    }

    fn ended(&mut self, ended: Result<(SocketAddrV4, u64), JoinError>) {
        match ended {
            Ok((client, number)) if self.clients.get(&client).is_some_and(|running| running.number == number) => {
                self.clients.remove(&client);
            }
            Err(failed) if failed.is_panic() => warn!(%failed, "TFTP transfer ended badly"),
            Ok(_) | Err(_) => {}
        }
    }
}

impl<D: Director> Shared<D> {
    async fn serve(&self, request: FileRequest, client: SocketAddrV4, local: Ipv4Addr, heard: &AtomicBool) {
        let opened = async {
            let name = LoaderName::parse(&request.file)?;
            let content = self.loaders.read(&name).await?;
            Ok((name, content))
        };
        let opened: Result<(LoaderName, Bytes), NotServed> = opened.await;
        let socket = match connect(local, client).await {
            Ok(socket) => socket,
            Err(cause) => {
                warn!(%client, %cause, "TFTP transfer has no socket");
                return;
            }
        };
        match opened {
            Ok((name, content)) => {
                let ended = transfer(&socket, content, &request, heard).await;
                self.report(&name, client, ended);
            }
            Err(why) => self.refuse(&socket, &request.file, client, &why).await,
        }
    }

    async fn refuse(&self, socket: &UdpSocket, file: &str, client: SocketAddrV4, why: &NotServed) {
        let code = match why {
            NotServed::NotFound => ErrorCode::NotFound,
            NotServed::NotAllowed => ErrorCode::AccessViolation,
            NotServed::TooLarge | NotServed::Unreadable(_) => ErrorCode::Undefined,
        };
        info!(%client, file, %why, "TFTP file refused");
        // GRUB and shim ask for many files that need not be there.
        if *why != NotServed::NotFound {
            self.director.trouble(mac_of(file), &format!("asked for the boot file `{file}` and was refused: {why}"));
        } else if mac_of(file).is_some() {
            let sentence = format!("asked for the boot file `{file}`: {why} in the folder tftp.root");
            self.director.trouble(mac_of(file), &sentence);
        }
        if let Err(cause) = socket.send(&Packet::error(code, &why.to_string()).encode()).await {
            debug!(%client, %cause, "TFTP refusal cannot be sent");
        }
    }

    fn report(&self, name: &LoaderName, client: SocketAddrV4, ended: io::Result<(End, u64)>) {
        let file = name.file.as_str();
        match ended {
            Ok((End::Complete, bytes)) => {
                info!(%client, file, bytes, "TFTP file sent");
                self.director.loader_sent(name.mac, file, bytes);
            }
            Ok((End::Refused { code, text, bytes }, _)) => {
                debug!(%client, file, code, text, bytes, "TFTP transfer ended by the client");
            }
            Ok((End::Silent { bytes }, of)) => {
                let sentence = format!("stopped answering after {bytes} of {of} bytes of the boot file `{file}`");
                warn!(%client, "{sentence}");
                self.director.trouble(name.mac, &sentence);
            }
            Err(cause) => debug!(%client, file, %cause, "TFTP transfer ended, the client's port is closed"),
        }
    }
}

fn mac_of(file: &str) -> Option<fleet::ids::Mac> {
    LoaderName::parse(file).ok().and_then(|name| name.mac)
}

/// A port of its own is the server's transfer identifier (RFC 1350 section 4).
/// Connected, so that the kernel drops packets of everybody else.
async fn connect(local: Ipv4Addr, client: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(local, 0)).await?;
    socket.connect(client).await?;
    Ok(socket)
}

/// Runs a transfer to its end; gives back the size of the file too.
async fn transfer(
    socket: &UdpSocket,
    content: Bytes,
    request: &FileRequest,
    heard: &AtomicBool,
) -> io::Result<(End, u64)> {
    let start = Instant::now();
    let mut out = Vec::new();
    let mut transfer = Transfer::begin(Duration::ZERO, content, request, &mut out);
    let mut buffer = [0; ANSWER_MAX_BYTES];
    loop {
        for packet in out.drain(..) {
            socket.send(&packet).await?;
        }
        let ended = tokio::select! {
            received = socket.recv(&mut buffer) => {
                heard.store(true, Ordering::Relaxed);
                transfer.step(start.elapsed(), Input::Datagram(&buffer[..received?]), &mut out)
            }
            () = sleep_until(start + transfer.deadline()) => transfer.step(start.elapsed(), Input::Tick, &mut out),
        };
        if let Some(end) = ended {
            return Ok((end, transfer.file_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Mutex;

    use fleet::ids::Mac;
    use tokio::sync::oneshot;
    use tokio::time::timeout;
    use wire::tftp::Options;

    use super::*;
    use crate::director::{DirectorError, Lease, Reservations, Sighting};

    #[derive(Debug, Default)]
    struct Heard {
        sent: Mutex<Vec<(Option<Mac>, String, u64)>>,
        troubles: Mutex<Vec<String>>,
    }

    impl Reservations for Heard {
        fn reservation(&self, mac: Mac) -> Option<Ipv4Addr> {
            BTreeMap::new().reservation(mac)
        }
        fn reserved_for(&self, address: Ipv4Addr) -> Option<Mac> {
            BTreeMap::new().reserved_for(address)
        }
    }

    impl Director for Heard {
        fn sighted(&self, _: Sighting) {}
        fn loader_sent(&self, mac: Option<Mac>, file: &str, bytes: u64) {
            self.sent.lock().unwrap().push((mac, file.to_owned(), bytes));
        }
        fn trouble(&self, _: Option<Mac>, sentence: &str) {
            self.troubles.lock().unwrap().push(sentence.to_owned());
        }
        async fn save_leases(&self, _: Vec<Lease>) -> Result<(), DirectorError> {
            Ok(())
        }
        async fn load_leases(&self) -> Result<Vec<Lease>, DirectorError> {
            Ok(Vec::new())
        }
    }

    struct Rig {
        heard: Arc<Heard>,
        server: SocketAddrV4,
        client: UdpSocket,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<Result<(), Error>>,
        _folder: tempfile::TempDir,
    }

    impl Rig {
        async fn start(transfers_max: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("loader"), vec![7; 1_000]).unwrap();
            let heard = Arc::new(Heard::default());
            let config = TftpConfig {
                address: Ipv4Addr::LOCALHOST,
                port: 0,
                root: folder.path().to_owned(),
                transfers_max,
                ..TftpConfig::default()
            };
            let loaders = Loaders::open(folder.path()).unwrap();
            let server = Server::bind(&config, loaders, Arc::clone(&heard)).unwrap();
            let std::net::SocketAddr::V4(address) = server.socket.local_addr().unwrap() else { panic!("not IPv4") };
            let (stop, stopped) = oneshot::channel();
            let task = tokio::spawn(server.run(async {
                let _ = stopped.await;
            }));
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            Self { heard, server: address, client, stop, task, _folder: folder }
        }

        async fn ask(&self, packet: &Packet<'_>) -> (Vec<u8>, std::net::SocketAddr) {
            self.client.send_to(&packet.encode(), self.server).await.unwrap();
            self.next().await.expect("no answer")
        }

        async fn next(&self) -> Option<(Vec<u8>, std::net::SocketAddr)> {
            let mut buffer = [0; 2_000];
            let received = timeout(Duration::from_secs(5), self.client.recv_from(&mut buffer)).await.ok()?;
            let (bytes, from) = received.unwrap();
            Some((buffer[..bytes].to_vec(), from))
        }

        async fn end(self) -> Arc<Heard> {
            self.stop.send(()).unwrap();
            self.task.await.unwrap().unwrap();
            self.heard
        }
    }

    fn read(file: &str, mode: Mode) -> Packet<'static> {
        Packet::Read(FileRequest { file: file.to_owned(), mode, options: Options::default() })
    }

    #[tokio::test]
    async fn a_loader_is_sent_from_a_new_port_and_reported() {
        let rig = Rig::start(4).await;
        let (data, port) = rig.ask(&read("boot/52-54-00-01-02-03/loader", Mode::Octet)).await;
        assert_ne!(port, rig.server.into());
        assert_eq!(data.len(), 516);
        rig.client.send_to(&Packet::Ack { block: 1 }.encode(), port).await.unwrap();
        assert_eq!(rig.next().await.unwrap().0.len(), 4 + 488);
        rig.client.send_to(&Packet::Ack { block: 2 }.encode(), port).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while rig.heard.sent.lock().unwrap().is_empty() && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let heard = rig.end().await;
        let mac = "52:54:00:01:02:03".parse().unwrap();
        assert_eq!(*heard.sent.lock().unwrap(), [(Some(mac), "loader".to_owned(), 1_000)]);
    }

    #[tokio::test]
    async fn a_repeated_request_starts_no_second_transfer() {
        let rig = Rig::start(4).await;
        let (_, first) = rig.ask(&read("loader", Mode::Octet)).await;
        let (again, second) = rig.ask(&read("loader", Mode::Octet)).await;
        assert_eq!(first, second, "the answer is the first transfer's retransmission");
        assert_eq!(again[..4], [0, 3, 0, 1]);
        rig.end().await;
    }

    #[tokio::test]
    async fn another_request_from_the_same_port_is_a_new_transfer() {
        let rig = Rig::start(4).await;
        let options = Options { transfer_bytes: Some(0), ..Options::default() };
        let probe = FileRequest { file: "loader".to_owned(), mode: Mode::Octet, options };
        let (_, first) = rig.ask(&Packet::Read(probe)).await;
        let (data, second) = rig.ask(&read("loader", Mode::Octet)).await;
        assert_ne!(first, second);
        assert_eq!(data[..4], [0, 3, 0, 1]);
        rig.end().await;
    }

    #[tokio::test]
    async fn refusals_are_clear() {
        let rig = Rig::start(4).await;
        let write = FileRequest { file: "x".to_owned(), mode: Mode::Octet, options: Options::default() };
        for (packet, code, word) in [
            (read("loader", Mode::Netascii), 4, "octet"),
            (Packet::Write(write), 2, "takes no files"),
            (read("../etc/passwd", Mode::Octet), 2, "not allowed"),
            (read("boot/52-54-00-01-02-03/none", Mode::Octet), 1, "no such loader"),
        ] {
            let (answer, _) = rig.ask(&packet).await;
            let Ok(Packet::Error { code: answered, text }) = Packet::parse(&answer) else { panic!("not refused") };
            assert_eq!(answered, code, "{text}");
            assert!(text.contains(word), "{text}");
        }
        let heard = rig.end().await;
        assert!(heard.sent.lock().unwrap().is_empty());
        assert_eq!(heard.troubles.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn transfers_beyond_the_limit_wait_for_the_next_request() {
        let rig = Rig::start(1).await;
        rig.ask(&read("loader", Mode::Octet)).await;
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        other.send_to(&read("loader", Mode::Octet).encode(), rig.server).await.unwrap();
        let mut buffer = [0; 600];
        assert!(timeout(Duration::from_millis(300), other.recv_from(&mut buffer)).await.is_err());
        rig.end().await;
    }
}
