//! Reads ext2, ext3 and ext4 (Linux `Documentation/filesystems/ext4`), for the few files that boot a guest.
//!
//! By hand, for two reasons. An image may be made to mislead: here each block that is looked at is paid for
//! (`source.rs`), so that no tree or directory, however it points into itself, takes more than that. And the disk of a guest that
//! was killed is the usual case: its journal is read over what it stands for.
//!
//! Checksums are not looked at: what they guard, a guest's own kernel checks when it mounts.

mod directory;
mod inode;
mod journal;

use std::collections::BTreeMap;

use self::inode::Inode;
use super::fs::{FileSystem, Kind};
use super::source::{Area, array, le16, le32};
use super::{Error, FILES_MAX};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
const ROOT: u32 = 2;
/// As Linux has it.
const SYMLINKS_MAX: u32 = 40;
const TARGET_MAX: u64 = 4096;

/// `s_feature_incompat`.
mod feature {
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const BITS64: u32 = 0x80;
    /// File types in directories, RECOVER, META_BG, extents, BITS64, MMP, flexible groups, values of attributes in inodes, the seed of
    /// checksums, large directories, data in inodes, encryption and casefolding: what the last three are about, is refused where it is
    /// met.
    pub(super) const KNOWN: u32 =
        0x2 | RECOVER | META_BG | 0x40 | BITS64 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x30000;
}

fn broken(problem: &'static str) -> Error {
    Error::Broken { fs: "ext4", problem }
}

/// An ext4 file system.
pub(super) struct Ext4<'a> {
    area: Area<'a>,
    block_len: u64,
    /// How many there are: all their bytes are a number, too.
    blocks: u64,
    inode_len: u16,
    inodes: u32,
    inodes_per_group: u32,
    /// The groups' descriptors: how long each is, and in which blocks they lie.
    descriptor_len: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    /// From which block of descriptors on they lie in their own groups (META_BG).
    first_meta_bg: u64,
    /// Which groups have a copy of the superblock: none but two, those of SPARSE_SUPER, or all.
    backups: Backups,
    /// Blocks that the journal has in a newer form, by where they belong.
    journal: BTreeMap<u64, journal::Copy>,
    uuid: [u8; 16],
}

enum Backups {
    All,
    Sparse,
    These([u32; 2]),
}

/// Whether there is one here.
pub(super) fn is_here(area: Area<'_>) -> Result<bool, Error> {
    Ok(area.peek(SUPERBLOCK + 0x38, 2)?.is_some_and(|magic| le16(&magic, 0) == MAGIC))
}

impl<'a> Ext4<'a> {
    /// The file system in `area`, as it is once its journal is replayed.
    pub(super) fn open(area: Area<'a>) -> Result<Self, Error> {
        let sb = area.bytes(SUPERBLOCK, 1024)?;
        if le16(&sb, 0x38) != MAGIC {
            return Err(broken("it has no superblock"));
        }
        let incompatible = le32(&sb, 0x60);
        if incompatible & !feature::KNOWN != 0 {
            return Err(Error::Features { bits: incompatible & !feature::KNOWN });
        }
        let long = incompatible & feature::BITS64 != 0;
        let block_len = match le32(&sb, 0x18) {
            shift @ 0..=6 => 1024_u64 << shift,
            _ => return Err(broken("its blocks are too large")),
        };
        let blocks = u64::from(le32(&sb, 0x4)) | if long { u64::from(le32(&sb, 0x150)) << 32 } else { 0 };
        let inode_len = if le32(&sb, 0x4c) == 0 { 128 } else { le16(&sb, 0x58) };
        let descriptor_len = if long { u64::from(le16(&sb, 0xfe)) } else { 32 };
        let inodes_per_group = le32(&sb, 0x28);
        let blocks_per_group = u64::from(le32(&sb, 0x20));
        let sound = inode_len.is_power_of_two()
            && (128..=block_len).contains(&inode_len.into())
            && descriptor_len.is_power_of_two()
            && (32..=block_len).contains(&descriptor_len)
            && (!long || descriptor_len >= 64)
            && blocks.checked_mul(block_len).is_some()
            && inodes_per_group > 0
            && blocks_per_group > 0;
        if !sound {
            return Err(broken("its superblock makes no sense"));
        }
        let backups = match (le32(&sb, 0x5c) & 0x200, le32(&sb, 0x64) & 1) {
            (0, 0) => Backups::All,
            (0, _) => Backups::Sparse,
            _ => Backups::These([le32(&sb, 0x24c), le32(&sb, 0x250)]),
        };
        let meta_bg = incompatible & feature::META_BG != 0;
        let mut fs = Self {
            area,
            block_len,
            blocks,
            inode_len,
            inodes: le32(&sb, 0),
            inodes_per_group,
            descriptor_len,
            first_data_block: le32(&sb, 0x14).into(),
            blocks_per_group,
            first_meta_bg: if meta_bg { le32(&sb, 0x104).into() } else { u64::MAX },
            backups,
            journal: BTreeMap::new(),
            uuid: array(&sb, 0x68),
        };
        if incompatible & feature::RECOVER != 0 {
            fs.journal = journal::read(&fs, le32(&sb, 0xe0))?;
        }
        Ok(fs)
    }

    /// A block, as the journal has it where it does.
    fn block(&self, number: u64) -> Result<Vec<u8>, Error> {
        let copy = self.journal.get(&number);
        let mut block = self.block_on_disk(copy.map_or(number, |copy| copy.block))?;
        if copy.is_some_and(|copy| copy.escaped) {
            block[..4].copy_from_slice(&journal::MAGIC.to_be_bytes());
        }
        Ok(block)
    }

    fn block_on_disk(&self, number: u64) -> Result<Vec<u8>, Error> {
        // The first block is the boot loader's, or has the superblock: nothing names it.
        if number == 0 || number >= self.blocks {
            return Err(broken("a block of it lies past its end"));
        }
        self.area.bytes(number * self.block_len, self.block_len as usize)
    }

    /// Where the descriptor of a group is: its block, and its offset there.
    fn descriptor(&self, group: u32) -> (u64, usize) {
        let in_block = self.block_len / self.descriptor_len;
        let (index, offset) = (u64::from(group) / in_block, u64::from(group) % in_block);
        let superblock = SUPERBLOCK / self.block_len;
        let block = if index < self.first_meta_bg {
            superblock + 1 + index
        } else {
            let first = index * in_block;
            let start = self.first_data_block + first * self.blocks_per_group;
            // With clusters, the first group begins before the superblock in blocks of 1 KiB.
            let start = if index == 0 { start.max(superblock) } else { start };
            start + u64::from(self.has_backup(first))
        };
        (block, (offset * self.descriptor_len) as usize)
    }

    fn has_backup(&self, group: u64) -> bool {
        let power = |of: u64| {
            std::iter::successors(Some(of), |n| n.checked_mul(of)).find(|n| *n >= group) == Some(group)
        };
        match self.backups {
            Backups::All => true,
            Backups::Sparse => group <= 1 || [3, 5, 7].into_iter().any(power),
            Backups::These(groups) => group == 0 || groups.iter().any(|&g| u64::from(g) == group),
        }
    }

    fn inode(&self, number: u32) -> Result<Inode, Error> {
        if number == 0 || number > self.inodes {
            return Err(broken("a directory names an inode that is not there"));
        }
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let (block, offset) = self.descriptor(group);
        let descriptor = self.block(block)?;
        let high = if self.descriptor_len >= 64 { le32(&descriptor, offset + 0x28) } else { 0 };
        let table = u64::from(le32(&descriptor, offset + 0x8)) | u64::from(high) << 32;
        let at = u64::from(index) * u64::from(self.inode_len);
        let block = self.block(table.saturating_add(at / self.block_len))?;
        let offset = (at % self.block_len) as usize;
        Ok(Inode::new(&block[offset..offset + usize::from(self.inode_len)]))
    }

    /// The inode at `path`; `None` where there is none.
    fn lookup(&self, path: &str) -> Result<Option<Inode>, Error> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut way = vec![self.inode(ROOT)?];
        let mut symlinks = 0;
        while let Some(name) = todo.pop() {
            match &name[..] {
                "" | "." => continue,
                ".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let parent = way.last().expect("the root is never taken off");
            if !parent.is_directory() {
                return Ok(None);
            }
            let Some(number) = directory::find(self, parent, name.as_bytes())? else { return Ok(None) };
            let inode = self.inode(number)?;
            if inode.is_symlink() {
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    return Err(broken("its symbolic links lead round in circles"));
                }
                let target = self.target(&inode)?;
                if target.starts_with('/') {
                    way.truncate(1);
                }
                todo.extend(target.split('/').rev().map(str::to_owned));
            } else {
                way.push(inode);
            }
        }
        Ok(way.pop())
    }

    fn target(&self, inode: &Inode) -> Result<String, Error> {
        let bytes = match inode.fast_symlink() {
            Some(bytes) => bytes.to_vec(),
            None if inode.size > TARGET_MAX => return Err(broken("a symbolic link of it is too long")),
            None => inode.read(self)?,
        };
        String::from_utf8(bytes).map_err(|_| broken("a symbolic link of it is no text"))
    }
}

impl FileSystem for Ext4<'_> {
    fn kind(&self) -> Kind {
        Kind::Ext4
    }

    fn uuid(&self) -> String {
        let b = self.uuid;
        let hex =
            |range: std::ops::Range<usize>| b[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
        [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-")
    }

    fn is_directory(&self, path: &str) -> Result<bool, Error> {
        Ok(self.lookup(path)?.is_some_and(|inode| inode.is_directory()))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, Error> {
        match self.lookup(path)? {
            Some(inode) if inode.is_directory() => directory::names(self, &inode),
            _ => Ok(Vec::new()),
        }
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(inode) = self.lookup(path)? else { return Ok(None) };
        if !inode.is_regular() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let limit = limit.min(FILES_MAX);
        if inode.size > limit {
            return Err(Error::TooLong { path: path.to_owned(), size: inode.size, limit });
        }
        inode.read(self).map(Some)
    }
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod tests;
