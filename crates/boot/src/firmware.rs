//! Which program of the boot chain is asking, and on which kind of machine.

use serde::{Deserialize, Serialize};

/// The kind of machine, as its firmware states it in DHCP option 93
/// (RFC 4578 section 2.1, IANA "Processor Architecture Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// PC BIOS (type 0).
    Bios,
    /// UEFI on x86-64 (types 7 and 9; 16 over HTTP).
    UefiX64,
    /// UEFI on arm64 (type 11; 19 over HTTP).
    UefiArm64,
}

impl Firmware {
    /// The word used in logs, metrics and the timeline.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::UefiX64 => "uefi-x64",
            Self::UefiArm64 => "uefi-arm64",
        }
    }

    /// True for every UEFI firmware: its iPXE reports `${platform}` as `efi`.
    #[must_use]
    pub fn is_efi(self) -> bool {
        self != Self::Bios
    }
}

/// The program that sent a DHCP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asker {
    /// Firmware that loads its first program over TFTP.
    Pxe(Firmware),
    /// Firmware that loads its first program over HTTP (UEFI 2.5 HTTP boot).
    HttpBoot(Firmware),
    /// iPXE, from a ROM or loaded by us a moment ago. The firmware is unknown
    /// when iPXE does not send option 93.
    Ipxe(Option<Firmware>),
    /// Firmware of an architecture for which we have no loader (the type of
    /// option 93).
    Unsupported(u16),
    /// Not a boot program: an installed operating system or our own agent.
    System,
}

impl Asker {
    /// The firmware behind the program, where it is known.
    #[must_use]
    pub fn firmware(self) -> Option<Firmware> {
        match self {
            Self::Pxe(firmware) | Self::HttpBoot(firmware) => Some(firmware),
            Self::Ipxe(firmware) => firmware,
            Self::Unsupported(_) | Self::System => None,
        }
    }

    /// The word used in logs, metrics and the timeline.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pxe(_) => "pxe",
            Self::HttpBoot(_) => "http-boot",
            Self::Ipxe(_) => "ipxe",
            Self::Unsupported(_) => "unsupported",
            Self::System => "system",
        }
    }
}
