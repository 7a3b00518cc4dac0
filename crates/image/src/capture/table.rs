//! Where a disk's partitions are.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use gptman::GPT;

/// Most logical partitions that are followed; a chain that is longer is damaged.
const MOST_LOGICAL: usize = 128;
/// Space before a partition that may hold what its loader or its table needs: partitions are aligned to it.
const GAP_BYTES: u64 = 1 << 20;

/// A partition, or the whole disk where there is no table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its number; none for the whole disk.
    pub(super) number: Option<u32>,
    /// Where it is, in bytes.
    pub(super) range: Range<u64>,
}

/// A disk's partitions, and what else of it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// Partitions in the order of the disk.
    pub(super) slots: Vec<Slot>,
    /// The table itself, and what boot loaders put beside partitions.
    pub(super) around: Vec<Range<u64>>,
}

impl Table {
    /// Reads GPT, else MBR, else takes the disk as a whole.
    pub(super) fn read(file: &File, size_bytes: u64, sector_bytes: u64) -> Self {
        Self::gpt(file, size_bytes, sector_bytes)
            .or_else(|| Self::mbr(file, size_bytes, sector_bytes))
            .unwrap_or_else(|| Self { slots: vec![Slot { number: None, range: 0..size_bytes }], around: Vec::new() })
    }

    fn gpt(file: &File, size_bytes: u64, sector_bytes: u64) -> Option<Self> {
        let mut reader = file;
        // A disk image may have been made for other sectors than the disk it lies on has.
        let gpt = [sector_bytes, 512, 4096].into_iter().find_map(|sector| GPT::read_from(&mut reader, sector).ok())?;
        let sector = gpt.sector_size;
        let slots = gpt.iter().filter(|(_, entry)| entry.is_used()).filter_map(|(number, entry)| {
            let range =
                entry.starting_lba.checked_mul(sector)?..(entry.ending_lba.checked_add(1)?).checked_mul(sector)?;
            Some(Slot { number: Some(number), range })
        });
        let head = 0..gpt.header.first_usable_lba.saturating_mul(sector);
        // The backup is at the end of the disk, or where the end was before the disk grew.
        let backup = gpt.header.last_usable_lba.saturating_add(1).saturating_mul(sector);
        let other = gpt.header.backup_lba.max(gpt.header.primary_lba).saturating_add(1).saturating_mul(sector);
        let around = vec![head, backup..backup.saturating_add(GAP_BYTES), other.saturating_sub(GAP_BYTES)..other];
        Some(Self::of(slots.collect(), around, size_bytes))
    }

    /// The four entries at 446 of a sector that ends with 55 AA; kinds 5, 0F and 85 are a chain of further tables.
    fn mbr(file: &File, size_bytes: u64, sector_bytes: u64) -> Option<Self> {
        let primary = entries(file, 0)?;
        let plausible = |entry: &Entry| {
            matches!(entry.status, 0 | 0x80)
                && (entry.first + entry.count).checked_mul(sector_bytes).is_some_and(|end| end <= size_bytes)
        };
        if primary.iter().all(|entry| entry.kind == 0) || !primary.iter().all(plausible) {
            return None;
        }
        let (mut slots, mut around) = (Vec::new(), Vec::new());
        let bytes = |first: u64, count: u64| first * sector_bytes..(first + count) * sector_bytes;
        for (index, entry) in primary.iter().enumerate().filter(|(_, entry)| entry.kind != 0 && entry.count > 0) {
            if !entry.is_extended() {
                slots.push(Slot { number: Some(index as u32 + 1), range: bytes(entry.first, entry.count) });
                continue;
            }
            let mut table = entry.first;
            for number in 5..5 + MOST_LOGICAL as u32 {
                around.push(bytes(table, 1));
                let Some([logical, next, ..]) = entries(file, table * sector_bytes) else { break };
                if logical.kind != 0 && logical.count > 0 {
                    slots.push(Slot { number: Some(number), range: bytes(table + logical.first, logical.count) });
                }
                if !next.is_extended() || next.first == 0 || next.first >= entry.count {
                    break;
                }
                table = entry.first + next.first;
            }
        }
        Some(Self::of(slots, around, size_bytes))
    }

    /// What no partition holds is not used, but for the start and the end of the disk and a little before partitions.
    fn of(mut slots: Vec<Slot>, mut around: Vec<Range<u64>>, size_bytes: u64) -> Self {
        slots.retain(|slot| slot.range.start < slot.range.end && slot.range.end <= size_bytes);
        slots.sort_by_key(|slot| slot.range.start);
        let first = slots.first().map_or(size_bytes, |slot| slot.range.start);
        around.push(0..first.clamp(GAP_BYTES, 64 * GAP_BYTES));
        around.extend(slots.iter().map(|slot| slot.range.start.saturating_sub(GAP_BYTES)..slot.range.start));
        around.push(size_bytes.saturating_sub(GAP_BYTES)..size_bytes);
        let around = around.into_iter().map(|range| range.start.min(size_bytes)..range.end.min(size_bytes));
        Self { slots, around: around.collect() }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u64,
    count: u64,
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

fn entries(file: &File, offset: u64) -> Option<[Entry; 4]> {
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, offset).ok()?;
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    let number =
        |at: usize| u64::from(u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]]));
    Some([446, 462, 478, 494].map(|at| Entry {
        status: sector[at],
        kind: sector[at + 4],
        first: number(at + 8),
        count: number(at + 12),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::capture::extents::Extents;

    const MIB: u64 = 1 << 20;

    fn disk(size_bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size_bytes).unwrap();
        file
    }

    fn put_mbr(file: &File, at: u64, entries: &[(u8, u64, u64)]) {
        let mut sector = [0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        for (index, (kind, first, count)) in entries.iter().enumerate() {
            let at = 446 + 16 * index;
            sector[at + 4] = *kind;
            sector[at + 8..at + 12].copy_from_slice(&(*first as u32).to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&(*count as u32).to_le_bytes());
        }
        file.write_all_at(&sector, at * 512).unwrap();
    }

    #[test]
    fn logical_partitions_of_an_mbr_are_found() {
        let file = disk(100 * MIB);
        let sectors = |mib: u64| mib * MIB / 512;
        put_mbr(&file, 0, &[(0x83, sectors(1), sectors(9)), (0x05, sectors(20), sectors(60))]);
        put_mbr(&file, sectors(20), &[(0x83, sectors(1), sectors(10)), (0x05, sectors(20), sectors(30))]);
        put_mbr(&file, sectors(40), &[(0x82, sectors(1), sectors(8))]);
        let table = Table::read(&file, 100 * MIB, 512);
        let found: Vec<_> = table.slots.iter().map(|s| (s.number, s.range.start / MIB, s.range.end / MIB)).collect();
        assert_eq!(found, [(Some(1), 1, 10), (Some(5), 21, 31), (Some(6), 41, 49)]);
        let around = Extents::of(table.around);
        assert_eq!(around.within(20 * MIB..21 * MIB).map(|r| r.end - r.start).sum::<u64>(), MIB, "the second table");
        assert_eq!(around.within(60 * MIB..90 * MIB).count(), 0, "free space is not used");
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let file = disk(100 * MIB);
        put_mbr(&file, 0, &[(0x05, 2048, 100_000)]);
        put_mbr(&file, 2048, &[(0x83, 8, 8), (0x05, 4096, 100)]);
        put_mbr(&file, 2048 + 4096, &[(0x83, 8, 8), (0x05, 4096, 100)]);
        assert!(Table::read(&file, 100 * MIB, 512).slots.len() <= MOST_LOGICAL);
    }

    #[test]
    fn without_a_table_the_disk_is_one() {
        for size in [512, 10 * MIB] {
            let file = disk(size);
            let table = Table::read(&file, size, 512);
            assert_eq!((table.slots.len(), table.slots[0].number, table.slots[0].range.end), (1, None, size));
            // A boot sector of a file system ends like a table but has text where entries are.
            file.write_all_at(&[0x55, 0xaa], 510).unwrap();
            file.write_all_at(b"no system disk, press any key to restart ", 440).unwrap();
            assert_eq!(Table::read(&file, size, 512).slots.len(), 1);
        }
    }

    #[test]
    fn partitions_of_a_gpt_are_found_and_its_backup_is_used() {
        let mut file = disk(100 * MIB);
        let mut gpt = GPT::new_from(&mut file, 512, [7; 16]).unwrap();
        for (number, first, last) in [(1, 2048, 4095), (15, 8192, 100_000)] {
            gpt[number] = gptman::GPTPartitionEntry {
                partition_type_guid: [1; 16],
                unique_partition_guid: [number as u8; 16],
                starting_lba: first,
                ending_lba: last,
                attribute_bits: 0,
                partition_name: "x".into(),
            };
        }
        gpt.write_into(&mut file).unwrap();
        let check = |size: u64| {
            let table = Table::read(&file, size, 512);
            let found: Vec<_> = table.slots.iter().map(|s| (s.number, s.range.start, s.range.end)).collect();
            assert_eq!(found, [(Some(1), 2048 * 512, 4096 * 512), (Some(15), 8192 * 512, 100_001 * 512)]);
            let around = Extents::of(table.around);
            assert_eq!(around.within(100 * MIB - 33 * 512..100 * MIB).map(|r| r.end - r.start).sum::<u64>(), 33 * 512);
            assert_eq!(around.within(60 * MIB..90 * MIB).count(), 0);
        };
        check(100 * MIB);
        // The disk is larger than the one that the table was made for.
        file.set_len(300 * MIB).unwrap();
        check(300 * MIB);
    }
}
