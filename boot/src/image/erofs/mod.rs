//! Writes a tree as an EROFS, uncompressed, as Linux 5.4 and newer read it (Linux `Documentation/filesystems/erofs.rst`,
//! `fs/erofs/erofs_fs.h`).
//!
//! ```text
//! 0      1024         1152                                block D                          end
//! | none | superblock | inodes, each with its attributes  | blocks of files, directories   |
//! |      |            | and the tail of what it has       | and long links                 |
//! ```
//!
//! An inode and what is inline with it never cross a block: kernels want the tail, and a link's target, in one. What does not fit has
//! blocks of its own. A sparse file has its zeros, as holes of the file that is written; so it costs nothing on a file system with
//! holes, and needs nothing of the guest's kernel.

mod directory;
mod inode;
mod plan;
#[cfg(test)]
mod tests;

use std::io::Write;

use super::error::Error;
use super::tree::{Id, Kind, ROOT, Tree};
use super::write::{CopyError, Output, Sink, copy_content};
use plan::Plan;

/// In bytes.
const BLOCK: u64 = 4096;
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The times in inodes are those of modification.
const COMPAT_MTIME: u32 = 1 << 1;

/// Writes `tree` to `out`, from its beginning, up to a block's end.
pub(super) fn write(tree: &Tree, image: &str, target: &str, out: &mut Output<'_>) -> Result<(), Error> {
    let plan = Plan::new(tree).ok_or_else(|| Error::TooLargeForErofs { image: image.into() })?;
    let failed = |source| Error::Cache { path: target.into(), source };
    out.zeros(SUPERBLOCK).map_err(failed)?;
    out.write_all(&superblock(&plan)).map_err(failed)?;
    for id in &plan.order {
        let (inode, place) = (tree.inode(*id), plan.place(*id));
        out.up_to(place.offset).map_err(failed)?;
        out.write_all(&inode::encode(inode, place, &plan)).map_err(failed)?;
        if place.inline > 0 {
            part(&plan, tree, *id, place.size - place.inline, place.inline, out)
                .map_err(|error| told(error, &inode.kind, image, target))?;
        }
    }
    for id in &plan.order {
        let (inode, place) = (tree.inode(*id), plan.place(*id));
        let len = place.size - place.inline;
        if len > 0 {
            out.up_to(u64::from(place.block) * BLOCK).map_err(failed)?;
            part(&plan, tree, *id, 0, len, out).map_err(|error| told(error, &inode.kind, image, target))?;
        }
    }
    out.up_to(plan.blocks * BLOCK).map_err(failed)
}

fn told(error: CopyError, kind: &Kind, image: &str, target: &str) -> Error {
    match (kind, error) {
        (Kind::File(content), error) => error.of(image, content, target),
        (_, CopyError::Read(source) | CopyError::Write(source)) => {
            Error::Cache { path: target.into(), source }
        }
        (_, CopyError::Changed) => Error::Changed { image: image.into() },
    }
}

/// Writes `len` bytes from `at` on of what `id` has.
fn part(plan: &Plan, tree: &Tree, id: Id, at: u64, len: u64, out: &mut Output<'_>) -> Result<(), CopyError> {
    let range = at as usize..(at + len) as usize;
    match &tree.inode(id).kind {
        Kind::File(content) => copy_content(content, at, len, out),
        Kind::Symlink(target) => out.write_all(&target[range]).map_err(CopyError::Write),
        Kind::Directory(_) => {
            let bytes = directory::encode(tree, id, plan.place(id).parent, |id| plan.place(id).nid());
            out.write_all(&bytes[range]).map_err(CopyError::Write)
        }
        _ => Ok(()),
    }
}

fn superblock(plan: &Plan) -> [u8; SUPERBLOCK_LEN as usize] {
    let mut bytes = [0; SUPERBLOCK_LEN as usize];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[BLOCK.trailing_zeros() as u8]);
    // The root's number, which has 16 bits here: the root comes first.
    put(14, &(plan.place(ROOT).nid() as u16).to_le_bytes());
    put(16, &(plan.order.len() as u64).to_le_bytes());
    put(24, &plan.time.0.to_le_bytes());
    put(32, &plan.time.1.to_le_bytes());
    put(36, &(plan.blocks as u32).to_le_bytes());
    // Where the metadata begins, from which inodes are numbered: block 0. No shared attributes, no label.
    bytes
}
