//! What `seed` and `fetch` have in common.

pub(crate) mod create;
pub(crate) mod torrent;
pub(crate) mod tracker;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use swarm::Policy;
use swarm::policy::ChokerKind;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output;

/// The port that peers listen on, unless told otherwise.
pub(crate) const PEER_PORT: u16 = 6881;
/// The tracker's port, unless told otherwise.
pub(crate) const TRACKER_PORT: u16 = 6969;
/// Threads for disks and hashes; more would only cost memory.
const BLOCKING_THREADS: usize = 16;

/// An address, whose port may be left to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) ip: IpAddr,
    pub(crate) port: Option<u16>,
}

impl Listen {
    /// The address with this port where none was said.
    pub(crate) fn address(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(ip) => Ok(Self { ip, port: None }),
            Err(_) => {
                Err(format!("`{text}` is no address: write IP or IP:PORT, as in 10.0.0.1:6881 or [fd00::1]:6881"))
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

/// How other peers are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Behaviour {
    /// As the tracker says
    #[default]
    Auto,
    /// Everybody belongs to one operator and wants the same
    Cooperative,
    /// Give to those who give (BEP 3)
    TitForTat,
}

impl Behaviour {
    pub(crate) fn apply(self, policy: &mut Policy) {
        match self {
            Self::Auto => policy.choker = ChokerKind::Auto,
            Self::Cooperative => policy.choker = ChokerKind::Cooperative,
            Self::TitForTat => policy.choker = ChokerKind::TitForTat,
        }
    }
}

/// Warnings go to standard error; `RUST_LOG` chooses otherwise.
pub(crate) fn log_warnings() {
    let colours = output::colours(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(colours);
    // A filter costs a regular expression engine, which two hundred processes on one machine would feel.
    let _ = match std::env::var("RUST_LOG") {
        Ok(filter) => log.with_env_filter(filter).try_init(),
        Err(_) => log.with_max_level(tracing::Level::WARN).try_init(),
    };
}

/// Runs on one thread for the network: hashes and disks have their own, and a machine of few cores runs best so.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    run_on(Builder::new_current_thread().max_blocking_threads(BLOCKING_THREADS), work)
}

/// Runs on this kind of runtime. Whoever is told to end does not wait for a file to be read to its end.
pub(crate) fn run_on<T>(builder: &mut Builder, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// Ends at this moment, or never.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// The signals that end a command in an orderly way.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Interrupt,
    Terminate,
}

impl Signals {
    pub(crate) fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    pub(crate) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::Interrupt,
            _ = self.terminate.recv() => Received::Terminate,
        }
    }
}

impl Received {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// 128 and the signal's number, as in a shell.
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_leave_their_port_to_us() {
        for (text, with_port) in [
            ("10.0.0.1", "10.0.0.1:6881"),
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("fd00::1", "[fd00::1]:6881"),
            ("[fd00::1]", "[fd00::1]:6881"),
            ("[fd00::1]:7", "[fd00::1]:7"),
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.address(PEER_PORT).to_string(), with_port, "{text}");
        }
        for wrong in ["", "host", "10.0.0.1:", "10.0.0.1:70000", "10.0.0"] {
            assert!(wrong.parse::<Listen>().unwrap_err().contains("IP:PORT"), "{wrong}");
        }
    }
}
