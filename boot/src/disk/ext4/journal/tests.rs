//! Journals made by hand, in each of their forms.

use super::*;
use crate::disk::ext4::Backups;
use crate::disk::source::Source;

const BLOCK: usize = 1024;
/// Where the journal lies, and how many blocks it has: the first is its superblock.
const AT: u64 = 20;
const BLOCKS: u64 = 12;
const INODE: u32 = 8;
const FIRST: u32 = 5;

struct Journal {
    features: u32,
    disk: Vec<u8>,
}

impl Journal {
    /// An empty one, which is read from its first block on.
    fn new(features: u32) -> Self {
        let mut new = Self { features, disk: vec![0; 64 * BLOCK] };
        let mut put = |at: usize, bytes: &[u8]| new.disk[at..at + bytes.len()].copy_from_slice(bytes);
        // The inode table of the one group, and in it the journal's inode: a plain file in 12 blocks.
        put(2 * BLOCK + 8, &[3]);
        let inode = 3 * BLOCK + (INODE as usize - 1) * 128;
        put(inode, &0x8180_u16.to_le_bytes());
        put(inode + 4, &((BLOCKS * BLOCK as u64) as u32).to_le_bytes());
        for index in 0..BLOCKS as u32 {
            put(inode + 0x28 + 4 * index as usize, &(AT as u32 + index).to_le_bytes());
        }
        let superblock = [(0, MAGIC), (4, 4), (0xc, BLOCK as u32), (0x10, BLOCKS as u32), (0x14, 1)];
        for (offset, value) in superblock.into_iter().chain([(0x18, FIRST), (0x1c, 1), (0x28, features)]) {
            new.set(offset, value);
        }
        new
    }

    /// A field of its superblock.
    fn set(&mut self, offset: usize, value: u32) {
        self.disk[AT as usize * BLOCK + offset..][..4].copy_from_slice(&value.to_be_bytes());
    }

    /// A block that begins as they all do.
    fn put(&mut self, index: usize, kind: u32, sequence: u32, rest: &[u8]) {
        let head: Vec<u8> = [MAGIC, kind, sequence].into_iter().flat_map(u32::to_be_bytes).collect();
        let block = &mut self.disk[(AT as usize + index) * BLOCK..][..BLOCK];
        block[..12].copy_from_slice(&head);
        block[12..12 + rest.len()].copy_from_slice(rest);
    }

    fn tag(&self, place: u64, flags: u32) -> Vec<u8> {
        let (low, high) = ((place as u32).to_be_bytes(), ((place >> 32) as u32).to_be_bytes());
        let mut tag = low.to_vec();
        if self.features & CSUM_V3 != 0 {
            tag.extend(flags.to_be_bytes());
            tag.extend(high);
            tag.extend([0xff; 4]);
        } else {
            // A checksum with all bits, which are no flags.
            tag.extend([0xff, 0xff]);
            tag.extend((flags as u16).to_be_bytes());
            if self.features & BITS64 != 0 {
                tag.extend(high);
            }
            if self.features & CSUM_V2 != 0 {
                tag.extend([0xff; 2]);
            }
        }
        if flags & SAME_UUID == 0 {
            tag.extend([0xee; 16]);
        }
        tag
    }

    fn revocation(&self, places: &[u64]) -> Vec<u8> {
        let long = self.features & BITS64 != 0;
        let entries =
            places.iter().flat_map(|place| place.to_be_bytes()[if long { 0 } else { 4 }..].to_vec());
        let entries: Vec<u8> = entries.collect();
        [&(16 + entries.len() as u32).to_be_bytes()[..], &entries].concat()
    }

    fn with<T>(&self, test: impl FnOnce(&Ext4<'_>) -> T) -> T {
        let source = Source::new(&self.disk, self.disk.len() as u64);
        test(&Ext4 {
            area: source.whole(),
            block_len: BLOCK as u64,
            blocks: 64,
            inode_len: 128,
            inodes: 16,
            inodes_per_group: 16,
            descriptor_len: 32,
            first_data_block: 1,
            blocks_per_group: 64,
            first_meta_bg: u64::MAX,
            backups: Backups::All,
            journal: BTreeMap::new(),
            uuid: [0; 16],
        })
    }

    /// Of each block that it has in a newer form: where it belongs, which block of the journal it is, and whether that is escaped.
    fn read(&self) -> Result<Vec<(u64, u64, bool)>, Error> {
        let copies = self.with(|fs| read(fs, INODE))?;
        Ok(copies.into_iter().map(|(place, copy)| (place, copy.block - AT, copy.escaped)).collect())
    }
}

const FORMS: [u32; 6] = [0, BITS64, CSUM_V2, CSUM_V2 | BITS64, CSUM_V3, CSUM_V3 | BITS64];

#[test]
fn tags_are_read_in_each_form() {
    for features in FORMS {
        let mut journal = Journal::new(features);
        let high = 7 << 32;
        let tags = [
            journal.tag(high | 40, 0),
            journal.tag(41, SAME_UUID | ESCAPED),
            journal.tag(high | 42, SAME_UUID),
            journal.tag(43, SAME_UUID | LAST),
            // Behind the last, whatever there was.
            journal.tag(44, SAME_UUID),
        ];
        journal.put(1, DESCRIPTOR, FIRST, &tags.concat());
        let revoked = journal.revocation(&[high | 42, 4711]);
        journal.put(6, REVOKE, FIRST, &revoked);
        journal.put(7, COMMIT, FIRST, &[]);
        let high = if features & BITS64 == 0 { 0 } else { high };
        let mut expected = vec![(high | 40, 2, false), (41, 3, true), (43, 5, false)];
        expected.sort_unstable();
        assert_eq!(journal.read().unwrap(), expected, "{features:#x}");
    }
}

#[test]
fn a_block_full_of_tags_has_so_many() {
    // The first of a block has a UUID, as Linux writes it, or none.
    for (features, first) in FORMS.into_iter().flat_map(|form| [(form, 0), (form, SAME_UUID)]) {
        let journal = Journal::new(features);
        let (first, tag) = (journal.tag(40, first), journal.tag(40, SAME_UUID));
        let tail = if features & (CSUM_V2 | CSUM_V3) == 0 { 0 } else { 4 };
        let count = 1 + (BLOCK - 12 - tail - first.len()) / tag.len();
        let mut block = [&[0; 12][..], &first, &tag.repeat(count)].concat();
        block.resize(BLOCK, 0);
        journal.with(|fs| {
            let read = |blocks: u64| {
                let around = 100..100 + blocks;
                let (copies, revoked) = (BTreeMap::new(), BTreeMap::new());
                let mut log = Log { fs, features, around, sequence: FIRST, copies, revoked };
                let mut found = Vec::new();
                let whole = log.tags(&block, &mut found).unwrap().is_some();
                (whole, found.len(), log.around.start - 100)
            };
            let what = format!("{features:#x}, the first of {}", first.len());
            assert_eq!(read(200), (true, count, count as u64), "{what}");
            assert_eq!(read(count as u64), (true, count, count as u64), "{what}");
            assert!(!read(count as u64 - 1).0, "it ends before its blocks");
        });
    }
}

/// One transaction of one block.
fn transaction(journal: &mut Journal, index: usize, sequence: u32, place: u64) {
    let tag = journal.tag(place, SAME_UUID | LAST);
    journal.put(index, DESCRIPTOR, sequence, &tag);
    journal.put(index + 2, COMMIT, sequence, &[]);
}

#[test]
fn transactions_count_as_far_as_each_is_whole_and_the_next() {
    let made = || {
        let mut journal = Journal::new(0);
        for nth in 0..3 {
            transaction(&mut journal, 1 + 3 * nth, FIRST + nth as u32, 40 + nth as u64);
        }
        journal
    };
    let places = |journal: &Journal| -> Vec<u64> {
        journal.read().unwrap().into_iter().map(|(place, ..)| place).collect()
    };
    assert_eq!(places(&made()), [40, 41, 42]);
    for (what, index, kind, sequence) in [
        ("an old transaction", 4, DESCRIPTOR, FIRST),
        ("one too far", 4, DESCRIPTOR, FIRST + 2),
        ("no commit", 6, DESCRIPTOR, FIRST + 1),
        ("an old commit", 6, COMMIT, FIRST),
        ("a block of nobody", 4, 9, FIRST + 1),
    ] {
        let mut journal = made();
        journal.put(index, kind, sequence, &[]);
        assert_eq!(places(&journal), [40], "{what}");
    }
    let mut journal = made();
    journal.disk[(AT as usize + 4) * BLOCK] ^= 1;
    assert_eq!(places(&journal), [40], "no magic");
    // Round its end, and each block once.
    let mut journal = Journal::new(0);
    journal.set(0x1c, 10);
    let tag = journal.tag(50, SAME_UUID | LAST);
    journal.put(10, DESCRIPTOR, FIRST, &tag);
    journal.put(1, COMMIT, FIRST, &[]);
    transaction(&mut journal, 2, FIRST + 1, 51);
    assert_eq!(journal.read().unwrap(), [(50, 11, false), (51, 3, false)]);
}

#[test]
fn what_is_revoked_counts_again_in_a_later_transaction_alone() {
    let mut journal = Journal::new(0);
    let tags = [journal.tag(40, SAME_UUID), journal.tag(41, SAME_UUID | LAST)].concat();
    journal.put(1, DESCRIPTOR, u32::MAX, &tags);
    let revoked = journal.revocation(&[40, 41]);
    journal.put(4, REVOKE, u32::MAX, &revoked);
    journal.put(5, COMMIT, u32::MAX, &[]);
    journal.set(0x18, u32::MAX);
    assert_eq!(journal.read().unwrap(), []);
    // Their numbers go round.
    transaction(&mut journal, 6, 0, 41);
    assert_eq!(journal.read().unwrap(), [(41, 7, false)]);
}

#[test]
fn revocations_are_as_many_as_whole_ones_fit_in_what_they_say() {
    for features in FORMS {
        let entry = if features & BITS64 == 0 { 4 } else { 8 };
        let none: &[_] = &[(40, 2, false)];
        for (len, left) in
            [(0, none), (15, none), (16, none), (15 + entry, none), (16 + entry, &[]), (u32::MAX, &[])]
        {
            let mut journal = Journal::new(features);
            let tag = journal.tag(40, SAME_UUID | LAST);
            journal.put(1, DESCRIPTOR, FIRST, &tag);
            let mut revoked = journal.revocation(&[40]);
            revoked[..4].copy_from_slice(&len.to_be_bytes());
            journal.put(3, REVOKE, FIRST, &revoked);
            journal.put(4, COMMIT, FIRST, &[]);
            assert_eq!(journal.read().unwrap(), left, "{features:#x}, {len}");
        }
    }
}

#[test]
fn a_superblock_that_makes_no_sense_is_found_out() {
    let made = |fields: &[(usize, u32)]| {
        let mut journal = Journal::new(0);
        transaction(&mut journal, 1, FIRST, 40);
        fields.iter().for_each(|&(offset, value)| journal.set(offset, value));
        journal.read()
    };
    let whole = [(40, 2, false)];
    assert_eq!(made(&[]).unwrap(), whole);
    // Of the first version, which has no features, and what fast commits have where there are none.
    assert_eq!(made(&[(4, 3), (0x28, 0xffff)]).unwrap(), whole);
    assert_eq!(made(&[(0x54, 11)]).unwrap(), whole);
    // Nothing to replay; a journal that is longer than its file.
    assert_eq!(made(&[(0x1c, 0), (0x14, 0)]).unwrap(), []);
    assert_eq!(made(&[(0x10, 5000)]).unwrap(), whole);
    // Its end is kept free for fast commits: 256 blocks, or as many as it says.
    assert_eq!(made(&[(0x28, FAST_COMMIT), (0x54, 8)]).unwrap(), whole);
    assert_eq!(made(&[(0x28, FAST_COMMIT), (0x10, 261)]).unwrap(), whole);
    for (what, fields) in [
        ("its magic", &[(0, MAGIC + 1)][..]),
        ("its type", &[(4, 5)]),
        ("its first block", &[(0x14, 0)]),
        ("a first block past its end", &[(0x14, 12), (0x1c, 12)]),
        ("a start before the first", &[(0x14, 2)]),
        ("a start past its end", &[(0x1c, 12)]),
        ("the length of its blocks", &[(0xc, 2048)]),
        ("nothing but fast commits", &[(0x28, FAST_COMMIT)]),
        ("a start among fast commits", &[(0x28, FAST_COMMIT), (0x54, 4), (0x1c, 8)]),
    ] {
        assert!(matches!(made(fields), Err(Error::Broken { .. })), "{what}");
    }
    assert!(matches!(made(&[(0x28, 0x40 | BITS64)]), Err(Error::Features { bits: 0x40 })));
}
