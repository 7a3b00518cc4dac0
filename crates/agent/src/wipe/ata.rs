//! Disks that sanitise themselves by the ATA command SANITIZE DEVICE (ACS-3, 7.36), through hdparm.
//!
//! The older SECURITY ERASE UNIT is not used: it needs a password, and a disk whose power fails in the middle stays locked.

use std::path::{Path, PathBuf};

use fleet::wipe::Used;

use super::{Failure, QUESTION_LIMIT, Sanitise};
use crate::Stop;
use crate::command::{CommandError, Run};

/// hdparm asks for this before it erases anything.
const SURE: &str = "--yes-i-know-what-i-am-doing";

pub(super) struct Ata(PathBuf);

impl Ata {
    pub(super) fn of(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn hdparm(&self, words: &[&str], stop: &Stop) -> Result<String, CommandError> {
        Run::new("hdparm", QUESTION_LIMIT).args(words).args([&self.0]).text(stop)
    }
}

impl Sanitise for Ata {
    fn offers(&self, stop: &Stop) -> Result<Vec<Used>, String> {
        let told = self.hdparm(&["-I"], stop).map_err(|error| error.to_string())?;
        let ways = offered(&told);
        if ways.is_empty() {
            return Err("it has no SANITIZE feature set, or neither of its erasing commands".to_owned());
        }
        Ok(ways)
    }

    fn begin(&self, used: Used, stop: &Stop) -> Result<(), CommandError> {
        let command = match used {
            Used::AtaSanitiseCrypto => "--sanitize-crypto-scramble",
            _ => "--sanitize-block-erase",
        };
        self.hdparm(&[SURE, command], stop).map(drop)
    }

    fn progress(&self, used: Used, stop: &Stop) -> Result<Option<u64>, Failure> {
        let told = self.hdparm(&["--sanitize-status"], stop).map_err(Failure::of(used))?;
        status(&told).map_err(|why| Failure::Device(used, why))
    }
}

/// What `hdparm -I` lists: a star stands before what is there.
fn offered(told: &str) -> Vec<Used> {
    let has = |what: &str| told.lines().any(|line| line.trim_start().starts_with('*') && line.contains(what));
    if !has("SANITIZE feature set") {
        return Vec::new();
    }
    // The key first: it is done in seconds, and reaches every copy.
    [("CRYPTO_SCRAMBLE_EXT command", Used::AtaSanitiseCrypto), ("BLOCK_ERASE_EXT command", Used::AtaSanitiseBlock)]
        .into_iter()
        .filter_map(|(what, used)| has(what).then_some(used))
        .collect()
}

/// What `hdparm --sanitize-status` prints, as thousandths, or none at its good end.
fn status(told: &str) -> Result<Option<u64>, String> {
    if told.contains("SD2 Sanitize operation In Process") {
        let percent = told.split_once('(').and_then(|(_, rest)| rest.split_once('%')).map(|(number, _)| number.trim());
        return Ok(Some(percent.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 10));
    }
    if told.contains("SD0 Sanitize Idle") && told.contains("Completed Without Error") {
        return Ok(None);
    }
    let said = told.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    Err(format!("the disk says: {said}"))
}

/// Sectors between what the disk shows and what it has (`hdparm -N`); none where it does not say.
pub(super) fn hidden_sectors(path: &Path, stop: &Stop) -> Option<u64> {
    if !super::is_ata(path) {
        return None;
    }
    hidden(&Run::new("hdparm", QUESTION_LIMIT).args(["-N"]).args([path]).text(stop).ok()?)
}

/// ` max sectors   = 976771055/976773168, HPA is enabled`.
fn hidden(told: &str) -> Option<u64> {
    let (_, numbers) = told.split_once("max sectors")?;
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok());
    let (shown, there) = (numbers.next()?, numbers.next()?);
    Some(there.saturating_sub(shown))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_offers_is_read() {
        let told = "\tEnabled\tSupported:\n\t   *\tSMART feature set\n\t   *\tSANITIZE feature set\n\
                    \t   *\tCRYPTO_SCRAMBLE_EXT command\n\t   *\tBLOCK_ERASE_EXT command\n";
        assert_eq!(offered(told), [Used::AtaSanitiseCrypto, Used::AtaSanitiseBlock]);
        assert_eq!(offered(&told.replace("   *\tCRYPTO", "    \tCRYPTO")), [Used::AtaSanitiseBlock]);
        assert!(offered("\t   *\tSMART feature set\n\t   *\tBLOCK_ERASE_EXT command\n").is_empty());
    }

    #[test]
    fn its_state_is_read_and_anything_unknown_is_a_failure() {
        let state =
            |text: &str| status(&format!("/dev/sda:\nIssuing SANITIZE_STATUS command\nSanitize status:\n{text}"));
        let running = "    State:    SD2 Sanitize operation In Process\n    Progress: 0x7fff (50%)\n";
        assert_eq!(state(running), Ok(Some(500)));
        let done = "    State:    SD0 Sanitize Idle\n    Last Sanitize Operation Completed Without Error\n";
        assert_eq!(state(done), Ok(None));
        for bad in ["    State:    SD0 Sanitize Idle\n", "    State:    SD3 Sanitize Operation Failed\n", ""] {
            assert!(state(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hidden_area_is_counted() {
        assert_eq!(hidden("\n/dev/sda:\n max sectors   = 976771055/976773168, HPA is enabled\n"), Some(2113));
        assert_eq!(hidden(" max sectors   = 976773168/976773168, HPA is disabled\n"), Some(0));
        assert_eq!(hidden("SG_IO: bad/missing sense data"), None);
    }
}
