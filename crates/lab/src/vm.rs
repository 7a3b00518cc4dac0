//! The lab's machines: definitions for the `qemu` power driver, sparse disks, console logs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use fleet::ids::Mac;
use power::qemu::{Disk, FIRMWARE_CODE, FIRMWARE_VARIABLES, Firmware, Machine, StandingOrder};
use uuid::Uuid;

/// A machine's definition, beside everything else that belongs to it.
const DEFINITION: &str = "vm.toml";
/// Rules of QEMU's driver `blkdebug`, which fails writes on demand.
const RULES: &str = "write-errors";
/// Where the machines' folders are within the lab's folder.
const FOLDER: &str = "vm";
/// How long the kernel may take to end killed machines on a loaded host.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What a machine is to be like.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its firmware.
    pub firmware: Firmware,
    /// What it boots from when nobody asks for something else.
    pub order: StandingOrder,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Size of each of its disks, in bytes.
    pub disks_bytes: Vec<u64>,
    /// Serial number for all of its disks, if they shall not have one each.
    pub same_serial: Option<String>,
    /// What is wrong with its first disk.
    pub fault: Option<DiskFault>,
}

/// What QEMU does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// Every write of this sector of 512 bytes, counted from the disk's beginning, fails (EIO). It can be read.
    WriteError(u64),
    /// It writes no more bytes a second than this.
    Slow(u64),
}

impl Spec {
    /// A machine with one blank disk. 512 MiB let edk2, the agent and Debian's systemd live (lab: 320 is the least).
    #[must_use]
    pub fn new(name: &str, firmware: Firmware, disk_bytes: u64) -> Spec {
        let order = StandingOrder::Disk;
        Spec {
            name: name.to_owned(),
            firmware,
            order,
            memory_mib: 512,
            disks_bytes: vec![disk_bytes],
            same_serial: None,
            fault: None,
        }
    }
}

/// The machines of one lab. They are ended with their value.
#[derive(Debug)]
pub struct Machines {
    folder: PathBuf,
    namespace: String,
    list: Vec<Machine>,
}

impl Machines {
    /// No machines yet; they will live in `folder` and in the namespace called `namespace`.
    #[must_use]
    pub fn new(folder: &Path, namespace: &str) -> Machines {
        Machines { folder: folder.to_owned(), namespace: namespace.to_owned(), list: Vec::new() }
    }

    /// Writes a machine's definition and its blank disks. The machine gets the next tap and stays off.
    ///
    /// # Errors
    /// When a file cannot be written or the definition is wrong.
    pub fn add(&mut self, spec: &Spec) -> Result<&Machine> {
        let number = self.list.len();
        let home = self.folder.join(FOLDER).join(&spec.name);
        if home.exists() {
            bail!("the lab has a machine called {} already", spec.name);
        }
        std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let machine = self.define(spec, number, &home);
        if let Some(DiskFault::WriteError(sector)) = spec.fault {
            // From the first write on, and for writes alone: the rule is for the sector, not for the event.
            let rule = "[inject-error]\nevent = \"write_aio\"\niotype = \"write\"\nerrno = \"5\"\n";
            let rule = format!("{rule}sector = \"{sector}\"\n");
            std::fs::write(home.join(RULES), rule).with_context(|| format!("cannot write {}", home.display()))?;
        }
        for (disk, size) in machine.disks.iter().zip(&spec.disks_bytes) {
            blank_disk(&disk.path, *size)?;
        }
        write_definition(&machine)?;
        self.list.push(machine);
        self.list.last().ok_or_else(|| anyhow!("no machine"))
    }

    fn define(&self, spec: &Spec, number: usize, home: &Path) -> Machine {
        let serial = |disk: usize| spec.same_serial.clone().unwrap_or_else(|| format!("LAB-{number}-{disk}"));
        Machine {
            name: spec.name.clone(),
            mac: mac_of(number).to_string(),
            uuid: Uuid::new_v4(),
            memory_mib: spec.memory_mib,
            cpus: 1,
            firmware: spec.firmware,
            accel: "tcg".to_owned(),
            run_dir: home.to_owned(),
            console: home.join("console.log"),
            tap: Some(format!("tap{number}")),
            namespace: Some(self.namespace.clone()),
            order: spec.order,
            extra: spec.fault.map(|fault| fault_words(fault, home)).unwrap_or_default(),
            firmware_code: FIRMWARE_CODE.into(),
            firmware_variables: FIRMWARE_VARIABLES.into(),
            disks: (0..spec.disks_bytes.len())
                .map(|disk| Disk { path: home.join(disk_file(disk)), serial: serial(disk) })
                .collect(),
        }
    }

    /// All machines, in the order in which they were added.
    #[must_use]
    pub fn list(&self) -> &[Machine] {
        &self.list
    }

    /// The machine called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<&Machine> {
        self.list
            .iter()
            .find(|machine| machine.name == name)
            .ok_or_else(|| anyhow!("the lab has no machine called {name}"))
    }

    /// Changes the hardware of a machine that is off, such as its disks.
    ///
    /// # Errors
    /// When the definition cannot be written or is wrong.
    pub fn redefine(&self, machine: &Machine) -> Result<()> {
        self.get(&machine.name)?;
        write_definition(machine)
    }

    /// Takes the power from all machines and waits until they have ended.
    ///
    /// # Errors
    /// When one does not end.
    pub fn kill_all(&self) -> Result<()> {
        kill(&self.list)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            tracing::warn!(%error, "a machine of the lab still runs");
        }
    }
}

/// Words that change the drive which QEMU has made of the first disk by then.
fn fault_words(fault: DiskFault, home: &Path) -> Vec<String> {
    let change = match fault {
        DiskFault::WriteError(_) => {
            format!("file=blkdebug:{}:{}", home.join(RULES).display(), home.join(disk_file(0)).display())
        }
        DiskFault::Slow(bytes_per_second) => format!("throttling.bps-write={bytes_per_second}"),
    };
    ["-set".to_owned(), format!("drive.drive0.{change}")].to_vec()
}

fn disk_file(number: usize) -> String {
    format!("disk{number}.raw")
}

/// The address by which a power driver finds the machine.
#[must_use]
pub fn power_address(machine: &Machine) -> String {
    format!("qemu:{}", machine.run_dir.join(DEFINITION).display())
}

/// The machine's first MAC address: locally administered, QEMU's own prefix, counted up.
#[must_use]
pub fn mac_of(number: usize) -> Mac {
    let low = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    Mac([0x52, 0x54, 0x00, 0x77, low[0], low[1]])
}

/// What a machine has said on its serial console so far.
#[must_use]
pub fn console(machine: &Machine) -> String {
    std::fs::read(&machine.console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Most memory that the machine's QEMU process has had, in bytes; nothing while it is off.
#[must_use]
pub fn resident_peak_bytes(machine: &Machine) -> Option<u64> {
    crate::serve::resident_peak_bytes(u32::try_from(machine.process_id()?).ok()?)
}

/// Ends all machines whose definitions are in a lab's folder; says how many ran.
pub(crate) fn kill_all_in(folder: &Path) -> Result<usize> {
    let Ok(entries) = std::fs::read_dir(folder.join(FOLDER)) else { return Ok(0) };
    let definitions = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join(DEFINITION)).ok());
    let machines: Vec<Machine> = definitions.filter_map(|text| Machine::from_toml(&text).ok()).collect();
    let running = machines.iter().filter(|machine| machine.process_id().is_some()).count();
    kill(&machines)?;
    Ok(running)
}

fn kill(machines: &[Machine]) -> Result<()> {
    for machine in machines {
        machine.kill().with_context(|| format!("machine {} cannot be ended", machine.name))?;
    }
    let deadline = Instant::now() + END_LIMIT;
    while let Some(machine) = machines.iter().find(|machine| machine.process_id().is_some()) {
        if Instant::now() >= deadline {
            bail!("machine {} still runs {} s after it was killed", machine.name, END_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn blank_disk(path: &Path, size_bytes: u64) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot make the disk {}", path.display()))?;
    file.set_len(size_bytes).with_context(|| format!("cannot size the disk {}", path.display()))
}

fn write_definition(machine: &Machine) -> Result<()> {
    let text = machine.to_toml().map_err(|why| anyhow!("machine {}: {why}", machine.name))?;
    let path = machine.run_dir.join(DEFINITION);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn machines_differ_where_they_must_and_disks_take_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let mut machines = Machines::new(folder.path(), "none");
        machines.add(&Spec::new("node1", Firmware::Bios, 1 << 30)).unwrap();
        let twins = Spec {
            disks_bytes: vec![1 << 20; 2],
            same_serial: Some("TWIN".into()),
            ..Spec::new("node2", Firmware::UefiPxe, 0)
        };
        machines.add(&twins).unwrap();
        let [one, two] = machines.list() else { panic!("two machines") };
        assert_ne!((&one.mac, &one.uuid, &one.tap), (&two.mac, &two.uuid, &two.tap));
        assert!(two.disks.iter().all(|disk| disk.serial == "TWIN"));
        let disk = std::fs::metadata(&one.disks[0].path).unwrap();
        assert_eq!(disk.len(), 1 << 30);
        assert_eq!(std::os::unix::fs::MetadataExt::blocks(&disk), 0);
        power::open(&power_address(one)).unwrap();
        assert!(machines.add(&Spec::new("node1", Firmware::Bios, 1)).is_err());
        assert_eq!(kill_all_in(folder.path()).unwrap(), 0);
    }
}
