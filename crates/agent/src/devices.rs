//! Waits until the machine's devices have settled.
//!
//! The kernel counts every device event in `/sys/kernel/uevent_seqnum`. While
//! it grows, modules are loaded for what has appeared; once it has stood still
//! for a while, no disk is about to appear. A fixed sleep would be too long for
//! most machines and too short for those with many disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time;

use crate::modules::Modules;

/// Two looks at the count.
const LOOK: Duration = Duration::from_millis(50);

/// A watch over the machine's devices, from its start until it is dropped.
#[derive(Debug)]
pub struct Devices {
    changed: watch::Receiver<Instant>,
    task: JoinHandle<()>,
}

impl Devices {
    /// Loads modules for the devices that are there and for those that appear,
    /// with the real `/sys`.
    #[must_use]
    pub fn watch(modules: Modules) -> Self {
        Self::watch_below(Path::new("/sys"), modules)
    }

    fn watch_below(sysfs: &Path, modules: Modules) -> Self {
        let (sender, changed) = watch::channel(Instant::now());
        Self { changed, task: tokio::spawn(follow(sysfs.to_owned(), modules, sender)) }
    }

    /// Waits until nothing has changed for `quiet`, at most for `limit`; false
    /// where the limit came first.
    pub async fn settled(&self, quiet: Duration, limit: Duration) -> bool {
        let wait = async {
            let mut changed = self.changed.clone();
            loop {
                let calm_at = *changed.borrow_and_update() + quiet;
                if time::timeout_at(calm_at.into(), changed.changed()).await.is_err() {
                    return;
                }
            }
        };
        time::timeout(limit, wait).await.is_ok()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(sysfs: PathBuf, mut modules: Modules, changed: watch::Sender<Instant>) {
    let count = sysfs.join("kernel/uevent_seqnum");
    let mut before = None;
    loop {
        let now = fs::read_to_string(&count).unwrap_or_default();
        if before.as_ref() != Some(&now) {
            let devices = sysfs.join("devices");
            let loaded = tokio::task::spawn_blocking(move || {
                let notes = modules.load_for_devices(&devices);
                (modules, notes)
            });
            // A panic there is a defect; without modules the machine fails further on with a sentence of its own.
            let Ok((back, notes)) = loaded.await else { return };
            modules = back;
            for note in notes {
                tracing::warn!("{note}");
            }
            let _ = changed.send(Instant::now());
            before = Some(now);
        }
        time::sleep(LOOK).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calm_is_noticed_and_unrest_too() {
        let sysfs = tempfile::tempdir().unwrap();
        let count = sysfs.path().join("kernel/uevent_seqnum");
        fs::create_dir_all(count.parent().unwrap()).unwrap();
        fs::write(&count, "1").unwrap();
        let devices = Devices::watch_below(sysfs.path(), Modules::open(sysfs.path(), ""));
        assert!(devices.settled(Duration::from_millis(200), Duration::from_secs(30)).await);

        let unrest = tokio::spawn(async move {
            for number in 2.. {
                fs::write(&count, format!("{number}")).unwrap();
                time::sleep(LOOK).await;
            }
        });
        assert!(!devices.settled(Duration::from_secs(1), Duration::from_secs(2)).await);
        unrest.abort();
        assert!(devices.settled(Duration::from_millis(200), Duration::from_secs(30)).await);
    }
}
