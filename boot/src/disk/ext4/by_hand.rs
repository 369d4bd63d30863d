//! Trees of extents, long directories and superblocks, made by hand.

use super::inode::{EXTENTS, Runs, UNWRITTEN};
use super::*;
use crate::disk::source::Source;

const BLOCK: usize = 1024;
const BLOCKS: u64 = 128;
/// The inode table of the one group, and the block from which on there is nothing yet.
const TABLE: usize = 3;
const FREE: u32 = 40;
const FILE: u16 = 0x81a4;
const DIRECTORY: u16 = 0x41ed;
const SYMLINK: u16 = 0xa1ff;

struct Image {
    disk: Vec<u8>,
    root: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        let mut new = Self { disk: vec![0; BLOCKS as usize * BLOCK], root: Vec::new() };
        new.put(2 * BLOCK + 8, &[TABLE as u8]);
        new
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn inode(&mut self, number: u32, mode: u16, size: u64, flags: u32, map: &[u8]) {
        let at = TABLE * BLOCK + (number as usize - 1) * 128;
        self.put(at, &mode.to_le_bytes());
        self.put(at + 4, &(size as u32).to_le_bytes());
        self.put(at + 0x6c, &((size >> 32) as u32).to_le_bytes());
        self.put(at + 0x20, &flags.to_le_bytes());
        self.put(at + 0x28, map);
    }

    /// An inode whose bytes lie in blocks from `block` on.
    fn with_blocks(&mut self, number: u32, mode: u16, block: u32, bytes: &[u8]) {
        let count = bytes.len().div_ceil(BLOCK) as u32;
        let map: Vec<u8> = (block..block + count).flat_map(u32::to_le_bytes).collect();
        self.inode(number, mode, bytes.len() as u64, 0, &map);
        self.put(block as usize * BLOCK, bytes);
    }

    /// What the root calls `name`.
    fn name(&mut self, number: u32, name: &str) {
        let len = (8 + name.len()).next_multiple_of(4);
        let mut entry = number.to_le_bytes().to_vec();
        entry.extend([len as u8, 0, name.len() as u8, 0]);
        entry.extend(name.as_bytes());
        entry.resize(len, 0);
        self.root.extend(entry);
    }

    fn with<T>(&mut self, test: impl FnOnce(&mut Ext4<'_>) -> T) -> T {
        let mut root = std::mem::take(&mut self.root);
        // What is left of the block is an entry of nothing.
        let left = (2 * BLOCK - root.len()) % BLOCK;
        if left > 0 {
            root.extend([0, 0, 0, 0]);
            root.extend((left as u16).to_le_bytes());
            root.resize(root.len().next_multiple_of(BLOCK), 0);
        }
        self.with_blocks(ROOT, DIRECTORY, 30, &root);
        let source = Source::new(&self.disk, self.disk.len() as u64);
        test(&mut Ext4 {
            area: source.whole(),
            block_len: BLOCK as u64,
            blocks: BLOCKS,
            inode_len: 128,
            inodes: 160,
            inodes_per_group: 160,
            descriptor_len: 32,
            first_data_block: 1,
            blocks_per_group: 8192,
            first_meta_bg: u64::MAX,
            backups: Backups::Sparse,
            journal: BTreeMap::new(),
            uuid: [0; 16],
        })
    }
}

fn is_broken<T>(result: Result<T, Error>, why: &str) -> bool {
    matches!(result, Err(Error::Broken { fs: "ext4", problem }) if problem.contains(why))
}

/// A tree of extents in one node.
fn node(depth: u16, entries: &[[u8; 12]]) -> Vec<u8> {
    let mut node = vec![0x0a, 0xf3, entries.len() as u8, 0, 4, 0];
    node.extend(depth.to_le_bytes());
    node.extend([0; 4]);
    entries.iter().for_each(|entry| node.extend(entry));
    node
}

fn extent(logical: u32, len: u16, physical: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[..4].copy_from_slice(&logical.to_le_bytes());
    entry[4..6].copy_from_slice(&len.to_le_bytes());
    entry[6..8].copy_from_slice(&((physical >> 32) as u16).to_le_bytes());
    entry[8..].copy_from_slice(&(physical as u32).to_le_bytes());
    entry
}

fn child(block: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[4..8].copy_from_slice(&(block as u32).to_le_bytes());
    entry[8..10].copy_from_slice(&((block >> 32) as u16).to_le_bytes());
    entry
}

#[test]
fn a_directory_lists_so_many_names_and_finds_more() {
    for names in [4096, 4097] {
        let mut image = Image::new();
        // 64 in each block, and behind the last those that were removed.
        let mut entries = Vec::new();
        for nth in 0..65 * 64 {
            entries.extend(if nth < names { 11_u32 } else { 0 }.to_le_bytes());
            entries.extend([16, 0, 8, 0]);
            entries.extend(format!("name{nth:04}").as_bytes());
        }
        image.put(FREE as usize * BLOCK, &entries);
        let map = node(0, &[extent(0, 65, FREE.into())]);
        image.inode(12, DIRECTORY, entries.len() as u64, EXTENTS, &map);
        image.name(12, "dir");
        image.inode(11, FILE, 0, 0, &[]);
        image.with(|fs| {
            match fs.list("dir") {
                Ok(list) => assert_eq!((list.len(), names), (4096, 4096)),
                Err(error) => assert!(matches!(error, Error::TooMuch { .. }) && names == 4097, "{error}"),
            }
            let read = |nth: usize| fs.read(&format!("dir/name{nth:04}"), 0).unwrap();
            assert_eq!((read(0), read(names - 1), read(names)), (Some(vec![]), Some(vec![]), None));
        });
    }
}

#[test]
fn extents_lie_where_they_say() {
    let read = |size: u64, map: &[u8]| {
        let mut image = Image::new();
        for block in 40..80_u8 {
            image.put(usize::from(block) * BLOCK, &[block; BLOCK]);
        }
        // The trees below that of the inode.
        image.put(100 * BLOCK, &node(0, &[extent(0, 1, 60), extent(1, 1, 70)]));
        image.put(101 * BLOCK, &node(1, &[child(100)]));
        for depth in 2..6 {
            image.put((100 + usize::from(depth)) * BLOCK, &node(depth, &[child(99 + u64::from(depth))]));
        }
        image.inode(11, FILE, size, EXTENTS, map);
        image.name(11, "file");
        image.with(|fs| fs.read("file", 1 << 20))
    };
    let blocks = |map: &[u8], count: u64| -> Vec<u8> {
        read(count * BLOCK as u64, map).unwrap().unwrap().chunks(BLOCK).map(|block| block[0]).collect()
    };
    assert_eq!(
        blocks(&node(0, &[extent(0, 2, 41), extent(2, 1, 43), extent(3, 1, 50)]), 4),
        [41, 42, 43, 50]
    );
    // A hole, one that is not written, and more than the file has.
    assert_eq!(blocks(&node(0, &[extent(1, 1, 44), extent(2, UNWRITTEN + 1, 45)]), 4), [0, 44, 0, 0]);
    assert_eq!(blocks(&node(0, &[extent(0, 30, 46)]), 2), [46, 47]);
    assert_eq!(blocks(&node(1, &[child(100)]), 2), [60, 70]);
    assert_eq!(blocks(&node(2, &[child(101)]), 2), [60, 70]);
    assert_eq!(blocks(&node(5, &[child(104)]), 2), [60, 70], "the deepest tree");
    assert_eq!(blocks(&node(0, &[extent(0, UNWRITTEN, 46)]), 2), [46, 47], "the longest extent");
    assert_eq!(blocks(&node(0, &[extent(0, 1, BLOCKS - 1)]), 1), [0], "the last block");
    for (what, map) in [
        ("a tree less deep than it says", node(1, &[child(101)])),
        ("a tree deeper than it says", node(2, &[child(100)])),
        ("a tree too deep", node(6, &[child(105)])),
        ("no tree", vec![0; 60]),
        ("a node past the end", node(1, &[child(1 << 32 | 100)])),
        ("an extent past the end", node(0, &[extent(0, 1, 1 << 32 | 44)])),
        ("an end past the end", node(0, &[extent(0, 2, BLOCKS - 1)])),
        ("pieces that overlap", node(0, &[extent(0, 2, 41), extent(1, 1, 44)])),
        ("pieces in another order", node(0, &[extent(1, 1, 41), extent(0, 1, 44)])),
    ] {
        assert!(matches!(read(2 * BLOCK as u64, &map), Err(Error::Broken { .. })), "{what}");
    }
}

#[test]
fn a_file_has_so_many_pieces_and_a_journal_so_many_blocks() {
    let mut runs = Runs { runs: Vec::new(), blocks: u64::MAX };
    let most = 1 << 16;
    for piece in 0..most {
        runs.add(2 * piece, 5 * piece, 1).unwrap();
    }
    // What goes on where the last one ends is no other.
    runs.add(2 * most - 1, 5 * most - 4, 1).unwrap();
    assert_eq!(runs.runs.len(), most as usize);
    assert!(matches!(runs.add(2 * most, 1, 1), Err(Error::TooMuch { .. })));
    runs.add(2 * most, 1, 0).unwrap();

    let mut image = Image::new();
    image.with_blocks(8, FILE, FREE, &[1; 3 * BLOCK]);
    image.with(|fs| {
        let inode = fs.inode(8).unwrap();
        let numbers: Vec<_> = (u64::from(FREE)..u64::from(FREE) + 3).collect();
        assert_eq!(inode.blocks(fs, 3).unwrap(), numbers);
        assert!(is_broken(inode.blocks(fs, 2), "too long"));
    });
    // What is encrypted, or in its inode, is not read.
    for flag in [0x800, 0x1000_0000] {
        image.inode(9, FILE, 10, flag, b"0123456789");
        image.inode(10, SYMLINK, 4, flag, b"file");
        image.with(|fs| {
            assert!(is_broken(fs.inode(9).unwrap().read(fs), "encrypted"), "{flag:#x}");
            assert!(fs.inode(10).unwrap().fast_symlink().is_none());
        });
    }
    // A short link lies in a block where it says so.
    image.inode(10, SYMLINK, 4, EXTENTS, b"file");
    image.with(|fs| assert!(fs.inode(10).unwrap().fast_symlink().is_none()));
}

/// Opens a superblock with these 32-bit fields, and those that any has.
fn open<T>(fields: &[(usize, u32)], test: impl FnOnce(Result<Ext4<'_>, Error>) -> T) -> T {
    let mut disk = vec![0; 2048];
    let usual = [(0, 16), (4, 64), (0x14, 1), (0x20, 8192), (0x28, 16), (0x38, MAGIC.into())];
    for (offset, value) in usual.iter().chain(fields) {
        disk[1024 + offset..][..4].copy_from_slice(&value.to_le_bytes());
    }
    test(Ext4::open(Source::new(&disk, 2048).whole()))
}

#[test]
fn a_superblock_is_what_its_features_say() {
    open(&[], |fs| {
        let fs = fs.unwrap();
        assert_eq!((fs.blocks, fs.block_len, fs.inode_len, fs.descriptor_len), (64, 1024, 128, 32));
        assert_eq!((fs.first_data_block, fs.first_meta_bg), (1, u64::MAX));
    });
    let backups = |fields: &[(usize, u32)]| {
        open(fields, |fs| match fs.unwrap().backups {
            Backups::All => (0, [0; 2]),
            Backups::Sparse => (1, [0; 2]),
            Backups::These(groups) => (2, groups),
        })
    };
    assert_eq!(backups(&[(0x5c, !0x200), (0x64, !1)]), (0, [0; 2]));
    assert_eq!(backups(&[(0x5c, !0x200), (0x64, 1)]), (1, [0; 2]));
    for sparse in [0, 1] {
        assert_eq!(backups(&[(0x5c, 0x200), (0x64, sparse), (0x24c, 1), (0x250, 9)]), (2, [1, 9]));
    }
    open(&[(0x60, feature::META_BG), (0x104, 3)], |fs| assert_eq!(fs.unwrap().first_meta_bg, 3));
    open(&[(0x60, 0x2), (0x104, 3)], |fs| assert_eq!(fs.unwrap().first_meta_bg, u64::MAX));
    // Halves that are there with 64 bits alone.
    let long = [(0x60, feature::BITS64), (0x150, 1), (0xfc, 64 << 16)];
    open(&long, |fs| assert_eq!(fs.unwrap().blocks, 1 << 32 | 64));
    open(&long[1..], |fs| assert_eq!(fs.unwrap().blocks, 64));
    // Unknown features are told, and no others.
    open(&[(0x60, 0x8 | 0x2)], |fs| assert!(matches!(fs, Err(Error::Features { bits: 0x8 }))));
    for (what, fields) in [
        ("no groups of inodes", &[(0x28, 0)][..]),
        ("no groups of blocks", &[(0x20, 0)]),
        ("short descriptors with 64 bits", &[(0x60, feature::BITS64), (0xfc, 32 << 16)]),
        ("inodes that are too short", &[(0x4c, 1), (0x58, 64)]),
        ("inodes longer than a block", &[(0x4c, 1), (0x58, 2048)]),
        ("more bytes than there are numbers", &[(0x60, feature::BITS64), (0x150, 1 << 22), (0xfc, 64 << 16)]),
    ] {
        assert!(open(fields, |fs| is_broken(fs, "makes no sense")), "{what}");
    }
    assert!(open(&[(0x18, 7)], |fs| is_broken(fs, "too large")));
    assert!(open(&[(0x38, 0)], |fs| is_broken(fs, "no superblock")));
}
