//! The TOML file that describes one virtual machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Debian's UEFI code image (package ovmf).
pub const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Debian's empty UEFI variable store (package ovmf).
pub const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// A unix socket's path has 108 bytes (unix(7)), the closing zero included.
const SOCKET_PATH_BYTES: usize = 107;

/// A virtual machine. Everything that QEMU keeps for it (pid, control socket, UEFI variables, one-time boot) is in `run_dir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name, for people and for process lists.
    pub name: String,
    /// Its network card's address, `52:54:00:...`.
    pub mac: String,
    /// Its SMBIOS system UUID.
    pub uuid: Uuid,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Which firmware, and how it boots from the network.
    pub firmware: Firmware,
    /// QEMU's `-accel`: `tcg` everywhere, `kvm` where the host has it.
    #[serde(default = "tcg")]
    pub accel: String,
    /// Folder for what belongs to the running machine.
    pub run_dir: PathBuf,
    /// File that collects the serial console, over all starts.
    pub console: PathBuf,
    /// Tap device of the network card; without one the card's cable goes nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Network namespace that holds the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Who says what the machine boots when no one-time network boot is armed.
    #[serde(default)]
    pub order: StandingOrder,
    /// Further words for QEMU's command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<String>,
    /// UEFI code image.
    #[serde(default = "ovmf_code")]
    pub firmware_code: PathBuf,
    /// UEFI variable store that a new machine starts with.
    #[serde(default = "ovmf_variables")]
    pub firmware_variables: PathBuf,
    /// Its disks, in boot order.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
}

/// A raw disk file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// The serial number that the guest sees; virtio keeps 20 bytes of it.
    pub serial: String,
}

/// What a machine boots from when nobody asks for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandingOrder {
    /// Its disks in their order, then the network.
    #[default]
    Disk,
    /// What its firmware remembers: boot entries in UEFI's variables.
    Firmware,
    /// The network, always: a machine that ignores the order that it is given.
    Network,
}

/// The firmware, and how it reaches the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS; the card's iPXE ROM boots.
    Bios,
    /// edk2's own PXE over IPv4: DHCP, then TFTP.
    UefiPxe,
    /// edk2's HTTP boot over IPv4.
    UefiHttp,
}

impl Firmware {
    /// Whether it is UEFI.
    pub fn is_uefi(self) -> bool {
        !matches!(self, Firmware::Bios)
    }
}

impl std::fmt::Display for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Firmware::Bios => "BIOS PXE",
            Firmware::UefiPxe => "UEFI PXE",
            Firmware::UefiHttp => "UEFI HTTP",
        })
    }
}

impl Machine {
    /// Reads a definition.
    ///
    /// # Errors
    /// A sentence that says which field is wrong and why.
    pub fn from_toml(text: &str) -> Result<Machine, String> {
        let machine: Machine = toml::from_str(text).map_err(|error| format!("its file is wrong: {error}"))?;
        machine.check()?;
        Ok(machine)
    }

    /// Writes a definition.
    ///
    /// # Errors
    /// A sentence that says which field is wrong and why.
    pub fn to_toml(&self) -> Result<String, String> {
        self.check()?;
        toml::to_string_pretty(self).map_err(|error| format!("cannot be written as TOML: {error}"))
    }

    fn check(&self) -> Result<(), String> {
        let octets: Vec<&str> = self.mac.split(':').collect();
        if octets.len() != 6 || octets.iter().any(|octet| octet.len() != 2 || u8::from_str_radix(octet, 16).is_err()) {
            return Err(format!("`mac = \"{}\"` is not six hexadecimal bytes with colons", self.mac));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(word) {
            return Err(format!("`name = \"{}\"` may have letters, digits, '-', '_' and '.' only", self.name));
        }
        if let Some(disk) = self.disks.iter().find(|disk| disk.serial.len() > 20 || !disk.serial.chars().all(word)) {
            return Err(format!("disk serial `{}` may have 20 letters, digits, '-', '_' and '.' at most", disk.serial));
        }
        for path in [&self.run_dir, &self.console].into_iter().chain(self.disks.iter().map(|disk| &disk.path)) {
            if !path.is_absolute() {
                return Err(format!("`{}` is not an absolute path", path.display()));
            }
        }
        let socket = self.qmp_socket();
        if socket.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(format!(
                "`run_dir` is too long: the socket {} has more than {SOCKET_PATH_BYTES} bytes",
                socket.display()
            ));
        }
        Ok(())
    }

    /// The file with QEMU's process id.
    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("pid")
    }

    /// The process id of the running machine, or nothing when it is off.
    pub fn process_id(&self) -> Option<i32> {
        super::Process::find(self).map(|process| process.id())
    }

    /// Ends the machine as a failing power supply would; does nothing when it is off. The disks keep what was written.
    ///
    /// # Errors
    /// When the process may not be ended.
    pub fn kill(&self) -> std::io::Result<()> {
        super::Process::find(self).map_or(Ok(()), |process| process.kill().map_err(Into::into))
    }

    pub(super) fn qmp_socket(&self) -> PathBuf {
        self.run_dir.join("qmp")
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.run_dir.join("lock")
    }

    pub(super) fn next_boot_file(&self) -> PathBuf {
        self.run_dir.join("next-boot")
    }

    pub(super) fn variables_file(&self) -> PathBuf {
        self.run_dir.join("variables.fd")
    }
}

fn one() -> u32 {
    1
}

fn tcg() -> String {
    "tcg".to_owned()
}

fn ovmf_code() -> PathBuf {
    PathBuf::from(FIRMWARE_CODE)
}

fn ovmf_variables() -> PathBuf {
    PathBuf::from(FIRMWARE_VARIABLES)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(super) mod tests {
    use super::*;

    pub(in crate::qemu) fn sample() -> Machine {
        Machine {
            name: "node1".into(),
            mac: "52:54:00:00:00:01".into(),
            uuid: Uuid::from_u128(7),
            memory_mib: 256,
            cpus: 1,
            firmware: Firmware::UefiPxe,
            accel: tcg(),
            run_dir: "/run/lab/node1".into(),
            console: "/run/lab/node1/console.log".into(),
            tap: Some("tap1".into()),
            namespace: Some("lab".into()),
            order: StandingOrder::Disk,
            extra: Vec::new(),
            firmware_code: ovmf_code(),
            firmware_variables: ovmf_variables(),
            disks: vec![Disk { path: "/disks/a,b.raw".into(), serial: "DISK-1".into() }],
        }
    }

    #[test]
    fn a_definition_survives_its_file() {
        let machine = sample();
        assert_eq!(Machine::from_toml(&machine.to_toml().unwrap()).unwrap(), machine);
    }

    #[test]
    fn wrong_definitions_are_refused_by_name() {
        type Edit = fn(&mut Machine);
        let edits: [(&str, Edit); 5] = [
            ("mac", |m| m.mac = "52:54".into()),
            ("name", |m| m.name = "a,b".into()),
            ("serial", |m| m.disks[0].serial = "x".repeat(21)),
            ("absolute", |m| m.console = "console.log".into()),
            ("run_dir", |m| m.run_dir = format!("/{}", "x".repeat(120)).into()),
        ];
        for (part, edit) in edits {
            let mut machine = sample();
            edit(&mut machine);
            let why = machine.to_toml().unwrap_err();
            assert!(why.contains(part), "{why}");
        }
        assert!(Machine::from_toml("nmae = \"x\"").unwrap_err().contains("nmae"));
    }
}
