//! The journal (jbd2; `journal.rst`): what it holds of whole transactions is newer than what lies in its place.
//!
//! A transaction ends with its commit block, and the next has the next number, so that one that was cut off is known by what is missing.
//! What a fast commit holds on top of that is left out: it is about files that changed in the last seconds.

use std::collections::BTreeMap;

use super::{Ext4, broken};
use crate::disk::Error;
use crate::disk::source::be32;

pub(super) const MAGIC: u32 = 0xc03b_3998;

/// Block types.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;

/// `s_feature_incompat`.
const BITS64: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = 0x3f;

/// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

/// The longest journal, in blocks; e2fsprogs makes none of more than 10,240,000, and as a rule of 262,144.
const BLOCKS_MAX: u64 = 1 << 20;
/// In bytes of memory, about what a tag takes, and a block's revocation: on the way and in the map.
const TAG: u64 = 128;
const REVOKED: u64 = 64;

/// A newer copy of a block.
pub(super) struct Copy {
    /// Where it is.
    pub(super) block: u64,
    /// Whether it begins with the journal's own magic, which the journal has as zeros.
    pub(super) escaped: bool,
    sequence: u32,
}

/// Reads the journal in the inode `number`.
pub(super) fn read(fs: &Ext4<'_>, number: u32) -> Result<BTreeMap<u64, Copy>, Error> {
    let blocks = fs.inode(number)?.blocks(fs, BLOCKS_MAX)?;
    let sb = fs.block_on_disk(*blocks.first().ok_or_else(|| broken("its journal is empty"))?)?;
    if be32(&sb, 0) != MAGIC || !SUPERBLOCK.contains(&be32(&sb, 4)) {
        return Err(broken("its journal has no superblock"));
    }
    let features = if be32(&sb, 4) == SUPERBLOCK[1] { be32(&sb, 0x28) } else { 0 };
    if features & !KNOWN != 0 {
        return Err(Error::Features { bits: features & !KNOWN });
    }
    let fast = match features & FAST_COMMIT {
        0 => 0,
        _ if be32(&sb, 0x54) == 0 => 256,
        _ => be32(&sb, 0x54),
    };
    let (first, start) = (be32(&sb, 0x14) as usize, be32(&sb, 0x1c) as usize);
    let end = blocks.len().min(be32(&sb, 0x10).saturating_sub(fast) as usize);
    if start == 0 {
        return Ok(BTreeMap::new());
    }
    if first == 0
        || first >= end
        || !(first..end).contains(&start)
        || u64::from(be32(&sb, 0xc)) != fs.block_len
    {
        return Err(broken("the superblock of its journal makes no sense"));
    }
    // Round and round from `start`, but each block once.
    let around = (start..end).chain(first..start).map(|index| blocks[index]);
    let log = Log {
        fs,
        features,
        around,
        sequence: be32(&sb, 0x18),
        copies: BTreeMap::new(),
        revoked: BTreeMap::new(),
    };
    log.read()
}

struct Log<'f, 'a, I> {
    fs: &'f Ext4<'a>,
    features: u32,
    /// What is still to be read.
    around: I,
    /// The number of the transaction that is next.
    sequence: u32,
    copies: BTreeMap<u64, Copy>,
    /// Blocks of which a copy in this transaction, or an earlier one, does not count.
    revoked: BTreeMap<u64, u32>,
}

impl<I: Iterator<Item = u64>> Log<'_, '_, I> {
    fn read(mut self) -> Result<BTreeMap<u64, Copy>, Error> {
        let (mut copies, mut revoked) = (Vec::new(), Vec::new());
        while let Some(number) = self.around.next() {
            let block = self.fs.block_on_disk(number)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence {
                break;
            }
            match be32(&block, 4) {
                DESCRIPTOR if self.tags(&block, &mut copies)?.is_none() => break,
                DESCRIPTOR => {}
                REVOKE => self.revokes(&block, &mut revoked)?,
                COMMIT => {
                    self.copies.extend(copies.drain(..));
                    self.revoked.extend(revoked.drain(..).map(|block| (block, self.sequence)));
                    self.sequence = self.sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        let Self { mut copies, revoked, .. } = self;
        // Numbers of transactions go round.
        copies.retain(|block, copy| {
            revoked.get(block).is_none_or(|&at| copy.sequence.wrapping_sub(at).cast_signed() > 0)
        });
        Ok(copies)
    }

    /// What a descriptor block tells of the blocks after it; `None` where the journal ends before them.
    fn tags(&mut self, block: &[u8], copies: &mut Vec<(u64, Copy)>) -> Result<Option<()>, Error> {
        let long = self.features & BITS64 != 0;
        let v3 = self.features & CSUM_V3 != 0;
        let tail = if self.features & (CSUM_V2 | CSUM_V3) != 0 { 4 } else { 0 };
        let len = match () {
            () if v3 => 16,
            () => 8 + if self.features & CSUM_V2 != 0 { 2 } else { 0 } + if long { 4 } else { 0 },
        };
        let mut rest = &block[12..block.len() - tail];
        while rest.len() >= len {
            // Without v3: a checksum, then the flags, of 16 bits each.
            let flags = if v3 { be32(rest, 4) } else { be32(rest, 4) & 0xffff };
            let high = if long { be32(rest, 8) } else { 0 };
            let place = u64::from(be32(rest, 0)) | u64::from(high) << 32;
            let Some(block) = self.around.next() else { return Ok(None) };
            let escaped = flags & ESCAPED != 0;
            self.fs.area.keep(TAG)?;
            copies.push((place, Copy { block, escaped, sequence: self.sequence }));
            if flags & LAST != 0 {
                break;
            }
            let len = len + if flags & SAME_UUID == 0 { 16 } else { 0 };
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(Some(()))
    }

    fn revokes(&self, block: &[u8], revoked: &mut Vec<u64>) -> Result<(), Error> {
        let long = self.features & BITS64 != 0;
        let end = (be32(block, 12) as usize).clamp(16, block.len());
        let number = |entry: &[u8]| match long {
            true => u64::from(be32(entry, 0)) << 32 | u64::from(be32(entry, 4)),
            false => be32(entry, 0).into(),
        };
        let numbers = block[16..end].chunks_exact(if long { 8 } else { 4 });
        self.fs.area.keep(REVOKED * numbers.len() as u64)?;
        revoked.extend(numbers.map(number));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
