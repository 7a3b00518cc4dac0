//! The controller's life, from the configuration to the last goodbye.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boot::Services;
use boot::interface::Interface;
use fleet::event::Event;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use transport::bittorrent::{Limits, Listener};
use transport::tracker::TrackerDoors;

use crate::config::Config;
use crate::director::BootDirector;
use crate::error::Error;
use crate::http::{self, App, OPERATOR_TOKEN_FILE, Parts};
use crate::images::{ImageError, Images};
use crate::keeper::Keeper;
use crate::kernels::Kernels;
use crate::sets::Asking;
use crate::switchboard::Switchboard;
use crate::{privileges, reconcile, sets, store, token};

/// Requests and transfers that are open at the end get this long.
const GOODBYE: Duration = Duration::from_secs(4);
/// What is written when they have ended.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// HTTP connections that wait to be accepted: a rack that starts at once.
const BACKLOG: i32 = 4_096;
/// Peers of the seeder, all images together: the swarm carries the rest.
const SEEDER_CONNECTIONS: usize = 400;

/// A controller that has what it needs from the system and serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    http: TcpListener,
    address: SocketAddr,
    advertise: SocketAddrV4,
    /// Held until the process ends: a second controller is refused.
    _lock: File,
}

/// Takes what only root may take, becomes the configured account, and makes
/// sure that nobody else works on the same data. Call it before any thread is
/// started.
///
/// # Errors
/// A sentence that names the port, folder, account or key and the remedy.
pub fn bind(config: Config) -> Result<Bound, Error> {
    config.check().map_err(Error::Setup)?;
    raise_file_limit();
    let user = config.server.user.as_deref().map(privileges::account).transpose()?;
    let data_dir = &config.server.data_dir;
    make_folder(data_dir)?;
    let (http, address) = listen(config.server.listen)?;
    let advertise = advertise(&config, address)?;
    if let Some(user) = &user {
        privileges::give(data_dir, user)?;
        privileges::become_user(user)?;
    }
    let lock = lock(data_dir)?;
    Ok(Bound { http, address, advertise, _lock: lock, config })
}

impl Bound {
    /// Where HTTP listens, with the port that was chosen.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.address
    }

    /// The file that holds the operators' token once the controller serves.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.config.server.data_dir.join(OPERATOR_TOKEN_FILE)
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When something that it needs cannot be had or fails for good.
    pub fn run(self) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::Setup(format!("cannot start worker threads: {error}")))?;
        let outcome = runtime.block_on(async {
            let stop = asked_to_stop()?;
            self.serve(stop).await
        });
        // An import may be hashing on a blocking thread; it has been told to stop.
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    }

    /// Serves until `stop` is ready; everything has ended within five seconds then.
    ///
    /// # Errors
    /// As [`Bound::run`].
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let data_dir = self.config.server.data_dir.clone();
        let token = token::operator(&self.token_file())?;
        let store = store::open(&self.config.database, &data_dir).await?;
        let (ending, last) = (CancellationToken::new(), CancellationToken::new());
        let (keeper, keeping) = Keeper::start(Arc::clone(&store), self.config.policy(), last.clone()).await?;

        sets::settle(&keeper, &self.config.set).await?;

        let director = Arc::new(BootDirector::new(keeper.clone()));
        let services = Services::bind(&self.config.dhcp, &self.config.tftp, self.address.port(), director).await?;
        let (images, known) = open_images(&self.config, self.advertise, ending.clone()).await?;
        for image in known {
            keeper.tell(Event::ImageSealed(image)).await?;
        }

        let listener = into_tokio(self.http)?;
        let switchboard = Arc::new(Switchboard::default());
        let asking = Asking::default();
        if self.config.discovery.sync_seconds > 0 {
            let every = Duration::from_secs(self.config.discovery.sync_seconds.into());
            tokio::spawn(asking.clone().keep_up(keeper.clone(), every, ending.clone()));
        }
        let kernels = Kernels::new(&self.config, self.advertise);
        let app = App::new(Parts {
            kernels: kernels.clone(),
            keeper: keeper.clone(),
            switchboard: Arc::clone(&switchboard),
            asking,
            images,
            advertise: self.advertise,
            operator: token::hash(&token.0),
            loaders: services.loaders(),
            stop: ending.clone(),
            config: self.config,
        });
        http::capture::resume(&app);
        let mut tasks = JoinSet::new();
        tasks.spawn(ends(http::serve(listener, app.router(), ending.clone())));
        tasks.spawn(ends(reconcile::run(keeper, switchboard, kernels, ending.clone())));
        let booting = ending.clone();
        tasks.spawn(async move {
            services.run(booting.clone().cancelled_owned()).await?;
            // With DHCP and TFTP off there is nothing to serve; that is no end.
            booting.cancelled().await;
            Ok(())
        });
        tracing::info!("HTTP listens on {}, nodes reach it at http://{}", self.address, self.advertise);
        tracing::info!("operators' token: {}", data_dir.join(OPERATOR_TOKEN_FILE).display());
        notify(NotifyState::Ready);

        let outcome = tokio::select! {
            () = stop => Ok(()),
            Some(ended) = tasks.join_next() => flat(ended),
        };
        notify(NotifyState::Stopping);
        tracing::info!("stopping");
        ending.cancel();
        goodbye(tasks, keeping, last, &app).await;
        store.close().await;
        outcome
    }
}

/// Waits for what still runs; the keeper and the tracker's memory last so that
/// nothing said is lost.
async fn goodbye(mut tasks: JoinSet<Result<(), Error>>, keeping: JoinHandle<()>, last: CancellationToken, app: &App) {
    let front = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, front).await.is_err() {
        tracing::warn!("requests were still open after {} s and are cut off", GOODBYE.as_secs());
        tasks.abort_all();
    }
    last.cancel();
    let (kept, remembered) =
        tokio::join!(tokio::time::timeout(LAST_WORDS, keeping), tokio::time::timeout(LAST_WORDS, app.images.close()));
    if kept.is_err() {
        tracing::warn!("the database did not take the last events in time; nodes will tell again");
    }
    if remembered.is_err() {
        tracing::warn!("the tracker's memory was not written in time; nodes will announce themselves again");
    }
}

async fn ends(work: impl Future<Output = ()>) -> Result<(), Error> {
    work.await;
    Ok(())
}

fn flat(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|crash| {
        Err(Error::Setup(format!("a part of the controller crashed; please report this: {crash}")))
    })
}

async fn open_images(
    config: &Config,
    advertise: SocketAddrV4,
    stop: CancellationToken,
) -> Result<(Images, Vec<fleet::deployment::ImageInfo>), Error> {
    let limits = Limits { connections: SEEDER_CONNECTIONS, handshakes: 64, ..Limits::default() };
    let listener = Listener::bind(config.swarm.listen, limits)
        .await
        .map_err(|error| Error::Setup(format!("{error} (swarm.listen)")))?;
    tracing::info!("the seeder listens on {}", listener.address());
    let folder = config.server.data_dir.join("images");
    let memory = Some(config.server.data_dir.join("tracker.memory"));
    let doors = TrackerDoors { http: None, udp: config.swarm.udp_tracker, memory };
    let opened = Images::open(folder, listener, doors, advertise, stop).await;
    opened.map_err(|error: ImageError| Error::Setup(error.to_string()))
}

/// Ready at the first SIGTERM or SIGINT.
fn asked_to_stop() -> Result<impl Future<Output = ()>, Error> {
    let broken = |error: io::Error| Error::Setup(format!("signals cannot be received: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    let broken = |cause| Error::File { doing: "make the folder", path: folder.to_owned(), cause };
    // Database and images are nobody else's business.
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(broken)
}

/// The kernel lets the lock go with the process, however it ends.
fn lock(data_dir: &Path) -> Result<File, Error> {
    let path = data_dir.join("lock");
    let broken = |cause| Error::File { doing: "lock", path: path.clone(), cause };
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(broken)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { data_dir: data_dir.to_owned() }),
        Err(TryLockError::Error(cause)) => Err(broken(cause)),
    }
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for connections of the last run to time out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let address = listener.local_addr()?;
        io::Result::Ok((listener, address))
    };
    open().map_err(|cause| {
        let port = address.port();
        let remedy = match cause.kind() {
            io::ErrorKind::AddrInUse => format!(
                "Another program holds the port (`ss -ltnp 'sport = :{port}'` names it): stop it, or choose another port in server.listen"
            ),
            io::ErrorKind::PermissionDenied => "Ports below 1024 need root or CAP_NET_BIND_SERVICE: start it as root, by the systemd unit in deploy/, or choose a higher port in server.listen".to_owned(),
            io::ErrorKind::AddrNotAvailable => {
                format!("This machine does not have {}: correct server.listen", address.ip())
            }
            _ => "Correct server.listen".to_owned(),
        };
        Error::Bind { what: "HTTP", address, cause, remedy }
    })
}

fn into_tokio(listener: TcpListener) -> Result<tokio::net::TcpListener, Error> {
    tokio::net::TcpListener::from_std(listener)
        .map_err(|error| Error::Setup(format!("the HTTP socket cannot be used: {error}")))
}

/// Where nodes reach us: told, or found where there is only one answer.
fn advertise(config: &Config, listening: SocketAddr) -> Result<SocketAddrV4, Error> {
    let at = |ip| SocketAddrV4::new(ip, listening.port());
    if let Some(ip) = config.server.advertise.or(config.dhcp.server_address) {
        return Ok(at(ip));
    }
    if let SocketAddr::V4(address) = listening
        && !address.ip().is_unspecified()
    {
        return Ok(address);
    }
    let missing = "server.advertise is missing: write the IPv4 address under which nodes reach this machine";
    let Some(name) = &config.dhcp.interface else { return Err(Error::Setup(missing.to_owned())) };
    match Interface::find(name)?.ipv4.as_slice() {
        [ip] => Ok(at(*ip)),
        [] => Err(Error::Setup(format!("{missing}; interface `{name}` has none"))),
        several => Err(Error::Setup(format!("{missing}; interface `{name}` has {several:?}"))),
    }
}

/// Every node holds a connection or two; the usual soft limit of 1024 files is
/// a relic of select(2).
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum.map(|max| max.min(1 << 20)), maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Tells systemd, where it listens.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(data_dir: &Path) -> Config {
        let mut config = Config::default();
        config.server.data_dir = data_dir.to_owned();
        config.server.listen = "127.0.0.1:0".parse().unwrap();
        config
    }

    #[test]
    fn a_taken_port_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = config(folder.path());
        config.server.listen = holder.local_addr().unwrap();
        let sentence = bind(config).unwrap_err().to_string();
        let port = holder.local_addr().unwrap().port().to_string();
        assert!(
            sentence.contains(&port) && sentence.contains("server.listen") && sentence.contains("ss -ltnp"),
            "{sentence}"
        );
    }

    #[test]
    fn a_second_controller_on_the_same_data_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = bind(config(folder.path())).unwrap();
        let sentence = bind(config(folder.path())).unwrap_err().to_string();
        assert!(sentence.contains("another controller") && sentence.contains("data_dir"), "{sentence}");
        drop(first);
        bind(config(folder.path())).unwrap();
    }

    #[test]
    fn the_address_for_nodes_is_found_or_asked_for() {
        let everywhere: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        let mut config = Config::default();
        let sentence = advertise(&config, everywhere).unwrap_err().to_string();
        assert!(sentence.contains("server.advertise is missing"), "{sentence}");
        config.dhcp.interface = Some("lo".to_owned());
        assert_eq!(advertise(&config, everywhere).unwrap(), "127.0.0.1:8080".parse().unwrap());
        config.server.advertise = Some([10, 0, 0, 1].into());
        assert_eq!(advertise(&config, everywhere).unwrap(), "10.0.0.1:8080".parse().unwrap());
        let one: SocketAddr = "10.9.9.9:80".parse().unwrap();
        assert_eq!(advertise(&Config::default(), one).unwrap(), "10.9.9.9:80".parse().unwrap());
    }

    #[test]
    fn a_missing_account_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.server.user = Some("nobody-of-that-name".to_owned());
        let sentence = bind(config).unwrap_err().to_string();
        assert!(sentence.contains("nobody-of-that-name") && sentence.contains("useradd"), "{sentence}");
    }
}
