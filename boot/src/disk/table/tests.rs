//! Tables made by hand: what they say is found, and what lies about its size is not.

use super::*;
use crate::disk::source::{ReadAt, Source};

const ROOT: [u8; 16] = *b"\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09";
const XBOOTLDR: [u8; 16] = *b"\xff\xc2\x13\xbc\xe6\x59\x62\x42\xa3\x52\xb2\x75\xfd\x6f\x71\x72";
const ESP: [u8; 16] = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
const LINUX: [u8; 16] = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
const UNUSED: [u8; 16] = [0; 16];

/// Of every partition what it is for, its start and length in bytes, and its PARTUUID.
type Listing = Vec<(Purpose, u64, u64, String)>;

fn list(disk: &dyn ReadAt, len: u64) -> Result<Option<Listing>, Error> {
    let source = Source::new(disk, len);
    let found = partitions(source.whole())?;
    let each = |p: Partition<'_>| (p.purpose, p.area.start, p.area.len, p.partuuid);
    Ok(found.map(|found| found.into_iter().map(each).collect()))
}

fn in_memory(disk: &Vec<u8>) -> Result<Option<Listing>, Error> {
    list(disk, disk.len() as u64)
}

/// A GPT of `count` entries of `entry_len` bytes, with sectors of 512 bytes. Of each partition: its type, first and
/// last sector.
fn gpt(count: u32, entry_len: u32, partitions: &[([u8; 16], u64, u64)]) -> Vec<u8> {
    let mut entries = vec![0; (count * entry_len) as usize];
    for (index, (kind, first, last)) in partitions.iter().enumerate() {
        let entry = &mut entries[index * entry_len as usize..];
        entry[..16].copy_from_slice(kind);
        entry[16..32].fill(index as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let sum = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let mut header = [0; 92];
    header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
    header[24] = 1;
    header[72] = 2;
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&entry_len.to_le_bytes());
    header[88..92].copy_from_slice(&sum(&entries));
    let crc = sum(&header);
    header[16..20].copy_from_slice(&crc);
    let mut disk = vec![0; 1024];
    disk[512..604].copy_from_slice(&header);
    disk.extend(entries);
    disk.resize(disk.len().max(1 << 20), 0);
    disk
}

/// The GUID of which each byte is `n`, as it is written.
fn uuid(n: u8) -> String {
    let digits = |bytes| format!("{n:02x}").repeat(bytes);
    [4, 2, 2, 2, 6].map(digits).join("-")
}

#[test]
fn a_gpt_says_what_its_partitions_are_for() {
    let disk = gpt(
        10,
        128,
        &[
            (ESP, 40, 47),
            (UNUSED, 48, 55),
            (XBOOTLDR, 56, 56),
            (ROOT, 64, 127),
            (LINUX, 128, 255),
            // What ends before it begins, lies past the end, or has more bytes than can be counted is none.
            (LINUX, 200, 199),
            (LINUX, 2048, 2049),
            (LINUX, 0, u64::MAX),
            (LINUX, 1, u64::MAX),
            // What goes past the end is cut off there.
            (LINUX, 2040, 9000),
        ],
    );
    let expected = vec![
        (Purpose::Esp, 40 * 512, 8 * 512, uuid(1)),
        (Purpose::Boot, 56 * 512, 512, uuid(3)),
        (Purpose::Root, 64 * 512, 64 * 512, uuid(4)),
        (Purpose::Other, 128 * 512, 128 * 512, uuid(5)),
        (Purpose::Other, 2040 * 512, 8 * 512, uuid(10)),
    ];
    assert_eq!(in_memory(&disk).unwrap(), Some(expected));
}

#[test]
fn a_gpt_of_too_many_or_strange_entries_is_refused() {
    let listed = |count, entry_len| in_memory(&gpt(count, entry_len, &[(LINUX, 64, 127)]));
    for (count, entry_len) in [(1, 128), (1, 136), (1, 256), (1, 4096), (1024, 128), (1024, 4096)] {
        let expected = vec![(Purpose::Other, 64 * 512, 64 * 512, uuid(1))];
        assert_eq!(listed(count, entry_len).unwrap(), Some(expected), "{count} {entry_len}");
    }
    for (count, entry_len) in
        [(1025, 128), (1026, 128), (2048, 128), (1, 120), (1, 56), (1, 132), (1, 4104), (1, 8192)]
    {
        let Err(Error::Table { problem }) = listed(count, entry_len) else { panic!("{count} {entry_len}") };
        assert_eq!(problem, "the GPT has too many entries, or of a strange length", "{count} {entry_len}");
    }
}

/// Puts such entries into a sector of an MBR: type, first sector and how many.
fn put(disk: &mut [u8], sector: u64, entries: &[(u8, u32, u32)]) {
    let sector = &mut disk[sector as usize * 512..][..512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    for (entry, (kind, first, sectors)) in sector[446..510].chunks_exact_mut(16).zip(entries) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
}

/// A disk of 1 MiB with such an MBR.
fn mbr(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    put(&mut disk, 0, entries);
    disk[440..444].copy_from_slice(&0xabcd_1234_u32.to_le_bytes());
    disk
}

fn partition(purpose: Purpose, first: u64, sectors: u64, number: u8) -> (Purpose, u64, u64, String) {
    (purpose, first * 512, sectors * 512, format!("abcd1234-{number:02x}"))
}

#[test]
fn an_mbr_has_the_partitions_that_it_says() {
    let disk = mbr(&[(0xef, 8, 16), (0, 30, 8), (0x83, 40, 1), (0x07, 2000, 4000)]);
    let expected = vec![
        partition(Purpose::Esp, 8, 16, 1),
        partition(Purpose::Other, 40, 1, 3),
        // Cut off at the end of the disk.
        partition(Purpose::Other, 2000, 48, 4),
    ];
    assert_eq!(in_memory(&disk).unwrap(), Some(expected));
    // What has no partition is no table: of nothing, past the end, of no sector.
    for entries in
        [&[][..], &[(0, 8, 8); 4], &[(0x83, 2048, 8)], &[(0x83, 8, 0)], &[(0x83, u32::MAX, u32::MAX)]]
    {
        assert_eq!(in_memory(&mbr(entries)).unwrap(), None, "{entries:?}");
    }
    let mut unsigned = mbr(&[(0x83, 8, 16)]);
    unsigned[511] = 0;
    assert_eq!(in_memory(&unsigned).unwrap(), None);
}

#[test]
fn an_mbr_that_points_to_a_gpt_is_not_enough() {
    let Err(Error::Table { problem }) = in_memory(&mbr(&[(0x83, 8, 16), (0xee, 1, 2047)])) else { panic!() };
    assert_eq!(problem, "its GPT is missing");
}

#[test]
fn logical_partitions_lie_relative_to_their_sector_and_the_next_to_the_first() {
    for kind in [0x05, 0x0f, 0x85] {
        // Of several extended ones the first counts.
        let mut disk = mbr(&[(0x83, 8, 16), (kind, 100, 400), (kind, 700, 100), (0x83, 600, 8)]);
        put(&mut disk, 100, &[(0x83, 2, 10), (kind, 60, 100)]);
        put(&mut disk, 160, &[(0xef, 3, 11), (kind, 20, 100)]);
        put(&mut disk, 120, &[(0, 4, 12), (kind, 200, 100)]);
        // The third and the fourth entry of such a sector are none.
        put(&mut disk, 300, &[(0x83, 5, 13), (0, 50, 50), (0x83, 6, 14), (kind, 250, 100)]);
        put(&mut disk, 350, &[(0x83, 1, 1)]);
        put(&mut disk, 700, &[(0x83, 1, 1)]);
        let expected = vec![
            partition(Purpose::Other, 8, 16, 1),
            partition(Purpose::Other, 600, 8, 4),
            partition(Purpose::Other, 102, 10, 5),
            partition(Purpose::Esp, 163, 11, 6),
            partition(Purpose::Other, 305, 13, 8),
        ];
        assert_eq!(in_memory(&disk).unwrap(), Some(expected), "{kind:#x}");
    }
}

#[test]
fn a_chain_of_logical_partitions_ends_at_what_is_no_sector_of_one() {
    let expected = vec![partition(Purpose::Other, 102, 10, 5)];
    for next in [2047, u32::MAX, 50] {
        let mut disk = mbr(&[(0x05, 100, 400)]);
        put(&mut disk, 100, &[(0x83, 2, 10), (0x05, next, 100)]);
        assert_eq!(in_memory(&disk).unwrap(), Some(expected.clone()), "{next}");
    }
}

/// A sparse disk, of which some sectors are not zero.
struct Sparse(Vec<(u64, Vec<u8>)>);

impl ReadAt for Sparse {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        buffer.fill(0);
        if let Some((_, sector)) = self.0.iter().find(|(at, _)| at * 512 == offset) {
            buffer[..512].copy_from_slice(sector);
        }
        Ok(())
    }
}

#[test]
fn logical_partitions_lie_beyond_two_tebibytes_where_the_disk_does() {
    let (extended, next) = (u32::MAX, u32::MAX);
    let second = u64::from(extended) + u64::from(next);
    let sector = |entries: &[(u8, u32, u32)]| mbr(entries)[..512].to_vec();
    let disk = Sparse(vec![
        (0, sector(&[(0x0f, extended, 1)])),
        (extended.into(), sector(&[(0x83, 1, 2), (0x0f, next, 1)])),
        (second, sector(&[(0x83, u32::MAX, u32::MAX)])),
    ]);
    let expected = vec![
        partition(Purpose::Other, u64::from(extended) + 1, 2, 5),
        partition(Purpose::Other, second + u64::from(u32::MAX), u32::MAX.into(), 6),
    ];
    assert_eq!(list(&disk, 1 << 50).unwrap(), Some(expected));
}
