//! The GUID partition table (UEFI 2.10, 5.3).

use flate2::Crc;

use super::{PARTITIONS_MAX, Partition, Purpose};
use crate::disk::Error;
use crate::disk::source::{Area, array, le32, le64};

const SIGNATURE: &[u8] = b"EFI PART";
/// Of the header that is defined.
const HEADER_LEN: usize = 92;
const ENTRY_LEN: usize = 128;
/// The most of them that are looked at, and how long one may be.
const ENTRIES_MAX: u32 = 1024;
const ENTRY_LEN_MAX: u32 = 4096;

/// As they are on the disk: the first three fields are little-endian.
const ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const UNUSED: &str = "00000000-0000-0000-0000-000000000000";

/// The partitions; `None` where there is no such table. The second header counts where the first is broken.
pub(super) fn partitions(disk: Area<'_>) -> Result<Option<Vec<Partition<'_>>>, Error> {
    let mut broken = None;
    // The sector of a file can be either; the table lies by it.
    for sector in [512, 4096] {
        let last = (disk.len / sector).saturating_sub(1);
        for lba in [1, last] {
            match table(disk, sector, lba) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(Error::Table { problem }) => broken = broken.or(Some(problem)),
                Err(error) => return Err(error),
            }
        }
    }
    broken.map_or(Ok(None), |problem| Err(Error::Table { problem }))
}

fn table(disk: Area<'_>, sector: u64, lba: u64) -> Result<Option<Vec<Partition<'_>>>, Error> {
    let broken = |problem| Error::Table { problem };
    let Some(header) = disk.peek(lba * sector, 512)? else { return Ok(None) };
    if !header.starts_with(SIGNATURE) {
        return Ok(None);
    }
    let len = le32(&header, 12) as usize;
    let Some(mut summed) = header.get(..len).filter(|_| len >= HEADER_LEN).map(<[u8]>::to_vec) else {
        return Err(broken("the GPT's header has another length"));
    };
    summed[16..20].fill(0);
    if crc32(&summed) != le32(&header, 16) {
        return Err(broken("the checksum of the GPT's header is wrong"));
    }
    if le64(&header, 24) != lba {
        return Err(broken("the GPT's header is of another place"));
    }
    let (count, entry_len) = (le32(&header, 80), le32(&header, 84));
    if count > ENTRIES_MAX
        || entry_len > ENTRY_LEN_MAX
        || (entry_len as usize) < ENTRY_LEN
        || entry_len % 8 != 0
    {
        return Err(broken("the GPT has too many entries, or of a strange length"));
    }
    let place =
        le64(&header, 72).checked_mul(sector).ok_or_else(|| broken("the GPT's entries lie nowhere"))?;
    let Some(entries) = disk.peek(place, (count * entry_len) as usize)? else {
        return Err(broken("the GPT's entries lie past the end of the disk"));
    };
    if crc32(&entries) != le32(&header, 88) {
        return Err(broken("the checksum of the GPT's entries is wrong"));
    }
    let partition = |entry: &[u8]| {
        let kind = guid(array(entry, 0));
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        let area = disk.part(first.checked_mul(sector)?, sectors.checked_mul(sector)?)?;
        let purpose = match &kind[..] {
            UNUSED => return None,
            ROOT_X86_64 => Purpose::Root,
            XBOOTLDR => Purpose::Boot,
            ESP => Purpose::Esp,
            _ => Purpose::Other,
        };
        Some(Partition { purpose, area, partuuid: guid(array(entry, 16)) })
    };
    Ok(Some(entries.chunks_exact(entry_len as usize).filter_map(partition).take(PARTITIONS_MAX).collect()))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// As it is written.
fn guid(b: [u8; 16]) -> String {
    let (a, c, d) = (le32(&b, 0), u16::from_le_bytes([b[4], b[5]]), u16::from_le_bytes([b[6], b[7]]));
    let rest = u64::from_be_bytes(array(&b, 8));
    format!("{a:08x}-{c:04x}-{d:04x}-{:04x}-{:012x}", rest >> 48, rest & 0xffff_ffff_ffff)
}
