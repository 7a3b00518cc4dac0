//! Wiping a machine's disks: what is ordered, what was done, and what that is worth.
//!
//! The words are those of NIST SP 800-88: *purged* is what a laboratory cannot get back either, *cleared* what nobody can
//! get back through the device's own interface. Everything else is *not sanitised*, and the certificate says why.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::disk::{Allow, Disk, DiskRule, Purpose, Refusal, Size, candidates, choose};
use crate::ids::{Attempt, Millis, NodeName};

/// Most disks of one order.
pub const MAX_DISKS: usize = 64;
/// Certificates that are kept with a node; the oldest go first. The timeline keeps a sentence of each.
pub const MAX_CERTIFICATES: usize = 64;

/// How a disk is to be wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The device's own sanitising where it says that it can, else zeros over everything.
    #[default]
    Auto,
    /// The device's own sanitising, or nothing.
    Sanitise,
    /// Zeros over everything.
    Overwrite,
    /// The device is told that all its blocks are free. Takes seconds, and promises nothing.
    Discard,
}

impl Method {
    /// What it does, for help.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Auto => "the device's own sanitising where it has that, else zeros over everything",
            Self::Sanitise => "the device's own sanitising, or nothing",
            Self::Overwrite => "zeros over everything",
            Self::Discard => "the device is told that all its blocks are free: seconds, and not sanitised",
        }
    }

    /// The word for it in the CLI and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sanitise => "sanitise",
            Self::Overwrite => "overwrite",
            Self::Discard => "discard",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was done to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Used {
    /// NVMe Sanitize, the key changed.
    NvmeSanitiseCrypto,
    /// NVMe Sanitize, blocks erased.
    NvmeSanitiseBlock,
    /// NVMe Format with secure erase of user data.
    NvmeFormat,
    /// ATA SANITIZE DEVICE, the key changed.
    AtaSanitiseCrypto,
    /// ATA SANITIZE DEVICE, blocks erased.
    AtaSanitiseBlock,
    /// Zeros over everything.
    Overwrite,
    /// Secure discard: the device is to erase, not only to forget.
    SecureDiscard,
    /// Discard.
    Discard,
    /// Nothing.
    Nothing,
}

impl Used {
    /// What people call it.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::NvmeSanitiseCrypto => "NVMe sanitise, crypto erase",
            Self::NvmeSanitiseBlock => "NVMe sanitise, block erase",
            Self::NvmeFormat => "NVMe format with secure erase",
            Self::AtaSanitiseCrypto => "ATA sanitise, crypto scramble",
            Self::AtaSanitiseBlock => "ATA sanitise, block erase",
            Self::Overwrite => "overwritten with zeros",
            Self::SecureDiscard => "secure discard",
            Self::Discard => "discard",
            Self::Nothing => "nothing was done",
        }
    }

    /// Whether every block reads as zeros afterwards.
    #[must_use]
    pub fn leaves_zeros(self) -> bool {
        self == Self::Overwrite
    }
}

/// What an operator wants wiped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Wipe {
    /// The disks; each rule must name exactly one ([`exact`]).
    pub disks: Vec<DiskRule>,
    /// How.
    #[serde(default)]
    pub method: Method,
}

impl Wipe {
    /// Whether this order can only mean what it says.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return Err(format!("a wipe needs 1 to {MAX_DISKS} disks, not {}", self.disks.len()));
        }
        let names_one = |rule: &DiskRule| rule.serial.is_some() || rule.wwn.is_some() || rule.path.is_some();
        match self.disks.iter().find(|rule| !names_one(rule)) {
            Some(rule) => Err(format!("`{rule}` does not name a disk; a wipe needs its serial number, wwn or path")),
            None => Ok(()),
        }
    }
}

/// The disks that an operator means, with the rules that lead to each of them and to nothing else.
///
/// # Errors
/// A sentence where a disk cannot be meant or cannot be told from others.
pub fn resolve<'a>(disks: &'a [Disk], rule: &DiskRule, all: bool) -> Result<Vec<(&'a Disk, DiskRule)>, String> {
    let wanted = match all {
        true => candidates(disks, rule, Purpose::Wipe),
        false => vec![choose(disks, rule, Purpose::Wipe).map_err(|refusal| refusal.to_string())?],
    };
    if wanted.is_empty() {
        let refusal = choose(disks, rule, Purpose::Wipe).err();
        return Err(refusal.as_ref().map_or_else(|| "no disk is meant".to_owned(), Refusal::to_string));
    }
    wanted.into_iter().map(|disk| Ok((disk, exact(disk, disks, &rule.allow)?))).collect()
}

/// The rule that leads to this disk alone, also when the machine has started anew.
///
/// # Errors
/// A sentence where nothing tells it from another disk.
pub fn exact(disk: &Disk, disks: &[Disk], allow: &[Allow]) -> Result<DiskRule, String> {
    let size = Some(disk.size_bytes);
    let mut rule = DiskRule {
        min_size_bytes: size,
        max_size_bytes: size,
        serial: disk.serial.clone(),
        wwn: disk.wwn.clone(),
        allow: allow.to_vec(),
        ..DiskRule::default()
    };
    if rule.serial.is_none() && rule.wwn.is_none() {
        // Device paths change places between two starts; that of the only disk does not matter.
        let twins = candidates(disks, &rule, Purpose::Wipe).len();
        if twins > 1 {
            return Err(format!(
                "{disk} tells no serial number and no wwn, and {twins} disks are as large: after a restart nobody could say which is meant"
            ));
        }
        rule.path = Some(disk.path.clone());
    }
    choose(disks, &rule, Purpose::Wipe).map(|_| rule).map_err(|refusal| refusal.to_string())
}

/// Places of a disk that were looked at before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Samples {
    /// How many: the first and the last block, and one at a random place of each of as many equal stretches.
    pub places: u32,
    /// Bytes of each.
    pub block_bytes: u32,
    /// Where a random mark was written before, and was read back from the device.
    pub marked: u32,
    /// Where zeros are now.
    pub zero: u32,
    /// Where something is now that is neither zeros nor the mark.
    pub other: u32,
    /// Where the mark is still there.
    pub unchanged: u32,
    /// Where nothing can be read.
    pub unreadable: u32,
}

/// What a wipe is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Worth {
    /// What was there cannot be got back, as far as the device keeps its word.
    Purged,
    /// What was there cannot be got back through the device's interface.
    Cleared,
    /// What was there may be got back.
    NotSanitised,
}

impl Worth {
    /// The words on the certificate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Purged => "purged",
            Self::Cleared => "cleared",
            Self::NotSanitised => "not sanitised",
        }
    }
}

impl fmt::Display for Worth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of a wipe when its worth is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What was done.
    pub used: Used,
    /// What went wrong, as sentences.
    pub failures: Vec<String>,
    /// What is at the sampled places.
    pub samples: Samples,
    /// It turns, and has no spare blocks behind every block.
    pub rotational: bool,
    /// Sectors that the device hides from its users, where it told of some.
    pub hidden_sectors: u64,
}

/// A judgement: the worth, the sentences for it, and whether the wipe fell short of what its method promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What it is worth.
    pub worth: Worth,
    /// Why it is not worth more.
    pub reasons: Vec<String>,
    /// True where the method did not do what it is for.
    pub failed: bool,
}

/// What a wipe is worth. In doubt it is worth nothing.
#[must_use]
pub fn judge(facts: &Facts) -> Judgement {
    let samples = &facts.samples;
    let mut faults = facts.failures.clone();
    let mut fault = |count: u32, what: &str| {
        if count > 0 {
            faults.push(format!("{count} of {} sampled places {what}", samples.places));
        }
    };
    fault(samples.unchanged, "still hold the mark that was written there before");
    fault(samples.unreadable, "cannot be read any more, so nobody knows what they hold");
    fault(samples.places - samples.marked.min(samples.places), "did not take the mark, so they prove nothing");
    if facts.used.leaves_zeros() {
        fault(samples.other, "do not read as zeros");
    }
    if samples.places == 0 {
        faults.push("no place was read back".to_owned());
    }
    if !faults.is_empty() || facts.used == Used::Nothing {
        return Judgement { worth: Worth::NotSanitised, reasons: faults, failed: true };
    }
    let hidden = facts.hidden_sectors;
    let hides = format!("{hidden} sectors are hidden by the device (host protected area) and were not reached");
    let (worth, reasons) = match facts.used {
        Used::Discard => {
            let why = "a discard only tells the device that its blocks are free: the marks are gone from its interface, but \
                       the device promises nothing about what it keeps";
            (Worth::NotSanitised, vec![why.to_owned()])
        }
        Used::Overwrite | Used::SecureDiscard if hidden > 0 => (Worth::NotSanitised, vec![hides]),
        Used::SecureDiscard => {
            (Worth::Cleared, vec!["the device was to erase its blocks, and does not report how it did".to_owned()])
        }
        Used::Overwrite if facts.rotational => (Worth::Cleared, Vec::new()),
        Used::Overwrite => {
            let why = "flash keeps old copies in spare blocks that zeros do not reach; `--method sanitise` reaches them \
                       where the device offers it";
            (Worth::Cleared, vec![why.to_owned()])
        }
        _ => (Worth::Purged, Vec::new()),
    };
    Judgement { worth, reasons, failed: false }
}

/// What is certified of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Certificate {
    /// The machine. Set by the controller.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: NodeName,
    /// The attempt. Set by the controller.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub attempt: Attempt,
    /// When it arrived, in milliseconds since the Unix epoch. Set by the controller: the machine's clock may be wrong.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub at: Millis,
    /// Identity of the disk ([`Disk::identity`]).
    pub disk: String,
    /// The device's path in that hour.
    pub path: String,
    /// Its model.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its world wide name.
    pub wwn: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The method that was asked for.
    pub asked: Method,
    /// What was done.
    pub used: Used,
    /// How long it took, read-back included.
    pub milliseconds: u64,
    /// What was read back.
    pub samples: Samples,
    /// What it is worth.
    pub worth: Worth,
    /// Why it is not worth more, as sentences.
    pub reasons: Vec<String>,
    /// What else was tried or noticed, as sentences.
    pub notes: Vec<String>,
    /// True where the method did not do what it is for.
    pub failed: bool,
    /// Version of the agent that did it.
    pub agent_version: String,
}

impl Certificate {
    /// It in a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Samples { places, zero, other, unchanged, unreadable, .. } = self.samples;
        let because = if self.reasons.is_empty() { String::new() } else { format!(": {}", self.reasons.join("; ")) };
        let serial = self.serial.as_ref().map_or_else(String::new, |serial| format!(", serial {serial}"));
        format!(
            "{} ({}{serial}) is {}{because} ({}; of {places} places read back {zero} are zeros, {other} hold something else, \
             {unchanged} what was marked, {unreadable} nothing readable)",
            self.path,
            Size(self.size_bytes),
            self.worth,
            self.used.what(),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn facts(used: Used) -> Facts {
        let samples = Samples { places: 64, block_bytes: 4096, marked: 64, zero: 64, ..Samples::default() };
        Facts { used, failures: Vec::new(), samples, rotational: true, hidden_sectors: 0 }
    }

    fn disk(path: &str, serial: Option<&str>) -> Disk {
        Disk { path: path.into(), size_bytes: 4 << 30, serial: serial.map(Into::into), ..Disk::default() }
    }

    #[test]
    fn each_method_is_worth_what_it_does() {
        for (used, worth) in [
            (Used::NvmeSanitiseCrypto, Worth::Purged),
            (Used::NvmeSanitiseBlock, Worth::Purged),
            (Used::NvmeFormat, Worth::Purged),
            (Used::AtaSanitiseCrypto, Worth::Purged),
            (Used::AtaSanitiseBlock, Worth::Purged),
            (Used::Overwrite, Worth::Cleared),
            (Used::SecureDiscard, Worth::Cleared),
            (Used::Discard, Worth::NotSanitised),
            (Used::Nothing, Worth::NotSanitised),
        ] {
            let judged = judge(&facts(used));
            assert_eq!((judged.worth, judged.failed), (worth, used == Used::Nothing), "{used:?}");
        }
        assert!(judge(&facts(Used::Discard)).reasons[0].contains("promises nothing"));
        let flash = judge(&Facts { rotational: false, ..facts(Used::Overwrite) });
        assert!(flash.worth == Worth::Cleared && flash.reasons[0].contains("spare blocks"), "{flash:?}");
        let hidden = judge(&Facts { hidden_sectors: 5, ..facts(Used::Overwrite) });
        assert!(hidden.worth == Worth::NotSanitised && hidden.reasons[0].contains("5 sectors"), "{hidden:?}");
        assert_eq!(judge(&Facts { hidden_sectors: 5, ..facts(Used::AtaSanitiseBlock) }).worth, Worth::Purged);
    }

    #[test]
    fn whatever_is_found_again_or_cannot_be_read_makes_it_worth_nothing() {
        let with = |change: fn(&mut Samples)| {
            let mut facts = facts(Used::NvmeSanitiseCrypto);
            change(&mut facts.samples);
            judge(&facts)
        };
        for (judged, word) in [
            (with(|s| (s.zero, s.unchanged) = (63, 1)), "still hold the mark"),
            (with(|s| (s.zero, s.unreadable) = (63, 1)), "cannot be read"),
            (with(|s| s.marked = 60), "4 of 64 sampled places did not take"),
            (with(|s| *s = Samples::default()), "no place"),
        ] {
            assert!(judged.worth == Worth::NotSanitised && judged.failed, "{judged:?}");
            assert!(judged.reasons.iter().any(|reason| reason.contains(word)), "{judged:?}");
        }
        // A changed key leaves noise; zeros must leave zeros.
        assert_eq!(with(|s| (s.zero, s.other) = (0, 64)).worth, Worth::Purged);
        let mut zeros = facts(Used::Overwrite);
        (zeros.samples.zero, zeros.samples.other) = (63, 1);
        assert!(judge(&zeros).failed);
        let broken = Facts { failures: vec!["the device said no".into()], ..facts(Used::Overwrite) };
        assert_eq!(judge(&broken).reasons, ["the device said no"]);
    }

    #[test]
    fn an_order_names_each_disk_so_that_no_other_can_be_meant() {
        let disks = [disk("/dev/sda", Some("a")), disk("/dev/sdb", Some("b"))];
        let one = DiskRule { serial: Some("b".into()), ..DiskRule::default() };
        let found = resolve(&disks, &one, false).unwrap();
        assert_eq!(found[0].0.path, "/dev/sdb");
        let exchanged = [disk("/dev/sdb", Some("a")), disk("/dev/sda", Some("b"))];
        assert_eq!(choose(&exchanged, &found[0].1, Purpose::Wipe).unwrap().serial.as_deref(), Some("b"));
        let replaced = [Disk { size_bytes: 8 << 30, ..disk("/dev/sdb", Some("b")) }];
        assert!(choose(&replaced, &found[0].1, Purpose::Wipe).is_err(), "another size is another disk");

        assert!(resolve(&disks, &DiskRule::default(), false).unwrap_err().contains("2 disks match"));
        assert_eq!(resolve(&disks, &DiskRule::default(), true).unwrap().len(), 2);
        let locked = [Disk { read_only: true, ..disk("/dev/sda", Some("a")) }];
        assert!(resolve(&locked, &DiskRule::default(), true).unwrap_err().contains("refuses writes"));
    }

    #[test]
    fn a_disk_without_a_name_is_wiped_only_where_it_is_alone() {
        let alone = [disk("/dev/vda", None)];
        let found = resolve(&alone, &DiskRule::default(), false).unwrap();
        assert_eq!(found[0].1.path.as_deref(), Some("/dev/vda"));
        let twins = [disk("/dev/vda", None), disk("/dev/vdb", None)];
        let rule = DiskRule { path: Some("/dev/vdb".into()), ..DiskRule::default() };
        assert!(resolve(&twins, &rule, false).unwrap_err().contains("no serial number"));
    }

    #[test]
    fn an_order_that_names_nothing_is_refused() {
        let order = |disks| Wipe { disks, method: Method::Auto };
        assert!(order(Vec::new()).check().is_err());
        assert!(order(vec![DiskRule::default()]).check().unwrap_err().contains("does not name a disk"));
        assert_eq!(order(vec![DiskRule { wwn: Some("naa.1".into()), ..DiskRule::default() }]).check(), Ok(()));
    }

    #[test]
    fn the_sentence_says_what_it_is_worth_and_why() {
        let judged = judge(&facts(Used::Discard));
        let certificate = Certificate {
            node: "n1".parse().unwrap(),
            attempt: Attempt(1),
            at: Millis(0),
            disk: "serial:a".into(),
            path: "/dev/sda".into(),
            model: None,
            serial: Some("a".into()),
            wwn: None,
            size_bytes: 4 << 30,
            asked: Method::Discard,
            used: Used::Discard,
            milliseconds: 1,
            samples: facts(Used::Discard).samples,
            worth: judged.worth,
            reasons: judged.reasons,
            notes: Vec::new(),
            failed: judged.failed,
            agent_version: "1".into(),
        };
        let sentence = certificate.sentence();
        assert!(
            sentence.starts_with("/dev/sda (4 GiB, serial a) is not sanitised: a discard only tells"),
            "{sentence}"
        );
        assert!(sentence.contains("64 places read back 64 are zeros"), "{sentence}");
    }
}
