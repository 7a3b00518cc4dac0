//! The standing boot order of a UEFI machine: the deployed disk first, the network second (docs/decisions/0005).
//!
//! Set with `efibootmgr`, and read back from the firmware's variables by other code. Firmware that does not keep it
//! costs no attempt: a machine that network-boots again is sent to its disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use uuid::Uuid;

use super::Root;
use super::mount::Mount;
use super::partitions::{Partition, WrittenDisk};
use super::variables::{BootEntries, LeadsTo, Number};
use crate::command::Run;
use crate::{Error, Stop};

/// Where Linux shows that it was started by UEFI.
const FIRMWARE: &str = "/sys/firmware/efi";
/// Where the firmware's variables are files.
const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Firmware writes to slow flash, and some collects garbage first.
const LIMIT: Duration = Duration::from_secs(60);
/// Labels of our entries begin so; others of that name are removed.
const LABEL: &str = "Rackswarm";
/// Programs that a vendor's folder on an EFI system partition may hold, the one that Secure Boot trusts first.
#[cfg(target_arch = "x86_64")]
const LOADERS: &[&str] = &["shimx64.efi", "grubx64.efi", "systemd-bootx64.efi"];
/// What firmware starts from a disk without an entry (UEFI 2.10, 3.5.1.1).
#[cfg(target_arch = "x86_64")]
const FALLBACK: &str = "BOOTX64.EFI";
#[cfg(target_arch = "aarch64")]
const LOADERS: &[&str] = &["shimaa64.efi", "grubaa64.efi", "systemd-bootaa64.efi"];
#[cfg(target_arch = "aarch64")]
const FALLBACK: &str = "BOOTAA64.EFI";

/// Puts the written disks first, in their order. Nothing is said on a machine that was not started by UEFI, where no program can set it.
pub(super) fn act(disks: &[WrittenDisk], stop: &Stop) -> Result<Option<String>, Error> {
    if !Path::new(FIRMWARE).is_dir() {
        return Ok(None);
    }
    let said = set(disks, stop).unwrap_or_else(|error| {
        format!("the firmware's boot order could not be set and stays as it is: {error}; {}", Kept::RECOVERY)
    });
    Ok(Some(said))
}

fn set(disks: &[WrittenDisk], stop: &Stop) -> Result<String, Error> {
    show_variables()?;
    let loaders = disks.iter().map(Loader::find).collect::<Result<Vec<_>, _>>()?;
    let variables = Path::new(VARIABLES);
    let before = BootEntries::read(variables)?;
    let plan = Plan::new(&before, &loaders);
    let manage = || Run::new("efibootmgr", LIMIT).args(["--quiet"]);
    for number in &plan.remove {
        manage().args(["--bootnum", &number.to_string(), "--delete-bootnum"]).text(stop)?;
    }
    for (disk, loader) in disks.iter().zip(&loaders).filter(|(_, loader)| entry_of(&before, loader).is_none()) {
        let partition = loader.number.to_string();
        let what = ["--create", "--disk", &disk.path.display().to_string(), "--part", &partition].map(str::to_owned);
        manage().args(what).args(["--loader", &loader.file, "--label", LABEL]).text(stop)?;
    }
    let made = BootEntries::read(variables)?;
    let kept: Option<Vec<Number>> = loaders.iter().map(|loader| entry_of(&made, loader)).collect();
    let Some(ours) = kept else {
        return Ok(format!("the firmware took an entry for its disk and did not keep it; {}", Kept::RECOVERY));
    };
    let order = standing_order(&made, &ours);
    if order != made.order {
        let list: Vec<String> = order.iter().map(ToString::to_string).collect();
        manage().args(["--bootorder", &list.join(",")]).text(stop)?;
    }
    let after = BootEntries::read(variables)?;
    let unchanged = plan.ours.len() == loaders.len() && plan.remove.is_empty() && before.order == order;
    Ok(Kept::judge(&after, &ours, &order).sentence(&after, unchanged, &loaders))
}

/// What is to be done to the entries.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The entries that lead to the loaders already; flash wears out, so they stay.
    ours: Vec<Number>,
    /// Entries of ours that lead elsewhere.
    remove: Vec<Number>,
}

impl Plan {
    fn new(before: &BootEntries, loaders: &[Loader]) -> Self {
        let ours: Vec<Number> = loaders.iter().filter_map(|loader| entry_of(before, loader)).collect();
        let labelled = before.entries.iter().filter(|(_, entry)| entry.label == LABEL).map(|(number, _)| *number);
        let remove = labelled.filter(|number| !ours.contains(number)).collect();
        Self { ours, remove }
    }
}

/// Our entry for this loader.
fn entry_of(entries: &BootEntries, loader: &Loader) -> Option<Number> {
    let leads = |to: &LeadsTo| matches!(to, LeadsTo::Partition { id, file } if *id == loader.partition && file.eq_ignore_ascii_case(&loader.file));
    let found =
        entries.entries.iter().find(|(_, entry)| entry.active && entry.label == LABEL && leads(&entry.leads_to));
    found.map(|(number, _)| *number)
}

/// The disks first, then the network (the way of this boot before other cards), then everything else as it was.
fn standing_order(entries: &BootEntries, ours: &[Number]) -> Vec<Number> {
    let network = |number: &Number| entries.entries.get(number).is_some_and(|e| e.leads_to == LeadsTo::Network);
    let current = entries.current.filter(|number| network(number));
    let cards = entries.order.iter().copied().filter(network);
    let others = entries.order.iter().copied().filter(|number| !network(number));
    let mut order: Vec<Number> = Vec::new();
    for number in ours.iter().copied().chain(current).chain(cards).chain(others) {
        if !order.contains(&number) {
            order.push(number);
        }
    }
    order
}

/// Whether the firmware kept what was set.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Order,
    Changed,
}

impl Kept {
    const RECOVERY: &str = "should it boot from the network again, it is sent to its disk";

    fn judge(after: &BootEntries, ours: &[Number], order: &[Number]) -> Self {
        let there = ours.iter().all(|ours| after.entries.get(ours).is_some_and(|entry| entry.active));
        if there && after.order == order { Self::Order } else { Self::Changed }
    }

    fn sentence(&self, after: &BootEntries, unchanged: bool, loaders: &[Loader]) -> String {
        let order: Vec<String> = after.order.iter().map(|number| after.describe(*number)).collect();
        let order = if order.is_empty() { "nothing".to_owned() } else { order.join(", ") };
        match self {
            Self::Order if unchanged => format!("the boot order is as it should be, read from the firmware: {order}"),
            Self::Order => {
                let files: Vec<&str> = loaders.iter().map(|loader| loader.file.as_str()).collect();
                format!("set and read back from the firmware: {order}; started is {}", files.join(", else "))
            }
            Self::Changed => {
                format!("the firmware did not keep the boot order, it says now: {order}; {}", Self::RECOVERY)
            }
        }
    }
}

/// What the firmware is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Loader {
    /// The EFI system partition's number.
    number: u32,
    /// Its GUID.
    partition: Uuid,
    /// The program on it, as firmware writes paths.
    file: String,
}

impl Loader {
    /// Looks on the disk's EFI system partition.
    fn find(disk: &WrittenDisk) -> Result<Self, Error> {
        let missing = |what: &str| super::wrong("boot_order", format!("the image has {what}"));
        let (number, id) = disk.efi_system_partition().ok_or_else(|| missing("no EFI system partition"))?;
        let partition = disk.partition(Some(number)).ok_or_else(|| missing("no such partition any more"))?;
        // A member of a mirror of them tells that it is one, and begins as a file system all the same.
        let partition = Partition { kind: Some("vfat".to_owned()), ..partition.clone() };
        let mounted = Mount::of(&partition, "", MountFlags::RDONLY)?;
        let file = loader_on(&Root::at(mounted.point())?);
        let file = file.ok_or_else(|| missing("no loader on its EFI system partition"))?;
        Ok(Self { number, partition: id, file })
    }
}

/// A vendor's loader before the one for removable media, which may change entries by itself. FAT knows no case, names do.
fn loader_on(root: &Root) -> Option<String> {
    let named = |folder: &str, wanted: &str| root.list(folder).into_iter().find(|n| n.eq_ignore_ascii_case(wanted));
    let efi = named("", "EFI")?;
    let vendors = root.list(&efi).into_iter().filter(|name| !name.eq_ignore_ascii_case("BOOT"));
    let own = vendors.flat_map(|vendor| LOADERS.iter().map(move |loader| (vendor.clone(), *loader)));
    let fallback = named(&efi, "BOOT").map(|boot| (boot, FALLBACK));
    own.chain(fallback).find_map(|(folder, loader)| {
        let file = named(&format!("{efi}/{folder}"), loader)?;
        Some(format!(r"\{efi}\{folder}\{file}"))
    })
}

/// Mounts efivarfs where nobody has.
fn show_variables() -> Result<(), Error> {
    let shown = fs::read_dir(VARIABLES).is_ok_and(|mut files| files.next().is_some());
    if shown {
        return Ok(());
    }
    mount("efivarfs", VARIABLES, "efivarfs", MountFlags::empty(), None).map_err(Error::sys("mount", VARIABLES))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::variables::tests::{PARTITION, variables};
    use super::*;

    const FILE: &str = r"\EFI\BOOT\BOOTX64.EFI";

    fn loader() -> Loader {
        Loader { number: 2, partition: PARTITION, file: FILE.into() }
    }

    fn entries(order: &[u16], current: u16, entries: &[(u16, &str, Option<&str>)]) -> BootEntries {
        let folder = tempfile::tempdir().unwrap();
        variables(folder.path(), order, current, entries);
        BootEntries::read(folder.path()).unwrap()
    }

    fn numbers(order: &[Number]) -> Vec<u16> {
        order.iter().map(|number| number.0).collect()
    }

    #[test]
    fn the_disk_comes_first_then_the_network_then_the_rest_as_it_was() {
        let list = [(0, "Setup", Some(r"\s")), (1, "card 1", None), (2, "card 2", None), (7, LABEL, Some(FILE))];
        let order = |order: &[u16], current| numbers(&standing_order(&entries(order, current, &list), &[Number(7)]));
        assert_eq!(order(&[0, 1, 2, 7], 2), [7, 2, 1, 0]);
        assert_eq!(order(&[1, 2, 0], 0), [7, 1, 2, 0]);
        assert_eq!(order(&[7, 1, 1, 2, 0], 1), [7, 1, 2, 0]);
        // An entry that firmware did not put in its order, as after a boot by hand.
        assert_eq!(order(&[], 1), [7, 1]);
        // The members of a mirror, one after the other.
        let both = standing_order(&entries(&[1, 0, 7], 1, &list), &[Number(7), Number(0)]);
        assert_eq!(numbers(&both), [7, 0, 1]);
    }

    #[test]
    fn an_entry_that_is_right_stays_and_older_ones_of_ours_go() {
        let list = [(1, "card", None), (3, LABEL, Some(r"\EFI\old.efi")), (7, LABEL, Some(r"\efi\boot\bootx64.efi"))];
        let plan = Plan::new(&entries(&[3, 7, 1], 1, &list), &[loader()]);
        assert_eq!(plan, Plan { ours: vec![Number(7)], remove: vec![Number(3)] });
        let elsewhere = Loader { partition: Uuid::from_u128(1), ..loader() };
        let plan = Plan::new(&entries(&[3, 7, 1], 1, &list), std::slice::from_ref(&elsewhere));
        assert_eq!(plan, Plan { ours: vec![], remove: vec![Number(3), Number(7)] });
        // The second disk of a mirror has none yet.
        let plan = Plan::new(&entries(&[3, 7, 1], 1, &list), &[elsewhere, loader()]);
        assert_eq!(plan, Plan { ours: vec![Number(7)], remove: vec![Number(3)] });
        // What an operator or a system named otherwise is not ours.
        let foreign = [(4, "debian", Some(FILE))];
        assert_eq!(Plan::new(&entries(&[4], 4, &foreign), &[loader()]), Plan { ours: vec![], remove: vec![] });
    }

    #[test]
    fn what_the_firmware_made_of_it_is_said() {
        let list = [(1, "card", None), (7, LABEL, Some(FILE))];
        let wanted = [Number(7), Number(1)];
        let kept = entries(&[7, 1], 1, &list);
        let judged = Kept::judge(&kept, &[Number(7)], &wanted);
        assert!(judged.sentence(&kept, false, &[loader()]).starts_with("set and read back"));
        assert!(judged.sentence(&kept, true, &[loader()]).contains("as it should be"));
        for changed in [entries(&[1, 7], 1, &list), entries(&[7, 1], 1, &list[..1])] {
            let judged = Kept::judge(&changed, &[Number(7)], &wanted);
            let sentence = judged.sentence(&changed, false, &[loader()]);
            assert!(sentence.contains("did not keep") && sentence.contains("sent to its disk"), "{sentence}");
        }
    }

    #[test]
    fn a_vendors_loader_comes_before_the_one_for_removable_media() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "loader").unwrap();
        };
        let found = || loader_on(&Root::at(folder.path()).unwrap());
        assert_eq!(found(), None);
        put("efi/boot/bootx64.efi");
        put("efi/debian/grub.cfg");
        assert_eq!(found().as_deref(), Some(r"\efi\boot\bootx64.efi"));
        put("efi/debian/grubx64.efi");
        assert_eq!(found().as_deref(), Some(r"\efi\debian\grubx64.efi"));
        put("efi/debian/shimx64.efi");
        assert_eq!(found().as_deref(), Some(r"\efi\debian\shimx64.efi"));
    }
}
