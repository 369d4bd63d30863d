//! File systems made by hand, block by block: what is in them is read, and what lies is found out.

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::disk::source::{ReadAt, Source};

const KIB: u64 = 1024;
const REGULAR: u16 = 0x8000;
const DIRECTORY: u16 = 0x4000;
const SYMLINK: u16 = 0xa000;

/// A disk that has zeros where nothing was put.
struct Disk {
    bytes: BTreeMap<u64, u8>,
    len: u64,
}

impl ReadAt for Disk {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        for (&at, &byte) in self.bytes.range(offset..offset + buffer.len() as u64) {
            buffer[(at - offset) as usize] = byte;
        }
        Ok(())
    }
}

impl Disk {
    /// A file system of blocks of 1 KiB, 32 in a group, with 8 inodes in each.
    fn new(groups: u64) -> Self {
        let mut disk = Self { bytes: BTreeMap::new(), len: groups * 32 * KIB + KIB };
        disk.superblock(0, groups as u32 * 8);
        disk.superblock(0x4, groups as u32 * 32 + 1);
        disk.superblock(0x14, 1);
        disk.superblock(0x20, 32);
        disk.superblock(0x28, 8);
        disk.superblock(0x38, MAGIC.into());
        disk
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes.extend((at..).zip(bytes.iter().copied()));
    }

    fn superblock(&mut self, field: u64, value: u32) {
        self.put(SUPERBLOCK + field, &value.to_le_bytes());
    }

    fn inode(&mut self, at: u64, mode: u16, size: u64, map: &[u8]) {
        self.put(at, &mode.to_le_bytes());
        self.put(at + 0x4, &(size as u32).to_le_bytes());
        self.put(at + 0x6c, &((size >> 32) as u32).to_le_bytes());
        self.put(at + 0x28, map);
    }

    /// The table of a group's inodes, each of which has its own number for a size.
    fn table(&mut self, group: u64, block: u64) {
        for index in 0..8 {
            self.inode(block * KIB + index * 128, REGULAR, group * 8 + index + 1, &[]);
        }
    }

    fn with<T>(&self, look: impl FnOnce(Result<Ext4<'_>, Error>) -> T) -> T {
        let source = Source::new(self, self.len);
        look(Ext4::open(source.whole()))
    }

    fn opened<T>(&self, look: impl FnOnce(Ext4<'_>) -> T) -> T {
        self.with(|fs| look(fs.unwrap_or_else(|error| panic!("{error}"))))
    }

    /// The sizes of these inodes.
    fn sizes(&self, inodes: impl Iterator<Item = u32>) -> Vec<Option<u64>> {
        self.opened(|fs| inodes.map(|number| fs.inode(number).ok().map(|inode| inode.size)).collect())
    }

    /// One group, whose inodes' table is in block 3, with these files as inode 3 and those after it, in the root
    /// directory: of each its name, mode and content.
    fn files(files: &[(&str, u16, &[u8])]) -> Self {
        let mut disk = Self::new(64);
        disk.superblock(0, 64);
        disk.superblock(0x28, 64);
        disk.put(2 * KIB + 8, &[3]);
        let names: Vec<(u32, &str)> = (3..).zip(files.iter().map(|file| file.0)).collect();
        let root = directory(&names);
        disk.file(2, DIRECTORY, &root);
        for (number, (_, mode, content)) in (3..).zip(files) {
            disk.file(number, *mode, content);
        }
        disk
    }

    /// In up to 12 blocks of its own, or in its inode where it is a short symbolic link.
    fn file(&mut self, number: u64, mode: u16, content: &[u8]) {
        let at = 3 * KIB + (number - 1) * 128;
        if mode == SYMLINK && content.len() < 60 {
            return self.inode(at, mode, content.len() as u64, content);
        }
        let first = 20 + number as u32 * 12;
        let blocks = (content.len() as u64).div_ceil(KIB);
        assert!(blocks <= 12);
        let map: Vec<u8> = (first..).take(blocks as usize).flat_map(u32::to_le_bytes).collect();
        self.inode(at, mode, content.len() as u64, &map);
        self.put(u64::from(first) * KIB, content);
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        self.opened(|fs| fs.read(path, FILES_MAX))
    }
}

/// A block of these names: inodes that may not be there, too.
fn directory(names: &[(u32, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (index, (inode, name)) in names.iter().enumerate() {
        let last = index + 1 == names.len();
        let len = if last { KIB as usize - block.len() } else { (8 + name.len()).next_multiple_of(4) };
        let end = block.len() + len;
        block.extend(inode.to_le_bytes());
        block.extend((len as u16).to_le_bytes());
        block.extend([name.len() as u8, 0]);
        block.extend(name.as_bytes());
        block.resize(end, 0);
    }
    block
}

fn problem<T>(result: Result<T, Error>) -> &'static str {
    match result {
        Err(Error::Broken { fs: "ext4", problem }) => problem,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is sound"),
    }
}

const SENSELESS: &str = "its superblock makes no sense";
const PAST: &str = "a block of it lies past its end";
const NO_INODE: &str = "a directory names an inode that is not there";

#[test]
fn features_that_are_not_known_are_named_and_no_others() {
    let mut disk = Disk::new(1);
    for (bits, unknown) in
        [(0x8, 0x8), (feature::KNOWN & !0x84 | 0x8000_0009, 0x8000_0009), (!0, !feature::KNOWN)]
    {
        disk.superblock(0x60, bits);
        disk.with(|fs| match fs.map(drop) {
            Err(Error::Features { bits }) => assert_eq!(bits, unknown),
            other => panic!("{bits:#x}: {other:?}"),
        });
    }
}

#[test]
fn groups_of_nothing_are_broken() {
    for field in [0x20, 0x28] {
        let mut disk = Disk::new(1);
        disk.superblock(field, 0);
        assert_eq!(disk.with(|fs| problem(fs.map(drop))), SENSELESS, "{field:#x}");
        disk.superblock(field, 1);
        assert_eq!(disk.opened(|fs| fs.inodes), 8, "{field:#x}");
    }
}

#[test]
fn an_inode_is_read_from_its_group_and_none_lies_past_the_last() {
    let mut disk = Disk::new(3);
    for group in 0..3 {
        disk.put(2 * KIB + group * 32 + 8, &[10 + group as u8]);
        disk.table(group, 10 + group);
    }
    let all: Vec<Option<u64>> = (1..=24).map(Some).collect();
    assert_eq!(disk.sizes(1..=24), all);
    // A table is there for these, too.
    disk.superblock(0, 23);
    assert_eq!(disk.sizes(22..=23), [Some(22), Some(23)]);
    for number in [0, 24, 25, u32::MAX] {
        disk.opened(|fs| assert_eq!(problem(fs.inode(number)), NO_INODE, "{number}"));
    }
}

#[test]
fn names_and_journals_of_inodes_that_are_not_there_are_found_out() {
    let mut disk = Disk::files(&[]);
    disk.put(44 * KIB, &directory(&[(65, "past"), (0, "none"), (64, "last")]));
    disk.inode(3 * KIB + 128, DIRECTORY, KIB, &[44]);
    disk.file(64, REGULAR, b"the last");
    assert_eq!(disk.read("/last").unwrap().unwrap(), b"the last");
    assert_eq!(disk.read("/none").unwrap(), None);
    assert_eq!(problem(disk.read("/past")), NO_INODE);
    disk.superblock(0x60, feature::RECOVER);
    for inode in [0, 65] {
        disk.superblock(0xe0, inode);
        assert_eq!(disk.with(|fs| problem(fs.map(drop))), NO_INODE, "{inode}");
    }
}

#[test]
fn descriptors_lie_one_after_another_or_in_their_groups() {
    const META: u32 = feature::META_BG;
    // Descriptors of 32 bytes: 32 in a block. Features, the first META_BG, read-only features, groups with a
    // superblock, the first block, and where the descriptors of groups 0, 32, 64 and 96 are.
    let all = [
        (0, 0, 0, None, 1, [2, 3, 4, 5]),
        (META, 0, 0, None, 1, [2, 1026, 2050, 3074]),
        (META, 1, 0, None, 1, [2, 1026, 2050, 3074]),
        (META, 2, 0, None, 1, [2, 3, 2050, 3074]),
        (META, 3, 0, None, 1, [2, 3, 4, 3074]),
        (META, 4, 0, None, 1, [2, 3, 4, 5]),
        (META, 0, 1, None, 1, [2, 1025, 2049, 3073]),
        (META, 0, 0, Some([64, 0]), 1, [2, 1025, 2050, 3073]),
        (META, 0, 1, Some([1, 96]), 1, [2, 1025, 2049, 3074]),
        // With clusters the first group has the block before the superblock, too.
        (META, 0, 1, None, 0, [2, 1024, 2048, 3072]),
        (META, 1, 0, None, 0, [2, 1025, 2049, 3073]),
        (0, 0, 1, None, 0, [2, 3, 4, 5]),
    ];
    for (features, first_meta, sparse, backups, first, places) in all {
        let mut disk = Disk::new(128);
        disk.superblock(0x60, features);
        disk.superblock(0x104, first_meta);
        disk.superblock(0x64, sparse);
        disk.superblock(0x14, first);
        if let Some(groups) = backups {
            disk.superblock(0x5c, 0x200);
            disk.superblock(0x24c, groups[0]);
            disk.superblock(0x250, groups[1]);
        }
        for group in 0..128_u64 {
            let table = group as u32 * 32 + 20;
            let descriptor = places[group as usize / 32] * KIB + group % 32 * 32;
            disk.put(descriptor + 8, &table.to_le_bytes());
            disk.table(group, table.into());
        }
        let name = format!("{features:#x}, {first_meta}, {sparse}, {backups:?}, {first}");
        let expected: Vec<Option<u64>> = (1..=128 * 8).map(Some).collect();
        assert_eq!(disk.sizes(1..=128 * 8), expected, "{name}");
    }
}

#[test]
fn copies_of_the_superblock_are_in_groups_of_some_powers() {
    let powers = [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343];
    let all: Vec<u64> = (0..350).collect();
    let kinds = [(0, 0, &all[..]), (0, 1, &powers), (0x200, 0, &[0, 6, 9]), (0x200, 1, &[0, 6, 9])];
    for (compatible, sparse, backups) in kinds {
        let mut disk = Disk::new(350);
        // A descriptor has a block of its own, so that each group has one.
        disk.superblock(0x60, feature::META_BG | feature::BITS64);
        disk.put(SUPERBLOCK + 0xfe, &1024_u16.to_le_bytes());
        disk.superblock(0x5c, compatible);
        disk.superblock(0x64, sparse);
        disk.superblock(0x24c, 6);
        disk.superblock(0x250, 9);
        let found = |fs: Ext4<'_>| -> Vec<u64> {
            let places = (0..350).map(|group| (u64::from(group), fs.descriptor(group)));
            places.filter(|&(group, place)| place == (group * 32 + 2, 0)).map(|(group, _)| group).collect()
        };
        assert_eq!(disk.opened(found), backups, "{compatible:#x}, {sparse}");
        let is_first = |fs: Ext4<'_>| {
            let mut others = (0..350).filter(|group| !backups.contains(&u64::from(*group)));
            others.all(|group| fs.descriptor(group) == (u64::from(group) * 32 + 1, 0))
        };
        assert!(disk.opened(is_first), "{compatible:#x}, {sparse}");
    }
}

#[test]
fn a_table_of_inodes_past_32_bits_is_read() {
    let mut disk = Disk::new(1);
    disk.len = 5 << 42;
    disk.superblock(0x60, feature::BITS64);
    disk.superblock(0x150, 5);
    disk.put(SUPERBLOCK + 0xfe, &[64]);
    disk.put(2 * KIB + 8, &7_u32.to_le_bytes());
    disk.put(2 * KIB + 0x28, &3_u32.to_le_bytes());
    disk.table(0, (3 << 32) + 7);
    assert_eq!(disk.sizes(1..=2), [Some(1), Some(2)]);
    // Descriptors of 32 bytes have no upper half: there, what lies behind is the next one's.
    disk.superblock(0x60, 0);
    disk.superblock(0x4, 8);
    disk.table(0, 7);
    assert_eq!(disk.sizes(1..=2), [Some(1), Some(2)]);
}

#[test]
fn no_block_is_the_first_or_lies_past_the_last() {
    for shift in 0..=2 {
        let len = KIB << shift;
        let mut disk = Disk::new(4);
        // The disk goes on where the file system ends.
        disk.len = 1 << 20;
        disk.superblock(0x4, 40);
        disk.superblock(0x18, shift);
        disk.superblock(0x14, u32::from(shift == 0));
        let descriptor = if shift == 0 { 2 * KIB } else { len };
        for (table, there) in
            [(0, false), (30, true), (39, true), (40, false), (41, false), (u32::MAX, false)]
        {
            disk.put(descriptor + 8, &table.to_le_bytes());
            match there {
                true => disk.opened(|fs| assert_eq!(fs.inode(1).unwrap().size, 0, "{table} of {len}")),
                false => disk.opened(|fs| assert_eq!(problem(fs.inode(1)), PAST, "{table} of {len}")),
            }
        }
    }
}

#[test]
fn the_way_back_is_the_way_there_whatever_a_directory_says() {
    let mut disk = Disk::files(&[
        ("kernel", REGULAR, b"of the root"),
        ("a", DIRECTORY, &directory(&[(4, "."), (4, ".."), (6, "b"), (7, "kernel")])),
        ("link", SYMLINK, b"a/b/.."),
    ]);
    // And one that has no way back at all.
    disk.file(6, DIRECTORY, &directory(&[(7, "kernel")]));
    disk.file(7, REGULAR, b"of a");
    for path in ["/kernel", "/a/../kernel", "/a/b/../../kernel", "/link/../kernel", "/../../kernel"] {
        assert_eq!(disk.read(path).unwrap().as_deref(), Some(&b"of the root"[..]), "{path}");
    }
    for path in ["/a/kernel", "/a/b/../kernel", "/link/kernel", "/a/../a/kernel"] {
        assert_eq!(disk.read(path).unwrap().as_deref(), Some(&b"of a"[..]), "{path}");
    }
}

#[test]
fn forty_symbolic_links_are_followed_and_no_more() {
    let links: Vec<(String, String)> = (0..41).map(|n| (format!("{n}"), format!("{}", n + 1))).collect();
    let mut files: Vec<(&str, u16, &[u8])> =
        links.iter().map(|(name, target)| (&name[..], SYMLINK, target.as_bytes())).collect();
    files.push(("41", REGULAR, b"the end"));
    let disk = Disk::files(&files);
    for name in ["/41", "/40", "/2", "/1"] {
        assert_eq!(disk.read(name).unwrap().unwrap(), b"the end", "{name}");
    }
    assert_eq!(problem(disk.read("/0")), "its symbolic links lead round in circles");
}

#[test]
fn the_target_of_a_symbolic_link_has_4096_bytes_at_most() {
    let target = |len: usize| [&b"/".repeat(len - 6)[..], b"kernel"].concat();
    let targets = [59, 60, 4095, 4096, 4097].map(target);
    let mut files = vec![("kernel", REGULAR, &b"it"[..])];
    files.extend(
        ["59", "60", "4095", "4096", "4097"].into_iter().zip(&targets).map(|(n, t)| (n, SYMLINK, &t[..])),
    );
    files.push(("huge", SYMLINK, &targets[4]));
    let mut disk = Disk::files(&files);
    disk.put(3 * KIB + 8 * 128 + 0x6c, &[0xff; 4]);
    for name in ["/59", "/60", "/4095", "/4096"] {
        assert_eq!(disk.read(name).unwrap().unwrap(), b"it", "{name}");
    }
    for name in ["/4097", "/huge"] {
        assert_eq!(problem(disk.read(name)), "a symbolic link of it is too long", "{name}");
    }
}

#[test]
fn a_file_is_no_directory_and_what_is_not_there_is_neither() {
    // What the file holds would be a directory's block.
    let names = directory(&[(3, "kernel")]);
    let disk = Disk::files(&[("kernel", REGULAR, &names), ("a", DIRECTORY, &names), ("link", SYMLINK, b"a")]);
    disk.opened(|fs| {
        let look = |path| (fs.is_directory(path).unwrap(), fs.list(path).unwrap().join(" "));
        assert_eq!(look("/"), (true, "kernel a link".to_owned()));
        assert_eq!(look("/a"), (true, "kernel".to_owned()));
        assert_eq!(look("/link"), (true, "kernel".to_owned()));
        for path in ["/kernel", "/kernel/kernel", "/none", "/a/none"] {
            assert_eq!(look(path), (false, String::new()), "{path}");
        }
    });
}

#[test]
fn a_file_as_long_as_the_limit_is_read() {
    let disk = Disk::files(&[("kernel", REGULAR, &[7; 1500]), ("empty", REGULAR, b"")]);
    disk.opened(|fs| {
        for limit in [1500, 1501, u64::MAX] {
            assert_eq!(fs.read("/kernel", limit).unwrap().unwrap(), [7; 1500], "{limit}");
        }
        assert_eq!(fs.read("/empty", 0).unwrap(), Some(Vec::new()));
        for limit in [0, 1499] {
            let error = fs.read("/kernel", limit).unwrap_err();
            assert!(matches!(error, Error::TooLong { size: 1500, limit: l, .. } if l == limit), "{error}");
        }
    });
}
