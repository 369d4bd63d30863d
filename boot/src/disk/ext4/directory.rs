//! Directories (`directory.rst`): read block by block; the blocks of their indexes look like empty ones.

use super::inode::Inode;
use super::{Ext4, broken};
use crate::disk::Error;
use crate::disk::source::{le16, le32};

/// The most names that are listed, of a directory in which a few are looked for.
const NAMES_MAX: usize = 1 << 12;

/// The inode that `directory` calls `name`.
pub(super) fn find(fs: &Ext4<'_>, directory: &Inode, name: &[u8]) -> Result<Option<u32>, Error> {
    directory.each_block(fs, |block| {
        let mut found = None;
        each_entry(block, |entry, inode| {
            if entry == name {
                found = found.or(Some(inode));
            }
        })?;
        Ok(found)
    })
}

/// The names in `directory`, but for those that are no text.
pub(super) fn names(fs: &Ext4<'_>, directory: &Inode) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    directory.each_block(fs, |block| {
        each_entry(block, |entry, _| names.extend(std::str::from_utf8(entry).map(str::to_owned)))?;
        if names.len() > NAMES_MAX {
            Err(Error::TooMuch { what: "in one directory" })
        } else {
            Ok(None::<()>)
        }
    })?;
    Ok(names)
}

fn each_entry(block: &[u8], mut with: impl FnMut(&[u8], u32)) -> Result<(), Error> {
    let mut rest = block;
    while rest.len() >= 8 {
        let (inode, len, name_len) = (le32(rest, 0), usize::from(le16(rest, 4)), usize::from(rest[6]));
        // That of a block of 64 KiB has no room in its 16 bits.
        let len = if block.len() == 0x1_0000 && (len == 0xffff || len == 0) { rest.len() } else { len };
        if len < 8 || len > rest.len() || 8 + name_len > len {
            return Err(broken("an entry of a directory is too short or too long"));
        }
        if inode != 0 {
            with(&rest[8..8 + name_len], inode);
        }
        rest = &rest[len..];
    }
    Ok(())
}
