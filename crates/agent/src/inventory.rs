//! What the machine is: disks, memory, processors, addresses. Also which disk
//! the running system's root file system is on. One reader for the boot
//! environment and for the deployed system, so that both call a disk the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use api::agent::Register;
use fleet::discovery::Findings;
use fleet::disk::Disk;
use fleet::ids::Mac;
use uuid::Uuid;

use crate::contents;

/// Devices of these names are never targets: floppies, CD drives, and the parts
/// of eMMC that hold its boot loader.
const PASSED_OVER: &[&str] = &["fd", "sr", "loop", "ram", "zram", "dm-", "md"];
/// A sector of sysfs' sizes, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;
/// The most that is read of a sysfs attribute, in bytes.
const ATTRIBUTE_BYTES: u64 = 4096;

/// Where the machine shows itself: `/`, or a fixture's folder in tests.
#[derive(Debug, Clone)]
pub struct View {
    root: PathBuf,
}

impl Default for View {
    fn default() -> Self {
        Self::at("/")
    }
}

impl View {
    /// The machine below `root`, which holds `sys`, `proc` and `dev`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Everything that is reported when the agent registers. Reads the disks'
    /// first sectors to tell what they hold. Blocks.
    #[must_use]
    pub fn machine(&self, boot_mac: Option<Mac>) -> Register {
        let mut disks = self.disks();
        contents::describe(&mut disks);
        Register { disks, ..self.machine_without_disks(boot_mac) }
    }

    /// The same with no disks; nothing blocks for long.
    #[must_use]
    pub fn machine_without_disks(&self, boot_mac: Option<Mac>) -> Register {
        Register {
            uuid: self.dmi("product_uuid").and_then(|text| Uuid::parse_str(&text).ok()).filter(|uuid| !uuid.is_nil()),
            macs: self.macs(boot_mac).iter().map(ToString::to_string).collect(),
            memory_bytes: self.memory_bytes(),
            processors: self.processors(),
            product: [self.dmi("sys_vendor"), self.dmi("product_name")]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" "),
            disks: Vec::new(),
            agent_version: crate::VERSION.to_owned(),
            findings: Findings { firmware: self.firmware(), ..Findings::default() },
        }
    }

    /// All disks, sorted by path, without what they hold.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk> {
        let in_use = self.devices_in_use();
        let mut disks: Vec<Disk> =
            names(&self.root.join("sys/block")).iter().filter_map(|name| self.disk(name, &in_use)).collect();
        disks.sort_by(|a, b| a.path.cmp(&b.path));
        disks
    }

    /// The disks that hold the running system's root file system: several where it lies on an array or a volume group.
    #[must_use]
    pub fn disks_of_root(&self) -> Vec<Disk> {
        let Some(root) = self.mounts().into_iter().rev().find(|mount| mount.point == "/") else { return Vec::new() };
        let in_use = BTreeMap::from([(root.device.clone(), "is mounted at /".to_owned())]);
        self.disk_names(&root.device).iter().filter_map(|name| self.disk(name, &in_use)).collect()
    }

    fn disk(&self, name: &str, in_use: &BTreeMap<String, String>) -> Option<Disk> {
        let folder = self.root.join("sys/block").join(name);
        // Only hardware has a device; what is made of other disks or of memory has none.
        let hardware = folder.join("device").exists();
        let own_part = name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb"));
        if !hardware || own_part || PASSED_OVER.iter().any(|start| name.starts_with(start)) {
            return None;
        }
        // One path of a multipath NVMe namespace; the namespace itself is another disk.
        if text(&folder.join("hidden")).as_deref() == Some("1") {
            return None;
        }
        let flag = |attribute: &str| text(&folder.join(attribute)).as_deref() == Some("1");
        let held_by: Vec<String> = parts(&folder).iter().flat_map(|part| self.uses(part, in_use)).collect();
        Some(Disk {
            path: format!("/dev/{}", name.replace('!', "/")),
            by_path: self.by_path(name, &folder),
            size_bytes: number(&folder.join("size"))? * SECTOR_BYTES,
            serial: serial(&folder),
            wwn: wwn(&folder),
            model: text(&folder.join("device/model")),
            removable: flag("removable"),
            read_only: flag("ro"),
            pluggable: is_pluggable(&folder),
            boot_medium: !held_by.is_empty(),
            held_by,
            signatures: Vec::new(),
            contents: Vec::new(),
        })
    }

    /// What udev calls the disk by its place, as far as the place is simple, and
    /// what udev did call it where it runs.
    fn by_path(&self, name: &str, folder: &Path) -> Vec<String> {
        let mut found = BTreeSet::new();
        let real = fs::canonicalize(folder).unwrap_or_default();
        if let Some(place) = place(&self.root, &real) {
            found.insert(format!("/dev/disk/by-path/{place}"));
            found.insert(place);
        }
        let links = self.root.join("dev/disk/by-path");
        for link in names(&links) {
            let leads_to = fs::read_link(links.join(&link)).ok().and_then(|to| to.file_name().map(ToOwned::to_owned));
            if leads_to.is_some_and(|to| to == *name) {
                found.insert(format!("/dev/disk/by-path/{link}"));
            }
        }
        found.into_iter().collect()
    }

    /// What a disk or partition is in use for: mounts, swap, and whatever is made of it.
    fn uses(&self, part: &Path, in_use: &BTreeMap<String, String>) -> Vec<String> {
        let name = part.file_name().unwrap_or_default().to_string_lossy();
        let own = text(&part.join("dev")).and_then(|number| in_use.get(&number).cloned());
        let holders = names(&part.join("holders")).into_iter().map(|holder| self.holder(&holder));
        own.into_iter().chain(holders).map(|what| format!("{name} {what}")).collect()
    }

    /// What a device is that is made of others. Device mapper tells the maker before its identifier.
    fn holder(&self, name: &str) -> String {
        let folder = self.root.join("sys/class/block").join(name).join("dm");
        let known = text(&folder.join("name")).unwrap_or_else(|| name.to_owned());
        let uuid = text(&folder.join("uuid")).unwrap_or_default();
        match uuid.split('-').next().unwrap_or_default() {
            "mpath" => format!("is a path of the multipath device {known}"),
            "LVM" => format!("is part of the logical volume {known}"),
            "CRYPT" => format!("is unlocked as {known}"),
            _ => format!("is part of {known}"),
        }
    }

    /// What the devices of these numbers (`major:minor`) are in use for.
    fn devices_in_use(&self) -> BTreeMap<String, String> {
        let swaps = fs::read_to_string(self.root.join("proc/swaps")).unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let swaps = swaps.filter_map(|device| Some((self.number_of(device)?, "holds swap".to_owned())));
        let mounts = self.mounts().into_iter().map(|mount| (mount.device, format!("is mounted at {}", mount.point)));
        // Of several mounts the first is told: the others lie in it, or show the same once more.
        let uses: Vec<(String, String)> = swaps.chain(mounts).collect();
        uses.into_iter().rev().collect()
    }

    fn mounts(&self) -> Vec<Mount> {
        let table = fs::read_to_string(self.root.join("proc/self/mountinfo")).unwrap_or_default();
        table.lines().filter_map(|line| self.mount(line)).collect()
    }

    /// proc_pid_mountinfo(5): `36 35 98:0 / /mnt rw - ext4 /dev/root rw`.
    fn mount(&self, line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (number, point) = (left.next()?, left.nth(1)?);
        let source = right.split(' ').nth(1)?;
        // btrfs has numbers of its own and tells the disk by its path only.
        let device = match number.starts_with("0:") {
            true => self.number_of(source)?,
            false => number.to_owned(),
        };
        Some(Mount { device, point: point.to_owned() })
    }

    fn number_of(&self, device: &str) -> Option<String> {
        let name = device.strip_prefix("/dev/")?.replace('/', "!");
        text(&self.root.join("sys/class/block").join(name).join("dev"))
    }

    /// The disks below a device number: itself, the disk of the partition, or all that a mapped device or an array is made
    /// of.
    fn disk_names(&self, device: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let start = fs::canonicalize(self.root.join("sys/dev/block").join(device));
        let mut layer: BTreeSet<PathBuf> = start.into_iter().collect();
        // LVM on LUKS on RAID on partitions are four; eight end any circle.
        for _ in 0..8 {
            let mut below = BTreeSet::new();
            for folder in layer {
                let slaves = folder.join("slaves");
                let made_of: Vec<PathBuf> =
                    names(&slaves).iter().filter_map(|name| fs::canonicalize(slaves.join(name)).ok()).collect();
                let disk = if folder.join("partition").exists() { folder.parent() } else { Some(folder.as_path()) };
                match disk.and_then(Path::file_name) {
                    Some(name) if made_of.is_empty() => drop(found.insert(name.to_string_lossy().into_owned())),
                    _ => below.extend(made_of),
                }
            }
            layer = below;
        }
        found
    }

    /// Vendor, version and date.
    fn firmware(&self) -> String {
        let words = ["bios_vendor", "bios_version", "bios_date"].map(|name| self.dmi(name));
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn dmi(&self, name: &str) -> Option<String> {
        text(&self.root.join("sys/class/dmi/id").join(name))
    }

    /// Addresses of Ethernet hardware, the one that was booted through first.
    fn macs(&self, boot_mac: Option<Mac>) -> Vec<Mac> {
        let mut macs: Vec<Mac> = interfaces(&self.root.join("sys")).into_iter().map(|(_, mac)| mac).collect();
        macs.sort_unstable();
        macs.dedup();
        if let Some(mac) = boot_mac {
            macs.retain(|other| *other != mac);
            macs.insert(0, mac);
        }
        macs
    }

    fn memory_bytes(&self) -> u64 {
        let table = fs::read_to_string(self.root.join("proc/meminfo")).unwrap_or_default();
        let total = table.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    fn processors(&self) -> u32 {
        let is_processor = |name: &&String| {
            name.strip_prefix("cpu").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        names(&self.root.join("sys/devices/system/cpu")).iter().filter(is_processor).count() as u32
    }
}

struct Mount {
    device: String,
    point: String,
}

/// Network interfaces with Ethernet hardware below `sysfs`: name and address.
#[must_use]
pub fn interfaces(sysfs: &Path) -> Vec<(String, Mac)> {
    let folder = sysfs.join("class/net");
    let mut found: Vec<(String, Mac)> = names(&folder)
        .into_iter()
        .filter(|name| folder.join(name).join("device").exists())
        // 1 is ARPHRD_ETHER.
        .filter(|name| text(&folder.join(name).join("type")).as_deref() == Some("1"))
        .filter_map(|name| {
            let mac: Mac = text(&folder.join(&name).join("address"))?.parse().ok()?;
            (mac.0 != [0; 6]).then_some((name, mac))
        })
        .collect();
    found.sort();
    found
}

/// The disk and its partitions, as folders of sysfs.
fn parts(folder: &Path) -> Vec<PathBuf> {
    let partitions = names(folder).into_iter().map(|name| folder.join(name)).filter(|p| p.join("partition").exists());
    std::iter::once(folder.to_owned()).chain(partitions).collect()
}

/// Below a USB controller, whatever the disk says of itself, or a memory card; soldered eMMC calls itself `MMC`.
fn is_pluggable(folder: &Path) -> bool {
    let real = fs::canonicalize(folder).unwrap_or_default();
    let is_usb = |part: &str| part.strip_prefix("usb").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()));
    real.components().any(|part| part.as_os_str().to_str().is_some_and(is_usb))
        || text(&folder.join("device/type")).as_deref() == Some("SD")
}

/// virtio tells its serial at the disk, NVMe and eMMC at the device, SCSI and
/// SATA on vital product data page 0x80.
fn serial(folder: &Path) -> Option<String> {
    text(&folder.join("serial"))
        .or_else(|| text(&folder.join("device/serial")))
        .or_else(|| unit_serial(&bytes(&folder.join("device/vpd_pg80"))?))
}

/// SPC-4, 7.8.13: byte 1 is the page, bytes 2 and 3 the length, then ASCII.
fn unit_serial(page: &[u8]) -> Option<String> {
    let [_, 0x80, high, low, rest @ ..] = page else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    printable(&rest[..length])
}

/// Names that are unique in the world; `t10.` ones are made of the model and
/// the serial, which are told anyway.
fn wwn(folder: &Path) -> Option<String> {
    let name = text(&folder.join("wwid")).or_else(|| text(&folder.join("device/wwid")))?;
    ["naa.", "eui.", "uuid.", "nvme."].iter().any(|start| name.starts_with(start)).then_some(name)
}

/// udev's `path_id` for disks that hang directly off a PCI device.
fn place(root: &Path, device: &Path) -> Option<String> {
    let below = device.strip_prefix(fs::canonicalize(root).ok()?).ok()?;
    let parts: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let at = parts.iter().rposition(|part| is_pci_address(part))?;
    let (pci, behind) = (&parts[at], &parts[at + 1..]);
    let disk = parts.last()?;
    if behind.first()?.starts_with("virtio") && behind.get(1)? == "block" {
        return Some(format!("pci-{pci}"));
    }
    if behind.first()? == "nvme" {
        let namespace = disk.rsplit_once('n')?.1;
        return Some(format!("pci-{pci}-nvme-{namespace}"));
    }
    if let Some(port) = behind.first()?.strip_prefix("ata") {
        let port_number = root.join("sys/class/ata_port").join(format!("ata{port}")).join("port_no");
        return Some(format!("pci-{pci}-ata-{}", text(&port_number)?));
    }
    None
}

/// `0000:00:1f.2`.
fn is_pci_address(text: &str) -> bool {
    let shape = |c: char| if c.is_ascii_hexdigit() { 'x' } else { c };
    text.chars().map(shape).collect::<String>() == "xxxx:xx:xx.x"
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // Devices answer some attributes with an I/O error when they do not know them.
    fs::File::open(path).ok()?.take(ATTRIBUTE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn text(path: &Path) -> Option<String> {
    printable(&bytes(path)?)
}

/// Trimmed, inner runs of blanks kept: firmware pads fields with blanks and zeros.
fn printable(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use fleet::disk::identities;
    use std::os::unix::fs::symlink;

    /// A machine of files: `/sys` and `/proc` as far as they are read.
    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            let fixture = Self(tempfile::tempdir().unwrap());
            fixture.file("proc/meminfo", b"MemTotal:        2048 kB\nMemFree: 1 kB\n");
            fixture.file("proc/swaps", b"Filename\tType\tSize\n");
            fixture.file("proc/self/mountinfo", b"1 1 0:2 / / rw - rootfs rootfs rw\n");
            fixture
        }

        fn file(&self, path: &str, content: &[u8]) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        /// A disk at `device` below `/sys/devices`, with its numbers.
        fn disk(&self, device: &str, name: &str, number: &str, sectors: u64) {
            let folder = format!("sys/devices/{device}/block/{name}");
            self.file(&format!("{folder}/dev"), number.as_bytes());
            self.file(&format!("{folder}/size"), sectors.to_string().as_bytes());
            self.file(&format!("{folder}/ro"), b"0\n");
            self.file(&format!("{folder}/removable"), b"0\n");
            self.link(&format!("sys/devices/{device}"), &format!("{folder}/device"));
            self.link(&folder, &format!("sys/block/{name}"));
            self.link(&folder, &format!("sys/class/block/{name}"));
            self.link(&folder, &format!("sys/dev/block/{number}"));
        }

        fn partition(&self, disk: &str, name: &str, number: &str) {
            let folder = format!("{disk}/{name}");
            self.file(&format!("{folder}/partition"), b"1");
            self.file(&format!("{folder}/dev"), number.as_bytes());
            self.link(&folder, &format!("sys/class/block/{name}"));
            self.link(&folder, &format!("sys/dev/block/{number}"));
        }

        fn link(&self, to: &str, from: &str) {
            let from = self.0.path().join(from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            symlink(self.0.path().join(to), from).unwrap();
        }

        fn view(&self) -> View {
            View::at(self.0.path())
        }
    }

    const VIRTIO: &str = "pci0000:00/0000:00:04.0/virtio1";
    const SATA: &str = "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0";
    const NVME: &str = "pci0000:00/0000:00:06.0/nvme/nvme0";

    fn machine() -> Fixture {
        let fixture = Fixture::new();
        fixture.disk(VIRTIO, "vda", "254:0", 2048);
        fixture.file(&format!("sys/devices/{VIRTIO}/block/vda/serial"), b"rack1-node1");
        fixture.disk(SATA, "sda", "8:0", 4096);
        fixture.file(&format!("sys/devices/{SATA}/model"), b"QEMU HARDDISK   \n");
        fixture.file(&format!("sys/devices/{SATA}/vpd_pg80"), b"\x00\x80\x00\x08QM00001 ");
        fixture.file(&format!("sys/devices/{SATA}/wwid"), b"t10.ATA     QEMU HARDDISK  QM00001 \n");
        fixture.file("sys/class/ata_port/ata3/port_no", b"1\n");
        fixture.file(&format!("sys/devices/{NVME}/serial"), b"S64FNE0R\n");
        fixture.file(&format!("sys/devices/{NVME}/model"), b"SAMSUNG PM9A3\n");
        // NVMe disks have no `block` folder above them.
        let nvme = format!("sys/devices/{NVME}/nvme0n1");
        fixture.file(&format!("{nvme}/dev"), b"259:0");
        fixture.file(&format!("{nvme}/size"), b"8192");
        fixture.file(&format!("{nvme}/wwid"), b"eui.0025385b21404321\n");
        fixture.link(&format!("sys/devices/{NVME}"), &format!("{nvme}/device"));
        fixture.link(&nvme, "sys/block/nvme0n1");
        // What must not be taken for a disk.
        fixture.disk("pci0000:00/0000:00:1f.2/ata4/host3/target3:0:0/3:0:0:0", "sr0", "11:0", 100);
        fixture.file("sys/devices/virtual/block/loop0/size", b"100");
        fixture.link("sys/devices/virtual/block/loop0", "sys/block/loop0");
        fixture
    }

    #[test]
    fn disks_are_told_with_all_that_identifies_them() {
        let disks = machine().view().disks();
        assert_eq!(disks.iter().map(|d| d.path.as_str()).collect::<Vec<_>>(), ["/dev/nvme0n1", "/dev/sda", "/dev/vda"]);
        let [nvme, sata, virtio] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!(nvme.identity(), "wwn:eui.0025385b21404321");
        assert_eq!(nvme.model.as_deref(), Some("SAMSUNG PM9A3"));
        assert!(nvme.by_path.contains(&"pci-0000:00:06.0-nvme-1".to_owned()), "{:?}", nvme.by_path);
        assert_eq!(sata.identity(), "serial:QM00001");
        assert_eq!(sata.wwn, None, "a name made of model and serial is none");
        assert_eq!(sata.model.as_deref(), Some("QEMU HARDDISK"));
        assert!(sata.by_path.contains(&"/dev/disk/by-path/pci-0000:00:1f.2-ata-1".to_owned()), "{:?}", sata.by_path);
        assert_eq!(virtio.identity(), "serial:rack1-node1");
        assert_eq!(virtio.size_bytes, 1 << 20);
        assert!(virtio.by_path.contains(&"pci-0000:00:04.0".to_owned()), "{:?}", virtio.by_path);
        assert!(disks.iter().all(|d| !d.boot_medium && !d.read_only && !d.removable && !d.pluggable));
    }

    #[test]
    fn what_can_be_pulled_out_and_what_refuses_writes_is_told() {
        let fixture = machine();
        let usb = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0";
        fixture.disk(usb, "sdb", "8:16", 4096);
        fixture.disk("platform/soc/mmc_host/mmc0/mmc0:0001", "mmcblk0", "179:0", 4096);
        fixture.file("sys/devices/platform/soc/mmc_host/mmc0/mmc0:0001/type", b"SD\n");
        fixture.disk("platform/soc/mmc_host/mmc1/mmc1:0001", "mmcblk1", "179:8", 4096);
        fixture.file("sys/devices/platform/soc/mmc_host/mmc1/mmc1:0001/type", b"MMC\n");
        fixture.file(&format!("sys/devices/{SATA}/block/sda/ro"), b"1\n");
        let disks = fixture.view().disks();
        let named =
            |wanted: fn(&Disk) -> bool| disks.iter().filter(|d| wanted(d)).map(|d| d.path.as_str()).collect::<Vec<_>>();
        assert_eq!(named(|d| d.pluggable), ["/dev/mmcblk0", "/dev/sdb"]);
        assert_eq!(named(|d| d.read_only), ["/dev/sda"]);
    }

    #[test]
    fn what_holds_a_disk_is_named() {
        let fixture = machine();
        let sda = format!("sys/devices/{SATA}/block/sda");
        fixture.partition(&sda, "sda1", "8:1");
        let held = |fixture: &Fixture| {
            fixture.view().disks().into_iter().find(|d| d.path == "/dev/sda").unwrap().held_by.join("; ")
        };
        fixture.file("proc/self/mountinfo", b"2 1 8:1 / /srv rw - ext4 /dev/sda1 rw\n");
        assert_eq!(held(&fixture), "sda1 is mounted at /srv");
        fixture.file("proc/self/mountinfo", b"");
        fixture.file(&format!("{sda}/sda1/holders/md127/x"), b"");
        assert_eq!(held(&fixture), "sda1 is part of md127");
        for (number, uuid, sentence) in [
            (1, "mpath-3600a098000", "sda is a path of the multipath device the-1"),
            (2, "LVM-abc", "sda is part of the logical volume the-2"),
            (3, "CRYPT-LUKS2-abc", "sda is unlocked as the-3"),
        ] {
            let holder = format!("dm-{number}");
            fixture.file(&format!("{sda}/holders/{holder}/x"), b"");
            fixture.file(&format!("sys/class/block/{holder}/dm/name"), format!("the-{number}\n").as_bytes());
            fixture.file(&format!("sys/class/block/{holder}/dm/uuid"), uuid.as_bytes());
            assert!(held(&fixture).contains(sentence), "{}", held(&fixture));
        }
    }

    #[test]
    fn a_disk_in_use_is_the_boot_medium() {
        let fixture = machine();
        fixture.partition(&format!("sys/devices/{VIRTIO}/block/vda"), "vda1", "254:1");
        let medium = |fixture: &Fixture| {
            let disks = fixture.view().disks();
            disks.into_iter().filter(|d| d.boot_medium).map(|d| d.path).collect::<Vec<_>>()
        };
        assert!(medium(&fixture).is_empty());
        fixture.file("proc/self/mountinfo", b"2 1 254:1 / /mnt rw shared:1 - ext4 /dev/vda1 rw\n");
        assert_eq!(medium(&fixture), ["/dev/vda"]);
        fixture.file("proc/self/mountinfo", b"");
        fixture.file("proc/swaps", b"Filename\tType\n/dev/vda1 partition 100\n");
        assert_eq!(medium(&fixture), ["/dev/vda"]);
        fixture.file("proc/swaps", b"Filename\tType\n");
        fixture.file(&format!("sys/devices/{SATA}/block/sda/holders/dm-0/x"), b"");
        assert_eq!(medium(&fixture), ["/dev/sda"]);
    }

    #[test]
    fn the_disk_below_the_root_file_system_is_found() {
        let fixture = machine();
        let vda = format!("sys/devices/{VIRTIO}/block/vda");
        fixture.partition(&vda, "vda2", "254:2");
        let root = |mountinfo: &str| {
            fixture.file("proc/self/mountinfo", mountinfo.as_bytes());
            identities(&fixture.view().disks_of_root())
        };
        assert_eq!(root("1 0 254:2 / / rw - ext4 /dev/root rw\n"), "serial:rack1-node1");
        assert_eq!(root("1 0 0:25 /@ / rw - btrfs /dev/vda2 rw\n"), "serial:rack1-node1");
        assert_eq!(root("1 0 8:0 / / rw - ext4 /dev/sda rw\n"), "serial:QM00001");
        assert_eq!(root("1 0 0:2 / / rw - rootfs rootfs rw\n"), "");
        // A logical volume on the partition.
        fixture.file("sys/devices/virtual/block/dm-0/dev", b"253:0");
        fixture.link("sys/devices/virtual/block/dm-0", "sys/dev/block/253:0");
        fixture.link(&format!("{vda}/vda2"), "sys/devices/virtual/block/dm-0/slaves/vda2");
        assert_eq!(root("1 0 253:0 / / rw - ext4 /dev/mapper/v-root rw\n"), "serial:rack1-node1");
        // The same on a mirror of that partition and another disk.
        let mirror = "sys/devices/virtual/block/md0";
        fixture.link(&format!("{vda}/vda2"), &format!("{mirror}/slaves/vda2"));
        fixture.link(&format!("sys/devices/{SATA}/block/sda"), &format!("{mirror}/slaves/sda"));
        fixture.link(mirror, "sys/devices/virtual/block/dm-1/slaves/md0");
        fixture.file("sys/devices/virtual/block/dm-1/dev", b"253:1");
        fixture.link("sys/devices/virtual/block/dm-1", "sys/dev/block/253:1");
        let both = "serial:QM00001 + serial:rack1-node1";
        assert_eq!(root("1 0 253:1 / / rw - ext4 /dev/mapper/vg-root rw\n"), both);
    }

    #[test]
    fn the_machine_is_told_with_its_boot_interface_first() {
        let fixture = machine();
        for (name, address, hardware) in [
            ("lo", "00:00:00:00:00:00", false),
            ("eth0", "52:54:00:00:00:01", true),
            ("eth1", "52:54:00:00:00:02", true),
        ] {
            fixture.file(&format!("sys/class/net/{name}/address"), address.as_bytes());
            fixture.file(&format!("sys/class/net/{name}/type"), if hardware { b"1\n" } else { b"772\n" });
            if hardware {
                fixture.file(&format!("sys/class/net/{name}/device/vendor"), b"");
            }
        }
        fixture.file("sys/class/dmi/id/product_uuid", b"8d1f6c0e-5d0e-4a7a-9d0a-2f6b1d7b0a11\n");
        fixture.file("sys/class/dmi/id/sys_vendor", b"QEMU\n");
        fixture.file("sys/class/dmi/id/product_name", b"Standard PC\n");
        for cpu in ["cpu0", "cpu1", "cpufreq"] {
            fixture.file(&format!("sys/devices/system/cpu/{cpu}/x"), b"");
        }
        let machine = fixture.view().machine_without_disks(Some("52:54:00:00:00:02".parse().unwrap()));
        assert_eq!(machine.macs, ["52:54:00:00:00:02", "52:54:00:00:00:01"]);
        assert_eq!(machine.product, "QEMU Standard PC");
        assert_eq!((machine.memory_bytes, machine.processors), (2048 * 1024, 2));
        assert_eq!(machine.uuid.unwrap().to_string(), "8d1f6c0e-5d0e-4a7a-9d0a-2f6b1d7b0a11");
    }
}
