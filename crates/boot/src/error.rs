//! What can go wrong, each with the remedy in the sentence.

use std::io;
use std::path::PathBuf;

use crate::director::DirectorError;

/// Why the boot services refuse, cannot start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself or the machine.
    #[error("boot configuration: {0}")]
    Config(String),
    /// The configured network interface cannot be used.
    #[error("interface `{interface}`: {why}")]
    Interface {
        /// Name from the configuration.
        interface: String,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// A socket could not be opened on its well-known port.
    #[error("cannot open {service} port {port}: {cause}. {remedy}")]
    Bind {
        /// `DHCP`, `TFTP`, ...
        service: &'static str,
        /// UDP port, or 0 for a raw socket.
        port: u16,
        /// The kernel's answer.
        cause: io::Error,
        /// Who may hold the port or which capability is missing, and what to do.
        remedy: String,
    },
    /// A socket that was open stopped working.
    #[error("{service} socket: {cause}")]
    Socket {
        /// `DHCP`, `TFTP`, ...
        service: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The leases of the last run cannot be read; starting without them could
    /// give an address to two machines.
    #[error("cannot load the DHCP leases, so the DHCP server does not start: {0}")]
    Leases(DirectorError),
    /// The folder of boot loaders cannot be used.
    #[error(
        "boot loader folder `{}`: {cause}. Install the package `ipxe` or set `tftp.root` to a folder with the loaders",
        root.display()
    )]
    Loaders {
        /// The configured folder.
        root: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A kernel argument cannot be put into a boot script.
    #[error(
        "kernel argument `{0}` is refused: use letters, digits and -_.,:;/=@%+~?*!()[] only, at most {max} bytes altogether",
        max = crate::decide::KERNEL_LINE_MAX_BYTES
    )]
    KernelArgument(String),
}
