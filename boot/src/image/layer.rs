//! Puts the files of an archive into a tree: a root by itself, or a layer over those before it (OCI image-spec, `layer.md`).

use super::fault::{Fault, shown};
use super::limits::Budget;
use super::span::Span;
use super::tar::{Entry, EntryKind, Reader};
use super::tree::{Child, Id, Inode, Kind, ROOT, Tree};
use super::xattr;

/// Before the name of what a layer hides.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory all of whose lower files a layer hides.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a tree is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    /// From 1 on.
    pub(super) number: u32,
    /// Whether names with `.wh.` hide others, as in an image's layers; in a plain archive they are files.
    pub(super) whiteouts: bool,
    /// Whether a digest says that the archive is complete.
    pub(super) vouched: bool,
}

/// Adds to `tree` what the archive in `span` has.
pub(super) fn apply(tree: &mut Tree, span: &Span, layer: Layer, budget: &mut Budget) -> Result<(), Fault> {
    let mut reader = Reader::new(span, layer.vouched);
    while let Some(entry) = reader.next(budget)? {
        put(tree, entry, layer, budget)?;
    }
    Ok(())
}

fn put(tree: &mut Tree, entry: Entry, layer: Layer, budget: &mut Budget) -> Result<(), Fault> {
    let Entry { name: path, kind, meta } = entry;
    if layer.whiteouts
        && path.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(WHITEOUT))
    {
        return hide(tree, &path, layer, budget);
    }
    if !xattr::fit(&meta.xattrs) {
        return Err(Fault::Attributes { name: shown(&path) });
    }
    let Some((directory, name)) = tree.parent(&path, layer.number, budget)? else {
        if !matches!(kind, EntryKind::Directory) {
            return Err(Fault::RootNotADirectory);
        }
        budget.metadata(meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
        tree.inode_mut(ROOT).meta = meta;
        return Ok(());
    };
    let kind = match kind {
        EntryKind::HardLink(target) => {
            let id = linked(tree, &target)
                .ok_or_else(|| Fault::HardLink { name: shown(&path), target: shown(&target) })?;
            budget.hard_link()?;
            return tree.link(directory, name, Child { id, layer: layer.number }, budget);
        }
        EntryKind::Directory => {
            // One that is there keeps what it has.
            let there = tree.child(directory, &name).filter(|id| tree.entries(*id).is_some());
            if let Some(id) = there {
                budget.metadata(meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
                tree.inode_mut(id).meta = meta;
                return tree.link(directory, name, Child { id, layer: layer.number }, budget);
            }
            Kind::Directory(Default::default())
        }
        EntryKind::File(content) => Kind::File(content),
        EntryKind::Symlink(target) if target.is_empty() || target.len() >= 4096 || target.contains(&0) => {
            return Err(Fault::SymbolicLink { name: shown(&path) });
        }
        EntryKind::Symlink(target) => Kind::Symlink(target),
        EntryKind::CharacterDevice(major, minor) => Kind::CharacterDevice(major, minor),
        EntryKind::BlockDevice(major, minor) => Kind::BlockDevice(major, minor),
        EntryKind::Fifo => Kind::Fifo,
    };
    let id = tree.add(Inode { kind, meta }, budget)?;
    tree.link(directory, name, Child { id, layer: layer.number }, budget)
}

/// The file that a hard link's `target` names, which is no directory.
fn linked(tree: &Tree, target: &[u8]) -> Option<Id> {
    let (directory, name) = tree.existing_parent(target).ok()??;
    tree.child(directory, &name).filter(|id| tree.entries(*id).is_none())
}

fn hide(tree: &mut Tree, path: &[u8], layer: Layer, budget: &mut Budget) -> Result<(), Fault> {
    // By a name that is nowhere nothing is hidden.
    let Some((directory, name)) = tree.existing_parent(path)? else { return Ok(()) };
    if *name == *OPAQUE {
        tree.hide_below(directory, layer.number, budget)?;
    } else if let hidden @ [_, ..] = &name[WHITEOUT.len()..] {
        // Other names that begin so (.wh..wh.plnk) are aufs's own; there are no files of such names to hide.
        tree.hide(directory, hidden, layer.number, budget)?;
    }
    Ok(())
}
