//! From the assignment of a tree of files to disks that are divided by its layout and boot as this node.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::agent::{Assignment, LAYOUT_TOOLS, ReportKind};
use fleet::disk::{Disk, Size, identities};
use fleet::layout::{Layout, Plan, Target, plan};
use image::DiskSink;

use super::{Life, Place, answered, blocking, held, load_modules};
use crate::command::Run;
use crate::layout::build;
use crate::post::{self, LaidRoot};
use crate::{Error, Stop};

/// The programs are a quarter of that; packed and unpacked.
const TOOLS_LIMIT_BYTES: usize = 64 << 20;
const TOOLS_UNPACKED_BYTES: u64 = 256 << 20;
/// Unpacking them into memory.
const UNPACK_LIMIT: Duration = Duration::from_secs(300);
/// The modules that came with them.
const MODULES: &str = "/etc/rackswarm/modules-layout";
/// Where Linux shows that it was started by UEFI.
const UEFI: &str = "/sys/firmware/efi";
/// As long as those that `systemd-cryptenroll` makes for recovery, and more than the volume key.
const KEY_BYTES: usize = 64;

impl Life<'_, Assignment> {
    pub(super) async fn provision_tree(&self, layout: &Layout) -> Result<(), Error> {
        if !matches!(self.options.place, Place::BootEnvironment) {
            return Err(Error::Usage("a trial into files builds no layout; deploy it to a machine".into()));
        }
        let manifest = Arc::new(self.manifest().await?);
        self.fetch_tools().await?;

        // Interlock: exactly one disk for each of the layout's.
        let disks = self.ground.disks().await?;
        let chosen = layout.choose_disks(&disks, &self.assignment.disk, self.assignment.own_disk.as_deref())?;
        let target = |(laid, disk): (&fleet::layout::LaidDisk, &&Disk)| Target {
            name: laid.name.clone(),
            path: disk.path.clone(),
            size_bytes: disk.size_bytes,
        };
        let targets: Vec<Target> = layout.disks.iter().zip(&chosen).map(target).collect();
        let plan = plan(&layout.with_archive(manifest.size_bytes()), &targets, Path::new(UEFI).is_dir())?;

        // Nothing is written before the controller knows what is about to be lost.
        let lost: Vec<String> = chosen.iter().map(|disk| held(disk)).collect();
        let text = format!("dividing {}; {} to fetch", lost.join(", and "), Size(manifest.size_bytes()));
        tracing::info!("{text}");
        self.tell(ReportKind::FetchStarted { disk: identities(chosen.iter().copied()), text }).await?;

        let keys: Arc<BTreeMap<String, Vec<u8>>> =
            Arc::new(plan.locked.iter().map(|(locked, _)| (locked.name.clone(), new_key())).collect());
        let mut laid = self.build(plan, targets.clone(), Arc::clone(&keys)).await?;
        self.watchdog.feed();

        // Pieces arrive, are verified, and are kept beside the place of the tree.
        let archive = laid.archive();
        let sink = Arc::new(blocking(move || DiskSink::create(&archive, manifest)).await??);
        self.receive(sink).await?;

        let starting = loader_disks(layout, &targets);
        let subject = self.subject(starting.first().ok_or_else(|| Error::Defect("a layout without disks".into()))?);
        let (stop, done) = (self.stop.clone(), self.done());
        let layout = layout.clone();
        blocking(move || {
            laid.unpack(&stop, &done)?;
            laid.make_start(&layout, &targets, &keys, &stop, &done)?;
            post::run_laid(&subject, laid, &starting, &stop, &done)
        })
        .await??;
        self.last_words().await
    }

    /// The programs and modules that build layouts; other machines do not carry them.
    async fn fetch_tools(&self) -> Result<(), Error> {
        let read = || self.client.read(LAYOUT_TOOLS, TOOLS_LIMIT_BYTES);
        let packed =
            answered(&self.options.server, read).await.map_err(|error| Error::Assignment(error.to_string()))?;
        let stop = self.stop.clone();
        let notes = blocking(move || {
            let mut archive = Vec::new();
            let unpacked = zstd::stream::read::Decoder::new(packed.as_slice());
            unpacked
                .and_then(|tools| tools.take(TOOLS_UNPACKED_BYTES).read_to_end(&mut archive))
                .map_err(Error::io("unpack", LAYOUT_TOOLS))?;
            // Busybox's names are links to itself, which `-u` takes away before the file is made.
            let run = Run::new("sh", UNPACK_LIMIT).args(["-c", "cd / && exec cpio -idmu"]).input(archive);
            run.text(&stop)?;
            Ok::<_, Error>(load_modules(Path::new(MODULES)).1)
        })
        .await??;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        self.watchdog.feed();
        Ok(())
    }

    async fn build(
        &self,
        plan: Plan,
        targets: Vec<Target>,
        keys: Arc<BTreeMap<String, Vec<u8>>>,
    ) -> Result<LaidRoot, Error> {
        let (stop, watchdog): (Stop, _) = (self.stop.clone(), self.watchdog.clone());
        blocking(move || {
            let paths: Vec<String> = targets.into_iter().map(|target| target.path).collect();
            let told = |step: &fleet::layout::Step| {
                watchdog.feed();
                tracing::info!("{}", step.what);
            };
            let built = build(&plan, &paths, &|name| keys.get(name).cloned(), &stop, &told)?;
            LaidRoot::mount(built, plan)
        })
        .await?
    }
}

/// The disks that firmware starts: those with the EFI system partition that the system knows, else the first.
fn loader_disks(layout: &Layout, targets: &[Target]) -> Vec<PathBuf> {
    let known = layout.esp().map(|mount| mount.on.as_str()).unwrap_or_default();
    let mirror = layout.arrays.iter().find(|array| array.name == known);
    let parts = mirror.map_or_else(|| vec![known], |array| array.members.iter().map(String::as_str).collect());
    let starts =
        |target: &&Target| parts.iter().any(|part| part.split_once('.').is_some_and(|(disk, _)| disk == target.name));
    let starting: Vec<&Target> = targets.iter().filter(starts).collect();
    let starting = if starting.is_empty() { targets.iter().take(1).collect() } else { starting };
    starting.into_iter().map(|target| PathBuf::from(&target.path)).collect()
}

/// Made on the node, kept in the deployed system's file only.
fn new_key() -> Vec<u8> {
    let mut key = vec![0; KEY_BYTES];
    rand::fill(key.as_mut_slice());
    key
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_a_mirror_that_firmware_reads_is_started_from() {
        let part = |disk: &str| {
            format!(
                "[[disk]]\nname = \"{disk}\"\npartition = [{{ name = \"esp\", size = \"64MiB\", role = \"esp\" }}]\n"
            )
        };
        let disks = part("a") + &part("b");
        let mirror = "[[raid]]\nname = \"efi\"\nlevel = 1\nmembers = [\"a.esp\", \"b.esp\"]\n";
        let mount = |on: &str| format!("[[mount]]\non = \"{on}\"\nkind = \"vfat\"\nat = \"/boot/efi\"\n");
        let targets = ["a", "b"].map(|name| Target { name: name.into(), path: format!("/dev/{name}"), size_bytes: 0 });
        let starting = |text: &str| loader_disks(&toml::from_str(text).unwrap(), &targets);
        assert_eq!(starting(&format!("{disks}{mirror}{}", mount("efi"))), [Path::new("/dev/a"), Path::new("/dev/b")]);
        assert_eq!(starting(&format!("{disks}{}", mount("b.esp"))), [Path::new("/dev/b")]);
        assert_eq!(starting(&format!("{disks}{}", mount("elsewhere"))), [Path::new("/dev/a")]);
    }

    #[test]
    fn every_key_is_another() {
        let (one, other) = (new_key(), new_key());
        assert_eq!(one.len(), KEY_BYTES);
        assert_ne!(one, other);
        assert!(one.iter().any(|byte| *byte != one[0]));
    }
}
