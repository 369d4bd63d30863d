//! Inodes of both kinds, and the attributes with them.

use super::super::tree::{Bytes, Inode, Kind};
use super::plan::{Place, Plan};

/// Of the layouts of data: in blocks; in blocks, but the end with the inode.
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
/// In bytes: what comes before an inode's attributes, and before each.
const ATTRIBUTES_HEADER: u64 = 12;
const ATTRIBUTE_HEADER: usize = 4;

/// Prefixes of attributes' names, and the numbers that stand for them.
const PREFIXES: [(&[u8], u8); 6] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"security.", 6),
    (b"trusted.", 4),
    (b"user.", 1),
    (b"lustre.", 5),
];

/// An inode with its attributes; what else is with it follows.
pub(super) fn encode(inode: &Inode, place: &Place, plan: &Plan) -> Vec<u8> {
    let attributes = attributes_len(&inode.meta.xattrs);
    // Of the attributes the number of words, that of the header counted as one.
    let words = if attributes == 0 { 0 } else { (attributes - ATTRIBUTES_HEADER) / 4 + 1 };
    let layout = if place.inline > 0 { FLAT_INLINE } else { FLAT_PLAIN };
    let format = layout << 1 | u16::from(!place.compact);
    let (kind, word) = match &inode.kind {
        Kind::Directory(_) => (0o040_000, place.block),
        Kind::File(_) => (0o100_000, place.block),
        Kind::Symlink(_) => (0o120_000, place.block),
        Kind::CharacterDevice(major, minor) => (0o020_000, device(*major, *minor)),
        Kind::BlockDevice(major, minor) => (0o060_000, device(*major, *minor)),
        Kind::Fifo => (0o010_000, 0),
        Kind::Socket => (0o140_000, 0),
    };
    let meta = &inode.meta;
    let mut bytes = Vec::with_capacity(64 + attributes as usize);
    bytes.extend(format.to_le_bytes());
    bytes.extend((words as u16).to_le_bytes());
    bytes.extend((kind | meta.mode).to_le_bytes());
    // Of what has 32 bits only, for `stat` of 32-bit programs: the number may be cut.
    let number = place.nid() as u32;
    if place.compact {
        bytes.extend((place.links as u16).to_le_bytes());
        bytes.extend((place.size as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(word.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend((meta.uid as u16).to_le_bytes());
        bytes.extend((meta.gid as u16).to_le_bytes());
        bytes.extend([0; 4]);
        debug_assert_eq!(meta.mtime, plan.time);
    } else {
        bytes.extend([0; 2]);
        bytes.extend(place.size.to_le_bytes());
        bytes.extend(word.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend(meta.uid.to_le_bytes());
        bytes.extend(meta.gid.to_le_bytes());
        bytes.extend(meta.mtime.0.to_le_bytes());
        bytes.extend(meta.mtime.1.to_le_bytes());
        bytes.extend(place.links.to_le_bytes());
        bytes.extend([0; 16]);
    }
    if attributes > 0 {
        // None of them is shared with other inodes.
        bytes.extend([0; ATTRIBUTES_HEADER as usize]);
        for (name, value) in &meta.xattrs {
            let Some((prefix, suffix)) = split(name) else { continue };
            bytes.extend([suffix.len() as u8, prefix]);
            bytes.extend((value.len() as u16).to_le_bytes());
            bytes.extend_from_slice(suffix);
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// In bytes, of what the attributes take with their inode.
pub(super) fn attributes_len(xattrs: &[(Bytes, Bytes)]) -> u64 {
    let each = |(name, value): &(Bytes, Bytes)| {
        let (_, suffix) = split(name)?;
        Some((ATTRIBUTE_HEADER + suffix.len() + value.len()).next_multiple_of(4) as u64)
    };
    match xattrs.iter().filter_map(each).sum() {
        0 => 0,
        len => ATTRIBUTES_HEADER + len,
    }
}

/// The number of a name's prefix, and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, number)| Some((*number, name.strip_prefix(*prefix)?)))
}

/// Linux's device number of 32 bits: 12 for the major, 20 for the minor one.
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}
