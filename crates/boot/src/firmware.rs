//! Which program of the boot chain is asking, and on which kind of machine.

pub use fleet::node::Firmware;

/// The program that sent a DHCP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The machine's own network boot code, over TFTP or HTTP.
    Firmware(Firmware),
    /// iPXE, from a ROM or loaded by us a moment ago. The firmware is unknown
    /// when iPXE does not send option 93.
    Ipxe(Option<Firmware>),
    /// Firmware of an architecture for which we have no loader (the type of
    /// DHCP option 93).
    Unsupported(u16),
    /// Not a boot program: an installed operating system or our own agent.
    System,
}

impl Asker {
    /// The firmware behind the program, where it is known.
    #[must_use]
    pub fn firmware(self) -> Option<Firmware> {
        match self {
            Self::Firmware(firmware) => Some(firmware),
            Self::Ipxe(firmware) => firmware,
            Self::Unsupported(_) | Self::System => None,
        }
    }

    /// True for the programs that load something from the network.
    #[must_use]
    pub fn boots(self) -> bool {
        matches!(self, Self::Firmware(_) | Self::Ipxe(_))
    }

    /// The word used in logs, metrics and the timeline.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firmware(firmware) => firmware.as_str(),
            Self::Ipxe(_) => "ipxe",
            Self::Unsupported(_) => "unsupported",
            Self::System => "system",
        }
    }
}

/// True for firmware that loads its first program over HTTP.
#[must_use]
pub fn is_http_boot(firmware: Firmware) -> bool {
    matches!(firmware, Firmware::UefiX64Http | Firmware::UefiArm64Http)
}
