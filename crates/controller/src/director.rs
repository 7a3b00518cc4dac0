//! What the boot services see of the controller.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use boot::director::{Director, DirectorError, Lease, Reservations, Sighting, Stage};
use boot::firmware::Asker;
use fleet::event::Event;
use fleet::ids::{Mac, Millis};
use fleet::node::Firmware;
use uuid::Uuid;

use crate::keeper::Keeper;

/// Machines that wait for approval; more are passed over until some are
/// approved or removed, so that made-up MAC addresses cannot fill the disk.
const STRANGERS: usize = 4_096;
/// The same trouble is noted again after this time, in milliseconds.
const TROUBLE_AGAIN: u64 = 60_000;
/// Troubles remembered at most.
const TROUBLES: usize = 1_024;

/// The boot services' view of the keeper. Cheap to clone.
#[derive(Clone)]
pub struct BootDirector {
    keeper: Keeper,
    troubles: Arc<Mutex<Troubles>>,
}

/// When each sentence about each machine was noted last.
type Troubles = BTreeMap<(Option<Mac>, String), Millis>;

impl BootDirector {
    /// A director over this keeper.
    #[must_use]
    pub fn new(keeper: Keeper) -> Self {
        Self { keeper, troubles: Arc::default() }
    }

    /// Whether this trouble was not noted a moment ago. A machine in a boot
    /// loop would otherwise write its timeline full.
    fn is_news(&self, mac: Option<Mac>, sentence: &str) -> bool {
        let now = self.keeper.now();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.len() >= TROUBLES {
            troubles.retain(|_, noted| now.since(*noted) < TROUBLE_AGAIN);
        }
        let key = (mac, sentence.to_owned());
        let old = troubles.get(&key).is_none_or(|noted| now.since(*noted) >= TROUBLE_AGAIN);
        if old && troubles.len() < TROUBLES {
            troubles.insert(key, now);
        }
        old
    }
}

impl Reservations for BootDirector {
    fn reservation(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.keeper.read(|state| state.reservation(mac))
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<Mac> {
        self.keeper.read(|state| state.reserved_for(address))
    }
}

impl Director for BootDirector {
    fn sighted(&self, sighting: Sighting) {
        match sighting.stage {
            Stage::Released(_) | Stage::Declined(_) => {}
            Stage::Offered(_) | Stage::Proxied | Stage::Leased(_) => {
                let known = self.keeper.read(|state| state.snapshot().node_of(sighting.mac).and_then(|n| n.firmware));
                sight(&self.keeper, sighting.mac, firmware(sighting.asker, known), sighting.uuid);
            }
        }
    }

    fn loader_sent(&self, mac: Option<Mac>, file: &str, bytes: u64) {
        match mac {
            Some(mac) => self.keeper.report(Event::BootloaderSent { mac, file: file.to_owned(), bytes }),
            None => tracing::debug!(file, bytes, "a loader went to a machine that did not name itself"),
        }
    }

    fn trouble(&self, mac: Option<Mac>, sentence: &str) {
        if !self.is_news(mac, sentence) {
            return;
        }
        match mac {
            Some(mac) => {
                tracing::warn!(%mac, "{sentence}");
                self.keeper.remark(mac, "trouble", sentence.to_owned());
            }
            None => tracing::warn!("{sentence}"),
        }
    }

    async fn save_leases(&self, leases: Vec<Lease>) -> Result<(), DirectorError> {
        Ok(self.keeper.save_leases(&leases).await?)
    }

    async fn load_leases(&self) -> Result<Vec<Lease>, DirectorError> {
        Ok(self.keeper.load_leases().await?)
    }
}

/// Reports that a machine was seen, unless it is one stranger too many.
pub fn sight(keeper: &Keeper, mac: Mac, firmware: Option<Firmware>, uuid: Option<Uuid>) {
    if is_welcome(keeper, mac) {
        keeper.report(Event::Sighted { mac, firmware, uuid });
    }
}

/// Whether this machine is known, or one more stranger may wait.
#[must_use]
pub fn is_welcome(keeper: &Keeper, mac: Mac) -> bool {
    let welcome = keeper.read(|state| {
        let snapshot = state.snapshot();
        snapshot.macs.contains_key(&mac) || snapshot.strangers.len() < STRANGERS
    });
    if !welcome {
        tracing::warn!(%mac, "passed over: {STRANGERS} machines wait for approval already; approve or remove some");
    }
    welcome
}

/// How the machine behind an asker network-boots. iPXE cannot tell whether it
/// came by PXE or HTTP boot, so what the firmware itself said before stands.
fn firmware(asker: Asker, known: Option<Firmware>) -> Option<Firmware> {
    match asker {
        Asker::Firmware(firmware) => Some(firmware),
        Asker::Ipxe(Some(told)) => Some(known.filter(|known| known.is_uefi() == told.is_uefi()).unwrap_or(told)),
        // A guess: only old builds of iPXE keep silent, and those are for BIOS.
        Asker::Ipxe(None) => Some(known.unwrap_or(Firmware::Bios)),
        Asker::Unsupported(_) | Asker::System => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipxe_does_not_make_the_controller_forget_how_the_firmware_boots() {
        use Firmware::{Bios, UefiX64, UefiX64Http};
        for (asker, known, expected) in [
            (Asker::Firmware(Bios), Some(UefiX64), Some(Bios)),
            (Asker::Firmware(UefiX64Http), None, Some(UefiX64Http)),
            (Asker::Ipxe(Some(UefiX64)), Some(UefiX64Http), Some(UefiX64Http)),
            (Asker::Ipxe(Some(Bios)), Some(UefiX64), Some(Bios)),
            (Asker::Ipxe(None), Some(UefiX64), Some(UefiX64)),
            (Asker::Ipxe(None), None, Some(Bios)),
            (Asker::System, Some(Bios), None),
            (Asker::Unsupported(6), None, None),
        ] {
            assert_eq!(firmware(asker, known), expected, "{asker:?} {known:?}");
        }
    }
}
