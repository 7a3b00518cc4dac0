//! The `[tftp]` section.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::firmware::Firmware;

/// The `[tftp]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TftpConfig {
    /// Serve boot loaders over TFTP. Default true; UEFI HTTP boot works
    /// without.
    pub enabled: bool,
    /// Address to listen on. Default 0.0.0.0, every address of this machine.
    pub address: Ipv4Addr,
    /// UDP port to listen on. Default 69, the only one firmware asks.
    pub port: u16,
    /// Folder with the boot loaders; served over TFTP and HTTP, nothing
    /// outside it is. Default /usr/lib/ipxe, where Debian's package `ipxe`
    /// puts them.
    pub root: PathBuf,
    /// Loader for PC BIOS below `root`. Default undionly.kpxe.
    pub bios_loader: String,
    /// Loader for UEFI on x86-64 below `root`. Default snponly.efi; under
    /// Secure Boot a signed shim.
    pub uefi_x64_loader: String,
    /// Loader for UEFI on arm64 below `root`. Default snponly-arm64.efi.
    pub uefi_arm64_loader: String,
    /// Transfers at the same time, 1 to 4,096; firmware asks again when it is
    /// not served. Default 512.
    pub transfers_max: usize,
}

impl Default for TftpConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            address: Ipv4Addr::UNSPECIFIED,
            port: 69,
            root: PathBuf::from("/usr/lib/ipxe"),
            bios_loader: "undionly.kpxe".to_owned(),
            uefi_x64_loader: "snponly.efi".to_owned(),
            uefi_arm64_loader: "snponly-arm64.efi".to_owned(),
            transfers_max: 512,
        }
    }
}

impl TftpConfig {
    /// The section with its defaults and what every field means.
    pub const DEFAULT_TOML: &'static str = r#"[tftp]
# Serve boot loaders over TFTP; UEFI HTTP boot works without.
enabled = true
# Address and UDP port to listen on; firmware asks port 69 only.
address = "0.0.0.0"
port = 69
# Folder with the boot loaders (Debian: package ipxe); nothing outside it is served.
root = "/usr/lib/ipxe"
# Loader for each firmware, below root. Under Secure Boot name a signed shim.
bios_loader = "undionly.kpxe"
uefi_x64_loader = "snponly.efi"
uefi_arm64_loader = "snponly-arm64.efi"
# Transfers at the same time, 1 to 4096; firmware asks again when it is not served.
transfers_max = 512
"#;

    /// The loader for a firmware, a name below [`TftpConfig::root`].
    #[must_use]
    pub fn loader(&self, firmware: Firmware) -> &str {
        match firmware {
            Firmware::Bios => &self.bios_loader,
            Firmware::UefiX64 | Firmware::UefiX64Http => &self.uefi_x64_loader,
            Firmware::UefiArm64 | Firmware::UefiArm64Http => &self.uefi_arm64_loader,
        }
    }

    /// Checks what a parser cannot.
    ///
    /// # Errors
    /// [`Error::Config`] names the field and what to write.
    pub fn check(&self) -> Result<(), Error> {
        for (field, loader) in [
            ("bios_loader", &self.bios_loader),
            ("uefi_x64_loader", &self.uefi_x64_loader),
            ("uefi_arm64_loader", &self.uefi_arm64_loader),
        ] {
            // The DHCP `file` field holds 127 characters, of which
            // `boot/52-54-00-12-34-56/` takes 23.
            let plain = loader.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
            if loader.is_empty() || loader.len() > 64 || !plain {
                return Err(Error::Config(format!(
                    "tftp.{field} is `{}`, write a file name of at most 64 letters, digits and -_./",
                    loader.escape_debug()
                )));
            }
        }
        if !(1..=4_096).contains(&self.transfers_max) {
            return Err(Error::Config(format!("tftp.transfers_max is {}, write 1 to 4096", self.transfers_max)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        tftp: TftpConfig,
    }

    #[test]
    fn the_printed_section_is_the_default() {
        let file: File = toml::from_str(TftpConfig::DEFAULT_TOML).unwrap();
        assert_eq!(file.tftp, TftpConfig::default());
        file.tftp.check().unwrap();
    }

    #[test]
    fn each_firmware_has_its_loader() {
        let config = TftpConfig::default();
        assert_eq!(config.loader(Firmware::Bios), "undionly.kpxe");
        assert_eq!(config.loader(Firmware::UefiX64), "snponly.efi");
        assert_eq!(config.loader(Firmware::UefiX64Http), "snponly.efi");
        assert_eq!(config.loader(Firmware::UefiArm64), "snponly-arm64.efi");
    }

    #[test]
    fn odd_names_and_counts_are_refused() {
        for bios_loader in ["", "a b", "a\nb", &"x".repeat(65)] {
            let config = TftpConfig { bios_loader: bios_loader.to_owned(), ..TftpConfig::default() };
            assert!(config.check().is_err(), "{bios_loader}");
        }
        let none = TftpConfig { transfers_max: 0, ..TftpConfig::default() };
        assert!(none.check().is_err());
    }
}
