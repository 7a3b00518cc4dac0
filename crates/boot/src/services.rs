//! All boot services together, as the controller starts them.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::dhcp::answer::Site;
use crate::dhcp::{DhcpConfig, Mode};
use crate::director::Director;
use crate::error::Error;
use crate::interface::Interface;
use crate::ra::Responder;
use crate::tftp::{Loaders, TftpConfig};
use crate::{dhcp, tftp};

/// DHCP, TFTP and router advertisements with their ports open.
#[derive(Debug)]
pub struct Services<D> {
    dhcp: Option<dhcp::serve::Server<D>>,
    tftp: Option<tftp::serve::Server<D>>,
    advertiser: Option<Responder>,
    loaders: Option<Loaders>,
    site: Option<Site>,
}

impl<D: Director> Services<D> {
    /// Opens every port that the configuration asks for. `http_port` is the TCP
    /// port under which machines reach the controller. Everything is opened
    /// before anything is served, so that a mistake ends the start and not the
    /// first deployment.
    ///
    /// # Errors
    /// [`Error`] of the first service that cannot be had. Router advertisements
    /// only shorten a wait: when they cannot be had, `director` is told and the
    /// rest starts.
    pub async fn bind(dhcp: &DhcpConfig, tftp: &TftpConfig, http_port: u16, director: Arc<D>) -> Result<Self, Error> {
        dhcp.check()?;
        tftp.check()?;
        // Loaders also go out over HTTP, so the folder is opened even where
        // TFTP is off, and then may be missing.
        let loaders = match Loaders::open(&tftp.root) {
            Ok(loaders) => Some(loaders),
            Err(error) if tftp.enabled => return Err(error),
            Err(error) => {
                info!("UEFI HTTP boot has no loaders: {error}");
                None
            }
        };
        let advertiser = advertiser(dhcp, director.as_ref());
        let dhcp = match dhcp.mode {
            Mode::Off => None,
            Mode::Proxy | Mode::Full => {
                Some(dhcp::serve::Server::bind(dhcp.clone(), tftp.clone(), http_port, Arc::clone(&director)).await?)
            }
        };
        let tftp = match &loaders {
            Some(loaders) if tftp.enabled => Some(tftp::serve::Server::bind(tftp, loaders.clone(), director)?),
            _ => None,
        };
        let site = dhcp.as_ref().map(|server| server.site().clone());
        Ok(Self { dhcp, tftp, advertiser, loaders, site })
    }

    /// The folder of loaders, for `GET /boot/<mac>/<file>`; `None` when TFTP is
    /// off and the folder is missing.
    #[must_use]
    pub fn loaders(&self) -> Option<Loaders> {
        self.loaders.clone()
    }

    /// Our address on the boot network, when DHCP is on.
    #[must_use]
    pub fn server_address(&self) -> Option<Ipv4Addr> {
        self.site.as_ref().map(|site| site.server)
    }

    /// Serves until `stop` is ready or a service fails; all services have ended
    /// when this returns.
    ///
    /// # Errors
    /// [`Error::Socket`] of the service that failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let (stopping, stopped) = watch::channel(false);
        let until_stopped = || {
            let mut stopped = stopped.clone();
            async move {
                // An error means that the sender is gone, which ends us as well.
                let _ = stopped.wait_for(|stopping| *stopping).await;
            }
        };
        let mut tasks = JoinSet::new();
        if let Some(dhcp) = self.dhcp {
            tasks.spawn(dhcp.run(until_stopped()));
        }
        if let Some(tftp) = self.tftp {
            tasks.spawn(tftp.run(until_stopped()));
        }
        if let Some(advertiser) = self.advertiser {
            let stop = until_stopped();
            tasks.spawn(async move {
                tokio::select! { () = advertiser.run() => {}, () = stop => {} }
                Ok(())
            });
        }
        let mut result = Ok(());
        tokio::select! {
            () = stop => {}
            Some(ended) = tasks.join_next() => result = ended.unwrap_or_else(|failed| {
                warn!(%failed, "a boot service ended badly");
                Ok(())
            }),
        }
        let _ = stopping.send(true);
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Err(error)) if result.is_ok() => result = Err(error),
                Ok(_) => {}
                Err(failed) => warn!(%failed, "a boot service ended badly"),
            }
        }
        result
    }
}

fn advertiser<D: Director>(dhcp: &DhcpConfig, director: &D) -> Option<Responder> {
    let name = dhcp.interface.as_ref().filter(|_| dhcp.router_advertisements && dhcp.mode != Mode::Off)?;
    match Interface::find(name).and_then(|interface| Responder::bind(&interface)) {
        Ok(responder) => Some(responder),
        Err(error) => {
            warn!("{error}");
            director.trouble(None, &error.to_string());
            None
        }
    }
}
