//! How much an image may have. An image is not trusted, and a few bytes of it can stand for any number.

use super::fault::Fault;
use super::tree::{Content, Inode, Kind};

/// Bounds on what is made of an image; what goes beyond is refused.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of files, directories and links, in all layers together.
    pub entries: u32,
    /// In bytes: of all files' data and of what is unpacked, in all layers together. Holes do not count.
    pub data: u64,
    /// In bytes: of all files with their holes.
    pub apparent: u64,
    /// In bytes: of names, links' targets, attributes and maps of holes.
    pub metadata: u64,
}

impl Default for Limits {
    /// A million files of 64 GiB, 8 TiB with their holes, and 256 MiB of names.
    fn default() -> Self {
        Self { entries: 1_000_000, data: 64 << 30, apparent: 8 << 40, metadata: 256 << 20 }
    }
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    left: Limits,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, left: limits }
    }

    /// Counts a new inode.
    pub(super) fn entry(&mut self, inode: &Inode) -> Result<(), Fault> {
        self.hard_link()?;
        let attributes = inode.meta.xattrs.iter().map(|(name, value)| 32 + name.len() + value.len()).sum();
        self.metadata(attributes)?;
        match &inode.kind {
            Kind::Symlink(target) => self.metadata(target.len()),
            Kind::File(content) => self.file(content),
            _ => Ok(()),
        }
    }

    /// Counts one more name of an inode.
    pub(super) fn hard_link(&mut self) -> Result<(), Fault> {
        let left = self.left.entries.checked_sub(1);
        self.left.entries = left.ok_or(Fault::TooMany { limit: self.limits.entries })?;
        Ok(())
    }

    /// Counts a name in a directory: 64 bytes are about what its place takes.
    pub(super) fn name(&mut self, len: usize) -> Result<(), Fault> {
        self.metadata(64 + len)
    }

    pub(super) fn metadata(&mut self, bytes: usize) -> Result<(), Fault> {
        let left = self.left.metadata.checked_sub(bytes as u64);
        self.left.metadata = left.ok_or(Fault::TooMuchMetadata { limit: self.limits.metadata })?;
        Ok(())
    }

    /// Counts what a whiteout looks at: itself and `entries` entries of directories, each as what its name takes at least. So an archive
    /// of whiteouts alone ends, however large the directories are that they stand in.
    pub(super) fn whiteout(&mut self, entries: usize) -> Result<(), Fault> {
        self.metadata(entries.saturating_add(1).saturating_mul(16))
    }

    fn file(&mut self, content: &Content) -> Result<(), Fault> {
        let data = match content {
            Content::Whole(span) => span.len,
            Content::Sparse(sparse) => {
                self.metadata(16 * sparse.pieces.len())?;
                sparse.data.len
            }
            Content::Host(file) => file.size,
        };
        let limit = self.limits.data;
        self.left.data = self.left.data.checked_sub(data).ok_or(Fault::TooLarge { limit })?;
        let limit = self.limits.apparent;
        self.left.apparent =
            self.left.apparent.checked_sub(content.size()).ok_or(Fault::TooLarge { limit })?;
        Ok(())
    }
}
