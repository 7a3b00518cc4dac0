//! The boot entries that firmware keeps, read from where Linux shows them (efivarfs): the judge of what was set.
//!
//! UEFI 2.10: 3.1.3 (`EFI_LOAD_OPTION`), 3.3 (`Boot####`, `BootOrder`, `BootCurrent`), 10.3 (device paths).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use uuid::Uuid;

use crate::Error;

/// `EFI_GLOBAL_VARIABLE`, which ends the names of all variables that this file reads.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// The largest variable that is looked at, in bytes; entries have some hundreds.
const VARIABLE_BYTES: u64 = 64 << 10;
/// Entries that are looked at; firmware with more has lost count.
const ENTRIES: usize = 512;
/// efivarfs puts the variable's attributes in front of its content.
const ATTRIBUTES_BYTES: usize = 4;
/// `LOAD_OPTION_ACTIVE`.
const ACTIVE: u32 = 1;

/// The number of a boot entry: `Boot0007` is 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Number(pub(super) u16);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}", self.0)
    }
}

/// Where a boot entry leads, as far as that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LeadsTo {
    /// To a file of a partition, known by its GUID.
    Partition { id: Uuid, file: String },
    /// To a network card.
    Network,
    /// To anything else.
    Elsewhere,
}

/// One boot entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) active: bool,
    pub(super) label: String,
    pub(super) leads_to: LeadsTo,
}

/// The firmware's boot entries and their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct BootEntries {
    /// The entry that this boot came from.
    pub(super) current: Option<Number>,
    pub(super) order: Vec<Number>,
    pub(super) entries: BTreeMap<Number, Entry>,
}

impl BootEntries {
    /// Reads them from the folder where efivarfs is mounted. Entries that cannot be understood are left out.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let mut entries = BTreeMap::new();
        let listed = fs::read_dir(folder).map_err(Error::io("list", folder))?;
        for name in listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            let Some(number) = number_of(&name) else { continue };
            let Some(content) = content(&folder.join(&name)) else { continue };
            if let Some(entry) = Entry::parse(&content)
                && entries.len() < ENTRIES
            {
                entries.insert(number, entry);
            }
        }
        let numbers = |name: &str| -> Vec<Number> {
            let content = content(&folder.join(format!("{name}-{GLOBAL}"))).unwrap_or_default();
            content.as_chunks::<2>().0.iter().map(|pair| Number(u16::from_le_bytes(*pair))).take(ENTRIES).collect()
        };
        Ok(Self { current: numbers("BootCurrent").first().copied(), order: numbers("BootOrder"), entries })
    }

    /// An entry as people read it.
    pub(super) fn describe(&self, number: Number) -> String {
        match self.entries.get(&number) {
            Some(entry) => format!("Boot{number} ({})", entry.label),
            None => format!("Boot{number}"),
        }
    }
}

impl Entry {
    /// Reads an `EFI_LOAD_OPTION`.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        let (attributes, rest) = content.split_first_chunk::<4>()?;
        let (path_bytes, rest) = rest.split_first_chunk::<2>()?;
        let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        let end = units.iter().position(|unit| *unit == 0)?;
        let path = rest.get(2 * (end + 1)..)?.get(..usize::from(u16::from_le_bytes(*path_bytes)))?;
        let label: String = String::from_utf16_lossy(&units[..end]).chars().filter(|c| !c.is_control()).collect();
        let active = u32::from_le_bytes(*attributes) & ACTIVE != 0;
        Some(Self { active, label: label.chars().take(80).collect(), leads_to: LeadsTo::parse(path) })
    }
}

impl LeadsTo {
    /// Walks a device path's nodes: type, subtype, length with these four bytes, data.
    fn parse(mut path: &[u8]) -> Self {
        let (mut partition, mut file, mut network) = (None, String::new(), false);
        while let [kind, subtype, low, high, rest @ ..] = path {
            let Some(size) = usize::from(u16::from_le_bytes([*low, *high])).checked_sub(4) else { break };
            let Some((data, behind)) = rest.split_at_checked(size) else { break };
            match (kind, subtype) {
                // Hard drive: partition number, start, size, signature, format of the table, kind of the signature (2: GUID).
                (4, 1) => {
                    let id = data.get(20..36).and_then(|id| <[u8; 16]>::try_from(id).ok());
                    partition = id.filter(|_| data.get(37) == Some(&2)).map(Uuid::from_bytes_le);
                }
                (4, 4) => {
                    let units = data.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
                    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
                    file = String::from_utf16_lossy(&units);
                }
                // MAC address, IPv4, IPv6, URI.
                (3, 11 | 12 | 13 | 24) => network = true,
                _ => {}
            }
            path = behind;
        }
        match partition {
            Some(id) => Self::Partition { id, file },
            None if network => Self::Network,
            None => Self::Elsewhere,
        }
    }
}

/// `Boot0007-8be4...` is 7.
fn number_of(name: &str) -> Option<Number> {
    let digits = name.strip_suffix(GLOBAL)?.strip_suffix('-')?.strip_prefix("Boot")?;
    if digits.len() != 4 {
        return None;
    }
    u16::from_str_radix(digits, 16).ok().map(Number)
}

fn content(variable: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(variable).ok()?.take(VARIABLE_BYTES).read_to_end(&mut bytes).ok()?;
    bytes.get(ATTRIBUTES_BYTES..).map(<[u8]>::to_vec)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(super) mod tests {
    use super::*;

    pub(in crate::post) const PARTITION: Uuid = Uuid::from_u128(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);

    fn node(kind: u8, subtype: u8, data: &[u8]) -> Vec<u8> {
        let size = u16::try_from(data.len() + 4).unwrap().to_le_bytes();
        [&[kind, subtype, size[0], size[1]], data].concat()
    }

    fn wide(text: &str) -> Vec<u8> {
        text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
    }

    fn option(label: &str, path: &[u8]) -> Vec<u8> {
        let size = u16::try_from(path.len()).unwrap().to_le_bytes();
        [&1u32.to_le_bytes()[..], &size, &wide(label), path, b"optional data"].concat()
    }

    fn disk_path(file: &str) -> Vec<u8> {
        let mut drive = vec![0; 38];
        drive[20..36].copy_from_slice(&PARTITION.to_bytes_le());
        (drive[36], drive[37]) = (2, 2);
        [node(4, 1, &drive), node(4, 4, &wide(file)), node(0x7f, 0xff, &[])].concat()
    }

    /// Writes variables as efivarfs shows them.
    pub(in crate::post) fn variables(
        folder: &Path,
        order: &[u16],
        current: u16,
        entries: &[(u16, &str, Option<&str>)],
    ) {
        let put = |name: String, bytes: Vec<u8>| {
            fs::write(folder.join(format!("{name}-{GLOBAL}")), [vec![7, 0, 0, 0], bytes].concat()).unwrap();
        };
        put("BootOrder".into(), order.iter().flat_map(|n| n.to_le_bytes()).collect());
        put("BootCurrent".into(), current.to_le_bytes().to_vec());
        for (number, label, file) in entries {
            let network = || [node(3, 11, &[0; 33]), node(3, 12, &[0; 23]), node(0x7f, 0xff, &[])].concat();
            let path = file.map_or_else(network, disk_path);
            put(format!("Boot{number:04X}"), option(label, &path));
        }
    }

    #[test]
    fn entries_and_their_order_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let entries = [(1, "UEFI PXEv4", None), (0xA, "Rackswarm", Some(r"\EFI\BOOT\BOOTX64.EFI"))];
        variables(folder.path(), &[0xA, 1], 1, &entries);
        fs::write(folder.path().join(format!("BootNext-{GLOBAL}")), [0; 6]).unwrap();
        fs::write(folder.path().join("Boot0003-00000000-0000-0000-0000-000000000000"), [0; 6]).unwrap();
        let found = BootEntries::read(folder.path()).unwrap();
        assert_eq!((found.current, &found.order[..]), (Some(Number(1)), &[Number(10), Number(1)][..]));
        assert_eq!(found.entries.len(), 2);
        let file = r"\EFI\BOOT\BOOTX64.EFI".to_owned();
        let ours = &found.entries[&Number(10)];
        assert_eq!((ours.active, &ours.leads_to), (true, &LeadsTo::Partition { id: PARTITION, file }));
        assert_eq!(found.entries[&Number(1)].leads_to, LeadsTo::Network);
        assert_eq!(found.describe(Number(10)), "Boot000A (Rackswarm)");
    }

    #[test]
    fn damaged_entries_are_left_out_and_never_read_past_their_end() {
        let whole = option("x", &disk_path(r"\a"));
        for end in 0..whole.len() {
            let _ = Entry::parse(&whole[..end]);
        }
        assert!(Entry::parse(&whole[..7]).is_none());
        for path in [&[4, 1, 0, 0][..], &[4, 1, 255, 255, 1], &[4, 1, 5, 0, 1], &[4]] {
            assert_eq!(LeadsTo::parse(path), LeadsTo::Elsewhere, "{path:?}");
        }
    }
}
