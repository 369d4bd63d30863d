//! What a plan has for a tree made by hand, and what inodes become.

use super::plan::{Place, place_inode};
use super::*;
use crate::image::limits::{Budget, Limits};
use crate::image::span::{Span, unnamed};
use crate::image::tree::{Bytes, Child, Content, Inode, Meta, Sparse};

const TIME: (i64, u32) = (5, 7);

/// A file of so many bytes, all of them a hole, by root and of [`TIME`].
fn file(size: u64) -> Inode {
    let data = Span::whole(unnamed(&std::env::temp_dir()).unwrap(), 0);
    let kind = Kind::File(Content::Sparse(Box::new(Sparse { data, size, pieces: Vec::new() })));
    Inode { kind, meta: Meta { mtime: TIME, ..Meta::default() } }
}

/// The tree of these inodes, each by its number.
fn tree(inodes: Vec<Inode>) -> Tree {
    let (mut tree, mut budget) = (Tree::new(), Budget::new(Limits::default()));
    for (number, inode) in inodes.into_iter().enumerate() {
        let id = tree.add(inode, &mut budget).unwrap();
        let name: Bytes = number.to_string().into_bytes().into();
        tree.link(ROOT, name, Child { id, layer: 0 }, &mut budget).unwrap();
    }
    tree
}

/// Where an inode of so many names goes, and what comes after it.
fn placed(inode: Inode, links: u32, at: u64) -> (Place, u64) {
    let mut place = Place { links, ..Place::default() };
    let next = place_inode(&tree(vec![inode]), Id(1), &mut place, at, TIME);
    (place, next)
}

#[test]
fn an_inode_is_small_as_long_as_all_of_it_fits() {
    let with = |change: fn(&mut Inode)| {
        let mut inode = file(1);
        change(&mut inode);
        placed(inode, 1, 1152).0.compact
    };
    assert!(with(|_| {}));
    assert!(with(|inode| (inode.meta.uid, inode.meta.gid) = (65_535, 65_535)));
    assert!(!with(|inode| inode.meta.uid = 65_536));
    assert!(!with(|inode| inode.meta.gid = 65_536));
    assert!(!with(|inode| inode.meta.mtime = (5, 8)));
    assert!(!with(|inode| inode.meta.mtime = (6, 7)));
    for (links, size, compact) in [
        (65_535, 1, true),
        (65_536, 1, false),
        (1, u64::from(u32::MAX), true),
        (1, u64::from(u32::MAX) + 1, false),
        (1, 1 << 42, false),
    ] {
        assert_eq!(placed(file(size), links, 1152).0.compact, compact, "{links} {size}");
    }
}

#[test]
fn what_fits_is_with_its_inode_and_neither_crosses_a_block() {
    let attributes = |mut inode: Inode| {
        // 12 bytes before them, and 4 of each, with name and value.
        inode.meta.xattrs = vec![(b"user.a"[..].into(), [1; 31][..].into())];
        inode
    };
    for (inode, at, offset, inline, next) in [
        // The unit of numbers.
        (file(0), 1152, 1152, 0, 1184),
        (file(0), 1153, 1184, 0, 1216),
        // Up to the end of the block, and one more.
        (file(0), 4064, 4064, 0, 4096),
        (file(32), 4032, 4032, 32, 4096),
        (file(33), 4032, 4096, 33, 4161),
        (file(4064), 4096, 4096, 4064, 8192),
        (file(4064), 4128, 8192, 4064, 12_288),
        // The tail does not fit beside an inode at all: it has a block, and the inode lies where it is.
        (file(4065), 4128, 4128, 0, 4160),
        (file(4095), 4064, 4064, 0, 4096),
        // Whole blocks have no tail.
        (file(4096), 4064, 4064, 0, 4096),
        (file(4097), 4032, 4032, 1, 4065),
        (file(8191), 4064, 4064, 0, 4096),
        // Attributes may cross, but not between an inode and its tail.
        (attributes(file(0)), 4064, 4064, 0, 4144),
        (attributes(file(4096)), 4064, 4064, 0, 4144),
        (attributes(file(1)), 4064, 4096, 1, 4177),
        (attributes(file(4016)), 4096, 4096, 4016, 8192),
        (attributes(file(4017)), 4064, 4064, 0, 4144),
    ] {
        let (place, after) = placed(inode, 1, at);
        let found = (place.offset, place.inline, after);
        assert_eq!(found, (offset, inline, next), "{} bytes at {at}", place.size);
    }
}

#[test]
fn the_time_that_most_files_have_is_that_of_the_small_inodes() {
    let plan = |times: &[(i64, u32)]| {
        let timed = |time: &(i64, u32)| Inode { meta: Meta { mtime: *time, ..Meta::default() }, ..file(0) };
        Plan::new(&tree(times.iter().map(timed).collect())).unwrap()
    };
    // The root is of 1970.
    for (times, time, small) in [
        (&[][..], (0, 0), 1),
        (&[(9, 0)], (9, 0), 1),
        (&[(9, 0), (9, 1)], (9, 1), 1),
        (&[(9, 0), (3, 1), (3, 1)], (3, 1), 2),
        (&[(3, 1), (3, 1), (9, 0), (9, 0), (-1, 5)], (9, 0), 2),
        (&[(-1, 5), (-1, 5), (9, 0)], (-1, 5), 2),
        (&[(0, 0), (7, 7), (0, 0)], (0, 0), 3),
    ] {
        let plan = plan(times);
        let compact = plan.order.iter().filter(|id| plan.place(**id).compact).count();
        assert_eq!((plan.time, compact), (time, small), "{times:?}");
        let block = superblock(&plan);
        assert_eq!(
            (block[24..32] == time.0.to_le_bytes(), block[32..36] == time.1.to_le_bytes()),
            (true, true)
        );
    }
}

#[test]
fn devices_have_linuxs_numbers() {
    let encoded = |kind: Kind| {
        let tree = tree(vec![Inode { kind, meta: Meta { mode: 0o640, ..Meta::default() } }]);
        let plan = Plan::new(&tree).unwrap();
        let place = plan.place(Id(1));
        let bytes = inode::encode(tree.inode(Id(1)), place, &plan);
        assert_eq!((place.compact, place.inline, bytes.len(), &bytes[8..12]), (true, 0, 32, &[0; 4][..]));
        let number = u32::from_le_bytes(bytes[16..20].try_into().unwrap());
        (u16::from_le_bytes(bytes[4..6].try_into().unwrap()), number)
    };
    // `new_encode_dev` of Linux's `include/linux/kdev_t.h`.
    for (major, minor, number) in [
        (0, 0, 0),
        (1, 3, 0x103),
        (8, 1, 0x801),
        (7, 300, 0x10_072c),
        (259, 0x1_2345, 0x1231_0345),
        (0xfff, 0, 0xf_ff00),
        (0, 0xff, 0xff),
        (0, 0x100, 0x10_0000),
        (0, 0xf_ffff, 0xfff0_00ff),
        (0xfff, 0xf_ffff, u32::MAX),
    ] {
        assert_eq!(encoded(Kind::CharacterDevice(major, minor)), (0o020_640, number), "{major}:{minor}");
        assert_eq!(encoded(Kind::BlockDevice(major, minor)), (0o060_640, number), "{major}:{minor}");
    }
    assert_eq!(encoded(Kind::Fifo), (0o010_640, 0));
    assert_eq!(encoded(Kind::Socket), (0o140_640, 0));
}
