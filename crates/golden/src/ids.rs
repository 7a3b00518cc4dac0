//! Identifiers derived from the recipe, so that the same recipe gives the same disk.

use uuid::Uuid;

/// The identifiers of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) disk: Uuid,
    pub(crate) bios_boot: Uuid,
    pub(crate) esp: Uuid,
    pub(crate) root: Uuid,
    pub(crate) root_file_system: Uuid,
    pub(crate) directory_hash: Uuid,
    /// The ESP's FAT volume number.
    pub(crate) esp_volume: u32,
}

impl Ids {
    /// Derives them from the recipe's key.
    pub(crate) fn derive(key: &str) -> Self {
        Ids {
            disk: derive(key, "disk"),
            bios_boot: derive(key, "bios-boot"),
            esp: derive(key, "esp"),
            root: derive(key, "root"),
            root_file_system: derive(key, "root-file-system"),
            directory_hash: derive(key, "directory-hash"),
            // A FAT volume number of zero means "none".
            esp_volume: derive(key, "esp-volume").as_fields().0 | 1,
        }
    }

    /// The ESP's volume number as `/etc/fstab` writes it.
    pub(crate) fn esp_volume_text(&self) -> String {
        format!("{:04X}-{:04X}", self.esp_volume >> 16, self.esp_volume & 0xffff)
    }
}

/// A UUID of version 8 (RFC 9562, section 5.8): bits of a SHA-256.
fn derive(key: &str, label: &str) -> Uuid {
    let digest = bootenv::cache::sha256(format!("{key}\n{label}").as_bytes());
    let bits = digest.get(..32).and_then(|half| u128::from_str_radix(half, 16).ok()).unwrap_or_default();
    uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_always_gets_the_same_identifiers_and_another_gets_others() {
        let ids = Ids::derive("debian");
        assert_eq!(ids, Ids::derive("debian"));
        assert_ne!(ids.root_file_system, Ids::derive("small").root_file_system);
        assert_ne!(ids.disk, ids.root);
        assert_eq!(ids.disk.get_version_num(), 8);
    }

    #[test]
    fn the_volume_number_reads_as_in_fstab() {
        let ids = Ids { esp_volume: 0x1234_0a0b, ..Ids::derive("x") };
        assert_eq!(ids.esp_volume_text(), "1234-0A0B");
    }
}
