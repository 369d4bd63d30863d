//! Directories: blocks of entries, each with the block's names after them, in the order of the names' bytes.

use super::super::tree::{Id, Kind, Tree};
use super::BLOCK;

/// In bytes.
const ENTRY: usize = 12;

/// The content of the directory `id`, of which only the last block is not full. `nid` says the number of an inode.
pub(super) fn encode(tree: &Tree, id: Id, parent: Id, nid: impl Fn(Id) -> u64) -> Vec<u8> {
    let mut entries: Vec<(&[u8], Id)> = vec![(b".", id), (b"..", parent)];
    entries.extend(tree.entries(id).into_iter().flatten().map(|(name, child)| (&name[..], child.id)));
    // There are names before `.`.
    entries.sort_unstable_by_key(|(name, _)| *name);
    let mut bytes = Vec::new();
    let mut rest = &entries[..];
    while !rest.is_empty() {
        // Full blocks only have more after them.
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        let mut room = BLOCK as usize;
        let fit = rest.iter().take_while(|(name, _)| {
            let enough = room >= ENTRY + name.len();
            room -= if enough { ENTRY + name.len() } else { 0 };
            enough
        });
        let (block, others) = rest.split_at(fit.count());
        rest = others;
        let mut name_at = block.len() * ENTRY;
        for (name, id) in block {
            bytes.extend(nid(*id).to_le_bytes());
            bytes.extend((name_at as u16).to_le_bytes());
            bytes.extend([file_type(&tree.inode(*id).kind), 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
    }
    bytes
}

/// As in `linux/fs_types.h`.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::CharacterDevice(..) => 3,
        Kind::BlockDevice(..) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}
