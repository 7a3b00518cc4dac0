//! What the booted system says of itself: which image it was written from, and
//! on which disk it runs, read now.

use std::fs;

use api::agent::{DeployedConfig, Proof};
use fleet::disk::identities;

use crate::Error;
use crate::inventory::View;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The proof of the running system. The disks are looked up by the same code
/// that chose them; a system whose root is on no disk says so, and the controller
/// refuses that.
///
/// # Errors
/// When the kernel does not tell its boot id.
pub fn of_running_system(config: &DeployedConfig) -> Result<Proof, Error> {
    let disks = View::default().disks_of_root();
    let disk = if disks.is_empty() { "none".to_owned() } else { identities(&disks) };
    let boot_id = fs::read_to_string(BOOT_ID).map_err(Error::io("read", BOOT_ID))?;
    Ok(Proof {
        digest: config.digest,
        disk,
        attempt: config.attempt,
        boot_id: boot_id.trim().to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}
