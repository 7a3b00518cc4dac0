//! Ctrl-C and its relatives, from the first moment on: whatever is under way is left, and everything is cleaned up.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether somebody asked us to stop. Clones see the same.
#[derive(Debug, Clone)]
pub struct Stop {
    asked: watch::Receiver<bool>,
}

impl Stop {
    /// From now on SIGINT, SIGTERM and SIGHUP no longer end this process but are seen here.
    ///
    /// # Errors
    /// When the operating system refuses to deliver signals.
    pub fn on_signals() -> Result<Stop> {
        let (ask, asked) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let listen = async {
                    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
                    let signals = kinds.map(signal).into_iter().collect::<std::io::Result<Vec<_>>>();
                    let failure = signals.as_ref().err().map(ToString::to_string);
                    let _ = ready.send(failure);
                    let mut signals = signals.unwrap_or_default();
                    let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
                    if waits.len() > 0 {
                        futures_util::future::select_all(waits).await;
                        let _ = ask.send(true);
                    }
                    // The handlers stay in place, so that a second Ctrl-C does not cut the cleaning short.
                    std::future::pending::<()>().await;
                };
                if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    runtime.block_on(listen);
                }
            })
            .context("cannot start a thread for signals")?;
        match is_ready.recv_timeout(Duration::from_secs(10)) {
            Ok(None) => Ok(Stop { asked }),
            Ok(Some(why)) => bail!("signals cannot be watched: {why}"),
            Err(_) => bail!("signals cannot be watched"),
        }
    }

    /// Fails once somebody asked us to stop; for places between steps.
    ///
    /// # Errors
    /// When it was asked for.
    pub fn check(&self) -> Result<()> {
        if *self.asked.borrow() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Ends when somebody asks us to stop.
    pub async fn asked(&self) {
        if self.asked.clone().wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
