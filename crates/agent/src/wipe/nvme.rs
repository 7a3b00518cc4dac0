//! Disks that sanitise themselves by NVMe's Sanitize or Format commands, through nvme-cli.

use std::fs;
use std::path::{Path, PathBuf};

use fleet::wipe::Used;

use super::{Failure, QUESTION_LIMIT, SANITISE_LIMIT, Sanitise};
use crate::Stop;
use crate::command::{CommandError, Run};

/// A namespace, which is what the kernel calls a disk, and its controller.
pub(super) struct Nvme {
    namespace: PathBuf,
    controller: PathBuf,
    /// Namespaces of the controller that the kernel shows.
    namespaces: usize,
}

/// What `nvme id-ctrl` tells, as far as it matters here (NVM Express Base 2.0, figure 275).
#[derive(Debug, Default, PartialEq, Eq)]
struct Abilities {
    sanicap: u64,
    oacs: u64,
    fna: u64,
    cmic: u64,
}

impl Nvme {
    /// The disk at `path`, if it is one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (controller, _) = name.strip_prefix("nvme")?.split_once('n')?;
        let controller = format!("nvme{controller}");
        let is_namespace = |other: &str| other.starts_with(&format!("{controller}n"));
        let all = fs::read_dir("/sys/block").ok()?.flatten();
        let namespaces = all.filter(|entry| is_namespace(&entry.file_name().to_string_lossy())).count();
        Some(Self { namespace: path.to_owned(), controller: Path::new("/dev").join(controller), namespaces })
    }

    fn nvme(&self, words: &[&str], on: &Path, stop: &Stop) -> Result<String, CommandError> {
        let limit = if words[0] == "format" { SANITISE_LIMIT } else { QUESTION_LIMIT };
        Run::new("nvme", limit).args([words[0]]).args([on]).args(&words[1..]).text(stop)
    }
}

impl Sanitise for Nvme {
    fn offers(&self, stop: &Stop) -> Result<Vec<Used>, String> {
        let told = self.nvme(&["id-ctrl"], &self.controller, stop).map_err(|error| error.to_string())?;
        let ways = offered(&abilities(&told), self.namespaces);
        if ways.is_empty() {
            return Err(format!(
                "its controller offers no way to erase this namespace alone (it has {})",
                self.namespaces
            ));
        }
        Ok(ways)
    }

    fn begin(&self, used: Used, stop: &Stop) -> Result<(), CommandError> {
        match used {
            Used::NvmeSanitiseCrypto => self.nvme(&["sanitize", "--sanact=4"], &self.controller, stop),
            Used::NvmeSanitiseBlock => self.nvme(&["sanitize", "--sanact=2"], &self.controller, stop),
            // User data erase; it returns when it is done.
            _ => self.nvme(&["format", "--ses=1", "--force"], &self.namespace, stop),
        }
        .map(drop)
    }

    fn progress(&self, used: Used, stop: &Stop) -> Result<Option<u64>, Failure> {
        if used == Used::NvmeFormat {
            return Ok(None);
        }
        let told = self.nvme(&["sanitize-log"], &self.controller, stop).map_err(Failure::of(used))?;
        status(&told).map_err(|why| Failure::Device(used, why))
    }
}

fn abilities(told: &str) -> Abilities {
    let value = |name: &str| {
        let line = told.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| number(line.split_once(':')?.1)).unwrap_or(0)
    };
    Abilities { sanicap: value("sanicap"), oacs: value("oacs"), fna: value("fna"), cmic: value("cmic") }
}

/// Sanitize takes every namespace of the subsystem, so it is no way where there are others: they are other disks.
fn offered(abilities: &Abilities, namespaces: usize) -> Vec<Used> {
    let Abilities { sanicap, oacs, fna, cmic } = abilities;
    // CMIC bit 1: other controllers belong to the subsystem, with namespaces that are not seen here.
    let alone = namespaces == 1 && cmic & 0b10 == 0;
    let mut ways = Vec::new();
    if alone && sanicap & 0b001 != 0 {
        ways.push(Used::NvmeSanitiseCrypto);
    }
    if alone && sanicap & 0b010 != 0 {
        ways.push(Used::NvmeSanitiseBlock);
    }
    // OACS bit 1: Format. FNA bits 0 and 1: formatting, or erasing, takes all namespaces.
    if oacs & 0b10 != 0 && (alone || fna & 0b11 == 0) {
        ways.push(Used::NvmeFormat);
    }
    ways
}

/// The sanitize status log page: SSTAT's low three bits are the state, SPROG is a fraction of 65536.
fn status(told: &str) -> Result<Option<u64>, String> {
    let value = |name: &str| {
        let line = told.lines().find(|line| line.contains(name))?;
        number(line.split_once(':')?.1)
    };
    let unclear = || format!("the controller says: {}", told.split_whitespace().collect::<Vec<_>>().join(" "));
    match value("(SSTAT)").ok_or_else(unclear)? & 0b111 {
        // Completed; completed without deallocation.
        1 | 4 => Ok(None),
        2 => Ok(Some((value("(SPROG)").unwrap_or(0) * 1000) >> 16)),
        _ => Err(unclear()),
    }
}

fn number(text: &str) -> Option<u64> {
    let word = text.split_whitespace().next()?;
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const TOLD: &str = "NVME Identify Controller:\nvid       : 0x144d\nmn        : SAMSUNG: a disk\ncmic      : 0\n\
                        oacs      : 0x17\nnn        : 1\nfna       : 0\nsanicap   : 0xa0000002\n";

    #[test]
    fn what_a_controller_can_do_is_read() {
        assert_eq!(abilities(TOLD), Abilities { sanicap: 0xa000_0002, oacs: 0x17, fna: 0, cmic: 0 });
        assert_eq!(offered(&abilities(TOLD), 1), [Used::NvmeSanitiseBlock, Used::NvmeFormat]);
        assert!(offered(&abilities(""), 1).is_empty());
    }

    #[test]
    fn what_would_take_other_disks_along_is_no_way() {
        let all = || Abilities { sanicap: 3, oacs: 2, fna: 0, cmic: 0 };
        assert_eq!(offered(&all(), 1), [Used::NvmeSanitiseCrypto, Used::NvmeSanitiseBlock, Used::NvmeFormat]);
        assert_eq!(offered(&all(), 2), [Used::NvmeFormat]);
        assert!(offered(&Abilities { fna: 2, ..all() }, 2).is_empty());
        assert_eq!(offered(&Abilities { cmic: 2, ..all() }, 1), [Used::NvmeFormat]);
    }

    #[test]
    fn its_progress_is_read_and_anything_unknown_is_a_failure() {
        let log = |sprog: &str, sstat: &str| {
            status(&format!(
                "Sanitize Progress                      (SPROG) :  {sprog}\n\
                 Sanitize Status                        (SSTAT) :  {sstat}\n"
            ))
        };
        assert_eq!(log("32768 (50.000000%)", "0x2"), Ok(Some(500)));
        assert_eq!(log("65535", "0x101"), Ok(None));
        assert_eq!(log("65535", "0x4"), Ok(None));
        for sstat in ["0", "0x3", "what"] {
            assert!(log("65535", sstat).is_err(), "{sstat}");
        }
    }

    #[test]
    fn names_of_namespaces_lead_to_their_controllers() {
        assert!(Nvme::of(Path::new("/dev/sda")).is_none() && Nvme::of(Path::new("/dev/nvme0")).is_none());
        assert_eq!(Nvme::of(Path::new("/dev/nvme12n3")).unwrap().controller, Path::new("/dev/nvme12"));
    }
}
