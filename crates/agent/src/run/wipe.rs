//! From the order to disks that have been wiped, read back and certified.

use std::time::Duration;

use api::agent::{ReportKind, WipeOrder};
use fleet::disk::{Disk, Purpose, choose};
use fleet::node::Progress;
use fleet::wipe::Certificate;
use tokio::time;

use super::{Life, blocking, held};
use crate::{Error, wipe};

/// Between two words that somebody is at work, while a device takes its time.
const AT_WORK: Duration = Duration::from_secs(60);

impl Life<'_, WipeOrder> {
    pub(super) async fn wipe(&self) -> Result<(), Error> {
        // All of them must be there and usable before the first is touched.
        let disks = self.ground.disks().await?;
        let order = &self.assignment.wipe;
        let chosen: Vec<&Disk> =
            order.disks.iter().map(|rule| choose(&disks, rule, Purpose::Wipe)).collect::<Result<_, _>>()?;
        let lost: Vec<String> = chosen.iter().map(|disk| held(disk)).collect();
        let text = format!("wiping {} ({})", lost.join("; "), order.method);
        tracing::info!("{text}");
        self.tell(ReportKind::WipeStarted { text }).await?;
        for disk in &chosen {
            let certificate = self.wipe_one(disk).await?;
            let (failed, sentence) = (certificate.failed, certificate.sentence());
            tracing::info!("{sentence}");
            self.tell(ReportKind::DiskWiped { certificate: Box::new(certificate) }).await?;
            if failed {
                return Err(Error::Wipe(sentence));
            }
        }
        let what = if chosen.len() == 1 { "its disk is" } else { "its disks are" };
        let node = &self.assignment.node;
        let text = format!("{what} wiped and read back; `rackswarm node certificates {node}` shows what that is worth");
        self.farewell(ReportKind::Wiped { text }).await
    }

    /// The devices have deadlines in there; out here is only told that somebody is at work.
    async fn wipe_one(&self, disk: &Disk) -> Result<Certificate, Error> {
        let (node, method, stop) = (self.assignment.node.clone(), self.assignment.wipe.method, self.stop.clone());
        let (reporter, disk) = (self.reporter.clone(), disk.clone());
        let work = blocking(move || {
            let watch = |done_bytes, total_bytes| {
                reporter.progress(Progress { done_bytes, total_bytes, ..Progress::default() });
            };
            wipe::wipe(&node, &disk, method, &stop, &watch)
        });
        let at_work = async {
            loop {
                self.watchdog.feed();
                time::sleep(AT_WORK).await;
            }
        };
        tokio::select! {
            certificate = work => certificate?,
            never = at_work => never,
        }
    }
}
