//! Which disk format a file is, decided once by us, and conversion to raw.
//!
//! The content of a raw disk belongs to whoever used the disk: its first bytes
//! may be made to look like a qcow2 that names `/etc/shadow` as its backing
//! file. So the format is probed here by magic bytes, may be forced by the
//! operator, and is always told to qemu-img; formats that refer to other files
//! are refused from their own headers before qemu-img sees them.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::manifest::MAX_IMAGE_BYTES;
use crate::{Error, Progress};

/// How long qemu-img may take to read a header.
const INFO_DEADLINE: Duration = Duration::from_secs(30);
/// How long a conversion may go without any progress (it reports hundredths of
/// a per cent, so this is 100 MB of a terabyte).
const STALL_DEADLINE: Duration = Duration::from_secs(300);
/// Bytes at the beginning that probing looks at.
pub(crate) const PROBE_BYTES: usize = 1024;
/// What is kept of a failing program's words.
const MESSAGE_BYTES: u64 = 4096;

/// A disk image format that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// VMware, one sparse file.
    Vmdk,
    /// Hyper-V, second generation.
    Vhdx,
    /// Hyper-V and Azure, first generation.
    Vpc,
    /// VirtualBox.
    Vdi,
}

impl Format {
    /// Every format, in the order of the documentation.
    pub const ALL: [Self; 6] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhdx, Self::Vpc, Self::Vdi];

    /// The name qemu-img has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Vdi => "vdi",
        }
    }
}

impl FromStr for Format {
    type Err = String;
    /// Takes the names of [`Format::name`] and `vhd` for `vpc`.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = if text == "vhd" { "vpc" } else { text };
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is not a disk format: use one of {known}")
        })
    }
}

/// Decides the format from a file's beginning. What is not recognised is raw.
///
/// # Errors
/// [`Error::Refused`] for what is recognised but cannot be an image: compressed
/// files, and formats that only describe other files.
pub fn probe(what: &Path, head: &[u8]) -> Result<Format, Error> {
    let starts = |magic: &[u8]| head.starts_with(magic);
    let refused = |why: &str| Err(Error::Refused { what: what.to_owned(), why: why.to_owned() });
    if starts(b"QFI\xfb") {
        Ok(Format::Qcow2)
    } else if starts(b"KDMV") {
        Ok(Format::Vmdk)
    } else if starts(b"vhdxfile") {
        Ok(Format::Vhdx)
    } else if starts(b"conectix") {
        Ok(Format::Vpc)
    } else if head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        Ok(Format::Vdi)
    } else if starts(b"# Disk DescriptorFile") {
        refused("it only describes other files; convert it with `qemu-img convert -O qcow2` first")
    } else if starts(b"QED\0") || starts(b"WithoutFreeSpace") || starts(b"WithouFreSpacExt") || starts(b"COWD") {
        refused("its format is obsolete; convert it with `qemu-img convert -O qcow2` first")
    } else if let Some((_, tool)) = COMPRESSED.iter().find(|(magic, _)| starts(magic)) {
        refused(&format!(
            "it is compressed; unpack a disk with `{tool}` first, import a tree with --layout, or force the format raw"
        ))
    } else if head.get(0x101..0x106) == Some(b"ustar") {
        refused(
            "it is a tar archive and no disk; import it with --layout, which says what disk it goes onto, or force the format raw",
        )
    } else {
        Ok(Format::Raw)
    }
}

const COMPRESSED: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd -d"),
    (b"\xfd7zXZ\0", "unxz"),
    (b"BZh", "bunzip2"),
    (b"PK\x03\x04", "unzip"),
];

/// Refuses headers that lead to other files, are encrypted or broken; returns
/// the raw size in bytes that qemu-img reports.
pub(crate) fn inspect(path: &Path, file: &File, format: Format) -> Result<u64, Error> {
    let refused = |why: String| Error::Refused { what: path.to_owned(), why };
    let mut head = [0; 112];
    let got = read_at_most(file, &mut head).map_err(Error::io("read", path))?;
    check_header(format, &head[..got]).map_err(refused)?;
    let info = info(path, format)?;
    let mut names = info.format_specific.iter().flat_map(|specific| &specific.data.extents);
    if info.backing_filename.is_some() || info.data_file().is_some() {
        return Err(refused(OTHER_FILE.to_owned()));
    }
    if let Some(extent) = names.find(|extent| Path::new(&extent.filename) != path) {
        return Err(refused(format!("its content is in another file, {}; {FLATTEN}", extent.filename)));
    }
    if info.encrypted {
        return Err(refused(ENCRYPTED.to_owned()));
    }
    if info.virtual_size > MAX_IMAGE_BYTES {
        let (size_bytes, limit_bytes) = (info.virtual_size, MAX_IMAGE_BYTES);
        return Err(Error::TooLarge { what: path.to_owned(), size_bytes, limit_bytes });
    }
    Ok(info.virtual_size)
}

const FLATTEN: &str = "make it whole with `qemu-img convert -O qcow2` where it was made";
const OTHER_FILE: &str = "it is based on another file (a backing or data file), which is never opened; \
     make it whole with `qemu-img convert -O qcow2` where it was made";
const ENCRYPTED: &str = "it is encrypted; decrypt it with `qemu-img convert` where the key is";

fn check_header(format: Format, head: &[u8]) -> Result<(), String> {
    match format {
        Format::Qcow2 => check_qcow2(head),
        Format::Vmdk => check_vmdk(head),
        Format::Raw | Format::Vhdx | Format::Vpc | Format::Vdi => Ok(()),
    }
}

/// QEMU's docs/interop/qcow2.txt: version at 4, backing file offset at 8,
/// encryption method at 32; from version 3 incompatible features at 72, whose
/// bit 1 says corrupt and bit 2 external data file.
fn check_qcow2(head: &[u8]) -> Result<(), String> {
    let cut = || "its header is cut off; copy it again".to_owned();
    let magic = head.get(..4).ok_or_else(cut)?;
    if magic != b"QFI\xfb" {
        return Err("it is not qcow2, as was said; leave the format out to have it found".to_owned());
    }
    let version = be32(head, 4).ok_or_else(cut)?;
    if !(2..=3).contains(&version) {
        return Err(format!("it is qcow version {version}; convert it with `qemu-img convert -O qcow2` first"));
    }
    if be64(head, 8).ok_or_else(cut)? != 0 {
        return Err(OTHER_FILE.to_owned());
    }
    if be32(head, 32).ok_or_else(cut)? != 0 {
        return Err(ENCRYPTED.to_owned());
    }
    let features = if version == 3 { be64(head, 72).ok_or_else(cut)? } else { 0 };
    if features & 0b100 != 0 {
        return Err(OTHER_FILE.to_owned());
    }
    if features & 0b10 != 0 {
        return Err("it is marked corrupt; repair it with `qemu-img check -r all` first".to_owned());
    }
    Ok(())
}

/// A sparse VMDK of capacity 0 is a wrapper around a text that names files.
fn check_vmdk(head: &[u8]) -> Result<(), String> {
    let capacity = head.get(12..20).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    match (head.starts_with(b"KDMV"), capacity) {
        (true, Some(1..)) => Ok(()),
        (true, _) => Err(format!("it only describes other files; {FLATTEN}")),
        (false, _) => Err("it is not a sparse vmdk, as was said; leave the format out to have it found".to_owned()),
    }
}

fn be32(head: &[u8], at: usize) -> Option<u32> {
    head.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn be64(head: &[u8], at: usize) -> Option<u64> {
    head.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

impl Info {
    fn data_file(&self) -> Option<&String> {
        self.format_specific.as_ref()?.data.data_file.as_ref()
    }
}

#[derive(Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct SpecificData {
    data_file: Option<String>,
    extents: Vec<Extent>,
}

#[derive(Deserialize)]
struct Extent {
    filename: String,
}

fn info(path: &Path, format: Format) -> Result<Info, Error> {
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json", "-f", format.name(), "--"]).arg(path);
    let mut text = Vec::new();
    let mut qemu = Qemu::start(command, "read", path, format)?;
    let deadline = Instant::now() + INFO_DEADLINE;
    while let Some(chunk) = qemu.output(deadline)? {
        text.extend_from_slice(&chunk);
        if text.len() > 4 << 20 {
            return Err(qemu.failed("its description is longer than 4 MiB"));
        }
    }
    qemu.wait(deadline)?;
    serde_json::from_slice(&text).map_err(|error| qemu.failed(&format!("its description is unreadable: {error}")))
}

/// Converts a file that [`inspect`] accepted into a new sparse raw file.
pub(crate) fn convert(
    path: &Path,
    format: Format,
    size_bytes: u64,
    raw: &Path,
    progress: &mut Progress<'_>,
) -> Result<(), Error> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-S", "4k", "-f", format.name(), "-O", "raw", "--"]).arg(path).arg(raw);
    let mut qemu = Qemu::start(command, "convert", path, format)?;
    let mut percent = Percent::default();
    while let Some(chunk) = qemu.output(Instant::now() + STALL_DEADLINE)? {
        let done = (percent.feed(&chunk) / 100.0 * size_bytes as f64) as u64;
        if let ControlFlow::Break(()) = progress(done.min(size_bytes), size_bytes) {
            return Err(Error::Cancelled);
        }
    }
    qemu.wait(Instant::now() + STALL_DEADLINE)
}

/// Reads `    (12.34/100%)\r` as qemu-img -p prints it.
#[derive(Default)]
struct Percent {
    digits: String,
    latest: f64,
}

impl Percent {
    fn feed(&mut self, chunk: &[u8]) -> f64 {
        for &byte in chunk {
            match byte {
                b'0'..=b'9' | b'.' if self.digits.len() < 8 => self.digits.push(char::from(byte)),
                b'/' => self.latest = self.digits.parse().unwrap_or(self.latest),
                _ => self.digits.clear(),
            }
        }
        self.latest
    }
}

/// A running qemu-img; ended when dropped.
struct Qemu<'a> {
    child: Child,
    output: Receiver<Vec<u8>>,
    words: Option<thread::JoinHandle<String>>,
    action: &'static str,
    what: &'a Path,
}

impl<'a> Qemu<'a> {
    fn start(mut command: Command, action: &'static str, what: &'a Path, format: Format) -> Result<Self, Error> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoQemuImg { format: format.name() },
            _ => Error::QemuImg { action, what: what.to_owned(), message: format!("it cannot be started: {error}") },
        })?;
        let (sender, output) = channel();
        if let Some(mut stdout) = child.stdout.take() {
            thread::spawn(move || {
                let mut chunk = [0; 4096];
                while let Ok(got @ 1..) = stdout.read(&mut chunk) {
                    if sender.send(chunk[..got].to_vec()).is_err() {
                        return;
                    }
                }
            });
        }
        let words = child.stderr.take().map(|stderr| thread::spawn(move || read_words(stderr)));
        Ok(Self { child, output, words, action, what })
    }

    /// The next output, none at its end.
    fn output(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => Ok(Some(chunk)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.failed("it made no progress for too long and was ended")),
        }
    }

    /// Waits for its end, which follows the end of its output at once.
    fn wait(&mut self, deadline: Instant) -> Result<(), Error> {
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() > deadline => return Err(self.failed("it did not end and was ended")),
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(self.failed(&error.to_string())),
            }
        };
        if status.success() {
            return Ok(());
        }
        let words = self.words.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        Err(self.failed(if words.is_empty() { "it failed without a word" } else { &words }))
    }

    fn failed(&self, message: &str) -> Error {
        Error::QemuImg { action: self.action, what: self.what.to_owned(), message: message.to_owned() }
    }
}

impl Drop for Qemu<'_> {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps the beginning of what a program says, reads the rest so that it does
/// not block.
fn read_words(mut stderr: impl Read) -> String {
    let mut words = Vec::new();
    let _ = stderr.by_ref().take(MESSAGE_BYTES).read_to_end(&mut words);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// Reads as much as there is from `offset`, at most the buffer; what cannot be read is as if it were not there.
pub(crate) fn read_range(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(more @ 1..) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    got
}

/// Reads the beginning of a file, which may be shorter than the buffer.
pub(crate) fn read_at_most(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn found(head: &[u8]) -> Result<Format, Error> {
        probe(Path::new("/x"), head)
    }

    #[test]
    fn formats_are_told_by_their_magic() {
        let mut tar = vec![b'x'; 512];
        tar[0x101..0x106].copy_from_slice(b"ustar");
        let mut vdi = vec![0; 0x44];
        vdi[0x40..].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        for (head, format) in [
            (b"QFI\xfb\0\0\0\x03".as_slice(), Format::Qcow2),
            (b"KDMV", Format::Vmdk),
            (b"vhdxfile", Format::Vhdx),
            (b"conectix", Format::Vpc),
            (&vdi, Format::Vdi),
            (b"", Format::Raw),
            (b"\xeb\x63\x90", Format::Raw),
            (b"QFI", Format::Raw),
        ] {
            assert_eq!(found(head).unwrap(), format, "{head:?}");
        }
        for (head, word) in [
            (b"\x1f\x8b\x08".as_slice(), "gunzip"),
            (b"\x28\xb5\x2f\xfd", "zstd -d"),
            (b"\xfd7zXZ\0", "unxz"),
            (b"# Disk DescriptorFile\n", "other files"),
            (b"QED\0", "obsolete"),
            (&tar, "--layout"),
        ] {
            assert!(found(head).unwrap_err().to_string().contains(word), "{head:?}");
        }
    }

    #[test]
    fn format_names_round_trip() {
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
        }
        assert_eq!("vhd".parse::<Format>().unwrap(), Format::Vpc);
        assert!("qcow".parse::<Format>().unwrap_err().contains("raw, qcow2, vmdk"));
    }

    fn qcow2(version: u32) -> Vec<u8> {
        let mut head = vec![0; 112];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head
    }

    #[test]
    fn qcow2_headers_that_lead_elsewhere_are_refused() {
        assert!(check_qcow2(&qcow2(2)).is_ok());
        assert!(check_qcow2(&qcow2(3)).is_ok());
        for (at, value, word) in [
            (7, 1, "version 1"),
            (7, 4, "version 4"),
            (15, 1, "based on another file"),
            (35, 2, "encrypted"),
            (79, 0b100, "based on another file"),
            (79, 0b10, "corrupt"),
        ] {
            let mut head = qcow2(3);
            head[at] = value;
            let why = check_qcow2(&head).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
        for length in 0..80 {
            assert!(check_qcow2(&qcow2(3)[..length]).is_err(), "{length}");
        }
        assert!(check_qcow2(&[0; 112]).unwrap_err().contains("not qcow2"));
    }

    #[test]
    fn a_vmdk_that_only_wraps_names_is_refused() {
        let mut head = vec![0; 112];
        head[..4].copy_from_slice(b"KDMV");
        assert!(check_vmdk(&head).is_err());
        head[12] = 8;
        assert!(check_vmdk(&head).is_ok());
        assert!(check_vmdk(&head[..15]).is_err());
        assert!(check_vmdk(&[0; 112]).is_err());
    }

    #[test]
    fn percents_are_read_across_chunks() {
        let mut percent = Percent::default();
        assert_eq!(percent.feed(b"    (0.00/100%)\r    (12"), 0.0);
        assert_eq!(percent.feed(b".34/100%)\r"), 12.34);
        assert_eq!(percent.feed(b"    (100.00/100%)\r\n"), 100.0);
    }
}
