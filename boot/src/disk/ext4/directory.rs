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

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of these inodes, lengths and names.
    fn block(len: usize, entries: &[(u32, usize, &[u8])]) -> Vec<u8> {
        let mut block = Vec::new();
        for (inode, entry_len, name) in entries {
            let mut entry = inode.to_le_bytes().to_vec();
            entry.extend((*entry_len as u16).to_le_bytes());
            entry.extend([name.len() as u8, 1]);
            entry.extend(*name);
            entry.resize((*entry_len).max(8 + name.len()), 0);
            block.extend(entry);
        }
        block.resize(len.max(block.len()), 0);
        block
    }

    fn list(block: &[u8]) -> Result<Vec<(Vec<u8>, u32)>, Error> {
        let mut all = Vec::new();
        each_entry(block, |name, inode| all.push((name.to_vec(), inode)))?;
        Ok(all)
    }

    #[test]
    fn entries_are_as_long_as_they_say() {
        let of = |entries| list(&block(0, entries));
        let ab = vec![(b"a".to_vec(), 1), (b"bcd".to_vec(), 3)];
        assert_eq!(of(&[(1, 12, b"a"), (0, 16, b"gone"), (3, 996, b"bcd")]).unwrap(), ab);
        // The shortest, without a name, and one whose name takes all.
        assert_eq!(of(&[(5, 8, b""), (6, 12, b"four")]).unwrap(), [(vec![], 5), (b"four".to_vec(), 6)]);
        for (what, entry_len, name) in [
            ("no length", 0, &b""[..]),
            ("too short", 7, b""),
            ("shorter than its name", 11, b"four"),
            ("longer than its block", 1025, b"a"),
        ] {
            let mut bytes = block(1024, &[(1, 12, name)]);
            bytes[4..6].copy_from_slice(&(entry_len as u16).to_le_bytes());
            assert!(matches!(list(&bytes), Err(Error::Broken { .. })), "{what}");
        }
    }

    #[test]
    fn an_entry_of_64_kib_says_so_otherwise() {
        for said in [0, 0xffff] {
            let mut bytes = block(0x1_0000, &[(9, 12, b"all")]);
            bytes[4..6].copy_from_slice(&(said as u16).to_le_bytes());
            assert_eq!(list(&bytes).unwrap(), [(b"all".to_vec(), 9)], "{said}");
            // Of a shorter block it is nonsense.
            assert!(list(&bytes[..0x8000]).is_err(), "{said}");
        }
        // And where it is short, it is.
        let bytes = block(0, &[(9, 12, b"all"), (8, 0xfff4, b"rest")]);
        assert_eq!(list(&bytes).unwrap().len(), 2);
    }
}
