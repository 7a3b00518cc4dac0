//! Free clusters of FAT12, FAT16 and FAT32 ("FAT: General Overview of On-Disk Format", 1.03). No program prints them.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::extents::Extents;

/// A table larger than this belongs to no partition that a machine boots from.
const TABLE_LIMIT_BYTES: u64 = 64 << 20;

/// The numbers of a boot sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    sector_bytes: u64,
    cluster_sectors: u64,
    reserved_sectors: u64,
    tables: u64,
    table_sectors: u64,
    root_sectors: u64,
    sectors: u64,
}

/// Whether a partition begins like FAT.
pub(super) fn is_fat(head: &[u8]) -> bool {
    Shape::read(head).is_some()
}

impl Shape {
    fn read(head: &[u8]) -> Option<Self> {
        let head = head.get(..512)?;
        let short = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let long = |at: usize| short(at) | short(at + 2) << 16;
        let named = &head[54..57] == b"FAT" || &head[82..85] == b"FAT";
        if head[510..] != [0x55, 0xaa] || !named || !matches!(head[0], 0xeb | 0xe9) {
            return None;
        }
        let shape = Self {
            sector_bytes: short(11),
            cluster_sectors: u64::from(head[13]),
            reserved_sectors: short(14),
            tables: u64::from(head[16]),
            table_sectors: if short(22) != 0 { short(22) } else { long(36) },
            root_sectors: (short(17) * 32).div_ceil(short(11).max(1)),
            sectors: if short(19) != 0 { short(19) } else { long(32) },
        };
        let sane = matches!(shape.sector_bytes, 512 | 1024 | 2048 | 4096)
            && shape.cluster_sectors.is_power_of_two()
            && matches!(shape.tables, 1 | 2)
            && shape.reserved_sectors > 0
            && shape.table_sectors > 0
            && shape.first_data() < shape.sectors;
        sane.then_some(shape)
    }

    fn first_data(self) -> u64 {
        self.reserved_sectors + self.tables * self.table_sectors + self.root_sectors
    }

    fn clusters(self) -> u64 {
        (self.sectors - self.first_data()) / self.cluster_sectors
    }
}

/// The free bytes of the file system in `range`: clusters that no table has in use.
///
/// # Errors
/// Why they are not known.
pub(super) fn free(file: &File, range: Range<u64>) -> Result<Extents, String> {
    let mut head = [0; 512];
    let unreadable = |error: std::io::Error| format!("it cannot be read: {error}");
    file.read_exact_at(&mut head, range.start).map_err(unreadable)?;
    let shape = Shape::read(&head).ok_or_else(|| "its boot sector is damaged".to_owned())?;
    let end = range.start + shape.sectors * shape.sector_bytes;
    if end > range.end {
        return Err("it is larger than its partition".to_owned());
    }
    let table_bytes = shape.table_sectors * shape.sector_bytes;
    if table_bytes > TABLE_LIMIT_BYTES {
        return Err("its table is too large to be looked through".to_owned());
    }
    let mut tables = Vec::new();
    for number in 0..shape.tables {
        let mut table = vec![0; table_bytes as usize];
        let at = range.start + shape.reserved_sectors * shape.sector_bytes + number * table_bytes;
        file.read_exact_at(&mut table, at).map_err(unreadable)?;
        tables.push(table);
    }
    let clusters = shape.clusters();
    let is_free = |cluster: u64| tables.iter().all(|table| entry(table, clusters, cluster) == Some(0));
    let cluster_bytes = shape.cluster_sectors * shape.sector_bytes;
    let data = range.start + shape.first_data() * shape.sector_bytes;
    // Clusters are counted from 2.
    let free = (2..clusters + 2).filter(|cluster| is_free(*cluster)).map(|cluster| {
        let at = data + (cluster - 2) * cluster_bytes;
        at..at + cluster_bytes
    });
    Ok(Extents::of(free.chain(std::iter::once(end..range.end))))
}

/// What a table says of a cluster; the number of clusters decides how wide entries are.
fn entry(table: &[u8], clusters: u64, cluster: u64) -> Option<u32> {
    let cluster = cluster as usize;
    let short = |at: usize| Some(u32::from(u16::from_le_bytes([*table.get(at)?, *table.get(at + 1)?])));
    match clusters {
        0..4085 => {
            let pair = short(cluster + cluster / 2)?;
            Some(if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 })
        }
        4085..65_525 => short(cluster * 2),
        _ => Some((short(cluster * 4)? | short(cluster * 4 + 2)? << 16) & 0x0fff_ffff),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_every_width_are_read() {
        assert_eq!(entry(&[0xf8, 0xff, 0xff, 0x03, 0x40, 0x00], 100, 2), Some(3));
        assert_eq!(entry(&[0xf8, 0xff, 0xff, 0x03, 0x40, 0x00], 100, 3), Some(4));
        assert_eq!(entry(&[0, 0, 0, 0, 7, 1], 5000, 2), Some(0x107));
        assert_eq!(entry(&[0, 0, 0, 0, 7, 1, 0, 0xf0], 70_000, 1), Some(0x107), "the highest four bits mean nothing");
        assert_eq!(entry(&[0], 70_000, 1), None);
    }

    #[test]
    fn what_only_looks_like_fat_is_none() {
        let mut head = [0; 512];
        head[510..].copy_from_slice(&[0x55, 0xaa]);
        head[0] = 0xeb;
        head[54..57].copy_from_slice(b"FAT");
        assert!(!is_fat(&head) && !is_fat(&head[..100]));
    }
}
