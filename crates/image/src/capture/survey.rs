//! Which bytes of a disk are used: file systems are asked, everything unknown counts as used.
//!
//! A file system that was not shut down cleanly has changes in its journal that its maps of free space do not know; such a
//! one is taken whole, since what is freely left out would be missing when the journal is played back.

use std::fmt;
use std::fs::File;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet::disk::Size;

use super::extents::Extents;
use super::table::{Slot, Table};
use super::tool::Tool;
use super::{attach, fat};
use crate::Error;

/// Reading the free-space maps of a large, slow disk takes minutes.
const LIMIT: Duration = Duration::from_secs(1800);
/// What begins a partition: enough for every sign that is looked for.
const HEAD_BYTES: usize = 68 << 10;
/// Sizes of pages that a swap area may have been made for.
const PAGES: [usize; 4] = [4096, 8192, 16 << 10, 64 << 10];

/// What is in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// FAT12, FAT16 or FAT32, such as an EFI system partition.
    Fat,
    /// A swap area.
    Swap,
    /// Something with a name whose free space is not known here.
    Other(&'static str),
    /// No sign that is known.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "ext4",
            Self::Xfs => "xfs",
            Self::Fat => "vfat",
            Self::Swap => "swap",
            Self::Other(name) => name,
            Self::Unknown => "unknown content",
        })
    }
}

/// A partition, or a disk without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number; none for the whole disk.
    pub number: Option<u32>,
    /// Where it is, in bytes.
    pub range: Range<u64>,
    /// What is in it.
    pub kind: Kind,
    /// How many bytes of it are used.
    pub used_bytes: u64,
    /// Why all of it counts as used although its kind is known.
    pub whole_because: Option<String>,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "partition {number}: ")?,
            None => f.write_str("no partitions: ")?,
        }
        write!(f, "{}, {} of {}", self.kind, Size(self.used_bytes), Size(self.range.end - self.range.start))?;
        match &self.whole_because {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Its partitions, in the order of the disk.
    pub parts: Vec<Part>,
    /// The bytes in use.
    pub used: Extents,
}

/// Finds out what of a disk is used. The disk is only read.
///
/// # Errors
/// When it cannot be read, is that of a machine that sleeps, or a program is not installed.
pub fn survey(file: &File, path: &Path, size_bytes: u64, sector_bytes: u64) -> Result<Survey, Error> {
    let table = Table::read(file, size_bytes, sector_bytes);
    let mut used = table.around;
    let mut parts = Vec::new();
    for slot in table.slots {
        let partition = Partition { file, path, slot: &slot };
        let kind = partition.kind()?;
        let (free, whole_because) = match partition.free(kind)? {
            Free::Known(free) => (free, None),
            Free::Unknown(why) => (Extents::default(), why),
        };
        let within = free.outside(slot.range.clone());
        parts.push(Part { number: slot.number, range: slot.range, kind, used_bytes: within.bytes(), whole_because });
        used.extend(within.iter().cloned());
    }
    Ok(Survey { size_bytes, parts, used: Extents::of(used) })
}

/// The bytes of a partition that are free, or why nobody knows.
enum Free {
    Known(Extents),
    Unknown(Option<String>),
}

struct Partition<'a> {
    file: &'a File,
    path: &'a Path,
    slot: &'a Slot,
}

impl Partition<'_> {
    fn kind(&self) -> Result<Kind, Error> {
        let length = (self.slot.range.end - self.slot.range.start).min(HEAD_BYTES as u64);
        let mut head = vec![0; length as usize];
        let start = self.slot.range.start;
        self.file.read_exact_at(&mut head, start).map_err(Error::device("read", self.path, start))?;
        if sleeps(&head) {
            let why =
                "the machine was put to sleep on it and not shut down: start the machine, shut it down, try again";
            return Err(Error::Refused { what: self.path.to_owned(), why: why.to_owned() });
        }
        Ok(kind_of(&head))
    }

    fn free(&self, kind: Kind) -> Result<Free, Error> {
        let size_bytes = self.slot.range.end - self.slot.range.start;
        match kind {
            Kind::Ext => self.ext(),
            Kind::Xfs => self.xfs(),
            Kind::Fat => match fat::free(self.file, self.slot.range.clone()) {
                Ok(free) => Ok(Free::Known(free)),
                Err(why) => Ok(Free::Unknown(Some(why))),
            },
            // The header stays, with the identifier that /etc/fstab names it by.
            Kind::Swap => {
                let page = self.page().min(size_bytes);
                Ok(Free::Known(Extents::of(once(self.slot.range.start + page..self.slot.range.end))))
            }
            Kind::Other(_) => Ok(Free::Unknown(Some("its free space is not known".to_owned()))),
            Kind::Unknown => Ok(Free::Unknown(None)),
        }
    }

    fn page(&self) -> u64 {
        let mut head = vec![0; HEAD_BYTES];
        let got = crate::format::read_range(self.file, &mut head, self.slot.range.start);
        swap_page(&head[..got]).unwrap_or(PAGES[0]) as u64
    }

    /// What dumpe2fs calls free.
    fn ext(&self) -> Result<Free, Error> {
        let tool = Tool { program: "dumpe2fs", package: "e2fsprogs", limit: LIMIT, fine: &[0] };
        let mut reading = Dumpe2fs::default();
        let target = format!("{}?offset={}", self.path.display(), self.slot.range.start);
        match tool.run([target], &mut |line| reading.line(line)) {
            Ok(_) => Ok(reading.free(self.slot.range.clone())),
            Err(Error::Tool { message, .. }) => Ok(Free::Unknown(Some(format!("dumpe2fs cannot read it: {message}")))),
            Err(error) => Err(error),
        }
    }

    /// What xfs_db calls free, where xfs_logprint finds nothing left in the log.
    fn xfs(&self) -> Result<Free, Error> {
        let unknown = |why: String| Ok(Free::Unknown(Some(why)));
        let device = match attach::device_of(self.file, self.path, self.slot.number, &self.slot.range) {
            Ok(device) => device,
            Err(why) => return unknown(why),
        };
        let path = device.path().to_owned();
        let print = Tool { program: "xfs_logprint", package: "xfsprogs", limit: LIMIT, fine: &[0, 1, 2] };
        let mut clean = false;
        print.run([Path::new("-t"), &path], &mut |line| clean |= line.contains("<CLEAN>"))?;
        if !clean {
            return unknown(UNCLEAN.to_owned());
        }
        let db = Tool { program: "xfs_db", package: "xfsprogs", limit: LIMIT, fine: &[0] };
        let mut reading = XfsDb::default();
        let commands =
            ["-r", "-c", "sb 0", "-c", "print blocksize agblocks dblocks", "-c", "freesp -d"].map(PathBuf::from);
        let asked = db.run(commands.into_iter().chain([path]), &mut |line| reading.line(line));
        match asked {
            Ok(_) => Ok(reading.free(self.slot.range.clone())),
            Err(Error::Tool { message, .. }) => unknown(format!("xfs_db cannot read it: {message}")),
            Err(error) => Err(error),
        }
    }
}

const UNCLEAN: &str = "it was not shut down cleanly, so all of it is taken";

/// Tells what a partition holds by the signs that each kind leaves. Two signs at once are no sign.
fn kind_of(head: &[u8]) -> Kind {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let signs = [
        (at(1080, &[0x53, 0xef]), Kind::Ext),
        (at(0, b"XFSB"), Kind::Xfs),
        (fat::is_fat(head), Kind::Fat),
        (swap_page(head).is_some(), Kind::Swap),
        (at(0x1_0040, b"_BHRfS_M"), Kind::Other("btrfs")),
        (at(0, b"LUKS\xba\xbe"), Kind::Other("LUKS")),
        ((0..4).any(|sector| at(sector * 512, b"LABELONE")), Kind::Other("LVM")),
        (at(3, b"NTFS    "), Kind::Other("ntfs")),
        (at(1024, &[0x10, 0x20, 0xf5, 0xf2]), Kind::Other("f2fs")),
        (at(4096, &[0xfc, 0x4e, 0x2b, 0xa9]) || at(0, &[0xfc, 0x4e, 0x2b, 0xa9]), Kind::Other("RAID")),
    ];
    let mut found = signs.into_iter().filter(|(is, _)| *is).map(|(_, kind)| kind);
    match (found.next(), found.next()) {
        (Some(kind), None) => kind,
        (Some(_), Some(_)) => Kind::Other("signs of more than one file system"),
        (None, _) => Kind::Unknown,
    }
}

fn swap_page(head: &[u8]) -> Option<usize> {
    PAGES.into_iter().find(|page| head.get(page - 10..*page) == Some(b"SWAPSPACE2"))
}

fn sleeps(head: &[u8]) -> bool {
    PAGES
        .into_iter()
        .any(|page| matches!(head.get(page - 10..page - 1), Some(b"S1SUSPEND" | b"S2SUSPEND" | b"ULSUSPEND")))
}

/// Reads what dumpe2fs prints.
#[derive(Default)]
struct Dumpe2fs {
    block_bytes: u64,
    blocks: u64,
    clean: bool,
    journal_pending: bool,
    free: Vec<Range<u64>>,
    strange: Option<String>,
}

impl Dumpe2fs {
    fn line(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        if let Some(list) = line.strip_prefix("  Free blocks: ") {
            for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                match (first.parse::<u64>(), last.parse::<u64>()) {
                    (Ok(first), Ok(last)) if first <= last && last < u64::from(u32::MAX) << 16 => {
                        self.free.push(first..last + 1)
                    }
                    _ => self.strange = Some(item.chars().take(40).collect()),
                }
            }
        } else if let Some((name, value)) = line.split_once(':') {
            match name {
                "Block size" => self.block_bytes = number(value),
                "Block count" => self.blocks = number(value),
                "Filesystem state" => self.clean = value.trim() == "clean",
                "Filesystem features" => {
                    self.journal_pending = value.split_whitespace().any(|word| word == "needs_recovery")
                }
                _ => {}
            }
        }
    }

    fn free(self, range: Range<u64>) -> Free {
        let size_bytes = range.end - range.start;
        let fits = self.blocks.checked_mul(self.block_bytes).is_some_and(|bytes| bytes > 0 && bytes <= size_bytes);
        if let Some(strange) = self.strange {
            return Free::Unknown(Some(format!("dumpe2fs says `{strange}`, which is not understood")));
        }
        if !fits {
            return Free::Unknown(Some("it is larger than its partition".to_owned()));
        }
        if !self.clean || self.journal_pending {
            return Free::Unknown(Some(UNCLEAN.to_owned()));
        }
        let end = range.start + self.blocks * self.block_bytes;
        let bytes = self.free.iter().map(|blocks| {
            let at = |block: u64| (range.start + block * self.block_bytes).min(end);
            at(blocks.start)..at(blocks.end)
        });
        Free::Known(Extents::of(bytes.chain(once(end..range.end))))
    }
}

/// Reads what xfs_db prints: three numbers of the superblock, then a line for each free extent with the number of its
/// allocation group, its first block in that, and its length.
#[derive(Default)]
struct XfsDb {
    block_bytes: u64,
    group_blocks: u64,
    blocks: u64,
    free: Vec<[u64; 3]>,
}

impl XfsDb {
    fn line(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        if let Some((name, value)) = line.split_once('=') {
            match name.trim() {
                "blocksize" => self.block_bytes = number(value),
                "agblocks" => self.group_blocks = number(value),
                "dblocks" => self.blocks = number(value),
                _ => {}
            }
            return;
        }
        let numbers: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        if let Ok(extent) = <[u64; 3]>::try_from(numbers)
            && line.split_whitespace().count() == 3
        {
            self.free.push(extent);
        }
    }

    fn free(self, range: Range<u64>) -> Free {
        let size_bytes = range.end - range.start;
        let fits = self.blocks.checked_mul(self.block_bytes).is_some_and(|bytes| bytes > 0 && bytes <= size_bytes);
        if !fits || self.group_blocks == 0 {
            return Free::Unknown(Some("it is larger than its partition".to_owned()));
        }
        let bytes = |block: u64| block.checked_mul(self.block_bytes).map(|bytes| range.start + bytes);
        let extents = self.free.iter().map(|[group, first, length]| {
            let first = group.checked_mul(self.group_blocks)?.checked_add(*first)?;
            let end = first.checked_add(*length).filter(|end| *end <= self.blocks)?;
            Some(bytes(first)?..bytes(end)?)
        });
        match extents.collect::<Option<Vec<_>>>() {
            Some(free) => Free::Known(Extents::of(
                free.into_iter().chain(once(range.start + self.blocks * self.block_bytes..range.end)),
            )),
            None => Free::Unknown(Some("xfs_db says blocks beyond its end".to_owned())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn known(free: Free) -> Extents {
        match free {
            Free::Known(free) => free,
            Free::Unknown(why) => panic!("{why:?}"),
        }
    }

    fn dumpe2fs(text: &str) -> Free {
        let mut reading = Dumpe2fs::default();
        text.lines().for_each(|line| reading.line(line));
        reading.free(1000..1000 + 50 * 1024)
    }

    #[test]
    fn what_dumpe2fs_prints_is_understood() {
        let text = "Filesystem features:      has_journal extent\nFilesystem state:         clean\nBlock count:              40\n\
            Free blocks:              7\nBlock size:               1024\nGroup 0: (Blocks 1-8192)\n  7 free blocks, 2 free inodes\n  \
            Free blocks: 3, 5-8, 38-39\n  Free inodes: 4\n  Free blocks: \n";
        let expected = [3..4, 5..9, 38..50].map(|blocks| 1000 + blocks.start * 1024..1000 + blocks.end * 1024);
        assert_eq!(known(dumpe2fs(text)).iter().cloned().collect::<Vec<_>>(), expected);
        for (from, to) in [
            ("clean\n", "not clean\n"),
            ("clean\n", "clean with errors\n"),
            ("extent\n", "extent needs_recovery\n"),
            ("count:              40", "count:              51"),
            ("5-8", "8-5"),
            ("5-8", "x"),
        ] {
            assert!(matches!(dumpe2fs(&text.replacen(from, to, 1)), Free::Unknown(Some(_))), "{to}");
        }
        assert!(matches!(dumpe2fs(""), Free::Unknown(_)));
    }

    #[test]
    fn what_xfs_db_prints_is_understood() {
        let read = |text: &str| {
            let mut reading = XfsDb::default();
            text.lines().for_each(|line| reading.line(line));
            reading.free(512..512 + 100 * 4096)
        };
        let text = "blocksize = 4096\nagblocks = 50\ndblocks = 99\n    agno    agbno      len\n       0        6        4\n       1       10       39\n\
              from      to extents  blocks    pct\n     1       1       4       4   0.02\n";
        let expected = [6..10, 60..100].map(|blocks| 512 + blocks.start * 4096..512 + blocks.end * 4096);
        assert_eq!(known(read(text)).iter().cloned().collect::<Vec<_>>(), expected);
        assert!(matches!(read(&text.replace("39", "40")), Free::Unknown(_)));
        assert!(matches!(read(""), Free::Unknown(_)));
    }

    #[test]
    fn kinds_are_told_by_their_signs_and_two_are_none() {
        let mut head = vec![0; HEAD_BYTES];
        assert_eq!(kind_of(&head), Kind::Unknown);
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(kind_of(&head), Kind::Ext);
        head[..4].copy_from_slice(b"XFSB");
        assert!(matches!(kind_of(&head), Kind::Other(_)));
        let mut swap = vec![0; HEAD_BYTES];
        swap[(16 << 10) - 10..16 << 10].copy_from_slice(b"SWAPSPACE2");
        assert_eq!((kind_of(&swap), swap_page(&swap)), (Kind::Swap, Some(16 << 10)));
        assert_eq!(kind_of(&[]), Kind::Unknown);
        swap[4086..4095].copy_from_slice(b"S1SUSPEND");
        assert!(sleeps(&swap) && !sleeps(&head) && !sleeps(&[]));
    }
}
