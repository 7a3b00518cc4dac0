//! Wipes a disk, and finds out what that was worth.
//!
//! Before anything is erased, random marks are written over the whole disk and read back from the device; afterwards the same
//! places are read again. A device that says yes and does nothing still holds the marks. That is the only proof there is from
//! outside, and it is worth what [`fleet::wipe::judge`] says.

mod ata;
mod nvme;
mod samples;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fleet::disk::Disk;
use fleet::ids::{Attempt, Millis, NodeName};
use fleet::wipe::{Certificate, Facts, Method, Used, judge};
use rustix::fs::OFlags;

use crate::command::{CommandError, Run};
use crate::{Error, Stop};
use samples::Marks;

/// Bytes of one write of zeros.
const STEP_BYTES: usize = 4 << 20;
/// How often a device that sanitises itself is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// `blkdiscard` on the slowest device.
const DISCARD_LIMIT: Duration = Duration::from_secs(3600);
/// A command that only asks the device, or the kernel.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);
/// A device that sanitises itself: overwriting a large disk inside takes a day, erasing blocks and changing keys hours at most.
const SANITISE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Told how many bytes of how many are done. Called at least every few seconds.
pub type Watch<'a> = dyn Fn(u64, u64) + 'a;

/// A wipe with what came to light on the way.
struct Wipe<'a> {
    disk: &'a Disk,
    stop: &'a Stop,
    watch: &'a Watch<'a>,
    notes: Vec<String>,
}

/// Wipes a disk and certifies what that is worth. Blocks, for hours. It never fails without a certificate, unless everything
/// stops: a failure is what the certificate is about.
///
/// # Errors
/// [`Error::AttemptOver`] when stopped; [`Error::Io`] when the disk cannot be opened for this alone, and nothing was changed.
pub fn wipe(
    node: &NodeName,
    disk: &Disk,
    method: Method,
    stop: &Stop,
    watch: &Watch<'_>,
) -> Result<Certificate, Error> {
    let began = Instant::now();
    let path = Path::new(&disk.path);
    let claimed = claim(disk)?;
    let mut failures = Vec::new();
    let marks = Marks::write(path, disk.size_bytes).unwrap_or_else(|error| {
        failures.push(format!("the marks cannot be written: {error}"));
        Marks::none()
    });
    let mut wipe = Wipe { disk, stop, watch, notes: Vec::new() };
    let used = match wipe.erase(method) {
        Ok(used) => used,
        Err(Failure::Stopped(reason)) => return Err(Error::AttemptOver(reason)),
        Err(Failure::Device(used, why)) => {
            failures.push(why);
            used
        }
    };
    drop(claimed);
    wipe.settle();
    let samples = marks.read_back(path);
    let hidden_sectors = ata::hidden_sectors(path, stop).unwrap_or(0);
    let facts = Facts { used, failures, samples, rotational: is_rotational(path), hidden_sectors };
    let judged = judge(&facts);
    Ok(Certificate {
        node: node.clone(),
        attempt: Attempt::default(),
        at: Millis(0),
        disk: disk.identity(),
        path: disk.path.clone(),
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        wwn: disk.wwn.clone(),
        size_bytes: disk.size_bytes,
        asked: method,
        used,
        milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        samples,
        worth: judged.worth,
        reasons: judged.reasons,
        notes: wipe.notes,
        failed: judged.failed,
        agent_version: crate::VERSION.to_owned(),
    })
}

/// Why a disk is not wiped.
enum Failure {
    /// Everything is to stop.
    Stopped(String),
    /// The device did not do it. What had begun, and the device's words.
    Device(Used, String),
}

impl Failure {
    fn of(used: Used) -> impl FnOnce(CommandError) -> Self {
        move |error| match error {
            CommandError::Stopped { reason, .. } => Self::Stopped(reason),
            other => Self::Device(used, other.to_string()),
        }
    }
}

/// What a device can do itself, and how that is begun and watched.
trait Sanitise {
    /// What it would do, best first; none where it offers nothing. The sentence says why.
    fn offers(&self, stop: &Stop) -> Result<Vec<Used>, String>;
    /// Begins it.
    fn begin(&self, used: Used, stop: &Stop) -> Result<(), CommandError>;
    /// How far it is: `None` when it has ended well, thousandths otherwise.
    fn progress(&self, used: Used, stop: &Stop) -> Result<Option<u64>, Failure>;
}

impl Wipe<'_> {
    fn erase(&mut self, method: Method) -> Result<Used, Failure> {
        match method {
            Method::Sanitise => self.sanitise(),
            Method::Overwrite => self.overwrite(),
            Method::Discard => self.discard(),
            Method::Auto => match self.sanitise() {
                Err(Failure::Device(_, why)) => {
                    self.notes.push(format!("the device did not sanitise itself: {why}"));
                    self.overwrite()
                }
                ended => ended,
            },
        }
    }

    /// Has the device do it itself, the first way that works.
    fn sanitise(&mut self) -> Result<Used, Failure> {
        let path = Path::new(&self.disk.path);
        let nothing = |why: &str| Failure::Device(Used::Nothing, why.to_owned());
        let device: Box<dyn Sanitise> = match nvme::Nvme::of(path) {
            Some(nvme) => Box::new(nvme),
            None if is_ata(path) => Box::new(ata::Ata::of(path)),
            None => return Err(nothing("it is neither an NVMe nor an ATA device")),
        };
        let ways = device.offers(self.stop).map_err(|why| nothing(&why))?;
        let mut last = nothing("it offers no way");
        for used in ways {
            match self.run(device.as_ref(), used) {
                Err(Failure::Device(_, why)) => {
                    self.notes.push(format!("{} failed: {why}", used.what()));
                    last = Failure::Device(used, why);
                }
                ended => return ended,
            }
        }
        Err(last)
    }

    fn run(&self, device: &dyn Sanitise, used: Used) -> Result<Used, Failure> {
        let deadline = Instant::now() + SANITISE_LIMIT;
        device.begin(used, self.stop).map_err(Failure::of(used))?;
        while let Some(thousandths) = device.progress(used, self.stop)? {
            (self.watch)(self.disk.size_bytes / 1000 * thousandths.min(1000), self.disk.size_bytes);
            self.pause(ASK_EVERY)?;
            if Instant::now() > deadline {
                let hours = SANITISE_LIMIT.as_secs() / 3600;
                return Err(Failure::Device(used, format!("it has not ended after {hours} h")));
            }
        }
        Ok(used)
    }

    /// Waits, and looks every moment whether everything is to stop.
    fn pause(&self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look_up()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn look_up(&self) -> Result<(), Failure> {
        self.stop.reason().map_or(Ok(()), |reason| Err(Failure::Stopped(reason)))
    }

    /// Writes zeros over everything, around the page cache.
    fn overwrite(&self) -> Result<Used, Failure> {
        let failed = |error: std::io::Error, at: u64| {
            Failure::Device(Used::Overwrite, format!("zeros cannot be written at byte {at}: {error}"))
        };
        let file = samples::open(Path::new(&self.disk.path)).map_err(|error| failed(error, 0))?;
        let zeros = samples::Block::zeros(STEP_BYTES);
        let mut at = 0;
        while at < self.disk.size_bytes {
            self.look_up()?;
            let length = (self.disk.size_bytes - at).min(STEP_BYTES as u64);
            let step = &zeros.bytes()[..usize::try_from(length).unwrap_or(STEP_BYTES)];
            file.write_all_at(step, at).map_err(|error| failed(error, at))?;
            at += length;
            (self.watch)(at, self.disk.size_bytes);
        }
        file.sync().map_err(|error| failed(error, at))?;
        Ok(Used::Overwrite)
    }

    /// Tells the device that all its blocks are free; where it knows how, that it is to erase them.
    fn discard(&mut self) -> Result<Used, Failure> {
        let run = |secure: &'static [&'static str]| {
            Run::new("blkdiscard", DISCARD_LIMIT).args(["--force"]).args(secure).args([&self.disk.path]).text(self.stop)
        };
        match run(&["--secure"]) {
            Ok(_) => return Ok(Used::SecureDiscard),
            Err(CommandError::Stopped { reason, .. }) => return Err(Failure::Stopped(reason)),
            Err(_) => self.notes.push("the device knows no secure discard".to_owned()),
        }
        run(&[]).map_err(Failure::of(Used::Discard))?;
        Ok(Used::Discard)
    }

    /// Has the kernel forget what it knew of the disk. Only files in place of disks mind.
    fn settle(&self) {
        for word in ["--flushbufs", "--rereadpt"] {
            if let Err(error) = Run::new("blockdev", QUESTION_LIMIT).args([word, &self.disk.path]).text(self.stop) {
                tracing::debug!("{error}");
            }
        }
    }
}

/// Opens the disk for this alone, which the kernel refuses where something has it mounted or made into something larger, and
/// compares its size: nothing is written before both are right.
fn claim(disk: &Disk) -> Result<File, Error> {
    let path = Path::new(&disk.path);
    let flags = OFlags::EXCL.bits().cast_signed();
    let mut file: File =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(Error::io("claim", path))?;
    let size = file.seek(SeekFrom::End(0)).map_err(Error::io("measure", path))?;
    if size == disk.size_bytes {
        return Ok(file);
    }
    let told = disk.size_bytes;
    let why = std::io::Error::other(format!("it has {size} bytes now and had {told} when it was chosen"));
    Err(Error::io("claim", path)(why))
}

fn is_ata(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let device = std::fs::canonicalize(Path::new("/sys/block").join(name)).unwrap_or_default();
    device.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.strip_prefix("ata").is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

/// A disk that does not say is taken for flash, of which less is certified.
fn is_rotational(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let flag = Path::new("/sys/block").join(name).join("queue/rotational");
    std::fs::read_to_string(flag).is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use fleet::wipe::Worth;
    use std::cell::Cell;

    fn node() -> NodeName {
        "n1".parse().unwrap()
    }

    fn disk(folder: &tempfile::TempDir, bytes: u64) -> Disk {
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![0x5a; usize::try_from(bytes).unwrap()]).unwrap();
        Disk { path: path.display().to_string(), size_bytes: bytes, serial: Some("s".into()), ..Disk::default() }
    }

    #[test]
    fn an_overwritten_disk_is_cleared_and_holds_zeros_only() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder, (9 << 20) + 512);
        let told = Cell::new((0, 0));
        let watch = |done, total| told.set((done, total));
        let certificate = wipe(&node(), &disk, Method::Auto, &Stop::default(), &watch).unwrap();
        assert_eq!((certificate.used, certificate.worth), (Used::Overwrite, Worth::Cleared), "{certificate:?}");
        assert_eq!(certificate.samples.zero, certificate.samples.places);
        assert!(certificate.notes[0].contains("neither an NVMe nor an ATA device"), "{:?}", certificate.notes);
        assert_eq!(told.get(), (disk.size_bytes, disk.size_bytes));
        assert!(std::fs::read(&disk.path).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn sanitising_or_nothing_means_nothing_where_the_device_cannot() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder, 1 << 20);
        let certificate = wipe(&node(), &disk, Method::Sanitise, &Stop::default(), &|_, _| {}).unwrap();
        assert_eq!(
            (certificate.used, certificate.worth, certificate.failed),
            (Used::Nothing, Worth::NotSanitised, true)
        );
        assert_eq!(certificate.samples.unchanged, certificate.samples.places, "the marks tell that nothing was done");
    }

    #[test]
    fn another_size_is_another_disk_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = disk(&folder, 1 << 20);
        disk.size_bytes += 512;
        let error = wipe(&node(), &disk, Method::Overwrite, &Stop::default(), &|_, _| {}).unwrap_err();
        assert!(error.to_string().contains("1048576 bytes now"), "{error}");
        assert!(std::fs::read(&disk.path).unwrap().iter().all(|byte| *byte == 0x5a));
    }

    #[test]
    fn it_stops_when_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder, 16 << 20);
        let stop = Stop::default();
        let watch = |_, _| stop.set("the node was released");
        let error = wipe(&node(), &disk, Method::Overwrite, &stop, &watch).unwrap_err();
        assert!(matches!(error, Error::AttemptOver(_)));
        let rest = &std::fs::read(&disk.path).unwrap()[8 << 20..];
        assert!(rest.iter().filter(|byte| **byte == 0x5a).count() > 4 << 20, "beside the marks the rest is as it was");
    }
}
