//! The MBR's partition table, with logical partitions in extended ones.

use super::{PARTITIONS_MAX, Partition, Purpose};
use crate::disk::Error;
use crate::disk::source::{Area, le16, le32};

const SECTOR: u64 = 512;
const SIGNATURE: u16 = 0xaa55;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const ESP: u8 = 0xef;
/// It says that the table is a GPT.
const PROTECTIVE: u8 = 0xee;

struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

/// The four of a sector that has some.
fn entries(sector: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    sector[446..510].chunks_exact(16).map(|entry| Entry {
        kind: entry[4],
        first: le32(entry, 8).into(),
        sectors: le32(entry, 12).into(),
    })
}

/// The partitions; `None` where there is no such table.
pub(super) fn partitions(disk: Area<'_>) -> Result<Option<Vec<Partition<'_>>>, Error> {
    let Some(sector) = disk.peek(0, SECTOR as usize)? else { return Ok(None) };
    if le16(&sector, 510) != SIGNATURE {
        return Ok(None);
    }
    let id = le32(&sector, 440);
    let mut found = Vec::new();
    let add = |found: &mut Vec<_>, number: usize, entry: &Entry, base: u64| {
        if let Some(area) = disk.part((base + entry.first) * SECTOR, entry.sectors * SECTOR) {
            let purpose = if entry.kind == ESP { Purpose::Esp } else { Purpose::Other };
            // Linux, block/partitions/msdos.c: the number has two hexadecimal digits.
            found.push(Partition { purpose, area, partuuid: format!("{id:08x}-{number:02x}") });
        }
    };
    let mut extended = None;
    for (index, entry) in entries(&sector).enumerate() {
        match entry.kind {
            0 => {}
            PROTECTIVE => return Err(Error::Table { problem: "its GPT is missing" }),
            kind if EXTENDED.contains(&kind) => extended = extended.or(Some(entry.first)),
            _ => add(&mut found, index + 1, &entry, 0),
        }
    }
    // A chain of sectors: a logical partition relative to its own, and the next sector relative to the first.
    let first = extended.unwrap_or(0);
    let mut next = extended;
    for number in 5..PARTITIONS_MAX {
        let Some(at) = next.take() else { break };
        let Some(sector) = disk.peek(at * SECTOR, SECTOR as usize)? else { break };
        if le16(&sector, 510) != SIGNATURE {
            break;
        }
        for entry in entries(&sector).take(2) {
            match entry.kind {
                0 => {}
                kind if EXTENDED.contains(&kind) => next = Some(first + entry.first),
                _ => add(&mut found, number, &entry, at),
            }
        }
    }
    Ok((!found.is_empty()).then_some(found))
}
