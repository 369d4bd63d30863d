//! Inodes, and where the bytes of a file lie: by extents (`ifork.rst`), or by the block maps of ext2 and ext3.

use super::{Ext4, broken};
use crate::disk::Error;
use crate::disk::source::{array, le16, le32};

const DIRECTORY: u16 = 0x4000;
const REGULAR: u16 = 0x8000;
const SYMLINK: u16 = 0xa000;

const ENCRYPTED: u32 = 0x800;
pub(super) const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

/// The length of `i_block`.
const MAP: usize = 60;
const EXTENT_MAGIC: u16 = 0xf30a;
/// The deepest tree, and a length from which on an extent is not written yet and reads as zeros.
const DEPTH_MAX: u16 = 5;
pub(super) const UNWRITTEN: u16 = 0x8000;
/// The most pieces that a file may lie in: of one that boots, there are a few dozen.
const RUNS_MAX: usize = 1 << 16;

/// Blocks of a file that lie one after another; what no run has is zeros.
pub(super) struct Run {
    logical: u64,
    physical: u64,
    blocks: u64,
}

pub(super) struct Inode {
    mode: u16,
    flags: u32,
    /// In bytes.
    pub(super) size: u64,
    map: [u8; MAP],
}

impl Inode {
    /// Of at least 128 bytes.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self {
            mode: le16(bytes, 0) & 0xf000,
            flags: le32(bytes, 0x20),
            size: u64::from(le32(bytes, 0x4)) | u64::from(le32(bytes, 0x6c)) << 32,
            map: array(bytes, 0x28),
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.mode == DIRECTORY
    }

    pub(super) fn is_regular(&self) -> bool {
        self.mode == REGULAR
    }

    pub(super) fn is_symlink(&self) -> bool {
        self.mode == SYMLINK
    }

    /// The target of a symbolic link that has no block.
    pub(super) fn fast_symlink(&self) -> Option<&[u8]> {
        let fast = self.size < MAP as u64 && self.flags & (EXTENTS | INLINE | ENCRYPTED) == 0;
        fast.then(|| &self.map[..self.size as usize])
    }

    /// All of it, which the caller has found to be not too much.
    pub(super) fn read(&self, fs: &Ext4<'_>) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.size as usize];
        for Run { logical, physical, blocks } in self.runs(fs)? {
            let start = logical * fs.block_len;
            let len = (blocks * fs.block_len).min(self.size.saturating_sub(start));
            let Some(into) = bytes.get_mut(start as usize..).and_then(|rest| rest.get_mut(..len as usize))
            else {
                continue;
            };
            if physical.checked_add(blocks).is_none_or(|end| end > fs.blocks) {
                return Err(broken("a file of it lies past its end"));
            }
            fs.area.read(into, physical * fs.block_len)?;
            for (&number, _) in fs.journal.range(physical..physical + blocks) {
                let newer = fs.block(number)?;
                let from = ((number - physical) * fs.block_len) as usize;
                let Some(into) = into.get_mut(from..) else { break };
                let len = newer.len().min(into.len());
                into[..len].copy_from_slice(&newer[..len]);
            }
        }
        Ok(bytes)
    }

    /// Where its blocks lie, in order; only what its size has is looked for.
    fn runs(&self, fs: &Ext4<'_>) -> Result<Vec<Run>, Error> {
        if self.flags & (ENCRYPTED | INLINE) != 0 {
            return Err(broken("a file that is needed is encrypted, or in its inode"));
        }
        let mut runs = Runs { runs: Vec::new(), blocks: self.size.div_ceil(fs.block_len) };
        if self.flags & EXTENTS != 0 {
            extents(fs, &self.map, None, &mut runs)?;
        } else {
            let (direct, indirect) = self.map.split_at(48);
            let mut logical = 0;
            mapped(fs, direct, 0, &mut logical, &mut runs)?;
            for (depth, number) in indirect.chunks_exact(4).enumerate() {
                mapped(fs, number, depth as u32 + 1, &mut logical, &mut runs)?;
            }
        }
        Ok(runs.runs)
    }

    /// Calls `with` for each block, which may be enough.
    pub(super) fn each_block<T>(
        &self,
        fs: &Ext4<'_>,
        mut with: impl FnMut(&[u8]) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        for run in self.runs(fs)? {
            for number in run.physical..run.physical.saturating_add(run.blocks) {
                if let Some(found) = with(&fs.block(number)?)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// The block numbers of all that it has, in order; of a journal, which has no holes.
    pub(super) fn blocks(&self, fs: &Ext4<'_>, limit: u64) -> Result<Vec<u64>, Error> {
        let runs = self.runs(fs)?;
        if runs.iter().map(|run| run.blocks).fold(0, u64::saturating_add) > limit {
            return Err(broken("its journal is too long"));
        }
        Ok(runs.iter().flat_map(|run| run.physical..run.physical.saturating_add(run.blocks)).collect())
    }
}

pub(super) struct Runs {
    pub(super) runs: Vec<Run>,
    /// How many blocks the file has.
    pub(super) blocks: u64,
}

impl Runs {
    pub(super) fn add(&mut self, logical: u64, physical: u64, blocks: u64) -> Result<(), Error> {
        let blocks = blocks.min(self.blocks.saturating_sub(logical));
        if blocks == 0 {
            return Ok(());
        }
        let full = self.runs.len() == RUNS_MAX;
        match self.runs.last_mut() {
            Some(last) if logical < last.logical + last.blocks => {
                return Err(broken("the pieces of a file overlap"));
            }
            Some(last)
                if last.logical + last.blocks == logical && last.physical + last.blocks == physical =>
            {
                last.blocks += blocks;
            }
            _ if full => return Err(Error::TooMuch { what: "in one file's map" }),
            _ => self.runs.push(Run { logical, physical, blocks }),
        }
        Ok(())
    }
}

/// The extents of a node, which must be as deep as its parent says.
fn extents(fs: &Ext4<'_>, node: &[u8], depth: Option<u16>, runs: &mut Runs) -> Result<(), Error> {
    let found = le16(node, 6);
    if le16(node, 0) != EXTENT_MAGIC || found > DEPTH_MAX || depth.is_some_and(|depth| depth != found) {
        return Err(broken("a tree of extents is no tree"));
    }
    let entries = node[12..].chunks_exact(12).take(le16(node, 2).into());
    for entry in entries {
        if found > 0 {
            let child = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
            extents(fs, &fs.block(child)?, Some(found - 1), runs)?;
            continue;
        }
        let physical = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
        // One that is not written reads as zeros, as what no extent has does. The longest is as long as that bit.
        let len = le16(entry, 4);
        if len <= UNWRITTEN {
            runs.add(le32(entry, 0).into(), physical, len.into())?;
        }
    }
    Ok(())
}

/// Block numbers that are `depth` blocks of numbers away from data.
fn mapped(
    fs: &Ext4<'_>,
    numbers: &[u8],
    depth: u32,
    logical: &mut u64,
    runs: &mut Runs,
) -> Result<(), Error> {
    let covered = (fs.block_len / 4).pow(depth);
    for number in numbers.chunks_exact(4).map(|number| le32(number, 0)) {
        if *logical >= runs.blocks {
            break;
        }
        match (number, depth) {
            (0, _) => *logical += covered,
            (number, 0) => {
                runs.add(*logical, number.into(), 1)?;
                *logical += 1;
            }
            (number, depth) => mapped(fs, &fs.block(number.into())?, depth - 1, logical, runs)?,
        }
    }
    Ok(())
}
